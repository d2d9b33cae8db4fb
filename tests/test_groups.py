"""Groups of parameters, frozen and late ones; schedules; clipping by norms and skipped steps; copies."""

import copy
import json
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.schedules import bind, cosine, linear

OPTIMIZERS = {
    "sgd": lambda params, **more: fastopt.SGD(params, **{"lr": 0.1} | more),
    "momentum": lambda params, **more: fastopt.Momentum(params, **{"lr": 0.1} | more),
    "adam": lambda params, **more: fastopt.Adam(params, **{"lr": 0.1} | more),
    "nadam": lambda params, **more: fastopt.NAdam(params, **{"lr": 0.1} | more),
    "lamb": lambda params, **more: fastopt.LAMB(params, **{"lr": 0.1} | more),
    "schedule-free": lambda params, **more: fastopt.ScheduleFreeAdamW(params, **{"lr": 0.1} | more),
    "adafactor": lambda params, **more: fastopt.Adafactor(params, **{"lr": 0.1} | more),
}
NAMES = ("layer.weight", "layer.bias", "head.weight", "head.bias")


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def draw(rng):
    return {name: rng.standard_normal((4, 3) if "weight" in name else 3) for name in NAMES}


def copied(params):
    return {name: p.copy() for name, p in params.items()}


def run(optimizer, all_grads):
    for grads in all_grads:
        optimizer.step({name: grads[name] for name in checks_names(optimizer)})


def checks_names(optimizer):
    return list(fastopt.checks.named("param", optimizer.params))


# ---- Groups -----------------------------------------------------------------------------------------

WHICH = {
    "name": "head.bias",
    "pattern": "head.*",
    "list": ["layer.bias", "head.*"],
    "predicate": fastopt.vectors,
    "of the name": lambda name, param: name.startswith("layer"),
}


@pytest.mark.parametrize("which", WHICH.values(), ids=WHICH)
@pytest.mark.parametrize("settings", [{"lr": 0.3}, {"lr_factor": 0.1}, {"weight_decay": 0.5, "lr": 0.01}], ids=str)
def test_a_group_is_an_optimizer_of_its_own(make, which, settings, rng, same_bits):
    params, grads = draw(rng), [draw(rng) for _ in range(4)]
    apart = copied(params)
    optimizer = make(params, groups=[{"params": which, **settings}])
    (group,) = optimizer.groups
    run(optimizer, grads)
    own = dict(settings)
    if "lr_factor" in own:
        own = {"lr": 0.1 * own["lr_factor"]}
    parts = (group.names, own), (tuple(n for n in NAMES if n not in group.names), {})
    for names, hyper in parts:
        run(make({name: apart[name] for name in names}, **hyper), grads)
    assert 0 < len(group.names) < len(NAMES)
    for name in NAMES:
        same_bits(params[name], apart[name])


def test_vectors_have_one_axis_that_is_longer_than_one():
    shapes = {(): True, (3,): True, (3, 1): True, (1, 3): True, (1, 1): True, (1, 3, 1, 1): True, (2, 3): False}
    shapes |= {(0,): True, (0, 3): False, (2, 1, 3): False}
    assert {shape: fastopt.vectors("w", np.ones(shape)) for shape in shapes} == shapes


def test_the_last_group_has_the_last_word(rng, close):
    params = draw(rng)
    before = copied(params)
    groups = [{"params": "head.*", "lr": 0.5}, {"params": fastopt.vectors, "lr": 0.25}, {"params": "*", "lr_factor": 2}]
    fastopt.SGD(params, 0.125, groups=groups).step({name: np.ones_like(p) for name, p in params.items()})
    for name, rate in (("layer.weight", 0.25), ("layer.bias", 0.5), ("head.weight", 1.0), ("head.bias", 0.5)):
        close(before[name] - params[name], np.full_like(params[name], rate))


