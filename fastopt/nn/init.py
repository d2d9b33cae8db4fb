"""Initialisation of weights: by name, by an object, or by a function of your own.

| name | object | weights |
| --- | --- | --- |
| ``"zeros"`` | ``Constant(0.0)`` | all equal: only for a layer that needs no symmetry broken, as the last one |
| ``"small"`` | ``Normal(0.01)`` | too small for deep networks: activations vanish |
| ``"large"`` | ``Normal(1.0)`` | too large: units saturate, or activations explode |
| ``"xavier"`` | ``Xavier()`` | normal, variance 2 / (fan_in + fan_out) |
| ``"xavier_in"`` | ``Xavier(fan="in")`` | normal, variance 1 / fan_in |
| ``"xavier_uniform"`` | ``Xavier(distribution="uniform")`` | uniform, variance 2 / (fan_in + fan_out) |
| ``"he"`` | ``He()`` | normal, variance 2 / fan_in: before ReLU |
| ``"he_out"`` | ``He(fan="out")`` | normal, variance 2 / fan_out: keeps the scale of gradients, not of activations |
| ``"he_uniform"`` | ``He(distribution="uniform")`` | uniform, variance 2 / fan_in |
| ``"sparse"`` | ``Sparse()`` | normal, 15 inputs of each output, the others 0 |
| ``"orthogonal"`` | ``Orthogonal()`` | orthonormal columns, or rows |

Names of Keras and PyTorch that mean the same are taken, such as ``"glorot_uniform"``, ``"kaiming_normal"`` and
``"lecun_normal"`` (whose normal distributions Keras truncates at two standard deviations).

fan_in is the number of inputs of an output, fan_out the number of outputs that an input enters.

>>> import numpy as np
>>> from fastopt import nn
>>> weight = nn.He()((400, 100), 400, 100, np.random.default_rng(0))
>>> weight.shape, round(400 * float(weight.var()), 1)
((400, 100), 2.0)
>>> nn.Sequential([nn.Dense(3, init=lambda shape, fan_in, fan_out, rng: np.full(shape, 0.5))], (2,)).params["0.weight"]
array([[0.5, 0.5, 0.5],
       [0.5, 0.5, 0.5]], dtype=float32)
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Literal

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.dialects import Spelled
from fastopt.nn import text

__all__ = ["Constant", "He", "Initializer", "Normal", "Orthogonal", "Sparse", "Xavier"]


class Initializer(Spelled):
    """Draws weights: ``initializer(shape, fan_in, fan_out, rng) -> ndarray``. Outputs are on the last axis.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> class Identity(nn.Initializer):
    ...     def __call__(self, shape, fan_in, fan_out, rng):
    ...         return np.eye(*shape)
    >>> nn.Sequential([nn.Dense(2, init=Identity())], (2,)).params["0.weight"]
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    >>> del nn.Initializer.classes["Identity"]
    >>> nn.Normal(0.1).config()
    {'std': 0.1}
    """

    #: Every such class by its name, for loading models.
    classes: ClassVar[dict[str, type[Initializer]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Initializer.classes[cls.__name__] = cls

    def __call__(self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator) -> Array:
        raise TypeError("a subclass draws the weights")

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor that make such an object."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return text.call(type(self), self.config())


class Constant(Initializer):
    """All weights equal.

    Parameters
    ----------
    value : float, default 0.0

    Examples
    --------
    >>> from fastopt import nn
    >>> nn.Sequential([nn.Dense(2, init=nn.Constant(0.5))], (1,)).params["0.weight"]
    array([[0.5, 0.5]], dtype=float32)
    """

    def __init__(self, value: float = 0.0) -> None:
        self.value = checks.number("value", value)

    def __call__(self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator) -> Array:
        return np.full(shape, self.value)


class Normal(Initializer):
    """A centred normal distribution, whose standard deviation does not depend on the shape.

    Parameters
    ----------
    std : float, default 0.01
        In [0, inf).

    Examples
    --------
    >>> from fastopt import nn
    >>> weight = nn.Sequential([nn.Dense(300, init=nn.Normal(0.01))], (400,)).params["0.weight"]
    >>> weight.shape, round(float(weight.std()), 3)
    ((400, 300), 0.01)
    """

    def __init__(self, std: float = 0.01) -> None:
        self.std = checks.number("std", std, "[0, inf)")

    def __call__(self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator) -> Array:
        return rng.normal(0.0, self.std, shape)


def _draw(distribution: str, variance: float, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if distribution == "normal":
        return rng.normal(0.0, math.sqrt(variance), shape)
    limit = math.sqrt(3 * variance)
    return rng.uniform(-limit, limit, shape)


Distribution = Literal["normal", "uniform"]
_DISTRIBUTIONS = ("normal", "uniform")


class Xavier(Initializer):
    """The variance that keeps the scale of activations, and of gradients, in linear networks (Glorot & Bengio 2010).

    Parameters
    ----------
    fan : {"average", "in"}, default "average"
        The variance: ``2 / (fan_in + fan_out)`` (eq. 12), or ``1 / fan_in`` (eq. 10).
    distribution : {"normal", "uniform"}, default "normal"

    Examples
    --------
    >>> from fastopt import nn
    >>> weight = nn.Sequential([nn.Dense(300, init=nn.Xavier())], (400,)).params["0.weight"]
    >>> round(float(weight.var()) * (400 + 300), 1)
    2.0
    """

    def __init__(self, fan: Literal["average", "in"] = "average", distribution: Distribution = "normal") -> None:
        checks.choice("fan", fan, ("average", "in"))
        checks.choice("distribution", distribution, _DISTRIBUTIONS)
        self.fan, self.distribution = fan, distribution

    def __call__(self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator) -> Array:
        variance = 2 / (fan_in + fan_out) if self.fan == "average" else 1 / fan_in
        return _draw(self.distribution, variance, shape, rng)


class He(Initializer):
    """The variance that keeps the scale of activations, or of gradients, through ReLU (He et al. 2015, eq. 10 and 14).

    Parameters
    ----------
    fan : {"in", "out"}, default "in"
        The variance: ``2 / fan_in``, or ``2 / fan_out``.
    distribution : {"normal", "uniform"}, default "normal"

    Examples
    --------
    >>> from fastopt import nn
    >>> weight = nn.Sequential([nn.Dense(300, "relu", init=nn.He(distribution="uniform"))], (400,)).params["0.weight"]
    >>> round(float(weight.var()) * 400, 1)
    2.0
    """

    def __init__(self, fan: Literal["in", "out"] = "in", distribution: Distribution = "normal") -> None:
        checks.choice("fan", fan, ("in", "out"))
        checks.choice("distribution", distribution, _DISTRIBUTIONS)
        self.fan, self.distribution = fan, distribution

    def __call__(self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator) -> Array:
        return _draw(self.distribution, 2 / (fan_in if self.fan == "in" else fan_out), shape, rng)


class Sparse(Initializer):
    """A fixed number of inputs for each output: units neither saturate nor are alike (Martens 2010, section 5).

    Parameters
    ----------
    count : int, default 15
        The number of inputs per output whose weights are not 0 (at most all).
    std : float, default 1.0
        The standard deviation of those weights, which are normal; in [0, inf).

    Examples
    --------
    >>> from fastopt import nn
    >>> weight = nn.Sequential([nn.Dense(3, init=nn.Sparse(count=4))], (100,)).params["0.weight"]
    >>> (weight != 0).sum(axis=0).tolist()
    [4, 4, 4]
    """

    def __init__(self, count: int = 15, std: float = 1.0) -> None:
        self.count = checks.integer("count", count, 1)
        self.std = checks.number("std", std, "[0, inf)")

    def __call__(self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator) -> Array:
        outputs = shape[-1]
        weight = np.zeros((math.prod(shape[:-1]), outputs))
        count = min(self.count, len(weight))
        chosen = rng.permuted(np.tile(np.arange(len(weight)), (outputs, 1)), axis=1)[:, :count]
        weight[chosen, np.arange(outputs)[:, None]] = rng.normal(0.0, self.std, (outputs, count))
        return weight.reshape(shape)


class Orthogonal(Initializer):
    """A random orthogonal matrix, whose columns (or rows, where they are fewer) are orthonormal: linear networks of any
    depth keep the norm of activations (Saxe et al. 2014).

    Parameters
    ----------
    gain : float, default 1.0
        A factor; √2 before ReLU.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> weight = nn.Sequential([nn.Dense(3, init=nn.Orthogonal())], (10,)).params["0.weight"]
    >>> np.allclose(weight.T @ weight, np.eye(3), atol=1e-6)
    True
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = checks.number("gain", gain)

    def __call__(self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
        q *= np.sign(np.diag(r))  # for a uniform (Haar) distribution
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


#: Initializers by name.
INITIALIZERS: dict[str, Initializer] = {
    "zeros": Constant(0.0),
    "small": Normal(0.01),
    "large": Normal(1.0),
    "xavier": Xavier(),
    "xavier_in": Xavier(fan="in"),
    "xavier_uniform": Xavier(distribution="uniform"),
    "he": He(),
    "he_out": He(fan="out"),
    "he_uniform": He(distribution="uniform"),
    "sparse": Sparse(),
    "orthogonal": Orthogonal(),
}

Init = str | Callable[[tuple[int, ...], int, int, np.random.Generator], Array]


def check(init: Any) -> Init:
    """A name, or a callable; a class of initializers stands for the one with its defaults."""
    if isinstance(init, type) and issubclass(init, Initializer):
        return init()
    if callable(init):
        return init
    return checks.word("init", init, tuple(INITIALIZERS))


#: How many elements a weight may have.
_MOST: ContextVar[int | None] = ContextVar("most", default=None)


@contextlib.contextmanager
def at_most(elements: int) -> Iterator[None]:
    """A context in which no weight is drawn that has more elements: those that are in a file, while it is loaded."""
    token = _MOST.set(elements)
    try:
        yield
    finally:
        _MOST.reset(token)


def weight(
    init: Init, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator, dtype: np.dtype
) -> Array:
    """An initial weight.

    Parameters
    ----------
    init : str or callable
        One of the names above, or ``init(shape, fan_in, fan_out, rng)``: an `Initializer` or your own. (A model with a
        function of your own cannot be saved.)
    shape : tuple of int
    fan_in, fan_out : int
    rng : numpy.random.Generator
    dtype : numpy.dtype

    Returns
    -------
    weight : ndarray of `shape`

    Raises
    ------
    TypeError, ValueError
        Where `init` is no such name, or draws an array of another shape.
    """
    init = check(init)
    draw = INITIALIZERS[init] if isinstance(init, str) else init
    if (most := _MOST.get()) is not None and math.prod(shape) > most:
        raise ValueError(f"the weight must have at most {most} elements, got shape {shape}")
    drawn = np.asarray(draw(shape, fan_in, fan_out, rng))
    if drawn.shape != shape:
        raise ValueError(f"init must draw an array of shape {shape}, got {drawn.shape}")
    return np.array(drawn, dtype, order="C")


Bias = float | Sequence[float]


def check_bias(init: Any, units: int) -> Bias:
    """The initial bias, checked: a number, or one for each unit."""
    if not isinstance(init, (list, tuple, np.ndarray)):
        return checks.number("bias_init", init)
    if len(init) != units:
        raise ValueError(f"bias_init must hold {units} numbers, got {len(init)}")
    return [checks.number("bias_init", value) for value in init]
