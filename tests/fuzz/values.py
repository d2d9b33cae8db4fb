"""Calls of the table of cases at random sizes and options: values are compared with the reference, bits between
instruction sets and numbers of threads.

python tests/fuzz/values.py CALLS [SEED]
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import fastopt
from fastopt import _kernels, cases
from fastopt.cases import Case, map_arrays

MOST_ELEMENTS = 60_000
LAYERS = [case for case in cases.LAYERS.values() if case.name != "random_bits"]


def perturbed(size: Any, rng: np.random.Generator, most: int) -> Any:
    """A size in which some lengths are others."""
    if isinstance(size, tuple):
        return tuple(perturbed(each, rng, most) for each in size)
    if not isinstance(size, int) or isinstance(size, bool) or rng.random() < 0.5:
        return size
    return int(rng.choice([rng.integers(0, 4), rng.integers(0, 40), rng.integers(0, most), max(size - 1, 0), size + 1]))


def draw_of(rng: np.random.Generator, case: Case, dtype: Any) -> tuple[cases.Draw, bool]:
    """How arrays are filled, and whether the reference can tell the values."""
    if case.whole:
        return cases.whole(dtype, case.whole), True
    return [(cases.normal(dtype), True), (cases.hostile(dtype), False), (cases.hostile(dtype, 0.9), False)][
        rng.integers(3)
    ]


def same(one: Any, other: Any) -> bool:
    if one.tobytes() == other.tobytes():
        return True
    if one.dtype.kind != "f":
        return False
    alike = (one.view(f"u{one.itemsize}") == other.view(f"u{one.itemsize}")) | (np.isnan(one) & np.isnan(other))
    return bool(alike.all())


def call(number: int) -> bool:
    """One call, by its number; returns whether it was made: sizes that do not fit are refused."""
    rng = np.random.default_rng(number)
    case = LAYERS[rng.integers(len(LAYERS))]
    dtype = [np.float32, np.float64][rng.integers(2)]
    base = case.edges[rng.integers(min(len(case.edges), 7))]
    size = perturbed(base, rng, 3000 if len(base) == 1 else 130 if len(base) == 2 else 20)
    options = case.options[rng.integers(len(case.options))]
    draw, told = draw_of(rng, case, dtype)

    def bounded(*shape: int) -> Any:
        if np.prod(shape, dtype=np.int64) > MOST_ELEMENTS:
            raise ValueError("too large")
        return draw(*shape)

    threads, isa = fastopt.get_num_threads(), _kernels.isa()
    try:
        with np.errstate(all="ignore"):
            arguments = case.arguments(bounded, size, options)
            first = case.run(map_arrays(np.copy, arguments))
    except (ValueError, TypeError, ZeroDivisionError, IndexError):  # by the kernel, or by what makes arguments
        return False
    try:
        for other in _kernels.isas():
            _kernels.use_isa(other)
            fastopt.set_num_threads(int(rng.integers(1, 9)))
            results = case.run(map_arrays(np.copy, arguments))
            for k, (one, two) in enumerate(zip(first, results, strict=True)):
                assert same(one, two), f"{number}: {case}, {size}, {options}: other bits of result {k} on {other}"
    finally:
        _kernels.use_isa(isa)
        fastopt.set_num_threads(threads)
    if told and all(a.size for a in cases.arrays_in(arguments)):
        compare(number, case, size, arguments, first, dtype)
    return True


def compare(number: int, case: Case, size: Any, arguments: Any, results: Any, dtype: Any) -> None:
    tolerance = case.factor * (1e-11 if dtype == np.float64 else 2e-5)
    magnitudes = case.magnitudes(**arguments) if case.magnitudes else ()
    for k, wanted in enumerate(case.reference(arguments)):
        if wanted is None or not np.isfinite(wanted).all():
            continue
        scale = max([float(np.abs(wanted).max(initial=0)), *magnitudes[k : k + 1]])
        error = np.abs(results[k].astype(np.float64) - wanted).max(initial=0)
        assert error <= tolerance * scale, f"{number}: {case}, {size}: result {k} is off by {error}, of {scale}"


def main() -> None:
    calls, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    made, failed = 0, 0
    for number in range(calls):
        try:
            made += call(seed * 10**9 + number)
        except AssertionError as error:
            failed += 1
            print(error)
    print(f"{calls} calls, {calls - made - failed} refused, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
