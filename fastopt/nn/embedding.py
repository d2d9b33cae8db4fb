"""Embeddings: integers as vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn import init as initial
from fastopt.nn.layers import Grads, Layer, Shape

__all__ = ["Embedding"]


class Embedding(Layer):
    """An embedding: integers (n, …) become rows of the weight, (n, …, width).

    Parameters
    ----------
    entries : int
        The number of rows; inputs are in [0, entries).
    width : int
        The length of a row.
    init : str or callable, default "large"
        The initialisation of the weight: a name or an object of `fastopt.nn.init`.

    Attributes
    ----------
    params : dict of ndarray
        ``weight`` (entries, width).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, the model's type does not have all integers below `entries`, or an input is
        no integer in [0, entries).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Embedding(10, 4)], (3,))
    >>> model.predict(np.array([[1, 2, 1]])).shape
    (1, 3, 4)
    """

    def __init__(self, entries: int, width: int, init: initial.Init = "large") -> None:
        super().__init__()
        self.entries = checks.integer("entries", entries, 1)
        self.width = checks.integer("width", width, 1)
        self.init = initial.check(init)

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        most = 2 ** (np.finfo(dtype).nmant + 1)
        if self.entries > most:
            raise ValueError(f"entries must be at most {most}, up to which {dtype} has all numbers, got {self.entries}")
        self.params["weight"] = initial.weight(
            self.init, (self.entries, self.width), self.entries, self.width, rng, dtype
        )

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.width)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        if not (x.size == 0 or (x.min() >= 0 and x.max() < self.entries)):
            raise ValueError(f"inputs of Embedding must be in [0, {self.entries}), got {x.min()} to {x.max()}")
        entry = x.astype(np.int64)
        if not np.array_equal(entry, x):
            raise ValueError(f"inputs of Embedding must be whole numbers, got {x[entry != x][0]}")
        return self.params["weight"][entry], entry

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        """The backward pass; the gradient of the inputs, which are integers, is 0."""
        return np.zeros(cache.shape, dy.dtype), {"weight": F.embedding_backward(dy, cache, self.entries)}
