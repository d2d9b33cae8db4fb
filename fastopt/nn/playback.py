"""Recorded calls, replayed: the kernel calls of a pass in training are recorded once, and then replayed by one call.

In one workspace, all batches of one size have the same kernels called on the same arrays; for small models, the Python
around these calls takes as long as they do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import _kernels, checks
from fastopt.checks import Array
from fastopt.nn import layers as dense_layers
from fastopt.nn.layers import Conv2D, Dense, Grads, Layer
from fastopt.nn.memory import Workspace
from fastopt.nn.stack import Stack

__all__ = ["Passes"]

#: For benchmarks: a dict to which replays add the seconds spent in each kernel, by its name.
SECONDS: dict[str, float] | None = None


def is_recordable(model: Stack) -> bool:
    """Whether passes over a model in training are kernel calls alone, and no layer occurs twice."""
    layers = model.layers
    patched = any({"forward", "backward"} & vars(part).keys() for part in (model, *layers))
    if patched or not vars(type(model)).get("calls_layers_alone"):
        return False
    lowest = model.lowest
    return len({*map(id, layers)}) == len(layers) and all(
        _calls_kernels(layer, i == lowest) for i, layer in enumerate(layers)
    )


def _calls_kernels(layer: Layer, lowest: bool) -> bool:
    """Whether a layer's passes are kernel calls alone; the `lowest` that learns takes no gradient of its input."""
    if type(layer) is Dense:
        return dense_layers.PRODUCTS == "own" and layer.params["weight"].flags.c_contiguous
    if type(layer) is Conv2D and layer.input_shape is not None:
        one_by_one = layer.stride == (1, 1) and all(np.less(layer.padding, layer.size))
        return layer.is_direct((1, *layer.input_shape)) and (lowest or one_by_one)
    return layer.kernels_alone and not (layer.state and layer.params.rest)


def _check_like(dy: Any, output: Array) -> None:
    """Refuse an array without the shape and type of the output; its layout is for layers to check."""
    if not isinstance(dy, np.ndarray) or (dy.shape, dy.dtype) != (output.shape, output.dtype):
        checks.array("dy", dy, dtype=output.dtype, shape=output.shape)


class _Recorded:
    """The kernel calls of a pass, and the options and arrays of the layers when it was recorded."""

    def __init__(self, model: Stack) -> None:
        self.tape = _kernels.Tape()
        self._layers, self._now = [*model.layers], model.layers
        own = (
            each
            for layer in model.layers
            for each in (vars(layer), layer.params, layer.state, layer.params.marks if layer.params else None)
            if each
        )
        self._found = _kernels.Snapshot([vars(model), *own])

    def holds(self) -> bool:
        """Whether options and arrays are the same now: callbacks, a loss or a schedule may have changed them."""
        return self._now == self._layers and self._found.holds()


class Passes:
    """Passes in training over batches of one size: the kernel calls of the first are recorded, and replayed for others.

    The bits are those of `Sequential.forward` and `Sequential.backward`, which are called where a model does more than
    call kernels, and whenever shapes, options or arrays of layers differ from those before. Results are overwritten by
    the next pass.

    Parameters
    ----------
    model : Sequential
    memory : Workspace, optional
        A new one where absent. An x that is ``memory.array("x", …)``, and a dy that is ``memory.array("dy", …)``, are
        not copied.

    Examples
    --------
    >>> import fastopt
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> x = x.reshape(len(x), -1)
    >>> model = nn.Sequential([nn.Dense(16, activation="relu"), nn.Dense(10)], (64,))
    >>> optimizer, passes = fastopt.Adam(model.params), nn.Passes(model)
    >>> for i in range(0, 320, 32):
    ...     output = passes.forward(x[i : i + 32], optimizer.t)
    ...     loss, dy = nn.softmax_cross_entropy(output, y[i : i + 32])
    ...     optimizer.step(passes.backward(dy))
    >>> loss < 2.3
    True
    """

    _x: Array
    _output: Array
    _cache: list[Any]
    _grads: Grads

    def __init__(self, model: Stack, memory: Workspace | None = None) -> None:
        self._model, self._memory = model, model.workspace() if memory is None else memory
        self._recordable = True  # until a look at the model says otherwise
        self._forward: _Recorded | None = None
        self._backward: _Recorded | None = None
        self._counter = 0
        self._open = False  # whether there is a forward pass that backward has not been called for

    def forward(self, x: Array, counter: int) -> Array:
        """The forward pass of a batch; `backward` then takes the gradient of its output.

        Parameters
        ----------
        x : ndarray (n, …)
            Of the model's type.
        counter : int
            The number of the call, of which dropout masks are a function.

        Returns
        -------
        ndarray (n, …)
        """
        self._model.count(counter)  # which refuses what cannot be one
        self._open = False
        self._output = self._pass(x, counter)
        self._open = True
        return self._output

    def _pass(self, x: Array, counter: int) -> Array:
        options: dict[str, Any] = {"training": True, "counter": counter, "memory": self._memory}
        if not self._recordable or not isinstance(x, np.ndarray):
            return self._plain_forward(x, options)
        usual = self._memory.array("x", x.shape, x.dtype)
        if x is not usual:
            np.copyto(usual, x)
        if self._forward is not None and usual is self._x and self._forward.holds():
            self._forward.tape.play((counter - self._counter) * len(self._model.layers), SECONDS)
            return self._output
        self._recordable = is_recordable(self._model)
        if not self._recordable:
            return self._plain_forward(x, options)
        self._forward = self._backward = None
        recorded = _Recorded(self._model)
        with recorded.tape:
            output, self._cache = self._model.forward(usual, **options)
        self._forward, self._x, self._counter = recorded, usual, counter
        return output

    def backward(self, dy: Array) -> Grads:
        """The backward pass.

        Parameters
        ----------
        dy : ndarray (n, …)
            The gradient of the loss with respect to the output of the last `forward`.

        Returns
        -------
        dict of ndarray
            The gradients with respect to the model's parameters.

        Raises
        ------
        TypeError, ValueError
            Where `dy` does not fit the output: then another one may be given. Where there is no forward pass, or
            `backward` was called for it: the passes share their arrays, and each cache serves one backward pass.
        """
        if not self._open:
            raise ValueError("backward must follow a forward pass, once: call forward first")
        output = self._output
        if self._forward is None:
            _check_like(dy, output)
            self._open = False
            cache, self._cache = self._cache, []
            return self._plain_backward(dy, cache)
        usual = self._memory.array("dy", output.shape, output.dtype)  # which fastopt's loss writes to
        ours = dy is usual  # then no code of the user's has run since `forward`
        if not ours:
            np.copyto(usual, checks.array("dy", dy, dtype=output.dtype, shape=output.shape))
        self._open = False
        if self._backward is not None and (ours or self._backward.holds()):
            self._backward.tape.play(0, SECONDS)
            return dict(self._grads)
        if not ours and not is_recordable(self._model):
            return self._plain_backward(usual, [*self._cache])
        recorded = _Recorded(self._model)
        with recorded.tape:
            self._grads = self._plain_backward(usual, [*self._cache])
        self._backward = recorded
        return dict(self._grads)

    def _plain_forward(self, x: Array, options: dict[str, Any]) -> Array:
        self._forward = self._backward = None
        output, self._cache = self._model.forward(x, **options)
        return output

    def _plain_backward(self, dy: Array, cache: list[Any]) -> Grads:
        return self._model.backward(dy, cache, memory=self._memory, input_grad=False)[1]
