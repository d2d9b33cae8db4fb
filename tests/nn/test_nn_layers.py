"""Every layer of fastopt.nn by itself: gradients, shapes, configurations, caches."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from finite_differences import check_gradients

import fastopt
from fastopt import cases, environment, functional, nn, reference
from fastopt.nn.model import decode, encode

N = 4


def inputs(layer, rng, *shape):
    """Inputs that a layer takes: of an embedding, whole numbers."""
    if isinstance(layer, nn.Embedding):
        return rng.integers(layer.entries, size=shape).astype(np.float64)
    return rng.normal(size=shape)


@pytest.fixture(params=cases.NN, ids=lambda case: f"{case[0]!r}-{case[1]}")
def case(request, rng):
    """A layer, built in float64 with no parameter at a special value, and its input shape."""
    layer, shape = copy.deepcopy(request.param[:2])
    layer.build(shape, rng, np.dtype(np.float64))
    for param in layer.params.values():
        param[...] = rng.normal(size=param.shape)
    return layer, shape


def test_every_layer_class_has_a_case():
    ours = {name for name, cls in nn.Layer.classes.items() if cls.__module__.startswith("fastopt.")}
    assert {name for name in ours if name[0] != "_"} - {"Composite"} == {type(layer).__name__ for layer, *_ in cases.NN}


def test_gradients(case, rng):
    layer, shape = case
    x = inputs(layer, rng, N, *shape)
    weights = rng.normal(size=(N, *layer.output_shape(shape)))

    def loss():
        return float((layer.forward(x, training=True, counter=3)[0] * weights).sum())

    dx, grads = layer.backward(weights, layer.forward(x, training=True, counter=3)[1])
    if isinstance(layer, nn.Embedding):
        assert dx.shape == x.shape
        assert not dx.any()
        check_gradients(loss, layer.params, grads)
    else:
        check_gradients(loss, {"x": x, **layer.params}, {"x": dx, **grads})


@pytest.mark.parametrize("training", [False, True])
def test_output_shape_is_that_of_forward(case, training, rng):
    layer, shape = case
    y, _ = layer.forward(inputs(layer, rng, N, *shape), training=training)
    assert y.shape == (N, *layer.output_shape(shape))


def test_caches_are_independent(case, rng, same_bits):
    """Two passes may be under way at once; inputs and gradients are left as they are."""
    layer, shape = case
    xs = [inputs(layer, rng, N, *shape) for _ in range(2)]
    dys = [rng.normal(size=(N, *layer.output_shape(shape))) for _ in range(2)]
    given = copy.deepcopy((xs, dys))

    def forward(i):
        return layer.forward(xs[i], training=True, counter=i)[1]

    alone = [layer.backward(dys[i], forward(i)) for i in range(2)]
    for order in ([0, 1], [1, 0]):
        caches = [forward(0), forward(1)]
        for i in order:
            dx, grads = layer.backward(dys[i], caches[i])
            same_bits(dx, alone[i][0])
            assert set(grads) == set(layer.params)
            for name, grad in grads.items():
                same_bits(grad, alone[i][1][name])
    for now, before in zip([*xs, *dys], [*given[0], *given[1]], strict=True):
        same_bits(now, before)


def test_in_float32(case, rng):
    """The same numbers, but for rounding, in the same type throughout."""
    layer, shape = case
    single = decode(json.loads(json.dumps(encode(layer, []))), [])
    single.build(shape, rng, np.dtype(np.float32))
    for one, other in zip(single.walk(), layer.walk(), strict=True):
        for mine, given in ((one.params, other.params), (one.state, other.state)):
            for name, array in mine.items():
                array[...] = given[name]
        if isinstance(one, nn.Dropout):
            one.seed = other.seed
    x = inputs(layer, rng, N, *shape).astype(np.float32).astype(np.float64)
    dy = rng.normal(size=(N, *layer.output_shape(shape)))
    y, cache = layer.forward(x, training=True, counter=3)
    wanted = [y, *(values for _, values in sorted(layer.backward(dy, cache)[1].items()))]
    y, cache = single.forward(x.astype(np.float32), training=True, counter=3)
    dx, grads = single.backward(dy.astype(np.float32), cache)
    assert dx.dtype == np.float32
    assert all(a.dtype == np.float32 for a in (*single.params.values(), *single.state.values()))
    for actual, expected in zip([y, *(values for _, values in sorted(grads.items()))], wanted, strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_files_hold_every_layer(case, rng, tmp_path, same_bits):
    layer, shape = case
    model = nn.Sequential([copy.deepcopy(layer)], shape, dtype=np.float64)
    for array in (*model.params.values(), *model.state.values()):
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    model.save(tmp_path / "model.npz")
    loaded = nn.load(tmp_path / "model.npz")
    assert repr(loaded) == repr(model)
    x = inputs(layer, rng, N, *shape)
    same_bits(loaded.predict(x), model.predict(x))
    for name, array in (model.params | model.state).items():
        same_bits((loaded.params | loaded.state)[name], array)


def test_configuration_makes_the_same_layer(case):
    layer, shape = case
    described = json.dumps(encode(layer, []))
    for twin in (decode(json.loads(described), []), eval(repr(layer), vars(nn))):
        assert type(twin) is type(layer)
        assert json.dumps(encode(twin, [])) == described
        assert twin.output_shape(shape) == layer.output_shape(shape)


@pytest.mark.parametrize(
    "code",
    [
        "Dense(5)",
        "Dense(5, activation='relu', init='xavier', bias_init=0.5)",
        "Dense(2, init=Orthogonal(gain=2.0), bias_init=[1.0, 2.0])",
        "Conv2D(4)",
        "Conv2D(4, size=(2, 3), stride=(2, 1), padding=(0, 0), dilation=(2, 2), groups=2)",
        "MaxPool2D()",
        "AveragePool2D(size=(3, 3), stride=(1, 1))",
        "Dropout(0.5)",
        "GroupNorm(4, eps=0.01)",
        "WeightNorm(Dense(3))",
        "Residual(Conv2D(8), shortcut=Conv2D(8, size=(1, 1)), activation=None)",
        "Flatten()",
    ],
)
def test_repr_reads_like_the_code(code):
    assert repr(eval(code, vars(nn).copy())) == code


def test_initial_weights_have_the_declared_variance(rng):
    for init, fans in (("he", lambda i, o: 2 / i), ("xavier", lambda i, o: 2 / (i + o))):
        for layer, shape, fan_in, fan_out in (
            (nn.Dense(300, init=init), (200,), 200, 300),
            (nn.Conv2D(64, 3, init=init), (8, 8, 32), 288, 576),
        ):
            layer.build(shape, rng, np.dtype(np.float32))
            assert layer.params["weight"].var() == pytest.approx(fans(fan_in, fan_out), rel=0.05)
            assert abs(layer.params["weight"].mean()) < 0.01
            assert not layer.params["bias"].any()


def test_same_padding_keeps_the_shape_of_odd_kernels():
    assert nn.Conv2D(7, (3, 5)).output_shape((6, 9, 2)) == (6, 9, 7)


def test_a_layer_is_built_once(rng):
    layer = nn.Dense(3)
    layer.build((4,), rng, np.dtype(np.float32))
    weight = layer.params["weight"]
    layer.build((4,), rng, np.dtype(np.float32))
    assert layer.params["weight"] is weight
    with pytest.raises(ValueError, match=r"built for inputs of shape \(4,\), got \(5,\)"):
        layer.build((5,), rng, np.dtype(np.float32))
    with pytest.raises(ValueError, match="built for float32, got float64"):
        layer.build((4,), rng, np.dtype(np.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Dense(0), "units must be at least 1, got 0"),
        (lambda: nn.Dense(2.5), "units must be an integer"),
        (lambda: nn.Dense(2, activation="tanh"), "activation must be one of 'relu'"),
        (lambda: nn.Conv2D(2, size=(3, 3, 3)), "size must be one integer or a pair"),
        (lambda: nn.Conv2D(2, padding="full"), "padding must be one of 'same', 'valid'"),
        (lambda: nn.Conv2D(2, stride=0), "stride must be at least 1"),
        (lambda: nn.Conv2D(2, dilation=0), "dilation must be at least 1"),
        (lambda: nn.Conv2D(4, groups=3), "groups must divide filters, 4, got 3"),
        (lambda: nn.Sequential([nn.Conv2D(4, groups=2)], (3, 3, 3)), "groups must divide the number of channels, 3"),
        (lambda: nn.LeakyReLU(-0.1), "slope must be in"),
        (lambda: nn.ELU(float("inf")), "alpha must be in"),
        (lambda: nn.GELU("erf"), "approximation must be one of 'tanh'"),
        (lambda: nn.AveragePool2D(0), "size must be at least 1"),
        (lambda: nn.GlobalAveragePool2D().output_shape((3,)), r"takes inputs of shape \(n, h, w, c\), got \(n, 3\)"),
        (lambda: nn.SpatialDropout(0.5).output_shape((3,)), r"takes inputs of shape \(n, h, w, c\), got \(n, 3\)"),
        (lambda: nn.VanillaDropout(1.0), r"p must be in \[0, 1\)"),
        (lambda: nn.Embedding(0, 3), "entries must be at least 1"),
        (lambda: nn.Sequential([nn.Embedding(2**24 + 1, 1)], (3,)), "entries must be at most 16777216"),
        (lambda: nn.LayerNorm(axes=0), "axes must be at least 1"),
        (lambda: nn.Sequential([nn.LayerNorm(axes=2)], (3,)), "axes must be at most 1, got 2"),
        (lambda: nn.Sequential([nn.GroupNorm(3)], (4,)), "groups must divide the number of channels, 4, got 3"),
        (lambda: nn.WeightNorm(nn.ReLU()), "layer must be Dense or Conv2D, got ReLU"),
        (lambda: nn.Sequential([nn.WeightNorm(nn.Dense(2, init="zeros"))], (3,)), "must give no output "),
        (lambda: nn.DecorrelatedBatchNorm(eps=0), r"eps must be in \(0, inf\)"),
        (lambda: nn.Sequential([nn.DecorrelatedBatchNorm(3)], (4,)), "size must divide the number of channels, 4"),
        (lambda: nn.Residual(nn.ReLU), "body must be a Layer, got type"),
        (lambda: nn.Residual(nn.ReLU(), activation="tanh"), "activation must be one of 'relu'"),
        (lambda: nn.Sequential([nn.Residual(nn.Dense(2))], (3,)), r"outputs of one shape, got \(2,\) and \(3,\)"),
        (lambda: nn.MaxPool2D(0), "size must be at least 1"),
        (lambda: nn.MaxPool2D(2, padding=2), r"padding must be less than size, \(2, 2\), got 2"),
        (lambda: nn.AveragePool2D(2, padding="full"), "padding must be one of 'same', 'valid'"),
        (lambda: nn.AveragePool2D(2, count_padding=1), "count_padding must be True or False"),
        (lambda: nn.Sequential([nn.GlobalMaxPool2D()], (3,)), r"takes inputs of shape \(n, h, w, c\), got \(n, 3\)"),
        (lambda: nn.ZeroPadding2D(-1), "padding must be at least 0"),
        (lambda: nn.ZeroPadding2D((1, 2, 3)), "padding must be an integer, a pair"),
        (lambda: nn.Reshape(4), r"shape must be a sequence of int, got 4: write \(4,\)"),
        (lambda: nn.Reshape((-1, -1)), "and -1 at most once"),
        (lambda: nn.Sequential([nn.Reshape((3, -1))], (4,)), r"shape must hold the 4 numbers of an input \(4,\)"),
        (lambda: nn.Conv1D(2, (3, 3)), "size must be an integer"),
        (lambda: nn.Conv1D(4, groups=3), "groups must divide filters, 4, got 3"),
        (lambda: nn.Sequential([nn.Conv1D(2)], (3,)), r"Conv1D takes inputs of shape \(n, length, c\), got \(n, 3\)"),
        (lambda: nn.Conv2DTranspose(2, output_padding=1), r"output_padding must be less than stride, \(1, 1\), got 1"),
        (lambda: nn.Sequential([nn.Conv2DTranspose(2, 1, padding=2)], (3, 3, 1)), "must leave something of the output"),
        (lambda: nn.PReLU(float("nan")), "initial must be in"),
        (lambda: nn.Dropout(1.0), r"p must be in \[0, 1\), got 1.0"),
        (lambda: nn.Dropout(0.0, p_is="keep"), r"p must be in \(0, 1\], got 0.0"),
        (lambda: nn.BatchNorm(eps=-1), "eps must be in"),
        (lambda: nn.BatchNorm(momentum=float("nan")), "momentum must be in"),
        (lambda: nn.BatchNorm(momentum_of="both"), "momentum_of must be one of"),
        (lambda: nn.Sequential([nn.Dense(2)], (3, 4)), r"Dense takes inputs of shape \(n, d\), got \(n, 3, 4\)"),
        (lambda: nn.Sequential([nn.Dense(2, init="zero")], (3,)), "init must be one of"),
        (lambda: nn.Sequential([nn.Conv2D(2)], (3,)), r"Conv2D takes inputs of shape \(n, h, w, c\), got \(n, 3\)"),
        (lambda: nn.Sequential([nn.MaxPool2D(4)], (3, 3, 1)), "size must be at most that of the padded image"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_dropout_counts(rng, same_bits):
    layer = nn.Dropout(0.25)
    layer.build((1000,), rng, np.dtype(np.float64))
    x = np.ones((2, 1000))
    first, again, other = (layer.forward(x, training=True, counter=counter)[0] for counter in (0, 0, 1))
    same_bits(first, again)
    assert (first != other).any()
    assert set(np.unique(first)) == {0.0, 1 / 0.75}
    assert 0.7 < (first != 0).mean() < 0.8
    y, cache = layer.forward(x)
    same_bits(y, x)
    same_bits(layer.backward(x, cache)[0], x)


@pytest.mark.parametrize("options", [{}, {"eps": 0.5, "momentum": 0.8, "momentum_of": "old", "unbiased": False}])
def test_batch_norm_keeps_running_statistics(options, rng, close):
    layer = nn.BatchNorm(**options)
    layer.build((2, 4, 3), rng, np.dtype(np.float64))
    x = rng.normal(2, 3, (5, 2, 4, 3))
    rows = x.reshape(-1, 3)
    wanted, _, mean, var = reference.batch_norm_forward(
        rows, running_mean=np.zeros(3), running_var=np.ones(3), **options
    )
    close(layer.forward(x, training=True)[0].reshape(-1, 3), wanted)
    close(layer.state["running_mean"], mean)
    close(layer.state["running_var"], var)
    y, cache = layer.forward(x)
    close(y, (x - mean) / np.sqrt(var + layer.eps))
    with pytest.raises(ValueError, match="needs the cache of"):
        layer.backward(y, cache)


@pytest.mark.parametrize("x", [[[-1.0]], [[7.0]], [[np.nan]], [[0.5]]])
def test_embedding_of_what_is_no_entry(x, rng):
    layer = nn.Embedding(7, 3)
    layer.build((1,), rng, np.dtype(np.float64))
    with pytest.raises(ValueError, match="inputs of Embedding must be "):
        layer.forward(np.array(x))


# ---- References -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"), [case[:2] for case in cases.NN if type(case[0]) is nn.Conv2D], ids=lambda value: repr(value)
)
def test_convolution_is_the_reference(layer, shape, rng, close):
    layer = copy.deepcopy(layer)
    layer.build(shape, rng, np.dtype(np.float64))
    x = rng.normal(size=(N, *shape))
    how = layer.stride, layer.padding, layer.dilation, layer.groups
    wanted = reference.conv2d_forward(x, layer.params["weight"], layer.params["bias"], *how)
    close(layer.forward(x)[0], np.maximum(wanted, 0) if layer.activation else wanted)


def test_weight_norm_is_the_reference(rng, close):
    layer = nn.WeightNorm(nn.Conv2D(4))
    layer.build((5, 5, 3), rng, np.dtype(np.float64))
    for param in layer.params.values():
        param[...] = rng.normal(size=param.shape)
    x, dy = rng.normal(size=(N, 5, 5, 3)), rng.normal(size=(N, 5, 5, 4))
    plain = nn.Conv2D(4)
    plain.build((5, 5, 3), rng, np.dtype(np.float64))
    learnt = layer.params["direction"], layer.params["gain"]
    plain.params["weight"][...] = reference.weight_norm_forward(*learnt)
    plain.params["bias"][...] = layer.params["layer.bias"]
    (y, cache), (wanted, plain_cache) = layer.forward(x), plain.forward(x)
    close(y, wanted)
    (dx, grads), (wanted, plain_grads) = layer.backward(dy, cache), plain.backward(dy, plain_cache)
    close(dx, wanted)
    ddirection, dgain = reference.weight_norm_backward(plain_grads["weight"], *learnt)
    close(grads["direction"], ddirection)
    close(grads["gain"], dgain)


def test_decorrelated_batch_norm_is_the_reference(rng, close):
    layer = nn.DecorrelatedBatchNorm(3, eps=0.01, momentum=1.0)
    layer.build((2, 2, 6), rng, np.dtype(np.float64))
    for param in layer.params.values():
        param[...] = rng.normal(size=param.shape)
    x = rng.normal(size=(10, 2, 2, 6)) @ rng.normal(size=(6, 6)) + 2
    y, mean, whitening = reference.decorrelated_batch_norm_forward(x, 3, *layer.params.values(), eps=0.01)
    close(layer.forward(x, training=True)[0], y)
    close(layer.state["running_mean"], mean)
    close(layer.state["running_whitening"], whitening)


# ---- Products -------------------------------------------------------------------------------------------


def dense_layer(rng, weight):
    layer = nn.Dense(5, "relu")
    layer.build((7,), rng, np.dtype(np.float64))
    layer.params["weight"] = weight
    return layer


def passes(layer, x, dy):
    y, cache = layer.forward(x, training=True)
    dx, grads = layer.backward(dy, cache)
    return y, dx, grads["weight"], grads["bias"]


def test_dense_layers_take_transposed_arrays(rng, same_bits):
    """Such as a weight that is another one's transpose."""
    x, weight, dy = rng.normal(size=(7, 6)).T, rng.normal(size=(5, 7)).T, rng.normal(size=(6, 5))
    ours = passes(dense_layer(rng, weight), x, dy)
    plain = passes(dense_layer(rng, weight.copy()), x.copy(), dy)
    for actual, expected in zip(ours, plain, strict=True):
        same_bits(actual, expected)


