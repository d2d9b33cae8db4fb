"""Augmentations that mix two images, and their targets by the same shares: distributions come out of labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.data.augment.base import CHUNK, Augmentation, Rng, drawn, drawn_log, limits, one_hot
from fastopt.data.augment.colors import rectangles
from fastopt.data.augment.pixels import mixed


@dataclass(frozen=True, repr=False)
class _Mixing(Augmentation):
    """The base of what mixes each image with another one of the batch: the next one in a random cycle of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None:  # type: ignore[attr-defined]
            self._set(classes=checks.integer("classes", self.classes, 1, 2**31))  # type: ignore[attr-defined]

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        y = _soft(y, self.classes)  # type: ignore[attr-defined]
        cycle, chosen = rng.permutation(len(x)), self._chosen(len(x), rng)
        partner = np.empty_like(cycle)
        partner[cycle] = np.roll(cycle, 1)
        out, share = self._mixed(x, partner, chosen, rng)
        if y is None:
            return out, None
        own = share.reshape(-1, *(1,) * (y.ndim - 1))
        return out, (own * y + (1 - own) * y[partner]).astype(y.dtype)

    def _mixed(self, x: Array, partner: Array, chosen: Array, rng: Rng) -> tuple[Array, Array]:
        """New images, and the share (n,), float64, of each in what has become of it."""
        raise TypeError("a subclass defines how images are mixed")


def _soft(y: Array | None, classes: int | None) -> Array | None:
    """Targets that can be mixed: real numbers."""
    if y is None or y.dtype.kind == "f":
        return y
    if y.dtype.kind not in "iub" or y.ndim != 1:
        raise TypeError(f"y must be labels (n,) or real numbers, got {y.dtype} {y.shape}")
    if classes is None:
        raise ValueError("classes must be given to mix integer labels, got None: write classes=10, say")
    return one_hot(y.astype(np.int64) if y.dtype.kind == "b" else y, classes)


