"""Every layer of fastopt.nn by itself: gradients, shapes, configurations, caches."""

import copy
import json

import numpy as np
import pytest
from finite_differences import check_gradients

from fastopt import nn, reference
from fastopt.nn.memory import Workspace
from fastopt.nn.model import decode, encode

#: Layers, and the shape of an input to each.
CASES = [
    (nn.Dense(5), (7,)),
    (nn.Dense(5, activation="relu", init="xavier"), (7,)),
    (nn.Conv2D(4), (5, 6, 3)),
    (nn.Conv2D(3, size=(2, 3), stride=(2, 1), padding=(1, 0), activation="relu"), (5, 4, 2)),
    (nn.Conv2D(2, size=1, stride=3, padding="valid", init="xavier"), (4, 7, 2)),
    (nn.Conv2D(2, size=(4, 2), activation="relu"), (3, 5, 1)),
    (nn.Conv2D(2, dilation=2, activation="relu"), (5, 6, 2)),
    (nn.Conv2D(2, size=(2, 3), stride=2, padding=2, dilation=(1, 3)), (4, 5, 1)),
    (nn.Conv2D(6, groups=3, size=(3, 2), activation="relu"), (4, 4, 6)),
    (nn.Conv2D(4, groups=4, stride=2), (5, 4, 4)),
    (nn.Conv2D(4, groups=2, padding=1, dilation=(2, 1)), (5, 4, 2)),
    (nn.MaxPool2D(), (5, 4, 3)),
    (nn.MaxPool2D(size=(3, 2), stride=(1, 1)), (5, 4, 2)),
    (nn.MaxPool2D(2, stride=3), (6, 7, 2)),
    (nn.Flatten(), (3, 4, 2)),
    (nn.Flatten(), (6,)),
    (nn.ReLU(), (9,)),
    (nn.ReLU(), (3, 2, 4)),
    (nn.Dropout(0.4), (70,)),
    (nn.Dropout(0.4, p_is="keep"), (3, 5, 5)),
    (nn.BatchNorm(), (6,)),
    (nn.BatchNorm(eps=0.01, momentum=0.9, momentum_of="old", unbiased=False), (3, 4, 2)),
    *(
        (layer, shape)
        for shape in ((9,), (3, 2, 4))
        for layer in (
            nn.LeakyReLU(),
            nn.LeakyReLU(slope=0.3),
            nn.ELU(),
            nn.ELU(alpha=0.7),
            nn.GELU(),
            nn.GELU("tanh"),
            nn.SiLU(),
            nn.Tanh(),
            nn.Sigmoid(),
            nn.Softplus(),
            nn.Softmax(),
        )
    ),
    (nn.AveragePool2D(), (5, 4, 3)),
    (nn.AveragePool2D(size=(3, 2), stride=(1, 1)), (5, 4, 2)),
    (nn.GlobalAveragePool2D(), (3, 4, 5)),
    (nn.VanillaDropout(0.4), (70,)),
    (nn.VanillaDropout(0.4, p_is="keep"), (3, 5, 5)),
    (nn.SpatialDropout(0.4), (3, 4, 20)),
    (nn.Embedding(7, 3), (5,)),
    (nn.Embedding(5, 2, init="he"), (2, 3)),
    (nn.LayerNorm(), (6,)),
    (nn.LayerNorm(eps=0.01), (3, 2, 4)),
    (nn.LayerNorm(axes=3), (3, 2, 4)),
    (nn.LayerNorm(axes=2), (3, 2, 4)),
    (nn.GroupNorm(3), (6,)),
    (nn.GroupNorm(2, eps=0.01), (3, 2, 4)),
    (nn.InstanceNorm(), (3, 2, 4)),
    (nn.WeightNorm(nn.Dense(3, activation="relu")), (5,)),
    (nn.WeightNorm(nn.Conv2D(4, size=(3, 2), stride=2, groups=2)), (4, 5, 2)),
    (nn.DecorrelatedBatchNorm(), (3,)),
    (nn.DecorrelatedBatchNorm(2, eps=0.01, momentum=0.3), (4,)),
    (nn.DecorrelatedBatchNorm(size=2), (3, 2, 4)),
    (nn.Residual(nn.Dense(4, init=nn.Orthogonal(2.0))), (4,)),
    (
        nn.Residual(
            nn.Sequential([nn.Conv2D(3), nn.ReLU(), nn.Dropout(0.2)]), nn.Conv2D(3, size=1, bias_init=0.5), None
        ),
        (3, 2, 2),
    ),
    (nn.Residual(nn.Dropout(0.3), nn.Dropout(0.3)), (30,)),
    (nn.Dense(3, init=nn.Xavier("in", "uniform"), bias_init=[0.1, 0.2, 0.3]), (4,)),
    (nn.Sequential([nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Dense(3)]), (5,)),
    (nn.Sequential([nn.Conv2D(2), nn.Sequential([nn.ReLU(), nn.MaxPool2D()]), nn.Flatten()]), (4, 5, 2)),
]
N = 4


def inputs(layer, rng, *shape):
    """Inputs that a layer takes: of an embedding, whole numbers."""
    if isinstance(layer, nn.Embedding):
        return rng.integers(layer.entries, size=shape).astype(np.float64)
    return rng.normal(size=shape)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]!r}-{case[1]}")
def case(request, rng):
    """A layer, built in float64 with no parameter at a special value, and its input shape."""
    layer, shape = copy.deepcopy(request.param)
    layer.build(shape, rng, np.dtype(np.float64))
    for param in layer.params.values():
        param[...] = rng.normal(size=param.shape)
    return layer, shape


def test_every_layer_class_has_a_case():
    ours = {name for name, cls in nn.Layer.classes.items() if cls.__module__.startswith("fastopt.")}
    assert {name for name in ours if name[0] != "_"} - {"Composite"} == {type(layer).__name__ for layer, _ in CASES}


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


def test_a_workspace_changes_no_bit(case, rng, same_bits):
    """Results are those in fresh memory, and lie in the same arrays in each pass."""
    layer, shape = case
    memory = Workspace({name: np.full_like(param, np.nan) for name, param in layer.params.items()})
    places = []
    for counter in range(3):
        x, dy = inputs(layer, rng, N, *shape), rng.normal(size=(N, *layer.output_shape(shape)))
        passes = []
        for given in ({}, {"memory": memory}):
            state = copy.deepcopy(layer.state)
            y, cache = layer.forward(x, training=True, counter=counter, **given)
            passes.append((y, *layer.backward(dy, cache, **given)))
            if not given:
                for name, array in state.items():
                    layer.state[name][...] = array
        (y, dx, grads), (own_y, own_dx, own_grads) = passes
        same_bits(own_y, y)
        same_bits(own_dx, dx)
        assert set(own_grads) == set(grads)
        for name, grad in grads.items():
            same_bits(own_grads[name], grad)
        places.append([a.__array_interface__["data"][0] for a in own_grads.values()])
    assert places[0] == places[1] == places[2]
    assert all(memory.grad(name, param) is own_grads[name] for name, param in layer.params.items())


def test_configuration_makes_the_same_layer(case):
    layer, shape = case
    described = json.dumps(encode(layer, []))
    for twin in (decode(json.loads(described), []), eval(repr(layer), vars(nn))):
        assert type(twin) is type(layer)
        assert json.dumps(encode(twin, [])) == described
        assert twin.output_shape(shape) == layer.output_shape(shape)


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
        (lambda: nn.MaxPool2D(0), "size must be at least 1"),
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
