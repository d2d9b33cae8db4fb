"""Micro-benchmarks of every kernel: contests between fastopt and NumPy, run side by side.

A contest is one piece of work on one size, and its contenders are functions that do it. `race` calls them in turn,
round after round, so that whatever disturbs the machine disturbs all; a ratio of two medians of one race is the
only figure to trust. The benchmarks of the repository add further contenders (`benchmarks/peers.py`).
"""

from fastopt.bench.catalogue import catalogue, extent, run
from fastopt.bench.contests import (
    APART,
    COPY,
    DIRECT,
    FLAT,
    NORMAL,
    OF_OTHER_NUMBERS,
    ONE_THREAD,
    STREAM,
    UNCLIPPED,
    YARDSTICKS,
    Contest,
    together,
)  # fmt: skip
from fastopt.bench.layers import LAYERS, layer_contest
from fastopt.bench.racing import measure, race
from fastopt.bench.steps import CLASSICS, MODELS, UNFUSED, WITH_NORMS, mlp, model_contest, resnet20, step_contest, steps
from fastopt.bench.tables import NOTE, duration, families, table

__all__ = [
    "APART",
    "CLASSICS",
    "COPY",
    "DIRECT",
    "FLAT",
    "LAYERS",
    "MODELS",
    "NORMAL",
    "NOTE",
    "OF_OTHER_NUMBERS",
    "ONE_THREAD",
    "STREAM",
    "UNCLIPPED",
    "UNFUSED",
    "WITH_NORMS",
    "YARDSTICKS",
    "Contest",
    "catalogue",
    "duration",
    "extent",
    "families",
    "layer_contest",
    "measure",
    "mlp",
    "model_contest",
    "race",
    "resnet20",
    "run",
    "step_contest",
    "steps",
    "table",
    "together",
]
