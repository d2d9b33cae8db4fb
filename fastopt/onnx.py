"""Models as ONNX: the extra ``onnx``, without which the import of this module is an ImportError.

Tensors keep the order of a `Sequential`, (n, h, w, c), at the input and the output; in between, channels come second
where ONNX's convolutions want them, and are moved back only where something else is wanted.

>>> from fastopt import nn, onnx
>>> model = nn.Sequential([nn.Conv2D(8), nn.ReLU(), nn.Flatten(), nn.Dense(10)], (8, 8, 1))
>>> exported = onnx.export(model, "model.onnx")
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastopt import files, nn
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array

try:
    import onnx
except ImportError as error:
    raise ImportError("fastopt.onnx needs onnx: pip install 'fastopt[onnx]'", name="onnx") from error

__all__ = ["export"]

#: The set of operators: the first with Gelu and a GroupNormalization by channels.
_OPSET, _IR_VERSION = 21, 10


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph.

    Attributes
    ----------
    name : str
    shape : tuple of int
        As ours, without the batch.
    first : bool
        Whether channels come second, before the other axes.
    """

    name: str
    shape: tuple[int, ...]
    first: bool = False


class _Graph:
    """Nodes and constants that are being written."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = None) -> str:
        name = f"constant_{len(self.constants)}"
        array = np.array(value, dtype or self.dtype, order="C")
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, [*inputs], [name], name=name, **attributes))
        return name

    def on(self, x: _Value, kind: str, *more: str, **attributes: Any) -> _Value:
        """What a node makes of a value, in the same shape and layout."""
        return replace(x, name=self.node(kind, x.name, *more, **attributes))

    def last(self, x: _Value) -> _Value:
        """The value with channels last, as ours."""
        if not x.first:
            return x
        axes = [0, *range(2, len(x.shape) + 1), 1]
        return _Value(self.node("Transpose", x.name, perm=axes), x.shape)

    def channels_first(self, x: _Value) -> _Value:
        if x.first or len(x.shape) == 1:
            return x
        axes = [0, len(x.shape), *range(1, len(x.shape))]
        return _Value(self.node("Transpose", x.name, perm=axes), x.shape, first=True)

    def reshape(self, x: _Value, shape: Sequence[int]) -> _Value:
        """Numbers in our order."""
        x = self.last(x)
        return _Value(self.node("Reshape", x.name, self.constant([0, *shape], np.int64)), tuple(shape))

    def by_channel(self, x: _Value, kind: str, factor: Array) -> _Value:
        """An operation with one number for each channel."""
        shape = (-1, *(1,) * (len(x.shape) - 1)) if x.first else (-1,)
        return self.on(x, kind, self.constant(factor.reshape(shape)))


Rule = Callable[[_Graph, Any, _Value], _Value]
_RULES: dict[type[nn.Layer], Rule] = {}


def _rule(*kinds: type[nn.Layer]) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def _write(g: _Graph, layer: nn.Layer, x: _Value, where: str) -> _Value:
    """The nodes of a layer."""
    if type(layer) is nn.Sequential:
        for i, each in enumerate(layer.layers):
            x = _write(g, each, x, f"{where}.layers[{i}]" if where else f"layers[{i}]")
        return x
    if type(layer) is nn.Residual:
        terms = [_write(g, part, x, f"{where}.{name}") for name, part in layer.parts.items()]
        terms = [g.last(each) for each in ([x, *terms][-2:])]
        y = replace(terms[0], name=g.node("Add", terms[0].name, terms[1].name))
        return g.on(y, "Relu") if layer.activation else y
    rule = _RULES.get(type(layer))
    if rule is None:
        raise ValueError(f"{where} must be a layer that ONNX has, got {layer!r}")
    return rule(g, layer, x)


def _activated(g: _Graph, layer: Any, x: _Value) -> _Value:
    return g.on(x, "Relu") if layer.activation else x


# ---- Products ---------------------------------------------------------------------------------------------------


def _product(g: _Graph, layer: Any, x: _Value, weight: Array, bias: Array) -> _Value:
    """A dense layer or a convolution."""
    shape = layer.output_shape(x.shape)
    if isinstance(layer, nn.Dense):
        name = g.node("Gemm", g.last(x).name, g.constant(weight), g.constant(bias))
        return _activated(g, layer, _Value(name, shape))
    x = g.channels_first(x)
    pair = (lambda value: [value]) if isinstance(layer, nn.Conv1D) else list
    options = {
        "strides": pair(layer.stride),
        "dilations": pair(layer.dilation),
        "pads": pair(layer.padding) * 2,
        "kernel_shape": pair(layer.size),
    }
    kind = "Conv"
    if isinstance(layer, nn.Conv2DTranspose):
        kind, options["output_padding"] = "ConvTranspose", list(layer.output_padding)
    else:
        options["group"] = layer.groups
    theirs = np.moveaxis(weight, (-1, -2), (0, 1))
    name = g.node(kind, x.name, g.constant(theirs), g.constant(bias), **options)
    return _activated(g, layer, _Value(name, shape, first=True))


@_rule(nn.Dense, nn.Conv1D, nn.Conv2D, nn.Conv2DTranspose)
def _affine(g: _Graph, layer: Any, x: _Value) -> _Value:
    return _product(g, layer, x, layer.params["weight"], layer.params["bias"])


@_rule(nn.WeightNorm)
def _weight_norm(g: _Graph, layer: Any, x: _Value) -> _Value:
    weight, _ = F.weight_norm_forward(layer.params["direction"], layer.params["gain"])
    return _product(g, layer.layer, x, weight, layer.params["layer.bias"])


@_rule(nn.Embedding)
def _embedding(g: _Graph, layer: Any, x: _Value) -> _Value:
    entry = g.node("Cast", g.last(x).name, to=onnx.TensorProto.INT64)
    name = g.node("Gather", g.constant(layer.params["weight"]), entry, axis=0)
    return _Value(name, layer.output_shape(x.shape))


# ---- Pooling and shapes -----------------------------------------------------------------------------------------


@_rule(nn.MaxPool2D, nn.AveragePool2D)
def _pool(g: _Graph, layer: Any, x: _Value) -> _Value:
    options = {"kernel_shape": layer.size, "strides": layer.stride, "pads": [*layer.padding] * 2}
    average = isinstance(layer, nn.AveragePool2D)
    if average:
        options["count_include_pad"] = int(layer.count_padding)
    y = g.on(g.channels_first(x), "AveragePool" if average else "MaxPool", **options)
    return replace(y, shape=layer.output_shape(x.shape))


@_rule(nn.GlobalMaxPool2D, nn.GlobalAveragePool2D)
def _whole_pool(g: _Graph, layer: Any, x: _Value) -> _Value:
    kind = "GlobalMaxPool" if isinstance(layer, nn.GlobalMaxPool2D) else "GlobalAveragePool"
    return _Value(g.node("Flatten", g.node(kind, g.channels_first(x).name), axis=1), x.shape[-1:])


@_rule(nn.Flatten, nn.Reshape)
def _shape(g: _Graph, layer: Any, x: _Value) -> _Value:
    return g.reshape(x, layer.output_shape(x.shape))


@_rule(nn.ZeroPadding2D)
def _zero_padding(g: _Graph, layer: Any, x: _Value) -> _Value:
    x, ((top, bottom), (left, right)) = g.last(x), layer.padding
    pads = g.constant([0, top, left, 0, 0, bottom, right, 0], np.int64)
    return replace(g.on(x, "Pad", pads), shape=layer.output_shape(x.shape))


# ---- Element by element -----------------------------------------------------------------------------------------


@_rule(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU, nn.ELU, nn.GELU)
def _activation(g: _Graph, layer: Any, x: _Value) -> _Value:
    kind = {"ReLU": "Relu", "LeakyReLU": "LeakyRelu", "ELU": "Elu", "GELU": "Gelu"}.get(type(layer).__name__)
    options: dict[str, Any] = {}
    if isinstance(layer, nn.LeakyReLU):
        options["alpha"] = layer.slope
    elif isinstance(layer, nn.ELU):
        options["alpha"] = layer.alpha
    elif isinstance(layer, nn.GELU):
        options["approximate"] = layer.approximation or "none"
    return g.on(x, kind or type(layer).__name__, **options)


@_rule(nn.SiLU)
def _silu(g: _Graph, layer: Any, x: _Value) -> _Value:
    return g.on(x, "Mul", g.node("Sigmoid", x.name))


@_rule(nn.Softmax)
def _softmax(g: _Graph, layer: Any, x: _Value) -> _Value:
    return g.on(g.last(x), "Softmax", axis=-1)


@_rule(nn.PReLU)
def _prelu(g: _Graph, layer: Any, x: _Value) -> _Value:
    return g.by_channel(x, "PRelu", layer.params["slope"])


@_rule(nn.Dropout, nn.SpatialDropout)
def _identity(g: _Graph, layer: Any, x: _Value) -> _Value:
    return x


@_rule(nn.VanillaDropout)
def _vanilla_dropout(g: _Graph, layer: Any, x: _Value) -> _Value:
    return g.on(x, "Mul", g.constant(F.kept_share(layer.p, layer.p_is)))


# ---- Norms and preprocessing ------------------------------------------------------------------------------------


@_rule(nn.BatchNorm)
def _batch_norm(g: _Graph, layer: Any, x: _Value) -> _Value:
    arrays = (*layer.params.values(), layer.state["running_mean"], layer.state["running_var"])
    return g.on(g.channels_first(x), "BatchNormalization", *map(g.constant, arrays), epsilon=layer.eps)


@_rule(nn.LayerNorm)
def _layer_norm(g: _Graph, layer: Any, x: _Value) -> _Value:
    arrays = map(g.constant, (layer.params["scale"], layer.params["shift"]))
    return g.on(g.last(x), "LayerNormalization", *arrays, axis=-layer.axes, epsilon=layer.eps)


@_rule(nn.GroupNorm, nn.InstanceNorm)
def _group_norm(g: _Graph, layer: Any, x: _Value) -> _Value:
    groups = layer.statistics(x.shape)
    shape, x = x.shape, g.channels_first(x) if len(x.shape) > 1 else g.reshape(x, (*x.shape, 1))
    arrays = map(g.constant, (layer.params["scale"], layer.params["shift"]))
    y = g.on(x, "GroupNormalization", *arrays, num_groups=groups, epsilon=layer.eps)
    return y if len(shape) > 1 else g.reshape(y, shape)


@_rule(nn.RMSNorm)
def _rms_norm(g: _Graph, layer: Any, x: _Value) -> _Value:
    x = g.last(x)
    mean = g.node("ReduceMean", g.node("Mul", x.name, x.name), g.constant([-1], np.int64))
    root = g.node("Sqrt", g.node("Add", mean, g.constant(layer.eps)))
    return g.on(g.on(x, "Div", root), "Mul", g.constant(layer.params["scale"]))


@_rule(nn.DecorrelatedBatchNorm)
def _decorrelated(g: _Graph, layer: Any, x: _Value) -> _Value:
    whitening = layer.state["running_whitening"]
    size, channels = whitening.shape[1], x.shape[-1]
    weight = np.zeros((channels, channels), g.dtype)
    for i, block in enumerate(whitening):
        own = slice(i * size, (i + 1) * size)
        weight[own, own] = block
    x = g.on(g.on(g.last(x), "Sub", g.constant(layer.state["running_mean"])), "MatMul", g.constant(weight))
    return g.on(g.on(x, "Mul", g.constant(layer.params["scale"])), "Add", g.constant(layer.params["shift"]))


@_rule(nn.Center, nn.Standardize)
def _moments(g: _Graph, layer: Any, x: _Value) -> _Value:
    x, standardize = g.last(x), isinstance(layer, nn.Standardize)
    if layer.per == "image":
        if standardize:
            eps = layer.options_of_images((1, *x.shape))["eps"]
            ones, zeros = g.constant(np.ones(x.shape)), g.constant(np.zeros(x.shape))
            return g.on(x, "LayerNormalization", ones, zeros, axis=1, epsilon=eps)
        axes = g.constant([*range(1, len(x.shape) + 1)], np.int64)
        return g.on(x, "Sub", g.node("ReduceMean", x.name, axes))
    shape = x.shape[-1:] if layer.per == "channel" else x.shape
    x = g.on(x, "Sub", g.constant(layer.state["mean"].reshape(shape)))
    if standardize:
        deviation = np.sqrt(layer.state["var"].astype(np.float64) + layer.eps).reshape(shape)
        x = g.on(x, "Div", g.constant(deviation))
    return x


@_rule(nn.Whiten)
def _whiten(g: _Graph, layer: Any, x: _Value) -> _Value:
    shape, x = layer.output_shape(x.shape), g.reshape(x, (math.prod(x.shape),))
    y = g.on(g.on(x, "Sub", g.constant(layer.state["mean"])), "MatMul", g.constant(layer.state["weight"]))
    return g.reshape(y, shape) if len(shape) > 1 else replace(y, shape=shape)


# ---- Export -----------------------------------------------------------------------------------------------------


def export(model: nn.Sequential, path: str | os.PathLike[str] | None = None) -> Any:
    """A model in inference as ONNX, for other programs to run.

    Parameters
    ----------
    model : Sequential
        Of layers that ONNX has, or has the parts of: all of `fastopt.nn`, and none of your own.
    path : path, optional
        A file to write, which is replaced at once or not at all.

    Returns
    -------
    onnx.ModelProto
        With one input ``x`` (n, …) and one output ``y``, of the model's type and shapes, for any n. Its operators are
        those of opset 21.

    Raises
    ------
    TypeError, ValueError
        Where `model` is none, was not built, or has a layer that ONNX has not, which is named.
    OSError
        Where the file cannot be written.

    Examples
    --------
    >>> import fastopt.onnx
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(3), nn.ReLU()], (4,))
    >>> [node.op_type for node in fastopt.onnx.export(model).graph.node]
    ['Gemm', 'Relu', 'Identity']
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    target, shape = None if path is None else os.fspath(path), model.check_built()
    g = _Graph(model.dtype)
    y = g.last(_write(g, model, _Value("x", shape), ""))
    g.nodes.append(onnx.helper.make_node("Identity", [y.name], ["y"], name="output"))
    kind = onnx.helper.np_dtype_to_tensor_dtype(model.dtype)
    given, made = (
        onnx.helper.make_tensor_value_info(name, kind, ["n", *lengths])
        for name, lengths in (("x", shape), ("y", model.shapes[-1]))
    )
    graph = onnx.helper.make_graph(g.nodes, "fastopt", [given], [made], g.constants)
    proto = onnx.helper.make_model(
        graph,
        producer_name="fastopt",
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(proto)
    if target is not None:
        files.replace(target, lambda file: file.write(proto.SerializeToString()))
    return proto
