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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastopt import _kernels, arena, inplace, reference
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.optimizers import OPTIMIZERS, Momentum, Optimizer

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
QUICK_SIZES = (100, 10_000, 1_000_000)
STREAM, COPY = "streaming", "copy"

Contender = Callable[[], object]


@dataclass
class Contest:
    """One piece of work on one size."""

    name: str
    size: str
    #: The bytes that must cross memory: what is read and what is written, once each.
    floor: int
    #: What the work is done on; each contender makes its own copies.
    arrays: dict[str, Array]
    contenders: dict[str, Contender] = field(default_factory=dict)
    #: Where a contender leaves its result, if it does not return it.
    results: dict[str, Array] = field(default_factory=dict)


# ---- Contests -----------------------------------------------------------------------------------------------


def _normal(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def steps() -> dict[str, Callable[[Any], Optimizer]]:
    """Every optimizer step that is measured, by name, at a learning rate of 1e-3."""
    every: dict[str, Callable[[Any], Optimizer]] = {
        name: functools.partial(cls, lr=inplace.LR) for name, cls in OPTIMIZERS.items()
    }
    every["nesterov"] = functools.partial(Momentum, lr=inplace.LR, nesterov=True)
    return every


def step_contest(name: str, n: int) -> Contest:
    """A step of that name on one tensor of n parameters."""
    param, grad = _normal(n), _normal(n)[::-1].copy()
    optimizer = steps()[name](param.copy())
    states = _kernels.STEPS[optimizer.kernel][0]
    contest = Contest(name, f"{n:,}", 4 * n * (3 + 2 * len(states)), {"param": param, "grad": grad})
    contest.contenders["fastopt"] = lambda: optimizer.step(grad)
    contest.results["fastopt"] = optimizer.params  # type: ignore[assignment]

    fused = getattr(inplace, name, None)
    if fused is not None:
        arrays = [param.copy(), grad, *(np.zeros_like(param) for _ in states)]
        a, b, t = np.empty_like(param), np.empty_like(param), itertools.count(1)
        contest.contenders["NumPy in place"] = lambda: fused(*arrays, t=next(t), a=a, b=b)
        contest.results["NumPy in place"] = arrays[0]

    textbook = getattr(reference, "momentum" if name == "nesterov" else name)
    hyper: dict[str, Any] = {"lr": inplace.LR} | ({"nesterov": True} if name == "nesterov" else {})
    held, number = [param.copy(), *(np.zeros_like(param) for _ in states)], itertools.count(1)

    def step() -> Array:
        if optimizer.counts_steps:
            hyper["t"] = next(number)
        held[:] = textbook(held[0], grad, *held[1:], **hyper)
        return held[0]

    contest.contenders["NumPy textbook"] = step

    stream = _kernels.Layer("stream")
    streamed = [arena.empty((n,), np.float32) for _ in ("x", "param", *states)]
    for array in streamed:
        array[:] = grad
    absent = [None] * (4 - len(streamed))
    contest.contenders[STREAM] = lambda: stream((*streamed, *absent), (n,), (0.5,))
    return contest


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
    }, {"NumPy in place": y})  # fmt: skip


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


def batch_norm_forward(*shape: int) -> Contest:
    x, scale, shift, y = _normal(*shape), _normal(shape[1]), _normal(shape[1]), np.empty(shape, np.float32)
    running = np.zeros_like(scale), np.ones_like(scale)
    flat = (shape[0], shape[1], -1)
    return Contest("batch_norm_forward", str(shape), 2 * x.nbytes, {"x": x, "scale": scale, "shift": shift}, {
        "fastopt": lambda: F.batch_norm_forward(x, scale, shift, *running, out=y),
        "NumPy in place": lambda: inplace.batch_norm_forward(x.reshape(flat), scale, shift, y.reshape(flat)),
        "NumPy textbook": lambda: reference.batch_norm_forward(x, scale, shift, *running),
        COPY: lambda: np.copyto(y, x),
    }, {"NumPy in place": y})  # fmt: skip


def batch_norm_backward(*shape: int) -> Contest:
    x, scale, dy, dx = _normal(*shape), _normal(shape[1]), _normal(*shape)[::-1].copy(), np.empty(shape, np.float32)
    _, cache = F.batch_norm_forward(x, scale)
    assert cache is not None
    mean, inv_std = (a.reshape(1, -1, 1).astype(np.float32) for a in (cache.mean, cache.inv_std))
    _, textbook, _, _ = reference.batch_norm_forward(x, scale)
    x3, dy3, dx3 = (a.reshape(shape[0], shape[1], -1) for a in (x, dy, dx))
    return Contest("batch_norm_backward", str(shape), 3 * x.nbytes, {"dy": dy, "x": x, "scale": scale}, {
        "fastopt": lambda: F.batch_norm_backward(dy, cache, out=dx),
        "NumPy in place": lambda: inplace.batch_norm_backward(dy3, x3, scale, mean, inv_std, dx3),
        "NumPy textbook": lambda: reference.batch_norm_backward(dy, textbook),
        COPY: lambda: np.copyto(dx, x),
    }, {"NumPy in place": dx})  # fmt: skip


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
_NORM = [(64, 512), (256, 1024), (4096, 1024), (128, 16, 32, 32), (64, 64, 28, 28), (32, 256, 14, 14)]
_IMAGES = [(64, 28, 28, 16), (64, 14, 14, 32)]

