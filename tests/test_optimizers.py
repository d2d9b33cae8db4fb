"""The classes: the same bits as the functions in every structure, and state that can be saved and taken up again."""

import copy
import functools
import gc
import io
import pickle
import re

import numpy as np
import pytest
from conftest import untraced

import fastopt
from fastopt import optimizers, reference

SHAPES = [(3, 4), (), (17,), (0, 5), (2, 3, 4), (1,), (17_000,)]


def arrays_of(rng, dtype=np.float64):
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def gradients_of(rng, steps=3, dtype=np.float64):
    return [arrays_of(rng, dtype) for _ in range(steps)]


def saved(optimizer):
    """All that an optimizer holds, to the byte."""
    arrays = [a.tobytes() for state in optimizer.state.values() for a in state.values()]
    return optimizer.t, optimizer.state_dict()["hyper"], arrays


def test_the_registry_has_every_public_class():
    classes = {cls for cls in vars(optimizers).values() if isinstance(cls, type) and issubclass(cls, fastopt.Optimizer)}
    public = {cls for cls in classes if not cls.__name__.startswith("_")}
    assert set(optimizers.OPTIMIZERS.values()) == public - {fastopt.Optimizer}
    assert all(getattr(fastopt, cls.__name__) is cls for cls in public)


def test_class_and_function_have_the_same_bits(rule, dtype, rng, same_bits):
    """From the second step on, as only the class knows which step is the first."""
    params, (first, *grads) = arrays_of(rng, dtype), gradients_of(rng, dtype=dtype)
    optimizer = rule.make(params)
    optimizer.step(first)
    by_function = [[a.copy(), *map(np.copy, optimizer.state[str(i)].values())] for i, a in enumerate(params)]
    for t, grad in enumerate(grads, start=2):
        scalars = rule.scalars_of(optimizer)
        optimizer.step(grad, grad_scale=0.5)
        for i, arrays in enumerate(by_function):
            rule.step(arrays[0], grad[i], *arrays[1:], t=t, grad_scale=0.5, **scalars)
    for i, arrays in enumerate(by_function):
        for array, expected in zip([params[i], *optimizer.state[str(i)].values()], arrays, strict=True):
            same_bits(array, expected)


def test_the_first_step_by_the_reference(rule, rng, close):
    param, grad = rng.standard_normal((2, 33))
    undampened = {"dampening": 0.0} if "dampening" in rule.hyper else {}  # as its docstring says
    first = type(rule)(rule.name, rule.hyper | undampened)
    optimizer = rule.make(param)
    expected = first.expected(param, grad, *rule.states_of(param), t=1, **rule.scalars_of(optimizer))
    optimizer.step(grad)
    for array, wanted in zip([param, *optimizer.state["param"].values()], expected, strict=True):
        close(array, wanted)


