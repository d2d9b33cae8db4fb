"""Many models at once: each has the bits that it has alone, whatever the others do; and ensembles."""

import contextlib
import io
import os
import runpy
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, nn
from fastopt.averaging import EMA
from fastopt.nn import many
from fastopt.optimizers import OPTIMIZERS

N, D, C = 150, 6, 3


@pytest.fixture
def samples(rng):
    centres = rng.normal(size=(C, D))
    y = rng.integers(0, C, N)
    return (centres[y] + rng.normal(size=(N, D))).astype(np.float32), y


def mlp(seed=0, width=7, dtype=np.float32, **options):
    layers = [nn.Dense(width, activation="relu"), nn.Dropout(0.2), nn.Dense(C)]
    return nn.Sequential(layers, (D,), seed=seed, dtype=dtype, **options)


def normed(seed=0):
    return nn.Sequential([nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dense(C)], (D,), seed=seed)


def deep(seed=0):
    body = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.GELU(), nn.Dense(8)])
    return nn.Sequential([nn.Dense(8), nn.Residual(body), nn.Dense(C)], (D,), seed=seed)


class Doubled(nn.Layer):
    """A layer that Python calls."""

    def forward(self, x, *, training=False, counter=0):
        return x * 2, None

    def backward(self, dy, cache):
        return dy * 2, {}


def eager(seed=0):
    return nn.Sequential([nn.Dense(5), Doubled(), nn.ReLU(), nn.Dense(C)], (D,), seed=seed)


def arrays(model):
    return {**model.params, **model.state}


def check_alike(many_models, alone, same_bits):
    for one, other in zip(many_models, alone, strict=True):
        for name, array in arrays(one).items():
            same_bits(array, arrays(other)[name])


def metrics(history):
    return {name: values for name, values in history.items() if name != "samples_per_second"}


# ---- Bits -----------------------------------------------------------------------------------------------------------

MIXED = [
    lambda: mlp(0),
    lambda: normed(1),
    lambda: deep(2),
    lambda: eager(3),
    lambda: mlp(4, width=33),
    lambda: mlp(5, dtype=np.float64),
    lambda: normed(6),
]


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_each_has_the_bits_that_it_has_alone(samples, count, same_bits):
    """Architectures, types, lengths, sizes of batches and seeds of their own; whatever the number of threads."""
    names = ("adam", "adamw", "nadam", "rmsprop", "lion", "adagrad", "radam")
    each = [
        {"epochs": 1 + i % 4, "batch_size": (7, 32, 150)[i % 3], "seed": i, "accumulate": 1 + i % 2, "optimizer": name}
        for i, name in enumerate(names)
    ]
    together, alone = [make() for make in MIXED], [make() for make in MIXED]
    histories = nn.fit_many(together, *samples, each=each, threads=count, validation_data=samples)
    expected = [model.fit(*samples, **own, validation_data=samples) for model, own in zip(alone, each, strict=True)]
    check_alike(together, alone, same_bits)
    assert [metrics(history) for history in histories] == [metrics(history) for history in expected]
    assert not histories.errors
    assert not any(history.stopped for history in histories)


@pytest.mark.parametrize("k", range(3))
def test_all_optimizers(samples, k, same_bits):
    kinds = sorted(OPTIMIZERS.values(), key=lambda kind: kind.__name__)[k::3]
    together, alone = [mlp(i) for i in range(len(kinds))], [mlp(i) for i in range(len(kinds))]
    options = {"epochs": 2, "on_nonfinite": "ignore"}
    optimizers = [kind(model.params, lr=1e-3) for kind, model in zip(kinds, together, strict=True)]
    each = [{"batch_size": N if kind.full_batch else 50} for kind in kinds]
    nn.fit_many(together, *samples, optimizer=optimizers, each=each, threads=3, **options)
    for model, kind, own in zip(alone, kinds, each, strict=True):
        model.fit(*samples, optimizer=kind(model.params, lr=1e-3), **own, **options)
    check_alike(together, alone, same_bits)


