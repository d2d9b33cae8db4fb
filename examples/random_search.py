"""Random search beats a grid where one parameter matters little, at the same number of trials.

    python examples/random_search.py --plot random-search.png

Nine trials are to find a learning rate of SGD and a weight decay for a small network on 300 digits. The learning rate
decides; of the weight decay, the range of the search hardly matters. A grid of 3 × 3 tries three learning rates, random
search nine (J. Bergstra and Y. Bengio, "Random search for hyper-parameter optimization", 2012, figure 1). In each
repetition the range of learning rates begins elsewhere, so that no grid is lucky, and the network is another one.
"""

from __future__ import annotations

import argparse

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import BLUE, RED, figure

TRIALS = 9
#: Decades that a search covers: of the learning rate from a random begin on, of the weight decay from 1e-7 on.
DECADES = (4.0, 3.0)
COARSE = 3


def candidates(rng):
    """Logarithms of learning rates and weight decays (9, 2), of a grid and of random search in the same range."""
    low = np.array([rng.uniform(-3.5, -2.0), -7.0])
    steps = (np.arange(COARSE) + 0.5) / COARSE
    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    return {"grid": low + DECADES * grid, "random": low + DECADES * rng.random((TRIALS, 2))}


def scores(points, seed, epochs):
    """The accuracy in validation of a network for each of some candidates."""
    x, y, x_validation, y_validation = data.load("digits")
    own = np.random.default_rng(seed).permutation(len(x))[:300]
    models = [
        nn.Sequential([nn.Flatten(), nn.Dense(24, activation="relu"), nn.Dense(10)], (8, 8, 1), seed=seed)
        for _ in points
    ]
    optimizers = [
        fastopt.Momentum(model.params, lr=10**lr, weight_decay=10**decay, clip_value=1.0)
        for model, (lr, decay) in zip(models, points, strict=True)
    ]
    nn.fit_many(
        models, x[own], y[own], optimizer=optimizers, epochs=epochs, seed=seed, on_nonfinite="ignore", on_error="keep"
    )
    return np.array([model.evaluate(x_validation, y_validation)["accuracy"] for model in models])


def search(repetitions=20, epochs=8):
    """For each repetition, candidates and accuracies by the kind of search."""
    found = []
    for seed in range(repetitions):
        points = candidates(np.random.default_rng(seed))
        found.append({kind: (own, scores(own, seed, epochs)) for kind, own in points.items()})
    return found


def best(found):
    """The accuracy that each search finds (repetitions,), by its kind."""
    return {kind: np.array([run[kind][1].max() for run in found]) for kind in found[0]}


def picture(found, path):
    """The trials of the first repetition, and what all repetitions find after so many trials."""
    page = figure((11, 3.8))
    panels = page.subplots(1, 3)
    marks = {"grid": ("s", RED), "random": ("o", BLUE)}
    for ax, (kind, (points, own)) in zip(panels, found[0].items(), strict=False):
        shown = ax.scatter(*10**points.T, c=own, marker=marks[kind][0], s=70, cmap="cividis", vmin=0, vmax=1)
        for lr in np.unique(points[:, 0]):
            ax.axvline(10**lr, ymax=0.04, color="black", linewidth=1.2)
        count = len(np.unique(points[:, 0]))
        ax.set(xscale="log", yscale="log", xlabel="learning rate", title=f"{kind}: {count} learning rates")
    panels[0].set_ylabel("weight decay")
    page.colorbar(shown, ax=panels[:2], label="accuracy in validation")
    rng = np.random.default_rng(0)
    for kind, (mark, color) in marks.items():
        curves = []
        for run in found:
            own = rng.permuted(np.tile(run[kind][1], (50, 1)), axis=1)
            curves.append(np.maximum.accumulate(own, axis=1).mean(axis=0))
        panels[2].plot(np.arange(1, TRIALS + 1), np.mean(curves, axis=0), marker=mark, color=color, label=kind)
    panels[2].set(xlabel="trials, in any order", ylabel="best accuracy so far", title=f"mean of {len(found)} searches")
    panels[2].legend()
    page.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--plot", help="where to draw the trials")
    arguments = parser.parse_args()
    found = search(arguments.repetitions)
    by_kind = best(found)
    wins, losses = (int(np.sum(sign * (by_kind["random"] - by_kind["grid"]) > 0)) for sign in (1, -1))
    print(f"| {TRIALS} trials | mean of the best | lowest | highest |\n| --- | ---: | ---: | ---: |")
    for kind, own in by_kind.items():
        print(f"| {kind} | {100 * own.mean():.1f} | {100 * own.min():.1f} | {100 * own.max():.1f} |")
    print(f"\nrandom search finds more in {wins} of {len(found)} repetitions, less in {losses}")
    if arguments.plot:
        picture(found, arguments.plot)


if __name__ == "__main__":
    main()
