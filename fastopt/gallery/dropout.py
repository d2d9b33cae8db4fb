"""Dropout as an average of subnetworks.

A network with dropout in front of its last layer is trained. Then hundreds of its subnetworks, each with a mask of
its own, and the scaled network, which is what inference runs, look at the test images. Left: the probability of one
image's class, by each subnetwork, by their normalised geometric mean, and by the scaled network, which is that mean
for all masks. Right: a single subnetwork is less accurate than the average of many, and the scaled network is as good
as that, at the price of one.
"""

import numpy as np

from fastopt import data, nn
from fastopt.drawing import BLUE, GREY, RED, figure


def run(quick=False):
    x, y, x_test, y_test = data.load("digits")
    layers = [nn.Flatten(), nn.Dense(128, activation="relu"), nn.Dropout(0.5), nn.Dense(10)]
    model = nn.Sequential(layers, x.shape[1:])
    model.fit(x, y, epochs=5)
    masks = range(50 if quick else 400)
    logits = np.array([model.forward(x_test, training=True, counter=i)[0] for i in masks])
    return softmax(logits), softmax(logits.mean(axis=0)), softmax(model.predict(x_test)), y_test


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def accuracy(probabilities, y):
    return (probabilities.argmax(axis=-1) == y).mean()


def draw(found):
    parts, geometric, scaled, y = found
    left, right = (page := figure((10, 3.8))).subplots(1, 2)
    i = parts[:, np.arange(len(y)), y].std(axis=0).argmax()
    left.hist(parts[:, i, y[i]], 25, range=(0, 1), color=BLUE)
    left.axvline(geometric[i, y[i]], color="black", linestyle="--", linewidth=2, label="geometric mean of them")
    left.axvline(scaled[i, y[i]], color=RED, label="scaled network")
    left.set(xlabel="probability of the true class", ylabel="subnetworks", title=f"test image {i}, a {y[i]}")
    counts = np.unique(np.geomspace(1, len(parts), 20).astype(int))
    averages = [accuracy(parts[:n].mean(axis=0), y) for n in counts]
    right.plot(counts, averages, "o-", color=BLUE, label="average of n subnetworks")
    right.axhline(accuracy(parts, y), color=GREY, linestyle="--", linewidth=2, label="one, mean of all")
    right.axhline(accuracy(scaled, y), color=RED, label="scaled network")
    right.set(xscale="log", xlabel="n", ylabel="test accuracy")
    left.legend(loc="upper left")
    left.margins(y=0.3)
    right.legend(loc="lower right")
    right.margins(y=0.15)
    return page


def claim(found):
    parts, geometric, scaled, y = found
    assert abs(geometric - scaled).mean() < 0.3 * abs(parts - scaled).mean()
    assert accuracy(parts, y) < min(accuracy(parts.mean(axis=0), y), accuracy(scaled, y)) - 0.01
    assert abs(accuracy(parts.mean(axis=0), y) - accuracy(scaled, y)) < 0.015
