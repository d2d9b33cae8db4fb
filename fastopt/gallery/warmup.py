"""Warm-up.

Six networks of ten ReLU layers learn the digits by RMSProp, at a rate of 0.005 from the first step, or after a
warm-up of 100 steps from 0. RMSProp divides by the root of an average that has just begun at 0, so that its first
steps are ten times as large as later ones; without warm-up they throw the weights to where they are hard to train.
Later, the rates are the same, and the losses are not.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt import schedules as s
from fastopt.drawing import BLUE, RED, figure

RATES = {
    "without": s.bind(s.constant, value=0.005),
    "with": s.bind(s.warmup, steps=100, then=s.bind(s.constant, value=0.005)),
}


def run(quick=False):
    x, y = data.digits()
    losses = {}
    for name, rate in RATES.items():
        layers = [[nn.Dense(32, activation="relu") for _ in range(10)] for _ in range(3 if quick else 6)]
        models = [
            nn.Sequential([nn.Flatten(), *deep, nn.Dense(10)], (8, 8, 1), seed=i) for i, deep in enumerate(layers)
        ]
        rms = [fastopt.RMSProp(model.params, lr=rate) for model in models]
        losses[name] = np.array(
            [h["loss"] for h in nn.fit_many(models, x, y, optimizer=rms, epochs=6 if quick else 10)]
        )
    return losses


def draw(losses):
    page = figure((9, 3.8))
    left, right = page.subplots(1, 2)
    for (name, rate), colour, dash in zip(RATES.items(), (RED, BLUE), ("--", "-")):
        left.plot([rate(step) for step in range(200)], dash, color=colour, linewidth=2, label=f"{name} warm-up")
        right.plot(range(1, losses[name].shape[1] + 1), losses[name].T, dash, color=colour, linewidth=1.2)
    left.set(xlabel="step", ylabel="learning rate", title="the first 200 steps", ylim=(0, 0.006))
    right.set(xlabel="epoch", ylabel="training loss", title="six networks each", yscale="log")
    left.legend(loc="lower right")
    return page


def claim(losses):
    assert losses["with"][:, -1].mean() < 0.7 * losses["without"][:, -1].mean()
