"""Activations, element by element, ReLU with a bias among them; and softmax."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels, checks
from fastopt.checks import Array
from fastopt.kernel import kernel

__all__ = [
    "ACTIVATIONS",
    "activation_backward",
    "activation_forward",
    "bias_relu_backward",
    "bias_relu_forward",
    "prelu_backward",
    "prelu_forward",
    "relu_backward",
    "relu_forward",
    "softmax_backward",
    "softmax_forward",
]


_relu_forward = kernel("relu_forward", y="out")
_relu_backward = kernel("relu_backward", dx="out")
_prelu_forward = kernel("prelu_forward", y="out")
_prelu_backward = kernel("prelu_backward", dx="out")
_bias_relu_forward = kernel("bias_relu_forward", y="out")
_bias_relu_backward = kernel("bias_relu_backward", dx="out")
_activation_forward = kernel("activation_forward", y="out")
_activation_backward = kernel("activation_backward", dx="out", **{"from": "seen"})
_softmax_forward = kernel("softmax_forward", y="out")
_softmax_backward = kernel("softmax_backward", dx="out")

Activation = Literal["leaky_relu", "elu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus"]
#: What `activation_forward` can compute. The gradients of the first four follow from y, those of the others from x.
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def relu_forward(x: Array, out: Array | None = None) -> Array:
    """``y = max(x, 0)``; NaN stays NaN.

    Parameters
    ----------
    x : ndarray, any shape
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
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> relu_forward(x, out=x) is x
    True
    >>> x
    array([0., 0., 2.])
    """
    return _relu_forward(x, out)


def relu_backward(dy: Array, y: Array, out: Array | None = None) -> Array:
    """The gradient of `relu_forward`: ``dx = 0`` where ``y <= 0``, else ``dy``.

    Parameters
    ----------
    dy : ndarray, any shape
        The gradient with respect to y.
    y : ndarray like `dy`
        What `relu_forward` returned (or its x).
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> relu_backward(np.ones(3), relu_forward(np.array([-1.0, 0.0, 2.0])))
    array([0., 0., 1.])
    """
    return _relu_backward(dy, y, out)


def prelu_forward(x: Array, slope: Array, out: Array | None = None) -> Array:
    """``y = x``, and ``slope·x`` where x <= 0, with a slope for each column (He et al. 2015, eq. 1).

    Parameters
    ----------
    x : ndarray (…, d)
    slope : ndarray (d,)
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
    >>> prelu_forward(np.array([[-2.0, -2.0], [1.0, 3.0]]), np.array([0.5, 0.0]))
    array([[-1., -0.],
           [ 1.,  3.]])
    """
    return _prelu_forward(x, slope, out)


def prelu_backward(
    dy: Array, x: Array, slope: Array, out: Array | None = None, terms: Array | None = None
) -> tuple[Array, Array]:
    """The gradients of `prelu_forward`; that of the slope as the terms of a sum over rows.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    x : ndarray like `dy`
    slope : ndarray (d,)
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.
    terms : ndarray like `dy`, optional
        Where to write those.

    Returns
    -------
    dx : ndarray like `dy`
    terms : ndarray like `dy`
        ``bias_backward(terms)`` is the gradient of the slope.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> dx, terms = prelu_backward(np.ones((2, 1)), np.array([[-2.0], [3.0]]), np.array([0.5]))
    >>> dx.ravel().tolist(), terms.sum(axis=0).tolist()
    ([0.5, 1.0], [-2.0])
    """
    return _prelu_backward(dy, x, slope, out, terms)


def bias_relu_forward(x: Array, bias: Array, out: Array | None = None) -> Array:
    """``y = max(x + bias, 0)`` in one pass.

    Parameters
    ----------
    x : ndarray (…, d)
    bias : ndarray (d,)
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
    >>> bias_relu_forward(np.array([[-1.0, 2.0]]), np.array([0.5, 0.5]))
    array([[0. , 2.5]])
    """
    return _bias_relu_forward(x, bias, out)


def bias_relu_backward(
    dy: Array, y: Array, out: Array | None = None, dbias: Array | None = None
) -> tuple[Array, Array]:
    """The gradients of `bias_relu_forward`, in one pass.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    y : ndarray like `dy`
        What `bias_relu_forward` returned.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.
    dbias : ndarray (d,), optional
        Where to write that.

    Returns
    -------
    dx : ndarray like `dy`
    dbias : ndarray (d,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> dx, dbias = bias_relu_backward(np.ones((2, 2)), np.array([[0.0, 2.0], [1.0, 1.0]]))
    >>> dx
    array([[0., 1.],
           [1., 1.]])
    >>> dbias
    array([1., 2.])
    """
    return _bias_relu_backward(dy, y, out, dbias, 1.0)


def activation_forward(x: Array, kind: Activation, *, alpha: float | None = None, out: Array | None = None) -> Array:
    """An activation, element by element; NaN stays NaN.

    Parameters
    ----------
    x : ndarray, any shape
    kind : str
        ``"leaky_relu"``: x, or `alpha`·x where x < 0. ``"elu"`` [1]_: x, or `alpha`·(eˣ − 1) where x < 0. ``"tanh"``.
        ``"sigmoid"``: 1 / (1 + e⁻ˣ). ``"gelu"`` [2]_: x·Φ(x), Φ being the normal distribution. ``"gelu_tanh"``: its
        approximation x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))). ``"silu"`` [2]_: x / (1 + e⁻ˣ). ``"softplus"``:
        log(1 + eˣ).
    alpha : float, optional
        In [0, inf); where absent 0.01 for ``"leaky_relu"``, 1 for ``"elu"``.
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] D.-A. Clevert et al., "Fast and accurate deep network learning by exponential linear units", 2016.
    .. [2] D. Hendrycks and K. Gimpel, "Gaussian error linear units", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> activation_forward(np.array([-1.0, 2.0]), "leaky_relu", alpha=0.25)
    array([-0.25,  2.  ])
    """
    return _activation_forward(x, out, *_activation(kind, alpha))


def activation_backward(
    dy: Array, seen: Array, kind: Activation, *, alpha: float | None = None, out: Array | None = None
) -> Array:
    """The gradient of `activation_forward`.

    Parameters
    ----------
    dy : ndarray, any shape
        The gradient with respect to y.
    seen : ndarray like `dy`
        For ``"leaky_relu"``, ``"elu"``, ``"tanh"`` and ``"sigmoid"`` the y that forward returned, for the others its x.
    kind, alpha
        As there.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> y = activation_forward(np.array([-1.0, 2.0]), "leaky_relu", alpha=0.25)
    >>> activation_backward(np.ones(2), y, "leaky_relu", alpha=0.25)
    array([0.25, 1.  ])
    """
    return _activation_backward(dy, seen, out, *_activation(kind, alpha))


@_kernels.Memoised
def _activation(kind: str, alpha: Any) -> tuple[int, float]:
    """The number of an activation in the table, and its parameter."""
    place = _kernels.CHOICES["activation"].index(checks.choice("kind", kind, ACTIVATIONS))
    if alpha is None:
        return place, 0.01 if kind == "leaky_relu" else 1.0
    return place, checks.number("alpha", alpha, "[0, inf)")


def softmax_forward(x: Array, out: Array | None = None, log_sum: NDArray[np.float64] | None = None) -> Array:
    """Softmax over the last axis: ``y = exp(x) / Σ exp(x)``. The maximum is taken off first, so any finite x is safe.

    Parameters
    ----------
    x : ndarray (…, d)
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.
    log_sum : float64 ndarray (size / d,), optional
        Where to write ``log Σ exp(x)`` of each row.

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
    >>> softmax_forward(np.array([[0.0, 0.0], [1000.0, 0.0]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    return _softmax_forward(x, out, log_sum)[0]


def softmax_backward(dy: Array, y: Array, out: Array | None = None) -> Array:
    """The gradient of `softmax_forward`: ``dx = y·(dy − Σ dy·y)``.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    y : ndarray like `dy`
        What `softmax_forward` returned.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_backward(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
    array([[ 0.25, -0.25]])
    """
    return _softmax_backward(dy, y, out)
