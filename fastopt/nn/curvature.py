"""The Hessian of the loss, by its products with vectors: memory for a few gradients is enough.

>>> import numpy as np
>>> from fastopt import nn
>>> model = nn.Sequential([nn.Dense(1)], (2,), dtype=np.float64)
>>> x, y = np.array([[3.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, -1.0]]), np.zeros((4, 1))
>>> found = nn.curvature.condition_number(model, x, y, nn.SquaredError())  # the Hessian is diag(9, 1, 2)
>>> round(found.largest, 6), round(found.smallest, 6), round(found.condition, 6)
(9.0, 1.0, 9.0)

A copy of the model is used, in float64, in training (batch norm with the statistics of the batch), without dropout.
Gradient descent with a learning rate above ``2 / largest`` diverges; at the best one, the error falls by a share of
``2 / (condition + 1)`` per step [1]_.

.. [1] Y. LeCun et al., "Efficient BackProp", 1998, sections 5.1 to 5.3 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn.arguments import samples
from fastopt.nn.debug import without_dropout
from fastopt.nn.losses import LossLike, loss_of, softmax_cross_entropy
from fastopt.nn.model import Sequential
from fastopt.nn.trace import NonFiniteError

#: The step of central differences, relative to the norm of the parameters: about the cube root of the rounding error.
STEP = 1e-5


class _Hessian:
    """Products of the Hessian at the model's parameters with vectors, in which all parameters are concatenated."""

    def __init__(self, model: Sequential, x: Array, y: Array, loss: LossLike) -> None:
        self._model = without_dropout(model, np.float64)
        x, self._y, self._loss = samples(self._model, x, y, loss)
        self._x = self._model.converted(x)
        if not len(self._x):
            raise ValueError("x must hold at least one sample, got none")
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
        output, cache = self._model.forward(self._x, training=True, counter=0)
        _, grads = self._model.backward(loss_of(self._loss, output, self._y)[1], cache)
        return self.flat(grads)

    def times(self, v: Array) -> Array:
        """The product with v, by the central difference of gradients along v / |v|."""
        length = float(np.linalg.norm(v))
        if not length:
            return np.zeros_like(v)
        move = v * (self._step / length)
        return (self._gradient(self._at + move) - self._gradient(self._at - move)) * (length / (2 * self._step))


def hessian_vector_product(
    model: Sequential, x: Array, y: Array, v: Mapping[str, Array], loss: LossLike = softmax_cross_entropy
) -> dict[str, Array]:
    """The Hessian of the mean loss times a vector, by a central difference of two gradients.

    Parameters
    ----------
    model : Sequential
    x, y : ndarray
        The samples of the mean loss.
    v : dict of ndarray
        With the names and shapes of ``model.params``.
    loss : callable, default softmax_cross_entropy

    Returns
    -------
    dict of ndarray
        Of the same names and shapes, in float64.

    Raises
    ------
    TypeError, ValueError
        Where samples do not fit the model, or `v` does not fit its parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(1)], (1,), dtype=np.float64)
    >>> v = {"0.weight": np.ones((1, 1)), "0.bias": np.zeros(1)}
    >>> product = hessian_vector_product(model, np.array([[3.0]]), np.array([[0.0]]), v, nn.SquaredError())
    >>> {name: array.ravel().round(5).tolist() for name, array in product.items()}
    {'0.weight': [18.0], '0.bias': [6.0]}
    """
    hessian = _Hessian(model, x, y, loss)
    for name, param in model.params.items():
        if name not in v or np.shape(v[name]) != param.shape:
            raise ValueError(f"v must hold {name} of shape {param.shape}, got {np.shape(v.get(name, ()))}")
    return hessian.named(hessian.times(hessian.flat(v)))


class Eigenvalue(NamedTuple):
    """What `largest_eigenvalue` finds.

    Attributes
    ----------
    value : float
    vector : dict of ndarray
        The eigenvector, of length 1, by the names of the parameters.
    iterations : int

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(1)], (1,), dtype=np.float64)
    >>> found = nn.curvature.largest_eigenvalue(model, np.ones((2, 1)), np.zeros((2, 1)), nn.SquaredError())
    >>> sorted(found.vector), found.iterations < 100
    (['0.bias', '0.weight'], True)
    """

    value: float
    vector: dict[str, Array]
    iterations: int


