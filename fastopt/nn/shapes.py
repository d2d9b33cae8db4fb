"""Layers that change shapes; Flatten is in `fastopt.nn.layers`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.functional.images import Border, border
from fastopt.nn.layers import Grads, Layer, Shape, check_images

__all__ = ["Reshape", "ZeroPadding2D"]


class Reshape(Layer):
    """Another shape: inputs (n, …) become (n, …) of that shape.

    Parameters
    ----------
    shape : sequence of int
        Without the batch; one length may be -1, for what is left.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs have another number of elements.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Reshape((2, -1)).forward(np.zeros((5, 6)))[0].shape
    (5, 2, 3)
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(shape, (tuple, list)):
            raise TypeError(f"shape must be a sequence of int, got {shape!r}: write ({shape!r},)")
        self.shape = tuple(checks.integer("shape", length, -1) for length in shape)
        if self.shape.count(-1) > 1 or 0 in self.shape:
            raise ValueError(f"shape must have positive lengths, and -1 at most once, got {self.shape}")

    def output_shape(self, input_shape: Shape) -> Shape:
        whole, known = math.prod(input_shape), math.prod(length for length in self.shape if length > 0)
        if whole % known or (-1 not in self.shape and whole != known):
            raise ValueError(f"shape must hold the {whole} numbers of an input {input_shape}, got {self.shape}")
        return tuple(whole // known if length < 0 else length for length in self.shape)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        return x.reshape(len(x), *self.output_shape(x.shape[1:])), x.shape

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return dy.reshape(cache), {}


class ZeroPadding2D(Layer):
    """Images (n, h, w, c) with zeros around them.

    Parameters
    ----------
    padding : int, (int, int) or ((int, int), (int, int)), default 1
        Pixels on each side: all alike, of height and width, or ``((top, bottom), (left, right))``.

    Raises
    ------
    TypeError, ValueError
        Where `padding` breaks its rule, or, when the layer is built, inputs are not (n, h, w, c).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.ZeroPadding2D(((1, 0), (0, 2))).forward(np.ones((1, 1, 1, 1)))[0][0, :, :, 0]
    array([[0., 0., 0.],
           [1., 0., 0.]])
    """

    def __init__(self, padding: Border = 1) -> None:
        super().__init__()
        self.padding = border("padding", padding)

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        h, w, c = input_shape
        return h + sum(self.padding[0]), w + sum(self.padding[1]), c

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        return F.pad_forward(x, self.padding), x.shape

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return F.pad_backward(dy, cache, self.padding), {}
