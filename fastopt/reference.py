"""Every formula of fastopt in plain NumPy, in textbook form: documentation, oracle of the tests, baseline of the
benchmarks. Never fast, never in place, and of nothing but NumPy.

Names, arguments and defaults are those of `fastopt.functional`; a step returns the new parameter and state.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


# ---- Optimizer steps ----------------------------------------------------------------------------------------


def _seen(param: Array, grad: Array, grad_scale: float, weight_decay: float) -> Array:
    """The gradient of the loss, scaled, with that of the L2 penalty weight_decay/2 |p|^2 where there is one."""
    return grad_scale * grad + weight_decay * param if weight_decay else grad_scale * grad


def _root(x: Array, eps: float, eps_mode: str) -> Array:
    root: Array = np.sqrt(x + eps) if eps_mode == "inside" else np.sqrt(x) + eps
    return root


def sgd(param, grad, *, lr, weight_decay=0.0, grad_scale=1.0):
    g = _seen(param, grad, grad_scale, weight_decay)
    return (param - lr * g,)


def momentum(
    param, grad, velocity, *, lr, momentum=0.9, dampening=0.0, nesterov=False, lr_in_velocity=False,
    weight_decay=0.0, grad_scale=1.0,
):  # fmt: skip
    g = _seen(param, grad, grad_scale, weight_decay)
    g_in = (1 - dampening) * g
    if lr_in_velocity:  # the velocity is a step
        velocity = momentum * velocity - lr * g_in
        return param + (momentum * velocity - lr * g if nesterov else velocity), velocity
    velocity = momentum * velocity + g_in
    return param - lr * (g + momentum * velocity if nesterov else velocity), velocity


def rmsprop(
    param, grad, square_avg, *, lr=1e-3, decay=0.99, eps=1e-8, eps_mode="outside", weight_decay=0.0, grad_scale=1.0
):
    g = _seen(param, grad, grad_scale, weight_decay)
    square_avg = decay * square_avg + (1 - decay) * g**2
    return param - lr * g / _root(square_avg, eps, eps_mode), square_avg


def adagrad(param, grad, square_sum, *, lr=1e-2, eps=1e-10, eps_mode="outside", weight_decay=0.0, grad_scale=1.0):
    g = _seen(param, grad, grad_scale, weight_decay)
    square_sum = square_sum + g**2
    return param - lr * g / _root(square_sum, eps, eps_mode), square_sum


def adam(
    param, grad, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside", weight_decay=0.0,
    grad_scale=1.0,
):  # fmt: skip
    g = _seen(param, grad, grad_scale, weight_decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    if eps_mode == "hat":
        return param - lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + eps), m, v
    return param - lr * m_hat / _root(v_hat, eps, eps_mode), m, v


def adamw(param, grad, m, v, *, t, lr=1e-3, weight_decay=0.01, **hyper):
    return adam((1 - lr * weight_decay) * param, grad, m, v, t=t, lr=lr, **hyper)


# ---- Activations and losses ---------------------------------------------------------------------------------


def relu_forward(x: Array) -> Array:
    return np.maximum(x, 0)


def relu_backward(dy: Array, y: Array) -> Array:
    return np.where(y <= 0, 0, dy)


def bias_relu_forward(x: Array, bias: Array) -> Array:
    return np.maximum(x + bias, 0)


def bias_relu_backward(dy: Array, y: Array) -> tuple[Array, Array]:
    dx = np.where(y <= 0, 0, dy)
    return dx, dx.sum(axis=tuple(range(dx.ndim - 1)))


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    n = len(logits)
    onehot = np.eye(logits.shape[1])[labels]
    return float(-(log_softmax * onehot).sum() / n), (np.exp(log_softmax) - onehot) / n


# ---- Further activations ------------------------------------------------------------------------------------

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x):
    return np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x)))


def _gelu_argument(x):
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def activation_forward(x: Array, kind: str, *, alpha: float | None = None) -> Array:
    match kind:
        case "leaky_relu":
            return np.where(x < 0, (0.01 if alpha is None else alpha) * x, x)
        case "elu":
            return np.where(x < 0, (1.0 if alpha is None else alpha) * np.expm1(np.minimum(x, 0)), x)
        case "tanh":
            return np.tanh(x)
        case "sigmoid":
            return _sigmoid(x)
        case "gelu":
            return x / 2 * (1 + _erf(x / np.sqrt(2)))
        case "gelu_tanh":
            return x / 2 * (1 + np.tanh(_gelu_argument(x)))
        case "silu":
            return x * _sigmoid(x)
        case "softplus":
            return np.logaddexp(0, x)
    raise ValueError(kind)


def activation_backward(dy: Array, seen: Array, kind: str, *, alpha: float | None = None) -> Array:
    match kind:
        case "leaky_relu":
            return np.where(seen > 0, 1, 0.01 if alpha is None else alpha) * dy
        case "elu":
            return np.where(seen > 0, 1, seen + (1.0 if alpha is None else alpha)) * dy
        case "tanh":
            return (1 - seen**2) * dy
        case "sigmoid":
            return seen * (1 - seen) * dy
        case "gelu":
            density = np.exp(-(seen**2) / 2) / np.sqrt(2 * np.pi)
            return ((1 + _erf(seen / np.sqrt(2))) / 2 + seen * density) * dy
        case "gelu_tanh":
            t = np.tanh(_gelu_argument(seen))
            return ((1 + t) / 2 + seen / 2 * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * seen**2)) * dy
        case "silu":
            return _sigmoid(seen) * (1 + seen * (1 - _sigmoid(seen))) * dy
        case "softplus":
            return _sigmoid(seen) * dy
    raise ValueError(kind)


def softmax_forward(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dy: Array, y: Array) -> Array:
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


# ---- Dropout ------------------------------------------------------------------------------------------------


def philox(blocks: Array, seed: int, counter: int) -> NDArray[np.uint32]:
    """Philox4x32-7 (Salmon et al. 2011, section 3.3): four random words for each block number.

    The 128-bit counter is (block, counter), the 64-bit key is the seed, low words first.
    """
    low32 = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    blocks = np.asarray(blocks, np.uint64)
    c = [blocks & low32, blocks >> shift]
    c += [np.full_like(blocks, counter & 0xFFFFFFFF), np.full_like(blocks, counter >> 32)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(7):
        product0, product1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (product1 >> shift) ^ c[1] ^ np.uint64(key[0]),
            product1 & low32,
            (product0 >> shift) ^ c[3] ^ np.uint64(key[1]),
            product0 & low32,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=-1).astype(np.uint32)


def dropout_mask(size: int, p: float, *, seed: int, counter: int) -> NDArray[np.bool_]:
    """Which elements are kept. Each group of 128 takes 16 blocks: all first words, then all second words, …,
    of each word the low 16 bits and then the high ones."""
    groups = -(-size // 128)
    words = philox(np.arange(16 * groups), seed, counter).reshape(groups, 16, 4).transpose(0, 2, 1)
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1)
    return halves.reshape(-1)[:size] >= round(dropout_probability(p) * 2**16)


def dropout_probability(p: float) -> float:
    """The probability that takes the place of p: the nearest multiple of 2⁻¹⁶ below 1."""
    return min(round(p * 2**16), 2**16 - 1) / 2**16


def dropout(x: Array, p: float, *, seed: int, counter: int) -> tuple[Array, NDArray[np.bool_]]:
    mask = dropout_mask(x.size, p, seed=seed, counter=counter).reshape(x.shape)
    return dropout_apply(x, mask, p), mask


def dropout_apply(x: Array, mask: NDArray[np.bool_], p: float) -> Array:
    return np.where(mask, x / (1 - dropout_probability(p)), 0)


dropout_backward = dropout_apply


def bias_relu_dropout_forward(x: Array, bias: Array, p: float, *, seed: int, counter: int) -> Array:
    return dropout(bias_relu_forward(x, bias), p, seed=seed, counter=counter)[0]


def bias_relu_dropout_backward(dy: Array, y: Array, p: float) -> tuple[Array, Array]:
    return bias_relu_backward(dropout_backward(dy, ~(y <= 0), p), y)


# ---- Batch norm ---------------------------------------------------------------------------------------------


def _per_channel(a: Array, ndim: int, axis: int) -> Array:
    return np.expand_dims(a, [i for i in range(ndim) if i != axis % ndim])


def batch_norm_forward(
    x, scale=1.0, shift=0.0, running_mean=None, running_var=None, *, training=True, eps=1e-5, momentum=0.1,
    momentum_of="new", unbiased=True, axis=1, relu=False,
):  # fmt: skip
    """Returns y, (x_hat, inv_std, scale, axes, y or None), running_mean, running_var."""
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    count = x.size // x.shape[axis]
    scale, shift = (_per_channel(np.broadcast_to(a, x.shape[axis]), x.ndim, axis) for a in (scale, shift))
    activation = relu_forward if relu else np.positive
    if not training:
        mean, var = (_per_channel(a, x.ndim, axis) for a in (running_mean, running_var))
        return activation(scale * (x - mean) / np.sqrt(var + eps) + shift), None, running_mean, running_var
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = (x - mean) * inv_std
    if running_mean is not None:
        old = momentum if momentum_of == "old" else 1 - momentum
        factor = count / (count - 1) if unbiased else 1.0
        running_mean = old * running_mean + (1 - old) * mean.ravel()
        running_var = old * running_var + (1 - old) * factor * var.ravel()
    y = activation(scale * x_hat + shift)
    return y, (x_hat, inv_std, scale, axes, y if relu else None), running_mean, running_var


def batch_norm_backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:  # type: ignore[type-arg]
    x_hat, inv_std, scale, axes, y = cache
    if y is not None:
        dy = relu_backward(dy, y)
    dscale, dshift = (dy * x_hat).sum(axis=axes, keepdims=True), dy.sum(axis=axes, keepdims=True)
    count = dy.size // dscale.size
    dx = scale * inv_std * (dy - dshift / count - x_hat * dscale / count)
    return dx, dscale.ravel(), dshift.ravel()


# ---- Layer, group and instance norm -------------------------------------------------------------------------


def group_norm_forward(x, groups, scale=1.0, shift=0.0, *, eps=1e-5):
    """Returns y, (x_hat, inv_std, scale): x_hat and inv_std as (n, pixels, groups, channels of a group)."""
    n, c = len(x), x.shape[-1]
    grouped = x.reshape(n, -1, groups, c // groups)
    mean, var = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = (grouped - mean) * inv_std
    scale = np.broadcast_to(scale, c)
    return scale * x_hat.reshape(x.shape) + shift, (x_hat, inv_std, scale)


def group_norm_backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:  # type: ignore[type-arg]
    x_hat, inv_std, scale = cache
    g = (dy * scale).reshape(x_hat.shape)
    dx = inv_std * (g - g.mean(axis=(1, 3), keepdims=True) - x_hat * (g * x_hat).mean(axis=(1, 3), keepdims=True))
    axes = tuple(range(dy.ndim - 1))
    return dx.reshape(dy.shape), (dy * x_hat.reshape(dy.shape)).sum(axis=axes), dy.sum(axis=axes)


def layer_norm_forward(x, scale=1.0, shift=0.0, *, axes=1, eps=1e-5):
    """For `group_norm_backward` of dy as (rows, elements)."""
    learnt = x.shape[x.ndim - axes :]
    rows = x.reshape(-1, math.prod(learnt))
    y, cache = group_norm_forward(rows, 1, *(np.broadcast_to(a, learnt).ravel() for a in (scale, shift)), eps=eps)
    return y.reshape(x.shape), cache


def instance_norm_forward(x, scale=1.0, shift=0.0, *, eps=1e-5):
    return group_norm_forward(x, x.shape[-1], scale, shift, eps=eps)


# ---- Embedding ----------------------------------------------------------------------------------------------


def embedding_backward(dy: Array, entries: Array, count: int) -> Array:
    return np.eye(count)[entries.ravel()].T @ dy.reshape(-1, dy.shape[-1])


# ---- Images (n, h, w, c) ------------------------------------------------------------------------------------


def im2col(
    x: Array,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Array:
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    spread = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spread, axis=(1, 2))
    every = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    return every.transpose(0, 1, 2, 4, 5, 3)


def col2im(
    columns: Array,
    shape: tuple[int, ...],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Array:
    n, h, w, c = shape
    x = np.zeros((n, h + 2 * padding[0], w + 2 * padding[1], c), columns.dtype)
    _, out_h, out_w = columns.shape[:3]
    for ky in range(size[0]):
        for kx in range(size[1]):
            top, left = ky * dilation[0], kx * dilation[1]
            rows = slice(top, top + out_h * stride[0], stride[0])
            cols = slice(left, left + out_w * stride[1], stride[1])
            x[:, rows, cols] += columns[:, :, :, ky, kx]
    return x[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w]


def max_pool_forward(x: Array, size: tuple[int, int], stride: tuple[int, int]) -> tuple[Array, NDArray[np.int64]]:
    columns = im2col(x, size, stride)
    n, out_h, out_w, _, _, c = columns.shape
    windows = columns.reshape(n, out_h, out_w, size[0] * size[1], c)
    return windows.max(axis=3), windows.argmax(axis=3)


def max_pool_backward(
    dy: Array, winner: NDArray[np.int64], shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int]
) -> Array:
    places = np.arange(size[0] * size[1]).reshape(1, 1, 1, *size, 1)
    columns = np.where(winner[:, :, :, None, None] == places, dy[:, :, :, None, None], 0)
    return col2im(columns, shape, size, stride, (0, 0))


def average_pool_forward(x: Array, size: tuple[int, int], stride: tuple[int, int]) -> Array:
    return im2col(x, size, stride).mean(axis=(3, 4))


def average_pool_backward(dy: Array, shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int]) -> Array:
    columns = np.broadcast_to(dy[:, :, :, None, None] / (size[0] * size[1]), (*dy.shape[:3], *size, dy.shape[3]))
    return col2im(columns, shape, size, stride, (0, 0))
