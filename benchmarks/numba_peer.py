"""numba: one loop per step and layer, compiled as fast as it can be, and where there are threads once more for them.

Without ``error_model="numpy"`` every division is checked, no loop with one becomes a vector loop, and Adam is ten
times slower. Constants are float32, else numba computes in float64.
"""

import functools
import itertools
import math

import numba
import numpy as np
from numba import prange
from settings import THREADS

from fastopt.bench import together

VERSION = numba.__version__
numba.set_num_threads(THREADS)

f32 = np.float32


@functools.cache
def compiled(function, parallel):
    """The function as machine code. In parallel, its `prange` divides the work; else that is `range`."""
    return numba.njit(fastmath=True, error_model="numpy", parallel=parallel)(function)


def contenders(contest):
    """What numba enters into a contest: a function, and where it leaves its result."""
    entered = {}
    for name, parallel in (("numba", False), ("numba parallel", True))[:THREADS]:
        bind = functools.partial(_bind, parallel)
        if contest.params:
            if contest.name in STEPS:
                entered[name] = _step(bind, contest)
        elif contest.name in ("batch_norm_forward", "batch_norm_backward"):
            for label, axis in (name, contest.axis), (f"{name}, other layout", -contest.axis):
                rows = contest.arrays["x"].ndim == 2 or axis == -1  # whose sums prange does not divide as they stand
                if not (rows and parallel) and (contest.arrays["x"].ndim > 2 or axis == contest.axis):
                    entered[label] = _batch_norm(bind, contest, axis)
        elif not parallel or contest.name not in SERIAL:
            made = _layer(bind, contest.name, **contest.arrays)
            if made is not None:
                entered[name] = made
    return entered


def _bind(parallel, function, *arguments):
    return functools.partial(compiled(function, parallel), *arguments)


# ---- Optimizer steps ----------------------------------------------------------------------------------------

LR = f32(1e-3)
RHO = f32(0.9)


def sgd(param, grad):
    for i in prange(param.size):
        param[i] -= LR * grad[i]


def momentum(param, grad, velocity):
    for i in prange(param.size):
        velocity[i] = RHO * velocity[i] + grad[i]
        param[i] -= LR * velocity[i]


def nesterov(param, grad, velocity):
    for i in prange(param.size):
        velocity[i] = RHO * velocity[i] + grad[i]
        param[i] -= LR * (grad[i] + RHO * velocity[i])


def rmsprop(param, grad, square_avg):
    decay, rest, eps = f32(0.99), f32(0.01), f32(1e-8)
    for i in prange(param.size):
        square_avg[i] = decay * square_avg[i] + rest * grad[i] * grad[i]
        param[i] -= LR * grad[i] / (math.sqrt(square_avg[i]) + eps)


def adagrad(param, grad, square_sum):
    eps = f32(1e-10)
    for i in prange(param.size):
        square_sum[i] += grad[i] * grad[i]
        param[i] -= LR * grad[i] / (math.sqrt(square_sum[i]) + eps)


def _adam(keep):
    """Adam that first multiplies the parameter by `keep`."""

    def adam(param, grad, m, v, t):
        root = math.sqrt(1 - 0.999**t)
        size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-8 * root)
        beta1, rest1, beta2, rest2 = f32(0.9), f32(0.1), f32(0.999), f32(0.001)
        for i in prange(param.size):
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


def _step(bind, contest):
    kernel, states, counts = STEPS[contest.name]
    held = [(p.copy(), g, *(np.zeros_like(p) for _ in range(states))) for p, g in _pairs(contest)]
    calls = [_counting(bind(kernel, *arrays)) if counts else bind(kernel, *arrays) for arrays in held]
    return together(calls), [arrays[0] for arrays in held]


def _pairs(contest):
    return zip((p.ravel() for p in contest.params), (g.ravel() for g in contest.grads), strict=True)


def _counting(call):
    number = itertools.count(1)
    return lambda: call(next(number))


# ---- Layers -------------------------------------------------------------------------------------------------


def relu_forward(x, y):
    for i in prange(x.size):
        y[i] = max(x[i], f32(0))


def relu_backward(dy, y, dx):
    for i in prange(dy.size):
        dx[i] = dy[i] if y[i] > 0 else f32(0)


def dropout(x, p, generator, mask, y):
    """Of the ways to draw in numba the fastest by far: all at once, in float32, by SFC64."""
    scale = f32(1 / (1 - p))
    draws = generator.random(x.size, np.float32)
    for i in prange(x.size):
        mask[i] = draws[i] >= p
        y[i] = scale * x[i] if mask[i] else f32(0)


def dropout_backward(dy, mask, p, dx):
    scale = f32(1 / (1 - p))
    for i in prange(dy.size):
        dx[i] = scale * dy[i] if mask[i] else f32(0)


def bias_relu_forward(x, bias, y):
    rows, columns = x.shape
    for i in prange(rows):
        for j in range(columns):
            y[i, j] = max(x[i, j] + bias[j], f32(0))


def bias_relu_backward(dy, y, dbias, dx):
    rows, columns = dy.shape
    dbias[:] = 0
    for i in range(rows):
        for j in range(columns):
            dx[i, j] = dy[i, j] if y[i, j] > 0 else f32(0)
            dbias[j] += dx[i, j]