def test_a_second_run_goes_on(samples, same_bits):
    together, alone = [normed(i) for i in range(4)], [normed(i) for i in range(4)]
    steps = [fastopt.Adam(model.params, lr=1e-2) for model in together]
    own = [fastopt.Adam(model.params, lr=1e-2) for model in alone]
    for _ in range(2):
        nn.fit_many(together, *samples, optimizer=steps, epochs=2, threads=2)
        for model, optimizer in zip(alone, own, strict=True):
            model.fit(*samples, optimizer=optimizer, epochs=2)
    check_alike(together, alone, same_bits)
    assert {optimizer.t for optimizer in steps} == {2 * 2 * 5}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16])
@pytest.mark.parametrize("weighted", [False, True])
def test_folds(samples, dtype, weighted, same_bits, rng):
    """Rows that are chosen are those of a copy, also where they occur more than once or come as a mask."""
    x, y = (samples[0] * 8).astype(dtype), samples[1]
    folds = [np.flatnonzero(np.arange(N) % 5 != k) for k in range(3)]
    folds += [rng.integers(0, N, N), np.arange(N) % 3 > 0, [3, 1, 2, 2, 77]]
    options = {"epochs": 3, "batch_size": 16}
    if weighted:
        options |= {"sample_weight": rng.random(N), "class_weight": [1.0, 2.0, 0.5]}
    together, alone = [mlp(i) for i in range(6)], [mlp(i) for i in range(6)]
    histories = nn.fit_many(together, x, y, samples=folds, validation_data="rest", threads=2, **options)
    for model, fold, history in zip(alone, folds, histories, strict=True):
        rows = np.flatnonzero(fold) if np.asarray(fold).dtype == bool else np.asarray(fold)
        rest = np.setdiff1d(np.arange(N), rows)
        own = options | ({"sample_weight": options["sample_weight"][rows]} if weighted else {})
        expected = model.fit(x[rows], y[rows], validation_data=(x[rest], y[rest]), **own)
        assert metrics(history) == metrics(expected)
    check_alike(together, alone, same_bits)


def test_hooks_of_each(samples, same_bits):
    """Batches, transforms and metrics, which count the samples that are chosen."""

    def noisy(x, y, rng):
        return x + rng.normal(0, 0.1, x.shape).astype(x.dtype), y

    fold = np.arange(0, N, 2)
    options = {
        "epochs": 3,
        "transform": noisy,
        "batches": nn.Stratified(samples[1][fold], 20),
        "metrics": {"largest": lambda targets, scores: scores.max()},
    }
    together, alone = [mlp(i) for i in range(3)], [mlp(i) for i in range(3)]
    histories = nn.fit_many(together, *samples, samples=[fold] * 3, threads=2, **options)
    expected = [model.fit(samples[0][fold], samples[1][fold], **options) for model in alone]
    check_alike(together, alone, same_bits)
    assert [metrics(h) for h in histories] == [metrics(h) for h in expected]
    assert "largest" in histories[0]


def test_taking_turns_changes_nothing(samples, same_bits, monkeypatch):
    monkeypatch.setattr(many, "TURN", 0.0)  # each slice is a turn
    together, alone = [make() for make in MIXED], [make() for make in MIXED]
    nn.fit_many(together, *samples, epochs=4, threads=2)
    for model in alone:
        model.fit(*samples, epochs=4)
    check_alike(together, alone, same_bits)


def test_averages(samples, same_bits):
    together, alone = [mlp(i) for i in range(3)], [mlp(i) for i in range(3)]
    callbacks = [nn.WeightAverage(EMA(model.params, 0.9)) for model in together]
    histories = nn.fit_many(
        together, *samples, epochs=3, validation_data=samples, callbacks=lambda i: [callbacks[i]], threads=2
    )
    for model, history in zip(alone, histories, strict=True):
        own = nn.WeightAverage(EMA(model.params, 0.9))
        assert metrics(model.fit(*samples, epochs=3, validation_data=samples, callbacks=[own])) == metrics(history)
    check_alike(together, alone, same_bits)


