"""Training by several processes is that of one: losses, masks, stops, errors and files."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import several

import fastopt
from fastopt import data, mpi, nn

pytest.importorskip("mpi4py")

# ---- The same as one process ----------------------------------------------------------------------------------------

X, Y = data.digits()
X, Y = X[:102].astype(np.float64) / 16, Y[:102]  # in batches of 25: the last one has 2
WEIGHT = np.random.default_rng(0).random(len(Y))


def model_of(*layers, shape=(8, 8, 1), dtype=np.float64, seed=0):
    return nn.Sequential([*layers], shape, dtype=dtype, seed=seed)


def mlp(**options):
    """With dropout that is fused, and that is not."""
    hidden = nn.Dense(20, activation="relu"), nn.Dropout(0.3), nn.Dense(16), nn.Tanh()
    return model_of(nn.Flatten(), *hidden, nn.Dropout(0.2), nn.VanillaDropout(0.1), nn.Dense(10), **options)


def cnn(**options):
    body = nn.Conv2D(4), nn.BatchNorm(momentum=0.3, momentum_of="old", unbiased=False)
    block = nn.Residual(nn.Sequential(body))
    first = nn.Conv2D(4), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.SpatialDropout(0.3)
    last = nn.Flatten(), nn.Dense(12), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.1), nn.Dense(10)
    return model_of(*first, block, nn.LayerNorm(), *last, **options)


def own_loss(output, targets, sample_weight=None):
    weight = np.ones(len(output)) if sample_weight is None else sample_weight
    difference = output - np.eye(10)[targets]
    total = weight.sum() or 1.0
    return float((weight * (difference**2).sum(axis=1)).sum() / total), 2 * difference * weight[:, None] / total


def loss_of_nan(output, targets):
    """That of a batch with a label 9 is not finite."""
    loss, gradient = nn.softmax_cross_entropy(output, targets)
    return (np.nan if (targets == 9).any() else loss), gradient


def accuracy_of_fives(targets, scores):
    return float(np.mean((scores.argmax(axis=1) == 5) == (targets == 5)))


def flipped(x, y, rng):
    return x[:, :, :: rng.choice([1, -1])].copy(), y


class Loader:
    """Batches of several sizes, with weights."""

    def __len__(self):
        return 4

    def epoch(self, number):
        for i in range(4):
            rows = slice(13 * i, 13 * i + 7 * i + 4)
            yield X[rows], Y[rows], WEIGHT[rows]


def frozen_below():
    model = mlp()
    model.freeze([1])
    return model


def resting_norm():
    model = cnn()
    model.freeze([9])
    return model


def by_average(model):
    return {"callbacks": [nn.WeightAverage(fastopt.EMA(model.params, 0.9))]}


def by_schedule(model):
    return {"callbacks": [nn.LearningRateScheduler(step=lambda step: 0.1 / (1 + step)), nn.ReduceLROnPlateau()]}


#: Models, and options of fit or a function of the model that returns them.
CASES = {
    "mlp": (mlp, {}),
    "cnn": (cnn, {}),
    "weights": (cnn, {"sample_weight": WEIGHT, "class_weight": "balanced", "lr": 0.01}),
    "many weights of zero": (mlp, {"sample_weight": np.where(np.arange(len(Y)) % 50 < 3, WEIGHT, 0)}),
    "weights by the loss": (mlp, {"loss": nn.SoftmaxCrossEntropy(class_weight=[*range(1, 11)], label_smoothing=0.1)}),
    "accumulated": (cnn, {"accumulate": 3, "sample_weight": WEIGHT}),
    "metrics": (mlp, {"metrics": {"fives": accuracy_of_fives}}),
    "a loss of one's own": (mlp, {"loss": own_loss, "sample_weight": WEIGHT}),
    "soft targets": (mlp, {"y": np.eye(10)[Y] * 0.9 + 0.01}),
    "stratified": (mlp, {"batches": nn.Stratified(Y, 30), "batch_size": None}),
    "a transform": (mlp, {"transform": flipped}),
    "a loader": (cnn, {"x": Loader(), "y": None, "batch_size": None}),
    "frozen below": (frozen_below, {}),
    "a norm at rest": (resting_norm, {}),
    "an average": (mlp, by_average),
    "a schedule": (mlp, by_schedule),
    "L-BFGS": (mlp, {"optimizer": fastopt.LBFGS, "lr": None, "batch_size": len(Y)}),
    "Adam": (mlp, {"optimizer": "adam", "max_norm": 1.0}),
    "one batch": (mlp, {"batch_size": 1000, "epochs": 3}),
}


def trained(name, comm=None):
    """The history, parameters and state after a run."""
    build, options = CASES[name]
    model = build()
    options = {"x": X, "y": Y} | (options(model) if callable(options) else options)
    usual = {"epochs": 2, "batch_size": 25, "optimizer": fastopt.SGD, "lr": 0.03}
    options = usual | {"validation_data": (X[50:91], Y[50:91])} | options
    if "max_norm" in options:
        kind = fastopt.Adam if options["optimizer"] == "adam" else fastopt.SGD
        options |= {"optimizer": kind(model.params, lr=options["lr"], max_norm=options.pop("max_norm")), "lr": None}
    if options.get("y") is not None and options["y"].ndim == 2:
        options["validation_data"] = X[50:91], options["y"][50:91]
    history = model.fit(options.pop("x"), options.pop("y"), comm=comm, **options)
    del history["samples_per_second"]
    return dict(history), dict(model.params), dict(model.state)


#: With three ranks, one has no row of a batch of 2.
SOME = ("mlp", "cnn", "weights", "accumulated", "metrics", "a loader")


def train_all(comm):
    return {name: trained(name, comm) for name in (CASES if comm.Get_size() == 2 else SOME)}


@pytest.fixture(scope="module")
def alone():
    return {name: trained(name) for name in CASES}


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory):
    runs = {}

    def of(n):
        if n not in runs:
            runs[n] = several.call(n, train_all, folder=tmp_path_factory.mktemp(f"ranks-{n}"))
        return runs[n]

    return of


BY_TWO = [(2, name) for name in CASES]
BY_THREE = [pytest.param(3, name, marks=pytest.mark.slow) for name in SOME]


@pytest.mark.parametrize(("n", "name"), BY_TWO + BY_THREE)
def test_a_run_is_that_of_one_process(n, name, alone, by_ranks, same_bits):
    history, *arrays = alone[name]
    first = by_ranks(n)[0][name]
    for rank in by_ranks(n):
        own_history, *own_arrays = rank[name]
        assert own_history.keys() == history.keys()
        for key, values in history.items():
            np.testing.assert_allclose(own_history[key], values, rtol=0, atol=1e-10, err_msg=key)
        for own, same, others in zip(own_arrays, first[1:], arrays, strict=True):
            assert own.keys() == others.keys()
            for key, array in others.items():  # L-BFGS and batch norm are ill-conditioned
                np.testing.assert_allclose(own[key], array, rtol=0, atol=1e-8, err_msg=key)
                same_bits(own[key], same[key])


def test_runs_that_are_compared_do_differ(alone):
    """Without masks, weights or batch norm, losses would be others: the tolerance above can tell."""
    losses = [alone[name][0]["loss"][-1] for name in CASES if name not in ("metrics", "an average")]
    assert min(np.diff(sorted(losses))) > 1e-7


# ---- Starts, stops and refusals -------------------------------------------------------------------------------------


class Stop(nn.Callback):
    """Stops a run in a way, on one rank alone."""

    def __init__(self, how, comm):
        self.how = how if comm is None or comm.Get_rank() == 1 else ""

    def on_train_begin(self, run):
        self.run = run

    def on_epoch_end(self, epoch, logs):
        if self.how == "epoch" and epoch == 1:
            self.run.stop("enough")
        if self.how == "signal" and epoch == 0:
            os.kill(os.getpid(), signal.SIGINT)


class StopAtBatch(Stop):
    def on_batch_end(self, batch, logs):
        if self.how == "batch" and batch == 3:
            self.run.stop("enough")


def stopped(how, kind, comm):
    model = mlp()
    history = model.fit(X, Y, epochs=4, batch_size=25, callbacks=[kind(how, comm)], comm=comm)
    return history.stopped, history.get("loss"), model.params["7.bias"].tolist()


def stop_all(comm):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background ignores
    results = {how: stopped(how, Stop, comm) for how in ("epoch", "signal")}
    results["batch"] = stopped("batch", StopAtBatch, comm)
    model = mlp()
    first = [nn.EarlyStopping("loss", patience=0, min_delta=0.5, restore_best=False)] if not comm.Get_rank() else []
    results["early"] = model.fit(X, Y, epochs=9, comm=comm, callbacks=first).stopped
    for how in ("stop", "skip"):
        results[how] = with_nan(how, comm)
    return results


def with_nan(how, comm=None):
    """What comes of a run whose loss is not finite where sample 17 is, which one rank alone has."""
    y = np.minimum(Y, 8)
    y[17] = 9
    model = mlp()
    sgd = fastopt.SGD(model.params, lr=0.03)
    try:
        options = {"optimizer": sgd, "loss": loss_of_nan, "on_nonfinite": how}
        history = model.fit(X, y, epochs=2, batch_size=25, comm=comm, **options)
    except nn.NonFiniteError as error:
        return str(error), sgd.t, []
    return "", sgd.t, [*history["skipped"], *history["loss"]]


def refuse_all(comm):
    rank = comm.Get_rank()

    def message(function):
        try:
            function()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    class Inner(nn.Layer):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.parts = {"drop": self.drop}

        def output_shape(self, input_shape):
            return input_shape

        def forward(self, x, *, training=False, counter=0):
            return self.drop.forward(x, training=training, counter=counter)

        def backward(self, dy, cache):
            return self.drop.backward(dy, cache)

    class FailsOnOne(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            if rank == 1:
                raise KeyError("of rank 1")

    class Meddles(nn.Callback):
        def on_epoch_begin(self, epoch):
            if rank == 1:
                self.run.model.params["1.bias"][0] = 7

        def on_train_begin(self, run):
            self.run = run

    def fit(model, x=X, y=Y, **options):
        return message(lambda: model.fit(x, y, comm=comm, **options))

    model = mlp()
    results = {
        "no communicator": message(lambda: mlp().fit(X, Y, comm=3)),
        "seed of the model": fit(mlp(seed=rank)),
        "layers": fit(model_of(nn.Flatten(), nn.Dense(10 + rank), nn.Dense(10))),
        "optimizer": fit(model, optimizer=fastopt.Adam(model.params, lr=0.1 + rank)),
        "x": fit(mlp(), X + rank),
        "y": fit(mlp(), X, np.roll(Y, rank)),
        "size": fit(mlp(), X[: 100 + rank], Y[: 100 + rank]),
        "batch_size": fit(mlp(), batch_size=16 + rank),
        "one argument": fit(mlp(), callbacks=[3] if rank else []),
        "a layer of one's own": fit(model_of(nn.Flatten(), Inner(), nn.Dense(10))),
        "weights of 0": fit(mlp(), loss=nn.SoftmaxCrossEntropy(0.1, [0, *range(9)])),
        "decorrelated": fit(model_of(nn.Flatten(), nn.Dense(4), nn.DecorrelatedBatchNorm(), nn.Dense(10))),
        "a callback": fit(mlp(), callbacks=FailsOnOne()),
        "other values": fit(mlp(), callbacks=Meddles()),
    }
    twin = mlp()
    for array in twin.params.values():
        array += rank  # what counts is what the first one has
    results["broadcast"] = twin.fit(X, Y, batch_size=25, comm=comm)["loss"]
    return results


def both(comm):
    mpi.GRACE = 60.0  # all ranks fail where one does, if only the machine lets them
    return stop_all(comm), refuse_all(comm)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return several.call(2, both, folder=tmp_path_factory.mktemp("both"))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("epoch", "enough; stopped after epoch 2"),
        ("signal", "interrupted; stopped after epoch 1"),
        ("batch", "enough; stopped after 4 of 5 batches of epoch 1"),
    ],
)
def test_one_rank_stops_all(how, why, of_two):
    text, losses, bias = stopped(how, StopAtBatch, None) if how != "signal" else (why, [0], None)
    assert text == why
    for rank, _ in of_two:
        assert rank[how][0] == why
        assert rank[how][1] is None if how == "batch" else len(rank[how][1]) == len(losses)
        if bias is not None:
            np.testing.assert_allclose(rank[how][2], bias, atol=1e-9)


def test_early_stopping_on_the_first_rank_stops_all(of_two):
    (first, _), (second, _) = of_two
    assert first["early"] == second["early"] != ""


@pytest.mark.parametrize("how", ["stop", "skip"])
def test_a_loss_that_is_not_finite_on_one_rank_is_so_on_all(how, of_two):
    text, steps, numbers = with_nan(how)
    assert (steps, len(numbers)) == {"stop": (steps, 0), "skip": (8, 4)}[how]
    for rank, _ in of_two:
        assert rank[how][:2] == (text, steps)
        np.testing.assert_allclose(rank[how][2], numbers, atol=1e-10)


REFUSED = {
    "no communicator": "TypeError: comm must be a communicator of mpi4py, such as mpi4py.MPI.COMM_WORLD, got 3",
    "seed of the model": "ValueError: model must be the same on all ranks, got ], (8, 8, 1), seed=0",
    "layers": "ValueError: model must be the same on all ranks, got Dense(10",
    "optimizer": "ValueError: optimizer must be the same on all ranks, got Adam(lr=0.1,",
    "x": "ValueError: x must be the same on all ranks, got float64 (102, 8, 8, 1) with checksum ",
    "y": "ValueError: y must be the same on all ranks, got int64 (102,) with checksum ",
    "size": "ValueError: the number of samples must be the same on all ranks, got 100 on rank 0, 101 on rank 1",
    "batch_size": "ValueError: batch_size must be the same on all ranks, got 16 on rank 0, 17 on rank 1",
    "a layer of one's own": "ValueError: comm must not be given for a model with Dropout within Inner, ",
    "decorrelated": "ValueError: comm must not be given for a model with DecorrelatedBatchNorm, ",
    "weights of 0": "ValueError: loss must not have class weights of 0 beside label_smoothing where comm is given",
    "other values": "RuntimeError: the ranks' parameters are no longer the same",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_or_cannot_be_shared_is_refused_on_all_ranks(name, of_two):
    assert [results[name].startswith(REFUSED[name]) for _, results in of_two] == [True, True], of_two[0][1][name]


def test_what_fails_on_one_rank_fails_on_all(of_two):
    (_, first), (_, second) = of_two
    assert second["one argument"] == "TypeError: callbacks[0] must be a Callback, got int"
    assert first["one argument"] == f"Elsewhere: rank 1 of 2 failed: {second['one argument']}"
    assert (first["a callback"], second["a callback"]) == (
        "Elsewhere: rank 1 of 2 failed: KeyError: 'of rank 1'",
        "KeyError: 'of rank 1'",
    )


def test_all_begin_with_the_weights_of_the_first(of_two):
    loss = mlp().fit(X, Y, batch_size=25)["loss"]
    for _, results in of_two:
        np.testing.assert_allclose(results["broadcast"], loss, rtol=1e-9)


# ---- Ends -----------------------------------------------------------------------------------------------------------


class Ends(nn.Callback):
    """Ends rank 1 in the midst of the third epoch."""

    def __init__(self, comm, how):
        self.how = how if comm.Get_rank() == 1 else ""

    def on_train_begin(self, run):
        self.run = run

    def on_batch_begin(self, batch):
        if self.run.epoch == 2 and batch == 3:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "raise":
                raise KeyError("of rank 1")


def ends(comm, how, folder):
    # The others have no file: what is resumed is what the first one has.
    path = os.path.join(folder, "run.npz" if comm.Get_rank() == 0 else "nothing.npz")
    model = cnn()
    checkpoint = nn.ModelCheckpoint(path, resume=True)
    average = nn.WeightAverage(fastopt.EMA(model.params, 0.9))
    callbacks = [Ends(comm, how), nn.EarlyStopping("loss"), average, checkpoint]
    history = model.fit(X, Y, epochs=4, batch_size=25, callbacks=callbacks, comm=comm)
    return history["loss"], {name: array.copy() for name, array in model.params.items()}


@pytest.mark.slow
def test_a_rank_that_is_lost_ends_all_and_the_run_goes_on_from_the_last_epoch(tmp_path, same_bits):
    folders = [tmp_path / name for name in ("ended", "resumed", "whole")]
    for folder in folders:
        folder.mkdir()
    ended = several.start(2, ends, "kill", str(folders[0]), folder=folders[0])
    assert ended.status != 0
    assert "signal 9" in ended.out + ended.err  # mpiexec says so
    assert nn.load(folders[0] / "run.npz").params.keys() == cnn().params.keys()
    assert not list(folders[0].glob("nothing*"))
    resumed = several.call(2, ends, "", str(folders[0]), folder=folders[1])
    whole = several.call(2, ends, "", str(folders[2]), folder=folders[2])
    for own, other in zip(resumed, whole, strict=True):
        assert own[0] == other[0]
        assert len(own[0]) == 4
        for name, array in own[1].items():
            same_bits(array, other[1][name])


@pytest.mark.slow
def test_an_exception_on_one_rank_alone_ends_all(tmp_path):
    ended = several.start(2, ends, "raise", str(tmp_path), folder=tmp_path)
    assert ended.status != 0
    assert "in on_batch_begin" in ended.err
    assert "fastopt: rank 1 of 2 failed, so all end: KeyError: 'of rank 1'\n" in ended.err
    assert nn.load(tmp_path / "run.npz").params.keys() == cnn().params.keys()
