"""Training: the loop, its history, its callbacks."""

import functools
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastopt
from fastopt import data, nn
from fastopt.nn.arguments import BY_NAME
from fastopt.nn.orders import Shuffled, count_batches
from fastopt.nn.targets import count_right
from fastopt.schedules import bind, cosine


def mlp(seed=0, dtype=np.float32):
    layers = [nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)]
    return nn.Sequential(layers, (5,), seed=seed, dtype=dtype)


@pytest.fixture
def samples(rng):
    """Labelled points of three classes."""
    y = np.arange(65) % 3
    return rng.normal(size=(65, 5)) + 1.5 * y[:, None], y


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


# ---- The same bits, or others ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "fit", "alike"),
    [
        ({}, {}, True),
        ({}, {"seed": 0}, True),
        ({}, {"seed": 1}, False),
        ({"seed": 1}, {"seed": 0}, False),
        ({}, {"batch_size": 16}, False),
        ({}, {"optimizer": "adamw"}, False),
    ],
)
def test_the_seed_decides_the_run(samples, build, fit, alike):
    first, second = mlp(), mlp(**build)
    history = first.fit(*samples, epochs=2)
    again = second.fit(*samples, epochs=2, **fit)
    assert (bits(first) == bits(second)) == alike
    assert (history["loss"] == again["loss"]) == alike


def test_count_right(rng, dtype):
    scores = rng.integers(-2, 3, size=(500, 6)).astype(dtype)  # ties among them
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    for labels in (rng.integers(6, size=500), rng.integers(6, size=500, dtype=np.uint8)):
        for view in (scores, scores[:, :1].copy(), scores[:, 1:], scores.astype(np.float16), scores[:0]):
            wanted = np.count_nonzero(view.argmax(axis=1) == labels[: len(view)])
            assert count_right(view, labels[: len(view)]) == wanted
    assert count_right(np.array([[0.0, 1.0, 1.0], [np.nan, 2.0, np.nan]], dtype), np.array([1, 0])) == 2


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 12, 13])
def test_count_batches(n):
    for size in range(1, n + 3):
        assert count_batches(n, size) == len(list(Shuffled(n, size).epoch(np.random.default_rng(0))))


class Spy(nn.Layer):
    """Sees what passes through in training."""

    def __init__(self):
        super().__init__()
        self.counters, self.seen = [], []

    def forward(self, x, *, training=False, counter=0):
        if training:
            self.counters.append(counter)
            self.seen.append(x[:, 0].copy())
        return x, None

    def backward(self, dy, cache):
        return dy, {}


def spied():
    spy = Spy()
    return spy, nn.Sequential([spy, nn.Dense(4), nn.Dropout(0.2), nn.Dense(3)], (5,))


def test_each_epoch_has_an_order_of_its_own(samples):
    x, y = samples
    spy, model = spied()
    model.fit(x, y, epochs=2)
    one, two = np.concatenate(spy.seen[:2]), np.concatenate(spy.seen[2:])
    assert (one != two).any()
    for epoch in (one, two):
        np.testing.assert_array_equal(np.sort(epoch), np.sort(x[:, 0].astype(np.float32)))


def test_a_bound_optimizer_goes_on(samples):
    """Two runs with one optimizer draw other masks in the second, as one longer run would."""
    spy, model = spied()
    optimizer = fastopt.Adam(model.params)
    model.fit(*samples, optimizer=optimizer)
    assert optimizer.t == 2
    other, twin = spied()
    twin.fit(*samples)
    assert bits(model) == bits(twin)
    model.fit(*samples, optimizer=optimizer)
    assert optimizer.t == 4
    assert spy.counters[:2] == other.counters
    assert len({*spy.counters}) == 4


@pytest.mark.parametrize(
    ("n", "size", "wanted"),
    [
        (64, 32, [32, 32]),
        (65, 32, [32, 33]),
        (66, 32, [32, 32, 2]),
        (33, 32, [33]),
        (1, 32, [1]),
        (5, 2, [2, 3]),
        (7, 100, [7]),
    ],
)
def test_a_lone_last_sample_joins_the_batch_before(n, size, wanted, rng):
    parts = list(Shuffled(n, size).epoch(rng))
    assert [len(part) for part in parts] == wanted
    assert sorted(np.concatenate(parts)) == list(range(n))


