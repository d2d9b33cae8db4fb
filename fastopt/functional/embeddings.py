"""Embeddings: entries of a table are looked up, and the gradient of that."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.checks import Array
from fastopt.kernel import kernel

__all__ = [
    "embedding_backward",
    "embedding_forward",
]


_wrong_entries = kernel("wrong_entries")
_embedding_forward = kernel("embedding_forward", y="out")
_embedding_backward = kernel("embedding_backward", entry="entries", dtable="out", entries="count")


def embedding_forward(
    x: Array,
    weight: Array,
    out: Array | None = None,
    entry: NDArray[np.int64] | None = None,
    wrong: NDArray[np.int64] | None = None,
) -> tuple[Array, NDArray[np.int64]]:
    """Rows of a table: ``y = weight[x]``, x being whole numbers in an array of reals.

    Parameters
    ----------
    x : ndarray, any shape
        Whole numbers in [0, entries).
    weight : ndarray (entries, width)
        The table.
    out : ndarray (…, width), optional
        Where to write y: the axes of `x`, and one more.
    entry : int64 ndarray like `x`, optional
        Where to write `x` as integers.
    wrong : int64 ndarray (1,), optional
        Where to write how many `x` are no entry, and that before anything else.

    Returns
    -------
    y : ndarray (…, width)
    entry : int64 ndarray like `x`
        For `embedding_backward`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then, but for `wrong`.

    Examples
    --------
    >>> import numpy as np
    >>> y, entry = embedding_forward(np.array([1.0, 0.0]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> y.tolist(), entry
    ([[3.0, 4.0], [1.0, 2.0]], array([1, 0]))
    """
    checks.array("x", x)
    entries, width = checks.array("weight", weight, dtype=x.dtype, ndim=2).shape
    shape = (*x.shape, width)
    if out is None:
        out = np.empty(shape, x.dtype)
    elif checks.shape("out", out) != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    out, entry = _embedding_forward.check(x, weight, out, entry)
    if isinstance(wrong, np.ndarray):
        checks.apart({"wrong": wrong, "weight": weight, "out": out, "entry": entry})
    wrong = np.zeros(1, np.int64) if wrong is None else wrong
    if _wrong_entries(x, wrong, entries)[0]:
        valid = (x >= 0) & (x < entries)
        if valid.all():
            raise ValueError(f"x must be whole numbers, got {x[x != np.floor(x)][0]}")
        raise ValueError(f"x must be in [0, {entries}), got {x[~valid][0]}")
    return _embedding_forward(x, weight, out, entry)


def embedding_backward(dy: Array, entries: NDArray[np.integer[Any]], count: int, out: Array | None = None) -> Array:
    """The gradient of ``y = table[entries]`` with respect to the table: of equal entries, the dy are added up.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    entries : integer ndarray (…)
        Each in [0, count).
    count : int
        The number of entries of the table.
    out : ndarray (count, d), optional
        Where to write.

    Returns
    -------
    dtable : ndarray (count, d)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> embedding_backward(np.ones((3, 2)), np.array([1, 0, 1]), 3)
    array([[1., 1.],
           [2., 2.],
           [0., 0.]])
    """
    leading = checks.shape("dy", dy)[:-1]
    count = checks.integer("count", count, 1, 2**63 - 1)
    if not isinstance(entries, np.ndarray) or entries.shape != leading:
        got = entries.shape if isinstance(entries, np.ndarray) else type(entries).__name__
        raise ValueError(f"entries must be an array of shape {leading}, got {got}")
    own = checks.labels("entries", entries.reshape(-1), math.prod(leading), count)  # a copy
    if out is not None and np.may_share_memory(out, entries):
        raise ValueError("out and entries must not overlap in memory; copy one of them")
    return _embedding_backward(dy, own, out, count)
