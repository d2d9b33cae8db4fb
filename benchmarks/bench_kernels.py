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


@functools.cache
def contenders(make, *arguments, **options) -> list[str]:
    """The names of the contenders in contests of that kind, from a tiny one."""
    tiny = (2 if isinstance(argument, int) else argument for argument in arguments)
    return list(peers.add(make(*tiny, **options)).contenders)


def rows():
    for name, make in CATALOGUE.items():
        marks = [large] if LARGE in make.args else []
        for contender in contenders(make.func, *make.args, **make.keywords):
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
