"""Metrics of what a model makes of its inputs: functions ``f(targets, scores)``.

Those here need NumPy alone. `Sequential.fit`, its `evaluate` and that of `Ensemble` also take the names of
scikit-learn's scorers, such as ``"f1_macro"`` or ``"roc_auc"`` (extra ``sklearn``).

>>> from fastopt import data, nn
>>> x, y = data.digits()
>>> model = nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:])
>>> history = model.fit(x, y, epochs=3, metrics=["top_2", "top_3"])
>>> history["accuracy"][-1] < history["top_2"][-1] < history["top_3"][-1]
True
"""

from __future__ import annotations

import difflib
import functools
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn.activations import Sigmoid, Softmax
from fastopt.nn.losses import Hinge, SigmoidCrossEntropy, SoftmaxCrossEntropy, softmax_cross_entropy
from fastopt.nn.targets import are_labels, count_right

__all__ = ["accuracy", "confusion_matrix", "top_k"]

#: (targets, scores) -> a number
Metric = Callable[[Array, Array], float]
#: What stands for some: names, functions, several of them, or functions and names of scorers by name.
MetricsLike = str | Metric | Sequence[str | Metric] | Mapping[str, str | Metric]


#: For which there is memory for a matrix.
MOST_CLASSES = 2**14

# ---- Of NumPy alone -------------------------------------------------------------------------------------------------


def accuracy(y: Array, scores: Array) -> float:
    """The share of samples whose largest score is that of their class.

    Parameters
    ----------
    y : ndarray (n,)
        Integer labels.
    scores : ndarray (n, classes)

    Returns
    -------
    float
        Of equal scores, the first counts; NaN is no score. 0 for no samples.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.metrics.accuracy(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]))
    0.5
    """
    y, scores = _of_classes(y, scores)
    return count_right(scores, y) / len(y) if len(y) else 0.0


def top_k(y: Array, scores: Array, k: int = 5) -> float:
    """The share of samples whose class is one of the k with the largest scores.

    ``functools.partial(nn.metrics.top_k, k=3)`` is one for `fit`, and so is the name ``"top_3"``.

    Parameters
    ----------
    y : ndarray (n,)
        Integer labels.
    scores : ndarray (n, classes)
    k : int, default 5
        From 1 to the number of classes.

    Returns
    -------
    float
        Of equal scores, those of the first classes count; NaN is no score. 0 for no samples.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    >>> nn.metrics.top_k(np.array([1, 2]), scores, k=2)
    0.5
    """
    y, scores = _of_classes(y, scores)
    k = checks.integer("k", k, 1, scores.shape[1])
    if not len(y):
        return 0.0
    own = np.take_along_axis(scores, y[:, None], axis=1)
    before = np.arange(scores.shape[1]) < y[:, None]
    better = (scores > own) | ((scores == own) & before)
    return float(((better.sum(axis=1) < k) & ~np.isnan(own[:, 0])).mean())


def confusion_matrix(y: Array, scores: Array, classes: int | None = None) -> Array:
    """How many samples of each class are taken for each class.

    Parameters
    ----------
    y : ndarray (n,)
        Integer labels.
    scores : ndarray (n, classes) or (n,)
        Scores, of which the largest counts, the first of equal ones; or labels that were predicted.
    classes : int, optional
        The number of classes, at most 16,384; that of the scores, or one more than the largest label, where absent.

    Returns
    -------
    int64 ndarray (classes, classes)
        By the class of samples (rows), and the class that they are taken for (columns): as in scikit-learn.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.metrics.confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]))
    array([[1, 0],
           [1, 1]])
    """
    y, scores = np.asarray(y), np.asarray(scores)
    if scores.ndim == 2:
        y, scores = _of_classes(y, scores)
        found = scores.shape[1]
        predicted = scores.argmax(axis=1) if scores.size else np.zeros(0, np.int64)
    else:
        for name, labels in (("y", y), ("scores", scores)):
            if not are_labels(labels) or (labels < 0).any():
                raise TypeError(f"{name} must be integer labels (n,), of 0 or more, got {labels.dtype} {labels.shape}")
        if y.shape != scores.shape:
            raise ValueError(f"scores must have one label for each of y, {len(y)}, got {len(scores)}")
        predicted, found = scores, max(int(y.max()), int(scores.max())) + 1 if y.size else 0
    if found > MOST_CLASSES:
        raise ValueError(f"y and scores must be of at most {MOST_CLASSES} classes, got {found}")
    count = found if classes is None else checks.integer("classes", classes, max(1, found), MOST_CLASSES)
    pairs = y.astype(np.int64) * count + predicted.astype(np.int64)
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _of_classes(y: Any, scores: Any) -> tuple[Array, Array]:
    """Labels, and scores of classes, checked."""
    y, scores = np.asarray(y), np.asarray(scores)
    if scores.ndim != 2 or scores.dtype.kind not in "fiu":
        raise TypeError(f"scores must be numbers (n, classes), got {scores.dtype} {scores.shape}")
    if not are_labels(y):
        raise TypeError(f"y must be integer labels (n,), got {y.dtype} {y.shape}")
    checks.labels("y", y, *scores.shape)
    return y, scores


# ---- Of scikit-learn, by name ------------------------------------------------------------------------------------


