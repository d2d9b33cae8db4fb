"""Contests of layer kernels: `fastopt.cases` says how each is called, and on what sizes; here are its rivals."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import cases, inplace, reference
from fastopt import functional as F  # noqa: N812
from fastopt.bench.contests import APART, COPY, DIRECT, Call, Contest, Shape
from fastopt.checks import Array

IN_PLACE, TEXTBOOK = "NumPy in place", "NumPy textbook"
#: What a rival does, and where it leaves its result, if it does not return it.
Rival = tuple[Call, Array | None]


@dataclass(frozen=True)
class _Layer:
    """What a contest has that a case has not."""

    case: str
    #: Makes the rivals by name, given all arguments by theirs.
    rivals: Callable[..., dict[str, Rival]]
    #: The arguments that differ from those of the case; None leaves one out.
    how: dict[str, Any]
    #: The arrays that rivals of other libraries read, by name.
    reads: Callable[..., dict[str, Array]] | None
    #: Whether a copy is a yardstick, memory being all that binds.
    copied: bool


#: The contests by name.
LAYERS: dict[str, _Layer] = {}


def _contest(
    name: str, case: str = "", *, reads: Callable[..., dict[str, Array]] | None = None, copied: bool = False, **how: Any
) -> Callable[[Callable[..., dict[str, Rival]]], Callable[..., dict[str, Rival]]]:
    def enter(rivals: Callable[..., dict[str, Rival]]) -> Callable[..., dict[str, Rival]]:
        LAYERS[name] = _Layer(case or name, rivals, how, reads, copied)
        return rivals

    return enter


def layer_contest(name: str, size: cases.Size) -> Contest:
    """A layer kernel on arrays of a size, which is one of its case's."""
    layer = LAYERS[name]
    case = cases.LAYERS[layer.case]
    arguments = {key: value for key, value in (case.arguments(cases.normal(), size) | layer.how).items()
                 if value is not None}  # fmt: skip
    results = case.run(cases.map_arrays(np.copy, arguments))
    places = {key: place for key, place in case.places(results).items() if key in ("out", "chosen")}
    arrays = [*cases.arrays_in(arguments), *results]
    read = layer.reads(**arguments) if layer.reads else {
        key: value for key, value in arguments.items() if isinstance(value, np.ndarray) and key not in case.updates
    }  # fmt: skip
    contest = Contest(name, title(name, size), sum(array.nbytes for array in arrays), read)
    contest.axis = arguments.get("axis", getattr(arguments.get("cache"), "axis", 1))
    contest.contenders["fastopt"] = functools.partial(case.function, **arguments, **places)
    for rival, (call, result) in layer.rivals(**arguments).items():
        contest.contenders[rival] = call
        if result is not None:
            contest.results[rival] = result
    if case.expected is not None and (layer.rivals is _nothing or case.expected.__module__ == reference.__name__):
        contest.contenders.setdefault(TEXTBOOK, functools.partial(case.expected, **arguments))
    if layer.copied:
        first = next(iter(read.values()))
        contest.contenders[COPY] = functools.partial(np.copyto, np.empty_like(first), first)
    if "p" in arguments and "seed" in arguments:
        contest.undropped = _undropped(**arguments)
    return contest


def sizes(name: str) -> list[cases.Size]:
    """Those on which a kernel is measured."""
    return list(cases.LAYERS[LAYERS[name].case].bench)


def title(name: str, size: cases.Size) -> str:
    """How a contest calls its size: by the shape of an array, or the lengths of several."""
    shape = size[0] if isinstance(size[0], tuple) else size
    text = f"{shape[0]:,}" if len(shape) == 1 else str(shape)
    return f"{text} channels last" if name in ("batch_norm_forward", "batch_norm_backward") and size[1] == -1 else text


# ---- Element by element -------------------------------------------------------------------------------------


def _nothing(**arguments: Any) -> dict[str, Rival]:
    """Of those whose only rival is the textbook."""
    return {}


