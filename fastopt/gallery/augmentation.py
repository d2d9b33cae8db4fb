"""Augmentation: contact sheets.

Twelve digits as they are, and changed by augmentations of `fastopt.data.augment`: shifted, turned, scaled and leant,
seen through a lens, in other light, with noise, with a piece cut out, and by four of these in a row. Whatever they
do, the digits should still be read as what they are: look at the sheet before you train.
"""

import numpy as np

from fastopt import data
from fastopt.data import augment
from fastopt.drawing import figure

KINDS = {
    "as they are": lambda x, y, rng: (x, y),
    "shift": augment.Affine(translate=0.15),
    "turn": augment.Affine(rotate=30),
    "scale and lean": augment.Affine(scale=1.3, shear=20),
    "lens": augment.LensDistortion((0.3, 0.8)),
    "light": augment.ColorJitter(brightness=0.4, contrast=0.4),
    "noise": augment.Noise(0.15),
    "cutout": augment.Cutout(3),
}


def run(quick=False):
    x, y = data.digits()
    x, y = x[10:22], y[10:22]
    all_ = augment.Compose([KINDS["shift"], KINDS["turn"], KINDS["noise"], KINDS["cutout"]])
    return y, {name: f(x, y, np.random.default_rng(0))[0] for name, f in (KINDS | {"in a row": all_}).items()}


def draw(found):
    labels, sheets = found
    page = figure((9.5, 6.4))
    for row, (name, images) in zip(page.subplots(len(sheets), len(labels)), sheets.items()):
        for axes, image, label in zip(row, images, labels):
            axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], title=label if name == "as they are" else "")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return page


def claim(found):
    _, sheets = found
    plain = sheets.pop("as they are")
    assert all(sheet.shape == plain.shape and sheet.min() >= 0 and sheet.max() <= 1 for sheet in sheets.values())
    assert all(abs(sheet - plain).max() > 0.2 for sheet in sheets.values())
    assert abs(sheets["noise"] - plain).mean() < 0.15
