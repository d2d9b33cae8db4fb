"""A model that was trained before, for other data: its features, other heads, what is frozen, rates by depth."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import nn

EXAMPLE = Path(__file__).parents[2] / "examples" / "transfer.py"


@pytest.fixture
def model():
    layers = [nn.Conv2D(4), nn.BatchNorm(), nn.ReLU(), nn.Flatten(), nn.Dense(6), nn.Dropout(0.5), nn.Dense(3)]
    return nn.Sequential(layers, (4, 4, 2), seed=3)


@pytest.fixture
def images(rng):
    return rng.normal(size=(40, 4, 4, 2)).astype(np.float32)


# ---- Features -----------------------------------------------------------------------------------------------


def test_features_are_what_a_layer_gives(model, images, same_bits):
    y = images
    for i, layer in enumerate(model.layers):
        y = layer.forward(y)[0]
        np.testing.assert_allclose(model.features(i).predict(images), y, rtol=1e-5, atol=1e-6)
    same_bits(model.features(-1).predict(images), model.predict(images))
    assert model.features().layers[-1] is model.layers[-2]
    assert model.features("Flatten").shapes[-1] == (64,)


def test_features_share_their_parameters(model, images, same_bits):
    features = model.features(-3)
    assert all(features.params[name] is model.params[name] for name in features.params)
    model.fit(images, np.arange(40) % 3, epochs=1)
    same_bits(features.predict(images), model.features(-3).predict(images))


def test_features_that_are_not_there(model):
    with pytest.raises(ValueError, match="of 'Dense', layers 4, 6 are: give the index"):
        model.features("Dense")
    with pytest.raises(ValueError, match=r"layer must be one of 0: Conv2D, .*; of 'LSTM', none is"):
        model.features("LSTM")
    with pytest.raises(ValueError, match=r"layer must be in \[-7, 6\], got 7"):
        model.features(7)


# ---- Heads --------------------------------------------------------------------------------------------------


def test_a_head_takes_the_place_of_the_last_layers(model, images, same_bits):
    before = model.predict(images)
    other = model.with_head([nn.Dense(8, activation="relu"), nn.Dense(5)], drop=2)
    assert other.shapes[-1] == (5,)
    assert len(other.layers) == 7
    same_bits(other.features(4).predict(images), model.features(4).predict(images))
    other.fit(images, np.arange(40) % 5, epochs=2)
    same_bits(model.predict(images), before)  # which is left as it was
    assert (other.params["0.weight"] != model.params["0.weight"]).any()


def test_the_seed_of_a_head(model):
    one, again, other = (model.with_head(nn.Dense(3), seed=seed) for seed in (1, 1, 2))
    assert (one.params["6.weight"] == again.params["6.weight"]).all()
    assert (one.params["6.weight"] != other.params["6.weight"]).any()


def test_heads_that_are_refused(model):
    with pytest.raises(ValueError, match=r"layers\[0\] must be a new layer"):
        model.with_head([model.layers[-1]])
    with pytest.raises(ValueError, match=r"drop must be in \[0, 7\], got 8"):
        model.with_head([nn.Dense(2)], drop=8)
    with pytest.raises(TypeError, match=r"layers\[6\] must be a Layer"):
        model.with_head([3])
    with pytest.raises(ValueError, match=r"Dense takes inputs of shape \(n, d\)"):
        model.with_head([nn.Dense(2)], drop=4)


# ---- Freezing ---------------------------------------------------------------------------------------------------


def test_what_is_frozen_stays_while_the_head_learns(model, images, same_bits):
    other = model.with_head([nn.Dense(5)])
    names = other.freeze(slice(-1))
    assert names == ("0.weight", "0.bias", "1.scale", "1.shift", "4.weight", "4.bias")
    before = {name: array.copy() for name, array in (other.params | other.state).items()}
    other.fit(images, np.arange(40) % 5, epochs=2)
    changed = {name for name, array in (other.params | other.state).items() if (array != before[name]).any()}
    assert changed == {"6.weight", "6.bias"}
    assert other.with_head([nn.Dense(2)]).params.frozen == set(names)
    assert other.unfreeze(slice(4, None)) == ("4.weight", "4.bias", "6.weight", "6.bias")
    with pytest.raises(ValueError, match="which must be layers with parameters, but slice"):
        model.freeze(slice(2, 4))


# ---- Rates by depth -----------------------------------------------------------------------------------------------


def test_rates_fall_towards_the_input(model, images):
    """Steps of plain SGD are the gradients times each layer's rate."""
    groups = nn.groups_by_depth(model, 0.1)
    assert [group["params"][0] for group in groups] == ["0.weight", "1.scale", "4.weight"]
    before = {name: array.copy() for name, array in model.params.items()}
    sgd = fastopt.SGD(model.params, lr=1.0, groups=groups)
    sgd.step({name: np.ones_like(array) for name, array in model.params.items()})
    for name, factor in (("0.bias", 1e-3), ("1.shift", 1e-2), ("4.weight", 0.1), ("6.weight", 1.0)):
        np.testing.assert_allclose(before[name] - model.params[name], factor, rtol=1e-3)


def test_groups_of_shared_and_frozen_layers():
    shared = nn.Dense(3)
    model = nn.Sequential([shared, nn.ReLU(), shared, nn.Dense(2)], (3,))
    groups = nn.groups_by_depth(model)
    assert groups == [{"params": ["0.weight", "0.bias"], "lr_factor": pytest.approx(1 / 2.6)}]
    model.freeze(0)
    before = model.params["0.weight"].copy()
    model.fit(np.eye(3), np.arange(3) % 2, optimizer=fastopt.Adam(model.params, groups=groups))
    assert (model.params["0.weight"] == before).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1],), "model must be a Sequential, got list"), ((nn.Sequential([nn.Dense(2)], (3,)), 0), "factor must be in")],
)
def test_groups_that_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nn.groups_by_depth(*arguments)


# ---- The four quarters --------------------------------------------------------------------------------------------


def test_little_data_gain_by_what_was_learnt_before():
    if not EXAMPLE.exists():
        pytest.skip("the examples are not beside the tests")
    example = runpy.run_path(str(EXAMPLE))
    trained = example["pretrained"](False, 0, 3)
    nothing, head, last, every = (example["accuracy"](trained, v, 10, 0, 200) for v in example["VARIANTS"])
    assert min(last, every) > nothing + 0.03
    assert head < last
    rows = {n: example["accuracy"](trained, "head", n, 0, 200) for n in (10, 100)}
    assert example["accuracy"](trained, "from nothing", 100, 0, 200) > rows[100] + 0.1  # by much data, all can learn
