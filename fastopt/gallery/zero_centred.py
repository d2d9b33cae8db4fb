"""Zero-centred inputs against all-positive ones.

A neuron with two weights, sigmoid and squared error, is trained by gradient descent, one sample at a time, towards
weights of which one must grow and the other shrink. Where all inputs are positive, both derivatives of each sample
have the sign of its error: weights can only grow or shrink together, and zigzag. With inputs around zero every
direction is open, and the way is short.
"""

import numpy as np

import fastopt
from fastopt.drawing import BLUE, ORANGE, figure

TARGET = np.array([2.0, -2.0])


def run(quick=False):
    paths = {}
    for name, low in (("all positive", 0.0), ("zero-centred", -1.0)):
        rng = np.random.default_rng(0)
        weight = np.zeros(2)
        sgd, path, signs = fastopt.SGD(weight, lr=1.0), [weight.copy()], []
        for _ in range(150 if quick else 400):
            x = rng.uniform(low, low + 1 if low == 0 else 1, 2) * (2 if low == 0 else 1)
            out, wanted = (1 / (1 + np.exp(-w @ x)) for w in (weight, TARGET))
            grad = (out - wanted) * out * (1 - out) * x
            sgd.step(grad)
            path.append(weight.copy())
            signs.append(grad[0] * grad[1] >= 0)
        paths[name] = np.array(path), np.mean(signs)
    return paths


def draw(paths):
    page = figure((9, 4.2))
    for axes, (name, (path, alike)), colour in zip(
        page.subplots(1, 2, sharex=True, sharey=True), paths.items(), (ORANGE, BLUE)
    ):
        axes.plot(*path.T, color=colour, linewidth=1)
        axes.plot(*TARGET, "*", color="black", markersize=13, label="target")
        axes.set(
            title=f"{name}: both derivatives\nof one sign in {alike:.0%} of the steps",
            xlabel="first weight",
            ylabel="second weight",
            aspect="equal",
        )
        axes.legend()
    return page


def claim(paths):
    assert paths["all positive"][1] == 1.0
    lengths = {name: np.linalg.norm(np.diff(path, axis=0), axis=1).sum() for name, (path, _) in paths.items()}
    assert lengths["all positive"] > 1.3 * lengths["zero-centred"]
    assert 0.4 < paths["zero-centred"][1] < 0.6
