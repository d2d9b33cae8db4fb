"""Every formula of fastopt in plain NumPy, in textbook form: documentation, oracle of the tests, baseline of the
benchmarks. Never fast, never in place, and of nothing but NumPy.

Names, arguments and defaults are those of `fastopt.functional`; a step returns the new parameter and state.

>>> import numpy as np
>>> from fastopt import reference
>>> reference.momentum(np.array([1.0]), np.array([0.5]), np.array([0.2]), lr=0.1, momentum=0.9)
(array([0.932]), array([0.68]))
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


# ---- Optimizer steps ----------------------------------------------------------------------------------------


def _step(
    formula: Callable[..., Any], *, decoupled: bool = False, decay_in_direction: bool = False
) -> Callable[..., Any]:
    """A formula of the gradient that it sees, with what every step does around it.

    With `decay_in_direction`, decoupled decay is left to the formula.
    """

    @functools.wraps(formula)
    def step(
        param, grad, *state, weight_decay=0.0, decoupled=decoupled, l1=0.0, max_norm=None, clip_value=None,
        maximize=False, grad_scale=1.0, **own,
    ):  # fmt: skip
        g = (-grad_scale if maximize else grad_scale) * grad
        if clip_value is not None:
            g = np.clip(g, -clip_value, clip_value)
        if weight_decay and not decoupled:  # the gradient of weight_decay/2 |p|^2
            g = g + weight_decay * param
        if l1:  # and of l1 |p|
            g = g + l1 * np.where(param > 0, 1, np.where(param < 0, -1, 0))
        if decay_in_direction:
            own["weight_decay"] = weight_decay if decoupled else 0.0
        elif decoupled:
            param = (1 - own.get("lr", inspect.signature(formula).parameters["lr"].default) * weight_decay) * param
        param, *state = formula(param, g, *state, **own)
        if max_norm is not None and param.ndim > 1:
            norms = np.sqrt(np.square(param, dtype=np.float64).sum(axis=tuple(range(param.ndim - 1))))
            param = param * np.where(norms > max_norm, max_norm / np.maximum(norms, max_norm), 1).astype(param.dtype)
        return param, *state

    return step


def _decoupled(formula: Callable[..., Any]) -> Callable[..., Any]:
    return _step(formula, decoupled=True)


def _decay_in_direction(formula: Callable[..., Any]) -> Callable[..., Any]:
    return _step(formula, decoupled=True, decay_in_direction=True)


def _root(x: Array, eps: float, eps_mode: str) -> Array:
    root: Array = np.sqrt(x + eps) if eps_mode == "inside" else np.sqrt(x) + eps
    return root


@_step
def sgd(param, grad, *, lr):
    """Gradient descent.

    >>> sgd(np.array([1.0, -2.0]), np.array([0.5, 0.5]), lr=0.1)
    (array([ 0.95, -2.05]),)
    """
    return (param - lr * grad,)


@_step
def momentum(
    param, grad, velocity, *, lr, momentum=0.9, dampening=0.0, average=False, nesterov=False, lr_in_velocity=False
):
    """Momentum, and Nesterov's.

    >>> momentum(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), lr=0.1)
    (array([ 0.95, -2.05]), array([0.5, 0.5]))
    """
    if average:
        grad = (1 - momentum) * grad
    g_in = (1 - dampening) * grad
    if lr_in_velocity:  # the velocity is a step
        velocity = momentum * velocity - lr * g_in
        return param + (momentum * velocity - lr * grad if nesterov else velocity), velocity
    velocity = momentum * velocity + g_in
    return param - lr * (grad + momentum * velocity if nesterov else velocity), velocity


@_step
def look_ahead_nesterov(param, grad, velocity, *, lr, momentum=0.9):
    """Nesterov's momentum at the point to which the velocity leads.

    >>> look_ahead_nesterov(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), lr=0.1)
    (array([ 0.95, -2.05]), array([-0.05, -0.05]))
    """
    w = param - momentum * velocity  # the parameter is the point w + momentum·v
    velocity = momentum * velocity - lr * grad
    return w + velocity, velocity


@_step
def rmsprop(param, grad, square_avg, *, lr=1e-3, decay=0.99, eps=1e-8, eps_mode="outside"):
    """RMSProp.

    >>> rmsprop(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), lr=0.01)
    (array([ 0.90000002, -2.09999998]), array([0.0025, 0.0025]))
    """
    square_avg = decay * square_avg + (1 - decay) * grad**2
    return param - lr * grad / _root(square_avg, eps, eps_mode), square_avg


@_step
def rmsprop_momentum(
    param, grad, square_avg, velocity, *, lr=1e-3, decay=0.99, momentum=0.9, eps=1e-8, eps_mode="outside",
    lr_in_velocity=False,
):  # fmt: skip
    """RMSProp with momentum.

    >>> rmsprop_momentum(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), lr=0.01)[0]
    array([ 0.90000002, -2.09999998])
    """
    square_avg = decay * square_avg + (1 - decay) * grad**2
    direction = grad / _root(square_avg, eps, eps_mode)
    velocity = momentum * velocity + (lr * direction if lr_in_velocity else direction)
    return param - (velocity if lr_in_velocity else lr * velocity), square_avg, velocity


@_step
def centered_rmsprop(
    param, grad, square_avg, grad_avg, velocity, *, lr=1e-3, decay=0.99, momentum=0.0, eps=1e-8, eps_mode="outside",
    lr_in_velocity=False,
):  # fmt: skip
    """RMSProp by the variance of the gradient.

    >>> centered_rmsprop(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), np.zeros(2), lr=0.01)[0]
    array([ 0.89949624, -2.10050376])
    """
    square_avg = decay * square_avg + (1 - decay) * grad**2
    grad_avg = decay * grad_avg + (1 - decay) * grad
    direction = grad / _root(np.maximum(square_avg - grad_avg**2, 0), eps, eps_mode)
    velocity = momentum * velocity + (lr * direction if lr_in_velocity else direction)
    return param - (velocity if lr_in_velocity else lr * velocity), square_avg, grad_avg, velocity


@_step
def adagrad(param, grad, square_sum, *, lr=1e-2, eps=1e-10, eps_mode="outside", root=True):
    """Adagrad.

    >>> adagrad(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), lr=0.1)
    (array([ 0.9, -2.1]), array([0.25, 0.25]))
    """
    square_sum = square_sum + grad**2
    return param - lr * grad / (_root(square_sum, eps, eps_mode) if root else square_sum + eps), square_sum


@_step
def adadelta(param, grad, square_avg, square_step, *, lr=1.0, decay=0.9, eps=1e-6):
    """Adadelta.

    >>> adadelta(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2))[0]
    array([ 0.99683779, -2.00316221])
    """
    square_avg = decay * square_avg + (1 - decay) * grad**2
    step = np.sqrt(square_step + eps) / np.sqrt(square_avg + eps) * grad
    return param - lr * step, square_avg, decay * square_step + (1 - decay) * step**2


@_step
def rprop(param, grad, step_size, prev_grad, *, lr=1e-2, eta_minus=0.5, eta_plus=1.2, min_step=1e-6, max_step=50.0):
    """Rprop, in the form iRprop−.

    >>> rprop(np.array([1.0, -2.0]), np.array([0.5, -3.0]), np.full(2, 0.01), np.zeros(2))[0]
    array([ 0.99, -1.99])
    """
    agreement = np.sign(grad) * np.sign(prev_grad)
    factor = np.where(agreement > 0, eta_plus, np.where(agreement < 0, eta_minus, 1)).astype(param.dtype)
    step_size = np.where(factor * step_size > max_step, max_step, np.maximum(factor * step_size, min_step))
    grad = np.where(agreement < 0, 0, grad)
    return param - step_size * np.where(np.isnan(grad), 0, np.sign(grad)), step_size, grad


def _moments(grad, m, v, beta1, beta2, t, bias_correction=True):
    """The moments of Adam, and what corrects their bias."""
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    return m, v, *((1 - beta1**t, 1 - beta2**t) if bias_correction else (1.0, 1.0))


def _rate(v, c1, c2, lr, eps, eps_mode):
    """What Adam multiplies m by, v being the moment under the root."""
    if eps_mode == "hat":
        return lr * np.sqrt(c2) / c1 / (np.sqrt(v) + eps)
    return lr / c1 / _root(v / c2, eps, eps_mode)


@_step
def adam(param, grad, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside", bias_correction=True):
    """Adam.

    >>> adam(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.99, -2.01])
    """
    m, v, c1, c2 = _moments(grad, m, v, beta1, beta2, t, bias_correction)
    return param - _rate(v, c1, c2, lr, eps, eps_mode) * m, m, v


def adamw(param, grad, m, v, *, weight_decay=0.01, **hyper):
    """Adam with decoupled decay.

    >>> adamw(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01, weight_decay=0.1)[0]
    array([ 0.989, -2.008])
    """
    return adam(param, grad, m, v, weight_decay=weight_decay, decoupled=True, **hyper)


@_step
def amsgrad(
    param, grad, m, v, v_max, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside",
    bias_correction=True, corrected_max=False,
):  # fmt: skip
    """AMSGrad.

    >>> amsgrad(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.99, -2.01])
    """
    m, v, c1, c2 = _moments(grad, m, v, beta1, beta2, t, bias_correction)
    v_max = np.maximum(v_max, v / c2 if corrected_max else v)
    return param - _rate(v_max, c1, 1.0 if corrected_max else c2, lr, eps, eps_mode) * m, m, v, v_max


@_step
def adamax(param, grad, m, u, *, t, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside"):
    """Adamax.

    >>> adamax(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.99, -2.01])
    """
    m = beta1 * m + (1 - beta1) * grad
    u = np.maximum(beta2 * u, np.abs(grad) + (eps if eps_mode == "inside" else 0))
    return param - lr / (1 - beta1**t) * m / (u + (eps if eps_mode == "outside" else 0)), m, u


@_step
def nadam(
    param, grad, m, v, *, t, mu_product, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside",
    momentum_decay=4e-3,
):  # fmt: skip
    """NAdam; `mu_product` is the product of the momenta of the steps before.

    >>> nadam(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, mu_product=1.0, lr=0.01)[0]
    array([ 0.98943548, -2.01056452])
    """
    m, v, _, c2 = _moments(grad, m, v, beta1, beta2, t)
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    product = mu_product * mu
    m_bar = following * m / (1 - product * following) + (1 - mu) * grad / (1 - product)
    return param - _rate(v, 1.0, c2, lr, eps, eps_mode) * m_bar, m, v


@_step
def radam(param, grad, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside", threshold=4.0):
    """RAdam.

    >>> radam(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.995, -2.005])
    """
    m, v, c1, c2 = _moments(grad, m, v, beta1, beta2, t)
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= threshold:
        return param - lr / c1 * m, m, v
    rectification = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    return param - rectification * _rate(v, c1, c2, lr, eps, eps_mode) * m, m, v


def _confined(rate, final_lr, gamma, t):
    """A rate within the bounds of AdaBound."""
    return np.clip(rate, final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t)))


@_step
def adabound(
    param, grad, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside", bias_correction=True,
    final_lr=0.1, gamma=1e-3,
):  # fmt: skip
    """AdaBound.

    >>> adabound(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.99, -2.01])
    """
    m, v, c1, c2 = _moments(grad, m, v, beta1, beta2, t, bias_correction)
    return param - _confined(_rate(v, c1, c2, lr, eps, eps_mode), final_lr, gamma, t) * m, m, v


@_step
def amsbound(
    param, grad, m, v, v_max, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode="outside",
    bias_correction=True, final_lr=0.1, gamma=1e-3,
):  # fmt: skip
    """AMSBound.

    >>> amsbound(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.99, -2.01])
    """
    m, v, c1, c2 = _moments(grad, m, v, beta1, beta2, t, bias_correction)
    v_max = np.maximum(v_max, v)
    return param - _confined(_rate(v_max, c1, c2, lr, eps, eps_mode), final_lr, gamma, t) * m, m, v, v_max


@_step
def yogi(param, grad, m, v, *, t, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, eps_mode="outside", bias_correction=True):
    """Yogi.

    >>> yogi(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.99001996, -2.00998004])
    """
    old = v
    m, _, c1, c2 = _moments(grad, m, v, beta1, beta2, t, bias_correction)
    v = old - (1 - beta2) * np.sign(old - grad**2) * grad**2
    return param - _rate(v, c1, c2, lr, eps, eps_mode) * m, m, v


@_step
def adabelief(param, grad, m, s, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-16, eps_root=1e-16):
    """AdaBelief.

    >>> adabelief(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.98888889, -2.01111111])
    """
    m = beta1 * m + (1 - beta1) * grad
    s = beta2 * s + (1 - beta2) * (grad - m) ** 2 + eps_root
    return param - lr * (m / (1 - beta1**t)) / (np.sqrt(s / (1 - beta2**t)) + eps), m, s


@_decoupled
def lion(param, grad, m, *, lr=1e-4, beta1=0.9, beta2=0.99):
    """Lion.

    >>> lion(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), lr=0.01)
    (array([ 0.99, -2.01]), array([0.005, 0.005]))
    """
    direction = beta1 * m + (1 - beta1) * grad
    return param - lr * np.where(np.isnan(direction), 0, np.sign(direction)), beta2 * m + (1 - beta2) * grad


@_decay_in_direction
def lamb(
    param, grad, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, bias_correction=True, decay_outside=False,
    weight_decay=0.0,
):  # fmt: skip
    """LAMB.

    >>> lamb(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.zeros(2), t=1, lr=0.01)[0]
    array([ 0.98418861, -2.01581139])
    """
    if decay_outside:
        param, weight_decay = (1 - lr * weight_decay) * param, 0.0
    m, v, c1, c2 = _moments(grad, m, v, beta1, beta2, t, bias_correction)
    u = (m / c1) / (np.sqrt(v / c2) + eps) + (weight_decay * param if weight_decay else 0)
    of_param, of_update = (np.sqrt(np.square(a, dtype=np.float64).sum()) for a in (param, u))
    ratio = of_param / of_update if of_param > 0 and of_update > 0 else 1.0
    return param - lr * ratio * u, m, v


@_decay_in_direction
def schedule_free_sgd(param, grad, z, *, t, average_weight, lr=1.0, beta=0.9, weight_decay=0.0):
    """Schedule-free SGD.

    >>> schedule_free_sgd(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.array([1.0, -2.0]), t=1,
    ...     average_weight=1.0, lr=0.1)
    (array([ 0.95, -2.05]), array([ 0.95, -2.05]))
    """
    direction = grad + (weight_decay * param if weight_decay else 0)
    return _averaged(param, direction, z, lr, beta, average_weight)


@_decay_in_direction
def schedule_free_adamw(
    param, grad, z, v, *, t, average_weight, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0
):
    """Schedule-free AdamW.

    >>> schedule_free_adamw(np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.array([1.0, -2.0]), np.zeros(2),
    ...     t=1, average_weight=1.0, lr=0.1)[0]
    array([ 0.9, -2.1])
    """
    v = beta2 * v + (1 - beta2) * grad**2
    direction = grad / (np.sqrt(v / (1 - beta2**t)) + eps) + (weight_decay * param if weight_decay else 0)
    y, z = _averaged(param, direction, z, lr, beta1, average_weight)
    return y, z, v


def scalars_after(name, hyper, scalars, t):
    """What the functional form asks for in step t, and the scalars after it.

    >>> scalars_after("schedule_free_sgd", {"lr": 0.1, "weight_power": 0, "lr_power": 2},
    ...     {"weight_sum": 0.0, "largest_lr": 0.0}, 1)[0]
    {'average_weight': 1.0}
    """
    if name == "nadam":
        mu = hyper["beta1"] * (1 - 0.5 * 0.96 ** (t * hyper["momentum_decay"]))
        return dict(scalars), {"mu_product": scalars["mu_product"] * mu}
    if name in ("schedule_free_sgd", "schedule_free_adamw"):
        largest = max(scalars["largest_lr"], hyper["lr"])
        weight = t ** hyper["weight_power"] * largest ** hyper["lr_power"]
        total = scalars["weight_sum"] + weight
        return {"average_weight": weight / total if total else 0.0}, {"weight_sum": total, "largest_lr": largest}
    return {}, {}


def _averaged(y, direction, z, lr, beta, weight):
    """A schedule-free step: y is (1 - beta) z + beta x, so beta x is y - (1 - beta) z."""
    beta_x = y - (1 - beta) * z
    z = z - lr * direction
    beta_x = (1 - weight) * beta_x + weight * beta * z
    return (1 - beta) * z + beta_x, z


# ---- Optimizers of matrices ---------------------------------------------------------------------------------


def adafactor(
    param, grad, row_avg, column_avg, *, t, lr=1e-2, beta2_decay=-0.8, eps1, eps2=1e-3, d=1.0, weight_decay=0.0
):
    """Of a matrix.

    >>> grad = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> adafactor(np.ones((2, 2)), grad, np.zeros(2), np.zeros(2), t=1, eps1=1e-30)[0]
    array([[0.99225403, 0.98904555],
           [0.9896077 , 0.99020204]])
    """
    new = t**beta2_decay
    row_avg = (1 - new) * row_avg + new * (grad**2).mean(axis=1)
    column_avg = (1 - new) * column_avg + new * (grad**2).mean(axis=0)
    moment = np.outer(row_avg, column_avg) / max(row_avg.mean(), eps1)
    return _adafactor(param, grad, moment, t, lr, eps1, eps2, d, weight_decay), row_avg, column_avg


def adafactor_vector(
    param, grad, square_avg, *, t, lr=1e-2, beta2_decay=-0.8, eps1, eps2=1e-3, d=1.0, weight_decay=0.0
):
    """Of a vector.

    >>> adafactor_vector(np.ones(2), np.array([3.0, -4.0]), np.zeros(2), t=1, eps1=1e-30)
    (array([0.99, 1.01]), array([ 9., 16.]))
    """
    new = t**beta2_decay
    square_avg = (1 - new) * square_avg + new * grad**2
    return _adafactor(param, grad, square_avg, t, lr, eps1, eps2, d, weight_decay), square_avg


def _adafactor(param, grad, moment, t, lr, eps1, eps2, d, weight_decay):
    direction = grad / np.sqrt(np.maximum(moment, eps1**2))
    size = np.sqrt(np.mean(direction**2))
    step = max(eps2, np.sqrt(np.mean(param**2))) * min(lr, 1 / np.sqrt(t)) / max(1.0, size / d)
    return (1 - lr * weight_decay) * param - step * direction


def muon(param, grad, momentum_avg, *, lr=2e-2, momentum=0.95, nesterov=True, steps=5, eps=1e-7, weight_decay=0.0):
    """Of a matrix (inputs, units), with the adjustment "original".

    >>> muon(np.eye(2), np.array([[1.0, 0.0], [0.0, -5.0]]), np.zeros((2, 2)), lr=0.1)[0].round(3)
    array([[0.92 , 0.   ],
           [0.   , 1.072]])
    """
    momentum_avg = momentum * momentum_avg + (1 - momentum) * grad
    u = (1 - momentum) * grad + momentum * momentum_avg if nesterov else momentum_avg
    x = u / (np.linalg.norm(u) + eps)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    for _ in range(steps):  # the Newton–Schulz step leaves the singular vectors as they are
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    inputs, units = param.shape
    factor = np.sqrt(max(1.0, units / inputs))
    return (1 - lr * weight_decay) * param - lr * factor * (left * values) @ right, momentum_avg


# ---- Activations and losses ---------------------------------------------------------------------------------


def relu_forward(x: Array) -> Array:
    """max(x, 0).

    >>> relu_forward(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return np.maximum(x, 0)


def relu_backward(dy: Array, y: Array) -> Array:
    """The gradient, by the output.

    >>> relu_backward(np.array([3.0, 3.0]), np.array([0.0, 2.0]))
    array([0., 3.])
    """
    return np.where(y <= 0, 0, dy)


def bias_relu_forward(x: Array, bias: Array) -> Array:
    """max(x + bias, 0).

    >>> bias_relu_forward(np.array([[-1.0, 2.0]]), np.array([3.0, -3.0]))
    array([[2., 0.]])
    """
    return np.maximum(x + bias, 0)


def bias_relu_backward(dy: Array, y: Array) -> tuple[Array, Array]:
    """dx and dbias, by the output.

    >>> bias_relu_backward(np.ones((2, 2)), np.array([[0.0, 2.0], [1.0, 2.0]]))
    (array([[0., 1.],
           [1., 1.]]), array([1., 2.]))
    """
    dx = np.where(y <= 0, 0, dy)
    return dx, dx.sum(axis=tuple(range(dx.ndim - 1)))


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean loss, and its gradient.

    >>> softmax_cross_entropy(np.zeros((1, 2)), np.array([1]))
    (0.6931471805599453, array([[ 0.5, -0.5]]))
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    n = len(logits)
    onehot = np.eye(logits.shape[1])[labels]
    return float(-(log_softmax * onehot).sum() / n), (np.exp(log_softmax) - onehot) / n


def mean_loss(losses, weight=1.0, mass=1.0):
    """The weighted mean of the losses of rows, which is 0 where all weights are, and the total weight.

    >>> mean_loss(np.array([1.0, 4.0]), np.array([3.0, 1.0]))
    array([1.75, 4.  ])
    """
    total = (np.ones(len(losses)) * weight * mass).sum()
    return np.array([(losses * weight).sum() / (total or 1.0), total])


def mean_loss_backward(gradient, weight=1.0, mass=1.0):
    """The gradient of that mean, given the gradient of each row's loss by itself.

    >>> mean_loss_backward(np.array([[1.0], [2.0]]), np.array([3.0, 1.0]))
    array([[0.75],
           [0.5 ]])
    """
    weight = np.ones(len(gradient)) * weight
    total = (weight * mass).sum()
    share = weight / total if total else 0 * weight
    return gradient * share.reshape(-1, *(1,) * (gradient.ndim - 1))


def softmax_loss(x, targets, class_weight=1.0, *, label_smoothing=0.0):
    """Each row's loss, gradient, and mass: that is what it counts in a mean.

    >>> softmax_loss(np.zeros((1, 2)), np.array([1]), label_smoothing=0.2)
    (array([0.69314718]), array([[ 0.4, -0.4]]), array([1.]))
    """
    classes = x.shape[1]
    targets = np.eye(classes)[targets] if targets.ndim == 1 else targets
    weights = ((1 - label_smoothing) * targets + label_smoothing / classes) * class_weight
    softmax = softmax_forward(x)
    losses = -(weights * np.log(softmax)).sum(axis=1)
    return losses, softmax * weights.sum(axis=1, keepdims=True) - weights, (targets * class_weight).sum(axis=1)


def hinge_loss(x, labels, *, margin=1.0):
    """Each row's loss, and gradient.

    >>> hinge_loss(np.array([[3.0, 2.5, 0.0]]), np.array([0]))
    (array([0.5]), array([[-1.,  1.,  0.]]))
    """
    rows = np.arange(len(x))
    excess = np.maximum(x - x[rows, labels][:, None] + margin, 0)
    excess[rows, labels] = 0
    gradient = (excess > 0).astype(x.dtype)
    gradient[rows, labels] = -gradient.sum(axis=1)
    return excess.sum(axis=1), gradient


def element_loss(x, targets, kind, *, delta=1.0):
    """Each row's loss, and gradient.

    >>> element_loss(np.array([[1.0], [4.0]]), np.array([[1.5], [1.0]]), "huber")
    (array([0.125, 2.5  ]), array([[-0.5],
           [ 1. ]]))
    """
    error = x - targets
    match kind:
        case "sigmoid_cross_entropy":
            losses, gradient = np.logaddexp(0, x) - targets * x, _sigmoid(x) - targets
        case "squared_error":
            losses, gradient = error**2, 2 * error
        case "l1":
            losses, gradient = np.abs(error), np.sign(error)
        case "huber":
            small = np.abs(error) <= delta
            losses = np.where(small, error**2 / 2, delta * (np.abs(error) - delta / 2))
            gradient = np.where(small, error, delta * np.sign(error))
        case _:
            raise ValueError(kind)
    per_row = x[:1].size or 1
    return losses.reshape(len(x), -1).sum(axis=1) / per_row, gradient / per_row


# ---- Further activations ------------------------------------------------------------------------------------

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x):
    return np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x)))


