"""The loss is flat, the accuracy rises.

A network with a last layer of small weights learns the digits by SGD: for twenty epochs its loss hardly falls below
that of guessing, log 10, and yet the accuracy rises from 10 % to 70 %. Scores that differ by little give
probabilities that are nearly equal, hence the loss; but the right one need only be the largest. A flat loss at the
beginning is no proof that nothing is learnt.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import BLUE, ORANGE, figure


def run(quick=False):
    x, y = data.digits()
    layers = [nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10, init="small")]
    model = nn.Sequential(layers, x.shape[1:])
    start = model.evaluate(x, y)
    history = model.fit(x, y, epochs=20, optimizer=fastopt.SGD(model.params, lr=1e-3), validation_data=(x, y))
    return {key: np.array([start[key], *history[f"val_{key}"]]) for key in ("loss", "accuracy")}


def draw(found):
    page = figure((7, 4))
    left = page.subplots()
    right = left.twinx()
    left.plot(found["loss"], "o-", color=BLUE)
    left.axhline(np.log(10), color=BLUE, linestyle=":", linewidth=1)
    right.plot(found["accuracy"], "s--", color=ORANGE)
    left.set(xlabel="epoch", ylim=(0, 2.6), xticks=range(0, 21, 5))
    left.set_ylabel("loss (circles); dotted: guessing", color=BLUE)
    right.set(ylim=(0, 1))
    right.set_ylabel("accuracy (squares)", color=ORANGE)
    right.grid(False)
    return page


def claim(found):
    flat = found["loss"] > 0.9 * np.log(10)
    assert found["accuracy"][0] < 0.2
    assert 0.65 < found["accuracy"][flat].max() < 0.75