STRUCTURES = {
    "list": lambda arrays: arrays,
    "tuple": tuple,
    "dict": lambda arrays: {f"w{i}": a for i, a in enumerate(arrays)},
    "dict in another order": lambda arrays: {f"w{i}": arrays[i] for i in reversed(range(len(arrays)))},
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_structure_does_not_matter(any_rule, structure, rng, same_bits):
    params, grads = arrays_of(rng), gradients_of(rng)
    alone = [p.copy() for p in params]
    for i, param in enumerate(alone):
        optimizer = any_rule.make(param)
        for grad in grads:
            optimizer.step(grad[i])
    optimizer = any_rule.make(STRUCTURES[structure](params))
    for grad in grads:
        optimizer.step(STRUCTURES["dict"](grad) if "dict" in structure else grad)
    for together, expected in zip(params, alone, strict=True):
        same_bits(together, expected)


def test_many_tensors(any_rule, rng, same_bits):
    memory = rng.standard_normal(1500)
    params = [memory[3 * i : 3 * i + 1 + i % 3] for i in rng.permutation(500)]
    expected = [p.copy() for p in params]
    optimizer, grad = any_rule.make(params), rng.standard_normal(3)
    optimizer.step([grad[: p.size] for p in params])
    for array, alone in zip(params, expected, strict=True):
        any_rule.make(alone).step(grad[: alone.size])
        same_bits(array, alone)


def test_nothing_to_optimize(any_rule):
    for empty in ([], {}, (), np.empty(0), [np.empty((3, 0))]):
        optimizer = any_rule.make(empty)
        optimizer.step(empty if not isinstance(empty, np.ndarray) else empty.copy())
        assert optimizer.t == 1


def test_gradients_may_move_from_step_to_step(any_rule, rng, same_bits):
    """The buffer of the last gradient is kept: another array in its place must be seen, and may then be freed."""
    param, grads = rng.standard_normal(50), rng.standard_normal((6, 50))
    fixed, kept = param.copy(), np.empty(50)
    moving, standing = any_rule.make(param), any_rule.make(fixed)
    for grad in grads:
        moving.step(grad.copy())
        gc.collect()
        kept[...] = grad
        standing.step(kept)
    same_bits(param, fixed)


def test_parameters_and_gradients_of_views(any_rule, rng, same_bits):
    """Views of larger arrays are updated in place, and nothing beside them."""
    memory = rng.standard_normal((6, 10))
    before, grads = memory.copy(), rng.standard_normal((6, 10))
    any_rule.make([memory[1], memory[3:5]]).step([grads[0], grads[2:4]])
    same_bits(memory[[0, 2, 5]], before[[0, 2, 5]])
    assert (memory[[1, 3, 4]] != before[[1, 3, 4]]).all()


def test_arrays_stay_alive_with_the_optimizer(any_rule):
    optimizer = any_rule.make([np.ones(1000) for _ in range(3)])
    gc.collect()
    optimizer.step([np.ones(1000) for _ in range(3)])
    gc.collect()
    assert np.isfinite(optimizer.params).all()


def test_state_is_named_live_and_like_the_parameters(any_rule, dtype, rng):
    optimizer = any_rule.make({"w": np.ones((2, 3), dtype), "b": np.ones(4, dtype)})
    assert list(optimizer.state) == ["w", "b"]
    for name, shape in (("w", (2, 3)), ("b", (4,))):
        assert tuple(optimizer.state[name]) == any_rule.states
        for a in optimizer.state[name].values():
            assert (a.dtype, a.shape) == (dtype, shape)
    kept = [a for state in optimizer.state.values() for a in state.values()]
    before = [a.copy() for a in kept]
    for _ in range(2):
        optimizer.step({"w": np.ones((2, 3), dtype), "b": np.ones(4, dtype)})
    assert all((a != b).all() for a, b in zip(kept, before, strict=True))


@untraced
def test_a_plan_is_freed_with_its_buffers(any_rule):
    param = np.ones(10)
    any_rule.make(param).step(np.ones(10))
    gc.collect()
    param.resize(20)  # which NumPy refuses while a buffer is held
    assert param.size == 20


def test_a_held_array_cannot_be_resized(any_rule):
    param = np.ones(10)
    optimizer = any_rule.make(param)
    with pytest.raises(ValueError, match="resize"):
        param.resize(20)
    assert optimizer.params.size == 10


# ---- Hyperparameters --------------------------------------------------------------------------------


def test_a_new_hyperparameter_acts_at_the_next_step(rule, rng, same_bits):
    """An optimizer whose attributes are set one by one goes on like one that was made so."""
    param, (first, second) = rng.standard_normal(20), rng.standard_normal((2, 20))
    changed, made = param.copy(), param.copy()
    first_lr = rule.hyper["lr"] if rule.name == "rprop" else 0.7  # which fills a state array
    optimizer, other = rule.cls(changed, lr=first_lr), rule.make(made)
    for key, value in rule.hyper.items():
        setattr(optimizer, key, value)
        assert getattr(optimizer, key) == value
    assert rule.hyper.items() <= optimizer.state_dict()["hyper"].items()
    for grad in (first, second):
        optimizer.step(grad)
        other.step(grad)
    same_bits(changed, made)


def test_a_learning_rate_of_zero_stands_still(any_rule, rng, same_bits):
    if any_rule.name in ("rprop", "adabound", "amsbound"):
        pytest.skip("its rates are bounded from below")
    param, *grads = rng.standard_normal((4, 20))
    before = param.copy()
    optimizer = any_rule.make(param)
    optimizer.lr = 0
    for grad in grads:
        optimizer.step(grad)
    same_bits(param, before)


def test_the_counter_is_read_only(any_rule):
    optimizer = any_rule.make(np.ones(3))
    with pytest.raises(AttributeError):
        optimizer.t = 5
    for t in range(1, 4):
        optimizer.step(np.ones(3))
        assert optimizer.t == t


def test_repr_is_the_call_that_makes_it(rule):
    optimizer = rule.make(np.ones(3))
    optimizer.step(np.ones(3))
    text = repr(optimizer)
    assert text.startswith(rule.cls.__name__ + "(")
    assert text.endswith(", t=1)")
    arguments = eval(f"dict{text.removeprefix(rule.cls.__name__)}")
    assert {key: arguments.get(key, rule.cls.keywords()[key]) for key in rule.hyper} == rule.hyper
    assert {*arguments} - {*rule.hyper} == {"t"}


def test_adagrad_begins_where_it_is_told(close, refuses):
    param = np.ones(3)
    optimizer = fastopt.Adagrad(param, lr=0.5, eps=0, initial_accumulator_value=3)
    np.testing.assert_array_equal(optimizer.state["param"]["square_sum"], [3, 3, 3])
    optimizer.step(np.ones(3))
    close(param, np.full(3, 1 - 0.5 / 2))
    for value in (-1, np.nan, None):
        refuses(
            lambda value=value: fastopt.Adagrad(param, initial_accumulator_value=value),
            "initial_accumulator_value must ",
        )


def test_the_minimum_is_found(any_rule):
    """Each rule, at the defaults of its class, goes down the slopes of a bowl."""
    target = np.linspace(-1, 1, 9)
    param = np.zeros(9)
    optimizer = any_rule.cls(param, lr=5.0 if any_rule.name == "adadelta" else 0.05)
    losses = []
    for _ in range(300):
        losses.append(np.square(param - target).sum())
        if hasattr(optimizer, "look_ahead"):
            optimizer.look_ahead()
        optimizer.step(2 * (param - target))
    assert losses[-1] < 0.05 * losses[0]


# ---- Saving and taking up again ---------------------------------------------------------------------


def test_resume_has_the_same_bits(rule, dtype, rng, same_bits):
    params, grads = arrays_of(rng, dtype), gradients_of(rng, 5, dtype)
    straight = rule.make(params)
    for grad in grads[:2]:
        straight.step(grad)
    file = io.BytesIO(pickle.dumps(straight.state_dict()))
    resumed_params = [p.copy() for p in params]
    resumed = rule.cls(resumed_params, lr=0.123)
    resumed.load_state_dict(pickle.load(file))
    for grad in grads[2:]:
        straight.step(grad)
        resumed.step(grad)
    for array, expected in zip(resumed_params, params, strict=True):
        same_bits(array, expected)
    assert saved(resumed) == saved(straight)


def test_a_state_of_another_optimizer_is_refused():
    adam, adamw = fastopt.Adam(np.ones(3)), fastopt.AdamW(np.ones(3))
    with pytest.raises(ValueError, match="optimizer must be one of 'Adam'; got 'AdamW'"):
        adam.load_state_dict(adamw.state_dict())


def test_what_an_optimizer_does_not_let_you_do():
    optimizer = fastopt.Momentum({"w": np.ones(3)}, lr=0.1)
    with pytest.raises(AttributeError, match=r"no hyperparameter 'learning_rate': write lr=1\.0"):
        optimizer.learning_rate = 1.0
    with pytest.raises(AttributeError):
        optimizer.params = {}
    with pytest.raises(TypeError):
        optimizer.state["w"]["velocity"] = np.zeros(3)
    with pytest.raises(TypeError, match=r"fastopt\.Adam"):
        fastopt.Optimizer(np.ones(3))


def test_a_list_that_grew_since():
    params = [np.zeros(3)]
    optimizer = fastopt.SGD(params, lr=1.0)
    params.append(np.zeros(2))
    with pytest.raises(ValueError, match="also has 1"):
        optimizer.step([np.ones(3), np.ones(2)])


def test_a_state_dict_is_a_copy(any_rule):
    optimizer = any_rule.make({"w": np.ones(5)})
    optimizer.step({"w": np.ones(5)})
    state_dict = optimizer.state_dict()
    assert list(state_dict) == [
        "optimizer", "t", "skipped", "hyper", "schedules", "groups", "born", "scalars", "state"
    ]  # fmt: skip
    before = copy.deepcopy(state_dict)
    optimizer.step({"w": np.ones(5)})
    np.testing.assert_equal(state_dict, before)
    optimizer.load_state_dict(state_dict)
    optimizer.step({"w": np.ones(5)})
    np.testing.assert_equal(state_dict, before)


def without(key):
    def change(state_dict):
        del state_dict[key]

    return change


def put(*path, value):
    def change(state_dict):
        for key in path[:-1]:
            state_dict = state_dict[key]
        state_dict[path[-1]] = value

    return change


BAD_STATE = {
    "no t": (without("t"), "'t'"),
    "no hyper": (without("hyper"), "'hyper'"),
    "no state": (without("state"), "'state'"),
    "negative t": (put("t", value=-1), "t must be in "),
    "fractional t": (put("t", value=1.5), "t must be an integer, got 1.5"),
    "t beyond the integers of a double": (put("t", value=10**400), "t must be in "),
    "bad lr": (put("hyper", "lr", value=np.nan), "lr must be in "),
    "no hyperparameters": (put("hyper", value={}), "hyper must have the keys "),
    "one too many": (put("hyper", "omega", value=1.0), "hyper must have the keys "),
    "no parameters": (put("state", value={}), r"state must have the keys \['b', 'w'\], got \[\]"),
    "another parameter": (put("state", "c", value={}), r"state must have the keys \['b', 'w'\]"),
    "another state": (put("state", "b", "extra", value=np.ones(4)), r"state\['b'\] must have the keys "),
}
BAD_STATE_ARRAY = {
    "list": (lambda a: a.tolist(), "must be a NumPy array"),
    "type": (lambda a: a.astype(np.float32), "must be float64, got float32"),
    "shape": (lambda a: a[:-1], r"must have shape \(4,\)"),
    "gaps": (lambda a: np.repeat(a, 2)[::2], "must be C-contiguous"),
}


def stepped(rule):
    optimizer = rule.make({"w": np.ones((2, 3)), "b": np.ones(4)})
    optimizer.step({"w": np.ones((2, 3)), "b": np.ones(4)})
    return optimizer


@pytest.mark.parametrize("bad", BAD_STATE)
def test_a_bad_state_dict(any_rule, bad):
    other, optimizer = stepped(any_rule), stepped(any_rule)
    other.step({"w": np.ones((2, 3)), "b": np.ones(4)})
    change, message = BAD_STATE[bad]
    state_dict = other.state_dict()
    change(state_dict)
    before = saved(optimizer)
    with pytest.raises((KeyError, TypeError, ValueError), match=f"^{message}"):
        optimizer.load_state_dict(state_dict)
    assert saved(optimizer) == before


@pytest.mark.parametrize("bad", BAD_STATE_ARRAY)
def test_a_bad_array_in_a_state_dict(any_rule, bad):
    """It is the very last array that is wrong: those before it must not have been taken over."""
    other, optimizer = stepped(any_rule), stepped(any_rule)
    other.step({"w": np.ones((2, 3)), "b": np.ones(4)})
    spoil, message = BAD_STATE_ARRAY[bad]
    state_dict = other.state_dict()
    for key, a in list(state_dict["state"]["b"].items())[-1:]:
        state_dict["state"]["b"][key] = spoil(a)
        before = saved(optimizer)
        with pytest.raises((TypeError, ValueError), match=rf"^state\['b'\]\['{re.escape(key)}'\] {message}"):
            optimizer.load_state_dict(state_dict)
        assert saved(optimizer) == before
    if not any_rule.states:
        optimizer.load_state_dict(state_dict)
        assert saved(optimizer) == saved(other)


def test_decay_outside_of_lamb_is_decoupled(refuses):
    message = "decay_outside must be False where decoupled is False"
    w = np.ones(4)
    how = {"decoupled": False, "decay_outside": True}
    refuses(lambda: fastopt.LAMB(w, **how), message, w)
    refuses(
        lambda: fastopt.LAMB({"w": w}, decay_outside=True, groups=[{"params": "w", "decoupled": False}]), message, w
    )
    optimizer = fastopt.LAMB(w, decay_outside=True)
    refuses(lambda: setattr(optimizer, "decoupled", False), message)
    assert optimizer.decoupled
    optimizer.decay_outside = False
    optimizer.decoupled = False


# ---- Scalars, which C keeps from step to step --------------------------------------------------------------

WITH_SCALARS = [
    fastopt.NAdam,
    *(functools.partial(fastopt.NAdam, momentum_decay=decay) for decay in (0.0, 0.37, 25.0, 1e6)),
    *(fastopt.ScheduleFreeSGD, fastopt.ScheduleFreeAdamW),
    *(
        functools.partial(fastopt.ScheduleFreeSGD, weight_power=of_t, lr_power=of_lr)
        for of_t, of_lr in ((0.5, 1.0), (1 / 3, 0.0), (2.0, 2.75), (0.1, 0.7))
    ),
]


@pytest.mark.parametrize("begin", [0, 7, 123_456, 2**40])
@pytest.mark.parametrize("make", WITH_SCALARS)
def test_scalars_are_those_of_the_reference(make, begin, rng):
    """The kernel's own functions, by correctly rounded operations alone, beside Python's powers."""
    optimizer = make(np.ones(3))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state | {"t": begin, "born": {"param": 0}})
    scalars = state["scalars"]["param"]
    for t in range(begin + 1, begin + 101):
        optimizer.lr = rng.uniform(0.01, 2)
        hyper = {name: getattr(optimizer, name) for name in optimizer._setting_names()}
        computed, scalars = reference.scalars_after(optimizer.name, hyper, scalars, t)
        optimizer.step(np.zeros(3))
        assert optimizer.state_dict()["scalars"]["param"] == pytest.approx(scalars, rel=1e-13)
        for name, value in computed.items():
            used = optimizer._plan.get_hyper(optimizer._place[name])
            assert used == pytest.approx(value, rel=1e-13)


