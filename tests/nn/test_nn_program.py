"""Programs: what a compiled model computes is what its layers compute one by one, however it is called."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import tracemalloc
import types
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
import pytest

import fastopt
from fastopt import cases, data, environment, nn
from fastopt.nn import lowering, program, trainer
from fastopt.nn.orders import Batches, count_batches
from fastopt.nn.program import Program, Targets
from fastopt.nn.trainer import Steps
from fastopt.optimizers import OPTIMIZERS
from fastopt.schedules import SCHEDULES, Schedule, bind, cosine, exponential, linear, register

N = 6


def compiled(model, x, dy, counter=0):
    """A program of training that ran a pass with `dy` as the gradient of its output, that output, and the gradients."""
    seen = []

    def given(output, targets):
        seen.append(output.copy())
        return 0.0, targets

    made = Program(model, len(x), loss=given, targets=Targets(dy, model.dtype, False))
    made.feed(model.rows("x", x), dy)
    for phase in (0, 1):
        assert made.run_phase(phase, None, 0, counter) == -1
    return made, seen[0], {name: grad.copy() for name, grad in made.grads.items()}


def one_by_one(model, x, dy, counter=0):
    y, cache = model.forward(model.converted(x), training=True, counter=counter)
    return y, model.backward(dy.copy(), cache)[1]


def alive(model, rng):
    """The model with no parameter at a special value."""
    for param in model.params.values():
        param[...] = rng.normal(size=param.shape)
    return model


def inputs(layer, rng, *shape):
    while isinstance(layer, nn.Sequential):
        layer = layer.layers[0]
    return rng.integers(layer.entries, size=shape) if isinstance(layer, nn.Embedding) else rng.normal(size=shape)


def bits(*arrays):
    return [{name: a.tobytes() for name, a in each.items()} for each in arrays]


def names(made):
    """The names in a program's list."""
    return [re.split(r" {2,}", line)[0] for line in str(made).splitlines()]


def by_python(made):
    """What Python calls for layers."""
    lines = str(made).splitlines()
    return [line.split()[0] for line in lines if line.endswith("called by Python") and line.split()[0] != "loss"]


def check_like_layers(model, rng, *, exact, counter=3):
    """Compare a model's programs with its layers, in training and in inference."""
    twin = copy.deepcopy(model)
    x = inputs(model, rng, N, *model.input_shape)
    dy = rng.normal(size=(N, *model.shapes[-1])).astype(model.dtype)
    near = {"rtol": 1e-11, "atol": 1e-12} if model.dtype == np.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for i in (counter, counter + 1):
        expected, wanted = one_by_one(twin, x, dy, i)
        made, y, grads = compiled(model, x, dy, i)
        held = twin.params.held | twin.params.frozen
        assert grads.keys() >= wanted.keys() - held
        for pairs in (({"y": y}, {"y": expected}), (grads, wanted), (model.state, twin.state)):
            for name in pairs[0]:
                if exact:
                    np.testing.assert_array_equal(pairs[0][name], pairs[1][name], name)
                else:
                    np.testing.assert_allclose(pairs[0][name], pairs[1][name], **near, err_msg=name)
    np.testing.assert_allclose(model.predict(x, batch_size=4), twin.forward(twin.converted(x))[0], **near)
    return made


# ---- Layers -------------------------------------------------------------------------------------------------


@pytest.fixture(params=cases.NN, ids=lambda case: f"{case[0]!r}-{case[1]}")
def case(request):
    return copy.deepcopy(request.param[0]), request.param[1]


def fuses(model):
    """Whether a program of the model computes something in another order than the layers do."""
    parts = [*model.walk()]
    relu = any(getattr(layer, "activation", None) for layer in parts)
    direct = any(isinstance(layer, (nn.Conv1D, nn.Conv2D)) and layer.filters % 16 == 0 for layer in parts)
    return (relu and direct) or sum(isinstance(layer, (nn.BatchNorm, nn.Conv2D, nn.Dense)) for layer in parts) > 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_layer_alone(case, dtype, rng):
    layer, shape = case
    model = alive(nn.Sequential([layer], shape, dtype=dtype), rng)
    made = check_like_layers(model, rng, exact=not fuses(model))
    decorrelated = any(isinstance(each, nn.DecorrelatedBatchNorm) for each in model.walk())
    assert bool(by_python(made)) == decorrelated
    assert model.compile(3).native != decorrelated


@pytest.mark.filterwarnings("ignore:x of shape .* looks like:UserWarning")
def test_every_layer_amid_others(case, rng):
    """With a layer before, so that the gradient of its input counts, and one behind."""
    layer, shape = case
    if isinstance(layer, nn.Embedding):
        return
    first = {1: nn.Dense, 2: nn.Conv1D, 3: nn.Conv2D}[len(shape)](shape[-1], **({"size": 1} if shape[1:] else {}))
    model = nn.Sequential([first, layer, nn.Flatten(), nn.Tanh(), nn.Dense(3)], shape, dtype=np.float64)
    made = check_like_layers(alive(model, rng), rng, exact=False)
    assert all(name.startswith("DecorrelatedBatchNorm.") for name in by_python(made))


@pytest.mark.parametrize("products", ["auto", "blas"])
def test_products_of_the_blas(products, rng, monkeypatch):
    monkeypatch.setattr(environment, "PRODUCTS", products)
    kinds = [nn.Dense(5, activation="relu"), nn.Dropout(0.3), nn.Dense(4), nn.Dense(3)]
    model = alive(nn.Sequential(kinds, (4,), dtype=np.float64), rng)
    made = check_like_layers(model, rng, exact=False)
    assert by_python(made) == ([] if products == "auto" else ["matmul"] * 3 + ["<lambda>", "matmul"] * 2 + ["<lambda>"])
    assert model.compile(4).native == (products == "auto")


CNN = [nn.Conv2D(16), nn.ReLU(), nn.MaxPool2D(), nn.Flatten(), nn.Dense(5), nn.ReLU(), nn.Dropout(0.3), nn.Dense(3)]


