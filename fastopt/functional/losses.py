"""Losses row by row, with the gradient of their weighted mean; that mean; and right answers, counted."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.checks import Array
from fastopt.kernel import kernel

__all__ = [
    "ELEMENT_LOSSES",
    "count_right",
    "element_loss",
    "hinge_loss",
    "mean_loss",
    "softmax_cross_entropy",
    "softmax_loss",
]


_softmax_cross_entropy = kernel("softmax_cross_entropy", dlogits="out")
_softmax_loss_of_labels = kernel("softmax_cross_entropy", logits="x", labels="targets", dlogits="out")
_softmax_loss = kernel("softmax_loss", labels="targets", dx="out")
_hinge_loss = kernel("hinge_loss", labels="targets", dx="out")
_element_loss = kernel("element_loss", dx="out")
_mean_loss = kernel("mean_loss")
_count_right = kernel("count_right", right="out")

ElementLoss = Literal["sigmoid_cross_entropy", "squared_error", "l1", "huber"]
#: What `element_loss` can compute.
ELEMENT_LOSSES: tuple[ElementLoss, ...] = get_args(ElementLoss)


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
    return float(_mean_loss(losses, None, None, None)[0]), dlogits


def softmax_loss(
    x: Array,
    targets: Array | NDArray[np.int64],
    weight: Array | None = None,
    class_weight: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    out: Array | None = None,
    losses: Array | None = None,
    mass: Array | None = None,
) -> tuple[Array, Array, Array | None]:
    """Softmax cross-entropy of labels or distributions, row by row: ``−Σ_j v_j·log softmax(x)_j``.

    ``v_j = ((1 − s)·t_j + s/c)·class_weight_j``, s being `label_smoothing` [1]_. The gradient is that of the mean by
    `mean_loss`, ``Σ weight·loss / Σ weight·mass``, where ``mass = Σ_j t_j·class_weight_j``, or 1 without those. Classes
    of which ``v_j = 0`` add nothing to the loss, be their x −∞.

    No value of an array is checked: a label that is not in [0, c) makes loss and gradient NaN.

    Parameters
    ----------
    x : ndarray (n, c)
        The logits.
    targets : int64 ndarray (n,) or ndarray (n, c)
        Labels, or distributions t of the type of `x`.
    weight : ndarray (n,), optional
        Of each row, at least 0; 1 where absent.
    class_weight : ndarray (c,), optional
        Of each class, at least 0; 1 where absent.
    label_smoothing : float, default 0.0
        In [0, 1].
    out : ndarray like `x`, optional
        Where to write dx; may be `x` itself.
    losses : ndarray (n,), optional
        Where to write the loss of each row, without its weight.
    mass : ndarray (n,), optional
        Where to write that.

    Returns
    -------
    losses : ndarray (n,)
    dx : ndarray like `x`
    mass : ndarray (n,) or None
        None without `class_weight`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception architecture", 2016, section 7.

    Examples
    --------
    >>> import numpy as np
    >>> losses, dx, mass = softmax_loss(np.zeros((1, 2)), np.array([[0.75, 0.25]]), class_weight=np.array([2.0, 4.0]))
    >>> losses.round(4), dx, mass
    (array([1.7329]), array([[-0.1,  0.1]]), array([2.5]))
    """
    n, classes = checks.shape("x", x, ndim=2)
    smoothing = checks.number("label_smoothing", label_smoothing, "[0, 1]")
    if n and not classes:
        raise ValueError(f"x must have at least one class, got shape {x.shape}")
    of_labels = len(checks.shape("targets", targets)) == 1
    if class_weight is None and mass is not None:
        raise ValueError("mass must come with class_weight, without which it is 1")
    if of_labels and weight is None and class_weight is None and not smoothing:
        return *_softmax_loss_of_labels(x, targets, losses, out, 1 / max(n, 1)), None
    if class_weight is not None and mass is None:
        mass = np.empty(n, x.dtype)
    labels, distributions = (targets, None) if of_labels else (None, targets)
    return _softmax_loss(x, labels, distributions, weight, class_weight, losses, out, mass, smoothing)


def hinge_loss(
    x: Array,
    targets: NDArray[np.int64],
    weight: Array | None = None,
    *,
    margin: float = 1.0,
    out: Array | None = None,
    losses: Array | None = None,
) -> tuple[Array, Array]:
    """Multi-class hinge loss, row by row: ``Σ_{j ≠ label} max(0, x_j − x_label + margin)`` [1]_.

    The gradient is that of the mean by `mean_loss`, ``Σ weight·loss / Σ weight``. No value of an array is checked: a
    label that is not in [0, c) makes loss and gradient NaN.

    Parameters
    ----------
    x : ndarray (n, c)
        The scores.
    targets : int64 ndarray (n,)
        Labels.
    weight : ndarray (n,), optional
        Of each row, at least 0; 1 where absent.
    margin : float, default 1.0
        In [0, inf).
    out : ndarray like `x`, optional
        Where to write dx; may be `x` itself.
    losses : ndarray (n,), optional
        Where to write the loss of each row, without its weight.

    Returns
    -------
    losses : ndarray (n,)
    dx : ndarray like `x`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] J. Weston and C. Watkins, "Support vector machines for multi-class pattern recognition", 1999.

    Examples
    --------
    >>> import numpy as np
    >>> hinge_loss(np.array([[0.5, 0.0, -2.0]]), np.array([1]))
    (array([1.5]), array([[ 1., -1.,  0.]]))
    """
    return _hinge_loss(x, targets, weight, losses, out, checks.number("margin", margin, "[0, inf)"))


def element_loss(
    x: Array,
    targets: Array,
    kind: ElementLoss,
    weight: Array | None = None,
    *,
    delta: float = 1.0,
    out: Array | None = None,
    losses: Array | None = None,
) -> tuple[Array, Array]:
    """A loss of each element by itself, the mean over the elements of each row; with ``e = x − t``:

    ==========================  =========================================================================
    `kind`                      loss
    ==========================  =========================================================================
    ``sigmoid_cross_entropy``   ``log(1 + eˣ) − t·x``
    ``squared_error``           ``e²``
    ``l1``                      ``|e|``, with the gradient 0 where e = 0
    ``huber``                   ``e²/2`` where ``|e|`` is up to `delta`, else ``delta·(|e| − delta/2)`` [1]_
    ==========================  =========================================================================

    The gradient is that of the mean by `mean_loss`, ``Σ weight·loss / Σ weight``.

    Parameters
    ----------
    x : ndarray (n, …)
        The outputs.
    targets : ndarray like `x`
        What is called t.
    kind : {"sigmoid_cross_entropy", "squared_error", "l1", "huber"}
    weight : ndarray (n,), optional
        Of each row, at least 0; 1 where absent.
    delta : float, default 1.0
        Of Huber's loss, in (0, inf).
    out : ndarray like `x`, optional
        Where to write dx; may be `x` itself.
    losses : ndarray (n,), optional
        Where to write the loss of each row, without its weight.

    Returns
    -------
    losses : ndarray (n,)
    dx : ndarray like `x`

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    References
    ----------
    .. [1] P. J. Huber, "Robust estimation of a location parameter", 1964.

    Examples
    --------
    >>> import numpy as np
    >>> element_loss(np.array([[0.5, -3.0]]), np.zeros((1, 2)), "huber")
    (array([1.3125]), array([[ 0.25, -0.5 ]]))
    """
    number = ELEMENT_LOSSES.index(checks.choice("kind", kind, ELEMENT_LOSSES))
    return _element_loss(x, targets, weight, losses, out, number, checks.number("delta", delta, "(0, inf)"))


def mean_loss(
    losses: Array, weight: Array | None = None, mass: Array | None = None, result: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The mean of losses, ``Σ weight·loss / Σ weight·mass``, and its divisor, the total sample weight.

    Parameters
    ----------
    losses : ndarray (n,)
        Of each row.
    weight : ndarray (n,), optional
        Of each row; 1 where absent.
    mass : ndarray (n,), optional
        From `softmax_loss`; 1 where absent.
    result : float64 ndarray (2,), optional
        Where to write.

    Returns
    -------
    result : float64 ndarray (2,)
        The mean, which is 0 where all weights are, or for no rows; and the total weight.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> mean_loss(np.array([1.0, 5.0]), np.array([3.0, 1.0]))
    array([2., 4.])
    """
    return _mean_loss(losses, weight, mass, result)


def count_right(scores: Array, labels: NDArray[np.int64], out: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """How many rows have their largest score at the label: the first of equal ones, and NaN counts as the largest.

    Parameters
    ----------
    scores : ndarray (n, c)
    labels : int64 ndarray (n,)
        One that is not in [0, c) is at no score.
    out : int64 ndarray (1,), optional
        Where to write.

    Returns
    -------
    right : int64 ndarray (1,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> count_right(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([1, 1]))
    array([1])
    """
    return _count_right(scores, labels, out)
