"""Sums and products element by element, and axes that change places."""

from __future__ import annotations

from fastopt import checks
from fastopt.checks import Array
from fastopt.kernel import kernel

__all__ = [
    "add",
    "scale",
    "scale_channels",
    "swap_axes",
]


_add = kernel("add", y="out")
_scale = kernel("scale", y="out")
_scale_channels = kernel("scale_channels", y="out")
_swap_axes = kernel("swap_axes", y="out")


def add(a: Array, b: Array, *, relu: bool = False, out: Array | None = None) -> Array:
    """``y = a + b``, or ``max(a + b, 0)``: the end of a residual block.

    Parameters
    ----------
    a : ndarray, any shape
    b : ndarray like `a`
    relu : bool, default False
        Whether a ReLU follows; NaN stays NaN.
    out : ndarray like `a`, optional
        Where to write y; may be `a` or `b` itself.

    Returns
    -------
    y : ndarray like `a`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> add(np.array([1.0, 2.0]), np.array([3.0, -5.0]), relu=True)
    array([4., 0.])
    """
    relu = checks.flag("relu", relu)
    return _add(b, a, out, relu) if out is b and out is not None else _add(a, b, out, relu)


def scale(x: Array, factor: float, out: Array | None = None) -> Array:
    """``y = x·factor``.

    Parameters
    ----------
    x : ndarray, any shape
    factor : float
        Rounded to the type of `x`.
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> scale(np.array([1.0, -2.0]), 0.5)
    array([ 0.5, -1. ])
    """
    return _scale(x, out, checks.number("factor", factor))


def scale_channels(x: Array, factor: Array, out: Array | None = None) -> Array:
    """``y = x·factor``, one factor for each channel of a sample: what spatial dropout does, and its gradient.

    Parameters
    ----------
    x : ndarray (n, …, c)
    factor : ndarray (n, c)
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> scale_channels(np.ones((1, 3, 2)), np.array([[2.0, 0.0]]))
    array([[[2., 0.],
            [2., 0.],
            [2., 0.]]])
    """
    return _scale_channels(x, factor, out)


def swap_axes(x: Array, out: Array | None = None) -> Array:
    """A copy with the first two axes in each other's place: the channel groups of a convolution.

    Parameters
    ----------
    x : ndarray (a, b, c)
    out : ndarray (b, a, c), optional
        Where to write.

    Returns
    -------
    y : ndarray (b, a, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> swap_axes(np.array([[[1.0], [2.0], [3.0]]])).shape
    (3, 1, 1)
    """
    return _swap_axes(x, out)
