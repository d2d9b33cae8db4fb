"""One line of a program with scikit-learn's MLPs replaced: the same models, sooner.

    python examples/replace_import.py          # leave the machine alone; one thread each

    from sklearn.neural_network import MLPClassifier      →      from fastopt.sklearn import MLPClassifier

Each row is a program that is run with both imports: what it scores, and seconds (the median of rounds, in turn).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
from sklearn import neural_network
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastopt
from fastopt import sklearn as ours


def digits(dtype=np.float64):
    x, y = load_digits(return_X_y=True)
    return train_test_split(x.astype(dtype), y, stratify=y, random_state=0)


def classifier(library, small):
    x, x_test, y, y_test = digits()
    clf = library.MLPClassifier(random_state=0, max_iter=10 if small else 200).fit(x, y)
    return clf.score(x_test, y_test)


def single_precision(library, small):
    x, x_test, y, y_test = digits(np.float32)
    clf = library.MLPClassifier(random_state=0, max_iter=5 if small else 100, batch_size=32, early_stopping=True)
    return clf.fit(x, y).score(x_test, y_test)


def regressor(library, small):
    x, x_test, y, y_test = train_test_split(*load_diabetes(return_X_y=True), random_state=0)
    options = {"hidden_layer_sizes": (32,), "learning_rate_init": 0.01, "max_iter": 20 if small else 500}
    model = library.MLPRegressor(random_state=0, **options)
    return make_pipeline(StandardScaler(), model).fit(x, y).score(x_test, y_test)


def grid_search(library, small):
    x, x_test, y, y_test = digits()
    net = library.MLPClassifier((30,), random_state=0, max_iter=5 if small else 50)
    grid = {"alpha": [1e-4, 1e-2], "learning_rate_init": [1e-3, 1e-2]}
    return GridSearchCV(net, grid, cv=2 if small else 3).fit(x, y).score(x_test, y_test)


PROGRAMS = {
    "MLPClassifier on digits": classifier,
    "MLPClassifier on digits, float32, batches of 32": single_precision,
    "MLPRegressor on diabetes, in a pipeline": regressor,
    "GridSearchCV of MLPClassifier": grid_search,
}


def compare(program, rounds=3, small=False):
    """Scores and median seconds of a program, with scikit-learn's import and with ours."""
    scores, seconds = [], ([], [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(rounds):
            for library, own in zip((neural_network, ours), seconds, strict=True):
                start = time.perf_counter()
                scores.append(program(library, small))
                own.append(time.perf_counter() - start)
    return scores[:2], [statistics.median(own) for own in seconds]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="few epochs: a try of each")
    arguments = parser.parse_args()
    fastopt.set_num_threads(1)
    print("| program | scikit-learn: score | s | fastopt: score | s | × |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, program in PROGRAMS.items():
        (a, b), (before, after) = compare(program, arguments.rounds, arguments.small)
        print(f"| {name} | {a:.4f} | {before:.2f} | {b:.4f} | {after:.2f} | {before / after:.1f} |")


if __name__ == "__main__":
    main()
