"""Micro-benchmarks of every kernel: contests between fastopt and NumPy, run side by side.

A contest is one piece of work on one size, and its contenders are functions that do it. `race` calls them in turn,
round after round, so that whatever disturbs the machine disturbs all; a ratio of two medians of one race is the
only figure to trust. The benchmarks of the repository add further contenders (`benchmarks/peers.py`).
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

import fastopt
from fastopt import arena, gradients, inplace, reference
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.kernel import kernel
from fastopt.optimizer import Optimizer
from fastopt.optimizers import OPTIMIZERS, Adam

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
QUICK_SIZES = (100, 10_000, 1_000_000)
LARGE_SIZE = 50_000_000
THREADS_SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000)

#: Contenders that are no rivals but measures: the same bytes moved, the same work under another circumstance.
STREAM, COPY = "streaming", "copy"
FLAT, NORMAL, ONE_THREAD, UNCLIPPED = "flat", "normal values", "one thread", "unclipped"
DIRECT, APART = "direct", "apart"
YARDSTICKS = (STREAM, COPY, FLAT, NORMAL, ONE_THREAD, UNCLIPPED, DIRECT, APART)
#: Those that compute other numbers than fastopt.
OF_OTHER_NUMBERS = (STREAM, COPY, NORMAL, UNCLIPPED)

Call = Callable[[], object]
Shape = tuple[int, ...]


@dataclass
class Contest:
    """One piece of work on one size."""

    name: str
    size: str
    #: The bytes that must cross memory: what is read and what is written, once each.
    floor: int
    #: What a layer reads, by name.
    arrays: dict[str, Array] = field(default_factory=dict)
    #: What a function is that does the work, by contender.
    contenders: dict[str, Call] = field(default_factory=dict)
    #: Where a contender leaves its result, if it does not return it.
    results: dict[str, Array | list[Array]] = field(default_factory=dict)
    #: What a step works on: every contender has its own copies of the parameters, and none may write to a gradient.
    params: list[Array] = field(default_factory=list)
    grads: list[Array] = field(default_factory=list)
    #: Makes the state arrays of each parameter, as they begin.
    states: Callable[[], list[list[Array]]] = list
    #: What takes over the gradients where a contender keeps its own, called when they have changed.
    refresh: list[Call] = field(default_factory=list)
    #: What is called before a contender's turn, off the clock.
    before: dict[str, Call] = field(default_factory=dict)
    #: The calls in a turn; where None, as many as make it long enough to be timed.
    calls: int | None = None
    #: Which axis of x holds the channels.
    axis: int = 1
    #: Where chance has a part in the result, what that is if nothing is dropped.
    undropped: Array | None = None

    @property
    def elements(self) -> int:
        """The number of parameters, or that of elements in a layer's first array."""
        return sum(param.size for param in self.params) or next(iter(self.arrays.values())).size


