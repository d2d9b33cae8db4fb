"""The arrays of a layer by name, which stay where they are: an assignment changes their values."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from fastopt.checks import Array

_NONE: frozenset[str] = frozenset()


@functools.lru_cache(1024)
def _one_of_equals(names: frozenset[str]) -> frozenset[str]:
    """The first of all sets that are equal to this one."""
    return names


class Params(dict[str, Array]):
    """A dict of arrays. Once its layer is built, ``params[name] = value`` copies the value into the array that is
    there, which an optimizer, other layers and programs may hold, and no name can be added or removed.

    ``params | other``, ``params.copy()`` and ``copy.copy(params)`` are plain dicts of the same arrays.

    Attributes
    ----------
    frozen : frozenset of str
        The names that `Sequential.freeze` was given: an optimizer that is made of these parameters leaves them out.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2)], (3,))
    >>> bias = model.params["0.bias"]
    >>> model.params["0.bias"] = np.array([1, 2], np.float32)
    >>> bias.tolist(), model.params["0.bias"] is bias
    ([1.0, 2.0], True)
    """

    def __init__(self, arrays: Mapping[str, Array] | None = None, *, kind: str = "params") -> None:
        super().__init__(arrays or {})
        self._kind = kind
        self._sealed = False
        #: Of the parts of a composite layer, by their key.
        self._parts: dict[str, Params] = {}
        #: Of its own arrays, those that are frozen, and those that the optimizer of a run leaves out meanwhile. A dict,
        #: of which `fastopt.nn.program` can see whether it has changed: equal sets are one object.
        self.marks: dict[str, frozenset[str]] = {"frozen": _NONE, "held": _NONE}

    # ---- What layers do -------------------------------------------------------------------------------------

    def seal(self) -> None:
        """From now on, arrays stay where they are."""
        self._sealed = True

    def take(self, arrays: Mapping[str, Array], parts: Mapping[str, Params] | None = None) -> None:
        """Hold these arrays, in place of those of the same names; and know whose they are."""
        super().update(arrays)
        self._parts.update(parts or {})

    def leave(self, name: str) -> None:
        """Hold an array no more."""
        super().__delitem__(name)

    # ---- Frozen names ---------------------------------------------------------------------------------------

    def _marked(self, mark: str) -> frozenset[str]:
        names = set(self.marks[mark])
        for key, part in self._parts.items():
            names.update(f"{key}.{name}" for name in part._marked(mark))
        return frozenset(names & self.keys()) if names else _NONE

    def mark(self, mark: str, names: Iterable[str]) -> None:
        """Make these names, and no others, the ones with a mark: ``"frozen"`` or ``"held"``."""
        names = set(names)
        for key, part in self._parts.items():
            inner = {name for name in names if name.startswith(f"{key}.") and name[len(key) + 1 :] in part}
            names -= inner
            part.mark(mark, {name[len(key) + 1 :] for name in inner})
        if names != self.marks[mark]:
            self.marks[mark] = _one_of_equals(frozenset(names))

    @property
    def frozen(self) -> frozenset[str]:
        return self._marked("frozen")

    @property
    def held(self) -> frozenset[str]:
        """The names that the optimizer of a run leaves out meanwhile."""
        return self._marked("held")

    @property
    def rest(self) -> bool:
        """Whether there are parameters, of which none learns."""
        if not any(self.marks.values()) and not self._parts:
            return False
        return bool(self) and self.keys() <= self.frozen | self.held

    # ---- What a dict does -----------------------------------------------------------------------------------

    def _check(self, name: str, value: Any) -> Array:
        """The array of a name, which can take a value."""
        label = f"{self._kind}[{name!r}]"
        if name not in self:
            raise ValueError(
                f"{self._kind} must keep its names, {', '.join(self) or 'of which it has none'}; got {name!r}"
            )
        array = self[name]
        if not isinstance(value, np.ndarray) or hasattr(value, "mask"):
            got = "a masked array" if hasattr(value, "mask") else type(value).__name__
            raise TypeError(f"{label} must be set to a NumPy array, got {got}")
        if value.dtype.newbyteorder("=") != array.dtype:
            raise TypeError(f"{label} must be set to {array.dtype}, got {value.dtype}")
        if value.shape != array.shape:
            raise ValueError(f"{label} must be set to an array of shape {array.shape}, got {value.shape}")
        if not array.flags.writeable and value is not array:
            raise ValueError(f"{label} must be writable, but was made a read-only array")
        return array

    def __setitem__(self, name: str, value: Array) -> None:
        if not self._sealed:
            super().__setitem__(name, value)
        elif value is not (array := self._check(name, value)):
            np.copyto(array, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As ``self[name] = value`` for each, all or none."""
        values = dict(*args, **kwargs)
        for name, value in values.items() if self._sealed else ():
            self._check(name, value)
        for name, value in values.items():
            self[name] = value

    def replace(self, values: Any) -> None:
        """What ``layer.params = values`` does: all names must be there."""
        if not isinstance(values, Mapping):
            raise TypeError(f"{self._kind} must be a dict of arrays, got {type(values).__name__}")
        if self._sealed and (missing := self.keys() - values.keys()):
            raise ValueError(f"{self._kind} must keep its names, but {min(missing)} is missing")
        if not self._sealed:
            super().clear()
        self.update(values)

    def __ior__(self, values: Any) -> Params:  # type: ignore[override, misc]
        self.update(values)
        return self

    def setdefault(self, name: str, default: Any = None) -> Array:
        if name not in self:
            self[name] = default
        return self[name]

    def _refuse(self) -> NoReturn:
        raise TypeError(f"{self._kind} must keep its names, {', '.join(self)}")

    def __delitem__(self, name: str) -> None:
        if self._sealed:
            self._refuse()
        super().__delitem__(name)

    def pop(self, *args: Any) -> Any:
        return self._refuse() if self._sealed else super().pop(*args)

    def popitem(self) -> tuple[str, Array]:
        return self._refuse() if self._sealed else super().popitem()

    def clear(self) -> None:
        if self._sealed:
            self._refuse()
        super().clear()

    def __copy__(self) -> dict[str, Array]:
        return dict(self)

    def __reduce__(self) -> Any:
        return _restored, (dict(self), self._kind, self._sealed, dict(self._parts), dict(self.marks))


def _restored(
    arrays: dict[str, Array], kind: str, sealed: bool, parts: dict[str, Params], marks: dict[str, frozenset[str]]
) -> Params:
    params = Params(arrays, kind=kind)
    params._sealed, params._parts, params.marks = sealed, parts, marks
    return params
