"""Schedules: values by hand, beside PyTorch and beside Keras; what all of them share; binding."""

import copy
import functools
import inspect
import json
import math
import pickle
import re
from typing import Annotated, Literal

import numpy as np
import pytest

import fastopt
from fastopt import schedules
from fastopt.schedules import SCHEDULES, ReduceOnPlateau, Schedule, bind, linear_scaling, register

STEPS = 61  # of each comparison

# ---- By hand ----------------------------------------------------------------------------------------

THEN = bind(schedules.linear, peak=0.5, steps=10)
RESTARTS = {"peak": 1.0, "steps": 2, "t_mul": 2, "m_mul": 0.5, "floor": 0.5}
CYCLE = {"floor": 1.0, "peak": 3.0, "steps_up": 2, "steps_down": 4}
ONE_CYCLE = {"peak": 1.0, "steps": 11, "rise": 6 / 11, "div_factor": 10, "final_div_factor": 10, "anneal": "linear"}
THREE_PHASES = {**ONE_CYCLE, "rise": 3 / 11, "three_phase": True}

BY_HAND = [
    ("constant", {"value": 0.5}, {0: 0.5, 10**9: 0.5}),
    ("step_decay", {"peak": 8, "steps": 3, "gamma": 0.5}, {0: 8, 2: 8, 3: 4, 8: 2, 9: 1}),
    ("multi_step", {"peak": 8, "milestones": [2, 5, 5], "gamma": 0.5}, {0: 8, 1: 8, 2: 4, 4: 4, 5: 1, 99: 1}),
    ("multi_step", {"peak": 8, "milestones": ()}, {0: 8, 99: 8}),
    ("multi_step", {"peak": 8, "milestones": [0]}, {0: 0.8}),
    ("piecewise_constant", {"boundaries": [2, 5], "values": [3, 2, 1]}, {0: 3, 2: 3, 3: 2, 5: 2, 6: 1}),
    ("piecewise_constant", {"boundaries": (), "values": [3]}, {0: 3, 9: 3}),
    ("exponential", {"peak": 8, "gamma": 0.5}, {0: 8, 1: 4, 3: 1}),
    ("exponential", {"peak": 8, "gamma": 0.25, "steps": 4}, {0: 8, 2: 4, 4: 2}),
    ("exponential", {"peak": 8, "gamma": 0.25, "steps": 4, "staircase": True}, {0: 8, 3: 8, 4: 2, 7: 2}),
    ("exponential", {"peak": 1e-6, "gamma": 10, "steps": 10}, {0: 1e-6, 20: 1e-4}),
    ("inverse_time", {"peak": 6, "decay": 0.5}, {0: 6, 1: 4, 4: 2}),
    ("inverse_time", {"peak": 6, "decay": 1, "steps": 2, "staircase": True}, {0: 6, 1: 6, 2: 3, 3: 3, 4: 2}),
    ("inverse_sqrt", {"peak": 6, "warmup_steps": 4}, {0: 1.5, 1: 3, 3: 6, 15: 3, 35: 2}),
    ("inverse_sqrt", {"peak": 6, "warmup_steps": 0}, {0: 6, 3: 3, 8: 2}),
    ("polynomial", {"peak": 5, "steps": 4, "power": 2, "floor": 1}, {0: 5, 1: 3.25, 2: 2, 4: 1, 9: 1}),
    ("polynomial", {"peak": 4, "steps": 4, "cycle": True}, {0: 4, 3: 1, 4: 0, 5: 1.5, 8: 0, 9: 1}),
    ("polynomial", {"peak": 4, "steps": 0, "floor": 1, "cycle": True}, {0: 1, 5: 1}),
    ("linear", {"peak": 4, "steps": 4}, {0: 4, 1: 3, 4: 0, 5: 0}),
    ("linear", {"peak": 1, "steps": 4, "floor": 2}, {0: 1, 1: 1.25, 4: 2, 5: 2}),
    ("linear", {"peak": 4, "steps": 0, "floor": 1}, {0: 1, 5: 1}),
    ("cosine", {"peak": 0.5, "steps": 100}, {0: 0.5, 25: 0.25 * (1 + math.sqrt(0.5)), 50: 0.25, 100: 0, 250: 0}),
    ("cosine", {"peak": 0.5, "steps": 100, "floor": 0.1}, {0: 0.5, 50: 0.3, 100: 0.1, 101: 0.1}),
    ("cosine", {"peak": 0.5, "steps": 3}, {1: 0.375}),
    ("cosine", {"peak": 0.5, "steps": 0, "floor": 0.1}, {0: 0.1}),
    ("cosine_restarts", {"peak": 4, "steps": 2}, {0: 4, 1: 2, 2: 4, 3: 2, 10**9: 4}),
    ("cosine_restarts", RESTARTS, {0: 1, 1: 0.75, 2: 0.75, 4: 0.625, 6: 0.625, 10: 0.5625, 14: 0.5625}),
    ("cyclical", CYCLE, {0: 1, 1: 2, 2: 3, 3: 2.5, 5: 1.5, 6: 1, 8: 3}),
    ("cyclical", CYCLE | {"mode": "triangular2"}, {2: 3, 3: 2.5, 6: 1, 7: 1.5, 8: 2, 14: 1.5}),
    ("cyclical", CYCLE | {"mode": "exp_range", "gamma": 0.5}, {1: 1.5, 2: 1.5, 4: 1.0625}),
    ("cyclical", {"floor": 0, "peak": 4, "steps_up": 2, "steps_down": 0}, {0: 0, 1: 2, 2: 0, 3: 2}),
    ("one_cycle", ONE_CYCLE, {0: 0.1, 1: 0.28, 5: 1, 10: 0.01, 11: 0.01, 99: 0.01}),
    ("one_cycle", THREE_PHASES, {0: 0.1, 1: 0.55, 2: 1, 3: 0.55, 4: 0.1, 7: 0.055, 10: 0.01, 11: 0.01}),
    ("one_cycle", ONE_CYCLE | {"steps": 0}, {0: 0.01, 1: 0.01}),
    ("one_cycle", ONE_CYCLE | {"steps": 2, "rise": 0.5}, {0: 1, 1: 0.01}),
    ("one_cycle_momentum", {"steps": 11, "rise": 6 / 11}, {0: 0.95, 5: 0.85, 10: 0.95, 11: 0.95}),
    ("warmup", {"steps": 4, "start": 0.1, "then": THEN}, {0: 0.1, 1: 0.2, 3: 0.4, 4: 0.5, 5: 0.45, 14: 0}),
    ("warmup", {"steps": 4, "then": THEN}, {0: 0, 2: 0.25, 4: 0.5}),
    ("warmup", {"steps": 0, "start": 0.1, "then": THEN}, {0: 0.5, 1: 0.45}),
]


