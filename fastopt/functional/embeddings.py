"""Embeddings: the gradient of looking up entries of a table."""

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
]


_embedding_backward = kernel("embedding_backward", entry="entries", dtable="out", entries="count")


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
