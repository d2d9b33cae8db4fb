"""Augmentation of batches against a loop over images, on batches of CIFAR's shape, 128 × 32×32×3.

    python benchmarks/bench_data.py                # tables of times, and what must be shown; leave the machine alone
    python benchmarks/bench_data.py --only crop
    python benchmarks/bench_data.py --check        # do batch and loop compute the same? measures nothing

The loop is what one writes per image in NumPy: the same formulas with random numbers drawn image by image, and nothing
checked; "one by one" is the same augmentation on batches of one. All that is compared runs in one process, in turn.
Two more tables say what resampling by other means takes, and what epochs of `fit` of the CNN 32×32×3 take on one
thread, alone and with batches that are augmented beside it by another thread (which needs two CPUs).
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import trainers

import fastopt
from fastopt import data
from fastopt.data import augment
from fastopt.data.augment.colors import LUMA, _of_hue, _of_saturation
from fastopt.data.augment.warp import warp

N, SIZE, CLASSES = 128, 32, 10
Rng = np.random.Generator


# ---- One image at a time ------------------------------------------------------------------------------------


def flip(image: Any, rng: Rng) -> Any:
    return image[:, ::-1] if rng.random() < 0.5 else image


def crop(image: Any, rng: Rng) -> Any:
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    top, left = rng.integers(9, size=2)
    return padded[top : top + SIZE, left : left + SIZE]


def jitter(image: Any, rng: Rng) -> Any:
    white = 255 if image.dtype == np.uint8 else 1
    brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3)
    turn = rng.uniform(-0.1, 0.1, 1)
    matrix = _of_hue(turn)[0] @ _of_saturation(np.array([saturation]))[0] * (brightness * contrast)
    luma = image.reshape(-1, 3).mean(axis=0) @ LUMA
    values = image.astype(np.float32) @ matrix.T.astype(np.float32) + np.float32((1 - contrast) * brightness * luma)
    values = np.clip(values, 0, white)
    return np.rint(values).astype(np.uint8) if image.dtype == np.uint8 else values


def affine(image: Any, rng: Rng) -> Any:
    from scipy import ndimage

    angle, scale = np.deg2rad(rng.uniform(-15, 15)), np.exp(rng.uniform(-0.1, 0.1))
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    middle = np.full(2, (SIZE - 1) / 2)
    offset = middle - matrix @ (middle + rng.uniform(-3.2, 3.2, 2))
    channels = [ndimage.affine_transform(image[..., k], matrix, offset, order=1) for k in range(3)]
    return np.stack(channels, axis=-1)


def alone(function: Callable[[Any, Rng], Any]) -> Callable[..., Any]:
    """A function of an image in a loop over a batch."""

    def loop(x: Any, y: Any, rng: Rng) -> Any:
        out = np.empty_like(x)
        for i in range(len(x)):
            out[i] = function(x[i], rng)
        return out, y

    return loop


def one_by_one(augmentation: Any) -> Callable[..., Any]:
    """An augmentation on batches of one image."""

    def loop(x: Any, y: Any, rng: Rng) -> Any:
        parts = [augmentation(x[i : i + 1], y[i : i + 1], rng) for i in range(len(x))]
        return tuple(map(np.concatenate, zip(*parts, strict=True)))

    return loop


def mixup(x: Any, y: Any, rng: Rng) -> Any:
    out, soft, one_hot = np.empty_like(x), np.empty((len(x), CLASSES), np.float32), np.eye(CLASSES, dtype=np.float32)
    for i in range(len(x)):
        share, other = rng.beta(0.2, 0.2), rng.integers(len(x))
        mixed = np.float32(share) * x[i] + np.float32(1 - share) * x[other]
        out[i] = np.rint(mixed).astype(np.uint8) if x.dtype == np.uint8 else mixed
        soft[i] = share * one_hot[y[i]] + (1 - share) * one_hot[y[other]]
    return out, soft


def cutmix(x: Any, y: Any, rng: Rng) -> Any:
    out, soft, one_hot = x.copy(), np.empty((len(x), CLASSES), np.float32), np.eye(CLASSES, dtype=np.float32)
    for i in range(len(x)):
        side, other = round(SIZE * (1 - rng.beta(1, 1)) ** 0.5), rng.integers(len(x))
        top, left = (int(value) - side // 2 for value in rng.integers(SIZE, size=2))
        box = slice(max(top, 0), min(top + side, SIZE)), slice(max(left, 0), min(left + side, SIZE))
        out[i][box] = x[other][box]
        share = 1 - out[i][box].size / out[i].size
        soft[i] = share * one_hot[y[i]] + (1 - share) * one_hot[y[other]]
    return out, soft


def chain(x: Any, y: Any, rng: Rng) -> Any:
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = jitter(crop(flip(x[i], rng), rng), rng)
    return out, y


JITTER = augment.ColorJitter(0.4, 0.4, 0.4, 0.1)
FLIP_CROP = (augment.HorizontalFlip(), augment.RandomCrop(padding=4))
#: name: (augmentation, the loop)
CONTESTS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "flip": (augment.HorizontalFlip(), alone(flip)),
    "crop": (augment.RandomCrop(padding=4), alone(crop)),
    "jitter": (JITTER, alone(jitter)),
    "flip + crop + jitter": (augment.Compose([*FLIP_CROP, JITTER]), chain),
    "mixup": (augment.Mixup(classes=CLASSES), mixup),
    "CutMix": (augment.CutMix(classes=CLASSES), cutmix),
    "affine (loop: scipy.ndimage)": (
        augment.Affine(translate=0.1, rotate=15, scale=1.1),
        alone(affine),
    ),
}
#: How many times as fast as the loop each must be.
MUST = {name: 5.0 for name in CONTESTS if not name.startswith("affine")}
#: How much longer an epoch may take whose batches are augmented beside it.
AT_MOST = 1.15


def batch(dtype: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(N, SIZE, SIZE, 3), dtype=np.uint8)
    return (x if dtype == np.uint8 else x.astype(dtype) / dtype(255)), np.arange(N) % CLASSES


def medians(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """The median time of each, all taken in turn, in seconds."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def check() -> None:
    """That both sides change images alike in the mean, and keep shapes and types."""
    for dtype in (np.uint8, np.float32):
        x, y = batch(dtype)
        for name, sides in CONTESTS.items():
            (a, b), (c, d) = (side(x, y, np.random.default_rng(1)) for side in sides)
            assert (a.shape, a.dtype, b.shape) == (c.shape, c.dtype, d.shape), name
            scale = 255 if dtype == np.uint8 else 1
            assert abs(a.mean() - c.mean()) < 0.02 * scale, name
            assert abs(a.std() - c.std()) < 0.02 * scale, name