@pytest.mark.parametrize(("name", "options", "wanted"), BY_HAND)
def test_by_hand(name, options, wanted):
    for step, value in wanted.items():
        assert SCHEDULES[name](step, **options) == pytest.approx(value, rel=1e-14, abs=1e-15), step


def test_a_warmup_of_equal_parts():
    rising = bind(schedules.warmup, steps=4, start=0.5 / 5, then=bind(schedules.constant, value=0.5))
    assert [rising(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_inverse_sqrt_is_that_of_the_paper():
    peak = (512 * 40) ** -0.5
    for step in range(200):
        number = step + 1
        wanted = 512**-0.5 * min(number**-0.5, number * 40**-1.5)
        assert schedules.inverse_sqrt(step, peak=peak, warmup_steps=40) == pytest.approx(wanted, rel=1e-14)


def test_linear_scaling():
    assert linear_scaling(0.1, 8192, 256) == pytest.approx(3.2)
    assert linear_scaling(0.1, 64, 256) == pytest.approx(0.025)
    assert linear_scaling(0.1, 1024, 256, power=0.5) == pytest.approx(0.2)
    for wrong in ((-0.1, 1, 1), (math.nan, 1, 1), (0.1, 0, 1), (0.1, 1, 0), (0.1, 1.5, 1)):
        with pytest.raises((TypeError, ValueError), match=r"^(rate|batch_size|base_batch_size) must be "):
            linear_scaling(*wrong)


# ---- Beside PyTorch ---------------------------------------------------------------------------------

TORCH = [
    ("step_decay", {"steps": 7, "gamma": 0.3}, "StepLR", {"step_size": 7, "gamma": 0.3}),
    ("step_decay", {"steps": 7}, "StepLR", {"step_size": 7}),
    ("multi_step", {"milestones": (3, 20, 20, 41)}, "MultiStepLR", {"milestones": [3, 20, 20, 41]}),
    ("multi_step", {"milestones": (3, 9), "gamma": 0.5}, "MultiStepLR", {"milestones": [3, 9], "gamma": 0.5}),
    ("multi_step", {"peak": 0.1, "milestones": (5,), "gamma": 3}, "ConstantLR", {"factor": 1 / 3, "total_iters": 5}),
    ("exponential", {"gamma": 0.93}, "ExponentialLR", {"gamma": 0.93}),
    ("exponential", {"gamma": 1.1}, "ExponentialLR", {"gamma": 1.1}),
    ("polynomial", {"steps": 40}, "PolynomialLR", {"total_iters": 40}),
    ("polynomial", {"steps": 40, "power": 2.5}, "PolynomialLR", {"total_iters": 40, "power": 2.5}),
    ("linear", {"steps": 40}, "LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 40}),
    (
        "linear",
        {"peak": 0.06, "floor": 0.27, "steps": 40},
        "LinearLR",
        {"start_factor": 0.2, "end_factor": 0.9, "total_iters": 40},
    ),
    ("cosine", {"steps": 60}, "CosineAnnealingLR", {"T_max": 60}),
    ("cosine", {"steps": 60, "floor": 0.01}, "CosineAnnealingLR", {"T_max": 60, "eta_min": 0.01}),
    ("cosine_restarts", {"steps": 9}, "CosineAnnealingWarmRestarts", {"T_0": 9}),
    (
        "cosine_restarts",
        {"steps": 5, "t_mul": 3, "floor": 0.02},
        "CosineAnnealingWarmRestarts",
        {"T_0": 5, "T_mult": 3, "eta_min": 0.02},
    ),
    *(
        (
            "cyclical",
            {"floor": 0.01, "steps_up": up, "steps_down": down, **more},
            "CyclicLR",
            {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": up, "step_size_down": down, **more},
        )
        for up, down in ((7, None), (3, 10), (1, 1))
        for more in ({}, {"mode": "triangular2"}, {"mode": "exp_range", "gamma": 0.97})
    ),
    *(
        (
            "one_cycle",
            {"steps": STEPS, "rise": rise, **more},
            "OneCycleLR",
            {
                "max_lr": 0.3,
                "total_steps": STEPS,
                "pct_start": rise,
                **{{"anneal": "anneal_strategy"}.get(key, key): value for key, value in more.items()},
            },
        )
        for rise in (0.0, 0.01, 0.3, 0.5)
        for more in (
            {},
            {"anneal": "linear"},
            {"three_phase": True},
            {"three_phase": True, "anneal": "linear", "div_factor": 10.0, "final_div_factor": 7.0},
        )
    ),
]


@pytest.mark.parametrize(("name", "options", "torch_name", "torch_options"), TORCH)
def test_beside_torch(name, options, torch_name, torch_options):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
    theirs = getattr(torch.optim.lr_scheduler, torch_name)(optimizer, **torch_options)
    ours = bind(SCHEDULES[name], **({"peak": 0.3} | options))
    if name == "one_cycle":
        shared = ("steps", "rise", "three_phase", "anneal")
        momentum = bind(schedules.one_cycle_momentum, **{key: options[key] for key in shared if key in options})
    for step in range(STEPS):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-16), step
        if name == "one_cycle":
            assert momentum(step) == pytest.approx(optimizer.param_groups[0]["momentum"], rel=1e-12), step
        if step < STEPS - 1:
            optimizer.step()
            theirs.step()


@pytest.mark.parametrize("start_factor", [0.001, 0.25, 1.0])
def test_warmup_beside_torch(start_factor):
    torch = pytest.importorskip("torch")
    lr_scheduler = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=start_factor, total_iters=8)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    theirs = lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[8])
    then = bind(schedules.cosine, peak=0.3, steps=STEPS)
    ours = bind(schedules.warmup, steps=8, start=0.3 * start_factor, then=then)
    for step in range(STEPS):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        optimizer.step()
        theirs.step()


# ---- Beside Keras -----------------------------------------------------------------------------------

FALL = {"initial_learning_rate": 0.3, "decay_steps": 20}
WAVE = {"initial_learning_rate": 0.3, "first_decay_steps": 8}
AFTER_WARMUP = bind(schedules.cosine, peak=0.3, steps=20, floor=0.03)

#: The last column holds what Keras 3.15 computes in float64.
KERAS = [
    (
        "piecewise_constant",
        {"boundaries": (5, 20), "values": (0.3, 0.2, 0.05)},
        "PiecewiseConstantDecay",
        {"boundaries": [5, 20], "values": [0.3, 0.2, 0.05]},
        {0: 0.3, 5: 0.3, 6: 0.2, 20: 0.2, 21: 0.05},
    ),
    (
        "exponential",
        {"peak": 0.3, "gamma": 0.9, "steps": 20},
        "ExponentialDecay",
        FALL | {"decay_rate": 0.9},
        {0: 0.3, 7: 0.28913863939585, 33: 0.25212818374024043},
    ),
    (
        "exponential",
        {"peak": 0.3, "gamma": 0.9, "steps": 20, "staircase": True},
        "ExponentialDecay",
        FALL | {"decay_rate": 0.9, "staircase": True},
        {19: 0.3, 20: 0.27, 59: 0.243},
    ),
    (
        "inverse_time",
        {"peak": 0.3, "decay": 0.7, "steps": 20},
        "InverseTimeDecay",
        FALL | {"decay_rate": 0.7},
        {0: 0.3, 7: 0.24096385542168677, 33: 0.13921113689095127},
    ),
    (
        "inverse_time",
        {"peak": 0.3, "decay": 0.7, "steps": 20, "staircase": True},
        "InverseTimeDecay",
        FALL | {"decay_rate": 0.7, "staircase": True},
        {19: 0.3, 20: 0.17647058823529413, 59: 0.125},
    ),
    (
        "polynomial",
        {"peak": 0.3, "steps": 20, "floor": 1e-4},
        "PolynomialDecay",
        FALL,
        {0: 0.3, 7: 0.195035, 20: 0.0001, 33: 0.0001},
    ),
    (
        "polynomial",
        {"peak": 0.3, "steps": 20, "floor": 0.01, "power": 0.5},
        "PolynomialDecay",
        FALL | {"end_learning_rate": 0.01, "power": 0.5},
        {7: 0.24380547470065794, 20: 0.01, 33: 0.01},
    ),
    (
        "polynomial",
        {"peak": 0.3, "steps": 20, "floor": 0.01, "power": 2, "cycle": True},
        "PolynomialDecay",
        FALL | {"end_learning_rate": 0.01, "power": 2.0, "cycle": True},
        {0: 0.3, 20: 0.01, 21: 0.07543124999999999, 50: 0.018055555555555554},
    ),
    ("cosine", {"peak": 0.3, "steps": 20}, "CosineDecay", FALL, {0: 0.3, 7: 0.21809857496093202, 20: 0.0, 33: 0.0}),
    (
        "cosine",
        {"peak": 0.3, "steps": 20, "floor": 0.03},
        "CosineDecay",
        FALL | {"alpha": 0.1},
        {7: 0.2262887174648388, 20: 0.03, 33: 0.03},
    ),
    (
        "warmup",
        {"steps": 10, "start": 0.05, "then": AFTER_WARMUP},
        "CosineDecay",
        FALL | {"initial_learning_rate": 0.05, "alpha": 0.1, "warmup_target": 0.3, "warmup_steps": 10},
        {0: 0.05, 7: 0.22499999999999998, 10: 0.3, 17: 0.2262887174648388, 33: 0.03},
    ),
    (
        "cosine_restarts",
        {"peak": 0.3, "steps": 8, "t_mul": 2},
        "CosineDecayRestarts",
        WAVE,
        {0: 0.3, 7: 0.011418070123306989, 8: 0.3, 23: 0.0028822079395154354, 24: 0.3},
    ),
    (
        "cosine_restarts",
        {"peak": 0.3, "steps": 8, "m_mul": 0.7, "floor": 0.06},
        "CosineDecayRestarts",
        WAVE | {"t_mul": 1.0, "m_mul": 0.7, "alpha": 0.2},
        {5: 0.13407798811618923, 9: 0.2216058807309481, 31: 0.06313311844183545, 33: 0.11543081709071519},
    ),
    (
        "cosine_restarts",
        {"peak": 0.3, "steps": 8, "t_mul": 1.5, "m_mul": 0.7},
        "CosineDecayRestarts",
        WAVE | {"t_mul": 1.5, "m_mul": 0.7},
        {7: 0.011418070123306989, 19: 0.0035777882396478386, 39: 0.10255211350582295, 59: 0.012037013401528584},
    ),
]


@pytest.mark.parametrize(("name", "options", "keras_name", "keras_options", "values"), KERAS)
def test_values_of_keras(name, options, keras_name, keras_options, values):
    for step, value in values.items():
        assert SCHEDULES[name](step, **options) == pytest.approx(value, rel=1e-12, abs=1e-16), step


@pytest.mark.parametrize(("name", "options", "keras_name", "keras_options", "values"), KERAS)
def test_beside_keras(name, options, keras_name, keras_options, values, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        theirs = getattr(keras.optimizers.schedules, keras_name)(**keras_options)
        for step in range(STEPS):
            assert SCHEDULES[name](step, **options) == pytest.approx(float(theirs(step)), rel=1e-12, abs=1e-16), step
    finally:
        keras.config.set_floatx(before)


# ---- What all share ---------------------------------------------------------------------------------

SOME = [(name, options) for name, options, _ in BY_HAND]
FIRST = dict(reversed(SOME))  # the first of each

#: Keywords that must not be 0, and those of some functions.
NOT_ZERO = {"gamma", "power", "t_mul", "m_mul", "div_factor", "final_div_factor", "steps_up"}
NOT_ZERO_IN = {(name, "steps") for name in ("step_decay", "exponential", "inverse_time", "cosine_restarts")}


def test_every_schedule_is_walked():
    assert set(FIRST) == set(SCHEDULES)
    assert {name for name, *_ in TORCH + KERAS} == set(SCHEDULES) - {"constant", "inverse_sqrt", "one_cycle_momentum"}


@pytest.mark.parametrize(("name", "options"), SOME)
def test_pure_and_finite(name, options):
    function, given = SCHEDULES[name], copy.deepcopy(options)
    schedule = bind(function, **options)
    steps = [0, 1, 2, 3, 10, 999]
    values = [function(step, **options) for step in steps]
    assert all(type(value) is float and math.isfinite(value) and value >= 0 for value in values)
    assert values == [schedule(np.int64(step)) for step in reversed(steps)][::-1]
    assert options == given


@pytest.mark.parametrize(("name", "options"), SOME)
def test_copies_are_equal(name, options):
    schedule = bind(SCHEDULES[name], **options)
    copies = [
        pickle.loads(pickle.dumps(schedule)),
        copy.copy(schedule),
        copy.deepcopy(schedule),
        Schedule.from_dict(json.loads(json.dumps(schedule.as_dict()))),
        eval(repr(schedule), {"bind": bind, **SCHEDULES}),
    ]
    for other in copies:
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert (repr(other), other.as_dict()) == (repr(schedule), schedule.as_dict())
        assert [other(step) for step in range(20)] == [schedule(step) for step in range(20)]


@pytest.mark.parametrize(("name", "options"), SOME)
def test_warmup_leads_to_any(name, options):
    then = bind(SCHEDULES[name], **options)
    whole = bind(schedules.warmup, steps=8, start=0.25, then=then)
    rise = [whole(step) for step in range(9)]
    assert np.diff(rise) == pytest.approx((then(0) - 0.25) / 8, rel=1e-12, abs=1e-15)
    assert rise[0] == 0.25
    assert [whole(8 + step) for step in range(20)] == [then(step) for step in range(20)]


@pytest.mark.parametrize("name", FIRST)
def test_steps_are_refused(name, refuses):
    for step in (-1, 1.0, math.nan, None, "1", [1]):
        refuses(lambda step=step: SCHEDULES[name](step, **FIRST[name]), "step must be ")
        refuses(lambda step=step: bind(SCHEDULES[name], **FIRST[name])(step), "step must be ")


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in FIRST for key in list(inspect.signature(SCHEDULES[name]).parameters)[1:]]
)
def test_values_are_refused(name, key, refuses):
    function, options = SCHEDULES[name], FIRST[name]
    for value in (math.nan, math.inf, -1, -1e-300, "0.5", [0.5, "x"], object()):
        wrong = options | {key: value}
        refuses(lambda wrong=wrong: function(0, **wrong), rf"{key}(\[\d\])? must be ")
        refuses(lambda wrong=wrong: bind(function, **wrong), rf"{key}(\[\d\])? must be ")
    declared = str(inspect.signature(function).parameters[key].annotation)
    if declared.split()[0] in ("Rate", "Factor", "Share", "Steps", "Period", "Annotated[float,"):
        zero = options | {key: 0}
        if key in NOT_ZERO or (name, key) in NOT_ZERO_IN:
            refuses(lambda: bind(function, **zero), f"{key} must be ")
        else:
            assert math.isfinite(bind(function, **zero)(1))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("cosine", {"peak": -0.5}, "peak must be in [0, inf), got -0.5"),
        ("cosine", {"steps": 2.5}, "steps must be an integer, got 2.5"),
        ("one_cycle", {"anneal": "cosine"}, "anneal must be one of 'cos', 'linear'; got 'cosine'"),
        ("multi_step", {"milestones": [1, -2]}, "milestones[1] must be at least 0, got -2"),
        ("multi_step", {"milestones": 3}, "milestones must be a tuple or a list, got 3"),
        ("piecewise_constant", {"boundaries": [5, 2]}, "boundaries must increase, got (5, 2)"),
        (
            "piecewise_constant",
            {"boundaries": [2]},
            "values must be one more than the 1 boundaries, got (3.0, 2.0, 1.0)",
        ),
        ("one_cycle", {"three_phase": True, "rise": 0.6}, "rise, with three_phase, must be in [0, 0.5], got 0.6"),
        ("warmup", {"then": schedules.cosine}, "then must be a Schedule, which bind returns, got <function cosine"),
        ("cosine", {"speed": 1}, "cosine() got an unexpected keyword argument 'speed'"),
        ("cosine", {"schedule": "linear"}, "cosine() got an unexpected keyword argument 'schedule'"),
    ],
)
def test_messages(name, wrong, message, refuses):
    refuses(lambda: SCHEDULES[name](0, **(FIRST[name] | wrong)), re.escape(message))
    refuses(lambda: bind(SCHEDULES[name], **(FIRST[name] | wrong)), re.escape(message))


