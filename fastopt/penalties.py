"""Penalties on the size of parameters, as the keywords of an optimizer, and as terms of a loss."""

from __future__ import annotations

import math

from fastopt import checks
from fastopt.checks import Arrays
from fastopt.gradients import square_sum

__all__ = ["elastic_net", "penalty"]


def elastic_net(strength: float, *, l2: float | None = None, beta: float | None = None) -> dict[str, float]:
    """The keywords of an optimizer for L1 and L2 penalties together [1]_, in either of the usual notations.

    ``strength·|w| + l2·w²`` with `l2`, or ``strength·(beta·w² + |w|)`` with `beta`, summed over all weights. The
    gradient of ``λw²`` is ``2λw``, so its `weight_decay` is ``2λ``.

    Parameters
    ----------
    strength : float
        Of the L1 penalty (`l2`), or of both (`beta`), in [0, inf).
    l2, beta : float
        One of them, in [0, inf).

    Returns
    -------
    dict
        ``l1`` and ``weight_decay``: ``fastopt.SGD(params, lr, **elastic_net(1e-4, l2=1e-3))``.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or not just one of `l2` and `beta` is given.

    References
    ----------
    .. [1] H. Zou and T. Hastie, "Regularization and variable selection via the elastic net", 2005, eq. 3.

    Examples
    --------
    >>> elastic_net(1e-4, l2=1e-3)
    {'l1': 0.0001, 'weight_decay': 0.002}
    >>> elastic_net(1e-4, beta=0.5)
    {'l1': 0.0001, 'weight_decay': 0.0001}
    """
    strength = checks.number("strength", strength, "[0, inf)")
    if (l2 is None) == (beta is None):
        raise ValueError(f"one of l2 and beta must be given, got l2={l2!r}, beta={beta!r}")
    if l2 is not None:
        return {"l1": strength, "weight_decay": 2 * checks.number("l2", l2, "[0, inf)")}
    return {"l1": strength, "weight_decay": 2 * strength * checks.number("beta", beta, "[0, inf)")}


def penalty(params: Arrays, *, weight_decay: float = 0.0, l1: float = 0.0) -> float:
    """What the penalties of an optimizer with these keywords add to its loss: ``l1·Σ|w| + weight_decay/2·Σw²``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
    weight_decay, l1 : float, default 0.0
        In [0, inf).

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> fastopt.penalty({"weight": np.array([3.0, -4.0])}, weight_decay=0.1, l1=0.01)  # 0.05·25 + 0.01·7
    1.32
    """
    weight_decay, l1 = checks.number("weight_decay", weight_decay, "[0, inf)"), checks.number("l1", l1, "[0, inf)")
    every = list(checks.named("param", params).values())
    squares = math.fsum(square_sum(param) for param in every) if weight_decay else 0.0
    sizes = math.fsum(float(abs(param).sum(dtype=float)) for param in every) if l1 else 0.0
    return weight_decay / 2 * squares + l1 * sizes