def test_a_power_of_a_scalar_may_be_any():
    """Squares and roots, exactly: of powers of two."""
    for power in (0.0, 0.5, 0.75, 1.0, 2.25, 3.0, 61.0, 100.5):
        optimizer = fastopt.ScheduleFreeSGD(np.ones(1), lr=2.0**-4, lr_power=power)
        optimizer.step(np.ones(1))
        assert optimizer.state_dict()["scalars"]["param"]["weight_sum"] == 2.0 ** (-4 * power)


@pytest.mark.parametrize("clip", [None, 1e9], ids=["alone", "clipped"])
def test_a_step_after_which_no_scalar_were_finite_is_refused(clip, refuses):
    """6⁴⁰⁰ is beyond float64; so is the tenth power of a learning rate of 1e31, in the second bucket alone."""
    params = {"w": np.ones(3), "b": np.ones(2)}
    grads = {name: np.ones_like(param) for name, param in params.items()}
    groups = [{"params": "b", "lr": 0.5}]
    optimizer = fastopt.ScheduleFreeSGD(params, 1e-3, weight_power=400.0, groups=groups, clip_global_norm=clip)
    for _ in range(5):
        optimizer.step(grads)
    before, arrays = saved(optimizer), [*params.values()]
    message = "step 6 must leave all scalars finite, got weight_power=400.0, lr_power=2.0, weight_sum="
    refuses(lambda: optimizer.step(grads), message, *arrays)
    assert saved(optimizer) == before
    optimizer.weight_power, optimizer.lr_power = 1.0, 10.0
    optimizer.groups[0].lr = 1e31
    before = saved(optimizer)
    refuses(lambda: optimizer.step(grads), "step 6 must leave all scalars finite", *arrays)
    assert saved(optimizer) == before
    optimizer.groups[0].lr = 0.5
    optimizer.step(grads)
    assert optimizer.t == 6


