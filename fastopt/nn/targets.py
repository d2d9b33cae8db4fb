"""Targets: integer labels or numbers, and how many of them are right."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array


def are_labels(y: Array) -> bool:
    """Whether targets are integer labels (n,), so that there is an accuracy."""
    return y.ndim == 1 and y.dtype.kind in "iu"


def check_finite(name: str, array: Array, dtype: np.dtype[Any] | None = None) -> None:
    """Refuse numbers that are not finite, and say where the first of them is.

    A part at a time, so that an array that is mapped into memory need not fit there.

    Parameters
    ----------
    name : str
    array : ndarray
    dtype : numpy.dtype, optional
        The type that they are to be converted to.
    """
    dtype = array.dtype if dtype is None else dtype
    if array.ndim == 0 or dtype.kind != "f" or array.dtype.kind in "iub":  # no integer is beyond float32
        return
    rows = max(1, 2**18 // max(1, array[:1].size))
    for begin in range(0, len(array), rows):
        part = array[begin : begin + rows]
        with np.errstate(over="ignore"):
            finite = np.isfinite(part.astype(dtype, copy=False))
        if finite.all():
            continue
        first, *rest = (int(i) for i in np.argwhere(~finite)[0])
        place = (begin + first, *rest)
        value = array[place]
        where = f"{name}[{', '.join(map(str, place))}]"
        if np.isfinite(value):
            raise ValueError(f"{name} must be finite as {dtype}, got {value} at {where}")
        raise ValueError(f"{name} must be finite, got {value} at {where}")


def count_right(output: Array, y: Array) -> int:
    """The number of rows whose largest output is at the label."""
    real = output.dtype if output.dtype in (np.float32, np.float64) else np.float64
    return int(F.count_right(checks.contiguous(output, real), checks.contiguous(y, np.int64))[0])


def accuracy(output: Array, y: Array) -> float:
    """The share of rows whose largest output is at the label; 0.0 for none."""
    return count_right(output, y) / len(y) if len(y) else 0.0
