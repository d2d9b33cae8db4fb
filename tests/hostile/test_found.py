"""What hostile calls have found, each by itself: it is refused by TypeError or ValueError, and says why."""

import numpy as np
import pytest

import fastopt
from fastopt import data, gradients, matrices, nn, schedules

PARAM = np.ones((3, 4), np.float32)
FACTORS = {"row_avg": np.zeros(3, np.float32), "column_avg": np.zeros(4, np.float32)}
PEAK = schedules.bind(schedules.exponential, peak=0.1, gamma=3e38)
OPTIMIZER = fastopt.Adam(np.ones(3))
STATE = OPTIMIZER.state_dict()
PLATEAU = schedules.ReduceOnPlateau(lr=0.1)
FACTORY = {
    "EMA": fastopt.EMA(np.ones(3)),
    "LookAhead": fastopt.LookAhead(fastopt.Adam(np.ones(3))),
    "LookAheadNesterov": fastopt.LookAheadNesterov(np.ones(3), lr=0.1),
    "Adam": OPTIMIZER,
    "Muon": fastopt.Muon([np.ones((2, 2)), np.ones(3)]),
    "ReduceOnPlateau": PLATEAU,
}


def overlapping():
    """A parameter that begins within its row averages."""
    memory = np.zeros(20, np.float32)
    return memory[1:13].reshape(3, 4), {"row_avg": memory[:3], "column_avg": memory[13:17]}


def adafactor_overlapping():
    param, state = overlapping()
    matrices.adafactor(param, PARAM.copy(), state, t=1)


def muon_overlapping():
    memory = np.zeros(20, np.float32)
    matrices.muon(memory[:12].reshape(3, 4), PARAM.copy(), memory[4:16].reshape(3, 4))


@pytest.mark.parametrize("name", FACTORY)
@pytest.mark.parametrize("state", [3, None, np.float64(1), np.ones(3), [1], "state"], ids=repr)
def test_a_state_is_a_dict(name, state):
    with pytest.raises(TypeError, match=r"^state_dict must be a dict, got "):
        FACTORY[name].load_state_dict(state)


@pytest.mark.parametrize("key", ["hyper", "born", "scalars", "state", "schedules"])
def test_a_part_of_a_state_is_a_dict(key):
    for wrong in (3, None, np.ones(2), range(3)):
        with pytest.raises((TypeError, ValueError), match=rf"{key}\S* must "):
            OPTIMIZER.load_state_dict(STATE | {key: wrong})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (adafactor_overlapping, "must not overlap"),
        (muon_overlapping, "must not overlap"),
        (lambda: matrices.adafactor((), PARAM, FACTORS, t=1), "param must be a NumPy array"),
        (lambda: matrices.adafactor(PARAM.copy(), PARAM, 3, t=1), "state must be a dict"),
        (lambda: matrices.muon((), PARAM, PARAM), "param must be a NumPy array"),
        (lambda: fastopt.LookAhead(3), "optimizer must be an Optimizer"),
        (lambda: fastopt.Adam(np.ones(3), groups=[3]), "a group must be a mapping"),
        (lambda: fastopt.vectors("w", [1.0]), "param must be a NumPy array"),
        (lambda: schedules.Schedule.from_dict([1]), "values must be a dict"),
        (lambda: schedules.exponential(10**6, peak=0.1, gamma=3e38), "exponential must stay within floats"),
        (lambda: PEAK(10**6), "exponential must stay within floats"),
        (lambda: schedules.linear(10**400, peak=0.1, steps=10), "step must be in"),
        (lambda: schedules.linear_scaling(0.1, 10**400, 32), "batch_size must be in"),
        (lambda: schedules.inverse_sqrt(2, peak=0.1, warmup_steps=10**400), "warmup_steps must be at most"),
        (lambda: PLATEAU.update(10**400), "metric must be a number"),
        (lambda: PLATEAU.update("0.5"), "metric must be a number"),
        (lambda: gradients.add_noise(np.ones(3), 10**400), "t must be in"),
        (lambda: data.read_cifar10(0), "expected str"),
        (lambda: data.split(np.ones(2), np.ones((2, 2), int), test=0.5), "y must be labels of shape"),
        (lambda: nn.EarlyStopping(3), "monitor must be the name of a metric"),
    ],
)
def test_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_loss_that_is_no_number():
    pytest.importorskip("scipy")
    for loss in (10**400, "0.5", None):
        with pytest.raises(TypeError, match=r"^loss must be a number"):
            fastopt.LBFGS(np.ones(3)).step(lambda loss=loss: (loss, np.ones(3)))


def test_noise_that_is_none():
    """A deviation beyond the smallest float is 0."""
    grad = np.ones(3)
    gradients.add_noise(grad, 10**9, gamma=1e6)
    np.testing.assert_array_equal(grad, 1)
