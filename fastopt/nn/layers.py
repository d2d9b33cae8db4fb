"""Layers keep nothing between passes: what backward needs is in the cache that forward returns.

    y, cache = layer.forward(x, training=True)
    dx, grads = layer.backward(dy, cache)

A layer may therefore occur in a model twice. Arrays are batch first and channels last: (n, d) or (n, h, w, c).
Results are new arrays unless `memory` provides others: see `fastopt.nn.memory`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.dialects import Spelled
from fastopt.nn import init as initial
from fastopt.nn import text
from fastopt.nn.init import Bias, Init
from fastopt.nn.memory import FRESH, Memory
from fastopt.nn.params import Params

__all__ = ["Composite", "Conv2D", "Dense", "Dropout", "Flatten", "Layer", "MaxPool2D", "ReLU"]

#: Whose products dense layers are made of: fastopt's own, or those of NumPy's BLAS, whose bits are other ones.
try:
    PRODUCTS = checks.choice("it", os.environ.get("FASTOPT_PRODUCTS") or "own", ("own", "blas"))
except ValueError as error:
    raise ImportError(f"FASTOPT_PRODUCTS: {error}") from None

Shape = tuple[int, ...]
Grads = dict[str, Array]


class Layer(Spelled):
    """The base class of layers. A subclass defines `forward` and `backward`, and, where it has parameters, `_build`.

    Attributes
    ----------
    params : dict of ndarray
        The parameters; empty until the layer is built. From then on ``params[name] = value`` copies a value of the same
        shape and type into the array, and names stay as they are.
    state : dict of ndarray
        Arrays that forward passes in training update, such as running means; likewise. A layer whose parameters are all
        frozen, ``params.rest``, should use them as in inference, and leave them as they are.
    parts : dict of Layer
        The layers that a `Composite` is made of.
    input_shape : tuple of int or None
        The shape that the layer was built for, without the batch.
    """

    #: Every layer class by its name, for loading models.
    classes: ClassVar[dict[str, type[Layer]]] = {}
    #: Whether `backward` takes ``input_grad=False``, and then returns None for the gradient of the input.
    may_skip_input_grad: ClassVar[bool] = False

    #: Whether passes in training, in a workspace, are kernel calls alone, which can be recorded.
    kernels_alone: ClassVar[bool] = False

    def __init_subclass__(cls, *, loadable: bool = True, kernels_alone: bool = False) -> None:
        super().__init_subclass__()
        cls.kernels_alone = kernels_alone  # of this class; what inherits from it may do more
        if loadable:
            Layer.classes[cls.__name__] = cls

    def __init__(self) -> None:
        self.params = Params()
        self.state = Params(kind="state")
        self.parts: dict[str, Layer] = {}
        self.input_shape: Shape | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("params", "state") and name in vars(self):
            vars(self)[name].replace(value)
        else:
            super().__setattr__(name, value)

    def build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> Shape:
        """Make the parameters, once.

        Parameters
        ----------
        input_shape : tuple of int
            The shape of one input, without the batch.
        rng : numpy.random.Generator
            Draws the initial weights.
        dtype : numpy.dtype
            float32 or float64.

        Returns
        -------
        tuple of int
            The shape of one output.

        Raises
        ------
        ValueError
            Where the layer takes no such inputs, or was built for others before.
        """
        if self.input_shape is None:
            self._build(input_shape, rng, np.dtype(dtype))
            self.input_shape = input_shape
            self.params.seal()
            self.state.seal()
        elif self.params and self.input_shape != input_shape:
            raise ValueError(f"{self!r} was built for inputs of shape {self.input_shape}, got {input_shape}")
        for param in self.params.values():
            if param.dtype != dtype:
                raise ValueError(f"{self!r} was built for {param.dtype}, got {np.dtype(dtype)}")
        return self.output_shape(input_shape)

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        pass

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of outputs for inputs of a shape, both without the batch."""
        return input_shape

    def forward(
        self, x: Array, *, training: bool = False, counter: int = 0, memory: Memory = FRESH
    ) -> tuple[Array, Any]:
        """The forward pass.

        Parameters
        ----------
        x : ndarray (n, …)
        training : bool, default False
            Whether to use the statistics of the batch, drop out, and so on.
        counter : int, default 0
            The number of the call: random numbers are a function of the layer's seed and of this.
        memory : Memory, default FRESH
            Provides the arrays that are written.

        Returns
        -------
        y : ndarray (n, …)
        cache
            What `backward` takes.
        """
        raise TypeError(f"{type(self).__name__} has no forward pass")

    def backward(self, dy: Array, cache: Any, *, memory: Memory = FRESH) -> tuple[Any, Grads]:
        """The backward pass.

        Parameters
        ----------
        dy : ndarray (n, …)
            The gradient of the loss with respect to the output.
        cache
            What `forward` returned.
        memory : Memory, default FRESH
            Provides the arrays that are written.

        Returns
        -------
        dx : ndarray (n, …)
            The gradient with respect to the input.
        grads : dict of ndarray
            The gradients with respect to the parameters, named as in `params`.
        """
        raise TypeError(f"{type(self).__name__} has no backward pass")

    def fuses(self, followers: Sequence[Layer]) -> int:
        """How many of the layers that directly follow this one are fused with it, and given to `forward` as ``fused=``.

        `forward` and `backward` then do the work of all; results are the same up to rounding, where sums are taken in
        another order.
        """
        return 0

    def keeps_output(self, fused: tuple[Layer, ...]) -> bool:
        """Whether the output of `forward`, with these layers fused, may be read later than by the next layer: by
        `backward`, or where it is the input itself."""
        return True

    def may_overwrite_input(self, fused: tuple[Layer, ...]) -> bool:
        """Whether `backward` takes ``overwrite=True``, and may then write the gradient of the input to the input."""
        return False

    def adopt(self, params: Mapping[str, Array]) -> None:
        """Replace `params` by these arrays, which hold the same values."""
        self.params.take(params)

    def walk(self) -> Iterator[Layer]:
        """Iterate over the layer and all of its parts, at any depth."""
        yield self
        for part in self.parts.values():
            yield from part.walk()

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor that make such a layer; they may hold layers, alone or in lists."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return text.call(type(self), self.config())


