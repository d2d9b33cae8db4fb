"""Samples in parts: training, validation and test data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.data.readers import ImageFolder

_CURE = "stratify=False splits without regard to classes"


def split(
    x: Any,
    y: Any = None,
    *,
    train: float | None = None,
    validation: float | None = None,
    test: float | None = None,
    stratify: bool | Any = True,
    seed: int = 0,
) -> tuple[Any, ...]:
    """Samples at random in two or three parts; each class in each of them by the same share. For folds, see
    scikit-learn's ``StratifiedKFold``.

    Parameters
    ----------
    x : ndarray (n, …) or ImageFolder
        Inputs. Of ``np.arange(n)``, the parts are indices.
    y : ndarray (n, …), optional
        Targets. An `ImageFolder` has its own.
    train, validation, test : float, optional
        Fractions in (0, 1); validation, test or both must be given. By default, `train` is what they leave; where it is
        given, they may leave some samples out.
    stratify : bool or array (n,), default True
        By the labels `y`, not at all, or by other labels. Of each class, ``round(fraction · count)`` samples are in a
        part; a class of which a part would get none is refused.
    seed : int, default 0

    Returns
    -------
    tuple
        Inputs and targets of each part that was asked for, in the order of training, validation, test: ``x_train,
        y_train, x_validation, y_validation``, …; without `y`, inputs alone. Samples keep their order. The parts of an
        `ImageFolder` are folders.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or the samples cannot be stratified.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import data
    >>> y = np.array([0, 0, 0, 0, 1, 1])
    >>> train, y_train, test, y_test = data.split(np.arange(6), y, test=0.5)
    >>> y_train.tolist(), y_test.tolist()
    ([0, 0, 1], [0, 0, 1])
    >>> [len(part) for part in data.split(np.arange(10.0), train=0.5, validation=0.2, test=0.3, stratify=False)]
    [5, 2, 3]
    """
    arrays = _arrays(x, y)
    n = len(arrays[0])
    fractions = _fractions(train, validation, test)
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    if isinstance(stratify, (bool, np.bool_)):
        labels = _labels("y", x.labels if isinstance(x, ImageFolder) else y, n) if stratify else np.zeros(n, np.int64)
    else:
        labels, stratify = _labels("stratify", stratify, n), True
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in fractions}
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label)) if stratify else rng.permutation(n)
        counts = _counts(fractions, len(members))
        if empty := [name for name, count in counts.items() if not count]:
            of = f"of the {len(members)} samples of class {label}" if stratify else f"of {n} samples"
            raise ValueError(
                f"{empty[0]} must get a sample or more {of}, got none by the fraction {fractions[empty[0]]:.3g}"
                + (f"; {_CURE}" if stratify else "")
            )
        start = 0
        for name in reversed(parts):
            parts[name].append(members[start : start + counts[name]])
            start += counts[name]
    if not n:
        raise ValueError("x must hold samples, got none")
    chosen = [np.sort(np.concatenate(parts[name])) for name in ("train", "validation", "test") if name in parts]
    return tuple(_take(array, indices) for indices in chosen for array in arrays)


def _arrays(x: Any, y: Any) -> list[Any]:
    """Inputs and targets, as arrays or a folder."""
    if isinstance(x, ImageFolder):
        if y is not None:
            raise TypeError("y must be left out where x is an ImageFolder, which has its labels")
        return [x]
    arrays = []
    for name, value in (("x", x), ("y", y)):
        if name == "x" or value is not None:
            array = value if isinstance(value, np.ndarray) else np.asarray(value)
            checks.plain(name, array)
            if array.ndim == 0 or array.dtype.kind == "O":
                raise TypeError(f"{name} must be an array (n, …), got {type(value).__name__}")
            arrays.append(array)
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"y must have as many samples as x, {len(arrays[0])}, got {len(arrays[1])}")
    return arrays


def _take(array: Any, indices: NDArray[np.int64]) -> Any:
    return array.take(indices) if isinstance(array, ImageFolder) else np.asarray(array)[indices]


def _fractions(train: Any, validation: Any, test: Any) -> dict[str, float]:
    """The parts that are asked for, training data first; what is left out by an explicit `train` under ""."""
    asked = {
        name: checks.number(name, value, "(0, 1)")
        for name, value in (("train", train), ("validation", validation), ("test", test))
        if value is not None
    }
    if not asked.keys() & {"validation", "test"}:
        raise ValueError("validation or test must be given, a fraction in (0, 1), got neither")
    total = sum(asked.values())
    if total > 1 + 1e-9 or (train is None and total > 1 - 1e-9):
        most = "at most 1" if train is not None else "less than 1"
        raise ValueError(f"{', '.join(asked)} must sum up to {most}, got {total:.6g}")
    return {"train": 1 - total, **asked} if train is None else asked


def _counts(fractions: dict[str, float], n: int) -> dict[str, int]:
    """How many of n samples are in each part: rounded, but what is left for training where all are in a part."""
    counts = {name: round(fraction * n) for name, fraction in fractions.items()}
    rest = n - sum(count for name, count in counts.items() if name != "train")
    whole = abs(sum(fractions.values()) - 1) <= 1e-9
    counts["train"] = max(rest, 0) if whole else max(min(counts["train"], rest), 0)
    return counts


def _labels(name: str, value: Any, n: int) -> NDArray[Any]:
    """Labels of classes (n,): integers, booleans or text."""
    if value is None:
        raise ValueError(f"y must be given to stratify by; {_CURE}")
    labels = np.asarray(value)
    if labels.size and labels.dtype.kind not in "iubUS":
        raise TypeError(f"{name} must be integer labels, got {labels.dtype}; {_CURE}")
    if labels.shape != (n,):
        raise ValueError(f"{name} must be labels of shape {(n,)}, got {labels.shape}; {_CURE}")
    return labels