def test_data_is_not_copied(samples):
    seen = []

    class Look(nn.Callback):
        def on_gradients(self, batch, grads):
            seen.append(self.run._data[0])

        def on_train_begin(self, run):
            self.run = run

    x, y = samples
    nn.fit_many([mlp(0), mlp(1)], x, y, samples=[np.arange(50), np.arange(90)], callbacks=lambda i: [Look()])
    assert len(seen) == 2 + 3
    assert all(array is x for array in seen)
    seen.clear()
    nn.fit_many([mlp(0), mlp(1)], x.astype(np.float16), y, callbacks=lambda i: [Look()])
    assert len({array.__array_interface__["data"] for array in seen}) == 1


# ---- What ends a run ------------------------------------------------------------------------------------------------


def test_early_stopping_is_of_each(samples, same_bits):
    lengths = []
    rates = [0.0, 0.1, 0.0, 0.05]
    together, alone = [mlp(i) for i in range(4)], [mlp(i) for i in range(4)]
    options = {"epochs": 12, "validation_data": samples}

    def stopping(i=0):
        return [nn.EarlyStopping(patience=2, min_delta=0.05)]

    each = [{"optimizer": fastopt.SGD(model.params, lr=lr)} for model, lr in zip(together, rates, strict=True)]
    histories = nn.fit_many(together, *samples, each=each, callbacks=stopping, threads=2, **options)
    for model, lr, history in zip(alone, rates, histories, strict=True):
        own = fastopt.SGD(model.params, lr=lr)
        expected = model.fit(*samples, optimizer=own, callbacks=stopping(), **options)
        assert metrics(history) == metrics(expected)
        assert history.stopped == expected.stopped
        lengths.append(len(history["loss"]))
    check_alike(together, alone, same_bits)
    assert lengths[0] == lengths[2] == 4 < lengths[1]
    assert histories[0].stopped == "val_loss has not got better since epoch 1; stopped after epoch 4"


class Fails(nn.Callback):
    def __init__(self, error, epoch=1):
        self.error, self.epoch = error, epoch

    def on_epoch_end(self, epoch, logs):
        if epoch == self.epoch:
            raise self.error


def test_an_exception_does_not_lose_the_others(samples, same_bits):
    together, alone = [mlp(i) for i in range(5)], [mlp(i) for i in range(5)]
    failing = {1: OSError("no room"), 4: RuntimeError("no reason")}

    def callbacks(i):
        return [Fails(failing[i])] if i in failing else []

    with pytest.raises(nn.FitManyError, match=r"2 of 5 models could not be trained") as caught:
        nn.fit_many(together, *samples, epochs=3, callbacks=callbacks, threads=2)
    assert set(caught.value.exceptions) == set(failing.values())
    assert [error.__notes__ for error in failing.values()] == [["in the fit of models[1]"], ["in the fit of models[4]"]]
    histories = caught.value.histories
    assert histories.errors == failing
    assert [len(history["loss"]) for history in histories] == [3, 2, 3, 3, 2]
    assert [history.stopped for history in histories] == ["", "OSError: no room", "", "", "RuntimeError: no reason"]
    for model in alone:
        model.fit(*samples, epochs=3)
    kept = [0, 2, 3]
    check_alike([together[i] for i in kept], [alone[i] for i in kept], same_bits)
    together[1].fit(*samples)  # its run has ended
    matched, rest = caught.value.split(OSError)
    assert matched.histories is rest.histories is histories