def _gelu_argument(x):
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def activation_forward(x: Array, kind: str, *, alpha: float | None = None) -> Array:
    """The activation of that kind.

    >>> activation_forward(np.array([-1.0, 2.0]), "leaky_relu", alpha=0.1)
    array([-0.1,  2. ])
    """
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
    """The gradient; what is seen is the output or the input, as `fastopt.functional` says of each kind.

    >>> activation_backward(np.array([1.0, 1.0]), np.array([0.0, 0.5]), "tanh")
    array([1.  , 0.75])
    """
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
    """Over the last axis.

    >>> softmax_forward(np.array([0.0, 0.0]))
    array([0.5, 0.5])
    """
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dy: Array, y: Array) -> Array:
    """The gradient, by the output.

    >>> softmax_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


# ---- Dropout ------------------------------------------------------------------------------------------------


def philox(blocks: Array, seed: int, counter: int) -> NDArray[np.uint32]:
    """Philox4x32-7 (Salmon et al. 2011, section 3.3): four random words for each block number.

    The 128-bit counter is (block, counter), the 64-bit key is the seed, low words first.

    >>> philox(np.arange(1), seed=0, counter=0)
    array([[1601156873,  227098468, 1326587777, 1332939336]], dtype=uint32)
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


def dropout_mask(size: int, p: float, *, seed: int, counter: int, first: int = 0) -> NDArray[np.bool_]:
    """Which elements are kept, of those from number `first` on. Each group of 128 takes 16 blocks: all first words,
    then all second words, …, of each word the low 16 bits and then the high ones.

    >>> dropout_mask(8, 0.5, seed=0, counter=0)
    array([ True, False, False,  True, False, False,  True, False])
    """
    begin, end = first // 128, -(-(first + size) // 128)
    words = philox(np.arange(16 * begin, 16 * end), seed, counter).reshape(end - begin, 16, 4).transpose(0, 2, 1)
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1)
    return halves.reshape(-1)[first % 128 :][:size] >= round(dropout_probability(p) * 2**16)


