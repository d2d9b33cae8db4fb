"""Augmentations that change the values of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array, Pair
from fastopt.data.augment.base import Augmentation, Rng, as_bytes, chunks, drawn, filling, limits, per_image
from fastopt.data.augment.geometry import Interval, both_ways

#: The share of red, green and blue in luma (ITU-R BT.601), as Pillow's mode L has it.
LUMA = np.array([0.299, 0.587, 0.114])


def _within(x: Array, cure: str) -> None:
    """Real numbers are in [0, 1]."""
    if x.dtype != np.uint8:
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"x must be in [0, 1], got {low:.4g} to {high:.4g}; {cure}")


@dataclass(frozen=True, repr=False)
class ColorJitter(Augmentation):
    """Brightness, contrast, saturation and hue changed at random, in this order.

    Together they are one affine map of colours per image, made by a 3×3 matrix; values are cut off at black and white
    in the end, and not between the four.

    Parameters
    ----------
    brightness : float or (float, float), default 0.0
        Factor of all values, drawn from (1 − b, 1 + b), not below 0, or from (low, high).
    contrast : float or (float, float), default 0.0
        Factor of differences from the image's mean luma, drawn alike.
    saturation : float or (float, float), default 0.0
        Factor of differences from each pixel's luma, drawn alike; 0 makes grey.
    hue : float or (float, float), default 0.0
        Turn about the grey axis, in turns, from (−h, h) or (low, high) within [−0.5, 0.5]; each pixel's luma stays
        [1]_.
    p : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where real numbers are not in [0, 1], or saturation and hue meet
        images that have not three channels.

    References
    ----------
    .. [1] P. Haeberli, "Matrix operations for image processing", 1993.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> grey = augment.ColorJitter(saturation=(0, 0))
    >>> grey(np.array([[[[1.0, 0.0, 0.0]]]]), None, np.random.default_rng(0))[0].round(3).tolist()
    [[[[0.299, 0.299, 0.299]]]]
    """

    brightness: Interval = 0.0
    contrast: Interval = 0.0
    saturation: Interval = 0.0
    hue: Interval = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brightness", "contrast", "saturation"):
            _factors(name, getattr(self, name))
        _turns(self.hue)

    def _images(self, x: Array, rng: Rng) -> Array:
        _within(x, "change colours before values are standardised")
        n, h, w, c = x.shape
        factors = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (drawn(rng, _factors("", value), n) for value in factors)
        turns = drawn(rng, _turns(self.hue), n)
        real: Any = np.float64 if x.dtype == np.float64 else np.float32
        colorful = bool(np.any(saturation != 1) or np.any(turns))
        if colorful and c != 3:
            raise ValueError(f"x must have three channels for saturation and hue, got {c}")
        gain, shift = brightness * contrast, np.zeros(n)
        if np.any(contrast != 1):
            luma = LUMA if c == 3 else np.full(c, 1 / c)
            shift = (1 - contrast) * brightness * (_means(x) @ luma)
        matrices = gain[:, None, None] * (_of_hue(turns) @ _of_saturation(saturation)).swapaxes(1, 2)
        matrices, gain, shift = np.ascontiguousarray(matrices, real), gain.astype(real), shift.astype(real)
        out = np.empty_like(x)
        for some in chunks(n, h * w * c):
            values = x[some].astype(real, copy=False)
            if colorful:
                values = (values.reshape(-1, h * w, c) @ matrices[some]).reshape(values.shape)
            else:
                values = values * per_image(gain[some])
            values += per_image(shift[some])
            out[some] = as_bytes(values) if x.dtype == np.uint8 else np.clip(values, 0, 1, out=values)
        return out


def _means(x: Array) -> Array:
    """The mean of each channel (n, c), float64: rows are added first, since their numbers are contiguous."""
    n, h, w, c = x.shape
    rows = x.reshape(n, h, w * c).sum(axis=1, dtype=np.int64 if x.dtype == np.uint8 else None)
    return rows.reshape(n, w, c).sum(axis=1, dtype=np.float64) / (h * w)


def _factors(name: str, value: Interval) -> tuple[float, float]:
    return limits(name, value, "[0, 1e3]", lambda spread: (max(1 - spread, 0.0), 1 + spread), least=0)


def _turns(value: Interval) -> tuple[float, float]:
    return both_ways("hue", value, "[-0.5, 0.5]")


def _of_saturation(factors: Array) -> Array:
    """Matrices (n, 3, 3): each colour between its grey and itself."""
    return factors[:, None, None] * np.eye(3) + (1 - factors)[:, None, None] * LUMA


def _of_hue(turns: Array) -> Array:
    """Matrices (n, 3, 3): rotations about the grey axis (Rodrigues), then a shift along it that restores the luma."""
    cos, sin = np.cos(2 * np.pi * turns)[:, None, None], np.sin(2 * np.pi * turns)[:, None, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotation = cos * np.eye(3) + sin * cross + (1 - cos) / 3
    return rotation + LUMA @ (np.eye(3) - rotation)[:, None]


@dataclass(frozen=True, repr=False)
class Noise(Augmentation):
    """Gaussian noise added to each value.

    Parameters
    ----------
    std : float or (float, float), default 0.05
        Its standard deviation, where white is 1 (for uint8, 255 of them); of a pair (low, high), each image draws its
        own.
    clip : bool, default True
        Whether real numbers, which are then to be in [0, 1], stay there. Bytes always stay within theirs.
    p : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call with `clip`, where real numbers are not in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.full((4, 32, 32, 3), 0.5)
    >>> augment.Noise(0.1)(x, None, np.random.default_rng(0))[0].std().round(2)
    np.float64(0.1)
    """

    std: Interval = 0.05
    clip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(clip=checks.flag("clip", self.clip))
        limits("std", self.std, "[0, 1e6]")

    def _images(self, x: Array, rng: Rng) -> Array:
        if self.clip:
            _within(x, "clip=False takes other values")
        real: Any = np.float64 if x.dtype == np.float64 else np.float32
        white = 255 if x.dtype == np.uint8 else 1
        std = drawn(rng, limits("", self.std, "[0, 1e6]"), len(x))
        out = np.empty_like(x)
        for some in chunks(len(x), x[0].size):
            values = rng.standard_normal(x[some].shape, real)
            values *= per_image(std[some] * white).astype(real)
            values += x[some]
            if self.clip:
                np.clip(values, 0, white, out=values)
            out[some] = as_bytes(values) if x.dtype == np.uint8 else values
        return out


@dataclass(frozen=True, repr=False)
class Cutout(Augmentation):
    """A rectangle of one value at a random place [1]_.

    Parameters
    ----------
    size : int or (int, int)
        Its height and width. Its centre is anywhere in the image, so that a part of it may be outside.
    fill : float, default 0.0
        In the unit of the images.
    p : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    References
    ----------
    .. [1] T. DeVries and G. W. Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.ones((1, 4, 4, 1), np.uint8)
    >>> augment.Cutout(2)(x, None, np.random.default_rng(0))[0][0, ..., 0].tolist()
    [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1]]
    """

    size: Pair
    fill: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.pair("size", self.size, 1)
        self._set(fill=checks.number("fill", self.fill))

    def _images(self, x: Array, rng: Rng) -> Array:
        n, h, w, _ = x.shape
        height, width = checks.pair("size", self.size, 1)
        sides = np.full(n, height), np.full(n, width)
        out = x.copy()
        for i, (top, bottom, left, right) in enumerate(rectangles(h, w, *sides, rng).tolist()):
            out[i, top:bottom, left:right] = filling(self.fill, x.dtype)
        return out


def rectangles(h: int, w: int, heights: Array, widths: Array, rng: Rng) -> Array:
    """Top, bottom, left and right (n, 4) of rectangles with centres anywhere in an image, as far as they are inside."""
    edges: list[Array] = []
    for length, sides in ((h, heights), (w, widths)):
        start = rng.integers(length, size=len(sides)) - sides // 2
        edges += [np.maximum(start, 0), np.minimum(start + sides, length)]
    return np.stack(edges, axis=1)


@dataclass(frozen=True, repr=False)
class ToFloat(Augmentation):
    """Bytes as float32 in [0, 1]; real numbers stay as they are. The last one of a chain on images of bytes.

    Parameters
    ----------
    p : float, default 1.0
        1: images of a batch have one type.

    Raises
    ------
    ValueError
        Where `p` is another one.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> augment.ToFloat()(np.full((1, 1, 1, 1), 255, np.uint8), None, np.random.default_rng(0))[0].ravel()
    array([1.], dtype=float32)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p != 1:
            raise ValueError(f"p must be 1, since images have one type, got {self.p!r}")

    def _images(self, x: Array, rng: Rng) -> Array:
        return np.divide(x, np.float32(255), dtype=np.float32) if x.dtype == np.uint8 else x
