"""Average pooling; max pooling is in `fastopt.nn.layers`."""

from __future__ import annotations

from typing import Any

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.layers import Grads, Layer, Shape, check_images

__all__ = ["AveragePool2D", "GlobalAveragePool2D"]


class AveragePool2D(Layer):
    """The mean of each window of images (n, h, w, c), without padding.

    Parameters
    ----------
    size : int or (int, int), default 2
    stride : int or (int, int), optional
        `size` where absent.

    Raises
    ------
    TypeError, ValueError
        Where an argument is no positive integer, or, when the layer is built, inputs are smaller than a window.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> images = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> nn.AveragePool2D(2).forward(images)[0].ravel().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """

    def __init__(self, size: F.Pair = 2, stride: F.Pair | None = None) -> None:
        super().__init__()
        self.size = checks.pair("size", size, 1)
        self.stride = self.size if stride is None else checks.pair("stride", stride, 1)

    def config(self) -> dict[str, Any]:
        return super().config() | ({"stride": None} if self.stride == self.size else {})

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        return (*F.patches_shape((1, *input_shape), self.size, self.stride)[1:3], input_shape[2])

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        return F.average_pool_forward(x, self.size, self.stride), x.shape

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return F.average_pool_backward(dy, cache, self.size, self.stride), {}


class GlobalAveragePool2D(Layer):
    """The mean of each channel: images (n, h, w, c) become (n, c).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.GlobalAveragePool2D().forward(np.ones((2, 4, 4, 3)))[0].shape
    (2, 3)
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        return input_shape[2:]

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        n, h, w, c = x.shape
        return F.average_pool_forward(x, (h, w)).reshape(n, c), x.shape

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        n, h, w, c = cache
        return F.average_pool_backward(dy.reshape(n, 1, 1, c), cache, (h, w)), {}
