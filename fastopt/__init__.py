"""Fused, in-place C kernels for training neural networks with NumPy on the CPU.

- `fastopt.Adam` and its kin: optimizers, one call per step for a whole model.
- `fastopt.functional`: the same steps, and dropout, batch norm, … as plain functions on your arrays.
- `fastopt.nn`: a NumPy trainer for MLPs and CNNs (import it by name).
- `fastopt.data`: datasets (import it by name).
- `fastopt.reference`: every formula in plain NumPy (import it by name).
"""

from fastopt import functional, optimizers
from fastopt._kernels import isa, isas
from fastopt.optimizers import *  # noqa: F403

__version__ = "0.1.0"
__all__ = ["functional", "isa", "isas"]
__all__ += optimizers.__all__
