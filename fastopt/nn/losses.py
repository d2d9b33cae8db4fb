"""Losses: functions of the model's output and the targets that return the mean loss and its gradient.

    loss, doutput = SoftmaxCrossEntropy(label_smoothing=0.1)(output, targets)
    loss, doutput = Huber()(output, targets, sample_weight=w)

With weights, the mean over samples is ``Σ w·l / Σ w`` (0 where all weights are): a weight of 2 is the same as the
sample twice. `fit` and `evaluate` take any of them, or a function of your own. The value "at random" is that to be
expected of a model before training, whose outputs are near zero: another one is a bug to be found.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.functional import softmax_cross_entropy
from fastopt.nn import text

__all__ = [
    "L1",
    "Hinge",
    "Huber",
    "Loss",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "softmax_cross_entropy",
]

#: (output, targets) -> (mean loss, gradient with respect to the output); with weights, (…, sample_weight=w)
Loss = Callable[..., tuple[float, Array]]


class _MeanLoss:
    """What these losses share: the mean over samples."""

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        """The targets as an array that fits outputs of a shape (n, …), or an error."""
        return _numbers("targets", targets, shape)

    def __call__(self, output: Array, targets: Any, sample_weight: Array | None = None) -> tuple[float, Array]:
        checks.array("output", output)
        if output.ndim == 0:
            raise ValueError("output must have shape (n, …), got ()")
        targets = self.check(targets, output.shape)
        losses, gradient = self._each(output, targets)
        weight = np.ones(1)
        if sample_weight is not None:
            weight = _numbers("sample_weight", sample_weight, output.shape[:1], low=0.0)
            losses = losses * weight
        total = self.mass(targets, sample_weight)
        factor = np.asarray(weight / total if total else 0 * weight, output.dtype)
        gradient *= factor.reshape(-1, *(1,) * (output.ndim - 1))
        return float(np.sum(losses, dtype=np.float64)) / (total or 1.0), gradient

    def mass(self, targets: Array, sample_weight: Array | None = None) -> float:
        """What the mean divides by: the sum of what samples count."""
        each = self._masses(targets)
        return float(np.sum(each if sample_weight is None else each * sample_weight, dtype=np.float64))

    def _masses(self, targets: Array) -> Array:
        """How much each sample counts but for its weight (n,)."""
        return np.ones(len(targets))

    def _each(self, output: Array, targets: Array) -> tuple[Array, Array]:
        """Of each sample: its loss (n,), and the gradient of that (n, …)."""
        raise TypeError("a subclass says what a loss is")

    def __repr__(self) -> str:
        return text.call(type(self), {name: getattr(self, name) for name in inspect.signature(type(self)).parameters})


def _numbers(name: str, value: Any, shape: tuple[int, ...], low: float = -np.inf, high: float = np.inf) -> Array:
    """Real numbers of a shape in [low, high]."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be an array of numbers, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if array.size and not (low <= array.min() and array.max() <= high):
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {array.min():g} to {array.max():g}")
    return array