# ---- Binding ----------------------------------------------------------------------------------------


def test_as_dict():
    schedule = bind(schedules.warmup, steps=5, then=bind(schedules.multi_step, peak=1, milestones=(3, 4)))
    then = {"schedule": "multi_step", "peak": 1.0, "milestones": [3, 4], "gamma": 0.1}
    assert schedule.as_dict() == {"schedule": "warmup", "steps": 5, "start": 0.0, "then": then}


def test_schedules_are_compared_by_what_they_are():
    schedule = bind(schedules.cosine, peak=1, steps=9)
    assert schedule == bind(schedules.cosine, steps=np.int32(9), peak=np.float32(1), floor=0.0)
    assert schedule != bind(schedules.cosine, peak=1, steps=8)
    assert schedule != bind(schedules.linear, peak=1, steps=9)
    assert (schedule.name, dict(schedule.items)) == ("cosine", {"peak": 1.0, "steps": 9, "floor": 0.0})
    with pytest.raises(AttributeError):
        schedule.name = "linear"


def test_only_registered_functions_are_bound(refuses):
    def cosine(step, *, peak):
        return peak

    for function in (cosine, lambda step: 1.0, math.cos, None, "cosine"):
        refuses(lambda function=function: bind(function), "function must be one of constant, step_decay, ")
    refuses(lambda: Schedule.from_dict({"schedule": "eval"}), "schedule must be one of 'constant', ")
    with pytest.raises(KeyError):
        Schedule.from_dict({"peak": 1.0})
    refuses(lambda: bind(schedules.cosine, steps=3), re.escape("cosine() missing 1 required keyword-only argument"))
    refuses(lambda: register(cosine), "function must have a name of its own, got 'cosine'", error=ValueError)
    refuses(lambda: register(lambda step: 1.0), "function must have a name of its own, got '<lambda>'")


