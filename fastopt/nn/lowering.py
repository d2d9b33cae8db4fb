"""Lowerings: how a layer becomes calls of kernels, in a program.

A *lowering* writes the forward calls of a layer, and of those after it that it fuses, on buffers that have no memory
yet, and returns a function that writes the backward calls. Fusion is here, and only here::

    @lowering(nn.ReLU)
    def _relu(p, at, layer, followers, x):
        y = p.like(x)
        p.call(F.relu_forward, x, out=y, over=x)        # in place, if nothing reads x any more

        def backward(dy, need):
            dx = p.like(x)
            p.call(F.relu_backward, dy, y, out=dx, over=dy)
            return dx

        return y, backward

A layer without a lowering, such as one of the user's, is called by Python, in its place in the list.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastopt import environment
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.kernel import kernel
from fastopt.mpi import Group
from fastopt.nn import (
    activations,
    convolutions,
    dropouts,
    embedding,
    layers,
    norms,
    pooling,
    preprocessing,
    residual,
    shapes,
)
from fastopt.nn.layers import Layer
from fastopt.nn.stack import Stack

# ---- Buffers ---------------------------------------------------------------------------------------------------


class Buffer:
    """An array that has no memory yet; a view shares that of its root.

    Attributes
    ----------
    items : list of int
        The numbers of the items of the program that touch the root.
    over : Buffer or None
        The one in whose memory it may be, if nothing reads that any more.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, root: Buffer | None = None, start: int = 0) -> None:
        self.shape, self.dtype, self.start = tuple(shape), np.dtype(dtype), start
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._root = root
        self.items: list[int] = []
        self.over: Buffer | None = None
        self.memory: Array | None = None  # of a root

    @property
    def root(self) -> Buffer:
        """The buffer that this is a view of, or itself; no reference to itself, which would keep its memory."""
        return self if self._root is None else self._root

    def reshape(self, *shape: int) -> Buffer:
        """A view of another shape, one of whose lengths may be -1."""
        known = math.prod(length for length in shape if length >= 0)
        whole = math.prod(self.shape)
        return Buffer([whole // known if length < 0 else length for length in shape], self.dtype, self.root, self.start)

    def __getitem__(self, place: int) -> Buffer:
        """A view of one entry along the first axis."""
        inner = self.shape[1:]
        step = math.prod(inner) * self.dtype.itemsize
        return Buffer(inner, self.dtype, self.root, self.start + place * step)

    @property
    def array(self) -> Array:
        memory = self.root.memory
        assert memory is not None
        return memory[self.start : self.start + self.nbytes].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Result:
    """What a call will have returned when it is recorded: a cache, of which a later call reads some buffers."""

    item: Item
    place: int
    reads: tuple[Any, ...]


@dataclass(frozen=True)
class Place:
    """Where a layer stands in the model.

    Attributes
    ----------
    prefix : str
        What the names of its parameters begin with.
    first, each : int
        The counter of its calls is ``first + each · pass``.
    """

    prefix: str = ""
    first: int = 0
    each: int = 1

    def part(self, key: str, of: int, number: int) -> Place:
        """The place of a part of the layer, whose counter is `of` times that of the layer, plus `number`."""
        return Place(f"{self.prefix}{key}.", of * self.first + number, of * self.each)


@dataclass(eq=False)
class Item:
    """One entry of the list."""

    kind: str  # "call", "python", "gather", "copy", "finite", "zero", "scale" or "step"
    function: Callable[..., Any] | None = None
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    place: Place | None = None  # of a call with a counter
    moving: tuple[Array, int] | None = None  # an array that moves on from batch to batch, and by how many bytes
    batch: bool = False  # whether a call by Python takes the number of the batch
    label: str = ""  # of a call by Python
    when: str = ""  # the batches of a step that it is for: "first", "later" or "last"; each where empty
    buffers: list[Buffer] = field(default_factory=list)  # among its arguments
    made: Any = None  # what a call returned


def buffers_in(value: Any, found: list[Buffer] | None = None) -> list[Buffer]:
    """The buffers in arguments."""
    found = [] if found is None else found
    kind = type(value)
    if kind is Buffer:
        found.append(value)
    elif kind is dict:
        for each in value.values():
            buffers_in(each, found)
    elif kind is Result:
        buffers_in(value.reads, found)
    elif isinstance(value, (tuple, list)):  # among them caches, which are named tuples
        for each in value:
            buffers_in(each, found)
    return found


def resolved(value: Any) -> Any:
    """Arguments with the arrays of buffers."""
    if isinstance(value, Buffer):
        return value.array
    if isinstance(value, Result):
        return value.item.made[value.place]
    if isinstance(value, tuple):
        return tuple(map(resolved, value))
    if isinstance(value, dict):
        return {name: resolved(each) for name, each in value.items()}
    return value


@dataclass(frozen=True, eq=False)
class Shared:
    """The part of a batch that a program is for, where other ranks take the rest: see `fastopt.nn.ranks`.

    Attributes
    ----------
    group : Group
    first, count : int
        The number of its first row, and how many rows count: all, or none of one.
    grads : dict of ndarray
        Where gradients of parameters are written.
    """

    group: Group
    first: int
    count: int
    grads: Mapping[str, Array]


# ---- Writing ---------------------------------------------------------------------------------------------------


class Writer:
    """What lowerings write to: the list of a program that is being made.

    Attributes
    ----------
    n : int
        The size of a batch.
    training : bool
    dtype : numpy.dtype
        Of the model.
    shared : Shared or None
        Which part of a batch it is, if it is one.
    """

    def __init__(
        self, n: int, dtype: np.dtype[Any], grads: Mapping[str, Array] | None, shared: Shared | None = None
    ) -> None:
        self.n, self.dtype, self.shared = n, dtype, shared
        self.training = grads is not None
        self.grads = grads or {}
        self.items: list[Item] = []
        self.moving: list[tuple[Array, int]] = []  # arrays of results that move on from batch to batch
        self.computed: dict[str, Buffer] = {}  # gradients of what is no parameter
        self.weights: dict[int, Buffer] = {}  # by the identity of a layer, in the place of its parameter
        self.written: set[str] = set()  # gradients, …
        self._again: list[tuple[Array, Buffer]] = []  # … and those of parameters that are in the model twice
        self.watched: list[Any] = []  # dicts of which the list is made, …
        self.stacks: list[tuple[Stack, list[Layer]]] = []  # … and stacks with their layers

    def empty(self, shape: Sequence[int], dtype: Any = None) -> Buffer:
        """A new buffer; of the model's type, where no other is given."""
        return Buffer(shape, dtype or self.dtype)

    def like(self, x: Buffer) -> Buffer:
        """A new buffer of the same shape and type."""
        return Buffer(x.shape, x.dtype)

    def call(self, function: Callable[..., Any], *arguments: Any, over: Buffer | None = None, **options: Any) -> Item:
        """Add the kernel calls of a function.

        Parameters
        ----------
        function : callable
            Calls kernels, and does not look into arrays.
        *arguments, **options
            Its own. Where one of them is a `counter`, it is the `Place` whose counter is meant.
        over : Buffer, optional
            Where ``out`` may be, if nothing reads that any more.
        """
        if over is not None and sum(buffer.root is over.root for buffer in buffers_in([arguments, options])) == 1:
            options["out"].root.over = over.root
        place = options.get("counter")
        moving = self._moving((*arguments, *options.values()))
        return self._add(Item("call", function, arguments, options, place, moving))

    def python(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        place: Place | None = None,
        batch: bool = False,
        label: str = "",
        **options: Any,
    ) -> None:
        """Add a call that Python makes in each pass: where a place is given, with its counter as the last argument, or
        else, if wanted, with the number of the batch. The label is what lists show."""
        label = label or function.__name__
        self._add(Item("python", function, arguments, options, place, batch=batch, label=label))

    def add(self, kind: str, *arguments: Any) -> Item:
        """Add something else."""
        return self._add(Item(kind, arguments=arguments, moving=self._moving(arguments)))

    def _moving(self, given: Sequence[Any]) -> tuple[Array, int] | None:
        return next((each for each in self.moving for array in given if array is each[0]), None)

    def _add(self, item: Item) -> Item:
        item.buffers = buffers_in([item.arguments, item.options])
        for buffer in item.buffers:
            buffer.root.items.append(len(self.items))
        self.items.append(item)
        return item

    def first(self, x: Buffer) -> dict[str, int]:
        """The option of dropout that tells the number of the first element of x in the whole batch."""
        return {} if self.shared is None else {"first": math.prod(x.shape) // self.n * self.shared.first}

    def weight(self, layer: Layer) -> Any:
        """The weight of a layer: its parameter, or what is computed in each pass."""
        return self.weights.get(id(layer), layer.params["weight"])

    def watch(self, layer: Layer) -> None:
        """The list depends on the options and arrays of a layer."""
        self.watched += [vars(layer), layer.params, layer.state, layer.params.marks, layer.parts]

    # ---- Gradients of parameters -----------------------------------------------------------------------------

    def grad(self, at: Place, name: str, param: Array) -> Any:
        """Where to write the gradient of a layer's parameter."""
        full = at.prefix + name
        if full not in self.grads:  # of a weight that is computed from others
            return self.computed.setdefault(full, self.empty(param.shape))
        if full not in self.written:
            self.written.add(full)
            return self.grads[full]
        more = self.empty(param.shape)
        self._again.append((self.grads[full], more))
        return more

    def settle(self) -> None:
        """Add the gradients of parameters that occurred before to those."""
        for grad, more in self._again:
            self.call(F.add, grad, more, out=grad)
        self._again.clear()


#: Without a look at the entries.
_embedding_backward = kernel("embedding_backward")

Followers = collections.deque[tuple[Place, Layer]]
#: Writes the backward calls by the gradient of the output, and returns that of the input, where it is wanted.
Backward = Callable[[Any, bool], Any]
#: Lowerings by the class of the layer.
LOWERINGS: dict[type[Layer], Callable[[Writer, Place, Any, Followers, Buffer], tuple[Buffer, Backward]]] = {}


def lowering(*kinds: type[Layer]) -> Callable[[Any], Any]:
    """Make a function the lowering of layer classes, though not of classes that inherit from them."""

    def register(function: Any) -> Any:
        LOWERINGS.update(dict.fromkeys(kinds, function))
        return function

    return register


def _is_plain(layer: Layer) -> bool:
    """Whether nobody has given this very layer other passes, and kernels can read its parameters."""
    patched = {"forward", "backward"} & vars(layer).keys()
    return not patched and all(array.flags.c_contiguous for array in (*layer.params.values(), *layer.state.values()))


def take(p: Writer, followers: Followers, kind: type[Layer]) -> tuple[Place, Any] | None:
    """The next layer with its place, if it is of that kind: it is then fused."""
    if followers and type(followers[0][1]) is kind and _is_plain(followers[0][1]):
        p.watch(followers[0][1])
        return followers.popleft()
    return None


def lower(p: Writer, at: Place, layer: Layer, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    """Write the forward calls of a layer."""
    kind = type(layer)
    if isinstance(layer, Stack) and kind.forward is Stack.forward and kind.backward is Stack.backward:
        chosen: Any = _stack
    else:
        chosen = LOWERINGS.get(kind, _eager)
    if not _is_plain(layer):
        chosen = _eager
    if p.shared is not None and chosen is _eager:
        for part in layer.walk():
            if isinstance(part, (layers.Dropout, norms.BatchNorm, norms.DecorrelatedBatchNorm)):
                within = "" if part is layer else f" within {type(layer).__name__}"
                raise ValueError(
                    f"comm must not be given for a model with {type(part).__name__}{within}, whose passes do not know "
                    "that other ranks have the rest of the batch; those of BatchNorm, LayerNorm and Dropout do, where "
                    "the model or layers of fastopt's hold them"
                )
    p.watched.append(layer.params)
    if chosen is not _eager:
        p.watch(layer)
    return chosen(p, at, layer, followers, x)


def _stack(p: Writer, at: Place, stack: Stack, _: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    count = len(stack.layers)
    p.stacks.append((stack, [*stack.layers]))
    followers: Followers = collections.deque(
        (at.part(str(stack.first[i]), count, i), layer) for i, layer in enumerate(stack.layers)
    )
    written: list[tuple[int, Backward]] = []
    while followers:
        i = count - len(followers)
        place, layer = followers.popleft()
        x, backward = lower(p, place, layer, followers, x)
        written.append((i, backward))

    def backward_of_all(dy: Buffer, need: bool) -> Any:
        last = 0 if need else stack.lowest
        for i, backward in reversed(written):
            if i < last:
                return None
            dy = backward(dy, need or i > last)
            p.settle()
        return dy

    return x, backward_of_all


def _eager(p: Writer, at: Place, layer: Layer, _: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    """A layer whose passes Python calls."""
    y, caches = p.empty((p.n, *layer.output_shape(x.shape[1:]))), []  # type: Buffer, list[Any]

    def forward(x: Array, y: Array, counter: int) -> None:
        result, cache = layer.forward(x, training=p.training, counter=counter)
        copy_result(y, result, f"{type(layer).__name__}.forward must return an output")
        caches[:] = [cache] if p.training else []

    p.python(forward, x, y, place=at, label=f"{type(layer).__name__}.forward")

    def backward(dy: Buffer, need: bool) -> Any:
        dx = p.like(x) if need else None
        grads = {name: p.grad(at, name, param) for name, param in layer.params.items()}

        def run(dy: Array, _: Array, dx: Array | None, grads: dict[str, Array]) -> None:
            result, own = layer.backward(dy, caches.pop())
            if own.keys() != grads.keys():
                names = ", ".join(grads) or "none"
                raise ValueError(f"{type(layer).__name__}.backward must return the gradients of {names}, got {[*own]}")
            for name, grad in grads.items():
                copy_result(grad, own[name], f"{type(layer).__name__}.backward must return a gradient of {name}")
            if dx is not None:
                copy_result(dx, result, f"{type(layer).__name__}.backward must return a gradient of the input")

        p.python(run, dy, x, dx, grads, label=f"{type(layer).__name__}.backward")
        return dx

    return y, backward


def copy_result(target: Array, result: Any, what: str) -> None:
    """Copy what a layer or a loss of the user's has returned."""
    if not isinstance(result, np.ndarray) or result.dtype.kind != "f" or result.shape != target.shape:
        got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
        raise TypeError(f"{what} of {target.dtype} {target.shape}, got {got}")
    if result is not target:
        np.copyto(target, result, casting="same_kind")


# ---- Lowerings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epilogue:
    """What follows a product or a norm in the same pass."""

    relu: bool
    dropout: Any  # the layer, or None
    place: Place | None  # of the dropout


def _epilogue(p: Writer, layer: Any, followers: Followers) -> Epilogue:
    relu = bool(layer.activation or take(p, followers, layers.ReLU))
    place, dropout = (take(p, followers, layers.Dropout) if relu else None) or (None, None)
    return Epilogue(relu, dropout if p.training else None, place)


def _finish(p: Writer, y: Buffer, bias: Array, end: Epilogue) -> None:
    """The epilogue of a product, in place."""
    if end.dropout is not None:
        drop = end.dropout
        how = {"seed": drop.seed, "counter": end.place, "p_is": drop.p_is, **p.first(y)}
        p.call(F.bias_relu_dropout_forward, y, bias, drop.p, **how, out=y)
    else:
        p.call(F.bias_relu_forward if end.relu else F.bias_forward, y, bias, out=y)


def _through_epilogue(p: Writer, dy: Buffer, y: Buffer, dbias: Any, end: Epilogue) -> Buffer:
    """The gradient of the product, and, where there is a ReLU, of the bias."""
    if not end.relu:
        return dy
    product = p.like(dy)
    if end.dropout is None:
        p.call(F.bias_relu_backward, dy, y, out=product, dbias=dbias, over=dy)
    else:
        drop = end.dropout
        p.call(F.bias_relu_dropout_backward, dy, y, drop.p, p_is=drop.p_is, out=product, dbias=dbias, over=dy)
    return product


@lowering(layers.Flatten)
def _flatten(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    return x.reshape(p.n, -1) if math.prod(x.shape) else x.reshape(p.n, math.prod(x.shape[1:])), (
        lambda dy, need: dy.reshape(*x.shape)
    )


@lowering(layers.Dense)
def _dense(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    weight, bias, y = p.weight(layer), layer.params["bias"], p.empty((p.n, layer.units))
    end, blas = _epilogue(p, layer, followers), environment.PRODUCTS == "blas"
    if blas:
        p.python(np.matmul, x, weight, out=y)
        _finish(p, y, bias, end)
    elif end.dropout is None:
        p.call(F.dense_forward, x, weight, bias, relu=end.relu, out=y)
    else:
        p.call(F.dense_forward, x, weight, out=y)
        _finish(p, y, bias, end)

    def backward(dy: Buffer, need: bool) -> Any:
        dweight, dbias = p.grad(at, "weight", weight), p.grad(at, "bias", bias)
        product = _through_epilogue(p, dy, y, dbias, end)
        if blas:
            if not end.relu:
                p.call(F.bias_backward, product, out=dbias)
            p.python(lambda x, d, out: np.matmul(x.T, d, out=out), x, product, dweight)
        else:
            p.call(F.dense_weight_grad, x, product, out=dweight, dbias=None if end.relu else dbias)
        if not need:
            return None
        dx = p.like(x)
        if blas:
            p.python(lambda d, w, out: np.matmul(d, w.T, out=out), product, weight, out=dx, label="matmul")
        else:
            p.call(F.dense_input_grad, product, weight, out=dx)
        return dx

    return y, backward


@lowering(layers.Conv2D)
def _conv2d(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    return _convolution(p, at, layer, layer.params, followers, x)


@lowering(convolutions.Conv1D)
def _conv1d(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    n, length, c = x.shape
    y, inner = _convolution(p, at, layer.plane(), layer.params, followers, x.reshape(n, 1, length, c))

    def backward(dy: Buffer, need: bool) -> Any:
        dx = inner(dy.reshape(*y.shape), need)
        return None if dx is None else dx.reshape(*x.shape)

    return y.reshape(n, *y.shape[2:]), backward


def _convolution(
    p: Writer, at: Place, layer: Any, params: Mapping[str, Array], followers: Followers, x: Buffer
) -> tuple[Buffer, Backward]:
    """A `Conv2D` whose parameters are those, or views of them."""
    end = _epilogue(p, layer, followers)
    if layer.is_direct(x.shape):
        y, products = _direct(p, layer, x, end)
    else:
        y, products = (_depthwise if layer.is_depthwise(x.shape) else _by_columns)(p, layer, x)
        _finish(p, y, layer.params["bias"], end)

    def backward(dy: Buffer, need: bool) -> Any:
        dweight, dbias = (p.grad(at, name, params[name]) for name in ("weight", "bias"))
        dweight = dweight.reshape(*layer.params["weight"].shape)
        product = _through_epilogue(p, dy, y, dbias, end)
        if not end.relu and not layer.is_direct(x.shape):
            p.call(F.bias_backward, product, out=dbias)
        return products(product, dweight, None if end.relu else dbias, need)

    return y, backward


def _direct(p: Writer, layer: Any, x: Buffer, end: Epilogue) -> tuple[Buffer, Any]:
    """A convolution by a kernel of its own, with its bias and ReLU."""
    weight, bias, winograd = p.weight(layer), layer.params["bias"], layer.by_winograd(x.dtype)
    how = layer.size, layer.stride, layer.padding
    y = p.empty((p.n, *layer.output_shape(x.shape[1:])))
    packed = p.empty(F.packed_shape(weight.shape, winograd=winograd))
    plain = end.dropout is not None
    p.call(
        F.conv2d,
        x,
        weight,
        None if plain else bias,
        layer.stride,
        layer.padding,
        relu=end.relu and not plain,
        winograd=winograd,
        out=y,
        packed=packed,
    )
    if plain:
        _finish(p, y, bias, end)

    def backward(dy: Buffer, dweight: Any, dbias: Any, need: bool) -> Any:
        sums = p.empty((16, *weight.shape[2:])) if winograd else None
        p.call(F.conv2d_weight_grad, x, dy, *how, winograd=winograd, out=dweight, sums=sums, dbias=dbias)
        if not need:
            return None
        dx = p.like(x)
        if layer.has_direct_input_grad():
            packed = p.empty(F.packed_shape(weight.shape, reverse=True, winograd=winograd))
            p.call(F.conv2d_input_grad, dy, weight, x.shape, layer.padding, winograd=winograd, out=dx, packed=packed)
        else:
            columns = p.empty(F.patches_shape(x.shape, *how))
            rows = dy.reshape(-1, layer.filters)
            inputs = columns.reshape(rows.shape[0], -1)
            p.call(F.matmul, rows, weight.reshape(-1, layer.filters), inputs, transpose_b=True)
            p.call(F.col2im, columns, x.shape, *how, out=dx)
        return dx

    return y, backward


def _depthwise(p: Writer, layer: Any, x: Buffer) -> tuple[Buffer, Any]:
    y, shape = p.empty((p.n, *layer.output_shape(x.shape[1:]))), (*layer.size, layer.filters)
    weight, how = p.weight(layer).reshape(*shape), (layer.stride, layer.padding)
    p.call(F.depthwise_forward, x, weight, *how, dilation=layer.dilation, out=y)

    def backward(dy: Buffer, dweight: Any, dbias: Any, need: bool) -> Any:
        dx = p.like(x) if need else None
        options = {"dilation": layer.dilation, "input_grad": need, "out": dx, "dweight": dweight.reshape(*shape)}
        p.call(F.depthwise_backward, dy, x, weight, *how, **options)
        return dx

    return y, backward


def _by_columns(p: Writer, layer: Any, x: Buffer) -> tuple[Buffer, Any]:
    """A convolution by im2col and products, one for each channel group."""
    n, h, w, c = x.shape
    groups, filters = layer.groups, layer.filters // layer.groups
    how, dilation = (layer.size, layer.stride, layer.padding), layer.dilation

    def split(images: Buffer, width: int) -> Buffer:
        """By channel group: (groups, pixels, width)."""
        if groups == 1:
            return images.reshape(1, -1, width)
        pixels = math.prod(images.shape[:3])
        out = p.empty((groups, pixels, width))
        p.call(F.swap_axes, images.reshape(pixels, groups, width), out=out)
        return out

    def join(parts: Buffer, out: Any) -> None:
        """The inverse, into `out`."""
        p.call(F.swap_axes, parts, out=out.reshape(parts.shape[1], groups, parts.shape[2]))

    def matrices() -> Any:
        """The weight of each group, (groups, inputs, filters)."""
        weight = p.weight(layer).reshape(-1, groups, filters)
        if groups == 1:
            return weight.reshape(1, -1, filters)
        out = p.empty((groups, weight.shape[0], filters))
        p.call(F.swap_axes, weight, out=out)
        return out

    one = groups * n, h, w, c // groups
    patches = F.patches_shape(one, *how, dilation)
    y = p.empty((n, *layer.output_shape(x.shape[1:])))
    columns = p.empty(patches)
    p.call(F.im2col, split(x, c // groups).reshape(*one), *how, dilation=dilation, out=columns)
    weights = matrices()
    rows = columns.reshape(groups, -1, weights.shape[1])
    product = y.reshape(1, -1, filters) if groups == 1 else p.empty((groups, rows.shape[1], filters))
    for group in range(groups):
        p.call(F.matmul, rows[group], weights[group], product[group])
    if groups > 1:
        join(product, y)

    def backward(dy: Buffer, dweight: Any, dbias: Any, need: bool) -> Any:
        dproduct = split(dy, filters)
        sums = dweight.reshape(1, -1, filters) if groups == 1 else p.empty((groups, rows.shape[2], filters))
        for group in range(groups):
            p.call(F.matmul, rows[group], dproduct[group], sums[group], transpose_a=True)
        if groups > 1:
            join(sums, dweight)
        if not need:
            return None
        weights, dcolumns = matrices(), p.empty(patches)
        drows, dx = dcolumns.reshape(*rows.shape), p.like(x)
        for group in range(groups):
            p.call(F.matmul, dproduct[group], weights[group], drows[group], transpose_b=True)
        parts = dx if groups == 1 else p.empty(one)
        p.call(F.col2im, dcolumns, one, *how, dilation=dilation, out=parts)
        if groups > 1:
            join(parts.reshape(groups, -1, c // groups), dx)
        return dx

    return y, backward


@lowering(layers.ReLU)
def _relu(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    y = p.like(x)
    p.call(F.relu_forward, x, out=y, over=x)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx = p.like(x)
        p.call(F.relu_backward, dy, y, out=dx, over=dy)
        return dx

    return y, backward


@lowering(
    activations.ELU,
    activations.GELU,
    activations.LeakyReLU,
    activations.SiLU,
    activations.Sigmoid,
    activations.Softplus,
    activations.Tanh,
)
def _activation(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    y, alpha = p.like(x), layer.alpha_of_kind()
    p.call(F.activation_forward, x, layer.kind, alpha=alpha, out=y, over=x)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx = p.like(x)
        known = y if layer.from_output else x
        p.call(F.activation_backward, dy, known, layer.kind, alpha=alpha, out=dx, over=dy)
        return dx

    return y, backward


@lowering(activations.Softmax)
def _softmax(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    y = p.like(x)
    p.call(F.softmax_forward, x, out=y)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx = p.like(x)
        p.call(F.softmax_backward, dy, y, out=dx)
        return dx

    return y, backward


@lowering(convolutions.Conv2DTranspose)
def _conv2d_transpose(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    end = _epilogue(p, layer, followers)
    weight, how, dilation = layer.params["weight"], layer.how, layer.dilation
    channels, inputs = x.shape[3], math.prod(weight.shape[:3])
    y = p.empty((p.n, *layer.output_shape(x.shape[1:])))
    patches = F.patches_shape(y.shape, layer.size, layer.stride, layer.padding, dilation)
    columns, rows = p.empty(patches), x.reshape(math.prod(x.shape[:3]), channels)
    into = columns.reshape(rows.shape[0], inputs)
    p.call(F.matmul, rows, weight.reshape(inputs, channels), into, transpose_b=True)
    p.call(F.col2im, columns, y.shape, *how, dilation=dilation, out=y)
    _finish(p, y, layer.params["bias"], end)

    def backward(dy: Buffer, need: bool) -> Any:
        dweight, dbias = (p.grad(at, name, layer.params[name]) for name in ("weight", "bias"))
        product = _through_epilogue(p, dy, y, dbias, end)
        if not end.relu:
            p.call(F.bias_backward, product, out=dbias)
        dcolumns = p.empty(patches)
        p.call(F.im2col, product, *how, dilation=dilation, out=dcolumns)
        drows = dcolumns.reshape(rows.shape[0], inputs)
        p.call(F.matmul, drows, rows, dweight.reshape(inputs, channels), transpose_a=True)
        if not need:
            return None
        dx = p.like(x)
        p.call(F.matmul, drows, weight.reshape(inputs, channels), dx.reshape(*rows.shape))
        return dx

    return y, backward


@lowering(activations.PReLU)
def _prelu(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    slope, columns = layer.params["slope"], x.shape[-1]
    ones = np.ones((1, columns), p.dtype)

    def slopes() -> Any:
        """The slope of each channel."""
        if not layer.shared:
            return slope
        made = p.empty((1, columns))
        p.call(F.matmul, slope.reshape(1, 1), ones, made)
        return made.reshape(columns)

    y = p.like(x)
    p.call(F.prelu_forward, x, slopes(), out=y)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx, terms, dslope = p.like(x), p.like(x), p.grad(at, "slope", slope)
        p.call(F.prelu_backward, dy, x, slopes(), out=dx, terms=terms)
        if layer.shared:
            by_channel = p.empty((columns,))
            p.call(F.bias_backward, terms, out=by_channel)
            p.call(F.bias_backward, by_channel.reshape(columns, 1), out=dslope)
        else:
            p.call(F.bias_backward, terms, out=dslope)
        return dx

    return y, backward


@lowering(shapes.Reshape)
def _reshape(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    return x.reshape(p.n, *layer.output_shape(x.shape[1:])), lambda dy, need: dy.reshape(*x.shape)


@lowering(shapes.ZeroPadding2D)
def _zero_padding(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    y, backward = _bordered(p, x, layer.padding, 0.0)
    return y, lambda dy, need: backward(dy)


def _bordered(p: Writer, x: Buffer, padding: Any, value: float) -> tuple[Buffer, Callable[[Buffer], Buffer]]:
    """Images with a border of one value, and what takes it off their gradient."""
    rows, columns = F.images.border("padding", padding)
    if not (*rows, *columns) > (0, 0, 0, 0):
        return x, lambda dy: dy
    y = p.empty((p.n, x.shape[1] + sum(rows), x.shape[2] + sum(columns), x.shape[3]))
    p.call(F.pad_forward, x, padding, value, out=y)

    def backward(dy: Buffer) -> Buffer:
        dx = p.like(x)
        p.call(F.pad_backward, dy, x.shape, padding, out=dx)
        return dx

    return y, backward


@lowering(layers.MaxPool2D, pooling.GlobalMaxPool2D)
def _max_pool(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    whole = isinstance(layer, pooling.GlobalMaxPool2D)
    how = (x.shape[1:3], x.shape[1:3]) if whole else (layer.size, layer.stride)
    images, without_border = _bordered(p, x, 0 if whole else layer.padding, -math.inf)
    shape = (*F.patches_shape(images.shape, *how)[:3], x.shape[3])
    y, winner = p.empty(shape), p.empty(shape, F.winner_type(x.dtype))
    p.call(F.max_pool_forward, images, *how, out=y, winner=winner)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx = p.like(images)
        p.call(F.max_pool_backward, dy.reshape(*shape), winner, images.shape, *how, out=dx)
        return without_border(dx)

    return y.reshape(p.n, *layer.output_shape(x.shape[1:])), backward


@lowering(pooling.AveragePool2D, pooling.GlobalAveragePool2D)
def _average_pool(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    whole = isinstance(layer, pooling.GlobalAveragePool2D)
    how = (x.shape[1:3], x.shape[1:3]) if whole else (layer.size, layer.stride)
    images, without_border = _bordered(p, x, 0 if whole else layer.padding, 0.0)
    pooled = F.patches_shape(images.shape, *how)[:3]
    y = p.empty((*pooled, x.shape[3]))
    factor = None if whole else layer.factor(x.shape, p.dtype)
    p.call(F.average_pool_forward, images, *how, out=y)

    def scaled(y: Buffer) -> Buffer:
        if factor is None:
            return y
        out = p.like(y)
        rows = 1, p.n, factor.shape[1]
        p.call(F.scale_channels, y.reshape(*rows), factor, out=out.reshape(*rows))
        return out

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx = p.like(images)
        p.call(F.average_pool_backward, scaled(dy.reshape(*y.shape)), images.shape, *how, out=dx)
        return without_border(dx)

    return scaled(y).reshape(p.n, *layer.output_shape(x.shape[1:])), backward


@lowering(layers.Dropout, dropouts.VanillaDropout)
def _dropout(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    inverted = not isinstance(layer, dropouts.VanillaDropout)
    if not p.training and inverted:
        return x, _no_backward
    y = p.like(x)
    if not p.training:
        p.call(F.scale, x, F.kept_share(layer.p, layer.p_is), out=y, over=x)
        return y, _no_backward
    mask = p.empty(((math.prod(x.shape) + 7) // 8,), np.uint8)
    how = {"p_is": layer.p_is, "inverted": inverted}
    made = p.call(F.dropout, x, layer.p, seed=layer.seed, counter=at, **how, **p.first(x), out=y, mask=mask, over=x)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx = p.like(x)
        p.call(F.dropout_backward, dy, Result(made, 1, (mask,)), layer.p, **how, out=dx, over=dy)
        return dx

    return y, backward


def _no_backward(dy: Any, need: bool) -> Any:
    raise AssertionError("inference has no backward pass")


@lowering(dropouts.SpatialDropout)
def _spatial_dropout(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    if not p.training:
        return x, _no_backward
    shape = p.n, x.shape[3]
    ones, factor, y = np.ones(shape, p.dtype), p.empty(shape), p.like(x)
    mask = p.empty(((math.prod(shape) + 7) // 8,), np.uint8)
    how = {"seed": layer.seed, "counter": at, "p_is": layer.p_is, **p.first(factor)}
    p.call(F.dropout, ones, layer.p, **how, out=factor, mask=mask)
    p.call(F.scale_channels, x, factor, out=y)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx = p.like(x)
        p.call(F.scale_channels, dy, factor, out=dx)
        return dx

    return y, backward


@lowering(norms.BatchNorm)
def _batch_norm(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    scale, shift = layer.params["scale"], layer.params["shift"]
    running = layer.state["running_mean"], layer.state["running_var"]
    common: dict[str, Any] = {"axis": -1, "training": p.training, "eps": layer.eps}

    def grads() -> dict[str, Any]:
        return {"dscale": p.grad(at, "scale", scale), "dshift": p.grad(at, "shift", shift)}

    if p.training and layer.params.rest:  # by running statistics
        y = p.like(x)
        p.call(F.batch_norm_forward, x, scale, shift, *running, **common | {"training": False}, out=y)

        def resting(dy: Buffer, need: bool) -> Any:
            dx = p.like(x)
            p.call(F.batch_norm_inference_backward, dy, x, scale, *running, eps=layer.eps, out=dx, **grads())
            return dx

        return y, resting

    if p.shared is not None:
        return _batch_norm_of_ranks(p, at, layer, p.shared, x)
    relu = take(p, followers, layers.ReLU) is not None
    place, dropout = (take(p, followers, layers.Dropout) if relu else None) or (None, None)
    pool: Any = followers[0][1] if followers and dropout is None else None
    fits = type(pool) is layers.MaxPool2D and pool.stride == pool.size and pool.padding == (0, 0)
    if not fits or take(p, followers, layers.MaxPool2D) is None:
        pool = None
    if dropout is not None and p.training:
        common |= {"dropout": dropout.drop, "seed": dropout.seed, "counter": place}
    y = p.like(x) if pool is None else p.empty((p.n, *pool.output_shape(x.shape[1:])))
    common |= {"relu": relu, "max_pool": None if pool is None else pool.size, "out": y}
    if not p.training:
        p.call(F.batch_norm_forward, x, scale, shift, *running, **common)
        return y, _no_backward
    statistics = p.empty(scale.shape, np.float64), p.empty(scale.shape, np.float64)
    chosen = None if pool is None else p.like(y)
    made = p.call(
        F.batch_norm_forward,
        x,
        scale,
        shift,
        *running,
        **common,
        momentum=layer.momentum,
        momentum_of=layer.momentum_of,
        unbiased=layer.unbiased,
        mean=statistics[0],
        inv_std=statistics[1],
        chosen=chosen,
    )

    def backward(dy: Buffer, need: bool) -> Any:
        dx = p.like(x)
        cache = Result(made, 1, (x, *statistics, chosen, y if dropout else None))
        p.call(F.batch_norm_backward, dy, cache, out=dx, over=None if pool is None else x, **grads())
        return dx

    return y, backward


def _batch_norm_of_ranks(p: Writer, at: Place, layer: Any, shared: Shared, x: Buffer) -> tuple[Buffer, Backward]:
    """Batch norm by the statistics of the whole batch, for which ranks exchange those of their parts."""
    scale, shift, y, channels = layer.params["scale"], layer.params["shift"], p.like(x), x.shape[-1]
    mean, var, total = np.empty(channels, p.dtype), np.empty(channels, p.dtype), [0]
    new = layer.momentum if layer.momentum_of == "new" else 1 - layer.momentum

    def forward(x: Array, y: Array) -> None:
        own = x[: shared.count].reshape(-1, channels)
        part = np.zeros((3, channels))  # how many, their mean, and their sum of squares about it
        if len(own):
            part[0], part[1] = len(own), own.mean(axis=0, dtype=np.float64)
            centred = own - part[1]
            part[2] = np.einsum("ij,ij->j", centred, centred)
        counts, means, squares = shared.group.gather(part).swapaxes(0, 1)
        total[0] = int(counts[:, 0].sum())
        if layer.unbiased and total[0] == 1:
            raise ValueError("x must have at least 2 values per channel for an unbiased variance, got 1")
        of_all = (counts * means).sum(axis=0) / total[0]
        squares_of_all = (squares + counts * (means - of_all) ** 2).sum(axis=0)  # Chan, Golub and LeVeque 1979
        mean[...], var[...] = of_all, squares_of_all / total[0]
        F.batch_norm_forward(x, scale, shift, mean, var, axis=-1, training=False, eps=layer.eps, out=y)
        running_mean, running_var = layer.state["running_mean"], layer.state["running_var"]
        running_mean[...] = (1 - new) * running_mean + new * of_all
        running_var[...] = (1 - new) * running_var + new * squares_of_all / (total[0] - layer.unbiased)

    p.python(forward, x, y, label="batch_norm_forward of all ranks")

    def backward(dy: Buffer, need: bool) -> Any:
        dx = p.like(x)

        def run(dy: Array, x: Array, dx: Array, dscale: Array, dshift: Array) -> None:
            own = {"out": dx, "dscale": dscale, "dshift": dshift}
            F.batch_norm_inference_backward(dy, x, scale, mean, var, eps=layer.eps, **own)
            of_scale, of_shift = shared.group.sum(np.array([dscale, dshift], np.float64))
            inv_std = 1 / np.sqrt(var.astype(np.float64) + layer.eps)
            factor = scale * inv_std / total[0]
            dx -= (x - mean) * (factor * inv_std * of_scale).astype(p.dtype)
            dx -= (factor * of_shift).astype(p.dtype)
            dx[shared.count :] = 0

        p.python(
            run,
            dy,
            x,
            dx,
            p.grad(at, "scale", scale),
            p.grad(at, "shift", shift),
            label="batch_norm_backward of all ranks",
        )
        return dx

    return y, backward


@lowering(norms.LayerNorm, norms.GroupNorm, norms.InstanceNorm)
def _sample_norm(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    scale, shift, y = layer.params["scale"], layer.params["shift"], p.like(x)
    count = (p.n * layer.statistics(x.shape[1:]),)
    mean, inv_std = p.empty(count, np.float64), p.empty(count, np.float64)
    made = p.call(layer.normalise, x, scale=scale, shift=shift, eps=layer.eps, out=y, mean=mean, inv_std=inv_std)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx, cache = p.like(x), Result(made, 1, (x, mean, inv_std))
        grads = {"dscale": p.grad(at, "scale", scale), "dshift": p.grad(at, "shift", shift)}
        p.call(F.group_norm_backward, dy, cache, out=dx, **grads)
        return dx

    return y, backward


@lowering(norms.RMSNorm)
def _rms_norm(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    scale, y, inv_rms = layer.params["scale"], p.like(x), p.empty((math.prod(x.shape[:-1]),), np.float64)
    made = p.call(F.rms_norm_forward, x, scale, eps=layer.eps, out=y, inv_rms=inv_rms)

    def backward(dy: Buffer, need: bool) -> Buffer:
        dx, cache = p.like(x), Result(made, 1, (x, inv_rms))
        p.call(F.rms_norm_backward, dy, cache, out=dx, dscale=p.grad(at, "scale", scale))
        return dx

    return y, backward


@lowering(norms.WeightNorm)
def _weight_norm(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    gain, direction = layer.params["gain"], layer.params["direction"]
    norm = p.empty(gain.shape, np.float64)
    weight = p.weights[id(layer.layer)] = p.empty(direction.shape)  # its own: passes of another thread write theirs
    made = p.call(F.weight_norm_forward, direction, gain, out=weight, norm=norm)
    within = at.part("layer", 1, 0)
    y, inner = lower(p, within, layer.layer, followers, x)

    def backward(dy: Buffer, need: bool) -> Any:
        dx = inner(dy, need)
        p.call(
            F.weight_norm_backward,
            p.computed[f"{within.prefix}weight"],
            Result(made, 1, (norm,)),
            out=p.grad(at, "direction", direction),
            dgain=p.grad(at, "gain", gain),
        )
        return dx

    return y, backward


@lowering(embedding.Embedding)
def _embedding(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    weight, y, entry = layer.params["weight"], p.empty((*x.shape, layer.width)), p.empty(x.shape, np.int64)
    wrong = np.zeros(1, np.int64)
    p.call(F.embedding_forward, x, weight, out=y, entry=entry, wrong=wrong)
    p.add("zero", wrong)

    def backward(dy: Buffer, need: bool) -> Any:
        p.call(_embedding_backward, dy, entry.reshape(-1), p.grad(at, "weight", weight), layer.entries)
        if not need:
            return None
        dx = p.like(x)
        p.add("copy", dx, np.zeros(x.shape, p.dtype))
        return dx

    return y, backward


@lowering(residual.Residual)
def _residual(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    terms, parts = [x], []  # type: list[Buffer], list[Backward]
    for i, (name, part) in enumerate(layer.parts.items()):
        term, backward_of_part = lower(p, at.part(name, 2, i), part, collections.deque(), x)
        terms.append(term)
        parts.append(backward_of_part)
    y = p.like(terms[-1])
    p.call(F.add, terms[-2], terms[-1], relu=bool(layer.activation), out=y, over=terms[-2])

    def backward(dy: Buffer, need: bool) -> Any:
        if layer.activation:
            dsum = p.like(dy)
            p.call(F.relu_backward, dy, y, out=dsum, over=dy)
            dy = dsum
        terms = [dy]
        for part in parts:
            terms.append(part(dy, need))
            p.settle()
        if not need:
            return None
        dx = p.like(x)
        p.call(F.add, terms[-2], terms[-1], out=dx, over=terms[-2])
        return dx

    return y, backward


@lowering(preprocessing.Center)
def _center(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    def by_image(x: Buffer) -> Buffer:
        pixels = math.prod(x.shape[1:])
        turned, sums, y = p.empty((pixels, p.n, 1)), p.empty((p.n,)), p.like(x)
        columns, negative = turned.reshape(pixels, p.n), p.like(sums)
        p.call(F.swap_axes, x.reshape(p.n, pixels, 1), out=turned)
        p.call(F.bias_backward, columns, out=sums)
        p.call(F.scale, sums, -1 / pixels, out=negative)
        centred = p.like(columns)
        p.call(F.bias_forward, columns, negative, out=centred, over=columns)
        p.call(F.swap_axes, centred.reshape(pixels, p.n, 1), out=y.reshape(p.n, pixels, 1))
        return y

    if layer.per == "image":
        return by_image(x), lambda dy, need: by_image(dy) if need else None
    mean = layer.state["mean"]
    negative, y = p.empty(mean.shape), p.like(x)
    rows = x.reshape(-1, *mean.shape)
    p.call(F.scale, mean, -1.0, out=negative)
    p.call(F.bias_forward, rows, negative, out=y.reshape(*rows.shape))
    return y, lambda dy, need: dy


@lowering(preprocessing.Standardize)
def _standardize(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    y = p.like(x)
    if layer.per == "image":
        mean, inv_std = p.empty((p.n,), np.float64), p.empty((p.n,), np.float64)
        how = layer.options_of_images(x.shape)
        made = p.call(F.layer_norm_forward, x, **how, out=y, mean=mean, inv_std=inv_std)

        def by_image(dy: Buffer, need: bool) -> Any:
            if not need:
                return None
            dx = p.like(x)
            p.call(F.group_norm_backward, dy, Result(made, 1, (x, mean, inv_std)), out=dx)
            return dx

        return y, by_image
    moments = layer.state["mean"], layer.state["var"]
    shape = -1, *moments[0].shape
    rows = x.reshape(*shape)
    p.call(
        F.batch_norm_forward,
        rows,
        None,
        None,
        *moments,
        axis=-1,
        training=False,
        eps=layer.eps,
        out=y.reshape(*shape),
    )

    def backward(dy: Buffer, need: bool) -> Any:
        if not need:
            return None
        dx, unused = p.like(x), {"dscale": p.empty(shape[1:]), "dshift": p.empty(shape[1:])}
        into = dx.reshape(*shape)
        p.call(
            F.batch_norm_inference_backward, dy.reshape(*shape), rows, None, *moments, eps=layer.eps, out=into, **unused
        )
        return dx

    return y, backward


@lowering(preprocessing.Whiten)
def _whiten(p: Writer, at: Place, layer: Any, followers: Followers, x: Buffer) -> tuple[Buffer, Backward]:
    mean, weight = layer.state["mean"], layer.state["weight"]
    negative, y = p.empty(mean.shape), p.empty((p.n, *layer.output_shape(x.shape[1:])))
    rows = x.reshape(p.n, *mean.shape)
    centred = p.like(rows)
    p.call(F.scale, mean, -1.0, out=negative)
    p.call(F.bias_forward, rows, negative, out=centred)
    p.call(F.matmul, centred, weight, y.reshape(p.n, weight.shape[1]))

    def backward(dy: Buffer, need: bool) -> Any:
        if not need:
            return None
        dx = p.like(x)
        p.call(F.matmul, dy.reshape(p.n, weight.shape[1]), weight, dx.reshape(*rows.shape), transpose_b=True)
        return dx

    return y, backward