def test_settings_change_while_it_runs(rng, close):
    params = {"a": np.zeros(3), "b": np.zeros(3), "c": np.zeros(3)}
    ones = {name: np.ones(3) for name in params}
    optimizer = fastopt.SGD(params, 1.0, groups=[{"params": "b", "lr": 2.0}, {"params": "c", "lr_factor": 3.0}])
    optimizer.step(ones)
    optimizer.lr = 10.0
    optimizer.groups[0].lr, optimizer.groups[1].lr_factor = 20.0, 0.5
    optimizer.step(ones)
    for name, way in (("a", 11), ("b", 22), ("c", 8)):
        close(params[name], np.full(3, -float(way)))
    assert (optimizer.lr, optimizer.groups[0].lr, optimizer.groups[1].lr_factor) == (10.0, 20.0, 0.5)
    with pytest.raises(AttributeError, match="no setting 'weight_decay'; it has lr"):
        optimizer.groups[0].weight_decay = 1.0
    with pytest.raises(ValueError, match="lr must be in"):
        optimizer.groups[0].lr = -1.0
    assert optimizer.groups[0].lr == 20.0


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": 1.0}, "a group must say which parameters it holds"),
        ({"params": "nobody", "lr": 1.0}, "a group must hold parameters among layer.weight, .*; none is 'nobody'"),
        ({"params": "*", "rate": 1.0}, "a group must have settings among lr, .*; got 'rate'"),
        ({"params": "*", "lr": np.nan}, "lr must be in"),
        ({"params": "*", "frozen": 1}, "frozen must be True or False"),
        ({"params": "*", "lr_factor": -1}, "lr_factor must be in"),
        ({"params": "*", "clip_norm": 1.0}, "a group must have settings among"),
    ],
)
def test_a_bad_group(make, group, message, rng, refuses):
    params = draw(rng)
    refuses(lambda: make(params, groups=[group]), message, *params.values())


# ---- Frozen and late parameters ---------------------------------------------------------------------


@pytest.mark.parametrize("given", ["absent", "None", "anything"])
def test_frozen_parameters_stay(make, given, rng, same_bits):
    params, all_grads = draw(rng), [draw(rng) for _ in range(6)]
    start, apart = copied(params), copied(params)
    optimizer = make(params, groups=[{"params": "layer.*", "frozen": True}])
    alone = make({name: apart[name] for name in NAMES if name.startswith("head")})
    for grads in all_grads[:3]:
        shown = {name: grads[name] for name in grads if name.startswith("head")}
        alone.step(shown)
        if given != "absent":
            shown |= {name: None if given == "None" else np.ones(7, np.int8) for name in NAMES if name not in shown}
        optimizer.step(shown)
    assert set(optimizer.state) == {"head.weight", "head.bias"}
    for name in NAMES:
        same_bits(params[name], (apart if name.startswith("head") else start)[name])
    optimizer.groups[0].frozen = False
    optimizer.step(all_grads[3])
    assert set(optimizer.state) == set(NAMES)
    assert all((params[name] != start[name]).any() for name in NAMES)
    optimizer.groups[0].frozen = True
    before = copied(params)
    optimizer.step({name: all_grads[4][name] for name in NAMES if name.startswith("head")})
    for name in NAMES:
        assert (params[name] == before[name]).all() == name.startswith("layer")


def test_what_was_frozen_goes_on_where_it_was(make, rng, same_bits):
    """As if the steps meanwhile had not been: to the same bits, and also where it was saved while frozen or since."""
    params, all_grads = draw(rng), [draw(rng) for _ in range(6)]
    apart = copied(params)
    optimizer, straight = make(params, groups=[{"params": "layer.*", "frozen": False}]), make(apart)
    for step, grads in enumerate(all_grads):
        optimizer.groups[0].frozen = step in (2, 3)
        if step in (3, 5):  # an optimizer as it was made takes over
            state = optimizer.state_dict()
            optimizer = make(params, groups=[{"params": "layer.*", "frozen": step == 5}])
            optimizer.load_state_dict(state)
            np.testing.assert_equal(optimizer.state_dict(), state)
            assert optimizer.groups[0].frozen == (step == 3)
        optimizer.step(grads)
        if step not in (2, 3):
            straight.step(grads)
    for name in NAMES:
        assert (params[name] == apart[name]).all() == name.startswith("layer")
    assert (optimizer.t, straight.t) == (6, 4)