def largest_eigenvalue(
    model: Sequential,
    x: Array,
    y: Array,
    loss: LossLike = softmax_cross_entropy,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Eigenvalue:
    """The eigenvalue of the Hessian with the largest absolute value, by power iteration: ``v ← Hv / |Hv|``.

    Parameters
    ----------
    model, x, y, loss
        See `hessian_vector_product`.
    iterations : int, default 100
        The largest number of iterations.
    tolerance : float, default 1e-4
        The iteration ends when ``|Hv − λv|`` is at most this times ``|λ|``.
    seed : int, default 0
        Decides the initial vector.

    Returns
    -------
    Eigenvalue

    Raises
    ------
    NonFiniteError
        Where the Hessian is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(1)], (1,), dtype=np.float64)
    >>> x, y = np.array([[3.0], [-3.0]]), np.zeros((2, 1))
    >>> found = nn.curvature.largest_eigenvalue(model, x, y, nn.SquaredError())  # the Hessian is diag(18, 2)
    >>> round(found.value, 4), abs(found.vector["0.weight"]).round(4)
    (18.0, array([[1.]]))
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
            raise NonFiniteError("the Hessian is not finite at the model's parameters")
        if np.linalg.norm(product - value * v) <= tolerance * abs(value) or not length:
            break
        if taken < iterations:
            v = product / length
    return Eigenvalue(value, hessian.named(v), taken)


class Condition(NamedTuple):
    """What `condition_number` finds.

    Attributes
    ----------
    largest, smallest : float
        The extreme eigenvalues of the Hessian.
    condition : float
        Their ratio: infinite where the smallest is not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(1)], (1,), dtype=np.float64)
    >>> x, y = np.array([[3.0], [-3.0]]), np.zeros((2, 1))
    >>> largest, smallest, condition = nn.curvature.condition_number(model, x, y, nn.SquaredError())
    >>> round(largest, 4), round(smallest, 4)  # gradient descent diverges above lr = 2 / 18
    (18.0, 2.0)
    """

    largest: float
    smallest: float
    condition: float


def condition_number(
    model: Sequential, x: Array, y: Array, loss: LossLike = softmax_cross_entropy, *, products: int = 60, seed: int = 0
) -> Condition:
    """Estimate the largest and the smallest eigenvalue of the Hessian, and their ratio, by Lanczos' method [1]_.

    The estimates are within the spectrum: for an ill-conditioned problem, the smallest is too large, and the ratio too
    small, if there are too few products.

    Parameters
    ----------
    model, x, y, loss
        See `hessian_vector_product`.
    products : int, default 60
        The largest number of products with the Hessian; as many as there are parameters give exact eigenvalues.
    seed : int, default 0
        Decides the initial vector.

    Returns
    -------
    Condition

    Raises
    ------
    NonFiniteError
        Where the Hessian is not finite.

    References
    ----------
    .. [1] C. Lanczos, "An iteration method for the solution of the eigenvalue problem of linear differential and
       integral operators", 1950; here each vector is made orthogonal to all before it, twice.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(1)], (1,), dtype=np.float64)
    >>> found = nn.curvature.condition_number(model, np.array([[3.0], [-3.0]]), np.zeros((2, 1)), nn.SquaredError())
    >>> round(found.condition, 4)
    9.0
    """
    products = checks.integer("products", products, 1)
    hessian = _Hessian(model, x, y, loss)
    v = np.random.default_rng(checks.integer("seed", seed, 0)).normal(size=hessian.size)
    basis: list[Array] = []
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    length = float(np.linalg.norm(v))
    for _ in range(min(products, hessian.size)):
        basis.append(v / length)
        v = hessian.times(basis[-1])
        if not np.isfinite(v).all():
            raise NonFiniteError("the Hessian is not finite at the model's parameters")
        diagonal.append(float(basis[-1] @ v))
        for _ in range(2):
            v = v - np.array(basis).T @ (np.array(basis) @ v)
        length = float(np.linalg.norm(v))
        off_diagonal.append(length)
        if length <= 1e-8 * max(map(abs, diagonal)):  # the Krylov space is exhausted
            break
    off = off_diagonal[: len(diagonal) - 1]
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    largest, smallest = float(values[-1]), float(values[0])
    return Condition(largest, smallest, largest / smallest if smallest > 0 else math.inf)