@pytest.mark.parametrize(
    ("kinds", "training", "inference"),
    [
        (
            [nn.Dense(4), nn.ReLU()],
            "gather dense_forward loss bias_relu_backward dense_weight_grad",
            "gather dense_forward copy",
        ),
        (
            [nn.Dense(4), nn.ReLU(), nn.Dropout(0.5)],
            "gather dense_forward bias_relu_dropout_forward loss bias_relu_backward dense_weight_grad",
            "gather dense_forward copy",
        ),
        (
            [nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.5)],
            "copy copy gather batch_norm_statistics batch_norm_dropout loss batch_norm_backward",
            "gather batch_norm_inference copy",
        ),
        ([nn.Dropout(0.5), nn.ReLU()], "gather dropout_forward relu_forward loss", "gather relu_forward copy"),
        ([nn.Sequential([nn.Dense(4)]), nn.ReLU()], "gather dense_forward relu_forward loss relu_backward "
         "dense_weight_grad", "gather dense_forward relu_forward copy"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_is_fused(kinds, training, inference, rng):
    model = nn.Sequential(copy.deepcopy(kinds), (4,), dtype=np.float64)
    made = check_like_layers(model, rng, exact=False)
    shown = [name for name in names(made) if not name.startswith("stop") and name != "step"]
    assert [name for name in shown if "batch_norm" not in name] == [
        name for name in training.split() if "batch_norm" not in name
    ]
    assert ("relu_forward" in shown) == ("relu_forward" in training)
    assert "relu_forward" not in shown or not any("batch_norm" in name for name in shown)
    assert [name for name in names(model.compile(3)) if "batch_norm" not in name] == [
        name for name in inference.split() if "batch_norm" not in name
    ]


def test_a_convolution_is_fused_too(rng):
    model = nn.Sequential(copy.deepcopy(CNN), (6, 6, 2), dtype=np.float64)
    made = check_like_layers(alive(model, rng), rng, exact=False)
    assert "relu_forward" not in names(made)
    assert "dropout_forward" not in names(made)
    model = nn.Sequential([nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D()], (6, 6, 3), dtype=np.float64)
    made = check_like_layers(alive(model, rng), rng, exact=False)
    assert not {"relu_forward", "max_pool_forward", "max_pool_backward"} & {*names(made)}


def shared():
    dense = nn.Dense(5, activation="relu")
    return [nn.Dense(5), dense, nn.BatchNorm(), dense, nn.Dropout(0.3), dense], (4,)


def shared_norm():
    norm, decayed = nn.BatchNorm(), nn.WeightNorm(nn.Dense(4))
    return [nn.Dense(4), norm, nn.ReLU(), nn.Dense(4), norm, decayed, nn.Tanh(), decayed], (3,)


def shared_nested():
    inner = nn.Sequential([nn.Dense(4), nn.ReLU(), nn.Dropout(0.4)])
    return [inner, nn.Sequential([nn.BatchNorm(), inner]), nn.Dropout(0.2), inner], (4,)


def residual():
    body = nn.Sequential([nn.Conv2D(16), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Conv2D(16)])
    again = nn.Sequential([nn.Conv2D(16, stride=2), nn.ReLU(), nn.SpatialDropout(0.4)])
    short = nn.Sequential([nn.Conv2D(16, 1, stride=2), nn.BatchNorm()])
    plain = nn.Residual(nn.Residual(nn.Dropout(0.3), None, None), nn.Dropout(0.2))
    return [nn.Conv2D(16), nn.Residual(body), nn.Residual(again, short), plain, nn.GlobalAveragePool2D()], (5, 6, 3)


def deep():
    inner = nn.Sequential([nn.Dropout(0.3), nn.Sequential([nn.Dense(6), nn.ReLU(), nn.Dropout(0.5)]), nn.LayerNorm()])
    return [inner, nn.Sequential([]), nn.Residual(nn.Sequential([nn.Dense(6), nn.VanillaDropout(0.2)])), nn.ELU()], (6,)


def flat():
    return [nn.Flatten(), nn.Dropout(0.2), nn.Flatten(), nn.ReLU(), nn.Residual(nn.Flatten())], (3, 2, 2)


def geometry():
    return [
        nn.Conv2D(6, groups=3, stride=2, activation="relu"),
        nn.Conv2D(6, groups=6, dilation=2, padding=2),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2D(4, dilation=(1, 2), padding=(0, 2), size=(1, 3)),
        nn.InstanceNorm(),
        nn.AveragePool2D(),
        nn.Flatten(),
        nn.RMSNorm(),
    ], (9, 8, 6)


def words():
    return [nn.Embedding(9, 4), nn.Flatten(), nn.Dense(6), nn.GroupNorm(2), nn.ReLU(), nn.Dropout(0.2)], (5,)


MODELS = [shared, shared_norm, shared_nested, residual, deep, flat, geometry, words]


@pytest.mark.parametrize("make", MODELS)
def test_models(make, rng):
    kinds, shape = make()
    model = alive(nn.Sequential(kinds, shape, dtype=np.float64), rng)
    made = check_like_layers(model, rng, exact=False)
    assert not by_python(made)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_models_with_frozen_parameters(make, share, rng):
    kinds, shape = make()
    model = nn.Sequential(kinds, shape, dtype=np.float64)
    chosen = [name for name in model.params if rng.random() < share]
    if chosen:
        model.freeze(chosen)
    check_like_layers(alive(model, rng), rng, exact=False)


def test_lowest_layers_that_are_frozen_have_no_backward_pass(rng):
    kinds = [nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dense(4), nn.BatchNorm(), nn.Dense(2)]
    model = alive(nn.Sequential(kinds, (3,), dtype=np.float64), rng)
    model.freeze(["0.*", "1.*", "3.*"])
    made = check_like_layers(model, rng, exact=False)
    assert made.grads.keys() == {"4.scale", "4.shift", "5.weight", "5.bias"}
    assert names(made).count("dense_input_grad") == 1
    state = bits(model.state)
    compiled(model, rng.normal(size=(N, 3)), rng.normal(size=(N, 2)))
    assert bits(model.state)[0]["1.running_mean"] == state[0]["1.running_mean"]
    assert bits(model.state)[0]["4.running_mean"] != state[0]["4.running_mean"]


@pytest.mark.parametrize("kind", [nn.Dropout, nn.VanillaDropout, nn.SpatialDropout])
def test_masks_are_those_of_the_layers(kind, rng):
    """One by one, nested and in branches; another in each pass."""
    shape = (2, 3, 40)
    drop = [kind(0.5) for _ in range(4)]
    inner = nn.Sequential([drop[1], nn.Sequential([nn.Tanh(), drop[2]])])
    model = nn.Sequential([drop[0], nn.Residual(inner, drop[3], None)], shape, dtype=np.float64)
    x, seen = rng.normal(size=(N, *shape)), set()
    for counter in (0, 1, 2, 2**40):
        expected, _ = one_by_one(model, x, x, counter)
        _, y, _ = compiled(model, x, x, counter)
        np.testing.assert_array_equal(y, expected)
        seen.add(y.tobytes())
    assert len(seen) == 4


# ---- Memory -------------------------------------------------------------------------------------------------


def random_model(rng):
    """Layers in random order, which fuse and share memory in many ways."""
    choices = [
        lambda: nn.Dense(8),
        lambda: nn.Dense(8, activation="relu"),
        nn.ReLU,
        nn.ReLU,
        nn.Tanh,
        nn.GELU,
        nn.Softmax,
        lambda: nn.Dropout(0.3),
        lambda: nn.VanillaDropout(0.3),
        nn.BatchNorm,
        nn.LayerNorm,
        nn.RMSNorm,
        nn.Flatten,
        lambda: nn.WeightNorm(nn.Dense(8)),
        lambda: nn.Residual(nn.Sequential([make() for make in rng.choice(choices[:12], 3)])),
        lambda: nn.Residual(nn.Dense(8), nn.Dropout(0.2), None),
        lambda: nn.Sequential([make() for make in rng.choice(choices[:12], 2)]),
    ]
    kinds = [make() for make in rng.choice(choices, 9)]
    kinds.insert(4, kinds[0])
    return nn.Sequential(kinds, (8,), dtype=np.float64)


def random_images(rng):
    choices = [
        lambda: nn.Conv2D(16),
        lambda: nn.Conv2D(16, activation="relu"),
        lambda: nn.Conv2D(16, groups=4),
        lambda: nn.Conv2D(16, groups=16),
        nn.ReLU,
        nn.ReLU,
        lambda: nn.Dropout(0.3),
        lambda: nn.SpatialDropout(0.3),
        nn.BatchNorm,
        nn.BatchNorm,
        nn.InstanceNorm,
        lambda: nn.MaxPool2D((2, 1)),
        lambda: nn.AveragePool2D((1, 2), (1, 1)),
        lambda: nn.Residual(nn.Sequential([nn.Conv2D(16), nn.ReLU(), nn.Dropout(0.2), nn.Conv2D(16)])),
    ]
    kinds = [make() for make in rng.choice(choices, 8)]
    return nn.Sequential([*kinds, nn.GlobalAveragePool2D(), nn.Dense(8)], (17, 18, 16), dtype=np.float32)


def all_buffers(items):
    return {id(b.root): b.root for item in items for b in lowering.buffers_in([item.arguments, item.options])}.values()


def each_its_own(items):
    """In place of the allocation: memory of its own for each buffer, full of NaN."""
    for root in all_buffers(items):
        root.memory = np.full(root.nbytes, 255, np.uint8)
    return sum(root.nbytes for root in all_buffers(items))


@pytest.mark.parametrize("make", [random_model, random_images])
@pytest.mark.parametrize("seed", range(12))
def test_shared_memory_changes_no_bit(make, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    model = make(rng)
    x = rng.normal(size=(N, *model.input_shape)).astype(model.dtype)
    y = rng.integers(8, size=N)
    pooled, found = copy.deepcopy(model), []
    original = program._allocate

    def watched(items):
        total = original(items)
        found.append((items, [*all_buffers(items)]))
        return total

    with monkeypatch.context() as patch:
        patch.setattr(program, "_allocate", watched)
        results = [train_and_predict(pooled, x, y, spoil=False)]
    again = copy.deepcopy(model)
    results.append(train_and_predict(again, x, y, spoil=True))
    with monkeypatch.context() as patch:
        patch.setattr(program, "_allocate", each_its_own)
        results.append(train_and_predict(model, x, y, spoil=False))
    assert results[0] == results[1] == results[2]
    for _, buffers in found:
        check_places(buffers)


def train_and_predict(model, x, y, *, spoil):
    """The bits of two passes of a program of training, and two of one of inference; all memory that is not the
    model's is filled with NaN before the second, if wanted."""
    kept = []
    made = Program(model, len(x), loss=nn.softmax_cross_entropy, targets=Targets(y, model.dtype, False))
    infers, out = Program(model, len(x)), np.empty((len(x), *model.shapes[-1]), model.dtype)
    made.feed(x, y)
    infers.feed(x)
    infers.aim(out)
    for i in range(2):
        for each in (made, infers) if spoil and i else ():
            spoil_memory(each)
        assert made.run_phase(0, None, 0, i) == -1
        kept += [made.result[0].tobytes(), made.doutput.tobytes()]
        assert made.run_phase(1, None, 0, i) == -1
        kept += bits(made.grads, model.state)
        assert infers.run_phase(0, None, 0, 0) == -1
        kept.append(out.tobytes())
    return kept


def spoil_memory(made):
    """Fill the one block that a program's buffers are in."""
    blocks = set()
    for _, reads, writes in made.calls.list():
        for array in (*reads, *writes):
            base = array
            while base is not None and isinstance(base.base, np.ndarray):
                base = base.base
            if base is not None and base.nbytes >= made.nbytes > 0 and base.dtype == np.uint8:
                blocks.add((id(base), base.nbytes))
                base[...] = 255
    assert len(blocks) == (made.nbytes > 0)


def check_places(buffers):
    """No two buffers that are needed at the same time overlap, but for those that are written over another."""
    spans = [(np.lib.array_utils.byte_bounds(root.memory), root) for root in buffers if root.nbytes]
    for i, ((start, end), one) in enumerate(spans):
        for (begin, stop), other in spans[:i]:
            if start < stop and begin < end:
                (early, late) = sorted((one, other), key=lambda root: root.items[0])
                last, first = early.items[-1], late.items[0]
                assert last < first or (last == first and late.over is not None and (start, end) == (begin, stop))


# ---- Many batches in one call -------------------------------------------------------------------------------


@pytest.fixture
def in_one_call(monkeypatch):
    """As many batches as there are go into one call, and after the first epoch all epochs into one; how many batches
    there were in each call is noted, or how many epochs."""
    runs = []
    original, of_epochs = Steps.many, Steps.epochs

    def many(self, *args):
        taken = original(self, *args)
        runs.append(0 if taken is None else len(taken.loss))
        return taken

    def epochs(self, *args):
        taken = of_epochs(self, *args)
        if taken:
            runs.append(f"{len(taken)} epochs")
        return taken

    def fitting(epoch, left, part):
        return left if all(program.native and program.seconds for program, _ in epoch) else 0

    monkeypatch.setattr(Steps, "many", many)
    monkeypatch.setattr(Steps, "epochs", epochs)
    monkeypatch.setattr(trainer, "fitting", fitting)
    monkeypatch.setattr(Program, "batches", lambda self, left, _: min(left, program.MOST_BATCHES) if self.native else 1)
    return runs


class Watching(nn.Callback):
    """Is told of each batch."""

    def __init__(self):
        self.losses = []

    def on_batch_end(self, batch, logs):
        self.losses.append(logs["loss"])


class Looking(nn.Callback):
    """Looks at the gradients, so that Python takes each step."""

    def on_gradients(self, batch, grads):
        assert grads


def untimed(kinds, shape, **options):
    """A model, of whose like nothing shows how long a step takes."""
    nn.program._seconds.clear()
    return nn.Sequential(kinds, shape, **options)


def mlp(dtype=np.float32, outputs=3, **options):
    kinds = [nn.Dense(7), nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm(), nn.Dense(outputs)]
    return untimed(kinds, (5,), dtype=dtype, **options)


@pytest.fixture
def samples(rng):
    y = np.arange(45) % 3
    return rng.normal(size=(45, 5)) + 1.5 * y[:, None], y


def by_trainer(model, optimizer, x, y, *, epochs, batch_size, loss, sample_weight=None, on_nonfinite="stop"):
    """A loop of one's own, with the order of `fit`."""
    step = model.trainer(optimizer, loss, on_nonfinite=on_nonfinite)
    losses = []
    for _ in range(epochs):
        for chosen in nn.Shuffled(len(x), batch_size).epoch(np.random.default_rng([model.seed, optimizer.t])):
            weight = None if sample_weight is None else sample_weight[chosen]
            losses.append(step(x[chosen], y[chosen], *(() if weight is None else (weight,))))
    return losses


def by_layers(model, optimizer, x, y, *, epochs, batch_size, loss, sample_weight=None):
    """The textbook: passes of the layers one by one."""
    losses = []
    model.params.mark("held", optimizer.frozen)
    for _ in range(epochs):
        for chosen in nn.Shuffled(len(x), batch_size).epoch(np.random.default_rng([model.seed, optimizer.t])):
            if hasattr(optimizer, "look_ahead"):
                optimizer.look_ahead()
            output, cache = model.forward(model.converted(x[chosen]), training=True, counter=optimizer.t)
            more = {} if sample_weight is None else {"sample_weight": sample_weight[chosen]}
            value, dy = (nn.SoftmaxCrossEntropy() if more and loss is nn.softmax_cross_entropy else loss)(
                output, y[chosen], **more
            )
            optimizer.step(model.backward(dy, cache)[1])
            losses.append(value)
    return losses


def check_all_ways(make, samples, in_one_call, *, loss=nn.softmax_cross_entropy, native=True, outputs=3, **options):
    """Train models in one call per epoch, batch by batch, step by step in Python, and by a loop of one's own: the same
    bits; and by layers in float64, up to rounding. `make` makes an optimizer for a model."""
    x, y = samples
    how = {"epochs": 3, "batch_size": 8, "loss": loss, **options}
    ended, histories = [], []
    for callbacks in ((), (Watching(),), (Looking(),)):
        model = mlp(outputs=outputs)
        optimizer = make(model)
        in_one_call.clear()
        histories.append(model.fit(x, y, optimizer=optimizer, callbacks=callbacks, **how))
        if not callbacks:
            batches = [5, 1] if how["batch_size"] == 8 else [1]
            assert in_one_call == ([*batches, "2 epochs"] if native else [0] * 18)
        if optimizer_average(optimizer):
            optimizer.restore()
        ended.append((bits(model.params, model.state), optimizer.t, state_bits(optimizer)))
    model = mlp(outputs=outputs)
    optimizer = make(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = by_trainer(model, optimizer, x, y, **how)
    ended.append((bits(model.params, model.state), optimizer.t, state_bits(optimizer)))
    for other in ended[1:]:
        assert other == ended[0]
    measures = [{key: value for key, value in each.items() if key != "samples_per_second"} for each in histories]
    assert measures[0] == measures[1] == measures[2]
    exact = copy.deepcopy(mlp(dtype=np.float64, outputs=outputs))
    plain = mlp(dtype=np.float64, outputs=outputs)
    first, second = make(exact), make(plain)
    exact.fit(x, y, optimizer=first, **how)
    if optimizer_average(first):
        first.restore()
    by_layers(plain, second, x, y, **how)
    for name in exact.params:
        np.testing.assert_allclose(exact.params[name], plain.params[name], rtol=1e-9, atol=1e-11, err_msg=name)
    for name in exact.state:
        np.testing.assert_allclose(exact.state[name], plain.state[name], rtol=1e-9, atol=1e-11, err_msg=name)
    return losses, histories[0]


def optimizer_average(optimizer):
    return getattr(optimizer, "is_applied", False)


def state_bits(optimizer):
    return {name: {key: array.tobytes() for key, array in held.items()} for name, held in optimizer.state.items()}


@pytest.mark.parametrize("name", [name for name, each in OPTIMIZERS.items() if not each.full_batch])
def test_every_optimizer(name, samples, in_one_call):
    native = name != "look_ahead_nesterov"  # which looks ahead before each step
    whole = {"batch_size": 45} if name == "rprop" else {}  # which goes by signs that must not depend on the batch
    check_all_ways(lambda model: OPTIMIZERS[name](model.params, lr=0.01), samples, in_one_call, native=native, **whole)


class Wrapped:
    """An optimizer of the user's around another one, of which it passes on all that it has not: half of each step."""

    def __init__(self, params):
        self.inner = fastopt.SGD(params, lr=0.1)

    def step(self, grads):
        self.inner.step({name: grad / 2 for name, grad in grads.items()})

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    "make",
    [lambda params: fastopt.LookAhead(fastopt.Adam(params, lr=0.01), k=3), fastopt.Ranger, Wrapped],
    ids=["LookAhead", "Ranger", "of the user's"],
)
def test_what_wraps_an_optimizer_takes_its_own_steps(make, samples):
    x, y = samples[0][:32], samples[1][:32]
    model = nn.Sequential([nn.Dense(4), nn.Dense(3)], (5,))
    twins = [copy.deepcopy(model) for _ in range(2)]
    model.fit(x, y, epochs=2, batch_size=4, optimizer=make(model.params))
    fitted, own = make(twins[0].params), make(twins[1].params)
    step = twins[0].trainer(fitted)
    for t in (0, 8):
        for chosen in nn.Shuffled(len(x), 4).epoch(np.random.default_rng([0, t])):
            step(x[chosen], y[chosen])
            output, cache = twins[1].forward(model.converted(x[chosen]), training=True)
            own.step(twins[1].backward(nn.softmax_cross_entropy(output, y[chosen])[1], cache)[1])
    assert bits(model.params) == bits(twins[0].params) == bits(twins[1].params)


class Plain(fastopt.NumPyOptimizer):
    """Gradient descent by NumPy."""

    def update(self, param, grad, state, *, lr, t):
        param -= lr * grad


class Keeping(nn.Callback):
    """Keeps the bits of gradients."""

    def __init__(self):
        self.seen = []

    def on_gradients(self, batch, grads):
        self.seen += bits(grads)


@pytest.mark.parametrize(
    "make",
    [
        fastopt.Muon,
        fastopt.Adafactor,
        fastopt.Ranger,
        lambda params: fastopt.LookAhead(fastopt.Adam(params, lr=0.01), k=3),
        lambda params: fastopt.LookAheadNesterov(params, lr=0.01),
        lambda params: Plain(params, lr=0.1),
        lambda params: fastopt.Adam(params, lr=0.01),
    ],
    ids=["Muon", "Adafactor", "Ranger", "LookAhead", "LookAheadNesterov", "of the user's", "Adam"],
)
def test_python_takes_steps_between_the_calls_of_c(make, samples, in_one_call):
    """Gradients are those of the layers, where callbacks are shown them and where not."""
    x, y, keeping = samples[0][:32], samples[1][:32], Keeping()
    model = nn.Sequential([nn.Dense(4), nn.Dense(3)], (5,))
    shown, twin = copy.deepcopy(model), copy.deepcopy(model)
    shown.fit(x, y, epochs=2, batch_size=8, optimizer=make(shown.params), callbacks=[keeping])
    in_one_call.clear()
    model.fit(x, y, epochs=2, batch_size=8, optimizer=make(model.params))
    assert in_one_call == (["2 epochs"] if make(twin.params).__class__ is fastopt.Adam else [0] * 8)
    optimizer, expected = make(twin.params), []
    for t in (0, 4):
        for chosen in nn.Shuffled(32, 8).epoch(np.random.default_rng([0, t])):
            if hasattr(optimizer, "look_ahead"):
                optimizer.look_ahead()
            output, cache = twin.forward(twin.converted(x[chosen]), training=True)
            grads = twin.backward(nn.softmax_cross_entropy(output, y[chosen])[1], cache)[1]
            expected += bits(grads)
            optimizer.step(grads)
    assert keeping.seen == expected
    assert bits(model.params) == bits(shown.params) == bits(twin.params)


RATE = Schedule(cosine, peak=0.05, steps=20)


@pytest.mark.parametrize("name", ["sgd", "adam", "nadam", "schedule_free_sgd", "radam", "lamb"])
def test_every_schedule(name, samples, in_one_call):
    """Of several hyperparameters, and with groups."""
    decay = Schedule(exponential, peak=0.1, gamma=0.9)

    def make(model):
        groups = [{"params": "*bias", "weight_decay": 0.0, "lr_factor": 3.0}, {"params": "0.weight", "lr": RATE}]
        return OPTIMIZERS[name](model.params, lr=RATE, weight_decay=decay, groups=groups)

    check_all_ways(make, samples, in_one_call, native=make(mlp()).upcoming(1) is not None)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": [{"params": "*bias", "lr_factor": 10.0, "weight_decay": 0.3}]},
        {"groups": [{"params": "0.*", "frozen": True}]},
        {"groups": [{"params": ["0.*", "3.*"], "frozen": True}], "lr": RATE},
        {"clip_value": 0.02},
        {"l1": 0.01, "weight_decay": 0.01},
        {"maximize": True},
        {"clip_norm": 0.3},
        {"clip_global_norm": 0.3},
        {"max_norm": 0.5},
        {"skip_nonfinite": True},
    ],
    ids=repr,
)
def test_options_of_optimizers(options, samples, in_one_call):
    def make(model):
        return fastopt.Adam(model.params, **{"lr": 0.05} | options)

    native = make(mlp()).upcoming(1) is not None
    assert native or {"clip_norm", "clip_global_norm", "max_norm", "skip_nonfinite"} & options.keys()
    check_all_ways(make, samples, in_one_call, native=native)


def test_a_schedule_that_raises_does_so_at_its_step(samples, in_one_call, monkeypatch):
    """Also where many steps are one call of C."""
    monkeypatch.setitem(SCHEDULES, "negative_from", negative_from)  # and take it back
    register(negative_from)
    model, x, y = mlp(np.float64), *samples
    optimizer = fastopt.SGD(model.params, lr=bind(negative_from, late=4))
    with pytest.raises(ValueError, match="lr must be"):
        model.fit(x, y, batch_size=4, optimizer=optimizer)
    assert optimizer.t == 4


def negative_from(step: int, *, late: Annotated[int, 1]) -> float:
    """A rate that is none from a step on."""
    return 0.1 if step < late else -1.0


def test_more_schedules_than_a_table_would_hold(samples, in_one_call):
    kinds = [nn.Dense(5) for _ in range(40)]
    ended = []
    for callbacks in ((), (Looking(),)):
        model = nn.Sequential([*copy.deepcopy(kinds), nn.Dense(3)], (5,))
        groups = [{"params": f"{i}.*", "lr": Schedule(exponential, peak=1e-3 / (i + 1), gamma=0.9)} for i in range(40)]
        decay = Schedule(linear, peak=0.1, steps=9)
        optimizer = fastopt.Adam(model.params, lr=RATE, weight_decay=decay, groups=groups)
        model.fit(*samples, batch_size=8, optimizer=optimizer, callbacks=callbacks)
        ended.append(bits(model.params))
    assert ended[0] == ended[1]
    assert 5 in in_one_call


def own_loss(output, targets):
    """Squared error, in Python."""
    error = output - targets
    return float((error**2).mean()), (2 / error.size * error).astype(output.dtype)


LOSSES = [
    (nn.softmax_cross_entropy, "labels"),
    (nn.SoftmaxCrossEntropy(label_smoothing=0.1), "labels"),
    (nn.SoftmaxCrossEntropy(class_weight=[0.5, 2.0, 1.0]), "labels"),
    (nn.SoftmaxCrossEntropy(), "shares"),
    (nn.SoftmaxCrossEntropy(label_smoothing=0.2, class_weight=[0.5, 2.0, 1.0]), "shares"),
    (nn.SigmoidCrossEntropy(), "bits"),
    (nn.SigmoidCrossEntropy(), "shares"),
    (nn.Hinge(), "labels"),
    (nn.Hinge(margin=0.5), "labels"),
    (nn.SquaredError(), "values"),
    (nn.L1(), "values"),
    (nn.Huber(0.7), "values"),
    (own_loss, "values"),
]


def targets_of(kind, rng, n=45):
    if kind == "labels":
        return np.arange(n) % 3
    if kind == "shares":
        values = rng.random((n, 3))
        return values / values.sum(axis=1, keepdims=True)
    if kind == "bits":
        return rng.integers(2, size=(n, 3))
    return rng.normal(size=(n, 3))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("loss", "kind"), LOSSES, ids=repr)
