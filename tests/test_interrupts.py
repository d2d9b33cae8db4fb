"""All or nothing: an exception at any bytecode of a change, like that of Ctrl-C, leaves all of before or of after."""

import copy
import gc
import pickle
import sys

import numpy as np
import pytest

import fastopt
from fastopt import nn
from fastopt.schedules import bind, inverse_time

FALLING = bind(inverse_time, peak=0.1, decay=0.5)


class Interrupt(BaseException):
    """Like KeyboardInterrupt."""


def interrupted(at: int, call, *arguments) -> bool:
    """Whether an exception was raised at that bytecode; False where the call has fewer."""
    left = at

    def trace(frame, event, argument):
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    gc.disable()  # whose callbacks would be traced, too
    sys.settrace(trace)
    try:
        call(*arguments)
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
        gc.enable()
    return False


def plans_of(thing) -> list:
    """The optimizers that something is made of."""
    if isinstance(thing, fastopt.Optimizer):
        return [thing]
    parts = [getattr(thing, name) for name in ("optimizer", "matrices", "rest") if name in vars(thing)]
    return [each for part in parts for each in plans_of(part)]


def arrays_of(params) -> list:
    return list(params.values()) if isinstance(params, dict) else list(params)


def snapshot(thing, params) -> bytes:
    """All that a user can see, and what the plans go by."""
    arrays = [a.tobytes() for a in arrays_of(params)]
    plans = []
    for each in plans_of(thing):
        hypers = [[each._plan.get_hyper(i, b.number) for i in range(len(each._place))] for b in each._buckets]
        alone = "step" in vars(each)
        bound = [slot.param.tobytes() for slot in each._slots.values()]
        plans.append((hypers, alone, bound, each.grad_norm, [group.names for group in each.groups]))
    counts = getattr(thing, "evaluations", None), getattr(thing, "ahead", None), getattr(thing, "lr", None)
    return pickle.dumps((arrays, plans, counts, thing.state_dict()))


def check(make, change, stride: int = 1) -> int:
    """Interrupt a change at all bytecodes in turn (or at every so many); how often it then was as before."""
    thing, params = make()
    before = snapshot(thing, params)
    change(thing, params)
    after = snapshot(thing, params)
    assert after != before
    thing, params = make()
    at = undone = 0
    while interrupted(at, change, thing, params):
        now = snapshot(thing, params)
        assert now in (before, after), f"neither before nor after at bytecode {at}"
        undone += now == before
        if now != before:
            thing, params = make()
        at += stride
    assert snapshot(thing, params) == after
    return undone


def made(make, steps: int = 1):
    """An optimizer that has taken some steps."""

    def new():
        params = {"w": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.linspace(1, 2, 3)}
        optimizer = make(params)
        for _ in range(steps):
            step(optimizer, params)
        return optimizer, params

    return new


def step(optimizer, params):
    optimizer.step({name: 2 * a for name, a in params.items()})


RICH = {"clip_global_norm": 1.0, "weight_decay": 0.1}


class Written(fastopt.NumPyOptimizer):
    """Momentum, in NumPy."""

    states = ("velocity",)

    def update(self, param, grad, state, *, lr):
        state["velocity"] += grad
        param -= lr * state["velocity"]


STEPPED = {
    "in NumPy": lambda p: Written(p, FALLING, weight_decay=0.1, max_norm=0.5),
    "adam": lambda p: fastopt.Adam(p),
    "nadam": lambda p: fastopt.NAdam(p),
    "nadam of groups": lambda p: fastopt.NAdam(p, FALLING, groups=[{"params": "b", "lr": FALLING}], **RICH),
    "schedule-free": lambda p: fastopt.ScheduleFreeAdamW(p),
    "skipped": lambda p: fastopt.Adam(p, skip_nonfinite=True),
    "look-ahead": lambda p: fastopt.LookAhead(fastopt.NAdam(p), k=2),
    "look-ahead in one": lambda p: fastopt.LookAhead(fastopt.SGD(p, 0.1), k=2, alpha=1.0),
    "ranger": lambda p: fastopt.Ranger(p, k=2),
    "ranger, scheduled": lambda p: fastopt.Ranger(p, FALLING, k=2),
    "adafactor": lambda p: fastopt.Adafactor(p),
    "muon": lambda p: fastopt.Muon(p),
}


@pytest.mark.parametrize("name", STEPPED)
def test_a_step(name):
    assert check(made(STEPPED[name]), step) > 5


def test_a_step_that_is_skipped():
    def skip(optimizer, params):
        optimizer.step({name: np.nan * a for name, a in params.items()})

    assert check(made(STEPPED["skipped"]), skip) > 5


def test_a_step_from_the_look_ahead_point():
    def new():
        params = {"w": np.ones((2, 3)), "b": np.ones(3)}
        optimizer = fastopt.LookAheadNesterov(params, 0.1)
        optimizer.look_ahead()
        step(optimizer, params)
        return optimizer, params

    def ahead():
        optimizer, params = new()
        optimizer.look_ahead()
        return optimizer, params

    assert check(new, lambda optimizer, params: optimizer.look_ahead()) > 5
    assert check(ahead, step) > 5


