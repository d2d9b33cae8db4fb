"""Ten tanh layers by initialisation.

Normal inputs go through ten tanh layers of 500 units, with four initialisations; the histogram of each layer's
outputs. With small weights (0.01) the signal dies out: the last layer's standard deviation is below 0.01, and so are
the gradients. With large ones (1.0) nearly all units are saturated at -1 and 1, where the slope is 0. With Xavier's,
whose variance is 1 / inputs, the spread stays. He's, which is made for ReLU, saturates more.
"""

import numpy as np

from fastopt import nn
from fastopt.drawing import BLUE, figure

INITS = {"small": "small", "large": "large", "Xavier": "xavier", "He": "he"}


def run(quick=False):
    units = 200 if quick else 500
    x = np.random.default_rng(0).normal(size=(500, units)).astype(np.float32)
    outputs = {}
    for name, init in INITS.items():
        model = nn.Sequential([layer for _ in range(10) for layer in (nn.Dense(units, init=init), nn.Tanh())], (units,))
        outputs[name] = nn.monitor.trace(model, x, np.zeros(len(x), int)).outputs[1::2]
    return outputs


def saturated(output):
    return float((abs(output) > 0.97).mean())


def draw(outputs):
    page = figure((11, 6.4))
    for row, (name, layers) in zip(page.subplots(4, 10, sharex=True), outputs.items()):
        for number, (axes, output) in enumerate(zip(row, layers), 1):
            axes.hist(output.ravel(), 25, range=(-1, 1), density=True, color=BLUE)
            axes.set_title(f"std {output.std():.2g}\nsaturated {saturated(output):.0%}", fontsize=7)
            axes.set(yticks=[], xticks=[-1, 0, 1], xlabel=f"layer {number}" if name == "He" else "")
        row[0].set_ylabel(name)
    return page


def claim(outputs):
    last = {name: layers[-1] for name, layers in outputs.items()}
    assert last["small"].std() < 0.01
    assert saturated(last["large"]) > 0.8
    assert 0.15 < last["Xavier"].std() < 0.6 and saturated(last["Xavier"]) < 0.02
    assert saturated(last["He"]) > saturated(last["Xavier"])