def test_every_loss(loss, kind, weighted, samples, rng, in_one_call):
    y, weight = targets_of(kind, rng), np.where(rng.random(45) < 0.2, 0.0, rng.random(45))
    if loss is own_loss and weighted:

        def loss(output, targets, sample_weight):
            error = (output - targets) * sample_weight[:, None]
            return float((error**2).sum()), (2 * error * sample_weight[:, None]).astype(output.dtype)

    options = {"sample_weight": weight} if weighted else {}
    native = loss in [each for each, _ in LOSSES if each is not own_loss]

    def make(model):
        return fastopt.SGD(model.params, lr=0.1)

    losses, history = check_all_ways(make, (samples[0], y), in_one_call, loss=loss, native=native, **options)
    assert len(losses) == 18
    assert min(history["loss"]) >= 0
    assert ("accuracy" in history) == (kind == "labels")


def test_measures_are_those_of_the_batches(samples, in_one_call):
    """The mean of losses and of right answers over the epoch, in training."""
    x, y = samples
    model, twin = mlp(np.float64), mlp(np.float64)
    history = model.fit(x, y, batch_size=8, optimizer=fastopt.SGD(model.params, lr=0.1))
    optimizer, value, right = fastopt.SGD(twin.params, lr=0.1), 0.0, 0
    for chosen in nn.Shuffled(45, 8).epoch(np.random.default_rng([0, 0])):
        output, cache = twin.forward(x[chosen], training=True, counter=optimizer.t)
        loss, dy = nn.softmax_cross_entropy(output, y[chosen])
        value, right = value + loss * len(chosen), right + np.count_nonzero(output.argmax(1) == y[chosen])
        optimizer.step(twin.backward(dy, cache)[1])
    assert history["loss"] == pytest.approx([value / 45], rel=1e-12)
    assert history["accuracy"] == [right / 45]


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_gradients(weighted, samples, rng, in_one_call):
    """Those of one batch of all its samples, where layers act on each sample by itself."""
    x, y = samples
    weight = {"sample_weight": rng.random(45)} if weighted else {}
    models = []
    for batch_size, accumulate in ((16, 1), (8, 2), (4, 4)):
        model = nn.Sequential([nn.Dense(6, activation="relu"), nn.LayerNorm(), nn.Dense(3)], (5,), dtype=np.float64)
        history = model.fit(
            x, y, batch_size=batch_size, accumulate=accumulate, epochs=2,
            optimizer=fastopt.SGD(model.params, lr=0.1), **weight,
        )  # fmt: skip
        models.append((model, history))
    for model, history in models[1:]:
        for name in model.params:
            np.testing.assert_allclose(model.params[name], models[0][0].params[name], rtol=1e-10, atol=1e-13)
        assert history["loss"] == pytest.approx(models[0][1]["loss"], rel=1e-10)
        assert history["accuracy"] == models[0][1]["accuracy"]


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads(threads, rng, in_one_call):
    x, y = rng.normal(size=(96, 12, 12, 16)), np.arange(96) % 3
    before, ended = fastopt.get_num_threads(), []
    for count in (1, threads):
        kinds = [nn.Conv2D(16), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.Flatten(), nn.Dropout(0.3), nn.Dense(3)]
        model = untimed(kinds, (12, 12, 16))
        fastopt.set_num_threads(count)
        try:
            model.fit(x, y, batch_size=32, epochs=2)
            ended.append((bits(model.params, model.state), model.predict(x).tobytes()))
        finally:
            fastopt.set_num_threads(before)
    assert ended[0] == ended[1]
    assert in_one_call == [3, "1 epochs"] * 2


