"""Passes that are looked at layer by layer, and the origin of a NaN."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastopt.checks import Array
from fastopt.nn.layers import Grads, Layer
from fastopt.nn.losses import Loss, loss_of, softmax_cross_entropy
from fastopt.nn.stack import Stack

__all__ = ["NonFiniteError"]

# ---- Traced passes ----------------------------------------------------------------------------------------------


class Trace(NamedTuple):
    """The results of a forward and a backward pass, layer by layer.

    Attributes
    ----------
    loss : float
    outputs, gradients : list of ndarray
        The output of each layer, and the gradient of the loss with respect to it.
    grads : dict of ndarray
        The gradients of the parameters.
    """

    loss: float
    outputs: list[Array]
    gradients: list[Array]
    grads: Grads


#: Called for each result of a layer with the layer's name, "forward" or "backward", what it is, and the array.
Witness = Callable[[str, str, str, Array], None]


def trace(
    model: Stack,
    x: Array,
    y: Array,
    loss: Loss = softmax_cross_entropy,
    *,
    sample_weight: Array | None = None,
    counter: int = 0,
    witness: Witness | None = None,
) -> Trace:
    """A forward and a backward pass in training, layer by layer; the model's state is restored afterwards.

    Parameters
    ----------
    model : Sequential
    x, y : ndarray
        A batch, of the model's type.
    loss : callable, default softmax_cross_entropy
    sample_weight : ndarray (n,), optional
    counter : int, default 0
        As for `Sequential.forward`.
    witness : callable, optional
        ``witness(name, pass, what, array)`` is called for each result of a layer, those of inner layers first.

    Returns
    -------
    Trace

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:])
    >>> traced = nn.monitor.trace(model, x[:32], y[:32])
    >>> [output.shape for output in traced.outputs]
    [(32, 64), (32, 16), (32, 10)]
    """
    outputs: list[Array] = []
    caches: list[Any] = []
    gradients: list[Array] = []
    grads: Grads = {}
    names = _places(model)
    with state_kept(model), contextlib.ExitStack() as stack:
        if witness is not None:
            for name, layer in names.items():
                stack.enter_context(_witnessed(name, layer, witness))
        for i, layer in enumerate(model.layers):
            x, cache = layer.forward(x, training=True, counter=counter * len(model.layers) + i)
            outputs.append(x)
            caches.append(cache)
        value, dy = loss_of(loss, x, y, sample_weight)
        if witness is not None:
            witness("the loss", "forward", "output", np.asarray(value))
            witness("the loss", "backward", "gradient", dy)
        for i in reversed(range(len(model.layers))):
            gradients.insert(0, dy)
            dy, own = model.layers[i].backward(dy, caches[i])
            first = next(k for k, layer in enumerate(model.layers) if layer is model.layers[i])
            for name, grad in own.items():
                key = f"{first}.{name}"
                grads[key] = grads[key] + grad if key in grads else grad
    return Trace(value, outputs, gradients, grads)


@contextlib.contextmanager
def state_kept(model: Stack) -> Iterator[None]:
    """A context after which running means and the like are what they were before."""
    before = {name: array.copy() for name, array in model.state.items()}
    try:
        yield
    finally:
        for name, array in before.items():
            np.copyto(model.state[name], array)


def _places(layer: Layer, prefix: str = "") -> dict[str, Layer]:
    """All parts of a layer by name, inner ones first."""
    found: dict[str, Layer] = {}
    for key, part in layer.parts.items():
        found |= _places(part, f"{prefix}{key}.")
        found[f"layer {prefix}{key} ({type(part).__name__})"] = part
    return found


@contextlib.contextmanager
def _witnessed(name: str, layer: Layer, witness: Witness) -> Iterator[None]:
    """A context in which a witness is called for each result of a layer."""
    forward, backward = layer.forward, layer.backward

    def traced_forward(*args: Any, **kwargs: Any) -> Any:
        y, cache = forward(*args, **kwargs)
        witness(name, "forward", "output", y)
        return y, cache

    def traced_backward(*args: Any, **kwargs: Any) -> Any:
        dx, grads = backward(*args, **kwargs)
        if not layer.parts:
            for key, grad in grads.items():
                witness(name, "backward", f"gradient of {key}", grad)
        if dx is not None:
            witness(name, "backward", "gradient of the input", dx)
        return dx, grads

    vars(layer).update(forward=traced_forward, backward=traced_backward)
    try:
        yield
    finally:
        del vars(layer)["forward"], vars(layer)["backward"]


# ---- Anomalies --------------------------------------------------------------------------------------------------


class NonFiniteError(ValueError, FloatingPointError):
    """A NaN or an infinity in training; the message names the epoch, the step, and the first layer and pass with such
    a result.

    Attributes
    ----------
    epochs : int
        The number of epochs that were completed before.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(1)], (1,))
    >>> try:
    ...     model.fit(np.full((8, 1), 1e30), np.zeros((8, 1)), loss="squared_error", epochs=2)
    ... except nn.NonFiniteError as error:
    ...     print(error.epochs, error)
    0 epoch 1, batch 1: the forward pass of the loss: in its output, 1 infinite of 1 values
    """

    epochs: int = 0


def find_anomaly(
    model: Stack,
    x: Array,
    y: Array,
    loss: Loss = softmax_cross_entropy,
    *,
    sample_weight: Array | None = None,
    counter: int = 0,
) -> str | None:
    """The first layer and pass whose result is a NaN or an infinity, of finite numbers; None where there is none.

    Parameters
    ----------
    model, x, y, loss, sample_weight, counter
        See `trace`.

    Returns
    -------
    str or None
        Such as ``"the forward pass of layer 2 (Dense): in its output, 3 NaN and 5 infinite of 640 values"``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2, init=nn.Constant(1e30)), nn.ReLU(), nn.Dense(2)], (1,))
    >>> print(nn.monitor.find_anomaly(model, np.full((1, 1), 1e30, np.float32), np.array([0])))
    the forward pass of layer 0 (Dense): in its output, 2 infinite of 2 values
    """
    given = {"x": x, "y": y, **{f"params[{name}]": param for name, param in model.params.items()}}
    for name, array in given.items():
        if trouble := _trouble(array):
            return f"{name}, which was given: {trouble}"

    class Found(Exception):
        pass

    def witness(name: str, direction: str, what: str, array: Array) -> None:
        if trouble := _trouble(array):
            whose = "its" if what == "output" else "the"
            raise Found(f"the {direction} pass of {name}: in {whose} {what}, {trouble}")

    try:
        with np.errstate(all="ignore"):
            trace(model, x, y, loss, sample_weight=sample_weight, counter=counter, witness=witness)
    except Found as found:
        return str(found)
    return None


def _trouble(array: Array) -> str:
    """How many values are not finite; empty where all are."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return ""
    kinds = {"NaN": np.isnan(array).sum(), "infinite": np.isinf(array).sum()}
    counts = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    return f"{counts} of {array.size} values"
