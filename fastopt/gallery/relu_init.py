"""Ten ReLU layers: Xavier's against He's initialisation.

ReLU sets half of its inputs to 0, and so halves the mean square. Xavier's variance, 1 / inputs, does not make up for
it: each layer's outputs are smaller than those before by a factor of √2, those of the tenth by thirty. He's, 2 /
inputs, keeps them.
"""

import numpy as np

from fastopt import nn
from fastopt.drawing import BLUE, ORANGE, figure

INITS = {"Xavier": nn.Xavier(fan="in"), "He": nn.He()}


def run(quick=False):
    units = 200 if quick else 500
    x = np.random.default_rng(0).normal(size=(500, units)).astype(np.float32)
    outputs = {}
    for name, init in INITS.items():
        layers = [nn.Dense(units, activation="relu", init=init) for _ in range(10)]
        outputs[name] = nn.monitor.trace(nn.Sequential(layers, (units,)), x, np.zeros(len(x), int)).outputs
    return outputs


def sizes(layers):
    return np.array([np.sqrt((output**2).mean()) for output in layers])


def draw(outputs):
    page = figure((11, 4.8))
    grid = page.subplot_mosaic(
        [[f"{name}{i}" for i in range(10)] for name in outputs] + [["sizes"] * 10], height_ratios=[1, 1, 2]
    )
    for (name, layers), colour, dash in zip(outputs.items(), (BLUE, ORANGE), ("o-", "s--")):
        for i, output in enumerate(layers):
            axes = grid[f"{name}{i}"]
            axes.hist(output.ravel(), 20, range=(0, 2), density=True, color=colour)
            axes.set(xticks=[0, 2], yticks=[], xlim=(0, 2), ylim=(0, 4), title=f"layer {i + 1}", xlabel="output")
        grid[f"{name}0"].set_ylabel(name)
        grid["sizes"].plot(range(1, 11), sizes(layers), dash, color=colour, label=name)
    grid["sizes"].set(xlabel="layer", ylabel="rms of outputs", yscale="log")
    grid["sizes"].legend()
    return page


def claim(outputs):
    shrink = sizes(outputs["Xavier"])[1:] / sizes(outputs["Xavier"])[:-1]
    np.testing.assert_allclose(shrink, np.sqrt(0.5), rtol=0.15)
    assert sizes(outputs["Xavier"])[-1] < sizes(outputs["Xavier"])[0] / 10
    np.testing.assert_allclose(sizes(outputs["He"]), 1, rtol=0.35)
