"""Linear against logarithmic sampling.

Thirty learning rates between 0.00001 and 1, drawn evenly, and thirty drawn evenly in their logarithm; each trains a
network, all at once by `fit_many`. Evenly drawn, nine out of ten lie in the highest decade, where nothing is learnt;
in the logarithm, each decade gets its share, and more of them are good.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import BLUE, ORANGE, figure


def run(quick=False):
    x, y = data.digits()
    rng, rows, found = np.random.default_rng(0), np.arange(len(x)), {}
    for name, rates in (("linear", rng.uniform(1e-5, 1, 30)), ("logarithmic", 10 ** rng.uniform(-5, 0, 30))):
        models = [
            nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], (8, 8, 1)) for _ in rates
        ]
        adams = [fastopt.Adam(model.params, lr=rate) for model, rate in zip(models, rates)]
        nn.fit_many(models, x, y, optimizer=adams, samples=[rows[::2]] * 30, epochs=8, on_nonfinite="ignore")
        found[name] = rates, np.array([model.evaluate(x[1::2], y[1::2])["accuracy"] for model in models])
    return found


def draw(found):
    page = figure((7.5, 4.6))
    above, below = page.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for row, ((name, (rates, accuracies)), colour, marker) in enumerate(zip(found.items(), (ORANGE, BLUE), "s^")):
        above.plot(rates, accuracies, marker, color=colour, label=name)
        below.plot(rates, [-row] * len(rates), marker, color=colour, alpha=0.6)
    above.set(xscale="log", ylabel="validation accuracy")
    below.set(xlabel="learning rate", yticks=[0, -1], yticklabels=list(found), ylim=(-1.6, 0.6))
    above.legend()
    return page


def claim(found):
    good = {name: int((accuracies > 0.85).sum()) for name, (_, accuracies) in found.items()}
    assert good["logarithmic"] > good["linear"]
    assert np.mean(found["linear"][1] < 0.25) > 0.7 > 0.5 > np.mean(found["logarithmic"][1] < 0.25)
    assert (found["linear"][0] > 0.1).mean() > 0.8