class Composite(Layer):
    """The base class of layers made of others, which it builds in `_build` and calls with ``memory.child(key)``.

    `params` and `state` are those of all parts, named ``"<key>.<name>"``; gradients must be, too.

    Parameters
    ----------
    parts : mapping of str to Layer
        Each layer once.

    Examples
    --------
    >>> from fastopt import nn
    >>> block = nn.Residual(nn.Dense(3))
    >>> model = nn.Sequential([block], (3,))
    >>> sorted(model.params)
    ['0.body.bias', '0.body.weight']
    """

    def __init__(self, parts: Mapping[str, Layer]) -> None:
        super().__init__()
        self.parts = dict(parts)

    def build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        for attribute in ("params", "state"):
            of_parts: dict[str, Params] = {key: getattr(part, attribute) for key, part in self.parts.items()}
            arrays = {f"{key}.{name}": array for key, part in of_parts.items() for name, array in part.items()}
            getattr(self, attribute).take(arrays, of_parts)
        return shape

    def adopt(self, params: Mapping[str, Array]) -> None:
        super().adopt(params)
        for key, part in self.parts.items():
            part.adopt({name.removeprefix(f"{key}."): a for name, a in params.items() if name.startswith(f"{key}.")})


def check_images(layer: Layer, input_shape: Shape) -> None:
    """Refuse inputs of a layer that are not images."""
    if len(input_shape) != 3:
        shape = ", ".join(map(str, ("n", *input_shape)))
        raise ValueError(f"{type(layer).__name__} takes inputs of shape (n, h, w, c), got ({shape})")


