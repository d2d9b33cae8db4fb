"""Mixup, CutMix and CowMix.

Pairs of digits mixed in three ways, and the labels that come of it: Mixup takes a weighted mean of both images,
CutMix a rectangle of the other one, CowMix blobs. The label of each class is the share of the image that is of that
class; all shares add up to 1.
"""

import numpy as np

from fastopt import data
from fastopt.data import augment
from fastopt.drawing import figure

KINDS = {
    "Mixup": augment.Mixup(alpha=1.0, classes=10),
    "CutMix": augment.CutMix(alpha=1.0, classes=10),
    "CowMix": augment.CowMix(classes=10),
}


def run(quick=False):
    x, y = data.digits()
    x = np.kron(x[:10], np.ones((1, 4, 4, 1), np.float32))  # four times as large, so that masks can be seen
    return {"as they are": (x, np.eye(10)[y[:10]])} | {
        k: f(x, y[:10], np.random.default_rng(1)) for k, f in KINDS.items()
    }


def draw(sheets):
    page = figure((10, 5.6))
    for row, (name, (images, labels)) in zip(page.subplots(len(sheets), 10), sheets.items()):
        for axes, image, label in zip(row, images, labels):
            axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            shares = [f"{c}: {label[c]:.2f}" for c in np.argsort(-label)[:2] if label[c] > 0.005]
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel("\n".join(shares), fontsize=8)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return page


def claim(sheets):
    plain, _ = sheets["as they are"]
    for name, (images, labels) in sheets.items():
        np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
        own = np.array([(image == other).mean() for image, other in zip(images, plain)])
        if name in ("CutMix", "CowMix"):
            assert (own >= labels[range(10), range(10)] - 0.02).all(), "each pixel is of one of the two"