# ---- What fit returns and takes -------------------------------------------------------------------------


def test_history(samples, tmp_path):
    model = mlp()
    untrained = model.evaluate(*samples)
    history = model.fit(*samples, epochs=3, optimizer=fastopt.SGD(model.params, lr=0.0), validation_data=samples)
    assert list(history) == ["loss", "accuracy", "samples_per_second", "val_loss", "val_accuracy"]
    assert {len(values) for values in history.values()} == {3}
    assert min(history["samples_per_second"]) > 0
    assert model.evaluate(*samples)["accuracy"] == history["val_accuracy"][-1]
    assert history["val_loss"][-1] == model.evaluate(*samples)["loss"] != untrained["loss"]  # by running statistics
    history.save(tmp_path / "history.json")
    saved = json.loads((tmp_path / "history.json").read_text())
    assert saved.pop("provenance") == history.provenance
    assert saved == history
    assert list(model.fit(*samples)) == ["loss", "accuracy", "samples_per_second"]
    assert model.fit(*samples, epochs=0) == {}


def test_loss_and_accuracy_are_means_over_samples(samples):
    """Without dropout, batch norm and learning, they are those of the whole."""
    model = nn.Sequential([nn.Dense(3)], (5,), dtype=np.float64)
    history = model.fit(*samples, batch_size=20, optimizer=fastopt.SGD(model.params, lr=0.0))
    wanted = model.evaluate(*samples)
    assert history["loss"] == [pytest.approx(wanted["loss"])]
    assert history["accuracy"] == [pytest.approx(wanted["accuracy"])]


def test_inputs_stay_as_they_are(samples):
    x, y = samples[0].astype(np.float32), samples[1]
    before = x.tobytes(), y.tobytes()
    mlp().fit(x, y)
    assert (x.tobytes(), y.tobytes()) == before


def test_a_loss_of_your_own(rng):
    x = rng.normal(size=(64, 4))
    y = x @ rng.normal(size=(4, 2))

    def mean_square(output, targets):
        error = output - targets
        return float((error**2).mean()), 2 * error / error.size

    model = nn.Sequential([nn.Dense(2)], (4,), dtype=np.float64)
    history = model.fit(
        x, y, epochs=50, loss=mean_square, optimizer=fastopt.Adam(model.params, lr=0.1), validation_data=(x, y)
    )
    assert list(history) == ["loss", "samples_per_second", "val_loss"]  # there are no labels to be right about
    assert history["val_loss"][-1] < 1e-3 < history["loss"][0]
    assert model.evaluate(x, y, loss=mean_square) == {"loss": history["val_loss"][-1]}