def test_a_frozen_list_keeps_its_places(rng, same_bits):
    params = [np.ones(3), np.ones(2)]
    optimizer = fastopt.Adam(params, groups=[{"params": "0", "frozen": True}], clip_global_norm=1.0)
    optimizer.step([None, np.full(2, 10.0)])
    same_bits(params[0], np.ones(3))
    assert (params[1] < 1).all()
    with pytest.raises(ValueError, match="lacks 1"):
        optimizer.step([None])
    with pytest.raises(TypeError, match=r"grads\[1\] must be a NumPy array"):
        optimizer.step([np.ones(3), None])
    assert optimizer.t == 1


def test_parameters_come_late(make, rng, same_bits):
    """With a step counter, and so a bias correction, of their own."""
    params, all_grads = draw(rng), [draw(rng) for _ in range(6)]
    apart = copied(params)
    early = [name for name in NAMES if name.startswith("layer")]
    late = [name for name in NAMES if name not in early]
    optimizer = make({name: params[name] for name in early})
    one, other = make({name: apart[name] for name in early}), make({name: apart[name] for name in late}, lr=0.02)
    for t, grads in enumerate(all_grads):
        if t == 3:
            optimizer.add_params({name: params[name] for name in late}, lr=0.02)
            assert list(optimizer.params) == [*early, *late]
        optimizer.step({name: grads[name] for name in optimizer.params})
        one.step({name: grads[name] for name in early})
        if t >= 3:
            other.step({name: grads[name] for name in late})
    assert optimizer.t == 6
    for name in NAMES:
        same_bits(params[name], apart[name])
    with pytest.raises(ValueError, match=r"more must hold new parameters, but head\.bias is one already"):
        optimizer.add_params({"head.bias": np.ones(3)})
    with pytest.raises(TypeError, match="more must be a list or a dict, as params is: dict, got list"):
        optimizer.add_params([np.ones(3)])
    with pytest.raises(ValueError, match="must not overlap"):
        optimizer.add_params({"more": params["head.bias"][:2]})
    assert list(optimizer.params) == [*early, *late]
    optimizer.step(all_grads[0])


def test_scalars_are_of_each_parameter(rng, same_bits):
    """Parameters of one group, after the same number of steps, may come from different histories."""
    params, grads = draw(rng), draw(rng)
    apart, optimizer = copied(params), fastopt.NAdam(params)
    optimizer.step(grads)
    run(fastopt.NAdam(apart), [grads])
    state = optimizer.state_dict()
    for name, product in (("layer.bias", 0.25), ("head.bias", 0.5)):
        state["scalars"][name]["mu_product"] = product
    optimizer.load_state_dict(state)
    np.testing.assert_equal(optimizer.state_dict(), state)
    optimizer.step(grads)
    for name in NAMES:
        alone = fastopt.NAdam({name: apart[name]})
        one = {key: {name: state[key][name]} for key in ("born", "scalars", "state")}
        alone.load_state_dict({**state, **one})
        alone.step({name: grads[name]})
        same_bits(params[name], apart[name])
    assert optimizer.t == 2


# ---- Schedules --------------------------------------------------------------------------------------


def test_a_schedule_is_what_is_set_by_hand(make, rng, same_bits):
    params, all_grads = draw(rng), [draw(rng) for _ in range(5)]
    by_hand = copied(params)
    schedules = {"lr": bind(cosine, peak=0.2, steps=6, floor=0.01), "weight_decay": bind(linear, peak=0.3, steps=3)}
    groups = [{"params": "head.*", "lr": bind(linear, peak=0.5, steps=4)}]
    optimizer = make(params, **schedules, groups=groups)
    other = make(by_hand, groups=[{"params": "head.*", "lr": 0.5}])
    for t, grads in enumerate(all_grads):
        for name, schedule in schedules.items():
            setattr(other, name, schedule(t))
        other.groups[0].lr = groups[0]["lr"](t)
        other.step(grads)
        optimizer.step(grads)
        assert optimizer.lr == schedules["lr"](t)
        assert optimizer.groups[0].lr == groups[0]["lr"](t)
    for name in NAMES:
        same_bits(params[name], by_hand[name])
    assert dict(optimizer.schedules) == schedules
    optimizer.lr = 0.125
    optimizer.step(all_grads[0])
    assert optimizer.lr == 0.125
    assert list(optimizer.schedules) == ["weight_decay"]


