"""Batch norm: what a layer gets to see during training.

Two networks of five layers, with the same weights to begin with, learn the digits by SGD at a high rate, one of them
with batch norm. The curves are quantiles (5, 25, 50, 75, 95 %) of the inputs of the last activation, for one of its
units, over the steps. Without batch norm they drift and spread while the layers below change; with it they keep to a
mean and a spread that are learnt.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import BLUE, RED, figure


class Watch(nn.Callback):
    def __init__(self, x):
        self.x, self.seen = x, []

    def on_train_begin(self, run):
        self.model = run.model

    def on_batch_end(self, batch, logs):
        layers = nn.monitor.trace(self.model, self.x, np.zeros(len(self.x), int)).outputs
        self.seen.append(np.quantile(layers[-3], (0.05, 0.25, 0.5, 0.75, 0.95), axis=0))


def run(quick=False):
    x, y = data.digits()
    seen = {}
    for name, norm in (("without", []), ("with batch norm", [nn.BatchNorm])):
        hidden = [part() for _ in range(4) for part in (lambda: nn.Dense(50), *norm, nn.ReLU)]
        model = nn.Sequential([nn.Flatten(), *hidden, nn.Dense(10)], x.shape[1:])
        watch = Watch(x[:200])
        model.fit(x, y, epochs=1 if quick else 4, optimizer=fastopt.SGD(model.params, lr=0.2), callbacks=watch)
        seen[name] = np.array(watch.seen)
    return seen


def draw(seen):
    page = figure((10, 3.8))
    for axes, (name, quantiles), colour in zip(page.subplots(1, 2, sharey=True), seen.items(), (RED, BLUE)):
        for low, high, shade in ((0, 4, 0.25), (1, 3, 0.4)):
            axes.fill_between(
                range(len(quantiles)), quantiles[:, low, 0], quantiles[:, high, 0], color=colour, alpha=shade
            )
        axes.plot(quantiles[:, 2, 0], color=colour)
        axes.set(title=name, xlabel="step", ylabel="input of a unit's ReLU: quantiles")
    return page


def claim(seen):
    spread = {name: (q[-10:, 4] - q[-10:, 0]).mean() / (q[:3, 4] - q[:3, 0]).mean() for name, q in seen.items()}
    assert spread["without"] > 2 * spread["with batch norm"]
