"""Augmentation of batches of images (n, h, w, c), uint8 or real numbers.

Each is an object that is called as ``(x, y, rng) -> (x, y)``, which is what `fastopt.data.Loader` takes as its
transform, with a probability `p` for each image.

>>> import numpy as np
>>> from fastopt.data import augment
>>> usual = augment.Compose([augment.HorizontalFlip(), augment.RandomCrop(padding=4), augment.Mixup(classes=10)])
>>> x, y = np.zeros((128, 32, 32, 3), np.uint8), np.arange(128) % 10
>>> x, y = usual(x, y, np.random.default_rng(0))
>>> x.shape, y.shape
((128, 32, 32, 3), (128, 10))
"""

from fastopt.data.augment.base import Augmentation, Compose, Each, OneOf
from fastopt.data.augment.colors import ColorJitter, Cutout, Noise, ToFloat
from fastopt.data.augment.geometry import (
    Affine,
    HorizontalFlip,
    LensDistortion,
    RandomCrop,
    RandomResizedCrop,
    VerticalFlip,
)
from fastopt.data.augment.mixing import CowMix, CutMix, Mixup
from fastopt.data.augment.sheet import preview
from fastopt.data.augment.views import Views, average, flips, scales, ten_crop

__all__ = [
    "Affine",
    "Augmentation",
    "ColorJitter",
    "Compose",
    "CowMix",
    "CutMix",
    "Cutout",
    "Each",
    "HorizontalFlip",
    "LensDistortion",
    "Mixup",
    "Noise",
    "OneOf",
    "RandomCrop",
    "RandomResizedCrop",
    "ToFloat",
    "VerticalFlip",
    "Views",
    "average",
    "flips",
    "preview",
    "scales",
    "ten_crop",
]
