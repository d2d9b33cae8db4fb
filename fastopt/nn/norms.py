"""Normalisation layers."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.layers import Composite, Conv2D, Dense, Grads, Layer, Shape

__all__ = ["BatchNorm", "DecorrelatedBatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "WeightNorm"]


class BatchNorm(Layer):
    """Batch normalisation over all axes but the last: of (n, d) per feature, of (n, h, w, c) per channel.

    In programs, a ReLU directly after it is fused with it, and so is a Dropout after that; or, after either of batch
    norm and ReLU, a MaxPool2D whose stride is its size.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance, in [0, inf).
    momentum : float, default 0.1
        The weight of the new batch in the running statistics, in [0, 1].
    momentum_of : {"new", "old"}, default "new"
        ``"old"`` makes `momentum` the weight of the old value.
    unbiased : bool, default True
        Whether the running variance has the divisor n − 1.

    Attributes
    ----------
    params : dict of ndarray
        ``scale`` (c,) from 1 and ``shift`` (c,) from 0.
    state : dict of ndarray
        ``running_mean`` (c,) from 0 and ``running_var`` (c,) from 1.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> layer = nn.BatchNorm(eps=0)
    >>> layer.build((1,), np.random.default_rng(0), np.float64)
    (1,)
    >>> layer.forward(np.array([[1.0], [3.0]]), training=True)[0].ravel().tolist()
    [-1.0, 1.0]
    >>> layer.state["running_mean"].tolist()
    [0.2]
    """

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float = 0.1,
        momentum_of: Literal["new", "old"] = "new",
        unbiased: bool = True,
    ) -> None:
        super().__init__()
        self.eps = checks.number("eps", eps, "[0, inf)")
        self.momentum = checks.number("momentum", momentum, "[0, 1]")
        checks.choice("momentum_of", momentum_of, ("new", "old"))
        self.momentum_of = momentum_of
        self.unbiased = checks.flag("unbiased", unbiased)

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        channels = input_shape[-1]
        self.params.update(scale=np.ones(channels, dtype), shift=np.zeros(channels, dtype))
        self.state.update(running_mean=np.zeros(channels, dtype), running_var=np.ones(channels, dtype))

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        resting = training and self.params.rest
        y, cache = F.batch_norm_forward(
            x,
            self.params["scale"],
            self.params["shift"],
            self.state["running_mean"],
            self.state["running_var"],
            axis=-1,
            training=training and not resting,
            eps=self.eps,
            momentum=self.momentum,
            momentum_of=self.momentum_of,
            unbiased=self.unbiased,
        )
        return y, _Resting(x) if resting else cache

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        if cache is None:
            raise ValueError("BatchNorm.backward needs the cache of forward(…, training=True)")
        if isinstance(cache, _Resting):
            running = self.state["running_mean"], self.state["running_var"]
            dx, dscale, dshift = F.batch_norm_inference_backward(
                dy, cache.x, self.params["scale"], *running, eps=self.eps
            )
        else:
            dx, dscale, dshift = F.batch_norm_backward(dy, cache)
        return dx, {"scale": dscale, "shift": dshift}


class _Resting(NamedTuple):
    """The cache of a batch norm whose parameters are frozen."""

    x: Array


# ---- Per sample -----------------------------------------------------------------------------------------------


class _SampleNorm(Layer):
    """The base of layer, group and instance norm: each sample is normalised by itself, in inference as in training."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = checks.number("eps", eps, "[0, inf)")

    def _learnt(self, input_shape: Shape) -> Shape:
        """The shape of scale and shift."""
        return input_shape[-1:]

    def statistics(self, input_shape: Shape) -> int:
        """The number of means per sample."""
        raise TypeError("a subclass defines the axes of the mean")

    def normalise(self, x: Array, **options: Any) -> tuple[Array, F.GroupNormCache]:
        raise TypeError("a subclass defines the axes of the mean")

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        learnt = self._learnt(input_shape)
        self.params.update(scale=np.ones(learnt, dtype), shift=np.zeros(learnt, dtype))

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        return self.normalise(x, scale=self.params["scale"], shift=self.params["shift"], eps=self.eps)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        learnt = {f"d{name}": np.empty_like(param) for name, param in self.params.items()}
        dx, dscale, dshift = F.group_norm_backward(dy, cache, **learnt)
        return dx, {"scale": dscale, "shift": dshift}


