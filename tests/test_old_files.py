"""Files that version 0.1.0 wrote are read, and mean what they meant."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import nn
from fastopt.schedules import bind, cosine

FOLDER = Path(__file__).parent / "files" / "0.1"


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as arrays:
        return dict(arrays)


def test_a_model_of_many_layers(expected):
    model = nn.load(FOLDER / "model.npz")
    np.testing.assert_allclose(model.predict(expected["x"]), expected["y"], rtol=1e-4, atol=1e-5)
    with np.load(FOLDER / "model.npz") as arrays:
        for kind, own in (("params", model.params), ("state", model.state)):
            assert {f"{kind}/{name}" for name in own} == {name for name in arrays if name.startswith(f"{kind}/")}
            for name, array in own.items():
                np.testing.assert_array_equal(array, arrays[f"{kind}/{name}"])
    assert [type(layer).__name__ for layer in model.layers[:8]] == [
        *("Conv2D", "BatchNorm", "ReLU", "Dropout", "MaxPool2D", "Conv2D", "SpatialDropout", "Conv2D"),
    ]
    assert model.layers[5] is model.layers[7]
    assert (model.seed, model.dtype, model.layers[3].p_is) == (3, np.float32, "keep")


def test_a_checkpoint_is_resumed(expected, tmp_path):
    """The epochs of the file, and one more."""
    path = tmp_path / "run.npz"
    shutil.copy(FOLDER / "run.npz", path)
    layers = [nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)]
    model = nn.Sequential(layers, (5,), dtype=np.float64)
    x, y = expected["run_x"], expected["run_y"]
    optimizer = fastopt.Adam(model.params, 0.01)
    stopping, plateau = nn.EarlyStopping(patience=5), nn.ReduceLROnPlateau(patience=1)
    history = model.fit(
        x,
        y,
        epochs=3,
        batch_size=8,
        optimizer=optimizer,
        validation_data=(x, y),
        callbacks=[stopping, plateau, nn.monitor.Monitor(every=2), nn.ModelCheckpoint(path, resume=True)],
    )
    assert optimizer.t == 9
    assert history.monitor["step"] == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(history["val_loss"], expected["run_val_loss"], rtol=1e-7)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_an_optimizer_goes_on(expected, ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    params = {name: expected[f"before/{name}"].copy() for name in ("w", "b")}
    groups = [{"params": fastopt.vectors, "weight_decay": 0.0, "lr_factor": 0.5}]
    optimizer = fastopt.NAdam(params, bind(cosine, peak=0.1, steps=30), clip_global_norm=1.0, groups=groups)
    fastopt.load(optimizer, FOLDER / f"optimizer.{ending}")
    assert optimizer.t == 3
    optimizer.step({name: expected[f"grad/{name}"] for name in params})
    for name, param in params.items():
        np.testing.assert_allclose(param, expected[f"after/{name}"], rtol=1e-12)
