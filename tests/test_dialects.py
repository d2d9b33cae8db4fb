"""The rows of docs/dialects.md whose numbers are those of a program that is not at hand, by a loop of that program."""

import numpy as np
import pytest

import fastopt
from fastopt.schedules import bind, inverse_sqrt

STEPS = 60


def coursera_momentum(x, grad, *, alpha=0.02, beta=0.9):
    """Also that of ML-From-Scratch, whose momentum is this beta."""
    v = np.zeros_like(x)
    for t in range(STEPS):
        v = beta * v + (1 - beta) * grad(x, t)
        x = x - alpha * v
    return x


def autograd_sgd(x, grad, *, step_size=0.1, mass=0.9):
    velocity = np.zeros(len(x))
    for i in range(STEPS):
        g = grad(x, i)
        velocity = mass * velocity - (1.0 - mass) * g
        x = x + step_size * velocity
    return x


def autograd_rmsprop(x, grad, *, step_size=0.1, gamma=0.9, eps=10**-8):
    avg_sq_grad = np.ones(len(x))
    for i in range(STEPS):
        g = grad(x, i)
        avg_sq_grad = avg_sq_grad * gamma + g**2 * (1 - gamma)
        x = x - step_size * g / (np.sqrt(avg_sq_grad) + eps)
    return x


def autograd_adam(x, grad, *, step_size=0.001, b1=0.9, b2=0.999, eps=10**-8):
    m, v = np.zeros(len(x)), np.zeros(len(x))
    for i in range(STEPS):
        g = grad(x, i)
        m = (1 - b1) * g + b1 * m
        v = (1 - b2) * g**2 + b2 * v
        x = x - step_size * (m / (1 - b1 ** (i + 1))) / (np.sqrt(v / (1 - b2 ** (i + 1))) + eps)
    return x


def torch_1_2_adam(x, grad, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-3, weight_decay=0.1):
    """An eps that counts."""
    m = v = np.zeros_like(x)
    for step in range(1, STEPS + 1):
        g = grad(x, step - 1) + weight_decay * x
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        step_size = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        x = x - step_size * m / (np.sqrt(v) + eps)
    return x


def char_rnn_adagrad(x, grad, *, learning_rate=1e-1, inside=1e-8):
    mem = np.zeros_like(x)
    for t in range(STEPS):
        dx = np.clip(grad(x, t), -5, 5)
        mem = mem + dx * dx
        x = x - learning_rate * dx / np.sqrt(mem + inside)
    return x


def adagrad_without_root(x, grad, *, alpha=0.5, eps=1e-3):
    gains = np.zeros_like(x)
    for t in range(STEPS):
        g = grad(x, t)
        gains = gains + g * g
        x = x - alpha / (gains + eps) * g
    return x


def falling_by_the_root_of_t(x, grad, *, alpha=0.1):
    for t in range(1, STEPS + 1):
        x = x - alpha / np.sqrt(t) * grad(x, t - 1)
    return x


def l2_penalty(x, grad, *, alpha=0.05, lam=0.03):
    """Of lam·w², whose gradient is 2·lam·w."""
    for t in range(STEPS):
        x = x - alpha * (grad(x, t) + 2 * lam * x)
    return x


def keras_lamb(x, grad, *, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-7, weight_decay=0.004):
    m = v = np.zeros_like(x)
    for t in range(1, STEPS + 1):
        g = grad(x, t - 1)
        x = x - x * weight_decay * lr
        m = m + (g - m) * (1 - beta1)
        v = v + (g * g - v) * (1 - beta2)
        u = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        of_x, of_u = np.linalg.norm(x), np.linalg.norm(u)
        x = x - lr * (of_x / of_u if of_x > 0 and of_u > 0 else 1.0) * u
    return x


