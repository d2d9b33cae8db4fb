"""What was written to `fit`, `evaluate` and their kin, as what it means: samples, losses, weights, optimizers.

Names of other libraries, and what is said where one is written that has no meaning here, are in `fastopt.dialects`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from fastopt import checks
from fastopt.averaging import LookAhead, Ranger
from fastopt.checks import Array, Arrays
from fastopt.dialects import library_of
from fastopt.lbfgs import LBFGS
from fastopt.matrices import Adafactor, Muon
from fastopt.nn.activations import Sigmoid, Softmax
from fastopt.nn.layers import Layer
from fastopt.nn.losses import (
    Loss,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    named_loss,
    softmax_cross_entropy,
)
from fastopt.nn.params import Params
from fastopt.nn.targets import check_finite
from fastopt.optimizer import Optimizer
from fastopt.optimizers import OPTIMIZERS, Adam
from fastopt.schedules import Schedule

T = TypeVar("T")


class Model(Protocol):
    """What is asked of a model: that of `fastopt.nn.stack.Stack`."""

    params: Params
    layers: list[Layer]
    shapes: list[tuple[int, ...]]
    dtype: np.dtype[Any]

    def rows(self, name: str, x: Any) -> Array: ...


# ---- Samples and losses -----------------------------------------------------------------------------------------


def samples(
    model: Model, x: Any, y: Any, loss: Any, whose: str = "", *, finite: bool = False
) -> tuple[Array, Array, Loss]:
    """Inputs, targets and the loss, checked against the model and each other, and whether they are `finite`; `whose` is
    what their names begin with. Inputs are as they were given, if programs can gather such rows."""
    made = named_loss(loss)
    checks.plain(f"{whose}y", y)
    x, y = model.rows(f"{whose}x", x), np.asarray(y)
    if finite:
        check_finite(f"{whose}x", x, model.dtype)
        check_finite(f"{whose}y", y)
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"{whose}y must have one target per input, {len(x)}, got shape {y.shape}")
    _check_last_layer(model, made)
    shape = (len(x), *model.shapes[-1])
    y = targets(f"{whose}y", y, made, shape)
    if made is softmax_cross_entropy and y.ndim == 2:
        made = SoftmaxCrossEntropy()
    elif isinstance(loss, (str, type)) and type(made) is SoftmaxCrossEntropy and y.ndim == 1:
        made = softmax_cross_entropy  # the same, in one pass
    if made is softmax_cross_entropy:
        if len(shape) != 2:
            raise ValueError(f"outputs must have shape (n, c) for softmax cross-entropy, got (n, *{shape[1:]})")
        checks.labels(f"{whose}y", y, *shape)
    elif hasattr(made, "check"):
        made.check(y, shape)
    return x, y, made


def targets(name: str, y: Array, loss: Loss, shape: tuple[int, ...]) -> Array:
    """Targets in the form that a loss takes for outputs of a shape: labels as integers (n,), numbers as the outputs.

    Those of a function of the user's stay as they are.
    """
    takes_labels = loss is softmax_cross_entropy or getattr(loss, "takes_labels", None)
    if takes_labels is None:
        return y
    if not takes_labels:
        if y.shape == shape[:1] and len(shape) == 2 and shape[1] > 1:
            raise ValueError(
                f"{name} must have shape {shape}, got {y.shape}: for labels write np.eye({shape[1]})[y], or "
                'loss="softmax_cross_entropy"'
            )
        if y.shape == shape[:1] == shape and y.dtype.kind in "iu":
            return y.astype(np.float64)  # they look like labels
        return y.reshape(shape) if y.shape == shape[:1] and shape[1:] == (1,) else y
    if shape[1:] == (1,) and (y != y.ndim - 1).any():
        raise ValueError(
            "the model must have an output for each class, got 1: for two classes by one output, write "
            "loss=nn.SigmoidCrossEntropy(), for numbers loss=nn.SquaredError()"
        )
    if y.ndim == 2 and y.shape[1] == 1 < shape[-1]:
        y = y[:, 0]
    return labels(name, y) if y.ndim == 1 else y


def labels(name: str, y: Array) -> Array:
    """Labels (n,) as integers, where they are integers, bools, or floats that are whole."""
    if y.dtype.kind in "iu":
        return y
    if y.dtype.kind not in "fb":
        raise TypeError(
            f"{name} must be an array of integers, got {y.dtype}: to make labels of text and the like, write "
            "classes, y = np.unique(y, return_inverse=True)"
        )
    whole = np.abs(y) < 2**53 if y.dtype.kind == "f" else np.ones(len(y), bool)
    whole &= y == np.floor(y) if y.dtype.kind == "f" else True
    if not whole.all():
        i = int(np.argmin(whole))
        raise ValueError(
            f"{name} must be labels of classes, whole numbers, got {y[i]} at {name}[{i}]: for targets that are numbers "
            "write loss=nn.SquaredError()"
        )
    return y.astype(np.int64)


def _check_last_layer(model: Any, loss: Loss) -> None:
    """Refuse a layer before a loss that does the same once more."""
    last = model
    while getattr(last, "layers", None):
        last = last.layers[-1]
    for kind, of in ((Softmax, SoftmaxCrossEntropy), (Sigmoid, SigmoidCrossEntropy)):
        if isinstance(last, kind) and (isinstance(loss, of) or (loss is softmax_cross_entropy and kind is Softmax)):
            raise ValueError(
                f"the model must end before its {kind.__name__}, which the loss has in it: leave the layer out, and "
                f"apply it to predictions, as nn.{kind.__name__}().forward(model.predict(x))[0]"
            )


# ---- Weights ----------------------------------------------------------------------------------------------------


def weights(sample_weight: Any, class_weight: Any, y: Array, loss: Loss, dtype: np.dtype[Any]) -> Array | None:
    """The weight of each sample (n,), checked: its own times that of its class; None where neither is given."""
    weight = None
    if sample_weight is not None:
        weight = _numbers("sample_weight", sample_weight, len(y))
    if class_weight is not None:
        of_classes = _of_classes(class_weight, y)
        weight = of_classes if weight is None else weight * of_classes
    if weight is None:
        return None
    if not weight.any():
        raise ValueError("sample_weight and class_weight must give some sample a weight above 0")
    with np.errstate(over="ignore"):
        weight = checks.contiguous(weight, dtype)
    if not np.isfinite(weight).all():
        raise ValueError(f"sample_weight and class_weight must have products that are finite as {dtype}")
    _check_takes_weights(loss)
    return weight


def _of_classes(class_weight: Any, y: Array) -> Array:
    """The weight of each sample (n,) that follows from its class."""
    own = _classes(y)
    held = np.unique(own)
    count = int(held[-1]) + 1 if held.size else 0
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be 'balanced', a dict or a sequence, got {class_weight!r}")
        sizes = np.bincount(own, minlength=count)
        return len(own) / (len(held) * sizes[own])
    if np.ndim(class_weight) == 0 and not isinstance(class_weight, Mapping):
        raise TypeError(f"class_weight must be 'balanced', a dict or a sequence, got {class_weight!r}")
    if isinstance(class_weight, Mapping):
        missing = sorted({*held.tolist()} - {*class_weight})
        if missing:
            raise ValueError(f"class_weight must hold a weight per class, but lacks {missing[0]}")
        class_weight = [class_weight.get(label, 0.0) for label in range(count)]
    return _numbers("class_weight", class_weight, max(count, len(class_weight)))[own]


def _classes(y: Array) -> Array:
    """The class of each sample (n,), of labels (n,) or (n, 1), or one-hot ones (n, c)."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.dtype.kind in "fiub" and ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all():
        return y.argmax(axis=1)
    try:
        own = labels("y", y) if y.ndim == 1 else None
    except (TypeError, ValueError):
        own = None
    if own is None or (own < 0).any():
        raise ValueError("class_weight must come with integer labels y (n,), of 0 or more, or one-hot ones (n, c)")
    return own


