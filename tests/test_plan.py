"""Prepared steps: the bits of the function and of the class, what holds from call to call, and what is refused.

What is wrong with arrays is in test_checks.py, where a prepared step stands beside the function of its name.
"""

import gc

import numpy as np
import pytest
from conftest import untraced

import fastopt
from fastopt import functional
from fastopt.cases import by_hand, values_of
from fastopt.hyper import Choice, Flag, Limit, Number
from fastopt.optimizers import OPTIMIZERS

STEPS_TAKEN = 4
COUNTING = [name for name, cls in OPTIMIZERS.items() if cls.counts_steps]


def arrays_for(rule, rng, n=33, dtype=np.float64):
    """A parameter, a gradient and state like that after some steps."""
    param, grad, *states = (rng.standard_normal(n).astype(dtype) for _ in range(2 + len(rule.states)))
    return [param, grad, *(abs(state) for state in states)]


def computed(cls):
    """What the class works out, and a prepared step asks for."""
    return {key: value for key, value in by_hand(cls, 1).items() if key != "t"}


def prepare(rule, arrays, **more):
    return fastopt.plan(rule.name, *arrays, **computed(rule.cls), **rule.hyper, **more)


def new_gradients(rng, arrays):
    """Gradients in the place of the last."""
    for _ in range(STEPS_TAKEN):
        arrays[1][...] = rng.standard_normal(arrays[1].shape)
        yield arrays[1]


def check_pair(actual, expected, same_bits):
    for array, wanted in zip(actual, expected, strict=True):
        same_bits(array, wanted)


# ---- The same bits -------------------------------------------------------------------------------


def test_plan_and_function_have_the_same_bits(rule, dtype, rng, same_bits):
    """With t that counts by itself from 1."""
    arrays = arrays_for(rule, rng, dtype=dtype)
    other = [a.copy() for a in arrays]
    step = prepare(rule, arrays)
    for t, grad in enumerate(new_gradients(rng, arrays), start=1):
        assert step() is None
        rule.step(other[0], grad, *other[2:], t=t)
        check_pair([arrays[0], *arrays[2:]], [other[0], *other[2:]], same_bits)


@pytest.mark.parametrize("n", [0, 1, 40_000])
def test_plan_and_class_have_the_same_bits(rule, n, rng, same_bits):
    """But for the first gradient, which only the class knows to be the first."""
    param, grad = rng.standard_normal((2, n))
    of_class = param.copy()
    optimizer = rule.make(of_class)
    states = rule.states_of(param)
    undampened = {"dampening": 0.0} if "dampening" in rule.hyper else {}
    step = fastopt.plan(rule.name, param, grad, *states, **computed(rule.cls), **rule.hyper | undampened)
    step(**rule.scalars_of(optimizer))
    optimizer.step(grad)
    for _ in range(STEPS_TAKEN):
        grad[...] = rng.standard_normal(n)
        step(**{key: rule.hyper[key] for key in undampened}, **rule.scalars_of(optimizer))
        optimizer.step(grad)
    check_pair([param, *states], [of_class, *optimizer.state["param"].values()], same_bits)


def test_defaults_are_those_of_the_function(any_rule, rng, same_bits):
    arrays = arrays_for(any_rule, rng)
    other = [a.copy() for a in arrays]
    fastopt.plan(any_rule.name, *arrays, lr=0.1, **computed(any_rule.cls))()
    getattr(functional, any_rule.name)(*other, lr=0.1, **by_hand(any_rule.cls, 1))
    check_pair(arrays, other, same_bits)


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 2), (2, 3, 5)], ids=str)
def test_every_shape(any_rule, shape, rng, same_bits):
    arrays = [abs(rng.standard_normal(shape)) + np.zeros(shape) for _ in ("param", "grad", *any_rule.states)]
    arrays = [np.asarray(a) for a in arrays]
    other = [a.copy() for a in arrays]
    prepare(any_rule, arrays)()
    any_rule.step(*other, t=1)
    check_pair(arrays, other, same_bits)


# ---- What holds from call to call ----------------------------------------------------------------