def dropout_probability(p: float) -> float:
    """The probability that takes the place of p: the nearest multiple of 2⁻¹⁶ below 1.

    >>> dropout_probability(0.5), dropout_probability(0.1)
    (0.5, 0.100006103515625)
    """
    return min(round(p * 2**16), 2**16 - 1) / 2**16


def dropout(x: Array, p: float, **key: int) -> tuple[Array, NDArray[np.bool_]]:
    """Inverted dropout, and its mask.

    >>> dropout(np.ones(4), 0.5, seed=0, counter=0)
    (array([2., 0., 0., 2.]), array([ True, False, False,  True]))
    """
    mask = dropout_mask(x.size, p, **key).reshape(x.shape)
    return dropout_backward(x, mask, p), mask


def dropout_apply(x: Array, mask: NDArray[np.bool_], p: float) -> Array:
    """Dropout by a mask of one's own.

    >>> dropout_apply(np.ones(2), np.array([True, False]), 0.75)
    array([4., 0.])
    """
    return np.where(mask, x / (1 - p), 0)


def dropout_backward(dy: Array, mask: NDArray[np.bool_], p: float) -> Array:
    """The gradient, by the mask.

    >>> dropout_backward(np.ones(2), np.array([True, False]), 0.5)
    array([2., 0.])
    """
    return dropout_apply(dy, mask, dropout_probability(p))