PROGRAMS = [
    (coursera_momentum, lambda w: fastopt.Momentum(w, 0.02, average=True)),
    (autograd_sgd, lambda w: fastopt.Momentum(w, 0.1, average=True)),
    (autograd_rmsprop, lambda w: fastopt.RMSProp(w, 0.1, decay=0.9, initial_accumulator_value=1.0)),
    (autograd_adam, lambda w: fastopt.Adam(w, 1e-3)),
    (torch_1_2_adam, lambda w: fastopt.Adam(w, 1e-3, eps=1e-3, weight_decay=0.1, eps_mode="hat")),
    (char_rnn_adagrad, lambda w: fastopt.Adagrad(w, 0.1, eps=1e-8, eps_mode="inside", clip_value=5.0)),
    (adagrad_without_root, lambda w: fastopt.Adagrad(w, 0.5, eps=1e-3, root=False)),
    (falling_by_the_root_of_t, lambda w: fastopt.SGD(w, bind(inverse_sqrt, peak=0.1, warmup_steps=1))),
    (l2_penalty, lambda w: fastopt.SGD(w, 0.05, weight_decay=2 * 0.03)),
    (keras_lamb, lambda w: fastopt.LAMB(w, 0.01, eps=1e-7, weight_decay=0.004, decay_outside=True)),
]


@pytest.mark.parametrize(("program", "make"), PROGRAMS, ids=lambda each: getattr(each, "__name__", "").strip("<>"))
def test_a_program(program, make, rng):
    """From the same point, by the same gradients: of a bowl, and noise that is the same for both."""
    start, noise = rng.standard_normal(7), rng.standard_normal((STEPS, 7))

    def grad(x, t):
        return 3 * x + noise[t]

    w = start.copy()
    optimizer = make(w)
    for t in range(STEPS):
        optimizer.step(grad(w, t))
    np.testing.assert_allclose(w, program(start, grad), rtol=1e-11)
    assert abs(w - start).max() > 1e-3


def test_decay_outside_of_lambs_ratio():
    """Keras's p - lr·λ·p stays, where the paper's ratio makes a step of the whole parameter of it."""
    for outside, expected in ((True, 1.992), (False, 0.0)):
        w = np.array([2.0])
        fastopt.LAMB(w, 1.0, weight_decay=0.004, decay_outside=outside).step(np.zeros(1))
        np.testing.assert_allclose(w, [expected], atol=1e-15)
        w, m, v = np.array([2.0]), np.zeros(1), np.zeros(1)
        fastopt.functional.lamb(w, np.zeros(1), m, v, t=1, lr=1.0, weight_decay=0.004, decay_outside=outside)
        np.testing.assert_allclose(w, [expected], atol=1e-15)


def test_an_average_begins_with_its_share():
    """From the first step on, where dampening does not act."""
    for options, expected in (({"average": True}, -0.1), ({"dampening": 0.9}, -1.0)):
        w = np.zeros(1)
        fastopt.Momentum(w, 1.0, momentum=0.9, **options).step(np.ones(1))
        np.testing.assert_allclose(w, [expected], rtol=1e-15)


def test_a_setting_that_would_change_nothing():
    """The decay of schedule-free SGD is the same, coupled or not."""
    with pytest.raises(TypeError, match="ScheduleFreeSGD has no keyword 'decoupled'"):
        fastopt.ScheduleFreeSGD(np.ones(3), decoupled=True)
    optimizer = fastopt.ScheduleFreeSGD(np.ones(3))
    with pytest.raises(AttributeError, match="decoupled is what ScheduleFreeSGD decides"):
        optimizer.decoupled = False


def test_a_state_of_before_an_option_has_its_default():
    w = np.ones(3)
    optimizer = fastopt.Momentum(w, 0.1, average=True)
    state = optimizer.state_dict()
    del state["hyper"]["average"]
    optimizer.load_state_dict(state)
    assert optimizer.average is False
    free = fastopt.ScheduleFreeSGD(np.ones(3))
    state = free.state_dict()
    free.load_state_dict({**state, "hyper": {**state["hyper"], "decoupled": False}})
    assert free.state_dict()["hyper"] == state["hyper"]