def poisoned(samples):
    """Samples one of which overflows in the first layer of `steep`."""
    x, y = samples[0].copy(), samples[1]
    x[20] = 1.7e308
    return x, y


def steep():
    model = mlp(np.float64)
    model.params["0.weight"] = 4 * model.params["0.weight"]
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_are_skipped(accumulate, samples, in_one_call):
    """Parameters and running statistics are those of a run in which the step never was."""
    x, y = poisoned(samples)
    ended = []
    for callbacks in ((), (Watching(),), (Looking(),)):
        model = steep()
        optimizer = fastopt.Adam(model.params, lr=0.01)
        history = model.fit(
            x, y, batch_size=8, accumulate=accumulate, epochs=3, optimizer=optimizer, callbacks=callbacks,
            on_nonfinite="skip",
        )  # fmt: skip
        assert history["skipped"] == [1] * 3
        assert optimizer.t == (5 if accumulate == 1 else 2) * 3
        ended.append(bits(model.params, model.state))
    assert ended[0] == ended[1] == ended[2]
    model = steep()
    optimizer = fastopt.Adam(model.params, lr=0.01)
    for _ in range(3):
        rows = [*nn.Shuffled(45, 8).epoch(np.random.default_rng([0, optimizer.t]))]
        for i in range(0, 6, accumulate):
            parts = rows[i : i + accumulate]
            if not any(20 in chosen for chosen in parts):
                total, sums = sum(map(len, parts)), {}
                for k, chosen in enumerate(parts):
                    output, cache = model.forward(x[chosen], training=True, counter=optimizer.t * accumulate + k)
                    _, dy = nn.softmax_cross_entropy(output, y[chosen])
                    for name, grad in model.backward(dy * (len(chosen) / total), cache)[1].items():
                        sums[name] = sums.get(name, 0) + grad
                optimizer.step(sums)
    for own, arrays in zip(ended[0], (model.params, model.state), strict=True):
        for name, array in arrays.items():
            np.testing.assert_allclose(np.frombuffer(own[name]), array.ravel(), rtol=1e-8, atol=1e-10)


def test_a_step_that_is_not_finite_leaves_what_was_before(samples, in_one_call):
    x, y = poisoned(samples)
    ended = []
    for callbacks in ((), (Watching(),)):
        model = steep()
        optimizer = fastopt.Adam(model.params, lr=0.01)
        with pytest.raises(nn.NonFiniteError, match="epoch 1, batch"):
            model.fit(x, y, batch_size=8, optimizer=optimizer, callbacks=callbacks)
        ended.append((bits(model.params, model.state), optimizer.t))
    assert ended[0] == ended[1]
    twin = steep()
    optimizer = fastopt.Adam(twin.params, lr=0.01)
    step = twin.trainer(optimizer)
    for chosen in nn.Shuffled(45, 8).epoch(np.random.default_rng([0, 0])):
        if 20 in chosen:
            with pytest.raises(nn.NonFiniteError, match=f"step {optimizer.t + 1}: "):
                step(x[chosen], y[chosen])
            break
        step(x[chosen], y[chosen])
    assert (bits(twin.params, twin.state), optimizer.t) == ended[0]


# ---- Between calls ------------------------------------------------------------------------------------------


@pytest.fixture
def usual_handler():
    """That of Ctrl-C, which a process in the background of a shell ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_handler")
def test_an_interrupt_leaves_whole_steps(samples, monkeypatch, caplog):
    monkeypatch.setattr(program, "SLICE", 0.0)  # one batch in each call
    original, calls = Steps.many, []

    def many(self, *args):
        calls.append(args)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Steps, "many", many)
    model = mlp()
    optimizer = fastopt.Adam(model.params, lr=0.01)
    history = model.fit(*samples, batch_size=8, epochs=9, optimizer=optimizer)
    assert optimizer.t == 4
    assert history.stopped == "interrupted; stopped after 4 of 6 batches of epoch 1"
    assert "interrupted" in caplog.text
    twin = mlp()
    step = twin.trainer(fastopt.Adam(twin.params, lr=0.01))
    for chosen in [*nn.Shuffled(45, 8).epoch(np.random.default_rng([0, 0]))][:4]:
        step(samples[0][chosen], samples[1][chosen])
    assert bits(model.params, model.state) == bits(twin.params, twin.state)


class Changing(nn.Callback):
    """Changes something before each batch, by its number in the run."""

    def __init__(self, change):
        self.change, self.count = change, 0

    def on_train_begin(self, run):
        self.run = run

    def on_batch_begin(self, batch):
        self.change(self.run, self.count)
        self.count += 1


def change_params(run, i):
    run.model.params["0.weight"] = run.model.params["0.weight"] * np.float32(0.9)
    run.model.params["4.bias"][...] += i


def change_rate(run, i):
    run.optimizer.lr = 0.01 / (i + 1)


def change_dropout(run, i):
    run.model.layers[2].p = 0.1 * (i % 3)


def change_momentum(run, i):
    run.model.layers[3].momentum = 0.1 * (i % 4)


def change_state(run, i):
    run.model.state["3.running_mean"][...] = i


def change_loss(run, i):
    run.loss.delta = 0.1 + i


def change_frozen(run, i):
    run.optimizer.groups[0].frozen = i % 3 == 1


def patch_layer(run, i):
    layer = run.model.layers[1]
    if i == 2:
        layer.forward = lambda x, *, training=False, counter=0: (np.maximum(x, 0) * x.dtype.type(0.5), x)
        layer.backward = lambda dy, x: (dy * (x > 0) * dy.dtype.type(0.5), {})
    if i == 4:
        del layer.forward, layer.backward


def adam_of(model, change):
    group = {"frozen": True} if change is change_frozen else {"lr_factor": 2.0}
    return fastopt.Adam(model.params, lr=0.01, groups=[{"params": "0.*", **group}])


CHANGES = [change_params, change_rate, change_momentum, change_state, change_dropout, change_loss, change_frozen]


@pytest.mark.parametrize("change", [*CHANGES, patch_layer])
def test_changes_between_batches_are_heeded(change, samples, rng, monkeypatch):
    """As if everything were compiled anew for each batch."""
    x, y = samples[0], rng.normal(size=(45, 3))
    ended = []
    for anew in (False, True):
        model = mlp()
        optimizer = adam_of(model, change)
        with monkeypatch.context() as patch:
            if anew:
                patch.setattr(Program, "holds", lambda self: False)
            model.fit(x, y, batch_size=8, epochs=2, optimizer=optimizer, loss=nn.Huber(), callbacks=[Changing(change)])
        ended.append((bits(model.params, model.state), model.predict(x).tobytes()))
    assert ended[0] == ended[1]
    model = mlp()
    model.fit(x, y, batch_size=8, epochs=2, optimizer=adam_of(model, change), loss=nn.Huber())
    assert bits(model.params, model.state) != ended[0][0]


def counted(monkeypatch):
    made = []
    original = Program.__init__

    def init(self, *args, **options):
        made.append(self)
        original(self, *args, **options)

    monkeypatch.setattr(Program, "__init__", init)
    return made


def test_programs_are_made_once(samples, monkeypatch):
    """Also of a model with frozen parameters, by a trainer, and with a loss of one's own that changes."""

    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, output, targets):
            self.calls += 1
            return own_loss(output, targets)

    x, y = samples
    one_hot, made = np.eye(3)[y], counted(monkeypatch)
    for freeze in (False, True):
        for loss, targets in ((nn.SquaredError(), one_hot), (Counting(), one_hot), (nn.softmax_cross_entropy, y)):
            model = mlp()
            if freeze:
                model.freeze("0.*")
            made.clear()
            model.fit(x, targets, batch_size=15, epochs=3, loss=loss)
            assert len(made) == 1
            step = model.trainer(fastopt.SGD(model.params, lr=0.1), loss)
            for _ in range(3):
                step(x[:15], targets[:15])
            assert len(made) == 1


def test_programs_that_no_longer_hold_are_let_go(samples, monkeypatch):
    """A layer whose options change with each batch leaves no program behind."""
    made, alive_then = counted(monkeypatch), []

    def change(run, i):
        run.model.layers[3].momentum = 0.001 * (i + 1)
        gc.collect()
        alive_then.append(sum(isinstance(each, Program) for each in gc.get_objects()))
        made.clear()

    mlp().fit(*samples, batch_size=8, epochs=3, callbacks=[Changing(change)])
    assert max(alive_then) - min(alive_then) <= 2


def test_losses_are_not_confused(samples):
    """Not even where one is in the place of one that is gone."""
    x, y = samples[0], np.eye(3)[samples[1]]
    model = nn.Sequential([nn.Dense(3)], (5,), dtype=np.float64)
    output = model.predict(x)
    for _ in range(3):
        for kind in (nn.SquaredError, nn.L1, nn.Huber):
            still = fastopt.SGD(model.params, lr=0.0)
            history = model.fit(x, y, batch_size=45, optimizer=still, loss=kind())
            assert history["loss"] == pytest.approx([kind()(output, y)[0]], rel=1e-12)
            del history, still
            gc.collect()