class _Epilogue(NamedTuple):
    """What follows the bias in the same pass."""

    relu: bool
    dropout: Dropout | None


class _Affine(Layer):
    """A product with a weight, and an epilogue of bias, optional ReLU and optional dropout."""

    def __init__(self, units: int, activation: Literal["relu"] | None, init: Init, bias_init: Bias) -> None:
        super().__init__()
        self.activation = None if activation is None else checks.word("activation", activation, ("relu",))
        self.init = initial.check(init)
        self.bias_init = initial.check_bias(bias_init, units)

    def _make(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator, dtype: np.dtype) -> None:
        self.params["weight"] = initial.weight(self.init, shape, fan_in, fan_out, rng, dtype)
        self.params["bias"] = np.full(shape[-1:], self.bias_init, dtype)

    def fuses(self, followers: Sequence[Layer]) -> int:
        relu = not self.activation and len(followers) > 0 and type(followers[0]) is ReLU
        activated = relu or self.activation
        return relu + bool(activated and len(followers) > relu and type(followers[relu]) is Dropout)

    def keeps_output(self, fused: tuple[Layer, ...]) -> bool:
        return type(self) not in (Dense, Conv2D) or bool(self.activation or fused)

    def _epilogue(self, fused: tuple[Layer, ...], training: bool) -> _Epilogue:
        dropout = fused[-1] if fused and isinstance(fused[-1], Dropout) and training else None
        return _Epilogue(bool(self.activation or fused), dropout)

    def _finish(self, y: Array, epilogue: _Epilogue, counter: int) -> None:
        """Apply the epilogue to a product, in place."""
        bias = self.params["bias"]
        if not epilogue.relu:
            F.bias_forward(y, bias, out=y)
        elif epilogue.dropout is None:
            F.bias_relu_forward(y, bias, out=y)
        else:
            epilogue.dropout.fused_forward(y, bias, counter)

    def _begin(
        self, dy: Array, y: Array, epilogue: _Epilogue, memory: Memory, *, leave_bias: bool = False
    ) -> tuple[Array, Array]:
        """The gradients with respect to the product and the bias; the latter is left to be written where `leave_bias`
        is set and it would take a pass of its own."""
        dbias = memory.grad("bias", self.params["bias"])
        if not epilogue.relu:
            return dy, dbias if leave_bias else F.bias_backward(dy, out=dbias)
        dproduct = memory.array("dproduct", dy.shape, dy.dtype)
        if epilogue.dropout is None:
            return F.bias_relu_backward(dy, y, out=dproduct, dbias=dbias)
        p, p_is = epilogue.dropout.p, epilogue.dropout.p_is
        return F.bias_relu_dropout_backward(dy, y, p, p_is=p_is, out=dproduct, dbias=dbias)


