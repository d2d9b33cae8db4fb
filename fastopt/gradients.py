"""What is done to gradients before a step: norms, clipping, averages over micro-batches, noise.

An optimizer clips and unscales on the fly (see `fastopt.Optimizer`: `clip_value`, `clip_norm`, `clip_global_norm`,
`skip_nonfinite`, and `grad_scale` of its step); these functions are for gradients of your own, in place. Gradients
are an array, or a list or a dict of arrays, nested to any depth, float32 or float64, C-contiguous.

>>> import numpy as np, fastopt
>>> grads = [np.array([3.0]), np.array([4.0])]
>>> fastopt.gradients.clip_by_global_norm(grads, 1.0)  # the norm of before
5.0
>>> fastopt.gradients.global_norm(grads)
1.0
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import numpy as np

from fastopt import checks
from fastopt.checks import Array, Arrays
from fastopt.kernel import kernel

__all__ = [
    "Accumulator",
    "add_noise",
    "all_finite",
    "centralize",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "global_norm",
    "square_sum",
    "square_sums",
]

_square_sums = kernel("square_sums")
#: Elements that `square_sum` sums up at a time.
_ROW = 4096


def square_sums(x: Array) -> tuple[Array, Array]:
    """The sums of squares over the rows and over the columns of a matrix, in double.

    The bits depend neither on threads nor on the instruction set.

    Parameters
    ----------
    x : ndarray (rows, columns)

    Returns
    -------
    of_rows : float64 ndarray (rows,)
    of_columns : float64 ndarray (columns,)

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> gradients.square_sums(np.array([[1.0, 2.0], [3.0, 4.0]]))
    (array([ 5., 25.]), array([10., 20.]))
    """
    of_columns = np.empty(checks.shape("x", x, ndim=2)[1])
    of_rows, _ = _square_sums(x, None, of_columns)
    return of_rows, of_columns


def square_sum(x: Array) -> float:
    """The sum of the squares of all elements, with the same bits as above.

    Parameters
    ----------
    x : ndarray, any shape

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> gradients.square_sum(np.array([3.0, 4.0]))
    25.0
    """
    flat = checks.array("x", x).reshape(-1)
    whole = flat.size // _ROW * _ROW
    sums = []
    for part in (flat[:whole].reshape(-1, _ROW), flat[whole:].reshape(1, -1)):
        sums.append(_square_sums(part, None, None)[0])
    return _sum(np.concatenate(sums).tolist())


def _sum(values: Iterable[float]) -> float:
    """The sum, rounded once; infinities of both signs, and overflow, do not raise."""
    values = list(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def global_norm(grads: Arrays) -> float:
    """The Euclidean norm of all gradients together.

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray

    Returns
    -------
    norm : float

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> gradients.global_norm({"weight": np.array([[3.0]]), "bias": np.array([4.0])})
    5.0
    """
    return math.sqrt(_sum(square_sum(grad) for grad in _writable(grads)))


def all_finite(grads: Arrays) -> bool:
    """Whether no gradient holds NaN or an infinity.

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray

    Returns
    -------
    bool

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> gradients.all_finite([np.ones(2), np.array([0.0, np.inf])])
    False
    """
    return all(math.isfinite(square_sum(grad)) or bool(np.isfinite(grad).all()) for grad in _writable(grads))


def clip_by_value(grads: Arrays, limit: float) -> None:
    """Clip each element to [−limit, limit].

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray
    limit : float
        In (0, inf).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> grad = np.array([-3.0, 0.5])
    >>> gradients.clip_by_value(grad, 1.0)
    >>> grad
    array([-1. ,  0.5])
    """
    limit = checks.number("limit", limit, "(0, inf)")
    for grad in _writable(grads):
        np.clip(grad, -limit, limit, out=grad)


def clip_by_norm(grads: Arrays, limit: float, *, eps: float = 0.0) -> list[float]:
    """Scale each gradient down to a norm where it exceeds it.

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray
    limit : float
        In (0, inf).
    eps : float, default 0.0
        Is added to the norm that is divided by.

    Returns
    -------
    norms : list of float
        Those before clipping.

    Raises
    ------
    ValueError
        Where a norm is not finite; then nothing has been changed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> grads = [np.array([3.0, 4.0]), np.array([0.5])]
    >>> gradients.clip_by_norm(grads, 1.0)
    [5.0, 0.5]
    >>> grads
    [array([0.6, 0.8]), array([0.5])]
    """
    every = _writable(grads)
    norms = [math.sqrt(square_sum(grad)) for grad in every]
    factors = [_factor(norm, limit, eps) for norm in norms]
    for grad, factor in zip(every, factors, strict=True):
        _scale(grad, factor)
    return norms


def clip_by_global_norm(grads: Arrays, limit: float, *, eps: float = 0.0) -> float:
    """Scale all gradients down together where their norm exceeds a limit (Pascanu et al. 2013, algorithm 1).

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray
    limit : float
        In (0, inf).
    eps : float, default 0.0
        Is added to the norm that is divided by; 1e-6 in PyTorch.

    Returns
    -------
    norm : float
        That before clipping.

    Raises
    ------
    ValueError
        Where the norm is not finite; then nothing has been changed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> grads = {"weight": np.array([[3.0]]), "bias": np.array([4.0])}
    >>> gradients.clip_by_global_norm(grads, 1.0)
    5.0
    >>> grads
    {'weight': array([[0.6]]), 'bias': array([0.8])}
    """
    norm = global_norm(grads)
    factor = _factor(norm, limit, eps)
    for grad in _writable(grads):
        _scale(grad, factor)
    return norm


def _factor(norm: float, limit: float, eps: float) -> float:
    limit, eps = checks.number("limit", limit, "(0, inf)"), checks.number("eps", eps, "[0, inf)")
    if not math.isfinite(norm):
        raise ValueError(f"grads must be finite to be clipped by their norm, got a norm of {norm}")
    return scale_down(norm, limit, eps)


def scale_down(norm: float, limit: float, eps: float = 0.0) -> float:
    """The factor, at most 1, that scales a norm down to a limit."""
    return min(1.0, limit / (norm + eps)) if norm > 0 else 1.0


def _scale(grad: Array, factor: float) -> None:
    if factor != 1.0:
        grad *= grad.dtype.type(factor)


def centralize(grads: Arrays) -> None:
    """Take from the gradient of each unit's incoming weights their mean (Yong et al. 2020, eq. 1).

    A unit's weights are all axes but the last, of arrays of two axes or more; others stay as they are.

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> grad = np.array([[1.0, 10.0], [3.0, 20.0]])
    >>> gradients.centralize(grad)
    >>> grad
    array([[-1., -5.],
           [ 1.,  5.]])
    """
    for grad in _writable(grads):
        if grad.ndim > 1 and grad.size:
            grad -= grad.mean(axis=tuple(range(grad.ndim - 1)), dtype=np.float64).astype(grad.dtype)


def add_noise(grads: Arrays, t: int, *, eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> None:
    """Add Gaussian noise of the variance ``eta / (1 + t)^gamma`` (Neelakantan et al. 2015, eq. 2).

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray
    t : int
        The number of steps taken.
    eta, gamma : float, default 0.01, 0.55
        In [0, inf).
    seed : int, default 0
        With `t`, it decides the noise.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import gradients
    >>> early, late = np.zeros(10_000), np.zeros(10_000)
    >>> gradients.add_noise(early, t=0)
    >>> gradients.add_noise(late, t=1000)
    >>> round(float(early.std()), 2), round(float(late.std()), 3)
    (0.1, 0.015)
    """
    t, seed = checks.integer("t", t, 0, 2**53), checks.integer("seed", seed, 0)
    eta, gamma = checks.number("eta", eta, "[0, inf)"), checks.number("gamma", gamma, "[0, inf)")
    every = _writable(grads)
    rng = np.random.default_rng([seed, t])
    overflows = gamma * math.log1p(t) > math.log(sys.float_info.max)
    deviation = 0.0 if overflows else math.sqrt(eta / (1 + t) ** gamma)
    for grad in every:
        grad += grad.dtype.type(deviation) * rng.standard_normal(grad.shape, grad.dtype)


class Accumulator:
    """Sums up the gradients of micro-batches, so that one step stands for them all.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        What the gradients are of.

    Attributes
    ----------
    grads : ndarray, list or dict of ndarray
        The sums, in the structure of `params`: always the same arrays, which an optimizer then knows again.
    count : int
        Of how many micro-batches.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.zeros(2)
    >>> optimizer, accumulator = fastopt.SGD(w, lr=1.0), fastopt.gradients.Accumulator(w)
    >>> for micro_batch in range(4):
    ...     accumulator.add(np.full(2, float(micro_batch)))
    >>> optimizer.step(accumulator.grads, grad_scale=1 / accumulator.count)
    >>> accumulator.reset()
    >>> w
    array([-1.5, -1.5])
    """

    def __init__(self, params: Arrays) -> None:
        made = {name: np.zeros_like(checks.array(name, p)) for name, p in checks.named("param", params).items()}
        self.grads: Arrays = checks.structured(params, made.values())
        self.count = 0

    def add(self, grads: Arrays, *, weight: float = 1.0) -> None:
        """Add the gradients of a micro-batch, times a weight.

        Raises
        ------
        TypeError, ValueError
            Where a gradient does not fit; then nothing has been changed.
        """
        weight = checks.number("weight", weight)
        sums = checks.named("grad", self.grads)
        checks.gradients(self.grads, grads, {})
        given = checks.named("grad", grads)
        for name, total in sums.items():
            total += given[name] if weight == 1.0 else total.dtype.type(weight) * given[name]
        self.count += 1

    def reset(self) -> None:
        """Set the sums and the count to zero."""
        for total in checks.named("grad", self.grads).values():
            total.fill(0)
        self.count = 0


def _writable(grads: Arrays) -> list[Array]:
    """The gradients, checked, as a list."""
    named = checks.named("grad", grads)
    return [checks.array(name if name == "grad" else f"grads[{name}]", g, writable=True) for name, g in named.items()]
