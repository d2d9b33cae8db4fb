"""Sequential: names, passes, inputs, files."""

import copy
import itertools
import json
import zipfile

import numpy as np
import pytest
from finite_differences import check_gradients

from fastopt import functional, nn, optimizers
from fastopt.data import augment


def small_cnn(dtype=np.float64, seed=1):
    """One of each layer."""
    layers = [nn.Conv2D(3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.Dropout(0.3), nn.Flatten(), nn.Dense(4)]
    return nn.Sequential(layers, (4, 6, 2), seed=seed, dtype=dtype)


def shared():
    """A dense layer and a dropout layer that stand twice."""
    dense, dropout = nn.Dense(6), nn.Dropout(0.2)
    return nn.Sequential([dense, nn.ReLU(), dropout, dense, dropout, nn.Dense(3)], (6,), dtype=np.float64)


def nested():
    """A model in a model, with a layer that stands in both rows of it twice."""
    inner = nn.Sequential([nn.Dense(5), nn.BatchNorm(), nn.Sequential([nn.ReLU(), nn.Dropout(0.3)])])
    outer = [nn.Dense(5), inner, inner, nn.Dense(4)]
    return nn.Sequential(outer, (5,), seed=3, dtype=np.float64)


def branched():
    """Residual blocks of several kinds, and layers that copy what they are given."""
    body = nn.Sequential([nn.Conv2D(16, activation="relu"), nn.GroupNorm(4), nn.Conv2D(4, groups=2)])
    layers = [
        nn.Conv2D(4, groups=2, activation="relu"), nn.Residual(body), nn.Residual(nn.Conv2D(6), nn.Conv2D(6, 1)),
        nn.GELU(), nn.Conv2D(6, groups=6), nn.AveragePool2D(), nn.Flatten(), nn.WeightNorm(nn.Dense(4)),
    ]  # fmt: skip
    return nn.Sequential(layers, (4, 6, 2), seed=4, dtype=np.float64)


def pooled(dtype=np.float32):
    """Batch norm and max pooling behind layers whose output may be overwritten, and behind some whose may not."""
    block = [nn.Conv2D(16), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D()]
    inner = nn.Sequential([nn.BatchNorm(), nn.MaxPool2D(1), nn.Conv2D(16), nn.BatchNorm(), nn.MaxPool2D(1)])
    layers = [*block, nn.Residual(inner), inner, *copy.deepcopy(block), nn.Flatten(), nn.Dense(4)]
    return nn.Sequential(layers, (9, 8, 1), seed=4, dtype=dtype)


def pooled_double():
    return pooled(np.float64)


@pytest.fixture
def batch(rng):
    """Makes inputs and labels that fit a model."""

    def make(model, n=8):
        x = rng.normal(size=(n, *model.input_shape)).astype(model.dtype)
        return x, rng.integers(model.shapes[-1][0], size=n)

    return make


# ---- Building and passes --------------------------------------------------------------------------------


def test_arrays_are_named_by_layer():
    model = small_cnn()
    assert list(model.params) == ["0.weight", "0.bias", "1.scale", "1.shift", "6.weight", "6.bias"]
    assert list(model.state) == ["1.running_mean", "1.running_var"]
    assert model.params["6.weight"] is model.layers[6].params["weight"]
    assert all(a.dtype == np.float64 for a in (model.params | model.state).values())
    assert model.shapes == [(4, 6, 2), (4, 6, 3), (4, 6, 3), (4, 6, 3), (2, 3, 3), (2, 3, 3), (18,), (4,)]


def test_a_shared_layer_has_its_arrays_once():
    assert list(shared().params) == ["0.weight", "0.bias", "5.weight", "5.bias"]


def test_parts_of_a_nested_model():
    model = nested()
    assert list(model.params)[2:-2] == ["1.0.weight", "1.0.bias", "1.1.scale", "1.1.shift"]
    assert list(model.state) == ["1.1.running_mean", "1.1.running_var"]
    inner = model.layers[1]
    assert model.params["1.0.weight"] is inner.params["0.weight"] is inner.layers[0].params["weight"]
    assert model.state["1.1.running_var"] is inner.layers[1].state["running_var"]


def test_parameters_lie_in_one_block():
    model = nested()
    ends = [(a.__array_interface__["data"][0], a.nbytes) for a in model.params.values()]
    assert all(start % 64 == 0 for start, _ in ends)
    for (start, size), (following, _) in itertools.pairwise(ends):
        assert 0 <= following - (start + size) < 64


def test_layers_that_were_built_before_keep_their_arrays():
    """An optimizer of the model that they come from goes on to update them."""
    first = small_cnn()
    params = dict(first.params)
    second = nn.Sequential([*first.layers[:-1], nn.Dense(4)], (4, 6, 2), dtype=np.float64)
    assert all(first.params[name] is params[name] for name in params)
    assert second.params["0.weight"] is first.params["0.weight"]
    assert second.params["6.weight"] is second.layers[6].params["weight"] is not first.params["6.weight"]


def test_results_are_the_callers(batch, same_bits):
    """No later call overwrites what forward, backward and predict return."""
    model = small_cnn()
    x, y = batch(model, 20)
    output, caches = model.forward(x, training=True)
    dy = functional.softmax_cross_entropy(output, y)[1]
    results = {"output": output, "predicted": model.predict(x, batch_size=7)}
    dx, grads = model.backward(dy, caches)
    results |= {"dx": dx, **grads}
    before = copy.deepcopy(results)
    model.backward(dy, model.forward(x[::-1].copy(), training=True, counter=1)[1])
    model.predict(-x, batch_size=7)
    model.evaluate(-x, y)
    model.fit(x, y, optimizer=optimizers.OPTIMIZERS["sgd"](model.params, lr=0.0))
    for name, result in results.items():
        same_bits(result, before[name])


@pytest.mark.parametrize("make", [small_cnn, shared, nested])
def test_gradients_of_a_whole_model(make, batch):
    model = make()
    x, y = batch(model)

    def loss():
        return functional.softmax_cross_entropy(model.forward(x, training=True, counter=5)[0], y)[0]

    output, caches = model.forward(x, training=True, counter=5)
    dx, grads = model.backward(functional.softmax_cross_entropy(output, y)[1], caches)
    check_gradients(loss, {"x": x, **model.params}, {"x": dx, **grads})


def test_a_layer_that_stands_twice_draws_two_masks():
    dropout = nn.Dropout(0.5)
    model = nn.Sequential([dropout, dropout], (1000,))
    _, (first, second) = model.forward(np.ones((1, 1000), np.float32), training=True, counter=1)
    assert (first != second).any()


def test_the_seed_decides_weights_and_masks(batch, same_bits):
    one, twin, other = (small_cnn(seed=seed) for seed in (1, 1, 2))
    x, _ = batch(one)
    outputs = [model.forward(x, training=True)[0] for model in (one, twin, other)]
    same_bits(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).all()
    assert one.layers[4].seed != other.layers[4].seed


def test_summary():
    assert shared().summary().splitlines() == [
        "layer                    output     parameters",
        "Dense                    (6,)               42",
        "ReLU                     (6,)                0",
        "Dropout                  (6,)                0",
        "Dense (layer 0 again)    (6,)                0",
        "Dropout (layer 2 again)  (6,)                0",
        "Dense                    (3,)               21",
        "total                    504 bytes          63",
    ]


def test_repr_makes_the_same_model(same_bits):
    model = small_cnn()
    names = vars(nn) | {"float64": np.float64}
    twin = eval(repr(model), names)
    assert repr(twin) == repr(model)
    for name, array in model.params.items():
        same_bits(twin.params[name], array)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([nn.ReLU], (2,)), {}, r"layers\[0\] must be a Layer, got the class"),
        (([nn.ReLU()], (0,)), {}, "input_shape must be at least 1, got 0"),
        (([nn.ReLU()], (2.5,)), {}, "input_shape must be an integer"),
        (([nn.ReLU()], (2,)), {"dtype": np.int64}, "dtype must be float32 or float64, got int64"),
        (([nn.ReLU()], (2,)), {"seed": -1}, "seed must be at least 0"),
    ],
)
def test_refuses_to_build(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nn.Sequential(*arguments, **options)


# ---- Predicting -----------------------------------------------------------------------------------------


def test_predict_is_forward_by_batches(batch, close, same_bits):
    model = small_cnn()
    x, _ = batch(model, 7)
    wanted, caches = model.forward(x)
    assert caches[4] is None  # no dropout
    same_bits(model.predict(x), wanted)
    close(model.predict(x, batch_size=3), wanted)
    assert model.predict(x[:0]).shape == (0, 4)


def test_evaluate(batch):
    model = small_cnn()
    x, y = batch(model, 30)
    output = model.predict(x)
    right = sum(row.tolist().index(row.max()) == label for row, label in zip(output, y, strict=True))
    probabilities = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
    loss = -np.log([p[label] for p, label in zip(probabilities, y, strict=True)]).mean()
    assert 0 < right < 30
    assert model.evaluate(x, y, batch_size=4) == {"loss": pytest.approx(loss), "accuracy": pytest.approx(right / 30)}
    with pytest.raises(ValueError, match=r"y must have one target per input, 30, got shape \(29,\)"):
        model.evaluate(x, y[1:])


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        np.ndarray.tolist,
        lambda x: x[::-1].copy()[::-1],
        *(lambda x, t=t: x.astype(t) for t in (">f8", "f4", "f2", "i1", "u8", "?")),
    ],
)
def test_inputs_are_converted(convert, same_bits):
    model = nn.Sequential([nn.ReLU()], (2, 3))
    x = np.arange(24.0).reshape(4, 2, 3) % 2
    before = x.copy()
    y = model.predict(convert(x))
    same_bits(y, x.astype(np.float32))
    same_bits(x, before)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((4, 3, 2)), ValueError, r"x must have shape \(n, 2, 3\), got \(4, 3, 2\)"),
        (np.zeros((2, 3)), ValueError, r"x must have shape \(n, 2, 3\), got \(2, 3\)"),
        (np.float64(1), ValueError, r"x must have shape \(n, 2, 3\), got \(\)"),
        (np.zeros((4, 2, 3), complex), TypeError, "x must be an array of numbers, got complex128"),
        (np.zeros((4, 2, 3), object), TypeError, "x must be an array of numbers, got object"),
        (np.full((4, 2, 3), "1"), TypeError, "x must be an array of numbers, got <U1"),
        (np.zeros((4, 2, 3), "M8[s]"), TypeError, "x must be an array of numbers, got datetime64"),
    ],
)
def test_inputs_are_refused(x, error, message):
    model = nn.Sequential([nn.ReLU()], (2, 3))
    for use in (model.predict, lambda x: model.fit(x, np.zeros(4, int)), lambda x: model.evaluate(x, np.zeros(4, int))):
        with pytest.raises(error, match=message):
            use(x)


