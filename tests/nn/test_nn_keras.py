"""Weights to and from Keras: the same numbers as Keras from files that it wrote (tests/fixtures/keras/make.py)."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fastopt import nn

h5py = pytest.importorskip("h5py")
FILES = Path(__file__).parents[1] / "fixtures" / "keras"
EPS = 1e-3  # of Keras's batch norm


def cnn():
    block = nn.Sequential([nn.Conv2D(3, 2, padding=0), nn.BatchNorm(eps=EPS)])
    layers = [nn.Standardize(), nn.Conv2D(4), nn.BatchNorm(eps=EPS), nn.ReLU(), nn.MaxPool2D()]
    layers += [
        nn.Conv2D(8, groups=4),
        nn.Conv2DTranspose(6, 3, padding=0),
        nn.GroupNorm(3),
        nn.PReLU(),
        block,
        nn.Flatten(),
    ]
    return nn.Sequential([*layers, nn.Dense(7), nn.Tanh(), nn.LayerNorm(), nn.Dense(2)], (8, 8, 3), seed=1)


def resnet():
    def block(filters, stride, shortcut):
        body = [nn.Conv2D(filters, stride=stride), nn.BatchNorm(eps=EPS), nn.ReLU()]
        return nn.Residual(nn.Sequential([*body, nn.Conv2D(filters), nn.BatchNorm(eps=EPS)]), shortcut)

    layers = [nn.Conv2D(3), block(3, 1, None), block(4, 2, nn.Conv2D(4, 1, stride=2)), nn.GlobalAveragePool2D()]
    return nn.Sequential([*layers, nn.Dense(3)], (6, 6, 2), seed=1)


def sequence():
    return nn.Sequential([nn.Embedding(9, 4), nn.Conv1D(5, padding=0), nn.Flatten(), nn.Dense(2)], (6,), seed=1)


#: name: (model, file, names)
MODELS = {
    "cnn": (cnn, "cnn.weights.h5", None),
    "resnet": (resnet, "resnet.weights.h5", {"2.shortcut": "shortcut"}),
    "sequence": (sequence, "sequence.keras", None),
}


def datasets(path):
    """Each array of a file that a layer has, by its name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, each: found.update({name: each[()]} if hasattr(each, "dtype") else {}))
    return {name: array for name, array in found.items() if name.startswith("layers/")}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_outputs_as_keras(name):
    make, file, names = MODELS[name]
    model, outputs = make(), np.load(FILES / "outputs.npz")
    found = nn.load_keras(model, FILES / file, names=names)
    wanted = outputs[f"{name}.y"]
    np.testing.assert_allclose(model.predict(outputs[f"{name}.x"]), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert len(found) == len(set(found.values()))
    if name == "cnn":
        assert found["0"] == "normalization"
        assert found["9.0"] == "sequential/conv2d"
        assert model.layers[0].adapted


def test_back_it_is_the_same_file(tmp_path):
    model = cnn()
    nn.load_keras(model, FILES / "cnn.weights.h5")
    model.layers[1].params["bias"][...] = 0  # which Keras's convolution has not
    nn.save_keras(model, tmp_path / "a.weights.h5", like=FILES / "cnn.weights.h5")
    theirs, ours = datasets(FILES / "cnn.weights.h5"), datasets(tmp_path / "a.weights.h5")
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name, strict=True)
    nn.save_keras(model, tmp_path / "b.weights.h5")  # all are named as there, by their classes
    ours = datasets(tmp_path / "b.weights.h5")
    assert ours.keys() - theirs.keys() == {"layers/conv2d/vars/1"}
    assert all(np.array_equal(ours[name], array) for name, array in theirs.items())
    with h5py.File(tmp_path / "b.weights.h5") as a, h5py.File(FILES / "cnn.weights.h5") as b:
        for name in ("layers/dense/vars", "layers/sequential/layers/conv2d/vars"):
            assert a[name].attrs["name"].rstrip("_0123456789") == b[name].attrs["name"].rstrip("_0123456789")


def test_what_is_written_is_read(tmp_path):
    model = resnet()
    with pytest.raises(ValueError, match=r"1\.body is in a block .* as like"):
        nn.save_keras(model, tmp_path / "a.weights.h5")
    kept = [array.copy() for array in model.params.values()]
    like = {"like": FILES / "resnet.weights.h5", "names": {"2.shortcut": "shortcut"}}
    nn.save_keras(model, tmp_path / "a.weights.h5", **like)
    other = resnet()
    for array in other.params.values():
        array += 1
    nn.load_keras(other, tmp_path / "a.weights.h5", names={"2.shortcut": "shortcut"})
    assert all(map(np.array_equal, kept, other.params.values()))