def swapped(model):
    """The same arrays, two of one shape under each other's names."""
    return model.params | {"1.scale": model.params["1.shift"], "1.shift": model.params["1.scale"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, y: {"x": x[:0], "y": y[:0]}, "x must hold at least one sample"),
        (lambda m, x, y: {"y": y[1:]}, r"one target per input, 65, got shape \(64,\)"),
        (lambda m, x, y: {"y": np.stack([y, y], 1)}, r"targets must have shape \(65, 3\), got \(65, 2\)"),
        (lambda m, x, y: {"y": y + 0.5}, r"y must be labels of classes, whole numbers, got 0.5 at y\[0\]"),
        (lambda m, x, y: {"y": np.where(np.arange(65) == 64, 3, y)}, r"y must be in \[0, 3\), got 3"),
        (lambda m, x, y: {"epochs": -1}, "epochs must be at least 0, got -1"),
        (lambda m, x, y: {"epochs": 1.5}, "epochs must be an integer"),
        (lambda m, x, y: {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (lambda m, x, y: {"seed": -1}, "seed must be at least 0"),
        (lambda m, x, y: {"optimizer": "lioness"}, "optimizer must be one of 'sgd'"),
        (lambda m, x, y: {"optimizer": fastopt.Adam(mlp().params)}, "must be bound to model.params"),
        (lambda m, x, y: {"optimizer": fastopt.Adam(list(m.params.values()))}, "must be bound to model.params"),
        (lambda m, x, y: {"optimizer": fastopt.Adam({"0.bias": m.params["0.bias"]})}, "must be bound to model.params"),
        (lambda m, x, y: {"optimizer": fastopt.Adam(swapped(m))}, "must be bound to model.params"),
        (lambda m, x, y: {"optimizer": 3}, "optimizer must be the name of one, or an optimizer, got int"),
        (lambda m, x, y: {"optimizer": None}, "optimizer must be the name of one, or an optimizer, got NoneType"),
        (lambda m, x, y: {"optimizer": fastopt.EMA}, "optimizer must be the name of one, .*, got the class EMA"),
        (
            lambda m, x, y: {"optimizer": fastopt.EMA(m.params)},
            "optimizer must be the name of one, or an optimizer, got E",
        ),
        (lambda m, x, y: {"callbacks": (0, 0)}, r"callbacks\[0\] must be a Callback, got int"),
        (
            lambda m, x, y: {"callbacks": [nn.Lines(), nn.Lines]},
            r"callbacks\[1\] must be .*, got the class Lines: call it",
        ),
        (lambda m, x, y: {"callbacks": nn.Lines}, "callbacks must be .*, got the class Lines: call it"),
        (lambda m, x, y: {"callbacks": 0}, "callbacks must be a Callback, or a sequence of them, got int"),
        (lambda m, x, y: {"callbacks": "lines"}, "callbacks must be a Callback, or a sequence of them, got str"),
        (lambda m, x, y: {"loss": "mses"}, "loss must be one of 'softmax_cross_entropy', .*; got 'mses'"),
        (lambda m, x, y: {"loss": None}, "loss must be a name, or a function"),
        (lambda m, x, y: {"loss": Recorder}, "loss must be a function, got the class Recorder: call it"),
        (lambda m, x, y: {"x": None}, "x must be an array of numbers, got object"),
        (lambda m, x, y: {"x": "x"}, "x must be an array of numbers"),
        (lambda m, x, y: {"y": None}, "y must have one target per input"),
        (lambda m, x, y: {"epochs": None}, "epochs must be an integer"),
        (lambda m, x, y: {"accumulate": "2"}, "accumulate must be an integer"),
        (lambda m, x, y: {"seed": "0"}, "seed must be an integer"),
        (
            lambda m, x, y: {"on_nonfinite": "raise"},
            "on_nonfinite must be one of 'stop', 'skip', 'ignore'; got 'raise'",
        ),
        (lambda m, x, y: {"sample_weight": "heavy"}, "sample_weight must be an array of numbers"),
        (lambda m, x, y: {"sample_weight": np.full(65, 1e300)}, "sample_weight .* must have products that are finite"),
        (lambda m, x, y: {"class_weight": 2.0}, "class_weight must"),
        (lambda m, x, y: {"class_weight": {0: "a", 1: 1, 2: 1}}, "class_weight must be an array of numbers"),
        (lambda m, x, y: {"validation_data": x}, r"validation_data must be a pair \(x, y\), or .*, got ndarray"),
        (lambda m, x, y: {"validation_data": (x, y, y, y)}, r"validation_data must be a pair .*, got 4 values"),
        (lambda m, x, y: {"validation_data": (x, y, -y)}, r"sample_weight must be in \[0, inf\), got -1"),
        (lambda m, x, y: {"validation_data": (x[:, 1:], y)}, r"x must have shape \(n, 5\), got \(65, 4\)"),
        (lambda m, x, y: {"validation_data": (x, y[1:])}, r"one target per input, 65, got shape \(64,\)"),
        (lambda m, x, y: {"validation_data": (x, y - 1)}, r"must be in \[0, 3\), got -1"),
    ],
)
def test_refuses_before_anything_is_changed(samples, change, message):
    model = mlp()
    before = bits(model)
    x, y = samples
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(**({"x": x, "y": y, "batch_size": 8} | change(model, x, y)))
    assert bits(model) == before


# ---- Callbacks ------------------------------------------------------------------------------------------


class Recorder(nn.Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, run):
        self.calls.append(("train begins", run.model, run.optimizer, run.epochs, run.batches))

    def on_epoch_begin(self, epoch):
        self.calls.append(("epoch begins", epoch))

    def on_batch_begin(self, batch):
        self.calls.append(("batch begins", batch))

    def on_gradients(self, batch, grads):
        self.calls.append(("gradients", batch, list(grads)))

    def on_batch_end(self, batch, logs):
        self.calls.append(("batch ends", batch, list(logs)))
        self.loss = logs["loss"]

    def on_epoch_end(self, epoch, logs):
        self.calls.append(("epoch ends", epoch, list(logs)))
        self.logs = logs

    def on_train_end(self):
        self.calls.append(("train ends",))


def test_callbacks_are_called_in_order(samples):
    model, recorder = mlp(), Recorder()
    optimizer = fastopt.Adam(model.params)
    history = model.fit(*samples, epochs=2, optimizer=optimizer, callbacks=[nn.Callback(), recorder])
    keys = ["loss", "accuracy", "samples_per_second"]
    names = ["0.weight", "0.bias", "1.scale", "1.shift", "4.weight", "4.bias"]
    assert recorder.calls == [
        ("train begins", model, optimizer, 2, 2),
        *(
            call
            for epoch in range(2)
            for call in (
                ("epoch begins", epoch),
                *(
                    (*event, *more)
                    for batch in range(2)
                    for event, more in (
                        (("batch begins", batch), ()),
                        (("gradients", batch), (names,)),
                        (("batch ends", batch), (["loss"],)),
                    )
                ),
                ("epoch ends", epoch, keys),
            )
        ),
        ("train ends",),
    ]
    assert recorder.logs == {key: history[key][-1] for key in keys}
    assert recorder.loss > 0


def test_learning_rate_scheduler(samples):
    model = mlp()
    optimizer = fastopt.SGD(model.params, lr=9.0)
    asked, used = [], []

    class Watch(nn.Callback):
        def on_epoch_begin(self, epoch):
            used.append(optimizer.lr)

    def schedule(step, steps):
        asked.append((step, steps))
        return 1 / (1 + step)

    model.fit(*samples, epochs=2, optimizer=optimizer, callbacks=[nn.LearningRateScheduler(step=schedule), Watch()])
    assert asked == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert used == [1, 1 / 3]
    assert optimizer.lr == 1 / 4  # that of the last step, not of one that never comes


def test_fit_goes_on_with_its_optimizer(samples):
    """Two runs of one epoch with the same optimizer are one run of two."""
    models = mlp(), mlp()
    models[0].fit(*samples, epochs=2, optimizer=fastopt.Adam(models[0].params))
    optimizer = fastopt.Adam(models[1].params)
    for _ in range(2):
        models[1].fit(*samples, epochs=1, optimizer=optimizer)
    for name, param in models[0].params.items():
        np.testing.assert_array_equal(models[1].params[name], param)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_without_a_terminal(samples):
    text = io.StringIO()
    mlp().fit(*samples, epochs=10, callbacks=[nn.Lines(text)])
    lines = text.getvalue().splitlines()
    assert len(lines) == 10
    for epoch, line in enumerate(lines, start=1):
        shown = rf"epoch {epoch:>2}/10  loss \d\.\d{{4}}  accuracy \d\.\d{{4}}  samples per second [\d,]+"
        assert re.fullmatch(shown, line)


def test_a_bar_in_a_terminal(samples, monkeypatch):
    tqdm = pytest.importorskip("tqdm").tqdm
    text, moves = Terminal(), []
    update = tqdm.update
    monkeypatch.setattr(tqdm, "update", lambda bar: moves.append((bar.desc, bar.total, bar.postfix)) or update(bar))
    mlp().fit(*samples, epochs=2, callbacks=[nn.Lines(text)])
    assert [move[:2] for move in moves] == [(f"epoch {epoch}/2", 2) for epoch in (1, 1, 2, 2)]
    assert all(re.fullmatch(r"loss=\d\.\d{4}", loss) for _, _, loss in moves)
    for epoch in (1, 2):
        assert f"\repoch {epoch}/2: " in text.getvalue()
        assert f"\repoch {epoch}/2  loss" in text.getvalue()  # where the bar was


def test_a_bar_in_a_notebook(samples, monkeypatch, capsys):
    """That of `tqdm.auto`, on standard output; where the output goes elsewhere, there is none."""
    auto, made = pytest.importorskip("tqdm.auto"), []
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    plain = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr(auto, "tqdm", lambda **options: made.append(options) or plain(**options))
    mlp().fit(*samples, epochs=2, callbacks=[nn.Lines(io.StringIO())])
    assert not made
    mlp().fit(*samples, epochs=2, callbacks=[nn.Lines()])
    assert [(each["desc"], each["total"], each["file"]) for each in made] == [
        ("epoch 1/2", 2, sys.stdout),
        ("epoch 2/2", 2, sys.stdout),
    ]
    assert capsys.readouterr().out.count("samples per second") == 2


def test_history_in_a_notebook():
    history = nn.History()
    for epoch in range(12):
        history.add({"loss": 1 / (epoch + 1), "val_a<b": 0.5})
    history.stopped = "no more > 3"
    table = history._repr_html_()
    assert table.startswith("<table><tr><th>epoch</th><th>loss</th><th>val a&lt;b</th></tr><tr><td>1</td><td>1</td>")
    assert re.findall(r"<tr><td>([^<]*)", table) == ["1", "2", "3", "4", "5", "…", "8", "9", "10", "11", "12"]
    assert table.endswith("<td>0.08333</td><td>0.5</td></tr></table><p>no more &gt; 3</p>")
    assert nn.History()._repr_html_() == "<table><tr><th>epoch</th></tr></table>"


def test_no_bar_without_tqdm(samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    text = Terminal()
    mlp().fit(*samples, epochs=2, callbacks=[nn.Lines(text)])
    assert "\r" not in text.getvalue()
    assert len(text.getvalue().splitlines()) == 2


@pytest.mark.slow
def test_curves(samples, tmp_path):
    pytest.importorskip("matplotlib")
    from fastopt.nn.monitor import plot

    history = mlp().fit(*samples, epochs=2, validation_data=samples)
    for name, some in (("a.png", history), ("b.svg", {"loss": [1.0]}), ("c.pdf", {})):
        plot(some, tmp_path / name)
    beginnings = {path.name: path.read_bytes()[:4] for path in tmp_path.iterdir()}
    assert beginnings == {"a.png": b"\x89PNG", "b.svg": b"<?xm", "c.pdf": b"%PDF"}


# ---- Learning -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_lowers_the_loss(samples, dtype):
    model = mlp(dtype=dtype)
    before = model.evaluate(*samples)["loss"]
    history = model.fit(*samples, epochs=50)
    assert model.evaluate(*samples)["loss"] < 0.6 * before
    assert history["loss"][-1] < 0.7 * history["loss"][0]


def test_the_first_loss_is_that_of_guessing():
    x, y = data.digits()
    model = nn.Sequential([nn.Flatten(), nn.Dense(10, init="xavier")], x.shape[1:])
    model.params["1.weight"] *= 1e-3
    assert model.evaluate(x, y)["loss"] == pytest.approx(np.log(10), rel=1e-3)


def test_a_model_memorises_a_few_samples(rng):
    x, y = rng.normal(size=(20, 6, 6, 1)), rng.integers(10, size=20)
    layers = [nn.Conv2D(8, activation="relu"), nn.MaxPool2D(), nn.Flatten(), nn.Dense(10)]
    model = nn.Sequential(layers, (6, 6, 1))
    model.fit(x, y, epochs=60, batch_size=20, optimizer=fastopt.Adam(model.params, lr=0.03))
    assert model.evaluate(x, y)["accuracy"] == 1.0
    assert model.evaluate(x, y)["loss"] < 0.05


@pytest.mark.parametrize("name", BY_NAME)
def test_every_optimizer_learns_digits(name):
    if name == "lbfgs":
        pytest.importorskip("scipy")
    x, y, x_test, y_test = data.load("digits")
    model = nn.Sequential([nn.Flatten(), nn.Dense(32, activation="relu"), nn.Dense(10)], x.shape[1:])
    epochs = {"rprop": 100, "lbfgs": 10}.get(name)  # which go by gradients of all samples
    model.fit(x, y, optimizer=name, epochs=epochs or 20, batch_size=len(x) if epochs else 32)
    assert model.evaluate(x_test, y_test)["accuracy"] > 0.9


# ---- Whole batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [[], [nn.BatchNorm]], ids=["plain", "batch norm"])
def test_lbfgs_gets_its_closure(norm, samples):
    pytest.importorskip("scipy")

    def build():
        return nn.Sequential([nn.Dense(8), *(kind() for kind in norm), nn.Tanh(), nn.Dense(3)], (5,), dtype=np.float64)

    model, again = build(), build()
    lbfgs, losses = fastopt.LBFGS(model.params, max_iter=5), []

    class Watch(nn.Callback):
        def on_gradients(self, batch, grads):
            losses.append(batch)

    before = model.evaluate(*samples)["loss"]
    history = model.fit(
        *samples, batch_size=65, epochs=4, optimizer=lbfgs, validation_data=samples, callbacks=[Watch()]
    )
    assert lbfgs.t == 4
    assert len(losses) == lbfgs.evaluations + 4 * len(norm)
    if not norm:
        assert history["loss"][0] == pytest.approx(before)
        assert history["loss"][1:] == pytest.approx(history["val_loss"][:-1])  # each epoch begins where one has ended
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    parts = again.fit(*samples, batch_size=65, epochs=4, optimizer=fastopt.LBFGS(again.params, max_iter=5))
    assert parts["loss"] == history["loss"]


def test_statistics_after_a_line_search_are_those_of_the_step(samples):
    pytest.importorskip("scipy")
    model = nn.Sequential([nn.Dense(8), nn.BatchNorm(momentum=1.0), nn.Dense(3)], (5,), dtype=np.float64)
    model.fit(*samples, batch_size=65, epochs=2, optimizer=fastopt.LBFGS(model.params, max_iter=5))
    inside = samples[0] @ model.params["0.weight"] + model.params["0.bias"]
    np.testing.assert_allclose(model.state["1.running_mean"], inside.mean(axis=0))


def test_lbfgs_by_batches_is_refused_with_a_line_that_works(samples):
    pytest.importorskip("scipy")
    model = mlp()
    x, y = samples
    optimizer = fastopt.LBFGS(model.params, max_iter=2)
    with pytest.raises(ValueError, match=r"^LBFGS needs the gradient of all samples in each step") as raised:
        model.fit(x, y, optimizer=optimizer)
    lines = re.findall(r"model\.fit\([^)]*\)", str(raised.value))
    assert len(lines) == 2
    for line in lines:
        eval(line, {"model": model, "x": x, "y": y, "optimizer": optimizer})
    assert optimizer.t == 2


def test_lbfgs_stops_where_the_loss_is_not_finite(samples):
    pytest.importorskip("scipy")
    model = mlp(dtype=np.float64)
    before = bits(model)

    def loss(output, targets):
        return np.nan, np.zeros_like(output)

    optimizer = fastopt.LBFGS(model.params)
    with pytest.raises(
        nn.NonFiniteError, match=r"^epoch 1, batch 1: the forward pass of the loss: in its output, 1 NaN"
    ):
        model.fit(*samples, batch_size=65, optimizer=optimizer, loss=loss)
    assert bits(model) == before


# ---- Learning rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        bind(cosine, steps=4, peak=0.1),
        lambda step: cosine(step, steps=4, peak=0.1),
        lambda step, steps: cosine(step, steps=steps, peak=0.1),
        functools.partial(lambda peak, step, steps: cosine(step, steps=steps, peak=peak), 0.1),
    ],
    ids=["bound", "of the step", "of both", "partial"],
)
def test_schedules_that_a_scheduler_takes(schedule, samples):
    model, rates = mlp(), []
    optimizer = fastopt.Adam(model.params)

    class Watch(nn.Callback):
        def on_batch_end(self, batch, logs):
            rates.append(optimizer.lr)

    model.fit(*samples, epochs=2, optimizer=optimizer, callbacks=[nn.LearningRateScheduler(step=schedule), Watch()])
    assert rates == [cosine(step, steps=4, peak=0.1) for step in range(4)]