def bias_relu_dropout_forward(x: Array, bias: Array, p: float, **key: int) -> Array:
    """Bias, ReLU and dropout.

    >>> bias_relu_dropout_forward(np.ones((1, 4)), np.zeros(4), 0.5, seed=0, counter=0)
    array([[2., 0., 0., 2.]])
    """
    return dropout(bias_relu_forward(x, bias), p, **key)[0]


def bias_relu_dropout_backward(dy: Array, y: Array, p: float) -> tuple[Array, Array]:
    """dx and dbias, by the output, which is 0 where it was dropped.

    >>> bias_relu_dropout_backward(np.ones((1, 2)), np.array([[2.0, 0.0]]), 0.5)
    (array([[2., 0.]]), array([2., 0.]))
    """
    return bias_relu_backward(dropout_backward(dy, ~(y <= 0), p), y)


# ---- Batch norm ---------------------------------------------------------------------------------------------


def _per_channel(a: Array, ndim: int, axis: int) -> Array:
    return np.expand_dims(a, [i for i in range(ndim) if i != axis % ndim])


def batch_norm_forward(
    x, scale=1.0, shift=0.0, running_mean=None, running_var=None, *, training=True, eps=1e-5, momentum=0.1,
    momentum_of="new", unbiased=True, axis=-1, relu=False,
):  # fmt: skip
    """Returns y, (x_hat, inv_std, scale, axes, y or None), running_mean, running_var.

    >>> y, *_ = batch_norm_forward(np.array([[1.0], [3.0]]), 2.0, 1.0)
    >>> y.round(3)
    array([[-1.],
           [ 3.]])
    """
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
    """dx, dscale, dshift.

    >>> _, cache, *_ = batch_norm_forward(np.array([[1.0], [3.0]]), eps=0)
    >>> batch_norm_backward(np.array([[1.0], [0.0]]), cache)
    (array([[0.],
           [0.]]), array([-1.]), array([1.]))
    """
    x_hat, inv_std, scale, axes, y = cache
    if y is not None:
        dy = relu_backward(dy, y)
    dscale, dshift = (dy * x_hat).sum(axis=axes, keepdims=True), dy.sum(axis=axes, keepdims=True)
    count = dy.size // dscale.size
    dx = scale * inv_std * (dy - dshift / count - x_hat * dscale / count)
    return dx, dscale.ravel(), dshift.ravel()


