"""Regularisation paths: L1 and L2.

A linear model of 20 features, of which only five matter, is fitted with an L1 or an L2 penalty of growing strength;
the weights, those of features that matter in colour. L1 (by soft thresholding after each step) sets weights to
exactly 0 one after the other, first those of features that do not matter; L2 makes all of them smaller, and none 0.
"""

import numpy as np

import fastopt
from fastopt.drawing import BLUE, GREEN, GREY, ORANGE, PINK, RED, figure

TRUE = np.array([3.0, -2.0, 1.5, -1.0, 0.7] + [0.0] * 15)
RATE = 0.05


def run(quick=False):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 20))
    y = x @ TRUE + rng.normal(0, 1.0, 80)
    strengths = np.geomspace(1e-2, 10, 7 if quick else 31)
    paths = {"L1": [], "L2": []}
    for name, strength in ((name, strength) for name in paths for strength in strengths):
        weight = np.zeros(20)
        sgd = fastopt.SGD(weight, lr=RATE, weight_decay=strength if name == "L2" else 0.0)
        for _ in range(800):
            sgd.step(x.T @ (x @ weight - y) / len(x))
            if name == "L1":
                weight[:] = np.sign(weight) * np.maximum(abs(weight) - RATE * strength, 0)
        paths[name].append(weight)
    return x, y, strengths, {name: np.array(path) for name, path in paths.items()}


def draw(found):
    page = figure((10, 4))
    for axes, (name, path) in zip(page.subplots(1, 2, sharey=True), found[3].items()):
        for weights, colour in zip(path.T[::-1], [GREY] * 15 + [BLUE, ORANGE, GREEN, RED, PINK]):
            axes.plot(found[2], weights, color=colour, linewidth=0.8 if colour == GREY else 2)
        axes.set(xscale="log", xlabel="strength of the penalty", ylabel="weight", title=name)
    return page


def claim(found):
    x, y, strengths, paths = found
    slopes = np.array([x.T @ (y - x @ weight) / len(x) for weight in paths["L1"]])
    assert (abs(slopes) <= strengths[:, None] + 1e-3).all(), "the condition for a minimum with L1"
    ridge = [np.linalg.solve(x.T @ x / len(x) + s * np.eye(20), x.T @ y / len(x)) for s in strengths]
    np.testing.assert_allclose(paths["L2"], ridge, atol=1e-3)
    some = paths["L1"][len(strengths) // 2]
    assert (some[5:] == 0).sum() > 10 and (some[:3] != 0).all() and (paths["L2"] != 0).all()
