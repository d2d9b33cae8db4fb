"""Decision boundaries before and after normalising.

A linear classifier learns two classes of points, once as they are, far from the origin, and once standardised. Then
its weights are nudged at random, by 8 % of their size, thirty times. The boundaries of far-off data swing wildly,
since a small turn about the origin moves them far where the data are; those of normalised data hardly move.
"""

import numpy as np

from fastopt import nn
from fastopt.drawing import BLUE, GREY, ORANGE, figure


def run(quick=False):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    raw = rng.normal(size=(200, 2)) + np.where(y[:, None], 1.8, -1.8) * [1, -1] + [12, 12]
    found = {}
    for name, x in (("as they are", raw), ("standardised", nn.Standardize("feature").fit(raw).transform(raw))):
        model = nn.Sequential([nn.Dense(2)], (2,), dtype=np.float64)
        model.fit(x, y, epochs=300, lr=0.02, batch_size=len(x))
        weight, bias = (value[..., 1] - value[..., 0] for value in (model.params["0.weight"], model.params["0.bias"]))
        line = np.append(weight, bias)
        lines = [line, *(line + 0.08 * np.linalg.norm(weight) * rng.normal(size=3) * [1, 1, 0] for _ in range(30))]
        wrong = [np.mean((x @ each[:2] + each[2] > 0) != y) for each in lines]
        found[name] = x, y, lines, wrong
    return found


def draw(found):
    page = figure((9, 4.6))
    for axes, (name, (x, y, lines, wrong)) in zip(page.subplots(1, 2), found.items()):
        (left, bottom), (right, top) = x.min(axis=0) - 0.5, x.max(axis=0) + 0.5
        for (a, b, c), colour, width in zip(lines[::-1], [GREY] * 30 + ["black"], [0.6] * 30 + [2.5]):
            axes.axline((0, -c / b), slope=-a / b, color=colour, linewidth=width)
        axes.scatter(*x[y == 0].T, s=14, color=BLUE)
        axes.scatter(*x[y == 1].T, s=18, color=ORANGE, marker="^")
        axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="first feature", ylabel="second feature")
        axes.set_title(f"{name}: {wrong[0]:.0%} wrong, nudged {np.mean(wrong[1:]):.0%}")
    return page


def claim(found):
    raw, normalised = (wrong for *_, wrong in found.values())
    assert max(raw[0], normalised[0]) < 0.05
    assert np.mean(raw[1:]) > 4 * np.mean(normalised[1:])