def test_errors_can_be_kept(samples):
    x, y = samples
    models = [mlp(0), mlp(1)]
    each = [{}, {"optimizer": fastopt.SGD(models[1].params, lr=1e30)}]
    histories = nn.fit_many(models, x, y, each=each, epochs=3, on_error="keep")
    assert list(histories.errors) == [1]
    assert isinstance(histories.errors[1], nn.NonFiniteError)
    assert histories[1].stopped.startswith("NonFiniteError: epoch ")
    assert len(histories[0]["loss"]) == 3
    assert not histories[0].stopped


def test_what_is_no_exception_ends_all(samples):
    with pytest.raises(SystemExit):
        nn.fit_many(
            [mlp(i) for i in range(3)],
            *samples,
            epochs=10**6,
            callbacks=lambda i: [Fails(SystemExit())] if i == 1 else [],
            threads=3,
        )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastopt-fit")]


class Interrupts(nn.Callback):
    """Ctrl-C, once or twice, in the place of a user."""

    def __init__(self, times):
        self.times = times

    def on_train_begin(self, run):
        self.run = run

    def on_epoch_end(self, epoch, logs):
        if epoch == 2:
            for _ in range(self.times):
                before = self.run.interrupted
                os.kill(os.getpid(), signal.SIGINT)
                while before == self.run.interrupted and self.times == 1:
                    threading.Event().wait(0.001)  # until the main thread has served it


@pytest.fixture
def usual_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_ends_all_with_what_is_done(samples, count, usual_handler, capsys, caplog):
    ended = []

    class Ends(nn.Callback):
        def on_train_end(self):
            ended.append(self)

    def callbacks(i):
        return [Ends(), Interrupts(1)] if i == 1 else [Ends()]

    models = [mlp(i) for i in range(6)]
    each = [{"epochs": 1 if i == 0 else 10**6} for i in range(6)]
    histories = nn.fit_many(models, *samples, each=each, callbacks=callbacks, threads=count)
    assert len(ended) == 6
    assert len(histories[1]["loss"]) == 3
    assert histories[1].stopped == "interrupted; stopped after epoch 3"
    assert all(history.stopped.startswith("interrupted; stopped after ") for history in histories[1:])
    assert not histories.errors
    assert " of 6 models are complete; weights and histories are kept" in caplog.text
    assert capsys.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    nn.fit_many(models, *samples)  # no run is left


