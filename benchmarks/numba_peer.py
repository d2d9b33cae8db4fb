"""numba: one loop per step and layer, compiled as fast as it can be, on one thread.

Without ``error_model="numpy"`` every division is checked, no loop with one becomes a vector loop, and Adam is ten
times slower. Constants are float32, else numba computes in float64.
"""

import functools
import itertools
import math

import numba
import numpy as np

VERSION = numba.__version__

jit = numba.njit(fastmath=True, error_model="numpy")
f32 = np.float32


def contenders(contest):
    """What numba enters into a contest: a function, and the array that it leaves its result in."""
    if "param" in contest.arrays:
        if contest.name not in STEPS:
            return {}
        return {"numba": _step(contest.name, contest.arrays["param"], contest.arrays["grad"])}
    return {"numba": _layer(contest.name, **contest.arrays)}


# ---- Optimizer steps ----------------------------------------------------------------------------------------

LR = f32(1e-3)
RHO = f32(0.9)


@jit
def sgd(param, grad):
    for i in range(param.size):
        param[i] -= LR * grad[i]


@jit
def momentum(param, grad, velocity):
    for i in range(param.size):
        velocity[i] = RHO * velocity[i] + grad[i]
        param[i] -= LR * velocity[i]


@jit
def nesterov(param, grad, velocity):
    for i in range(param.size):
        velocity[i] = RHO * velocity[i] + grad[i]
        param[i] -= LR * (grad[i] + RHO * velocity[i])


@jit
def rmsprop(param, grad, square_avg):
    decay, rest, eps = f32(0.99), f32(0.01), f32(1e-8)
    for i in range(param.size):
        square_avg[i] = decay * square_avg[i] + rest * grad[i] * grad[i]
        param[i] -= LR * grad[i] / (math.sqrt(square_avg[i]) + eps)


@jit
def adagrad(param, grad, square_sum):
    eps = f32(1e-10)
    for i in range(param.size):
        square_sum[i] += grad[i] * grad[i]
        param[i] -= LR * grad[i] / (math.sqrt(square_sum[i]) + eps)


def _adam(keep):
    """Adam that first multiplies the parameter by `keep`."""

    @jit
    def adam(param, grad, m, v, t):
        root = math.sqrt(1 - 0.999**t)
        size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-8 * root)
        beta1, rest1, beta2, rest2 = f32(0.9), f32(0.1), f32(0.999), f32(0.001)
        for i in range(param.size):
            m[i] = beta1 * m[i] + rest1 * grad[i]
            v[i] = beta2 * v[i] + rest2 * grad[i] * grad[i]
            param[i] = keep * param[i] - size * m[i] / (math.sqrt(v[i]) + eps)

    return adam


#: The kernel, its number of state arrays, and whether it counts steps.
STEPS = {
    "sgd": (sgd, 0, False),
    "momentum": (momentum, 1, False),
    "nesterov": (nesterov, 1, False),
    "rmsprop": (rmsprop, 1, False),
    "adagrad": (adagrad, 1, False),
    "adam": (_adam(f32(1)), 2, True),
    "adamw": (_adam(f32(1 - 1e-3 * 0.01)), 2, True),
}


def _step(name, param, grad):
    kernel, states, counts = STEPS[name]
    held = param.copy(), grad, *(np.zeros_like(param) for _ in range(states))
    number = itertools.count(1)
    return (lambda: kernel(*held, next(number))) if counts else functools.partial(kernel, *held), held[0]


# ---- Layers -------------------------------------------------------------------------------------------------


@jit
def relu_forward(x, y):
    for i in range(x.size):
        y[i] = max(x[i], f32(0))


@jit
def relu_backward(dy, y, dx):
    for i in range(dy.size):
        dx[i] = dy[i] if y[i] > 0 else f32(0)


@jit
def dropout(x, p, generator, mask, y):
    """Of the ways to draw in numba the fastest by far: all at once, in float32, by SFC64."""
    scale = f32(1 / (1 - p))
    draws = generator.random(x.size, np.float32)
    for i in range(x.size):
        mask[i] = draws[i] >= p
        y[i] = scale * x[i] if mask[i] else f32(0)


@jit
def dropout_backward(dy, mask, p, dx):
    scale = f32(1 / (1 - p))
    for i in range(dy.size):
        dx[i] = scale * dy[i] if mask[i] else f32(0)


@jit
def bias_relu_forward(x, bias, y):
    rows, columns = x.shape
    for i in range(rows):
        for j in range(columns):
            y[i, j] = max(x[i, j] + bias[j], f32(0))


