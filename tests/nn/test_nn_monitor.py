"""Traces, anomalies, records, the page."""

import json
import math
import re
import sys

import numpy as np
import pytest

import fastopt
from fastopt import data, drawing, nn
from fastopt.nn import monitor


def mlp(seed=0, dtype=np.float32):
    layers = [nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(8, activation="relu"), nn.Dense(3)]
    return nn.Sequential(layers, (5,), seed=seed, dtype=dtype)


def nested(dtype=np.float32):
    inner = nn.Sequential([nn.Dense(5), nn.ReLU(), nn.Sequential([nn.Dense(5), nn.BatchNorm()])])
    return nn.Sequential([nn.Dense(5), inner, nn.Dense(3)], (5,), dtype=dtype)


@pytest.fixture
def samples(rng):
    y = np.arange(64) % 3
    return (rng.normal(size=(64, 5)) + 1.5 * y[:, None]).astype(np.float32), y


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


# ---- Traces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [mlp, nested])
def test_a_trace_is_a_pass_and_leaves_the_model(build, samples):
    model = build()
    before, told = bits(model), []
    seen = monitor.trace(model, *samples, counter=7, witness=lambda *what: told.append(what[:3]))
    assert bits(model) == before
    assert monitor.trace(model, *samples, counter=7).loss == seen.loss
    output, cache = model.forward(samples[0], training=True, counter=7)
    value, dy = nn.softmax_cross_entropy(output, samples[1])
    _, grads = model.backward(dy, cache)
    assert seen.loss == value
    np.testing.assert_array_equal(seen.outputs[-1], output)
    np.testing.assert_array_equal(seen.gradients[-1], dy)
    assert seen.grads.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_array_equal(seen.grads[name], grad)
    names = [name for name, *_ in told]
    assert names[0] == "layer 0 (Dense)"
    passes = [direction for _, direction, _ in told]
    assert passes == sorted(passes, reverse=True)  # forward, then backward
    if build is nested:
        assert names.index("layer 1.2.1 (BatchNorm)") < names.index("layer 1.2 (Sequential)")
        assert names.index("layer 1.2 (Sequential)") < names.index("layer 1 (Sequential)")


# ---- Anomalies ------------------------------------------------------------------------------------------