def test_schedules_of_the_epoch(samples):
    """Keras's form, of the epoch, or of it and the rate as it is."""
    asked = []

    def halved(epoch, lr):
        asked.append((epoch, lr))
        return lr / 2

    for schedule, wanted in ((halved, [0.2, 0.1, 0.05]), (lambda epoch: 0.1 * (1 + epoch), [0.1, 0.2, 0.3])):
        model, rates = mlp(), []
        optimizer = fastopt.Adam(model.params, lr=0.4)

        class Watch(nn.Callback):
            def on_batch_end(self, batch, logs, optimizer=optimizer, rates=rates):
                rates.append(optimizer.lr)

        callbacks = [nn.LearningRateScheduler(schedule), Watch()]
        model.fit(*samples, epochs=3, optimizer=optimizer, callbacks=callbacks)
        np.testing.assert_allclose(rates, np.repeat(wanted, 2))  # two steps in each epoch
    assert asked == [(0, 0.4), (1, 0.2), (2, 0.1)]


def test_a_schedule_that_is_bound_is_of_the_step_by_either_way(samples):
    bound = bind(cosine, steps=4, peak=0.1)
    assert [nn.LearningRateScheduler(bound).by_step, nn.LearningRateScheduler(step=bound).by_step] == [True, True]
    models = [mlp(), mlp(), mlp()]
    for model, options in zip(
        models,
        (
            {"callbacks": nn.LearningRateScheduler(bound)},
            {"callbacks": nn.LearningRateScheduler(step=bound)},
            {"lr": bound},
        ),
        strict=True,
    ):
        model.fit(*samples, epochs=2, **options)
    assert bits(models[0]) == bits(models[1]) == bits(models[2])


