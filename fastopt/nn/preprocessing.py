"""Layers that learn statistics of the training data once, and are saved with the model.

`Sequential.adapt` and `Sequential.fit` let them learn. By itself, each is a transformer of scikit-learn's kind by its
methods: nothing of scikit-learn is imported unless scikit-learn asks for it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.drawing import figure
from fastopt.nn.layers import Grads, Layer, Shape, check_images
from fastopt.nn.stack import Stack
from fastopt.nn.targets import check_finite

__all__ = ["Center", "Standardize", "Whiten", "preprocessing_picture"]

Per = Literal["channel", "feature", "pixel", "image"]
_PER = ("channel", "feature", "pixel", "image")
#: Elements that statistics are computed of at a time.
_PART = 2**20
#: What is added to the variance of an image at least, so that an image of one colour becomes zeros.
_LEAST_OF_IMAGES = 1e-12

Self = TypeVar("Self", bound="LearnsFromData")


class LearnsFromData(Layer, loadable=False):
    """The base of these layers: `adapt`, and the protocol of scikit-learn's transformers."""

    def __init__(self) -> None:
        super().__init__()
        self._alone = False  # whether `fit` has built it, and no model
        self._names: list[str] | None = None  # of the features that `fit` has seen
        self._container = "default"

    # ---- What a subclass defines ----------------------------------------------------------------------------

    def _arrays(self, input_shape: Shape, dtype: np.dtype[Any]) -> dict[str, Array]:
        """Its statistics, as they are before any data: those of the identity, where shapes allow it."""
        raise TypeError(f"{type(self).__name__} has no statistics")

    def _learn(self, x: Array) -> dict[str, Array]:
        """The statistics of inputs, in float64."""
        raise TypeError(f"{type(self).__name__} has no statistics")

    def _inverse(self, y: Array) -> Array:
        raise TypeError(f"{type(self).__name__} has no inverse")

    # ---- As a layer -----------------------------------------------------------------------------------------

    def build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> Shape:
        if self.input_shape is not None:
            if self.input_shape != input_shape:
                raise ValueError(f"{self!r} was built for inputs of shape {self.input_shape}, got {input_shape}")
            if any(array.dtype != dtype for array in self.state.values()):
                if not self._alone:
                    raise ValueError(f"{self!r} was built for {next(iter(self.state.values())).dtype}, got {dtype}")
                self.state.take({name: array.astype(dtype) for name, array in self.state.items()})
        self._alone = False
        return super().build(input_shape, rng, dtype)

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.output_shape(input_shape)
        self.state.update(self._arrays(input_shape, dtype), adapted=np.zeros(1, dtype))

    @property
    def adapted(self) -> bool:
        """Whether it has seen data."""
        return bool(self.state) and bool(self.state["adapted"][0])

    def adapt(self, x: Array) -> None:
        """Learn the statistics of inputs anew.

        Parameters
        ----------
        x : ndarray (n, …)
            Of the shape that the layer was built for; it is read a part at a time.

        Raises
        ------
        TypeError, ValueError
            Where they do not fit, or are not finite; statistics are then what they were.
        """
        if self.input_shape is None:
            raise ValueError(f"{type(self).__name__} must be built before it adapts: call model.adapt(x), or fit(x)")
        x = _numbers(x)
        if x.shape[1:] != self.input_shape or x.ndim == 0:
            raise ValueError(f"x must have shape (n, {', '.join(map(str, self.input_shape))}), got {x.shape}")
        if not len(x):
            raise ValueError("x must hold at least one sample, got none")
        dtype = self.state["adapted"].dtype
        check_finite("x", x, dtype)
        learned = {name: np.asarray(value, dtype) for name, value in self._learn(x).items()}
        self.state.update(learned, adapted=np.ones(1, dtype))

    # ---- As a transformer -----------------------------------------------------------------------------------

    def fit(self: Self, x: Any, y: Any = None) -> Self:
        """Learn the statistics of inputs, as scikit-learn's transformers do.

        Parameters
        ----------
        x : array_like (n, …)
            A layer that is in no model is built for their shape; in float32 for float32, else in float64.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            Where inputs are no finite numbers, or are not those of the model that the layer is in.
        """
        given = _numbers(x)
        if given.ndim < 2:
            raise ValueError(f"x must have shape (n, …), got {given.shape}")
        dtype = np.dtype(np.float32 if given.dtype == np.float32 else np.float64)
        if self.input_shape is None or (self._alone and (self.input_shape, self.state["adapted"].dtype) != (
            given.shape[1:], dtype
        )):  # fmt: skip
            fresh = type(self)(**self.config())
            fresh.build(given.shape[1:], np.random.default_rng(0), dtype)
            fresh.adapt(given)
            vars(self).update(params=fresh.params, state=fresh.state, input_shape=fresh.input_shape)
            self._alone = True
        else:
            self.adapt(given)
        columns = getattr(x, "columns", None)
        self._names = None if columns is None else [str(name) for name in columns]
        return self

    def transform(self, x: Any) -> Any:
        """Apply what was learnt.

        Parameters
        ----------
        x : array_like (n, …)

        Returns
        -------
        ndarray (n, …), or what `set_output` asks for

        Raises
        ------
        TypeError, ValueError
            Where the layer has not been fitted, or inputs are not of the shape that it was fitted for.
        """
        y, _ = self.forward(self._given(x, self.input_shape))
        return self._contained(x, y)

    def fit_transform(self, x: Any, y: Any = None) -> Any:
        """`fit`, then `transform`."""
        return self.fit(x, y).transform(x)

    def inverse_transform(self, y: Any) -> Array:
        """The inputs of which outputs came; of fewer components than features, the nearest in their span.

        Parameters
        ----------
        y : array_like (n, …)
            Of the shape of outputs.

        Returns
        -------
        ndarray (n, …)

        Raises
        ------
        TypeError, ValueError
            Where the layer has not been fitted, or the outputs do not determine the inputs.
        """
        shape = None if self.input_shape is None else self.output_shape(self.input_shape)
        return self._inverse(self._given(y, shape))

    def _given(self, x: Any, shape: Shape | None) -> Array:
        if shape is None or not self.adapted:
            raise ValueError(f"{type(self).__name__} must be fitted first: call fit(x)")
        given = _numbers(x)
        if given.shape[1:] != shape or given.ndim == 0:
            raise ValueError(f"x must have shape (n, {', '.join(map(str, shape))}), got {given.shape}")
        return checks.contiguous(given, self.state["adapted"].dtype)

    def _contained(self, x: Any, y: Array) -> Any:
        container = self._container
        if container == "default":
            configured: dict[str, Any] = getattr(sys.modules.get("sklearn"), "get_config", dict)()
            container = configured.get("transform_output", "default")
        if container == "default" or y.ndim != 2:
            return y
        names = self.get_feature_names_out().tolist()
        if container == "pandas":
            import pandas

            return pandas.DataFrame(y, columns=names, index=getattr(x, "index", None))
        import polars

        return polars.DataFrame(y, schema=names)

    def set_output(self: Self, *, transform: Literal["default", "pandas", "polars"] | None = None) -> Self:
        """What `transform` returns for inputs (n, d): arrays, or data frames of pandas or polars.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, optional
            As it is where absent.

        Returns
        -------
        self
        """
        if transform is not None:
            self._container = checks.choice("transform", transform, ("default", "pandas", "polars"))
        return self

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """The names of output features: those of the inputs, or numbered ones.

        Parameters
        ----------
        input_features : sequence of str, optional
            Names in place of those that `fit` saw.

        Returns
        -------
        ndarray of str
        """
        if self.input_shape is None:
            raise ValueError(f"{type(self).__name__} must be fitted first: call fit(x)")
        count = math.prod(self.output_shape(self.input_shape))
        names = self._names if input_features is None else [str(name) for name in input_features]
        if names is not None and len(names) != math.prod(self.input_shape):
            raise ValueError(f"input_features must hold {math.prod(self.input_shape)} names, got {len(names)}")
        if names is None or not self._keeps_names():
            names = [f"{'x' if self._keeps_names() else type(self).__name__.lower()}{i}" for i in range(count)]
        return np.array(names, object)

    def _keeps_names(self) -> bool:
        return True

    @property
    def n_features_in_(self) -> int:
        """The number of features that `fit` saw."""
        if self.input_shape is None:
            raise AttributeError(f"{type(self).__name__} has no n_features_in_ before fit")
        return math.prod(self.input_shape)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor: `config`."""
        return self.config()

    def set_params(self: Self, **params: Any) -> Self:
        """Change arguments of the constructor; what was learnt is forgotten.

        Raises
        ------
        TypeError, ValueError
            Where an argument breaks its rule, or the layer is in a model.
        """
        if not params:
            return self
        if self.input_shape is not None and not self._alone:
            raise ValueError(f"{self!r} must be in no model where its arguments change: make another one")
        if unknown := params.keys() - self.config().keys():
            raise ValueError(f"params must be among {', '.join(self.config())}; got {min(unknown)!r}")
        container = self._container
        vars(self).update(vars(type(self)(**self.config() | params)))
        self._container = container
        return self

    def __sklearn_clone__(self) -> Any:
        twin = type(self)(**self.config())
        twin._container = self._container
        return twin

    def __sklearn_is_fitted__(self) -> bool:
        return self.adapted

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        tags = Tags(estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags())
        tags.transformer_tags.preserves_dtype = ["float32", "float64"]
        tags.input_tags.three_d_array = True
        return tags


def _numbers(x: Any) -> Array:
    given = np.asarray(x)
    if given.dtype.kind not in "fiub":
        raise TypeError(f"x must be an array of numbers, got {given.dtype}")
    checks.plain("x", given)
    return given


def _parts(x: Array, shape: Shape) -> Iterator[Array]:
    """Rows (m, d) in float64, a part at a time."""
    rows = max(1, _PART // max(1, math.prod(x.shape[1:])))
    for begin in range(0, len(x), rows):
        yield np.asarray(x[begin : begin + rows], np.float64).reshape(-1, *shape)


def _mean(x: Array, width: int) -> Array:
    """The mean of rows."""
    total, count = np.zeros(width), 0
    for part in _parts(x, (width,)):
        total += part.sum(axis=0)
        count += len(part)
    return total / count


# ---- Mean and variance ----------------------------------------------------------------------------------------


class _Moments(LearnsFromData, loadable=False):
    """The base of `Center` and `Standardize`."""

    def __init__(self, per: Per) -> None:
        super().__init__()
        checks.choice("per", per, _PER)
        self.per = per

    def output_shape(self, input_shape: Shape) -> Shape:
        if self.per in ("pixel", "image"):
            check_images(self, input_shape)
        return input_shape

    @property
    def adapted(self) -> bool:
        """Whether it has seen data, if it learns anything of them."""
        return self.per == "image" or super().adapted

    def width(self, input_shape: Shape) -> int:
        """The number of means; 0 where each image has its own."""
        return {"channel": input_shape[-1], "image": 0}.get(self.per, math.prod(input_shape))

    def rows(self, x: Array) -> Array:
        """Inputs as rows, each column of which has a mean of its own."""
        width = self.width(x.shape[1:])
        return x.reshape(-1, width) if x.size else x.reshape(0, width)

    def _only_learnt(self) -> None:
        if self.per == "image":
            raise ValueError("per='image' leaves no inverse: the mean of each image is not kept")


class Center(_Moments):
    """Inputs without their mean: ``y = x − mean``.

    Until it has adapted, by `Sequential.adapt`, `Sequential.fit` or `fit`, it is the identity.

    Parameters
    ----------
    per : {"channel", "feature", "pixel", "image"}, default "channel"
        What has a mean of its own over the training data: each channel, which of inputs (n, d) is each feature; each
        number of an input; the same of images, whose "mean image" this is; or each image by itself, of which nothing is
        learnt.

    Attributes
    ----------
    state : dict of ndarray
        ``mean``, (c,) or (h·w·c,); ``adapted`` (1,), 1 once there was data.

    Raises
    ------
    TypeError, ValueError
        Where `per` is another word, or, when the layer is built, inputs are no images where they must be.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Center().fit_transform(np.array([[1.0, 5.0], [3.0, 7.0]])).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """

    def __init__(self, per: Per = "channel") -> None:
        super().__init__(per)

    def _arrays(self, input_shape: Shape, dtype: np.dtype[Any]) -> dict[str, Array]:
        return {"mean": np.zeros(self.width(input_shape), dtype)}

    def _learn(self, x: Array) -> dict[str, Array]:
        width = self.width(x.shape[1:])
        return {"mean": _mean(x, width) if width else np.zeros(0)}

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        if self.per == "image":
            return self._by_image(x), None
        return F.bias_forward(self.rows(x), F.scale(self.state["mean"], -1.0)).reshape(x.shape), None

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return (self._by_image(dy) if self.per == "image" else dy), {}

    @staticmethod
    def _by_image(x: Array) -> Array:
        """Images without the mean of each: the gradient is the same projection."""
        if not x.size:
            return x.copy()
        turned = F.swap_axes(x.reshape(len(x), -1, 1))
        columns = turned.reshape(-1, len(x))
        F.bias_forward(columns, F.scale(F.bias_backward(columns), -1 / len(columns)), out=columns)
        return F.swap_axes(turned).reshape(x.shape)

    def _inverse(self, y: Array) -> Array:
        self._only_learnt()
        return F.bias_forward(self.rows(y), self.state["mean"]).reshape(y.shape)


class Standardize(_Moments):
    """Inputs with mean 0 and variance 1: ``y = (x − mean) / √(var + eps)``, as scikit-learn's StandardScaler does.

    Until it has adapted, by `Sequential.adapt`, `Sequential.fit` or `fit`, it is the identity.

    Parameters
    ----------
    per : {"channel", "feature", "pixel", "image"}, default "channel"
        As for `Center`.
    eps : float, default 0.0
        Added to the variance, in [0, inf). What is constant in the training data becomes 0 without it, too; of each
        image by itself, it is at least 1e-12.

    Attributes
    ----------
    state : dict of ndarray
        ``mean`` and ``var``, (c,) or (h·w·c,); the variance has the divisor n, and is 1 where all values are equal.
        ``adapted`` (1,), 1 once there was data.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs are no images where they must be.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Standardize("pixel"), nn.Flatten(), nn.Dense(10)], x.shape[1:])
    >>> history = model.fit(x[:1500], y[:1500], epochs=1)
    >>> bool(abs(model.layers[0].transform(x[:1500]).mean()) < 1e-6)
    True
    """

    def __init__(self, per: Per = "channel", eps: float = 0.0) -> None:
        super().__init__(per)
        self.eps = checks.number("eps", eps, "[0, inf)")

    def _arrays(self, input_shape: Shape, dtype: np.dtype[Any]) -> dict[str, Array]:
        width = self.width(input_shape)
        return {"mean": np.zeros(width, dtype), "var": np.ones(width, dtype)}

    def _learn(self, x: Array) -> dict[str, Array]:
        width = self.width(x.shape[1:])
        if not width:
            return {"mean": np.zeros(0), "var": np.zeros(0)}
        mean, squares, sums, count = _mean(x, width), np.zeros(width), np.zeros(width), 0
        for part in _parts(x, (width,)):
            part = part - mean
            squares += np.square(part).sum(axis=0)
            sums += part.sum(axis=0)
            count += len(part)
        var = (squares - sums**2 / count) / count
        # As good as constant: no more than rounding errors (scikit-learn's rule).
        least = np.finfo(np.float64).eps
        constant = var <= count * least * var + (count * mean * least) ** 2
        return {"mean": mean, "var": np.where(constant, 1.0, var)}

    def options_of_images(self, x: Shape) -> dict[str, Any]:
        """How layer norm does this for each image."""
        return {"axes": len(x) - 1, "eps": max(self.eps, _LEAST_OF_IMAGES)}

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        if self.per == "image":
            return F.layer_norm_forward(x, **self.options_of_images(x.shape))
        rows, moments = self.rows(x), (self.state["mean"], self.state["var"])
        y, _ = F.batch_norm_forward(rows, None, None, *moments, axis=-1, training=False, eps=self.eps)
        return y.reshape(x.shape), rows

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        if self.per == "image":
            return F.group_norm_backward(dy, cache)[0], {}
        moments = self.state["mean"], self.state["var"]
        dx, *_ = F.batch_norm_inference_backward(self.rows(dy), cache, None, *moments, eps=self.eps)
        return dx.reshape(dy.shape), {}

    def _inverse(self, y: Array) -> Array:
        self._only_learnt()
        deviation = np.sqrt(self.state["var"] + self.state["var"].dtype.type(self.eps))
        return (self.rows(y) * deviation + self.state["mean"]).reshape(y.shape)


# ---- Whitening --------------------------------------------------------------------------------------------------


class Whiten(LearnsFromData):
    """Inputs without correlation, all of variance 1: ``y = (x − mean) · V·(Λ + eps)^(−1/2)``, with the covariance VΛVᵀ.

    Inputs of more axes, such as images, are taken as vectors. Until it has adapted, by `Sequential.adapt`,
    `Sequential.fit` or `fit`, it is the identity, or takes the first components.

    Parameters
    ----------
    kind : {"pca", "zca", "decorrelate"}, default "pca"
        Coordinates along the eigenvectors, (n, components), as those of scikit-learn's PCA with ``whiten=True``; the
        same turned back (``· Vᵀ``), which of all whitened inputs are the nearest to the inputs, and of their shape; or
        coordinates that keep their variance, PCA without whitening.
    components : int, optional
        The number of eigenvectors, those of the largest eigenvalues; all where absent.
    eps : float, default 1e-5
        Added to the eigenvalues, in [0, inf), so that directions of hardly any variance are not blown up.

    Attributes
    ----------
    state : dict of ndarray
        ``mean`` (d,); ``weight`` (d, components), or (d, d) of ``"zca"``; ``adapted`` (1,), 1 once there was data.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, there are more components than numbers in an
        input; where it adapts, if there are fewer than two samples, or, with ``eps=0``, no variance along a component.

    Notes
    -----
    The covariance has the divisor n − 1. Of each eigenvector the largest entry is positive.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> x = np.random.default_rng(0).normal(size=(500, 3)) @ [[1, 1, 0], [0, 1, 1], [0, 0, 2]]
    >>> y = nn.Whiten(components=2, eps=0).fit_transform(x)
    >>> np.cov(y.T).round(6).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        kind: Literal["pca", "zca", "decorrelate"] = "pca",
        components: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        checks.choice("kind", kind, ("pca", "zca", "decorrelate"))
        self.kind = kind
        self.components = None if components is None else checks.integer("components", components, 1)
        self.eps = checks.number("eps", eps, "[0, inf)")

    def output_shape(self, input_shape: Shape) -> Shape:
        width = math.prod(input_shape)
        count = width if self.components is None else self.components
        if count > width:
            raise ValueError(f"components must be at most {width}, the numbers of an input, got {count}")
        return input_shape if self.kind == "zca" else (count,)

    def _keeps_names(self) -> bool:
        return self.kind == "zca"

    def _arrays(self, input_shape: Shape, dtype: np.dtype[Any]) -> dict[str, Array]:
        width = math.prod(input_shape)
        return {
            "mean": np.zeros(width, dtype),
            "weight": np.eye(width, math.prod(self.output_shape(input_shape)), dtype=dtype),
        }

    def _learn(self, x: Array) -> dict[str, Array]:
        if len(x) < 2:
            raise ValueError(f"x must hold at least two samples for a covariance, got {len(x)}")
        width = math.prod(x.shape[1:])
        mean, covariance = _mean(x, width), np.zeros((width, width))
        for part in _parts(x, (width,)):
            part = part - mean
            covariance += part.T @ part
        values, vectors = np.linalg.eigh(covariance / (len(x) - 1))
        count = width if self.components is None else self.components
        values, vectors = np.maximum(values[::-1][:count], 0), vectors[:, ::-1][:, :count]
        largest = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.where(vectors[largest, np.arange(count)] < 0, -1.0, 1.0)
        if self.kind == "decorrelate":
            return {"mean": mean, "weight": vectors}
        least = max(len(x), width) * np.finfo(np.float64).eps * max(values[0], np.finfo(np.float64).tiny)
        if self.eps == 0 and values[-1] <= least:
            varying = int((values > least).sum())
            raise ValueError(
                f"components must be at most {varying}, along which x varies, or eps above 0; got {count}, eps=0"
            )
        weight = vectors / np.sqrt(values + self.eps)
        return {"mean": mean, "weight": weight @ vectors.T if self.kind == "zca" else weight}

    def rows(self, x: Array) -> Array:
        """Inputs as vectors."""
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        centred = F.bias_forward(self.rows(x), F.scale(self.state["mean"], -1.0))
        return F.matmul(centred, self.state["weight"]).reshape(len(x), *self.output_shape(x.shape[1:])), x.shape

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return F.matmul(self.rows(dy), self.state["weight"], transpose_b=True).reshape(cache), {}

    def _inverse(self, y: Array) -> Array:
        assert self.input_shape is not None
        x = F.matmul(self.rows(y), checks.contiguous(np.linalg.pinv(self.state["weight"])))
        return F.bias_forward(x, self.state["mean"], out=x).reshape(len(y), *self.input_shape)


