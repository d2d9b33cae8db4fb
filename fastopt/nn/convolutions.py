"""Convolutions of sequences, and transposed ones; Conv2D is in `fastopt.nn.layers`."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn import init as initial
from fastopt.nn.init import Bias, Init
from fastopt.nn.layers import Affine, Conv2D, Grads, Shape, check_images, contiguous

__all__ = ["Conv1D", "Conv2DTranspose"]


class Conv1D(Affine):
    """A convolution of sequences (n, length, c), with an optional ReLU: that of images one pixel high.

    Parameters
    ----------
    filters : int
        The number of output channels.
    size : int, default 3
        The length of the kernel.
    stride : int, default 1
    padding : "same", "valid" or int, default "same"
        Zeros at both ends; ``"same"`` is half of the window, which keeps the length for odd sizes at stride 1.
    activation : "relu" or None, default None
        Fused with the bias.
    init : str or callable, default "he"
        The initialisation of the weight: a name or an object of `fastopt.nn.init`.
    dilation : int, default 1
        Distance of the window's places from each other.
    groups : int, default 1
        A divisor of the numbers of channels and of filters, as in `Conv2D`.
    bias_init : float or sequence of float, default 0.0
        The initial bias: one number for all filters, or one for each.

    Attributes
    ----------
    params : dict of ndarray
        ``weight`` (size, channels / groups, filters), ``bias`` (filters,).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs are not (n, length, c) or are shorter
        than the window.

    Examples
    --------
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Conv1D(4, 3, stride=2), nn.Flatten(), nn.Dense(2)], (9, 2))
    >>> model.shapes[1], model.params["0.weight"].shape
    ((5, 4), (3, 2, 4))
    """

    def __init__(
        self,
        filters: int,
        size: int = 3,
        stride: int = 1,
        padding: Literal["same", "valid"] | int = "same",
        activation: Literal["relu"] | None = None,
        init: Init = "he",
        dilation: int = 1,
        groups: int = 1,
        bias_init: Bias = 0.0,
    ) -> None:
        self.filters = checks.integer("filters", filters, 1)
        super().__init__(self.filters, activation, init, bias_init)
        self.size = checks.integer("size", size, 1)
        self.stride = checks.integer("stride", stride, 1)
        self.dilation = checks.integer("dilation", dilation, 1)
        if isinstance(padding, str):
            same = checks.choice("padding", padding, ("same", "valid")) == "same"
            padding = self._same_padding() if same else 0
        self.padding = checks.integer("padding", padding, 0)
        self.groups = checks.integer("groups", groups, 1)
        self.plane()

    def _same_padding(self) -> int:
        return (self.dilation * (self.size - 1) + 1) // 2

    def config(self) -> dict[str, Any]:
        return super().config() | ({"padding": "same"} if self.padding == self._same_padding() else {})

    def plane(self) -> Conv2D:
        """The same for images one pixel high, with views of the parameters."""
        made = Conv2D(
            self.filters,
            (1, self.size),
            (1, self.stride),
            (0, self.padding),
            self.activation,
            self.init,
            (1, self.dilation),
            self.groups,
            self.bias_init,
        )
        if self.params:
            made.params.update(weight=self.params["weight"][None], bias=self.params["bias"])
        return made

    def _check(self, input_shape: Shape) -> None:
        if len(input_shape) != 2:
            shape = ", ".join(map(str, ("n", *input_shape)))
            raise ValueError(f"Conv1D takes inputs of shape (n, length, c), got ({shape})")

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.output_shape(input_shape)
        channels = input_shape[1] // self.groups
        fan_out = self.size * self.filters // self.groups
        self._make((self.size, channels, self.filters), self.size * channels, fan_out, rng, dtype)

    def output_shape(self, input_shape: Shape) -> Shape:
        self._check(input_shape)
        return self.plane().output_shape((1, *input_shape))[1:]

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        y, cache = self.plane().forward(x[:, None])
        return y[:, 0], cache

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        dx, grads = self.plane().backward(dy[:, None], cache)
        return dx[:, 0], {"weight": grads["weight"][0], "bias": grads["bias"]}


class Conv2DTranspose(Affine):
    """A transposed convolution of images (n, h, w, c), with an optional ReLU: the gradient of a `Conv2D` with respect
    to its inputs, as a layer that makes images larger.

    Parameters
    ----------
    filters : int
        The number of output channels.
    size : int or (int, int), default 3
        Height and width of the kernel.
    stride : int or (int, int), default 1
        Distance of the windows in the output.
    padding : "same", "valid", int or (int, int), default "same"
        What is cut off on each side of the output; ``"same"`` is half of the window.
    output_padding : int or (int, int), default 0
        Rows and columns at the end of the output that no window need reach, less than the stride: those that a
        convolution with this stride would not see. With sizes of 3, "same" and a stride of 2, 1 doubles the size.
    activation : "relu" or None, default None
        Fused with the bias.
    init : str or callable, default "he"
        The initialisation of the weight: a name or an object of `fastopt.nn.init`. An output has
        ``height·width·c / stride²`` inputs.
    dilation : int or (int, int), default 1
        Distance of the window's pixels from each other.
    bias_init : float or sequence of float, default 0.0
        The initial bias: one number for all filters, or one for each.

    Attributes
    ----------
    params : dict of ndarray
        ``weight`` (height, width, filters, channels), ``bias`` (filters,).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs are not (n, h, w, c) or nothing of the
        output is left.

    Examples
    --------
    >>> from fastopt import nn
    >>> nn.Sequential([nn.Conv2DTranspose(8, 3, stride=2, output_padding=1)], (7, 7, 4)).shapes
    [(7, 7, 4), (14, 14, 8)]
    """

    def __init__(
        self,
        filters: int,
        size: F.Pair = 3,
        stride: F.Pair = 1,
        padding: Literal["same", "valid"] | F.Pair = "same",
        output_padding: F.Pair = 0,
        activation: Literal["relu"] | None = None,
        init: Init = "he",
        dilation: F.Pair = 1,
        bias_init: Bias = 0.0,
    ) -> None:
        self.filters = checks.integer("filters", filters, 1)
        super().__init__(self.filters, activation, init, bias_init)
        self.size = checks.pair("size", size, 1)
        self.stride = checks.pair("stride", stride, 1)
        self.dilation = checks.pair("dilation", dilation, 1)
        if isinstance(padding, str):
            same = checks.choice("padding", padding, ("same", "valid")) == "same"
            padding = self._same_padding() if same else 0
        self.padding = checks.pair("padding", padding, 0)
        self.output_padding = checks.pair("output_padding", output_padding, 0)
        if self.output_padding[0] >= self.stride[0] or self.output_padding[1] >= self.stride[1]:
            raise ValueError(f"output_padding must be less than stride, {self.stride}, got {output_padding!r}")

    def _same_padding(self) -> tuple[int, int]:
        (kh, kw), (dh, dw) = self.size, self.dilation
        return (dh * (kh - 1) + 1) // 2, (dw * (kw - 1) + 1) // 2

    def config(self) -> dict[str, Any]:
        return super().config() | ({"padding": "same"} if self.padding == self._same_padding() else {})

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.output_shape(input_shape)
        pixels, channels = math.prod(self.size), input_shape[2]
        fan_in = max(1, pixels * channels // math.prod(self.stride))
        shape = *self.size, channels, self.filters
        drawn = initial.weight(self.init, shape, fan_in, pixels * self.filters, rng, dtype)
        self.params["weight"] = np.ascontiguousarray(drawn.swapaxes(2, 3))
        self.params["bias"] = np.full(self.filters, self.bias_init, dtype)

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        lengths = [
            (length - 1) * s - 2 * p + d * (k - 1) + 1 + more
            for length, k, s, p, d, more in zip(
                input_shape[:2], self.size, self.stride, self.padding, self.dilation, self.output_padding, strict=True
            )
        ]
        if min(lengths) < 1:
            raise ValueError(f"padding must leave something of the output, got {self.padding} for inputs {input_shape}")
        return (*lengths, self.filters)

    @property
    def how(self) -> tuple[Any, Any, Any]:
        """The windows of the output, as `im2col` takes them."""
        return self.size, self.stride, self.padding

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        channels, (h, w, c) = x.shape[3], self.output_shape(x.shape[1:])
        shape = len(x), h, w, c
        weight, bias = contiguous(self.params["weight"]).reshape(-1, channels), self.params["bias"]
        columns = F.matmul(contiguous(x).reshape(-1, channels), weight, transpose_b=True)
        patches = columns.reshape(F.patches_shape(shape, *self.how, self.dilation))
        y = F.col2im(patches, shape, *self.how, dilation=self.dilation)
        y = (F.bias_relu_forward if self.activation else F.bias_forward)(y, bias, out=y)
        return y, (x, y)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        x, y = cache
        dy, weight = self._through_relu(dy, y), contiguous(self.params["weight"])
        rows = F.im2col(dy, *self.how, dilation=self.dilation).reshape(-1, math.prod(weight.shape[:3]))
        inputs = contiguous(x).reshape(-1, x.shape[3])
        dweight = F.matmul(rows, inputs, transpose_a=True).reshape(weight.shape)
        dx = F.matmul(rows, weight.reshape(rows.shape[1], -1)).reshape(x.shape)
        return dx, {"weight": dweight, "bias": F.bias_backward(dy)}