def _normal(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def together(calls: Sequence[Call]) -> Call:
    """One function that makes all these calls in turn."""
    if len(calls) == 1:
        return calls[0]

    def call() -> list[object]:
        return [each() for each in calls]

    return call


# ---- Steps --------------------------------------------------------------------------------------------------


def resnet20() -> list[Shape]:
    """The parameters of the ResNet-20 for CIFAR-10 (He et al. 2015, section 4.2): 59 tensors."""
    shapes: list[Shape] = []
    before = 3
    for channels in (16, 16, 16, 32, 32, 32, 64, 64, 64):  # blocks of two convolutions, and one that goes before
        for _ in range(2 if shapes else 3):
            shapes += [(channels, before, 3, 3), (channels,), (channels,)]
            before = channels
    return [*shapes, (10, 64), (10,)]


def mlp() -> list[Shape]:
    """The parameters of an MLP for MNIST: 784-512-512-10."""
    return [(784, 512), (512,), (512, 512), (512,), (512, 10), (10,)]


MODELS = {"ResNet-20": resnet20, "MLP": mlp}


def steps() -> dict[str, functools.partial[Optimizer]]:
    """Every optimizer step that is measured, by name: its class, and the hyperparameters that are not the defaults."""
    every: dict[str, functools.partial[Optimizer]] = {
        name: functools.partial(cls, lr=inplace.LR)
        for name, cls in OPTIMIZERS.items()
        if not hasattr(cls, "look_ahead")  # which is momentum's kernel
    }
    every["nesterov"] = functools.partial(OPTIMIZERS["momentum"], lr=inplace.LR, nesterov=True)
    every["adadelta"].keywords["lr"] = 1.0
    every["centered_rmsprop"].keywords["momentum"] = 0.9
    every["radam"].keywords["threshold"] = inplace.RADAM_THRESHOLD
    return every


#: The steps that every library has fused, measured at more sizes than the others, and some that none has.
CLASSICS = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw")
UNFUSED = ("rmsprop", "nadam", "radam", "amsgrad", "adadelta", "adamax")
#: The steps that take norms first, and how often they go through an array: parameter and moments come once more.
WITH_NORMS = {"lamb": 10}


def step_contest(name: str, n: int) -> Contest:
    """A step of that name on one tensor of n parameters."""
    return _step_contest(name, f"{n:,}", [(n,)])


def model_contest(name: str, model: str) -> Contest:
    """A step of that name on all tensors of a model, and the same on as many parameters in one flat array."""
    contest = _step_contest(name, model, MODELS[model]())
    flat = fastopt.flatten(contest.params)
    optimizer = steps()[name](flat.param)

    def refresh() -> None:
        for own, grad in zip(flat.grads, contest.grads, strict=True):
            own[...] = grad

    refresh()
    contest.refresh.append(refresh)
    contest.contenders[FLAT] = functools.partial(optimizer.step, flat.grad)
    contest.results[FLAT] = flat.params
    return contest


def _step_contest(name: str, size: str, shapes: list[Shape]) -> Contest:
    params = [_normal(*shape) for shape in shapes]
    grads = [param.ravel()[::-1].reshape(param.shape).copy() for param in params]
    ours = [param.copy() for param in params]
    lone = len(shapes) == 1
    optimizer, given = steps()[name](ours[0] if lone else ours), grads[0] if lone else grads
    n, states = sum(param.size for param in params), len(optimizer.state_names())
    contest = Contest(name, size, 4 * n * WITH_NORMS.get(name, 3 + 2 * states), params=params, grads=grads)
    contest.states = lambda: [
        [np.full_like(param, optimizer._initial(key, param, inplace.LR)) for key in optimizer.state_names()]
        for param in params
    ]
    contest.contenders["fastopt"] = functools.partial(optimizer.step, given)
    contest.results["fastopt"] = ours

    if hasattr(inplace, name):
        fused = [_in_place(name, *arrays) for arrays in zip(params, grads, contest.states(), strict=True)]
        contest.contenders["NumPy in place"] = together([call for call, _ in fused])
        contest.results["NumPy in place"] = [param for _, param in fused]
    contest.contenders["NumPy textbook"] = together(
        [_textbook(name, optimizer, *arrays) for arrays in zip(params, grads, contest.states(), strict=True)]
    )

    if name not in WITH_NORMS:
        stream = kernel("stream")
        streamed = [arena.empty((n,), np.float32) for _ in range(2 + states)]
        for array in streamed:
            array[:] = np.concatenate([grad.ravel() for grad in grads])
        absent = [None] * (5 - len(streamed))
        contest.contenders[STREAM] = lambda: stream(*streamed, *absent, 0.5)
    return contest


def _in_place(name: str, param: Array, grad: Array, states: list[Array]) -> tuple[Call, Array]:
    fused = getattr(inplace, name)
    arrays = [param.copy(), grad, *states]
    a, b, t = np.empty_like(param), np.empty_like(param), itertools.count(1)
    return lambda: fused(*arrays, t=next(t), a=a, b=b), arrays[0]


def _textbook(name: str, optimizer: Optimizer, param: Array, grad: Array, states: list[Array]) -> Callable[[], Array]:
    formula, given = getattr(reference, optimizer.name), steps()[name].keywords
    hyper = {key: getattr(optimizer, key) for key in optimizer.hyper_names()}
    held, number, scalars = [param.copy(), *states], itertools.count(1), optimizer.scalars

    def step() -> Array:
        nonlocal scalars
        t = next(number)
        computed, scalars = optimizer._compute(hyper, scalars, t)
        counted = {"t": t} if optimizer.counts_steps else {}
        held[:] = formula(held[0], grad, *held[1:], **given, **computed, **counted)
        return held[0]

    return step


def denormals(n: int) -> Contest:
    """A step of Adam on moments that have decayed to denormals, as those of dead units do, the gradient being zero.

    The moments are filled anew before each call, since what flushes denormals to zero would find them once only.
    """
    param, grad = _normal(n), np.zeros(n, np.float32)
    contest = Contest("denormals", f"{n:,}", 4 * n * 7, params=[param], grads=[grad], calls=1)

    def enter(name: str, call: Call, own: Array, moments: list[Array], value: float) -> None:
        def refill() -> None:
            for moment in moments:
                moment.fill(value)

        contest.contenders[name], contest.before[name], contest.results[name] = call, refill, [own]

    for name, value in ("fastopt", 1e-40), (NORMAL, 1e-4):
        own = param.copy()
        optimizer = Adam(own, lr=inplace.LR)
        enter(name, functools.partial(optimizer.step, grad), own, [*optimizer.state["param"].values()], value)
    held = [param.copy(), grad, np.empty_like(param), np.empty_like(param)]
    a, b, t = np.empty_like(param), np.empty_like(param), itertools.count(1)
    enter("NumPy in place", lambda: inplace.adam(*held, t=next(t), a=a, b=b), held[0], held[2:], 1e-40)
    return contest


def clipped_adam(n: int) -> Contest:
    """A step of Adam on a gradient that is scaled down to a norm of 1 first, against the same as it is."""
    contest = _step_contest("adam", f"{n:,}", [(n,)])
    (param,), (grad,), ((m, v),) = contest.params, contest.grads, contest.states()
    contest.name, contest.floor, contest.calls = "clipped_adam", 4 * n * 8, 1
    own = param.copy()
    plain = contest.contenders["fastopt"]
    contest.contenders = {"fastopt": functools.partial(Adam(own, lr=inplace.LR, clip_global_norm=1.0).step, grad)}
    contest.results = {"fastopt": [own]}

    held, a, clipped, t = param.copy(), np.empty_like(param), np.empty_like(param), itertools.count(1)

    def in_place() -> None:
        np.multiply(grad, min(1.0, 1.0 / float(np.linalg.norm(grad))), out=clipped)
        inplace.adam(held, clipped, m, v, t=next(t), a=a, b=a)

    contest.contenders["NumPy in place"], contest.results["NumPy in place"] = in_place, [held]
    contest.contenders[UNCLIPPED] = plain
    return contest


def on_threads(n: int, count: int = 2) -> Contest:
    """A step of Adam on several threads, against the same on one."""
    param, grad = _normal(n), _normal(n)[::-1].copy()
    contest = Contest("threads", f"{n:,}", 4 * n * 7, params=[param], grads=[grad])
    for name, number in ("fastopt", count), (ONE_THREAD, 1):
        own = arena.beside(param, 0)  # equally placed for both
        own[:] = param
        contest.contenders[name] = functools.partial(Adam(own, lr=inplace.LR).step, grad)
        contest.before[name] = functools.partial(fastopt.set_num_threads, number)
        contest.results[name] = [own]
    return contest


# ---- Layers -------------------------------------------------------------------------------------------------


def relu_forward(n: int) -> Contest:
    x, y = _normal(n), np.empty(n, np.float32)
    return Contest("relu_forward", f"{n:,}", 8 * n, {"x": x}, {
        "fastopt": lambda: F.relu_forward(x, out=y),
        "NumPy in place": lambda: inplace.relu_forward(x, y),
        "NumPy textbook": lambda: reference.relu_forward(x),
        COPY: lambda: np.copyto(y, x),
    }, {"NumPy in place": y})  # fmt: skip


def relu_backward(n: int) -> Contest:
    dy, y, dx = _normal(n), np.maximum(_normal(n)[::-1], 0), np.empty(n, np.float32)
    return Contest("relu_backward", f"{n:,}", 12 * n, {"dy": dy, "y": y}, {
        "fastopt": lambda: F.relu_backward(dy, y, out=dx),
        "NumPy in place": lambda: inplace.relu_backward(dy, y, dx),
        "NumPy textbook": lambda: reference.relu_backward(dy, y),
        COPY: lambda: np.copyto(dx, dy),
    }, {"NumPy in place": dx})  # fmt: skip


def dropout(n: int, p: float = 0.5) -> Contest:
    x, y = _normal(n), np.empty(n, np.float32)
    generator, counter = np.random.Generator(np.random.SFC64(0)), itertools.count()
    return Contest("dropout", f"{n:,}", 8 * n + n // 8, {"x": x}, {
        "fastopt": lambda: F.dropout(x, p, seed=0, counter=next(counter), out=y),
        "NumPy in place": lambda: inplace.dropout(x, p, generator, y),
        "NumPy textbook": lambda: np.where(generator.random(n) >= p, x / (1 - p), 0),
        COPY: lambda: np.copyto(y, x),
    }, {"NumPy in place": y}, undropped=x / (1 - p))  # fmt: skip