def test_what_is_given_holds_from_then_on(any_rule, rng, same_bits):
    """Each hyperparameter in turn, given once; and grad_scale, whether at the beginning or later."""
    declared = {key: getattr(any_rule.cls, key) for key in any_rule.cls.hyper_names()}
    arrays = arrays_for(any_rule, rng)
    other = [a.copy() for a in arrays]
    step, hyper, t = prepare(any_rule, arrays, grad_scale=0.25), any_rule.hyper | {"grad_scale": 0.25}, 0
    changes = [(key, value) for key, d in declared.items() for value in values_of(d)]
    for key, value in [*changes, ("grad_scale", -3), ("grad_scale", 1), ("lr", 0.125)]:
        step(**{key: value})
        step()
        hyper |= {key: value}
        for _ in range(2):
            t += 1
            getattr(functional, any_rule.name)(*other, **by_hand(any_rule.cls, t) | hyper)
        check_pair(arrays, other, same_bits)


@pytest.mark.parametrize("name", COUNTING)
def test_the_counter_goes_on_from_what_is_given(name, rng, same_bits):
    cls = OPTIMIZERS[name]
    first = [*rng.standard_normal((2 + len(cls.state_names()), 9)) ** 2]
    other = [a.copy() for a in first]
    step = fastopt.plan(name, *first, **computed(cls))
    for given, t in [({}, 1), ({}, 2), ({"t": 3}, 3), ({}, 4), ({"t": 1}, 1), ({}, 2), ({"t": 2}, 2),
                     ({"t": 10**9}, 10**9), ({}, 10**9 + 1), ({"t": np.int64(5)}, 5), ({}, 6)]:  # fmt: skip
        step(**given)
        getattr(functional, name)(*other, **by_hand(cls, t))
        check_pair(first, other, same_bits)


def test_several_changes_at_once(any_rule, rng, same_bits):
    arrays = arrays_for(any_rule, rng)
    other = [a.copy() for a in arrays]
    step = fastopt.plan(any_rule.name, *arrays, lr=0.9, **computed(any_rule.cls))
    step(**any_rule.hyper, **({"t": 7} if any_rule.cls.counts_steps else {}), grad_scale=0.5)
    any_rule.step(*other, t=7, grad_scale=0.5)
    check_pair(arrays, other, same_bits)


@untraced
def test_the_arrays_stay_bound(any_rule, rng, same_bits):
    """Though nobody else holds them, and until the step is gone."""
    arrays = arrays_for(any_rule, rng, n=1000)
    other = [a.copy() for a in arrays]
    param, step = arrays[0], prepare(any_rule, arrays)
    del arrays
    gc.collect()
    with pytest.raises(ValueError, match="resize"):
        param.resize(2000)
    step()
    any_rule.step(*other, t=1)
    same_bits(param, other[0])
    del step
    gc.collect()
    param.resize(2000)  # which NumPy refuses while a buffer is held


def test_many_plans_apart(any_rule, rng, same_bits):
    """Each counts for itself."""
    many = [arrays_for(any_rule, rng, n=n) for n in range(5)]
    others = [[a.copy() for a in arrays] for arrays in many]
    steps = [prepare(any_rule, arrays) for arrays in many]
    for n, step in enumerate(steps):
        for t in range(1, n + 2):
            step()
            any_rule.step(*others[n], t=t)
    for arrays, other in zip(many, others, strict=True):
        check_pair(arrays, other, same_bits)


# ---- What is refused -----------------------------------------------------------------------------


def bad_changes(rule):
    """Keywords of a step with values that break their rules."""
    for key in rule.cls.hyper_names():
        match getattr(rule.cls, key):
            case Flag():
                bad = [0, 1, 0.0, 1.0, None, "True", np.nan]
            case Choice():
                bad = ["hats", "", None, 0, 0.0, True]
            case Number() | Limit() as declared:
                bad = [-1, np.nan, np.inf, -np.inf, 1e39, "0.5", [0.1], *[None] * isinstance(declared, Number)]
        yield from ((key, value) for value in bad)
    yield from (("grad_scale", value) for value in (np.nan, np.inf, 1e39, "1", None, [1.0]))
    if rule.cls.counts_steps:
        yield from (("t", value) for value in (0, -1, 3.0, 1.5, np.nan, "1", None, 2**53 + 1))


