"""Batch, layer, instance and group norm as cubes.

A batch of activations is a cube: samples, channels, places. One number is changed a little (orange), and coloured are
all outputs of the layer that change with it, which are those that share its mean and variance: of batch norm, the
channel in all samples; of layer norm, the whole sample; of instance norm, one channel of one sample; of group norm,
some channels of one sample.
"""

import numpy as np

from fastopt import nn
from fastopt.drawing import BLUE, ORANGE, figure

NORMS = {
    "batch norm": nn.BatchNorm,
    "layer norm": lambda: nn.LayerNorm(axes=3),
    "instance norm": nn.InstanceNorm,
    "group norm, 2 groups": lambda: nn.GroupNorm(2),
}
SHAPE = SAMPLES, PLACES, CHANNELS = 5, 6, 6


def run(quick=False):
    x = np.random.default_rng(0).normal(size=(SAMPLES, PLACES, 1, CHANNELS))
    nudged = x.copy()
    nudged[-1, 0, 0, 0] += 0.1
    touched = {}
    for name, make in NORMS.items():
        model = nn.Sequential([make()], x.shape[1:], dtype=np.float64)
        before, after = (model.forward(values, training=True)[0] for values in (x, nudged))
        touched[name] = (abs(after - before) > 1e-9).reshape(SHAPE)
    return touched


def draw(touched):
    page = figure((12, 3.6))
    for place, (name, changed) in enumerate(touched.items(), 1):
        axes = page.add_subplot(1, 4, place, projection="3d")
        cube = changed.transpose(2, 0, 1)[:, ::-1, ::-1]  # the changed number is in front, at the top
        colours = np.where(cube, BLUE, "#FFFFFF")
        colours[0, 0, -1] = ORANGE
        axes.voxels(np.ones(cube.shape), facecolors=colours, edgecolor="0.5", linewidth=0.4, shade=False)
        axes.set(title=name, xlabel="channels", ylabel="samples", xticks=[], yticks=[], zticks=[])
        axes.text2D(-0.02, 0.5, "places", transform=axes.transAxes, rotation=90, va="center")
        axes.view_init(22, -60)
    return page


def claim(touched):
    counts = {name: changed.sum() for name, changed in touched.items()}
    assert counts["batch norm"] == SAMPLES * PLACES == touched["batch norm"][..., 0].sum()
    assert counts["layer norm"] == CHANNELS * PLACES == touched["layer norm"][-1].sum()
    assert counts["instance norm"] == PLACES == touched["instance norm"][-1, :, 0].sum()
    assert counts["group norm, 2 groups"] == 3 * PLACES == touched["group norm, 2 groups"][-1, :, :3].sum()