# ---- Layer, group and instance norm -------------------------------------------------------------------------


def batch_norm_inference_backward(dy, x, scale, running_mean, running_var, *, eps=1e-5):
    """Channels last.

    >>> batch_norm_inference_backward(np.ones((1, 1)), np.array([[3.0]]), 1.0, np.array([1.0]), np.array([4.0]), eps=0)
    (array([[0.5]]), array([1.]), array([1.]))
    """
    inv_std, axes = 1 / np.sqrt(running_var + eps), tuple(range(dy.ndim - 1))
    return dy * scale * inv_std, (dy * (x - running_mean) * inv_std).sum(axis=axes), dy.sum(axis=axes)


def group_norm_forward(x, groups, scale=1.0, shift=0.0, *, eps=1e-5):
    """Returns y, (x_hat, inv_std, scale): x_hat and inv_std as (n, pixels, groups, channels of a group).

    >>> group_norm_forward(np.array([[1.0, 3.0, 5.0, 9.0]]), 2, eps=0)[0]
    array([[-1.,  1., -1.,  1.]])
    """
    n, c = len(x), x.shape[-1]
    grouped = x.reshape(n, -1, groups, c // groups)
    mean, var = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = (grouped - mean) * inv_std
    scale = np.broadcast_to(scale, c)
    return scale * x_hat.reshape(x.shape) + shift, (x_hat, inv_std, scale)


def group_norm_backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:  # type: ignore[type-arg]
    """dx, dscale, dshift.

    >>> _, cache = group_norm_forward(np.array([[1.0, 3.0, 5.0, 9.0]]), 1)
    >>> dx, dscale, dshift = group_norm_backward(np.array([[1.0, 0.0, 0.0, 0.0]]), cache)
    >>> dx.sum().round(6), dshift
    (np.float64(0.0), array([1., 0., 0., 0.]))
    """
    x_hat, inv_std, scale = cache
    g = (dy * scale).reshape(x_hat.shape)
    dx = inv_std * (g - g.mean(axis=(1, 3), keepdims=True) - x_hat * (g * x_hat).mean(axis=(1, 3), keepdims=True))
    axes = tuple(range(dy.ndim - 1))
    return dx.reshape(dy.shape), (dy * x_hat.reshape(dy.shape)).sum(axis=axes), dy.sum(axis=axes)


def layer_norm_forward(x, scale=1.0, shift=0.0, *, axes=1, eps=1e-5):
    """For `group_norm_backward` of dy as (rows, elements).

    >>> layer_norm_forward(np.array([[1.0, 3.0], [5.0, 9.0]]), eps=0)[0]
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    learnt = x.shape[x.ndim - axes :]
    rows = x.reshape(-1, math.prod(learnt))
    y, cache = group_norm_forward(rows, 1, *(np.broadcast_to(a, learnt).ravel() for a in (scale, shift)), eps=eps)
    return y.reshape(x.shape), cache


def rms_norm_forward(x, scale=1.0, *, eps=1e-5):
    """Returns y, (x, inv_rms, scale).

    >>> rms_norm_forward(np.array([[1.0, 7.0]]), eps=0)[0]
    array([[0.2, 1.4]])
    """
    inv_rms = 1 / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    return x * inv_rms * scale, (x, inv_rms, scale)


def rms_norm_backward(dy: Array, cache: tuple) -> tuple[Array, Array]:  # type: ignore[type-arg]
    """Returns dx, dscale.

    >>> _, cache = rms_norm_forward(np.array([[1.0, 7.0]]), eps=0)
    >>> rms_norm_backward(np.array([[1.0, 7.0]]), cache)[1]
    array([0.2, 9.8])
    """
    x, inv_rms, scale = cache
    g = dy * scale
    dx = inv_rms * (g - x * inv_rms**2 * np.mean(g * x, axis=-1, keepdims=True))
    return dx, (dy * x * inv_rms).reshape(-1, x.shape[-1]).sum(axis=0)


def instance_norm_forward(x, scale=1.0, shift=0.0, *, eps=1e-5):
    """Group norm with a group for each channel.

    >>> instance_norm_forward(np.array([[[1.0, 5.0], [3.0, 9.0]]]), eps=0)[0]
    array([[[-1., -1.],
            [ 1.,  1.]]])
    """
    return group_norm_forward(x, x.shape[-1], scale, shift, eps=eps)


# ---- Weight norm, decorrelated batch norm -------------------------------------------------------------------


def weight_norm_forward(direction: Array, gain: Array) -> Array:
    """gain · direction / ‖direction‖.

    >>> weight_norm_forward(np.array([[3.0], [4.0]]), np.array([10.0]))
    array([[6.],
           [8.]])
    """
    return gain * direction / np.sqrt((direction**2).sum(axis=tuple(range(direction.ndim - 1))))


def weight_norm_backward(dweight: Array, direction: Array, gain: Array) -> tuple[Array, Array]:
    """Returns ddirection, dgain (Salimans & Kingma 2016, eq. 3).

    >>> weight_norm_backward(np.array([[1.0], [0.0]]), np.array([[3.0], [4.0]]), np.array([10.0]))
    (array([[ 1.28],
           [-0.96]]), array([0.6]))
    """
    axes = tuple(range(direction.ndim - 1))
    norm = np.sqrt((direction**2).sum(axis=axes))
    dgain = (dweight * direction).sum(axis=axes) / norm
    return gain / norm * dweight - gain * dgain / norm**2 * direction, dgain


def decorrelated_batch_norm_forward(x: Array, size: int, scale=1.0, shift=0.0, *, eps=1e-5):
    """Returns y, mean (channels,) and the whitening matrices (groups, size, size); x is (…, channels).

    >>> rows = np.random.default_rng(0).normal(size=(100, 2)) @ np.array([[1.0, 2.0], [0.0, 1.0]])
    >>> y, *_ = decorrelated_batch_norm_forward(rows, 2, eps=0)
    >>> (y.T @ y / 100).round(6) + 0.0
    array([[1., 0.],
           [0., 1.]])
    """
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(axis=0)
    groups = (rows - mean).reshape(len(rows), -1, size)
    white, matrices = np.empty_like(groups), []
    for g in range(groups.shape[1]):
        values, vectors = np.linalg.eigh(groups[:, g].T @ groups[:, g] / len(rows) + eps * np.eye(size))
        matrices.append(vectors @ np.diag(values**-0.5) @ vectors.T)
        white[:, g] = groups[:, g] @ matrices[-1]
    return scale * white.reshape(x.shape) + shift, mean, np.array(matrices)


# ---- Embedding ----------------------------------------------------------------------------------------------


def embedding_forward(x: Array, weight: Array) -> Array:
    """Rows of a table.

    >>> embedding_forward(np.array([1, 1, 0]), np.array([[0.0, 1.0], [2.0, 3.0]]))
    array([[2., 3.],
           [2., 3.],
           [0., 1.]])
    """
    return weight[x.astype(np.int64)]


def embedding_backward(dy: Array, entries: Array, count: int) -> Array:
    """The gradient of the table, which has `count` rows.

    >>> embedding_backward(np.ones((3, 2)), np.array([1, 1, 0]), 3)
    array([[1., 1.],
           [2., 2.],
           [0., 0.]])
    """
    return np.eye(count)[entries.ravel()].T @ dy.reshape(-1, dy.shape[-1])


# ---- Images (n, h, w, c) ------------------------------------------------------------------------------------


def im2col(
    x: Array,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Array:
    """The windows of images: (n, y, x, kernel row, kernel column, channel).

    >>> im2col(np.arange(9.0).reshape(1, 3, 3, 1), (2, 2), (1, 1)).reshape(4, 4)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]])
    """
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
    """The gradient of `im2col`: each window is added where it came from.

    >>> col2im(np.ones((1, 2, 2, 2, 2, 1)), (1, 3, 3, 1), (2, 2), (1, 1), (0, 0))[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
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


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Array:
    """weight is (kh, kw, channels / groups, filters).

    >>> conv2d_forward(np.ones((1, 3, 3, 1)), np.ones((2, 2, 1, 1)), np.zeros(1), (1, 1), (0, 0))[0, :, :, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    columns = im2col(x, weight.shape[:2], stride, padding, dilation)
    parts = zip(np.split(columns, groups, axis=-1), np.split(weight, groups, axis=-1), strict=True)
    return np.concatenate([np.einsum("nyxhwc,hwcf->nyxf", *part) for part in parts], axis=-1) + bias


def depthwise_forward(
    x: Array,
    weight: Array,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Array:
    """Each channel by its own filter (kh, kw, channels).

    >>> depthwise_forward(np.ones((1, 2, 2, 2)), np.ones((2, 2, 2)) * [1.0, 3.0])
    array([[[[ 4., 12.]]]])
    """
    return (im2col(x, weight.shape[:2], stride, padding, dilation) * weight).sum(axis=(3, 4))


def depthwise_backward(
    dy: Array,
    x: Array,
    weight: Array,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> tuple[Array, Array]:
    """dx, dweight.

    >>> dx, dweight = depthwise_backward(np.ones((1, 1, 1, 1)), np.ones((1, 2, 2, 1)), np.ones((2, 2, 1)))
    >>> dx.shape, dweight[:, :, 0]
    ((1, 2, 2, 1), array([[1., 1.],
           [1., 1.]]))
    """
    size, spread = weight.shape[:2], dy[:, :, :, None, None]
    dweight = (im2col(x, size, stride, padding, dilation) * spread).sum(axis=(0, 1, 2))
    return col2im(weight * spread, x.shape, size, stride, padding, dilation), dweight


def pad_forward(x: Array, padding: Any, value: float = 0.0) -> Array:
    """Images with a border: ``padding`` is ((top, bottom), (left, right)).

    >>> pad_forward(np.ones((1, 1, 1, 1)), ((0, 1), (1, 0)), 7.0)[0, :, :, 0]
    array([[7., 1.],
           [7., 7.]])
    """
    return np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


def pad_backward(dy: Array, shape: tuple[int, ...], padding: Any) -> Array:
    """The gradient without the border.

    >>> pad_backward(np.arange(4.0).reshape(1, 2, 2, 1), (1, 1, 1, 1), ((0, 1), (1, 0))).ravel()
    array([1.])
    """
    (top, _), (left, _) = padding
    return dy[:, top : top + shape[1], left : left + shape[2]]


def gather_pixels(x: Array, fill: Array, row: Array, column: Array) -> Array:
    """Pixels of images from rows (n, h') and columns (n, w'), or one that fills where there is none.

    >>> x = np.array([1, 2, 3, 4], np.uint8).reshape(1, 2, 2, 1)
    >>> gather_pixels(x, np.array([9], np.uint8), np.array([[0, 1]]), np.array([[1, 0, -1]]))[0, :, :, 0]
    array([[2, 1, 9],
           [4, 3, 9]], dtype=uint8)
    """
    _, h, w, c = x.shape
    y = np.empty((*row.shape, column.shape[1], c), x.dtype)
    for i, j, k in np.ndindex(*row.shape, column.shape[1]):
        inside = 0 <= row[i, j] < h and 0 <= column[i, k] < w
        y[i, j, k] = x[i, row[i, j], column[i, k]] if inside else fill
    return y


def mix_images(x: Array, partner: Array, kept: Array) -> Array:
    """Means of each image and its partner, by shares; where there is no partner, or all is kept, the image.

    >>> mix_images(np.array([1.0, 3.0]).reshape(2, 1, 1, 1), np.array([1, 0]), np.array([0.5, 1.0])).ravel()
    array([2., 3.])
    """
    y = x.copy()
    for i, (other, share) in enumerate(zip(partner, kept, strict=True)):
        if share < 1:
            other = other if 0 <= other < len(x) else i
            y[i] = x.dtype.type(share) * x[i] + x.dtype.type(1 - share) * x[other]
    return y


def prelu_forward(x: Array, slope: Array) -> Array:
    """x, or slope · x where it is negative.

    >>> prelu_forward(np.array([-1.0, 2.0]), np.array([0.1, 0.1]))
    array([-0.1,  2. ])
    """
    return np.where(x > 0, x, slope * x)


def prelu_backward(dy: Array, x: Array, slope: Array) -> tuple[Array, Array]:
    """dx, and the terms whose sum over all but the last axis is dslope.

    >>> prelu_backward(np.ones(2), np.array([-1.0, 2.0]), np.array([0.1, 0.1]))
    (array([0.1, 1. ]), array([-1.,  0.]))
    """
    return np.where(x > 0, dy, slope * dy), np.where(x > 0, 0, x * dy)


def max_pool_forward(x: Array, size: tuple[int, int], stride: tuple[int, int]) -> tuple[Array, NDArray[np.int64]]:
    """The largest number of each window, and its place in it.

    >>> max_pool_forward(np.arange(4.0).reshape(1, 2, 2, 1), (2, 2), (2, 2))
    (array([[[[3.]]]]), array([[[[3]]]]))
    """
    columns = im2col(x, size, stride)
    n, out_h, out_w, _, _, c = columns.shape
    windows = columns.reshape(n, out_h, out_w, size[0] * size[1], c)
    return windows.max(axis=3), windows.argmax(axis=3)


def max_pool_backward(
    dy: Array, winner: NDArray[np.int64], shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int]
) -> Array:
    """The gradient goes to the largest.

    >>> max_pool_backward(np.ones((1, 1, 1, 1)), np.full((1, 1, 1, 1), 3), (1, 2, 2, 1), (2, 2), (2, 2))[0, :, :, 0]
    array([[0., 0.],
           [0., 1.]])
    """
    places = np.arange(size[0] * size[1]).reshape(1, 1, 1, *size, 1)
    columns = np.where(winner[:, :, :, None, None] == places, dy[:, :, :, None, None], 0)
    return col2im(columns, shape, size, stride, (0, 0))


def average_pool_forward(x: Array, size: tuple[int, int], stride: tuple[int, int]) -> Array:
    """The mean of each window.

    >>> average_pool_forward(np.arange(4.0).reshape(1, 2, 2, 1), (2, 2), (2, 2))
    array([[[[1.5]]]])
    """
    return im2col(x, size, stride).mean(axis=(3, 4))


def average_pool_backward(dy: Array, shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int]) -> Array:
    """The gradient, spread over each window.

    >>> average_pool_backward(np.ones((1, 1, 1, 1)), (1, 2, 2, 1), (2, 2), (2, 2))[0, :, :, 0]
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    columns = np.broadcast_to(dy[:, :, :, None, None] / (size[0] * size[1]), (*dy.shape[:3], *size, dy.shape[3]))
    return col2im(columns, shape, size, stride, (0, 0))
