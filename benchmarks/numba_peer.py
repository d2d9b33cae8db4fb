"""numba: one loop per step and layer, compiled as fast as it can be, and where there are threads once more for them.

Without ``error_model="numpy"`` every division is checked, no loop with one becomes a vector loop, and Adam is ten
times slower. Constants are float32, else numba computes in float64.
"""

import functools
import inspect
import itertools
import math

import numba
import numpy as np
from numba import prange
from settings import THREADS

from fastopt.bench import together
from fastopt.inplace import RADAM_THRESHOLD, mu_product

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


def rmsprop_momentum(param, grad, square_avg, velocity):
    decay, rest, eps = f32(0.99), f32(0.01), f32(1e-8)
    for i in prange(param.size):
        square_avg[i] = decay * square_avg[i] + rest * grad[i] * grad[i]
        velocity[i] = RHO * velocity[i] + grad[i] / (math.sqrt(square_avg[i]) + eps)
        param[i] -= LR * velocity[i]


def centered_rmsprop(param, grad, square_avg, grad_avg, velocity):
    decay, rest, eps, zero = f32(0.99), f32(0.01), f32(1e-8), f32(0)
    for i in prange(param.size):
        square_avg[i] = decay * square_avg[i] + rest * grad[i] * grad[i]
        grad_avg[i] = decay * grad_avg[i] + rest * grad[i]
        variance = max(square_avg[i] - grad_avg[i] * grad_avg[i], zero)
        velocity[i] = RHO * velocity[i] + grad[i] / (math.sqrt(variance) + eps)
        param[i] -= LR * velocity[i]


def adadelta(param, grad, square_avg, square_step):
    decay, rest, eps = f32(0.9), f32(0.1), f32(1e-6)
    for i in prange(param.size):
        square_avg[i] = decay * square_avg[i] + rest * grad[i] * grad[i]
        step = math.sqrt(square_step[i] + eps) / math.sqrt(square_avg[i] + eps) * grad[i]
        square_step[i] = decay * square_step[i] + rest * step * step
        param[i] -= step


def rprop(param, grad, step_size, prev_grad):
    grow, shrink, low, high, zero, one = f32(1.2), f32(0.5), f32(1e-6), f32(50), f32(0), f32(1)
    for i in prange(param.size):
        product = grad[i] * prev_grad[i]
        size = step_size[i] * (grow if product > zero else shrink if product < zero else one)
        step_size[i] = min(max(size, low), high)
        prev_grad[i] = zero if product < zero else grad[i]
        param[i] -= step_size[i] if prev_grad[i] > zero else -step_size[i] if prev_grad[i] < zero else zero


BETA1, REST1, BETA2, REST2 = RHO, f32(0.1), f32(0.999), f32(0.001)


def _adam(keep):
    """Adam that first multiplies the parameter by `keep`."""

    def adam(param, grad, m, v, t):
        root = math.sqrt(1 - 0.999**t)
        size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-8 * root)
        for i in prange(param.size):
            m[i] = BETA1 * m[i] + REST1 * grad[i]
            v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
            param[i] = keep * param[i] - size * m[i] / (math.sqrt(v[i]) + eps)

    return adam


def clipped_adam(param, grad, m, v, t):
    root = math.sqrt(1 - 0.999**t)
    size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-8 * root)
    square = f32(0)
    for i in prange(param.size):
        square += grad[i] * grad[i]
    factor = f32(min(1.0, 1.0 / math.sqrt(square)))
    for i in prange(param.size):
        g = factor * grad[i]
        m[i] = BETA1 * m[i] + REST1 * g
        v[i] = BETA2 * v[i] + REST2 * g * g
        param[i] -= size * m[i] / (math.sqrt(v[i]) + eps)


def amsgrad(param, grad, m, v, largest, t):
    root = math.sqrt(1 - 0.999**t)
    size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-8 * root)
    for i in prange(param.size):
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
        largest[i] = max(largest[i], v[i])
        param[i] -= size * m[i] / (math.sqrt(largest[i]) + eps)


def adamax(param, grad, m, u, t):
    size, eps = f32(1e-3 / (1 - 0.9**t)), f32(1e-8)
    for i in prange(param.size):
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        u[i] = max(BETA2 * u[i], abs(grad[i]))
        param[i] -= size * m[i] / (u[i] + eps)


def nadam(param, grad, m, v, t, before, now, after):
    root = math.sqrt(1 - 0.999**t)
    of_m, of_g = f32(1e-3 * root * after / now / (1 - after)), f32(1e-3 * root * (1 - now / before) / (1 - now))
    eps = f32(1e-8 * root)
    for i in prange(param.size):
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
        param[i] -= (of_m * m[i] + of_g * grad[i]) / (math.sqrt(v[i]) + eps)


def radam(param, grad, m, v, t):
    limit = 2 / (1 - 0.999) - 1
    rho = limit - 2 * t * 0.999**t / (1 - 0.999**t)
    root = math.sqrt(1 - 0.999**t)
    size, eps = 1e-3 / (1 - 0.9**t), f32(1e-8 * root)
    if rho > RADAM_THRESHOLD:
        of_m = f32(size * root * math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)))
        for i in prange(param.size):
            m[i] = BETA1 * m[i] + REST1 * grad[i]
            v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
            param[i] -= of_m * m[i] / (math.sqrt(v[i]) + eps)
    else:
        of_m = f32(size)
        for i in prange(param.size):
            m[i] = BETA1 * m[i] + REST1 * grad[i]
            v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
            param[i] -= of_m * m[i]


