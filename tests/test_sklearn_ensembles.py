"""`n_ensemble` of MLPClassifier and MLPRegressor."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastopt
from fastopt import nn
from fastopt.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_digits(return_X_y=True)
X, Y = X[:300] / 16, Y[:300]


def mlp(**given):
    return MLPClassifier((8,), **{"n_ensemble": 3, "max_iter": 4, "random_state": 0, **given})


def seeds(n, random_state=0):
    return check_random_state(random_state).randint(2**31 - 1, size=n).tolist()


@parametrize_with_checks([MLPClassifier(max_iter=30, n_ensemble=2), MLPRegressor(max_iter=100, n_ensemble=2)])
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "given",
    [{}, {"early_stopping": True}, {"solver": "lbfgs"}, {"batch_norm": True, "dropout": 0.2, "activation": "gelu"}],
)
def test_members_are_those_of_fits_alone(given, threads):
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(threads)
    try:
        together = mlp(**given).fit(X, Y)
    finally:
        fastopt.set_num_threads(before)
    alone = [mlp(n_ensemble=1, **given | {"random_state": seed}).fit(X, Y) for seed in seeds(3)]
    for member, other in zip(together.estimators_, alone, strict=True):
        assert member.get_params()["random_state"] == other.random_state
        for a, b in zip(member.coefs_ + member.intercepts_, other.coefs_ + other.intercepts_, strict=True):
            np.testing.assert_array_equal(a, b)
    mean = np.mean([other.predict_proba(X) for other in alone], axis=0)
    np.testing.assert_allclose(together.predict_proba(X), mean, rtol=1e-14)
    np.testing.assert_array_equal(together.predict(X), mean.argmax(axis=1))
    np.testing.assert_allclose(together.predict_log_proba(X), np.log(mean), rtol=1e-12)
    assert together.n_iter_ == max(other.n_iter_ for other in alone)
    assert together.loss_ == np.mean([other.loss_ for other in alone])
    for name in ("coefs_", "history_", "network_"):
        assert not hasattr(together, name)


def test_regression_several_outputs_and_labels():
    target = np.stack([X[:, 20], X[:, 30] - X[:, 40]], axis=1)
    net = MLPRegressor(hidden_layer_sizes=(8,), n_ensemble=3, max_iter=4, random_state=0).fit(X, target)
    np.testing.assert_allclose(net.predict(X), np.mean([m.predict(X) for m in net.estimators_], axis=0), rtol=1e-14)
    labels = np.stack([Y > 4, Y % 2 == 0], axis=1).astype(int)
    several = mlp().fit(X, labels)
    mean = np.mean([m.predict_proba(X) for m in several.estimators_], axis=0)
    np.testing.assert_array_equal(several.predict(X), mean > 0.5)
    words = mlp().fit(X, np.where(Y > 4, "high", "low"))
    assert {*words.predict(X)} <= {"high", "low"}
    assert words.predict_proba(X).shape == (300, 2)


def test_types_of_inputs():
    single = mlp().fit(X.astype(np.float32), Y)
    assert single.predict_proba(X.astype(np.float32)).dtype == np.float32
    assert all(member.coefs_[0].dtype == np.float32 for member in single.estimators_)
    dense = mlp().fit(X, Y)
    thin = mlp().fit(sparse.csr_array(X), Y)
    np.testing.assert_allclose(thin.predict_proba(sparse.csr_array(X)), dense.predict_proba(X), rtol=1e-10)


def test_weights_and_validation_data_are_of_all():
    weight = np.where(Y < 5, 3.0, 0.1)
    got = mlp(class_weight={k: 1 + k for k in range(10)}).fit(X, Y, sample_weight=weight, validation_data=(X, Y))
    for member, seed in zip(got.estimators_, seeds(3), strict=True):
        other = mlp(n_ensemble=1, random_state=seed).fit(X, Y, sample_weight=weight * (1 + Y))
        np.testing.assert_array_equal(member.coefs_[0], other.coefs_[0])
        assert len(member.history_["val_score"]) == 4


def test_callbacks_are_copied():
    snapshots = nn.Snapshots(2)
    got = mlp(callbacks=[snapshots]).fit(X, Y)
    assert not snapshots.models
    assert [len(member.callbacks[0].models) for member in got.estimators_] == [2, 2, 2]


def test_partial_fit_goes_on_with_all():
    got = mlp().partial_fit(X[:150], Y[:150], classes=np.arange(10)).set_params(alpha=0.5).partial_fit(X, Y)
    for member, seed in zip(got.estimators_, seeds(3), strict=True):
        other = mlp(n_ensemble=1, random_state=seed).partial_fit(X[:150], Y[:150], classes=np.arange(10))
        other.set_params(alpha=0.5).partial_fit(X, Y)
        np.testing.assert_array_equal(member.coefs_[0], other.coefs_[0])
    assert got.estimators_[0].t_ == 450


def test_warm_starts_go_on_with_all():
    got = mlp(warm_start=True).fit(X, Y).set_params(max_iter=2).fit(X, Y)
    for member, seed in zip(got.estimators_, seeds(3), strict=True):
        other = mlp(n_ensemble=1, random_state=seed, warm_start=True).fit(X, Y).set_params(max_iter=2).fit(X, Y)
        np.testing.assert_array_equal(member.coefs_[0], other.coefs_[0])
    cold = mlp().fit(X, Y).fit(X, Y)
    np.testing.assert_array_equal(cold.predict_proba(X), mlp().fit(X, Y).predict_proba(X))


@pytest.mark.parametrize(("first", "then"), [(1, 3), (3, 1), (3, 2)])
def test_another_number_begins_anew_or_is_refused(first, then):
    net = mlp(n_ensemble=first).fit(X, Y).set_params(n_ensemble=then)
    net.predict(X)  # by what was fitted
    with pytest.raises(ValueError, match=f"n_ensemble must be that of the fit before, {first}"):
        net.partial_fit(X, Y)
    with pytest.raises(ValueError, match=f"n_ensemble must be that of the fit before, {first}"):
        clone(net).set_params(n_ensemble=first, warm_start=True).fit(X, Y).set_params(n_ensemble=then).fit(X, Y)
    net.fit(X, Y)
    np.testing.assert_array_equal(net.predict_proba(X), mlp(n_ensemble=then).fit(X, Y).predict_proba(X))
    assert hasattr(net, "estimators_") == (then > 1)
    assert hasattr(net, "coefs_") == (then == 1)


def test_pickles_go_on():
    net = mlp(solver="nadam").fit(X, Y)
    twin = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(twin.predict_proba(X), net.predict_proba(X))
    np.testing.assert_array_equal(twin.partial_fit(X, Y).predict_proba(X), net.partial_fit(X, Y).predict_proba(X))


def test_what_fails_is_raised():
    class Failing(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            raise RuntimeError("it has failed")

    net = mlp(callbacks=[Failing()])
    with pytest.raises(RuntimeError, match="it has failed"):
        net.fit(X, Y)
    with pytest.raises(NotFittedError):
        net.predict(X)
    for bad in (0, 2.0, None):
        with pytest.raises(ValueError, match="'n_ensemble' parameter"):
            mlp(n_ensemble=bad).fit(X, Y)
    with pytest.raises(ValueError, match="validation_data must be left out"):
        mlp(solver="lbfgs").fit(X, Y, validation_data=(X, Y))