def test_products_of_a_blas(rng, monkeypatch, close):
    x, weight, dy = rng.normal(size=(6, 7)), rng.normal(size=(7, 5)), rng.normal(size=(6, 5))
    ours = passes(dense_layer(rng, weight), x, dy)
    monkeypatch.setattr(environment, "PRODUCTS", "blas")
    monkeypatch.setattr(functional, "dense_forward", None)
    for actual, expected in zip(passes(dense_layer(rng, weight), x, dy), ours, strict=True):
        close(actual, expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "error"), [("blas", ""), ("mine", "ImportError: FASTOPT_PRODUCTS: it must be one of")]
)
def test_the_environment_chooses_products(value, error):
    command = [sys.executable, "-P", "-c", "import fastopt.nn; assert fastopt.environment.PRODUCTS == 'blas'"]
    done = subprocess.run(
        command, env=os.environ | {"FASTOPT_PRODUCTS": value}, capture_output=True, text=True, check=False
    )
    assert error in done.stderr
    assert (done.returncode == 0) is (not error)


# ---- Dropouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "p_is"), [(0.3, "drop"), (0.3, "keep"), (0.0, "drop")])
def test_vanilla_dropout_is_inverted_dropout_in_another_scale(p, p_is, rng):
    """By the share kept, in training as in inference."""
    x, dy = rng.normal(size=(2, 50, 40))
    vanilla, inverted = nn.VanillaDropout(p, p_is), nn.Dropout(p, p_is)
    vanilla.seed = inverted.seed = 5
    share = functional.kept_share(p, p_is)
    assert share == pytest.approx(p if p_is == "keep" else 1 - p, abs=2**-17)
    for training in (True, False):
        (y, cache), (other, other_cache) = (
            layer.forward(x, training=training, counter=2) for layer in (vanilla, inverted)
        )
        np.testing.assert_allclose(y, share * other, rtol=1e-15)
        dx, other = vanilla.backward(dy, cache)[0], inverted.backward(dy, other_cache)[0]
        np.testing.assert_allclose(dx, share * other, rtol=1e-15)


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.VanillaDropout(0.3), nn.SpatialDropout(0.3)])
def test_scaling_weights_in_inference_gives_the_expectation(layer, rng):
    """The output of a linear layer behind dropout: its mean over many masks is that in inference."""
    layer = copy.deepcopy(layer)
    layer.build((1, 1, 40), rng, np.dtype(np.float64))
    x, weight = rng.normal(size=(1, 1, 1, 40)), rng.normal(size=(40, 5))
    times = 4000
    outputs = np.array([layer.forward(x, training=True, counter=i)[0].ravel() @ weight for i in range(times)])
    error = outputs.mean(axis=0) - layer.forward(x)[0].ravel() @ weight
    assert (np.abs(error) <= 4 * outputs.std(axis=0) / np.sqrt(times)).all()