def doubled(function):
    """A decorator of the user's, which must not get lost."""

    @functools.wraps(function)
    def twice(step, **keywords):
        return 2 * function(step, **keywords)

    return twice


@doubled
def zigzag(
    step: int,
    *,
    peak: Annotated[float, "[0, 1]"],
    shift: int = -3,
    mode: Literal["zig", "zag"] = "zig",
    parts: tuple[float, ...] | None = None,
    then: tuple[Schedule, ...] = (),
) -> float:
    """A user's own."""
    return peak * ((step + shift) % 2)


def test_register_a_function(monkeypatch, refuses):
    monkeypatch.setattr(schedules, "SCHEDULES", SCHEDULES.copy())
    register(zigzag)
    checked = register(zigzag)  # again, as where a notebook's cell is run again
    assert (checked.__name__, checked.__doc__) == ("zigzag", "A user's own.")
    schedule = bind(checked, peak=1, parts=[1, 2], then=[bind(schedules.constant, value=1)])
    assert [schedule(step) for step in range(4)] == [2.0, 0.0, 2.0, 0.0]
    assert bind(zigzag, peak=1) == bind(checked, peak=1)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert Schedule.from_dict(json.loads(json.dumps(schedule.as_dict()))) == schedule
    refuses(lambda: checked(0, peak=2), re.escape("peak must be in [0, 1], got 2"))
    refuses(lambda: bind(checked, peak=1, mode="zog"), "mode must be one of 'zig', 'zag'; got 'zog'")