def bias_relu_dropout_forward(x, bias, p, generator, y):
    rows, columns = x.shape
    scale = f32(1 / (1 - p))
    draws = generator.random(x.shape, np.float32)
    for i in prange(rows):
        for j in range(columns):
            y[i, j] = scale * max(x[i, j] + bias[j], f32(0)) if draws[i, j] >= p else f32(0)


EPS = 1e-5
NEW = f32(0.1)


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


def image_norm_forward(x, scale, shift, running_mean, running_var, mean, inv_std, y):
    """Batch norm of x (n, channels, inner)."""
    n, channels, inner = x.shape
    count = n * inner
    for c in prange(channels):
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


def image_norm_backward(dy, x, scale, mean, inv_std, dscale, dshift, dx):
    n, channels, inner = x.shape
    for c in prange(channels):
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


def softmax_cross_entropy(x, labels, d):
    n, classes = x.shape
    loss = f32(0)
    for i in prange(n):
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


def max_pool_forward(x, winner, y):
    n, rows, columns, channels = y.shape
    for i in prange(n):
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


def max_pool_backward(dy, winner, dx):
    n, rows, columns, channels = dy.shape
    for i in prange(n):
        for oy in range(rows):
            for ox in range(columns):
                for k in range(4):
                    for c in range(channels):
                        won = winner[i, oy, ox, c] == k
                        dx[i, 2 * oy + k // 2, 2 * ox + k % 2, c] = dy[i, oy, ox, c] if won else f32(0)


def im2col(x, columns):
    """Windows of 3 × 3, padding 1."""
    n, h, w, channels = x.shape
    for i in prange(n):
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


def col2im(columns, x):
    """Windows of 3 × 3, padding 1."""
    n, h, w, channels = x.shape
    x[...] = 0
    for i in prange(n):
        for oy in range(h):
            for ox in range(w):
                for ky in range(3):
                    for kx in range(3):
                        y, z = oy + ky - 1, ox + kx - 1
                        if 0 <= y < h and 0 <= z < w:
                            for c in range(channels):
                                x[i, y, z, c] += columns[i, oy, ox, ky, kx, c]


#: Layers whose loops prange does not divide as they stand.
SERIAL = ("bias_relu_backward",)


def _layer(bind, name, **arrays):
    """A bound function and its result, or None for a layer that has no entry."""
    first, *others = arrays.values()
    out = np.empty_like(first)
    match name:
        case "relu_forward":
            return bind(relu_forward, first, out), out
        case "relu_backward":
            return bind(relu_backward, first, *others, out), out
        case "dropout":
            generator = np.random.Generator(np.random.SFC64(0))
            return bind(dropout, first, 0.5, generator, np.empty(first.shape, np.bool_), out), out
        case "dropout_backward":
            return bind(dropout_backward, first, *others, 0.5, out), out
        case "bias_relu_forward":
            return bind(bias_relu_forward, first, *others, out), out
        case "bias_relu_dropout_forward":
            generator = np.random.Generator(np.random.SFC64(0))
            return bind(bias_relu_dropout_forward, first, *others, 0.5, generator, out), out
        case "bias_relu_backward":
            return bind(bias_relu_backward, first, *others, np.empty_like(first[0]), out), out
        case "softmax_cross_entropy":
            return bind(softmax_cross_entropy, first, *others, out), out
        case "max_pool_forward" | "max_pool_backward":
            x = arrays["x"]
            n, h, w, c = x.shape
            y = np.empty((n, h // 2, w // 2, c), x.dtype)
            winner = np.empty(y.shape, np.int32)
            forward = bind(max_pool_forward, x, winner, y)
            if name == "max_pool_forward":
                return forward, y
            forward()
            dx = np.empty_like(x)
            return bind(max_pool_backward, first, winner, dx), dx
        case "im2col":
            out = np.empty((*first.shape[:3], 3, 3, first.shape[3]), first.dtype)
            return bind(im2col, first, out), out
        case "col2im":
            out = np.empty((*first.shape[:3], first.shape[5]), first.dtype)
            return bind(col2im, first, out), out
    return None


def _batch_norm(bind, contest, axis):
    """With the channels on `axis`, wherever the contest has them."""
    scale = contest.arrays["scale"]
    x, *dy = (np.ascontiguousarray(np.moveaxis(contest.arrays[name], contest.axis, axis))
              for name in ("x", "dy") if name in contest.arrays)  # fmt: skip
    mean, inv_std, running_mean, running_var, dscale, dshift, zero = np.zeros((7, len(scale)), np.float32)
    shift = contest.arrays.get("shift", zero)
    out = np.empty_like(x)
    if x.ndim == 2 or axis == -1:
        forward, backward, shape = dense_norm_forward, dense_norm_backward, (-1, len(scale))
    else:
        forward, backward, shape = image_norm_forward, image_norm_backward, (len(x), len(scale), -1)
    x, *dy, result = (a.reshape(shape) for a in (x, *dy, out))
    call = bind(forward, x, scale, shift, running_mean, running_var, mean, inv_std, result)
    if dy:
        call()
        call = bind(backward, *dy, x, scale, mean, inv_std, dscale, dshift, result)
    return call, np.moveaxis(out, axis, contest.axis)
