"""What several models know together: of several seeds, and of one run whose learning rate falls to 0 again and again.

    python examples/ensembles.py              # five seeds of each

Digits are shifted and turned a little. An ensemble of five averages the probabilities of five runs. Snapshots are
copies of one run at the ends of the last three of four cycles of the learning rate, together as many epochs as any run
(G. Huang et al., "Snapshot ensembles: train 1, get M for free", 2017). The table has accuracies on the test images, as
means of the seeds.
"""

from __future__ import annotations

import argparse

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.data import augment
from fastopt.schedules import bind, cosine

MEMBERS = 5
CYCLES, LAST = 4, 3
BATCH, PEAK = 32, 0.01


def digits(seed):
    """Training images that depend on the seed, and test images."""
    x, y, x_test, y_test = data.load("digits")
    moved = augment.Affine(translate=0.15, rotate=15)
    return *moved(x, y, np.random.default_rng(seed)), *moved(x_test, y_test, np.random.default_rng(99))


def network(seed):
    return nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], (8, 8, 1), seed=seed)


def accuracies(seed, epochs=160):
    """Of one model, of the snapshots of one run, and of several models."""
    x, y, x_test, y_test = digits(seed)
    options = {"epochs": epochs, "batch_size": BATCH}
    steps = epochs * -(-len(x) // BATCH)
    first = MEMBERS * seed
    models = [network(first + i) for i in range(MEMBERS)]
    falling = bind(cosine, peak=PEAK, steps=steps)
    seeds = [{"seed": first + i} for i in range(MEMBERS)]
    nn.fit_many(models, x, y, optimizer=lambda model: fastopt.Adam(model.params, lr=falling), each=seeds, **options)
    single, snapshots = network(first), nn.Snapshots(CYCLES, last=LAST)
    adam = fastopt.Adam(single.params, lr=PEAK)
    single.fit(x, y, optimizer=adam, callbacks=[snapshots], seed=first, **options)
    found = {
        "one model": np.mean([model.evaluate(x_test, y_test)["accuracy"] for model in models]),
        f"{LAST} snapshots of one run": snapshots.ensemble.evaluate(x_test, y_test)["accuracy"],
        f"{MEMBERS} models": nn.Ensemble(models).evaluate(x_test, y_test)["accuracy"],
    }
    return {name: 100 * float(value) for name, value in found.items()}


def table(seeds=5, **options):
    """By what predicts, the accuracy of each seed."""
    runs = [accuracies(seed, **options) for seed in range(seeds)]
    return {name: np.array([run[name] for run in runs]) for name in runs[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    found = table(parser.parse_args().seeds)
    single = found["one model"]
    print("| what predicts | training | accuracy | gain | lowest gain |\n| --- | ---: | ---: | ---: | ---: |")
    for name, own in found.items():
        cost = MEMBERS if name == f"{MEMBERS} models" else 1
        gain = own - single
        print(f"| {name} | {cost} × | {own.mean():.1f} | {gain.mean():+.1f} | {gain.min():+.1f} |")


if __name__ == "__main__":
    main()