def test_a_bounded_number_of_programs(rng):
    model = mlp()
    x = rng.normal(size=(100, 5))
    expected = model.predict(x)
    for size in range(1, 101):
        np.testing.assert_array_equal(model.predict(x[:size]), expected[:size])
        np.testing.assert_array_equal(model.predict(x, batch_size=size), expected)
    assert sum(map(len, model.programs.values())) <= program.MOST_PROGRAMS + 1


# ---- Inputs as they lie -------------------------------------------------------------------------------------


class Rows(np.ndarray):
    """An array of the user's."""


SOURCE = np.random.default_rng(5).integers(0, 2, size=(90, 10))
KINDS = ["u1", "?", "i4", "i8", "f4", "f8", "f2", "i1", "u2", "u4", "u8", ">f4", ">i4", ">f8", "g"]


def layouts(x):
    """The same rows in other places."""
    padded = np.zeros((2 * len(x), 2 * x.shape[1]), x.dtype)
    padded[::2, : x.shape[1]] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    raw = bytearray(x.nbytes + 1)
    shifted = np.frombuffer(raw, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[...] = x
    record = np.zeros(len(x), [("a", np.uint8), ("x", x.dtype, x.shape[1:])])
    record["x"] = x
    return {
        "as it is": x,
        "strided": padded[::2, : x.shape[1]],
        "columns": np.repeat(x, 2, axis=1)[:, ::2],
        "backwards": x[::-1].copy()[::-1],
        "Fortran": np.asfortranarray(x),
        "read-only": read_only,
        "misaligned": shifted,
        "record": record["x"],
        "subclass": x.view(Rows),
        "list": x.tolist(),
        "matrix": x.view(np.matrix) if x.dtype.kind != "g" else x,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_every_type_and_layout(kind, rng):
    x, y = SOURCE[:45, :5].astype(kind), np.arange(45) % 3
    converted = np.ascontiguousarray(x, np.float32)
    model = mlp()
    expected = model.predict(converted)
    ended = fitted(converted, y)
    for name, given in layouts(x).items():
        before = np.array(given, copy=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            np.testing.assert_array_equal(model.predict(given, batch_size=8), expected, name)
            assert fitted(given, y) == ended, name
        np.testing.assert_array_equal(np.asarray(given), before)


def fitted(x, y, loss=nn.softmax_cross_entropy, **options):
    model = mlp(**options)
    history = model.fit(x, y, batch_size=8, loss=loss, validation_data=(x, y))
    return bits(model.params, model.state), history["loss"], history["val_loss"]


@pytest.mark.parametrize("kind", ["u1", "i1", "i4", "i8", "u8", ">i4", ">i8"])
def test_labels_of_every_type(kind, samples):
    x, y = samples
    ended = fitted(x, y.astype(np.int64))
    for name, given in layouts(y.astype(kind)[:, None]).items():
        assert fitted(x, np.asarray(given)[:, 0]) == ended, name


@pytest.mark.parametrize("kind", ["u1", "?", "i4", "f4", "f8", "f2", ">f8"])
def test_targets_of_every_type(kind, samples):
    x, y = samples[0], SOURCE[:45, :3]
    ended = fitted(x, y.astype(np.float32), nn.SquaredError())
    for name, given in layouts(y.astype(kind)).items():
        if name != "matrix":
            assert fitted(x, given, nn.SquaredError()) == ended, name


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i8", "u1", ">f4"])
def test_sample_weights_of_every_type(kind, samples):
    x, y = samples
    weight = np.arange(45) % 4
    ended = []
    for given in (weight.astype(np.float32), weight.astype(kind), np.repeat(weight.astype(kind), 2)[::2]):
        model = mlp()
        model.fit(x, y, batch_size=8, sample_weight=given)
        ended.append(bits(model.params))
    assert ended[0] == ended[1] == ended[2]


def test_no_inputs():
    model = mlp()
    for x in (np.empty((0, 5)), np.empty((0, 5), np.uint8), np.empty((0, 5), ">f8")):
        y = model.predict(x)
        assert (y.shape, y.dtype) == ((0, 3), np.float32)
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        model.fit(np.empty((0, 5)), np.empty(0, int))
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        model.trainer()(np.empty((0, 5)), np.empty(0, int))


@pytest.mark.parametrize("wrong", [np.ones((4, 5), complex), np.full((4, 5), "1"), np.full((4, 5), None), [[None] * 5]])
def test_inputs_that_are_none(wrong):
    for call in (mlp().predict, lambda x: mlp().fit(x, [0] * len(x)), lambda x: mlp().trainer()(x, [0] * len(x))):
        with pytest.raises(TypeError, match="x must be an array of numbers"):
            call(wrong)


@pytest.mark.parametrize("kind", ["u1", "f4", "f8", "i4"])
def test_a_memory_map_is_not_copied(kind, tmp_path):
    """Nor converted whole, nor looked through whole in one piece."""
    n, width = 40_000, 256
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", kind, (n, width))
    x[:] = 1
    x.flush()
    y = np.zeros(n, np.int64)
    model = nn.Sequential([nn.Dense(3)], (width,))
    given = np.load(tmp_path / "x.npy", mmap_mode="r")
    model.fit(given[:64], y[:64])
    tracemalloc.start()
    try:
        model.fit(given, y, batch_size=200)
        model.predict(given, batch_size=200)
        step = model.trainer()
        step(given[:200], y[:200])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < min(given.nbytes, 4 * n * width) / 3


# ---- Layers of one's own ------------------------------------------------------------------------------------


class Cube(nn.Layer):
    """x³ times a factor, whose cache is that of its own pass."""

    def __init__(self):
        super().__init__()
        self.open = 0

    def _build(self, input_shape, rng, dtype):
        self.params["factor"] = np.full(input_shape, 0.5, dtype)
        self.state["calls"] = np.zeros(1, dtype)

    def forward(self, x, *, training=False, counter=0):
        if training:
            self.open += 1
            self.state["calls"] += 1
        return self.params["factor"] * x**3, (x.copy(), counter, self.open)

    def backward(self, dy, cache):
        x, _, _ = cache
        return 3 * self.params["factor"] * x**2 * dy, {"factor": (dy * x**3).sum(axis=0)}


def test_layers_of_ones_own(rng):
    cube = Cube()
    kinds = [nn.Dense(4), nn.ReLU(), cube, nn.Dropout(0.3), nn.Sequential([nn.Tanh(), Cube()]), nn.Dense(2)]
    model = alive(nn.Sequential(kinds, (4,), dtype=np.float64), rng)
    made = check_like_layers(model, rng, exact=False)
    assert by_python(made) == ["Cube.forward"] * 2 + ["Cube.backward"] * 2
    assert by_python(model.compile(3)) == ["Cube.forward"] * 2


def test_a_layer_of_ones_own_twice(rng):
    """Each place has the cache of its own pass."""
    cube = Cube()
    model = alive(nn.Sequential([nn.Dense(4), cube, nn.Tanh(), cube], (4,), dtype=np.float64), rng)
    check_like_layers(model, rng, exact=False)


class Doubling(nn.Dense):
    """A subclass with passes of its own."""

    def forward(self, x, *, training=False, counter=0):
        y, cache = super().forward(x, training=training, counter=counter)
        return 2 * y, cache

    def backward(self, dy, cache):
        return super().backward(2 * dy, cache)


class Same(nn.Dense):
    """A subclass that changes nothing."""


class Negated(nn.Sequential):
    def forward(self, x, *, training=False, counter=None):
        y, cache = super().forward(x, training=training, counter=counter)
        return -y, cache

    def backward(self, dy, cache):
        return super().backward(-dy, cache)


class Named(nn.Sequential):
    """A subclass with a method more."""

    def classes(self, x):
        return self.predict(x).argmax(axis=1)


def patched():
    dense = nn.Dense(4, activation="relu")
    dense.forward = lambda x, **options: nn.Dense.forward(dense, x * 3, **options)

    def backward(dy, cache):
        dx, grads = nn.Dense.backward(dense, dy, cache)
        return 3 * dx, grads

    dense.backward = backward
    return dense


@pytest.mark.parametrize(
    ("make", "python"),
    [
        (lambda: Doubling(4), ["Doubling.forward", "Doubling.backward"]),
        (lambda: Same(4), ["Same.forward", "Same.backward"]),
        (patched, ["Dense.forward", "Dense.backward"]),
        (lambda: Negated([nn.Dense(4), nn.ReLU(), nn.Dropout(0.2)]), ["Negated.forward", "Negated.backward"]),
        (lambda: Named([nn.Dense(4), nn.ReLU(), nn.Dropout(0.2)]), []),
    ],
)
def test_subclasses_and_patches(make, python, rng):
    model = alive(nn.Sequential([nn.Dense(4), make(), nn.ReLU(), nn.Dense(2)], (3,), dtype=np.float64), rng)
    x, dy = rng.normal(size=(N, 3)), rng.normal(size=(N, 2))
    expected, wanted = one_by_one(model, x, dy, 5)
    made, y, grads = compiled(model, x, dy, 5)
    np.testing.assert_allclose(y, expected, rtol=1e-11)
    for name, grad in wanted.items():
        np.testing.assert_allclose(grads[name], grad, rtol=1e-11, atol=1e-13)
    assert by_python(made) == python


def test_a_model_of_a_class_that_overrides_its_passes(rng):
    model = alive(Negated([nn.Dense(4), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)], (5,), dtype=np.float64), rng)
    made = check_like_layers(model, rng, exact=False)
    assert by_python(made) == ["Negated.forward", "Negated.backward"]
    model.fit(rng.normal(size=(20, 5)), np.arange(20) % 3)


class Askew(nn.Layer):
    """Returns what it is told to, in place of what it should."""

    def __init__(self, **returned):
        super().__init__()
        self.returned = returned

    def _build(self, input_shape, rng, dtype):
        self.params["gain"] = np.ones(input_shape, dtype)

    def forward(self, x, *, training=False, counter=0):
        return self.returned.get("y", lambda x: x)(x), None

    def backward(self, dy, cache):
        grads = {"gain": dy.sum(axis=0)}
        return self.returned.get("dx", lambda dy: dy)(dy), self.returned.get("grads", lambda grads: grads)(grads)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"y": lambda x: x[:, :2]}, "Askew.forward must return an output of float32 (6, 4), got float32 (6, 2)"),
        ({"y": lambda x: x[:1]}, "Askew.forward must return an output of float32 (6, 4), got float32 (1, 4)"),
        ({"y": lambda x: x.astype(int)}, "Askew.forward must return an output of float32 (6, 4), got int64 (6, 4)"),
        ({"y": lambda x: x + 0j}, "Askew.forward must return an output of float32 (6, 4), got complex64 (6, 4)"),
        ({"y": lambda x: x.tolist()}, "Askew.forward must return an output of float32 (6, 4), got list"),
        ({"y": lambda x: None}, "Askew.forward must return an output of float32 (6, 4), got NoneType"),
        ({"dx": lambda dy: dy.T}, "Askew.backward must return a gradient of the input of float32 (6, 4), got float32"),
        ({"dx": lambda dy: None}, "Askew.backward must return a gradient of the input of float32 (6, 4), got NoneType"),
        ({"grads": lambda grads: {}}, "Askew.backward must return the gradients of gain, got []"),
        ({"grads": lambda grads: grads | {"bias": 0}}, "the gradients of gain, got ['gain', 'bias']"),
        ({"grads": lambda grads: {"gain": grads["gain"][:2]}}, "a gradient of gain of float32 (4,), got float32 (2,)"),
        ({"grads": lambda grads: {"gain": 1.0}}, "a gradient of gain of float32 (4,), got float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_layers_are_named(returned, message, rng):
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(), Askew(**returned), nn.Dense(3)], (5,))
    x, y = rng.normal(size=(N, 5)), np.arange(N) % 3
    before = bits(model.params, model.state)
    optimizer = fastopt.Adam(model.params)
    step = model.trainer(optimizer)
    for call in (lambda: model.fit(x, y, optimizer=optimizer), lambda: step(x, y)):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()
        assert bits(model.params, model.state) == before
        assert optimizer.t == 0
    if "y" in returned:
        with pytest.raises(TypeError, match=re.escape(message)):
            model.predict(x)
        assert bits(model.params, model.state) == before


