"""Fused, in-place C kernels for training neural networks with NumPy on the CPU.

- `fastopt.Adam` and its kin: optimizers, one call per step for a whole model.
- `fastopt.LookAhead`, `EMA`, `SWA`: averages of weights; `Muon`, `Adafactor`: of matrices; `LBFGS`: of the whole data.
- `fastopt.NumPyOptimizer`: the base of optimizers of your own.
- `fastopt.save`, `load`, `to_torch`, `load_torch`: an optimizer's state in files, and in PyTorch's form;
  `describe_file`: what a file holds, and what it was computed with.
- `fastopt.gradients`: norms, clipping, accumulation, noise.
- `fastopt.functional`: the same steps, and dropout, batch norm, … as plain functions on your arrays.
- `fastopt.schedules`: learning rates as functions of the step (import it by name).
- `fastopt.nn`: a NumPy trainer for MLPs and CNNs (import it by name).
- `fastopt.data`: datasets, readers, loaders, augmentation (import it by name).
- `fastopt.plots`: pictures of scores, curves and searches (import it by name).
- `fastopt.reference`: every formula in plain NumPy (import it by name).

>>> import numpy as np, fastopt
>>> params = {"weight": np.array([[1.0, -2.0]]), "bias": np.array([0.5])}
>>> optimizer = fastopt.Adam(params, lr=0.1)
>>> for _ in range(100):
...     optimizer.step({name: 2 * param for name, param in params.items()})  # the gradients of |p|², in place
>>> bool(abs(params["weight"]).max() < 0.1)
True
"""

from typing import TYPE_CHECKING

from fastopt import gradients, optimizers
from fastopt._kernels import isa, isas
from fastopt.arena import flatten
from fastopt.optimizer import OptimizerLike, vectors
from fastopt.optimizers import *  # noqa: F403
from fastopt.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from fastopt import averaging as averaging
    from fastopt import functional, matrices
    from fastopt import interchange as interchange
    from fastopt.averaging import EMA, SWA, LookAhead, Ranger
    from fastopt.extending import NumPyOptimizer
    from fastopt.functional import plan
    from fastopt.interchange import describe_file, load, load_torch, save, to_torch
    from fastopt.lbfgs import LBFGS
    from fastopt.matrices import Adafactor, Muon, MuonMatrices
    from fastopt.messages import FastoptWarning, LayoutWarning, TrainingWarning
    from fastopt.penalties import elastic_net, penalty
else:
    from importlib import import_module as _import_module

    #: What is imported when it is first used: modules, and which of their names are here as well.
    _LATER = {
        "averaging": ("EMA", "SWA", "LookAhead", "Ranger"),
        "extending": ("NumPyOptimizer",),
        "functional": ("plan",),
        "interchange": ("describe_file", "load", "load_torch", "save", "to_torch"),
        "lbfgs": ("LBFGS",),
        "matrices": ("Adafactor", "Muon", "MuonMatrices"),
        "messages": ("FastoptWarning", "LayoutWarning", "TrainingWarning"),
        "penalties": ("elastic_net", "penalty"),
    }

    def __getattr__(name):
        if name in _LATER:
            return _import_module(f"{__name__}.{name}")
        for module, names in _LATER.items():
            if name in names:
                value = globals()[name] = getattr(_import_module(f"{__name__}.{module}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=__getattr__)

    def __dir__():
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"
__all__ = [
    "EMA",
    "LBFGS",
    "SWA",
    "Adafactor",
    "FastoptWarning",
    "LayoutWarning",
    "LookAhead",
    "Muon",
    "MuonMatrices",
    "NumPyOptimizer",
    "OptimizerLike",
    "Ranger",
    "TrainingWarning",
    "describe_file",
    "elastic_net",
    "flatten",
    "functional",
    "get_num_threads",
    "gradients",
    "isa",
    "isas",
    "load",
    "load_torch",
    "matrices",
    "penalty",
    "plan",
    "save",
    "set_num_threads",
    "to_torch",
    "vectors",
]
__all__ += optimizers.__all__