def test_what_cannot_follow_a_schedule():
    schedule = bind(linear, peak=0.5, steps=4)
    with pytest.raises(TypeError, match="nesterov cannot follow a schedule"):
        fastopt.Momentum(np.ones(3), 0.1, nesterov=schedule)
    with pytest.raises(ValueError, match=r"beta1 must be in \[0, 1\), got 1\.5"):
        fastopt.Adam(np.ones(3), beta1=bind(linear, peak=1.5, steps=3))


# ---- Norms, and steps that are skipped --------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, -0.25])
@pytest.mark.parametrize(
    "limits", [{"clip_global_norm": 0.5}, {"clip_norm": 0.5}, {"clip_norm": 0.5, "clip_global_norm": 0.6}]
)
def test_clipping_by_norms(make, limits, scale, dtype, rng, close):
    params = {name: p.astype(dtype) for name, p in draw(rng).items()}
    by_hand = copied(params)
    optimizer, other = make(params, **limits), make(by_hand)
    for _ in range(3):
        grads = {name: g.astype(dtype) for name, g in draw(rng).items()}
        clipped = {name: (scale * g).astype(dtype) for name, g in grads.items()}
        norm = fastopt.gradients.global_norm(clipped)
        if "clip_norm" in limits:
            fastopt.gradients.clip_by_norm(clipped, limits["clip_norm"])
        if "clip_global_norm" in limits:
            fastopt.gradients.clip_by_global_norm(clipped, limits["clip_global_norm"])
        optimizer.step(grads, grad_scale=scale)
        other.step(clipped)
        assert optimizer.grad_norm == pytest.approx(norm, rel=1e-5)
    for name in NAMES:
        close(params[name], by_hand[name], 1e-4 if dtype == np.float32 else 1e-10)


def test_clipping_can_be_switched_off(rng, same_bits):
    params = draw(rng)
    twin, grads = copied(params), draw(rng)
    optimizer, other = fastopt.SGD(params, 0.1, clip_norm=1e-3), fastopt.SGD(twin, 0.1, clip_norm=1e-3)
    optimizer.step(grads)
    other.step(grads)
    optimizer.clip_norm = None
    optimizer.step(grads)
    for name, param in twin.items():
        param -= 0.1 * grads[name]
        same_bits(params[name], param)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite(make, bad, rng):
    params, grads = draw(rng), draw(rng)
    optimizer = make(params, skip_nonfinite=True)
    optimizer.step(grads)
    before, wrong = (copied(params), optimizer.state_dict()), copied(grads)
    wrong["head.weight"][1, 2] = bad
    optimizer.step(wrong)
    assert (optimizer.skipped, optimizer.t) == (1, 1)
    np.testing.assert_equal((params, {**optimizer.state_dict(), "skipped": 0}), before)
    optimizer.step(grads)
    assert (optimizer.skipped, optimizer.t) == (1, 2)
    strict = make(params, clip_global_norm=1.0)
    with pytest.raises(ValueError, match="grads must be finite to be clipped by their norm"):
        strict.step(wrong)
    assert strict.t == 0


def test_huge_gradients_are_finite():
    w = np.zeros(2)
    optimizer = fastopt.SGD(w, 1.0, clip_global_norm=1.0, skip_nonfinite=True)
    optimizer.step(np.array([3e200, 4e200]))
    np.testing.assert_allclose(w, [-0.6, -0.8])
    assert optimizer.skipped == 0


# ---- Copies -----------------------------------------------------------------------------------------