# ---- Files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small_cnn, lambda: small_cnn(np.float32), shared, nested])
def test_files_keep_every_bit(make, batch, tmp_path, same_bits):
    model = make()
    x, y = batch(model, 20)
    model.fit(x, y, epochs=2)
    model.save(tmp_path / "model.npz")
    loaded = nn.load(str(tmp_path / "model.npz"))
    assert repr(loaded) == repr(model)
    for _ in range(2):  # and training goes on alike
        assert list(loaded.params | loaded.state) == list(model.params | model.state)
        for name, array in (model.params | model.state).items():
            same_bits((loaded.params | loaded.state)[name], array)
        same_bits(loaded.predict(x), model.predict(x))
        model.fit(x, y)
        loaded.fit(x, y)


def test_shared_layers_stay_shared_in_files(tmp_path):
    shared().save(tmp_path / "model.npz")
    layers = nn.load(tmp_path / "model.npz").layers
    assert layers[3] is layers[0]
    assert layers[4] is layers[2]
    assert layers[5] is not layers[0]


def test_files_hold_no_pickle(tmp_path):
    small_cnn().save(tmp_path / "model")  # the name is kept as it is
    with np.load(tmp_path / "model", allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file} == {"f", "U"}


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    small_cnn().save(path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        small_cnn(seed=2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_as_readable_as_others(tmp_path):
    (tmp_path / "other").touch()
    small_cnn().save(tmp_path / "model.npz")
    assert (tmp_path / "model.npz").stat().st_mode == (tmp_path / "other").stat().st_mode


def rewritten(change):
    """Writes a model's file of format 1, which has no checksum, with its configuration and arrays changed."""

    def write(path):
        small_cnn().save(path)
        with np.load(path) as file:
            arrays = dict(file)
        del arrays["fastopt"]
        config = json.loads(str(arrays["config"]))
        change(config, arrays)
        with open(path, "wb") as file:
            np.savez(file, **(arrays | {"config": json.dumps(config)} if "config" in arrays else arrays))

    return write


def cut(path):
    small_cnn().save(path)
    path.write_bytes(path.read_bytes()[:-100])


def broken(path):
    """One bit of an array flipped."""
    small_cnn().save(path)
    with zipfile.ZipFile(path) as file:
        place = file.getinfo("params/6.weight.npy").header_offset + 300
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("epoch,loss\n"), "must name a model"),
        (lambda path: path.write_bytes(b""), "must name a model"),
        (lambda path: path.write_bytes(b"PK\3\4 nothing more"), "must name a model"),
        (lambda path: np.zeros(3).dump(path), "must name a model"),
        (lambda path: np.savez(path, x=np.zeros(3)), "must name a model"),
        (lambda path: np.savez(path, config=np.array([None], object)), "must name a model"),
        (cut, "must name a model"),
        (broken, "must name a model"),
        (rewritten(lambda config, arrays: arrays.pop("params/6.bias")), "params/6.bias"),
        (rewritten(lambda config, arrays: arrays.update({"params/6.bias": np.zeros(5)})), r"shape \(4,\), got \(5,\)"),
        (rewritten(lambda config, arrays: arrays.update({"state/1.running_var": np.zeros(3, "f4")})), "float64"),
        (rewritten(lambda config, arrays: config["layers"][1].update({"class": "Unknown"})), "Unknown"),
        (rewritten(lambda config, arrays: config["layers"][0].update(twist=2)), "twist"),
        (rewritten(lambda config, arrays: config.pop("seed")), "seed"),
    ],
)
def test_wrong_files_are_refused(write, message, tmp_path):
    path = tmp_path / "model.npz"
    write(path)
    with pytest.raises(ValueError, match=message):
        nn.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "none.npz")