@pytest.mark.parametrize("schedule", [0.1, cosine, lambda: 0.1, lambda a, b, c: 0.1, fastopt.schedules.Schedule])
def test_schedules_that_it_does_not_take(schedule, refuses):
    refuses(lambda: nn.LearningRateScheduler(schedule), r"schedule must be called as schedule\(epoch, lr\) or")
    refuses(lambda: nn.LearningRateScheduler(step=schedule), r"step must be called as step\(step, steps\) or")


def test_a_scheduler_takes_one_function(refuses):
    for options in ({}, {"schedule": abs, "step": abs}):
        refuses(
            lambda options=options: nn.LearningRateScheduler(**options), "LearningRateScheduler must have a schedule"
        )
    for of_the_step in (lambda step: 0.1, lambda step, steps: 0.1):
        refuses(
            lambda schedule=of_the_step: nn.LearningRateScheduler(schedule), "schedule must be a function of the epoch"
        )


@pytest.mark.parametrize(
    "callback",
    [nn.LearningRateScheduler(bind(cosine, steps=4, peak=0.1)), nn.ReduceLROnPlateau("loss")],
    ids=["s", "p"],
)
def test_an_optimizer_without_a_rate_has_none_set(callback, samples, refuses):
    model = mlp()
    lbfgs = fastopt.LBFGS(model.params)
    refuses(
        lambda: model.fit(*samples, batch_size=65, optimizer=lbfgs, callbacks=[callback]),
        "optimizer must have a learning rate to be set, got LBFGS",
        *model.params.values(),
    )
    assert not hasattr(lbfgs, "lr")
    refuses(lambda: nn.lr_find(model, *samples, optimizer=lbfgs), "optimizer must have a learning rate, got LBFGS")