def rich(make, params):
    """An optimizer with all that a state can hold."""
    optimizer = make(
        {name: params[name] for name in NAMES[:3]},
        lr=bind(cosine, peak=0.2, steps=9),
        weight_decay=0.01,
        clip_global_norm=1.0,
        groups=[{"params": "layer.*", "lr_factor": 0.5}, {"params": "layer.bias", "frozen": True}],
    )
    optimizer.step(params_like(params, NAMES[:3], 1.0))
    optimizer.add_params({NAMES[3]: params[NAMES[3]]}, weight_decay=0.0)
    optimizer.step(params_like(params, NAMES, 0.5))
    return optimizer


def params_like(params, names, value):
    return {name: np.full_like(params[name], value) for name in names}


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_goes_on_alike(make, how, rng, same_bits):
    params = draw(rng)
    optimizer = rich(make, params)
    twin = COPIES[how](optimizer)
    assert repr(twin) == repr(optimizer)
    assert np.shares_memory(twin.params[NAMES[0]], params[NAMES[0]]) == (how == "copy")
    assert not any(
        np.shares_memory(a, optimizer.state[name][key]) for name, s in twin.state.items() for key, a in s.items()
    )
    start = copied(twin.params)
    for _ in range(3):
        optimizer.step(params_like(params, NAMES, 0.25))
    after = copied(params)
    for name, param in twin.params.items():
        param[...] = start[name]
    for _ in range(3):
        twin.step(params_like(params, NAMES, 0.25))
    for name in NAMES:
        same_bits(twin.params[name], after[name])
    assert twin.t == optimizer.t == 5


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (fastopt.Adagrad, {"initial_accumulator_value": 0.3}),
        (fastopt.Yogi, {"initial_accumulator_value": 0.3}),
        (fastopt.ScheduleFreeSGD, {"weight_power": 2.0, "lr_power": 1.0}),
        (fastopt.ScheduleFreeAdamW, {"weight_power": 2.0, "lr_power": 1.0}),
        (fastopt.Adafactor, {"eps1": 0.1}),
        (fastopt.MuonMatrices, {"steps": 2}),
    ],
)
@pytest.mark.parametrize("how", COPIES)
def test_settings_of_a_class_are_copied_saved_and_shown(cls, options, how, rng, same_bits):
    param, *grads = rng.standard_normal((4, 3, 2))
    start = param.copy()
    optimizer = cls(param, **options)
    twin = COPIES[how](optimizer)
    other = cls(start.copy())
    other.load_state_dict(optimizer.state_dict())
    for grad in grads:
        optimizer.step(grad)
    after = param.copy()
    for again in (twin, other):
        again.params[...] = start
        for grad in grads:
            again.step(grad)
        same_bits(again.params, after)
        assert repr(again) == repr(optimizer)
    for name, value in options.items():
        assert getattr(twin, name) == getattr(other, name) == value
        assert f"{name}={value}" in repr(optimizer)
        assert name not in repr(cls(param))


def test_rprop_begins_at_the_rate_of_its_group():
    params = {"w": np.ones(3), "b": np.ones(2)}
    optimizer = fastopt.Rprop(params, groups=[{"params": "b", "lr": 0.3}])
    assert {name: float(optimizer.state[name]["step_size"][0]) for name in params} == {"w": 0.01, "b": 0.3}


def test_all_but_arrays_of_a_state_fits_into_json(make, rng, same_bits):
    params = draw(rng)
    optimizer = rich(make, params)
    state = optimizer.state_dict()
    plain = json.loads(json.dumps({key: value for key, value in state.items() if key != "state"}))
    again = copy.deepcopy(optimizer)
    again.step(params_like(params, NAMES, 3.0))
    again.load_state_dict({**plain, "state": state["state"]})
    np.testing.assert_equal(again.state_dict(), state)
    for change in ({"groups": []}, {"born": {}}, {"scalars": []}, {"schedules": {"lr": {"schedule": "nothing"}}}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            again.load_state_dict({**state, **change})
        np.testing.assert_equal(again.state_dict(), state)
