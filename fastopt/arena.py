"""Arrays with a given alignment to cache lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import checks
from fastopt._kernels import address
from fastopt.checks import Array, Arrays

LINE = 64  #: bytes of a cache line


def empty(shape: tuple[int, ...], dtype: Any, past_line: int = 0) -> Array:
    """An uninitialised array that begins `past_line` bytes past the beginning of a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = (checks.integer("past_line", past_line, 0) - address(memory)) % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def beside(like: Array, value: float | Array) -> Array:
    """A filled array of the shape, type and offset from a cache line of another: kernels process both line by line."""
    return all_beside([like], [value])[0]


def all_beside(like: Sequence[Array], values: Sequence[float | Array]) -> list[Array]:
    """Such arrays for several others of one type, in one block of memory."""
    starts, end = [], 0
    for array in like:
        starts.append(-(-end // LINE) * LINE + address(array) % LINE)
        end = starts[-1] + array.nbytes
    block = empty((end,), np.uint8)
    made = [
        block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        for start, array in zip(starts, like, strict=True)
    ]
    for array, value in zip(made, values, strict=True):
        array[...] = value
    return made


class Flat(NamedTuple):
    """The parameters and the gradients of a model, each in one block of memory, and views of these.

    Attributes
    ----------
    params, grads : list or dict of ndarray
        Views of the shapes and in the structure that `flatten` was given.
    param, grad : ndarray (n,)
        The blocks. Each view begins at a cache line of 64 bytes; the padding between them is zero.
    """

    params: Any
    grads: Any
    param: Array
    grad: Array


def flatten(params: Arrays) -> Flat:
    """Copy parameters to contiguous memory, aligned to cache lines, and allocate as much for their gradients.

    Operations on all parameters are then operations on one array: a norm over all gradients is
    ``np.linalg.norm(flat.grad)``, a copy of the model ``flat.param.copy()``. An optimizer takes ``flat.params`` and
    ``flat.grads``, or ``flat.param`` and ``flat.grad``, with the same results (for an `eps` above 0, and except for
    optimizers and options that use norms of arrays, such as `fastopt.LAMB` and ``max_norm``).

    Parameters
    ----------
    params : list or dict of ndarray, nested to any depth
        float32 or float64, all of one type, C-contiguous.

    Returns
    -------
    flat : Flat
        The parameters have the given values, the gradients are zero.

    Raises
    ------
    TypeError, ValueError
        Where an array breaks its rule.

    Examples
    --------
    >>> flat = flatten({"w": np.ones((3, 5)), "b": np.zeros(5)})
    >>> flat.params["w"].shape, flat.param.shape
    ((3, 5), (24,))
    """
    if isinstance(params, np.ndarray):
        raise TypeError("params must be a list or a dict of arrays, got ndarray: one array is flat already")
    named = checks.named("param", params)
    dtype = None
    for name, param in named.items():
        dtype = checks.array(checks.param_label(name), param, dtype=dtype).dtype
    dtype = np.dtype(np.float32) if dtype is None else dtype
    line = LINE // dtype.itemsize
    ends = np.cumsum([0, *(-(-param.size // line) * line for param in named.values())])
    blocks = [empty((int(ends[-1]),), dtype) for _ in ("param", "grad")]
    for block in blocks:
        block.fill(0)
    views = [
        [block[at : at + p.size].reshape(p.shape) for at, p in zip(ends, named.values(), strict=False)]
        for block in blocks
    ]
    for view, param in zip(views[0], named.values(), strict=True):
        view[...] = param
    return Flat(*(checks.structured(params, each) for each in views), *blocks)