class Dense(_Affine):
    """A dense layer of inputs (n, d): ``y = x @ weight + bias``, with an optional ReLU.

    Parameters
    ----------
    units : int
        The number of outputs.
    activation : "relu" or None, default None
        Fused with the bias.
    init : str or callable, default "he"
        The initialisation of the weight: a name or an object of `fastopt.nn.init`.
    bias_init : float or sequence of float, default 0.0
        The initial bias: one number for all units, or one for each.

    Attributes
    ----------
    params : dict of ndarray
        ``weight`` (d, units), ``bias`` (units,).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs are not (n, d).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> layer = nn.Dense(3)
    >>> layer.build((4,), np.random.default_rng(0), np.float32)
    (3,)
    >>> y, cache = layer.forward(np.ones((2, 4), np.float32), training=True)
    >>> dx, grads = layer.backward(np.ones_like(y), cache)
    >>> dx.shape, grads["weight"].shape, grads["bias"].tolist()
    ((2, 4), (4, 3), [2.0, 2.0, 2.0])
    """

    may_skip_input_grad = True

    def __init__(
        self, units: int, activation: Literal["relu"] | None = None, init: Init = "he", bias_init: Bias = 0.0
    ) -> None:
        self.units = checks.integer("units", units, 1)
        super().__init__(self.units, activation, init, bias_init)

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        if len(input_shape) != 1:
            raise ValueError(f"Dense takes inputs of shape (n, d), got (n, {', '.join(map(str, input_shape))})")
        self._make((input_shape[0], self.units), input_shape[0], self.units, rng, dtype)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (self.units,)

    def forward(
        self,
        x: Array,
        *,
        training: bool = False,
        counter: int = 0,
        memory: Memory = FRESH,
        fused: tuple[Layer, ...] = (),
    ) -> tuple[Array, Any]:
        y = memory.array("y", (len(x), self.units), x.dtype)
        epilogue = self._epilogue(fused, training)
        x, weight = _contiguous(x), _contiguous(self.params["weight"])
        if PRODUCTS == "blas":
            self._finish(np.matmul(x, weight, out=y), epilogue, counter + len(fused))
        elif epilogue.dropout is None:
            F.dense_forward(x, weight, self.params["bias"], relu=epilogue.relu, out=y)
        else:
            self._finish(F.dense_forward(x, weight, out=y), epilogue, counter + len(fused))
        return y, (x, y, epilogue)

    def backward(
        self, dy: Array, cache: Any, *, memory: Memory = FRESH, input_grad: bool = True
    ) -> tuple[Array | None, Grads]:
        x, y, epilogue = cache
        weight = _contiguous(self.params["weight"])
        blas = PRODUCTS == "blas"
        dy, dbias = self._begin(dy, y, epilogue, memory, leave_bias=not blas)
        dweight = memory.grad("weight", weight)
        if blas:
            np.matmul(x.T, dy, out=dweight)
        else:
            F.dense_weight_grad(x, dy, out=dweight, dbias=None if epilogue.relu else dbias)
        grads = {"weight": dweight, "bias": dbias}
        if not input_grad:
            return None, grads
        dx = memory.array("dx", x.shape, x.dtype)
        return np.matmul(dy, weight.T, out=dx) if blas else F.dense_input_grad(dy, weight, out=dx), grads


