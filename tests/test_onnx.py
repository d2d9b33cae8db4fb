"""ONNX: what onnxruntime computes is what the model predicts."""

import copy

import numpy as np
import pytest

from fastopt import cases, nn

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

import fastopt.onnx  # noqa: E402 - an extra


def run(proto, x):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def alive(model, rng):
    """With no array at its initial value."""
    for array in (*model.params.values(), *model.state.values()):
        array[...] = rng.uniform(0.5, 1.5, array.shape) * rng.choice([-1, 1], array.shape)
    for name, array in model.state.items():
        if "var" in name or "adapted" in name:
            array[...] = np.abs(array)
    return model


def check(model, rng, n=3):
    is_table = any(isinstance(layer, nn.Embedding) for layer in model.walk())
    x = rng.integers(5, size=(n, *model.input_shape)) if is_table else rng.normal(size=(n, *model.input_shape))
    x = x.astype(model.dtype)
    wanted = model.predict(x)
    found = run(fastopt.onnx.export(model), x)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("layer", "shape"), [case[:2] for case in cases.NN], ids=[f"{case[0]!r}-{case[1]}" for case in cases.NN]
)
def test_every_layer(layer, shape, rng):
    check(alive(nn.Sequential([copy.deepcopy(layer)], shape), rng), rng)


def resnet():
    def conv(filters, stride=1, size=3):
        return [nn.Conv2D(filters, size, stride), nn.BatchNorm()]

    def block(filters, stride):
        body = nn.Sequential([*conv(filters, stride), nn.ReLU(), *conv(filters)])
        return nn.Residual(body, nn.Sequential(conv(filters, stride, 1)) if stride > 1 else None)

    stages = [(16, 1)] * 3 + [(32, 2)] + [(32, 1)] * 2 + [(64, 2)] + [(64, 1)] * 2
    layers = [*conv(16), nn.ReLU(), *(block(*stage) for stage in stages), nn.GlobalAveragePool2D(), nn.Dense(10)]
    return nn.Sequential([nn.Standardize(), *layers], (32, 32, 3))


def cnn():
    layers = [nn.Conv2D(8, activation="relu"), nn.BatchNorm(), nn.MaxPool2D(3, 2, 1), nn.Conv2D(6), nn.PReLU()]
    return nn.Sequential([*layers, nn.Flatten(), nn.LayerNorm(), nn.Dense(10), nn.Softmax()], (9, 7, 3))


def mlp():
    return nn.Sequential(
        [nn.Standardize(), nn.Dense(16), nn.BatchNorm(), nn.GELU(), nn.Dropout(0.5), nn.Dense(3)], (6,)
    )


@pytest.mark.parametrize("make", [mlp, cnn, resnet])
@pytest.mark.parametrize("n", [1, 4])
def test_whole_models(make, n, rng):
    model = make()
    for name, array in (model.params | model.state).items():
        if array.ndim == 1:
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        assert name
    check(model, rng, n)


def test_channels_move_only_where_they_must():
    layers = [nn.Conv2D(4), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.Conv2D(4), nn.GlobalAveragePool2D()]
    kinds = [node.op_type for node in fastopt.onnx.export(nn.Sequential(layers, (8, 8, 3))).graph.node]
    assert kinds.count("Transpose") == 1


def test_a_file(rng, tmp_path):
    model = mlp()
    proto = fastopt.onnx.export(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == proto
    (given,), (made,) = proto.graph.input, proto.graph.output
    assert [given.name, made.name] == ["x", "y"]
    assert [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim] == ["n", 6]


def test_double(rng):
    model = nn.Sequential([nn.Dense(4, activation="relu"), nn.BatchNorm(), nn.Dense(2)], (3,), dtype=np.float64)
    check(alive(model, rng), rng)


class Own(nn.Layer, loadable=False):
    def forward(self, x, *, training=False, counter=0):
        return x, None


def test_refusals(tmp_path):
    inner = nn.Sequential([nn.Dense(3), nn.Residual(nn.Sequential([Own()]))], (3,))
    with pytest.raises(ValueError, match=r"layers\[1\].body.layers\[0\] must be a layer that ONNX has, got Own\(\)"):
        fastopt.onnx.export(inner, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    with pytest.raises(TypeError, match="model must be a Sequential, got Dense"):
        fastopt.onnx.export(nn.Dense(3))
    with pytest.raises(ValueError, match="must have an input_shape"):
        fastopt.onnx.export(nn.Sequential([nn.Dense(3)]))
