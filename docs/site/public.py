"""The public names of fastopt: the site's reference is made of them, and each has an example (tests/test_docs.py)."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

#: The public modules, in the order of the reference, and what each is.
MODULES = {
    "fastopt": "optimizers and their state",
    "fastopt.functional": "kernels as functions",
    "fastopt.gradients": "before a step",
    "fastopt.matrices": "steps of matrices",
    "fastopt.schedules": "learning rates",
    "fastopt.nn": "the trainer",
    "fastopt.nn.monitor": "looking inside a run",
    "fastopt.nn.debug": "checks that find bugs",
    "fastopt.nn.curvature": "the Hessian",
    "fastopt.nn.metrics": "what a run is judged by",
    "fastopt.data": "data sets, files, batches",
    "fastopt.data.augment": "augmentation of images",
    "fastopt.landscape": "optimizers on surfaces",
    "fastopt.plots": "pictures of scores and searches",
    "fastopt.sklearn": "estimators for scikit-learn",
    "fastopt.mpi": "several processes",
    "fastopt.onnx": "models for others",
    "fastopt.optuna": "trials that are pruned",
    "fastopt.hyper": "hyperparameters of your own optimizer",
    "fastopt.gallery": "pictures of a course",
    "fastopt.reference": "all formulas in plain NumPy",
}

#: Methods without an underscore that are called within fastopt alone: the reference leaves them out.
INTERNAL = {
    f"{owner}.{name}"
    for owner, names in {
        "AveragePool2D": "factor",
        "BatchNormCache": "computed",
        "Conv1D": "plane",
        "Conv2D": "is_direct is_depthwise by_winograd has_direct_input_grad",
        "Conv2DTranspose": "how",
        "Dropout": "drop",
        "Group": "together close fail",
        "GroupNormCache": "computed parts_shape",
        "Layer": "adopt",
        "Optimizer": "encode upcoming",
        "Program": "seconds holds doutput feed aim once rest batches finite run_phase keep restore is_step "
        "stops_on_input",
        "RMSNormCache": "computed",
        "Run": "parts go slices",
        "Shuffled": "sizes",
        "Standardize": "options_of_images",
        "WeightNormCache": "computed",
        "Whiten": "rows",
    }.items()
    for name in names.split()
}


#: The pages of those that fill several: their titles, and the files that define what is on them.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "fastopt": {
        "Optimizers": ("optimizer", "optimizers", "matrices", "lbfgs", "extending", "steps"),
        "Averages of weights": ("averaging",),
        "Parameters and penalties": ("arena", "penalties"),
        "Files, and PyTorch's form": ("interchange",),
        "Threads and instruction sets": ("threads", "_kernels"),
        "Warnings": ("messages",),
    },
    "fastopt.functional": {
        "Steps": ("steps",),
        "Products of dense layers": ("dense", "arithmetic"),
        "Activations": ("activations",),
        "Dropout": ("dropouts",),
        "Normalisation": ("norms",),
        "Losses": ("losses",),
        "Images": ("images", "layouts"),
        "Embeddings": ("embeddings",),
    },
    "fastopt.nn": {
        "Models and training": ("model", "training", "many", "snapshots", "trace", "program", "trainer", "orders"),
        "Layers": ("layers", "convolutions", "pooling", "shapes", "embedding", "residual"),
        "Activations": ("activations",),
        "Normalisation and dropout": ("norms", "dropouts"),
        "Preprocessing": ("preprocessing",),
        "Losses": ("losses",),
        "Initialisation": ("init", "lsuv"),
        "Callbacks and learning rates": ("callbacks", "snapshots", "lr_range"),
        "Transfer, and weights of PyTorch and Keras": ("transfer", "exchange", "keras"),
    },
}


def grouped(module: str, names: dict[str, Any]) -> dict[str, list[str]]:
    """The public names of a module by the titles of their pages: one page where `GROUPS` has none."""
    if module not in GROUPS:
        return {module: list(names)} if names else {}
    found: dict[str, list[str]] = {title: [] for title in (*GROUPS[module], "Further names")}
    for name, value in names.items():
        place = str(getattr(value, "__module__", ""))
        if place.startswith("fastopt."):
            held = [place.rpartition(".")[2]]
        else:  # a tuple, or the name of a type: it is in the file that has it
            short = name.rpartition(".")[2]
            held = [file for files in GROUPS[module].values() for file in files
                    if hasattr(sys.modules.get(f"{module}.{file}"), short)]  # fmt: skip
        titles = [title for title, files in GROUPS[module].items() if {*held} & {*files}]
        found[titles[0] if titles else "Further names"].append(name)
    return {title: each for title, each in found.items() if each}


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


def bases(value: type) -> list[type]:
    """The bases of a class that the reference shows: public ones, and those of others that say what it is.

    In the place of one that is not public stands the first one behind it.
    """
    known = set(map(id, public_names(every=False).values()))

    def is_shown(base: type) -> bool:
        own = base.__module__.startswith("fastopt.") or base.__module__ in ("typing", "abc")
        return id(base) in known or not (own or base in (object, tuple))

    direct = [base for base in value.__bases__ if is_shown(base)]
    return direct or [base for base in value.__mro__[1:] if is_shown(base)][:1]


def is_method(value: Any) -> bool:
    """Whether a member of a class is a method or a property."""
    return inspect.isroutine(value) or isinstance(value, property | functools.cached_property)


def qualified(value: Any) -> str:
    """``Class.name`` of a method or a property."""
    for wrapper in ("fget", "func", "__func__"):
        value = getattr(value, wrapper, value)
    return getattr(value, "__qualname__", "")


def methods(value: type) -> dict[str, Any]:
    """The methods and properties of a class that the reference shows: its own, of which it says something."""
    return {
        name: each
        for name, each in vars(value).items()
        if not name.startswith("_") and is_method(each) and each.__doc__ and qualified(each) not in INTERNAL
        and not (name.startswith("set_") and name.endswith("_request"))  # which scikit-learn gives its estimators
    }  # fmt: skip


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
    modules = list(names.items())
    for place, module in modules:
        for name in members(module):
            value = getattr(module, name)
            if id(value) not in seen:
                names[f"{place}.{name}"] = value
                seen.add(id(value))
                if inspect.ismodule(value):  # one that is not among those above
                    modules.append((f"{place}.{name}", value))
    return names


def about(module: str) -> str:
    """What a public module is, in the title of its page."""
    return f"{module}: {MODULES[module]}" if module in MODULES else module