def test_layers_of_your_own(batch, tmp_path, monkeypatch, same_bits):
    monkeypatch.setattr(nn.Layer, "classes", copy.copy(nn.Layer.classes))

    class Scale(nn.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, *, training=False, counter=0):
            return x * self.factor, None

        def backward(self, dy, cache):
            return dy * self.factor, {}

    model = nn.Sequential([Scale(0.5), nn.Dense(3)], (4,))
    x, y = batch(model)
    model.fit(x, y)
    model.save(tmp_path / "model.npz")
    same_bits(nn.load(tmp_path / "model.npz").predict(x), model.predict(x))


# ---- Copies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
def test_a_copy_is_a_model_of_its_own(dtype, rng):
    layers = [nn.Dense(4), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(3)]
    model = nn.Sequential(layers, (5,), seed=3)
    x, y = rng.normal(size=(20, 5)), np.arange(20) % 3
    model.fit(x, y)
    twin = model.copy(dtype=dtype)
    assert twin.dtype == (dtype or np.float32)
    assert [repr(layer) for layer in twin.layers] == [repr(layer) for layer in model.layers]
    for name, array in (model.params | model.state).items():
        np.testing.assert_array_equal((twin.params | twin.state)[name], array)
    wanted = model.forward(model.inputs("x", x), training=True, counter=7)[0]
    np.testing.assert_allclose(twin.forward(twin.inputs("x", x), training=True, counter=7)[0], wanted, 1e-4, 1e-4)
    before = twin.params["0.weight"].copy()
    model.fit(x, y)
    np.testing.assert_array_equal(twin.params["0.weight"], before)


