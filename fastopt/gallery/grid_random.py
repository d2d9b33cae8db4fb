"""Grid against random search.

Two hyperparameters, of which one matters: the learning rate does, the strength of the L2 penalty hardly (within these
limits). Nine points on a grid try three learning rates; nine random ones try nine. Left: one search of each kind, the
larger the dot the lower the validation loss. Right: the best of each search, in twenty repetitions, the grid shifted
at random each time; below the diagonal random search is better, which it is in most of them.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import BLUE, ORANGE, figure

LOW, HIGH = np.array([-3.0, -7.0]), np.array([1.0, -4.0])  # log10 of the rate, and of the penalty


def losses(points, x, y, epochs):
    rows = np.arange(len(x))
    models = [nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:]) for _ in points]
    sgds = [fastopt.SGD(m.params, lr=10**a, weight_decay=10**b) for m, (a, b) in zip(models, points)]
    nn.fit_many(models, x, y, optimizer=sgds, samples=[rows[::3]] * len(models), epochs=epochs, on_nonfinite="ignore")
    return np.array([np.nan_to_num(m.evaluate(x[1::3], y[1::3])["loss"], nan=np.inf) for m in models])


def run(quick=False):
    (x, y), rng = data.digits(), np.random.default_rng(0)
    found = {"grid": [], "random": []}
    cells = np.stack(np.meshgrid(range(3), range(3)), axis=-1).reshape(9, 2)
    for _ in range(20):
        for name, shares in (("grid", (cells + rng.random(2)) / 3), ("random", rng.random((9, 2)))):
            points = LOW + shares * (HIGH - LOW)
            found[name].append((points, losses(points, x, y, epochs=5)))
    return found


def draw(found):
    page = figure((12, 4))
    left, middle, right = page.subplots(1, 3)
    middle.sharex(left)
    middle.sharey(left)
    for axes, (name, searches), colour in zip((left, middle), found.items(), (ORANGE, BLUE)):
        points, loss = searches[0]
        axes.scatter(*(10**points.T), s=20 + 300 * np.exp(-2 * np.minimum(loss, 5)), color=colour)
        axes.vlines(10 ** points[:, 0], *10 ** np.array([LOW[1] - 0.2, LOW[1] - 0.05]), color=colour)
        axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="L2 penalty", title=name)
    best = {name: np.array([loss.min() for _, loss in searches]) for name, searches in found.items()}
    right.scatter(best["grid"], best["random"], color="black")
    right.axline((0.3, 0.3), slope=1, color="0.7")
    right.set(xlabel="best validation loss, grid", ylabel="best validation loss, random", title="twenty repetitions")
    return page


def claim(found):
    grid, random = (np.array([loss.min() for _, loss in searches]) for searches in found.values())
    assert (random < grid).sum() > 10
