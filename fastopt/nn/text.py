"""The repr of objects: the call that makes them."""

from __future__ import annotations

import inspect
from typing import Any


def call(cls: type, arguments: dict[str, Any]) -> str:
    """A call of a class: required arguments by position, others that differ from their defaults by name."""
    shown = []
    for name, parameter in inspect.signature(cls).parameters.items():
        value, default = arguments[name], parameter.default
        if default is inspect.Parameter.empty:
            shown.append(repr(value))
        elif value != default and value != (default, default):  # a number may stand for a pair
            shown.append(f"{name}={value!r}")
    return f"{cls.__name__}({', '.join(shown)})"
