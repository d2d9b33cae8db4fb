"""Wrong values for arguments, and memory amid guards, which knows what was written to it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# ---- Memory -------------------------------------------------------------------------------------------------


class Memory:
    """Arrays, each amid guards in a block of bytes of its own."""

    GUARD = 128

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> np.ndarray:
        """An array, so many bytes from the beginning of a cache line."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        block = np.full(size + 2 * self.GUARD + 128, 0xA5, np.uint8)
        self.blocks.append(block)
        start = self.GUARD + (-(block.ctypes.data + self.GUARD)) % 64 + offset
        return block[start : start + size].view(dtype).reshape(shape)

    def array(self, values: Any, offset: int = 0) -> np.ndarray:
        """A copy of an array."""
        values = np.asarray(values)
        made = self.empty(values.shape, values.dtype, offset)
        made[...] = values
        return made

    def over(self, other: np.ndarray, like: np.ndarray, shift: int) -> np.ndarray | None:
        """An array like one of them that begins so many bytes behind the other; None where the block has no room."""
        for block in self.blocks:
            start = other.ctypes.data - block.ctypes.data + shift
            if 0 <= start - shift < block.size:
                fits = start >= 0 and start + like.nbytes <= block.size and other.dtype != object
                return block[start : start + like.nbytes].view(like.dtype).reshape(like.shape) if fits else None
        return None

    def copy(self) -> list[bytes]:
        return [block.tobytes() for block in self.blocks]

    def is_changed(self, before: list[bytes], but_for: Iterator[np.ndarray]) -> bool:
        """Whether a byte is another one than before, the elements of some arrays aside."""
        changed = [np.frombuffer(was, np.uint8) != now for was, now in zip(before, self.blocks, strict=False)]
        if not any(each.any() for each in changed):
            return False
        for array in but_for:
            array = np.asarray(array)  # and not a subclass, whose attributes may be anything
            for each, block in zip(changed, self.blocks, strict=False):
                start = array.ctypes.data - block.ctypes.data
                if 0 <= start < block.size and array.size:
                    own = each[start:]
                    strides, shape = (*array.strides, 1), (*array.shape, array.itemsize)
                    np.lib.stride_tricks.as_strided(own, shape, strides)[...] = False
        return any(each.any() for each in changed)


# ---- Arrays -------------------------------------------------------------------------------------------------


class Plain(np.ndarray):
    """A subclass that changes nothing."""


class Liar(np.ndarray):
    """A subclass whose attributes are those of another array."""

    shape = property(lambda self: (2, 2))
    dtype = property(lambda self: np.dtype(np.float32))
    size = property(lambda self: 4)
    ndim = property(lambda self: 2)
    nbytes = property(lambda self: 16)
    strides = property(lambda self: (8, 4))


class Trap(np.ndarray):
    """A subclass with an attribute that raises."""

    @property
    def mask(self) -> Any:
        raise Raised("mask")


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


