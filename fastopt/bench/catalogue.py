"""Every contest there is, by name and size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import fastopt
from fastopt.bench.contests import Contest
from fastopt.bench.layers import LAYERS, layer_contest, sizes, title
from fastopt.bench.racing import measure
from fastopt.bench.steps import (
    CLASSICS,
    MODELS,
    UNFUSED,
    clipped_adam,
    denormals,
    model_contest,
    on_threads,
    step_contest,
    steps,
)  # fmt: skip

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
QUICK_SIZES = (100, 10_000, 1_000_000)
LARGE_SIZE = 50_000_000
THREADS_SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000)


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
    for name in LAYERS:
        for size in sizes(name)[:1] if quick else sizes(name):
            every[f"{name} {title(name, size)}"] = functools.partial(layer_contest, name, size)
    return every


def extent(make: functools.partial[Contest]) -> int:
    """About how many numbers a contest of the catalogue works on, without making it."""

    def of(argument: Any) -> int:
        if isinstance(argument, tuple):
            flat = all(isinstance(item, int) for item in argument)
            return abs(math.prod(argument)) if flat else max(map(of, argument))
        return argument if isinstance(argument, int) else 0

    return max(map(of, make.args))


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
