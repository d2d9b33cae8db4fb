"""Callbacks, checkpoints, weights, accumulation, interruption."""

import copy
import csv
import json
import math
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import nn
from fastopt.optimizers import OPTIMIZERS
from fastopt.schedules import bind, exponential


def mlp(seed=0, dtype=np.float32):
    layers = [nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)]
    return nn.Sequential(layers, (5,), seed=seed, dtype=dtype)


def linear(dtype=np.float64):
    return nn.Sequential([nn.Dense(3)], (5,), dtype=dtype)


@pytest.fixture
def samples(rng):
    y = np.arange(65) % 3
    return rng.normal(size=(65, 5)) + 1.5 * y[:, None], y


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


class Script(nn.Callback):
    """Puts given values in the place of a measure, and keeps the weights of each epoch."""

    rank = -1

    def __init__(self, values, key="val_loss"):
        self.values, self.key, self.weights = values, key, []

    def on_train_begin(self, run):
        self.run = run

    def on_epoch_end(self, epoch, logs):
        logs[self.key] = self.values[epoch]
        self.weights.append(bits(self.run.model))


# ---- Early stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "values", "epochs", "best"),
    [
        ({"patience": 2}, [3, 2, 1, 1, 1, 1, 0], 6, 2),
        ({"patience": 0}, [3, 2, 2, 0], 3, 1),
        ({"patience": 3}, [3, 4, 2, 4, 4, 4, 0], 7, 6),
        ({"patience": 1, "min_delta": 1.0}, [5, 4.5, 4.1, 0], 3, 0),
        ({"patience": 1, "min_delta": 1.0}, [5, 4.5, 3.9, 0], 4, 3),
        ({"patience": 1}, [5, math.nan, 4, math.nan, math.nan, 0], 5, 2),
        ({"patience": 1, "mode": "max"}, [1, 2, 1, 1, 3], 4, 1),
        ({"patience": 1, "monitor": "val_accuracy"}, [0.1, 0.2, 0.1, 0.1, 0.3], 4, 1),
        ({"patience": 1, "monitor": "val_accuracy", "mode": "min"}, [0.1, 0.2, 0.1, 0.1, 0.3], 3, 0),
        ({"patience": 9}, [3, 2, 4, 4], 4, 1),
    ],
)
def test_early_stopping(samples, options, values, epochs, best):
    model, script = mlp(), Script(values, options.get("monitor", "val_loss"))
    early = nn.EarlyStopping(**options)
    history = model.fit(*samples, epochs=len(values), validation_data=samples, callbacks=[early, script])
    assert len(history["loss"]) == len(script.weights) == epochs
    assert bits(model) == script.weights[best]
    if epochs < len(values):
        measure = options.get("monitor", "val_loss")
        wanted = f"{measure} has not got better since epoch {best + 1}; stopped after epoch {epochs}"
        assert history.stopped == wanted
    else:
        assert history.stopped == ""


def test_early_stopping_without_the_best_weights(samples):
    model, script = mlp(), Script([1, 2, 3])
    model.fit(
        *samples,
        epochs=3,
        validation_data=samples,
        callbacks=[nn.EarlyStopping(patience=1, restore_best=False), script],
    )
    assert bits(model) == script.weights[-1]


def test_what_was_never_a_number_ends_the_run(samples):
    history = mlp().fit(
        *samples,
        epochs=9,
        validation_data=samples,
        callbacks=[nn.EarlyStopping(patience=1), Script([math.nan] * 9)],
    )
    assert history.stopped == "val_loss was never a number; stopped after epoch 2"