@jit
def bias_relu_backward(dy, y, dbias, dx):
    rows, columns = dy.shape
    dbias[:] = 0
    for i in range(rows):
        for j in range(columns):
            dx[i, j] = dy[i, j] if y[i, j] > 0 else f32(0)
            dbias[j] += dx[i, j]


EPS = 1e-5
NEW = f32(0.1)


@jit
def dense_norm_forward(x, scale, shift, running_mean, running_var, mean, inv_std, y):
    """Batch norm of x (n, channels)."""
    n, channels = x.shape
    mean[:] = 0
    inv_std[:] = 0
    for i in range(n):
        for c in range(channels):
            mean[c] += x[i, c]
    for c in range(channels):
        mean[c] /= f32(n)
    for i in range(n):
        for c in range(channels):
            inv_std[c] += (x[i, c] - mean[c]) ** 2
    for c in range(channels):
        running_mean[c] += NEW * (mean[c] - running_mean[c])
        running_var[c] += NEW * (inv_std[c] / f32(n - 1) - running_var[c])
        inv_std[c] = 1 / math.sqrt(inv_std[c] / f32(n) + f32(EPS))
    for i in range(n):
        for c in range(channels):
            y[i, c] = scale[c] * inv_std[c] * (x[i, c] - mean[c]) + shift[c]


@jit
def dense_norm_backward(dy, x, scale, mean, inv_std, dscale, dshift, dx):
    n, channels = x.shape
    dscale[:] = 0
    dshift[:] = 0
    for i in range(n):
        for c in range(channels):
            dshift[c] += dy[i, c]
            dscale[c] += dy[i, c] * (x[i, c] - mean[c]) * inv_std[c]
    for i in range(n):
        for c in range(channels):
            x_hat = (x[i, c] - mean[c]) * inv_std[c]
            dx[i, c] = scale[c] * inv_std[c] * (dy[i, c] - (dshift[c] + x_hat * dscale[c]) * f32(1 / n))


@jit
def image_norm_forward(x, scale, shift, running_mean, running_var, mean, inv_std, y):
    """Batch norm of x (n, channels, inner)."""
    n, channels, inner = x.shape
    count = n * inner
    for c in range(channels):
        total = f32(0)
        for i in range(n):
            for j in range(inner):
                total += x[i, c, j]
        center = total / f32(count)
        squares = f32(0)
        for i in range(n):
            for j in range(inner):
                squares += (x[i, c, j] - center) ** 2
        mean[c] = center
        inv_std[c] = 1 / math.sqrt(squares / f32(count) + f32(EPS))
        running_mean[c] += NEW * (center - running_mean[c])
        running_var[c] += NEW * (squares / f32(count - 1) - running_var[c])
        factor, shifted = scale[c] * inv_std[c], shift[c]
        for i in range(n):
            for j in range(inner):
                y[i, c, j] = factor * (x[i, c, j] - center) + shifted


@jit
def image_norm_backward(dy, x, scale, mean, inv_std, dscale, dshift, dx):
    n, channels, inner = x.shape
    for c in range(channels):
        center = mean[c]
        total, product = f32(0), f32(0)
        for i in range(n):
            for j in range(inner):
                total += dy[i, c, j]
                product += dy[i, c, j] * (x[i, c, j] - center)
        dshift[c] = total
        dscale[c] = product * inv_std[c]
        factor = scale[c] * inv_std[c]
        offset, slope = total / f32(n * inner), product * inv_std[c] ** 2 / f32(n * inner)
        for i in range(n):
            for j in range(inner):
                dx[i, c, j] = factor * (dy[i, c, j] - offset - slope * (x[i, c, j] - center))


@jit
def softmax_cross_entropy(x, labels, d):
    n, classes = x.shape
    loss = f32(0)
    for i in range(n):
        highest = x[i, 0]
        for j in range(1, classes):
            highest = max(highest, x[i, j])
        total = f32(0)
        for j in range(classes):
            d[i, j] = math.exp(x[i, j] - highest)
            total += d[i, j]
        loss += math.log(total) + highest - x[i, labels[i]]
        for j in range(classes):
            d[i, j] *= 1 / (total * f32(n))
        d[i, labels[i]] -= 1 / f32(n)
    return loss / f32(n)


