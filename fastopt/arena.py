"""Memory whose place in the cache lines is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt._kernels import address
from fastopt.checks import Array

LINE = 64  #: bytes of a cache line


def empty(shape: tuple[int, ...], dtype: Any, past_line: int = 0) -> Array:
    """An uninitialised array that begins so many bytes past the beginning of a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = (past_line - address(memory)) % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def beside(like: Array, value: float) -> Array:
    """A filled array of the shape and type of another, and as far past a line: kernels step through both by lines."""
    array = empty(like.shape, like.dtype, address(like) % LINE)
    array.fill(value)
    return array