# ---- In a model -------------------------------------------------------------------------------------------------


def adapt(model: Stack, x: Array, *, anew: bool = True) -> bool:
    """Let the layers of a model that learn from data do so, one after the other, each from the outputs of those before.

    Parameters
    ----------
    model : Stack
    x : ndarray (n, …)
        Inputs of the model.
    anew : bool, default True
        Whether those that have adapted before do it again.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    ValueError
        Where one of them is in a layer that is no `Sequential`: its inputs are then known to that layer alone.
    """
    wanted = [each for each in model.walk() if isinstance(each, LearnsFromData)] if anew else unadapted(model)
    there = bool(wanted)
    reached = _reached(model)
    hidden = next((each for each in wanted if all(each is not other for other in reached)), None)
    if hidden is not None:
        raise ValueError(
            f"{hidden!r} must stand in a list of layers to adapt, not within another layer: put it before, or call its "
            "adapt(x) with its inputs"
        )
    _adapt(model, model.dtype, x, wanted)
    return there


def unadapted(model: Stack) -> list[LearnsFromData]:
    """The layers of a model that are still to learn from data."""
    return [each for each in model.walk() if isinstance(each, LearnsFromData) and not each.adapted]


def _reached(stack: Stack) -> list[Layer]:
    """The preprocessing layers in a stack and in the stacks in it."""
    found: list[Layer] = []
    for layer in stack.layers:
        found += [layer] if isinstance(layer, LearnsFromData) else _reached(layer) if isinstance(layer, Stack) else []
    return found


