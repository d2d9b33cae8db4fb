"""Files of older versions load for ever, and what was saved goes on to the numbers that it went on to then.

Those of optimizers to the bits, where the arithmetic is fastopt's; those of nets but for rounding, since sums of
products may take another order.
"""

import pickle
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import nn

FOLDER = Path(__file__).parent / "fixtures" / "0.1"
PROGRAMS = runpy.run_path(str(FOLDER / "make.py"))
OPTIMIZERS, EPOCHS, MORE_EPOCHS = (PROGRAMS[name] for name in ("OPTIMIZERS", "EPOCHS", "MORE_EPOCHS"))
flat, apart = PROGRAMS["flat"], PROGRAMS["apart"]
#: Whose steps are products of matrices by a BLAS, or sums of NumPy.
BY_NUMPY = {"muon", "adafactor"}


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["mlp", "cnn", "layers", "embedding"])
def test_models(name, expected, tmp_path):
    model, outputs = nn.load(FOLDER / f"{name}.npz"), expected[f"{name}/outputs"]
    assert model.dtype == outputs.dtype
    tolerance = 1e-5 if outputs.dtype == np.float32 else 1e-12
    for each in (model, model.copy()):
        np.testing.assert_allclose(each.predict(expected[f"{name}/x"]), outputs, rtol=tolerance, atol=tolerance)
    model.save(tmp_path / "again.npz")
    again = nn.load(tmp_path / "again.npz")
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again.predict(expected[f"{name}/x"]), model.predict(expected[f"{name}/x"]))


def goes_on(name, expected, load):
    """The program that made a file, from the step on at which the file was written."""
    _, make = OPTIMIZERS[name]
    params = apart(expected[f"{name}/params"])
    optimizer = make(params)
    load(optimizer)
    for grad in expected[f"{name}/grads"]:
        PROGRAMS["advance"](optimizer, params, apart(grad))
    actual, wanted = flat(PROGRAMS["results"](optimizer, params)), expected[f"{name}/results"]
    if name in BY_NUMPY:
        np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-12)
    else:
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, ending, expected, isa):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    goes_on(name, expected, lambda optimizer: fastopt.load(optimizer, FOLDER / f"{name}.{ending}"))


@pytest.mark.parametrize("name", ["adam", "groups"])
def test_pickled_states(name, expected):
    state = pickle.loads((FOLDER / f"{name}.pickle").read_bytes())
    goes_on(name, expected, lambda optimizer: optimizer.load_state_dict(state))


def test_no_optimizer_forgets(expected):
    """Without its file, none goes on to the same numbers."""
    for name in OPTIMIZERS:
        with pytest.raises(AssertionError):
            goes_on(name, expected, lambda optimizer: None)


def resumed(expected, tmp_path, epochs):
    path = tmp_path / "checkpoint.npz"
    shutil.copy(FOLDER / "checkpoint.npz", path)
    model, optimizer, history = PROGRAMS["resumable"](path, expected["checkpoint/x"], expected["checkpoint/y"], epochs)
    measures = np.array([history[key] for key in PROGRAMS["MEASURES"]])
    return flat(model.params | model.state), np.array([optimizer.lr, optimizer.t]), measures


def of_checkpoint(expected, epochs):
    return (expected[f"checkpoint/{epochs}/{what}"] for what in ("arrays", "lr, t", "history"))


def test_a_run_that_was_at_its_end_is_as_it_was(expected, tmp_path):
    for actual, wanted in zip(resumed(expected, tmp_path, EPOCHS), of_checkpoint(expected, EPOCHS), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_a_run_goes_on(expected, tmp_path):
    """The scheduler of the rate among it, which has begun to wait before the file was written."""
    wanted = of_checkpoint(expected, MORE_EPOCHS)
    for actual, each in zip(resumed(expected, tmp_path, MORE_EPOCHS), wanted, strict=True):
        np.testing.assert_allclose(actual, each, rtol=1e-8, atol=1e-8)


def test_a_checkpoint_is_a_model(expected):
    model = nn.load(FOLDER / "checkpoint.npz")
    np.testing.assert_array_equal(flat(model.params | model.state), expected[f"checkpoint/{EPOCHS}/arrays"])
