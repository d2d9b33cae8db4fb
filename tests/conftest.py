"""What all tests share: instruction set x type x sizes around a vector, guarded arrays, every kernel and optimizer.

`--quick` is a cross-section of everything: the strongest instruction set, float32, three sizes, a few variants of each
test, and nothing that is marked as slow. `--bits` goes with it: tests of bits are then run in full.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from fastopt import _kernels, cases, reference
from fastopt.cases import Case, lively_rule, rules
from fastopt.optimizers import OPTIMIZERS

SIZES = (0, 1, 7, 8, 9, 31, 33, 1000, 20_003)
GUARD_WIDTH = 128  # as wide as the widest unit of work, 128 elements of a dropout group

# Hypothesis draws the same examples in each run, and no clock decides: a busy machine finds what an idle one does.
settings.register_profile(
    "fastopt", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastopt")

#: Of tests that ask NumPy whether anybody else holds an array: what measures coverage does.
untraced = pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer holds the values of local names")

# ---- The cross-section ------------------------------------------------------------------------------

QUICK = {"isa": (_kernels.isa(),), "dtype": ("float32", np.float32), "size": (0, 33, 1000)}
MOST_VARIANTS = 4  # of one test, in the cross-section; 1 of a test on each kernel


def pytest_addoption(parser) -> None:
    parser.addoption("--quick", action="store_true", help="a cross-section of all tests")
    parser.addoption("--bits", action="store_true", help="with --quick: tests of bits in full")


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "slow: left out by --quick")
    config.addinivalue_line("markers", "bits: compares bits; run in full by --quick --bits")
    config.addinivalue_line("markers", "own_isa: chooses the instruction set itself, whatever FASTOPT_ISA says")


def is_quick(item) -> bool:
    """Whether a test is to be but a cross-section of itself."""
    option = item.config.option
    return option.quick and not (option.bits and item.get_closest_marker("bits"))


def pytest_collection_modifyitems(config, items) -> None:
    for item in items:
        if {"isa", "on_each_isa"}.intersection(item.fixturenames):
            item.add_marker("own_isa")
    if not config.option.quick:
        return
    kept, files = [], {item.path for item in items}
    variants: dict[Any, list[Any]] = {}
    for item in items:
        if not is_quick(item) or in_cross_section(item):
            kernel = next((value.name for value in params_of(item).values() if isinstance(value, Case)), "")
            variants.setdefault((item.nodeid.partition("[")[0], kernel), []).append(item)
    for (_, kernel), some in variants.items():
        most = len(some) if not is_quick(some[0]) else 1 if kernel else MOST_VARIANTS
        kept += [some[len(some) * i // most] for i in range(most)] if len(some) > most else some
    if missing := files - {item.path for item in kept}:
        raise pytest.UsageError(f"--quick leaves no test of {', '.join(sorted(path.name for path in missing))}")
    chosen = set(map(id, kept))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = kept


def params_of(item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def in_cross_section(item) -> bool:
    params = params_of(item)
    usual = all(params[key] in values for key, values in QUICK.items() if key in params)
    return usual and not item.get_closest_marker("slow")


@pytest.fixture
def edges(request) -> Callable[[Case], Iterable[cases.Size]]:
    """The edge sizes of a case: three of them in the cross-section."""
    return lambda case: case.edges[:3] if is_quick(request.node) else case.edges


@contextmanager
def noted(*what: Any) -> Iterator[None]:
    """Says of an error where in a loop it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {', '.join(map(str, what))}")
        raise


