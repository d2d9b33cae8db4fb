"""The arrays that layers write to: new ones in each pass, or the same ones in all.

Each pass of a layer gets every array that it writes from its argument `memory`::

    y = memory.array("y", shape, dtype)        # uninitialised
    dweight = memory.grad("weight", weight)    # for the gradient of a parameter
    dx = memory.over("dx", x)                  # may be x itself, which nothing reads any more

Names are unique within a layer, so arrays that backward needs of forward are not overwritten in between; the same name
is the same array within a pass. Arrays that only the next layer reads have the names in `GRADIENTS` or `OUTPUTS`, and
are double-buffered: two blocks serve all layers, which keeps the working set in the caches small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fastopt import arena
from fastopt.checks import Array

__all__ = ["FRESH", "Workspace"]


class Memory(Protocol):
    """Provides the arrays that passes write to."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array of a shape and type, aligned to a cache line."""

    def over(self, name: str, array: Array) -> Array:
        """An array of the shape and type of `array`, which nothing reads any more: that itself, or another one."""

    def grad(self, name: str, param: Array) -> Array:
        """An array like `param` for the gradient of the layer's parameter of that name."""

    def child(self, key: str) -> Memory:
        """The memory of a part of the layer, whose parameters have the names ``"<key>.<name>"`` in the layer."""

    def stage(self, key: str) -> Memory:
        """The memory of a part that is called in sequence with others, each reading the result of the one before."""


class Fresh:
    """New arrays in each pass, which nothing overwrites."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return arena.empty(shape, dtype)

    def over(self, name: str, array: Array) -> Array:
        return arena.empty(array.shape, array.dtype)

    def grad(self, name: str, param: Array) -> Array:
        return arena.empty(param.shape, param.dtype)

    def child(self, key: str) -> Memory:
        return self

    stage = child


#: The default of passes.
FRESH = Fresh()


#: Arrays of backward passes that only the next call reads: the gradient of the input, and of a product. Of the two, the
#: second that a pass asks for may be where its `dy` was.
GRADIENTS = frozenset({"dx", "dproduct"})
#: Arrays of forward passes that only the next layer reads, in inference, where no backward pass follows.
OUTPUTS = frozenset({"y"})


class _DoubleBuffer:
    """Two blocks of memory, each as large as the largest array, that provide arrays alternately."""

    def __init__(self) -> None:
        self._blocks: list[Array] = []
        self._views: tuple[dict[Any, Array], dict[Any, Array]] = ({}, {})
        self._size = self._turn = 0
        self.owner: Workspace | None = None  # the stage whose turn it is

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        self._turn = 1 - self._turn
        key = (shape, dtype)
        view = self._views[self._turn].get(key)
        if view is None:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if not self._blocks or size > self._size:
                self._blocks, self._size = [arena.empty((size,), np.uint8) for _ in range(2)], size
                for views in self._views:
                    views.clear()
            view = self._blocks[self._turn][:size].view(dtype).reshape(shape)
            self._views[self._turn][key] = view
        return view


class Workspace:
    """Arrays that are allocated once for each name, shape and type, and reused in each pass.

    Training on batches of one size allocates nothing after the first steps. Each pass overwrites the results of the one
    before, and the cache of a forward pass serves one backward pass.

    Parameters
    ----------
    grads : mapping of str to ndarray, optional
        Arrays for gradients, by the names of parameters; others are allocated when they are needed.
    handed_on : set of str, default `GRADIENTS`
        The names of arrays that only the next layer reads, which are double-buffered.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(3)], (2,))
    >>> memory = model.workspace()
    >>> x = np.ones((4, 2), np.float32)
    >>> first, second = (model.forward(x, memory=memory)[0] for _ in range(2))
    >>> first is second
    True
    """

    def __init__(
        self, grads: Mapping[str, Array] | None = None, handed_on: frozenset[str] | set[str] = GRADIENTS
    ) -> None:
        self._grads = dict(grads or {})
        self._handed_on = handed_on
        self._arrays: dict[tuple[str, tuple[int, ...], Any], Array] = {}
        self._children: dict[str, Workspace] = {}
        self._buffer: _DoubleBuffer | None = None  # of a stage, for arrays that the next one reads
        self._given: dict[str, Array] = {}  # from the buffer, in the present pass of a stage
        self._stages_buffer = _DoubleBuffer()
        self._stages: dict[str, Workspace] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        if self._buffer is not None and name in self._handed_on:
            if self._buffer.owner is not self:  # another stage has had its turn since
                self._buffer.owner = self
                self._given.clear()
            given = self._given.get(name)
            if given is None:
                given = self._given[name] = self._buffer.array(shape, dtype)
            if given.shape == shape and given.dtype == dtype:
                return given
        key = (name, shape, dtype)
        array = self._arrays.get(key)
        if array is None:
            array = self._arrays[key] = arena.empty(shape, np.dtype(dtype))
        return array

    def over(self, name: str, array: Array) -> Array:
        return array

    def grad(self, name: str, param: Array) -> Array:
        grad = self._grads.get(name)
        if grad is None:
            grad = self._grads[name] = arena.empty(param.shape, param.dtype)
        return grad

    def child(self, key: str) -> Workspace:
        child = self._children.get(key)
        if child is None:
            own = {name.removeprefix(f"{key}."): g for name, g in self._grads.items() if name.startswith(f"{key}.")}
            child = self._children[key] = Workspace(own, self._handed_on)
        return child

    def stage(self, key: str) -> Workspace:
        stage = self._stages.get(key)
        if stage is None:
            stage = self._stages[key] = self.child(key)
            stage._buffer = self._stages_buffer
        return stage
