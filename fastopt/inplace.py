"""The steps and layers in well-written NumPy, in place with two scratch arrays: the fair opponent in benchmarks.

Each step is ``step(param, grad, *state, t, a, b)`` with the default hyperparameters of `fastopt.optimizers` (and
lr = 1e-3): the constants are folded, each operation is one pass without a temporary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LR = 1e-3


def sgd(param: Array, grad: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(grad, LR, out=a)
    np.subtract(param, a, out=param)


def momentum(param: Array, grad: Array, velocity: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(velocity, 0.9, out=velocity)
    np.add(velocity, grad, out=velocity)
    np.multiply(velocity, LR, out=a)
    np.subtract(param, a, out=param)


def nesterov(param: Array, grad: Array, velocity: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(velocity, 0.9, out=velocity)
    np.add(velocity, grad, out=velocity)
    np.multiply(velocity, 0.9, out=a)
    np.add(a, grad, out=a)
    np.multiply(a, LR, out=a)
    np.subtract(param, a, out=param)


def rmsprop(param: Array, grad: Array, square_avg: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(square_avg, 0.99, out=square_avg)
    np.multiply(grad, grad, out=a)
    np.multiply(a, 0.01, out=a)
    np.add(square_avg, a, out=square_avg)
    np.sqrt(square_avg, out=a)
    np.add(a, 1e-8, out=a)
    np.divide(grad, a, out=a)
    np.multiply(a, LR, out=a)
    np.subtract(param, a, out=param)


def adagrad(param: Array, grad: Array, square_sum: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(grad, grad, out=a)
    np.add(square_sum, a, out=square_sum)
    np.sqrt(square_sum, out=a)
    np.add(a, 1e-10, out=a)
    np.divide(grad, a, out=a)
    np.multiply(a, LR, out=a)
    np.subtract(param, a, out=param)


def adam(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    root = math.sqrt(1 - 0.999**t)
    np.multiply(m, 0.9, out=m)
    np.multiply(grad, 0.1, out=a)
    np.add(m, a, out=m)
    np.multiply(v, 0.999, out=v)
    np.multiply(grad, grad, out=a)
    np.multiply(a, 0.001, out=a)
    np.add(v, a, out=v)
    np.sqrt(v, out=a)
    np.add(a, 1e-8 * root, out=a)
    np.divide(m, a, out=a)
    np.multiply(a, LR * root / (1 - 0.9**t), out=a)
    np.subtract(param, a, out=param)


def adamw(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(param, 1 - LR * 0.01, out=param)
    adam(param, grad, m, v, t=t, a=a, b=b)


def relu_forward(x: Array, y: Array) -> None:
    np.maximum(x, 0, out=y)


def relu_backward(dy: Array, y: Array, dx: Array) -> None:
    np.multiply(dy, y > 0, out=dx)


def bias_relu_forward(x: Array, bias: Array, y: Array) -> None:
    np.add(x, bias, out=y)
    np.maximum(y, 0, out=y)


def bias_relu_backward(dy: Array, y: Array, dx: Array) -> Array:
    np.multiply(dy, y > 0, out=dx)
    return dx.sum(axis=0)


def dropout(x: Array, p: float, rng: np.random.Generator, y: Array) -> Array:
    mask = rng.random(x.shape, np.float32) >= p
    np.multiply(x, mask, out=y)
    np.multiply(y, 1 / (1 - p), out=y)
    return mask


def dropout_backward(dy: Array, mask: Array, p: float, dx: Array) -> None:
    np.multiply(dy, mask, out=dx)
    np.multiply(dx, 1 / (1 - p), out=dx)


def batch_norm_forward(x: Array, scale: Array, shift: Array, y: Array) -> tuple[Array, Array]:
    axes, shape = _channels(x)
    mean = x.mean(axis=axes, keepdims=True)
    np.subtract(x, mean, out=y)
    inv_std = 1 / np.sqrt(np.einsum(y, [0, 1, 2], y, [0, 1, 2], [1]).reshape(shape) / (x.size / x.shape[1]) + 1e-5)
    np.multiply(y, inv_std * scale.reshape(shape), out=y)
    np.add(y, shift.reshape(shape), out=y)
    return mean, inv_std


def batch_norm_backward(dy: Array, x: Array, scale: Array, mean: Array, inv_std: Array, dx: Array) -> Any:
    _, shape = _channels(x)
    count = x.size / x.shape[1]
    np.subtract(x, mean, out=dx)
    dscale = np.einsum(dy, [0, 1, 2], dx, [0, 1, 2], [1]).reshape(shape)
    dshift = np.einsum(dy, [0, 1, 2], [1]).reshape(shape)
    np.multiply(dx, -dscale * inv_std**2 / count, out=dx)
    np.add(dx, dy, out=dx)
    np.subtract(dx, dshift / count, out=dx)
    np.multiply(dx, scale.reshape(shape) * inv_std, out=dx)
    return dscale * inv_std, dshift


def _channels(x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes to sum over, and the shape of a channel's value, for x (n, c, inner)."""
    return (0, 2), (1, -1, 1)


def softmax_cross_entropy(logits: Array, labels: Array, d: Array) -> float:
    rows = np.arange(len(labels))
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=d)
    right = d[rows, labels]
    np.exp(d, out=d)
    sums = d.sum(axis=1, keepdims=True)
    loss = float((np.log(sums[:, 0]) - right).mean())
    np.divide(d, sums * len(labels), out=d)
    d[rows, labels] -= 1 / len(labels)
    return loss


def max_pool_forward(x: Array, y: Array) -> Array:
    """Windows of 2 × 2."""
    n, h, w, c = x.shape
    blocks = x.reshape(n, h // 2, 2, w // 2, 2, c)
    blocks.max(axis=(2, 4), out=y)
    return blocks


def max_pool_backward(dy: Array, x: Array, y: Array, dx: Array) -> None:
    """Windows of 2 × 2; every maximum of a window gets its gradient."""
    n, h, w, c = x.shape
    wide = (n, h // 2, 2, w // 2, 2, c)
    won = x.reshape(wide) == y[:, :, None, :, None]
    np.multiply(won, dy[:, :, None, :, None], out=dx.reshape(wide))


def im2col(x: Array, padded: Array, columns: Array) -> None:
    """Windows of 3 × 3, padding 1; the border of `padded` is zero."""
    padded[:, 1:-1, 1:-1] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    np.copyto(columns, windows.transpose(0, 1, 2, 4, 5, 3))


def col2im(columns: Array, padded: Array) -> Array:
    """Windows of 3 × 3, padding 1."""
    _, h, w = columns.shape[:3]
    padded[...] = 0
    for ky in range(3):
        for kx in range(3):
            padded[:, ky : ky + h, kx : kx + w] += columns[:, :, :, ky, kx]
    image: Array = padded[:, 1:-1, 1:-1]
    return image
