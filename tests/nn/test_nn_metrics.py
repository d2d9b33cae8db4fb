"""Metrics: those of NumPy alone against scikit-learn's, and scikit-learn's by name in `fit` and `evaluate`."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest

import fastopt
from fastopt import data, nn

X, Y = data.digits()
X, Y = X[:200], Y[:200]


def model(outputs=10, seed=0):
    return nn.Sequential([nn.Flatten(), nn.Dense(8, activation="relu"), nn.Dense(outputs)], X.shape[1:], seed=seed)


# ---- Of NumPy alone -------------------------------------------------------------------------------------------------


def test_against_scikit_learn():
    theirs = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 7, 500), rng.normal(size=(500, 7)).astype(np.float32)
    assert nn.metrics.accuracy(y, scores) == theirs.accuracy_score(y, scores.argmax(1))
    for k in range(1, 7):
        assert nn.metrics.top_k(y, scores, k) == pytest.approx(
            theirs.top_k_accuracy_score(y, scores, k=k, labels=range(7)), rel=1e-15
        )
    assert nn.metrics.top_k(y, scores, 7) == 1
    matrix = theirs.confusion_matrix(y, scores.argmax(1))
    np.testing.assert_array_equal(nn.metrics.confusion_matrix(y, scores), matrix)
    np.testing.assert_array_equal(nn.metrics.confusion_matrix(y, scores.argmax(1)), matrix)
    wider = nn.metrics.confusion_matrix(y, scores.argmax(1), classes=9)
    np.testing.assert_array_equal(wider, theirs.confusion_matrix(y, scores.argmax(1), labels=range(9)))


def test_ties_and_nan():
    y, scores = np.array([0, 1, 2]), np.array([[1.0, 1.0, 1.0]] * 3)
    assert [nn.metrics.top_k(y, scores, k) for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1]
    assert nn.metrics.accuracy(y, scores) == 1 / 3
    assert nn.metrics.top_k(y, np.full((3, 3), np.nan), 3) == 0


def test_of_nothing():
    assert nn.metrics.accuracy(np.zeros(0, int), np.zeros((0, 3))) == 0
    assert nn.metrics.top_k(np.zeros(0, int), np.zeros((0, 3)), 2) == 0
    np.testing.assert_array_equal(nn.metrics.confusion_matrix(np.zeros(0, int), np.zeros((0, 3))), np.zeros((3, 3)))
    assert nn.metrics.confusion_matrix(np.zeros(0, int), np.zeros(0, int)).shape == (0, 0)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m: m.accuracy([0, 1], [[1.0, 2.0]]), ValueError, "y must"),
        (lambda m: m.accuracy([0.5], [[1.0, 2.0]]), TypeError, "integer labels"),
        (lambda m: m.accuracy([2], [[1.0, 2.0]]), ValueError, "y must"),
        (lambda m: m.top_k([0], [[1.0, 2.0]], 3), ValueError, "k must"),
        (lambda m: m.top_k([0], [1.0, 2.0]), TypeError, r"scores must be numbers \(n, classes\)"),
        (lambda m: m.confusion_matrix([0, 1], [0]), ValueError, "one label for each of y, 2, got 1"),
        (lambda m: m.confusion_matrix([0, -1], [0, 1]), TypeError, "of 0 or more"),
        (lambda m: m.confusion_matrix([0, 3], [0, 1], classes=3), ValueError, "classes must"),
        (lambda m: m.confusion_matrix([0, 3], [0, 2**20]), ValueError, "at most 16384 classes, got 1048577"),
    ],
)
def test_refusals(call, error, said):
    with pytest.raises(error, match=said):
        call(nn.metrics)


# ---- In fit and evaluate ------------------------------------------------------------------------------------------


def test_top_k_by_name_and_as_a_function():
    net, given = model(), {"epochs": 2, "validation_data": (X, Y)}
    named = net.fit(X, Y, metrics=["accuracy", "top_3"], **given)
    three = functools.partial(nn.metrics.top_k, k=3)
    apart = model().fit(X, Y, metrics={"three": three}, **given)
    assert named["top_3"] == apart["three"]
    assert named["val_top_3"] == apart["val_three"]
    assert (
        net.evaluate(X, Y, metrics="top_3")["top_3"] == nn.metrics.top_k(Y, net.predict(X), 3) == named["val_top_3"][-1]
    )
    assert model().fit(X, Y, metrics=nn.metrics.top_k)["top_k"]


def test_names_of_scikit_learn_for_labels():
    theirs = pytest.importorskip("sklearn.metrics")
    net = model()
    names = ["f1_macro", "roc_auc_ovr", "neg_log_loss", "balanced_accuracy"]
    history = net.fit(X, Y, epochs=3, metrics=names, validation_data=(X, Y))
    scores = net.predict(X)
    probabilities = nn.Softmax().forward(scores)[0]
    expected = [
        theirs.f1_score(Y, scores.argmax(1), average="macro"),
        theirs.roc_auc_score(Y, probabilities, multi_class="ovr"),
        -theirs.log_loss(Y, probabilities),
        theirs.balanced_accuracy_score(Y, scores.argmax(1)),
    ]
    assert [history[f"val_{name}"][-1] for name in names] == expected
    assert [net.evaluate(X, Y, metrics=names)[name] for name in names] == expected
    assert all(len(history[name]) == 3 for name in names)
    one_hot = net.evaluate(X, np.eye(10)[Y], metrics=["accuracy", *names])
    assert [one_hot[name] for name in names] == pytest.approx(expected, rel=1e-12)
    assert one_hot["accuracy"] == (scores.argmax(1) == Y).mean()


def test_names_of_scikit_learn_for_two_classes_and_for_several_answers():
    theirs = pytest.importorskip("sklearn.metrics")
    loss = nn.SigmoidCrossEntropy()
    yes = (Y > 4).astype(float)[:, None]
    one = model(1)
    one.fit(X, yes, epochs=2, loss=loss)
    got = one.evaluate(X, yes, loss=loss, metrics=["roc_auc", "f1", "neg_brier_score", "accuracy"])
    scores = one.predict(X)[:, 0]
    assert got["roc_auc"] == theirs.roc_auc_score(yes, scores)
    assert got["f1"] == theirs.f1_score(yes, scores > 0)
    assert got["accuracy"] == ((scores > 0) == yes[:, 0]).mean()
    assert got["neg_brier_score"] == pytest.approx(-(((1 / (1 + np.exp(-scores))) - yes[:, 0]) ** 2).mean(), rel=1e-6)
    several = np.stack([Y > 4, Y % 2 == 0, Y > 7], axis=1).astype(float)
    three = model(3)
    three.fit(X, several, epochs=2, loss=loss)
    got = three.evaluate(X, several, loss=loss, metrics=["f1_micro", "roc_auc"])
    assert got["f1_micro"] == theirs.f1_score(several, three.predict(X) > 0, average="micro")
    assert got["roc_auc"] == theirs.roc_auc_score(several, three.predict(X))


def test_names_of_scikit_learn_for_margins_and_numbers():
    theirs = pytest.importorskip("sklearn.metrics")
    net = model()
    assert net.evaluate(X, Y, loss=nn.Hinge(), metrics="f1_macro")["f1_macro"] == theirs.f1_score(
        Y, net.predict(X).argmax(1), average="macro"
    )
    with pytest.raises((AttributeError, ValueError), match="predict_proba"):
        net.evaluate(X, Y, loss=nn.Hinge(), metrics="neg_log_loss")
    target = X.mean(axis=(1, 2))
    net = model(1)
    got = net.evaluate(X, target, loss="squared_error", metrics=["r2", "neg_mean_absolute_error"])
    assert got["r2"] == pytest.approx(theirs.r2_score(target, net.predict(X)), rel=1e-12)
    assert got["neg_mean_absolute_error"] == pytest.approx(-np.abs(target.reshape(-1, 1) - net.predict(X)).mean())


@pytest.mark.parametrize("monitor", ["val_f1_macro", "f1_macro"])
def test_callbacks_watch_them(tmp_path, monitor):
    """Early stopping, plateaus, checkpoints and logs."""
    pytest.importorskip("sklearn")
    net = model()
    best = nn.ModelCheckpoint(tmp_path / "best.npz", monitor=monitor, best_only=True)
    plateau = nn.ReduceLROnPlateau(monitor, patience=0, min_delta=1.0)
    adam = fastopt.Adam(net.params, lr=0.01)
    history = net.fit(
        X, Y, epochs=5, optimizer=adam, metrics="f1_macro", validation_data=(X, Y),
        callbacks=[nn.EarlyStopping(monitor, patience=4), plateau, best, nn.CSVLogger(tmp_path / "log.csv")],
    )  # fmt: skip
    assert adam.lr < 0.01
    assert monitor in (tmp_path / "log.csv").read_text()
    top = int(np.argmax(history[monitor]))
    assert nn.load(tmp_path / "best.npz").evaluate(X, Y, metrics="f1_macro")["f1_macro"] == history["val_f1_macro"][top]
    assert net.evaluate(X, Y, metrics="f1_macro")["f1_macro"] == history["val_f1_macro"][top]


def test_of_ensembles():
    theirs = pytest.importorskip("sklearn.metrics")
    ensemble = nn.Ensemble([model(seed=s) for s in range(2)])
    got = ensemble.evaluate(X, Y, metrics=["neg_log_loss", "top_2"])
    assert got["neg_log_loss"] == pytest.approx(-theirs.log_loss(Y, ensemble.predict(X)), rel=1e-6)
    assert got["top_2"] == nn.metrics.top_k(Y, ensemble.predict(X), 2)
    yes = (Y > 4).astype(float)[:, None]
    pair = nn.Ensemble([model(1, seed=s) for s in range(2)], loss=nn.SigmoidCrossEntropy())
    assert pair.evaluate(X, yes, metrics="f1")["f1"] == theirs.f1_score(yes, pair.predict(X) > 0.5)


def test_of_many_models():
    pytest.importorskip("sklearn")
    models = [model(seed=s) for s in range(2)]
    histories = nn.fit_many(models, X, Y, epochs=1, metrics=["f1_macro"], threads=2)
    assert all(len(history["f1_macro"]) == 1 for history in histories)


@pytest.mark.parametrize(
    ("metrics", "error", "said"),
    [
        ("f1_marco", ValueError, "is it 'f1_macro'"),
        (["top_2", "top_2"], ValueError, "'top_2' twice"),
        ([functools.partial(nn.metrics.top_k, k=2)], TypeError, "must have names"),
        ({"loss": nn.metrics.accuracy}, ValueError, "none of loss"),
        ({"accuracy": "accuracy"}, ValueError, "none of loss"),
        ({"mine": 3}, TypeError, "got 3 for 'mine'"),
        ("top_11", ValueError, "k must"),
    ],
)
def test_metrics_that_are_refused(metrics, error, said):
    pytest.importorskip("sklearn")
    with pytest.raises(error, match=said):
        model().evaluate(X, Y, metrics=metrics)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"fastopt\[sklearn\]"):
        model().fit(X, Y, metrics="f1_macro")
    assert "top_2" in model().fit(X, Y, metrics="top_2")