def dropout_backward(n: int, p: float = 0.5) -> Contest:
    dy, dx = _normal(n), np.empty(n, np.float32)
    _, bits = F.dropout(dy, p, seed=0, counter=0)
    mask = reference.dropout_mask(n, p, seed=0, counter=0)
    return Contest("dropout_backward", f"{n:,}", 8 * n + n // 8, {"dy": dy, "mask": mask}, {
        "fastopt": lambda: F.dropout_backward(dy, bits, p, out=dx),
        "NumPy in place": lambda: inplace.dropout_backward(dy, mask, p, dx),
        "NumPy textbook": lambda: reference.dropout_backward(dy, mask, p),
        COPY: lambda: np.copyto(dx, dy),
    }, {"NumPy in place": dx})  # fmt: skip


def bias_forward(rows: int, columns: int) -> Contest:
    x, bias, y = _normal(rows, columns), _normal(columns), np.empty((rows, columns), np.float32)
    return Contest("bias_forward", str(x.shape), 2 * x.nbytes, {"x": x, "bias": bias}, {
        "fastopt": lambda: F.bias_forward(x, bias, out=y),
        "NumPy in place": lambda: np.add(x, bias, out=y),
    }, {"NumPy in place": y})  # fmt: skip


def bias_backward(rows: int, columns: int) -> Contest:
    dy, dbias = _normal(rows, columns), np.empty(columns, np.float32)
    return Contest("bias_backward", str(dy.shape), dy.nbytes, {"dy": dy}, {
        "fastopt": lambda: F.bias_backward(dy, out=dbias),
        "NumPy in place": lambda: np.sum(dy, axis=0, out=dbias),
    }, {"NumPy in place": dbias})  # fmt: skip


