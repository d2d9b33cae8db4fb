"""Losses: functions of the model's output and the targets that return the mean loss and its gradient.

    loss, doutput = SoftmaxCrossEntropy(label_smoothing=0.1)(output, targets)
    loss, doutput = Huber()(output, targets, sample_weight=w)

With weights, the mean over samples is ``Σ w·l / Σ w`` (0 where all weights are 0): a weight of 2 is the same as the
sample twice. `fit` and `evaluate` take any of them, or a function of your own. The value "at initialisation" is that
of a model before training, whose outputs are near zero: a first loss far from it tells of a bug.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.dialects import Spelled, library_of
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
#: What stands for one: also a class of this module, or a name (see `LOSSES`).
LossLike = Loss | str | type[Any]


#: A function that calls a kernel's function, or records the call: ``call(function, *arguments, **options)``.
Caller = Callable[..., Any]
#: A function that makes an array for a call to write to: ``empty(shape, dtype)``.
Maker = Callable[..., Any]


class Lowering(Protocol):
    """The kernel calls of a loss: `_MeanLoss.lower`."""

    def __call__(
        self,
        call: Caller,
        empty: Maker,
        output: Any,
        targets: Any,
        weight: Any,
        *,
        out: Any,
        result: NDArray[np.float64],
    ) -> None: ...


class _MeanLoss(Spelled):
    """The base of these losses: the weighted mean over samples.

    Calling a loss, ``loss(output, targets, sample_weight=None)``, returns the mean loss, a float, and its gradient with
    respect to `output`, an array of its shape and type. TypeError and ValueError say what does not fit.
    """

    #: Whether its targets may be, or are, integer labels.
    takes_labels = False

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        """The targets as an array.

        Parameters
        ----------
        targets : array_like
        shape : tuple of int
            Of the outputs, (n, …).

        Raises
        ------
        TypeError, ValueError
            Where the targets do not fit such outputs.
        """
        return _numbers("targets", targets, shape)

    def __call__(self, output: Array, targets: Any, sample_weight: Array | None = None) -> tuple[float, Array]:
        checks.array("output", output)
        if output.ndim == 0:
            raise ValueError("output must have shape (n, …), got ()")
        targets = self.check(targets, output.shape)
        if self._are_labels(targets):
            targets = checks.contiguous(targets, np.int64)
        else:
            targets = _finite_as("targets", targets, output.dtype)
        weight = None
        if sample_weight is not None:
            weight = _numbers("sample_weight", sample_weight, output.shape[:1], low=0.0)
            weight = _finite_as("sample_weight", weight, output.dtype)
        gradient, result = np.empty_like(output), np.empty(2)
        self.lower(_now, np.empty, output, targets, weight, out=gradient, result=result)
        return float(result[0]), gradient

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
    ) -> None:
        """The kernel calls of this loss, which look at no value.

        Parameters
        ----------
        call : callable
            ``call(function, *arguments, **options)`` calls a function of `fastopt.functional`, or records that.
        empty : callable
            ``empty(shape, dtype)`` makes an array that only these calls use.
        output : ndarray (n, …)
        targets : ndarray
            Checked: int64 labels (n,), or numbers of output's shape and type.
        weight : ndarray (n,) or None
            Of output's type.
        out : ndarray like `output`
            Where to write the gradient; may be `output` itself.
        result : float64 ndarray (2,)
            Where to write the mean loss and the total sample weight.
        """
        losses = empty(output.shape[:1], output.dtype)
        self._each(call, output, targets, weight, out=out, losses=losses)
        call(F.mean_loss, losses, weight, result=result)

    def total_weight(self, targets: Array, sample_weight: Array | None = None) -> float:
        """The total sample weight, by which the mean divides."""
        each = self._weights(targets)
        return float(np.sum(each if sample_weight is None else each * sample_weight, dtype=np.float64))

    def _weights(self, targets: Array) -> Array:
        """The weight of each sample (n,) that follows from its target."""
        return np.ones(len(targets))

    def _are_labels(self, targets: Array) -> bool:
        """Whether targets that fit are labels (n,)."""
        return False

    def _each(self, call: Caller, output: Array, targets: Array, weight: Array | None, **written: Array) -> None:
        """Call what writes the losses of samples, and the gradient of their mean."""
        raise TypeError("a subclass defines the loss")

    def __repr__(self) -> str:
        return text.call(type(self), {name: getattr(self, name) for name in inspect.signature(type(self)).parameters})


def _now(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call at once."""
    function(*arguments, **options)


