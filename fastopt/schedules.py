"""Learning rates as functions of the step."""

from __future__ import annotations

import math


def cosine(step: int, *, steps: int, peak: float, floor: float = 0.0) -> float:
    """Half a cosine wave from `peak` at step 0 down to `floor` at `steps` and after [1]_.

    Parameters
    ----------
    step : int
        Counted from 0.
    steps : int
        How long it falls.
    peak, floor : float

    Returns
    -------
    float
        ``floor + (peak − floor)·(1 + cos(π·step / steps)) / 2``

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5.
    """
    done = min(step / steps, 1.0) if steps else 1.0
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2