def square_sums(rows: int, columns: int) -> Contest:
    x = _normal(rows, columns)
    return Contest("square_sums", str(x.shape), x.nbytes, {"x": x}, {
        "fastopt": lambda: gradients.square_sums(x),
        "NumPy in place": lambda: (np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->j", x, x)),
    })  # fmt: skip


def bias_relu_forward(rows: int, columns: int) -> Contest:
    x, bias, y = _normal(rows, columns), _normal(columns), np.empty((rows, columns), np.float32)
    return Contest("bias_relu_forward", str(x.shape), 2 * x.nbytes, {"x": x, "bias": bias}, {
        "fastopt": lambda: F.bias_relu_forward(x, bias, out=y),
        "NumPy in place": lambda: inplace.bias_relu_forward(x, bias, y),
        "NumPy textbook": lambda: reference.bias_relu_forward(x, bias),
    }, {"NumPy in place": y})  # fmt: skip


def bias_relu_backward(rows: int, columns: int) -> Contest:
    dy, dx = _normal(rows, columns), np.empty((rows, columns), np.float32)
    y = np.maximum(dy[::-1], 0)
    return Contest("bias_relu_backward", str(dy.shape), 3 * dy.nbytes, {"dy": dy, "y": y}, {
        "fastopt": lambda: F.bias_relu_backward(dy, y, out=dx),
        "NumPy in place": lambda: inplace.bias_relu_backward(dy, y, dx),
        "NumPy textbook": lambda: reference.bias_relu_backward(dy, y),
    }, {"NumPy in place": dx})  # fmt: skip


def bias_relu_dropout_forward(rows: int, columns: int, p: float = 0.5) -> Contest:
    x, bias, y = _normal(rows, columns), _normal(columns), np.empty((rows, columns), np.float32)
    undropped = np.maximum(x + bias, 0) / (1 - p)
    generator, counter = np.random.Generator(np.random.SFC64(0)), itertools.count()

    def in_place() -> None:
        inplace.bias_relu_forward(x, bias, y)
        inplace.dropout(y, p, generator, y)

    return Contest("bias_relu_dropout_forward", str(x.shape), 2 * x.nbytes, {"x": x, "bias": bias}, {
        "fastopt": lambda: F.bias_relu_dropout_forward(x, bias, p, seed=0, counter=next(counter), out=y),
        "NumPy in place": in_place,
        "NumPy textbook": lambda: np.where(generator.random(x.shape) >= p, np.maximum(x + bias, 0) / (1 - p), 0),
    }, {"NumPy in place": y}, undropped=undropped)  # fmt: skip


def batch_norm_forward(*shape: int, axis: int = 1) -> Contest:
    channels = shape[axis]
    x, scale, shift, y = _normal(*shape), _normal(channels), _normal(channels), np.empty(shape, np.float32)
    running = np.zeros_like(scale), np.ones_like(scale)
    seen, result = (_channels_second(a, axis) for a in (x, y))
    x3, y3 = (a.reshape(len(a), channels, -1) for a in (seen, result))
    return Contest("batch_norm_forward", _size(shape, axis), 2 * x.nbytes, {"x": x, "scale": scale, "shift": shift}, {
        "fastopt": lambda: F.batch_norm_forward(x, scale, shift, *running, axis=axis, out=y),
        "NumPy in place": lambda: inplace.batch_norm_forward(x3, scale, shift, y3),
        "NumPy textbook": lambda: reference.batch_norm_forward(seen, scale, shift, *running),
        COPY: lambda: np.copyto(y, x),
    }, {"NumPy in place": y}, axis=axis)  # fmt: skip


def batch_norm_backward(*shape: int, axis: int = 1) -> Contest:
    channels = shape[axis]
    x, scale, dy, dx = _normal(*shape), _normal(channels), _normal(*shape)[::-1].copy(), np.empty(shape, np.float32)
    seen, seen_dy, result = (_channels_second(a, axis) for a in (x, dy, dx))
    _, cache = F.batch_norm_forward(x, scale, axis=axis)
    assert cache is not None
    mean, inv_std = (a.reshape(1, -1, 1).astype(np.float32) for a in (cache.mean, cache.inv_std))
    _, textbook, _, _ = reference.batch_norm_forward(seen, scale)
    x3, dy3, dx3 = (a.reshape(len(a), channels, -1) for a in (seen, seen_dy, result))
    return Contest("batch_norm_backward", _size(shape, axis), 3 * x.nbytes, {"dy": dy, "x": x, "scale": scale}, {
        "fastopt": lambda: F.batch_norm_backward(dy, cache, out=dx),
        "NumPy in place": lambda: inplace.batch_norm_backward(dy3, x3, scale, mean, inv_std, dx3),
        "NumPy textbook": lambda: reference.batch_norm_backward(seen_dy, textbook),
        COPY: lambda: np.copyto(dx, x),
    }, {"NumPy in place": dx}, axis=axis)  # fmt: skip


def _channels_second(array: Array, axis: int) -> Array:
    """The same memory with channels second: where they are last, all else is rows."""
    return array if axis == 1 else array.reshape(-1, array.shape[axis])


def _size(shape: Shape, axis: int = 1) -> str:
    """How a contest calls its size."""
    size = f"{shape[0]:,}" if len(shape) == 1 else str(shape)
    return size if axis == 1 else f"{size} channels last"


def activation_forward(n: int) -> Contest:
    x, y = _normal(n), np.empty(n, np.float32)
    return Contest("activation_forward", f"{n:,}", 8 * n, {"x": x}, {
        "fastopt": lambda: F.activation_forward(x, "gelu_tanh", out=y),
        "NumPy textbook": lambda: reference.activation_forward(x, "gelu_tanh"),
    })  # fmt: skip


def activation_backward(n: int) -> Contest:
    x, dy, dx = _normal(n), _normal(n)[::-1].copy(), np.empty(n, np.float32)
    return Contest("activation_backward", f"{n:,}", 12 * n, {"dy": dy, "x": x}, {
        "fastopt": lambda: F.activation_backward(dy, x, "gelu_tanh", out=dx),
        "NumPy textbook": lambda: reference.activation_backward(dy, x, "gelu_tanh"),
    })  # fmt: skip


def group_norm_forward(*shape: int) -> Contest:
    """Layer norm of rows, and images in four groups."""
    groups = 1 if len(shape) == 2 else 4
    x, scale, shift, y = _normal(*shape), _normal(shape[-1]), _normal(shape[-1]), np.empty(shape, np.float32)
    return Contest("group_norm_forward", str(shape), 2 * x.nbytes, {"x": x, "scale": scale, "shift": shift}, {
        "fastopt": lambda: F.group_norm_forward(x, groups, scale, shift, out=y),
        "NumPy textbook": lambda: reference.group_norm_forward(x, groups, scale, shift),
    })  # fmt: skip


def group_norm_backward(*shape: int) -> Contest:
    groups = 1 if len(shape) == 2 else 4
    x, scale, dy, dx = _normal(*shape), _normal(shape[-1]), _normal(*shape)[::-1].copy(), np.empty(shape, np.float32)
    _, cache = F.group_norm_forward(x, groups, scale)
    _, textbook = reference.group_norm_forward(x, groups, scale)
    return Contest("group_norm_backward", str(shape), 3 * x.nbytes, {"dy": dy, "x": x, "scale": scale}, {
        "fastopt": lambda: F.group_norm_backward(dy, cache, out=dx),
        "NumPy textbook": lambda: reference.group_norm_backward(dy, textbook),
    })  # fmt: skip


def softmax_forward(rows: int, columns: int) -> Contest:
    x, y = _normal(rows, columns), np.empty((rows, columns), np.float32)
    return Contest("softmax_forward", str(x.shape), 2 * x.nbytes, {"x": x}, {
        "fastopt": lambda: F.softmax_forward(x, out=y),
        "NumPy textbook": lambda: reference.softmax_forward(x),
    })  # fmt: skip


def softmax_backward(rows: int, columns: int) -> Contest:
    dy, dx = _normal(rows, columns), np.empty((rows, columns), np.float32)
    y = F.softmax_forward(dy[::-1].copy())
    return Contest("softmax_backward", str(dy.shape), 3 * dy.nbytes, {"dy": dy, "y": y}, {
        "fastopt": lambda: F.softmax_backward(dy, y, out=dx),
        "NumPy textbook": lambda: reference.softmax_backward(dy, y),
    })  # fmt: skip


def softmax_cross_entropy(n: int, classes: int) -> Contest:
    x, d = _normal(n, classes), np.empty((n, classes), np.float32)
    labels = np.random.default_rng(0).integers(classes, size=n)
    return Contest("softmax_cross_entropy", str(x.shape), 2 * x.nbytes, {"x": x, "labels": labels}, {
        "fastopt": lambda: F.softmax_cross_entropy(x, labels, out=d),
        "NumPy in place": lambda: inplace.softmax_cross_entropy(x, labels, d),
        "NumPy textbook": lambda: reference.softmax_cross_entropy(x, labels),
    }, {"NumPy in place": d})  # fmt: skip


def max_pool_forward(*shape: int) -> Contest:
    x = _normal(*shape)
    y, _ = F.max_pool_forward(x, 2)
    return Contest("max_pool_forward", str(shape), x.nbytes + 2 * y.nbytes, {"x": x}, {
        "fastopt": lambda: F.max_pool_forward(x, 2, out=y),
        "NumPy in place": lambda: inplace.max_pool_forward(x, y),
        "NumPy textbook": lambda: reference.max_pool_forward(x, (2, 2), (2, 2)),
    }, {"NumPy in place": y})  # fmt: skip


def max_pool_backward(*shape: int) -> Contest:
    x = _normal(*shape)
    y, winner = F.max_pool_forward(x, 2)
    dy, dx = _normal(*y.shape), np.empty_like(x)
    return Contest("max_pool_backward", str(shape), x.nbytes + 2 * y.nbytes, {"dy": dy, "x": x}, {
        "fastopt": lambda: F.max_pool_backward(dy, winner, shape, 2, out=dx),  # type: ignore[arg-type]
        "NumPy in place": lambda: inplace.max_pool_backward(dy, x, y, dx),
        "NumPy textbook": lambda: reference.max_pool_backward(dy, winner, shape, (2, 2), (2, 2)),
    }, {"NumPy in place": dx})  # fmt: skip


def batch_norm_max_pool_forward(*shape: int) -> Contest:
    """With ReLU between them; `APART` are the kernels of each."""
    x, scale, shift = _normal(*shape), _normal(shape[3]), _normal(shape[3])
    running = np.zeros_like(scale), np.ones_like(scale)
    how: dict[str, Any] = {"axis": -1, "relu": True}
    normal = np.empty_like(x)
    y = [F.max_pool_forward(x, 2)[0] for _ in range(2)]
    chosen, winner = np.empty_like(y[0]), F.max_pool_forward(x, 2)[1]

    def apart() -> Array:
        F.batch_norm_forward(x, scale, shift, *running, **how, out=normal)
        return F.max_pool_forward(normal, 2, out=y[1], winner=winner)[0]

    def textbook() -> Array:
        return reference.max_pool_forward(reference.batch_norm_forward(x, scale, shift, **how)[0], (2, 2), (2, 2))[0]

    arrays = {"x": x, "scale": scale, "shift": shift}
    return Contest("batch_norm_max_pool_forward", str(shape), x.nbytes + 2 * chosen.nbytes, arrays, {
        "fastopt": lambda: F.batch_norm_forward(
            x, scale, shift, *running, **how, max_pool=2, out=y[0], chosen=chosen)[0],
        APART: apart,
        "NumPy textbook": textbook,
    })  # fmt: skip


def batch_norm_max_pool_backward(*shape: int) -> Contest:
    x, scale, shift = _normal(*shape), _normal(shape[3]), _normal(shape[3])
    how: dict[str, Any] = {"axis": -1, "relu": True}
    normal, own = F.batch_norm_forward(x, scale, shift, **how)
    y, cache = F.batch_norm_forward(x, scale, shift, **how, max_pool=2)
    winner = F.max_pool_forward(normal, 2)[1]
    textbook = reference.batch_norm_forward(x, scale, shift, **how)[1]
    assert cache is not None
    assert own is not None
    dy, dx, unpooled = _normal(*y.shape), np.empty((2, *shape), np.float32), np.empty_like(x)

    def apart() -> Array:
        F.max_pool_backward(dy, winner, shape, 2, out=unpooled)  # type: ignore[arg-type]
        return F.batch_norm_backward(unpooled, own, out=dx[1])[0]

    def by_the_book() -> Array:
        return reference.batch_norm_backward(
            reference.max_pool_backward(dy, winner, shape, (2, 2), (2, 2)), textbook)[0]  # fmt: skip

    arrays = {"dy": dy, "x": x, "scale": scale, "shift": shift}
    return Contest("batch_norm_max_pool_backward", str(shape), 2 * x.nbytes + 2 * dy.nbytes, arrays, {
        "fastopt": lambda: F.batch_norm_backward(dy, cache, out=dx[0])[0],
        APART: apart,
        "NumPy textbook": by_the_book,
    })  # fmt: skip


def average_pool_forward(*shape: int) -> Contest:
    x = _normal(*shape)
    y = F.average_pool_forward(x, 2)
    return Contest("average_pool_forward", str(shape), x.nbytes + y.nbytes, {"x": x}, {
        "fastopt": lambda: F.average_pool_forward(x, 2, out=y),
        "NumPy textbook": lambda: reference.average_pool_forward(x, (2, 2), (2, 2)),
    })  # fmt: skip


def average_pool_backward(*shape: int) -> Contest:
    n, h, w, c = shape
    dy, dx = _normal(n, h // 2, w // 2, c), np.empty(shape, np.float32)
    return Contest("average_pool_backward", str(shape), dy.nbytes + dx.nbytes, {"dy": dy}, {
        "fastopt": lambda: F.average_pool_backward(dy, (n, h, w, c), 2, out=dx),
        "NumPy textbook": lambda: reference.average_pool_backward(dy, shape, (2, 2), (2, 2)),
    })  # fmt: skip


def conv2d(n: int, h: int, w: int, c: int) -> Contest:
    """A convolution by as many filters of 3 × 3 as there are channels, by Winograd and direct."""
    x, weight, y = _normal(n, h, w, c), _normal(3, 3, c, c), np.empty((3, n, h, w, c), np.float32)
    padded, columns = np.zeros((n, h + 2, w + 2, c), np.float32), np.empty((n, h, w, 3, 3, c), np.float32)
    flat = columns.reshape(-1, 9 * c), weight.reshape(-1, c), y[2].reshape(-1, c)

    def product() -> None:
        inplace.im2col(x, padded, columns)
        np.matmul(flat[0], flat[1], out=flat[2])

    return Contest("conv2d", str(x.shape), 2 * x.nbytes, {"x": x, "weight": weight}, {
        "fastopt": lambda: F.conv2d(x, weight, padding=1, winograd=True, out=y[0]),
        DIRECT: lambda: F.conv2d(x, weight, padding=1, out=y[1]),
        "NumPy in place": product,
    }, {"NumPy in place": y[2]})  # fmt: skip


def conv2d_weight_grad(n: int, h: int, w: int, c: int) -> Contest:
    x, dy, padded = _normal(n, h, w, c), _normal(n, h, w, c)[::-1].copy(), np.zeros((n, h + 2, w + 2, c), np.float32)
    columns, dweight = np.empty((n, h, w, 3, 3, c), np.float32), np.empty((3, 3, 3, c, c), np.float32)
    flat = columns.reshape(-1, 9 * c).T, dy.reshape(-1, c), dweight[2].reshape(-1, c)

    def product() -> None:
        inplace.im2col(x, padded, columns)
        np.matmul(flat[0], flat[1], out=flat[2])

    return Contest("conv2d_weight_grad", str(x.shape), 2 * x.nbytes, {"x": x, "dy": dy}, {
        "fastopt": lambda: F.conv2d_weight_grad(x, dy, 3, padding=1, winograd=True, out=dweight[0]),
        DIRECT: lambda: F.conv2d_weight_grad(x, dy, 3, padding=1, out=dweight[1]),
        "NumPy in place": product,
    }, {"NumPy in place": dweight[2]})  # fmt: skip


def dense_forward(n: int, d: int, k: int) -> Contest:
    """With bias and ReLU."""
    x, weight, bias, y = _normal(n, d), _normal(d, k), _normal(k), np.empty((2, n, k), np.float32)

    def product() -> None:
        np.matmul(x, weight, out=y[1])
        inplace.bias_relu_forward(y[1], bias, y[1])

    arrays = {"x": x, "weight": weight, "bias": bias}
    return Contest("dense_forward", str((n, d, k)), x.nbytes + weight.nbytes + y[0].nbytes, arrays, {
        "fastopt": lambda: F.dense_forward(x, weight, bias, relu=True, out=y[0]),
        "NumPy in place": product,
    }, {"NumPy in place": y[1]})  # fmt: skip


def dense_input_grad(n: int, d: int, k: int) -> Contest:
    dy, weight, dx = _normal(n, k), _normal(d, k), np.empty((2, n, d), np.float32)
    arrays = {"dy": dy, "weight": weight}
    return Contest("dense_input_grad", str((n, d, k)), dy.nbytes + weight.nbytes + dx[0].nbytes, arrays, {
        "fastopt": lambda: F.dense_input_grad(dy, weight, out=dx[0]),
        "NumPy in place": lambda: np.matmul(dy, weight.T, out=dx[1]),
    })  # fmt: skip


def dense_weight_grad(n: int, d: int, k: int) -> Contest:
    x, dy, dweight = _normal(n, d), _normal(n, k), np.empty((2, d, k), np.float32)
    return Contest("dense_weight_grad", str((n, d, k)), x.nbytes + dy.nbytes + dweight[0].nbytes, {"x": x, "dy": dy}, {
        "fastopt": lambda: F.dense_weight_grad(x, dy, out=dweight[0]),
        "NumPy in place": lambda: np.matmul(x.T, dy, out=dweight[1]),
    })  # fmt: skip


def depthwise_forward(*shape: int) -> Contest:
    x, weight, y = _normal(*shape), _normal(3, 3, shape[3]), np.empty(shape, np.float32)
    return Contest("depthwise_forward", str(shape), 2 * x.nbytes, {"x": x, "weight": weight}, {
        "fastopt": lambda: F.depthwise_forward(x, weight, padding=1, out=y),
        "NumPy textbook": lambda: reference.depthwise_forward(x, weight, padding=(1, 1)),
    })  # fmt: skip


def depthwise_backward(*shape: int) -> Contest:
    """Of the input and of the weight."""
    x, weight, dy, dx = _normal(*shape), _normal(3, 3, shape[3]), _normal(*shape)[::-1].copy(), _normal(*shape)
    return Contest("depthwise_backward", str(shape), 3 * x.nbytes, {"dy": dy, "x": x, "weight": weight}, {
        "fastopt": lambda: F.depthwise_backward(dy, x, weight, padding=1, out=dx),
        "NumPy textbook": lambda: reference.depthwise_backward(dy, x, weight, padding=(1, 1)),
    })  # fmt: skip


def embedding_backward(places: int, count: int, width: int) -> Contest:
    dy, table = _normal(places, width), np.empty((count, width), np.float32)
    entries = np.random.default_rng(0).integers(count, size=places)

    def add_at() -> Array:
        table.fill(0)
        np.add.at(table, entries, dy)
        return table

    return Contest("embedding_backward", str((places, count, width)), dy.nbytes + table.nbytes, {"dy": dy}, {
        "fastopt": lambda: F.embedding_backward(dy, entries, count, out=table),
        "NumPy in place": add_at,
        "NumPy textbook": lambda: reference.embedding_backward(dy, entries, count),
    })  # fmt: skip


def im2col(n: int, h: int, w: int, c: int) -> Contest:
    x, padded = _normal(n, h, w, c), np.zeros((n, h + 2, w + 2, c), np.float32)
    columns = F.im2col(x, 3, padding=1)
    return Contest("im2col", str(x.shape), x.nbytes + columns.nbytes, {"x": x}, {
        "fastopt": lambda: F.im2col(x, 3, padding=1, out=columns),
        "NumPy in place": lambda: inplace.im2col(x, padded, columns),
        "NumPy textbook": lambda: np.ascontiguousarray(reference.im2col(x, (3, 3), (1, 1), (1, 1))),
    }, {"NumPy in place": columns})  # fmt: skip


def col2im(n: int, h: int, w: int, c: int) -> Contest:
    x, padded = np.empty((n, h, w, c), np.float32), np.zeros((n, h + 2, w + 2, c), np.float32)
    columns = _normal(n, h, w, 3, 3, c)
    return Contest("col2im", str(x.shape), x.nbytes + columns.nbytes, {"columns": columns}, {
        "fastopt": lambda: F.col2im(columns, x.shape, 3, padding=1, out=x),
        "NumPy in place": lambda: inplace.col2im(columns, padded),
        "NumPy textbook": lambda: reference.col2im(columns, x.shape, (3, 3), (1, 1), (1, 1)),
    })  # fmt: skip


_FLAT = [(32_768,), (1_048_576,), (8_388_608,)]
_DENSE = [(64, 512), (1024, 1024)]
_PRODUCT = [(64, 784, 256), (64, 256, 128)]
_NORM = [(64, 512), (256, 1024), (4096, 1024), (128, 16, 32, 32), (64, 64, 28, 28), (32, 256, 14, 14)]
_NORM_LAST = [(128, 32, 32, 16), (64, 28, 28, 64), (32, 14, 14, 256)]
_IMAGES = [(64, 28, 28, 16), (64, 14, 14, 32)]

#: Layer kernels, on shapes of MLPs and CNNs.
LAYERS: dict[Callable[..., Contest], Sequence[tuple[int, ...]]] = {
    relu_forward: _FLAT,
    relu_backward: _FLAT,
    dropout: _FLAT,
    dropout_backward: _FLAT,
    bias_forward: _DENSE,
    bias_backward: _DENSE,
    square_sums: _DENSE,
    bias_relu_forward: _DENSE,
    bias_relu_backward: _DENSE,
    bias_relu_dropout_forward: _DENSE,
    batch_norm_forward: _NORM,
    batch_norm_backward: _NORM,
    activation_forward: _FLAT[:2],
    activation_backward: _FLAT[:2],
    group_norm_forward: [*_DENSE, *_NORM_LAST],
    group_norm_backward: [*_DENSE, *_NORM_LAST],
    softmax_forward: [(64, 10), (128, 1000)],
    softmax_backward: [(64, 10), (128, 1000)],
    softmax_cross_entropy: [(64, 10), (128, 1000)],
    average_pool_forward: _IMAGES,
    average_pool_backward: _IMAGES,
    conv2d: _IMAGES,
    conv2d_weight_grad: _IMAGES,
    dense_forward: _PRODUCT,
    dense_input_grad: _PRODUCT,
    dense_weight_grad: _PRODUCT,
    depthwise_forward: _IMAGES,
    depthwise_backward: _IMAGES,
    embedding_backward: [(2048, 1000, 64)],
    max_pool_forward: _IMAGES,
    max_pool_backward: _IMAGES,
    batch_norm_max_pool_forward: _IMAGES,
    batch_norm_max_pool_backward: _IMAGES,
    im2col: _IMAGES,
    col2im: _IMAGES,
}


def catalogue(*, quick: bool = False, large: bool = False, threads: int = 1) -> dict[str, Callable[[], Contest]]:
    """What makes each contest, by name and size: ``"adam 1,000"``.

    Parameters
    ----------
    quick : bool, default False
        Only three sizes of each step, and one of each layer.
    large : bool, default False
        The steps also on 50,000,000 parameters, for which some gigabytes of memory must be free.
    threads : int, default 1
        If more, Adam's step on that many threads is also measured against one.
    """
    every: dict[str, Callable[[], Contest]] = {}
    for name in steps():
        most = (*SIZES, LARGE_SIZE) if large else SIZES
        few, many = (QUICK_SIZES[1:2], QUICK_SIZES) if quick else ((SIZES[1], *most[4:]), most)
        for n in many if name in CLASSICS else few:
            every[f"{name} {n:,}"] = functools.partial(step_contest, name, n)
    if not quick:
        for model in MODELS:
            every[f"adam {model}"] = functools.partial(model_contest, "adam", model)
        for name in UNFUSED:
            every[f"{name} ResNet-20"] = functools.partial(model_contest, name, "ResNet-20")
        for n in SIZES[4:]:
            every[f"clipped_adam {n:,}"] = functools.partial(clipped_adam, n)
        every["denormals 1,000,000"] = functools.partial(denormals, 1_000_000)
        for n in THREADS_SIZES if threads > 1 else ():
            every[f"threads {n:,}"] = functools.partial(on_threads, n, threads)
    for make, shapes in LAYERS.items():
        for shape in shapes[:1] if quick else shapes:
            every[f"{make.__name__} {_size(shape)}"] = functools.partial(make, *shape)
    for make in (batch_norm_forward, batch_norm_backward):
        for shape in () if quick else _NORM_LAST:
            every[f"{make.__name__} {_size(shape, -1)}"] = functools.partial(make, *shape, axis=-1)
    return every


# ---- Races --------------------------------------------------------------------------------------------------


def race(
    contenders: dict[str, Call],
    *,
    before: Mapping[str, Call] = MappingProxyType({}),
    calls: int | None = None,
    rounds: int = 15,
    turn: float = 2e-3,
    pause: float = 0.0,
    patience: float = 15.0,
) -> dict[str, list[float]]:
    """The seconds per call of each contender in each undisturbed round.

    Parameters
    ----------
    contenders : dict of callable
    before : dict of callable, optional
        What is called before a contender's turn, off the clock.
    calls : int, optional
        The calls in a turn; by default as many as take about `turn` seconds.
    rounds : int, default 15
        In each, every contender has its turn.
    turn : float, default 2e-3
    pause : float, default 0.0
        How long to wait before each turn, in which threads of the contender before come to rest. The wait is a
        busy one: after a sleep a core runs slower for a while.
    patience : float, default 15.0
        After that many seconds no round begins beyond the seventh.

    Returns
    -------
    dict of list of float
        A round in which the contenders took over 1.2 × their medians together is dropped from all,
        but never more than half of the rounds.
    """

    def nothing() -> None:
        pass

    prepare = {name: before.get(name, nothing) for name in contenders}
    numbers, long = {}, {}
    for name, call in contenders.items():
        prepare[name]()
        number = calls or 1
        while (elapsed := _time(call, number)) < turn / 4 and not calls:
            number *= 2
        numbers[name] = calls or max(1, round(number * turn / elapsed))
        long[name] = elapsed > 5 * turn
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    done = 0
    while done < min(rounds, 7) or (done < rounds and time.perf_counter() - start < patience):
        for name, call in contenders.items():
            _wait(pause)
            prepare[name]()
            if not long[name]:
                call()  # back into the cache
                prepare[name]()
            times[name].append(_time(call, numbers[name]) / numbers[name])
        done += 1
    medians = {name: statistics.median(values) for name, values in times.items()}
    slowness = [statistics.mean(times[name][i] / medians[name] for name in contenders) for i in range(done)]
    limit = max(1.2, statistics.median(slowness))
    kept = [i for i in range(done) if slowness[i] <= limit]
    return {name: [values[i] for i in kept] for name, values in times.items()}


def _time(call: Call, number: int) -> float:
    repeat = range(number)
    start = time.perf_counter()
    for _ in repeat:
        call()
    return time.perf_counter() - start


def _wait(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def measure(contest: Contest, *, rounds: int = 15, pause: float = 0.0) -> dict[str, Any]:
    """The result of a contest, as it goes into JSON: seconds are per call, rates in bytes of the floor per second."""
    times = race(contest.contenders, before=contest.before, calls=contest.calls, rounds=rounds, pause=pause)
    seconds = {
        name: dict(zip(("q1", "median", "q3"), statistics.quantiles(values, n=4), strict=True))
        for name, values in times.items()
    }
    ours = seconds["fastopt"]["median"]
    result: dict[str, Any] = {
        "name": contest.name,
        "size": contest.size,
        "elements": contest.elements,
        "rounds": len(times["fastopt"]),
        "seconds": seconds,
        "bytes_per_second": contest.floor / ours,
        "times_faster": {name: s["median"] / ours for name, s in seconds.items() if name != "fastopt"},
    }
    if STREAM in seconds:  # which moves the same bytes
        result["share_of_streaming"] = seconds[STREAM]["median"] / ours
    return result


def run(*, quick: bool = False, only: str = "") -> list[dict[str, Any]]:
    """Measure every contest whose name holds the text `only`, on one thread, as NumPy has it."""
    chosen = [make for name, make in catalogue(quick=quick).items() if only in name]
    if not chosen:
        raise ValueError(f"only must be part of a contest's name, such as {next(iter(catalogue()))!r}, got {only!r}")
    threads = fastopt.get_num_threads()
    fastopt.set_num_threads(1)
    try:
        return [measure(make(), rounds=7 if quick else 15) for make in chosen]
    finally:
        fastopt.set_num_threads(threads)


def families(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results by the names of their contests."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["name"], []).append(result)
    return found


NOTE = (
    "quartiles: of fastopt's time, in the same unit. × name: how many times as long as fastopt it takes. "
    f"{STREAM}: one multiply-add per array."
)


def table(results: list[dict[str, Any]], *, markdown: bool = False) -> str:
    """Results as text: the time of fastopt, its rate, and how many times the others take."""
    others: dict[str, None] = {}
    for result in results:
        others.update(dict.fromkeys(name for name in result["seconds"] if name != "fastopt"))
    header = ["kernel", "size", "fastopt", "quartiles", "GB/s", *(f"× {name}" for name in others)]
    rows = [header]
    for result in results:
        ours, ratios = result["seconds"]["fastopt"], result["times_faster"]
        _, factor = _unit(ours["median"])
        rows.append([
            result["name"], result["size"], duration(ours["median"]),
            f"{ours['q1'] * factor:.3g}–{ours['q3'] * factor:.3g}", f"{result['bytes_per_second'] / 1e9:.1f}",
            *(f"{ratios[name]:.2f}" if name in ratios else "–" for name in others),
        ])  # fmt: skip
    if markdown:
        rows.insert(1, ["---" if i < 2 else "---:" for i in range(len(header))])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (" | " if markdown else "  ").join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    )


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit, factor = _unit(seconds)
    return f"{seconds * factor:.3g} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return unit, factor
    return "ns", 1e9
