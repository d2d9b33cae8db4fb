"""What all tests share: instruction set x type x sizes around a vector, guarded arrays, every optimizer.

Every optimizer is found in the registry, and its options in its declarations: a new one needs no line here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fastopt import _kernels, functional, reference
from fastopt.hyper import Choice, Flag, Limit, Number
from fastopt.optimizer import REQUIRED, Optimizer
from fastopt.optimizers import OPTIMIZERS

SIZES = (0, 1, 7, 8, 9, 31, 33, 1000, 100003)
GUARD, GUARD_WIDTH = -12345.0, 128  # as wide as the widest unit of work, 128 elements of a dropout group


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


@pytest.fixture
def on_each_isa() -> Callable[[Callable[[], Any]], list[Any]]:
    """Runs a function under each instruction set, and lists the results."""

    def run(function) -> list[Any]:
        before = _kernels.isa()
        results = []
        for name in _kernels.isas():
            _kernels.use_isa(name)
            results.append(function())
        _kernels.use_isa(before)
        return results

    return run


@pytest.fixture
def guarded() -> Iterator[Callable[..., np.ndarray]]:
    """Copies values to an array amid guards, at an `offset` in elements; all guards must stand in the end."""
    made = []

    def place(values, offset: int = 0) -> np.ndarray:
        values = np.asarray(values)
        start = GUARD_WIDTH + offset
        buffer = np.full(start + values.size + GUARD_WIDTH, GUARD, values.dtype)
        made.append((buffer, start, start + values.size))
        inside = buffer[start : start + values.size].reshape(values.shape)
        inside[...] = values
        return inside

    yield place
    for buffer, start, end in made:
        assert (buffer[:start] == GUARD).all(), "written before the array"
        assert (buffer[end:] == GUARD).all(), "written behind the array"


@pytest.fixture
def hostile() -> Callable[..., Callable[..., np.ndarray]]:
    """Makes a function x(*shape) of arrays with NaN, infinities, denormal and huge numbers, zeros among them.

    Each function made with the same arguments yields the same arrays in the same order.
    """

    def make(dtype, share: float = 0.1) -> Callable[..., np.ndarray]:
        rng = np.random.default_rng(20)
        info = np.finfo(dtype)
        special = [
            np.nan,
            np.inf,
            -np.inf,
            0.0,
            -0.0,
            info.tiny,
            -info.tiny,
            info.tiny / 4,
            -info.tiny / 4,
            info.max,
        ]

        def x(*shape: int) -> np.ndarray:
            values = rng.standard_normal(shape).astype(dtype)
            where = rng.random(shape) < share
            values[where] = rng.choice(np.array(special, dtype), np.count_nonzero(where))
            return values

        return x

    return make


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
    """Asserts that an array agrees with float64 numbers to the accuracy of a type, or to `tolerance`."""

    def check(actual, expected, tolerance: float | None = None) -> None:
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert actual.shape == expected.shape
        if tolerance is None:
            tolerance = 1e-12 if actual.dtype == np.float64 else 5e-6
        largest = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * largest)

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


# ---- Optimizers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """An optimizer with a choice of all its options."""

    name: str
    hyper: dict[str, Any]

    @property
    def cls(self):
        return OPTIMIZERS[self.name]

    @property
    def states(self) -> tuple[str, ...]:
        return self.cls.state_names()

    def by_hand(self, t: int) -> dict[str, Any]:
        """What the class knows, and the functional form asks for."""
        return by_hand(self.cls, t)

    def make(self, params):
        if hasattr(self.cls, "look_ahead"):
            pytest.skip("its steps go with look_ahead: it has tests of its own")
        return self.cls(params, **self.hyper)

    def states_of(self, param) -> list[np.ndarray]:
        """State arrays as they begin."""
        return [a.copy() for a in self.make(param.copy()).state["param"].values()]

    def scalars_of(self, optimizer) -> dict[str, Any]:
        """What the class has worked out for its next step, and the functional form asks for."""
        (bucket,) = optimizer._buckets
        hyper = {key: optimizer._value(key, bucket.groups) for key in self.cls.hyper_names()}
        return optimizer._compute(hyper, bucket.scalars, optimizer.t + 1)[0]

    def step(self, param, grad, *states, t: int, **more) -> None:
        """The functional form."""
        getattr(functional, self.name)(param, grad, *states, **self.by_hand(t) | self.hyper | more)

    def expected(self, param, grad, *states, t: int, **more) -> tuple[np.ndarray, ...]:
        """The new parameter and state by the reference."""
        return getattr(reference, self.name)(param, grad, *states, **self.by_hand(t) | self.hyper | more)

    def __str__(self) -> str:
        usual = self.cls.keywords()
        return "-".join([self.name, *(f"{name}={value}" for name, value in self.hyper.items() if value != usual[name])])


def by_hand(cls, t: int) -> dict[str, Any]:
    """What a class knows of step t, and the functional form asks for: its number, and some scalars."""
    return ({"t": t} if cls.counts_steps else {}) | dict.fromkeys(cls.computed, 0.3)


#: Values amid their intervals at which every term of a formula counts, where 0.3 above the least one is none.
LIVELY = {"min_step": 0.05, "max_step": 3.0}


def values_of(declared) -> tuple:
    """Some values of a hyperparameter: all where they are few, else one amid its interval and the ends."""
    match declared:
        case Flag():
            return (False, True)
        case Choice():
            return declared.options
        case Limit():
            return (0.3, None)
        case Number():
            low, high = (float(end) for end in declared.bounds[1:-1].split(","))
            inner = LIVELY.get(declared.name, low + (0.3 if high == np.inf else 0.3 * (high - low)))
            closed = declared.bounds[0] == "[", declared.bounds[-1] == "]"
            return (inner, *[low] * closed[0], *[high] * closed[1])
    raise TypeError(f"{declared} is a new kind of hyperparameter: say here what values to test")


def rules(name: str) -> Iterator[Rule]:
    """Each optimizer: its own flags and choices in all combinations, and each of all others at each of its values."""
    cls = OPTIMIZERS[name]
    default = {key: 0.1 if value is REQUIRED else value for key, value in cls.keywords().items()}
    declared = {key: getattr(cls, key) for key in default}
    own = {key: d for key, d in declared.items() if key == "lr" or key not in Optimizer.declared}
    lively = default | {"weight_decay": 0.3} | {key: values_of(d)[0] for key, d in own.items() if isinstance(d, Number)}
    words = {key: values_of(d) for key, d in own.items() if not isinstance(d, Number)}
    yield Rule(name, default)
    for chosen in itertools.product(*words.values()):
        yield Rule(name, lively | dict(zip(words, chosen, strict=True)))
    for key, d in declared.items():
        for value in values_of(d) if key not in words else ():
            if value != default[key]:
                yield Rule(name, (default if key in own else lively) | {key: value})


def lively_rule(name: str) -> Rule:
    """An optimizer with no number at a special value, so that every term of its formula counts."""
    return list(rules(name))[1]


@pytest.fixture(params=[rule for name in OPTIMIZERS for rule in rules(name)], ids=str)
def rule(request) -> Rule:
    """Every optimizer with every option."""
    return request.param


@pytest.fixture(params=OPTIMIZERS)
def any_rule(request) -> Rule:
    """Every optimizer once, with every term of its formula at work."""
    return lively_rule(request.param)