def _into(function: Callable[..., Any], *arrays: Array) -> Rival:
    """A function that leaves its result in its last argument, which is like its first."""
    out = np.empty_like(arrays[0])
    return functools.partial(function, *arrays, out), out


def _undropped(x: Array, p: float, bias: Array | None = None, **_: Any) -> Array:
    return (x if bias is None else np.maximum(x + bias, 0)) / (1 - p)


@_contest("relu_forward", copied=True)
def _relu_forward(x: Array) -> dict[str, Rival]:
    return {IN_PLACE: _into(inplace.relu_forward, x)}


@_contest("relu_backward", copied=True)
def _relu_backward(dy: Array, y: Array) -> dict[str, Rival]:
    return {IN_PLACE: _into(inplace.relu_backward, dy, y)}


_contest("activation_backward", reads=lambda dy, seen, kind: {"dy": dy, "x": seen})(_nothing)


@_contest("dropout", copied=True)
def _dropout(x: Array, p: float, **_: Any) -> dict[str, Rival]:
    generator, y = np.random.Generator(np.random.SFC64(0)), np.empty_like(x)
    return {
        IN_PLACE: (lambda: inplace.dropout(x, p, generator, y), y),
        TEXTBOOK: (lambda: np.where(generator.random(x.size) >= p, x / (1 - p), 0), None),
    }


def _kept(dy: Array, mask: Array) -> Array:
    return np.unpackbits(mask, count=dy.size, bitorder="little").view(np.bool_)


@_contest("dropout_backward", copied=True, reads=lambda dy, mask, p: {"dy": dy, "mask": _kept(dy, mask)})
def _dropout_backward(dy: Array, mask: Array, p: float) -> dict[str, Rival]:
    kept, dx = _kept(dy, mask), np.empty_like(dy)
    return {
        IN_PLACE: (lambda: inplace.dropout_backward(dy, kept, p, dx), dx),
        TEXTBOOK: (lambda: reference.dropout_backward(dy, kept, p), None),
    }


# ---- Rows ---------------------------------------------------------------------------------------------------


@_contest("bias_forward")
def _bias_forward(x: Array, bias: Array) -> dict[str, Rival]:
    return {IN_PLACE: _into(np.add, x, bias)}


@_contest("bias_backward")
def _bias_backward(dy: Array) -> dict[str, Rival]:
    dbias = np.empty_like(dy[0])
    return {IN_PLACE: (lambda: np.sum(dy, axis=0, out=dbias), dbias)}


