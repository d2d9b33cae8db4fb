"""The kernels of augmentation: pixels moved within their images, and images mixed in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import threads
from fastopt.checks import Array
from fastopt.kernel import kernel

_gather_pixels = kernel("gather_pixels")
_mix_images = kernel("mix_images")


def gathered(x: Array, rows: NDArray[np.int64], columns: NDArray[np.int64], fill: Any = 0) -> Array:
    """New images of pixels of the old ones: ``y[n, i, j] = x[n, rows[n, i], columns[n, j]]``.

    Parameters
    ----------
    x : ndarray (n, h, w, c), of any type
    rows : int64 ndarray (n, h')
    columns : int64 ndarray (n, w')
    fill : number
        What is where x has no such row or column.

    Returns
    -------
    ndarray (n, h', w', c)
    """
    pixel = np.full(x.shape[3], fill, x.dtype)
    with threads.limited(1):  # others train meanwhile
        return _gather_pixels(x.view(np.uint8), pixel.view(np.uint8), rows, columns, None).view(x.dtype)


def mixed(x: Array, partner: NDArray[np.int64], kept: NDArray[np.float64]) -> Array:
    """``kept·x + (1 − kept)·x[partner]``, of each image.

    Parameters
    ----------
    x : ndarray (n, …), float32 or float64
    partner : int64 ndarray (n,)
    kept : float64 ndarray (n,)

    Returns
    -------
    ndarray (n, …)
    """
    with threads.limited(1):
        return _mix_images(x, partner, kept, None)