def test_a_second_ctrl_c_raises(samples, usual_handler):
    class Twice(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            while not raised.is_set():  # until the main thread has had two
                os.kill(os.getpid(), signal.SIGINT)
                raised.wait(0.01)

    raised = threading.Event()
    own = signal.default_int_handler

    def told(*arguments):
        raised.set()
        own(*arguments)

    signal.default_int_handler = told
    signal.signal(signal.SIGINT, told)
    try:
        with pytest.raises(KeyboardInterrupt):
            nn.fit_many([mlp(0), mlp(1)], *samples, epochs=10**6, callbacks=lambda i: [Twice()] if i else [])
    finally:
        signal.default_int_handler = own
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastopt-fit")]


def test_in_a_thread_and_in_a_callback(samples, same_bits):
    """Where no signal can be served, and within another run."""
    results = []

    class Nested(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            inner = [mlp(0), mlp(1)]
            nn.fit_many(inner, *samples)
            results.append(inner)

    def run():
        nn.fit_many([mlp(7)], *samples, callbacks=lambda i: [Nested()])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    alone = [mlp(0), mlp(1)]
    for model in alone:
        model.fit(*samples)
    check_alike(results[0], alone, same_bits)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning", "ignore:.*JAX.*:RuntimeWarning")
def test_after_a_fork(samples, same_bits):
    """In a child of a process whose threads have run programs, and of one whose threads run them now."""
    alone = mlp(3)
    alone.fit(*samples, epochs=2)
    wanted = {name: array.tobytes() for name, array in arrays(alone).items()}
    states = []

    class Forks(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            child = os.fork()
            if child:
                states.append(os.waitpid(child, 0)[1])
                return
            status = 1
            with contextlib.suppress(BaseException):
                model = mlp(3)
                nn.fit_many([model, mlp(4)], *samples, epochs=2)
                status = int({name: array.tobytes() for name, array in arrays(model).items()} != wanted)
            os._exit(status)

    models = [mlp(i, width=300) for i in range(3)]
    nn.fit_many(models, *samples, epochs=3, threads=3, callbacks=lambda i: [Forks()] if i == 1 else [])
    assert states == [0, 0, 0]


def test_numbers_of_epochs_that_no_float_has(samples):
    """A run of them is ended by its callbacks."""
    each = [{"epochs": 10**400}, {}]
    histories = nn.fit_many(
        [mlp(0), mlp(1)], *samples, each=each, callbacks=lambda i: [] if i else [nn.EarlyStopping("loss", patience=0)]
    )
    assert histories[0].stopped.startswith("loss has not got better since epoch ")


# ---- Threads ----------------------------------------------------------------------------------------------------


def test_kernel_threads_are_divided(samples, monkeypatch):
    before = fastopt.get_num_threads()
    limits = []
    limit = _kernels.limit_threads
    monkeypatch.setattr(_kernels, "limit_threads", lambda n: limits.append(n) or limit(n))
    try:
        fastopt.set_num_threads(8)
        nn.fit_many([mlp(i) for i in range(8)], *samples, threads=4)
        assert limits[0] == 2
        assert set(limits) <= {2, 4, 8}  # more for those that are left
        assert fastopt.get_num_threads() == 8
    finally:
        fastopt.set_num_threads(before)


# ---- Progress -------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_line(samples):
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        nn.fit_many([mlp(0), mlp(1)], *samples, epochs=4, validation_data=samples, progress=stream)
    shown = terminal.getvalue()
    assert shown.index("\n") == len(shown) - 1
    last = shown.rstrip("\n").split("\r")[-1]
    assert last.startswith("models 2/2  epochs 8/8  loss ")
    assert "  val accuracy " in last
    assert file.getvalue().splitlines()[-1].strip() == last.strip()


def test_progress_on_standard_output(samples, capsys):
    nn.fit_many([mlp(0)], *samples, progress=True)
    assert capsys.readouterr().out.startswith("models 1/1  epochs 1/1  loss ")


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"models": m[0]}, "models must be a sequence of Sequential, got Sequential"),
        (lambda m: {"models": []}, "models must hold at least one model, got none"),
        (lambda m: {"models": [m[0], "mlp"]}, r"models\[1\] must be a Sequential, got str"),
        (lambda m: {"models": [m[0], m[0]]}, r"have no parameters in common, but models\[1\]"),
        (lambda m: {"models": [m[0], nn.Sequential(m[0].layers, (D,))]}, r"no parameters in common, but models\[1\]"),
        (lambda m: {"threads": 0}, r"threads must be in \[1, 256\], got 0"),
        (lambda m: {"on_error": "ignore"}, "on_error must be one of 'raise', 'keep'; got 'ignore'"),
        (lambda m: {"optimizer": ["adam"]}, "optimizer must have one for each model, 2, got 1"),
        (lambda m: {"optimizer": fastopt.Adam(m[0].params)}, "optimizer must be a name, a function of the model"),
        (lambda m: {"optimizer": [fastopt.Adam(m[0].params)] * 2}, "optimizer must be bound to model.params"),
        (lambda m: {"callbacks": [nn.EarlyStopping("loss")]}, "callbacks must be a function of the number of a model"),
        (lambda m: {"callbacks": (lambda c: lambda i: [c])(nn.EarlyStopping("loss"))}, "callbacks must be new ones"),
        (lambda m: {"samples": [[0, 1]]}, "samples must have an array for each model, 2, got 1"),
        (lambda m: {"samples": [[0, 1], [N]]}, rf"samples\[1\] must be in \[0, {N}\), got {N}"),
        (lambda m: {"samples": [[0, 1], []]}, r"samples\[1\] must (be an array|choose at least one)"),
        (lambda m: {"samples": [[0, 1], [0.5]]}, r"samples\[1\] must be an array of indices"),
        (lambda m: {"validation_data": "rest"}, "validation_data must be data, or 'rest' beside samples"),
        (lambda m: {"samples": [range(N)] * 2, "validation_data": "rest"}, r"samples\[0\] must leave some over"),
        (lambda m: {"each": [{}]}, "each must have a dict for each model, 2, got 1"),
        (lambda m: {"each": [{}, 3]}, r"each\[1\] must be a dict, got int"),
        (lambda m: {"each": [{}, {"epoch": 3}]}, r"each\[1\] must be given options of fit, .*; got 'epoch'"),
        (lambda m: {"learning": 3}, "fit_many must be given options of fit, .*; got 'learning'"),
        (lambda m: {"each": [{}, {"epochs": -1}]}, "epochs must be at least 0"),
        (lambda m: {"progress": 3}, "progress must be a bool or a text stream, got int"),
        (lambda m: {"x": np.full((N, D), np.nan)}, r"x must be finite, got nan at x\[0, 0\]"),
        (lambda m: {"validation_data": (np.full((1, D), np.inf), [0])}, r"validation x must be finite, got inf"),
        (lambda m: {"each": [{}, {"validation_data": (np.full((1, D), np.inf), [0])}]}, "validation x must be finite"),
    ],
)  # fmt: skip
def test_refuses_before_anything_is_trained(samples, change, message):
    models = [mlp(0), mlp(1)]
    before = [{name: array.tobytes() for name, array in arrays(model).items()} for model in models]
    arguments = {"models": models, "x": samples[0], "y": samples[1]} | change(models)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        nn.fit_many(**arguments)
    assert before == [{name: array.tobytes() for name, array in arrays(model).items()} for model in models]
    if "epochs must" in str(caught.value):
        assert caught.value.__notes__ == ["for models[1]"]


