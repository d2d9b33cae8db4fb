"""Every rule about arguments, and every message: the name, the rule, and the value that broke it.

Comparisons are written so that NaN fails them. Nothing here changes anything.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import dialects
from fastopt._kernels import address, all_below

Array = NDArray[Any]
#: What an optimizer takes: one array, a list or a dict of arrays.
Arrays = Array | Sequence[Array] | Mapping[str, Array]

#: One integer, or height and width.
Pair = int | tuple[int, int]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_INT32_MAX = 2**31 - 1
_REAL = (np.dtype(np.float32), np.dtype(np.float64))
_NOT_REAL = tuple("cOSU")  # kinds of types: complex, objects, text


# ---- Numbers ------------------------------------------------------------------------------------------------


def number(name: str, value: Any, bounds: str = "(-inf, inf)") -> float:
    """A real number within an interval, written as in mathematics: ``"[0, 1)"``. Infinity is never within."""
    low, high = _ends(bounds)
    x = value if type(value) is float else real(name, value, f" in {bounds}")
    above = low <= x if bounds[0] == "[" else low < x
    below = x <= high if bounds[-1] == "]" else x < high
    if not (above and below and math.isfinite(x)):
        raise ValueError(f"{name} must be in {bounds}, got {value!r}")
    if abs(x) > _FLOAT32_MAX:  # kernels for float32 would make it infinite
        raise ValueError(f"{name} must be at most {_FLOAT32_MAX:.3g} in size, got {value!r}")
    return x


def real(name: str, value: Any, within: str = "") -> float:
    """A real number, NaN and the infinities among them."""
    try:
        # Text has none; that of NumPy's text reads it, and that of complex numbers drops their imaginary part.
        x = value.__float__() if _is_real(value) else None
    except (AttributeError, TypeError, ValueError, OverflowError):
        x = None
    if type(x) is not float:
        raise TypeError(f"{name} must be a number{within}, got {value!r}")
    return x


def _is_real(value: Any) -> bool:
    """Whether what has a type and axes, such as an array, is one number that is neither text nor complex."""
    return getattr(getattr(value, "dtype", None), "kind", "f") not in _NOT_REAL and not getattr(value, "ndim", 0)


@functools.cache
def _ends(bounds: str) -> tuple[float, float]:
    low, high = bounds[1:-1].split(",")
    return float(low), float(high)


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer of at least `low`, and at most `high` where that is given."""
    if type(value) is int and low <= value and (high is None or value <= high):
        return value
    try:
        x = int(operator.index(value))
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not (low <= x and (high is None or x <= high)):
        limits = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {limits}, got {value!r}")
    return x


def lengths(name: str, value: Any) -> tuple[int, ...]:
    """The shape of an array: integers of at least 0, so that sums of a few of them stay below 2⁶³."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of integers, got {value!r}")
    return tuple(integer(name, length, 0, 2**62) for length in value)


def second_or_last(name: str, value: Any, ndim: int) -> int:
    """An axis of an array: the second, 1, or the last, also called -1."""
    axis = integer(name, value, -1, ndim - 1)
    if axis not in (-1, 1, ndim - 1):
        raise ValueError(f"{name} must be 1, or the last axis, {ndim - 1} or -1, got {value!r}")
    return axis % ndim


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """One of some words."""
    if not (isinstance(value, str) and value in options):
        meant = dialects.hint(value, options)
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}{meant}")
    return value


def word(name: str, value: Any, options: Sequence[str]) -> str:
    """One of some words, in the writing of other libraries, too: see `fastopt.dialects.VALUES`."""
    meant, said = dialects.value_of(name, value, options) if isinstance(value, str) else (None, "")
    if meant is None:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}{said}")
    return meant


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """A dict, or what is like one."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, got {type(value).__name__}")
    return value


def pair(name: str, value: Any, low: int) -> tuple[int, int]:
    """Two integers, height and width, of at least `low` and below 2³¹; one integer stands for both."""
    values = value if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be one integer or a pair (height, width), got {value!r}")
    height, width = (integer(name, each, low) for each in values)
    if max(height, width) > _INT32_MAX:  # so that sums of a few of them cannot overflow
        raise ValueError(f"{name} must be at most {_INT32_MAX}, got {value!r}")
    return height, width


# ---- Arrays -------------------------------------------------------------------------------------------------


def array(
    name: str,
    value: Any,
    *,
    dtype: np.dtype[Any] | type | None = None,
    shape: tuple[int, ...] | None = None,
    ndim: int | None = None,
    writable: bool = False,
    contiguous: bool = True,
) -> Array:
    """An array that a kernel can take: float32 or float64 (or `dtype`), native byte order, C-contiguous (unless it is
    to be copied)."""
    if type(value) is np.ndarray:  # the usual case quickly: what follows costs more than a small kernel
        flags = value.flags
        fits = value.dtype in _REAL if dtype is None else value.dtype == dtype
        fits = fits and value.dtype.isnative and (flags.carray if writable else flags.c_contiguous and flags.aligned)
        if fits and (shape is None or value.shape == shape) and (ndim is None or value.ndim == ndim):
            return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
    plain(name, value)
    memory = np.ndarray.view(value, np.ndarray)
    if (value.dtype, value.shape, value.strides) != (memory.dtype, memory.shape, memory.strides):
        raise TypeError(f"{name} must be what its attributes say, got a {type(value).__name__} that is {memory.dtype}")
    if dtype is None:
        if value.dtype.newbyteorder("=") not in _REAL:
            raise TypeError(f"{name} must be float32 or float64, got {value.dtype}")
    elif value.dtype.newbyteorder("=") != np.dtype(dtype):
        raise TypeError(f"{name} must be {np.dtype(dtype)}, got {value.dtype}")
    if not value.dtype.isnative:
        native = value.dtype.newbyteorder("=").str
        raise TypeError(
            f"{name} must be in native byte order, got {value.dtype.str!r}; convert it with {name}.astype({native!r})"
        )
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {value.shape}")
    if contiguous and not value.flags.c_contiguous:
        cure = f"make it so with np.ascontiguousarray({name})"
        if writable:  # a copy on the way to a call would be written instead
            cure = f"it is written to, so make it so beforehand: {name} = np.ascontiguousarray({name})"
        raise ValueError(f"{name} must be C-contiguous, got strides {value.strides} for shape {value.shape}; {cure}")
    if not value.flags.aligned:
        raise ValueError(f"{name} must be aligned to its element size, got address {value.ctypes.data:#x}")
    if writable and not value.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    return value


