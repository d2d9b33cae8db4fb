"""A table of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn import init as initial
from fastopt.nn.layers import Grads, Layer, Shape
from fastopt.nn.memory import FRESH, Memory


class Embedding(Layer):
    """The rows of a table that the inputs name: whole numbers (n, …) become vectors (n, …, width).

    Parameters
    ----------
    entries : int
        How many there are; inputs are in [0, entries).
    width : int
        The length of a vector. `params`: ``weight`` (entries, width).
    init : str or Initializer, default "large"
        See `fastopt.nn.init`.
    """

    may_skip_input_grad = True

    def __init__(self, entries: int, width: int, init: initial.Init = "large") -> None:
        super().__init__()
        self.entries = checks.integer("entries", entries, 1)
        self.width = checks.integer("width", width, 1)
        self.init = init

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        most = 2 ** (np.finfo(dtype).nmant + 1)
        if self.entries > most:
            raise ValueError(f"entries must be at most {most}, up to which {dtype} has all numbers, got {self.entries}")
        self.params["weight"] = initial.weight(
            self.init, (self.entries, self.width), self.entries, self.width, rng, dtype
        )

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.width)

    def forward(
        self, x: Array, *, training: bool = False, counter: int = 0, memory: Memory = FRESH
    ) -> tuple[Array, Any]:
        entry = memory.array("entry", x.shape, np.int64)
        if not (x.size == 0 or (x.min() >= 0 and x.max() < self.entries)):
            raise ValueError(f"inputs of Embedding must be in [0, {self.entries}), got {x.min()} to {x.max()}")
        entry[...] = x
        if not np.array_equal(entry, x):
            raise ValueError(f"inputs of Embedding must be whole numbers, got {x[entry != x][0]}")
        y = memory.array("y", (*x.shape, self.width), self.params["weight"].dtype)
        return np.take(self.params["weight"], entry, axis=0, out=y, mode="clip"), entry

    def backward(
        self, dy: Array, cache: Any, *, memory: Memory = FRESH, input_grad: bool = True
    ) -> tuple[Array | None, Grads]:
        """The gradient of the inputs, which cannot change a little, is 0."""
        weight = self.params["weight"]
        dweight = F.embedding_backward(dy, cache, self.entries, out=memory.grad("weight", weight))
        if not input_grad:
            return None, {"weight": dweight}
        dx = memory.array("dx", cache.shape, dy.dtype)
        dx.fill(0)
        return dx, {"weight": dweight}