@pytest.fixture(autouse=True, scope="module")
def few_to_collect() -> None:
    """Tests of garbage collection need not go through what is there before a module of tests begins: all tests, and
    JAX, which takes a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_timed():
    """How many steps a call of C takes does not depend on what tests before have shown of programs like it."""
    if (program := sys.modules.get("fastopt.nn.program")) is not None:
        program._seconds.clear()


# ---- Instruction sets, types, sizes -----------------------------------------------------------------


@pytest.fixture(params=[_kernels.isa()] if os.environ.get("FASTOPT_ISA") else _kernels.isas())
def isa(request) -> Iterator[str]:
    """Each instruction set in turn, in use; where one is forced, that one."""
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


@pytest.fixture(params=("float32", "float64"))
def dtype(request) -> np.dtype:
    return np.dtype(request.param)


@pytest.fixture(params=SIZES, ids="n{}".format)
def size(request) -> int:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def on_each(names, current, use) -> Callable[[Callable[[], Any]], list[Any]]:
    """What runs a function under each of some choices, and lists the results."""

    def run(function) -> list[Any]:
        before, results = current(), []
        try:
            for name in names():
                use(name)
                results.append(function())
        finally:
            use(before)
        return results

    return run


@pytest.fixture
def on_each_isa() -> Callable[[Callable[[], Any]], list[Any]]:
    return on_each(_kernels.isas, _kernels.isa, _kernels.use_isa)


@pytest.fixture
def on_each_tuning() -> Callable[[Callable[[], Any]], list[Any]]:
    return on_each(_kernels.tunings, _kernels.tuning, _kernels.use_tuning)


class Guards:
    """Copies values to an array amid guards, at an `offset` in elements; all guards must stand in the end."""

    def __init__(self) -> None:
        self.made: list[tuple[np.ndarray, int, int, Any]] = []

    def __call__(self, values, offset: int = 0) -> np.ndarray:
        values = np.asarray(values)
        start, guard = GUARD_WIDTH + offset, -12345 if values.dtype.kind in "fi" and values.itemsize > 1 else 1
        buffer = np.full(start + values.size + GUARD_WIDTH, guard, values.dtype)
        self.made.append((buffer, start, start + values.size, guard))
        inside = buffer[start : start + values.size].reshape(values.shape)
        inside[...] = values
        return inside

    def check(self) -> None:
        for buffer, start, end, guard in self.made:
            assert (buffer[:start] == guard).all(), "written before the array"
            assert (buffer[end:] == guard).all(), "written behind the array"
        self.made.clear()


@pytest.fixture
def guarded() -> Iterator[Guards]:
    guards = Guards()
    yield guards
    guards.check()


@pytest.fixture
def same_bits() -> Callable[[Any, Any], None]:
    """Asserts that two arrays are alike to the bit; a NaN is a NaN, whatever its bits."""

    def check(actual, expected, message="") -> None:
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), message
        if actual.tobytes() == expected.tobytes():  # nearly always, and ten times as fast
            return
        np.testing.assert_array_equal(actual, expected, message)  # which takes 0.0 for -0.0
        if actual.dtype.kind == "f":
            number = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(actual[number]), np.signbit(expected[number]), message)

    return check


@pytest.fixture
def close() -> Callable[..., None]:
    """Asserts that an array agrees with float64 numbers to the accuracy of a type, or to `tolerance`: relative to each
    number, and to the largest of them, or to a `magnitude`."""

    def check(actual, expected, tolerance: float | None = None, magnitude: float | None = None) -> None:
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert actual.shape == expected.shape
        if tolerance is None:
            tolerance = 1e-12 if actual.dtype == np.float64 else 5e-6
        if magnitude is None:
            magnitude = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * magnitude)

    return check


@pytest.fixture
def refuses() -> Callable[..., None]:
    """Asserts that a call raises a message that begins as given, with all arrays what they were."""

    def check(call, message: str, *arrays, error=(TypeError, ValueError)) -> None:
        before = [a.tobytes() for a in arrays]
        with pytest.raises(error, match=rf"^{message}"):
            call()
        assert [a.tobytes() for a in arrays] == before

    return check


# ---- Kernels and optimizers -----------------------------------------------------------------------------


@pytest.fixture(params=cases.LAYERS.values(), ids=str)
def case(request) -> Case:
    """Every layer kernel in every way to call it."""
    return request.param


class Rule(cases.Rule):
    """An optimizer with a choice of all its options."""

    def make(self, params):
        if hasattr(self.cls, "look_ahead"):
            pytest.skip("its steps go with look_ahead: it has tests of its own")
        return self.cls(params, **self.hyper)

    def states_of(self, param) -> list[np.ndarray]:
        """State arrays as they begin."""
        return [a.copy() for a in self.make(param.copy()).state["param"].values()]

    def scalars_of(self, optimizer) -> dict[str, Any]:
        """What the class has worked out for its next step, and the functional form asks for."""
        hyper = {key: getattr(optimizer, key) for key in self.cls._setting_names()}
        (scalars,) = {tuple(each.items()) for each in optimizer.state_dict()["scalars"].values()}
        return reference.scalars_after(self.name, hyper, dict(scalars), optimizer.t + 1)[0]


@pytest.fixture(params=[Rule(rule.name, rule.hyper) for name in OPTIMIZERS for rule in rules(name)], ids=str)
def rule(request) -> Rule:
    """Every optimizer with every option."""
    return request.param


@pytest.fixture(params=OPTIMIZERS)
def any_rule(request) -> Rule:
    """Every optimizer once, with every term of its formula at work."""
    return Rule(request.param, lively_rule(request.param).hyper)