class Breaks(nn.Layer):
    """The identity, which makes one NaN in a pass."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def _spoilt(self, array):
        array = array.copy()
        array.flat[3] = np.nan
        return array

    def forward(self, x, **_):
        return (self._spoilt(x) if self.where == "forward" else x), None

    def backward(self, dy, cache, **_):
        return (self._spoilt(dy) if self.where == "backward" else dy), {}


def test_no_anomaly(samples):
    assert monitor.find_anomaly(mlp(), *samples) is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda m, x, y: m.params["4.weight"].__setitem__((0, 1), np.nan),
            r"params\[4.weight\], which was given: 1 NaN of 128 values",
        ),
        (lambda m, x, y: x.__setitem__((2, 1), np.inf), "x, which was given: 1 infinite of 320 values"),
        (
            lambda m, x, y: m.params["0.weight"].fill(3e38),
            r"the forward pass of layer 0 \(Dense\): in its output, \d+ .* of 1024 values",
        ),
        (
            lambda m, x, y: m.params["4.weight"].fill(3e38),
            r"the forward pass of layer 4 \(Dense\): in its output, \d+ infinite of 512 values",
        ),
    ],
)
def test_the_first_layer_is_named(samples, spoil, message):
    model = mlp()
    spoil(model, *samples)
    before = bits(model)
    assert re.match(message, monitor.find_anomaly(model, *samples))
    assert bits(model) == before


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_layer_inside_of_another_is_named(samples, where):
    inner = nn.Sequential([nn.Dense(4), nn.Sequential([Breaks(where), nn.Dense(4)])])
    model = nn.Sequential([nn.Dense(5), inner, nn.Dense(3)], (5,))
    what = "its output" if where == "forward" else "the gradient of the input"
    wanted = f"the {where} pass of layer 1.1.0 (Breaks): in {what}, 1 NaN of 256 values"
    assert monitor.find_anomaly(model, *samples) == wanted
    assert "forward" not in vars(inner.layers[0])  # nothing is left of the watch


def test_a_loss_can_be_the_first(samples):
    def loss(output, targets):
        return math.inf, np.zeros_like(output)

    wanted = "the forward pass of the loss: in its output, 1 infinite of 1 values"
    assert monitor.find_anomaly(mlp(), *samples, loss) == wanted


class Spoil(nn.Callback):
    def on_train_begin(self, run):
        self.run = run

    def on_batch_begin(self, batch):
        if (self.run.epoch, batch) == (1, 2):
            self.run.model.params["4.weight"].fill(3e38)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_stops_before_the_step(samples, accumulate):
    model = mlp()
    optimizer = fastopt.Adam(model.params)
    options = {"batch_size": 16 // accumulate, "accumulate": accumulate}
    with pytest.raises(monitor.Anomaly, match=r"epoch 2, batch 3: the forward pass of layer 4 \(Dense\): in its outp"):
        model.fit(*samples, epochs=3, optimizer=optimizer, callbacks=[monitor.DetectAnomaly(), Spoil()], **options)
    assert optimizer.t == 6
    assert all(np.isfinite(param).all() for param in model.params.values())


def test_gradients_that_a_callback_spoils(samples):
    class Spoils(nn.Callback):
        def on_gradients(self, batch, grads):
            grads["0.bias"][0] = np.inf

    with pytest.raises(monitor.Anomaly, match="epoch 1, batch 1: gradients that were changed"):
        mlp().fit(*samples, callbacks=[Spoils(), monitor.DetectAnomaly()])


# ---- Numbers --------------------------------------------------------------------------------------------


def half_square(output, targets):
    error = output - targets
    return float((error**2).sum() / 2 / len(error)), error / len(error)


def test_noise_scale_is_unbiased(rng):
    """Over many batches, the estimates average to the variance and the square of the gradient."""
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 1))
    model = nn.Sequential([nn.Dense(1)], (3,), dtype=np.float64)
    error = model.predict(x) - y
    each = np.concatenate([x * error, error], axis=1)  # the gradient of each sample
    square = (each.mean(axis=0) ** 2).sum()
    covariance = each.var(axis=0).sum()
    estimates = []
    for _ in range(3000):
        chosen = rng.integers(50, size=9)  # of which 8 are used
        estimates.append(monitor.noise_scale(model, x[chosen], y[chosen], half_square, parts=4))
    mean, deviation = np.mean(estimates, axis=0), np.std(estimates, axis=0) / math.sqrt(3000)
    np.testing.assert_array_less(np.abs(mean - [covariance, square]), 4 * deviation)
    np.testing.assert_array_less(deviation, [0.05 * covariance, 0.2 * square])


def test_the_noise_of_equal_samples_is_0():
    model = nn.Sequential([nn.Dense(1)], (3,), dtype=np.float64)
    x, y = np.ones((8, 3)), np.ones((8, 1))
    covariance, square = monitor.noise_scale(model, x, y, half_square)
    error = (model.predict(x) - y)[0, 0]
    assert covariance == pytest.approx(0, abs=1e-12)
    assert square == pytest.approx(4 * error**2)


def test_noise_scale_needs_samples(samples):
    with pytest.raises(ValueError, match="parts must be at least 2, got 1"):
        monitor.noise_scale(mlp(), samples[0][:3], samples[1][:3])


def test_dead_share():
    output = np.zeros((2, 3, 3, 4))
    output[1, 2, 0, 1] = 1
    assert monitor.dead_share(output) == 0.75


# ---- Records --------------------------------------------------------------------------------------------


def test_a_record(samples):
    model = mlp()
    model.params["4.bias"][:6] = -1e6  # six of eight never answer
    losses, norms, ratios = [], [], []

    class Watch(nn.Callback):
        def on_train_begin(self, run):
            self.run = run

        def on_gradients(self, batch, grads):
            norms.append(math.sqrt(sum((grad.astype(float) ** 2).sum() for grad in grads.values())))
            size = np.linalg.norm(model.params["5.weight"])
            ratios.append(self.run.optimizer.lr * np.linalg.norm(grads["5.weight"]) / size)

        def on_batch_end(self, batch, logs):
            losses.append(logs["loss"])

    optimizer = fastopt.SGD(model.params, lr=0.125)
    history = model.fit(
        *samples, epochs=2, batch_size=16, optimizer=optimizer, callbacks=[monitor.Monitor(3, bins=7), Watch()]
    )
    record = history.monitor
    assert record["step"] == [0, 3, 6]
    assert record["lr"] == [0.125] * 3
    assert record["loss"] == pytest.approx([losses[0], np.mean(losses[1:4]), np.mean(losses[4:7])])
    assert record["gradient_norm"] == pytest.approx([norms[0], norms[3], norms[6]])
    assert list(record["update_ratio"]) == ["0.weight", "4.weight", "5.weight"]
    assert record["update_ratio"]["5.weight"] == pytest.approx([ratios[0], ratios[3], ratios[6]], rel=1e-3)
    assert set(record["dead"]) == {"2 ReLU", "4 Dense"}
    assert min(record["dead"]["4 Dense"]) >= 0.75
    assert len(record["noise_scale"]) == 3
    names = [f"{i} {type(layer).__name__}" for i, layer in enumerate(model.layers)]
    for key in ("activations", "gradients"):
        assert list(record[key]) == names
        assert {len(each) for each in record[key].values()} == {3}
    low, high, counts = record["activations"]["0 Dense"][0]
    assert sum(counts) == 16 * 16
    assert len(counts) == 7
    assert low < high


def test_a_record_leaves_the_run_as_it_is(samples):
    models = mlp(), mlp()
    histories = [
        model.fit(*samples, epochs=3, batch_size=16, callbacks=callbacks)
        for model, callbacks in zip(models, ([], [monitor.Monitor(2)]), strict=True)
    ]
    assert bits(models[0]) == bits(models[1])
    assert histories[0]["loss"] == histories[1]["loss"]


def test_a_record_goes_on_in_a_resumed_run(samples, tmp_path):
    def run(path, epochs):
        callbacks = [monitor.Monitor(3), nn.ModelCheckpoint(tmp_path / path, resume=True)]
        return mlp().fit(*samples, epochs=epochs, batch_size=16, callbacks=callbacks).monitor

    run("a.npz", 2)
    assert run("a.npz", 4) == run("b.npz", 4)


def test_weights_and_small_batches(samples):
    def loss(output, targets, sample_weight):
        value, dy = nn.softmax_cross_entropy(output, targets)
        return value, dy * sample_weight[:, None]

    history = mlp().fit(*samples, batch_size=3, loss=loss, sample_weight=np.ones(64), callbacks=[monitor.Monitor(5)])
    assert all(math.isnan(value) for value in history.monitor["noise_scale"][:-1])  # the last batch has 4 samples


# ---- The page -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page(samples, tmp_path):
    pytest.importorskip("matplotlib")
    history = mlp().fit(*samples, epochs=2, batch_size=3, validation_data=samples, callbacks=[monitor.Monitor(4)])
    history.save(tmp_path / "history.json")
    saved = json.loads((tmp_path / "history.json").read_text())
    assert monitor._record(saved).keys() == monitor._record(history).keys()
    monitor.plot(saved, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    for title in ("loss", "accuracy", "norm of update / norm of weight", "dead ReLUs", "outputs of layers", "4 Dense"):
        assert f"<!-- {title}" in drawn


NAN, INF = math.nan, math.inf
HISTORIES = {
    "one epoch": {"loss": [0.5], "val_loss": [0.6], "accuracy": [0.8], "val_accuracy": [0.75]},
    "NaN in the end": {
        "loss": [2.3, 1.1, NAN, NAN],
        "val_loss": [2.2, INF, NAN, NAN],
        "accuracy": [0.2, 0.5, 0.1, 0.1],
    },
    "gaps": {"loss": [30.0, NAN, 1.0, INF, 2.0], "accuracy": [0.1, 0.2, 0.3, 0.4, 0.5]},
    "only NaN": {"loss": [NAN] * 3, "accuracy": [0.1] * 3},
    "zero": {"loss": [1.0, 0.1, 0.0], "accuracy": [0.0, 0.5, 1.0]},
    "only zero": {"loss": [0.0, 0.0], "accuracy": [0.0, 0.0]},
    "null of JSON": {"loss": [2.0, None, 1.0], "accuracy": [0.1, 0.2, 0.3]},
    "negative": {"loss": [1.0, -1.0, -3.0]},
    "whole numbers": {"loss": [3, 2, 1]},
    "no epochs": {},
}


def test_pages_are_shown_in_notebooks():
    """As PNG, without pyplot."""
    pytest.importorskip("matplotlib")
    page = monitor.plot({"loss": [1.0, 0.5]})
    picture = page._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 80 * page.get_size_inches()[0]


def drawn(history, path, monkeypatch):
    """The axes of a history's page, and the colour of it at a point."""
    colors = pytest.importorskip("matplotlib.colors")
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    pages = []
    monkeypatch.setattr(monitor, "figure", lambda size: pages.append(drawing.figure(size)) or pages[-1])
    monitor.plot(history, path)
    canvas = agg.FigureCanvasAgg(pages[0])
    for axes in pages[0].axes:
        if axes.get_legend() is not None:
            axes.get_legend().remove()  # which may be over a curve
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255

    def is_there(x, y, transform, color):
        column, row = transform.transform((x, y)).astype(int)
        around = pixels[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        return bool((np.abs(around - colors.to_rgb(color)).max(axis=-1) < 0.1).any())

    return pages[0].axes, is_there


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_every_value_can_be_seen(history, tmp_path, monkeypatch):
    """In its place; what has none, at the edge."""
    axes, is_there = drawn(history, tmp_path / "a.png", monkeypatch)
    for name, values in history.items():
        plot, color = axes["accuracy" in name], drawing.ORANGE if name.startswith("val") else drawing.BLUE
        below = "val_" + name in history and color == drawing.BLUE
        for epoch, value in enumerate(values, start=1):
            value = NAN if value is None else value
            if math.isfinite(value) and (value > 0 or plot.get_yscale() == "linear"):
                assert is_there(epoch, value, plot.transData, color) or below
            else:
                height = 0.03 if value == 0 else 0.93 if name.startswith("val") else 0.97
                assert is_there(epoch, height, plot.get_xaxis_transform(), color)
        left, right = plot.get_xlim()
        assert left < 1 <= len(values) < right
    for plot in axes:
        assert all(tick == int(tick) for tick in plot.get_xticks())


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 1e30], ids=["one record", "NaN"])
def test_a_record_can_be_seen(rate, tmp_path, monkeypatch):
    x, y = data.digits()
    model = nn.Sequential([nn.Flatten(), nn.Dense(8, activation="relu"), nn.Dense(10)], x.shape[1:])
    options = {"epochs": 2 if rate > 1 else 1, "batch_size": 64, "on_nonfinite": "ignore"}
    with np.errstate(all="ignore"):
        optimizer = fastopt.SGD(model.params, lr=rate)
        history = model.fit(x[:128], y[:128], optimizer=optimizer, callbacks=[monitor.Monitor(3)], **options)
    axes, is_there = drawn(history, tmp_path / "a.png", monkeypatch)
    record = history.monitor
    places = {plot.get_title(): plot for plot in axes}
    for title, values in (
        ("loss (blue) and learning rate (orange)", "loss"),
        ("gradient norm and noise scale", "gradient_norm"),
    ):
        plot = places[title]
        for step, value in zip(record["step"], record[values], strict=True):
            if math.isfinite(value):
                assert is_there(step, value, plot.transData, drawing.BLUE)
            else:
                assert is_there(step, 0.97, plot.get_xaxis_transform(), drawing.BLUE)
    notes = [text.get_text() for plot in axes for text in plot.texts]
    assert ("last record: no finite number other than 0" in notes) == (rate > 1)


def test_drawing_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'fastopt\[plot\]'"):
        monitor.plot({"loss": [1.0]}, tmp_path / "a.png")
