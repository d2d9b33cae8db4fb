"""The public names of fastopt: the site's reference is made of them, and each has an example (tests/test_docs.py)."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

#: The public modules: the title of each in the reference, in its order.
MODULES = {
    "fastopt": "Optimizers",
    "fastopt.functional": "Kernels as functions",
    "fastopt.gradients": "Gradients",
    "fastopt.matrices": "Steps of matrices",
    "fastopt.schedules": "Schedules",
    "fastopt.nn": "The trainer",
    "fastopt.nn.monitor": "Monitoring",
    "fastopt.nn.debug": "Checks that find bugs",
    "fastopt.nn.curvature": "Curvature",
    "fastopt.data": "Data",
    "fastopt.data.augment": "Augmentation",
    "fastopt.sklearn": "Estimators for scikit-learn",
    "fastopt.onnx": "ONNX",
    "fastopt.reference": "Formulas in plain NumPy",
}


def members(module: ModuleType) -> list[str]:
    """The public names of a module: what it exports, or defines; none of `fastopt.reference`, whose source is shown."""
    if module.__name__ == "fastopt.reference":
        return []
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=lambda name: (not name[:1].isupper(), name.lower()))
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def public_names(every: bool = True) -> dict[str, Any]:
    """All public names, in full, with their objects: each under the first module that exports it.

    Where not `every` module is wanted, those whose extra is missing are passed over.
    """
    names: dict[str, Any] = {}
    for place in MODULES:
        try:
            names[place] = importlib.import_module(place)
        except ImportError as error:
            if every or (error.name or "").startswith("fastopt"):
                raise
    seen = set(map(id, names.values()))
    for place, module in list(names.items()):
        for name in members(module):
            value = getattr(module, name)
            if id(value) not in seen:
                names[f"{place}.{name}"] = value
                seen.add(id(value))
    return names