class LayerNorm(_SampleNorm):
    """Layer normalisation, as in `fastopt.functional.layer_norm_forward`.

    Parameters
    ----------
    axes : int, default 1
        The number of axes, the last ones, that means are over: 1 for each pixel of images by itself, 3 for whole
        images.
    eps : float, default 1e-5
        Added to the variance, in [0, inf).

    Attributes
    ----------
    params : dict of ndarray
        ``scale`` from 1 and ``shift`` from 0, of the shape of these axes.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, inputs have fewer axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.LayerNorm(eps=0)], (2,))
    >>> model.predict(np.array([[1, 3], [4, 0]])).tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    """

    def __init__(self, axes: int = 1, eps: float = 1e-5) -> None:
        super().__init__(eps)
        self.axes = checks.integer("axes", axes, 1)

    def _learnt(self, input_shape: Shape) -> Shape:
        if self.axes > len(input_shape):
            raise ValueError(f"axes must be at most {len(input_shape)}, got {self.axes}")
        return input_shape[-self.axes :]

    def statistics(self, input_shape: Shape) -> int:
        return math.prod(input_shape[: -self.axes])

    def normalise(self, x: Array, **options: Any) -> tuple[Array, F.GroupNormCache]:
        return F.layer_norm_forward(x, axes=self.axes, **options)


class RMSNorm(Layer):
    """RMS normalisation over the last axis, as in `fastopt.functional.rms_norm_forward`.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the mean square, in [0, inf).

    Attributes
    ----------
    params : dict of ndarray
        ``scale`` (d,) from 1.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.RMSNorm(eps=0)], (4,))
    >>> model.predict(np.array([[1, 1, 1, 1], [-4, 0, 0, 0]])).tolist()
    [[1.0, 1.0, 1.0, 1.0], [-2.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = checks.number("eps", eps, "[0, inf)")

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.params["scale"] = np.ones(input_shape[-1:], dtype)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        return F.rms_norm_forward(x, self.params["scale"], eps=self.eps)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        dx, dscale = F.rms_norm_backward(dy, cache)
        return dx, {"scale": dscale}


class GroupNorm(_SampleNorm):
    """Group normalisation of (n, …, c), as in `fastopt.functional.group_norm_forward`.

    Parameters
    ----------
    groups : int
        The number of channel groups, a divisor of c.
    eps : float, default 1e-5
        Added to the variance, in [0, inf).

    Attributes
    ----------
    params : dict of ndarray
        ``scale`` (c,) from 1 and ``shift`` (c,) from 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, `groups` does not divide c.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.GroupNorm(2, eps=0)], (4,))
    >>> model.predict(np.array([[1, 3, 4, 0]])).tolist()
    [[-1.0, 1.0, 1.0, -1.0]]
    """

    def __init__(self, groups: int, eps: float = 1e-5) -> None:
        super().__init__(eps)
        self.groups = checks.integer("groups", groups, 1)

    def _learnt(self, input_shape: Shape) -> Shape:
        if input_shape[-1] % self.groups:
            raise ValueError(f"groups must divide the number of channels, {input_shape[-1]}, got {self.groups}")
        return input_shape[-1:]

    def statistics(self, input_shape: Shape) -> int:
        return self.groups

    def normalise(self, x: Array, **options: Any) -> tuple[Array, F.GroupNormCache]:
        return F.group_norm_forward(x, self.groups, **options)


class InstanceNorm(_SampleNorm):
    """Instance normalisation of (n, …, c), as in `fastopt.functional.instance_norm_forward`.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance, in [0, inf).

    Attributes
    ----------
    params : dict of ndarray
        ``scale`` (c,) from 1 and ``shift`` (c,) from 0.

    Raises
    ------
    TypeError, ValueError
        Where `eps` breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.InstanceNorm(eps=0)], (2, 1))
    >>> model.predict(np.array([[[1], [3]]])).tolist()
    [[[-1.0], [1.0]]]
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__(eps)

    def statistics(self, input_shape: Shape) -> int:
        return input_shape[-1]

    def normalise(self, x: Array, **options: Any) -> tuple[Array, F.GroupNormCache]:
        return F.instance_norm_forward(x, **options)


