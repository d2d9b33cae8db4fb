"""A model's arrays stay where they are, and some of them may be frozen."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import fastopt
from fastopt import environment, nn
from fastopt.nn.params import Params
from fastopt.optimizers import OPTIMIZERS


def mlp(dtype=np.float32):
    layers = [
        nn.Dense(8),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Dense(6),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.Dense(3),
    ]
    return nn.Sequential(layers, (5,), dtype=dtype)


@pytest.fixture
def samples(rng):
    y = np.arange(65) % 3
    return rng.normal(size=(65, 5)) + 1.5 * y[:, None], y


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


# ---- Assignments ----------------------------------------------------------------------------------------


def assign(params, name, value):
    params[name] = value


#: Ways to give an array another value.
WAYS = {
    "item": assign,
    "update": lambda params, name, value: params.update({name: value}),
    "or": lambda params, name, value: params.__ior__({name: value}),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_assignment_moves_values(way, samples, tmp_path):
    """predict, params, save, the layer and the optimizer tell one story."""
    model = mlp()
    optimizer = fastopt.SGD(model.params, lr=0.5)
    model.fit(*samples, optimizer=optimizer)
    bias, before = model.params["7.bias"], model.predict(samples[0])
    WAYS[way](model.params, "7.bias", bias + np.float32(100))
    assert model.params["7.bias"] is bias is model.layers[7].params["bias"]
    np.testing.assert_allclose(model.predict(samples[0]), before + 100, rtol=1e-5)
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(nn.load(tmp_path / "model.npz").params["7.bias"], bias)
    model.fit(*samples, optimizer=optimizer)
    assert optimizer.params["7.bias"] is bias


@pytest.mark.parametrize("name", ["1.running_mean", "5.running_var"])
def test_an_assignment_to_the_state_moves_values(name, samples):
    model = mlp()
    array, before = model.state[name], model.predict(samples[0])
    model.state[name] = array + np.float32(2)
    assert model.state[name] is array
    assert (model.predict(samples[0]) != before).any()


def test_a_program_heeds_an_assignment(samples):
    models = [mlp() for _ in range(2)]

    class Assign(nn.Callback):
        def on_train_begin(self, run):
            self.run = run

        def on_batch_begin(self, batch):
            if batch == 2:
                weight = self.run.model.params["4.weight"]
                self.run.model.params["4.weight"] = weight * np.float32(0.5)

    models[0].fit(*samples, batch_size=8, callbacks=[Assign()])
    models[1].fit(*samples, batch_size=8, callbacks=[Assign(), nn.monitor.DetectAnomaly()])  # phase by phase
    assert bits(models[0]) == bits(models[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p.update({"7.bias": p["7.bias"] + 1, "x": p["7.bias"]}),
            "params must keep its names, 0.weight, .*'x'",
        ),
        (lambda p: assign(p, "7.bias", np.ones(3)), r"params\['7.bias'\] must be set to float32, got float64"),
        (
            lambda p: assign(p, "7.bias", np.ones(4, np.float32)),
            r"params\['7.bias'\] must be .* shape \(3,\), got \(4,\)",
        ),
        (lambda p: assign(p, "7.bias", 1.0), r"params\['7.bias'\] must be set to a NumPy array, got float"),
        (lambda p: assign(p, "7.bias", np.ma.ones(3, np.float32)), r"params\['7.bias'\] must .*, got a masked array"),
        (lambda p: p.setdefault("x", np.ones(3)), "params must keep its names"),
        (lambda p: p.pop("7.bias"), "params must keep its names"),
        (lambda p: p.popitem(), "params must keep its names"),
        (lambda p: p.clear(), "params must keep its names"),
        (lambda p: p.__delitem__("7.bias"), "params must keep its names"),
    ],
)
def test_what_cannot_be_moved_is_refused(change, message, refuses):
    model = mlp()
    refuses(lambda: change(model.params), message, *model.params.values())
    assert len(model.params) == 10


def test_another_dict_of_parameters_moves_values():
    model, other = mlp(), mlp()
    other.params["0.weight"] *= 2
    arrays = list(model.params.values())
    model.params = other.params
    assert bits(model) == bits(other)
    assert all(one is array for one, array in zip(model.params.values(), arrays, strict=True))
    with pytest.raises(ValueError, match=r"^params must keep its names, but 0.bias is missing"):
        model.params = {name: a for name, a in model.params.items() if name != "0.bias"}
    with pytest.raises(TypeError, match=r"^params must be a dict of arrays, got list"):
        model.params = list(other.params.values())
    assert bits(model) == bits(other)


def test_an_array_that_is_read_only_is_not_moved():
    model = mlp()
    model.params["7.bias"].flags.writeable = False
    with pytest.raises(ValueError, match=r"^params\['7.bias'\] must be writable"):
        model.params["7.bias"] = np.ones(3, np.float32)


def test_copies_of_parameters():
    model = mlp()
    model.freeze("0.*")
    for plain in (model.params.copy(), copy.copy(model.params), model.params | {}):
        assert type(plain) is dict
        assert plain["0.bias"] is model.params["0.bias"]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.copy()):
        assert isinstance(twin.params, Params)
        assert twin.params.frozen == {"0.weight", "0.bias"}
        assert twin.layers[0].params.rest
        bias = twin.params["7.bias"]
        assert bias is not model.params["7.bias"]
        twin.params["7.bias"] = np.ones(3, np.float32)
        assert twin.params["7.bias"] is bias
        assert bits(twin) != bits(model)


# ---- Frozen parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("0.weight", ["0.weight"]),
        ("0.*", ["0.weight", "0.bias"]),
        ("*bias", ["0.bias", "4.bias", "7.bias"]),
        (1, ["1.scale", "1.shift"]),
        (-1, ["7.weight", "7.bias"]),
        ([0, "7.bias"], ["0.weight", "0.bias", "7.bias"]),
        (lambda name, param: name[0] == "5", ["5.scale", "5.shift"]),
        (fastopt.vectors, ["0.bias", "1.scale", "1.shift", "4.bias", "5.scale", "5.shift", "7.bias"]),
    ],
)
@pytest.mark.parametrize("optimizer", ["adam", "bound"])
def test_frozen_parameters_stay(which, wanted, optimizer, samples):
    model = mlp()
    assert list(model.freeze(which)) == wanted
    assert model.params.frozen == {*wanted}
    before = bits(model)
    model.fit(*samples, epochs=2, optimizer=fastopt.Adam(model.params) if optimizer == "bound" else optimizer)
    after = bits(model)
    assert {name for name in model.params if before[name] == after[name]} == {*wanted}
    model.unfreeze(which)
    assert model.params.frozen == frozenset()
    model.fit(*samples)
    assert all(after[name] != bits(model)[name] for name in model.params)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("9.*", "which must hold parameters among 0.weight, .*; none is '9.*'"),
        (9, r"which must be in \[-8, 7\], got 9"),
        (2, r"which must be a layer with parameters, but layer 2 is ReLU\(\)"),
        (None, "which must be an integer"),
        ([0, 1.5], "which must be an integer, got 1.5"),
        (lambda name, param: False, "which must choose parameters among 0.weight, .*; it chose none"),
    ],
)
def test_what_cannot_be_frozen(which, message, refuses):
    model = mlp()
    refuses(lambda: model.freeze(which), message)
    assert not model.params.frozen


@pytest.mark.parametrize("make", [*OPTIMIZERS.values(), fastopt.Adafactor], ids=lambda make: make.name)
def test_every_optimizer_heeds_what_is_frozen(make):
    model = mlp()
    model.freeze("4.*")
    optimizer = make(model.params, lr=0.1)
    assert optimizer.frozen == {"4.weight", "4.bias"} == {*optimizer.groups[0].names}
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.frozen == optimizer.frozen
        assert len(twin.groups) == 1
    model.unfreeze()
    assert not make(model.params, lr=0.1).frozen


@pytest.mark.parametrize(
    "make",
    [fastopt.Muon, lambda params: fastopt.LookAhead(fastopt.SGD(params, lr=0.1)), fastopt.Ranger, fastopt.LBFGS],
    ids=["Muon", "LookAhead", "Ranger", "LBFGS"],
)
def test_others_heed_it_too(make, samples):
    if make is fastopt.LBFGS:
        pytest.importorskip("scipy")
    model = mlp()
    model.freeze(["4.*", "0.bias"])
    before = bits(model)
    model.fit(*samples, batch_size=65, epochs=3, optimizer=make(model.params))
    after = bits(model)
    assert {name for name in model.params if before[name] == after[name]} == {"4.weight", "4.bias", "0.bias"}


def test_an_optimizer_that_does_not_know_of_it_is_refused(samples, refuses):
    model = mlp()
    before, arrays = fastopt.Adam(model.params), model.params.values()
    model.freeze(0)
    refuses(lambda: model.fit(*samples, optimizer=before), "optimizer must leave out .*, but steps 0.bias", *arrays)
    meanwhile = fastopt.Adam(model.params)
    model.fit(*samples, optimizer=meanwhile)
    model.unfreeze()
    refuses(lambda: model.fit(*samples, optimizer=meanwhile), "optimizer still leaves out 0.bias, which", *arrays)
    meanwhile.groups[0].frozen = False
    weight = model.params["0.weight"].copy()
    model.fit(*samples, optimizer=meanwhile)
    assert (model.params["0.weight"] != weight).any()


def test_layers_that_two_models_share_are_frozen_in_both():
    first = mlp()
    second = nn.Sequential([*first.layers[:-1], nn.Dense(4)], (5,))
    assert first.freeze([0, 1]) == ("0.weight", "0.bias", "1.scale", "1.shift")
    assert second.params.frozen == first.params.frozen
    outer = nn.Sequential([nn.Residual(nn.Sequential([nn.Dense(5), nn.WeightNorm(nn.Dense(5))]))], (5,))
    outer.freeze("*.1.*")
    assert outer.params.frozen == {"0.body.1.gain", "0.body.1.direction", "0.body.1.layer.bias"}
    assert outer.layers[0].params.frozen == {name.removeprefix("0.") for name in outer.params.frozen}
    outer.unfreeze("*gain")
    assert outer.params.frozen == {"0.body.1.direction", "0.body.1.layer.bias"}


@pytest.mark.parametrize("norm", [nn.BatchNorm, lambda: nn.DecorrelatedBatchNorm(4)], ids=["plain", "decorrelated"])
@pytest.mark.parametrize("how", ["model", "group", "blas"])
def test_statistics_of_frozen_layers_stay(norm, how, samples, monkeypatch):
    if how == "blas":
        monkeypatch.setattr(environment, "PRODUCTS", "blas")
    model = nn.Sequential([nn.Dense(8), norm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(8), norm(), nn.Dense(3)], (5,))
    model.fit(*samples)
    state = {name: a.copy() for name, a in model.state.items()}
    if how == "group":
        optimizer = fastopt.Adam(model.params, groups=[{"params": "1.*", "frozen": True}])
    else:
        model.freeze(1)
        optimizer = fastopt.Adam(model.params)
    model.fit(*samples, epochs=2, batch_size=16, optimizer=optimizer)
    assert model.params.held == frozenset()
    for name, array in model.state.items():
        assert (array == state[name]).all() == name.startswith("1."), name
    model.unfreeze()
    optimizer.groups[0].frozen = False
    model.fit(*samples, optimizer=optimizer)
    assert all((array != state[name]).any() for name, array in model.state.items())


def test_a_layer_frozen_in_a_run_rests_from_then_on(samples):
    """Also where a program was made before."""
    model, seen = mlp(), []
    optimizer = fastopt.Adam(model.params, groups=[{"params": "1.*", "frozen": False}])

    class Freeze(nn.Callback):
        def on_batch_begin(self, batch):
            optimizer.groups[0].frozen = batch in (3, 4)
            seen.append(model.state["1.running_mean"].copy())

    model.fit(*samples, batch_size=8, optimizer=optimizer, callbacks=[Freeze()])
    stayed = [(one == following).all() for one, following in itertools.pairwise(seen)]
    assert stayed == [batch in (3, 4) for batch in range(7)]


@pytest.mark.parametrize(
    "fused", [[], [nn.ReLU()], [nn.ReLU(), nn.Dropout(0.3)], [nn.MaxPool2D(2)], [nn.ReLU(), nn.MaxPool2D(2)]]
)
def test_a_frozen_norm_has_the_outputs_of_inference_and_its_gradients(fused, rng, same_bits):
    def build():
        return nn.Sequential(
            [nn.Conv2D(4), nn.BatchNorm(), *copy.deepcopy(fused), nn.Flatten(), nn.Dense(3)],
            (4, 4, 2),
            dtype=np.float64,
        )

    model = build()
    x, y = rng.normal(size=(6, 4, 4, 2)), np.arange(6) % 3
    model.fit(x, y, epochs=3, batch_size=3)
    model.freeze(1)
    state = bits(model)
    if not any(isinstance(layer, nn.Dropout) for layer in fused):
        same_bits(model.forward(x, training=True)[0], model.predict(x))
    assert nn.debug.gradient_check(model, x, y)
    assert bits(model) == state


def test_masks_behind_a_frozen_norm_are_the_usual_ones(rng):
    x = rng.normal(size=(50, 4))
    outputs = []
    for frozen in (False, True):
        model = nn.Sequential([nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.5)], (4,), dtype=np.float64)
        model.params["0.shift"] = np.full(4, 9.0)
        if frozen:
            model.freeze(0)
        outputs.append(model.forward(x, training=True, counter=3)[0] == 0)
    np.testing.assert_array_equal(*outputs)


def test_backward_ends_at_the_lowest_layer_that_learns(samples, monkeypatch):
    model = mlp()
    model.freeze([0, 1])
    written = str(model.compile(8, loss=nn.softmax_cross_entropy))
    assert "gradient of 0." not in written
    assert all(f"gradient of {name}" in written for name in model.params.keys() - model.params.frozen)
    model.freeze("*")
    assert "gradient of" not in str(model.compile(8, loss=nn.softmax_cross_entropy))


def test_frozen_parameters_and_a_checkpoint(samples, tmp_path):
    def run(path, *epochs):
        for count in epochs:
            model = mlp()
            model.freeze([0, 1])
            checkpoint = nn.ModelCheckpoint(tmp_path / path, resume=True)
            model.fit(*samples, epochs=count, callbacks=[checkpoint])
        return bits(model)

    assert run("parts.npz", 1, 3) == run("whole.npz", 3)