def test_a_bad_change_changes_nothing(any_rule, rng, refuses, same_bits):
    """Not the arrays, nor t, nor what was given beside it, before it or behind it; whatever is held at the time."""
    arrays = arrays_for(any_rule, rng)
    other = [a.copy() for a in arrays]
    step = prepare(any_rule, arrays)
    step()
    step()  # the next has the number 3
    counter = {"t": 77} if any_rule.cls.counts_steps else {}
    for key, value in bad_changes(any_rule):
        good = {"lr": 0.77, "weight_decay": 0.77, "grad_scale": 0.77} | counter
        good.pop(key, None)
        for changes in ({key: value}, good | {key: value}, {key: value} | good):
            refuses(lambda changes=changes: step(**changes), f"{key} must be ", *arrays)
    step()
    for t in (1, 2, 3):
        any_rule.step(*other, t=t)
    check_pair(arrays, other, same_bits)


@pytest.mark.parametrize("key", ["learning_rate", "T", "param", "clip_norm", ""])
def test_an_unknown_change(any_rule, key, rng, refuses):
    arrays = arrays_for(any_rule, rng)
    step = prepare(any_rule, arrays)
    refuses(lambda: step(lr=0.7, **{key: 1.0}), f"{key} is no keyword of this step; it takes .*lr", *arrays)
    if not any_rule.cls.counts_steps:
        refuses(lambda: step(t=1), "t is no keyword of this step", *arrays)
    with pytest.raises(TypeError, match="positional"):
        step(0.1)


def test_a_bad_plan(any_rule, rng, refuses):
    arrays = arrays_for(any_rule, rng)
    for key, value in bad_changes(any_rule):
        if key != "t":
            hyper = computed(any_rule.cls) | any_rule.hyper | {key: value}
            refuses(lambda hyper=hyper: fastopt.plan(any_rule.name, *arrays, **hyper), f"{key} must be ", *arrays)


@pytest.mark.parametrize("key", ["learning_rate", "t", "clip_norm"])
def test_an_unknown_keyword_of_a_plan(any_rule, key, rng, refuses):
    arrays = arrays_for(any_rule, rng)
    message = f"{any_rule.name} has no keyword {key}; it takes .*lr, "
    keywords = {"lr": 0.1, **computed(any_rule.cls), key: 1}
    refuses(lambda: fastopt.plan(any_rule.name, *arrays, **keywords), message, *arrays)


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_a_learning_rate_without_default_must_be_given(name, refuses):
    arrays = np.ones((2 + (name == "momentum"), 3))
    refuses(lambda: fastopt.plan(name, *arrays), f"{name} lacks the keyword lr; it takes lr, ", arrays)


@pytest.mark.parametrize("name", ["Adam", "relu_forward", "plan", "", None, fastopt.Adam])
def test_no_such_step(name, refuses):
    refuses(lambda: fastopt.plan(name, np.ones(3), np.ones(3), lr=0.1), "name must be one of 'sgd', ")


def test_a_wrong_number_of_state_arrays(any_rule, rng, refuses):
    arrays = arrays_for(any_rule, rng)
    count = len(any_rule.states)
    for wrong in ([*arrays, np.zeros(33)], arrays[:-1] if count else [*arrays, np.zeros(33), np.zeros(33)]):
        message = rf"state must be {count} arrays \({', '.join(any_rule.states)}\) for {any_rule.name}, got "
        refuses(lambda wrong=wrong: prepare(any_rule, wrong), message + str(len(wrong) - 2), *arrays)


def test_an_array_that_does_not_fit_as_the_function_says(any_rule, rng, refuses):
    """In the same words, whichever array it is (and see the table in test_checks.py)."""
    for place in range(2 + len(any_rule.states)):
        for spoil in (lambda a: a[:-1], lambda a: a.astype(np.float32), lambda a: a.tolist(), lambda a: a[::2]):
            arrays = arrays_for(any_rule, rng)
            arrays[place] = spoil(arrays[place])
            with pytest.raises((TypeError, ValueError)) as of_function:
                any_rule.step(*arrays, t=1)
            kept = [a for a in arrays if isinstance(a, np.ndarray)]
            with pytest.raises(type(of_function.value)) as of_plan:
                prepare(any_rule, arrays)
            assert str(of_plan.value) == str(of_function.value)
            assert kept
