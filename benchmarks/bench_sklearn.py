"""`fastopt.sklearn` against scikit-learn: fits by the defaults of each, medians of rounds taken in turn, one thread.

    python benchmarks/bench_sklearn.py                # --only digits, --rounds 3, --small (a try of each, few epochs)

Each contender fits the same data from the same `random_state`. `demand` is what the ratio must be at least; the last
rows are distances of `coefs_`, which must be at most 1e-9. Searches have two threads, or two processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from scipy.stats import loguniform
from sklearn import neural_network as theirs
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier
from sklearn.model_selection import RandomizedSearchCV

import fastopt
from fastopt import cli
from fastopt import sklearn as ours

Data = tuple[np.ndarray, np.ndarray]
DISTANCE = 1e-9


def digits(dtype: type) -> Data:
    x, y = load_digits(return_X_y=True)
    return x[:1347].astype(dtype), y[:1347]


def large(small: bool) -> Data:
    """20,000 samples of 784 features and ten classes, with something to learn."""
    rng = np.random.default_rng(0)
    n = 400 if small else 20_000
    x = rng.normal(size=(n, 784)).astype(np.float32)
    return x, (x @ rng.normal(size=(784, 10))).argmax(axis=1)


@dataclass(frozen=True)
class Contest:
    name: str
    demand: float
    data: Callable[[bool], Data]
    options: dict[str, Any]
    #: Whether scikit-learn's own estimator runs patched, in the place of ours.
    patched: bool = False


CONTESTS = (
    Contest("digits, float64, defaults", 8.0, lambda small: digits(np.float64), {}),
    Contest("digits, float32, batch 32", 12.0, lambda small: digits(np.float32), {"batch_size": 32}),
    Contest("(256, 128), 20,000 x 784, float32, batch 200", 1.9, large,
            {"hidden_layer_sizes": (256, 128), "batch_size": 200, "max_iter": 10}),
    Contest("patch(): (256, 128), batch 64, float64", 1.3, lambda small: digits(np.float64),
            {"hidden_layer_sizes": (256, 128), "batch_size": 64}, patched=True),
)  # fmt: skip

#: Settings whose `coefs_` must be those of scikit-learn after 20 epochs on the digits, in float64.
SAME: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tanh (40, 20), alpha 0.01": {"activation": "tanh", "hidden_layer_sizes": (40, 20), "alpha": 0.01},
    "sgd, constant": {"solver": "sgd"},
    "sgd, invscaling": {"solver": "sgd", "learning_rate": "invscaling"},
    "sgd, adaptive": {"solver": "sgd", "learning_rate": "adaptive"},
    "early stopping": {"early_stopping": True},
}


#: What searches try, in float32, as for the second row: rates and penalties on log scales, the usual sizes of batches.
SPACE = {
    "learning_rate_init": loguniform(1e-4, 1e-1),
    "alpha": loguniform(1e-6, 1e-1),
    "batch_size": [16, 32, 64, 128],
    "hidden_layer_sizes": [(50,), (100,), (50, 50)],
}
SEARCH = "SearchCV, 40 candidates x 5 folds on digits, float32"
ENSEMBLE = "n_ensemble=10 on digits, float32, batch 32"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def timed(runs: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each, medians over rounds, in which they take turns; and what each has returned."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    last = {}
    with quiet():
        for _ in range(rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                last[name] = run()
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}, last


def race(contest: Contest, rounds: int, small: bool) -> dict[str, Any]:
    x, y = contest.data(small)
    options = contest.options | ({"max_iter": 2} if small else {})

    def fit(module: Any, *, patched: bool) -> Any:
        with ours.patched() if patched else contextlib.nullcontext():
            return module.MLPClassifier(random_state=0, **options).fit(x, y)

    runs = {"scikit-learn": lambda: fit(theirs, patched=False)}
    runs["fastopt"] = lambda: fit(theirs if contest.patched else ours, patched=contest.patched)
    seconds, last = timed(runs, rounds)
    ratio = seconds["scikit-learn"] / seconds["fastopt"]
    epochs = {name: each.n_iter_ for name, each in last.items()}
    return {"seconds": seconds, "epochs": epochs, "ratio": ratio, "demand": contest.demand}


def search(rounds: int, small: bool) -> dict[str, Any]:
    """`SearchCV` with two threads against RandomizedSearchCV with two processes, which are started before."""
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    given = {"n_iter": 2 if small else 40, "cv": 5, "random_state": 0}
    more = {"max_iter": 2} if small else {}
    with threads(2):
        with quiet():
            RandomizedSearchCV(theirs.MLPClassifier(max_iter=1), SPACE, n_iter=2, n_jobs=2).fit(x, y)
        seconds, last = timed(
            {
                "scikit-learn": lambda: RandomizedSearchCV(
                    theirs.MLPClassifier(random_state=0, **more), SPACE, n_jobs=2, **given
                ).fit(x, y),
                "fastopt": lambda: ours.SearchCV(
                    ours.MLPClassifier(random_state=0, **more), SPACE, threads=2, **given
                ).fit(x, y),
            },
            rounds,
        )
    best = {name: float(each.best_score_) for name, each in last.items()}
    ratio = seconds["scikit-learn"] / seconds["fastopt"]
    return {"seconds": seconds, "best": best, "ratio": ratio, "demand": 15.0}


def ensemble(rounds: int, small: bool) -> dict[str, Any]:
    """Ten networks with two threads against BaggingClassifier of scikit-learn's with two processes, without bags."""
    x, y = digits(np.float32)
    options = {"batch_size": 32} | ({"max_iter": 2} if small else {})
    with threads(2):
        seconds, _ = timed(
            {
                "scikit-learn": lambda: BaggingClassifier(
                    theirs.MLPClassifier(**options), 10, bootstrap=False, n_jobs=2, random_state=0
                ).fit(x, y),
                "fastopt": lambda: ours.MLPClassifier(random_state=0, n_ensemble=10, **options).fit(x, y),
            },
            rounds,
        )
    return {"seconds": seconds, "ratio": seconds["scikit-learn"] / seconds["fastopt"], "demand": 0.0}


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block, fastopt has so many threads, and a BLAS those that it has by default."""
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(count)
    try:
        with threadpoolctl.threadpool_limits(count):
            yield
    finally:
        fastopt.set_num_threads(before)


def distance(options: dict[str, Any], epochs: int) -> float:
    x, y = digits(np.float64)
    with quiet():
        a, b = (m.MLPClassifier(random_state=0, max_iter=epochs, **options).fit(x, y) for m in (theirs, ours))
    pairs = zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True)
    return max(float(np.linalg.norm(p - q) / np.linalg.norm(p)) for p, q in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose name holds TEXT")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--small", action="store_true", help="two epochs and less data: whether all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything that was measured")
    given = parser.parse_args()
    fastopt.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
    results: dict[str, Any] = {}
    for contest in CONTESTS:
        if given.only in contest.name:
            got = results[contest.name] = race(contest, given.rounds, given.small)
            met = "yes" if got["ratio"] >= got["demand"] else "NO "
            seconds = ", ".join(f"{name} {value:.3f} s" for name, value in got["seconds"].items())
            epochs = "/".join(map(str, got["epochs"].values()))
            print(f"{met} {contest.name}: {got['ratio']:.2f} x (at least {contest.demand}); {seconds}; epochs {epochs}")
    for name, measure in ((SEARCH, search), (ENSEMBLE, ensemble)):
        if given.only in name:
            got = results[name] = measure(given.rounds, given.small)
            met = "yes" if got["ratio"] >= got["demand"] else "NO "
            seconds = ", ".join(f"{who} {value:.3f} s" for who, value in got["seconds"].items())
            print(f"{met} {name}: {got['ratio']:.2f} x (at least {got['demand']}); {seconds}")
    for name, options in SAME.items():
        if given.only in name:
            far = results[name] = distance(options, 2 if given.small else 20)
            print(f"{'yes' if far <= DISTANCE else 'NO '} coefs_, {name}: {far:.1e} (at most {DISTANCE:.0e})")
    if given.json:
        given.json.write_text(json.dumps({"environment": cli.environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