def test_no_loader(samples):
    class Loader:
        def __len__(self):
            return 1

        def epoch(self, number):
            return iter([samples])

    with pytest.raises(TypeError, match="x must be an array, which all models share, got Loader"):
        nn.fit_many([mlp()], Loader(), None)


# ---- Ensembles ------------------------------------------------------------------------------------------------------


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_softmax_is_averaged(samples, close):
    x, y = samples
    models = [mlp(0), normed(1), mlp(2, dtype=np.float64)]
    nn.fit_many(models, x, y, epochs=3)
    ensemble = nn.Ensemble(models)
    expected = np.mean([softmax(model.predict(x).astype(np.float64)) for model in models], axis=0)
    actual = ensemble.predict(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    assert actual.dtype == np.float64
    assert nn.Ensemble(models[:2]).predict(x).dtype == np.float32
    w = np.arange(N) % 4 + 1.0
    measured = ensemble.evaluate(x, y, w, metrics={"mean": lambda targets, scores: scores.mean()})
    each = -np.log(expected[np.arange(N), y])
    np.testing.assert_allclose(measured["loss"], (w * each).sum() / w.sum(), rtol=1e-5)
    assert measured["accuracy"] == (expected.argmax(axis=1) == y).mean()
    np.testing.assert_allclose(measured["mean"], 1 / C, rtol=1e-6)
    one = nn.Ensemble(models[:1]).evaluate(x, y)
    alone = models[0].evaluate(x, y)
    np.testing.assert_allclose(one["loss"], alone["loss"], rtol=1e-5)
    assert one["accuracy"] == alone["accuracy"]


def test_sigmoid_is_averaged(samples):
    x, y = samples
    targets = (y[:, None] == np.arange(C)).astype(np.float32)
    models, loss = [mlp(i) for i in range(3)], nn.SigmoidCrossEntropy()
    nn.fit_many(models, x, targets, loss=loss, epochs=2)
    ensemble = nn.Ensemble(models, loss)
    expected = np.mean([1 / (1 + np.exp(-model.predict(x).astype(np.float64))) for model in models], axis=0)
    np.testing.assert_allclose(ensemble.predict(x), expected, rtol=1e-5)
    value = -(targets * np.log(expected) + (1 - targets) * np.log1p(-expected)).mean()
    np.testing.assert_allclose(ensemble.evaluate(x, targets)["loss"], value, rtol=1e-5)


def test_other_losses_average_outputs(samples):
    x, _ = samples
    models = [mlp(i) for i in range(4)]
    expected = np.mean([model.predict(x).astype(np.float64) for model in models], axis=0)
    ensemble = nn.Ensemble(models, nn.SquaredError())
    np.testing.assert_allclose(ensemble.predict(x), expected, rtol=1e-6, atol=1e-7)
    targets = np.zeros((N, C))
    np.testing.assert_allclose(
        ensemble.evaluate(x, targets)["loss"], nn.SquaredError()(expected, targets)[0], rtol=1e-6
    )


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "loss",
    [
        nn.softmax_cross_entropy,
        nn.SoftmaxCrossEntropy(label_smoothing=0.1, class_weight=[1.0, 2.0, 3.0]),
        nn.SigmoidCrossEntropy(),
        nn.Huber(delta=0.5),
    ],
    ids=lambda loss: getattr(loss, "__name__", repr(loss)),
)
def test_files(samples, tmp_path, ending, loss, same_bits):
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    ensemble = nn.Ensemble([normed(0), mlp(1), deep(2)], loss)
    ensemble.save(tmp_path / f"e{ending}")
    read = nn.Ensemble.load(tmp_path / f"e{ending}")
    same_bits(read.predict(samples[0]), ensemble.predict(samples[0]))
    assert repr(read) == repr(ensemble)
    with pytest.raises(ValueError, match=r"it holds an ensemble, which fastopt\.nn.Ensemble.load reads"):
        nn.load(tmp_path / f"e{ending}")


