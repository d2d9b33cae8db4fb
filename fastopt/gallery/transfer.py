"""Transfer: the four quarters.

A small CNN has learnt the digits 0 to 4, anywhere in their images, upright (alike) or turned by 90 degrees
(different), and is to tell 5 to 9 by 25 or by 500 images: from nothing; by a new last layer on what it has learnt,
which stays as it is; or by all layers, trained on. Little data of a task that is alike gain by what was learnt
before. With much, a network that learns from nothing is as good, and a head on features of another task is not
enough.
"""

import numpy as np

from fastopt import data, nn
from fastopt.data import augment
from fastopt.drawing import BLUE, GREY, ORANGE, figure

COLOURS = {"from nothing": GREY, "head": ORANGE, "all layers": BLUE}


def scattered(low, high, copies, rng):
    x, y = data.digits()
    x, y = (np.repeat(each[(low <= y) & (y < high)], copies, axis=0) for each in (x, y))
    return augment.Affine(translate=0.2, rotate=25)(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), y - low, rng)


def network(seed):
    convolutions = [part for filters in (16, 32) for part in (nn.Conv2D(filters, activation="relu"), nn.MaxPool2D())]
    layers = [*convolutions, nn.Conv2D(64, activation="relu"), nn.GlobalMaxPool2D(), nn.Dense(5)]
    return nn.Sequential(layers, (12, 12, 1), seed=seed)


def run(quick=False):
    found = {(task, count): {name: [] for name in COLOURS} for task in ("alike", "different") for count in (25, 500)}
    for (task, count), seed in ((key, seed) for key in found for seed in ([2] if quick else range(5))):
        rng = np.random.default_rng(seed)
        learnt, (x, y) = network(seed), scattered(0, 5, 3 if quick else 8, rng)
        learnt.fit(np.rot90(x, axes=(1, 2)).copy() if task == "different" else x, y, epochs=5, lr=3e-3)
        x, y = scattered(5, 10, 1, rng)
        for name, scores in found[task, count].items():
            model = network(seed + 9) if name == "from nothing" else learnt.with_head([nn.Dense(5)])
            if name == "head":
                model.freeze(slice(-1))
            model.fit(x[:count], y[:count], epochs=100 if count == 25 else 10, batch_size=25, lr=3e-3)
            scores.append(model.evaluate(x[500:], y[500:])["accuracy"])
    return found


def draw(found):
    page = figure((8, 5.6))
    for axes, ((task, count), scores) in zip(page.subplots(2, 2, sharey=True).flat, found.items()):
        axes.bar(list(scores), [np.mean(each) for each in scores.values()], color=list(COLOURS.values()), width=0.6)
        axes.plot(list(scores), list(scores.values()), ".", color="black")
        axes.set(ylim=(0, 1), ylabel="test accuracy", title=f"learnt before: {task}; {count} images")
    return page


def claim(found):
    nothing, *others = (np.mean(each) for each in found["alike", 25].values())
    assert max(others) > nothing + 0.05
    nothing, head, all_layers = (np.mean(each) for each in found["different", 500].values())
    assert head < nothing - 0.1 and abs(all_layers - nothing) < 0.1
