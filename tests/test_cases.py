"""The table of cases is whole; and each kernel in it computes what the reference does, and writes nothing else."""

import inspect

import numpy as np
import pytest
from conftest import noted

import fastopt
from fastopt import _kernels, cases, functional
from fastopt.cases import arrays_in, map_arrays
from fastopt.optimizers import OPTIMIZERS

# ---- The table ----------------------------------------------------------------------------------------------

#: Functions that run no kernel.
BESIDE = {
    "batch_norm_sums_shape",
    "conv2d_fits",
    "kept_share",
    "packed_shape",
    "patches_shape",
    "winner_type",
    "winograd_fits",
}


def test_every_kernel_has_a_case():
    assert {kernel for case in cases.LAYERS.values() for kernel in case.kernels} == set(_kernels.LAYERS)
    assert {kernel for case in cases.STEPS.values() for kernel in case.kernels} == set(_kernels.STEPS)


def test_every_function_has_a_case():
    functions = {name for name in functional.__all__ if inspect.isroutine(getattr(functional, name))}
    assert functions - BESIDE == {case.name.split()[0] for case in cases.CASES.values()} - {
        name for name in cases.LAYERS if not hasattr(functional, name.split()[0])
    }


def kernels_of(case, arguments) -> set[str]:
    """The names of the layer kernels that a call runs."""
    program = _kernels.Program()
    program.call(case.run, (arguments,), {})
    return {name for name, _, _ in program.list()}


def test_a_case_runs_the_kernels_that_it_names(case):
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(8)
    try:
        run = set()
        for size in (case.edges[1], *case.threads):
            arguments = case.arguments(cases.normal(np.float32), size, case.options[0])
            run |= kernels_of(case, arguments)
    finally:
        fastopt.set_num_threads(before)
    assert run == set(case.kernels)


def test_a_step_runs_the_kernel_that_it_names():
    for name, cls in OPTIMIZERS.items():
        assert cases.STEPS[name].kernels == cases.STEPS[f"plan {name}"].kernels == (cls.kernel,)


# ---- Values -------------------------------------------------------------------------------------------------


def placed(arguments, guarded, offset):
    """The arguments with each array amid guards, each at another place in its cache line."""
    number = iter(range(offset, offset + 100))
    return map_arrays(lambda a: guarded(a, next(number) % 16), arguments)


def test_values(case, isa, dtype, edges, guarded, same_bits, close):
    """Into new arrays and into given ones; what is only read stays as it was."""
    tolerance = case.factor * (1e-12 if dtype == np.float64 else 5e-6)
    for i, size in enumerate(edges(case)):
        for options in case.options:
            with noted(case, size, options):
                arguments = case.values(dtype, size, options)
                expected = case.reference(arguments)
                first = case.run(map_arrays(np.copy, arguments))
                given = placed(arguments, guarded, i)
                out = placed(case.places(first), guarded, i + 1)
                results = case.run(given | out)
                for name, result in zip(case.outputs, results, strict=False):
                    assert not name or result is out[name], f"{name} is not what is returned"
                for one, other in zip(results, first, strict=True):
                    same_bits(one, other)
                for name in arguments.keys() - {*case.updates, *out}:
                    for one, other in zip(arrays_in((given[name],)), arrays_in((arguments[name],)), strict=True):
                        same_bits(one, other, f"{name} has changed")
                guarded.check()
                magnitudes = case.magnitudes(**arguments) if case.magnitudes else ()
                for k, wanted in enumerate(expected):
                    if wanted is None:
                        continue
                    if case.whole or case.exact or first[k].dtype.kind != "f":
                        np.testing.assert_array_equal(first[k], wanted)
                    else:
                        close(first[k], wanted, tolerance, *magnitudes[k : k + 1])


def test_most_results_are_compared(case):
    """With those of the reference; of others there are tests in tests/functional."""
    arguments = case.values(np.float32, case.edges[1], case.options[0])
    expected = case.reference(arguments)
    assert case.name in ("batch_norm_backward relu", "batch_norm_backward dropout", "batch_norm_backward max_pool") or (
        expected and expected[-1 if case.outputs == () else 0] is not None
    )


