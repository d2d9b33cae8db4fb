"""Coarse to fine.

First, 24 learning rates at random over six decades, trained for a few epochs; then as many about the best ones,
trained for longer. The second search spends all of its runs where it pays, and most of them are better than the best
of the first.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import BLUE, ORANGE, figure


def search(low, high, epochs, seed):
    x, y = data.digits()
    rows = np.arange(len(x))
    rates = 10 ** np.random.default_rng(seed).uniform(low, high, 24)
    models = [nn.Sequential([nn.Flatten(), nn.Dense(32, activation="relu"), nn.Dense(10)], x.shape[1:]) for _ in rates]
    adams = [fastopt.Adam(model.params, lr=rate) for model, rate in zip(models, rates)]
    nn.fit_many(models, x, y, optimizer=adams, samples=[rows[::2]] * 24, epochs=epochs, on_nonfinite="ignore")
    return rates, np.array([model.evaluate(x[1::2], y[1::2])["loss"] for model in models])


def run(quick=False):
    rates, losses = search(-5, 1, epochs=3, seed=0)
    best = np.log10(rates[np.argsort(losses)[:4]])
    return (rates, losses), search(best.min(), best.max(), epochs=15, seed=1)


def draw(found):
    page = figure((7.5, 4.2))
    axes = page.subplots()
    kinds = (("coarse: six decades, 3 epochs", ORANGE, "s"), ("fine: about the best four, 15 epochs", BLUE, "o"))
    for (rates, losses), (label, colour, marker) in zip(found, kinds):
        axes.plot(rates, losses, marker, color=colour, label=label)
    axes.axvspan(found[1][0].min(), found[1][0].max(), color=BLUE, alpha=0.1)
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="validation loss")
    axes.legend()
    return page


def claim(found):
    (_, coarse), (_, fine) = found
    assert np.mean(fine < coarse.min()) > 0.5
