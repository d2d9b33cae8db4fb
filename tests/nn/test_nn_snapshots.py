"""`Snapshots`: cycles of the learning rate against the paper's formula, copies of the model, resumed runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastopt
from fastopt import data, nn
from fastopt.schedules import bind, cosine

X, Y = data.digits()
X, Y = X[:160], Y[:160]


def model(seed=0):
    return nn.Sequential([nn.Flatten(), nn.Dense(8, activation="relu"), nn.Dense(10)], X.shape[1:], seed=seed)


class Rates(nn.Callback):
    """The rate of each step."""

    def on_train_begin(self, run):
        self.run, self.rates = run, []

    def on_batch_end(self, batch, logs):
        self.rates.append(self.run.optimizer.lr)


@pytest.mark.parametrize("before", [0, 7])
def test_rates_are_those_of_the_paper(before):
    """α₀/2·(cos(π·mod(t − 1, T/M) / (T/M)) + 1) in step t of T, M cycles; also where the optimizer has taken steps."""
    net = model()
    sgd = fastopt.SGD(net.params, lr=0.1)
    for _ in range(before):
        sgd.step({name: np.zeros_like(p) for name, p in net.params.items()})
    rates = Rates()
    net.fit(X, Y, epochs=6, batch_size=40, optimizer=sgd, callbacks=[nn.Snapshots(3), rates])
    length = 6 * 4 // 3
    expected = [0.1 / 2 * (math.cos(math.pi * ((t - 1) % length) / length) + 1) for t in range(1, 25)]
    np.testing.assert_allclose(rates.rates, expected, rtol=1e-12)
    assert sgd.lr == 0.1


def test_models_are_those_at_the_ends_of_cycles():
    net, snapshots, kept = model(), nn.Snapshots(2), []

    class Copies(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            kept.append(net.params["1.weight"].copy())

    net.fit(X, Y, epochs=4, callbacks=[snapshots, Copies()])
    assert len(snapshots.models) == 2
    for made, epoch in zip(snapshots.models, (1, 3), strict=True):
        np.testing.assert_array_equal(made.params["1.weight"], kept[epoch])
    np.testing.assert_array_equal(snapshots.models[1].predict(X), net.predict(X))


def test_the_same_by_a_schedule():
    net, other = model(), model()
    net.fit(X, Y, epochs=2, batch_size=40, optimizer=fastopt.Adam(net.params, lr=0.01), callbacks=[nn.Snapshots(1)])
    schedule = bind(cosine, peak=0.01, steps=8)
    other.fit(X, Y, epochs=2, batch_size=40, optimizer=fastopt.Adam(other.params, lr=schedule))
    np.testing.assert_array_equal(net.params["1.weight"], other.params["1.weight"])


def test_the_ensemble(tmp_path):
    net, snapshots = model(), nn.Snapshots(3, last=2)
    with pytest.raises(RuntimeError, match="after the first cycle"):
        _ = snapshots.ensemble
    net.fit(X, Y, epochs=6, callbacks=[snapshots])
    ensemble = snapshots.ensemble
    mean = np.mean([nn.Softmax().forward(m.predict(X).astype(np.float64))[0] for m in snapshots.models[-2:]], axis=0)
    np.testing.assert_allclose(ensemble.predict(X), mean, rtol=1e-5)
    assert ensemble.evaluate(X, Y).keys() == {"loss", "accuracy"}
    ensemble.save(tmp_path / "ensemble.npz")
    np.testing.assert_array_equal(nn.Ensemble.load(tmp_path / "ensemble.npz").predict(X), ensemble.predict(X))
    sigmoid = nn.SigmoidCrossEntropy()
    net.fit(X, np.eye(10)[Y], epochs=3, loss=sigmoid, callbacks=[snapshots])
    assert (len(snapshots.models), snapshots.ensemble.loss) == (3, sigmoid)


class Ending(nn.Callback):
    """Ends the process, as it were, after an epoch."""

    rank = 5

    def __init__(self, after):
        self.after = after

    def on_epoch_end(self, epoch, logs):
        if epoch + 1 == self.after:
            raise KeyboardInterrupt


def test_a_run_that_is_resumed(tmp_path):
    def run(path, after=None):
        net, snapshots = model(), nn.Snapshots(2)
        adam = fastopt.Adam(net.params, lr=0.01)
        callbacks = [snapshots, nn.ModelCheckpoint(tmp_path / path, resume=True), Ending(after)]
        net.fit(X, Y, epochs=4, optimizer=adam, callbacks=callbacks)
        assert adam.lr == 0.01
        return snapshots.ensemble.predict(X)

    whole = run("whole.npz")
    for after in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run("parts.npz", after)
    np.testing.assert_array_equal(run("parts.npz"), whole)


def test_averages_are_what_is_copied():
    net, snapshots = model(), nn.Snapshots(1)
    ema = fastopt.EMA(net.params, 0.9)
    net.fit(X, Y, epochs=2, callbacks=[snapshots, nn.WeightAverage(ema)])
    np.testing.assert_array_equal(snapshots.models[0].predict(X), net.predict(X))


def test_many_models_have_snapshots():
    made = []

    def callbacks(i):
        made.append(nn.Snapshots(2))
        return made[-1:]

    nn.fit_many([model(s) for s in range(2)], X, Y, epochs=2, callbacks=callbacks, threads=2)
    assert [len(each.models) for each in made] == [2, 2]


def test_of_estimators():
    sklearn = pytest.importorskip("fastopt.sklearn")
    flat = X.reshape(160, -1)
    for solver in ("sgd", "adam"):
        snapshots = nn.Snapshots(2)
        clf = sklearn.MLPClassifier(
            (8,), solver=solver, max_iter=4, random_state=0, callbacks=[snapshots], n_iter_no_change=9,
            learning_rate_init=0.05,
        )  # fmt: skip
        with pytest.warns(Warning, match="Maximum iterations"):
            clf.fit(flat, Y)
        ensemble = snapshots.ensemble
        np.testing.assert_allclose(ensemble.models[-1].predict(flat), clf.network_.predict(flat))
        assert isinstance(ensemble.loss, nn.SoftmaxCrossEntropy)
        np.testing.assert_allclose(ensemble.predict(flat).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda net: (nn.Snapshots(0), {}), ValueError, "cycles must"),
        (lambda net: (nn.Snapshots(3, last=4), {}), ValueError, "last must"),
        (lambda net: (nn.Snapshots(3), {}), ValueError, "epochs must be a multiple of cycles, 3, got 4"),
        (lambda net: (nn.Snapshots(2), {"optimizer": fastopt.Adam(net.params, bind(cosine, peak=0.1, steps=9))}),
         ValueError, "a learning rate that is a number"),
    ],
)  # fmt: skip
def test_refusals(make, error, said):
    net = model()

    def run():
        callback, given = make(net)
        net.fit(X, Y, epochs=4, callbacks=[callback], **given)

    with pytest.raises(error, match=said):
        run()
