"""Bilinear resampling, which all geometric augmentations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.checks import Array
from fastopt.data.augment.base import as_bytes, chunks, filling

#: What lies beyond an image, in the words of `numpy.pad`.
BORDERS = ("constant", "edge", "reflect")


def warp(
    x: Array,
    size: tuple[int, int],
    places: Callable[[slice], tuple[Array, Array]],
    border: str = "constant",
    fill: float = 0.0,
) -> Array:
    """Images at other places, by bilinear interpolation between the centres of pixels.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    size : (int, int)
        Height and width of the result, (h', w').
    places : callable
        For some of the images, as a slice, rows and columns: where in them the value of each pixel of the result lies,
        0 being the centre of the first pixel. Both broadcast to (k, h', w').
    border : str
        One of `BORDERS`: what lies beyond the image: `fill`, its outermost pixels, or its mirror image.
    fill : float

    Returns
    -------
    ndarray (n, h', w', c)
        A new array.
    """
    n, h, w, c = x.shape
    real = np.float64 if x.dtype == np.float64 else np.float32
    beyond = filling(fill, x.dtype)
    out = np.empty((n, *size, c), x.dtype)
    for some in chunks(n, max(h * w, size[0] * size[1])):
        rows, columns = places(some)
        top, down = _parts(rows, h, border, real)
        left, right = _parts(columns, w, border, real)
        count = some.stop - some.start
        first = (np.arange(count)[:, None, None] * (h + 2) + top) * (w + 2) + left
        down, right = np.broadcast_to(down, first.shape), np.broadcast_to(right, first.shape)
        padded = np.empty((count, h + 2, w + 2), real)  # so that each pixel has a neighbour on each side
        pixels = padded.reshape(-1)
        for channel in range(c):  # contiguous numbers: several times as fast as pixels of few numbers
            padded[:, 1:-1, 1:-1] = x[some, ..., channel]
            if border == "constant":
                padded[:, 0] = padded[:, -1] = padded[:, :, 0] = padded[:, :, -1] = beyond
            else:
                padded[:, 0, 1:-1], padded[:, -1, 1:-1] = padded[:, 1, 1:-1], padded[:, -2, 1:-1]
                padded[:, :, 0], padded[:, :, -1] = padded[:, :, 1], padded[:, :, -2]
            upper = _between(pixels, first, right)
            lower = _between(pixels[w + 2 :], first, right)
            lower -= upper
            lower *= down
            upper += lower
            out[some, ..., channel] = as_bytes(upper) if x.dtype == np.uint8 else upper
    return out


def _parts(places: Array, length: int, border: str, real: Any) -> tuple[Array, Array]:
    """The pixel before each place, counted with the one that is in front of the image, and the way to the next."""
    if border == "reflect":
        last = max(length - 1, 1)
        places = np.mod(places, 2 * last)
        places = last - np.abs(places - last) if length > 1 else np.zeros_like(places)
    places = np.clip(places, -1, length) + 1
    before = np.minimum(places.astype(np.int64), length)
    return before, (places - before).astype(real)


def _between(values: Array, first: Array, share: Array) -> Array:
    """Numbers between some values and those behind them, in a new array."""
    between = values.take(first, mode="clip")  # all are within: other modes check that
    further = values[1:].take(first, mode="clip")
    further -= between
    further *= share
    between += further
    return between


def grid(h: int, w: int) -> tuple[Array, Array]:
    """The rows (h, 1) and columns (1, w) of pixels, from the centre of the image."""
    return np.arange(h)[:, None] - (h - 1) / 2, np.arange(w)[None, :] - (w - 1) / 2
