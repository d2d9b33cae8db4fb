"""`fastopt.sklearn`: its MLPs against scikit-learn's own, what they have beyond these, and what uses them."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning

import fastopt
from fastopt import nn
from fastopt import sklearn as ours
from fastopt.schedules import bind, cosine

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_digits(return_X_y=True)
X, Y = X[:1347], Y[:1347]
SMALL, LABELS = X[:300] / 16, Y[:300]


def arrays(estimator):
    return [*estimator.coefs_, *estimator.intercepts_]


def distance(one, other):
    """The largest relative difference by norm of any array of two estimators."""
    return max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(arrays(one), arrays(other), strict=True))


def both(kind, **given):
    return getattr(theirs, kind)(**given), getattr(ours, kind)(**given)


# ---- The same model ---------------------------------------------------------------------------------------------

SETTINGS = {
    "defaults": {},
    "tanh": {"activation": "tanh", "hidden_layer_sizes": (40, 20), "alpha": 0.01},
    "sgd": {"solver": "sgd"},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling"},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.1},
    "early stopping": {"early_stopping": True},
    "no Nesterov": {"solver": "sgd", "nesterovs_momentum": False},
    "logistic": {"activation": "logistic", "batch_size": 50, "alpha": 1.0},
    "identity": {"activation": "identity", "shuffle": False, "batch_size": 449},
    "three layers": {"hidden_layer_sizes": [30, 20, 10], "epsilon": 1e-4, "beta_1": 0.8},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_model_on_digits(name):
    a, b = both("MLPClassifier", max_iter=20, random_state=0, **SETTINGS[name])
    a.fit(X, Y)
    b.fit(X, Y)
    assert distance(a, b) < 1e-9
    assert (a.n_iter_, a.t_, a.n_layers_, a.n_outputs_) == (b.n_iter_, b.t_, b.n_layers_, b.n_outputs_)
    np.testing.assert_allclose(a.loss_curve_, b.loss_curve_, rtol=1e-9, atol=1e-12)
    assert a.best_validation_score_ == b.best_validation_score_
    np.testing.assert_allclose(a._optimizer.learning_rate, b._optimizer.learning_rate, rtol=1e-12)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-6, atol=1e-12)


def data_of(task):
    rng = np.random.default_rng(3)
    if task == "binary":
        return "MLPClassifier", SMALL, np.array(["no", "yes"])[LABELS % 2], {}
    if task == "multilabel":
        return "MLPClassifier", *make_multilabel_classification(200, 12, random_state=0), {}
    if task == "regression":
        x, y = make_regression(200, 8, noise=1.0, random_state=0)
        return "MLPRegressor", x, y / y.std(), {}
    if task == "three outputs":
        x, y = make_regression(200, 8, n_targets=3, random_state=0)
        return "MLPRegressor", x, y / y.std(), {}
    if task == "poisson":
        return "MLPRegressor", SMALL, rng.poisson(2.0, len(SMALL)).astype(float), {"loss": "poisson"}
    return "MLPClassifier", SMALL, LABELS, {}


TASKS = ("multiclass", "binary", "multilabel", "regression", "three outputs", "poisson")


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("task", TASKS)
def test_the_same_model_of_each_kind(task, solver, weighted):
    kind, x, y, more = data_of(task)
    weight = np.random.default_rng(1).uniform(0.1, 2.0, len(x)) if weighted else None
    a, b = both(kind, solver=solver, max_iter=8, random_state=1, batch_size=64, alpha=0.1, **more)
    a.fit(x, y, sample_weight=weight)
    b.fit(x, y, sample_weight=weight)
    assert distance(a, b) < 1e-9
    np.testing.assert_allclose(a.loss_, b.loss_, rtol=1e-9)
    if kind == "MLPClassifier":
        np.testing.assert_array_equal(a.predict(x), b.predict(x))
    else:
        np.testing.assert_allclose(a.predict(x), b.predict(x), rtol=1e-6)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("task", TASKS)
def test_one_update_from_an_equal_state(task, solver):
    kind, x, y, more = data_of(task)
    x, y = x[:150], y[:150]
    options = {"solver": solver, "random_state": 0, "batch_size": 150, "alpha": 0.5, "learning_rate_init": 0.01}
    a, b = both(kind, max_iter=30, **options, **more)
    a.fit(x, y)
    b.fit(x, y)
    for mine, its in zip(arrays(b), arrays(a), strict=True):
        mine[...] = its
    names = [f"{place}.{which}" for which in ("weight", "bias") for place in b._places]
    held = {"m": "ms", "v": "vs"} if solver == "adam" else {"velocity": "velocities"}
    for i, name in enumerate(names):
        for state, attribute in held.items():
            b._stepper.state[name][state][...] = getattr(a._optimizer, attribute)[i]
    before = copy.deepcopy(arrays(a))
    a.partial_fit(x, y)
    b.partial_fit(x, y)
    assert distance(a, b) < 1e-13
    assert all((new != old).any() for new, old in zip(arrays(a), before, strict=True))


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fits_and_warm_starts(solver):
    a, b = both("MLPClassifier", solver=solver, random_state=3, batch_size=32)
    for part in range(6):
        rows = slice(50 * part, 50 * part + 50)
        a.partial_fit(SMALL[rows], LABELS[rows], classes=np.arange(10))
        b.partial_fit(SMALL[rows], LABELS[rows], classes=np.arange(10))
    assert distance(a, b) < 1e-12
    assert len(b.loss_curve_) == 6
    a, b = both("MLPClassifier", solver=solver, random_state=3, warm_start=True, max_iter=5, early_stopping=True)
    for _ in range(3):
        a.fit(SMALL, LABELS)
        b.fit(SMALL, LABELS)
    assert distance(a, b) < 1e-10
    assert a.validation_scores_ == b.validation_scores_


def test_the_rule_stops_at_the_same_epoch():
    for options in ({}, {"solver": "sgd", "learning_rate_init": 0.1, "tol": 1e-3, "learning_rate": "adaptive"}):
        a, b = both(
            "MLPClassifier",
            hidden_layer_sizes=(20,),
            random_state=0,
            max_iter=400,
            tol=options.pop("tol", 1e-2),
            **options,
        )
        a.fit(SMALL, LABELS)
        b.fit(SMALL, LABELS)
        assert a.n_iter_ == b.n_iter_ < 400
        assert a.loss_curve_ == pytest.approx(b.loss_curve_, rel=1e-6)
        assert b.history_.stopped.startswith("Training loss did not improve")


def test_a_generator_of_the_caller_is_left_in_the_same_state():
    rngs = np.random.RandomState(5), np.random.RandomState(5)
    for rng, kind in zip(rngs, both("MLPClassifier", max_iter=3, early_stopping=True), strict=True):
        kind.set_params(random_state=rng).fit(SMALL, LABELS)
    assert rngs[0].randint(2**31) == rngs[1].randint(2**31)


def test_single_precision_where_inputs_are():
    a, b = both("MLPClassifier", max_iter=5, random_state=0)
    a.fit(SMALL.astype(np.float32), LABELS)
    b.fit(SMALL.astype(np.float32), LABELS)
    assert {array.dtype for array in arrays(b)} == {np.dtype(np.float32)}
    assert distance(a, b) < 1e-5


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_inputs(form, monkeypatch):
    from fastopt.sklearn import runs

    monkeypatch.setattr(runs, "MOST_DENSE", 64 * 130)
    x = np.where(SMALL > 0.7, SMALL, 0.0)
    for options in ({}, {"batch_norm": True}, {"alpha": 0.0, "activation": "gelu"}):
        dense, thin = (ours.MLPClassifier(max_iter=6, random_state=0, batch_size=64, **options) for _ in range(2))
        weight = None if options else np.linspace(0.5, 1.5, len(x))
        dense.fit(x, LABELS, weight)
        thin.fit(form(x), LABELS, weight)
        assert distance(dense, thin) < 1e-12
        np.testing.assert_allclose(thin.predict_proba(form(x)), dense.predict_proba(x), rtol=1e-9, atol=1e-12)


def test_warnings_are_those_of_scikit_learn():
    for kind in both("MLPClassifier", max_iter=2, batch_size=1000):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind.fit(SMALL, LABELS)
        assert [w.category for w in caught] == [UserWarning, ConvergenceWarning]
        assert "Maximum iterations (2) reached" in str(caught[1].message)


def test_an_epoch_is_a_few_calls(monkeypatch):
    runs = []
    many = nn.trainer.Steps.many

    def counted(self, *given):
        taken = many(self, *given)
        runs.append(len(taken.loss))
        return taken

    monkeypatch.setattr(nn.trainer.Steps, "many", counted)
    monkeypatch.setattr(nn.program, "SLICE", 1e9)
    ours.MLPClassifier(max_iter=30, random_state=0).fit(X, Y)
    assert sum(runs) == 30 * 7
    assert len(runs) <= 30 * 2 + 1