def _contiguous(array: Array) -> Array:
    """An array as kernels take it: a copy, where that of a caller is transposed, say."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


class Conv2D(_Affine):
    """A convolution of images (n, h, w, c), with an optional ReLU.

    Computed by `fastopt.functional.conv2d`, in float32 by Winograd's algorithm where it applies; for shapes that this
    does not take, or where the number of filters is no multiple of 16, by im2col and a matrix product; with a filter
    and a group for each channel, by `fastopt.functional.depthwise_forward`.

    Parameters
    ----------
    filters : int
        The number of output channels.
    size : int or (int, int), default 3
        Height and width of the kernel.
    stride : int or (int, int), default 1
    padding : "same", "valid", int or (int, int), default "same"
        Zeros on each side; ``"same"`` is half of the window, which keeps the shape for odd sizes at stride 1.
    activation : "relu" or None, default None
        Fused with the bias.
    init : str or callable, default "he"
        The initialisation of the weight: a name or an object of `fastopt.nn.init`.
    dilation : int or (int, int), default 1
        Distance of the window's pixels from each other.
    groups : int, default 1
        A divisor of the numbers of channels and of filters: each group of filters takes its own group of channels. As
        many groups as channels make a depthwise convolution.
    bias_init : float or sequence of float, default 0.0
        The initial bias: one number for all filters, or one for each.

    Attributes
    ----------
    params : dict of ndarray
        ``weight`` (height, width, channels / groups, filters), ``bias`` (filters,).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs are not (n, h, w, c) or are smaller than
        the window.

    Examples
    --------
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Conv2D(16, stride=2, activation="relu"), nn.Conv2D(8, 1, groups=2)], (8, 6, 3))
    >>> model.shapes
    [(8, 6, 3), (4, 3, 16), (4, 3, 8)]
    >>> model.params["0.weight"].shape, model.params["1.weight"].shape
    ((3, 3, 3, 16), (1, 1, 8, 8))
    """

    may_skip_input_grad = True

    def __init__(
        self,
        filters: int,
        size: F.Pair = 3,
        stride: F.Pair = 1,
        padding: Literal["same", "valid"] | F.Pair = "same",
        activation: Literal["relu"] | None = None,
        init: Init = "he",
        dilation: F.Pair = 1,
        groups: int = 1,
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
        self.groups = checks.integer("groups", groups, 1)
        if self.filters % self.groups:
            raise ValueError(f"groups must divide filters, {self.filters}, got {groups}")

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.output_shape(input_shape)
        pixels = self.size[0] * self.size[1]
        channels = input_shape[2] // self.groups
        fan_out = pixels * self.filters // self.groups
        self._make((*self.size, channels, self.filters), pixels * channels, fan_out, rng, dtype)

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        if input_shape[2] % self.groups:
            raise ValueError(f"groups must divide the number of channels, {input_shape[2]}, got {self.groups}")
        patches = F.patches_shape((1, *input_shape), self.size, self.stride, self.padding, self.dilation)
        return (*patches[1:3], self.filters)

    def _same_padding(self) -> tuple[int, int]:
        (kh, kw), (dh, dw) = self.size, self.dilation
        return (dh * (kh - 1) + 1) // 2, (dw * (kw - 1) + 1) // 2

    def config(self) -> dict[str, Any]:
        return super().config() | ({"padding": "same"} if self.padding == self._same_padding() else {})

    def _by_group(self, images: Array, name: str, memory: Memory) -> Array:
        """Images (n, h, w, groups · c), split by channel group, as (groups · n, h, w, c)."""
        n, h, w, channels = images.shape
        split = memory.array(name, (self.groups, n, h, w, channels // self.groups), images.dtype)
        split[...] = np.moveaxis(images.reshape(n, h, w, self.groups, -1), 3, 0)
        return split.reshape(-1, *split.shape[2:])

    def _join(self, split: Array, out: Array) -> Array:
        """The inverse of `_by_group`, into `out`."""
        n, h, w, _ = out.shape
        out.reshape(n, h, w, self.groups, -1)[...] = np.moveaxis(split.reshape(self.groups, n, h, w, -1), 0, 3)
        return out

    def _group_weights(self, weight: Array) -> Array:
        """The weight as a stack of matrices (groups, inputs, filters / groups), a view."""
        return np.moveaxis(weight.reshape(-1, self.groups, self.filters // self.groups), 1, 0)

    def _by_group_of_filters(self, weight: Array, memory: Memory) -> Array:
        """The same, each matrix by itself in memory."""
        split = self._group_weights(weight)
        if self.groups == 1:
            return split
        weights = memory.array("weights by group", split.shape, weight.dtype)
        weights[...] = split
        return weights

    def forward(
        self,
        x: Array,
        *,
        training: bool = False,
        counter: int = 0,
        memory: Memory = FRESH,
        fused: tuple[Layer, ...] = (),
    ) -> tuple[Array, Any]:
        if self.is_direct(x.shape):
            return self._direct_forward(x, self._epilogue(fused, training), counter + len(fused), memory)
        if self.groups == self.filters == x.shape[3] > 1:
            return self._depthwise_forward(x, self._epilogue(fused, training), counter + len(fused), memory)
        n, groups = len(x), self.groups
        if groups > 1:
            x = self._by_group(x, "x", memory)
        shape = F.patches_shape(x.shape, self.size, self.stride, self.padding, self.dilation)
        columns = memory.array("columns", shape, x.dtype)
        F.im2col(x, self.size, self.stride, self.padding, dilation=self.dilation, out=columns)
        _, out_h, out_w = shape[:3]
        y = memory.array("y", (n * out_h * out_w, self.filters), x.dtype)
        images, weight = y.reshape(n, out_h, out_w, -1), self.params["weight"]
        if groups == 1:
            F.matmul(columns.reshape(len(y), -1), weight.reshape(-1, self.filters), y)
        else:
            product = memory.array("product", (groups, len(y), self.filters // groups), x.dtype)
            weights = self._by_group_of_filters(weight, memory)
            for rows, matrix, out in zip(columns.reshape(groups, len(y), -1), weights, product, strict=True):
                F.matmul(rows, matrix, out)
            self._join(product, images)
        epilogue = self._epilogue(fused, training)
        self._finish(y, epilogue, counter + len(fused))
        return images, (x.shape, columns, y, epilogue)

    def is_direct(self, shape: Shape) -> bool:
        """Whether inputs of a shape (n, h, w, c) are convolved by a kernel of its own, without im2col."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.filters % 16 == 0
        return plain and F.conv2d_fits(shape, self.filters, self.size, self.stride, self.padding)

    def _by_winograd(self, x: Array) -> bool:
        """Whether to use Winograd's algorithm: not in float64, where its larger rounding errors would matter."""
        return x.dtype == np.float32 and F.winograd_fits(self.params["weight"].shape, self.stride)

    def _direct_forward(self, x: Array, epilogue: _Epilogue, counter: int, memory: Memory) -> tuple[Array, Any]:
        weight, bias, winograd = self.params["weight"], self.params["bias"], self._by_winograd(x)
        shape = F.patches_shape(x.shape, self.size, self.stride, self.padding)
        y = memory.array("y", (*shape[:3], self.filters), x.dtype)
        packed = memory.array("packed", F.packed_shape(weight.shape, winograd=winograd), x.dtype)
        dropped = epilogue.dropout is not None
        F.conv2d(
            x,
            weight,
            None if dropped else bias,
            self.stride,
            self.padding,
            relu=epilogue.relu and not dropped,
            winograd=winograd,
            out=y,
            packed=packed,
        )
        if dropped:
            self._finish(y, epilogue, counter)
        return y, (x, None, y, epilogue)

    def _direct_backward(
        self, dy: Array, x: Array, epilogue: _Epilogue, grads: Grads, memory: Memory, input_grad: bool
    ) -> tuple[Array | None, Grads]:
        weight, winograd = self.params["weight"], self._by_winograd(x)
        sums = memory.array("sums", (16, *weight.shape[2:]), x.dtype) if winograd else None
        how = self.size, self.stride, self.padding
        dbias = None if epilogue.relu else grads["bias"]
        F.conv2d_weight_grad(x, dy, *how, winograd=winograd, out=grads["weight"], sums=sums, dbias=dbias)
        if not input_grad:
            return None, grads
        dx = memory.array("dx", x.shape, dy.dtype)
        if self.stride == (1, 1) and self.padding[0] < self.size[0] and self.padding[1] < self.size[1]:
            shape = F.packed_shape(weight.shape, reverse=True, winograd=winograd)
            packed = memory.array("packed back", shape, x.dtype)
            F.conv2d_input_grad(dy, weight, x.shape, self.padding, winograd=winograd, out=dx, packed=packed)
            return dx, grads
        columns = memory.array("columns", F.patches_shape(x.shape, self.size, self.stride, self.padding), dy.dtype)
        rows = dy.reshape(-1, self.filters)
        F.matmul(rows, weight.reshape(-1, self.filters), columns.reshape(len(rows), -1), transpose_b=True)
        return F.col2im(columns, x.shape, self.size, self.stride, self.padding, out=dx), grads

    def _depthwise_forward(self, x: Array, epilogue: _Epilogue, counter: int, memory: Memory) -> tuple[Array, Any]:
        y = memory.array("y", (len(x), *self.output_shape(x.shape[1:])), x.dtype)
        weight = self.params["weight"].reshape(*self.size, self.filters)
        F.depthwise_forward(x, weight, self.stride, self.padding, dilation=self.dilation, out=y)
        self._finish(y, epilogue, counter)
        return y, (x, None, y, epilogue)

    def _depthwise_backward(
        self, dy: Array, x: Array, grads: Grads, memory: Memory, input_grad: bool
    ) -> tuple[Array | None, Grads]:
        weight, dweight = (a.reshape(*self.size, self.filters) for a in (self.params["weight"], grads["weight"]))
        dx = memory.array("dx", x.shape, dy.dtype) if input_grad else None
        F.depthwise_backward(
            dy,
            x,
            weight,
            self.stride,
            self.padding,
            dilation=self.dilation,
            input_grad=input_grad,
            out=dx,
            dweight=dweight,
        )
        return dx, grads

    def backward(
        self, dy: Array, cache: Any, *, memory: Memory = FRESH, input_grad: bool = True
    ) -> tuple[Array | None, Grads]:
        shape, columns, y, epilogue = cache  # where columns is None, shape is x itself
        n, groups, images = len(dy), self.groups, dy.shape
        direct = columns is None and groups == 1
        dy, dbias = self._begin(dy.reshape(y.shape), y, epilogue, memory, leave_bias=direct)
        weight = self.params["weight"]
        dweight = memory.grad("weight", weight)
        grads = {"weight": dweight, "bias": dbias}
        if direct:
            return self._direct_backward(dy.reshape(images), shape, epilogue, grads, memory, input_grad)
        if columns is None:
            return self._depthwise_backward(dy.reshape(images), shape, grads, memory, input_grad)
        if groups > 1:
            dy = self._by_group(dy.reshape(images), "dproduct by group", memory)
        dy, rows = dy.reshape(groups, len(y), -1), columns.reshape(groups, len(y), -1)
        dweights = self._group_weights(dweight)
        if groups > 1:
            dweights = memory.array("dweights", dweights.shape, weight.dtype)
        for group in range(groups):
            F.matmul(rows[group], dy[group], dweights[group], transpose_a=True)
        if groups > 1:
            self._group_weights(dweight)[...] = dweights
        if not input_grad:
            return None, grads
        dcolumns = memory.array("dcolumns", columns.shape, columns.dtype)
        weights = self._by_group_of_filters(weight, memory)
        for group, out in enumerate(dcolumns.reshape(rows.shape)):
            F.matmul(dy[group], weights[group], out, transpose_b=True)
        dx = memory.array("dx", shape, dy.dtype)
        F.col2im(dcolumns, shape, self.size, self.stride, self.padding, dilation=self.dilation, out=dx)
        if groups > 1:
            dx = self._join(dx, memory.array("joined dx", (n, *shape[1:3], groups * shape[3]), dy.dtype))
        return dx, grads