# ---- Of weights -----------------------------------------------------------------------------------------------


class WeightNorm(Composite):
    """A dense or convolutional layer whose weight is ``gain · direction / ‖direction‖``, per output [1]_.

    Parameters
    ----------
    layer : Dense or Conv2D
        Its weight and bias are initialised as without.

    Attributes
    ----------
    params : dict of ndarray
        ``gain`` (outputs,), ``direction`` of the weight's shape, and ``layer.bias``.

    Raises
    ------
    TypeError, ValueError
        Where `layer` is another one, or, when it is built, the initial weight of an output is 0.

    Examples
    --------
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.WeightNorm(nn.Dense(3, activation="relu"))], (4,))
    >>> {name: param.shape for name, param in model.params.items()}
    {'0.gain': (3,), '0.direction': (4, 3), '0.layer.bias': (3,)}

    References
    ----------
    .. [1] T. Salimans and D. P. Kingma, "Weight normalization", 2016, eq. 2 and 3.
    """

    def __init__(self, layer: Dense | Conv2D) -> None:
        if not isinstance(layer, (Dense, Conv2D)):
            raise TypeError(f"layer must be Dense or Conv2D, got {type(layer).__name__}")
        super().__init__({"layer": layer})
        self.layer = layer

    def build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        self.params.leave("layer.weight")  # which is computed from the others in each forward pass
        return shape

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.layer.build(input_shape, rng, dtype)
        weight = self.layer.params["weight"]
        gain = np.sqrt(np.square(weight.reshape(-1, weight.shape[-1])).sum(axis=0))
        if not gain.all():
            raise ValueError(f"init of {self.layer!r} must give no output a weight of zeros")
        self.params.update(gain=gain.astype(dtype), direction=weight.copy())

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.layer.output_shape(input_shape)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        gain, direction = self.params["gain"], self.params["direction"]
        _, cache = F.weight_norm_forward(direction, gain, out=self.layer.params["weight"])
        y, inner = self.layer.forward(x, training=training, counter=counter)
        return y, (inner, cache)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        inner, of_weight = cache
        dx, grads = self.layer.backward(dy, inner)
        ddirection, dgain = F.weight_norm_backward(grads["weight"], of_weight)
        return dx, {"gain": dgain, "direction": ddirection, "layer.bias": grads["bias"]}


# ---- Decorrelated batch norm ----------------------------------------------------------------------------------


