"""Passes over a model in training, recorded once and then played back by one call each.

In one workspace, batches of one size have the same kernels called on the same arrays, over and over; where a model is
small, the Python around them takes as long as they do.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import _kernels
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.activations import ELU, GELU, LeakyReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from fastopt.nn.layers import Conv2D, Dense, Dropout, Flatten, Grads, Layer, MaxPool2D, ReLU
from fastopt.nn.memory import Workspace
from fastopt.nn.norms import BatchNorm
from fastopt.nn.pooling import AveragePool2D, GlobalAveragePool2D

if TYPE_CHECKING:
    from fastopt.nn.model import Sequential

#: Layers that in a workspace do nothing but call kernels; subclasses may do more.
_KERNELS_ALONE = {
    *(ReLU, LeakyReLU, ELU, GELU, Sigmoid, SiLU, Softmax, Softplus, Tanh),
    *(AveragePool2D, BatchNorm, Dropout, Flatten, GlobalAveragePool2D, MaxPool2D),
}

#: For benchmarks: where it is a dict, what kernels take in seconds is added to it by their names.
SECONDS: dict[str, float] | None = None


def is_recordable(model: Sequential) -> bool:
    """Whether passes over a model in training are kernels alone, each layer having its own arrays."""
    layers = model.layers
    if any({"forward", "backward"} & vars(part).keys() for part in (model, *layers)):
        return False  # somebody looks on
    first = next((layer for layer in layers if layer.params), None)
    return len({*map(id, layers)}) == len(layers) and all(_calls_kernels(layer, layer is first) for layer in layers)


def _calls_kernels(layer: Layer, first: bool) -> bool:
    """Whether a layer calls nothing but kernels; the first one need not find the gradient of its input."""
    if type(layer) is Dense:
        return F.dense_pays()
    if type(layer) is Conv2D and layer.input_shape is not None:
        one_by_one = layer.stride == (1, 1) and all(np.less(layer.padding, layer.size))
        return layer.is_direct((1, *layer.input_shape)) and (first or one_by_one)
    return type(layer) in _KERNELS_ALONE


class Passes:
    """Passes in training over batches of one size.

    Parameters
    ----------
    model : Sequential
    memory : Workspace
    record : bool
        Whether to play back what the first call did. Nothing but the numbers in the arrays may change then: the
        options of layers are those that they had.
    """

    _x: Array
    _output: Array
    _cache: list[Any]
    _dy: Array
    _grads: Grads

    def __init__(self, model: Sequential, memory: Workspace, *, record: bool) -> None:
        self._model, self._memory, self._record = model, memory, record
        self._forward: _kernels.Tape | None = None
        self._backward: _kernels.Tape | None = None
        self._counter = 0

    def forward(self, x: Array, counter: int) -> Array:
        """The output, whose gradient `backward` takes next."""
        if self._forward is not None and x is self._x:
            self._forward.play((counter - self._counter) * len(self._model.layers), SECONDS)
            return self._output
        self._x, self._counter, self._backward = x, counter, None
        with self._recording() as self._forward:
            self._output, self._cache = self._model.forward(x, training=True, counter=counter, memory=self._memory)
        return self._output

    def backward(self, dy: Array) -> Grads:
        """The gradients of the parameters."""
        dy = self._where_it_was(dy)
        if self._backward is not None:
            self._backward.play(0, SECONDS)
            return self._grads
        with self._recording() as self._backward:
            _, self._grads = self._model.backward(dy, self._cache, memory=self._memory, input_grad=False)
        return self._grads

    def _where_it_was(self, dy: Array) -> Array:
        """dy in the array that it was in when recorded, which the loss may have written to."""
        if self._backward is None:
            self._dy = self._memory.array("dy", dy.shape, dy.dtype)
        if dy is not self._dy:
            np.copyto(self._dy, dy)
        return self._dy

    def _recording(self) -> contextlib.AbstractContextManager[_kernels.Tape | None]:
        return _kernels.Tape() if self._record else contextlib.nullcontext()