def test_spatial_dropout_drops_channels(rng):
    layer = nn.SpatialDropout(0.5)
    layer.build((3, 4, 50), rng, np.dtype(np.float64))
    y, _ = layer.forward(np.ones((6, 3, 4, 50)), training=True)
    assert set(np.unique(y)) == {0.0, 2.0}
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert 0.4 < y[:, 0, 0].mean() / 2 < 0.6


# ---- Norms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Dense(5), nn.Conv2D(5, activation="relu")])
def test_weight_norm_begins_as_its_layer(layer, rng, close):
    shape = (4,) if isinstance(layer, nn.Dense) else (4, 4, 3)
    plain, normed = copy.deepcopy(layer), nn.WeightNorm(layer)
    for each in (plain, normed):
        each.build(shape, np.random.default_rng(2), np.dtype(np.float64))
    x = rng.normal(size=(3, *shape))
    close(normed.forward(x)[0], plain.forward(x)[0])
    normed.params["direction"] *= 7  # which has no length that matters
    close(normed.forward(x)[0], plain.forward(x)[0])
    normed.params["gain"] *= 2
    normed.params["layer.bias"][...] = 0
    close(normed.forward(x)[0], 2 * plain.forward(x)[0])


@pytest.mark.parametrize("shape", [(8,), (3, 2, 8)], ids=str)
def test_decorrelated_batch_norm_decorrelates(shape, rng, close):
    layer = nn.DecorrelatedBatchNorm(4, eps=1e-12, momentum=1.0)
    layer.build(shape, rng, np.dtype(np.float64))
    x = 5 + rng.normal(size=(60, *shape)) @ rng.normal(size=(8, 8))
    y, _ = layer.forward(x, training=True)
    rows = y.reshape(-1, 8)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-13)
    covariance = rows.T @ rows / len(rows)
    for group in (slice(0, 4), slice(4, 8)):
        np.testing.assert_allclose(covariance[group, group], np.eye(4), atol=1e-8)
    # ZCA: of all whitenings the one that changes the inputs least, by a symmetric matrix.
    whitening = layer.state["running_whitening"]
    np.testing.assert_allclose(whitening, whitening.swapaxes(1, 2), rtol=1e-9)
    close(layer.forward(x)[0], y, 1e-9)  # the running statistics are those of this batch


