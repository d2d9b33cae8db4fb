"""How objects show themselves: as the call that makes them."""

from __future__ import annotations

import inspect
from typing import Any


def call(cls: type, arguments: dict[str, Any]) -> str:
    """A call of a class: what it must be given by place, what differs from its default by name."""
    shown = []
    for name, parameter in inspect.signature(cls).parameters.items():
        value, default = arguments[name], parameter.default
        if default is inspect.Parameter.empty:
            shown.append(repr(value))
        elif value != default and value != (default, default):  # a number may stand for a pair
            shown.append(f"{name}={value!r}")
    return f"{cls.__name__}({', '.join(shown)})"
