"""The steps and layers in well-written NumPy, in place with two scratch arrays: the fair opponent in benchmarks.

Each step is ``step(param, grad, *state, t, a, b)`` with the hyperparameters of `fastopt.bench.steps`: the constants are
folded, each operation is one pass without a temporary (but for Rprop's masks).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LR = 1e-3
RADAM_THRESHOLD = 5.0  #: that of PyTorch and Optax


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
    _average(square_avg, 0.99, np.multiply(grad, grad, out=a), a)
    _descend(param, grad, square_avg, LR, 1e-8, a)


def rmsprop_momentum(
    param: Array, grad: Array, square_avg: Array, velocity: Array, *, t: int, a: Array, b: Array
) -> None:
    _average(square_avg, 0.99, np.multiply(grad, grad, out=a), a)
    np.sqrt(square_avg, out=a)
    np.add(a, 1e-8, out=a)
    np.divide(grad, a, out=a)
    momentum(param, a, velocity, t=t, a=a, b=b)


def centered_rmsprop(
    param: Array, grad: Array, square_avg: Array, grad_avg: Array, velocity: Array, *, t: int, a: Array, b: Array
) -> None:
    _average(square_avg, 0.99, np.multiply(grad, grad, out=a), a)
    _average(grad_avg, 0.99, grad, a)
    np.multiply(grad_avg, grad_avg, out=a)
    np.subtract(square_avg, a, out=a)
    np.maximum(a, 0, out=a)
    np.sqrt(a, out=a)
    np.add(a, 1e-8, out=a)
    np.divide(grad, a, out=a)
    momentum(param, a, velocity, t=t, a=a, b=b)


def adagrad(param: Array, grad: Array, square_sum: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(grad, grad, out=a)
    np.add(square_sum, a, out=square_sum)
    _descend(param, grad, square_sum, LR, 1e-10, a)


def adadelta(param: Array, grad: Array, square_avg: Array, square_step: Array, *, t: int, a: Array, b: Array) -> None:
    _average(square_avg, 0.9, np.multiply(grad, grad, out=a), a)
    np.add(square_step, 1e-6, out=a)
    np.add(square_avg, 1e-6, out=b)
    np.divide(a, b, out=a)
    np.sqrt(a, out=a)
    np.multiply(a, grad, out=a)
    np.subtract(param, a, out=param)
    _average(square_step, 0.9, np.multiply(a, a, out=a), a)


def rprop(param: Array, grad: Array, step_size: Array, prev_grad: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(grad, prev_grad, out=a)
    changed = a < 0
    np.multiply(step_size, 1.2, out=step_size, where=a > 0)
    np.multiply(step_size, 0.5, out=step_size, where=changed)
    np.clip(step_size, 1e-6, 50, out=step_size)
    np.copyto(prev_grad, grad)
    np.copyto(prev_grad, 0, where=changed)
    np.sign(prev_grad, out=a)
    np.multiply(a, step_size, out=a)
    np.subtract(param, a, out=param)


def adam(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    root = _moments(grad, m, v, t, a)
    _descend(param, m, v, LR * root / (1 - 0.9**t), 1e-8 * root, a)


def adamw(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(param, 1 - LR * 0.01, out=param)
    adam(param, grad, m, v, t=t, a=a, b=b)


def amsgrad(param: Array, grad: Array, m: Array, v: Array, v_max: Array, *, t: int, a: Array, b: Array) -> None:
    root = _moments(grad, m, v, t, a)
    np.maximum(v_max, v, out=v_max)
    _descend(param, m, v_max, LR * root / (1 - 0.9**t), 1e-8 * root, a)


def adamax(param: Array, grad: Array, m: Array, u: Array, *, t: int, a: Array, b: Array) -> None:
    _average(m, 0.9, grad, a)
    np.multiply(u, 0.999, out=u)
    np.abs(grad, out=a)
    np.maximum(u, a, out=u)
    np.add(u, 1e-8, out=a)
    np.divide(m, a, out=a)
    np.multiply(a, LR / (1 - 0.9**t), out=a)
    np.subtract(param, a, out=param)


def nadam(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    root, product, following = _moments(grad, m, v, t, a), mu_product(t), mu_product(t + 1)
    np.multiply(m, LR * root * (following / product) / (1 - following), out=a)
    np.multiply(grad, LR * root * (1 - product / mu_product(t - 1)) / (1 - product), out=b)
    np.add(a, b, out=a)
    np.sqrt(v, out=b)
    np.add(b, 1e-8 * root, out=b)
    np.divide(a, b, out=a)
    np.subtract(param, a, out=param)


@functools.cache
def mu_product(t: int) -> float:
    """NAdam's μ₁⋯μₜ, for t that grow by one from call to call."""
    return mu_product(t - 1) * 0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3)) if t else 1.0


