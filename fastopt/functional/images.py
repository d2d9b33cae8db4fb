"""Images (n, h, w, c): pooling, convolutions, and the patches under a sliding window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels, checks
from fastopt.checks import Array, Pair
from fastopt.functional.dense import bias_backward, dense_forward, dense_input_grad, dense_weight_grad
from fastopt.functional.layouts import (
    COLUMNS,
    DEPTHWISE_WEIGHT,
    WEIGHT,
    Layout,
    by_layout,
    hint,
    warn_of_channels_second,
    warn_of_filters_first,
)
from fastopt.kernel import dimension, kernel, shape_of

__all__ = [
    "average_pool_backward",
    "average_pool_forward",
    "col2im",
    "conv2d",
    "conv2d_fits",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "depthwise_backward",
    "depthwise_forward",
    "im2col",
    "max_pool_backward",
    "max_pool_forward",
    "packed_shape",
    "pad_backward",
    "pad_forward",
    "patches_shape",
    "winner_type",
    "winograd_fits",
]


_SCRATCH, _MAX_KERNEL_ROWS, _WINOGRAD_CHANNELS, _WINOGRAD_GRAIN = (
    _kernels.LIMITS[name] for name in ("SCRATCH", "MAX_KERNEL_ROWS", "WINOGRAD_CHANNELS", "WINOGRAD_GRAIN")
)

# ---- Windows ------------------------------------------------------------------------------------------------


class _Windows(NamedTuple):
    """Sizes of images; height and width of windows, strides, padding and dilation; and places down and across."""

    n: int
    h: int
    w: int
    c: int
    kh: int
    kw: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    oh: int
    ow: int


@_kernels.Memoised
def _windows(shape: Any, size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> _Windows:
    """The checked sizes of windows that slide over images."""
    if not (isinstance(shape, (tuple, list)) and len(shape) == 4):
        raise ValueError(f"shape must be (n, h, w, c), got {shape!r}")
    n, h, w, c = checks.lengths("shape", shape)
    (kh, kw), (sh, sw) = checks.pair("size", size, 1), checks.pair("stride", stride, 1)
    (ph, pw), (dh, dw) = checks.pair("padding", padding, 0), checks.pair("dilation", dilation, 1)
    oh, ow = dimension("windows", h, kh, sh, ph, dh), dimension("windows", w, kw, sw, pw, dw)
    if oh is None or ow is None:
        spread = "" if dh == dw == 1 else f" spread over {(dh * (kh - 1) + 1, dw * (kw - 1) + 1)}"
        wanted = f"size must be at most that of the padded image {(h + 2 * ph, w + 2 * pw)}"
        raise ValueError(f"{wanted}, got {(kh, kw)}{spread}{hint((n, h, w, c))}")
    warn_of_channels_second((n, h, w, c))
    return _Windows(n, h, w, c, kh, kw, sh, sw, ph, pw, dh, dw, oh, ow)


# ---- Patches ------------------------------------------------------------------------------------------------

_im2col = kernel("im2col", columns="out")
_col2im = kernel("col2im", dx="out")


def im2col(
    x: Array,
    size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    out: Array | None = None,
    *,
    dilation: Pair = 1,
    layout: Layout | None = None,
) -> Array:
    """The patch under each place of a sliding window, as a row: convolution becomes a matrix product.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    size : int or (int, int)
        Height kh and width kw of the window.
    stride : int or (int, int), default 1
    padding : int or (int, int), default 0
        Zeros on each side.
    out : ndarray (n, oh, ow, kh, kw, c), optional
        Where to write.
    dilation : int or (int, int), default 1
        Distance of neighbours in the window: only each such pixel is taken.
    layout : {"nhwc", "nchw"}, optional
        As in `max_pool_forward`. With ``"nchw"``, columns are (n, oh, ow, c, kh, kw), for weights (k, c, kh, kw):
        ``columns.reshape(-1, c * kh * kw) @ weight.reshape(k, -1).T``.

    Returns
    -------
    columns : ndarray (n, oh, ow, kh, kw, c)
        With ``oh = (h + 2·padding − dilation·(kh − 1) − 1) // stride + 1``. A copy:
        ``columns.reshape(-1, kh * kw * c)`` is free.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> columns = im2col(np.arange(9.0).reshape(1, 3, 3, 1), 2)
    >>> columns.shape
    (1, 2, 2, 2, 2, 1)
    >>> columns[0, 0, 0, :, :, 0]
    array([[0., 1.],
           [3., 4.]])
    """
    if layout is not None:
        return by_layout(im2col, locals(), out=COLUMNS)
    return _im2col(x, out, *_windows(checks.shape("x", x, ndim=4), size, stride, padding, dilation)[4:12])


def col2im(
    columns: Array,
    shape: tuple[int, int, int, int],
    size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    out: Array | None = None,
    *,
    dilation: Pair = 1,
    layout: Layout | None = None,
) -> Array:
    """The transpose of `im2col`, its gradient: rows are added back to the pixels that they came from.

    Parameters
    ----------
    columns : ndarray (n, oh, ow, kh, kw, c)
    shape : tuple of int
        The shape (n, h, w, c) of the image.
    size, stride, padding, dilation, layout
        As in `im2col`.
    out : ndarray (n, h, w, c), optional
        Where to write.

    Returns
    -------
    x : ndarray (n, h, w, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> col2im(np.ones((1, 2, 2, 2, 2, 1)), (1, 3, 3, 1), 2)[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    if layout is not None:
        return by_layout(col2im, locals())
    return _col2im(columns, out, *_windows(shape, size, stride, padding, dilation)[:12])


def patches_shape(
    shape: tuple[int, ...],
    size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    *,
    layout: Layout | None = None,
) -> tuple[int, ...]:
    """The shape (n, oh, ow, kh, kw, c) that `im2col` returns for images of a shape (n, h, w, c).

    Parameters
    ----------
    shape : tuple of int
        That of the images.
    size, stride, padding, dilation, layout
        As in `im2col`.

    Returns
    -------
    tuple of int

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> patches_shape((1, 5, 5, 3), 3, stride=2)
    (1, 2, 2, 3, 3, 3)
    """
    if layout is not None:
        wanted = by_layout(patches_shape, locals(), ())
        return tuple(wanted[axis] for axis in COLUMNS.inverse(6)) if layout == "nchw" else wanted
    windows = _windows(shape, size, stride, padding, dilation)
    return windows.n, windows.oh, windows.ow, windows.kh, windows.kw, windows.c


#: How many numbers im2col lays out at a time, at most, where one image has no more: the bits of the gradients of
#: weights depend on it.
_AT_A_TIME = 1 << 22


def _blocks(windows: _Windows, dtype: np.dtype[Any]) -> Iterator[tuple[slice, Array]]:
    """Some images at a time, and memory for their patches."""
    n, patch = windows.n, (windows.oh, windows.ow, windows.kh, windows.kw, windows.c)
    count = max(1, min(n, _AT_A_TIME // max(math.prod(patch), 1)))
    columns = np.empty((count, *patch), dtype)
    for first in range(0, max(n, 1), count):
        yield slice(first, first + count), columns[: n - first]


def _matrix(array: Array) -> Array:
    """Images, patches or weights as a matrix, whose rows the first three axes count."""
    return array.reshape(math.prod(array.shape[:3]), math.prod(array.shape[3:]))


# ---- Pooling ------------------------------------------------------------------------------------------------

_pad_forward = kernel("pad_forward", y="out")
_pad_backward = kernel("pad_backward", dx="out")
#: On both sides of height and width.
Border = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def border(name: str, value: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """A border as ((top, bottom), (left, right)), checked."""
    sides = value if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"{name} must be an integer, a pair (height, width) or a pair of pairs, got {value!r}")
    rows, columns = (checks.pair(name, each, 0) for each in sides)
    return rows, columns


def pad_forward(
    x: Array, padding: Border, value: float = 0.0, out: Array | None = None, *, layout: Layout | None = None
) -> Array:
    """Images with a border of one value.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    padding : int, (int, int) or ((int, int), (int, int))
        Pixels on each side: all alike, of height and width, or ``((top, bottom), (left, right))``.
    value : float, default 0.0
        Minus infinity is one that no maximum takes.
    out : ndarray (n, top + h + bottom, left + w + right, c), optional
        Where to write y.
    layout : {"nhwc", "nchw"}, optional
        As in `max_pool_forward`.

    Returns
    -------
    y : ndarray (n, top + h + bottom, left + w + right, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> pad_forward(np.ones((1, 1, 1, 1)), ((1, 0), (0, 2)), 5.0)[0, :, :, 0]
    array([[5., 5., 5.],
           [1., 5., 5.]])
    """
    if layout is not None:
        return by_layout(pad_forward, locals())
    (top, bottom), (left, right) = border("padding", padding)
    return _pad_forward(x, out, top, bottom, left, right, checks.real("value", value))


def pad_backward(
    dy: Array,
    shape: tuple[int, int, int, int],
    padding: Border,
    out: Array | None = None,
    *,
    layout: Layout | None = None,
) -> Array:
    """The gradient of `pad_forward`: images without their border.

    Parameters
    ----------
    dy : ndarray (n, top + h + bottom, left + w + right, c)
    shape : tuple of int
        The shape (n, h, w, c) of x.
    padding, layout
        As in `pad_forward`.
    out : ndarray (n, h, w, c), optional
        Where to write dx.

    Returns
    -------
    dx : ndarray (n, h, w, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> pad_backward(np.arange(3.0).reshape(1, 1, 3, 1), (1, 1, 1, 1), (0, 1)).ravel()
    array([1.])
    """
    if layout is not None:
        return by_layout(pad_backward, locals())
    (top, bottom), (left, right) = border("padding", padding)
    if not (isinstance(shape, (tuple, list)) and len(shape) == 4):
        raise ValueError(f"shape must be (n, h, w, c), got {shape!r}")
    return _pad_backward(dy, out, *checks.lengths("shape", shape), top, bottom, left, right)


_max_pool_forward = kernel("max_pool_forward", y="out")
_max_pool_backward = kernel("max_pool_backward", dx="out")
_average_pool_forward = kernel("average_pool_forward", y="out")
_average_pool_backward = kernel("average_pool_backward", dx="out")


def max_pool_forward(
    x: Array,
    size: Pair,
    stride: Pair | None = None,
    out: Array | None = None,
    winner: NDArray[Any] | None = None,
    *,
    layout: Layout | None = None,
) -> tuple[Array, NDArray[Any]]:
    """The maximum of each window, without padding. NaN wins; of equals, the first.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Distance from window to window; `size` where absent. What is left over at the border is ignored.
    out : ndarray (n, oh, ow, c), optional
        Where to write y.
    winner : ndarray (n, oh, ow, c) of `winner_type`, optional
        Where to write that.
    layout : {"nhwc", "nchw"}, optional
        Where the channels of images are. ``"nchw"`` takes and returns (n, c, h, w) in place of each (n, h, w, c), by
        copies; what is read then need not be C-contiguous. Where absent, they are last, and images that look otherwise
        get a hint.

    Returns
    -------
    y : ndarray (n, oh, ow, c)
        With ``oh = (h − size) // stride + 1``.
    winner : integer ndarray like y
        For `max_pool_backward`: which element of its window won, counted row by row.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> y, winner = max_pool_forward(np.arange(16.0).reshape(1, 4, 4, 1), 2)
    >>> y[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    >>> winner.ravel().tolist()
    [3, 3, 3, 3]
    """
    if layout is not None:
        return by_layout(max_pool_forward, locals(), ("out", "winner"))
    return _max_pool_forward(x, out, winner, *_pooling(checks.shape("x", x, ndim=4), size, stride)[4:])


def max_pool_backward(
    dy: Array,
    winner: NDArray[Any],
    shape: tuple[int, int, int, int],
    size: Pair,
    stride: Pair | None = None,
    out: Array | None = None,
    *,
    layout: Layout | None = None,
) -> Array:
    """The gradient of `max_pool_forward`: each dy goes to the element that won.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, c)
        The gradient with respect to y.
    winner : integer ndarray like `dy`
        From `max_pool_forward`.
    shape : tuple of int
        The shape (n, h, w, c) of x.
    size, stride, layout
        As in `max_pool_forward`.
    out : ndarray (n, h, w, c), optional
        Where to write dx.

    Returns
    -------
    dx : ndarray (n, h, w, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(8.0).reshape(1, 2, 4, 1)
    >>> y, winner = max_pool_forward(x, 2)
    >>> max_pool_backward(y, winner, x.shape, 2)[0, :, :, 0]
    array([[0., 0., 0., 0.],
           [0., 5., 0., 7.]])
    """
    if layout is not None:
        return by_layout(max_pool_backward, locals())
    return _max_pool_backward(dy, winner, out, *_pooling(shape, size, stride))


def average_pool_forward(
    x: Array,
    size: Pair,
    stride: Pair | None = None,
    out: Array | None = None,
    *,
    layout: Layout | None = None,
) -> Array:
    """The mean of each window, without padding.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    size, stride, layout
        As in `max_pool_forward`.
    out : ndarray (n, oh, ow, c), optional
        Where to write y.

    Returns
    -------
    y : ndarray (n, oh, ow, c)
        With ``oh = (h − size) // stride + 1``.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> average_pool_forward(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    if layout is not None:
        return by_layout(average_pool_forward, locals())
    return _average_pool_forward(x, out, *_pooling(checks.shape("x", x, ndim=4), size, stride)[4:])


def average_pool_backward(
    dy: Array,
    shape: tuple[int, int, int, int],
    size: Pair,
    stride: Pair | None = None,
    out: Array | None = None,
    *,
    layout: Layout | None = None,
) -> Array:
    """The gradient of `average_pool_forward`: each dy is shared out among the elements of its window.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, c)
        The gradient with respect to y.
    shape : tuple of int
        The shape (n, h, w, c) of x.
    size, stride, layout
        As in `max_pool_forward`.
    out : ndarray (n, h, w, c), optional
        Where to write dx.

    Returns
    -------
    dx : ndarray (n, h, w, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> average_pool_backward(np.ones((1, 1, 2, 1)), (1, 2, 4, 1), 2)[0, :, :, 0]
    array([[0.25, 0.25, 0.25, 0.25],
           [0.25, 0.25, 0.25, 0.25]])
    """
    if layout is not None:
        return by_layout(average_pool_backward, locals())
    return _average_pool_backward(dy, out, *_pooling(shape, size, stride))


def winner_type(real: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the places that `max_pool_forward` returns beside reals of a type: integers as wide.

    Parameters
    ----------
    real : numpy.dtype
        float32 or float64.

    Returns
    -------
    numpy.dtype
        int32 or int64.

    Examples
    --------
    >>> import numpy as np
    >>> winner_type(np.dtype(np.float32))
    dtype('int32')
    """
    if real not in (np.float32, np.float64):
        raise TypeError(f"real must be float32 or float64, got {real!r}")
    return np.dtype(np.int32 if real == np.float32 else np.int64)


@_kernels.Memoised
def _pooling(shape: Any, size: Pair, stride: Pair | None) -> tuple[int, ...]:
    """Sizes for the kernels: n, h, w, c, and height and width of the window and of the stride."""
    return _windows(shape, size, size if stride is None else stride, 0, 1)[:8]


# ---- Convolution --------------------------------------------------------------------------------------------

_conv_pack = kernel("conv_pack")
_conv_forward = kernel("conv_forward", y="out")
_conv_input_grad = kernel("conv_forward", x="dy", y="out")
_conv_weight_grad = kernel("conv_weight_grad", dweight="out")
_winograd_pack = kernel("winograd_pack")
_winograd_forward = kernel("winograd_forward", y="out")
_winograd_input_grad = kernel("winograd_forward", x="dy", y="out")
_winograd_weight_grad = kernel("winograd_weight_grad", dweight="out")


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    *,
    dilation: Pair = 1,
    relu: bool = False,
    winograd: bool = False,
    out: Array | None = None,
    packed: Array | None = None,
    layout: Layout | None = None,
) -> Array:
    """A convolution: ``y = Σ x[…, s·oy + d·ky − p, s·ox + d·kx − p, c] · weight[ky, kx, c, k] + bias``.

    Computed by a kernel of its own where `conv2d_fits` says so, which is faster than a matrix product where there are
    few channels; else by `im2col` and `dense_forward`, some images at a time.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    weight : ndarray (kh, kw, c, k)
    bias : ndarray (k,), optional
    stride : int or (int, int), default 1
    padding : int or (int, int), default 0
    dilation : int or (int, int), default 1
        As in `im2col`.
    relu : bool, default False
        Whether to apply `relu_forward` to y.
    winograd : bool, default False
        Whether to compute by Winograd's F(2 × 2, 3 × 3) [1]_, about twice as fast: see `winograd_fits` for what it
        takes. Sums are rounded in another order; and a NaN or infinity reaches the whole 2 × 2 pixels of a tile.
    out : ndarray (n, oh, ow, k), optional
        Where to write y.
    packed : ndarray of `packed_shape`, optional
        Where to lay out the weights meanwhile.
    layout : {"nhwc", "nchw"}, optional
        As in `max_pool_forward`; with ``"nchw"``, the weight is (k, c, kh, kw).

    Returns
    -------
    y : ndarray (n, oh, ow, k)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", 2016, sec. 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 16)), padding=1)[0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    >>> conv2d(np.ones((1, 3, 8, 8)), np.ones((16, 3, 5, 5)), padding=2, layout="nchw").shape
    (1, 16, 8, 8)
    """
    if layout is not None:
        return by_layout(conv2d, locals())
    shape = checks.shape("x", x, ndim=4)
    windows = _windows_of_weight(shape, weight, stride, padding, dilation, checks.array("x", x).dtype)
    filters, relu = weight.shape[3], checks.flag("relu", relu)
    reads = {"x": x, "weight": weight, "bias": bias}
    if _by_winograd(winograd, weight.shape, stride, dilation):
        options = windows.pad_h, windows.pad_w, filters, relu
        return _convolve(_winograd_pack, _winograd_forward, reads, out, packed, False, options)
    if _fits(windows, filters):
        return _convolve(_conv_pack, _conv_forward, reads, out, packed, False, (*windows[4:10], filters, relu))
    if bias is not None:
        checks.array("bias", bias, dtype=x.dtype, shape=(filters,))
    y = _result(out, (windows.n, windows.oh, windows.ow, filters), reads)
    _check_packed(weight, packed, False)
    for some, columns in _blocks(windows, x.dtype):
        _im2col(x[some], columns, *windows[4:12])
        dense_forward(_matrix(columns), _matrix(weight), bias, relu=relu, out=_matrix(y[some]))
    return y


def conv2d_input_grad(
    dy: Array,
    weight: Array,
    shape: tuple[int, int, int, int],
    padding: Pair = 0,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    winograd: bool = False,
    out: Array | None = None,
    packed: Array | None = None,
    layout: Layout | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to x.

    Computed by the kernel of `conv2d` for a stride of 1 and a padding below the weight's size; else by
    `dense_input_grad` and `col2im`.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, k)
        The gradient with respect to y.
    weight : ndarray (kh, kw, c, k)
    shape : tuple of int
        The shape (n, h, w, c) of x.
    padding, stride, dilation, winograd, layout
        As in `conv2d`.
    out : ndarray (n, h, w, c), optional
        Where to write dx.
    packed : ndarray of ``packed_shape(weight.shape, reverse=True)``, optional
        Where to lay out the weights meanwhile.

    Returns
    -------
    dx : ndarray (n, h, w, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d_input_grad(np.ones((1, 2, 2, 1)), np.ones((2, 2, 1, 1)), (1, 3, 3, 1))[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    if layout is not None:
        return by_layout(conv2d_input_grad, locals())
    checks.shape("dy", dy, ndim=4)
    windows = _windows_of_weight(shape, weight, stride, padding, dilation, checks.array("dy", dy).dtype)
    n, h, w, c, kh, kw, *strides, pad_h, pad_w, _, _, oh, ow = windows
    checks.array("dy", dy, shape=(n, oh, ow, weight.shape[3]))
    # A convolution of dy, whose weights are those of y with the taps in reverse order.
    pads = kh - 1 - pad_h, kw - 1 - pad_w
    reads = {"dy": dy, "weight": weight, "bias": None}
    if _by_winograd(winograd, weight.shape, stride, dilation):
        if min(pads) < 0:
            raise ValueError(f"winograd must be False for a padding of more than 2, got {(pad_h, pad_w)}")
        return _convolve(_winograd_pack, _winograd_input_grad, reads, out, packed, True, (*pads, c, False))
    if strides == [1, 1] and min(pads) >= 0 and _fits(windows, weight.shape[3]):
        return _convolve(_conv_pack, _conv_input_grad, reads, out, packed, True, (kh, kw, 1, 1, *pads, c, False))
    dx = _result(out, (n, h, w, c), reads)
    _check_packed(weight, packed, True)
    for some, columns in _blocks(windows, dy.dtype):
        dense_input_grad(_matrix(dy[some]), _matrix(weight), out=_matrix(columns))
        _col2im(columns, dx[some], len(columns), *windows[1:12])
    return dx


def conv2d_weight_grad(
    x: Array,
    dy: Array,
    size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    *,
    dilation: Pair = 1,
    winograd: bool = False,
    out: Array | None = None,
    sums: Array | None = None,
    dbias: Array | None = None,
    layout: Layout | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to the weight, and to the bias where wanted.

    Computed by a kernel of its own where `conv2d_fits` says so and k is a multiple of 16; else by `im2col` and
    `dense_weight_grad`.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    dy : ndarray (n, oh, ow, k)
        The gradient with respect to y.
    size : int or (int, int)
        Height kh and width kw of the weight.
    stride, padding, dilation, winograd, layout
        As in `conv2d`.
    out : ndarray (kh, kw, c, k), optional
        Where to write dweight.
    sums : ndarray (16, c, k), optional
        Where to sum up meanwhile, for `winograd`.
    dbias : ndarray (k,), optional
        Where to write the gradient with respect to the bias: the sum of dy over pixels. The kernel takes it as those of
        the weights, by blocks in the real type (`bias_backward` goes over to double).

    Returns
    -------
    dweight : ndarray (kh, kw, c, k)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d_weight_grad(np.ones((1, 4, 4, 1)), np.ones((1, 3, 3, 16)), 2)[:, :, 0, 0]
    array([[9., 9.],
           [9., 9.]])
    """
    if layout is not None:
        return by_layout(conv2d_weight_grad, locals(), out=WEIGHT)
    windows = _windows(checks.shape("x", x, ndim=4), size, stride, padding, dilation)
    filters = checks.shape("dy", dy, ndim=4)[3]
    checks.array("dy", dy, dtype=checks.array("x", x).dtype, shape=(windows.n, windows.oh, windows.ow, filters))
    weight = windows.kh, windows.kw, windows.c, filters
    if _by_winograd(winograd, weight, stride, dilation):
        return _winograd_weight_grad(x, dy, out, sums, dbias, windows.pad_h, windows.pad_w)[0]
    if _fits(windows, filters) and filters % _WINOGRAD_GRAIN == 0:
        return _conv_weight_grad(x, dy, out, dbias, *windows[4:10])[0]
    reads = {"x": x, "dy": dy}
    dweight = _result(out, weight, reads)
    if dbias is not None:
        _result(dbias, (filters,), reads | {"out": dweight}, "dbias")
    part = np.empty_like(dweight)
    for some, columns in _blocks(windows, x.dtype):
        _im2col(x[some], columns, *windows[4:12])
        dense_weight_grad(_matrix(columns), _matrix(dy[some]), out=_matrix(part if some.start else dweight))
        if some.start:
            with np.errstate(all="ignore"):
                dweight += part
    if dbias is not None:
        bias_backward(dy, out=dbias)
    return dweight


def conv2d_fits(
    shape: tuple[int, ...],
    filters: int,
    size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    *,
    layout: Layout | None = None,
) -> bool:
    """Whether `conv2d` and its gradients need no `im2col` for images of a shape (n, h, w, c): a weight's height of
    rows, with all the padding that each needs, holds at most 2¹⁴ numbers, in x as in dy.

    Parameters
    ----------
    shape : tuple of int
        That of x, (n, h, w, c).
    filters : int
        The number k of output channels.
    size : int or (int, int)
        Height kh and width kw of the weight.
    stride : int or (int, int), default 1
    padding : int or (int, int), default 0
    layout : {"nhwc", "nchw"}, optional
        As in `conv2d`.

    Returns
    -------
    bool

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> conv2d_fits((64, 28, 28, 16), 16, 3), conv2d_fits((1, 28, 2000, 16), 16, 3)
    (True, False)
    """
    if layout is not None:
        return by_layout(conv2d_fits, locals(), ())
    return _fits(_windows(shape, size, stride, padding, 1), checks.integer("filters", filters, 0))


def _fits(windows: _Windows, filters: int) -> bool:
    _, _, w, c, kh, kw, _, stride_w, _, _, dilation_h, dilation_w, _, ow = windows
    width = max(((ow - 1) * stride_w + kw) * c, (w + kw - 1) * filters)
    return dilation_h == dilation_w == 1 and kh <= _MAX_KERNEL_ROWS and kh * width <= _SCRATCH


def winograd_fits(weight: tuple[int, ...], stride: Pair = 1, *, layout: Layout | None = None) -> bool:
    """Whether weights of a shape (kh, kw, c, k) can be had with ``winograd=True``: 3 × 3 at a stride of 1, c and k
    multiples of 16 up to 128.

    Parameters
    ----------
    weight : tuple of int
        The shape of the weight.
    stride : int or (int, int), default 1
    layout : {"nhwc", "nchw"}, optional
        As in `conv2d`.

    Returns
    -------
    bool

    Examples
    --------
    >>> winograd_fits((3, 3, 16, 32)), winograd_fits((3, 3, 1, 16)), winograd_fits((3, 3, 16, 32), stride=2)
    (True, False, False)
    """
    if layout is not None:
        return by_layout(winograd_fits, locals(), ())
    kh, kw, *deep = _weight(weight)
    fit = (n % _WINOGRAD_GRAIN == 0 and 0 < n <= _WINOGRAD_CHANNELS for n in deep)
    return (kh, kw) == (3, 3) and checks.pair("stride", stride, 1) == (1, 1) and all(fit)


def _by_winograd(winograd: bool, weight: tuple[int, ...], stride: Pair, dilation: Pair) -> bool:
    if not checks.flag("winograd", winograd):
        return False
    if not winograd_fits(weight, stride):
        raise ValueError(f"winograd must be False for a weight of shape {weight} at stride {stride}: see winograd_fits")
    if checks.pair("dilation", dilation, 1) != (1, 1):
        raise ValueError(f"winograd must be False for a dilation of {dilation}")
    return True


def _windows_of_weight(
    shape: Any, weight: Array, stride: Pair, padding: Pair, dilation: Pair, dtype: np.dtype[Any]
) -> _Windows:
    """The windows of weights, which fit the images."""
    kh, kw, c, filters = weights = checks.shape("weight", weight, ndim=4)
    checks.array("weight", weight, dtype=dtype)
    if isinstance(shape, (tuple, list)) and len(shape) == 4 and shape[3] != c:
        _, second, _, channels = checks.lengths("shape", shape)
        cure = hint(tuple(shape))
        if weights[1] == second:
            cure = "; for weights (k, c, kh, kw) and images (n, c, h, w) write layout='nchw'"
        elif weights[1] == channels:
            cure = "; for weights (k, c, kh, kw) write np.ascontiguousarray(weight.transpose(2, 3, 1, 0))"
        raise ValueError(f"weight must have shape (kh, kw, {channels}, k), got {weights}{cure}")
    if kh > kw == c == filters == 3:
        warn_of_filters_first(weights)
    return _windows(shape, (kh, kw), stride, padding, dilation)


def _result(given: Array | None, shape: tuple[int, ...], reads: Mapping[str, Array | None], name: str = "out") -> Array:
    """The array for a result: the given one, where it fits and shares no memory with others, else a new one."""
    dtype = next(array.dtype for array in reads.values() if array is not None)
    if given is None:
        return np.empty(shape, dtype)
    checks.array(name, given, dtype=dtype, shape=shape, writable=True)
    for other, array in reads.items():
        if array is not None:
            checks.apart({name: given, other: array})
    return given


def _check_packed(weight: Array, packed: Array | None, reverse: bool) -> None:
    if packed is not None:
        _conv_pack.check(weight, packed, reverse)


def packed_shape(
    weight: tuple[int, ...],
    *,
    reverse: bool = False,
    winograd: bool = False,
    layout: Layout | None = None,
) -> tuple[int, ...]:
    """The shape in which `conv2d` (with `reverse`, `conv2d_input_grad`) lays out weights of a shape (kh, kw, c, k).

    Parameters
    ----------
    weight : tuple of int
        The shape of the weight.
    reverse : bool, default False
        For `conv2d_input_grad`.
    winograd : bool, default False
        Whether that is to compute by Winograd's algorithm.
    layout : {"nhwc", "nchw"}, optional
        As in `conv2d`, for the shape of the weight.

    Returns
    -------
    tuple of int

    Examples
    --------
    >>> packed_shape((3, 3, 16, 48)), packed_shape((3, 3, 16, 48), winograd=True)
    ((2, 9, 16, 32), (16, 2, 16, 32))
    """
    if layout is not None:
        return by_layout(packed_shape, locals(), ())
    kh, kw, c, filters = _weight(weight)
    reverse = checks.flag("reverse", reverse)
    if checks.flag("winograd", winograd):
        return shape_of("winograd_pack", "packed", c=c, filters=filters, reverse=reverse)
    return shape_of("conv_pack", "packed", taps=kh * kw, c=c, filters=filters, reverse=reverse)


def _weight(shape: Any) -> tuple[int, int, int, int]:
    """A checked shape of weights."""
    if not (isinstance(shape, (tuple, list)) and len(shape) == 4):
        raise ValueError(f"weight must be a shape (kh, kw, c, k), got {shape!r}")
    kh, kw, c, filters = checks.lengths("weight", shape)
    return kh, kw, c, filters


def _convolve(
    pack: _kernels.Layer,
    run: _kernels.Layer,
    reads: Mapping[str, Array | None],
    out: Array | None,
    packed: Array | None,
    reverse: bool,
    options: tuple[Any, ...],
) -> Array:
    """A convolution of x by weights that are packed first, with a bias; all is checked before that."""
    x, weight, bias = reads.values()
    packed = pack.check(weight, packed, reverse)
    out = run.check(x, packed, bias, out, *options)
    given = {name: array for name, array in reads.items() if array is not None}
    for name, array in given.items():
        checks.apart({"packed": packed, name: array})
    checks.apart({"out": out, "weight": given["weight"]})
    pack(weight, packed, reverse)
    return run(x, packed, bias, out, *options)


# ---- Depthwise convolution ----------------------------------------------------------------------------------

_depthwise_forward = kernel("depthwise_forward", y="out")
_depthwise_backward = kernel("depthwise_backward", dx="out")
_depthwise_weight_backward = kernel("depthwise_weight_backward", dweight="dweight")
_DEPTHWISE_WEIGHTS: Any = {"weight": DEPTHWISE_WEIGHT, "dweight": DEPTHWISE_WEIGHT}


def depthwise_forward(
    x: Array,
    weight: Array,
    stride: Pair = 1,
    padding: Pair = 0,
    out: Array | None = None,
    *,
    dilation: Pair = 1,
    layout: Layout | None = None,
) -> Array:
    """A convolution of each channel by itself: ``y = Σ x[window]·weight``.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    weight : ndarray (kh, kw, c)
    stride : int or (int, int), default 1
    padding : int or (int, int), default 0
    out : ndarray (n, oh, ow, c), optional
        Where to write y.
    dilation : int or (int, int), default 1
        As in `im2col`.
    layout : {"nhwc", "nchw"}, optional
        As in `max_pool_forward`; with ``"nchw"``, the weight is (c, 1, kh, kw).

    Returns
    -------
    y : ndarray (n, oh, ow, c)
        With oh and ow as in `im2col`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.ones((2, 2, 2)) * [1.0, 2.0]
    >>> depthwise_forward(np.ones((1, 2, 2, 2)), weight)
    array([[[[4., 8.]]]])
    """
    if layout is not None:
        return by_layout(depthwise_forward, locals(), **_DEPTHWISE_WEIGHTS)
    windows = _depthwise(checks.shape("x", x, ndim=4), weight, stride, padding, dilation)
    return _depthwise_forward(x, weight, out, *windows[6:12])


def depthwise_backward(
    dy: Array,
    x: Array,
    weight: Array,
    stride: Pair = 1,
    padding: Pair = 0,
    out: Array | None = None,
    dweight: Array | None = None,
    *,
    dilation: Pair = 1,
    input_grad: bool = True,
    layout: Layout | None = None,
) -> tuple[Array | None, Array]:
    """The gradients of `depthwise_forward`.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, c)
        The gradient with respect to y.
    x, weight, stride, padding, dilation, layout
        As there.
    out : ndarray (n, h, w, c), optional
        Where to write dx.
    dweight : ndarray (kh, kw, c), optional
        Where to write that.
    input_grad : bool, default True
        False leaves dx out.

    Returns
    -------
    dx : ndarray (n, h, w, c) or None
    dweight : ndarray (kh, kw, c)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight = np.ones((1, 2, 2, 2)), np.ones((2, 2, 2))
    >>> dx, dweight = depthwise_backward(np.ones((1, 1, 1, 2)), x, weight)
    >>> dx.shape, dweight[:, :, 0].tolist()
    ((1, 2, 2, 2), [[1.0, 1.0], [1.0, 1.0]])
    """
    if layout is not None:
        return by_layout(depthwise_backward, locals(), ("out", "dweight"), **_DEPTHWISE_WEIGHTS)
    _, h, w, _, kh, kw, *how, _, _ = _depthwise(checks.shape("x", x, ndim=4), weight, stride, padding, dilation)
    checks.array("weight", weight, dtype=checks.array("x", x).dtype)
    dweight = _depthwise_weight_backward.check(dy, x, dweight, kh, kw, *how)
    checks.apart({"dweight": dweight, "weight": weight})
    if checks.flag("input_grad", input_grad):
        out = _depthwise_backward.check(dy, weight, out, h, w, *how)
        checks.apart({"out": out, "x": x})
        checks.apart({"out": out, "dweight": dweight})
        _depthwise_backward(dy, weight, out, h, w, *how)
    else:
        out = None
    return out, _depthwise_weight_backward(dy, x, dweight, kh, kw, *how)


def _depthwise(shape: tuple[int, ...], weight: Array, stride: Pair, padding: Pair, dilation: Pair) -> _Windows:
    try:
        kh, kw, channels = checks.shape("weight", weight, ndim=3)
    except ValueError as error:
        cure = "; for (c, 1, kh, kw), and images (n, c, h, w), write layout='nchw'" if weight.ndim == 4 else ""
        raise ValueError(f"{error}{cure}") from None
    if channels != shape[3]:
        raise ValueError(f"weight must have {shape[3]} channels, got shape {weight.shape}{hint(shape)}")
    return _windows(shape, (kh, kw), stride, padding, dilation)