def test_a_loss_of_ones_own(samples, tmp_path):
    def loss(output, targets):
        return 0.0, np.zeros_like(output)

    ensemble = nn.Ensemble([mlp(0)], loss)
    ensemble.save(tmp_path / "e.npz")
    with pytest.raises(ValueError, match=r"loss must be given: .* written with a function of your own"):
        nn.Ensemble.load(tmp_path / "e.npz")
    assert nn.Ensemble.load(tmp_path / "e.npz", loss).loss is loss
    mlp(0).save(tmp_path / "m.npz")
    with pytest.raises(ValueError, match=r"path must name an ensemble that Ensemble.save wrote, .* it holds a model"):
        nn.Ensemble.load(tmp_path / "m.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: (mlp(),), "models must be a sequence of Sequential, got Sequential"),
        (lambda: ([],), "models must hold at least one model"),
        (lambda: ([mlp(), 3],), r"models\[1\] must be a Sequential, got int"),
        (
            lambda: ([mlp(), nn.Sequential([nn.Dense(2)], (D,))],),
            r"of the same shapes, \(6,\) and \(3,\), but models\[1\]",
        ),
        (lambda: ([mlp()], "loss"), "loss must be a function"),
        (lambda: ([mlp()], nn.Huber), "loss must be a function"),
    ],
)
def test_ensembles_refuse(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nn.Ensemble(*arguments())


def test_beside_others_that_use_the_same_threads():
    """The program that `make tsan` runs: whatever another thread does, each model has the bits that it has alone."""
    before = fastopt.get_num_threads()
    try:
        runpy.run_path(str(Path(__file__).parents[1] / "hammer_fit_many.py"))["main"]()
    finally:
        fastopt.set_num_threads(before)