def test_functions_that_cannot_be_checked_are_refused(monkeypatch, refuses):
    monkeypatch.setattr(schedules, "SCHEDULES", SCHEDULES.copy())

    def bare(step, *, peak):
        return peak

    def text(step, *, peak: str):
        return 1.0

    def positional(step, peak: float):
        return peak

    def reserved(step, *, schedule: float):
        return schedule

    refuses(lambda: register(bare), "peak must have an annotation that says its rule, got None")
    refuses(lambda: register(text), "peak must have an annotation that says its rule, got <class 'str'>")
    for function in (positional, reserved):
        refuses(lambda function=function: register(function), r"\w+ must take only keywords, none called schedule")
    assert schedules.SCHEDULES == SCHEDULES


# ---- Reduce on plateau ------------------------------------------------------------------------------

PLATEAUS = [
    {},
    {"patience": 0},
    {"patience": 2, "factor": 0.5},
    {"patience": 1, "cooldown": 3},
    {"patience": 1, "threshold": 0.1},
    {"patience": 1, "threshold": 0.1, "threshold_mode": "abs"},
    {"patience": 1, "mode": "max", "threshold": 0.1},
    {"patience": 1, "mode": "max", "threshold": 0.1, "threshold_mode": "abs"},
    {"patience": 0, "min_lr": 0.01},
    {"patience": 0, "eps": 0.01},
]


