"""Where the results of layers lie: in new arrays each time, or in the same ones ever after.

Each pass of a layer takes `memory` and asks it for every array that it writes::

    y = memory.array("y", shape, dtype)        # uninitialised
    dweight = memory.grad("weight", weight)    # where the gradient of a parameter goes
    dx = memory.over("dx", x)                  # x itself, perhaps, where nothing reads that any more

A name serves one purpose in a layer, so what forward leaves for backward is not overwritten before that has read it.
What is read by the next layer alone goes by the names of `GRADIENTS` or `OUTPUTS`, and may lie where an earlier layer
wrote: the caches see less memory go by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fastopt import arena
from fastopt.checks import Array


class Memory(Protocol):
    """What passes write to."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of a shape and type that begins at a cache line, with anything in it."""

    def over(self, name: str, array: Array) -> Array:
        """An array like this one, which nothing else will read: that itself, or another one."""

    def grad(self, name: str, param: Array) -> Array:
        """An array like `param` for the gradient of the layer's parameter of that name."""

    def child(self, key: str) -> Memory:
        """The memory of a part of the layer, whose parameters are named ``"<key>.<name>"`` in the layer's."""

    def stage(self, key: str) -> Memory:
        """The same of one of the parts that are called one after the other, and read each other's results alone."""


class Fresh:
    """New arrays each time: results are the caller's for good."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return arena.empty(shape, dtype)

    def over(self, name: str, array: Array) -> Array:
        return arena.empty(array.shape, array.dtype)

    def grad(self, name: str, param: Array) -> Array:
        return arena.empty(param.shape, param.dtype)

    def child(self, key: str) -> Memory:
        return self

    stage = child


#: What passes use by themselves.
FRESH = Fresh()


#: In training, what a layer's backward pass hands on (and what it makes of that first).
GRADIENTS = frozenset({"dx", "dproduct"})
#: In inference, where there is no backward pass, what forward hands on.
OUTPUTS = frozenset({"y"})


class _Turns:
    """Two blocks of memory, as large as the largest array, in which arrays are made by turns."""

    def __init__(self) -> None:
        self._blocks: list[Array] = []
        self._views: tuple[dict[Any, Array], dict[Any, Array]] = ({}, {})
        self._size = self._turn = 0

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
    """Arrays that are made once for each name, shape and type: training on batches of one size allocates nothing
    after its first steps, and each pass overwrites what the one before it returned. What forward leaves serves one
    backward pass.

    Parameters
    ----------
    grads : mapping of str to ndarray, optional
        Where gradients go, by the names of parameters; arrays of the workspace's own for those that are not in it.
    handed_on : set of str, default `GRADIENTS`
        The names of arrays that a stage writes for the next one alone.
    """

    def __init__(
        self, grads: Mapping[str, Array] | None = None, handed_on: frozenset[str] | set[str] = GRADIENTS
    ) -> None:
        self._grads = dict(grads or {})
        self._handed_on = handed_on
        self._arrays: dict[tuple[str, tuple[int, ...], Any], Array] = {}
        self._children: dict[str, Workspace] = {}
        self._turns: _Turns | None = None  # where this stage hands on
        self._turns_of_stages = _Turns()
        self._stages: dict[str, Workspace] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        if self._turns is not None and name in self._handed_on:
            return self._turns.array(shape, dtype)
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
            stage._turns = self._turns_of_stages
        return stage
