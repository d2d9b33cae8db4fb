"""Targets: integer labels or numbers, the weights of samples, accuracy and other metrics."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array

#: (targets, scores) -> a number
Metric = Callable[[Array, Array], float]


def are_labels(y: Array) -> bool:
    """Whether targets are integer labels (n,), so that there is an accuracy."""
    return y.ndim == 1 and y.dtype.kind in "iu"


def weights(sample_weight: Any, class_weight: Any, y: Array, dtype: np.dtype[Any]) -> Array | None:
    """The weight of each sample (n,), checked: its own times that of its class; None where neither is given."""
    weight = None
    if sample_weight is not None:
        weight = _weights("sample_weight", sample_weight, (len(y),))
    if class_weight is not None:
        if not are_labels(y):
            raise ValueError("class_weight must come with integer labels y (n,)")
        classes = int(y.max()) + 1 if y.size else 0
        if np.ndim(class_weight) == 0 and not isinstance(class_weight, Mapping):
            raise TypeError(f"class_weight must be a dict or a sequence, got {class_weight!r}")
        if isinstance(class_weight, Mapping):
            missing = sorted({*y.tolist()} - {*class_weight})
            if missing:
                raise ValueError(f"class_weight must hold a weight per class, but lacks {missing[0]}")
            class_weight = [class_weight.get(label, 0.0) for label in range(classes)]
        by_class = _weights("class_weight", class_weight, (max(classes, len(class_weight)),))
        weight = by_class[y] if weight is None else weight * by_class[y]
    if weight is not None and not weight.any():
        raise ValueError("sample_weight and class_weight must give some sample a weight above 0")
    if weight is None:
        return None
    with np.errstate(over="ignore"):
        weight = np.ascontiguousarray(weight, dtype)
    if not np.isfinite(weight).all():
        raise ValueError(f"sample_weight and class_weight must have products that are finite as {dtype}")
    return weight


def _weights(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be an array of numbers, got {value!r}") from None
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    wrong = array[~((array >= 0) & (array < np.inf))]
    if wrong.size:
        raise ValueError(f"{name} must be in [0, inf), got {wrong[0]}")
    return array


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
    return int(F.count_right(np.ascontiguousarray(output, real), np.ascontiguousarray(y, np.int64))[0])


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
