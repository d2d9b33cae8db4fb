"""Every optimizer step against its textbook formula in `fastopt.reference`."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from fastopt import _kernels, functional, reference
from fastopt.optimizers import OPTIMIZERS

STEPS_TAKEN = 3
CSRC = Path(__file__).parents[2] / "csrc"


def draw(rng, shape, rule, dtype):
    """A parameter, a state as it is after one step, and the gradients of the steps to come."""
    param, *grads = (rng.standard_normal(shape).astype(dtype) for _ in range(1 + STEPS_TAKEN))
    states = [a.astype(dtype) for a in rule.expected(param, -param, *[0 * param for _ in rule.states], t=1)[1:]]
    return param, states, grads


def check_steps(rule, place, close, param, states, grads, **more):
    """Take steps in place, and beside them those of the reference in float64."""
    expected = [a.astype(np.float64) for a in (param, *states)]
    actual = [place(a, offset=i + 1) for i, a in enumerate((param, *states))]
    for t, grad in enumerate(grads, start=2):
        expected = rule.expected(expected[0], grad.astype(np.float64), *expected[1:], t=t, **more)
        given = place(grad, offset=t)
        assert rule.step(actual[0], given, *actual[1:], t=t, **more) is None
        np.testing.assert_array_equal(given, grad, "the gradient has changed")
    for array, wanted in zip(actual, expected, strict=True):
        close(array, wanted)


def test_every_size_on_every_isa(any_rule, isa, dtype, size, rng, guarded, close):
    check_steps(any_rule, guarded, close, *draw(rng, size, any_rule, dtype))


def test_every_option(rule, dtype, rng, guarded, close):
    check_steps(rule, guarded, close, *draw(rng, 67, rule, dtype))


@pytest.mark.parametrize("grad_scale", [0.125, -3.0, 0])
def test_grad_scale(any_rule, dtype, grad_scale, rng, guarded, close):
    check_steps(any_rule, guarded, close, *draw(rng, 67, any_rule, dtype), grad_scale=grad_scale)


@pytest.mark.parametrize("shape", [(), (3,), (4, 0, 2), (2, 3, 5, 7)], ids=str)
def test_every_shape(any_rule, shape, rng, guarded, close):
    check_steps(any_rule, guarded, close, *draw(rng, shape, any_rule, np.float64))


def test_every_alignment(any_rule, isa, dtype, rng, same_bits):
    param, states, grads = draw(rng, 45, any_rule, dtype)
    results = []
    for offset in range(64 // dtype.itemsize):
        arrays = []
        for i, a in enumerate((param, grads[0], *states)):
            buffer = np.zeros(200, dtype)
            start = (offset * (i + 1)) % 64
            arrays.append(buffer[start : start + a.size])
            arrays[-1][...] = a
        any_rule.step(*arrays, t=2)
        results.append(arrays)
    for arrays in results[1:]:
        for array, first in zip(arrays, results[0], strict=True):
            same_bits(array, first)


def test_late_steps(any_rule, close):
    """At a large t, bias corrections are 1 and must not have lost their digits on the way."""
    for t in (10, 1000, 10**9):
        param, grad, states = np.array([1.5]), np.array([0.5]), [np.array([0.25]) for _ in any_rule.states]
        expected = any_rule.expected(param, grad, *states, t=t)
        any_rule.step(param, grad, *states, t=t)
        close(np.concatenate([param, *states]), np.concatenate(expected))


# ---- One name, four places -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS, *_kernels.STEPS}))
def test_an_optimizer_is_in_all_its_places(name):
    kernels = {cls.kernel for cls in OPTIMIZERS.values()}
    assert name in OPTIMIZERS or name in kernels, f"no class in optimizers.py drives the row {name}"
    assert hasattr(reference, name), f"reference.py lacks the function {name}"
    assert name not in OPTIMIZERS or OPTIMIZERS[name].kernel in _kernels.STEPS
    assert name not in OPTIMIZERS or name in functional.__all__


@pytest.mark.skipif(not CSRC.is_dir(), reason="the C sources are not here")
def test_every_step_has_a_file_of_its_name():
    assert {file.stem for file in (CSRC / "steps").glob("*.c")} == set(_kernels.STEPS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_class_function_and_reference_have_the_same_defaults(name):
    def defaults(function):
        keywords = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in keywords if p.kind != p.VAR_KEYWORD and p.name != "params"}

    cls, of_function = OPTIMIZERS[name], defaults(getattr(functional, name))
    arrays = ("param", "grad", *cls.state_names())
    assert tuple(of_function)[: len(arrays)] == arrays
    assert cls.keywords().items() <= of_function.items()
    assert defaults(getattr(reference, name)).items() <= of_function.items()


def test_a_step_out_of_place_has_the_bits_of_one_in_place(rule, dtype, rng, same_bits):
    for shape in ((), (67,), (3, 0), (2, 3, 5)):
        param, states, grads = draw(rng, shape, rule, dtype)
        param, *states = map(np.array, (param, *states))
        grads = [*map(np.array, grads)]
        others = [a.copy() for a in (param, *states)]
        for t, grad in enumerate(grads, start=2):
            before, out = param.copy(), np.empty_like(param)
            param.flags.writeable = False
            assert rule.step(param, grad, *states, t=t, grad_scale=0.5, out=out) is out
            rule.step(others[0], grad, *others[1:], t=t, grad_scale=0.5)
            same_bits(param, before)

            param = out
            for one, other in zip((param, *states), others, strict=True):
                same_bits(one, other)


def test_out_may_be_the_parameter(any_rule, rng, same_bits):
    param, states, grads = draw(rng, 9, any_rule, np.float64)
    others = [a.copy() for a in (param, *states)]
    assert any_rule.step(param, grads[0], *states, t=2, out=param) is param
    any_rule.step(others[0], grads[0], *others[1:], t=2)
    for one, other in zip((param, *states), others, strict=True):
        same_bits(one, other)


def test_what_out_cannot_be(any_rule, rng, refuses):
    param, states, (grad, *_) = draw(rng, 9, any_rule, np.float64)
    memory = np.zeros(20)
    memory[:9] = param

    def step(out, param=param, grad=grad, **more):
        return lambda: any_rule.step(param, grad, *states, t=2, out=out, **more)

    held = (param, grad, *states, memory)
    refuses(step(np.zeros(8)), r"out must have shape \(9,\), got \(8,\)", *held)
    refuses(step(np.zeros(9, np.float32)), "out must be float64, got float32", *held)
    refuses(step([0.0] * 9), "out must be a NumPy array, got list", *held)
    refuses(step(memory[:18:2]), "out must be C-contiguous", *held)
    refuses(step(memory[4:13], memory[:9]), "(out|param) and (out|param) must not overlap in memory", *held)
    refuses(step(grad), "(out|grad) and (out|grad) must not overlap in memory", *held)
    refuses(step(memory[9:18], grad=grad[:8]), r"grad must have shape \(9,\), got \(8,\)", *held)
    refuses(step(memory[9:18], param=[1.0]), "param must be a NumPy array, got list", *held)
    refuses(step(memory[9:18], lr="fast"), "lr must be a number", *held)
    refuses(step(memory[9:18], grad_scale="much"), "grad_scale must be a number", *held)
    for state, name in zip(states, any_rule.cls.state_names(), strict=True):
        refuses(step(state), f"({name}|out) and ({name}|out) must not overlap in memory", *held)
        refuses(step(memory[9:18], param=state), f"({name}|param) and ({name}|param) must not overlap", *held)
    locked = np.zeros(9)
    locked.flags.writeable = False
    refuses(step(locked), "out must be writable", *held)
