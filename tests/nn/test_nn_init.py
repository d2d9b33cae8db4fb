"""Initial weights: variances, structure, files; layer-sequential unit variance."""

import numpy as np
import pytest

from fastopt import nn
from fastopt.nn import init

FANS = 120, 200


def drawn(how, shape=FANS, fans=FANS, seed=1):
    return init.weight(how, shape, *fans, np.random.default_rng(seed), np.dtype(np.float64))


#: What the variance is, by fan-in and fan-out.
VARIANCES = {
    "zeros": lambda i, o: 0,
    "small": lambda i, o: 1e-4,
    "large": lambda i, o: 1,
    "xavier": lambda i, o: 2 / (i + o),
    "xavier_in": lambda i, o: 1 / i,
    "xavier_uniform": lambda i, o: 2 / (i + o),
    "he": lambda i, o: 2 / i,
    "he_out": lambda i, o: 2 / o,
    "he_uniform": lambda i, o: 2 / i,
    "sparse": lambda i, o: 15 / i,
    "orthogonal": lambda i, o: 1 / max(i, o),
}


@pytest.mark.parametrize("name", init.INITIALIZERS)
def test_variances(name):
    weight = drawn(name)
    wanted = VARIANCES[name](*FANS)
    assert weight.shape == FANS
    assert weight.var() == pytest.approx(wanted, rel=0.1)
    assert abs(weight.mean()) <= 0.03 * np.sqrt(wanted)
    if name.endswith("uniform"):
        assert np.abs(weight).max() == pytest.approx(np.sqrt(3 * wanted), rel=1e-2)
        assert np.abs(weight).max() <= np.sqrt(3 * wanted)


@pytest.mark.parametrize("name", init.INITIALIZERS)
def test_a_name_is_its_object(name, same_bits):
    same_bits(drawn(name), drawn(init.INITIALIZERS[name]))
    assert repr(eval(repr(init.INITIALIZERS[name]), vars(nn))) == repr(init.INITIALIZERS[name])


def test_dense_and_convolution_have_their_fans(rng):
    for layer, shape, fan_in, fan_out in (
        (nn.Dense(300, init="he_out"), (200,), 200, 300),
        (nn.Conv2D(64, 3, init="he_out"), (8, 8, 32), 288, 576),
        (nn.Conv2D(64, 3, init="he_out", groups=4), (8, 8, 32), 72, 144),
    ):
        layer.build(shape, rng, np.dtype(np.float32))
        assert layer.params["weight"].var() == pytest.approx(2 / fan_out, rel=0.05)
        other = type(layer)(**layer.config() | {"init": "xavier_in"})
        other.build(shape, rng, np.dtype(np.float32))
        assert other.params["weight"].var() == pytest.approx(1 / fan_in, rel=0.05)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (3, 3, 4, 10), (1, 1, 4, 10)], ids=str)
def test_orthogonal(shape):
    weight = drawn(init.Orthogonal(gain=2.0), shape).reshape(-1, shape[-1])
    small = weight if weight.shape[0] >= weight.shape[1] else weight.T
    np.testing.assert_allclose(small.T @ small, 4 * np.eye(small.shape[1]), atol=1e-12)


def test_sparse():
    weight = drawn(init.Sparse(count=7, std=0.5))
    assert ((weight != 0).sum(axis=0) == 7).all()
    assert weight[weight != 0].std() == pytest.approx(0.5, rel=0.05)
    assert len({tuple(np.flatnonzero(column)) for column in weight.T}) == FANS[1]
    assert (drawn("sparse", (3, 2, 4)) != 0).all()


def test_biases(rng):
    for bias, wanted in ((0.5, [0.5] * 3), ([1, 2, 3.5], [1, 2, 3.5]), (np.array([1, 0, 2]), [1, 0, 2])):
        for layer, shape in ((nn.Dense(3, bias_init=bias), (2,)), (nn.Conv2D(3, bias_init=bias), (2, 2, 1))):
            layer.build(shape, rng, np.dtype(np.float32))
            np.testing.assert_array_equal(layer.params["bias"], np.array(wanted, np.float32))