class DecorrelatedBatchNorm(Layer):
    """Batch normalisation that also decorrelates: ZCA whitening of channel groups [1]_.

    ``y = scale·Σ^(−1/2)(x − mean) + shift`` for each channel group, with mean and covariance Σ over the batch (and
    the pixels) in training, and running ones in inference. With Σ = D Λ Dᵀ, the gradient takes no difference of
    eigenvalues, so equal ones do no harm: the derivative of Σ^(−1/2) is D (K ∘ (Dᵀ dΣ D)) Dᵀ with
    ``K_ij = −1 / (√λ_i √λ_j (√λ_i + √λ_j))``, the divided difference of λ^(−1/2) in closed form.

    Parameters
    ----------
    size : int, default 16
        The number of channels per group, a divisor of their number; or more than there are, for one group of all.
    eps : float, default 1e-5
        Added to the diagonal of Σ, in (0, inf).
    momentum : float, default 0.1
        The weight of the new batch in the running statistics, in [0, 1].

    Attributes
    ----------
    params : dict of ndarray
        ``scale`` (c,) from 1 and ``shift`` (c,) from 0.
    state : dict of ndarray
        ``running_mean`` (c,) from 0, ``running_whitening`` (groups, size, size) from the identity.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, `size` does not divide the number of channels.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> layer = nn.DecorrelatedBatchNorm(eps=1e-12)
    >>> layer.build((3,), np.random.default_rng(0), np.float64)
    (3,)
    >>> y, _ = layer.forward(np.random.default_rng(1).normal(size=(50, 3)) @ [[1, 1, 0], [0, 1, 1], [0, 0, 2]],
    ...                      training=True)
    >>> bool(np.abs(y.T @ y / 50 - np.eye(3)).max() < 1e-9)
    True

    References
    ----------
    .. [1] L. Huang et al., "Decorrelated batch normalization", 2018, eq. 3 and algorithms 1 and 2.
    """

    def __init__(self, size: int = 16, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.size = checks.integer("size", size, 1)
        self.eps = checks.number("eps", eps, "(0, inf)")
        self.momentum = checks.number("momentum", momentum, "[0, 1]")

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        channels = input_shape[-1]
        size = min(self.size, channels)
        if channels % size:
            raise ValueError(f"size must divide the number of channels, {channels}, got {self.size}")
        self.params.update(scale=np.ones(channels, dtype), shift=np.zeros(channels, dtype))
        whitening = np.tile(np.eye(size, dtype=dtype), (channels // size, 1, 1))
        self.state.update(running_mean=np.zeros(channels, dtype), running_whitening=whitening)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        channels, whitening = x.shape[-1], self.state["running_whitening"]
        mean, cache = self.state["running_mean"], None  # type: Array, Any
        rows = x.reshape(-1, channels)
        resting, training = training and self.params.rest, training and not self.params.rest
        if training:
            mean = rows.mean(axis=0, dtype=np.float64).astype(x.dtype)
        centred = rows - mean
        if training:
            groups = self._groups(centred)
            covariance = np.matmul(groups.swapaxes(1, 2), groups).astype(np.float64) / len(rows)
            finite, one = np.isfinite(covariance).all(axis=(1, 2), keepdims=True), np.eye(groups.shape[2])
            values, vectors = np.linalg.eigh(np.where(finite, covariance + self.eps * one, one))  # which fails for NaN
            roots = np.where(finite[:, 0], np.sqrt(values), np.nan)
            whitening = ((vectors / roots[:, None]) @ vectors.swapaxes(1, 2)).astype(x.dtype)
            for name, new in (("running_mean", mean), ("running_whitening", whitening)):
                self.state[name] += x.dtype.type(self.momentum) * (new - self.state[name])
        white = np.empty_like(rows)
        np.matmul(self._groups(centred), whitening, out=self._groups(white))
        if training:
            cache = centred, white, whitening, roots, vectors
        elif resting:
            cache = centred, white, whitening, None, None
        y = white * self.params["scale"] + self.params["shift"]
        return y.reshape(x.shape), cache

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        if cache is None:
            raise ValueError("DecorrelatedBatchNorm.backward needs the cache of forward(…, training=True)")
        centred, white, whitening, roots, vectors = cache
        scale = self.params["scale"]
        rows = dy.reshape(centred.shape)
        dscale, dshift = np.einsum("ij,ij->j", rows, white), F.bias_backward(rows)
        dwhite, dx = rows * scale, np.empty_like(rows)
        np.matmul(self._groups(dwhite), whitening, out=self._groups(dx))
        if roots is None:  # by running statistics, which do not depend on x
            return dx.reshape(dy.shape), {"scale": dscale, "shift": dshift}
        dwhitening = np.matmul(self._groups(centred).swapaxes(1, 2), self._groups(dwhite)).astype(np.float64)
        turned = vectors.swapaxes(1, 2) @ (dwhitening + dwhitening.swapaxes(1, 2)) @ vectors / 2
        one, other = roots[:, :, None], roots[:, None, :]
        dcovariance = vectors @ (-turned / (one * other * (one + other))) @ vectors.swapaxes(1, 2)
        dx -= dx.mean(axis=0, dtype=np.float64).astype(dx.dtype)
        through_covariance = np.empty_like(rows)
        factor = (2 / len(rows) * dcovariance).astype(dy.dtype)
        np.matmul(self._groups(centred), factor, out=self._groups(through_covariance))
        dx += through_covariance
        return dx.reshape(dy.shape), {"scale": dscale, "shift": dshift}

    def _groups(self, rows: Array) -> Array:
        """Rows (m, c) by channel group, (groups, m, size): a view."""
        return rows.reshape(len(rows), -1, min(self.size, rows.shape[1])).swapaxes(0, 1)
