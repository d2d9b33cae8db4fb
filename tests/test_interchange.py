"""State in files, and to and from PyTorch."""

import copy
import pickle
import sys

import numpy as np
import pytest

import fastopt
from fastopt import files
from fastopt.schedules import bind, cosine, linear

SHAPES = {"w1": (5, 4), "b1": (4,), "w2": (4, 3), "b2": (3,), "s": (), "none": (0, 2)}


def parameters(rng, dtype=np.float64):
    return {name: np.array(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


# ---- Files ----------------------------------------------------------------------------------------------------

COSINE = bind(cosine, peak=0.1, steps=10)
GROUPS = [
    {"params": "w*", "lr": bind(linear, peak=0.02, steps=9), "weight_decay": 0.1},
    {"params": fastopt.vectors, "lr_factor": 0.5},
]
MAKE = {
    "adam": lambda params: fastopt.Adam(params, beta1=COSINE, max_norm=2.0, groups=GROUPS, skip_nonfinite=True),
    "nadam": lambda params: fastopt.NAdam(params, groups=GROUPS, clip_global_norm=1.0),
    "adagrad": lambda params: fastopt.Adagrad(params, initial_accumulator_value=0.3, eps_mode="inside"),
    "schedule-free": lambda params: fastopt.ScheduleFreeSGD(params, lr=0.1, weight_power=2.0, lr_power=1.0),
    "adafactor": lambda params: fastopt.Adafactor(params, eps1=1e-3),
    "ranger": lambda params: fastopt.Ranger(params, lr=0.01, k=2),
    "muon": lambda params: fastopt.Muon(params, steps=3),
}


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("name", MAKE)
def test_a_file_resumes_to_the_same_bits(name, ending, dtype, rng, tmp_path, same_bits):
    """An optimizer that is made anew by the same call, with the file and the parameters of the old one."""
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    params, grads = parameters(rng, dtype), [parameters(rng, dtype) for _ in range(6)]
    optimizer = MAKE[name](params)
    for grad in grads[:3]:
        optimizer.step(grad)
    path = tmp_path / f"state.{ending}"
    fastopt.save(optimizer, path)
    others = {key: p.copy() for key, p in params.items()}
    other = MAKE[name](others)
    fastopt.load(other, path)
    for grad in grads[3:]:
        optimizer.step(grad)
        other.step(grad)
    for key, param in params.items():
        same_bits(others[key], param, key)
    assert repr(other) == repr(optimizer)
    np.testing.assert_equal(other.state_dict(), optimizer.state_dict())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_bad_file(ending, tmp_path):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    optimizer = fastopt.Adam(np.ones(3))
    optimizer.step(np.ones(3))
    path = tmp_path / f"state.{ending}"
    fastopt.save(fastopt.Adam(np.ones(4)), path)
    before = pickle.dumps(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"must have shape \(3,\), got \(4,\)"):
        fastopt.load(optimizer, path)
    whole = path.read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^path must name a file that fastopt\.save wrote, got "):
            fastopt.load(optimizer, path)
    assert pickle.dumps(optimizer.state_dict()) == before
    with pytest.raises(FileNotFoundError):
        fastopt.load(optimizer, tmp_path / f"none.{ending}")


def test_without_safetensors(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    optimizer = fastopt.Adam(np.ones(3))
    for call in (fastopt.save, fastopt.load):
        with pytest.raises(ImportError, match=r"fastopt\[safetensors\]"):
            call(optimizer, tmp_path / "state.safetensors")


# ---- PyTorch --------------------------------------------------------------------------------------------------

# Ours with its options, and the name and options of PyTorch's.
BETAS = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
THEIR_BETAS = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
DECAY = {"lr": 0.02, "weight_decay": 0.1}
RMSPROP, THEIR_RMSPROP = {**DECAY, "decay": 0.9, "eps": 1e-6}, {**DECAY, "alpha": 0.9, "eps": 1e-6}
TORCH = {
    "SGD": (fastopt.SGD, DECAY, "SGD", DECAY),
    "maximize": (fastopt.SGD, {"lr": 0.02, "maximize": True}, "SGD", {"lr": 0.02, "maximize": True}),
    "momentum": (fastopt.Momentum, {**DECAY, "dampening": 0.3}, "SGD", {**DECAY, "momentum": 0.9, "dampening": 0.3}),
    "Nesterov": (
        fastopt.Momentum,
        {"lr": 0.02, "nesterov": True},
        "SGD",
        {"lr": 0.02, "momentum": 0.9, "nesterov": True},
    ),
    "no momentum": (fastopt.Momentum, {"lr": 0.02, "momentum": 0.0}, "SGD", {"lr": 0.02}),
    "RMSProp": (fastopt.RMSProp, RMSPROP, "RMSprop", THEIR_RMSPROP),
    "RMSProp, momentum": (fastopt.RMSPropMomentum, RMSPROP, "RMSprop", {**THEIR_RMSPROP, "momentum": 0.9}),
    "centered": (fastopt.CenteredRMSProp, RMSPROP, "RMSprop", {**THEIR_RMSPROP, "centered": True}),
    "centered, momentum": (
        fastopt.CenteredRMSProp,
        {**RMSPROP, "momentum": 0.7},
        "RMSprop",
        {**THEIR_RMSPROP, "centered": True, "momentum": 0.7},
    ),
    "Adagrad": (
        fastopt.Adagrad,
        {**DECAY, "initial_accumulator_value": 0.2},
        "Adagrad",
        {**DECAY, "initial_accumulator_value": 0.2},
    ),
    "Adadelta": (fastopt.Adadelta, {**DECAY, "decay": 0.8}, "Adadelta", {**DECAY, "rho": 0.8}),
    "Adam": (fastopt.Adam, BETAS, "Adam", THEIR_BETAS),
    "Adam, decoupled": (
        fastopt.Adam,
        {**BETAS, "decoupled": True},
        "Adam",
        {**THEIR_BETAS, "decoupled_weight_decay": True},
    ),
    "AdamW": (fastopt.AdamW, BETAS, "AdamW", THEIR_BETAS),
    "AMSGrad": (fastopt.AMSGrad, BETAS, "Adam", {**THEIR_BETAS, "amsgrad": True}),
    "Adamax": (fastopt.Adamax, {**BETAS, "eps_mode": "inside"}, "Adamax", THEIR_BETAS),
    "NAdam": (fastopt.NAdam, {**BETAS, "momentum_decay": 0.1}, "NAdam", {**THEIR_BETAS, "momentum_decay": 0.1}),
    "RAdam": (
        fastopt.RAdam,
        {**BETAS, "eps_mode": "hat", "threshold": 5, "decoupled": True},
        "RAdam",
        {**THEIR_BETAS, "decoupled_weight_decay": True},
    ),
    "Rprop": (fastopt.Rprop, {"eta_minus": 0.6}, "Rprop", {"etas": (0.6, 1.2)}),
}


@pytest.fixture
def torch():
    """PyTorch, whose scalars are in double precision as long as a test lasts."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


def noisy(params, rng):
    return {name: np.asarray(p + 0.5 * rng.standard_normal(p.shape)) for name, p in params.items()}


@pytest.mark.parametrize("case", TORCH)
def test_to_pytorch_and_back(case, torch, rng):
    """Some steps here, then some in PyTorch, then some here; beside them, a run that is never interrupted."""
    ours, options, name, their_options = TORCH[case]
    params = parameters(rng)
    alone = {key: p.copy() for key, p in params.items()}
    optimizer, straight = ours(params, **options), ours(alone, **options)
    tensors = {key: torch.nn.Parameter(torch.from_numpy(p)) for key, p in params.items()}  # the same memory
    theirs = getattr(torch.optim, name)(tensors.values(), **their_options)

    for _ in range(5):
        grads = noisy(params, rng)
        optimizer.step(grads)
        straight.step(grads)
    usual = theirs.state_dict()
    given = fastopt.to_torch(optimizer)
    assert [*map(set, given["param_groups"])] == [*map(set, usual["param_groups"])]
    for key, value in usual["param_groups"][0].items():
        assert given["param_groups"][0][key] == value, key
    theirs.load_state_dict(given)
    for _ in range(5):
        grads = noisy(params, rng)
        straight.step(grads)
        for key, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[key])
        theirs.step()
    back = theirs.state_dict()
    assert {i: set(state) for i, state in back["state"].items()} == {
        i: set(state) for i, state in given["state"].items()
    }
    others = {key: 0.7 for key, value in options.items() if type(value) is float and key != "initial_accumulator_value"}
    resumed = ours(params, **{**options, **others, "lr": 0.5})
    fastopt.load_torch(resumed, back, **({} if "step" in back["state"].get(0, {}) else {"t": 10}))
    assert resumed.state_dict()["hyper"] == straight.state_dict()["hyper"]
    for _ in range(5):
        grads = noisy(params, rng)
        straight.step(grads)
        resumed.step(grads)
    assert resumed.t == straight.t == 15
    for key, param in params.items():
        np.testing.assert_allclose(param, alone[key], rtol=1e-12, atol=1e-12)


def grouped(params):
    groups = [
        {"params": "*1", "lr_factor": 0.1},
        {"params": fastopt.vectors, "weight_decay": 0.0, "beta1": 0.7},
        {"params": "s", "frozen": True},
    ]
    return fastopt.AdamW(params, lr=0.02, weight_decay=0.1, groups=groups)


def test_groups_in_pytorch(torch, rng):
    params = parameters(rng)
    alone = {key: p.copy() for key, p in params.items()}
    optimizer, straight = grouped(params), grouped(alone)
    tensors = {key: torch.nn.Parameter(torch.from_numpy(p)) for key, p in params.items()}
    tensors["s"].requires_grad_(False)
    sets = [["w2", "none"], ["w1"], ["b1"], ["b2"], ["s"]]
    theirs = torch.optim.AdamW([{"params": [tensors[key] for key in keys]} for keys in sets])
    for _ in range(3):
        grads = noisy(params, rng)
        optimizer.step(grads)
        straight.step(grads)
    theirs.load_state_dict(fastopt.to_torch(optimizer))
    assert [group["lr"] for group in theirs.param_groups] == [0.02, 0.002, 0.002, 0.02, 0.02]
    assert [group["weight_decay"] for group in theirs.param_groups] == [0.1, 0.1, 0.0, 0.0, 0.0]
    for group in theirs.param_groups:
        group["lr"] /= 4
    straight.lr = 0.005
    for _ in range(3):
        grads = noisy(params, rng)
        straight.step(grads)
        for key, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[key]) if key != "s" else None
        theirs.step()
    fastopt.load_torch(optimizer, theirs.state_dict())
    assert optimizer.lr == 0.005
    assert optimizer.groups[0].lr_factor == 0.1
    for _ in range(3):
        grads = noisy(params, rng)
        optimizer.step(grads)
        straight.step(grads)
    for key, param in params.items():
        np.testing.assert_allclose(param, alone[key], rtol=1e-12, atol=1e-12)


def test_numpy_arrays_do_without_pytorch(monkeypatch, rng, same_bits):
    monkeypatch.setitem(sys.modules, "torch", None)
    params = parameters(rng, np.float32)
    optimizer = grouped(params)
    for _ in range(3):
        optimizer.step(parameters(rng, np.float32))
    with pytest.raises(ImportError):
        fastopt.to_torch(optimizer)
    given = fastopt.to_torch(optimizer, tensors=False)
    other = grouped({key: p.copy() for key, p in params.items()})
    fastopt.load_torch(other, given)
    assert other.t == 3
    np.testing.assert_equal(other.state_dict(), optimizer.state_dict())


def test_parameters_of_different_ages(torch, rng):
    """A parameter that was added later has taken fewer steps; and one without gradients in PyTorch, none."""
    optimizer = fastopt.NAdam([np.ones(3)], lr=0.1)
    optimizer.step([np.ones(3)])
    optimizer.step([np.ones(3)])
    optimizer.add_params([np.ones(2), np.ones(4)])
    optimizer.step([np.ones(3), np.ones(2), np.ones(4)])
    given = fastopt.to_torch(optimizer)
    assert [float(given["state"][i]["step"]) for i in range(3)] == [3, 1, 1]
    del given["state"][2]
    other = fastopt.NAdam([np.ones(3), np.ones(2), np.ones(4)], lr=0.1)
    fastopt.load_torch(other, given)
    assert other.t == 3
    assert other.state_dict()["born"] == {"0": 0, "1": 2, "2": 3}
    assert not other.state["2"]["m"].any()
    again = fastopt.to_torch(other)
    assert set(again["state"]) == {0, 1}
    for i in (0, 1):
        for key, value in again["state"][i].items():
            assert torch.equal(value, given["state"][i][key])


def test_a_schedule_is_kept():
    lr = bind(linear, peak=1.0, steps=10)
    optimizer = fastopt.Adam(np.ones(3), lr=lr)
    optimizer.step(np.ones(3))
    given = fastopt.to_torch(optimizer, tensors=False)
    assert given["param_groups"][0]["lr"] == 0.9
    given["param_groups"][0]["lr"] = 0.123
    other = fastopt.Adam(np.ones(3), lr=lr)
    fastopt.load_torch(other, given)
    assert other.schedules == {"lr": lr}
    other.step(np.ones(3))
    assert other.lr == 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: fastopt.Adam(p, eps_mode="hat"), "eps_mode must be 'outside' to have PyTorch's numbers, got 'hat'"),
        (lambda p: fastopt.RAdam(p, eps_mode="hat"), "threshold must be 5.0 "),
        (lambda p: fastopt.Momentum(p, 0.1, lr_in_velocity=True), "lr_in_velocity must be False "),
        (lambda p: fastopt.Momentum(p, 0.1, momentum=0, dampening=0.1), "dampening must be 0.0 "),
        (lambda p: fastopt.SGD(p, 0.1, decoupled=True), "decoupled must be False "),
        (lambda p: fastopt.SGD(p, 0.1, l1=0.1), "l1 must be 0.0 "),
        (lambda p: fastopt.SGD(p, 0.1, groups=[{"params": "0", "max_norm": 1.0}]), "max_norm must be None "),
        (lambda p: fastopt.Lion(p), "optimizer must be one that PyTorch has, SGD, "),
        (lambda p: fastopt.LookAhead(fastopt.Adam(p)), "optimizer must be one that PyTorch has, SGD, "),
    ],
)
def test_what_pytorch_does_not_have(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        fastopt.to_torch(make([np.ones(3)]), tensors=False)


def without(*path):
    def change(state_dict):
        for key in path[:-1]:
            state_dict = state_dict[key]
        del state_dict[path[-1]]

    return change


def put(*path, value):
    def change(state_dict):
        for key in path[:-1]:
            state_dict = state_dict[key]
        state_dict[path[-1]] = value

    return change


BAD = {
    "no groups": (without("param_groups"), "'param_groups' must be a key of state_dict, got 'state'$"),
    "no state": (without("state"), "'state' must be a key of state_dict"),
    "a number for groups": (put("param_groups", value=3), "param_groups must be a list of dicts, got int"),
    "numbers for groups": (put("param_groups", value=[3, 4]), r"param_groups\[0\] must be a dict, got int"),
    "a list for the state": (put("state", value=[]), "state must be a dict, got list"),
    "a list for a state": (put("state", 0, value=[1]), r"state\[0\] must be a dict, got list"),
    "no parameters": (without("param_groups", 0, "params"), r"'params' must be a key of param_groups\[0\], got '"),
    "a number for parameters": (
        put("param_groups", 0, "params", value=1),
        r"param_groups\[0\]\['params'\] must be a list",
    ),
    "names of parameters": (
        put("param_groups", 0, "params", value=[[]]),
        r"param_groups\[0\]\['params'\] must be an integ",
    ),
    "one parameter twice": (
        put("param_groups", 1, "params", value=[0]),
        r"param_groups must hold each parameter once, got \[0, 0\]",
    ),
    "no such setting": (without("param_groups", 0, "eps"), r"'eps' must be a key of param_groups\[0\]"),
    "one beta": (
        put("param_groups", 0, "betas", value=(0.9,)),
        r"param_groups\[0\]\['betas'\] must be a pair, \(beta1, ",
    ),
    "beta alone": (put("param_groups", 0, "betas", value=0.9), r"param_groups\[0\]\['betas'\] must be a pair"),
    "text for a rate": (put("param_groups", 0, "lr", value="0.1"), "lr must be a number in .*, got '0.1'"),
    "None for a rate": (put("param_groups", 0, "lr", value=None), "lr must be a number in .*, got None"),
    "some rates": (put("param_groups", 0, "lr", value=np.ones(2)), "lr must be a number in "),
    "a huge rate": (put("param_groups", 0, "lr", value=10**400), "lr must be a number in "),
    "a word for a flag": (put("param_groups", 0, "maximize", value="no"), "maximize must be True or False, got 'no'"),
    "arrays for a kind": (put("param_groups", 0, "amsgrad", value=np.ones(2)), "amsgrad must be False for Adam"),
    "no step": (without("state", 0, "step"), r"'step' must be a key of state\[0\], got 'exp_avg'"),
    "a word for a step": (
        put("state", 0, "step", value="one"),
        r"state\[0\]\['step'\] must be a number of steps, got 'one'",
    ),
    "a huge step": (put("state", 0, "step", value=10**400), r"state\[0\]\['step'\] must be a number of steps, got 10"),
    "some steps": (put("state", 0, "step", value=np.ones(2)), r"state\[0\]\['step'\] must be a number of steps, got "),
    "text for an array": (put("state", 0, "exp_avg", value="ones"), r"state\['w'\]\['m'\] must be float64, got <U4"),
    "one group less": (without("param_groups", 1), "param_groups must hold "),
    "one parameter more": (put("param_groups", 0, "params", value=[0, 1, 2]), "param_groups must hold "),
    "no array": (without("state", 0, "exp_avg"), r"'exp_avg' must be a key of state\[0\], got 'step', 'exp_avg_sq'"),
    "another shape": (put("state", 1, "exp_avg", value=np.ones(7)), r"state\['b'\]\['m'\] must have shape \(2,\)"),
    "another type": (put("state", 1, "exp_avg", value=np.ones(2, np.float32)), r"state\['b'\]\['m'\] must be float64"),
    "half a step": (put("state", 1, "step", value=1.5), r"state\[1\]\['step'\] must be a number of steps, got 1.5"),
    "no rate": (put("param_groups", 0, "lr", value=np.nan), "lr must be "),
    "no decay": (put("param_groups", 1, "weight_decay", value=-1.0), "weight_decay must be in "),
    "another kind": (put("param_groups", 0, "amsgrad", value=True), "amsgrad must be False for Adam, got True"),
    "no group for it": (put("param_groups", 1, "lr", value=0.5), "lr must be the same for all parameters that have it"),
}


@pytest.mark.parametrize("state_dict", [None, 3, [], "state", np.ones(3)], ids=repr)
def test_what_is_no_state_of_pytorch(state_dict):
    with pytest.raises(TypeError, match=r"^state_dict must be a dict, got "):
        fastopt.load_torch(fastopt.Adam(np.ones(3)), state_dict)


def test_settings_of_pytorch_may_be_tensors():
    params, adam = [np.ones(3)], fastopt.Adam([np.ones(3)])
    state_dict = fastopt.to_torch(fastopt.Adam(params, lr=0.25, beta1=0.5), tensors=False)
    state_dict["param_groups"][0] |= {"lr": np.array(0.25), "betas": [np.float64(0.5), np.array(0.999)]}
    fastopt.load_torch(adam, state_dict)
    assert (adam.lr, adam.beta1, adam.beta2) == (0.25, 0.5, 0.999)


FOREIGN = {
    "schedules": ["schedules", "groups", "hyper", "born", "scalars", "state"],
    "values": [
        None,
        3,
        -1,
        10**400,
        "text",
        [],
        [1],
        {},
        {"lr": None},
        {"lr": {}},
        {"x": 3},
        [[]],
        np.ones(2),
        float("nan"),
    ],
}


@pytest.mark.parametrize("key", ["optimizer", "t", "skipped", *FOREIGN["schedules"]])
def test_a_file_with_a_foreign_state(key, tmp_path):
    """What is loaded from a file is TypeError or ValueError away from what is not the state of an optimizer."""
    adam, path = fastopt.Adam({"w": np.ones(2)}, groups=[{"params": "w", "eps": 1e-7}]), tmp_path / "a.npz"
    adam.step({"w": np.ones(2)})
    whole = adam.state_dict()
    for value in [*FOREIGN["values"], "absent"]:
        foreign = {name: each for name, each in whole.items() if name != key}
        if not (isinstance(value, str) and value == "absent"):
            foreign[key] = value
        files.write_arrays(path, files.pack("optimizer", foreign), "optimizer")
        before = pickle.dumps(adam.state_dict())
        try:
            fastopt.load(adam, path)
        except (TypeError, ValueError):
            assert pickle.dumps(adam.state_dict()) == before


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_state_of_pytorch(bad):
    def make():
        optimizer = fastopt.Adam({"w": np.ones((2, 2)), "b": np.ones(2)}, groups=[{"params": "b", "weight_decay": 0.1}])
        optimizer.step({"w": np.ones((2, 2)), "b": np.ones(2)})
        return optimizer

    optimizer, state_dict = make(), copy.deepcopy(fastopt.to_torch(make(), tensors=False))
    change, message = BAD[bad]
    change(state_dict)
    before = pickle.dumps(optimizer.state_dict())
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        fastopt.load_torch(optimizer, state_dict)
    assert pickle.dumps(optimizer.state_dict()) == before
    with pytest.raises(TypeError, match="t must not be given"):
        fastopt.load_torch(optimizer, fastopt.to_torch(make(), tensors=False), t=3)