class Failing(nn.Layer):
    """Raises in some call of one of its passes."""

    def __init__(self, where, at):
        super().__init__()
        self.where, self.at, self.count = where, at, 0

    def note(self, where):
        self.count += where == self.where
        if self.count == self.at:
            self.count += 1
            raise LookupError(f"in {where}")

    def forward(self, x, *, training=False, counter=0):
        self.note("forward" if training else "inference")
        return x, None

    def backward(self, dy, cache):
        self.note("backward")
        return dy, {}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["forward", "backward", "loss"])
def test_an_exception_leaves_whole_steps(where, accumulate, samples):
    """Parameters, running statistics and counters are those after the step before; a further run goes on from them."""
    x, y = samples
    targets = np.eye(3)[y]

    def build(at):
        kinds = [nn.Dense(7), nn.BatchNorm(), Failing(where, at), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)]
        model = nn.Sequential(kinds, (5,))
        count = []

        def loss(output, targets):
            count.append(1)
            if where == "loss" and len(count) == at:
                raise LookupError("in loss")
            return own_loss(output, targets)

        return model, fastopt.Adam(model.params, lr=0.01), loss

    model, optimizer, loss = build(4)
    fit = {"batch_size": 8, "accumulate": accumulate}
    with pytest.raises(LookupError, match=f"in {where}"):
        model.fit(x, targets, optimizer=optimizer, loss=loss, **fit)
    done = 3 // accumulate
    assert optimizer.t == done
    twin, other, loss_of_twin = build(-1)
    twin.fit(x, targets, optimizer=other, loss=loss_of_twin, callbacks=[Stopping(done)], **fit)
    assert bits(model.params, model.state) == bits(twin.params, twin.state)
    for each, using, how in ((model, optimizer, loss), (twin, other, loss_of_twin)):
        each.fit(x, targets, optimizer=using, loss=how, **fit)
    assert bits(model.params, model.state) == bits(twin.params, twin.state)


def test_a_step_that_python_takes_amid_others_counts_once():
    """The squares of the gradients of batch 5 overflow, which C leaves to Python: running statistics are not updated by
    that batch twice."""
    x, order = np.random.default_rng(0).normal(size=(64, 5)), np.random.default_rng([3, 0]).permutation(64)
    weight = np.zeros(64)
    weight[order[40:48]] = 1
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.Dense(1)], (5,), dtype=np.float64)
    model.params["1.scale"] = np.full(4, 1e200)
    model.params["2.weight"] = model.params["2.weight"] * 1e-200
    twin = copy.deepcopy(model)
    for each, callbacks in ((model, []), (twin, [Watching()])):
        optimizer = fastopt.SGD(each.params, 0.1, clip_global_norm=1.0)
        fit = {"sample_weight": weight, "batch_size": 8, "loss": "l1", "seed": 3, "callbacks": callbacks}
        each.fit(x, np.ones(64), optimizer=optimizer, **fit)
    assert bits(model.params, model.state) == bits(twin.params, twin.state)