def test_decorrelated_batch_norm_keeps_running_statistics(rng, close):
    layer = nn.DecorrelatedBatchNorm(2, momentum=0.25)
    layer.build((2,), rng, np.dtype(np.float64))
    x = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 2)) + 3
    layer.forward(x, training=True)
    close(layer.state["running_mean"], 0.25 * x.mean(axis=0))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True) + 1e-5 * np.eye(2))
    close(layer.state["running_whitening"][0], 0.75 * np.eye(2) + 0.25 * vectors / np.sqrt(values) @ vectors.T)
    y, cache = layer.forward(x)
    with pytest.raises(ValueError, match="needs the cache of"):
        layer.backward(y, cache)


@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3])
def test_decorrelated_batch_norm_with_close_eigenvalues(gap, rng):
    """Where a gradient that divides by differences of eigenvalues has no digit left."""
    layer = nn.DecorrelatedBatchNorm(4, eps=1e-3)
    layer.build((4,), rng, np.dtype(np.float64))
    layer.params["scale"][...] = rng.normal(size=4)
    x = rng.normal(size=(12, 4))
    x -= x.mean(axis=0)
    basis, _ = np.linalg.qr(x)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    x = basis * np.sqrt(12 * (1 + gap * np.arange(4))) @ turn  # whose covariance has these eigenvalues
    values = np.linalg.eigvalsh(x.T @ x / 12)
    np.testing.assert_allclose(values, 1 + gap * np.arange(4), atol=1e-14)
    weights = rng.normal(size=x.shape)

    def loss():
        return float((layer.forward(x, training=True)[0] * weights).sum())

    dx, grads = layer.backward(weights, layer.forward(x, training=True)[1])
    check_gradients(loss, {"x": x, **layer.params}, {"x": dx, **grads})