#: What an array may become, given the memory for it.
ARRAYS: dict[str, Callable[[Memory, np.ndarray], Any]] = {
    "other real": lambda m, a: m.array(a.astype(np.float32 if a.dtype == np.float64 else np.float64)),
    **{
        str(np.dtype(kind)): lambda m, a, kind=kind: m.array(a.astype(kind))
        for kind in (np.float16, np.int32, np.int64, np.uint8, bool, np.complex64, np.longdouble)
    },
    "objects": lambda m, a: a.astype(object),
    "text": lambda m, a: a.astype(str),
    "records": lambda m, a: m.empty(a.shape, [("x", a.dtype)]),
    "times": lambda m, a: m.array(a.astype("m8[s]")),
    "swapped": lambda m, a: m.array(a.astype(a.dtype.newbyteorder())),
    "order in format": lambda m, a: m.array(a).view(ordered(a.dtype)),
    "order in format, unaligned": lambda m, a: m.array(a, 1).view(ordered(a.dtype)),
    "unaligned": lambda m, a: m.array(a, 1),
    "half aligned": lambda m, a: m.array(a, a.itemsize // 2),
    "read-only": lambda m, a: _read_only(m.array(a)),
    "masked": lambda m, a: np.ma.masked_array(m.array(a), mask=np.zeros(a.shape, bool)),
    "matrix": lambda m, a: np.asmatrix(m.array(a)),
    "subclass": lambda m, a: m.array(a).view(Plain),
    "liar": lambda m, a: m.array(a).view(Liar),
    "trap": lambda m, a: m.array(a).view(Trap),
    "memory view": lambda m, a: memoryview(m.array(a)),
    "bytes": lambda m, a: a.tobytes(),
    "byte array": lambda m, a: bytearray(a.tobytes()),
    "list": lambda m, a: a.tolist(),
    "scalar": lambda m, a: a.flat[0],
    "no axes": lambda m, a: m.array(a.reshape(-1)[0]),
    "no rows": lambda m, a: m.empty((0, *a.shape[1:]), a.dtype),
    "no columns": lambda m, a: m.empty((*a.shape[:-1], 0), a.dtype),
    "vast, empty": lambda m, a: np.empty((2**20, 2**31, 0), a.dtype),
    # Results of its last axes are more than any allocator gives: AddressSanitizer's would give 8 GB, to be filled.
    "vast, empty at first": lambda m, a: np.empty(
        (0, 2**41 >> 10 * max(a.ndim - 2, 0), *(2**10,) * max(a.ndim - 2, 0)), a.dtype
    ),
    "vast": lambda m, a: np.broadcast_to(m.array(a.flat[0]), (2**30, 2**10)),
    "vast, of its rank": lambda m, a: np.broadcast_to(m.array(a.flat[0]), (2**40, *a.shape[1:])),
    "transposed": lambda m, a: m.array(a).T,
    "Fortran": lambda m, a: m.array(a.T).T,
    "with gaps": lambda m, a: m.array(np.repeat(a, 2, axis=-1))[..., ::2],
    "backwards": lambda m, a: m.array(a)[..., ::-1],
    "broadcast": lambda m, a: np.broadcast_to(m.array(a.flat[0]), a.shape),
    "one number many times": lambda m, a: np.lib.stride_tricks.as_strided(m.array(a), a.shape, (0,) * a.ndim),
    "overlapping itself": lambda m, a: np.lib.stride_tricks.as_strided(m.array(a), a.shape, (a.itemsize,) * a.ndim),
    "longer": lambda m, a: m.array(np.concatenate([a, a])),
    "shorter": lambda m, a: m.array(a)[1:],
    "wider": lambda m, a: m.array(np.concatenate([a, a], axis=-1)),
    "flat": lambda m, a: m.array(a).reshape(-1),
    "an axis more": lambda m, a: m.array(a)[None],
    "an axis less": lambda m, a: m.array(a)[0],
    "thirty axes": lambda m, a: m.array(a).reshape((1,) * 30 + a.shape),
    **{
        str(value): lambda m, a, value=value: m.array(np.full(a.shape, float(value)).astype(a.dtype))
        for value in (np.nan, np.inf, -np.inf, 1e-40, 3e38, -1, 2**31 - 1, 2**62)
    },
}


def ordered(dtype: np.dtype) -> np.dtype:
    """The type with its byte order in the format of buffers: ``a.byteswap().view(a.dtype.newbyteorder())`` has it."""
    return dtype.newbyteorder().newbyteorder()


def _reshape(a: np.ndarray) -> None:
    a.shape = (a.size,) if a.ndim != 1 else (1, a.size)


def _retype(a: np.ndarray) -> None:
    a.dtype = {4: np.int32, 8: np.int64}.get(a.itemsize, np.int8)


def _halve(a: np.ndarray) -> None:
    a.dtype = np.float32 if a.dtype == np.float64 else np.float16


def _restride(a: np.ndarray) -> None:
    a.strides = (0,) * a.ndim


def _lock(a: np.ndarray) -> None:
    a.flags.writeable = False


#: How the attributes of an array that was fine may be changed in place.
IN_PLACE: tuple[Callable[[np.ndarray], None], ...] = (_reshape, _retype, _halve, _restride, _lock)


# ---- All else -----------------------------------------------------------------------------------------------


class Raised(Exception):
    """What a value itself raises: it must come out as it is."""


class Raises:
    """Raises, whatever it is asked for."""

    def _raise(self, *_: Any) -> Any:
        raise Raised

    __float__ = __index__ = __int__ = __len__ = __iter__ = __getitem__ = __fspath__ = __bool__ = __eq__ = _raise
    __hash__ = _raise  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Raises()"


class Lies:
    """Converts itself to what is no number."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __float__(self) -> Any:
        return self.value

    __index__ = __int__ = __fspath__ = __float__

    def __repr__(self) -> str:
        return f"Lies({self.value!r})"


class Changes:
    """Another number each time that it is asked."""

    def __init__(self) -> None:
        self.values = [2**70, 1, -1, 3]

    def __index__(self) -> int:
        self.values.append(self.values.pop(0))
        return self.values[0]

    def __float__(self) -> float:
        return float(self.__index__())


class Number(float):
    """A float of a class of its own."""


class Integer(int):
    """An integer of a class of its own, which says that it equals everything."""

    __eq__ = lambda self, other: True  # noqa: E731
    __hash__ = int.__hash__


def scalars() -> list[Any]:
    """Wrong numbers, words and objects; many are right somewhere."""
    whole = [0, 1, 2, 3, -1, -2, 100, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63]
    whole += [2**64 - 1, 2**64, 2**64 + 1, 2**65, -(2**31), -(2**63), -(2**64), 10**30, 10**400, True, False]
    real = [0.0, -0.0, 0.5, 1.0, 1.5, -1.0, math.nan, math.inf, -math.inf, 1e308, 3.5e38, 1e-40, 5e-324, 0.5j]
    numpy = [np.True_, np.int8(1), np.int64(-1), np.uint64(2**63), np.float16(0.5), np.float32(0.5), np.float64(np.nan)]
    numpy += [np.complex64(0.5 + 1j), np.str_("0.5"), np.bytes_(b"1"), np.longdouble(0.5), np.datetime64(1, "s")]
    numpy += [np.array(1), np.array(0.5), np.array([0.5]), np.array([1, 2]), np.array(None), np.timedelta64(1, "s")]
    words = ["", "x", "0.5", "1", "drop", "keep", "relu", "adam", b"x", "\0", "\ud800", "a" * 1000]
    lists: list[Any] = [[], (), [1], (1, 2), (2, 2), (1, 2, 3), (0, 0), (-1, 1), (2**62, 2**62), (2**64, 1), (1, 2**64)]
    lists += [(2**31, 2**31, 2**31, 0), (1, 2**62, 2**62, 1), (0, 0, 0, 0), (2**31, 2**31, 2**31, 2**31), ("a", "b")]
    lists += [
        range(4),
        {},
        {"x": 1},
        {1, 2},
        iter([1, 2]),
        [None],
        [[1], [2, 3]],
        {1: 2},
        [np.ones(3)],
        {"w": np.ones(3)},
    ]
    objects = [None, object(), int, float, np.float32, np.dtype("f4"), len, lambda *_, **__: 1, ..., NotImplemented]
    objects += [Raises(), Changes(), Number(0.5), Integer(7), *map(Lies, ("1", 1.5, None, 1, 2**70, math.nan, [1]))]
    return [*whole, *real, *numpy, *words, *lists, *objects]


def _restructured(value: Any, rng: random.Random) -> Any:
    """A container of another form."""
    items = list(value.values()) if isinstance(value, dict) else list(value)
    keys = list(value) if isinstance(value, dict) else list(range(len(items)))
    ways = [items, tuple(items), dict(zip(keys, items, strict=True)), items[:-1], items + items[-1:], items[::-1],
            iter(items), items[:1] * len(items), dict(zip(map(str, keys), items, strict=True))]  # fmt: skip
    if isinstance(value, dict):
        ways += [dict(list(value.items())[1:]), value | {"more": 1}, value | {1: items[:1]}, {}]
    return rng.choice(ways)


def spoiled(value: Any, others: list[np.ndarray], memory: Memory, rng: random.Random) -> tuple[str, Any]:
    """A wrong value in the place of another one, and what is wrong with it."""
    if isinstance(value, np.ndarray) and rng.random() < 0.85:
        if others and rng.random() < 0.2:
            other = rng.choice(others)
            if rng.random() < 0.5:
                return "another argument", other
            shift = rng.choice((-16, -8, -4, -1, 0, 1, 4, 8, 16, 64))
            over = memory.over(other, value, shift)
            return f"over another argument by {shift}", other if over is None else over
        way = rng.choice(list(ARRAYS))
        try:
            return way, ARRAYS[way](memory, value)
        except (TypeError, ValueError, IndexError):  # it has no such form
            return "None", None
    if isinstance(value, (dict, list, tuple)) and value and rng.random() < 0.85:
        if rng.random() < 0.25:
            return "another structure", _restructured(value, rng)
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if hasattr(value, "_fields"):
            name = rng.choice(value._fields)
            way, wrong = spoiled(getattr(value, name), others, memory, rng)
            return f"{name}: {way}", value._replace(**{name: wrong})
        key = rng.choice(list(keys))
        way, wrong = spoiled(value[key], others, memory, rng)
        items = {**value, key: wrong} if isinstance(value, dict) else [*value[:key], wrong, *value[key + 1 :]]
        return f"[{key!r}]: {way}", tuple(items) if isinstance(value, tuple) else items
    wrong = rng.choice(scalars())
    return shown(wrong), wrong


def shown(value: Any) -> str:
    """A value in a few words."""
    return repr(value)[:40] if not (isinstance(value, int) and abs(value) > 10**40) else "10**400"