@_contest("square_sums")
def _square_sums(x: Array) -> dict[str, Rival]:
    return {IN_PLACE: (lambda: (np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->j", x, x)), None)}


@_contest("bias_relu_forward")
def _bias_relu_forward(x: Array, bias: Array) -> dict[str, Rival]:
    return {IN_PLACE: _into(inplace.bias_relu_forward, x, bias)}


@_contest("bias_relu_backward")
def _bias_relu_backward(dy: Array, y: Array) -> dict[str, Rival]:
    return {IN_PLACE: _into(inplace.bias_relu_backward, dy, y)}


@_contest("bias_relu_dropout_forward")
def _bias_relu_dropout_forward(x: Array, bias: Array, p: float, **_: Any) -> dict[str, Rival]:
    generator, y = np.random.Generator(np.random.SFC64(0)), np.empty_like(x)

    def in_place() -> None:
        inplace.bias_relu_forward(x, bias, y)
        inplace.dropout(y, p, generator, y)

    textbook = lambda: np.where(generator.random(x.shape) >= p, np.maximum(x + bias, 0) / (1 - p), 0)  # noqa: E731
    return {IN_PLACE: (in_place, y), TEXTBOOK: (textbook, None)}


@_contest("softmax_forward", log_sum=None)
def _softmax_forward(x: Array) -> dict[str, Rival]:
    return {TEXTBOOK: (lambda: reference.softmax_forward(x), None)}


@_contest("softmax_cross_entropy", losses=None, reads=lambda logits, labels: {"x": logits, "labels": labels})
def _softmax_cross_entropy(logits: Array, labels: Array) -> dict[str, Rival]:
    return {
        IN_PLACE: _into(inplace.softmax_cross_entropy, logits, labels),
        TEXTBOOK: (lambda: reference.softmax_cross_entropy(logits, labels), None),
    }


@_contest("embedding_backward", reads=lambda dy, entries, count: {"dy": dy})
def _embedding_backward(dy: Array, entries: Array, count: int) -> dict[str, Rival]:
    table = np.empty((count, dy.shape[1]), dy.dtype)

    def add_at() -> Array:
        table.fill(0)
        np.add.at(table, entries, dy)
        return table

    return {IN_PLACE: (add_at, None)}


# ---- Products -----------------------------------------------------------------------------------------------


@_contest("dense_forward", relu=True)
def _dense_forward(x: Array, weight: Array, bias: Array, relu: bool) -> dict[str, Rival]:
    y = np.empty((len(x), len(bias)), x.dtype)

    def product() -> None:
        np.matmul(x, weight, out=y)
        inplace.bias_relu_forward(y, bias, y)

    return {IN_PLACE: (product, y)}


@_contest("dense_input_grad")
def _dense_input_grad(dy: Array, weight: Array) -> dict[str, Rival]:
    dx = np.empty((len(dy), len(weight)), dy.dtype)
    return {IN_PLACE: (lambda: np.matmul(dy, weight.T, out=dx), dx)}


@_contest("dense_weight_grad", dbias=None)
def _dense_weight_grad(x: Array, dy: Array) -> dict[str, Rival]:
    dweight = np.empty((x.shape[1], dy.shape[1]), x.dtype)
    return {IN_PLACE: (lambda: np.matmul(x.T, dy, out=dweight), dweight)}


# ---- Norms --------------------------------------------------------------------------------------------------


def _channels_second(array: Array, axis: int) -> Array:
    """The same memory with channels second: where they are last, all else is rows."""
    return array if axis == 1 else array.reshape(-1, array.shape[axis])


def _affine(x: Array, scale: Array, shift: Array, **_: Any) -> dict[str, Array]:
    return {"x": x, "scale": scale, "shift": shift}


@_contest("batch_norm_forward", copied=True, reads=_affine)
def _batch_norm_forward(x: Array, scale: Array, shift: Array, axis: int, **running: Array) -> dict[str, Rival]:
    y = np.empty_like(x)
    second, result = (_channels_second(a, axis) for a in (x, y))
    x3, y3 = (a.reshape(len(a), len(scale), -1) for a in (second, result))
    own = [array.copy() for array in running.values()]
    return {
        IN_PLACE: (lambda: inplace.batch_norm_forward(x3, scale, shift, y3), y),
        TEXTBOOK: (lambda: reference.batch_norm_forward(second, scale, shift, *own, axis=1)[0].reshape(x.shape), None),
    }


@_contest("batch_norm_backward", copied=True, reads=lambda dy, cache: {"dy": dy, "x": cache.x, "scale": cache.scale})
def _batch_norm_backward(dy: Array, cache: F.BatchNormCache) -> dict[str, Rival]:
    assert cache.scale is not None
    scale, axis, dx = cache.scale, 1 if cache.axis == 1 else -1, np.empty_like(dy)
    second, second_dy, result = (_channels_second(a, axis) for a in (cache.x, dy, dx))
    mean, inv_std = (a.reshape(1, -1, 1).astype(np.float32) for a in (cache.mean, cache.inv_std))
    _, textbook, _, _ = reference.batch_norm_forward(second, scale, axis=1)
    x3, dy3, dx3 = (a.reshape(len(a), len(scale), -1) for a in (second, second_dy, result))
    return {
        IN_PLACE: (lambda: inplace.batch_norm_backward(dy3, x3, scale, mean, inv_std, dx3), dx),
        TEXTBOOK: (lambda: reference.batch_norm_backward(second_dy, textbook), None),
    }


@_contest("group_norm_forward", reads=_affine)
def _group_norm_forward(x: Array, groups: int, scale: Array, shift: Array) -> dict[str, Rival]:
    """Layer norm of rows, and images in four groups."""
    return {TEXTBOOK: (lambda: reference.group_norm_forward(x, groups, scale, shift), None)}


@_contest("group_norm_backward", parts=None, reads=lambda dy, cache: {"dy": dy, "x": cache.x.reshape(dy.shape),
                                                                       "scale": cache.scale})  # fmt: skip
def _group_norm_backward(dy: Array, cache: F.GroupNormCache) -> dict[str, Rival]:
    _, textbook = reference.group_norm_forward(cache.x.reshape(dy.shape), cache.groups, cache.scale)
    return {TEXTBOOK: (lambda: reference.group_norm_backward(dy, textbook), None)}


@_contest("rms_norm_backward", reads=lambda dy, cache: {"dy": dy, "x": cache.x, "scale": cache.scale})
def _rms_norm_backward(dy: Array, cache: F.RMSNormCache) -> dict[str, Rival]:
    _, textbook = reference.rms_norm_forward(cache.x, cache.scale)
    return {TEXTBOOK: (lambda: reference.rms_norm_backward(dy, textbook), None)}


@_contest("weight_norm_backward", reads=lambda dweight, cache: {"dweight": dweight, "direction": cache.direction,
                                                                "gain": cache.gain})  # fmt: skip
def _weight_norm_backward(dweight: Array, cache: F.WeightNormCache) -> dict[str, Rival]:
    return {TEXTBOOK: (lambda: reference.weight_norm_backward(dweight, cache.direction, cache.gain), None)}


@_contest("batch_norm_max_pool_forward", "batch_norm_forward max_pool", relu=True, reads=_affine)
def _batch_norm_max_pool_forward(
    x: Array, scale: Array, shift: Array, max_pool: tuple[int, int], axis: int, relu: bool, **running: Array
) -> dict[str, Rival]:
    """With ReLU between them; `APART` are the kernels of each."""
    normal, own = np.empty_like(x), [array.copy() for array in running.values()]
    y, winner = F.max_pool_forward(x, max_pool)

    def apart() -> Array:
        F.batch_norm_forward(x, scale, shift, *own, axis=axis, relu=relu, out=normal)
        return F.max_pool_forward(normal, max_pool, out=y, winner=winner)[0]

    def textbook() -> Array:
        normal = reference.batch_norm_forward(x, scale, shift, axis=axis, relu=relu)[0]
        return reference.max_pool_forward(normal, max_pool, max_pool)[0]

    return {APART: (apart, None), TEXTBOOK: (textbook, None)}


@_contest("batch_norm_max_pool_backward", "batch_norm_backward max_pool",
          reads=lambda dy, cache: {"dy": dy, **_affine(cache.x, cache.scale, cache.shift)})  # fmt: skip
def _batch_norm_max_pool_backward(dy: Array, cache: F.BatchNormCache) -> dict[str, Rival]:
    x, scale, shift, size = cache.x, cache.scale, cache.shift, cache.max_pool
    assert size is not None
    normal, own = F.batch_norm_forward(x, scale, shift, axis=-1, relu=True)
    assert own is not None
    winner = F.max_pool_forward(normal, size)[1]
    by_reference = reference.batch_norm_forward(x, scale, shift, axis=-1, relu=True)[1]
    dx, unpooled = np.empty_like(x), np.empty_like(x)

    def apart() -> tuple[Array, Array, Array]:
        F.max_pool_backward(dy, winner, x.shape, size, out=unpooled)
        return F.batch_norm_backward(unpooled, own, out=dx)

    def textbook() -> tuple[Array, Array, Array]:
        unpooled = reference.max_pool_backward(dy, winner, x.shape, size, size)
        return reference.batch_norm_backward(unpooled, by_reference)

    return {APART: (apart, None), TEXTBOOK: (textbook, None)}


# ---- Images -------------------------------------------------------------------------------------------------


@_contest("max_pool_forward", reads=lambda x, **_: {"x": x})
def _max_pool_forward(x: Array, **_: Any) -> dict[str, Rival]:
    y = F.max_pool_forward(x, 2)[0]
    return {IN_PLACE: (lambda: inplace.max_pool_forward(x, y), y)}


def _images_of(winner: Array, shape: Shape) -> Array:
    """Images whose windows of 2 × 2 have these maxima."""
    n, h, w, c = winner.shape
    places = np.arange(4).reshape(1, 1, 2, 1, 2, 1) == winner[:, :, None, :, None]
    x = np.where(places, 1, cases.normal()(n, h, 2, w, 2, c).clip(-1, 0))
    return x.reshape(shape).astype(np.float32)


@_contest("max_pool_backward", reads=lambda dy, winner, shape, **_: {"dy": dy, "x": _images_of(winner, shape)})
def _max_pool_backward(dy: Array, winner: Array, shape: Shape, **_: Any) -> dict[str, Rival]:
    x = _images_of(winner, shape)
    y, dx = F.max_pool_forward(x, 2)[0], np.empty_like(x)
    return {IN_PLACE: (lambda: inplace.max_pool_backward(dy, x, y, dx), dx)}


def _padded(shape: Iterable[int]) -> Array:
    n, h, w, c = shape
    return np.zeros((n, h + 2, w + 2, c), np.float32)


@_contest("conv2d", "conv2d winograd", bias=None, packed=None)
def _conv2d(x: Array, weight: Array, **how: Any) -> dict[str, Rival]:
    """A convolution by as many filters of 3 × 3 as there are channels, by Winograd and direct."""
    y, c = np.empty((2, *x.shape), x.dtype), x.shape[3]
    padded, columns = _padded(x.shape), np.empty((*x.shape[:3], 3, 3, c), x.dtype)
    flat = columns.reshape(-1, 9 * c), weight.reshape(-1, c), y[1].reshape(-1, c)

    def product() -> None:
        inplace.im2col(x, padded, columns)
        np.matmul(flat[0], flat[1], out=flat[2])

    direct = functools.partial(F.conv2d, x, weight, **how | {"winograd": False}, out=y[0])
    return {DIRECT: (direct, None), IN_PLACE: (product, y[1])}


@_contest("conv2d_weight_grad", "conv2d_weight_grad winograd", dbias=None, sums=None)
def _conv2d_weight_grad(x: Array, dy: Array, **how: Any) -> dict[str, Rival]:
    c = x.shape[3]
    padded, columns = _padded(x.shape), np.empty((*x.shape[:3], 3, 3, c), x.dtype)
    dweight = np.empty((2, 3, 3, c, c), x.dtype)
    flat = columns.reshape(-1, 9 * c).T, dy.reshape(-1, c), dweight[1].reshape(-1, c)

    def product() -> None:
        inplace.im2col(x, padded, columns)
        np.matmul(flat[0], flat[1], out=flat[2])

    direct = functools.partial(F.conv2d_weight_grad, x, dy, **how | {"winograd": False}, out=dweight[0])
    return {DIRECT: (direct, None), IN_PLACE: (product, dweight[1])}


@_contest("im2col")
def _im2col(x: Array, **how: Any) -> dict[str, Rival]:
    padded, columns = _padded(x.shape), np.empty((*x.shape[:3], 3, 3, x.shape[3]), x.dtype)
    textbook = lambda: np.ascontiguousarray(reference.im2col(x, **how))  # noqa: E731
    return {IN_PLACE: (lambda: inplace.im2col(x, padded, columns), columns), TEXTBOOK: (textbook, None)}


@_contest("col2im")
def _col2im(columns: Array, shape: Shape, **_: Any) -> dict[str, Rival]:
    padded = _padded(shape)
    return {IN_PLACE: (lambda: inplace.col2im(columns, padded), None)}


# ---- Others, whose only rival is the textbook ---------------------------------------------------------------

_covered = {layer.case for layer in LAYERS.values()}
for _name, _case in cases.LAYERS.items():
    if _case.bench and _name not in _covered and _name not in LAYERS:
        _contest(_name)(_nothing)
