"""Layers keep nothing between passes: what backward needs is in the cache that forward returns.

    y, cache = layer.forward(x, training=True)
    dx, grads = layer.backward(dy, cache)

A layer may therefore occur in a model twice. Arrays are batch first and channels last: (n, d) or (n, h, w, c).
`fastopt.nn.program` compiles them into lists of kernel calls, which share memory and work.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from fastopt import checks, environment
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.dialects import Spelled
from fastopt.nn import init as initial
from fastopt.nn import text
from fastopt.nn.init import Bias, Init
from fastopt.nn.params import Params

__all__ = ["Composite", "Conv2D", "Dense", "Dropout", "Flatten", "Layer", "MaxPool2D", "ReLU"]

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

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> class Scale(nn.Layer):
    ...     def _build(self, input_shape, rng, dtype):
    ...         self.params["scale"] = np.ones(input_shape[-1:], dtype)
    ...
    ...     def forward(self, x, *, training=False, counter=0):
    ...         return x * self.params["scale"], x
    ...
    ...     def backward(self, dy, x):
    ...         return dy * self.params["scale"], {"scale": (dy * x).sum(axis=0)}
    >>> model = nn.Sequential([Scale(), nn.Dense(2)], (3,))
    >>> bool(nn.debug.gradient_check(model, np.eye(3), np.array([0, 1, 0])))
    True
    >>> del nn.Layer.classes["Scale"]
    >>> body = nn.Residual(nn.Sequential([nn.Dense(3), nn.ReLU()]))
    >>> model = nn.Sequential([nn.Flatten(), body], (3, 1))
    >>> [type(layer).__name__ for layer in model.walk()]
    ['Sequential', 'Flatten', 'Residual', 'Sequential', 'Dense', 'ReLU']
    >>> nn.Dense(4).output_shape((3,)), nn.LeakyReLU(0.1).config()
    ((4,), {'slope': 0.1})
    """

    #: Every layer class by its name, for loading models.
    classes: ClassVar[dict[str, type[Layer]]] = {}

    def __init_subclass__(cls, *, loadable: bool = True) -> None:
        super().__init_subclass__()
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

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        """The forward pass.

        Parameters
        ----------
        x : ndarray (n, …)
        training : bool, default False
            Whether to use the statistics of the batch, drop out, and so on.
        counter : int, default 0
            The number of the call: random numbers are a function of the layer's seed and of this.

        Returns
        -------
        y : ndarray (n, …)
        cache
            What `backward` takes.
        """
        raise TypeError(f"{type(self).__name__} has no forward pass")

    def backward(self, dy: Array, cache: Any) -> tuple[Any, Grads]:
        """The backward pass.

        Parameters
        ----------
        dy : ndarray (n, …)
            The gradient of the loss with respect to the output.
        cache
            What `forward` returned.

        Returns
        -------
        dx : ndarray (n, …)
            The gradient with respect to the input.
        grads : dict of ndarray
            The gradients with respect to the parameters, named as in `params`.
        """
        raise TypeError(f"{type(self).__name__} has no backward pass")

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
    """The base class of layers made of others, which it builds in `_build`.

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


class Affine(Layer, loadable=False):
    """A product with a weight, and an epilogue of bias, optional ReLU and optional dropout."""

    def __init__(self, units: int, activation: Literal["relu"] | None, init: Init, bias_init: Bias) -> None:
        super().__init__()
        self.activation: Any = None if activation is None else checks.word("activation", activation, ("relu",))
        self.init = initial.check(init)
        self.bias_init = initial.check_bias(bias_init, units)

    def _make(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator, dtype: np.dtype) -> None:
        self.params["weight"] = initial.weight(self.init, shape, fan_in, fan_out, rng, dtype)
        self.params["bias"] = np.full(shape[-1:], self.bias_init, dtype)

    def _through_relu(self, dy: Array, y: Array) -> Array:
        """The gradient of the product and its bias, by that of the output."""
        return F.relu_backward(dy, y) if self.activation else dy


class Dense(Affine):
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

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        x, weight, bias, relu = contiguous(x), contiguous(self.params["weight"]), self.params["bias"], self.activation
        if environment.PRODUCTS == "blas":
            y = x @ weight
            y = (F.bias_relu_forward if relu else F.bias_forward)(y, bias, out=y)
        else:
            y = F.dense_forward(x, weight, bias, relu=bool(relu))
        return y, (x, y)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        x, y = cache
        dy, weight = self._through_relu(dy, y), contiguous(self.params["weight"])
        if environment.PRODUCTS == "blas":
            return dy @ weight.T, {"weight": x.T @ dy, "bias": F.bias_backward(dy)}
        dbias = np.empty_like(self.params["bias"])
        dweight = F.dense_weight_grad(x, dy, dbias=dbias)
        return F.dense_input_grad(dy, weight), {"weight": dweight, "bias": dbias}


def contiguous(array: Array) -> Array:
    """An array as kernels take it: a copy, where that of a caller is transposed, say."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