@pytest.mark.parametrize("case", [case for case in cases.LAYERS.values() if case.in_place], ids=str)
def test_in_place(case, isa, dtype, edges, guarded, same_bits):
    out = next(filter(None, case.outputs))
    for size in edges(case):
        with noted(case, size):
            arguments = case.values(dtype, size, case.options[0])
            first = case.run(map_arrays(np.copy, arguments))
            own = guarded(arguments[case.in_place], 3)
            results = case.run(arguments | {case.in_place: own, out: own})
            assert results[case.outputs.index(out)] is own
            for one, other in zip(results, first, strict=True):
                same_bits(one, other)


ELEMENTWISE = {name for name, case in cases.LAYERS.items() if case.edges[1] == (33,) and hasattr(functional, name)}
OF_ROWS = {name for name in cases.LAYERS if name.startswith(("bias_", "softmax_forward", "softmax_backward"))}


@pytest.mark.parametrize("name", sorted(ELEMENTWISE | OF_ROWS))
def test_any_shape(name, same_bits):
    """What is done element by element, or row by row, takes any shape."""
    case = cases.LAYERS[name]
    arguments = case.values(np.float64, (33,) if name in ELEMENTWISE else (6, 33), case.options[0])
    shape = (3, 11) if name in ELEMENTWISE else (2, 3, 33)
    like = next(arrays_in(arguments)).shape
    reshaped = map_arrays(lambda a: a.reshape(shape) if a.shape == like else a, arguments)
    for one, other in zip(case.run(reshaped), case.run(arguments), strict=True):
        same_bits(one.reshape(other.shape), other)


# ---- Every alignment ----------------------------------------------------------------------------------------


def test_every_alignment(case, isa, dtype, guarded, same_bits):
    arguments = case.values(dtype, case.edges[1], case.options[0])
    first = case.run(map_arrays(np.copy, arguments))
    for offset in range(64 // dtype.itemsize):
        given = map_arrays(lambda a, offset=offset: guarded(a, offset), arguments | case.places(first))
        for one, other in zip(case.run(given), first, strict=True):
            same_bits(one, other, f"offset {offset}")
        guarded.check()


#: Kernels that first step to a cache line of their output.
TO_A_LINE = ("relu_forward", "relu_backward", "dropout", "dropout_apply", "dropout_backward")


def sizes_around_thresholds(itemsize):
    return sorted({n + by for n in (32, 128, 1024, 8192 // itemsize) for by in (-1, 0, 1)} | {8192 // itemsize + 777})


@pytest.mark.parametrize("name", [*TO_A_LINE, "bias_relu_dropout_forward"])
def test_every_alignment_of_the_output(name, isa, dtype, guarded, same_bits):
    """At each place of an output in its cache line, with inputs that are elsewhere in theirs, or go along with it."""
    case = cases.LAYERS[name]
    for n in sizes_around_thresholds(dtype.itemsize):
        arguments = case.arguments(cases.normal(dtype), (n,) if name in TO_A_LINE else (1, n))
        first = case.run(arguments)
        for offset in range(64 // dtype.itemsize):
            for beside in (0, 1):
                number = iter(range(1, 9))
                given = map_arrays(lambda a, o=offset, b=beside, i=number: guarded(a, o * b + next(i)), arguments)
                out = guarded(np.zeros_like(first[0]), offset)
                for one, other in zip(case.run(given | {"out": out}), first, strict=True):
                    same_bits(one, other, f"{n} elements, offset {offset}")
        guarded.check()


@pytest.mark.parametrize("arrays", [1, 2, 3])
def test_stream_of_fewer_arrays(isa, dtype, arrays, rng, guarded, same_bits):
    x, *values = rng.standard_normal((1 + arrays, 1001)).astype(dtype)
    given = [guarded(a, i) for i, a in enumerate(values)]
    cases.stream(x, *given)
    for array, a in zip(given, values, strict=True):
        same_bits(array, dtype.type(0.5) * a + x)
