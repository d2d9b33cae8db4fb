"""Contests of optimizer steps: in well-written NumPy, as the textbook has it, and beside a bare stream of bytes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np

import fastopt
from fastopt import arena, cases, inplace, reference
from fastopt.bench.contests import FLAT, NORMAL, ONE_THREAD, STREAM, UNCLIPPED, Call, Contest, Shape, together
from fastopt.checks import Array
from fastopt.optimizer import Optimizer
from fastopt.optimizers import OPTIMIZERS, Adam


def _normal(*shape: int) -> Array:
    return cases.normal()(*shape)


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
        streamed = [arena.empty((n,), np.float32) for _ in range(2 + states)]
        for array in streamed:
            array[:] = np.concatenate([grad.ravel() for grad in grads])
        contest.contenders[STREAM] = functools.partial(cases.stream, *streamed)
    return contest


def _in_place(name: str, param: Array, grad: Array, states: list[Array]) -> tuple[Call, Array]:
    fused = getattr(inplace, name)
    arrays = [param.copy(), grad, *states]
    a, b, t = np.empty_like(param), np.empty_like(param), itertools.count(1)
    return lambda: fused(*arrays, t=next(t), a=a, b=b), arrays[0]


def _textbook(name: str, optimizer: Optimizer, param: Array, grad: Array, states: list[Array]) -> Callable[[], Array]:
    formula, given = getattr(reference, optimizer.name), steps()[name].keywords
    hyper = {key: getattr(optimizer, key) for key in optimizer._setting_names()}
    held, number, scalars = [param.copy(), *states], itertools.count(1), optimizer.scalars

    def step() -> Array:
        nonlocal scalars
        t = next(number)
        computed, scalars = reference.scalars_after(optimizer.name, hyper, scalars, t)
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
