"""Images whose channels come second: functions of channels-last arrays called with copies, and hints to do so."""

from __future__ import annotations

import contextvars
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.messages import LayoutWarning

#: Where the channels of images are: last (the default), or second.
Layout = Literal["nhwc", "nchw"]


class Kind(NamedTuple):
    """How arrays are laid out where channels come second."""

    #: Their shape, in words.
    words: str
    #: Their axes in the order of channels last; empty for (n, c, …), of any number of axes.
    order: tuple[int, ...] = ()
    #: Whether the last axis is then of length 1, and left out.
    one: bool = False

    def permutation(self, ndim: int) -> tuple[int, ...]:
        return self.order or (0, *range(2, ndim), 1)

    def inverse(self, ndim: int) -> tuple[int, ...]:
        return tuple(np.argsort(self.permutation(ndim)).tolist())

    def last(self, array: Array) -> Array:
        """A view with channels last."""
        view = array.transpose(self.permutation(array.ndim))
        return view[..., 0] if self.one else view

    def first(self, array: Array) -> Array:
        """The view with channels second of what has them last."""
        view = array[..., None] if self.one else array
        return view.transpose(self.inverse(view.ndim))

    def fits(self, shape: tuple[int, ...]) -> bool:
        if not self.order:
            return len(shape) >= 2
        return len(shape) == len(self.order) and not (self.one and shape[self.order[-1]] != 1)


FEATURES = Kind("(n, c, …)")
IMAGES = Kind("(n, c, h, w)", (0, 2, 3, 1))
WEIGHT = Kind("(k, c, kh, kw)", (2, 3, 1, 0))
DEPTHWISE_WEIGHT = Kind("(c, 1, kh, kw)", (2, 3, 0, 1), one=True)
COLUMNS = Kind("(n, oh, ow, c, kh, kw)", (0, 1, 2, 4, 5, 3))

#: What arguments of these names are, unless a call says otherwise.
_KINDS = dict.fromkeys(("x", "dy", "shape", "winner", "out"), IMAGES) | {"weight": WEIGHT, "columns": COLUMNS}

#: Whether the caller has said where channels are, so that there is nothing to guess.
_stated = contextvars.ContextVar("stated", default=False)


def by_layout(
    function: Callable[..., Any], given: dict[str, Any], results: tuple[str, ...] = ("out",), **kinds: Kind
) -> Any:
    """Call a function of channels-last arrays with arguments whose layout is stated.

    Parameters
    ----------
    function : callable
    given : dict
        All of its arguments by name, `layout` among them.
    results : tuple of str
        What it returns, by the names under which places for that may be given.
    **kinds
        What arguments and results are, where their names do not say it.
    """
    given = dict(given)
    second = checks.choice("layout", given.pop("layout"), ("nhwc", "nchw")) == "nchw"
    token = _stated.set(True)
    try:
        return _converted(function, given, results, _KINDS | kinds) if second else function(**given)
    finally:
        _stated.reset(token)


def _converted(
    function: Callable[..., Any], given: dict[str, Any], results: tuple[str, ...], kinds: dict[str, Kind]
) -> Any:
    """By copies with channels last; places for results are written when all is computed."""
    inner = dict(given)
    for name, value in given.items():
        if value is not None and name in kinds:
            inner[name] = _channels_last(name, value, kinds[name], name in results)
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    for name in arrays.keys() & {*results}:
        for other, value in arrays.items():
            if other != name and np.may_share_memory(arrays[name], value):
                raise ValueError(f"{name} and {other} must not overlap in memory; copy one of them")
    try:
        returned = function(**inner)
    except ValueError as error:
        raise ValueError(f"{error} (channels last, to which layout='nchw' converts)") from None
    values = list(returned) if isinstance(returned, tuple) else [returned]
    views = {i: kinds[name].first(values[i]) for i, name in enumerate(results) if values[i] is not None}
    for i, view in views.items():
        place = given.get(results[i])
        values[i] = np.empty(view.shape, view.dtype) if place is None else place
    for i, view in views.items():
        values[i][...] = view
    return tuple(values) if isinstance(returned, tuple) else values[0]


def _channels_last(name: str, value: Any, kind: Kind, result: bool) -> Any:
    """The argument for the function: a shape, a new array for a result, or a copy."""
    if isinstance(value, (tuple, list)) and kind.fits(tuple(value)):
        return tuple(value[axis] for axis in kind.permutation(len(value)))
    if not isinstance(value, np.ndarray):
        return value  # for the function to refuse, like arrays of other types
    checks.array(name, value, dtype=value.dtype, writable=result, contiguous=result)
    if not kind.fits(value.shape):
        raise ValueError(f"{name} must have shape {kind.words}, got {value.shape}")
    view = kind.last(value)
    return np.empty(view.shape, value.dtype) if result else np.ascontiguousarray(view)


# ---- Hints --------------------------------------------------------------------------------------------------

_HINT = (
    "images are (n, h, w, c); if {0} is (n, c, h, w), write layout='nchw' (fastopt.functional), "
    "or np.ascontiguousarray({0}.transpose(0, 2, 3, 1))"
)


def hint(shape: tuple[int, ...], name: str = "x") -> str:
    """For the end of a message about images of a shape: what to write if they look like (n, c, h, w)."""
    few = len(shape) == 4 and 1 <= shape[1] <= 4 and shape[1] < min(shape[2:])
    return f"; {_HINT.format(name)}" if few and not _stated.get() else ""


def warn_of_channels_second(shape: tuple[int, ...], name: str = "x") -> None:
    """Say where a call goes through, but the images are next to certainly (n, c, h, w): square ones, of one channel or
    three. As channels last, they would be one or three pixels high, and as wide as they have channels."""
    if len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 4 and not _stated.get():
        _warn(f"{name} of shape {tuple(shape)} looks like (n, c, h, w), and {_HINT.format(name)}")


def warn_of_filters_first(shape: tuple[int, ...]) -> None:
    """The same of weights (k, 3, 3, 3)."""
    if not _stated.get():
        _warn(
            f"weight of shape {shape} looks like (k, c, kh, kw), and weights are (kh, kw, c, k); if it is that, write "
            "np.ascontiguousarray(weight.transpose(2, 3, 1, 0))"
        )


def _warn(text: str) -> None:
    text += "; if it is not, write layout='nhwc', or filter this warning"
    warnings.warn(text, LayoutWarning, _level_of_caller())


def _level_of_caller() -> int:
    """The stack level of the first frame outside of fastopt."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fastopt":
        level, frame = level + 1, frame.f_back
    return level
