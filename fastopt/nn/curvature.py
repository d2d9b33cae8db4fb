"""The Hessian of the loss, by its products with vectors: never more than a few gradients are held.

>>> import numpy as np
>>> from fastopt import nn
>>> model = nn.Sequential([nn.Dense(1)], (2,), dtype=np.float64)
>>> x, y = np.array([[3.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, -1.0]]), np.zeros((4, 1))
>>> found = nn.curvature.condition_number(model, x, y, nn.SquaredError())        # the Hessian is diag(9, 1, 2)
>>> round(found.largest, 6), round(found.smallest, 6), round(found.condition, 6)
(9.0, 1.0, 9.0)

A copy of the model is used, in float64, in training (batch norm with the statistics of the batch), without dropout.
Gradient descent with a rate above ``2 / largest`` diverges; at the best rate, the error falls by a share of
``2 / (condition + 1)`` a step [1]_.

.. [1] Y. LeCun et al., "Efficient BackProp", 1998, sections 5.1 to 5.3 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn.debug import without_dropout
from fastopt.nn.losses import Loss, softmax_cross_entropy
from fastopt.nn.model import Sequential
from fastopt.nn.stack import samples
from fastopt.nn.training import loss_of

STEP = 1e-5  #: of central differences, over the size of the parameters: near the cube root of the rounding error


class _Hessian:
    """Products of the Hessian at the model's parameters with vectors that hold all parameters side by side."""

    def __init__(self, model: Sequential, x: Array, y: Array, loss: Loss) -> None:
        self._model = without_dropout(model, np.float64)
        self._x, self._y = samples(self._model, x, y, loss)
        if not len(self._x):
            raise ValueError("x must hold at least one sample, got none")
        self._loss = loss
        self._params = self._model.params
        self.size = sum(param.size for param in self._params.values())
        if not self.size:
            raise ValueError("the model must have parameters, got none")
        self._at = self.flat(self._params)
        self._step = STEP * max(1.0, float(np.linalg.norm(self._at)))

    def flat(self, arrays: Mapping[str, Array]) -> Array:
        return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in self._params])

    def named(self, flat: Array) -> dict[str, Array]:
        ends = np.cumsum([param.size for param in self._params.values()])[:-1]
        parts = np.split(flat, ends)
        return {n: part.reshape(p.shape) for (n, p), part in zip(self._params.items(), parts, strict=True)}

    def _gradient(self, at: Array) -> Array:
        for name, value in self.named(at).items():
            np.copyto(self._params[name], value)
        output, cache = self._model.forward(self._x, training=True)
        _, grads = self._model.backward(loss_of(self._loss, output, self._y)[1], cache, input_grad=False)
        return self.flat(grads)

    def times(self, v: Array) -> Array:
        """The central difference of gradients along v, of length 1 as it is taken."""
        length = float(np.linalg.norm(v))
        if not length:
            return np.zeros_like(v)
        move = v * (self._step / length)
        return (self._gradient(self._at + move) - self._gradient(self._at - move)) * (length / (2 * self._step))


def hessian_vector_product(
    model: Sequential, x: Array, y: Array, v: Mapping[str, Array], loss: Loss = softmax_cross_entropy
) -> dict[str, Array]:
    """The Hessian of the mean loss times a vector, by a central difference of two gradients.

    Parameters
    ----------
    model : Sequential
    x, y : ndarray
        The samples whose mean loss it is.
    v : dict of ndarray
        Named and shaped like ``model.params``.
    loss : callable, default softmax_cross_entropy

    Returns
    -------
    dict of ndarray
        Likewise, in float64.
    """
    hessian = _Hessian(model, x, y, loss)
    for name, param in model.params.items():
        if name not in v or np.shape(v[name]) != param.shape:
            raise ValueError(f"v must hold {name} of shape {param.shape}, got {np.shape(v.get(name, ()))}")
    return hessian.named(hessian.times(hessian.flat(v)))


class Eigenvalue(NamedTuple):
    """An eigenvalue and its vector of length 1, and how many products it took."""

    value: float
    vector: dict[str, Array]
    iterations: int


def largest_eigenvalue(
    model: Sequential,
    x: Array,
    y: Array,
    loss: Loss = softmax_cross_entropy,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Eigenvalue:
    """The eigenvalue of the Hessian that is largest in size, by power iteration: ``v ← Hv / |Hv|``.

    Parameters
    ----------
    model, x, y, loss
        See `hessian_vector_product`.
    iterations : int, default 100
        At most.
    tolerance : float, default 1e-4
        It ends where ``|Hv − λv|`` is at most this times ``|λ|``.
    seed : int, default 0
        Of the vector to begin with.
    """
    iterations = checks.integer("iterations", iterations, 1)
    tolerance = checks.number("tolerance", tolerance, "[0, inf)")
    hessian = _Hessian(model, x, y, loss)
    v = np.random.default_rng(checks.integer("seed", seed, 0)).normal(size=hessian.size)
    v /= np.linalg.norm(v)
    for taken in range(1, iterations + 1):
        product = hessian.times(v)
        value, length = float(v @ product), float(np.linalg.norm(product))
        if not math.isfinite(length):
            raise FloatingPointError("the Hessian is not finite at the model's parameters")
        if np.linalg.norm(product - value * v) <= tolerance * abs(value) or not length:
            break
        if taken < iterations:
            v = product / length
    return Eigenvalue(value, hessian.named(v), taken)


class Condition(NamedTuple):
    """The ends of the Hessian's spectrum, and their ratio: infinite where the smallest eigenvalue is not above 0."""

    largest: float
    smallest: float
    condition: float


def condition_number(
    model: Sequential, x: Array, y: Array, loss: Loss = softmax_cross_entropy, *, products: int = 60, seed: int = 0
) -> Condition:
    """Estimate the largest and the smallest eigenvalue of the Hessian, and their ratio, by Lanczos' method [1]_.

    The estimates lie within the spectrum: of an ill-conditioned problem, the smallest is too large, and the ratio too
    small, until there are enough products.

    Parameters
    ----------
    model, x, y, loss
        See `hessian_vector_product`.
    products : int, default 60
        With the Hessian, at most; as many as there are parameters give all there is to know.
    seed : int, default 0
        Of the vector to begin with.

    References
    ----------
    .. [1] C. Lanczos, "An iteration method for the solution of the eigenvalue problem of linear differential and
       integral operators", 1950; here each vector is made orthogonal to all before it, twice.
    """
    products = checks.integer("products", products, 1)
    hessian = _Hessian(model, x, y, loss)
    v = np.random.default_rng(checks.integer("seed", seed, 0)).normal(size=hessian.size)
    basis: list[Array] = []
    diagonal: list[float] = []
    beside: list[float] = []
    length = float(np.linalg.norm(v))
    for _ in range(min(products, hessian.size)):
        basis.append(v / length)
        v = hessian.times(basis[-1])
        if not np.isfinite(v).all():
            raise FloatingPointError("the Hessian is not finite at the model's parameters")
        diagonal.append(float(basis[-1] @ v))
        for _ in range(2):
            v = v - np.array(basis).T @ (np.array(basis) @ v)
        length = float(np.linalg.norm(v))
        beside.append(length)
        if length <= 1e-8 * max(map(abs, diagonal)):  # all that the first vector has a part in is known
            break
    off = beside[: len(diagonal) - 1]
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    largest, smallest = float(values[-1]), float(values[0])
    return Condition(largest, smallest, largest / smallest if smallest > 0 else math.inf)