@pytest.mark.parametrize(
    "callback",
    [
        nn.EarlyStopping(),
        nn.EarlyStopping(monitor="val_accuracy"),
        nn.ModelCheckpoint("never", best_only=True),
    ],
)
def test_a_measure_that_will_not_be_there_is_refused_at_once(samples, callback):
    model = mlp()
    before = bits(model)
    with pytest.raises(ValueError, match="monitor must be one of 'loss', 'accuracy', 'samples_per_second'; got 'val_"):
        model.fit(*samples, callbacks=[callback])
    assert bits(model) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.EarlyStopping(patience=-1), "patience must be at least 0, got -1"),
        (lambda: nn.EarlyStopping(min_delta=-1.0), r"min_delta must be in \[0, inf\), got -1.0"),
        (lambda: nn.EarlyStopping(mode="up"), "mode must be one of 'auto', 'min', 'max'; got 'up'"),
        (lambda: nn.ReduceLROnPlateau(factor=1.0), r"factor must be in \(0, 1\), got 1.0"),
        (lambda: nn.ReduceLROnPlateau(patience=-1), "patience must be at least 0, got -1"),
        (lambda: nn.ModelCheckpoint("a", every=0), "every must be at least 1, got 0"),
        (lambda: nn.ModelCheckpoint("{epoch}.npz", resume=True), "path must name one file where resume is True"),
    ],
)
def test_options_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "values", "rates"),
    [
        ({"patience": 1}, [3, 2, 2, 2, 2, 2], [1, 1, 1, 0.1, 0.1, 0.01]),
        ({"patience": 0, "factor": 0.5, "cooldown": 2}, [3, 3, 3, 3, 3, 3], [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ({"patience": 0, "factor": 0.5, "min_lr": 0.3}, [3, 3, 3, 3], [1, 0.5, 0.3, 0.3]),
        ({"patience": 0, "factor": 0.5, "min_delta": 1.0}, [5, 4.5, 3.5], [1, 0.5, 0.5]),
        ({"patience": 0, "factor": 0.5, "monitor": "val_accuracy"}, [0.1, 0.2, 0.2], [1, 1, 0.5]),
    ],
)
def test_reduce_on_plateau(samples, options, values, rates):
    model, script = mlp(), Script(values, options.get("monitor", "val_loss"))
    optimizer, seen = fastopt.SGD(model.params, lr=1.0), []

    class Watch(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(optimizer.lr)

    plateau = nn.ReduceLROnPlateau(**options)
    model.fit(
        *samples, epochs=len(values), optimizer=optimizer, validation_data=samples, callbacks=[script, plateau, Watch()]
    )
    assert seen == pytest.approx(rates)


# ---- Checkpoints ----------------------------------------------------------------------------------------


class Kill(Exception):
    pass


class Killer(nn.Callback):
    """Ends the program, so to speak, in an epoch and a batch."""

    def __init__(self, epoch, batch=1):
        self.at = epoch, batch

    def on_epoch_begin(self, epoch):
        self.epoch = epoch

    def on_batch_begin(self, batch):
        if (self.epoch, batch) == self.at:
            raise Kill


def resumable(path, samples, *, epochs=8, killer=None, optimizer=fastopt.Adam):
    """A run with everything that has state; it goes on from where it was killed."""
    model = mlp()
    bound = optimizer(model.params, lr=1e-2)
    history = model.fit(
        *samples,
        epochs=epochs,
        batch_size=16,
        optimizer=bound,
        validation_data=samples,
        callbacks=[
            nn.ModelCheckpoint(path, resume=True),
            nn.EarlyStopping(patience=2, min_delta=0.2),
            nn.ReduceLROnPlateau(patience=0, min_delta=0.2, factor=0.5),
            nn.ModelCheckpoint(path.with_name("best.npz"), best_only=True),
            killer or Killer(None),
        ],
    )
    return model, bound, history


def flat(optimizer):
    state = optimizer.state_dict()
    state["state"] = state["state"] | {"trained": state.pop("trained", {})}
    arrays = {f"{name}/{key}": a.tobytes() for name, each in state.pop("state").items() for key, a in each.items()}
    return state | arrays


@pytest.mark.parametrize("optimizer", [fastopt.Adam, fastopt.Momentum])
def test_a_killed_run_goes_on_to_the_same_bits(samples, tmp_path, optimizer):
    model, bound, history = resumable(tmp_path / "whole.npz", samples, optimizer=optimizer)
    assert history.stopped.startswith("val_loss has not got better since")
    assert bound.lr < 1e-2
    for epoch in (0, 1, 3):
        with pytest.raises(Kill):
            resumable(tmp_path / "killed.npz", samples, killer=Killer(epoch), optimizer=optimizer)
    again = resumable(tmp_path / "killed.npz", samples, optimizer=optimizer)
    assert bits(again[0]) == bits(model)
    assert flat(again[1]) == flat(bound)
    for key in set(history) - {"samples_per_second"}:
        assert again[2][key] == history[key]
    assert again[2].stopped == history.stopped
    finished = resumable(tmp_path / "killed.npz", samples, optimizer=optimizer)  # there is nothing left to do
    assert bits(finished[0]) == bits(model)
    assert finished[2] == again[2]
    assert finished[2].stopped == history.stopped


def with_everything(params, lr):
    return fastopt.AdamW(
        params,
        lr=bind(exponential, peak=lr, gamma=0.9),
        groups=[{"params": "*bias", "weight_decay": 0.0, "lr_factor": 2.0}],
        clip_global_norm=0.5,
        skip_nonfinite=True,
    )


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS.values(), with_everything], ids=lambda make: make.__name__)
def test_every_optimizer_goes_on_to_the_same_bits(samples, tmp_path, optimizer):
    def run(path, killer=None):
        model = mlp()
        bound = optimizer(model.params, lr=1e-2)
        checkpoint = nn.ModelCheckpoint(tmp_path / path, resume=True)
        size = 65 if bound.full_batch else 32
        callbacks = [checkpoint, killer or Killer(None)]
        model.fit(*samples, epochs=3, batch_size=size, optimizer=bound, callbacks=callbacks)
        return bits(model), flat(bound)

    with pytest.raises(Kill):
        run("killed.npz", Killer(2, batch=0 if getattr(optimizer, "full_batch", False) else 1))
    assert run("killed.npz") == run("whole.npz")


