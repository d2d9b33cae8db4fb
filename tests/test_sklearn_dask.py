"""Cross-validation and searches over a cluster of Dask, through joblib."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("distributed")

import distributed
import joblib
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import fastopt
from fastopt import data
from fastopt.sklearn import CNNClassifier, MLPClassifier

# The warnings of fits, and those of Dask and its network.
pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLE = Path(__file__).parents[1] / "examples" / "dask_search.py"
X, Y = data.digits()
IMAGES, X, Y = X[:200], X[:200].reshape(200, -1), Y[:200]


@pytest.fixture(scope="module")
def client():
    """Of a cluster of two processes with two threads each."""
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None, "worker_dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


def test_scores_over_a_cluster_are_those_of_one_process(client):
    estimators = {
        "mlp": MLPClassifier((16,), max_iter=20, random_state=0),
        "cnn": CNNClassifier("small", epochs=1, random_state=0),
    }
    for name, estimator in estimators.items():
        x = X if name == "mlp" else IMAGES
        alone = cross_val_score(estimator, x, Y, cv=3)
        with joblib.parallel_config("dask"):
            np.testing.assert_array_equal(cross_val_score(estimator, x, Y, cv=3), alone)


def test_a_search_over_a_cluster_is_that_of_one_process(client):
    grid = {"mlpclassifier__alpha": [1e-4, 10.0], "mlpclassifier__dropout": [0.0, 0.3]}
    pipe = make_pipeline(MinMaxScaler(), MLPClassifier((16,), max_iter=15, learning_rate_init=0.01, random_state=0))
    alone = GridSearchCV(pipe, grid, cv=2).fit(X, Y)
    with joblib.parallel_config("dask", scatter=[X, Y]):
        search = GridSearchCV(pipe, grid, cv=2).fit(X, Y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert search.best_params_ == alone.best_params_
    assert (search.predict(X) == alone.predict(X)).all()


def test_kernels_of_workers_never_use_more_threads_than_there_are_cpus(client):
    used = client.run(fastopt.get_num_threads)
    assert sorted(used.values()) == [1, 1]


def test_the_example(client):
    if not EXAMPLE.exists():
        pytest.skip("examples are not installed")
    found = runpy.run_path(str(EXAMPLE))["search"](client, candidates=3, samples=200, epochs=5)
    assert len(found.cv_results_["params"]) == 3
    assert 0 < found.best_score_ <= 1