def changed(tmp_path, change):
    path = tmp_path / "changed.weights.h5"
    shutil.copy(FILES / "cnn.weights.h5", path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def drop(name):
    def change(file):
        del file[name]

    return change


def link(file):
    file["layers/conv2d_9"] = h5py.ExternalLink("other.h5", "/layers")


def reshape(file):
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = np.zeros((2, 7), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("layers/conv2d"), r"as many layers conv2d as the model, 1 \(1 Conv2D\), got 0 \(none\)"),
        (drop("layers/batch_normalization/vars/3"), "layer 2 BatchNorm .* must have 4 arrays, got 3; whether it lacks"),
        (drop("layers/layer_normalization/vars/1"), "layer 13 LayerNorm .* 2 arrays, got 1; whether it lacks"),
        (drop("layers"), "has no layers with weights"),
        (link, "layers/conv2d_9 points to somewhere else"),
        (reshape, r"layer 11 Dense and dense must fit: array 0 must have shape \(75, 7\), got \(2, 7\)"),
        (lambda file: file.create_dataset("layers/own/vars/0", data=[1.0]), r"0 \(none\), got 1 \(own\)"),
        (lambda file: file.create_dataset("layers/dense/vars/kernel", data=[1.0]), "an array 'kernel'"),
        (lambda file: file.attrs.update(layer_names=["dense"]), "it is one of Keras 2"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    model = cnn()
    before = [array.copy() for array in (*model.params.values(), *model.state.values())]
    with pytest.raises(ValueError, match=message):
        nn.load_keras(model, changed(tmp_path, change))
    assert all(map(np.array_equal, before, (*model.params.values(), *model.state.values())))


def test_files_that_are_none(tmp_path):
    model, whole = cnn(), (FILES / "cnn.weights.h5").read_bytes()
    for name, content in (("a.weights.h5", whole[: len(whole) // 2]), ("a.weights.h5", b"x" * 99), ("a.keras", whole)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"must be a \.weights\.h5 or \.keras file of Keras 3"):
            nn.load_keras(model, tmp_path / name)
    with pytest.raises(OSError, match="none"):
        nn.load_keras(model, tmp_path / "none.weights.h5")
    with pytest.raises(TypeError, match="path must be that of"):
        nn.load_keras(model, 3)
    with pytest.raises(ValueError, match="names must be of layers among 0, 1"):
        nn.load_keras(model, FILES / "cnn.weights.h5", names={"17": "dense"})
    with pytest.raises(ValueError, match=r"names must give layers among .*dense \(.*got 'stem'"):
        nn.load_keras(model, FILES / "cnn.weights.h5", names={"1": "stem"})


def test_layers_that_keras_has_not(tmp_path):
    with pytest.raises(ValueError, match=r"0 WeightNorm.* has no counterpart in Keras"):
        nn.save_keras(nn.Sequential([nn.WeightNorm(nn.Dense(2))], (3,)), tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"0 Center.* has no counterpart in Keras"):
        nn.save_keras(nn.Sequential([nn.Center(), nn.Dense(2)], (3,)), tmp_path / "a.weights.h5")
    model = nn.Sequential([nn.Dense(2)], (3,))
    with pytest.raises(ValueError, match=r"path must end with \.weights\.h5"):
        nn.save_keras(model, tmp_path / "a.h5")
    with pytest.raises(ValueError, match="names must come with like"):
        nn.save_keras(model, tmp_path / "a.weights.h5", names={"0": "dense"})
    with pytest.raises(TypeError, match="model must be a Sequential"):
        nn.load_keras("model", tmp_path / "a.weights.h5")
    model.params["0.bias"][...] = 1
    with h5py.File(tmp_path / "like.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="layer 0 Dense and dense must fit: that has no bias"):
        nn.save_keras(model, tmp_path / "a.weights.h5", like=tmp_path / "like.weights.h5")
    assert not (tmp_path / "a.weights.h5").exists()
    nn.load_keras(model, tmp_path / "like.weights.h5")
    assert not any(array.any() for array in model.params.values())
