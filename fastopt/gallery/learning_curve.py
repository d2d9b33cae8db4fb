"""Learning curve: how much more data would help.

The same network learns 20, 40, … of the digits, five draws of each size at once by `fit_many`, and is measured on
images that none of them has seen. Few samples are learnt by heart, and the gap to new ones is wide; with more of them
the gap closes, and the last doubling brings much less than the first.
"""

import numpy as np

from fastopt import data, nn
from fastopt.drawing import BLUE, ORANGE, figure


def run(quick=False):
    x, y, x_test, y_test = data.load("digits")
    sizes = (20, 80, 320, 1280) if quick else (20, 40, 80, 160, 320, 640, 1280)
    errors = {"training": [], "test": []}
    for size in sizes:
        rng = np.random.default_rng(size)
        samples = [rng.permutation(len(x))[:size] for _ in range(5)]
        layers = [[nn.Flatten(), nn.Dense(32, activation="relu"), nn.Dense(10)] for _ in samples]
        models = [nn.Sequential(each, x.shape[1:], seed=i) for i, each in enumerate(layers)]
        nn.fit_many(models, x, y, samples=samples, epochs=max(10, 12800 // size), lr=3e-3)
        seen = [model.evaluate(x[own], y[own])["accuracy"] for model, own in zip(models, samples)]
        errors["training"].append(1 - np.array(seen))
        errors["test"].append([1 - model.evaluate(x_test, y_test)["accuracy"] for model in models])
    return sizes, {name: np.array(each) for name, each in errors.items()}


def draw(found):
    sizes, errors = found
    page = figure((7, 4))
    axes = page.subplots()
    for (name, error), colour, dash in zip(errors.items(), (BLUE, ORANGE), ("o-", "s--")):
        axes.fill_between(sizes, error.min(axis=1), error.max(axis=1), color=colour, alpha=0.2)
        axes.plot(sizes, error.mean(axis=1), dash, color=colour, label=name)
    axes.set(xscale="log", xlabel="samples to train on", ylabel="error: mean, lowest, highest", ylim=(-0.01, None))
    axes.legend()
    return page


def claim(found):
    training, test = found[1]["training"].mean(axis=1), found[1]["test"].mean(axis=1)
    assert (np.diff(test) < 0).all()
    assert test[0] - training[0] > 0.2 > 0.08 > test[-1] - training[-1]
    assert test[0] - test[1] > 3 * (test[-2] - test[-1])