def _numbers(name: str, value: Any, n: int) -> Array:
    """Weights (n,), checked; also as a column."""
    checks.plain(name, value)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be an array of numbers, got {value!r}") from None
    if array.shape == (n, 1):
        array = array[:, 0]
    if array.shape != (n,):
        raise ValueError(f"{name} must have shape {(n,)}, got {array.shape}")
    wrong = array[~((array >= 0) & (array < np.inf))]
    if wrong.size:
        raise ValueError(f"{name} must be in [0, inf), got {wrong[0]}")
    return array


def _check_takes_weights(loss: Loss) -> None:
    """Refuse a loss of the user's that knows of no weights."""
    if loss is softmax_cross_entropy:
        return
    try:
        inspect.signature(loss).bind(None, None, sample_weight=None)
    except ValueError:  # a builtin, which has no signature
        return
    except TypeError as error:
        raise TypeError(
            f"loss must take weights, as loss(output, targets, sample_weight=w), where there are any: {error}"
        ) from None


def validation(
    model: Model, given: Any, loss: Any, *, finite: bool
) -> tuple[Array, Array] | tuple[Array, Array, Array] | None:
    """Inputs, targets and, where they are given, weights to validate on, checked."""
    if given is None:
        return None
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"validation_data must be a pair (x, y), or (x, y, sample_weight), got {type(given).__name__}")
    if len(given) not in (2, 3):
        raise ValueError(f"validation_data must be a pair (x, y), or (x, y, sample_weight), got {len(given)} values")
    x, y, made = samples(model, given[0], given[1], loss, "validation ", finite=finite)
    weight = weights(given[2], None, y, made, model.dtype) if len(given) == 3 else None
    return (x, y) if weight is None else (x, y, weight)