class SoftmaxCrossEntropy(_MeanLoss):
    """Cross-entropy of a softmax: ``−Σ_j w_j·t_j·log softmax(x)_j``, in nats.

    Targets are integer labels (n,), or distributions (n, c): one-hot or soft. With integer labels and no options, this
    is `fastopt.functional.softmax_cross_entropy`, in one pass.

    Range [0, ∞); at random ``log c`` (without class weights), from below bounded by the targets' entropy.

    Parameters
    ----------
    label_smoothing : float, default 0.0
        In [0, 1]: targets become ``(1 − s)·t + s/c`` [1]_.
    class_weight : sequence of float (c,), optional
        A factor of each class, at least 0. A sample counts by the weight of its class (that of soft targets is
        ``Σ w_j·t_j``): the mean is over these weights, as PyTorch has it for integer labels.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception architecture", 2016, section 7.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weight: Sequence[float] | None = None) -> None:
        self.label_smoothing = checks.number("label_smoothing", label_smoothing, "[0, 1]")
        if class_weight is not None:
            class_weight = [checks.number("class_weight", weight, "[0, inf)") for weight in class_weight]
        self.class_weight = class_weight

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        if len(shape) != 2:
            raise ValueError(f"output must have shape (n, c), got {shape}")
        if self.class_weight is not None and len(self.class_weight) != shape[1]:
            raise ValueError(f"class_weight must hold {shape[1]} weights, got {len(self.class_weight)}")
        targets = np.asarray(targets)
        if targets.ndim == 1:
            return checks.labels("targets", targets, *shape)
        targets = _numbers("targets", targets, shape, 0.0, 1.0)
        sums = targets.sum(axis=1, dtype=np.float64)
        if not (np.abs(sums - 1) <= 1e-3).all():
            raise ValueError(f"targets must sum up to 1 in each row, got {sums[np.argmax(np.abs(sums - 1))]:g}")
        return targets

    def __call__(self, output: Array, targets: Any, sample_weight: Array | None = None) -> tuple[float, Array]:
        if sample_weight is None and not self.label_smoothing and self.class_weight is None and np.ndim(targets) == 1:
            return softmax_cross_entropy(output, np.asarray(targets))
        return super().__call__(output, targets, sample_weight)

    def _masses(self, targets: Array) -> Array:
        if self.class_weight is None:
            return super()._masses(targets)
        weight = np.array(self.class_weight)
        return weight[targets] if targets.ndim == 1 else targets @ weight

    def _each(self, output: Array, targets: Array) -> tuple[Array, Array]:
        n, classes = output.shape
        weight = np.ones(classes) if self.class_weight is None else np.array(self.class_weight)
        if targets.ndim == 1:
            targets = (targets[:, None] == np.arange(classes)).astype(np.float64)
        smooth = self.label_smoothing
        weighted = ((1 - smooth) * targets + smooth / classes) * weight
        log_sum = np.empty(n)
        gradient = F.softmax_forward(output, log_sum=log_sum)
        losses = (weighted * (log_sum[:, None] - output)).sum(axis=1)
        gradient *= weighted.sum(axis=1, keepdims=True).astype(output.dtype)
        gradient -= weighted.astype(output.dtype)
        return losses, gradient


class SigmoidCrossEntropy(_MeanLoss):
    """Cross-entropy of a sigmoid for each output by itself: ``log(1 + eˣ) − t·x``, the mean over all outputs.

    Targets are in [0, 1], of the output's shape: independent yes-or-no questions, or one of them.

    Range [0, ∞); at random ``log 2``.
    """

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        return _numbers("targets", targets, shape, 0.0, 1.0)

    def _each(self, output: Array, targets: Array) -> tuple[Array, Array]:
        targets = targets.astype(output.dtype)
        gradient = F.activation_forward(output, "sigmoid")
        gradient -= targets
        # log(1 + exp(x)) - t x without a difference of large numbers
        losses = F.activation_forward(-np.abs(output), "softplus") + np.maximum(output, 0) - targets * output
        return _mean_of_elements(losses, gradient)


class Hinge(_MeanLoss):
    """Multi-class SVM loss: ``Σ_{j ≠ label} max(0, x_j − x_label + margin)`` [1]_.

    Targets are integer labels (n,).

    Range [0, ∞); at random ``margin·(c − 1)``.

    Parameters
    ----------
    margin : float, default 1.0
        In [0, inf).

    References
    ----------
    .. [1] J. Weston and C. Watkins, "Support vector machines for multi-class pattern recognition", 1999.
    """

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = checks.number("margin", margin, "[0, inf)")

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        if len(shape) != 2:
            raise ValueError(f"output must have shape (n, c), got {shape}")
        return checks.labels("targets", np.asarray(targets), *shape)

    def _each(self, output: Array, targets: Array) -> tuple[Array, Array]:
        rows = np.arange(len(output))
        excess = output - output[rows, targets][:, None] + output.dtype.type(self.margin)
        excess[rows, targets] = 0
        np.maximum(excess, 0, out=excess)
        gradient = (excess > 0).astype(output.dtype)
        gradient[rows, targets] = -gradient.sum(axis=1)
        return excess.sum(axis=1), gradient


class SquaredError(_MeanLoss):
    """``(x − t)²``, the mean over all outputs. Targets are numbers of the output's shape.

    Range [0, ∞); at random the mean of the squares of the targets: their variance, if they are centred.
    """

    def _each(self, output: Array, targets: Array) -> tuple[Array, Array]:
        error = output - targets.astype(output.dtype)
        return _mean_of_elements(error**2, 2 * error)


class L1(_MeanLoss):
    """``|x − t|``, the mean over all outputs; its gradient where x = t is 0. Targets are numbers of the output's shape.

    Range [0, ∞); at random the mean of the sizes of the targets.
    """

    def _each(self, output: Array, targets: Array) -> tuple[Array, Array]:
        error = output - targets.astype(output.dtype)
        return _mean_of_elements(np.abs(error), np.sign(error))


class Huber(_MeanLoss):
    """``e²/2`` for errors of size up to `delta`, beyond it ``delta·(|e| − delta/2)`` [1]_, the mean over all outputs.

    Targets are numbers of the output's shape.

    Range [0, ∞); at random at most half of `SquaredError`.

    Parameters
    ----------
    delta : float, default 1.0
        In (0, inf).

    References
    ----------
    .. [1] P. J. Huber, "Robust estimation of a location parameter", 1964.
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = checks.number("delta", delta, "(0, inf)")

    def _each(self, output: Array, targets: Array) -> tuple[Array, Array]:
        error = output - targets.astype(output.dtype)
        slope = np.clip(error, -self.delta, self.delta)
        return _mean_of_elements(slope * (error - slope / 2), slope)


def _mean_of_elements(losses: Array, gradient: Array) -> tuple[Array, Array]:
    """Each sample's mean over its outputs."""
    n, per_sample = len(losses), losses[:1].size or 1
    gradient /= per_sample
    return losses.reshape(n, -1).mean(axis=1, dtype=np.float64) if losses.size else np.zeros(n), gradient