class MaxPool2D(Layer, kernels_alone=True):
    """The maximum of each window of images (n, h, w, c), without padding.

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
    >>> nn.MaxPool2D(2).forward(images)[0].ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
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

    def forward(
        self, x: Array, *, training: bool = False, counter: int = 0, memory: Memory = FRESH
    ) -> tuple[Array, Any]:
        shape = (len(x), *self.output_shape(x.shape[1:]))
        y = memory.array("y", shape, x.dtype)
        winner = memory.array("winner", shape, F.winner_type(x.dtype))
        F.max_pool_forward(x, self.size, self.stride, out=y, winner=winner)
        return y, (x.shape, winner)

    def backward(self, dy: Array, cache: Any, *, memory: Memory = FRESH) -> tuple[Array, Grads]:
        shape, winner = cache
        dx = memory.array("dx", shape, dy.dtype)
        return F.max_pool_backward(dy, winner, shape, self.size, self.stride, out=dx), {}


class Flatten(Layer, kernels_alone=True):
    """All axes but the first in one: inputs (n, …) become (n, d).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Flatten().forward(np.zeros((2, 8, 6, 3)))[0].shape
    (2, 144)
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return (int(np.prod(input_shape, dtype=np.int64)),)

    def forward(
        self, x: Array, *, training: bool = False, counter: int = 0, memory: Memory = FRESH
    ) -> tuple[Array, Any]:
        return x.reshape(len(x), *self.output_shape(x.shape[1:])), x.shape

    def backward(self, dy: Array, cache: Any, *, memory: Memory = FRESH) -> tuple[Array, Grads]:
        return dy.reshape(cache), {}


