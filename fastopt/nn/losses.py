"""Losses: functions of the model's output and the targets that return the mean loss and its gradient."""

from __future__ import annotations

from collections.abc import Callable

from fastopt.checks import Array
from fastopt.functional import softmax_cross_entropy

__all__ = ["Loss", "softmax_cross_entropy"]

#: (output, targets) -> (mean loss, gradient with respect to the output); with weights, (…, sample_weight=w)
Loss = Callable[..., tuple[float, Array]]