@dataclass(frozen=True, repr=False)
class Mixup(_Mixing):
    """The weighted mean of two images: ``λ·x + (1 − λ)·x'``, λ from Beta(α, α) [1]_, drawn for each image.

    Parameters
    ----------
    alpha : float, default 0.2
        In (0, 1000]. 1 draws λ uniformly; less, mostly next to 0 and 1.
    classes : int, optional
        Into how many columns integer labels y (n,) are made one-hot, float32; needed for those alone. Other targets are
        real numbers (n, …), such as distributions (n, classes), and are mixed as they are.
    p : float, default 1.0
        The probability for an image to be mixed; one-hot become all labels.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where labels come without `classes`, or are not below it.

    References
    ----------
    .. [1] H. Zhang et al., "mixup: beyond empirical risk minimization", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x, y = np.eye(2).reshape(2, 1, 2, 1), np.array([0, 1])
    >>> x, soft = augment.Mixup(classes=2)(x, y, np.random.default_rng(1))
    >>> bool(np.allclose(x[:, 0, :, 0], soft)), soft.sum(axis=1).tolist()
    (True, [1.0, 1.0])
    """

    alpha: float = 0.2
    classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(alpha=checks.number("alpha", self.alpha, "(0, 1000]"))

    def _mixed(self, x: Array, partner: Array, chosen: Array, rng: Rng) -> tuple[Array, Array]:
        share = np.where(chosen, rng.beta(self.alpha, self.alpha, len(x)), 1)
        if x.dtype != np.uint8:
            return mixed(x, partner, share), share
        values, out = x.reshape(len(x), -1), np.empty((len(x), x[0].size), np.uint8)
        step = max(CHUNK // len(x), 1)
        for begin in range(0, values.shape[1], step):  # a part of all images: partners are anywhere
            part = mixed(values[:, begin : begin + step].astype(np.float32), partner, share)
            out[:, begin : begin + step] = np.rint(part, out=part)
        return out.reshape(x.shape), share


@dataclass(frozen=True, repr=False)
class CutMix(_Mixing):
    """A rectangle of another image in the place of one's own [1]_.

    Parameters
    ----------
    alpha : float, default 1.0
        In (0, 1000]. The rectangle has the shape of the image and 1 − λ of its area, λ from Beta(α, α); its centre is
        anywhere, and targets are mixed by the area that is inside.
    classes : int, optional
        Into how many columns integer labels y (n,) are made one-hot, float32; needed for those alone. Other targets are
        real numbers (n, …), such as distributions (n, classes), and are mixed as they are.
    p : float, default 1.0
        The probability for an image to be mixed; one-hot become all labels.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where labels come without `classes`, or are not below it.

    References
    ----------
    .. [1] S. Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features", 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x, y = np.zeros((2, 8, 8, 1)), np.array([0, 1])
    >>> x[1] = 1
    >>> x, soft = augment.CutMix(classes=2)(x, y, np.random.default_rng(0))
    >>> x.mean(axis=(1, 2, 3)).tolist() == soft[:, 1].tolist()
    True
    """

    alpha: float = 1.0
    classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(alpha=checks.number("alpha", self.alpha, "(0, 1000]"))

    def _mixed(self, x: Array, partner: Array, chosen: Array, rng: Rng) -> tuple[Array, Array]:
        n, h, w, _ = x.shape
        side = np.sqrt(1 - rng.beta(self.alpha, self.alpha, n)) * chosen
        heights, widths = (np.rint(side * length).astype(np.int64) for length in (h, w))
        out, boxes = x.copy(), rectangles(h, w, heights, widths, rng)
        top, bottom, left, right = boxes.T
        for i, (j, (a, b, c, d)) in enumerate(zip(partner.tolist(), boxes.tolist(), strict=True)):
            out[i, a:b, c:d] = x[j, a:b, c:d]
        return out, 1 - np.maximum(bottom - top, 0) * np.maximum(right - left, 0) / (h * w)


def _pasted(x: Array, partner: Array, mask: Array) -> tuple[Array, Array]:
    """Another image where the mask (n, h, w) is set, and the share of one's own."""
    n, h, w, c = x.shape
    places = np.flatnonzero(mask)
    image, place = np.divmod(places, h * w)
    pixels = x.reshape(-1, c)
    out = pixels.copy()
    out[places] = pixels.take(partner[image] * (h * w) + place, axis=0)
    return out.reshape(x.shape), 1 - np.bincount(image, minlength=n) / (h * w)


@dataclass(frozen=True, repr=False)
class CowMix(_Mixing):
    """Random blobs of another image in the place of one's own, like the spots of a cow [1]_.

    Smoothed Gaussian noise is highest in the blobs: those pixels that have the drawn share of the image.

    Parameters
    ----------
    proportion : float or (float, float), default (0.2, 0.8)
        The share of the other image, drawn uniformly.
    sigma : float or (float, float), default (4.0, 16.0)
        The standard deviation of the smoothing Gaussian in pixels, drawn log-uniformly. Opposite sides of an image
        count as neighbours.
    classes : int, optional
        Into how many columns integer labels y (n,) are made one-hot, float32; needed for those alone. Other targets are
        real numbers (n, …), such as distributions (n, classes), and are mixed as they are.
    p : float, default 1.0
        The probability for an image to be mixed; one-hot become all labels.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where labels come without `classes`, or are not below it.

    References
    ----------
    .. [1] G. French, A. Oliver and T. Salimans, "Milking CowMask for semi-supervised image classification", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x, y = np.zeros((2, 10, 10, 1)), np.array([0, 1])
    >>> x, soft = augment.CowMix(proportion=0.3, sigma=2, classes=2)(x, y, np.random.default_rng(0))
    >>> soft.round(3)
    array([[0.7, 0.3],
           [0.3, 0.7]], dtype=float32)
    """

    proportion: float | tuple[float, float] = (0.2, 0.8)
    sigma: float | tuple[float, float] = (4.0, 16.0)
    classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        limits("proportion", self.proportion, "[0, 1]")
        limits("sigma", self.sigma, "[1e-3, 1e6]")

    def _mixed(self, x: Array, partner: Array, chosen: Array, rng: Rng) -> tuple[Array, Array]:
        n, h, w, _ = x.shape
        sigma = drawn_log(rng, limits("", self.sigma, "[1e-3, 1e6]"), n)
        share = drawn(rng, limits("", self.proportion, "[0, 1]"), n)
        count = np.rint(share * h * w).astype(np.int64) * chosen
        noise = smoothed(rng.standard_normal((n, h, w)), sigma).reshape(n, -1)
        rank = np.empty((n, h * w), np.int64)
        np.put_along_axis(rank, noise.argsort(axis=1), np.arange(h * w)[None], axis=1)
        return _pasted(x, partner, (rank >= h * w - count[:, None]).reshape(n, h, w))


def smoothed(images: Array, sigma: Array) -> Array:
    """Images (n, h, w), each by a Gaussian of its own standard deviation, as if they went on periodically.

    A product of spectra: that of a Gaussian is ``exp(−2π²σ²f²)``.
    """
    _, h, w = images.shape
    rows, columns = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :]
    spectrum = np.fft.rfft2(images)
    spectrum *= np.exp(-2 * np.pi**2 * sigma[:, None, None] ** 2 * (rows**2 + columns**2))
    return np.fft.irfft2(spectrum, s=(h, w))
