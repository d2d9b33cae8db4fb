"""What scikit-learn builds upon estimators, with those of `fastopt.sklearn`."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
import sklearn
from sklearn import neural_network as theirs
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, StratifiedKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastopt import nn
from fastopt.sklearn import CNNClassifier, MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_digits(return_X_y=True)
X, Y = X[:300], Y[:300]


def mlp(**given):
    return MLPClassifier((30,), **{"max_iter": 20, "learning_rate_init": 0.01, "random_state": 0, **given})


@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_scores_are_those_of_scikit_learn():
    """In a pipeline, over folds."""
    folds = StratifiedKFold(3)
    pipes = [make_pipeline(StandardScaler(), kind((30,), max_iter=20, random_state=0)) for kind in
             (MLPClassifier, theirs.MLPClassifier)]  # fmt: skip
    ours, their = (cross_val_score(pipe, X, Y, cv=folds) for pipe in pipes)
    np.testing.assert_array_equal(ours, their)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_a_grid_over_processes_and_threads(backend):
    grid = {"mlpclassifier__alpha": [1e-4, 10.0], "mlpclassifier__dropout": [0.0, 0.3]}
    pipe = make_pipeline(MinMaxScaler(), mlp())
    alone = GridSearchCV(pipe, grid, cv=2).fit(X, Y)
    with joblib.parallel_config(backend):
        search = GridSearchCV(pipe, grid, cv=2, n_jobs=2).fit(X, Y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert search.best_params_ == alone.best_params_
    assert search.best_score_ > 0.8


def test_a_search_over_what_scikit_learn_does_not_have():
    space = {"solver": ["adam", "lion", "nadam"], "batch_norm": [False, True], "activation": ["relu", "gelu"]}
    search = RandomizedSearchCV(mlp(), space, n_iter=4, cv=2, random_state=0, error_score="raise").fit(X / 16, Y)
    assert search.best_estimator_.score(X / 16, Y) > 0.9


def test_halving():
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingRandomSearchCV

    space = {"alpha": [1e-4, 1e-2, 100.0], "dropout": [0.0, 0.2]}
    search = HalvingRandomSearchCV(
        mlp(), space, cv=2, random_state=0, n_candidates=4, resource="max_iter", max_resources=40
    )
    assert search.fit(X / 16, Y).best_params_["alpha"] < 100


@pytest.mark.parametrize(
    "ensemble",
    [
        lambda: VotingClassifier(
            [("a", mlp()), ("b", mlp(random_state=1)), ("c", LogisticRegression())], voting="soft"
        ),
        lambda: StackingClassifier([("a", mlp()), ("b", mlp(activation="tanh"))], cv=2),
        lambda: BaggingClassifier(mlp(), n_estimators=3, random_state=0),
        lambda: CalibratedClassifierCV(mlp(), cv=2),
    ],
    ids=["voting", "stacking", "bagging", "calibrated"],
)
def test_ensembles(ensemble):
    assert ensemble().fit(X / 16, Y).score(X / 16, Y) > 0.9


def test_targets_that_are_transformed():
    x = np.linspace(0, 1, 200)[:, None]
    net = MLPRegressor(random_state=0, max_iter=300, learning_rate_init=0.01)
    model = TransformedTargetRegressor(net, func=np.log, inverse_func=np.exp)
    assert model.fit(x, np.exp(3 * x[:, 0])).score(x, np.exp(3 * x[:, 0])) > 0.95


def test_metadata_are_routed():
    weight = np.where(Y < 5, 5.0, 0.01)
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = make_pipeline(
            MinMaxScaler(), mlp().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        )
        routed = cross_validate(pipe, X, Y, params={"sample_weight": weight}, cv=2, return_estimator=True)
        plain = mlp().set_fit_request(validation_data=True)
        assert plain.get_metadata_routing().fit.requests["validation_data"] is True
    for estimator, rows in zip(routed["estimator"], StratifiedKFold(2).split(X, Y), strict=True):
        by_hand = mlp().fit(MinMaxScaler().fit_transform(X[rows[0]]), Y[rows[0]], sample_weight=weight[rows[0]])
        assert all((a == b).all() for a, b in zip(estimator[-1].coefs_, by_hand.coefs_, strict=True))


def test_frames_with_names():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(64)])
    pipe = make_pipeline(MinMaxScaler(), mlp(metrics="accuracy")).set_output(transform="pandas").fit(frame, Y)
    assert [*pipe[-1].feature_names_in_] == [*frame.columns]
    assert pipe.score(frame, Y) == accuracy_score(Y, pipe.predict(frame))


def test_images_over_processes():
    images = (X / 16).reshape(-1, 8, 8)
    cnn = CNNClassifier([nn.Conv2D(4, activation="relu")], epochs=4, random_state=0)
    with joblib.parallel_config("loky"):
        scores = cross_val_score(cnn, images, Y, cv=2, n_jobs=2)
    np.testing.assert_array_equal(scores, cross_val_score(cnn, images, Y, cv=2))
