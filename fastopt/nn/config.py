"""Layers and initializers as JSON, for the file of a model."""

from __future__ import annotations

import json
from typing import Any

from fastopt import checks
from fastopt.nn.init import Initializer
from fastopt.nn.layers import Layer


def encode(value: Any, seen: list[Layer]) -> Any:
    """A value of a configuration as JSON values. A layer that occurred before, and is in `seen`, becomes its number."""
    if isinstance(value, Layer):
        known = [i for i, layer in enumerate(seen) if layer is value]
        if known:
            return {"layer": known[0]}
        seen.append(value)
        return {"class": type(value).__name__, **encode(value.config(), seen)}
    if isinstance(value, Initializer):
        return {"init": type(value).__name__, **value.config()}
    if isinstance(value, dict):
        return {key: encode(item, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item, seen) for item in value]
    return value


def decode(value: Any, seen: list[Layer | None]) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item, seen) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"layer"}:
        return seen[value["layer"]]
    if "init" in value and "class" not in value:
        name = checks.choice("class of an initializer", value.pop("init"), tuple(Initializer.classes))
        return Initializer.classes[name](**value)
    kind = value.pop("class", None)
    if kind is None:
        return {key: decode(item, seen) for key, item in value.items()}
    checks.choice("class of a layer", kind, tuple(Layer.classes))
    place = len(seen)
    seen.append(None)
    layer = seen[place] = Layer.classes[kind](**{key: decode(item, seen) for key, item in value.items()})
    return layer


def are_alike(saved: str, config: str) -> bool:
    """Whether a configuration, as JSON, says what a saved one does, which may lack options that came later."""
    if saved == config:
        return True
    try:
        return json.dumps(encode(decode(json.loads(saved), []), [])) == config
    except (TypeError, ValueError):  # layers that are not known, or options that are none
        return False
