"""Estimators of networks of one's own: `SequentialClassifier`, and `CNNClassifier` for images."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from fastopt import checks, nn
from fastopt.checks import Array
from fastopt.messages import logger
from fastopt.nn import training
from fastopt.nn.arguments import bound
from fastopt.nn.layers import Layer
from fastopt.sklearn.fits import Fit

__all__ = ["CNNClassifier", "SequentialClassifier"]

Shape = tuple[int, ...]
#: The options of `Sequential.fit` in one process, and their defaults.
_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(nn.Sequential.fit).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "comm"
}


class SequentialClassifier(ClassifierMixin, BaseEstimator):
    """A network of one's own as a classifier of scikit-learn.

    Parameters
    ----------
    build : callable
        ``build(input_shape, classes)`` returns a list of layers, or a `fastopt.nn.Sequential`, whose outputs are the
        logits of so many classes. It has to be picklable where the estimator is pickled or sent to other processes.
    epochs : int, default 20
    batch_size : int, default 32
    optimizer : str, class or callable, default "adam"
        The name or class of an optimizer, or a function of the parameters.
    lr : float or Schedule, optional
        The learning rate of one given by its name or class.
    class_weight : dict or "balanced", optional
        The weight of samples of each class; multiplies `sample_weight`.
    callbacks : fastopt.nn.Callback or sequence of them, optional
        Used as they are, not copied.
    metrics : str, callable, or sequence or dict of these, optional
        As of `fastopt.nn.Sequential.fit`: names of scikit-learn's scorers, for one. Labels are places in ``classes_``.
    dtype : {"float32", "float64"}, default "float32"
        The type of a network that is made of a list of layers.
    random_state : int, RandomState or None, default None
        Decides initial weights, dropout masks and the order of samples.
    warm_start : bool, default False
        Whether `fit` goes on with the network and the optimizer of the last one.

    Attributes
    ----------
    model_ : fastopt.nn.Sequential
    history_ : fastopt.nn.History
        Of the last fit.
    classes_ : ndarray (classes,)
    n_features_in_ : int
        The length of the first axis of one input.
    input_shape_ : tuple of int

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastopt import nn
    >>> from fastopt.sklearn import SequentialClassifier
    >>> def build(input_shape, classes):
    ...     return [nn.Dense(16), nn.LayerNorm(), nn.GELU(), nn.Dense(classes)]
    >>> X, y = load_iris(return_X_y=True)
    >>> SequentialClassifier(build, epochs=50, lr=0.01, random_state=0).fit(X, y).score(X, y) > 0.95
    True
    >>> net = SequentialClassifier(build, random_state=0)
    >>> for _ in range(3):
    ...     net = net.partial_fit(X, y, classes=[0, 1, 2])
    >>> net.predict(X).shape, net.predict_proba(X).shape, net.predict_log_proba(X).shape, net.decision_function(X).shape
    ((150,), (150, 3), (150, 3), (150, 3))
    """

    def __init__(
        self,
        build: Callable[[Shape, int], Any],
        *,
        epochs: int = 20,
        batch_size: int = 32,
        optimizer: Any = "adam",
        lr: Any = None,
        class_weight: Any = None,
        callbacks: Any = None,
        metrics: Any = None,
        dtype: str = "float32",
        random_state: Any = None,
        warm_start: bool = False,
    ) -> None:
        self.build = build
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.metrics = metrics
        self.dtype = dtype
        self.random_state = random_state
        self.warm_start = warm_start

    # ---- What a subclass may change ---------------------------------------------------------------------------

    def _inputs(self, X: Any, *, reset: bool) -> Array:
        """Inputs, checked."""
        X = validate_data(self, X, allow_nd=True, reset=reset)
        if not reset and X.shape[1:] != self.input_shape_:
            raise ValueError(f"X must have shape (n, {', '.join(map(str, self.input_shape_))}), got {X.shape}")
        return X

    def _make(self, input_shape: Shape, classes: int) -> Any:
        return self.build(input_shape, classes)

    # ---- Training ---------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> SequentialClassifier:
        """Fit to inputs and labels.

        Parameters
        ----------
        X : array_like (n, …)
        y : array_like (n,)
            Labels of any kind.
        sample_weight : array_like (n,), optional
        validation_data : (X, y), optional
            What loss and accuracy are measured on after each epoch.

        Returns
        -------
        SequentialClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            Where an argument or a parameter breaks its rule.
        """
        self._begin_fit(X, y, sample_weight, validation_data=validation_data).go()
        return self

    def _begin_fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> Fit:
        """The fit, up to its first step."""
        again = self.warm_start and hasattr(self, "model_")
        X, y = self._checked(X, y, reset=not again)
        classes = np.unique(y)
        if again and not np.isin(classes, self.classes_).all():
            raise ValueError(f"y must have the classes of the fit before, {self.classes_}, got {classes}")
        if not again:
            self._begin(X, classes)
        return self._train(X, y, sample_weight, self.epochs, validation_data)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> SequentialClassifier:
        """Train for one epoch on these samples.

        Parameters
        ----------
        X, y
            As of `fit`.
        classes : array_like (classes,), optional
            All classes that there will be, in the first call.
        sample_weight : array_like (n,), optional

        Returns
        -------
        SequentialClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            As of `fit`.
        """
        first = _check_partial_fit_first_call(self, classes) or not hasattr(self, "model_")
        X, y = self._checked(X, y, reset=first)
        if isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight must be a dict in partial_fit, which does not know how many samples of each class there "
                f"will be, got {self.class_weight!r}"
            )
        if first:
            self._begin(X, self.classes_)
        if strange := sorted({*np.unique(y).tolist()} - {*self.classes_.tolist()}):
            raise ValueError(f"y must have the classes of the first call, {self.classes_}, got {strange[0]!r}")
        self._train(X, y, sample_weight, 1, None).go()
        return self

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[Array, Array]:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        X = self._inputs(X, reset=reset)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        check_classification_targets(y)
        return X, y

    def _begin(self, X: Array, classes: Array) -> None:
        """A new network and a new optimizer."""
        if len(classes) < 2:
            raise ValueError(f"y must have at least two classes, got one class, {classes[0]!r}")
        self.classes_, self.input_shape_ = classes, X.shape[1:]
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        made = self._make(self.input_shape_, len(classes))
        if not isinstance(made, nn.Sequential):
            made = nn.Sequential(made, self.input_shape_, seed=self._seed, dtype=np.dtype(self.dtype))
        if made.check_built() != self.input_shape_ or made.shapes[-1] != (len(classes),):
            raise ValueError(
                f"build must return layers for inputs of shape {self.input_shape_} with {len(classes)} outputs, got "
                f"{made.check_built()} and {made.shapes[-1]}"
            )
        self.model_ = made
        known = isinstance(self.optimizer, (str, type))
        self._stepper = bound(made, self.optimizer if known else self.optimizer(made.params), self.lr)

    def _train(self, X: Array, y: Array, sample_weight: Any, epochs: int, validation_data: Any) -> Fit:
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X)
        if self.class_weight is not None:
            of_classes = compute_sample_weight(self.class_weight, y)
            weight = of_classes if weight is None else weight * of_classes
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
                raise ValueError(f"validation_data must be a pair (X, y), got {type(validation_data).__name__}")
            x, labels = self._inputs(validation_data[0], reset=False), np.asarray(validation_data[1])
            if strange := sorted({*np.unique(labels).tolist()} - {*self.classes_.tolist()}):
                raise ValueError(f"validation_data must have classes of y, got {strange[0]!r}")
            validation_data = x, np.searchsorted(self.classes_, labels)
        given: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": self.batch_size,
            "optimizer": self._stepper,
            "sample_weight": weight,
            "validation_data": validation_data,
            "seed": self._seed,
            "callbacks": self.callbacks,
            "metrics": self.metrics,
        }
        run = training.prepare(self.model_, X, np.searchsorted(self.classes_, y), **_OPTIONS | given)

        def end(is_last: bool) -> None:
            self.history_ = run.history
            if run.interrupted:
                logger.warning("%s; weights and history are kept", run.history.stopped)

        return Fit([run], [self], end)

    # ---- Predicting -------------------------------------------------------------------------------------------

    def decision_function(self, X: Any) -> Array:
        """The logits; of two classes, the difference of theirs.

        Parameters
        ----------
        X : array_like (n, …)

        Returns
        -------
        ndarray (n, classes) or (n,)
        """
        logits = self._logits(X)
        return logits if len(self.classes_) > 2 else logits[:, 1] - logits[:, 0]

    def _logits(self, X: Any) -> Array:
        check_is_fitted(self)
        return self.model_.predict(self._inputs(X, reset=False))

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, in the order of ``classes_``.

        Parameters
        ----------
        X : array_like (n, …)

        Returns
        -------
        ndarray (n, classes)
        """
        return softmax(self._logits(X), axis=1)

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithms of these.

        Parameters
        ----------
        X : array_like (n, …)

        Returns
        -------
        ndarray (n, classes)
        """
        return log_softmax(self._logits(X), axis=1)

    def predict(self, X: Any) -> Array:
        """The class of each input.

        Parameters
        ----------
        X : array_like (n, …)

        Returns
        -------
        ndarray (n,)
        """
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    # ---- State --------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "model_" in state:  # in one piece: joblib would write arrays by themselves, and lose which are one
            state["_pickled"] = pickle.dumps((state.pop("model_"), state.pop("_stepper")))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        pickled = state.pop("_pickled", None)
        super().__setstate__(state)
        if pickled is not None:
            self.model_, self._stepper = pickle.loads(pickled)


def _small() -> list[Layer]:
    return [
        nn.Conv2D(16, activation="relu"),
        nn.Conv2D(32, activation="relu"),
        nn.MaxPool2D(),
        nn.Flatten(),
        nn.Dense(64, activation="relu"),
        nn.Dropout(0.25),
    ]


def _lenet() -> list[Layer]:
    """LeNet-5 (LeCun et al. 1998), with ReLU and max-pooling."""
    return [
        nn.Conv2D(6, 5, activation="relu"),
        nn.MaxPool2D(),
        nn.Conv2D(16, 5, activation="relu"),
        nn.MaxPool2D(),
        nn.Flatten(),
        nn.Dense(120, activation="relu"),
        nn.Dense(84, activation="relu"),
    ]


#: Layers before the last one, by name.
PRESETS: dict[str, Callable[[], list[Layer]]] = {"lenet": _lenet, "small": _small}


class CNNClassifier(SequentialClassifier):
    """A convolutional network as a classifier of scikit-learn, for images (n, h, w) or (n, h, w, c).

    Parameters
    ----------
    layers : {"small", "lenet"} or sequence of Layer, default "small"
        The layers before the last one, a `fastopt.nn.Dense` with an output per class. A `fastopt.nn.Flatten` comes
        before that where outputs are still images. ``"small"``: two convolutions of 3 × 3 with 16 and 32 filters,
        max-pooling, 64 units with dropout of 0.25. ``"lenet"``: LeNet-5 with ReLU and max-pooling. Those of a sequence
        are copied.
    image_shape : tuple of int, optional
        The shape (h, w) or (h, w, c) of images that are given as rows (n, pixels), as the steps of a pipeline do.
    epochs, batch_size, optimizer, lr, class_weight, callbacks, metrics, dtype, random_state, warm_start
        As of `SequentialClassifier`.

    Attributes
    ----------
    model_, history_, classes_, n_features_in_, input_shape_
        As of `SequentialClassifier`.

    Notes
    -----
    Values of type uint8 are divided by 255; others are taken as they are.

    Examples
    --------
    >>> from fastopt import data
    >>> from fastopt.sklearn import CNNClassifier
    >>> images, labels = data.digits()
    >>> cnn = CNNClassifier(epochs=2, random_state=0).fit(images[:1000], labels[:1000])
    >>> cnn.score(images[1000:], labels[1000:]) > 0.85
    True
    """

    def __init__(
        self,
        layers: Literal["small", "lenet"] | Sequence[Layer] = "small",
        *,
        image_shape: Shape | None = None,
        epochs: int = 20,
        batch_size: int = 32,
        optimizer: Any = "adam",
        lr: Any = None,
        class_weight: Any = None,
        callbacks: Any = None,
        metrics: Any = None,
        dtype: str = "float32",
        random_state: Any = None,
        warm_start: bool = False,
    ) -> None:
        self.layers = layers
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.metrics = metrics
        self.dtype = dtype
        self.random_state = random_state
        self.warm_start = warm_start

    def _inputs(self, X: Any, *, reset: bool) -> Array:
        X = validate_data(self, X, allow_nd=True, reset=reset)
        if self.image_shape is not None and X.ndim == 2:
            if X.shape[1] != np.prod(self.image_shape):
                raise ValueError(f"X must have {np.prod(self.image_shape)} pixels per image, got {X.shape[1]}")
            X = X.reshape(len(X), *self.image_shape)
        if X.ndim == 3:
            X = X[..., None]
        if X.ndim != 4:
            raise ValueError(
                f"X must be images (n, h, w) or (n, h, w, c), got shape {X.shape}: for rows of pixels, set image_shape"
            )
        if X.dtype == np.uint8:
            X = X.astype(self.dtype) / np.asarray(255, self.dtype)
        if not reset and X.shape[1:] != self.input_shape_:
            raise ValueError(f"X must be images of shape {self.input_shape_}, got {X.shape[1:]}")
        return X

    def _make(self, input_shape: Shape, classes: int) -> list[Layer]:
        if isinstance(self.layers, str):
            layers = PRESETS[checks.choice("layers", self.layers, tuple(PRESETS))]()
        else:
            layers = copy.deepcopy(list(self.layers))
        shape = input_shape
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"layers must be layers of fastopt.nn, got {type(layer).__name__}")
            shape = layer.output_shape(shape)
        return [*layers, *([nn.Flatten()] if len(shape) > 1 else []), nn.Dense(classes)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        return tags
