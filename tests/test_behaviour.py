"""What the papers promise: minima are reached, bounds close in, maxima never fall, early steps are not rectified."""

import numpy as np
import pytest

import fastopt
from fastopt.optimizers import OPTIMIZERS
from fastopt.schedules import bind, linear, warmup

STEPS = 4000
#: Learning rates for the quadratic and for Rosenbrock's function, where 0.05 and 0.02 are not to an optimizer's taste:
#: steps in proportion to the gradient, by the largest curvature; those that begin tiny, or go by the parameter's norm.
RATES = {
    "sgd": (0.05, 2e-3),
    "momentum": (0.01, 2e-4),
    "look_ahead_nesterov": (0.01, 2e-4),
    "adagrad": (0.5, 0.5),
    "adadelta": (5.0, 5.0),
    "adabound": (0.05, 0.02),
    "adamax": (0.05, 0.1),
    "amsgrad": (0.05, 0.2),
    "amsbound": (0.05, 0.2),
    "radam": (0.05, 0.1),
    "yogi": (0.05, 0.1),
    "schedule_free_sgd": (0.05, 1e-3),
    "schedule_free_adamw": (0.1, 0.1),
}
#: AdaBound ends as gradient descent, whose rate must suit the curvature, too.
OPTIONS = {name: {"final_lr": 1e-3} for name in ("adabound", "amsbound")}


def quadratic(w):
    curvatures = np.array([1.0, 10.0])
    return float(curvatures @ np.square(w - 0.5)) / 2, curvatures * (w - 0.5)


def rosenbrock(w):
    a, b = w
    return 100 * (b - a * a) ** 2 + (1 - a) ** 2, np.array([-400 * a * (b - a * a) - 2 * (1 - a), 200 * (b - a * a)])


def descend(optimizer, w, loss_of):
    gradient = np.empty(2)
    for _ in range(STEPS):
        if hasattr(optimizer, "look_ahead"):
            optimizer.look_ahead()
        gradient[:] = loss_of(w)[1]
        optimizer.step(gradient)
    return loss_of(optimizer.averaged()["param"] if hasattr(optimizer, "averaged") else w)[0]


def falling(rate):
    return bind(warmup, steps=20, then=bind(linear, peak=rate, steps=STEPS))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loss_of", [quadratic, rosenbrock], ids=lambda f: f.__name__)
def test_the_minimum_is_reached(name, loss_of):
    """With rates that are warmed up, as RAdam's first steps are plain ones, and fall to zero, as those need whose steps
    do not shrink with the gradient."""
    rate = RATES.get(name, (0.05, 0.02))[loss_of is rosenbrock]
    constant = name == "rprop" or name.startswith("schedule_free")
    w = np.array([-1.2, 1.0])
    lr = rate if constant else falling(rate)
    loss = descend(OPTIMIZERS[name](w, lr=lr, **OPTIONS.get(name, {})), w, loss_of)
    assert loss < 1e-3 * loss_of(np.array([-1.2, 1.0]))[0]


@pytest.mark.parametrize("loss_of", [quadratic, rosenbrock], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [lambda w, lr: fastopt.LookAhead(fastopt.Adam(w, lr)), fastopt.Ranger])
def test_the_minimum_is_reached_by_what_looks_ahead(make, loss_of):
    w = np.array([-1.2, 1.0])
    assert descend(make(w, falling(0.05)), w, loss_of) < 0.02


@pytest.mark.parametrize("make", [fastopt.AdaBound, fastopt.AMSBound])
def test_the_bounds_of_adabound_close_in_on_the_final_rate(make, rng):
    """Luo et al. 2019, section 4: the rate of each element lies between bounds that both tend to final_lr."""
    w, m = rng.standard_normal(50), None
    optimizer = make(w, 1e-3, final_lr=0.25, gamma=0.1)
    spreads = []
    for t in range(1, 3001):
        before = w.copy()
        optimizer.step(rng.standard_normal(50) * np.logspace(-4, 4, 50))
        m = optimizer.state["param"]["m"]
        rates = (before - w)[np.abs(m) > 1e-5] / m[np.abs(m) > 1e-5]
        low, high = 0.25 * (1 - 1 / (0.1 * t + 1)), 0.25 * (1 + 1 / (0.1 * t))
        assert (rates >= low * (1 - 1e-6) - 1e-9).all()
        assert (rates <= high * (1 + 1e-6) + 1e-9).all()
        spreads.append(np.ptp(rates))
    np.testing.assert_allclose(rates, 0.25, rtol=5e-3)
    assert spreads[-1] < 0.02 * max(spreads)


def test_the_maximum_of_amsgrad_never_falls(rng):
    w = rng.standard_normal(50)
    optimizer, adam = fastopt.AMSGrad(w), fastopt.Adam(w.copy())
    fell = False
    largest, last = np.zeros(50), np.zeros(50)
    for t in range(300):
        gradient = rng.standard_normal(50) / (1 + t)
        optimizer.step(gradient)
        adam.step(gradient)
        now = optimizer.state["param"]["v_max"].copy()
        assert (now >= largest).all()
        fell |= bool((adam.state["param"]["v"] < last).any())
        largest, last = now, adam.state["param"]["v"].copy()
    assert fell  # where Adam's moment, by the same gradients, does


def test_the_counterexample_of_amsgrad():
    """Reddi et al. 2018, section 3 (online form): a rare large gradient one way, frequent small ones the other; the
    sum of losses is least at -1. Adam goes to +1, AMSGrad does not."""

    def run(make):
        w = np.zeros(1)
        optimizer = make(w, bind(fastopt.schedules.inverse_sqrt, peak=0.1, warmup_steps=1), beta1=0.0, beta2=0.01)
        for t in range(6000):
            optimizer.step(np.array([10.0 if t % 3 == 0 else -1.01 * 4]))
            np.clip(w, -1, 1, out=w)
        return w[0]

    assert run(fastopt.Adam) > 0.9
    assert run(fastopt.AMSGrad) < -0.9


def test_the_first_steps_of_radam_are_not_rectified(rng, close):
    """Liu et al. 2020, algorithm 2: up to t = 4 (for beta2 = 0.999) they are those of momentum with bias correction."""
    w = rng.standard_normal(20)
    optimizer, m = fastopt.RAdam(w, 0.1), np.zeros(20)
    for t in range(1, 9):
        before, gradient = w.copy(), rng.standard_normal(20)
        optimizer.step(gradient)
        m = 0.9 * m + 0.1 * gradient
        plain = before - 0.1 * m / (1 - 0.9**t)
        if t <= 4:
            close(w, plain)
        else:
            assert (np.abs(w - plain) > 1e-6).all()


def test_a_step_of_lion_has_the_length_of_its_rate(rng, close):
    w = rng.standard_normal(20)
    before = w.copy()
    fastopt.Lion(w, 0.25).step(rng.standard_normal(20))
    close(np.abs(w - before), np.full(20, 0.25))


def test_a_schedule_free_average_converges_where_its_iterates_wander(rng):
    w = np.ones(10)
    optimizer = fastopt.ScheduleFreeSGD(w, 0.5)
    for _ in range(3000):
        optimizer.step(w + rng.standard_normal(10))
    x, z = optimizer.averaged()["param"], optimizer.state["param"]["z"]
    assert np.linalg.norm(x) < 0.1 * np.linalg.norm(z)