def adabound(param, grad, m, v, t):
    root = math.sqrt(1 - 0.999**t)
    size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-8 * root)
    low, high = f32(0.1 * (1 - 1 / (1e-3 * t + 1))), f32(0.1 * (1 + 1 / (1e-3 * t)))
    for i in prange(param.size):
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
        param[i] -= min(max(size / (math.sqrt(v[i]) + eps), low), high) * m[i]


def amsbound(param, grad, m, v, largest, t):
    root = math.sqrt(1 - 0.999**t)
    size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-8 * root)
    low, high = f32(0.1 * (1 - 1 / (1e-3 * t + 1))), f32(0.1 * (1 + 1 / (1e-3 * t)))
    for i in prange(param.size):
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
        largest[i] = max(largest[i], v[i])
        param[i] -= min(max(size / (math.sqrt(largest[i]) + eps), low), high) * m[i]


def yogi(param, grad, m, v, t):
    root = math.sqrt(1 - 0.999**t)
    size, eps = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-3 * root)
    for i in prange(param.size):
        square = grad[i] * grad[i]
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        v[i] = v[i] - REST2 * square if v[i] > square else v[i] + REST2 * square if v[i] < square else v[i]
        param[i] -= size * m[i] / (math.sqrt(v[i]) + eps)


def adabelief(param, grad, m, s, t):
    root = math.sqrt(1 - 0.999**t)
    size, eps, eps_root = f32(1e-3 * root / (1 - 0.9**t)), f32(1e-16 * root), f32(1e-16)
    for i in prange(param.size):
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        s[i] = BETA2 * s[i] + REST2 * (grad[i] - m[i]) * (grad[i] - m[i]) + eps_root
        param[i] -= size * m[i] / (math.sqrt(s[i]) + eps)


def lion(param, grad, m):
    kept, rest, zero = f32(0.99), f32(0.01), f32(0)
    for i in prange(param.size):
        direction = BETA1 * m[i] + REST1 * grad[i]
        m[i] = kept * m[i] + rest * grad[i]
        param[i] -= LR if direction > zero else -LR if direction < zero else zero


def lamb(param, grad, m, v, t):
    root = math.sqrt(1 - 0.999**t)
    factor, eps = f32(root / (1 - 0.9**t)), f32(1e-6 * root)
    of_param, of_update = f32(0), f32(0)
    for i in prange(param.size):
        m[i] = BETA1 * m[i] + REST1 * grad[i]
        v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
        update = factor * m[i] / (math.sqrt(v[i]) + eps)
        of_param += param[i] * param[i]
        of_update += update * update
    step = f32(1e-3 * math.sqrt(of_param / of_update) if of_param > 0 and of_update > 0 else 1e-3)
    for i in prange(param.size):
        param[i] -= step * (factor * m[i] / (math.sqrt(v[i]) + eps))


def schedule_free_sgd(param, grad, z, t):
    c, rest, lr_y = f32(1 / t), f32(1 - 1 / t), f32(1e-3 * (1 - 0.9 * (1 - 1 / t)))
    for i in prange(param.size):
        param[i] = rest * param[i] + c * z[i] - lr_y * grad[i]
        z[i] -= LR * grad[i]


def schedule_free_adamw(param, grad, z, v, t):
    root = math.sqrt(1 - 0.999**t)
    c, rest, lr_y = f32(1 / t), f32(1 - 1 / t), f32(1e-3 * (1 - 0.9 * (1 - 1 / t)))
    factor, eps = f32(root), f32(1e-8 * root)
    for i in prange(param.size):
        v[i] = BETA2 * v[i] + REST2 * grad[i] * grad[i]
        direction = factor * grad[i] / (math.sqrt(v[i]) + eps)
        param[i] = rest * param[i] + c * z[i] - lr_y * direction
        z[i] -= LR * direction


def _products(t):
    return t, mu_product(t - 1), mu_product(t), mu_product(t + 1)


#: The steps, and those among them that are told something beside arrays: their number, or what a function makes of it.
STEPS = {
    kernel.__name__: kernel
    for kernel in (
        sgd, momentum, nesterov, rmsprop, rmsprop_momentum, centered_rmsprop, adagrad, adadelta, rprop, clipped_adam,
        amsgrad, adamax, nadam, radam, adabound, amsbound, yogi, adabelief, lion, lamb, schedule_free_sgd,
        schedule_free_adamw,
    )
} | {"adam": _adam(f32(1)), "adamw": _adam(f32(1 - 1e-3 * 0.01))}  # fmt: skip
TOLD = {"nadam": _products}


def _step(bind, contest):
    kernel = STEPS[contest.name]
    held = [
        (param.flatten(), grad.ravel(), *(state.ravel() for state in states))
        for param, grad, states in zip(contest.params, contest.grads, contest.states(), strict=True)
    ]
    counts = inspect.signature(kernel).parameters.get("t") is not None
    told = TOLD.get(contest.name, lambda t: (t,))
    calls = [_counting(bind(kernel, *arrays), told) if counts else bind(kernel, *arrays) for arrays in held]
    return together(calls), [arrays[0] for arrays in held]


def _counting(call, told):
    number = itertools.count(1)
    return lambda: call(*told(next(number)))


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