def test_a_run_can_be_made_longer(samples, tmp_path):
    def run(epochs, path):
        model = mlp()
        falling = nn.LearningRateScheduler(step=lambda step, steps: 0.1 / (1 + step))
        model.fit(*samples, epochs=epochs, callbacks=[nn.ModelCheckpoint(path, resume=True), falling])
        return model

    run(2, tmp_path / "a.npz")
    assert bits(run(4, tmp_path / "a.npz")) == bits(run(4, tmp_path / "b.npz"))


def test_a_checkpoint_is_the_file_of_a_model(samples, tmp_path):
    model = mlp()
    model.fit(*samples, epochs=2, callbacks=[nn.ModelCheckpoint(tmp_path / "a.npz")])
    assert bits(nn.load(tmp_path / "a.npz")) == bits(model)


def test_which_epochs_are_saved(samples, tmp_path):
    script = Script([3.0, 2.0, 2.5, 1.0, 1.5])
    mlp().fit(
        *samples,
        epochs=5,
        validation_data=samples,
        callbacks=[
            nn.ModelCheckpoint(tmp_path / "every-{epoch:02d}", every=2),
            nn.ModelCheckpoint(tmp_path / "best-{epoch}-{val_loss:.1f}", best_only=True),
            script,
        ],
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"every-02", "every-04", "every-05", "best-1-3.0", "best-2-2.0", "best-4-1.0"}
    assert bits(nn.load(tmp_path / "best-4-1.0")) == script.weights[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "batch_size must be 16 as in .*, got 8"),
        ({"seed": 1}, "seed must be 0 as in .*, got 1"),
        ({"accumulate": 2}, "accumulate must be 1 as in .*, got 2"),
        ({"callbacks": [nn.Callback()]}, r"callbacks must be \['ModelCheckpoint'\] as in .*, got \['Callback', "),
        ({"model": nn.Sequential([nn.Dense(3)], (5,))}, "the model must be the one in"),
        ({"n": 60}, "samples must be 65 as in .*, got 60"),
        ({"optimizer": "adamw"}, "optimizer must be one of 'Adam'; got 'AdamW'|optimizer must be one of 'AdamW'"),
    ],
)
def test_another_run_is_not_resumed(samples, tmp_path, change, message):
    def run(model=None, n=65, callbacks=(), **options):
        model = model or mlp()
        checkpoint = nn.ModelCheckpoint(tmp_path / "a.npz", resume=True)
        options = {"batch_size": 16} | options
        before = bits(model)
        try:
            model.fit(samples[0][:n], samples[1][:n], callbacks=[checkpoint, *callbacks], **options)
        finally:
            after = bits(model)
        return before, after

    run()
    with pytest.raises(ValueError, match=message):
        run(**change)


