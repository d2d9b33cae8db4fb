"""Initialisation that depends on data."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn import init as initial
from fastopt.nn.layers import Conv2D, Dense
from fastopt.nn.model import Sequential

__all__ = ["lsuv"]


def lsuv(
    model: Sequential, x: Array, *, tolerance: float = 0.1, max_iterations: int = 10, seed: int = 0
) -> dict[str, float]:
    """Layer-sequential unit-variance initialisation [1]_: orthonormal weights, which are scaled layer by layer, in the
    order of the forward pass, until the outputs (before the activation) have variance 1 on these inputs.

    Parameters
    ----------
    model : Sequential
        The weights of its Dense and Conv2D layers are overwritten, at any depth; other parameters and the state are
        not.
    x : ndarray (n, …)
        A batch of inputs, the larger the better.
    tolerance : float, default 0.1
        The allowed distance of a variance from 1, in (0, inf).
    max_iterations : int, default 10
    seed : int, default 0
        Decides the orthonormal weights.

    Returns
    -------
    dict of str to float
        The last variance of the outputs, by the name of the weight.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or inputs do not fit the model.

    References
    ----------
    .. [1] D. Mishkin and J. Matas, "All you need is a good init", 2016, algorithm 1.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, _ = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:])
    >>> {name: round(variance) for name, variance in nn.lsuv(model, x[:200]).items()}
    {'1.weight': 1, '2.weight': 1}
    """
    x = model.inputs("x", x)
    if not len(x):
        raise ValueError("x must hold at least one sample, got none")
    tolerance = checks.number("tolerance", tolerance, "(0, inf)")
    max_iterations = checks.integer("max_iterations", max_iterations, 1)
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    names = {id(param): name for name, param in model.params.items()}
    ends: dict[str, float] = {}

    def scaled(layer: Dense | Conv2D) -> Any:
        """The layer's forward pass, whose first call scales the weight before."""
        forward, weight = layer.forward, layer.params["weight"]

        def first(x: Array, **options: Any) -> Any:
            name = names[id(weight)]
            if name not in ends:
                bare = type(layer)(**layer.config() | {"activation": None})
                bare.params = layer.params
                weight[...] = initial.Orthogonal()(weight.shape, 0, 0, rng)
                for iteration in range(max_iterations + 1):
                    ends[name] = variance = float(bare.forward(x)[0].var(dtype=np.float64))
                    if abs(variance - 1) <= tolerance or not variance > 0 or iteration == max_iterations:
                        break
                    weight[...] /= np.sqrt(variance)
            return forward(x, **options)

        return first

    # The forward passes of the layers themselves are replaced, which works at any depth and in any order.
    layers = [part for part in model.walk() if isinstance(part, (Dense, Conv2D)) and id(part.params["weight"]) in names]
    for layer in layers:
        layer.forward = scaled(layer)  # type: ignore[method-assign]
    state = {name: array.copy() for name, array in model.state.items()}
    try:
        model.forward(x, training=True, counter=0)
    finally:
        for layer in layers:
            del layer.forward
        for name, array in state.items():
            model.state[name][...] = array
    return ends