#: Layer kernels, on shapes of MLPs and CNNs.
LAYERS: dict[Callable[..., Contest], Sequence[tuple[int, ...]]] = {
    relu_forward: _FLAT,
    relu_backward: _FLAT,
    dropout: _FLAT,
    dropout_backward: _FLAT,
    bias_relu_forward: _DENSE,
    bias_relu_backward: _DENSE,
    batch_norm_forward: _NORM,
    batch_norm_backward: _NORM,
    softmax_cross_entropy: [(64, 10), (128, 1000)],
    max_pool_forward: _IMAGES,
    max_pool_backward: _IMAGES,
    im2col: _IMAGES,
    col2im: _IMAGES,
}


def catalogue(*, quick: bool = False) -> dict[str, Callable[[], Contest]]:
    """What makes each contest, by name and size: ``"adam 1,000"``."""
    every: dict[str, Callable[[], Contest]] = {}
    for name in steps():
        for n in QUICK_SIZES if quick else SIZES:
            every[f"{name} {n:,}"] = functools.partial(step_contest, name, n)
    for make, shapes in LAYERS.items():
        for shape in shapes[:1] if quick else shapes:
            size = f"{shape[0]:,}" if len(shape) == 1 else str(shape)
            every[f"{make.__name__} {size}"] = functools.partial(make, *shape)
    return every


# ---- Races --------------------------------------------------------------------------------------------------


def race(contenders: dict[str, Contender], *, rounds: int = 15, batch: float = 2e-3) -> dict[str, list[float]]:
    """The seconds per call of each contender in each undisturbed round.

    Parameters
    ----------
    contenders : dict of callable
    rounds : int, default 15
        In each, every contender is called for about `batch` seconds, in turn.
    batch : float, default 2e-3

    Returns
    -------
    dict of list of float
        A round in which the contenders took over 1.2 × their medians together is dropped from all,
        but never more than half of the rounds.
    """
    numbers = {}
    for name, call in contenders.items():
        number = 1
        while (elapsed := _time(call, number)) < batch / 4:
            number *= 2
        numbers[name] = max(1, round(number * batch / elapsed))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            call()  # back into the cache
            times[name].append(_time(call, numbers[name]) / numbers[name])
    medians = {name: statistics.median(values) for name, values in times.items()}
    slowness = [statistics.mean(times[name][i] / medians[name] for name in contenders) for i in range(rounds)]
    limit = max(1.2, statistics.median(slowness))
    kept = [i for i in range(rounds) if slowness[i] <= limit]
    return {name: [values[i] for i in kept] for name, values in times.items()}


def _time(call: Contender, number: int) -> float:
    repeat = range(number)
    start = time.perf_counter()
    for _ in repeat:
        call()
    return time.perf_counter() - start


def measure(contest: Contest, *, rounds: int = 15) -> dict[str, Any]:
    """The result of a contest, as it goes into JSON: seconds are per call, rates in bytes of the floor per second."""
    times = race(contest.contenders, rounds=rounds)
    seconds = {
        name: dict(zip(("q1", "median", "q3"), statistics.quantiles(values, n=4), strict=True))
        for name, values in times.items()
    }
    ours = seconds["fastopt"]["median"]
    result: dict[str, Any] = {
        "name": contest.name,
        "size": contest.size,
        "rounds": len(times["fastopt"]),
        "seconds": seconds,
        "bytes_per_second": contest.floor / ours,
        "times_faster": {name: s["median"] / ours for name, s in seconds.items() if name != "fastopt"},
    }
    if STREAM in seconds:  # which moves the same bytes
        result["share_of_streaming"] = seconds[STREAM]["median"] / ours
    return result


def run(*, quick: bool = False, only: str = "") -> list[dict[str, Any]]:
    """Measure every contest whose name holds the text `only`."""
    chosen = [make for name, make in catalogue(quick=quick).items() if only in name]
    if not chosen:
        raise ValueError(f"only must be part of a contest's name, such as {next(iter(catalogue()))!r}, got {only!r}")
    return [measure(make(), rounds=7 if quick else 15) for make in chosen]


def table(results: list[dict[str, Any]], *, markdown: bool = False) -> str:
    """Results as text: the time of fastopt, its rate, and how many times the others take."""
    others: dict[str, None] = {}
    for result in results:
        others.update(dict.fromkeys(name for name in result["seconds"] if name != "fastopt"))
    header = ["kernel", "size", "fastopt", "GB/s", *(f"× {name}" for name in others)]
    rows = [header]
    for result in results:
        ratios = result["times_faster"]
        rows.append([
            result["name"], result["size"], duration(result["seconds"]["fastopt"]["median"]),
            f"{result['bytes_per_second'] / 1e9:.1f}",
            *(f"{ratios[name]:.2f}" if name in ratios else "–" for name in others),
        ])  # fmt: skip
    if markdown:
        rows.insert(1, ["---" if i < 2 else "---:" for i in range(len(header))])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        (" | " if markdown else "  ").join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    ]
    note = f"× name: how many times as long as fastopt it takes. {STREAM}: one multiply-add per array."
    return "\n".join([*lines, "", note])


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
