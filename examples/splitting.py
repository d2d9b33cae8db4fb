"""Train, validate, test: what a score promises, and what new data then hold.

    python examples/splitting.py

Many candidates are trained on the same data, and one of them is chosen. Done right, validation data choose, and test
data, which nothing was chosen by, measure. Two ways to promise too much: test data that choose as well, so that the
best of many lucky scores is reported; and features that are chosen by all data before these are split. The latter is
shown on features that are noise: there is nothing to know, and a half is what new data hold.
"""

from __future__ import annotations

import argparse

import numpy as np

import fastopt
from fastopt import data, nn

WAYS = ("validation chooses, test measures", "test chooses and measures", "features chosen by all data, then split")


def chosen_among_candidates(seed, candidates=30, held_out=60):
    """For both ways of choosing among networks on digits: what is promised, and what 800 new images hold."""
    x, y = data.digits()
    order = np.random.default_rng(seed).permutation(len(x))
    sizes = np.cumsum([150, held_out, held_out])
    (train, validation, test), new = np.split(order[: sizes[-1]], sizes[:-1]), order[-800:]
    rng = np.random.default_rng(seed)
    widths = rng.integers(4, 24, candidates)
    models = [
        nn.Sequential([nn.Flatten(), nn.Dense(int(width), activation="relu"), nn.Dense(10)], (8, 8, 1), seed=i)
        for i, width in enumerate(widths)
    ]
    options = {"epochs": 12, "each": [{"seed": i} for i in range(candidates)]}
    nn.fit_many(models, x[train], y[train], optimizer=lambda model: fastopt.Adam(model.params, lr=0.01), **options)

    def accuracies(part):
        return np.array([model.evaluate(x[part], y[part])["accuracy"] for model in models])

    by_validation, by_test, by_new = map(accuracies, (validation, test, new))
    right, wrong = by_validation.argmax(), by_test.argmax()
    return (by_test[right], by_new[right]), (by_test[wrong], by_new[wrong])


def features_of_noise(seed, samples=100, features=2000, kept=20):
    """A network on those features of noise that go best with all labels: what is promised, and what new data hold."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(samples, features)), rng.integers(2, size=samples)
    x_new, y_new = rng.normal(size=(400, features)), rng.integers(2, size=400)
    best = np.argsort(-np.abs((y - y.mean()) @ x))[:kept]  # the leak: labels of the test part are among them
    x_train, y_train, x_test, y_test = data.split(x[:, best], y, test=0.3, seed=seed)
    model = nn.Sequential([nn.Dense(2)], (kept,), seed=seed)
    model.fit(x_train, y_train, epochs=30, seed=seed)
    return model.evaluate(x_test, y_test)["accuracy"], model.evaluate(x_new[:, best], y_new)["accuracy"]


def table(seeds=10):
    """By the way, in percent: what is promised and what new data hold."""
    found = [(*chosen_among_candidates(seed), features_of_noise(seed)) for seed in range(seeds)]
    return dict(zip(WAYS, map(tuple, 100 * np.mean(found, axis=0)), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    print("| way | promised | new data |\n| --- | ---: | ---: |")
    for way, (promised, held) in table(parser.parse_args().seeds).items():
        print(f"| {way} | {promised:.1f} | {held:.1f} |")


if __name__ == "__main__":
    main()