def test_a_model_of_residual_blocks_learns(rng):
    """Its parameters are named by place, in files and in the optimizer."""

    def block(*shortcut):
        return nn.Residual(nn.Sequential([nn.Conv2D(6), nn.GroupNorm(2), nn.ReLU(), nn.Conv2D(6)]), *shortcut)

    model = nn.Sequential([block(nn.Conv2D(6, 1)), block(), nn.GlobalAveragePool2D(), nn.Dense(3)], (5, 5, 2))
    assert [name for name in model.params if name.startswith("0.shortcut")] == ["0.shortcut.weight", "0.shortcut.bias"]
    x, y = rng.normal(size=(30, 5, 5, 2)), rng.integers(3, size=30)
    before = model.evaluate(x, y)["loss"]
    model.fit(x, y, epochs=30, optimizer=fastopt.Adam(model.params, lr=0.01))
    assert model.evaluate(x, y)["loss"] < 0.7 * before


# ---- Shapes that others have ------------------------------------------------------------------------------


def test_same_pooling_keeps_the_shape_of_odd_windows():
    for kind in (nn.MaxPool2D, nn.AveragePool2D):
        assert kind((3, 5), 1, "same").output_shape((6, 9, 2)) == (6, 9, 2)


def test_a_maximum_never_is_padding(rng, same_bits):
    x = -1 - rng.random((2, 4, 4, 3))
    y, cache = nn.MaxPool2D(3, 2, 1).forward(x)
    assert y.max() < 0
    assert nn.MaxPool2D(3, 2, 1).backward(np.ones_like(y), cache)[0].sum() == y.size


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": "valid", "dilation": 2}])
def test_a_transposed_convolution_is_the_gradient_of_one(options, rng):
    """With the same weight: ⟨conv(x), y⟩ = ⟨x, transposed(y)⟩, but for the biases, which are 0."""
    conv, other = nn.Conv2D(4, 3, **options), nn.Conv2DTranspose(2, 3, **options)
    conv.build((9, 7, 2), rng, np.dtype(np.float64))
    small = conv.output_shape((9, 7, 2))
    other.build(small, rng, np.dtype(np.float64))
    other.params["weight"] = conv.params["weight"]
    x, y = rng.normal(size=(3, 9, 7, 2)), rng.normal(size=(3, *small))
    large = other.forward(y)[0]
    assert large.shape == x.shape
    assert np.vdot(conv.forward(x)[0], y) == pytest.approx(np.vdot(x, large))


def test_initial_transposed_weights_keep_the_variance(rng):
    layer = nn.Conv2DTranspose(64, 4, stride=2, padding=1)
    layer.build((8, 8, 32), rng, np.dtype(np.float64))
    y = layer.forward(np.maximum(rng.normal(size=(8, 8, 8, 32)), 0))[0][:, 2:-2, 2:-2]
    assert y.var() == pytest.approx(1, rel=0.15)


def test_batch_norm_is_fused_with_pools_without_padding_alone():
    for padding, fused in (("valid", True), ("same", False)):
        pool = nn.MaxPool2D(3, padding=padding)
        model = nn.Sequential([nn.BatchNorm(), nn.ReLU(), pool], (6, 6, 4))
        assert ("max_pool_forward " in str(model.compile(2)).replace("batch_norm_max_pool_forward", "")) != fused