# ---- Optimizers -------------------------------------------------------------------------------------------------


def _look_ahead(params: Arrays, lr: float | Schedule = Adam.lr.default) -> LookAhead:
    return LookAhead(Adam(params, lr))


#: What makes an optimizer of parameters, by the names that `fit` takes.
BY_NAME: dict[str, Callable[..., Any]] = {
    **OPTIMIZERS,
    "adafactor": Adafactor,
    "lbfgs": LBFGS,
    "lookahead": _look_ahead,
    "muon": Muon,
    "ranger": Ranger,
}


def bound(model: Model, optimizer: Any, lr: Any = None) -> Optimizer:
    """The optimizer, which must be bound to the model's parameters; or a new one of that name or class, with that
    learning rate, or one with which networks train."""
    if isinstance(optimizer, str):
        return _made(model, BY_NAME[checks.word("optimizer", optimizer, tuple(BY_NAME))], optimizer, lr)
    if library := library_of(optimizer):
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise TypeError(
            f"optimizer must be one of fastopt's, or its name, got {library}'s {name}: write {name.lower()!r}"
        )
    if isinstance(optimizer, type) and callable(getattr(optimizer, "step", None)):
        make = _look_ahead if optimizer is LookAhead else optimizer
        return bound(model, _made(model, make, optimizer.__name__, lr))
    if not all(hasattr(optimizer, name) for name in ("params", "step", "t")) or isinstance(optimizer, type):
        raise TypeError(f"optimizer must be the name of one, or an optimizer, got {_kind(optimizer)}")
    if lr is not None:
        raise ValueError(
            f"lr is for an optimizer that is given by its name, and sets that of no other, got {lr!r}: write "
            f"optimizer={type(optimizer).__name__}(model.params, lr=…), or set optimizer.lr before"
        )
    if _identities(checks.named("param", optimizer.params)) != _identities(model.params):
        raise ValueError("optimizer must be bound to model.params")
    frozen: frozenset[str] = model.params.frozen
    left_out: frozenset[str] = getattr(optimizer, "frozen", frozenset())
    at_first: frozenset[str] = getattr(optimizer, "_frozen_by_params", frozenset())
    if stepped := frozen - left_out:
        raise ValueError(
            f"optimizer must leave out what the model has frozen, but steps {min(stepped)}: make it after model.freeze"
        )
    if stale := (at_first - frozen) & left_out:
        raise ValueError(
            f"optimizer still leaves out {min(stale)}, which model.unfreeze() took back into training: set "
            "optimizer.groups[0].frozen = False, or make a new one"
        )
    return optimizer


def _made(model: Model, make: Callable[..., Any], name: str, lr: Any) -> Any:
    """A new optimizer of the model's parameters."""
    taken = inspect.signature(make).parameters
    if "lr" not in taken:
        if lr is not None:
            raise ValueError(f"lr must be left out with optimizer {name!r}, which has no learning rate, got {lr!r}")
        return make(model.params)
    rate = getattr(make, "default_rate", None) if lr is None else lr
    if rate is not None:
        return make(model.params, lr=rate)
    if taken["lr"].default is inspect.Parameter.empty:
        raise TypeError(f"lr must be given, as {name} has no learning rate of its own: write fit(…, lr=…)")
    return make(model.params)


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _identities(arrays: Mapping[str, Array]) -> dict[str, int]:
    return {name: id(array) for name, array in arrays.items()}


def check_steps(optimizer: Any, steps: int, n: int) -> None:
    """Refuse mini-batches for an optimizer that goes by gradients without noise."""
    if steps > 1 and getattr(optimizer, "full_batch", False):
        name = type(getattr(optimizer, "optimizer", optimizer)).__name__
        raise ValueError(
            f"{name} is for full batches: it goes by the signs of gradients, which change from batch to batch; write "
            f"batch_size={n} (and more epochs), or take RMSProp, which is its form for batches; got {steps} steps for "
            f"{n} samples"
        )


# ---- Callbacks --------------------------------------------------------------------------------------------------


def callbacks(given: Any, kind: type[T]) -> list[T]:
    """The callbacks: none, one, or several."""
    if given is None:
        return []
    if isinstance(given, kind):
        return [given]
    if isinstance(given, type) and issubclass(given, kind):
        raise TypeError(f"callbacks must be a Callback, or a sequence of them, got the class {given.__name__}: call it")
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"callbacks must be a Callback, or a sequence of them, got {type(given).__name__}")
    listed = list(given)
    for i, callback in enumerate(listed):
        if isinstance(callback, type):
            raise TypeError(f"callbacks[{i}] must be a Callback, got the class {callback.__name__}: call it")
        if not isinstance(callback, kind):
            raise TypeError(f"callbacks[{i}] must be a Callback, got {type(callback).__name__}")
    return listed