@pytest.mark.parametrize("make", [fastopt.NAdam, fastopt.ScheduleFreeSGD, fastopt.ScheduleFreeAdamW])
def test_scalars_do_not_keep_a_step_from_the_short_way(make):
    optimizer = make(np.ones(3))
    assert optimizer.step == optimizer._plan.step


def test_the_short_way_is_closed_while_averages_are_applied(refuses):
    w = np.ones(3)
    optimizer = fastopt.ScheduleFreeSGD(w, 0.1)
    optimizer.step(np.ones(3))
    message = "the parameters must be those that are trained"
    with optimizer.applied():
        refuses(lambda: optimizer.step(np.ones(3)), message, w)
        optimizer.lr = 0.2  # which chooses the way anew
        refuses(lambda: optimizer.step(np.ones(3)), message, w)
        optimizer.clip_norm = None
        refuses(lambda: optimizer.step(np.ones(3)), message, w)
        state = optimizer.state_dict()
    assert optimizer.step == optimizer._plan.step
    optimizer.load_state_dict(state)
    refuses(lambda: optimizer.step(np.ones(3)), message, w)
    other = copy.deepcopy(optimizer)
    refuses(lambda: other.step(np.ones(3)), message, other.params)
    optimizer.restore()
    assert optimizer.step == optimizer._plan.step
