"""Dropout of whole channels, and in its original form; inverted dropout is in `fastopt.nn.layers`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.layers import Dropout, Grads, Shape, check_images

__all__ = ["SpatialDropout", "VanillaDropout"]


class VanillaDropout(Dropout):
    """Dropout in its original form (Srivastava et al. 2014, section 4): outputs are scaled by the probability of
    keeping in inference, and not scaled in training.

    The output in inference is the expectation of that in training, as it is for `Dropout`, whose outputs in training
    and inference are those of this layer divided by that probability. The same seed and counter drop the same elements.

    Parameters
    ----------
    p, p_is
        As in `Dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> dropout, x = nn.VanillaDropout(0.25), np.ones((100, 100))
    >>> sorted(set(dropout.forward(x, training=True)[0].ravel().tolist())), dropout.forward(x)[0][0, :2].tolist()
    ([0.0, 1.0], [0.75, 0.75])
    """

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        if not training:
            return x * x.dtype.type(F.kept_share(self.p, self.p_is)), None
        return F.dropout(x, self.p, seed=self.seed, counter=counter, p_is=self.p_is, inverted=False)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        if cache is None:
            return dy * dy.dtype.type(F.kept_share(self.p, self.p_is)), {}
        return F.dropout_backward(dy, cache, self.p, p_is=self.p_is, inverted=False), {}


class SpatialDropout(Dropout):
    """Inverted dropout of whole channels of images (n, h, w, c), whose pixels are correlated (Tompson et al. 2015).

    Parameters
    ----------
    p, p_is
        As in `Dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> y, _ = nn.SpatialDropout(0.5).forward(np.ones((2, 4, 4, 3)), training=True)
    >>> bool((y == y[:, :1, :1]).all())
    True
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        check_images(self, input_shape)
        return input_shape

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        if not training:
            return x, None
        ones = np.ones((len(x), 1, 1, x.shape[3]), x.dtype)
        factor, _ = F.dropout(ones, self.p, seed=self.seed, counter=counter, p_is=self.p_is)
        return x * factor, factor

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        if cache is None:
            return dy, {}
        return dy * cache, {}
