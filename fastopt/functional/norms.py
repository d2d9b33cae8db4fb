"""Normalisation over a batch, and over the elements, channel groups or channels of a sample."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels, checks
from fastopt.checks import Array, Pair
from fastopt.functional.dropouts import Counter, key, threshold
from fastopt.functional.layouts import FEATURES, Layout, by_layout, warn_of_channels_second
from fastopt.kernel import kernel, shape_of

__all__ = [
    "BatchNormCache",
    "GroupNormCache",
    "RMSNormCache",
    "WeightNormCache",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference_backward",
    "batch_norm_sums_shape",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm_forward",
    "layer_norm_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "weight_norm_backward",
    "weight_norm_forward",
]


# ---- Batch norm ---------------------------------------------------------------------------------------------

_OF_CACHE = {name: f"cache.{name}" for name in ("x", "scale", "shift", "mean", "inv_std", "y", "chosen")}

_batch_norm_sums = kernel("batch_norm_sums")
_batch_norm_forward = kernel("batch_norm_forward", y="out")
_batch_norm_inference = kernel("batch_norm_inference", y="out")
_batch_norm_inference_backward = kernel("batch_norm_inference_backward", dx="out")
_batch_norm_grad_sums = kernel("batch_norm_grad_sums", **_OF_CACHE)
_batch_norm_backward = kernel("batch_norm_backward", **_OF_CACHE, dx="out")
_batch_norm_max_pool_forward = kernel("batch_norm_max_pool_forward", y="out")
_batch_norm_max_pool_backward = kernel("batch_norm_max_pool_backward", **_OF_CACHE, dx="out")
_batch_norm_backward_of_chosen = kernel("batch_norm_backward", **_OF_CACHE | {"x": "cache.chosen"})
_EPILOGUES = _kernels.CHOICES["epilogue"]


class BatchNormCache(NamedTuple):
    """What `batch_norm_backward` needs.

    Attributes
    ----------
    x, scale, shift, axis, relu
        The arguments of the forward pass.
    mean, inv_std : float64 ndarray (c,)
        The batch's mean, and ``1 / √(var + eps)``.
    y, factor
        After dropout, y itself, whose zeros say what was dropped, and by what the rest was multiplied.
    max_pool, chosen
        After max pooling, the size of the windows, and which number of x each of them chose.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt.functional as F
    >>> _, cache = F.batch_norm_forward(np.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> cache.mean, cache.inv_std.round(2)
    (array([2., 4.]), array([1. , 0.5]))
    """

    x: Array
    scale: Array | None
    shift: Array | None
    mean: NDArray[np.float64]
    inv_std: NDArray[np.float64]
    axis: int = -1
    relu: bool = False
    y: Array | None = None
    factor: float = 1.0
    max_pool: tuple[int, int] | None = None
    chosen: Array | None = None

    @property
    def computed(self) -> tuple[Array, ...]:
        """The arrays that the forward pass computed, y aside."""
        return self.mean, self.inv_std, *(() if self.chosen is None else (self.chosen,))


def batch_norm_forward(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    axis: int | None = None,
    training: bool = True,
    eps: float = 1e-5,
    momentum: float = 0.1,
    momentum_of: Literal["new", "old"] = "new",
    unbiased: bool = True,
    relu: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    counter: int | Counter = 0,
    max_pool: Pair | None = None,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
    sums: NDArray[np.float64] | None = None,
    chosen: Array | None = None,
    layout: Layout | None = None,
) -> tuple[Array, BatchNormCache | None]:
    """Batch normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift``, per channel.

    Parameters
    ----------
    x : ndarray (n, …, c), or (n, c, …) as `axis` or `layout` says
    scale, shift : ndarray (c,), optional
        The learnt scale and shift; 1 and 0 where absent.
    running_mean, running_var : ndarray (c,), optional
        Running statistics: moved towards those of the batch in training, used instead of them in inference.
    axis : int, optional
        The axis of the channels: the last, −1, where absent, as in images (n, h, w, c); or 1.
    training : bool, default True
        Whether to normalise with the statistics of the batch.
    eps : float, default 1e-5
        Added to the variance, in [0, inf).
    momentum : float, default 0.1
        In [0, 1]: ``running ← (1 − momentum)·running + momentum·batch``.
    momentum_of : {"new", "old"}, default "new"
        ``"old"`` makes `momentum` the weight of the old value (Keras: 0.99; cs231n: 0.9).
    unbiased : bool, default True
        Whether the running variance takes the batch's with divisor n − 1 (the paper, PyTorch) or n (Keras, cs231n).
        The batch itself is always normalised with divisor n.
    relu : bool, default False
        Whether to apply `relu_forward` to y, at next to no cost: ``y = max(y, 0)``. `batch_norm_backward` knows of it.
    dropout : float, default 0.0
        With `relu`, and in training: what `dropout` is then to drop of y, in [0, 1), by `seed` and `counter`.
        `batch_norm_backward` knows of that, too, and reads y, which must be unchanged.
    seed : int, default 0
    counter : int or Counter, default 0
        Those of `dropout`; a `Counter` counts the calls that drop.
    max_pool : int or (int, int), optional
        For images (n, h, w, c), channels last: the size of the windows of a `max_pool_forward` that is then applied,
        without dropout. It is taken in the same pass, and y (n, h // size, w // size, c) has the same bits as that of
        both one after the other. Gradients are the same but for rounding: dscale and dshift are sums in another order.
    out : ndarray like y, optional
        Where to write y.
    mean, inv_std : float64 ndarray (c,), optional
        Where to write the cache's; not used in inference.
    sums : float64 ndarray of ``batch_norm_sums_shape(x.shape, axis)``, optional
        Work array for partial sums; results do not depend on it.
    chosen : ndarray like y, optional
        Where to write the cache's, with `max_pool` in training.
    layout : {"nhwc", "nchw"}, optional
        In place of `axis`, in the words of other functions of images: the last axis, or 1. Nothing is copied.

    Returns
    -------
    y : ndarray like `x`, or as `max_pool` says
    cache : BatchNormCache
        For `batch_norm_backward`; None in inference.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch normalization", 2015, algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = batch_norm_forward(np.array([[1.0], [3.0]]), eps=0)
    >>> y.ravel(), cache.mean
    (array([-1.,  1.]), array([2.]))
    """
    shape = checks.shape("x", x)
    if axis is None or layout is not None:
        if axis is None and layout is None:
            vectors = {"scale": scale, "shift": shift, "running_mean": running_mean, "running_var": running_var}
            _refuse_channels_second(shape, **vectors)
            if scale is None is running_mean:
                warn_of_channels_second(shape)
        axis = _axis_of_layout(axis, layout, len(shape))
    pool = None if max_pool is None else _norm_windows(("x", "axis", "max_pool"), x, axis, max_pool)
    if pool is None and chosen is not None:
        raise ValueError("chosen must not be given without max_pool")
    outer, channels, inner = sizes = _channels("x", shape, axis)
    training, eps, new_weight, unbiased, epilogue, cut, factor = _norm_options(
        training, eps, momentum, momentum_of, unbiased, relu, dropout
    )
    seed, number = key(seed, counter.value if type(counter) is Counter else counter)
    if cut and pool is not None:
        raise ValueError(f"dropout must be 0 with max_pool, got {dropout}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given both or not at all")
    if running_mean is None and not training:
        raise ValueError("running_mean and running_var must be given for training=False")
    count = outer * inner
    if training and running_mean is not None and unbiased and count == 1:
        raise ValueError("x must have at least 2 values per channel for an unbiased variance, got 1")
    if not training:
        for name, array in (("mean", mean), ("inv_std", inv_std)):
            if array is not None:
                checks.array(name, array, dtype=np.float64, shape=(channels,), writable=True)
        if pool is None:
            out = _batch_norm_inference(x, scale, shift, running_mean, running_var, out, *sizes, epilogue, eps)
        else:
            out, _ = _batch_norm_max_pool_forward(
                x, scale, shift, None, None, running_mean, running_var, out, None, *pool, epilogue, eps
            )
        return out, None

    if sums is not None:
        _check_sums(sums, sizes, {"x": x, "scale": scale, "shift": shift, "out": out, "mean": mean, "inv_std": inv_std})
    sums, blocks, lanes = _row_sums(sums, sizes)
    correction = count / (count - 1) if unbiased and count > 1 else 1.0
    options = (*sizes, blocks, lanes, epilogue, seed, number, cut, eps, new_weight, correction, factor)
    running = running_mean, running_var
    y: Array | None = None
    if pool is None:
        y = np.empty(shape, x.dtype) if out is None else out
    if blocks or pool is not None:  # several kernels: the arguments of all are checked before the first one runs
        _, mean, inv_std, *_ = _batch_norm_forward.check(x, scale, shift, sums, y, mean, inv_std, *running, *options)
    if pool is not None:
        if chosen is None:
            chosen = np.empty((shape[0], shape[1] // pool[0], shape[2] // pool[1], channels), x.dtype)
        pooling = x, scale, shift, mean, inv_std, *running
        out, chosen = _batch_norm_max_pool_forward.check(*pooling, out, chosen, *pool, epilogue, eps)
    if blocks:
        _apart("sums", sums, scale=scale, shift=shift, out=out, chosen=chosen)
        _batch_norm_sums(x, sums, *sizes, blocks, lanes)
    _, mean, inv_std, *_ = _batch_norm_forward(x, scale, shift, sums, y, mean, inv_std, *running, *options)
    if pool is not None:
        y, chosen = _batch_norm_max_pool_forward(*pooling, out, chosen, *pool, epilogue, eps)
    assert y is not None
    if not count:
        mean.fill(0)
        inv_std.fill(0)
    if cut and type(counter) is Counter:
        counter.take()
    relu, dropped = epilogue > 0, y if cut else None
    return y, BatchNormCache(x, scale, shift, mean, inv_std, axis, relu, dropped, factor, pool, chosen)


def _norm_windows(names: tuple[str, str, str], x: Array, axis: int, max_pool: Pair) -> tuple[int, int]:
    """The checked size of windows of images whose channels are last."""
    _, h, w, _ = checks.shape(names[0], x, ndim=4)
    if checks.second_or_last(names[1], axis, 4) != 3:
        raise ValueError(f"{names[1]} must be -1 with max_pool, got {axis}")
    size = checks.pair(names[2], max_pool, 1)
    if size[0] > h or size[1] > w:
        raise ValueError(f"{names[2]} must be at most the size of the images, {(h, w)}, got {size}")
    return size


@_kernels.Memoised
def _norm_options(
    training: bool, eps: float, momentum: float, momentum_of: str, unbiased: bool, relu: bool, dropout: float
) -> tuple[bool, float, float, bool, int, int, float]:
    """The checked options of `batch_norm_forward` as the kernel wants them."""
    new_weight = checks.number("momentum", momentum, "[0, 1]")
    if checks.choice("momentum_of", momentum_of, ("new", "old")) == "old":
        new_weight = 1 - new_weight
    training, unbiased = checks.flag("training", training), checks.flag("unbiased", unbiased)
    cut, factor = threshold(checks.number("dropout", dropout, "[0, 1)"), "drop")
    if cut and not checks.flag("relu", relu):
        raise ValueError(f"dropout must be 0 without relu=True, got {dropout}")
    if not training:
        cut, factor = 0, 1.0
    name = ("relu_dropout" if cut else "relu") if checks.flag("relu", relu) else "no_epilogue"
    return training, checks.number("eps", eps, "[0, inf)"), new_weight, unbiased, _EPILOGUES.index(name), cut, factor


def batch_norm_backward(
    dy: Array,
    cache: BatchNormCache,
    out: Array | None = None,
    dscale: Array | None = None,
    dshift: Array | None = None,
    *,
    sums: NDArray[np.float64] | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of `batch_norm_forward` in training.

    Parameters
    ----------
    dy : ndarray like y
        The gradient with respect to y.
    cache : BatchNormCache
        From `batch_norm_forward`; x, scale and shift, after dropout y and after max pooling `chosen` must be unchanged.
    out : ndarray like x, optional
        Where to write dx; after max pooling this may be x itself.
    dscale, dshift : ndarray (c,), optional
        Where to write those.
    sums : float64 ndarray of ``batch_norm_sums_shape(dy.shape, axis)``, optional
        As in `batch_norm_forward`.

    Returns
    -------
    dx : ndarray like x
    dscale, dshift : ndarray (c,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = batch_norm_forward(np.array([[1.0], [3.0]]), eps=0)
    >>> dx, dscale, dshift = batch_norm_backward(np.array([[1.0], [3.0]]), cache)
    >>> dscale, dshift
    (array([2.]), array([4.]))
    """
    if not isinstance(cache, BatchNormCache):
        raise TypeError(f"cache must come from batch_norm_forward in training, got {type(cache).__name__}")
    shape = checks.shape("cache.x", cache.x)
    sizes = _channels("cache.x", shape, cache.axis, "cache.axis")
    relu, factor = checks.flag("cache.relu", cache.relu), checks.number("cache.factor", cache.factor)
    if cache.max_pool is not None:
        return _batch_norm_max_pool_gradients(dy, cache, out, dscale, dshift, sums)
    dx = np.empty(shape, cache.x.dtype) if out is None else out
    epilogue = _EPILOGUES.index("no_epilogue" if not relu else "relu" if cache.y is None else "relu_dropout")
    if sums is not None:
        _check_sums(sums, sizes, {"dy": dy, "out": out, "dscale": dscale, "dshift": dshift}, cache)
    sums, blocks, lanes = _row_sums(sums, sizes)
    inputs = dy, cache.x, cache.scale, cache.shift, cache.mean, cache.inv_std, cache.y, sums
    options = (*sizes, blocks, lanes, epilogue, factor)
    if blocks:  # two kernels, as in batch_norm_forward
        _, dscale, dshift = _batch_norm_backward.check(*inputs, dx, dscale, dshift, *options)
        _batch_norm_grad_sums(*inputs, *options)
    _, dscale, dshift = _batch_norm_backward(*inputs, dx, dscale, dshift, *options)
    if not cache.x.size:
        dscale.fill(0)
        dshift.fill(0)
    return dx, dscale, dshift


def _batch_norm_max_pool_gradients(
    dy: Array,
    cache: BatchNormCache,
    out: Array | None,
    dscale: Array | None,
    dshift: Array | None,
    sums: NDArray[np.float64] | None,
) -> tuple[Array, Array, Array]:
    """The same after max pooling: the gradients of scale and shift are those of the numbers that were chosen."""
    x, scale, shift, mean, inv_std, axis, relu, _, _, max_pool, chosen = cache
    pool = _norm_windows(("cache.x", "cache.axis", "cache.max_pool"), x, axis, 1 if max_pool is None else max_pool)
    pooled = x.shape[0], x.shape[1] // pool[0], x.shape[2] // pool[1], x.shape[3]
    sizes = math.prod(pooled[:3]), pooled[3], 1
    if sums is not None:
        _check_sums(sums, sizes, {"dy": dy, "out": out, "dscale": dscale, "dshift": dshift}, cache)
    sums, blocks, lanes = _row_sums(sums, sizes)
    of_chosen = dy, chosen, scale, shift, mean, inv_std, None, sums
    options = (*sizes, blocks, lanes, int(relu), 1.0)
    _, dscale, dshift = _batch_norm_backward_of_chosen.check(*of_chosen, None, dscale, dshift, *options)
    inputs = dy, chosen, x, scale, shift, mean, inv_std, dscale, dshift
    dx: Array = _batch_norm_max_pool_backward.check(*inputs, out, *pool, int(relu))
    learnt: dict[str, Any] = {"dscale": dscale, "dshift": dshift}
    for name, array in learnt.items():
        _apart(name, array, **{"cache.x": x})
    if blocks:
        _apart("sums", sums, out=dx, **{"cache.x": x})
        _batch_norm_grad_sums(*of_chosen, *options)
    _batch_norm_backward_of_chosen(*of_chosen, None, dscale, dshift, *options)
    _batch_norm_max_pool_backward(*inputs, dx, *pool, int(relu))
    if not x.size:
        for array in learnt.values():
            array.fill(0)
    return dx, learnt["dscale"], learnt["dshift"]


def batch_norm_inference_backward(
    dy: Array,
    x: Array,
    scale: Array | None,
    running_mean: Array,
    running_var: Array,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    dscale: Array | None = None,
    dshift: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of batch normalisation by running statistics, which do not depend on x: channels last.

    That of ``y = scale·(x − running_mean)/√(running_var + eps) + shift``: a batch norm in training whose parameters are
    frozen.

    Parameters
    ----------
    dy : ndarray (…, c)
        The gradient with respect to y.
    x : ndarray like `dy`
    scale : ndarray (c,) or None
        None stands for ones.
    running_mean, running_var : ndarray (c,)
    eps : float, default 1e-5
        Added to the variance, in [0, inf).
    out : ndarray like `dy`, optional
        Where to write dx.
    dscale, dshift : ndarray (c,), optional
        Where to write those.

    Returns
    -------
    dx : ndarray like `dy`
    dscale, dshift : ndarray (c,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> dy, x = np.array([[1.0], [2.0]]), np.array([[5.0], [3.0]])
    >>> scale, mean, var = np.array([8.0]), np.array([1.0]), np.array([4.0])
    >>> dx, dscale, dshift = batch_norm_inference_backward(dy, x, scale, mean, var, eps=0)
    >>> dx.ravel().tolist(), dscale, dshift
    ([4.0, 8.0], array([4.]), array([3.]))
    """
    eps = checks.number("eps", eps, "[0, inf)")
    return _batch_norm_inference_backward(dy, x, scale, running_mean, running_var, out, dscale, dshift, eps)


def batch_norm_sums_shape(
    shape: tuple[int, ...], axis: int | None = None, *, layout: Layout | None = None
) -> tuple[int, int, int] | None:
    """The shape of the sums by which batch norm of some shape is shared out among threads; None where it is not.

    Usually channels are shared out. Where there are too few of them, rows are, in blocks, whose sums are added up in
    the order that one thread would add them up in.

    Parameters
    ----------
    shape : tuple of int
        That of x.
    axis, layout
        As in `batch_norm_forward`.

    Returns
    -------
    tuple of int or None

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> batch_norm_sums_shape((64, 512)) is None
    True
    """
    shape = checks.lengths("the shape of x", shape)
    sizes = _channels("x", shape, _axis_of_layout(axis, layout, len(shape)))
    threads = _kernels.get_num_threads()
    return None if threads == 1 else _norm_sums_shape(sizes, threads)


_LANES, _BLOCK = _kernels.LIMITS["LANES"], _kernels.LIMITS["NORM_BLOCK"]
#: Rows are shared out among threads where there are fewer channels than this, and at least so many elements.
_FEW_CHANNELS, _MANY_ELEMENTS = 128, 1 << 17


@_kernels.Memoised
def _norm_sums_shape(sizes: tuple[int, int, int], threads: int) -> tuple[int, int, int] | None:
    outer, channels, inner = sizes
    few = inner == 1 and 0 < channels < _FEW_CHANNELS and max(1, channels // _LANES) < threads
    if not few or outer * channels < _MANY_ELEMENTS:
        return None
    lanes = math.lcm(channels, _LANES) if channels < _LANES else -(-channels // _LANES) * _LANES
    return outer // (lanes // channels if channels < _LANES else 1) // _BLOCK + 1, 2, lanes


def _apart(name: str, array: Array | None, **others: Array | None) -> None:
    """An array that one of several kernels writes, and others that this kernel does not know, share no memory."""
    for other, value in others.items():
        if array is not None and value is not None:
            checks.apart({name: array, other: value})


def _row_sums(
    sums: NDArray[np.float64] | None, sizes: tuple[int, int, int]
) -> tuple[NDArray[np.float64] | None, int, int]:
    """The work array for sums over blocks of rows, if there are to be any, and how many blocks and lanes it is of."""
    threads = _kernels.get_num_threads()
    wanted = None if threads == 1 else _norm_sums_shape(sizes, threads)
    if wanted is None:
        return None, 0, 0
    return np.empty(wanted) if sums is None else sums, wanted[0], wanted[2]


def _check_sums(
    sums: Any, sizes: tuple[int, int, int], beside: dict[str, Array | None], cache: BatchNormCache | None = None
) -> None:
    """Refuse a work array for sums that would not fit if they were taken, on however many threads."""
    wanted = _norm_sums_shape(sizes, _kernels.MAX_THREADS)
    if wanted is None:
        raise ValueError(f"sums must be None where batch_norm_sums_shape is, got {type(sums).__name__}")
    checks.array("sums", sums, dtype=np.float64, shape=wanted, writable=True)
    of_cache = {} if cache is None else {f"cache.{name}": value for name, value in cache._asdict().items()}
    for name, array in (beside | of_cache).items():
        if isinstance(array, np.ndarray) and np.may_share_memory(array, sums):
            checks.apart({"sums": sums, name: checks.array(name, array)})


def _refuse_channels_second(shape: tuple[int, ...], **vectors: Any) -> None:
    """Refuse what is for each channel where it is for the second axis, and channels are last."""
    for name, value in vectors.items():
        if isinstance(value, np.ndarray) and len(shape) > 2 and value.shape == shape[1:2] != shape[-1:]:
            wanted = f"{name} must have shape {shape[-1:]}, got {value.shape}"
            raise ValueError(f"{wanted}; for x of shape (n, c, …) write layout='nchw'")


def _axis_of_layout(axis: int | None, layout: Layout | None, ndim: int) -> int:
    """The axis of the channels, by either way to say it."""
    if layout is None:
        return -1 if axis is None else axis
    wanted = 1 if checks.choice("layout", layout, ("nhwc", "nchw")) == "nchw" else ndim - 1
    if axis is not None and checks.second_or_last("axis", axis, ndim) != wanted:
        raise ValueError(f"axis must be {wanted} with layout={layout!r}, or absent, got {axis}")
    return wanted


@_kernels.Memoised
def _channels(name: str, shape: tuple[int, ...], axis: int, axis_name: str = "axis") -> tuple[int, int, int]:
    """The shape (n, c, …), or (n, …, c), as (outer, channels, inner)."""
    shape = checks.lengths(f"the shape of {name}", shape)
    if len(shape) < 2:
        raise ValueError(f"{name} must have shape (n, c), (n, c, …) or (n, …, c), got {shape}")
    axis = checks.second_or_last(axis_name, axis, len(shape))
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


# ---- Layer, group and instance norm -------------------------------------------------------------------------

_group_norm_forward = kernel("group_norm_forward", y="out")
_group_norm_backward = kernel(
    "group_norm_backward", **{name: _OF_CACHE[name] for name in ("x", "scale", "mean", "inv_std")}, dx="out"
)
_group_norm_learnt_grads = kernel("group_norm_learnt_grads")


class GroupNormCache(NamedTuple):
    """What `group_norm_backward` needs.

    Attributes
    ----------
    x : ndarray (rows, pixels, channels)
    scale : ndarray (channels,) or None
    mean, inv_std : float64 ndarray (rows · groups,)
        The mean of each row and group, and ``1 / √(var + eps)``.
    groups : int
        The number of groups.
    layout : {"nhwc", "nchw"}
        Of the images that it takes and returns.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt.functional as F
    >>> _, cache = F.group_norm_forward(np.array([[1.0, 3.0, 10.0, 30.0]]), groups=2)
    >>> cache.mean, cache.groups
    (array([ 2., 20.]), 2)
    """

    x: Array
    scale: Array | None
    mean: NDArray[np.float64]
    inv_std: NDArray[np.float64]
    groups: int
    layout: Layout = "nhwc"

    @property
    def computed(self) -> tuple[Array, ...]:
        """The arrays that the forward pass computed."""
        return self.mean, self.inv_std

    @property
    def parts_shape(self) -> tuple[int, ...]:
        """The shape of the `parts` of `group_norm_backward`."""
        rows, _, channels = self.x.shape
        block = _block(self.x.shape)
        return shape_of("group_norm_backward", "parts", rows=rows, channels=channels, block=block)


def layer_norm_forward(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    axes: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
) -> tuple[Array, GroupNormCache]:
    """Layer normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift`` over the last `axes` axes.

    Parameters
    ----------
    x : ndarray (…, d)
    scale, shift : ndarray of the shape of the last `axes` axes, optional
        Learnt for each element; 1 and 0 where absent.
    axes : int, default 1
        Over how many axes, the last ones.
    eps : float, default 1e-5
        Added to the variance (that with divisor n), in [0, inf).
    out : ndarray like `x`, optional
        Where to write y.
    mean, inv_std : float64 ndarray (rows,), optional
        Where to write the cache's; rows being the product of the other axes.

    Returns
    -------
    y : ndarray like `x`
    cache : GroupNormCache
        For `group_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] J. L. Ba et al., "Layer normalization", 2016, eq. 3 and 4.

    Examples
    --------
    >>> import numpy as np
    >>> layer_norm_forward(np.array([[1.0, 3.0], [4.0, 0.0]]), eps=0)[0]
    array([[-1.,  1.],
           [ 1., -1.]])
    """
    shape = checks.shape("x", x)
    if not shape:
        raise ValueError("x must have at least one dimension, got shape ()")
    axes = checks.integer("axes", axes, 1, len(shape))
    leading, learnt = shape[:-axes], shape[-axes:]
    shape = math.prod(leading), 1, math.prod(learnt)
    return _normalise(x, shape, 1, scale, shift, learnt, eps, out, mean, inv_std)


def group_norm_forward(
    x: Array,
    groups: int,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
    layout: Layout | None = None,
) -> tuple[Array, GroupNormCache]:
    """Group normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift``, per sample over a group of channels.

    Parameters
    ----------
    x : ndarray (n, …, c)
    groups : int
        A divisor of c. Group g has the channels from ``g·c/groups`` on.
    scale, shift : ndarray (c,), optional
        Learnt for each channel; 1 and 0 where absent.
    eps, out
        As in `layer_norm_forward`.
    mean, inv_std : float64 ndarray (n · groups,), optional
        Where to write the cache's.
    layout : {"nhwc", "nchw"}, optional
        Where the channels are. ``"nchw"`` takes and returns (n, c, …), by copies; what is read then need not be
        C-contiguous. Where absent, they are last, and images that look otherwise get a hint.

    Returns
    -------
    y : ndarray like `x`
    cache : GroupNormCache
        For `group_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] Y. Wu and K. He, "Group normalization", 2018, eq. 1 to 7.

    Examples
    --------
    >>> import numpy as np
    >>> group_norm_forward(np.array([[1.0, 3.0, 4.0, 0.0]]), 2, eps=0)[0]
    array([[-1.,  1.,  1., -1.]])
    """
    if layout is not None:
        y, cache = by_layout(group_norm_forward, locals(), x=FEATURES, out=FEATURES)
        return y, cache._replace(layout=layout)
    shape = _pixels(checks.shape("x", x), scale is None)
    groups = checks.integer("groups", groups, 1)
    if shape[2] % groups:
        cure = "; for x of shape (n, c, …) write layout='nchw'" if x.ndim > 2 and x.shape[1] % groups == 0 else ""
        raise ValueError(f"groups must divide the number of channels, {shape[2]}, got {groups}{cure}")
    return _normalise(x, shape, groups, scale, shift, shape[2:], eps, out, mean, inv_std)


def instance_norm_forward(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
    layout: Layout | None = None,
) -> tuple[Array, GroupNormCache]:
    """Instance normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift``, per sample and channel.

    Parameters
    ----------
    x : ndarray (n, …, c)
    scale, shift, eps, out, mean, inv_std, layout
        As in `group_norm_forward` with c groups.

    Returns
    -------
    y : ndarray like `x`
    cache : GroupNormCache
        For `group_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] D. Ulyanov et al., "Instance normalization", 2016, eq. 2.

    Examples
    --------
    >>> import numpy as np
    >>> instance_norm_forward(np.array([[[1.0], [3.0]]]), eps=0)[0].ravel()
    array([-1.,  1.])
    """
    if layout is not None:
        y, cache = by_layout(instance_norm_forward, locals(), x=FEATURES, out=FEATURES)
        return y, cache._replace(layout=layout)
    shape = _pixels(checks.shape("x", x), scale is None)
    return _normalise(x, shape, max(shape[2], 1), scale, shift, shape[2:], eps, out, mean, inv_std)


def group_norm_backward(
    dy: Array,
    cache: GroupNormCache,
    out: Array | None = None,
    dscale: Array | None = None,
    dshift: Array | None = None,
    parts: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of `layer_norm_forward`, `group_norm_forward` and `instance_norm_forward`.

    Parameters
    ----------
    dy : ndarray like x
        The gradient with respect to y.
    cache : GroupNormCache
        From forward; x and scale must be unchanged since.
    out : ndarray like `dy`, optional
        Where to write dx.
    dscale, dshift : ndarray of as many elements as scale has or would have, optional
        Where to write those.
    parts : ndarray of the shape ``cache.parts_shape``, optional
        Room for sums over blocks of rows.

    Returns
    -------
    dx : ndarray like `dy`
    dscale, dshift : ndarray (channels,), or as given

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = layer_norm_forward(np.array([[1.0, 3.0]]), eps=0)
    >>> dx, dscale, dshift = group_norm_backward(np.array([[1.0, 3.0]]), cache)
    >>> dscale, dshift
    (array([-1.,  3.]), array([1., 3.]))
    """
    if not isinstance(cache, GroupNormCache):
        raise TypeError(f"cache must come from a forward pass of this family, got {type(cache).__name__}")
    if cache.layout != "nhwc":
        given = {**locals(), "cache": cache._replace(layout="nhwc"), "layout": cache.layout}
        return by_layout(group_norm_backward, given, dy=FEATURES, out=FEATURES)
    x, scale, mean, inv_std, groups, _ = cache
    channels = checks.shape("cache.x", x, ndim=3)[2]
    if channels % checks.integer("cache.groups", groups, 1):
        raise ValueError(f"cache.groups must divide the number of channels, {channels}, got {groups}")
    options = groups, _block(x.shape)
    dx, parts = _group_norm_backward.check(dy, x, scale, mean, inv_std, out, parts, *options)
    dlearnt = [np.empty(channels, x.dtype) if given is None else given for given in (dscale, dshift)]
    _group_norm_learnt_grads.check(parts, *dlearnt)
    inputs = {"cache.x": x, "cache.scale": scale, "cache.mean": mean, "cache.inv_std": inv_std}
    for name, array in zip(("dscale", "dshift"), dlearnt, strict=True):
        _apart(name, array, dy=dy, out=dx, **inputs)
    _group_norm_backward(dy, x, scale, mean, inv_std, dx, parts, *options)
    _group_norm_learnt_grads(parts, *dlearnt)
    return dx, dlearnt[0], dlearnt[1]


def _normalise(
    x: Array,
    shape: tuple[int, int, int],
    groups: int,
    scale: Array | None,
    shift: Array | None,
    learnt: tuple[int, ...],
    eps: float,
    out: Array | None,
    mean: NDArray[np.float64] | None,
    inv_std: NDArray[np.float64] | None,
) -> tuple[Array, GroupNormCache]:
    """Group norm of x as (rows, pixels, channels), with scale and shift of the shape `learnt`."""
    eps = checks.number("eps", eps, "[0, inf)")
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and checks.shape(name, value) != learnt:
            if shape[1] > 1:
                _refuse_channels_second(checks.shape("x", x), **{name: value})
            checks.array(name, value, dtype=checks.array("x", x).dtype, shape=learnt)
    y, mean, inv_std = _group_norm_forward(x, scale, shift, out, mean, inv_std, *shape, groups, eps)
    if not x.size:
        mean.fill(0)
        inv_std.fill(0)
    return y, GroupNormCache(x.reshape(shape), None if scale is None else scale.reshape(-1), mean, inv_std, groups)


@_kernels.Memoised
def _pixels(shape: tuple[int, ...], guess: bool) -> tuple[int, int, int]:
    """The shape (n, …, c) as (n, pixels, c); without a scale, which says what channels are, there is a guess at it."""
    if len(shape) < 2:
        raise ValueError(f"x must have shape (n, …, c), got {shape}")
    if guess:
        warn_of_channels_second(shape)
    return shape[0], math.prod(shape[1:-1]), shape[-1]


#: Of a block of rows whose gradients of scale and shift are summed up by themselves: elements and rows, at most, and
#: pixels, at least. The bits of these sums depend on them.
_BLOCK_ELEMENTS, _BLOCK_ROWS, _BLOCK_PIXELS = 1 << 16, 64, 16


def _block(shape: tuple[int, ...]) -> int:
    """How many rows of (rows, pixels, channels) are added up before their sum goes to a part of its own."""
    _, pixels, channels = shape
    fit = min(_BLOCK_ELEMENTS // max(pixels * channels, 1), _BLOCK_ROWS)
    return max(fit, -(-_BLOCK_PIXELS // max(pixels, 1)))


# ---- RMS norm -----------------------------------------------------------------------------------------------

_rms_norm_forward = kernel("rms_norm_forward", y="out")
_rms_norm_backward = kernel("rms_norm_backward", **_OF_CACHE | {"inv_rms": "cache.inv_rms"}, dx="out")


class RMSNormCache(NamedTuple):
    """What `rms_norm_backward` needs.

    Attributes
    ----------
    x, scale
        The arguments of the forward pass.
    inv_rms : float64 ndarray (rows,)
        ``1 / √(mean x² + eps)`` of each row.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt.functional as F
    >>> _, cache = F.rms_norm_forward(np.array([[3.0, -3.0]]), eps=0.0)
    >>> cache.inv_rms.round(2)
    array([0.33])
    """

    x: Array
    scale: Array | None
    inv_rms: NDArray[np.float64]

    @property
    def computed(self) -> tuple[Array, ...]:
        """The arrays that the forward pass computed."""
        return (self.inv_rms,)


def rms_norm_forward(
    x: Array,
    scale: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    inv_rms: NDArray[np.float64] | None = None,
) -> tuple[Array, RMSNormCache]:
    """RMS normalisation [1]_: ``y = scale·x / √(mean x² + eps)`` over the last axis.

    Parameters
    ----------
    x : ndarray (…, d)
    scale : ndarray (d,), optional
        Learnt for each element; 1 where absent.
    eps : float, default 1e-5
        Added to the mean square, in [0, inf).
    out : ndarray like `x`, optional
        Where to write y.
    inv_rms : float64 ndarray (rows,), optional
        Where to write the cache's; rows being the product of the other axes.

    Returns
    -------
    y : ndarray like `x`
    cache : RMSNormCache
        For `rms_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] B. Zhang and R. Sennrich, "Root mean square layer normalization", 2019, eq. 4.

    Examples
    --------
    >>> import numpy as np
    >>> rms_norm_forward(np.array([[3.0, 4.0, 0.0, 0.0]]), eps=0)[0]
    array([[1.2, 1.6, 0. , 0. ]])
    """
    y, inv_rms = _rms_norm_forward(x, scale, out, inv_rms, checks.number("eps", eps, "[0, inf)"))
    return y, RMSNormCache(x, scale, inv_rms)


def rms_norm_backward(
    dy: Array, cache: RMSNormCache, out: Array | None = None, dscale: Array | None = None
) -> tuple[Array, Array]:
    """The gradients of `rms_norm_forward`.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    cache : RMSNormCache
        From `rms_norm_forward`; x and scale must be unchanged since.
    out : ndarray like `dy`, optional
        Where to write dx.
    dscale : ndarray (d,), optional
        Where to write that.

    Returns
    -------
    dx : ndarray like `dy`
    dscale : ndarray (d,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = rms_norm_forward(np.array([[3.0, 4.0, 0.0, 0.0]]), eps=0)
    >>> rms_norm_backward(np.array([[2.5, 0.0, 0.0, 2.5]]), cache)
    (array([[ 0.64, -0.48,  0.  ,  1.  ]]), array([3., 0., 0., 0.]))
    """
    if not isinstance(cache, RMSNormCache):
        raise TypeError(f"cache must come from rms_norm_forward, got {type(cache).__name__}")
    return _rms_norm_backward(dy, *cache, out, dscale)


# ---- Weight norm --------------------------------------------------------------------------------------------

_weight_norm_forward = kernel("weight_norm_forward", weight="out")
_weight_norm_backward = kernel(
    "weight_norm_backward",
    direction="cache.direction",
    gain="cache.gain",
    norm="cache.norm",
    ddirection="out",
)


class WeightNormCache(NamedTuple):
    """What `weight_norm_backward` needs.

    Attributes
    ----------
    direction, gain
        The arguments of the forward pass.
    norm : float64 ndarray (outputs,)
        That of each output's direction.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt.functional as F
    >>> _, cache = F.weight_norm_forward(np.array([[3.0], [4.0]]), np.array([2.0]))
    >>> cache.norm
    array([5.])
    """

    direction: Array
    gain: Array
    norm: NDArray[np.float64]

    @property
    def computed(self) -> tuple[Array, ...]:
        """The arrays that the forward pass computed."""
        return (self.norm,)


def weight_norm_forward(
    direction: Array, gain: Array, out: Array | None = None, norm: NDArray[np.float64] | None = None
) -> tuple[Array, WeightNormCache]:
    """Weight normalisation [1]_: ``weight = gain·direction / ‖direction‖``, the norm over all axes but the last.

    Parameters
    ----------
    direction : ndarray (…, outputs)
        Where it is 0 for an output, the weight is NaN.
    gain : ndarray (outputs,)
    out : ndarray like `direction`, optional
        Where to write the weight.
    norm : float64 ndarray (outputs,), optional
        Where to write the cache's.

    Returns
    -------
    weight : ndarray like `direction`
    cache : WeightNormCache
        For `weight_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] T. Salimans and D. P. Kingma, "Weight normalization", 2016, eq. 2.

    Examples
    --------
    >>> import numpy as np
    >>> weight_norm_forward(np.array([[3.0], [4.0]]), np.array([10.0]))[0].ravel()
    array([6., 8.])
    """
    weight, norm = _weight_norm_forward(direction, gain, out, norm)
    return weight, WeightNormCache(direction, gain, norm)


def weight_norm_backward(
    dweight: Array, cache: WeightNormCache, out: Array | None = None, dgain: Array | None = None
) -> tuple[Array, Array]:
    """The gradients of `weight_norm_forward` [1]_.

    Parameters
    ----------
    dweight : ndarray (…, outputs)
        The gradient with respect to the weight.
    cache : WeightNormCache
        From `weight_norm_forward`; direction and gain must be unchanged since.
    out : ndarray like `dweight`, optional
        Where to write ddirection; may be `dweight` itself.
    dgain : ndarray (outputs,), optional
        Where to write that.

    Returns
    -------
    ddirection : ndarray like `dweight`
    dgain : ndarray (outputs,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] T. Salimans and D. P. Kingma, "Weight normalization", 2016, eq. 3.

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = weight_norm_forward(np.array([[3.0], [4.0]]), np.array([5.0]))
    >>> ddirection, dgain = weight_norm_backward(np.array([[1.0], [1.0]]), cache)
    >>> ddirection.ravel().round(2).tolist(), dgain
    ([0.16, -0.12], array([1.4]))
    """
    if not isinstance(cache, WeightNormCache):
        raise TypeError(f"cache must come from weight_norm_forward, got {type(cache).__name__}")
    return _weight_norm_backward(dweight, *cache, out, dgain)
