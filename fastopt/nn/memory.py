"""Where the results of layers lie: in new arrays each time, or in the same ones ever after.

Each pass of a layer takes `memory` and asks it for every array that it writes::

    y = memory.array("y", shape, dtype)        # uninitialised
    dweight = memory.grad("weight", weight)    # where the gradient of a parameter goes

A name serves one purpose in a layer, so what forward leaves for backward is not overwritten before that has read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fastopt import arena
from fastopt.checks import Array


class Memory(Protocol):
    """What passes write to."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of a shape and type that begins at a cache line, with anything in it."""

    def grad(self, name: str, param: Array) -> Array:
        """An array like `param` for the gradient of the layer's parameter of that name."""

    def child(self, key: str) -> Memory:
        """The memory of a part of the layer, whose parameters are named ``"<key>.<name>"`` in the layer's."""


class Fresh:
    """New arrays each time: results are the caller's for good."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return arena.empty(shape, dtype)

    def grad(self, name: str, param: Array) -> Array:
        return arena.empty(param.shape, param.dtype)

    def child(self, key: str) -> Memory:
        return self


#: What passes use by themselves.
FRESH = Fresh()


class Workspace:
    """Arrays that are made once for each name, shape and type: training on batches of one size allocates nothing
    after its first step, and each pass overwrites what the one before it returned.

    Parameters
    ----------
    grads : mapping of str to ndarray, optional
        Where gradients go, by the names of parameters; arrays of the workspace's own for those that are not in it.
    """

    def __init__(self, grads: Mapping[str, Array] | None = None) -> None:
        self._grads = dict(grads or {})
        self._arrays: dict[tuple[str, tuple[int, ...], Any], Array] = {}
        self._children: dict[str, Workspace] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        key = (name, shape, dtype)
        array = self._arrays.get(key)
        if array is None:
            array = self._arrays[key] = arena.empty(shape, np.dtype(dtype))
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
            child = self._children[key] = Workspace(own)
        return child
