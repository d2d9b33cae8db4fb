"""Augmentations that move pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array, Pair
from fastopt.data.augment.base import Augmentation, Rng, drawn, drawn_log, filling, limits
from fastopt.data.augment.pixels import gathered
from fastopt.data.augment.warp import BORDERS, grid, warp

Interval = float | tuple[float, float]


def _mirrored(chosen: Array, length: int) -> Array:
    """The numbers of so many rows or columns, backwards in the images that are chosen."""
    return np.where(chosen[:, None], np.arange(length - 1, -1, -1), np.arange(length))


def _in_order(n: int, length: int) -> Array:
    return np.tile(np.arange(length), (n, 1))


@dataclass(frozen=True, repr=False)
class HorizontalFlip(Augmentation):
    """Left and right swapped.

    Parameters
    ----------
    p : float, default 0.5

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.arange(3.0).reshape(1, 1, 3, 1)
    >>> augment.HorizontalFlip(p=1)(x, None, np.random.default_rng(0))[0].ravel().tolist()
    [2.0, 1.0, 0.0]
    """

    p: float = field(default=0.5, kw_only=True)

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        n, h, w, _ = x.shape
        return gathered(x, _in_order(n, h), _mirrored(self._chosen(n, rng), w)), y


@dataclass(frozen=True, repr=False)
class VerticalFlip(Augmentation):
    """Top and bottom swapped.

    Parameters
    ----------
    p : float, default 0.5

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.arange(3.0).reshape(1, 3, 1, 1)
    >>> augment.VerticalFlip(p=1)(x, None, np.random.default_rng(0))[0].ravel().tolist()
    [2.0, 1.0, 0.0]
    """

    p: float = field(default=0.5, kw_only=True)

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        n, h, w, _ = x.shape
        return gathered(x, _mirrored(self._chosen(n, rng), h), _in_order(n, w)), y


@dataclass(frozen=True, repr=False)
class RandomCrop(Augmentation):
    """A window at a random place of the image, which may be padded before.

    Parameters
    ----------
    padding : int or (int, int), default 0
        Pixels that are added above and below, and on the left and the right [1]_.
    size : int or (int, int), optional
        Height and width of the window; by default those of the image.
    border : "constant", "edge" or "reflect", default "constant"
        What is added: `fill`, the outermost pixels, or the mirror image.
    fill : float, default 0.0
        In the unit of the images.
    p : float, default 1.0
        The other images get the window in the middle.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where the window is larger than the padded image.

    References
    ----------
    .. [1] K. He et al., "Deep residual learning for image recognition", 2016, section 4.2: 4 pixels, on CIFAR-10.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.ones((2, 32, 32, 3), np.float32)
    >>> augment.RandomCrop(padding=4)(x, None, np.random.default_rng(0))[0].shape
    (2, 32, 32, 3)
    >>> augment.RandomCrop(size=24)(x, None, np.random.default_rng(0))[0].shape
    (2, 24, 24, 3)
    """

    padding: Pair = 0
    size: Pair | None = None
    border: str = "constant"
    fill: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checked_border(self)
        checks.pair("padding", self.padding, 0)
        if self.size is not None:
            checks.pair("size", self.size, 1)

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        n, h, w, _ = x.shape
        (above, left), chosen = checks.pair("padding", self.padding, 0), self._chosen(n, rng)
        height, width = (h, w) if self.size is None else checks.pair("size", self.size, 1)
        spare = (h + 2 * above - height, w + 2 * left - width)
        if min(spare) < 0:
            raise ValueError(
                f"size must be at most that of the padded image, {(h + 2 * above, w + 2 * left)}, got {(height, width)}"
            )
        if self.border == "reflect" and (above >= h or left >= w):
            raise ValueError(f"padding must be less than the image's size {(h, w)} to reflect it, got {self.padding!r}")
        top, start = (np.where(chosen, rng.integers(each + 1, size=n), each // 2) for each in spare)
        rows = _numbers(h, above, self.border)[top[:, None] + np.arange(height)]
        columns = _numbers(w, left, self.border)[start[:, None] + np.arange(width)]
        return gathered(x, rows, columns, filling(self.fill, x.dtype)), y


def _numbers(length: int, padding: int, border: str) -> Array:
    """The rows or columns of padded images, in the images; -1 for those that are filled."""
    if border == "constant":
        return np.pad(np.arange(length), padding, constant_values=-1)
    return np.pad(np.arange(length), padding, mode=border)  # type: ignore[call-overload]


def _checked_border(augmentation: Any) -> None:
    checks.choice("border", augmentation.border, BORDERS)
    augmentation._set(fill=checks.number("fill", augmentation.fill))


@dataclass(frozen=True, repr=False)
class RandomResizedCrop(Augmentation):
    """A window of random area and shape at a random place, scaled to one size [1]_, by bilinear interpolation.

    Parameters
    ----------
    size : int or (int, int), optional
        Height and width of the result; by default those of the image.
    area : (float, float), default (0.08, 1.0)
        The share of the image's area, drawn uniformly.
    ratio : (float, float), default (0.75, 1.3333333333333333)
        Width by height of the window, drawn log-uniformly.
    p : float, default 1.0
        The other images are scaled as a whole.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Notes
    -----
    Area and shape are drawn ten times; the first window that fits is taken, and where none does, the whole image.
    Scaling down to less than half leaves out pixels (there is no filter against aliasing).

    References
    ----------
    .. [1] C. Szegedy et al., "Going deeper with convolutions", 2015, section 6.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.ones((2, 48, 64, 3), np.uint8)
    >>> augment.RandomResizedCrop(size=32)(x, None, np.random.default_rng(0))[0].shape
    (2, 32, 32, 3)
    """

    size: Pair | None = None
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None:
            checks.pair("size", self.size, 1)
        limits("area", self.area, "(0, 1]")
        limits("ratio", self.ratio, "[1e-3, 1e3]")

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        n, h, w, _ = x.shape
        chosen = self._chosen(n, rng)
        height, width = (h, w) if self.size is None else checks.pair("size", self.size, 1)
        area = h * w * drawn(rng, limits("", self.area, "(0, 1]"), (n, 10))
        ratio = drawn_log(rng, limits("", self.ratio, "[1e-3, 1e3]"), (n, 10))
        heights, widths = np.sqrt(area / ratio), np.sqrt(area * ratio)
        fits = (heights <= h) & (widths <= w)
        first = (np.arange(n), fits.argmax(axis=1))
        whole = ~(fits.any(axis=1) & chosen)
        cut_h, cut_w = np.where(whole, h, heights[first]), np.where(whole, w, widths[first])
        top, left = rng.random(n) * (h - cut_h), rng.random(n) * (w - cut_w)
        rows = _scaled(top, cut_h, height, h)[:, :, None]
        columns = _scaled(left, cut_w, width, w)[:, None, :]
        return warp(x, (height, width), lambda some: (rows[some], columns[some]), "edge"), y


def _scaled(start: Array, length: Array, pixels: int, most: int) -> Array:
    """The places (n, pixels) in an image of the centres of pixels that a window is divided into."""
    places = start[:, None] + (np.arange(pixels) + 0.5) * (length / pixels)[:, None] - 0.5
    return np.clip(places, 0, most - 1)


@dataclass(frozen=True, repr=False)
class Affine(Augmentation):
    """Shifted, rotated, scaled, sheared and stretched at random, about the centre, by bilinear interpolation.

    A pixel at (column, row) from the centre moves to ``rotate · shear · scale · stretch`` of it, plus the shift [1]_.

    Parameters
    ----------
    translate : float or (float, float), default 0.0
        The shift down and to the right, each drawn by itself, as a share of height and width: from (−t, t), or from
        (low, high).
    rotate : float or (float, float), default 0.0
        Degrees counter-clockwise, from (−r, r) or (low, high).
    scale : float or (float, float), default 1.0
        Factor of both sides, log-uniformly from (1/s, s) or (low, high); above 1, things grow.
    shear : float or (float, float), default 0.0
        Degrees by which vertical lines lean to the right, from (−s, s) or (low, high), within (−90, 90).
    stretch : float or (float, float), default 1.0
        Factor of width by height, log-uniformly from (1/s, s) or (low, high); the area stays.
    border : "constant", "edge" or "reflect", default "constant"
        What lies beyond the image: `fill`, its outermost pixels, or its mirror image.
    fill : float, default 0.0
        In the unit of the images.
    p : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    References
    ----------
    .. [1] S. Dieleman, K. W. Willett and J. Dambre, "Rotation-invariant convolutional neural networks for galaxy
       morphology prediction", 2015, section 5.4.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.arange(4.0).reshape(1, 2, 2, 1)
    >>> augment.Affine(rotate=(90, 90))(x, None, np.random.default_rng(0))[0][0, ..., 0].round(6).tolist()
    [[1.0, 3.0], [0.0, 2.0]]
    """

    translate: Interval = 0.0
    rotate: Interval = 0.0
    scale: Interval = 1.0
    shear: Interval = 0.0
    stretch: Interval = 1.0
    border: str = "constant"
    fill: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checked_border(self)
        for name, bounds in (("translate", "[-1, 1]"), ("rotate", "[-1e6, 1e6]"), ("shear", "(-90, 90)")):
            both_ways(name, getattr(self, name), bounds)
        for name in ("scale", "stretch"):
            _up_and_down(name, getattr(self, name))

    def _images(self, x: Array, rng: Rng) -> Array:
        n, h, w, _ = x.shape
        down, right = (drawn(rng, both_ways("", self.translate), n) * length for length in (h, w))
        angle, lean = (np.deg2rad(drawn(rng, both_ways("", value), n)) for value in (self.rotate, self.shear))
        scale, stretch = (drawn_log(rng, _up_and_down("", value), n) for value in (self.scale, self.stretch))
        # The inverse, for (column, row) with the row pointing downwards: un-stretch · un-shear · un-rotate.
        cos, sin, slope = np.cos(angle), np.sin(angle), np.tan(lean)
        wide, high = scale * np.sqrt(stretch), scale / np.sqrt(stretch)
        of_column = ((cos + slope * sin) / wide, (slope * cos - sin) / wide)
        of_row = (sin / high, cos / high)
        row, column = grid(h, w)

        def places(some: slice) -> tuple[Array, Array]:
            y, x = row - _per_pixel(down[some]), column - _per_pixel(right[some])
            columns = _per_pixel(of_column[0][some]) * x + _per_pixel(of_column[1][some]) * y
            rows = _per_pixel(of_row[0][some]) * x + _per_pixel(of_row[1][some]) * y
            rows += (h - 1) / 2
            columns += (w - 1) / 2
            return rows, columns

        return warp(x, (h, w), places, self.border, self.fill)


def _per_pixel(values: Array) -> Array:
    return values[:, None, None]


def both_ways(name: str, value: Interval, bounds: str = "(-inf, inf)") -> tuple[float, float]:
    """An interval about 0."""
    return limits(name, value, bounds, lambda end: (-end, end), least=0)


def _up_and_down(name: str, value: Interval) -> tuple[float, float]:
    """An interval of factors about 1."""
    return limits(name, value, "[1e-3, 1e3]", lambda factor: (1 / factor, factor), least=1)


@dataclass(frozen=True, repr=False)
class LensDistortion(Augmentation):
    """Barrel and pincushion distortion: what is at radius r comes from ``r·(1 + k·r²)`` [1]_, bilinearly.

    Parameters
    ----------
    strength : float or (float, float), default 0.2
        k is drawn from (−s, s) or (low, high), within [−1/3, 1]; below, the image would fold. The radius is 1
        in the corners. Above 0 things bulge to the middle (a barrel), below 0 to the corners (a pincushion).
    border : "constant", "edge" or "reflect", default "constant"
    fill : float, default 0.0
        In the unit of the images.
    p : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    References
    ----------
    .. [1] D. C. Brown, "Decentering distortion of lenses", 1966: its first radial term.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> augmentation = augment.LensDistortion(0.3, border="edge")
    >>> augmentation(np.ones((2, 8, 8, 1)), None, np.random.default_rng(0))[0].min()
    np.float64(1.0)
    """

    strength: Interval = 0.2
    border: str = "constant"
    fill: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checked_border(self)
        low, _ = both_ways("strength", self.strength, "[-1, 1]")
        if low < -1 / 3:
            raise ValueError(f"strength must be in [-1/3, 1], got {self.strength!r}")

    def _images(self, x: Array, rng: Rng) -> Array:
        n, h, w, _ = x.shape
        row, column = grid(h, w)
        squares = (row**2 + column**2) / max((((h - 1) / 2) ** 2 + ((w - 1) / 2) ** 2), 1e-30)
        strength = drawn(rng, both_ways("", self.strength), n)

        def places(some: slice) -> tuple[Array, Array]:
            factor = 1 + _per_pixel(strength[some]) * squares
            return factor * row + (h - 1) / 2, factor * column + (w - 1) / 2

        return warp(x, (h, w), places, self.border, self.fill)