def grouped(params, cls=fastopt.NAdam):
    return cls(params, groups=[{"params": "b", "lr": 0.2, "lr_factor": 0.5, "frozen": False}])


def put(name, value, of_group=False):
    return lambda optimizer, params: setattr(optimizer.groups[0] if of_group else optimizer, name, value)


SETTINGS = {
    "lr": put("lr", 0.7),
    "a schedule": put("lr", FALLING),
    "beta1": put("beta1", 0.5),
    "clip_norm": put("clip_norm", 0.5),
    "lr of a group": put("lr", 0.7, True),
    "a schedule of a group": put("lr", FALLING, True),
    "lr_factor": put("lr_factor", 0.1, True),
    "frozen": put("frozen", True, True),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("cls", [fastopt.NAdam, fastopt.Adam])
def test_a_setting(name, cls):
    assert check(made(lambda params: grouped(params, cls)), SETTINGS[name], 1 if name != "frozen" else 3) > 5


def test_the_rate_of_muon():
    assert check(made(fastopt.Muon), put("lr", 0.7)) > 5


def replaced(optimizer, params):
    optimizer.rebind({name: a + 1 for name, a in params.items()})


def loaded(optimizer, params):
    state = copy.deepcopy(STATES[type(optimizer).__name__])
    optimizer.load_state_dict(state)


STATES = {}
BOUND_ANEW = {
    "updated": lambda optimizer, params: optimizer.updated(params, params),
    "a step of some": lambda optimizer, params: optimizer.step({"w": 2 * params["w"]}, strict=False),
    "add_params": lambda optimizer, params: optimizer.add_params({"c": np.ones(2)}, lr=0.3),
    "rebind": replaced,
    "load_state_dict": loaded,
}


@pytest.mark.parametrize("way", BOUND_ANEW)
@pytest.mark.parametrize("make", [grouped, fastopt.ScheduleFreeAdamW, STEPPED["look-ahead"], fastopt.Muon])
def test_what_binds_anew(way, make):
    optimizer, _ = made(make, 4)()
    if way == "add_params" and not hasattr(optimizer, "add_params"):
        pytest.skip("it takes no further parameters")
    STATES[type(optimizer).__name__] = optimizer.state_dict()
    assert check(made(make), BOUND_ANEW[way], 11) > 5


@pytest.mark.parametrize("make", [fastopt.EMA, fastopt.SWA, lambda p: fastopt.EMA(p, warmup=True)])
def test_an_average(make):
    def new():
        params = {"w": np.ones(3), "b": np.zeros(2)}
        average = make(params)
        average.update()
        params["w"] += 1
        average.update()
        params["b"] -= 1
        return average, params

    assert check(new, lambda average, params: average.update()) > 5
    other, _ = new()
    state = {**other.state_dict(), "count": 9, "averages": {"w": np.full(3, 7.0), "b": np.full(2, 7.0)}}
    assert check(new, lambda average, params: average.load_state_dict(state)) > 5


def test_lbfgs():
    pytest.importorskip("scipy")

    def new():
        params = {"w": np.array([-1.2, 1.0])}
        return fastopt.LBFGS(params, max_iter=3), params

    def run(optimizer, params):
        optimizer.step(lambda: (float((params["w"] ** 2).sum()), {"w": 2 * params["w"]}))

    run(*new())
    assert check(new, run, 151) > 5


def test_a_thread_that_steps_meanwhile():
    """What was worked out for one step is not taken for another."""
    optimizer = fastopt.NAdam(np.ones(3))
    calls, _ = optimizer._stepping(np.ones(3), 1.0)
    optimizer.step(np.ones(3))
    before = snapshot(optimizer, [optimizer.params])
    with pytest.raises(RuntimeError, match="another thread has taken one meanwhile"):
        fastopt._kernels.uninterrupted(calls)
    assert snapshot(optimizer, [optimizer.params]) == before


def test_a_step_of_a_trainer():
    """Whatever bytecode it is interrupted at, another step may come, and no parameter is left out of that."""
    x, y = np.eye(3, dtype=np.float32), np.arange(3) % 2

    def make():
        model = nn.Sequential([nn.Dense(4, activation="relu"), nn.Dense(2)], (3,))
        groups = [{"params": "0.*", "frozen": True}]
        step = model.trainer(fastopt.Adam(model.params, lr=0.1, groups=groups))
        step(x, y)
        return model, step

    model, step = make()
    calm = {}
    for _ in range(3):
        calm[step.optimizer.t] = b"".join(array.tobytes() for array in model.params.values())
        step(x, y)
    at = 0
    while True:
        model, step = make()
        was_interrupted = interrupted(at, step, x, y)
        assert b"".join(array.tobytes() for array in model.params.values()) == calm[step.optimizer.t], at
        before = model.params["0.weight"].copy()
        model.trainer(fastopt.SGD(model.params, lr=0.1))(x, y)
        assert not model.params.held
        assert (before != model.params["0.weight"]).any(), at
        if not was_interrupted:
            break
        at += 1
    assert at > 100
