"""`SequentialClassifier` and `CNNClassifier`."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastopt
from fastopt import nn
from fastopt.sklearn import CNNClassifier, SequentialClassifier

X, Y = load_digits(return_X_y=True)
IMAGES = (X / 16).reshape(-1, 8, 8)[:600]
Y, NAMES = Y[:600], np.array(list("abcdefghij"))[Y[:600]]


def build(input_shape, classes):
    return [nn.Dense(32, activation="relu"), nn.Dense(classes)]


#: Checks of scikit-learn that no estimator of shuffled batches passes: it excludes its own MLPs and SGD likewise.
SHUFFLED = "a weight of 2 and a sample twice are the same only where each batch holds all samples"
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": SHUFFLED,
}


@parametrize_with_checks(
    [SequentialClassifier(build, epochs=60, lr=0.01, random_state=0)], expected_failed_checks=lambda _: EXPECTED
)
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def small(**given):
    return SequentialClassifier(build, **{"epochs": 15, "lr": 0.01, "random_state": 0, **given})


def test_it_is_the_network_that_it_makes():
    clf = small().fit(X[:600], NAMES)
    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    model = nn.Sequential(build((64,), 10), (64,), seed=seed)
    history = model.fit(X[:600], Y, epochs=15, lr=0.01, seed=seed)
    assert all((clf.model_.params[name] == model.params[name]).all() for name in model.params)
    assert clf.history_["loss"] == history["loss"]
    logits = model.predict(X[:600])
    assert (clf.predict(X[:600]) == np.array(list("abcdefghij"))[logits.argmax(axis=1)]).all()
    assert (clf.decision_function(X[:600]) == logits).all()
    np.testing.assert_allclose(clf.predict_proba(X[:600]).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X[:9])), clf.predict_proba(X[:9]), rtol=1e-4)


def test_weights_validation_and_callbacks():
    weight = np.where(Y < 5, 2.0, 0.5)
    names = {name: 2.0 if name < "f" else 0.5 for name in np.unique(NAMES)}
    by_class, by_sample = small(class_weight=names).fit(X[:600], NAMES), small().fit(X[:600], NAMES, weight)
    assert by_class.history_["loss"] == by_sample.history_["loss"]
    stopper = nn.EarlyStopping("val_loss", patience=0)
    clf = small(callbacks=stopper, epochs=200).fit(X[:400], NAMES[:400], validation_data=(X[400:600], NAMES[400:]))
    assert len(clf.history_["val_accuracy"]) < 200
    with pytest.raises(ValueError, match="must have classes of y, got 'z'"):
        small().fit(X[:600], NAMES, validation_data=(X[:1], ["z"]))


def test_partial_fits_and_warm_starts():
    clf = small()
    for i in range(0, 600, 100):
        clf.partial_fit(X[i : i + 100], NAMES[i : i + 100], classes=[*"abcdefghij"])
    assert clf._stepper.t == 6 * 4
    twin = pickle.loads(pickle.dumps(clf))
    for each in (clf, twin, copy.deepcopy(clf)):
        each.partial_fit(X[:100], NAMES[:100])
        assert (each.model_.params["0.weight"] == clf.model_.params["0.weight"]).all()
    with pytest.raises(ValueError, match="classes of the first call"):
        clf.partial_fit(X[:1], ["z"])
    warm = small(warm_start=True, epochs=2).fit(X[:600], NAMES)
    model = warm.model_
    assert warm.fit(X[:600], NAMES).model_ is model
    assert small(epochs=2).fit(X[:600], NAMES).fit(X[:600], NAMES).model_ is not model


@pytest.mark.parametrize("optimizer", ["lion", fastopt.RAdam, lambda params: fastopt.SGD(params, 0.1)], ids=str)
def test_optimizers(optimizer):
    lr = {"lion": 1e-3, fastopt.RAdam: 1e-2}.get(optimizer)
    assert small(optimizer=optimizer, lr=lr).fit(X[:600] / 16, NAMES).score(X[:600] / 16, NAMES) > 0.7


@pytest.mark.parametrize(
    "layers",
    ["small", "lenet", [nn.Conv2D(4, activation="relu"), nn.BatchNorm()], (nn.Flatten(), nn.Dense(60, "relu"))],
    ids=["small", "lenet", "list", "tuple"],
)
def test_images(layers):
    images = np.kron(IMAGES, np.ones((2, 2))) if layers == "lenet" else IMAGES
    cnn = CNNClassifier(layers, epochs=4, random_state=0, lr=0.003).fit(images, NAMES)
    assert cnn.score(images, NAMES) > 0.85
    assert (cnn.predict(images) == cnn.predict(images[..., None])).all()
    again = CNNClassifier(layers, epochs=4, random_state=0, lr=0.003).fit(images, NAMES)
    assert (cnn.predict_proba(images) == again.predict_proba(images)).all()
    assert isinstance(layers, str) or not layers[0].params  # those given are not trained


def test_bytes_and_rows_of_pixels():
    as_bytes = (IMAGES * 255).astype(np.uint8)
    cnn = CNNClassifier(epochs=2, random_state=0).fit(as_bytes, Y)
    same = CNNClassifier(epochs=2, random_state=0).fit(as_bytes.astype(np.float32) / np.float32(255), Y)
    assert (cnn.predict_proba(as_bytes) == same.predict_proba(as_bytes.astype(np.float32) / np.float32(255))).all()
    pipe = make_pipeline(MinMaxScaler(), CNNClassifier(image_shape=(8, 8), epochs=4, random_state=0, lr=0.003))
    assert pipe.fit(X[:600], NAMES).score(X[:600], NAMES) > 0.9


@pytest.mark.parametrize(
    ("estimator", "x", "message"),
    [
        (CNNClassifier(), X[:600], "set image_shape"),
        (CNNClassifier(image_shape=(8, 7)), X[:600], "56 pixels per image, got 64"),
        (CNNClassifier("big"), IMAGES, "layers must be"),
        (CNNClassifier([3]), IMAGES, "layers must be layers of fastopt.nn, got int"),
        (SequentialClassifier(lambda shape, classes: [nn.Dense(3)]), X[:600], "with 10 outputs"),
        (SequentialClassifier(build, class_weight="even"), X[:600], "class_weight"),
    ],
)
def test_refusals(estimator, x, message):
    with pytest.raises((TypeError, ValueError), match=message):
        estimator.fit(x, Y)


@pytest.mark.parametrize(
    "given", [{}, {1: 2}, np.float16(0.5), (IMAGES,), (IMAGES, Y, Y), "xy"], ids=lambda given: type(given).__name__
)
def test_validation_data_that_are_no_pair(given):
    with pytest.raises(ValueError, match="must be a pair"):
        CNNClassifier(epochs=1).fit(IMAGES[:50], Y[:50], validation_data=given)


def test_refusals_after_fit():
    cnn = CNNClassifier(epochs=1).fit(IMAGES[:50], Y[:50])
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\), got \(8, 7, 1\)"):
        cnn.predict(IMAGES[:, :, :7])
    with pytest.raises(ValueError, match="two classes"):
        CNNClassifier().fit(IMAGES[:5], np.zeros(5, int))
    with pytest.raises(ValueError, match="dict in partial_fit"):
        small(class_weight="balanced").partial_fit(X[:600], Y, classes=np.unique(Y))


def test_metrics_by_name():
    """They are in the history, callbacks watch them, and the best network is left."""
    x, y = X[:300] / 16, np.where(Y[:300] > 4, "high", "low")
    stopping = nn.EarlyStopping("val_f1", patience=1)
    net = SequentialClassifier(
        build, epochs=30, lr=0.01, random_state=0, metrics=["f1", "roc_auc", "top_1"], callbacks=[stopping]
    ).fit(x[:200], y[:200], validation_data=(x[200:], y[200:]))
    best = max(net.history_["val_f1"])
    assert f1_score(y[200:], net.predict(x[200:]), pos_label="low") == pytest.approx(best)
    assert net.history_["val_top_1"] == net.history_["val_accuracy"]
    assert len(net.history_["roc_auc"]) == len(net.history_["loss"]) < 30
    cnn = CNNClassifier([nn.Conv2D(2)], image_shape=(8, 8), epochs=1, metrics="f1").fit(x, y)
    assert "f1" in cnn.history_
    assert clone(cnn).get_params()["metrics"] == "f1"
