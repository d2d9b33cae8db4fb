"""Initial weights: normal with the variance that keeps the scale of a signal from layer to layer."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fastopt import checks
from fastopt.checks import Array

Init = Literal["he", "xavier"]


def weight(
    init: Init, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator, dtype: np.dtype
) -> Array:
    """A weight array drawn from a centred normal distribution.

    Parameters
    ----------
    init : {"he", "xavier"}
        The variance: ``2 / fan_in`` (He et al. 2015, eq. 10: before ReLU), or ``2 / (fan_in + fan_out)``
        (Glorot & Bengio 2010, eq. 12).
    shape : tuple of int
    fan_in, fan_out : int
        How many inputs an output sums up, and how many outputs an input enters.
    rng : numpy.random.Generator
    dtype : numpy.dtype

    Returns
    -------
    weight : ndarray of `shape`
    """
    checks.choice("init", init, ("he", "xavier"))
    variance = 2 / fan_in if init == "he" else 2 / (fan_in + fan_out)
    return rng.normal(0.0, math.sqrt(variance), shape).astype(dtype)
