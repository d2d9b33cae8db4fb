"""scikit-learn's losses as lists of kernel calls, and the squares of the weights that alpha penalises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.kernel import kernel
from fastopt.nn.losses import Caller, Maker, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError, _MeanLoss

_square_sums = kernel("square_sums")

#: By what scikit-learn calls the activation of outputs: which of our losses it goes with.
_MEANS: dict[str, type[_MeanLoss]] = {
    "softmax": SoftmaxCrossEntropy,
    "logistic": SigmoidCrossEntropy,
    "identity": SquaredError,
}


class Penalised(_MeanLoss):
    """A loss of scikit-learn's MLP, without its penalty, and the squares of weights that the penalty is made of.

    Our losses are means over outputs; scikit-learn's gradients are those of sums over them (of half the squared
    errors), and so is its loss, but for squared errors.

    Parameters
    ----------
    output : {"softmax", "logistic", "identity"}
        The activation of outputs.
    weights : sequence of ndarray
        Those whose squares are wanted: the sum of those of each is told of each batch.

    Attributes
    ----------
    plain : Loss
        The one of ours with such outputs.
    """

    def __init__(self, output: str, weights: Sequence[Array]) -> None:
        self.output = output
        self._weights_of_layers = tuple(weights)
        self.extras = len(weights)
        self._inner = self.plain = _MEANS[output]()
        self.takes_labels = output == "softmax"

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        return self._inner.check(targets, shape)

    def _are_labels(self, targets: Array) -> bool:
        return self._inner._are_labels(targets)

    def lower(
        self,
        call: Caller,
        empty: Maker,
        output: Array,
        targets: Array,
        weight: Array | None,
        *,
        out: Array,
        result: NDArray[np.float64],
        extras: Sequence[NDArray[np.float64]] = (),
    ) -> None:
        n, outputs = output.shape
        losses = empty((n,), output.dtype)
        if self.output == "softmax":
            call(F.softmax_loss, output, targets, weight, out=out, losses=losses)
            self._clip(call, empty, losses)
        else:
            kind = "squared_error" if self.output == "identity" else "sigmoid_cross_entropy"
            if self.output == "logistic" and outputs > 1:  # each by itself, and then their means, by rows
                each, unused = empty((n * outputs,), output.dtype), empty((n * outputs, 1), output.dtype)
                columns = output.reshape(n * outputs, 1), targets.reshape(n * outputs, 1)
                call(F.element_loss, *columns, kind, out=unused, losses=each)
                self._clip(call, empty, each)
            call(F.element_loss, output, targets, kind, weight, out=out, losses=losses)
            if self.output == "logistic" and outputs > 1:
                zeros = np.zeros((n, outputs), output.dtype)
                unused = empty((n, outputs), output.dtype)
                call(F.element_loss, each.reshape(n, outputs), zeros, "l1", out=unused, losses=losses)
            elif self.output == "logistic":
                self._clip(call, empty, losses)
        call(F.mean_loss, losses, weight, result=result)
        factor = {"softmax": 1.0, "logistic": float(outputs), "identity": outputs / 2}[self.output]
        if factor != 1:
            call(F.scale, out, factor, out=out)
        for of_layer, sums in zip(self._weights_of_layers, extras, strict=True):
            call(_square_sums, of_layer.reshape(1, -1), sums, None)

    @staticmethod
    def _clip(call: Caller, empty: Maker, losses: Array) -> None:
        """Let losses l be at most c = −log eps, as scikit-learn's probabilities are at least eps: l − max(0, l − c)."""
        most = np.full(losses.shape, math.log(np.finfo(losses.dtype).eps), losses.dtype)
        above = empty(losses.shape, losses.dtype)
        call(F.add, losses, most, relu=True, out=above)
        call(F.scale, above, -1.0, out=above)
        call(F.add, losses, above, out=losses)

    def factor(self, outputs: int) -> float:
        """scikit-learn's loss by ours."""
        return {"softmax": 1.0, "logistic": float(outputs), "identity": 0.5}[self.output]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.output!r}, {id(self)})"


class Poisson:
    """scikit-learn's half Poisson deviance of exponentials, ``t·log(t/eˣ) − t + eˣ``, the sum over outputs; else as
    `Penalised`.
    """

    takes_labels = False

    def __init__(self, weights: Sequence[Array]) -> None:
        self._weights = tuple(weights)
        self.extras, self.extra_values = 1, (0.0,)

    def __call__(self, output: Array, targets: Array, sample_weight: Array | None = None) -> tuple[float, Array]:
        self.extra_values = (sum(float(np.vdot(weight, weight)) for weight in self._weights),)
        predicted = np.exp(output)
        total = len(output) if sample_weight is None else sample_weight.sum()
        each = xlogy(targets, targets / predicted) - targets + predicted
        gradient = predicted - targets
        if sample_weight is not None:
            gradient *= sample_weight[:, None]
        return float(np.average(each, weights=sample_weight, axis=0).sum()), gradient / total

    def factor(self, outputs: int) -> float:
        """scikit-learn's loss by ours."""
        return 1.0