@jit
def max_pool_forward(x, winner, y):
    n, rows, columns, channels = y.shape
    for i in range(n):
        for oy in range(rows):
            for ox in range(columns):
                for c in range(channels):
                    best, place = x[i, 2 * oy, 2 * ox, c], np.int32(0)
                    for k in range(1, 4):
                        value = x[i, 2 * oy + k // 2, 2 * ox + k % 2, c]
                        if value > best:
                            best, place = value, np.int32(k)
                    y[i, oy, ox, c] = best
                    winner[i, oy, ox, c] = place


@jit
def max_pool_backward(dy, winner, dx):
    n, rows, columns, channels = dy.shape
    for i in range(n):
        for oy in range(rows):
            for ox in range(columns):
                for k in range(4):
                    for c in range(channels):
                        won = winner[i, oy, ox, c] == k
                        dx[i, 2 * oy + k // 2, 2 * ox + k % 2, c] = dy[i, oy, ox, c] if won else f32(0)


@jit
def im2col(x, columns):
    """Windows of 3 × 3, padding 1."""
    n, h, w, channels = x.shape
    for i in range(n):
        for oy in range(h):
            for ox in range(w):
                for ky in range(3):
                    for kx in range(3):
                        y, z = oy + ky - 1, ox + kx - 1
                        if 0 <= y < h and 0 <= z < w:
                            for c in range(channels):
                                columns[i, oy, ox, ky, kx, c] = x[i, y, z, c]
                        else:
                            for c in range(channels):
                                columns[i, oy, ox, ky, kx, c] = 0


@jit
def col2im(columns, x):
    """Windows of 3 × 3, padding 1."""
    n, h, w, channels = x.shape
    x[...] = 0
    for i in range(n):
        for oy in range(h):
            for ox in range(w):
                for ky in range(3):
                    for kx in range(3):
                        y, z = oy + ky - 1, ox + kx - 1
                        if 0 <= y < h and 0 <= z < w:
                            for c in range(channels):
                                x[i, y, z, c] += columns[i, oy, ox, ky, kx, c]


def _layer(name, **arrays):
    first, *others = arrays.values()
    out = np.empty_like(first)
    match name:
        case "relu_forward":
            call = functools.partial(relu_forward, first, out)
        case "relu_backward":
            call = functools.partial(relu_backward, first, *others, out)
        case "dropout":
            generator = np.random.Generator(np.random.SFC64(0))
            call = functools.partial(dropout, first, 0.5, generator, np.empty(first.shape, np.bool_), out)
        case "dropout_backward":
            call = functools.partial(dropout_backward, first, *others, 0.5, out)
        case "bias_relu_forward":
            call = functools.partial(bias_relu_forward, first, *others, out)
        case "bias_relu_backward":
            call = functools.partial(bias_relu_backward, first, *others, np.empty_like(first[0]), out)
        case "batch_norm_forward" | "batch_norm_backward":
            call = _batch_norm(name, out, **arrays)
        case "softmax_cross_entropy":
            call = functools.partial(softmax_cross_entropy, first, *others, out)
        case "max_pool_forward" | "max_pool_backward":
            x = arrays["x"]
            n, h, w, c = x.shape
            y = np.empty((n, h // 2, w // 2, c), x.dtype)
            winner = np.empty(y.shape, np.int32)
            call, out = functools.partial(max_pool_forward, x, winner, y), y
            if name == "max_pool_backward":
                call()
                out = np.empty_like(x)
                call = functools.partial(max_pool_backward, first, winner, out)
        case "im2col":
            out = np.empty((*first.shape[:3], 3, 3, first.shape[3]), first.dtype)
            call = functools.partial(im2col, first, out)
        case "col2im":
            out = np.empty((*first.shape[:3], first.shape[5]), first.dtype)
            call = functools.partial(col2im, first, out)
    return call, out


def _batch_norm(name, out, x, scale, shift=None, dy=None):
    channels = len(scale)
    mean, inv_std, running_mean, running_var, dscale, dshift = np.zeros((6, channels), np.float32)
    if x.ndim == 2:
        forward, backward, shape = dense_norm_forward, dense_norm_backward, x.shape
    else:
        forward, backward, shape = image_norm_forward, image_norm_backward, (len(x), channels, -1)
    x, result = x.reshape(shape), out.reshape(shape)
    shift = np.zeros_like(scale) if shift is None else shift
    call = functools.partial(forward, x, scale, shift, running_mean, running_var, mean, inv_std, result)
    if name == "batch_norm_backward":
        call()
        call = functools.partial(backward, dy.reshape(shape), x, scale, mean, inv_std, dscale, dshift, result)
    return call
