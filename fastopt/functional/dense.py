"""Dense layers: products of matrices with a bias, and their gradients; bias alone."""

from __future__ import annotations

from fastopt import checks
from fastopt.checks import Array
from fastopt.kernel import kernel

__all__ = [
    "bias_backward",
    "bias_forward",
    "dense_forward",
    "dense_input_grad",
    "dense_weight_grad",
    "matmul",
]


_dense_forward = kernel("dense_forward", y="out")
_dense_input_grad = kernel("dense_input_grad", dx="out")
_dense_weight_grad = kernel("dense_weight_grad", dweight="out")
_matmul = kernel("dense_forward", x="a", weight="b", y="out")
_matmul_transposed_b = kernel("dense_input_grad", dy="a", weight="b", dx="out")
_matmul_transposed_a = kernel("dense_weight_grad", x="a", dy="b", dweight="out")
_matmul_transposed = kernel("transposed_matmul", y="out")
_bias_forward = kernel("bias_forward", y="out")
_bias_backward = kernel("bias_backward", dbias="out")


def dense_forward(
    x: Array, weight: Array, bias: Array | None = None, *, relu: bool = False, out: Array | None = None
) -> Array:
    """``y = x @ weight + bias``, with ReLU where wanted, in one pass.

    Each sum goes in order, by one fused multiply-add after the other (512 at a time, whose sums are added up): bits
    depend neither on the instruction set nor on the number of threads.

    Parameters
    ----------
    x : ndarray (n, d)
    weight : ndarray (d, k)
    bias : ndarray (k,), optional
    relu : bool, default False
        Have ``y = max(x @ weight + bias, 0)``, whose gradient `relu_backward` or `bias_relu_backward` takes first.
    out : ndarray (n, k), optional
        Where to write y.

    Returns
    -------
    y : ndarray (n, k)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight, bias = np.array([[1.0, 2.0]]), np.array([[1.0, -3.0], [0.5, 1.0]]), np.array([0.5, 0.0])
    >>> dense_forward(x, weight, bias, relu=True)
    array([[2.5, 0. ]])
    """
    return _dense_forward(x, weight, bias, out, checks.flag("relu", relu))


def dense_input_grad(dy: Array, weight: Array, out: Array | None = None) -> Array:
    """The gradient of `dense_forward` with respect to x: ``dx = dy @ weight.T``.

    Parameters
    ----------
    dy : ndarray (n, k)
    weight : ndarray (d, k)
    out : ndarray (n, d), optional
        Where to write dx.

    Returns
    -------
    dx : ndarray (n, d)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> dense_input_grad(np.array([[1.0, 2.0]]), np.array([[1.0, -3.0], [0.5, 1.0]]))
    array([[-5. ,  2.5]])
    """
    return _dense_input_grad(dy, weight, out)


def dense_weight_grad(x: Array, dy: Array, out: Array | None = None, dbias: Array | None = None) -> Array:
    """The gradient of `dense_forward` with respect to the weight, ``x.T @ dy``, and to the bias where wanted.

    Parameters
    ----------
    x : ndarray (n, d)
    dy : ndarray (n, k)
    out : ndarray (d, k), optional
        Where to write dweight.
    dbias : ndarray (k,), optional
        Where to write the gradient of the bias, the sum of dy's rows; without it, that is not computed.

    Returns
    -------
    dweight : ndarray (d, k)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> dbias = np.empty(2)
    >>> dense_weight_grad(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), dbias=dbias)
    array([[3., 4.],
           [6., 8.]])
    >>> dbias
    array([3., 4.])
    """
    return _dense_weight_grad(x, dy, out, dbias)[0]


def matmul(
    a: Array, b: Array, out: Array | None = None, *, transpose_a: bool = False, transpose_b: bool = False
) -> Array:
    """The product of two matrices, ``a @ b``, of which each may be transposed first.

    As in `dense_forward`, bits depend neither on the CPU nor on the number of threads; those of ``np.matmul`` depend on
    its BLAS, too.

    Parameters
    ----------
    a : ndarray (n, d), or (d, n) with `transpose_a`
    b : ndarray (d, k), or (k, d) with `transpose_b`
    out : ndarray (n, k), optional
        Where to write the product.
    transpose_a, transpose_b : bool, default False
        Take ``a.T`` or ``b.T``, which themselves would be refused, as they are not C-contiguous.

    Returns
    -------
    out : ndarray (n, k)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import functional as F
    >>> a = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> F.matmul(a, a, transpose_b=True)
    array([[ 5., 11.],
           [11., 25.]])
    """
    if checks.flag("transpose_a", transpose_a):
        if checks.flag("transpose_b", transpose_b):
            return _matmul_transposed(a, b, out)
        return _matmul_transposed_a(a, b, out, None)[0]
    if checks.flag("transpose_b", transpose_b):
        return _matmul_transposed_b(a, b, out)
    return _matmul(a, b, None, out, 0)


def bias_forward(x: Array, bias: Array, out: Array | None = None) -> Array:
    """``y = x + bias``; see `bias_backward`.

    Parameters
    ----------
    x : ndarray (…, d)
    bias : ndarray (d,)
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

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
    >>> bias_forward(np.zeros((2, 2)), np.array([1.0, 2.0]))
    array([[1., 2.],
           [1., 2.]])
    """
    return _bias_forward(x, bias, out)


def bias_backward(dy: Array, out: Array | None = None) -> Array:
    """The gradient of a bias that was added to rows: their sum.

    Parameters
    ----------
    dy : ndarray (…, d)
    out : ndarray (d,), optional
        Where to write dbias.

    Returns
    -------
    dbias : ndarray (d,)

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> bias_backward(np.ones((3, 2)))
    array([3., 3.])
    """
    return _bias_backward(dy, out)
