"""Functions that go wrong in all the ways that `run.py` is to find."""

import ctypes
import random
from typing import Any

import numpy as np
from calls import Call, Maker
from values import Memory


def crashes(x: Any) -> None:
    ctypes.string_at(0)


def raises(x: Any) -> None:
    raise AttributeError("there is no such thing")


def mumbles(x: Any) -> None:
    raise ValueError("no")


def writes_and_refuses(x: np.ndarray) -> None:
    _first(x)[...] = 7
    raise ValueError("x must be something else")


def writes_to_its_input(x: Any) -> None:
    _first(x)[...] = 7


def writes_behind_its_output(out: Any) -> None:
    ctypes.memset(_first(out).ctypes.data + 12, 7, 4)


_kept: list[np.ndarray] = []


def _first(x: Any) -> np.ndarray:
    """The array that was right, whatever has taken its place."""
    return _kept[-1]


def _making(function: Any, argument: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        _kept.append(memory.array(np.ones(3, np.float32)))
        return Call(function, {argument: _kept[-1]}, written=("out",), more=_kept[-1:] if argument == "out" else ())

    return make


class Moves:
    """Has a state that changes though the call is refused."""

    def __init__(self) -> None:
        self.state = 0

    def __call__(self, x: Any) -> None:
        self.state += 1
        raise TypeError("x must be something else")


def _moving(memory: Memory, rng: random.Random) -> Call:
    moves = Moves()
    return Call(moves, {"x": 1}, state=lambda: moves.state)


CALLS: dict[str, Maker] = {
    **{function.__name__.replace("_", " "): _making(function, "x")
       for function in (crashes, raises, mumbles, writes_and_refuses, writes_to_its_input)},
    "writes behind its output": _making(writes_behind_its_output, "out"),
    "moves and refuses": _moving,
}  # fmt: skip