def _adapt(stack: Stack, dtype: np.dtype[Any], x: Array, wanted: list[LearnsFromData]) -> None:
    """The same; what has adapted leaves the list."""
    for layer in stack.layers:
        if not wanted:
            return
        if isinstance(layer, Stack):
            inside = _reached(layer)
            if any(each is other for each in wanted for other in inside):
                _adapt(layer, dtype, x, wanted)
        else:
            for i, each in enumerate(wanted):
                if each is layer:
                    each.adapt(x)
                    del wanted[i]
                    break
        if wanted:
            parts = (checks.contiguous(x[i : i + 256], dtype) for i in range(0, len(x), 256))
            x = np.concatenate([layer.forward(part)[0] for part in parts])


# ---- A picture --------------------------------------------------------------------------------------------------


def preprocessing_picture(x: Array, *, path: str | os.PathLike[str] | None = None) -> Any:
    """Two features of some inputs as they are, centred, decorrelated and whitened. Needs the extra ``plot``.

    Parameters
    ----------
    x : ndarray (n, 2)
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> x = np.random.default_rng(0).normal(size=(300, 2)) @ [[2.0, 1.0], [0.0, 0.6]] + [3.0, 1.0]
    >>> page = nn.preprocessing_picture(x, path="preprocessing.png")
    """
    x = _numbers(x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x must have shape (n, 2), got {x.shape}")
    target = None if path is None else os.fspath(path)
    kinds: list[tuple[str, LearnsFromData | None]] = [
        ("original", None),
        ("centred", Center()),
        ("decorrelated", Whiten("decorrelate")),
        ("whitened", Whiten("pca", eps=0)),
    ]
    shown = [(name, x if layer is None else layer.fit(x).transform(x)) for name, layer in kinds]
    reach = 1.05 * max(float(np.abs(values).max()) for _, values in shown)
    page = figure((12, 3.4))
    for ax, (name, values) in zip(page.subplots(1, 4, sharex=True, sharey=True), shown, strict=True):
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.scatter(values[:, 0], values[:, 1], s=6, alpha=0.6)
        (a, b), (_, d) = np.cov(values.T)
        ax.set_title(f"{name}\ncovariance [{a:.2f} {b + 0:.2f}; {b + 0:.2f} {d:.2f}]", fontsize=9)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    if target is not None:
        page.savefig(target, dpi=120)
    return page
