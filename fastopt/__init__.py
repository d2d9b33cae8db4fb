"""Fused, in-place C kernels for training neural networks with NumPy on the CPU.

- `fastopt.Adam` and its kin: optimizers, one call per step for a whole model.
- `fastopt.LookAhead`, `EMA`, `SWA`: averages of weights; `Muon`, `Adafactor`: of matrices; `LBFGS`: of the whole data.
- `fastopt.NumPyOptimizer`: the base of optimizers of your own.
- `fastopt.save`, `load`, `to_torch`, `load_torch`: an optimizer's state in files, and in PyTorch's form.
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

from fastopt import averaging, functional, gradients, interchange, matrices, optimizers
from fastopt._kernels import isa, isas
from fastopt.arena import flatten
from fastopt.averaging import *  # noqa: F403
from fastopt.extending import NumPyOptimizer
from fastopt.functional import plan
from fastopt.interchange import *  # noqa: F403
from fastopt.lbfgs import LBFGS
from fastopt.matrices import Adafactor, Muon, MuonMatrices
from fastopt.optimizer import OptimizerLike, vectors
from fastopt.optimizers import *  # noqa: F403
from fastopt.penalties import elastic_net, penalty
from fastopt.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"
__all__ = [
    "LBFGS",
    "Adafactor",
    "Muon",
    "MuonMatrices",
    "NumPyOptimizer",
    "OptimizerLike",
    "elastic_net",
    "flatten",
    "functional",
]
__all__ += ["get_num_threads", "gradients", "isa", "isas", "matrices", "penalty", "plan", "set_num_threads", "vectors"]
__all__ += averaging.__all__
__all__ += interchange.__all__
__all__ += optimizers.__all__