class ReLU(Layer, kernels_alone=True):
    """``y = max(x, 0)``; directly after Dense, Conv2D or BatchNorm it is fused with it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> relu = nn.ReLU()
    >>> y, cache = relu.forward(np.array([[-1.0, 2.0]]))
    >>> y, relu.backward(np.ones((1, 2)), cache)[0]
    (array([[0., 2.]]), array([[0., 1.]]))
    """

    def forward(
        self, x: Array, *, training: bool = False, counter: int = 0, memory: Memory = FRESH
    ) -> tuple[Array, Any]:
        y = F.relu_forward(x, out=memory.array("y", x.shape, x.dtype))
        return y, y

    def backward(self, dy: Array, cache: Any, *, memory: Memory = FRESH) -> tuple[Array, Grads]:
        return F.relu_backward(dy, cache, out=memory.array("dx", dy.shape, dy.dtype)), {}


class Dropout(Layer, kernels_alone=True):
    """Inverted dropout in training; the identity in inference.

    Parameters
    ----------
    p : float
        The probability of dropping, in [0, 1).
    p_is : {"drop", "keep"}, default "drop"
        ``"keep"`` makes `p` the probability of keeping, in (0, 1].

    Raises
    ------
    TypeError, ValueError
        Where `p` or `p_is` breaks its rule.

    Notes
    -----
    The mask is a function of the layer's seed, which is drawn when the model is built, and of the counter that the
    model gives each call.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> dropout, x = nn.Dropout(0.5), np.ones((100, 100))
    >>> y, mask = dropout.forward(x, training=True, counter=1)
    >>> sorted(set(y.ravel().tolist())), bool(abs(y.mean() - 1) < 0.05)
    ([0.0, 2.0], True)
    >>> dropout.forward(x)[0] is x
    True
    """

    def __init__(self, p: float, p_is: F.PIs = "drop") -> None:
        super().__init__()
        checks.choice("p_is", p_is, ("drop", "keep"))
        self.p, self.p_is = checks.number("p", p, "(0, 1]" if p_is == "keep" else "[0, 1)"), p_is
        self.seed = 0

    @property
    def drop(self) -> float:
        """The probability of dropping."""
        return 1 - self.p if self.p_is == "keep" else self.p

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.seed = int(rng.integers(2**63))

    def forward(
        self, x: Array, *, training: bool = False, counter: int = 0, memory: Memory = FRESH
    ) -> tuple[Array, Any]:
        if not training:
            return x, None
        return F.dropout(
            x,
            self.p,
            seed=self.seed,
            counter=counter,
            p_is=self.p_is,
            out=memory.array("y", x.shape, x.dtype),
            mask=memory.array("mask", ((x.size + 7) // 8,), np.uint8),
        )

    def backward(self, dy: Array, cache: Any, *, memory: Memory = FRESH) -> tuple[Array, Grads]:
        if cache is None:
            return dy, {}
        dx = memory.array("dx", dy.shape, dy.dtype)
        return F.dropout_backward(dy, cache, self.p, p_is=self.p_is, out=dx), {}

    def fused_forward(self, y: Array, bias: Array, counter: int) -> None:
        """Bias, ReLU and dropout of a product, in place."""
        F.bias_relu_dropout_forward(y, bias, self.p, seed=self.seed, counter=counter, p_is=self.p_is, out=y)
