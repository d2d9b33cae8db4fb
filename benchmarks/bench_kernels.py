"""Every kernel by every contender under pytest-benchmark; a group is a contest.

    pytest benchmarks/bench_kernels.py --benchmark-enable -k "adam and not adamw" --benchmark-group-by=group

Its figures come one contender after the other; for ratios use compare.py, which races them.
"""

import functools
import os

import peers
import pytest

from fastopt import bench

CATALOGUE = bench.catalogue()
LARGE = 10_000_000

large = pytest.mark.skipif(
    "FASTOPT_BENCH_LARGE" not in os.environ, reason="10,000,000 parameters: set FASTOPT_BENCH_LARGE=1"
)


def kind(argument):
    """An argument of a contest without how large it is."""
    if isinstance(argument, tuple):
        return tuple(map(kind, argument))
    return argument if isinstance(argument, str) else argument < 0


def rows():
    """Contests of one kind have the contenders of the first, which is the smallest."""
    contenders = {}
    for name, make in CATALOGUE.items():
        marks = [large] if LARGE in make.args else []
        like = make.func, kind(make.args)
        if like not in contenders:
            contenders[like] = list(peers.add(make()).contenders)
        for contender in contenders[like]:
            yield pytest.param(name, contender, marks=marks, id=f"{name} {contender}".replace(",", ""))


@functools.lru_cache(maxsize=1)  # the rows of a contest follow one another
def contest(name: str) -> bench.Contest:
    return peers.agree(peers.add(CATALOGUE[name]()))


@pytest.mark.parametrize(("name", "contender"), list(rows()))
def test_bench(benchmark, name, contender):
    entered = contest(name)
    benchmark.group = name
    call = entered.contenders[contender]
    if contender in entered.before:
        benchmark.pedantic(call, setup=entered.before[contender], rounds=30)
    else:
        benchmark(call)
    if benchmark.stats:
        benchmark.extra_info["bytes_per_second"] = entered.floor / benchmark.stats.stats.median