# ---- Counting ---------------------------------------------------------------------------------------------


def test_a_model_counts_its_calls_in_training(batch, same_bits):
    """A loop of one's own that gives no counter draws a mask of its own in each step."""
    model = small_cnn()
    x, _ = batch(model)
    outputs = [model.forward(x, training=True)[0] for _ in range(3)]
    assert all((one != other).any() for one, other in itertools.combinations(outputs, 2))
    for counter, output in enumerate(outputs):
        same_bits(model.forward(x, training=True, counter=counter)[0], output)
    model.forward(x)
    same_bits(model.forward(x, training=True)[0], model.forward(x, training=True, counter=3)[0])


def test_a_model_in_a_model_does_not_count(batch, same_bits):
    model = nested()
    x, _ = batch(model)
    first = model.forward(x, training=True, counter=4)[0]
    model.layers[1].forward(model.layers[0].forward(x)[0], training=True)
    same_bits(model.forward(x, training=True, counter=4)[0], first)


# ---- Views --------------------------------------------------------------------------------------------------


def test_outputs_for_several_views_are_averaged(rng):
    model = nn.Sequential([nn.Conv2D(4), nn.Flatten(), nn.Dense(3)], (5, 5, 2), dtype=np.float64)
    x = rng.random((6, 8, 7, 2))
    crops = [x[:, i : i + 5, j : j + 5] for i, j in ((0, 0), (0, 2), (3, 0), (3, 2), (1, 1))]
    wanted = np.mean([model.predict(view) for crop in crops for view in (crop, crop[:, :, ::-1])], axis=0)
    found = model.predict(x, views=augment.ten_crop(5), batch_size=4)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    with pytest.raises(TypeError, match="views must be Views, such as"):
        model.predict(x, views=[x])
    with pytest.raises(ValueError, match=r"x must have shape \(n, 5, 5, 2\), got \(6, 4, 4, 2\)"):
        model.predict(x, views=augment.ten_crop(4))