class Stopping(nn.Callback):
    """Ends a run after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_begin(self, run):
        self.run = run

    def on_batch_end(self, batch, logs):
        if batch + 1 == self.steps:
            self.run.stop("enough")


class Stubborn(fastopt.NumPyOptimizer):
    """Gradient descent that refuses its third step."""

    def update(self, param, grad, state, *, lr, t):
        if t == 3:
            raise LookupError("the third step")
        param -= lr * grad


@pytest.mark.parametrize("way", ["fit", "accumulate", "trainer", "callback"])
def test_a_step_that_is_refused_leaves_what_was_before(way, samples):
    x, y = samples[0][:32], samples[1][:32]
    order = np.arange(32) if way == "trainer" else np.random.default_rng([0, 0]).permutation(32)
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.Dense(3)], (5,))
    twin = copy.deepcopy(model)
    made, same = (Stubborn(each.params, lr=0.1) for each in (model, twin))

    class Refusing(nn.Callback):
        def on_gradients(self, batch, grads):
            if batch == 2:
                raise LookupError("the third step")

    step, step_of_twin = model.trainer(made), twin.trainer(same)

    def train():
        for begin in range(0, 32, 8) if way == "trainer" else ():
            step(x[begin : begin + 8], y[begin : begin + 8])
        how = {"batch_size": 4, "accumulate": 2} if way == "accumulate" else {"batch_size": 8}
        model.fit(x, y, optimizer=made, callbacks=[Refusing()] if way == "callback" else [], **how)

    with pytest.raises(LookupError, match="the third step"):
        train()
    assert made.t == 2
    if way == "accumulate":
        twin.fit(x, y, optimizer=same, batch_size=4, accumulate=2, callbacks=[Stopping(2)])
    else:
        for chosen in order[:16].reshape(2, 8):
            step_of_twin(x[chosen], y[chosen])
    assert bits(model.params, model.state) == bits(twin.params, twin.state)


def test_what_was_given_is_let_go(samples):
    """Programs that are kept for later hold no inputs, targets, weights or outputs."""
    given = [np.array(each) for each in (*samples, np.ones(len(samples[0]), np.float32))]
    model = nn.Sequential([nn.Dense(3)], (5,))
    model.fit(*given[:2], sample_weight=given[2])
    model.trainer()(*given)
    given.append(model.predict(given[0]))
    left = [weakref.ref(each) for each in given]
    del given[:]
    gc.collect()
    assert model.programs
    assert [each() for each in left] == [None] * 4


def test_parameters_that_are_moved_in_place():
    """The kernels of a program that was made before would read memory that is no longer theirs."""
    dense = nn.Dense(3)
    dense.build((4,), np.random.default_rng(0), np.dtype(np.float32))
    model, x = nn.Sequential([dense], (4,)), np.ones((2, 4), np.float32)
    model.predict(x)
    model.params["0.weight"].resize((4, 100_000), refcheck=False)
    with pytest.raises(ValueError, match="must have shape"):
        model.predict(x)


def test_inputs_that_are_moved_in_place(samples):
    x, y = samples
    x = np.array(x[:32])

    class Moving(nn.Callback):
        def on_batch_end(self, batch, logs):
            x.resize((len(x) // 2, 2 * x.shape[1]), refcheck=False)

    with pytest.raises(TypeError, match="must not be moved or reshaped in place"):
        nn.Sequential([nn.Dense(3)], (5,)).fit(x, y[: len(x)], batch_size=8, callbacks=Moving())


def test_a_loss_by_name_is_compiled():
    model = nn.Sequential([nn.Dense(3)], (5,))
    assert str(model.compile(8, loss="mse")) == str(model.compile(8, loss=nn.SquaredError(), y=np.zeros((1, 3))))
    assert "hinge_loss" in str(model.compile(8, loss="hinge", y=np.zeros(8)))
    with pytest.raises(ValueError, match="loss"):
        model.compile(8, loss="nosuch")


def test_whole_numbers_for_outputs_without_an_axis(rng):
    """They look like labels, and are none for a loss of numbers."""

    class First(nn.Layer):
        def output_shape(self, input_shape):
            return ()

        def forward(self, x, *, training=False, counter=0):
            return x[:, 0], None

        def backward(self, dy, cache):
            return dy[:, None], {}

    x, y = rng.normal(size=(16, 4)), np.arange(16)
    losses = []
    for targets in (y, y.astype(float)):
        model = nn.Sequential([nn.Dense(1), First()], (4,))
        losses.append((model.fit(x, targets, loss="mse")["loss"], model.evaluate(x, targets, loss="mse")))
    assert losses[0] == losses[1]


def test_an_exception_in_inference(samples):
    model = nn.Sequential([nn.Dense(3), Failing("inference", 2)], (5,))
    with pytest.raises(LookupError, match="in inference"):
        model.predict(samples[0], batch_size=8)
    np.testing.assert_array_equal(model.predict(samples[0]), model.forward(model.converted(samples[0]))[0])


def test_what_an_embedding_does_not_take(rng):
    kinds = [nn.BatchNorm(), nn.Flatten()]
    model = nn.Sequential([nn.Embedding(9, 4), nn.Flatten(), *kinds, nn.Dense(3)], (5,))
    x = rng.integers(9, size=(40, 5)).astype(float)
    y = np.arange(40) % 3
    for value, message in ((9, r"Embedding must be in \[0, 9\)"), (-1, "got -1"), (1.5, "whole numbers")):
        wrong = x.copy()
        wrong[30, 2] = value
        before = bits(model.params, model.state)
        with pytest.raises(ValueError, match=message):
            model.predict(wrong, batch_size=8)
        with pytest.raises(ValueError, match=message):
            model.trainer(fastopt.SGD(model.params, lr=0.1))(wrong, y)
        assert bits(model.params, model.state) == before
        with pytest.raises(ValueError, match=message):
            model.fit(wrong, y, batch_size=8)


# ---- Copies, processes, threads -----------------------------------------------------------------------------


@pytest.fixture
def used(samples):
    """A model that has programs."""
    model = mlp()
    model.fit(*samples, batch_size=8)
    model.predict(samples[0])
    assert model.programs
    return model


def saved(model, tmp_path):
    model.save(tmp_path / "model.npz")
    return nn.load(tmp_path / "model.npz")


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda model, path: copy.deepcopy(model),
        lambda model, path: pickle.loads(pickle.dumps(model)),
        saved,
        lambda model, path: model.copy(),
    ],
    ids=["deepcopy", "pickle", "file", "copy"],
)
def test_copies_have_programs_of_their_own(duplicate, used, samples, tmp_path):
    x, y = samples
    before, outputs = bits(used.params, used.state), used.predict(x)
    twin = duplicate(used, tmp_path)
    np.testing.assert_array_equal(twin.predict(x), outputs)
    twin.fit(x, y, batch_size=8)
    assert bits(used.params, used.state) == before
    np.testing.assert_array_equal(used.predict(x), outputs)
    used.fit(x, y, batch_size=8)
    assert bits(used.params, used.state) == bits(twin.params, twin.state)


def test_a_trained_model_within_another(used, samples):
    """Each has its own programs, on the same parameters."""
    x, y = samples
    model = nn.Sequential([used, nn.Dense(3)], (5,))
    model.fit(x, y, batch_size=8)
    inner = used.predict(x)
    np.testing.assert_array_equal(inner, used.forward(used.converted(x))[0])
    np.testing.assert_array_equal(model.predict(x), model.layers[1].forward(inner)[0])


def _in_child(model, x, y, pipe):
    model.fit(x, y, batch_size=8)
    pipe.send((bits(model.params, model.state), model.predict(x).tobytes()))
    pipe.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_processes(method, used, samples):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_in_child, args=(used, *samples, theirs))
    process.start()
    received = ours.recv()
    process.join()
    assert process.exitcode == 0
    used.fit(*samples, batch_size=8)
    assert received == (bits(used.params, used.state), used.predict(samples[0]).tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_run(samples):
    """The child may train the model on; the parent goes on as if nothing had been."""
    x, y = samples

    class Fork(nn.Callback):
        status = None

        def on_train_begin(self, run):
            self.run = run

        def on_batch_end(self, batch, logs):
            if batch != 2 or self.status is not None:
                return
            child = os.fork()
            if not child:
                code = 1
                try:
                    self.run.model.predict(x)
                    self.run.model.fit(x, y, batch_size=8)
                    code = 0
                finally:
                    os._exit(code)
            self.status = os.waitpid(child, 0)[1]

    model, twin, fork = mlp(), mlp(), Fork()
    model.fit(x, y, batch_size=8, callbacks=[fork])
    twin.fit(x, y, batch_size=8, callbacks=[Watching()])
    assert fork.status == 0
    assert bits(model.params, model.state) == bits(twin.params, twin.state)


def test_threads_that_predict_at_once(rng):
    model = nn.Sequential([nn.Dense(64, activation="relu"), nn.BatchNorm(), nn.WeightNorm(nn.Dense(8))], (256,))
    parts = [rng.normal(size=(600, 256)).astype(np.float32) for _ in range(8)]
    expected = [model.predict(x) for x in parts]
    start = threading.Barrier(4)

    def work(i):
        start.wait()
        return [model.predict(x, batch_size=64 + 8 * (i % 2)) for x in parts for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(work, range(4)):
            for k, y in enumerate(outputs):
                np.testing.assert_array_equal(y, expected[k // 3])
    assert sum(map(len, model.programs.values())) <= 4 * (program.MOST_PROGRAMS + 1)


@pytest.mark.parametrize("second", ["fit", "trainer"])
def test_only_one_thread_trains(second, samples):
    x, y = samples
    model, refused, training, over = mlp(), [], threading.Event(), threading.Event()

    class Wait(nn.Callback):
        def on_batch_begin(self, batch):
            training.set()
            assert over.wait(60)

    def other():
        assert training.wait(60)
        try:
            if second == "fit":
                model.fit(x, y)
            else:
                model.trainer(fastopt.SGD(model.params, lr=0.1))(x, y)
        except RuntimeError as error:
            refused.append(str(error))
        finally:
            over.set()

    thread = threading.Thread(target=other)
    thread.start()
    model.fit(x, y, batch_size=8, callbacks=[Wait()])
    thread.join()
    assert refused == ["the model is being trained already, by another thread or in a callback: wait, or copy it"]
    twin = mlp()
    twin.fit(x, y, batch_size=8, callbacks=[Watching()])
    assert bits(model.params, model.state) == bits(twin.params, twin.state)
    model.fit(x, y)


def test_a_model_that_predicts_while_it_is_trained(samples):
    """In a callback: with programs that are in no other use."""
    x, y = samples
    outputs = []

    class Predict(nn.Callback):
        def on_train_begin(self, run):
            self.run = run

        def on_batch_end(self, batch, logs):
            outputs.append(self.run.model.predict(x[:8]).tobytes())
            self.run.model.evaluate(x, y)

    model, twin = mlp(), mlp()
    model.fit(x, y, batch_size=8, callbacks=[Predict()])
    twin.fit(x, y, batch_size=8)
    assert bits(model.params, model.state) == bits(twin.params, twin.state)
    assert len({*outputs}) == 6


# ---- What is shown ------------------------------------------------------------------------------------------


def test_the_list_names_what_it_touches():
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dense(2)], (3,))
    text = str(model.compile(8, loss=nn.softmax_cross_entropy))
    for name in ("x", "targets", "0.weight", "1.running_mean", "gradient of 3.weight", "result", "right"):
        assert name in text
    assert text.splitlines()[-1].split() == ["step"]
    assert repr(model.compile(8)) == str(model.compile(8))
    assert "output" in str(model.compile(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.compile(0), "batch_size must be"),
        (lambda model: model.compile(2.5), "batch_size must be"),
        (lambda model: nn.Sequential([nn.Dense(2)]).compile(3), "the model must have an input_shape"),
        (lambda model: model.trainer("adam", on_nonfinite="stopp"), "on_nonfinite must be"),
        (lambda model: model.trainer("adma"), "adma"),
        (lambda model: model.trainer(fastopt.LBFGS(model.params)), "optimizer must not need the loss more than once"),
        (lambda model: model.trainer()(np.ones((2, 4)), [0, 1]), r"x must have shape \(n, 5\)"),
        (lambda model: model.trainer()(np.ones((2, 5)), [0, 3]), "y must"),
        (lambda model: model.trainer()(np.ones((2, 5)), [0, 1], [1.0]), "sample_weight must"),
        (lambda model: model.trainer()(np.ones((2, 5)), [0, 1], [1.0, -1.0]), "sample_weight must"),
    ],
)
def test_arguments_that_are_none(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(mlp())


def test_lists_are_printed_as_text():
    out = io.StringIO()
    print(mlp().compile(4), file=out)
    assert out.getvalue().startswith("gather")


def test_batches_by_arithmetic_are_slices():
    for n in range(1, 20):
        for size in range(1, n + 2):
            order = np.random.default_rng(0).permutation(n)
            each, wanted = Batches(order, size), [order[i : i + size] for i in range(0, n, size)]
            if len(wanted) > 1 and len(wanted[-1]) == 1:
                wanted[-2:] = [np.concatenate(wanted[-2:])]
            assert [each[i].tolist() for i in range(len(each))] == [chosen.tolist() for chosen in wanted]
            for i in range(len(each)):
                assert {len(chosen) for chosen in wanted[i : i + each.alike(i)]} == {len(wanted[i])}


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("softmax_cross_entropy", "labels"),
        (nn.SoftmaxCrossEntropy, "shares"),
        (nn.softmax_cross_entropy, "shares"),
        (nn.SquaredError, "values"),
        ("squared_error", "values"),
    ],
)
def test_losses_by_name_and_class(loss, kind, samples, rng, monkeypatch):
    """In `fit`, in a trainer, which makes one program, and in `compile`."""
    x, y, made = samples[0][:40], targets_of(kind, rng, 40), counted(monkeypatch)
    model, twin = mlp(), mlp()
    model.fit(x, y, batch_size=8, loss=loss)
    made.clear()
    step = twin.trainer("adam", loss)
    for chosen in nn.Shuffled(40, 8).epoch(np.random.default_rng([0, 0])):
        step(x[chosen], y[chosen])
    assert bits(model.params, model.state) == bits(twin.params, twin.state)
    assert len(made) == 1
    assert str(model.compile(8, loss=loss, y=y)) == str(made[0])


def test_targets_of_a_compiled_list():
    model = mlp()
    assert "element_loss" in names(model.compile(8, loss="squared_error"))
    assert "count_right" in names(model.compile(8, loss="softmax_cross_entropy"))
    for y in (np.zeros((8, 4)), np.zeros(8)):
        with pytest.raises(ValueError, match=r"must have shape \(8, 3\)"):
            model.compile(8, loss=nn.SquaredError(), y=y)


def test_a_program_that_is_let_go_frees_its_memory_at_once(rng):
    """Nothing of it refers to itself, which the collector would have to find."""
    model = nn.Sequential(
        [nn.Conv2D(4), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.Flatten(), nn.Dense(3)], (4, 4, 1)
    )
    made = [model.compile(8), model.compile(8, loss="softmax_cross_entropy")]
    seen = [weakref.ref(program) for program in made]
    gc.disable()
    try:
        made.clear()
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()


def test_large_programs_are_not_kept(rng):
    model = nn.Sequential([nn.Conv2D(16), nn.Conv2D(16)], (32, 32, 3))
    x = rng.normal(size=(130, 32, 32, 3)).astype(np.float32)
    model.predict(x, batch_size=128)
    assert [*model.programs] == [(2,)]


# ---- Several epochs in one call -----------------------------------------------------------------------------


def run_of_epochs(samples, in_one_call, *, callbacks=(), model=None, optimizer=fastopt.Adam, **options):
    """Bits, optimizer and history of a run; what each call took is in `in_one_call`."""
    model = mlp() if model is None else model
    made = optimizer(model.params)
    in_one_call.clear()
    history = model.fit(*samples, epochs=6, batch_size=8, optimizer=made, callbacks=callbacks, **options)
    measures = {key: value for key, value in history.items() if key != "samples_per_second"}
    return (bits(model.params, model.state), made.t, state_bits(made), measures, history.stopped), history


@pytest.mark.parametrize("n", [45, 40, 41, 8, 5], ids=str)
@pytest.mark.parametrize("order", [nn.Shuffled, nn.InOrder, nn.Stratified])
@pytest.mark.parametrize("weighted", [False, True])
def test_epochs_in_one_call(n, order, weighted, samples, in_one_call):
    """With a last batch that is smaller, whole, one larger, and the only one."""
    x, y = samples[0][:n], samples[1][:n]
    options = {"sample_weight": np.arange(n) + 0.5} if weighted else {}

    def run(*callbacks):
        each = order(y, 8) if order is nn.Stratified else order(n, 8)
        model = mlp()
        made = fastopt.Adam(model.params, lr=bind(exponential, peak=0.01, gamma=0.9, steps=3))
        in_one_call.clear()
        history = model.fit(x, y, epochs=6, batches=each, optimizer=made, callbacks=callbacks, **options)
        assert all(rate > 0 for rate in history.pop("samples_per_second"))
        return bits(model.params, model.state), made.t, state_bits(made), dict(history)

    together = run()
    assert in_one_call[-1] == "5 epochs"
    assert run(Watching()) == together
    assert "epochs" not in str(in_one_call)


@pytest.mark.parametrize("accumulate", [2, 3, 7])
@pytest.mark.parametrize("n", [45, 40, 41, 5], ids=str)
@pytest.mark.parametrize("weights", ["none", "of samples", "of classes", "many of zero"])
def test_accumulated_epochs_in_one_call(n, accumulate, weights, samples, in_one_call):
    """Steps of batches of one size, of two, and last ones of fewer: as step by step, and as Python adds up."""
    x, y = samples[0][:n], samples[1][:n]
    options = {
        "none": {},
        "of samples": {"sample_weight": np.arange(n) + 0.5},
        "of classes": {"loss": nn.SoftmaxCrossEntropy(class_weight=[0.5, 1, 3])},
        "many of zero": {"sample_weight": (np.arange(n) < 3) * 1.0},
    }[weights]
    ended = []
    for callbacks in ((), (EachEpoch(),), (Watching(),), (Looking(),)):
        model = mlp()
        made = fastopt.Adam(model.params, lr=bind(exponential, peak=0.01, gamma=0.9, steps=3), clip_global_norm=0.5)
        in_one_call.clear()
        history = model.fit(
            x, y, epochs=6, batch_size=8, accumulate=accumulate, optimizer=made, callbacks=callbacks, **options
        )
        if not callbacks:
            assert str(in_one_call[-1]).endswith(" epochs")
        assert made.t == 6 * -(-count_batches(n, 8) // accumulate)
        history.pop("samples_per_second")
        ended.append((bits(model.params, model.state), made.t, state_bits(made), dict(history)))
    assert ended[1:] == ended[:1] * 3


def test_accumulated_gradients_are_those_of_the_layers(samples, in_one_call):
    """The sum of the gradients of batches, each by its share of the weight, in which each draws masks of its own."""
    x, y, weight = *samples, np.arange(45) + 0.5
    model, twin = mlp(np.float64), mlp(np.float64)
    made, same = (fastopt.Adam(each.params, lr=0.01) for each in (model, twin))
    fit = {"epochs": 4, "batch_size": 8, "accumulate": 4, "sample_weight": weight}
    history = model.fit(x, y, optimizer=made, **fit)
    losses = []
    for _ in range(4):
        rows, losses = [*nn.Shuffled(45, 8).epoch(np.random.default_rng([0, same.t]))], []
        for parts in (rows[:4], rows[4:]):
            total, sums = sum(weight[chosen].sum() for chosen in parts), {}
            for k, chosen in enumerate(parts):
                output, cache = twin.forward(x[chosen], training=True, counter=4 * same.t + k)
                loss, dy = nn.SoftmaxCrossEntropy()(output, y[chosen], sample_weight=weight[chosen])
                share = weight[chosen].sum() / total
                losses.append(loss * weight[chosen].sum())
                for name, grad in twin.backward(dy * share, cache)[1].items():
                    sums[name] = sums.get(name, 0) + grad
            same.step(sums)
    assert "epochs" in str(in_one_call)
    assert history["loss"][-1] == pytest.approx(sum(losses) / weight.sum(), rel=1e-9)
    for name, param in (twin.params | twin.state).items():
        np.testing.assert_allclose((model.params | model.state)[name], param, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bad", [3, 8, 44])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_steps_are_skipped_in_the_middle_of_a_call(bad, accumulate, samples, in_one_call):
    """Running statistics are put back that the step began with, also where that was with a batch of another size."""
    x, y = samples[0].copy(), samples[1]
    x[bad] = 1.7e308  # overflows in a product
    ended = []
    for callbacks in ((), (EachEpoch(),), (Watching(),), (Looking(),)):
        model = steep()
        how = {"model": model, "callbacks": callbacks, "on_nonfinite": "skip", "accumulate": accumulate}
        ended.append(run_of_epochs((x, y), in_one_call, **how)[0])
        assert ended[-1][1] == 6 * (6 // accumulate - 1)
        assert ended[-1][3]["skipped"] == [1] * 6
    assert ended[1:] == ended[:1] * 3


class EachEpoch(nn.Callback):
    def __init__(self, stop_after=99):
        self.seen, self._stop_after = [], stop_after

    def on_train_begin(self, run):
        self.run = run

    def on_epoch_begin(self, epoch):
        self.seen.append((epoch, self.run.optimizer.t))

    def on_epoch_end(self, epoch, logs):
        self.seen.append((epoch, self.run.optimizer.t, logs["loss"], self.run.model.params["0.weight"].tobytes()))
        if epoch + 1 == self._stop_after:
            self.run.stop("enough")


def test_callbacks_and_validation_are_served_between_epochs(samples, in_one_call):
    alone, history = run_of_epochs(samples, in_one_call)
    assert in_one_call == [5, 1, "5 epochs"]
    each = EachEpoch()
    assert run_of_epochs(samples, in_one_call, callbacks=[each])[0] == alone
    assert in_one_call == [5, 1, *["1 epochs"] * 5]
    assert [seen[:2] for seen in each.seen] == [(i // 2, 6 * ((i + 1) // 2)) for i in range(12)]
    assert [seen[2] for seen in each.seen[1::2]] == history["loss"]
    assert len({seen[3] for seen in each.seen[1::2]}) == 6
    _, validated = run_of_epochs(samples, in_one_call, validation_data=samples)
    assert in_one_call == [5, 1, *["1 epochs"] * 5]
    assert validated["loss"] == history["loss"]
    assert len({*validated["val_loss"]}) == 6
    stopped, history = run_of_epochs(samples, in_one_call, callbacks=[EachEpoch(4)])
    assert in_one_call == [5, 1, *["1 epochs"] * 3]
    assert (stopped[1], len(history["loss"]), history.stopped) == (24, 4, "enough; stopped after epoch 4")


def test_a_run_that_goes_on_has_the_bits_of_one(samples, in_one_call):
    whole, history = run_of_epochs(samples, in_one_call)
    model = mlp()
    made = fastopt.Adam(model.params)
    parts = [model.fit(*samples, epochs=count, batch_size=8, optimizer=made) for count in (1, 3, 2)]
    assert in_one_call[-2:] == ["3 epochs", "2 epochs"]  # from the first on, as programs are kept
    assert (bits(model.params, model.state), made.t, state_bits(made)) == whole[:3]
    assert [value for part in parts for value in part["loss"]] == history["loss"]


def test_a_call_ends_where_a_schedule_does(samples, in_one_call, monkeypatch):
    """Steps for which a schedule has values are taken, whole epochs by one call, the others as far as they go."""
    monkeypatch.setitem(SCHEDULES, "negative_from", negative_from)
    register(negative_from)
    ended = []
    for callbacks in ((), (Watching(),)):
        model = mlp()
        made = fastopt.SGD(model.params, lr=bind(negative_from, late=27))
        in_one_call.clear()
        with pytest.raises(ValueError, match="lr must be"):
            model.fit(*samples, epochs=6, batch_size=8, optimizer=made, callbacks=callbacks)
        if not callbacks:
            assert in_one_call == [5, 1, "3 epochs", 3]
        assert made.t == 27
        ended.append(bits(model.params))
    assert ended[0] == ended[1]


def spike(step: int, *, at: Annotated[int, 0], height: Annotated[float, "(0, inf)"]) -> float:
    """A rate that is too high at one step."""
    return height if step == at else 0.01


@pytest.mark.parametrize("t", [18, 20, 23], ids=["the first step of an epoch", "a step", "the last step"])
@pytest.mark.parametrize("behaviour", ["stop", "skip"])
def test_what_is_not_finite_is_found_at_its_epoch(t, behaviour, samples, in_one_call, monkeypatch):
    """As batch by batch: the error, the epochs of before, and what is left."""
    monkeypatch.setitem(SCHEDULES, "spike", spike)
    register(spike)
    found, x, y = [], 10 * samples[0], samples[1][::-1] * 7 % 3  # whose gradients stay large
    for callbacks in ((), (EachEpoch(),), (Watching(),)):
        model = untimed([nn.Dense(7, activation="relu"), nn.Dropout(0.2), nn.Dense(3)], (5,))
        made = fastopt.SGD(model.params, lr=bind(spike, at=t, height=3e38))
        how = {"epochs": 6, "batch_size": 8, "callbacks": callbacks, "on_nonfinite": behaviour}
        in_one_call.clear()
        with pytest.raises(nn.NonFiniteError) as caught:
            model.fit(x, y, optimizer=made, **how)
        found.append((str(caught.value), caught.value.epochs, made.t, bits(model.params, model.state)))
        if not callbacks:
            assert in_one_call[2].endswith(" epochs")
    assert found[0] == found[1] == found[2]
    assert found[0][1:3] == (3, t + 1)
    assert ("epoch 4, after batch 6: params[" in found[0][0]) == (t == 23 or behaviour == "skip")


@pytest.mark.parametrize("bad", [3, 8, 44])
def test_steps_are_skipped_in_the_middle_of_a_call(bad, samples, in_one_call):
    """One sample in each epoch is bad: the epoch goes on behind its batch, and the next ones in one call as far as
    they go."""
    x, y = samples[0].copy(), samples[1]
    x[bad] = 3e38  # overflows in a product
    ended = []
    for callbacks in ((), (EachEpoch(),), (Watching(),)):
        model = untimed([nn.Dense(7, activation="relu"), nn.Dropout(0.2), nn.Dense(3)], (5,))
        model.params["0.weight"] *= 10
        how = {"model": model, "callbacks": callbacks, "on_nonfinite": "skip"}
        ended.append(run_of_epochs((x, y), in_one_call, **how)[0])
        assert ended[-1][1] == 30
        assert ended[-1][3]["skipped"] == [1] * 6
    assert ended[0] == ended[1] == ended[2]


def test_an_interrupt_ends_the_run_after_its_call(samples, in_one_call, monkeypatch):
    """What was asked of the run while C took several epochs: they are complete, and no further one begins."""
    model, made = mlp(), []
    of_epochs = Steps.epochs

    def interrupted(self, sizes, most, *given):
        taken = of_epochs(self, sizes, min(most, 2), *given)
        if taken:
            os.kill(os.getpid(), signal.SIGINT)
        return taken

    monkeypatch.setattr(Steps, "epochs", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        made = fastopt.Adam(model.params)
        history = model.fit(*samples, epochs=6, batch_size=8, optimizer=made)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (made.t, len(history["loss"]), history.stopped) == (18, 3, "interrupted; stopped after epoch 3")
    twin = mlp()
    assert twin.fit(*samples, epochs=3, batch_size=8)["loss"] == history["loss"]
    assert bits(twin.params, twin.state) == bits(model.params, model.state)


def test_what_is_long_is_no_call_of_epochs(samples, monkeypatch):
    """Epochs that take longer than a call should go by parts of them."""
    counts = []
    of_epochs = Steps.epochs
    monkeypatch.setattr(Steps, "epochs", lambda *args: counts.append(len(made := of_epochs(*args))) or made)
    monkeypatch.setattr(program, "SLICE", 0.0)
    mlp().fit(*samples, epochs=3, batch_size=8)
    assert counts == [0] * 3


@pytest.mark.parametrize("how", ["metrics", "own batches", "own loss", "loader"])
def test_where_python_has_a_part_epochs_go_one_by_one(how, samples, in_one_call):
    x, y = samples
    options = {
        "metrics": {"metrics": {"count": lambda targets, scores: len(targets)}},
        "own batches": {"batches": [np.arange(8), np.arange(20)]},
        "own loss": {"loss": lambda output, targets: nn.softmax_cross_entropy(output, targets)},
        "loader": {},
    }[how]
    given = (data.Loader((x, y), batch_size=8),) if how == "loader" else (x, y)
    mlp().fit(*given, epochs=3, **options)
    assert "epochs" not in str(in_one_call)


@pytest.mark.parametrize(
    ("epoch", "left", "part", "count"),
    [
        ([(32, 1e-5, 56)], 1000, 1.0, 73),  # rows
        ([(32, 1e-4, 56)], 1000, 1.0, 8),  # seconds
        ([(32, 1e-4, 56)], 1000, 0.5, 4),
        ([(32, 1e-4, 56)], 3, 1.0, 3),
        ([(32, 1e-3, 56)], 1000, 1.0, 0),  # longer than a call
        ([(1, 1e-9, 5000)], 1000, 1.0, 1),  # results
        ([(1 << 20, 1e-3, 2)], 1000, 1.0, 1),  # large, but a call takes it
        ([(32, 1e-4, 30), (5, 1e-5, 1)], 1000, 1.0, 16),
        ([(32, 1e-4, 30), (5, 0.0, 1)], 1000, 1.0, 0),  # not measured yet
    ],
)
def test_how_many_epochs_fit_in_one_call(epoch, left, part, count):
    def made(n, seconds, native=True):
        return types.SimpleNamespace(n=n, seconds=seconds, native=native)

    assert program.fitting([(made(n, seconds), k) for n, seconds, k in epoch], left, part) == count
    assert program.fitting([(made(n, seconds, False), k) for n, seconds, k in epoch], left, part) == 0