def _finite_as(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers in a real type, which must hold all that are finite."""
    with np.errstate(over="ignore"):
        converted = checks.contiguous(array, dtype)
    beyond = np.isinf(converted) & np.isfinite(array)
    if beyond.any():
        raise ValueError(f"{name} must be finite as {dtype}, got {array[beyond][0]}")
    return converted


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

    Range [0, ∞), bounded below by the entropy of the targets; at initialisation ``log c`` (without class weights).

    Parameters
    ----------
    label_smoothing : float, default 0.0
        In [0, 1]: targets become ``(1 − s)·t + s/c`` [1]_.
    class_weight : sequence of float (c,), optional
        A weight for each class, at least 0. The weight of a sample is that of its class (for soft targets
        ``Σ w_j·t_j``), and the mean is weighted by it, as in PyTorch for integer labels.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception architecture", 2016, section 7.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> output, labels = np.zeros((2, 4)), np.array([3, 0])
    >>> loss, gradient = nn.SoftmaxCrossEntropy()(output, labels)
    >>> round(loss, 4), gradient[0].tolist()
    (1.3863, [0.125, 0.125, 0.125, -0.375])
    >>> round(nn.SoftmaxCrossEntropy(label_smoothing=0.1)(output, np.eye(4)[labels])[0], 4)
    1.3863
    """

    takes_labels = True

    def __init__(self, label_smoothing: float = 0.0, class_weight: Sequence[float] | None = None) -> None:
        self.label_smoothing = checks.number("label_smoothing", label_smoothing, "[0, 1]")
        if isinstance(class_weight, (str, Mapping)):
            raise TypeError(
                f"class_weight must be a sequence of numbers, got {class_weight!r}: write fit(class_weight=…) for that"
            )
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
    ) -> None:
        losses, by_class, mass = empty(output.shape[:1], output.dtype), None, None
        if self.class_weight is not None:
            by_class = np.array(self.class_weight, output.dtype)
            mass = empty(output.shape[:1], output.dtype)
        written = {"out": out, "losses": losses, "mass": mass}
        call(F.softmax_loss, output, targets, weight, by_class, label_smoothing=self.label_smoothing, **written)
        call(F.mean_loss, losses, weight, mass, result=result)

    def _weights(self, targets: Array) -> Array:
        if self.class_weight is None:
            return super()._weights(targets)
        weight = np.array(self.class_weight)
        return weight[targets] if targets.ndim == 1 else targets @ weight

    def _are_labels(self, targets: Array) -> bool:
        return targets.ndim == 1


class SigmoidCrossEntropy(_MeanLoss):
    """Cross-entropy of a sigmoid for each output by itself: ``log(1 + eˣ) − t·x``, the mean over all outputs.

    Targets are in [0, 1], of the output's shape: binary or multi-label classification.

    Range [0, ∞); at initialisation ``log 2``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> loss, gradient = nn.SigmoidCrossEntropy()(np.zeros((2, 1)), np.array([[1], [0]]))
    >>> round(loss, 4), gradient.tolist()
    (0.6931, [[-0.25], [0.25]])
    """

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        return _numbers("targets", targets, shape, 0.0, 1.0)

    def _each(self, call: Caller, output: Array, targets: Array, weight: Array | None, **written: Array) -> None:
        call(F.element_loss, output, targets, "sigmoid_cross_entropy", weight, **written)


class Hinge(_MeanLoss):
    """Multi-class hinge (SVM) loss: ``Σ_{j ≠ label} max(0, x_j − x_label + margin)`` [1]_.

    Targets are integer labels (n,).

    Range [0, ∞); at initialisation ``margin·(c − 1)``.

    Parameters
    ----------
    margin : float, default 1.0
        In [0, inf).

    References
    ----------
    .. [1] J. Weston and C. Watkins, "Support vector machines for multi-class pattern recognition", 1999.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Hinge()(np.array([[0.5, 0.0, -2.0]]), np.array([1]))
    (1.5, array([[ 1., -1.,  0.]]))
    """

    takes_labels = True

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = checks.number("margin", margin, "[0, inf)")

    def check(self, targets: Any, shape: tuple[int, ...]) -> Array:
        if len(shape) != 2:
            raise ValueError(f"output must have shape (n, c), got {shape}")
        return checks.labels("targets", np.asarray(targets), *shape)

    def _are_labels(self, targets: Array) -> bool:
        return True

    def _each(self, call: Caller, output: Array, targets: Array, weight: Array | None, **written: Array) -> None:
        call(F.hinge_loss, output, targets, weight, margin=self.margin, **written)


class SquaredError(_MeanLoss):
    """``(x − t)²``, the mean over all outputs. Targets are numbers of the output's shape.

    Range [0, ∞); at initialisation the mean of the squared targets: their variance, if they are centred.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.SquaredError()(np.array([[1.0], [2.0]]), np.array([[0.0], [0.0]]))
    (2.5, array([[1.],
           [2.]]))
    >>> nn.SquaredError()(np.array([[1.0], [2.0]]), np.array([[0.0], [0.0]]), sample_weight=np.array([1.0, 3.0]))[0]
    3.25
    """

    def _each(self, call: Caller, output: Array, targets: Array, weight: Array | None, **written: Array) -> None:
        call(F.element_loss, output, targets, "squared_error", weight, **written)


