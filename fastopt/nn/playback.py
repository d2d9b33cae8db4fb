"""Passes over a model in training, recorded once and then played back by one call each.

In one workspace, batches of one size have the same kernels called on the same arrays, over and over; where a model is
small, the Python around them takes as long as they do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import _kernels
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.activations import ELU, GELU, LeakyReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from fastopt.nn.layers import Conv2D, Dense, Dropout, Flatten, Grads, Layer, MaxPool2D, ReLU
from fastopt.nn.memory import Workspace
from fastopt.nn.norms import BatchNorm
from fastopt.nn.pooling import AveragePool2D, GlobalAveragePool2D
from fastopt.nn.stack import Stack

#: Layers that in a workspace do nothing but call kernels; subclasses may do more.
_KERNELS_ALONE = {
    *(ReLU, LeakyReLU, ELU, GELU, Sigmoid, SiLU, Softmax, Softplus, Tanh),
    *(AveragePool2D, BatchNorm, Dropout, Flatten, GlobalAveragePool2D, MaxPool2D),
}

#: For benchmarks: where it is a dict, what kernels take in seconds is added to it by their names.
SECONDS: dict[str, float] | None = None


def is_recordable(model: Stack) -> bool:
    """Whether passes over a model in training are kernels alone, each layer having its own arrays."""
    layers = model.layers
    patched = any({"forward", "backward"} & vars(part).keys() for part in (model, *layers))
    if patched or not vars(type(model)).get("calls_layers_alone"):
        return False
    first = next((layer for layer in layers if layer.params), None)
    return len({*map(id, layers)}) == len(layers) and all(_calls_kernels(layer, layer is first) for layer in layers)


def _calls_kernels(layer: Layer, first: bool) -> bool:
    """Whether a layer calls nothing but kernels; the first one need not find the gradient of its input."""
    if type(layer) is Dense:
        return F.dense_pays() and layer.params["weight"].flags.c_contiguous
    if type(layer) is Conv2D and layer.input_shape is not None:
        one_by_one = layer.stride == (1, 1) and all(np.less(layer.padding, layer.size))
        return layer.is_direct((1, *layer.input_shape)) and (first or one_by_one)
    return type(layer) in _KERNELS_ALONE


def _alike(dy: Any, usual: Array) -> bool:
    """Whether kernels would take it in the place of the usual one."""
    alike = isinstance(dy, np.ndarray) and (dy.shape, dy.dtype) == (usual.shape, usual.dtype)
    return alike and dy.flags.c_contiguous


class _Recorded:
    """A pass: the calls that it made, and the options and arrays of layers that it found."""

    def __init__(self, model: Stack) -> None:
        self.tape = _kernels.Tape()
        self._layers, self._now = [*model.layers], model.layers
        own = (each for layer in model.layers for each in (vars(layer), layer.params, layer.state) if each)
        self._found = _kernels.Snapshot([vars(model), *own])

    def holds(self) -> bool:
        """Whether it would find the same now: callbacks, a loss, a schedule may have changed some of it."""
        return self._now == self._layers and self._found.holds()


class Passes:
    """Passes in training over batches of one size: the first is recorded, and played back in the place of all others.

    ::

        passes = nn.Passes(model)
        output = passes.forward(x[chosen], optimizer.t)
        loss, dy = nn.softmax_cross_entropy(output, y[chosen])
        optimizer.step(passes.backward(dy))

    The bits are those of `Sequential.forward` and `Sequential.backward`, which run where a model does more than call
    kernels, and whenever shapes, options or arrays of layers are others than before. Results are overwritten by the
    next pass.

    Parameters
    ----------
    model : Sequential
    memory : Workspace, optional
        The model's own where absent. Without a copy go an x that is ``memory.array("x", …)``, and a dy that is
        ``memory.array("dy", …)``.
    """

    _x: Array
    _output: Array
    _cache: list[Any]
    _grads: Grads

    def __init__(self, model: Stack, memory: Workspace | None = None) -> None:
        self._model, self._memory = model, model.workspace() if memory is None else memory
        self._recordable = True  # for all that is known
        self._forward: _Recorded | None = None
        self._backward: _Recorded | None = None
        self._counter = 0

    def forward(self, x: Array, counter: int) -> Array:
        """The output for a batch, whose gradient `backward` takes next; another counter, other dropout masks."""
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
            self._output, self._cache = self._model.forward(usual, **options)
        self._forward, self._x, self._counter = recorded, usual, counter
        return self._output

    def backward(self, dy: Array) -> Grads:
        """The gradients of the parameters, given that of the output."""
        if self._forward is None:
            cache, self._cache = self._cache, []
            return self._plain_backward(dy, cache)
        usual = self._memory.array("dy", self._output.shape, self._output.dtype)  # where fastopt's loss writes it
        ours = dy is usual  # so that nobody else's code has run since `forward`
        if not ours:
            if not _alike(dy, usual):
                return self._plain_backward(dy, [*self._cache])  # which says what is wrong
            np.copyto(usual, dy)
        if self._backward is not None and (ours or self._backward.holds()):
            self._backward.tape.play(0, SECONDS)
            return self._grads
        if not ours and not is_recordable(self._model):
            return self._plain_backward(usual, [*self._cache])
        recorded = _Recorded(self._model)
        with recorded.tape:
            self._grads = self._plain_backward(usual, [*self._cache])
        self._backward = recorded
        return self._grads

    def _plain_forward(self, x: Array, options: dict[str, Any]) -> Array:
        self._forward = self._backward = None
        output, self._cache = self._model.forward(x, **options)
        return output

    def _plain_backward(self, dy: Array, cache: list[Any]) -> Grads:
        return self._model.backward(dy, cache, memory=self._memory, input_grad=False)[1]
