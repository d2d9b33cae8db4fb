"""What a leak promises: statistics of all data, test samples among them, against those of the training data alone.

A sensor drifts: each day has an offset of its own. A model is trained on some days, and tested on one more. Its layer
`Standardize` learns from the training days, as it should, or from the training days and the test day together, many
samples of which then half undo that day's drift. The day after, which nobody has seen, holds what the test day promises
without the leak, and not what it promises with it.

    python examples/leak.py
"""

from __future__ import annotations

import argparse

import numpy as np

from fastopt import nn

FEATURES = 8


def day(rng, samples, drift):
    """Samples of two classes, measured by a sensor with an offset of its own."""
    y = rng.integers(2, size=samples)
    x = rng.normal(size=(samples, FEATURES)) + np.where(y, 0.5, -0.5)[:, None]
    return x + drift * rng.choice([-1.0, 1.0]), y


def accuracies(seed, epochs, samples):
    """Accuracy on the test day and on the day after, with a leak and without."""
    rng = np.random.default_rng(seed)
    x_train, y_train = day(rng, samples, 0.0)
    (x_test, y_test), (x_new, y_new) = (day(rng, 4 * samples, 1.0) for _ in range(2))
    found = []
    for seen in (x_train, np.concatenate([x_train, x_test])):
        model = nn.Sequential([nn.Standardize(), nn.Dense(2)], (FEATURES,), seed=seed)
        model.fit(x_train, y_train, epochs=epochs)
        model.adapt(seen)  # the leak, where test samples are seen
        found += [model.evaluate(x, y)["accuracy"] for x, y in ((x_test, y_test), (x_new, y_new))]
    return found


def table(seeds=20, epochs=20, samples=200):
    """Mean accuracies in percent, by what the statistics are of: on the test day, and on the day after."""
    mean = 100 * np.mean([accuracies(seed, epochs, samples) for seed in range(seeds)], axis=0)
    return {"the training data": tuple(mean[:2]), "all data": tuple(mean[2:])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    print("| statistics of | test day | the day after |\n| --- | ---: | ---: |")
    for name, (test, after) in table(parser.parse_args().seeds).items():
        print(f"| {name} | {test:.1f} | {after:.1f} |")


if __name__ == "__main__":
    main()