class L1(_MeanLoss):
    """``|x − t|``, the mean over all outputs; its gradient where x = t is 0. Targets are numbers of the output's shape.

    Range [0, ∞); at initialisation the mean of the absolute values of the targets.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.L1()(np.array([[1.0, -3.0]]), np.array([[0.0, 0.0]]))
    (2.0, array([[ 0.5, -0.5]]))
    """

    def _each(self, call: Caller, output: Array, targets: Array, weight: Array | None, **written: Array) -> None:
        call(F.element_loss, output, targets, "l1", weight, **written)


class Huber(_MeanLoss):
    """``e²/2`` for errors with ``|e|`` up to `delta`, else ``delta·(|e| − delta/2)`` [1]_, the mean over all outputs.

    Targets are numbers of the output's shape.

    Range [0, ∞); at initialisation at most half of `SquaredError`.

    Parameters
    ----------
    delta : float, default 1.0
        In (0, inf).

    References
    ----------
    .. [1] P. J. Huber, "Robust estimation of a location parameter", 1964.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Huber()(np.array([[0.5, -3.0]]), np.array([[0.0, 0.0]]))
    (1.3125, array([[ 0.25, -0.5 ]]))
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = checks.number("delta", delta, "(0, inf)")

    def _each(self, call: Caller, output: Array, targets: Array, weight: Array | None, **written: Array) -> None:
        call(F.element_loss, output, targets, "huber", weight, delta=self.delta, **written)


#: What the function of that name is as an object.
_SOFTMAX_CROSS_ENTROPY = SoftmaxCrossEntropy()


def lowering_of(loss: Loss) -> Lowering | None:
    """What lists the kernel calls of a loss: `_MeanLoss.lower`.

    Parameters
    ----------
    loss : callable

    Returns
    -------
    callable or None
        None for a loss that is not one of fastopt's, or a subclass of one that is called in a way of its own.
    """
    if loss is softmax_cross_entropy:
        return _SOFTMAX_CROSS_ENTROPY.lower
    if isinstance(loss, _MeanLoss) and type(loss).__call__ is _MeanLoss.__call__:
        return loss.lower
    return None


def loss_of(loss: Loss, output: Array, y: Array, sample_weight: Array | None = None) -> tuple[float, Array]:
    """A loss and its gradient."""
    if loss is softmax_cross_entropy and sample_weight is not None:
        loss = SoftmaxCrossEntropy()
    given = loss(output, y) if sample_weight is None else loss(output, y, sample_weight=sample_weight)
    return given if loss is softmax_cross_entropy or isinstance(loss, _MeanLoss) else _as_told(given, output)


def _as_told(given: Any, output: Array) -> tuple[float, Array]:
    """What a function of the user's has returned: a number, and an array of the output's type."""
    told = "loss must return (mean loss, gradient with respect to the output)"
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        got = f"{len(given)} values" if isinstance(given, (tuple, list)) else type(given).__name__
        raise TypeError(f"{told}, got {got}")
    value, gradient = np.asarray(given[0]), np.asarray(given[1])
    if value.ndim:
        raise ValueError(f"{told}, got losses of shape {value.shape}: write losses.mean()")
    if gradient.dtype.kind not in "fiu" or value.dtype.kind not in "fiub":
        raise TypeError(f"{told}, both real numbers, got {value.dtype} and {gradient.dtype}")
    if gradient.shape != output.shape:
        raise ValueError(
            f"loss must return a gradient of the shape of the output, {output.shape}, got {gradient.shape}; is one of "
            "the output and the targets of shape (n,), and the other (n, 1)?"
            if gradient.ndim == 2 and gradient.shape == (len(output), len(output))
            else f"loss must return a gradient of the shape of the output, {output.shape}, got {gradient.shape}"
        )
    return float(value), np.ascontiguousarray(gradient, output.dtype)


#: Losses by the names that `fit` and `evaluate` take, beside those of other libraries: see `fastopt.dialects`.
LOSSES: dict[str, type[_MeanLoss]] = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "hinge": Hinge,
    "squared_error": SquaredError,
    "l1": L1,
    "huber": Huber,
}


def named_loss(loss: Any) -> Loss:
    """A loss that is given as a function, an object, a class or a name."""
    if isinstance(loss, str):
        return LOSSES[checks.word("loss", loss, tuple(LOSSES))]()
    if isinstance(loss, type) and issubclass(loss, _MeanLoss):
        return loss()
    if library := library_of(loss):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(f"loss must be one of fastopt's, or its name, got {library}'s {name}: write {name!r}")
    if not callable(loss):
        raise TypeError(f"loss must be a name, or a function such as fastopt.nn.SquaredError(), got {loss!r}")
    if isinstance(loss, type):
        raise TypeError(f"loss must be a function, got the class {loss.__name__}: call it")
    return loss