def metrics(rng):
    """A loss that falls and then does not, with noise, a NaN and an infinity."""
    values = np.exp(-np.arange(120) / 20) + 0.1 * rng.standard_normal(120)
    values[[0, 7, 40]] = np.nan, np.inf, np.nan
    return values


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_beside_torch(options, rng):
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    optimizer = fastopt.SGD(np.zeros(1), lr=0.3)
    with_one, without = ReduceOnPlateau(optimizer, **options), ReduceOnPlateau(lr=0.3, **options)
    rates = set()
    for i, metric in enumerate(metrics(rng)):
        scheduler.step(metric)
        rate = without.update(metric)
        assert rate == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12), i
        assert with_one.update(metric) == optimizer.lr == with_one.lr == without.lr == rate
        rates.add(rate)
    assert len(rates) > 1


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_goes_on(options, rng):
    values = metrics(rng)
    whole = ReduceOnPlateau(lr=0.3, **options)
    rates = [whole.update(metric) for metric in values]
    before = ReduceOnPlateau(lr=0.3, **options)
    first = [before.update(metric) for metric in values[:50]]
    optimizer = fastopt.SGD(np.zeros(1), lr=1.0)
    after = ReduceOnPlateau(optimizer, **options)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert optimizer.lr == before.lr
    assert first + [after.update(metric) for metric in values[50:]] == rates


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"lr": None},
        {"mode": "least"},
        {"factor": 1.0},
        {"factor": 0.0},
        {"patience": -1},
        {"threshold": math.nan},
        {"threshold": 1.0},
        {"threshold_mode": "relative"},
        {"cooldown": 0.5},
        {"min_lr": -1e-9},
        {"eps": math.inf},
    ],
    ids=str,
)
def test_plateau_refuses(wrong, refuses):
    refuses(lambda: ReduceOnPlateau(**({"lr": 0.1} | wrong)), f"{next(iter(wrong))} must be ")


def test_plateau_refuses_a_state(refuses):
    optimizer = fastopt.SGD(np.zeros(1), lr=0.3)
    refuses(lambda: ReduceOnPlateau(optimizer, lr=0.3), "lr must be given if and only if there is no optimizer")
    plateau = ReduceOnPlateau(optimizer, patience=0)
    plateau.update(1.0)
    state = plateau.state_dict()
    for wrong in ({"bad": -1}, {"resting": 0.5}, {"lr": math.nan}, {"best": None}):
        with pytest.raises((TypeError, ValueError)):
            plateau.load_state_dict(state | {"lr": 0.7, "best": 2.0} | wrong)
        assert (plateau.state_dict(), optimizer.lr) == (state, 0.3)
    with pytest.raises(TypeError):
        plateau.update(None)
