"""Every rule about arguments, and every message: the name, the rule, and the value that broke it.

Comparisons are written so that NaN fails them. Nothing here changes anything.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt import dialects
from fastopt._kernels import address, all_below

Array = NDArray[Any]
#: What an optimizer takes: one array, or a nest of arrays, which are dicts, lists and tuples to any depth.
Arrays: TypeAlias = "Array | Sequence[Arrays] | Mapping[Any, Arrays]"

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


NEST = (dict, list, tuple)
#: Of nests in each other.
_DEEPEST = 64
#: Of what a list of numbers, which is to be an array, and no nest, is made.
_NUMBERS = (int, float, complex, np.generic, list, tuple)


def named(name: str, value: Arrays, above: tuple[int, ...] = ()) -> dict[str, Array]:
    """The arrays of a nest, depth first, under the names that state dicts use: the keys and the places in lists that
    lead to them, as in ``"layers.0.W"``; a lone array is called `name`.

    `above` are the identities of the nests that this one is in.
    """
    if isinstance(value, np.ndarray):
        return {name: value}
    if not isinstance(value, NEST):
        raise TypeError(f"{name} must be an array, or a list or a dict of arrays, got {type(value).__name__}")
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    by_name = {str(key): item for key, item in items}
    if len(by_name) < len(value):
        raise ValueError(f"{name} must have keys that differ as text, got {list(value)}")
    if not any(isinstance(item, NEST) for item in by_name.values()):
        return by_name
    if id(value) in above:
        raise ValueError(f"{name} must not contain itself, but a {type(value).__name__} does")
    if len(above) == _DEEPEST:
        raise ValueError(f"{name} must be at most {_DEEPEST} nests deep, but is deeper")
    every: dict[str, Array] = {}
    for key, item in by_name.items():
        below = {key: item}
        if isinstance(item, NEST):
            leaves = named(name, item, (*above, id(value)))
            of_numbers = leaves and all(isinstance(leaf, _NUMBERS) for leaf in leaves.values())
            if isinstance(item, dict) or not of_numbers:
                below = {f"{key}.{rest}": leaf for rest, leaf in leaves.items()}
        if twice := [full for full in below if full in every]:
            raise ValueError(f"{name} must have one array of each name, but two are called {twice[0]}: rename a key")
        every |= below
    return every


def structured(like: Arrays, values: Iterable[Any]) -> Any:
    """Values, in the order of `named`, in the structure of a nest: an array, or dicts, lists and tuples."""
    each = iter(values)

    def fill(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: fill(item) for key, item in part.items()}
        if isinstance(part, (list, tuple)):
            filled = [fill(item) for item in part]
            return filled if isinstance(part, list) else getattr(type(part), "_make", tuple)(filled)
        return next(each)

    return fill(like)


def in_code(value: Arrays, of: str, name: str = "params") -> str:
    """How a program writes the array that `named` calls `of`, of a nest of this name."""
    if not isinstance(value, NEST):
        return name
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        entry = f'{name}["{key}"]' if isinstance(key, str) else f"{name}[{key!r}]"
        rest = of.removeprefix(f"{key}.")
        if isinstance(item, NEST) and rest != of and rest in named(name, item):
            return in_code(item, rest, entry)
        if of == str(key):
            return entry
    return f'{name}["{of}"]' if isinstance(value, dict) else f"{name}[{of}]"


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


#: A gradient that is not there, not even as None.
_ABSENT: Any = object()


def gradients(params: Arrays, grads: Any, bound: Mapping[str, Array], frozen: Collection[str] = ()) -> None:
    """Gradients of the same structure, type and shapes as the parameters, apart from all `bound` arrays; those of
    `frozen` parameters may be anything, or absent from a dict."""
    given = matched(params, grads, frozen)
    for name, param in named("param", params).items():
        if name in frozen:
            continue
        label = "grad" if isinstance(params, np.ndarray) else f"grads[{name}]"
        grad = array(label, given[name], dtype=param.dtype, shape=param.shape, contiguous=False)
        for other, value in bound.items() if grad.flags.c_contiguous else ():  # else it is copied
            apart({label: grad, other: value})


def matched(params: Arrays, grads: Any, frozen: Collection[str] = (), *, strict: bool = True) -> dict[str, Any]:
    """What stands in the places of parameters in a nest of the same structure, by their names: arrays, or whatever
    else is there; None for `frozen` ones that a dict lacks.

    Without `strict`, dicts may have further keys and lack any, and None may stand for an array or for a nest.
    """
    if not isinstance(params, NEST):
        if not isinstance(grads, np.ndarray):
            got = type(grads).__name__
            raise TypeError(f"grads must have the structure of params, {type(params).__name__}, got {got}")
        return {"param": grads}
    found: dict[str, Any] = {}
    missing: list[str] = []
    extra: list[str] = []

    def match(param: Any, grad: Any, name: str, of_dict: bool) -> None:
        below = [f"{name}.{rest}" for rest in named("grad", param)] if isinstance(param, NEST) else [name]
        if grad is _ABSENT:
            missing.extend(each for each in below if not (of_dict and (each in frozen or not strict)))
            found.update(dict.fromkeys(below))
        elif not isinstance(param, NEST):
            if isinstance(grad, NEST) and name not in frozen:
                raise TypeError(f"grads[{name}] must be an array, as params[{name}] is, got {type(grad).__name__}")
            found[name] = grad
        elif grad is None and all(each in frozen or not strict for each in below):
            found.update(dict.fromkeys(below))
        else:
            match_entries(param, grad, name)

    def match_entries(param: Any, grad: Any, name: str) -> None:
        if not any(isinstance(param, kind) and isinstance(grad, kind) for kind in (dict, (list, tuple))):
            at, kind = f"[{name}]" if name else "", type(param).__name__
            raise TypeError(f"grads{at} must have the structure of params{at}, {kind}, got {type(grad).__name__}")
        of_dict = isinstance(param, dict)
        keys = param if of_dict else range(len(param))
        given = grad if of_dict else dict(enumerate(grad))
        for key in keys:
            match(param[key], given.get(key, _ABSENT), f"{name}.{key}" if name else str(key), of_dict)
        if strict or not of_dict:
            extra.extend(f"{name}.{key}" if name else str(key) for key in given if key not in keys)

    match_entries(params, grads, "")
    for names, verb in ((missing, "lacks"), (extra, "also has")):
        if names:
            raise ValueError(f"grads must hold one array per parameter, but {verb} {', '.join(names)}")
    return found