def plain(name: str, value: Array) -> None:
    """An array that is not masked: the mask would be passed over."""
    if hasattr(value, "mask"):
        raise TypeError(f"{name} must be a plain array, got a masked one; pass {name}.filled(0), say")


def contiguous(value: Array, dtype: Any = None) -> Array:
    """An array as kernels take it: C-contiguous, aligned, and of a type; a copy only where it is another."""
    value = np.ascontiguousarray(value, dtype)
    return value if value.flags.aligned else value.copy()


def shape(name: str, value: Any, ndim: int | None = None) -> tuple[int, ...]:
    """The shape of an array, of so many dimensions; all else about it is for a kernel to check."""
    if isinstance(value, np.ndarray) and (ndim is None or value.ndim == ndim):
        return value.shape
    return array(name, value, ndim=ndim).shape


def apart(arrays: Mapping[str, Array]) -> None:
    """No two of these C-contiguous arrays share memory."""
    spans = sorted((address(a), a.nbytes, name) for name, a in arrays.items() if a.size)
    for (start, size, first), (following, _, second) in itertools.pairwise(spans):
        if following < start + size:
            raise ValueError(f"{first} and {second} must not overlap in memory; copy one of them")


def labels(name: str, value: Any, rows: int, classes: int) -> NDArray[np.int64]:
    """Integer class labels in [0, classes), one per row, as int64."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be an array of integers, got {got}")
    plain(name, value)
    if value.shape != (rows,):
        raise ValueError(f"{name} must have shape {(rows,)}, got {value.shape}")
    result = np.array(value, np.int64, order="C")  # a copy, which nothing changes between this check and its use
    if not all_below(result, classes):
        wrong = value[(value < 0) | (value >= classes)][0]
        raise ValueError(f"{name} must be in [0, {classes}), got {wrong}")
    return result


# ---- The arrays of an optimizer ------------------------------------------------------------------------------


def named(name: str, value: Arrays) -> dict[str, Array]:
    """The arrays of a structure under the names that state dicts use; a lone array is called `name`."""
    if isinstance(value, np.ndarray):
        return {name: value}
    if isinstance(value, dict):
        by_name = {str(key): item for key, item in value.items()}
        if len(by_name) < len(value):
            raise ValueError(f"{name} must have keys that differ as text, got {list(value)}")
        return by_name
    if isinstance(value, (list, tuple)):
        return {str(i): item for i, item in enumerate(value)}
    raise TypeError(f"{name} must be an array, or a list or a dict of arrays, got {type(value).__name__}")


def step_arrays(params: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]]) -> None:
    """Parameters and state that a step kernel can update in place: alike in type, no two overlapping."""
    dtype = None
    for name, param in params.items():
        array(param_label(name), param, dtype=dtype, writable=True)
        dtype = param.dtype
        for key, state in states[name].items():
            array(state_label(name, key), state, dtype=dtype, shape=param.shape, writable=True)
    apart(labelled(params, states))


def labelled(params: Mapping[str, Array], states: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Parameters and state under the names that messages use."""
    every = {param_label(name): param for name, param in params.items()}
    every.update({state_label(name, key): a for name, state in states.items() for key, a in state.items()})
    return every


def param_label(name: str) -> str:
    return name if name == "param" else f"params[{name}]"


def state_label(name: str, key: str) -> str:
    return key if name == "param" else f"state[{name}][{key}]"


def gradients(params: Arrays, grads: Any, bound: Mapping[str, Array], frozen: Collection[str] = ()) -> None:
    """Gradients of the same structure, type and shapes as the parameters, apart from all `bound` arrays; those of
    `frozen` parameters may be anything, or absent from a dict."""
    if not any(isinstance(params, kind) and isinstance(grads, kind) for kind in (np.ndarray, dict, (list, tuple))):
        raise TypeError(f"grads must have the structure of params, {type(params).__name__}, got {type(grads).__name__}")
    if isinstance(params, dict):
        _same_names(params, grads, frozen)
    wanted, given = named("grad", params), named("grad", grads)
    _same_names(wanted, given, frozen if isinstance(params, dict) else ())
    for name, param in wanted.items():
        if name in frozen:
            continue
        label = name if isinstance(params, np.ndarray) else f"grads[{name}]"
        grad = array(label, given[name], dtype=param.dtype, shape=param.shape, contiguous=False)
        for other, value in bound.items() if grad.flags.c_contiguous else ():  # else it is copied
            apart({label: grad, other: value})


def _same_names(wanted: Iterable[Any], given: Iterable[Any], frozen: Collection[str]) -> None:
    missing = [name for name in wanted if name not in set(given) and str(name) not in frozen]
    extra = [name for name in given if name not in set(wanted)]
    if missing:
        raise ValueError(f"grads must hold one array per parameter, but lacks {', '.join(map(str, missing))}")
    if extra:
        raise ValueError(f"grads must hold one array per parameter, but also has {', '.join(map(str, extra))}")
