"""Dropout, alone and behind a bias with ReLU, by random bits that depend on a seed and a counter alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels, checks
from fastopt.checks import Array
from fastopt.kernel import kernel

__all__ = [
    "Counter",
    "bias_relu_dropout_backward",
    "bias_relu_dropout_forward",
    "dropout",
    "dropout_apply",
    "dropout_backward",
    "kept_share",
]


_dropout_forward = kernel("dropout_forward", y="out")
_dropout_apply = kernel("dropout_apply", y="out")
_dropout_apply_backward = kernel("dropout_apply", x="dy", y="out")
_bias_relu_dropout_forward = kernel("bias_relu_dropout_forward", y="out")
_bias_relu_backward = kernel("bias_relu_backward", dx="out")

PIs = Literal["drop", "keep"]
Mask = NDArray[np.uint8] | NDArray[np.bool_]
_BYTE = np.dtype(np.uint8)
_STEPS = _kernels.LIMITS["DROPOUT_STEPS"]
_LAST = 2**64 - 1
_MOST = 2**62  # what can be added to the number of an element of any array


class Counter:
    """A counter that counts by itself: each call of `dropout` and the like that gets it takes its value, and adds 1.

    A call that is refused takes none.

    Parameters
    ----------
    value : int, default 0
        In [0, 2**64).

    Attributes
    ----------
    value : int
        The one that the next call takes. With it, and the seed, a run that was stopped goes on with the masks that it
        would have had.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> counter = Counter()
    >>> masks = [dropout(np.ones(16), 0.5, seed=1, counter=counter)[1].tolist() for _ in range(2)]
    >>> masks[0] == masks[1], counter
    (False, Counter(2))
    """

    __slots__ = ("_value",)

    def __init__(self, value: int = 0) -> None:
        self.value = value

    @property
    def value(self) -> int:
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        self._value = checks.integer("value", value, 0, _LAST)

    def take(self) -> int:
        """The value, after which it is the next one (after 2**64 − 1, that is 0).

        Examples
        --------
        >>> counter = Counter()
        >>> counter.take(), counter.take(), counter
        (0, 1, Counter(2))
        """
        value = self._value
        self._value = (value + 1) & _LAST
        return value

    def __repr__(self) -> str:
        return f"Counter({self._value})"


def dropout(
    x: Array,
    p: float,
    *,
    seed: int | None = None,
    counter: int | Counter | None = None,
    rng: np.random.Generator | None = None,
    p_is: PIs = "drop",
    mask_format: Literal["bits", "bytes"] = "bits",
    out: Array | None = None,
    mask: NDArray[np.uint8] | None = None,
    inverted: bool = True,
    first: int = 0,
) -> tuple[Array, Mask]:
    """Inverted dropout [1]_: drop each element with probability `p`, and scale the rest by ``1 / (1 − p)``.

    The random bits are Philox4x32-7 [2]_ of (`seed`, `counter`), 16 per element, so the mask depends on these two,
    on `p` and on the number of elements alone: give each call in a training run a `counter` of its own, or a generator.

    Parameters
    ----------
    x : ndarray, any shape
    p : float
        The probability of dropping, in [0, 1). The nearest multiple of 2⁻¹⁶ (below 1) takes its place, in the scale as
        in the mask, so the expectation of y is x.
    seed : int
        In [0, 2**64).
    counter : int or Counter
        In [0, 2**64), or what counts by itself.
    rng : numpy.random.Generator, optional
        In place of `seed` and `counter`: draws both.
    p_is : {"drop", "keep"}, default "drop"
        ``"keep"`` makes `p` the probability of keeping, in (0, 1] (cs231n).
    mask_format : {"bits", "bytes"}, default "bits"
        ``"bits"``: uint8 (⌈size / 8⌉,), one bit per element, the lowest first, set where kept.
        ``"bytes"``: bool, shaped like `x`, to look at.
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.
    mask : uint8 ndarray (⌈size / 8⌉,), optional
        Where to write the mask's bits.
    inverted : bool, default True
        False leaves the rest unscaled: in inference, all is then to be scaled by `kept_share`.
    first : int, default 0
        The number of the first element of `x`: a part of an array, from that element on, gets the mask that it has in
        the whole.

    Returns
    -------
    y : ndarray like `x`
    mask : ndarray
        For `dropout_backward`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014, sec. 10.
    .. [2] J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.

    Examples
    --------
    >>> import numpy as np
    >>> y, mask = dropout(np.ones(1000), 0.5, seed=1, counter=0)
    >>> sorted(set(y.tolist())), bool(0.45 < np.mean(y > 0) < 0.55)
    ([0.0, 2.0], True)
    >>> mask.dtype, mask.shape
    (dtype('uint8'), (125,))
    >>> bool((dropout(np.ones(10), 0.5, seed=1, counter=0, first=990)[0] == y[990:]).all())
    True
    """
    cut, factor = threshold(p, p_is)
    if inverted is not True and not checks.flag("inverted", inverted):  # the usual case quickly
        factor = 1.0
    if mask_format != "bits":
        checks.choice("mask_format", mask_format, ("bits", "bytes"))
    if first != 0 or type(first) is not int:
        first = checks.integer("first", first, 0, _MOST)
    if type(counter) is int and rng is None:
        y, bits = _dropout_forward(x, out, mask, *key(seed, counter), first, cut, factor)
    else:
        _key(seed, counter, rng)
        y, bits = _dropout_forward.check(x, out, mask, 0, 0, first, cut, factor)
        _dropout_forward(x, y, bits, *_drawn(seed, counter, rng), first, cut, factor)
    if mask_format == "bytes":
        return y, np.unpackbits(bits, count=x.size, bitorder="little").view(np.bool_).reshape(x.shape)
    return y, bits


def dropout_apply(
    x: Array, mask: Mask, p: float, *, p_is: PIs = "drop", out: Array | None = None, inverted: bool = True
) -> Array:
    """Dropout with a given mask: ``y = x / (1 − p)`` where the mask is set, else 0. This is its own gradient.

    Parameters
    ----------
    x : ndarray, any shape
    mask : ndarray
        Your own: bool or 0/1 integers shaped like `x`, or bits as `dropout` returns them.
    p : float
        As in `dropout`, but exact: for a mask of `dropout`, give ``kept_share(p)`` and ``p_is="keep"``.
    p_is, out, inverted
        As in `dropout`.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> dropout_apply(np.ones(3), np.array([True, False, True]), 0.5)
    array([2., 0., 2.])
    """
    factor = _exact_factor(p, p_is) if checks.flag("inverted", inverted) else 1.0
    return _dropout_apply(x, _mask_bits(mask, "x", x), out, factor)


def dropout_backward(
    dy: Array, mask: Mask, p: float, *, p_is: PIs = "drop", out: Array | None = None, inverted: bool = True
) -> Array:
    """The gradient of `dropout`: ``dx = dy / (1 − p)`` where the mask is set, else 0.

    Parameters
    ----------
    dy : ndarray, any shape
        The gradient with respect to y.
    mask : ndarray
        As `dropout` returned it.
    p, p_is, out, inverted
        As in `dropout`; `out` may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> y, mask = dropout(np.ones(1000), 0.5, seed=1, counter=0)
    >>> dx = dropout_backward(np.ones(1000), mask, 0.5)
    >>> bool((dx == y).all())
    True
    """
    factor = threshold(p, p_is)[1] if checks.flag("inverted", inverted) else 1.0
    return _dropout_apply_backward(dy, _mask_bits(mask, "dy", dy), out, factor)


def kept_share(p: float, p_is: PIs = "drop") -> float:
    """The probability of keeping an element, with `p` rounded as in `dropout`.

    Parameters
    ----------
    p, p_is
        As in `dropout`.

    Returns
    -------
    float
        In (0, 1].

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> kept_share(0.25), kept_share(0.25, "keep")
    (0.75, 0.25)
    """
    return 1 / threshold(p, p_is)[1]


def bias_relu_dropout_forward(
    x: Array,
    bias: Array,
    p: float,
    *,
    seed: int | None = None,
    counter: int | Counter | None = None,
    rng: np.random.Generator | None = None,
    p_is: PIs = "drop",
    out: Array | None = None,
    first: int = 0,
) -> Array:
    """`bias_relu_forward` and then `dropout`, in one pass: the same numbers, and no mask to keep.

    Parameters
    ----------
    x : ndarray (…, d)
    bias : ndarray (d,)
    p, seed, counter, rng, p_is
        As in `dropout`.
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.
    first : int, default 0
        As in `dropout`.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> y = bias_relu_dropout_forward(np.ones((100, 9)), np.ones(9), 0.5, seed=1, counter=0)
    >>> sorted(set(y.ravel().tolist()))
    [0.0, 4.0]
    """
    cut, factor = threshold(p, p_is)
    if first != 0 or type(first) is not int:
        first = checks.integer("first", first, 0, _MOST)
    if type(counter) is not int or rng is not None:
        _key(seed, counter, rng)
        out = _bias_relu_dropout_forward.check(x, bias, out, 0, 0, first, cut, factor)
        seed, counter = _drawn(seed, counter, rng)
    return _bias_relu_dropout_forward(x, bias, out, *key(seed, counter), first, cut, factor)


def bias_relu_dropout_backward(
    dy: Array, y: Array, p: float, *, p_is: PIs = "drop", out: Array | None = None, dbias: Array | None = None
) -> tuple[Array, Array]:
    """The gradients of `bias_relu_dropout_forward`, in one pass: ``dx = 0`` where ``y <= 0``, else ``dy / (1 − p)``.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    y : ndarray like `dy`
        What `bias_relu_dropout_forward` returned.
    p, p_is
        As there.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.
    dbias : ndarray (d,), optional
        Where to write that.

    Returns
    -------
    dx : ndarray like `dy`
    dbias : ndarray (d,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> dx, dbias = bias_relu_dropout_backward(np.ones((2, 2)), np.array([[0.0, 4.0], [2.0, 2.0]]), 0.5)
    >>> dx
    array([[0., 2.],
           [2., 2.]])
    >>> dbias
    array([2., 4.])
    """
    return _bias_relu_backward(dy, y, out, dbias, threshold(p, p_is)[1])


def key(seed: Any, counter: Any) -> tuple[int, int]:
    """The checked key of random bits."""
    if type(seed) is type(counter) is int and 0 <= seed <= _LAST and 0 <= counter <= _LAST:
        return seed, counter  # the usual case quickly
    return checks.integer("seed", seed, 0, _LAST), checks.integer("counter", counter, 0, _LAST)


def _key(seed: Any, counter: Any, rng: Any) -> None:
    """Check what a key is to be drawn from; nothing is drawn yet."""
    if rng is None:
        if seed is None and counter is None:
            raise TypeError("seed and counter must be given, or rng, such as np.random.default_rng(1)")
        key(seed, counter.value if isinstance(counter, Counter) else counter)
        return
    if not isinstance(rng, np.random.Generator):
        cure = f"np.random.default_rng({rng!r})" if isinstance(rng, int) else "np.random.default_rng(1)"
        raise TypeError(f"rng must be a numpy.random.Generator, such as {cure}, got {type(rng).__name__}")
    if seed is not None or counter is not None:
        raise TypeError("rng must not be given with seed or counter, which it draws")


def _drawn(seed: Any, counter: Any, rng: np.random.Generator | None) -> tuple[int, int]:
    """The key of random bits, from what `_key` has checked."""
    if rng is not None:
        seed, counter = rng.integers(_LAST, size=2, dtype=np.uint64, endpoint=True).tolist()
        return seed, counter
    if not isinstance(counter, Counter):
        return key(seed, counter)
    return key(seed, counter.take())


@_kernels.Memoised
def threshold(p: float, p_is: PIs) -> tuple[int, float]:
    """Below which of DROPOUT_STEPS numbers an element is dropped, and by what the others are multiplied."""
    if checks.choice("p_is", p_is, ("drop", "keep")) == "keep":
        drop = 1 - checks.number("p", p, "(0, 1]")
    else:
        drop = checks.number("p", p, "[0, 1)")
    below = min(round(drop * _STEPS), _STEPS - 1)
    return below, _STEPS / (_STEPS - below)


@_kernels.Memoised
def _exact_factor(p: float, p_is: PIs) -> float:
    """1 / (1 − p), or 1 / p, with p as it is."""
    if checks.choice("p_is", p_is, ("drop", "keep")) == "keep":
        return checks.number("1 / p", 1 / checks.number("p", p, "(0, 1]"))
    return 1 / (1 - checks.number("p", p, "[0, 1)"))


def _mask_bits(mask: Any, name: str, x: Array) -> NDArray[np.uint8]:
    """A mask of either format as bits."""
    if not isinstance(x, np.ndarray):
        checks.array(name, x)
    size = (x.size + 7) // 8
    if type(mask) is np.ndarray and mask.dtype is _BYTE and mask.shape == (size,) != x.shape and mask.strides == (1,):
        return mask  # the usual case quickly
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "biu":
        checks.plain("mask", mask)
        if mask.shape == x.shape and (mask.dtype != np.uint8 or x.shape != (size,)):
            return np.packbits(mask.ravel() != 0, bitorder="little")
        if mask.shape == (size,) and mask.dtype == np.uint8:
            return np.ascontiguousarray(mask)
    got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
    raise ValueError(f"mask must be uint8 bits of shape {(size,)}, or bool of shape {x.shape}, got {got}")
