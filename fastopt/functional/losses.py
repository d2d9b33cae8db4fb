"""Losses of a kernel of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.checks import Array
from fastopt.kernel import kernel

__all__ = [
    "softmax_cross_entropy",
]


_softmax_cross_entropy = kernel("softmax_cross_entropy", dlogits="out")


def softmax_cross_entropy(
    logits: Array, labels: NDArray[np.integer[Any]], out: Array | None = None, losses: Array | None = None
) -> tuple[float, Array]:
    """Softmax cross-entropy of integer labels: the mean loss and its gradient, in one pass.

    ``loss = mean_i(log Σ_j exp(x_ij) − x_i,label)`` and ``dlogits = (softmax(x) − onehot) / n``. The maximum of
    each row is taken off first, so logits of any finite size are safe. At random initialisation with c classes
    the loss is about ``log c``.

    Parameters
    ----------
    logits : ndarray (n, c)
    labels : integer ndarray (n,)
        Each in [0, c).
    out : ndarray like `logits`, optional
        Where to write dlogits; may be `logits` itself.
    losses : ndarray (n,), optional
        Where to write the loss of each row.

    Returns
    -------
    loss : float
        The mean over the rows, in nats; 0.0 for no rows.
    dlogits : ndarray like `logits`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 2)), np.array([1]))
    >>> round(loss, 4), dlogits.tolist()
    (0.6931, [[0.5, -0.5]])
    """
    n, classes = checks.shape("logits", logits, ndim=2)
    own_labels = checks.labels("labels", labels, n, classes)  # a copy, so the kernel does not see where they are
    for name, written in (("out", out), ("losses", losses)):
        if written is not None and np.may_share_memory(written, labels):
            raise ValueError(f"{name} and labels must not overlap in memory; copy one of them")
    losses, dlogits = _softmax_cross_entropy(logits, own_labels, losses, out, 1 / max(n, 1))
    return float(np.add.reduce(losses, dtype=np.float64)) / max(n, 1), dlogits
