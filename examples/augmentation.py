"""What augmentations are worth: small networks on few images, tested on images that were moved, or as they are.

    python examples/augmentation.py              # some minutes: five seeds of each
    python examples/augmentation.py --seeds 1

Two sets: digits (200 to train on; the test images are also shifted and turned), and pictures 16×16×3 made here (four
shapes of any colour anywhere on a coloured ground; 160 to train on). The table has the mean accuracy on held-out
images, and the lowest and the highest of the seeds.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.data import augment

Images = Any
Sets = tuple[Images, Any, dict[str, tuple[Images, Any]]]


def digits(seed: int) -> Sets:
    """A few training images, labels, and named test sets."""
    x, y, x_test, y_test = data.load("digits")
    chosen = data.split(np.arange(len(x)), y, train=200 / len(x), test=0.5, seed=seed)[0]
    rng = np.random.default_rng(1)
    tests = {
        "as they are": (x_test, y_test),
        "shifted": augment.Affine(translate=0.15)(x_test, y_test, rng),
        "turned": augment.Affine(rotate=30)(x_test, y_test, rng),
    }
    return x[chosen], y[chosen], tests


def pictures(n: int, seed: int) -> tuple[Images, Any]:
    """Discs, squares, crosses and rings of any colour, size and place, on a ground that is darker or lighter."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 4
    rows, columns = np.arange(16)[None, :, None], np.arange(16)[None, None, :]
    radius = rng.uniform(3, 5, (n, 1, 1))
    down, right = rows - rng.uniform(5, 10, (n, 1, 1)), columns - rng.uniform(5, 10, (n, 1, 1))
    distance, corner = np.hypot(down, right), np.maximum(abs(down), abs(right))
    inside = np.select(
        [(y == k)[:, None, None] for k in range(4)],
        [
            distance < radius,
            corner < 0.9 * radius,
            (np.minimum(abs(down), abs(right)) < 1.2) & (corner < radius),
            abs(distance - radius) < 1,
        ],
    )
    ground, color = rng.random((2, n, 1, 1, 3))
    dark = (rng.random((n, 1, 1, 1)) < 0.5) * 0.5
    x = np.where(inside[..., None], color / 2 + dark, ground / 2 + 0.5 - dark) + rng.normal(0, 0.05, (n, 16, 16, 3))
    return np.clip(x, 0, 1).astype(np.float32), y


def shapes(seed: int) -> Sets:
    x_test, y_test = pictures(1000, 1000)
    return *pictures(160, seed), {"as they are": (x_test, y_test)}


def mlp() -> nn.Sequential:
    return nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], (8, 8, 1))


def cnn() -> nn.Sequential:
    layers = [nn.Conv2D(16), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D()]
    layers += [nn.Conv2D(32), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.Flatten(), nn.Dense(4)]
    return nn.Sequential(layers, (16, 16, 3))


FLIPS = [augment.HorizontalFlip(), augment.VerticalFlip()]
VARIANTS: dict[str, tuple[Any, Any, int, dict[str, Any]]] = {
    "digits": (
        digits,
        mlp,
        60,
        {
            "nothing": None,
            "shifts": augment.Affine(translate=0.15),
            "turns": augment.Affine(rotate=30),
            "shifts and turns": augment.Affine(translate=0.15, rotate=30),
            "Mixup": augment.Mixup(classes=10),
        },
    ),
    "shapes": (
        shapes,
        cnn,
        60,
        {
            "nothing": None,
            "flips": augment.Compose(FLIPS),
            "colours": augment.ColorJitter(0.4, 0.4, 0.4, 0.5),
            "crops": augment.RandomCrop(padding=4, border="edge"),
            "flips, colours and crops": augment.Compose(
                [*FLIPS, augment.ColorJitter(0.4, 0.4, 0.4, 0.5), augment.RandomCrop(padding=4, border="edge")]
            ),
        },
    ),
}


def trained(model: nn.Sequential, x: Images, y: Any, augmentation: Any, epochs: int, seed: int) -> nn.Sequential:
    """Train on images that are augmented anew for each epoch."""
    loader = data.Loader((x, y), 32, augmentation, seed=seed)
    model.fit(loader, epochs=epochs, optimizer=fastopt.Adam(model.params, lr=3e-3), loss=nn.SoftmaxCrossEntropy())
    return model


def accuracies(name: str, variant: str, seed: int) -> dict[str, float]:
    """The accuracy of one run on each of its test sets."""
    make, network, epochs, variants = VARIANTS[name]
    x, y, tests = make(seed)
    model = trained(network(), x, y, variants[variant], epochs, seed)
    return {test: model.evaluate(*pair)["accuracy"] for test, pair in tests.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    print(
        "| set | augmentation | test images | accuracy | lowest | highest |\n| --- | --- | --- | ---: | ---: | ---: |"
    )
    for name, (*_, variants) in VARIANTS.items():
        for variant in variants:
            runs = [accuracies(name, variant, seed) for seed in range(arguments.seeds)]
            for test in runs[0]:
                found = [100 * run[test] for run in runs]
                print(f"| {name} | {variant} | {test} | {np.mean(found):.1f} | {min(found):.1f} | {max(found):.1f} |")


if __name__ == "__main__":
    main()
