"""Average pooling, and pooling of whole images; max pooling by windows is in `fastopt.nn.layers`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.layers import Grads, Layer, Pooling, Shape, check_images

__all__ = ["AveragePool2D", "GlobalAveragePool2D", "GlobalMaxPool2D"]


class AveragePool2D(Pooling):
    """The mean of each window of images (n, h, w, c).

    Parameters
    ----------
    size : int or (int, int), default 2
    stride : int or (int, int), optional
        `size` where absent.
    padding : "same", "valid", int or (int, int), default "valid"
        Zeros on each side, less than `size`; ``"same"`` is half of the window, which keeps the shape for odd sizes at
        stride 1.
    count_padding : bool, default True
        Whether a mean is over the zeros of the border, too, as in PyTorch, and not as in Keras.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs are smaller than a window.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> images = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> nn.AveragePool2D(2).forward(images)[0].ravel().tolist()
    [2.5, 4.5, 10.5, 12.5]
    >>> nn.AveragePool2D(2, padding=1, count_padding=False).forward(images)[0].ravel().tolist()
    [0.0, 1.5, 3.0, 6.0, 7.5, 9.0, 12.0, 13.5, 15.0]
    """

    def __init__(
        self,
        size: F.Pair = 2,
        stride: F.Pair | None = None,
        padding: Literal["same", "valid"] | F.Pair = "valid",
        count_padding: bool = True,
    ) -> None:
        super().__init__(size, stride, padding)
        self.count_padding = checks.flag("count_padding", count_padding)

    def factor(self, shape: Shape, dtype: Any) -> Array | None:
        """What means are multiplied by, (1, oh·ow·c), for images of a shape (n, h, w, c), so that padding does not
        count; None for nothing."""
        if self.count_padding or self.padding == (0, 0):
            return None
        ones = F.pad_forward(np.ones((1, *shape[1:])), self.padding)
        return (1 / F.average_pool_forward(ones, self.size, self.stride)).astype(dtype).reshape(1, -1)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        images = x if self.padding == (0, 0) else F.pad_forward(x, self.padding)
        return self._scaled(F.average_pool_forward(images, self.size, self.stride), x.shape), x.shape

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        dx = F.average_pool_backward(self._scaled(dy, cache), self.padded(cache), self.size, self.stride)
        return dx if self.padding == (0, 0) else F.pad_backward(dx, cache, self.padding), {}

    def _scaled(self, y: Array, shape: Shape) -> Array:
        factor = self.factor(shape, y.dtype)
        if factor is None:
            return y
        return F.scale_channels(y.reshape(1, len(y), factor.shape[1]), factor).reshape(y.shape)


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


class GlobalMaxPool2D(Layer):
    """The maximum of each channel: images (n, h, w, c) become (n, c).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.GlobalMaxPool2D().forward(np.arange(8.0).reshape(1, 2, 2, 2))[0].tolist()
    [[6.0, 7.0]]
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        return input_shape[2:]

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        n, h, w, c = x.shape
        y, winner = F.max_pool_forward(x, (h, w))
        return y.reshape(n, c), (x.shape, winner)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        shape, winner = cache
        return F.max_pool_backward(dy.reshape(winner.shape), winner, shape, shape[1:3]), {}