class Conv2D(Affine):
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

    def is_direct(self, shape: Shape) -> bool:
        """Whether inputs of a shape (n, h, w, c) are convolved by a kernel of its own, without im2col."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.filters % 16 == 0
        return plain and F.conv2d_fits(shape, self.filters, self.size, self.stride, self.padding)

    def is_depthwise(self, shape: Shape) -> bool:
        """Whether each channel of inputs of a shape (n, h, w, c) has one filter of its own."""
        return self.groups == self.filters == shape[3] > 1

    def by_winograd(self, dtype: np.dtype[Any]) -> bool:
        """Whether to use Winograd's algorithm: not in float64, where its larger rounding errors would matter."""
        return dtype == np.float32 and F.winograd_fits(self.params["weight"].shape, self.stride)

    def has_direct_input_grad(self) -> bool:
        """Whether `conv2d_input_grad` takes this geometry."""
        return self.stride == (1, 1) and self.padding[0] < self.size[0] and self.padding[1] < self.size[1]

    def _by_group(self, images: Array) -> Array:
        """Images (n, h, w, groups · c), split by channel group, as (groups · n, h, w, c)."""
        n, h, w, channels = images.shape
        split = np.moveaxis(images.reshape(n, h, w, self.groups, -1), 3, 0)
        return np.ascontiguousarray(split).reshape(-1, h, w, channels // self.groups)

    def _joined(self, split: Array) -> Array:
        """The inverse of `_by_group`."""
        _, h, w, c = split.shape
        groups = np.moveaxis(split.reshape(self.groups, -1, h, w, c), 0, 3)
        return np.ascontiguousarray(groups).reshape(-1, h, w, self.groups * c)

    def _matrices(self, weight: Array) -> Array:
        """A weight as one matrix (inputs, filters / groups) for each group."""
        return np.ascontiguousarray(np.moveaxis(weight.reshape(-1, self.groups, self.filters // self.groups), 1, 0))

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        weight, bias, relu = self.params["weight"], self.params["bias"], bool(self.activation)
        if self.is_direct(x.shape):
            winograd = self.by_winograd(x.dtype)
            y = F.conv2d(x, weight, bias, self.stride, self.padding, relu=relu, winograd=winograd)
            return y, (x, None, y)
        columns = None
        if self.is_depthwise(x.shape):
            filters = weight.reshape(*self.size, self.filters)
            y = F.depthwise_forward(x, filters, self.stride, self.padding, dilation=self.dilation)
        else:
            images = self._by_group(x)
            columns = F.im2col(images, self.size, self.stride, self.padding, dilation=self.dilation)
            _, h, w = columns.shape[:3]
            rows = columns.reshape(self.groups, -1, self._matrices(weight).shape[1])
            products = [F.matmul(own, matrix) for own, matrix in zip(rows, self._matrices(weight), strict=True)]
            y = self._joined(np.reshape(products, (-1, h, w, self.filters // self.groups)))
        y = (F.bias_relu_forward if relu else F.bias_forward)(y, bias, out=y)
        return y, (x, columns, y)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        x, columns, y = cache
        dy, weight = self._through_relu(dy, y), self.params["weight"]
        how: dict[str, Any] = {"stride": self.stride, "padding": self.padding}
        if self.is_depthwise(x.shape):
            filters = weight.reshape(*self.size, self.filters)
            dx: Any
            dx, dweight = F.depthwise_backward(dy, x, filters, **how, dilation=self.dilation)
            assert dx is not None
            return dx, {"weight": dweight.reshape(weight.shape), "bias": F.bias_backward(dy)}
        if columns is None:
            winograd, dbias = self.by_winograd(x.dtype), np.empty_like(self.params["bias"])
            dweight = F.conv2d_weight_grad(x, dy, self.size, **how, winograd=winograd, dbias=dbias)
            grads = {"weight": dweight, "bias": dbias}
            if self.has_direct_input_grad():
                return F.conv2d_input_grad(dy, weight, x.shape, self.padding, winograd=winograd), grads
        rows = self._by_group(dy).reshape(self.groups, -1, self.filters // self.groups)
        matrices = self._matrices(weight)
        if columns is not None:
            by_group = columns.reshape(self.groups, -1, matrices.shape[1])
            sums = [F.matmul(own, part, transpose_a=True) for own, part in zip(by_group, rows, strict=True)]
            dweight = np.ascontiguousarray(np.moveaxis(np.array(sums), 0, 1)).reshape(weight.shape)
            grads = {"weight": dweight, "bias": F.bias_backward(dy)}
        dcolumns = [F.matmul(part, matrix, transpose_b=True) for part, matrix in zip(rows, matrices, strict=True)]
        n, h, w, c = x.shape
        split = self.groups * n, h, w, c // self.groups
        patches = np.reshape(dcolumns, F.patches_shape(split, self.size, self.stride, self.padding, self.dilation))
        return self._joined(F.col2im(patches, split, self.size, **how, dilation=self.dilation)), grads


class Pooling(Layer, loadable=False):
    """The base of pooling by windows."""

    def __init__(self, size: F.Pair, stride: F.Pair | None, padding: Literal["same", "valid"] | F.Pair) -> None:
        super().__init__()
        self.size = checks.pair("size", size, 1)
        self.stride = self.size if stride is None else checks.pair("stride", stride, 1)
        if isinstance(padding, str):
            same = checks.choice("padding", padding, ("same", "valid")) == "same"
            padding = (self.size[0] // 2, self.size[1] // 2) if same else 0
        self.padding = checks.pair("padding", padding, 0)
        if self.padding[0] >= self.size[0] or self.padding[1] >= self.size[1]:
            raise ValueError(f"padding must be less than size, {self.size}, got {padding!r}")

    def config(self) -> dict[str, Any]:
        own = super().config()
        if self.stride == self.size:
            own["stride"] = None
        return own | ({"padding": "valid"} if self.padding == (0, 0) else {})

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        return (*F.patches_shape((1, *input_shape), self.size, self.stride, self.padding)[1:3], input_shape[2])

    def padded(self, shape: Shape) -> tuple[int, int, int, int]:
        """The shape (n, h, w, c) of images with their border."""
        n, h, w, c = shape
        return n, h + 2 * self.padding[0], w + 2 * self.padding[1], c


class MaxPool2D(Pooling):
    """The maximum of each window of images (n, h, w, c).

    Parameters
    ----------
    size : int or (int, int), default 2
    stride : int or (int, int), optional
        `size` where absent.
    padding : "same", "valid", int or (int, int), default "valid"
        Pixels on each side that are never the maximum, less than `size`; ``"same"`` is half of the window, which keeps
        the shape for odd sizes at stride 1.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs are smaller than a window.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> images = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> nn.MaxPool2D(2).forward(images)[0].ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    >>> nn.MaxPool2D(3, stride=2, padding=1).forward(images)[0].ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """

    def __init__(
        self,
        size: F.Pair = 2,
        stride: F.Pair | None = None,
        padding: Literal["same", "valid"] | F.Pair = "valid",
    ) -> None:
        super().__init__(size, stride, padding)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        images = x if self.padding == (0, 0) else F.pad_forward(x, self.padding, -np.inf)
        y, winner = F.max_pool_forward(images, self.size, self.stride)
        return y, (x.shape, winner)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        shape, winner = cache
        dx = F.max_pool_backward(dy, winner, self.padded(shape), self.size, self.stride)
        return dx if self.padding == (0, 0) else F.pad_backward(dx, shape, self.padding), {}


class Flatten(Layer):
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

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        return x.reshape(len(x), *self.output_shape(x.shape[1:])), x.shape

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return dy.reshape(cache), {}


class ReLU(Layer):
    """``y = max(x, 0)``; directly after Dense, Conv2D or BatchNorm, programs fuse it with it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> relu = nn.ReLU()
    >>> y, cache = relu.forward(np.array([[-1.0, 2.0]]))
    >>> y, relu.backward(np.ones((1, 2)), cache)[0]
    (array([[0., 2.]]), array([[0., 1.]]))
    """

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        y = F.relu_forward(x)
        return y, y

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return F.relu_backward(dy, cache), {}


class Dropout(Layer):
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

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        if not training:
            return x, None
        return F.dropout(x, self.p, seed=self.seed, counter=counter, p_is=self.p_is)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        if cache is None:
            return dy, {}
        return F.dropout_backward(dy, cache, self.p, p_is=self.p_is), {}
