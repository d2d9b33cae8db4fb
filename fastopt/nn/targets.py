"""Targets: integer labels or numbers, and accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import _kernels
from fastopt.checks import Array


def are_labels(y: Array) -> bool:
    """Whether targets are integer labels (n,), so that there is an accuracy."""
    return y.ndim == 1 and y.dtype.kind in "iu"


def check_finite(name: str, array: Array, given: Any = None) -> None:
    """Refuse numbers that are not finite, and say where the first of them is.

    A part at a time, so that an array that is mapped into memory need not fit there.

    Parameters
    ----------
    name : str
    array : ndarray
    given : array_like, optional
        What was converted to `array`.
    """
    if array.dtype.kind != "f" or array.ndim == 0:
        return
    rows = max(1, 2**18 // max(1, array[:1].size))
    for begin in range(0, len(array), rows):
        finite = np.isfinite(array[begin : begin + rows])
        if finite.all():
            continue
        first, *rest = (int(i) for i in np.argwhere(~finite)[0])
        place = (begin + first, *rest)
        value = array[place] if given is None else np.asarray(given)[place]
        where = f"{name}[{', '.join(map(str, place))}]"
        if np.isfinite(value):
            raise ValueError(f"{name} must be finite as {array.dtype}, got {value} at {where}")
        raise ValueError(f"{name} must be finite, got {value} at {where}")


def count_right(output: Array, y: Array) -> int:
    """The number of rows whose largest output is at the label."""
    try:
        return _kernels.count_right(output, y)
    except _kernels.Misfit:  # labels or outputs of other types
        return int(np.count_nonzero(output.argmax(axis=1) == y))


def accuracy(output: Array, y: Array) -> float:
    """The share of rows whose largest output is at the label; 0.0 for none."""
    return count_right(output, y) / len(y) if len(y) else 0.0