def _scorer(name: str, loss: Any, made: bool) -> Metric:
    """A scorer of scikit-learn, of the outputs that a loss takes; `made` is whether they are probabilities already."""
    try:
        from sklearn import metrics
        from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    except ImportError as error:
        raise ImportError(
            f"metrics has {name!r}, which would be scikit-learn's: pip install 'fastopt[sklearn]'", name="sklearn"
        ) from error
    known = metrics.get_scorer_names()
    if name not in known:
        near = "".join(f": is it {word!r}?" for word in difflib.get_close_matches(name, known, 1))
        raise ValueError(
            f"metrics must be functions f(targets, scores), 'accuracy', 'top_k' with a number for k, or names of "
            f"scikit-learn's scorers, got {name!r}{near}"
        )
    scorer = metrics.get_scorer(name)

    class Scored(BaseEstimator):  # type: ignore[misc]
        """What a scorer asks of an estimator, whose inputs are scores."""

        def fit(self, scores: Array, y: Array) -> Scored:
            return self

        def __sklearn_is_fitted__(self) -> bool:
            return True

    class Margins(ClassifierMixin, Scored):  # type: ignore[misc]
        @property
        def classes_(self) -> Array:
            return np.arange(self.n_classes)

        n_classes = 0

        def predict(self, scores: Array) -> Array:
            return scores.argmax(axis=1)

        def decision_function(self, scores: Array) -> Array:
            return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    class Classes(Margins):
        def predict_proba(self, scores: Array) -> Array:
            return scores if made else Softmax().forward(scores)[0]

    class Yes(Classes):
        """One or more answers of yes or no."""

        def predict(self, scores: Array) -> Array:
            return (scores > (0.5 if made else 0)).astype(np.int64)

        def predict_proba(self, scores: Array) -> Array:
            probability = scores if made else Sigmoid().forward(scores)[0]
            return np.stack([1 - probability, probability], axis=1) if scores.ndim == 1 else probability

        def decision_function(self, scores: Array) -> Array:
            return scores

    class Numbers(RegressorMixin, Scored):  # type: ignore[misc]
        def predict(self, scores: Array) -> Array:
            return scores

    def metric(y: Array, scores: Array) -> float:
        if isinstance(loss, SigmoidCrossEntropy):
            of: Any = Yes()
            y, scores = _flat(y).astype(np.int64), _flat(scores)
            of.n_classes = 2 if scores.ndim == 1 else scores.shape[1]
        elif loss is softmax_cross_entropy or isinstance(loss, (SoftmaxCrossEntropy, Hinge)):
            of, y = Margins() if isinstance(loss, Hinge) else Classes(), y if y.ndim == 1 else y.argmax(axis=1)
            of.n_classes = scores.shape[1]
        else:
            of, y, scores = Numbers(), _flat(y), _flat(scores)
        return float(scorer(of, scores, y))

    return metric


def _flat(array: Array) -> Array:
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


# ---- What fit and evaluate are given ------------------------------------------------------------------------------

#: Metrics that a run has of itself.
_OWN_METRICS = ("loss", "accuracy", "skipped", "samples_per_second", "epoch")
_TOP = re.compile(r"top_([1-9][0-9]*)")


def checked_metrics(given: Any, loss: Any, y: Any, *, made: bool = False) -> dict[str, Metric]:
    """The functions that measure outputs, by name.

    Parameters
    ----------
    given : MetricsLike or None
    loss : callable
        That of the outputs.
    y : ndarray
        Targets, checked: of labels, accuracy is measured in any case.
    made : bool, default False
        Whether scores are probabilities already.
    """
    if given is None:
        return {}
    named: dict[Any, Any] = {}
    if isinstance(given, Mapping):
        named = dict(given)
    elif not (isinstance(given, (str, Iterable)) or callable(given)):
        raise TypeError(f"metrics must be names, functions, or a sequence or dict of these, got {type(given).__name__}")
    else:
        for metric in [given] if isinstance(given, str) or callable(given) else given:
            name = metric if isinstance(metric, str) else getattr(metric, "__name__", None)
            if name is None:
                raise TypeError(
                    f"metrics must have names, as in {{'mine': {metric!r:.80}}}, where they are not of theirs"
                )
            if name in named:
                raise ValueError(f"metrics must have different names, got {name!r} twice")
            named[name] = metric
    return {
        name: metric
        for name, one in named.items()
        if (metric := _metric(name, one, loss, y, made, isinstance(given, Mapping))) is not None
    }


def _metric(name: Any, metric: Any, loss: Any, y: Any, made: bool, renamed: bool) -> Metric | None:
    """One of them; None where it is there in any case."""
    if not isinstance(name, str):
        raise TypeError(f"metrics must have names, got {name!r}")
    is_own = name == metric == "accuracy" and not renamed
    if is_own and are_labels(np.asarray(y)):
        return None
    if not is_own and (name in _OWN_METRICS or name.startswith("val_") or not name.isidentifier()):
        raise ValueError(
            f"metrics must have names that are identifiers, do not begin with val_, and are none of "
            f"{', '.join(_OWN_METRICS)}, got {name!r}"
        )
    if isinstance(metric, str):
        if found := _TOP.fullmatch(metric):
            return functools.partial(top_k, k=int(found[1]))
        return _scorer(metric, loss, made)
    if not callable(metric) or isinstance(metric, type):
        raise TypeError(f"metrics must be functions f(targets, scores) or names of such, got {metric!r} for {name!r}")
    return metric


def value_of(name: str, metric: Metric, y: Array, output: Array) -> float:
    """The value of a metric, a number."""
    try:
        value: Any = metric(y, output)
    except Exception as error:
        error.add_note(
            f"in the metric {name!r}, of targets {y.dtype} {y.shape} and scores {output.dtype} {output.shape}"
        )
        raise
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, (numbers.Real, np.bool_)):
        raise TypeError(f"metrics must return numbers, got {type(value).__name__} of {name!r}")
    return float(value)