@pytest.mark.parametrize("write", [mlp().save, lambda path: path.write_bytes(b"PK\3\4 cut short")])
def test_other_files_are_no_checkpoint(samples, tmp_path, write):
    write(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="path must name a checkpoint of a run"):
        mlp().fit(*samples, callbacks=[nn.ModelCheckpoint(tmp_path / "a.npz", resume=True)])


class Odd(nn.Callback):
    """One whose state cannot be restored."""

    def __init__(self, error=None):
        self.error, self.restored = error, []

    def state_dict(self):
        return {"odd": 1}

    def load_state_dict(self, state):
        self.restored.append(state)
        if self.error is not None and len(self.restored) == 1:
            raise self.error


@pytest.mark.parametrize("error", [KeyError("odd"), ValueError("odd"), KeyboardInterrupt()], ids=repr)
def test_what_cannot_be_restored_leaves_all_as_it_was(samples, tmp_path, error):
    def fit(model, bound, *callbacks, epochs=2):
        resume = nn.ModelCheckpoint(tmp_path / "a.npz", resume=True)
        model.fit(*samples, epochs=epochs, optimizer=bound, callbacks=[*callbacks, resume])

    model = mlp()
    fit(model, fastopt.Adam(model.params), Odd())
    other = mlp()
    bound = fastopt.Adam(other.params, lr=0.5)
    before = bits(other), flat(bound)
    with pytest.raises(ValueError if isinstance(error, KeyError) else type(error), match=r"odd|^$"):
        fit(other, bound, Odd(error))
    assert (bits(other), flat(bound)) == before
    assert bits(other) != bits(model)


def test_a_run_is_not_made_shorter(samples, tmp_path):
    resume = nn.ModelCheckpoint(tmp_path / "a.npz", resume=True)
    mlp().fit(*samples, epochs=3, callbacks=[resume])
    model = mlp()
    before = bits(model)
    with pytest.raises(ValueError, match=r"epochs must be at least 3 as in .*a\.npz', got 2"):
        model.fit(*samples, epochs=2, callbacks=[resume])
    assert bits(model) == before


