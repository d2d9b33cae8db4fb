"""When what was learnt elsewhere helps: little or much data, from a task that is alike or not.

    python examples/transfer.py              # some minutes: five seeds of each
    python examples/transfer.py --seeds 1

Digits stand anywhere in their images, somewhat turned. A small CNN learns 0 to 4 from many such images, upright (alike)
or turned by 90 degrees (different), and is then to tell 5 to 9 by 10 or 100 images of each: from nothing; by a new head
on what it has learnt, which stays as it is; with the last convolutions learning, too; with all layers learning, the
lower ones more slowly. The table has the mean accuracy on held-out images.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.data import augment

#: What is trained on the new digits.
VARIANTS = ("from nothing", "head", "last layers", "all")


def parts(y: Any, per_class: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Indices of so many images of each class to train on, and of 70 others to test on."""
    train, test = [], []
    for label in np.unique(y):
        own = rng.permutation(np.flatnonzero(y == label))
        train.append(own[:per_class])
        test.append(own[per_class : per_class + 70])
    return np.concatenate(train), np.concatenate(test)


def scattered(chosen: Any, copies: int, seed: int) -> tuple[Any, Any]:
    """Digits of some classes, each several times anywhere in an image 12×12."""
    x, y = data.digits()
    wanted = np.isin(y, chosen)
    x = np.repeat(np.pad(x[wanted], ((0, 0), (2, 2), (2, 2), (0, 0))), copies, axis=0)
    y = np.repeat(y[wanted] - chosen[0], copies)
    return augment.Affine(translate=0.2, rotate=25)(x, y, np.random.default_rng(seed))


def network(seed: int) -> nn.Sequential:
    """A CNN for images 12×12."""
    return nn.Sequential(
        [
            nn.Standardize("channel"),
            nn.Conv2D(16, activation="relu"),
            nn.MaxPool2D(),
            nn.Conv2D(32, activation="relu"),
            nn.MaxPool2D(),
            nn.Conv2D(64, activation="relu"),
            nn.GlobalMaxPool2D(),
            nn.Dense(5, init="xavier"),
        ],
        (12, 12, 1),
        seed=seed,
    )


def pretrained(turned: bool, seed: int, epochs: int) -> nn.Sequential:
    """The network after it has learnt digits 0 to 4."""
    x, y = scattered(np.arange(5), 10, seed)
    model = network(seed)
    model.fit(np.rot90(x, axes=(1, 2)).copy() if turned else x, y, epochs=epochs, optimizer="adam", seed=seed)
    return model


def accuracy(trained: nn.Sequential, variant: str, per_class: int, seed: int, steps: int) -> float:
    """On held-out images of digits 5 to 9."""
    x, y = scattered(np.arange(5, 10), 1, 100 + seed)
    train, test = parts(y, per_class, np.random.default_rng(seed))
    if variant == "from nothing":
        model = network(seed + 1)
    else:
        model = trained.with_head([nn.Dense(5, init="xavier")], seed=seed + 1)
        if variant != "all":
            model.freeze(slice(-1 if variant == "head" else -3))
    adam = fastopt.Adam(model.params, lr=3e-3, groups=nn.groups_by_depth(model, 0.5) if variant == "all" else ())
    epochs = max(1, steps * 16 // len(train))
    model.fit(x[train], y[train], epochs=epochs, batch_size=16, optimizer=adam, seed=seed)
    return model.evaluate(x[test], y[test])["accuracy"]


def table(seeds: int = 5, epochs: int = 5, steps: int = 500) -> dict[tuple[str, int], dict[str, float]]:
    """Mean accuracies in percent: for each quarter, those of the variants."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for seed in range(seeds):
        for task in ("alike", "different"):
            trained = pretrained(task == "different", seed, epochs)
            for per_class in (10, 100):
                quarter = found.setdefault((task, per_class), {variant: [] for variant in VARIANTS})
                for variant in VARIANTS:
                    quarter[variant].append(accuracy(trained, variant, per_class, seed, steps))
    return {key: {v: 100 * float(np.mean(each)) for v, each in quarter.items()} for key, quarter in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    rows = table(parser.parse_args().seeds)
    print(f"| learnt before | images a class | {' | '.join(VARIANTS)} |\n| --- | ---: |{' ---: |' * len(VARIANTS)}")
    for (task, per_class), row in rows.items():
        print(f"| {task} | {per_class} | {' | '.join(f'{row[variant]:.1f}' for variant in VARIANTS)} |")


if __name__ == "__main__":
    main()