def test_a_function_of_your_own(tmp_path):
    model = nn.Sequential([nn.Dense(3, init=lambda shape, fan_in, fan_out, rng: np.full(shape, fan_in))], (2,))
    assert (model.params["0.weight"] == 2).all()
    with pytest.raises(TypeError, match="function"):
        model.save(tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


def test_objects_in_files(tmp_path):
    layers = [nn.Dense(4, init=nn.Orthogonal(gain=1.5)), nn.Dense(2, init=nn.He("out", "uniform"), bias_init=[1, 2])]
    model = nn.Sequential(layers, (3,))
    model.save(tmp_path / "model.npz")
    assert repr(nn.load(tmp_path / "model.npz")) == repr(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Dense(2, init="xavier_out"), "init must be one of 'zeros', 'small'"),
        (lambda: nn.Dense(2, init=None), "init must be one of"),
        (lambda: nn.Dense(2, bias_init=[1, 2, 3]), "bias_init must hold 2 numbers, got 3"),
        (lambda: nn.Dense(2, bias_init="zeros"), "bias_init must be a number"),
        (lambda: nn.Conv2D(2, bias_init=[0, np.nan]), "bias_init must be in"),
        (lambda: nn.Xavier(fan="out"), "fan must be one of 'average', 'in'"),
        (lambda: nn.He(distribution="flat"), "distribution must be one of 'normal', 'uniform'"),
        (lambda: nn.Sparse(0), "count must be at least 1"),
        (lambda: nn.Normal(-1), "std must be in"),
        (lambda: drawn(lambda *a: np.zeros(3)), r"init must draw an array of shape \(120, 200\), got \(3,\)"),
    ],
)
def test_refusals(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


# ---- LSUV -----------------------------------------------------------------------------------------------


def deep(dtype=np.float64):
    """Dense and convolutional layers at several depths, some of them in parts."""
    block = nn.Sequential([nn.Conv2D(6), nn.BatchNorm(), nn.Tanh(), nn.Conv2D(6, init="large")])
    layers = [nn.Conv2D(6, activation="relu", init="small"), nn.Residual(block, nn.Conv2D(6, 1)), nn.MaxPool2D()]
    layers += [nn.Flatten(), nn.Dense(30, activation="relu"), nn.Dropout(0.5), nn.Dense(5, init="large")]
    return nn.Sequential(layers, (6, 6, 2), dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lsuv(dtype, rng, same_bits):
    model = deep(dtype)
    before = {name: a.copy() for name, a in (model.params | model.state).items()}
    x = 3 + 7 * rng.normal(size=(200, 6, 6, 2))
    ends = nn.lsuv(model, x, tolerance=0.01)
    assert list(ends) == [name for name in model.params if name.endswith("weight")]
    assert all(abs(variance - 1) <= 0.01 for variance in ends.values())
    for name, array in (model.params | model.state).items():
        if name in ends:
            assert (array != before[name]).any()
        else:
            same_bits(array, before[name])
    output, _ = model.forward(model.inputs("x", x), training=False)
    assert output.shape == (200, 5)
    # The first convolution sees the inputs as they are.
    bare = nn.Conv2D(6)
    bare.params = model.layers[0].params
    assert bare.forward(model.inputs("x", x))[0].var() == pytest.approx(1, abs=0.01)
    weight = model.params["0.weight"].reshape(-1, 6)
    np.testing.assert_allclose(weight.T @ weight, (weight[:, 0] @ weight[:, 0]) * np.eye(6), atol=1e-5)


def test_lsuv_is_repeatable_and_leaves_no_trace(rng, same_bits):
    x = rng.normal(size=(50, 6, 6, 2))
    models = [deep() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        nn.lsuv(model, x, seed=seed)
        assert not any("forward" in vars(layer) for layer in model.walk())
    for name, array in models[0].params.items():
        same_bits(array, models[1].params[name])
    assert (models[0].params["0.weight"] != models[2].params["0.weight"]).any()


@pytest.mark.parametrize("init", ["he", "small", "large"])
def test_signals_of_a_deep_network(init, rng):
    """Fifty layers of ReLU: only with the variance for it does the signal neither vanish nor explode."""
    layers = [nn.Dense(64, activation="relu", init=init) for _ in range(50)]
    model = nn.Sequential(layers, (64,), dtype=np.float64)
    size = np.abs(model.forward(rng.normal(size=(100, 64)))[0]).mean()
    assert {"he": 0.01 < size < 10, "small": size < 1e-30, "large": size > 1e30}[init]


def test_lsuv_refusals(rng):
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        nn.lsuv(deep(), np.zeros((0, 6, 6, 2)))
    with pytest.raises(ValueError, match="tolerance must be in"):
        nn.lsuv(deep(), rng.normal(size=(4, 6, 6, 2)), tolerance=0)