def radam(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    root = _moments(grad, m, v, t, a)
    limit = 2 / (1 - 0.999) - 1
    rho = limit - 2 * t * 0.999**t / (1 - 0.999**t)
    if rho > RADAM_THRESHOLD:
        rectification = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        _descend(param, m, v, rectification * LR * root / (1 - 0.9**t), 1e-8 * root, a)
    else:
        np.multiply(m, LR / (1 - 0.9**t), out=a)
        np.subtract(param, a, out=param)


def adabound(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    _bounded(param, m, v, _moments(grad, m, v, t, a), t, a)


def amsbound(param: Array, grad: Array, m: Array, v: Array, v_max: Array, *, t: int, a: Array, b: Array) -> None:
    root = _moments(grad, m, v, t, a)
    np.maximum(v_max, v, out=v_max)
    _bounded(param, m, v_max, root, t, a)


def yogi(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    root = math.sqrt(1 - 0.999**t)
    _average(m, 0.9, grad, a)
    np.multiply(grad, grad, out=a)
    np.subtract(v, a, out=b)
    np.sign(b, out=b)
    np.multiply(b, a, out=a)
    np.multiply(a, 0.001, out=a)
    np.subtract(v, a, out=v)
    _descend(param, m, v, LR * root / (1 - 0.9**t), 1e-3 * root, a)


def adabelief(param: Array, grad: Array, m: Array, s: Array, *, t: int, a: Array, b: Array) -> None:
    root = math.sqrt(1 - 0.999**t)
    _average(m, 0.9, grad, a)
    np.subtract(grad, m, out=a)
    _average(s, 0.999, np.multiply(a, a, out=a), a)
    np.add(s, 1e-16, out=s)
    _descend(param, m, s, LR * root / (1 - 0.9**t), 1e-16 * root, a)


def lion(param: Array, grad: Array, m: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(m, 0.9, out=a)
    np.multiply(grad, 0.1, out=b)
    np.add(a, b, out=a)
    np.sign(a, out=a)
    np.multiply(a, LR, out=a)
    np.subtract(param, a, out=param)
    _average(m, 0.99, grad, a)


def lamb(param: Array, grad: Array, m: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    root = _moments(grad, m, v, t, a)
    np.sqrt(v, out=a)
    np.add(a, 1e-6 * root, out=a)
    np.divide(m, a, out=a)
    np.multiply(a, root / (1 - 0.9**t), out=a)
    np.multiply(a, LR * float(np.linalg.norm(param) / np.linalg.norm(a)), out=a)
    np.subtract(param, a, out=param)


def schedule_free_sgd(param: Array, grad: Array, z: Array, *, t: int, a: Array, b: Array) -> None:
    np.multiply(param, 1 - 1 / t, out=param)
    np.multiply(z, 1 / t, out=a)
    np.add(param, a, out=param)
    np.multiply(grad, LR, out=a)
    np.subtract(z, a, out=z)
    np.multiply(a, 1 - 0.9 * (1 - 1 / t), out=a)
    np.subtract(param, a, out=param)


def schedule_free_adamw(param: Array, grad: Array, z: Array, v: Array, *, t: int, a: Array, b: Array) -> None:
    root = math.sqrt(1 - 0.999**t)
    _average(v, 0.999, np.multiply(grad, grad, out=a), a)
    np.sqrt(v, out=b)
    np.add(b, 1e-8 * root, out=b)
    np.divide(grad, b, out=b)
    np.multiply(b, root, out=b)
    schedule_free_sgd(param, b, z, t=t, a=a, b=b)


def _average(mean: Array, weight: float, value: Array, a: Array) -> None:
    """mean ← weight·mean + (1 − weight)·value."""
    np.multiply(mean, weight, out=mean)
    np.multiply(value, 1 - weight, out=a)
    np.add(mean, a, out=mean)


def _moments(grad: Array, m: Array, v: Array, t: int, a: Array) -> float:
    """Adam's moments; returns √(1 − beta2ᵗ)."""
    _average(m, 0.9, grad, a)
    _average(v, 0.999, np.multiply(grad, grad, out=a), a)
    return math.sqrt(1 - 0.999**t)


def _descend(param: Array, direction: Array, square: Array, step: float, eps: float, a: Array) -> None:
    """p ← p − step·direction / (√square + eps)."""
    np.sqrt(square, out=a)
    np.add(a, eps, out=a)
    np.divide(direction, a, out=a)
    np.multiply(a, step, out=a)
    np.subtract(param, a, out=param)


def _bounded(param: Array, m: Array, square: Array, root: float, t: int, a: Array) -> None:
    """The step of AdaBound and AMSBound."""
    np.sqrt(square, out=a)
    np.add(a, 1e-8 * root, out=a)
    np.divide(LR * root / (1 - 0.9**t), a, out=a)
    np.clip(a, 0.1 * (1 - 1 / (1e-3 * t + 1)), 0.1 * (1 + 1 / (1e-3 * t)), out=a)
    np.multiply(a, m, out=a)
    np.subtract(param, a, out=param)


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