PROGRAM = """
import os, signal, sys
import numpy as np
from fastopt import nn
from fastopt import files

path, moment = sys.argv[1:]
writes = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Cut:
    '''A file whose third writing is cut short by the death of the process.'''
    def __init__(self, file):
        self.file = file
    def write(self, data):
        if moment == "middle" and self.file.tell() > 500:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            die()
        return self.file.write(data)
    def __getattr__(self, name):
        return getattr(self.file, name)

def savez(file, **entries):
    global writes
    writes += 1
    real(Cut(file) if writes == 3 else file, **entries)

def renamed(source, target):
    if writes == 3 and moment == "before":
        die()
    rename(source, target)
    if writes == 3 and moment == "after":
        die()

real, rename = np.savez, os.replace
if moment != "never":
    np.savez, os.replace = savez, renamed
rng = np.random.default_rng(0)
y = np.arange(65) % 3
x = rng.normal(size=(65, 5)) + y[:, None]
model = nn.Sequential([nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)], (5,))
model.fit(x, y, epochs=5, callbacks=[nn.ModelCheckpoint(path, resume=True)])
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(tmp_path):
    """The process dies while it writes its third checkpoint; run again, it ends with the same bits."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("no SIGKILL here")

    def run(name, moment):
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / name), moment], capture_output=True, text=True, cwd=tmp_path
        )

    whole = run("whole.npz", "never")
    assert whole.returncode == 0, whole.stderr
    wanted = bits(nn.load(tmp_path / "whole.npz"))
    for moment, epochs in (("middle", 2), ("before", 2), ("after", 3)):
        killed = run(f"{moment}.npz", moment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        left = [path.name for path in tmp_path.glob(f"{moment}.npz*")]
        assert len(left) == (1 if moment == "after" else 2)  # what was being written lies beside the file
        with np.load(tmp_path / f"{moment}.npz", allow_pickle=False) as file:
            assert json.loads(str(file["run"]))["dict"]["epoch"] == epochs
        again = run(f"{moment}.npz", "never")
        assert again.returncode == 0, again.stderr
        assert bits(nn.load(tmp_path / f"{moment}.npz")) == wanted
        assert [path.name for path in tmp_path.glob(f"{moment}.npz*")] == [f"{moment}.npz"]


# ---- Loggers --------------------------------------------------------------------------------------------


def test_csv(samples, tmp_path):
    path = tmp_path / "log.csv"
    model = mlp()

    def run(epochs, killer):
        return model.fit(
            *samples,
            epochs=epochs,
            validation_data=samples,
            callbacks=[killer, nn.CSVLogger(path), nn.ModelCheckpoint(tmp_path / "a.npz", resume=True)],
        )

    with pytest.raises(Kill):
        run(3, Killer(2))
    history = run(3, Killer(None))
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["epoch", *history]
    assert [[float(value) for value in row] for row in rows[1:]] == [
        [epoch + 1, *(history[key][epoch] for key in history)] for epoch in range(3)
    ]


def scalars(folder):
    """Tags, steps and values in the event files of a folder: records of length, check, data, check."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted(Path(folder).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found[value.tag, event.step] = value.simple_value if kind == "simple_value" else kind
    return found


@pytest.mark.slow
def test_tensorboard(samples, tmp_path):
    pytest.importorskip("tensorboardX")
    model = mlp()
    optimizer = fastopt.SGD(model.params, lr=0.25)
    history = model.fit(
        *samples, epochs=2, optimizer=optimizer, callbacks=[nn.TensorBoard(tmp_path / "run", histograms=True)]
    )
    found = scalars(tmp_path / "run")
    for epoch in range(2):
        for key, values in history.items():
            assert found[key, epoch] == pytest.approx(values[epoch], rel=1e-6)
        assert found["lr", epoch] == 0.25
        assert all(found[name, epoch] == "histo" for name in model.params)


def test_tensorboard_is_an_extra(samples, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'fastopt\[tensorboard\]'"):
        mlp().fit(*samples, callbacks=[nn.TensorBoard(tmp_path)])


# ---- Weights --------------------------------------------------------------------------------------------


def weighted_square(output, targets, sample_weight=None):
    """Half the squared distance to the unit vector of the class, averaged by weights."""
    error = output - np.eye(output.shape[1])[targets]
    weight = np.ones(len(output)) if sample_weight is None else sample_weight
    share = weight / weight.sum()
    return float(share @ (error**2).sum(axis=1) / 2), error * share[:, None]


def trained(samples, epochs=3, loss=weighted_square, **options):
    model = linear()
    history = model.fit(*samples, epochs=epochs, loss=loss, optimizer=fastopt.SGD(model.params, lr=0.1), **options)
    return model.params["0.weight"], history


def test_equal_weights_are_none(samples):
    wanted = trained(samples)
    for options in (
        {"sample_weight": np.full(65, 0.5)},
        {"sample_weight": [2] * 65},
        {"class_weight": {0: 3, 1: 3.0, 2: 3}},
        {"class_weight": np.full(5, 2.0)},
    ):
        weight, history = trained(samples, **options)
        np.testing.assert_allclose(weight, wanted[0], rtol=1e-12)
        assert history["loss"] == pytest.approx(wanted[1]["loss"])


def test_weights_with_softmax_cross_entropy(samples):
    weights = np.linspace(0, 5, 65)
    wanted = trained(samples, loss=nn.SoftmaxCrossEntropy(), sample_weight=weights)
    weight, history = trained(samples, loss=nn.softmax_cross_entropy, sample_weight=weights)
    np.testing.assert_array_equal(weight, wanted[0])
    assert history["loss"] == wanted[1]["loss"]
    by_loss = trained(samples, loss=nn.SoftmaxCrossEntropy(class_weight=[1.0, 0.0, 4.0]))
    weight, history = trained(samples, loss=nn.softmax_cross_entropy, class_weight=[1.0, 0.0, 4.0])
    np.testing.assert_allclose(weight, by_loss[0], rtol=1e-12)
    assert history["loss"] == pytest.approx(by_loss[1]["loss"])


def test_a_sample_of_weight_0_does_not_count(samples):
    x, y = samples
    weight, history = trained((x, y), batch_size=65, sample_weight=(np.arange(65) < 40).astype(float))
    wanted = trained((x[:40], y[:40]), batch_size=65)
    np.testing.assert_allclose(weight, wanted[0], rtol=1e-12)
    assert history["loss"] == pytest.approx(wanted[1]["loss"])


def test_class_weights_are_sample_weights(samples):
    by_class = np.array([1.0, 0.0, 4.0])
    own = np.linspace(1, 2, 65)
    wanted = trained(samples, sample_weight=by_class[samples[1]] * own)
    for class_weight in (by_class, by_class.tolist(), dict(enumerate(by_class))):
        weight, history = trained(samples, sample_weight=own, class_weight=class_weight)
        np.testing.assert_array_equal(weight, wanted[0])
        assert history["loss"] == wanted[1]["loss"]


def test_the_loss_of_an_epoch_is_averaged_by_weights(samples):
    weights = np.linspace(0, 5, 65)
    model = linear()
    history = model.fit(
        *samples,
        batch_size=20,
        loss=weighted_square,
        optimizer=fastopt.SGD(model.params, lr=0.0),
        sample_weight=weights,
    )
    wanted, _ = weighted_square(model.predict(samples[0]), samples[1], weights)
    assert history["loss"] == [pytest.approx(wanted)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_weight": np.ones(64)}, r"sample_weight must have shape \(65,\), got \(64,\)"),
        ({"sample_weight": np.full(65, -1.0)}, r"sample_weight must be in \[0, inf\), got -1.0"),
        ({"sample_weight": np.full(65, np.nan)}, r"sample_weight must be in \[0, inf\), got nan"),
        ({"sample_weight": np.zeros(65)}, "must give some sample a weight above 0"),
        ({"class_weight": {0: 1.0, 2: 1.0}}, "class_weight must hold a weight per class, but lacks 1"),
        ({"class_weight": [1.0, 2.0]}, r"class_weight must have shape \(3,\), got \(2,\)"),
        ({"class_weight": [1.0, 2.0, np.inf]}, r"class_weight must be in \[0, inf\), got inf"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
    ],
)
def test_weights_are_checked(samples, options, message):
    model = linear()
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        model.fit(*samples, loss=weighted_square, **options)
    assert bits(model) == before


def test_class_weights_need_labels(samples):
    with pytest.raises(ValueError, match="class_weight must come with integer labels"):
        linear().fit(samples[0], samples[0][:, :3], loss=weighted_square, class_weight=[1.0, 1.0, 1.0])


# ---- Accumulation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, np.linspace(0.1, 3, 65)])
@pytest.mark.parametrize(
    "loss",
    [weighted_square, nn.softmax_cross_entropy, nn.SoftmaxCrossEntropy(class_weight=[0.0, 1.0, 3.0])],
    ids=["own", "softmax", "weighted"],
)
@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 2), (8, 4), (1, 32), (32, 1), (20, 9)])
def test_accumulated_batches_are_one(samples, batch_size, accumulate, weights, loss):
    calls = []

    class Count(nn.Callback):
        def on_batch_end(self, batch, logs):
            calls.append((batch, logs["loss"]))

    options = {"sample_weight": weights, "loss": loss}
    weight, history = trained(samples, batch_size=batch_size, accumulate=accumulate, callbacks=[Count()], **options)
    own, calls = calls, []
    wanted = trained(samples, batch_size=batch_size * accumulate, callbacks=[Count()], **options)
    np.testing.assert_allclose(weight, wanted[0], rtol=1e-11)
    assert history["loss"] == pytest.approx(wanted[1]["loss"])
    assert history["accuracy"] == wanted[1]["accuracy"]
    np.testing.assert_allclose(own, calls, rtol=1e-11)


class Spy(nn.Layer):
    """Sees what passes through."""

    def __init__(self):
        super().__init__()
        self.counters, self.seen = [], []

    def forward(self, x, *, training=False, counter=0):
        self.counters.append(counter)
        self.seen.append(x.copy())
        return x, None

    def backward(self, dy, cache):
        return dy, {}


def test_each_accumulated_batch_draws_masks_of_its_own(samples):
    spy = Spy()
    counters = spy.counters
    nn.Sequential([nn.Dense(16), spy, nn.Dense(3)], (5,)).fit(*samples, epochs=2, batch_size=8, accumulate=3)
    assert len({*counters}) == len(counters) == 2 * 8


def test_callbacks_can_be_copied_with_their_run(samples):
    stopping = nn.EarlyStopping("loss", patience=99)
    mlp().fit(*samples, callbacks=[stopping])
    assert copy.deepcopy(stopping)._best == pickle.loads(pickle.dumps(stopping))._best == stopping._best


# ---- Gradients in callbacks -----------------------------------------------------------------------------


def test_gradients_may_be_changed(samples):
    class Nothing(nn.Callback):
        def on_gradients(self, batch, grads):
            for grad in grads.values():
                grad.fill(0)

    model = linear()
    before = bits(model)
    model.fit(*samples, optimizer=fastopt.SGD(model.params, lr=1.0), callbacks=[Nothing()])
    assert bits(model) == before


# ---- Ctrl-C ---------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, as it does in a program that a shell has not started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupt(nn.Callback):
    def __init__(self, *where):
        self.where = where

    def on_epoch_begin(self, epoch):
        self.epoch = epoch

    def on_batch_begin(self, batch):
        for _ in range(self.where.count((self.epoch, batch))):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_the_run_after_its_batch(ctrl_c, samples, capsys, caplog):
    model, script = mlp(), Script([2.0, 1.0, 3.0, 3.0])
    optimizer = fastopt.Adam(model.params)
    history = model.fit(
        *samples,
        epochs=9,
        batch_size=16,
        optimizer=optimizer,
        validation_data=samples,
        callbacks=[Interrupt((3, 1)), nn.EarlyStopping(), script],
    )
    assert optimizer.t == 3 * 4 + 2  # the step that was being taken is the last
    assert {len(values) for values in history.values()} == {3}
    assert bits(model) == script.weights[1]  # the best
    assert history.stopped == "interrupted; stopped after 2 of 4 batches of epoch 4"
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("fastopt", "WARNING", f"{history.stopped}; weights and history are kept")
    ]
    assert capsys.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_batch_completes_the_epoch(ctrl_c, samples, tmp_path):
    checkpoint = nn.ModelCheckpoint(tmp_path / "a.npz", resume=True)
    model = mlp()
    history = model.fit(*samples, epochs=9, batch_size=16, callbacks=[Interrupt((1, 3)), checkpoint])
    assert len(history["loss"]) == 2
    assert history.stopped == "interrupted; stopped after epoch 2"
    history = model.fit(*samples, epochs=4, batch_size=16, callbacks=[Interrupt(), checkpoint])
    assert len(history["loss"]) == 4  # an interrupted run can be resumed
    assert history.stopped == ""


def test_a_second_ctrl_c_ends_it_at_once(ctrl_c, samples):
    with pytest.raises(KeyboardInterrupt):
        mlp().fit(*samples, callbacks=[Interrupt((0, 1), (0, 1))])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_stays(samples):
    caught = []
    before = signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    try:
        history = mlp().fit(*samples, epochs=2, callbacks=[Interrupt((0, 0))])
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught == [1]
    assert len(history["loss"]) == 2


def test_training_in_another_thread(samples):
    result = []
    thread = threading.Thread(target=lambda: result.append(mlp().fit(*samples)))
    thread.start()
    thread.join()
    assert len(result[0]["loss"]) == 1


def test_lines_say_why_a_run_was_stopped(samples, capsys):
    mlp().fit(
        *samples,
        epochs=5,
        validation_data=samples,
        callbacks=[nn.Lines(), nn.EarlyStopping(patience=0), Script([1.0, 1.0])],
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "val_loss has not got better since epoch 1; stopped after epoch 2"
    assert os.linesep not in lines[-1]


def test_history_says_why_it_ended(samples, tmp_path):
    history = mlp().fit(
        *samples,
        epochs=5,
        validation_data=samples,
        callbacks=[nn.EarlyStopping(patience=0), Script([1.0, 1.0])],
    )
    history.save(tmp_path / "history.json")
    saved = json.loads((tmp_path / "history.json").read_text())
    assert saved.pop("stopped") == history.stopped
    assert saved.pop("provenance") == history.provenance
    assert saved == history