def resampling(rounds: int) -> None:
    """At random places: NumPy's gathers beside SciPy."""
    from scipy import ndimage

    print("\n| bilinear, float32 | fastopt, ms | map_coordinates | affine_transform |\n| --- | ---: | ---: | ---: |")
    rng = np.random.default_rng(0)
    for n, h, w in ((N, SIZE, SIZE), (8, 224, 224)):
        x, places = rng.random((n, h, w, 3), np.float32), rng.uniform(-2, h + 1, (2, n, h, w))
        matrix, mode = np.array([[0.98, 0.1], [-0.1, 0.98]]), {"order": 1, "mode": "grid-constant"}

        def ours(x: Any = x, places: Any = places) -> Any:
            return warp(x, x.shape[1:3], lambda some: (places[0, some], places[1, some]))

        def each(function: Callable[[Any, int], Any], x: Any = x) -> None:
            for i in range(len(x)):
                for channel in range(3):
                    function(x[i, ..., channel], i)

        def mapped(image: Any, i: int, places: Any = places, mode: Any = mode) -> Any:
            return ndimage.map_coordinates(image, places[:, i], **mode)

        def affine_of(image: Any, i: int, matrix: Any = matrix, mode: Any = mode) -> Any:
            return ndimage.affine_transform(image, matrix, 1.0, **mode)

        calls = [ours, functools.partial(each, mapped), functools.partial(each, affine_of)]
        print(f"| {n} × {h}×{w}×3 |", " | ".join(f"{time * 1e3:.1f}" for time in medians(calls, rounds)), "|")


def beside_training(rounds: int) -> None:
    """Epochs of `fit` on batches as they are, and on those that another thread augments, or the same one."""
    fastopt.set_num_threads(1)
    model, steps = trainers.NETS["CNN 32×32×3"].model(), 4
    optimizer = fastopt.Momentum(model.params, lr=1e-3, nesterov=True)
    x, y = (np.concatenate([part] * steps) for part in batch(np.float32))
    chain = CONTESTS["flip + crop + jitter"][0]

    def fit(*samples: Any, **options: Any) -> Callable[[], Any]:
        return lambda: model.fit(*samples, epochs=1, optimizer=optimizer, **options)

    calls = {
        "as they are": fit(x, y, batch_size=N),
        "fit(loader), one worker": fit(data.Loader((x, y), N, chain, workers=1)),
        "fit(transform=…)": fit(x, y, batch_size=N, transform=chain),
        "fit(loader), none": fit(data.Loader((x, y), N, chain, workers=0)),
    }
    epochs = dict(zip(calls, medians([*calls.values()], rounds), strict=True))
    own = medians([functools.partial(chain, *batch(np.float32), np.random.default_rng(0))], 3 * rounds)[0]
    alone = epochs["as they are"]
    print("\n| batches of the CNN 32×32×3 | epoch of 4, ms | × |\n| --- | ---: | ---: |")
    for name, time_ in epochs.items():
        must = f" (at most {AT_MOST:g})" if name.endswith(("one worker", "…)")) else ""
        print(f"| {name}{must} | {time_ * 1e3:.0f} | {time_ / alone:.3f} |")
    taken = steps * N / alone
    print(f"\nflip + crop + jitter: {N / own:.0f} images/s; the CNN takes {taken:.0f} samples/s (must be less).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="contests with this in their name")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--check", action="store_true", help="compare both sides, and measure nothing")
    arguments = parser.parse_args()
    check()
    if arguments.check:
        return
    print("| batch of 128 × 32×32×3 | type | fastopt, µs | loop, µs | × loop | × one by one |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, sides in CONTESTS.items():
        for dtype in (np.uint8, np.float32):
            if arguments.only not in name:
                continue
            x, y = batch(dtype)
            rng = np.random.default_rng(2)
            calls = [functools.partial(side, x, y, rng) for side in (*sides, one_by_one(sides[0]))]
            ours, loop, single = medians(calls, arguments.rounds)
            must = f" (must show {MUST[name]:g})" if name in MUST else ""
            print(
                f"| {name}{must} | {np.dtype(dtype)} | {ours * 1e6:.0f} | {loop * 1e6:.0f} | {loop / ours:.1f} |",
                end="",
            )
            print(f" {single / ours:.1f} |")
    if not arguments.only:
        resampling(arguments.rounds // 3)
        beside_training(arguments.rounds // 3)


if __name__ == "__main__":
    main()
