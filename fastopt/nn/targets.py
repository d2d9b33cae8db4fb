"""Targets: integer labels or numbers, accuracy and other metrics."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array

#: (targets, scores) -> a number
Metric = Callable[[Array, Array], float]


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


#: Metrics that a run has of itself.
_OWN_METRICS = ("loss", "accuracy", "skipped", "samples_per_second", "epoch")


def checked_metrics(given: Any) -> dict[str, Metric]:
    """The functions that measure outputs, by name."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"metrics must be a dict, such as {{'auc': roc_auc_score}}, got {type(given).__name__}")
    for name, metric in given.items():
        if not isinstance(name, str):
            raise TypeError(f"metrics must have names, got {name!r}")
        if not callable(metric) or isinstance(metric, type):
            raise TypeError(f"metrics must be functions f(targets, scores), got {metric!r} for {name!r}")
        if name in _OWN_METRICS or name.startswith("val_") or not name.isidentifier():
            raise ValueError(
                f"metrics must have names that are identifiers, do not begin with val_, and are none of "
                f"{', '.join(_OWN_METRICS)}, got {name!r}"
            )
    return dict(given)


def value_of(name: str, metric: Metric, y: Array, output: Array) -> float:
    """The value of a metric, a number."""
    try:
        value: Any = metric(y, output)
    except Exception as error:
        error.add_note(
            f"in the metric {name!r}, of targets {y.dtype} {y.shape} and scores {output.dtype} {output.shape}"
        )
        raise
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, (numbers.Real, np.bool_)):
        raise TypeError(f"metrics must return numbers, got {type(value).__name__} of {name!r}")
    return float(value)
