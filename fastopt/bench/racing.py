"""Races: contenders by turns, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastopt.bench.contests import STREAM, Call, Contest


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
