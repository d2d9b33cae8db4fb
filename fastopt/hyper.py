"""Hyperparameters: each is declared with its rule, checked whenever it is set, and a double to the kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from fastopt import checks

if TYPE_CHECKING:
    from fastopt.optimizer import Optimizer

T = TypeVar("T")


class Hyper(Generic[T]):
    """A hyperparameter: an attribute of optimizers, and of groups of their parameters."""

    #: The type of a value that needs no check where it equals the one that is held.
    kind: ClassVar[type]

    def __set_name__(self, owner: type[Optimizer], name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Optimizer, owner: type[Optimizer]) -> T:
        if optimizer is None:
            return self
        return self.decode(optimizer._held[self.name])

    def __set__(self, optimizer: Optimizer, value: T) -> None:
        optimizer._set(self.name, value)

    def encode(self, value: T) -> float:
        raise TypeError("a subclass says how a value is checked")

    def decode(self, code: float) -> T:
        raise TypeError("a subclass says what a double means")


class Number(Hyper[float]):
    """A real number within an interval such as ``[0, 1)``."""

    kind = float

    def __init__(self, bounds: str) -> None:
        self.bounds = bounds

    def encode(self, value: float) -> float:
        return checks.number(self.name, value, self.bounds)

    def decode(self, code: float) -> float:
        return code


class Whole(Hyper[int]):
    """An integer of at least `low`."""

    kind = int

    def __init__(self, low: int) -> None:
        self.low = low

    def encode(self, value: int) -> float:
        return float(checks.integer(self.name, value, self.low, 2**53))

    def decode(self, code: float) -> int:
        return int(code)


class Limit(Hyper[float | None]):
    """A real number within an interval, or None for no limit: infinity to a kernel."""

    kind = type(None)  # infinity itself is refused, though it is what may be held

    def __init__(self, bounds: str) -> None:
        self.bounds = bounds

    def encode(self, value: float | None) -> float:
        return math.inf if value is None else checks.number(self.name, value, self.bounds)

    def decode(self, code: float) -> float | None:
        return None if code == math.inf else code


class Flag(Hyper[bool]):
    """True or False."""

    kind = bool

    def encode(self, value: bool) -> float:
        return float(checks.flag(self.name, value))

    def decode(self, code: float) -> bool:
        return bool(code)


class Choice(Hyper[str]):
    """One of some words, which the kernel knows by their numbers."""

    kind = str

    def __init__(self, *options: str) -> None:
        self.options = options

    def encode(self, value: str) -> float:
        return float(self.options.index(checks.choice(self.name, value, self.options)))

    def decode(self, code: float) -> str:
        return self.options[int(code)]
