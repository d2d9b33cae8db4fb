"""`SearchCV`: results equal to those of scikit-learn's searches; going on from files; narrowing; refusals."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sys
import threading
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from scipy.stats import loguniform, norm, randint, uniform
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    HalvingRandomSearchCV,
    ParameterSampler,
    RandomizedSearchCV,
    StratifiedKFold,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastopt import nn
from fastopt.sklearn import CNNClassifier, MLPClassifier, MLPRegressor, SearchCV, SequentialClassifier, search
from fastopt.sklearn.search import Quantiles

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_digits(return_X_y=True)
X, Y = X[:240] / 16, Y[:240]


def mlp(**given):
    return MLPClassifier(**{"hidden_layer_sizes": (8,), "max_iter": 4, "random_state": 0, **given})


def dense(input_shape, classes):
    return [nn.Dense(8, activation="relu"), nn.Dense(classes)]


def equal(ours, theirs):
    """Whether everything but times is equal."""
    assert [*ours.cv_results_] == [*theirs.cv_results_]
    for name, column in theirs.cv_results_.items():
        if not name.endswith("_time"):
            pair = [np.asarray(each) for each in (ours.cv_results_[name], column)]
            if isinstance(column, np.ma.MaskedArray):  # of parameters that not all candidates have
                pair = [each.astype(object).filled("absent") for each in (ours.cv_results_[name], column)]
            np.testing.assert_array_equal(*pair, err_msg=name)
    for name in ("best_params_", "best_score_", "best_index_", "n_splits_", "multimetric_"):
        assert getattr(ours, name, None) == getattr(theirs, name, None), name


SPACE = {"learning_rate_init": loguniform(1e-3, 1e-1), "alpha": uniform(0, 1), "dropout": [0.0, 0.3]}


# ---- The same results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_random(threads):
    given = {"n_iter": 4, "cv": 3, "random_state": 1, "return_train_score": True}
    ours = SearchCV(mlp(), SPACE, threads=threads, **given).fit(X, Y)
    theirs = RandomizedSearchCV(mlp(), SPACE, **given).fit(X, Y)
    equal(ours, theirs)
    np.testing.assert_array_equal(ours.predict_proba(X), theirs.predict_proba(X))
    assert ours.score(X, Y) == theirs.score(X, Y) > 0.3
    assert ours.refit_time_ > 0
    assert ours.n_features_in_ == 64
    np.testing.assert_array_equal(ours.classes_, np.arange(10))


def test_grid_with_several_metrics():
    grid = {"hidden_layer_sizes": [(4,), (8, 4)], "solver": ["adam", "lbfgs"], "early_stopping": [False, True]}
    given = {"cv": StratifiedKFold(2, shuffle=True, random_state=3), "refit": "neg_log_loss"}
    given["scoring"] = {"accuracy": "accuracy", "neg_log_loss": "neg_log_loss"}
    net = mlp(max_fun=20)
    equal(SearchCV(net, grid, strategy="grid", **given).fit(X, Y), GridSearchCV(net, grid, **given).fit(X, Y))


def test_several_grids_and_a_function_for_the_best():
    grids = [{"alpha": [1e-3, 1.0]}, {"activation": ["tanh"], "batch_size": [20, 40]}]
    given = {"cv": 2, "refit": lambda results: int(np.argmin(results["mean_test_score"]))}
    equal(SearchCV(mlp(), grids, strategy="grid", **given).fit(X, Y), GridSearchCV(mlp(), grids, **given).fit(X, Y))


def test_metrics_of_a_function():
    def scorer(estimator, x, y):
        right = accuracy_score(y, estimator.predict(x))
        return {"right": right, "wrong": 1 - right}

    given = {"cv": 2, "scoring": scorer, "refit": "right", "n_iter": 2, "random_state": 0}
    equal(SearchCV(mlp(), SPACE, **given).fit(X, Y), RandomizedSearchCV(mlp(), SPACE, **given).fit(X, Y))


@pytest.mark.parametrize("aggressive", [False, True])
def test_halving(aggressive):
    """Candidates go on from iteration to iteration, to the scores of fits from the beginning."""
    space = {**SPACE, "early_stopping": [False, True], "n_ensemble": [1, 2], "batch_size": [16, 100]}
    shared = {"cv": 2, "random_state": 1, "min_resources": 2, "aggressive_elimination": aggressive}
    net = mlp(n_iter_no_change=2, tol=0.01)
    ours = SearchCV(
        net, space, strategy="halving", n_iter=9, max_resources=12, return_train_score=True, **shared
    ).fit(X, Y)  # fmt: skip
    theirs = HalvingRandomSearchCV(net, space, n_candidates=9, resource="max_iter", max_resources=12, **shared)
    theirs.fit(X, Y)
    assert {*ours.cv_results_} == {*theirs.cv_results_}
    ours.cv_results_ = {name: ours.cv_results_[name] for name in theirs.cv_results_}
    equal(ours, theirs)
    for name in ("n_iterations_", "n_resources_", "n_candidates_", "n_remaining_candidates_", "min_resources_",
                 "max_resources_", "n_required_iterations_", "n_possible_iterations_"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name


def test_halving_goes_on_where_it_was(monkeypatch):
    """The epochs that are trained are those of the last iteration of each, not those of all iterations."""
    counted = []
    original = MLPClassifier._update_no_improvement_count

    def counting(self, *args):
        counted.append(1)
        return original(self, *args)

    monkeypatch.setattr(MLPClassifier, "_update_no_improvement_count", counting)
    given = {"strategy": "halving", "n_iter": 4, "factor": 2, "cv": 2, "refit": False, "random_state": 0}
    halving = SearchCV(mlp(max_iter=4), {"alpha": uniform(0, 1)}, **given).fit(X, Y)
    assert (halving.n_candidates_, halving.n_resources_) == ([4, 2, 1], [1, 2, 4])
    assert len(counted) == 2 * (4 * 1 + 2 * 1 + 1 * 2)
    counted.clear()
    SearchCV(mlp(max_iter=4, callbacks=[nn.Callback()]), {"alpha": uniform(0, 1)}, **given).fit(X, Y)
    assert len(counted) == 2 * (4 * 1 + 2 * 2 + 1 * 4)


def test_halving_of_layers_of_ones_own():
    """Schedule-free averages are in the parameters' place where candidates are scored."""
    space = {"lr": loguniform(1e-3, 1e-1), "optimizer": ["adam", "schedule_free_adamw"]}
    net = SequentialClassifier(dense, epochs=9, random_state=0)
    shared = {"cv": 2, "random_state": 0, "min_resources": 1}
    ours = SearchCV(net, space, strategy="halving", n_iter=6, return_train_score=True, **shared).fit(X, Y)
    theirs = HalvingRandomSearchCV(net, space, n_candidates=6, resource="epochs", max_resources=9, **shared).fit(X, Y)
    ours.cv_results_ = {name: ours.cv_results_[name] for name in theirs.cv_results_}
    equal(ours, theirs)


def test_pipelines():
    """What comes before the last step is fitted on each fold, once for all candidates that agree in it."""
    fitted = []

    class Scaler(StandardScaler):
        def fit(self, X, y=None, sample_weight=None):  # noqa: N803
            fitted.append(len(X))
            return super().fit(X, y, sample_weight)

    pipe = Pipeline([("scale", Scaler()), ("none", "passthrough"), ("net", mlp())])
    space = {"scale__with_std": [True, False], "net__alpha": [1e-3, 1e-2, 1e-1]}
    theirs = GridSearchCV(pipe, space, cv=2, refit=False).fit(X, Y)
    fitted.clear()
    ours = SearchCV(pipe, space, strategy="grid", cv=2, refit=False).fit(X, Y)
    assert len(fitted) == 2 * 2
    equal(ours, theirs)


def test_steps_that_are_searched():
    pipe = Pipeline([("scale", MinMaxScaler()), ("net", mlp())])
    space = {"scale": [StandardScaler(), PolynomialFeatures(1), "passthrough"], "net": [mlp(), mlp(activation="tanh")]}
    ours = SearchCV(pipe, space, strategy="grid", cv=2).fit(X, Y)
    theirs = GridSearchCV(pipe, space, cv=2).fit(X, Y)
    np.testing.assert_array_equal(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])
    assert repr(ours.best_params_) == repr(theirs.best_params_)


@pytest.mark.parametrize("routing", [False, True])
def test_weights_are_divided(routing):
    weight = np.where(Y < 5, 3.0, 0.1)
    with sklearn.config_context(enable_metadata_routing=routing):
        net = mlp()
        if routing:
            net.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        given = {"n_iter": 2, "cv": 2, "random_state": 0}
        ours = SearchCV(net, SPACE, **given).fit(X, Y, sample_weight=weight)
        theirs = RandomizedSearchCV(net, SPACE, **given).fit(X, Y, sample_weight=weight)
        equal(ours, theirs)
        if not routing:
            pipe, named = make_pipeline(MinMaxScaler(), net), {"mlpclassifier__sample_weight": weight}
            space = {"mlpclassifier__alpha": [0.1, 1.0]}
            equal(
                SearchCV(pipe, space, strategy="grid", cv=2).fit(X, Y, **named),
                GridSearchCV(pipe, space, cv=2).fit(X, Y, **named),
            )


def test_other_estimators():
    target = X[:, 20] - X[:, 30] ** 2
    regressor = MLPRegressor(hidden_layer_sizes=(8,), max_iter=5, random_state=0)
    given = {"n_iter": 3, "cv": 2, "random_state": 0}
    rates = {"learning_rate_init": loguniform(1e-3, 1e-1)}
    equal(
        SearchCV(regressor, rates, **given).fit(X, target), RandomizedSearchCV(regressor, rates, **given).fit(X, target)
    )
    cnn = CNNClassifier([nn.Conv2D(2, activation="relu")], image_shape=(8, 8), epochs=1, random_state=0)
    given["n_iter"] = 2
    rates = {"lr": loguniform(1e-3, 1e-1)}
    equal(SearchCV(cnn, rates, **given).fit(X, Y), RandomizedSearchCV(cnn, rates, **given).fit(X, Y))


def test_frames_have_names():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(64)])
    pipe = make_pipeline(MinMaxScaler(), mlp(metrics="accuracy")).set_output(transform="pandas")
    done = SearchCV(pipe, {"mlpclassifier__alpha": [0.1, 1.0]}, strategy="grid", cv=2).fit(frame, Y)
    assert [*done.feature_names_in_] == [*frame.columns]


# ---- Failures -------------------------------------------------------------------------------------------------------


class Failing(nn.Callback):
    """Raises in training."""

    def on_epoch_end(self, epoch, logs):
        raise RuntimeError("a callback has failed")


class Unwilling(StandardScaler):
    """Raises before training."""

    def fit(self, X, y=None, sample_weight=None):  # noqa: N803
        raise RuntimeError("a scaler has failed")


def test_failures_are_as_in_scikit_learn():
    """Of parameters, of a step before, of training."""
    pipe = Pipeline([("scale", StandardScaler()), ("net", mlp())])
    grid = [
        {"net__alpha": [0.1, -1.0]},
        {"scale": [Unwilling(), StandardScaler()], "net__callbacks": [None, Failing()]},
    ]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ours = SearchCV(pipe, grid, strategy="grid", cv=2, return_train_score=True).fit(X, Y)
        theirs = GridSearchCV(pipe, grid, cv=2, return_train_score=True).fit(X, Y)
    said = "".join(str(each.message) for each in told)
    assert said.count("8 fits failed out of a total of 12") == said.count("test scores are non-finite") == 2
    for text in ("'alpha' parameter", "a scaler has failed", "a callback has failed"):
        assert text in said
    equal(ours, theirs)
    assert np.isnan(ours.cv_results_["mean_test_score"]).tolist() == [False, True, True, False, True, True]


def test_failures_that_are_raised():
    given = {"strategy": "grid", "cv": 2, "error_score": "raise"}
    with pytest.raises(ValueError, match="alpha"):
        SearchCV(mlp(), {"alpha": [0.1, -1.0]}, **given).fit(X, Y)
    with pytest.raises(RuntimeError, match="a callback has failed"):
        SearchCV(mlp(), {"callbacks": [Failing()]}, **given).fit(X, Y)
    with pytest.raises(ValueError, match="All the 2 fits failed"):
        SearchCV(mlp(), {"alpha": [-1.0]}, strategy="grid", cv=2).fit(X, Y)


@pytest.mark.parametrize(
    ("estimator", "given", "error", "said"),
    [
        (LogisticRegression(), {"space": {"C": [1.0]}}, TypeError, "estimator must be one of fastopt.sklearn"),
        (make_pipeline(mlp(), LogisticRegression()), {"space": {}}, TypeError, "got LogisticRegression"),
        (mlp(), {"space": {"alpha": 0.1}}, TypeError, r"write \[0.1\]"),
        (mlp(), {"space": {"solver": "adam"}}, TypeError, r"write \['adam'\]"),
        (mlp(), {"space": {"alpha": uniform()}, "strategy": "grid"}, ValueError, "lists for strategy='grid'"),
        (mlp(), {"space": [3]}, TypeError, "a dict, or a list of dicts"),
        (mlp(), {"space": {"alhpa": [0.1]}}, ValueError, "Invalid parameter 'alhpa'"),
        (mlp(), {"space": {"alpha": [0.1]}, "strategy": "bayes"}, ValueError, "strategy"),
        (mlp(), {"space": {"max_iter": [1]}, "strategy": "halving"}, ValueError, "no parameter that is searched"),
        (mlp(), {"space": SPACE, "strategy": "halving", "resource": "n_samples"}, ValueError, "HalvingRandomSearchCV"),
        (mlp(), {"space": SPACE, "strategy": "halving", "min_resources": 5}, ValueError, "at most max_resources, 4"),
        (mlp(), {"space": SPACE, "strategy": "halving", "factor": 1}, ValueError, "factor"),
        (mlp(), {"space": [SPACE], "strategy": "coarse-to-fine"}, TypeError, "one dict"),
        (mlp(), {"space": SPACE, "file": "results.json"}, ValueError, "random_state must be an int beside file"),
        (mlp(), {"space": SPACE, "seeds": []}, ValueError, "at least one seed"),
        (mlp(), {"space": SPACE, "seeds": [-1]}, ValueError, "seeds"),
        (mlp(), {"space": SPACE, "threads": 0}, ValueError, "threads"),
        (mlp(), {"space": SPACE, "scoring": ["accuracy", "f1_macro"]}, ValueError, "refit must be set"),
        (
            mlp(),
            {"space": SPACE, "scoring": ["accuracy", "f1_macro"], "refit": False, "strategy": "halving"},
            ValueError,
            "refit must be the name of a metric",
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The total space")
def test_refusals(estimator, given, error, said):
    with pytest.raises(error, match=said):
        SearchCV(estimator, **given).fit(X, Y)


def test_callbacks_of_scikit_learn_are_refused():
    with pytest.raises(AttributeError, match="progress=True"):
        SearchCV(mlp(), SPACE).set_callbacks()


# ---- Seeds, memory, progress ----------------------------------------------------------------------------------------


def test_seeds_are_further_splits():
    done = SearchCV(mlp(), {"alpha": [0.1]}, strategy="grid", cv=2, seeds=[3, 4]).fit(X, Y)
    assert done.n_splits_ == 4
    apart = [
        GridSearchCV(mlp(random_state=seed), {"alpha": [0.1]}, cv=2, refit=False).fit(X, Y).cv_results_
        for seed in (3, 4)
    ]  # fmt: skip
    for fold in range(2):
        for i in range(2):
            assert done.cv_results_[f"split{2 * fold + i}_test_score"] == apart[i][f"split{fold}_test_score"]
    assert done.best_estimator_.random_state == 3


def test_with_little_memory(monkeypatch):
    whole = SearchCV(mlp(), SPACE, strategy="halving", n_iter=4, factor=2, cv=2, random_state=0).fit(X, Y)
    monkeypatch.setattr(search, "MOST_BYTES", 1)
    parts = SearchCV(mlp(), SPACE, strategy="halving", n_iter=4, factor=2, cv=2, random_state=0).fit(X, Y)
    equal(parts, whole)


def test_what_it_says(capsys):
    line = io.StringIO()
    SearchCV(mlp(), {"alpha": [0.1, 0.2]}, strategy="grid", cv=2, verbose=2, progress=line).fit(X, Y)
    out = capsys.readouterr().out
    assert "Fitting 2 folds for each of 2 candidates, totalling 4 fits" in out
    assert out.count("END alpha=0.1; score=") == 2
    assert "models 4/4" in line.getvalue()


@parametrize_with_checks(
    [
        SearchCV(
            MLPClassifier((16,), max_iter=60, random_state=0, learning_rate_init=0.01),
            {"alpha": [1e-4, 1e-3]},
            strategy="grid",
            cv=2,
            error_score="raise",
        )
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_a_search_is_an_estimator():
    made = SearchCV(mlp(), SPACE, n_iter=3, cv=2)
    assert clone(made).get_params()["space"].keys() == SPACE.keys()
    assert sklearn.utils.get_tags(made).estimator_type == "classifier"
    done = SearchCV(mlp(), SPACE, n_iter=2, cv=2, random_state=0).fit(X, Y)
    twin = pickle.loads(pickle.dumps(done))
    np.testing.assert_array_equal(twin.predict_proba(X), done.predict_proba(X))
    nested = sklearn.model_selection.cross_val_score(SearchCV(mlp(), SPACE, n_iter=2, cv=2, random_state=0), X, Y, cv=2)
    assert nested.shape == (2,)


# ---- Files ----------------------------------------------------------------------------------------------------------


class Interrupting:
    """A scorer that counts, and interrupts its callers from a call on: by an exception, or by one Ctrl-C."""

    def __init__(self, after=None, ctrl_c=False):
        self.calls, self._after, self._ctrl_c, self._lock = 0, after, ctrl_c, threading.Lock()

    def __call__(self, estimator, x, y):
        with self._lock:
            self.calls += 1
            number = self.calls
        if self._after is not None and number >= self._after:
            if not self._ctrl_c:
                raise KeyboardInterrupt
            if number == self._after:
                os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                threading.Event().wait(0.001)  # until the main thread has served it
        return accuracy_score(y, estimator.predict(x))


@pytest.mark.parametrize("strategy", ["random", "halving", "coarse-to-fine"])
@pytest.mark.parametrize("threads", [1, 2])
def test_going_on_from_a_file(tmp_path, strategy, threads, caplog):
    file = tmp_path / "results.json"
    given = {"strategy": strategy, "n_iter": 6, "factor": 2, "cv": 2, "random_state": 2, "threads": threads}
    whole = SearchCV(mlp(), SPACE, scoring=Interrupting(), **given).fit(X, Y)
    total = whole.scorer_.calls
    with pytest.raises(KeyboardInterrupt):
        SearchCV(mlp(), SPACE, scoring=Interrupting(after=7), file=file, **given).fit(X, Y)
    assert "from which the same search goes on" in caplog.text
    there = len(json.loads(file.read_text())["results"])
    assert there == 6
    again = SearchCV(mlp(), SPACE, scoring=Interrupting(), file=file, **given).fit(X, Y)
    assert again.scorer_.calls == total - there
    equal(again, whole)
    once_more = SearchCV(mlp(), SPACE, scoring=Interrupting(), file=file, **given).fit(X, Y)
    assert once_more.scorer_.calls == 0
    equal(once_more, whole)
    np.testing.assert_array_equal(once_more.predict_proba(X), whole.predict_proba(X))


@pytest.fixture
def ctrl_c():
    """The usual handler of Ctrl-C, which a process in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="there, a signal ends the process")
def test_ctrl_c(tmp_path, ctrl_c, caplog):
    given = {"n_iter": 8, "cv": 2, "random_state": 2, "threads": 2, "file": tmp_path / "results.json"}
    net = mlp(max_iter=30)
    with pytest.raises(KeyboardInterrupt):
        SearchCV(net, SPACE, scoring=Interrupting(3, ctrl_c=True), **given).fit(X, Y)
    assert "from which the same search goes on" in caplog.text
    there = len(json.loads((tmp_path / "results.json").read_text())["results"])
    assert 2 <= there < 16
    again = SearchCV(net, SPACE, scoring=Interrupting(), **given).fit(X, Y)
    assert again.scorer_.calls == 16 - there
    del given["file"]
    equal(again, SearchCV(net, SPACE, scoring=Interrupting(), **given).fit(X, Y))


def test_a_file_serves_a_longer_search_of_the_same_kind(tmp_path):
    file, given = tmp_path / "results.json", {"cv": 2, "random_state": 2, "scoring": Interrupting()}
    SearchCV(mlp(), SPACE, n_iter=2, file=file, **given).fit(X, Y)
    longer = SearchCV(mlp(), SPACE, n_iter=4, file=file, **{**given, "scoring": Interrupting()}).fit(X, Y)
    assert longer.scorer_.calls == 4
    others = {
        "estimator": ((mlp(tol=0.5), SPACE), given, (X, Y)),
        "data": ((mlp(), SPACE), given, (X + 1, Y)),
        "folds": ((mlp(), SPACE), given | {"cv": 3}, (X, Y)),
        "scoring": ((mlp(), SPACE), given | {"scoring": "accuracy"}, (X, Y)),
    }
    for name, (args, options, data) in others.items():
        with pytest.raises(ValueError, match=f"the same {name}"):
            SearchCV(*args, n_iter=2, file=file, **options).fit(*data)


def test_files_of_others_are_refused(tmp_path):
    file = tmp_path / "results.json"
    for text in ("", "[]", '{"format": "another"}', '{"format": "fastopt search 1", "setting": 3}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="file must name a file of SearchCV"):
            SearchCV(mlp(), SPACE, n_iter=1, cv=2, random_state=0, file=file).fit(X, Y)
        assert file.read_text() == text
    with pytest.raises(ValueError, match="can be pickled"):
        SearchCV(
            mlp(), {"solver": [lambda params: None]}, n_iter=1, cv=2, random_state=0, file=tmp_path / "new.json"
        ).fit(X, Y)  # fmt: skip


# ---- Coarse to fine -------------------------------------------------------------------------------------------------


def test_quantiles_of_distributions():
    part = Quantiles(loguniform(1e-4, 1.0), 0.0, 1.0)
    narrow = part.narrowed(1e-2, 1 / 4)
    np.testing.assert_allclose([narrow.low, narrow.high], [0.375, 0.625])
    drawn = narrow.rvs(1000, random_state=0)
    assert 10**-2.5 < drawn.min() < 10**-2.4
    assert 10**-1.6 < drawn.max() < 10**-1.5
    assert repr(narrow) == "[0.003162, 0.03162]"
    at_the_end = part.narrowed(1.0, 1 / 4)
    np.testing.assert_allclose([at_the_end.low, at_the_end.high], [0.75, 1.0])
    whole = Quantiles(randint(3, 13), 0.0, 1.0)
    assert repr(whole) == "[3, 12]"
    assert {*whole.rvs(500, random_state=0).tolist()} == {*range(3, 13)}
    assert {*whole.narrowed(7, 0.3).rvs(500, random_state=0).tolist()} == {6, 7, 8}
    assert abs(np.median(Quantiles(norm(5, 1), 0.0, 1.0).narrowed(5, 0.1).rvs(500, random_state=0)) - 5) < 0.1


def test_coarse_to_fine(capsys):
    """A parameter of which the score is a known function: its best value is closed in upon."""
    best = 3e-3

    def scorer(estimator, x, y):
        return (
            -abs(np.log10(estimator.alpha / best)) - 5 * (estimator.batch_size != 64) - (estimator.activation == "tanh")
        )

    space = {
        "alpha": loguniform(1e-6, 1e0),
        "batch_size": [8, 16, 32, 64, 100],
        "activation": ["relu", "tanh", "identity"],
    }
    given = {"n_iter": 24, "cv": 2, "random_state": 3, "scoring": scorer, "refit": True}
    done = SearchCV(mlp(max_iter=1), space, strategy="coarse-to-fine", verbose=1, **given).fit(X, Y)
    assert len(done.spaces_) == 3
    widths = [space["alpha"].high - space["alpha"].low for space in done.spaces_]
    np.testing.assert_allclose(widths, [1, 1 / 3, 1 / 9])
    assert [len(space["batch_size"]) for space in done.spaces_] == [5, 3, 3]
    assert all(64 in space["batch_size"] for space in done.spaces_)
    assert done.spaces_[0]["activation"] == ["relu", "tanh", "identity"]
    assert "tanh" not in done.spaces_[2]["activation"]
    stages = np.asarray(done.cv_results_["stage"])
    assert np.bincount(stages).tolist() == [8, 8, 8]
    for stage, space in enumerate(done.spaces_):
        of_stage = [params["alpha"] for params, s in zip(done.cv_results_["params"], stages, strict=True) if s == stage]
        low, high = loguniform(1e-6, 1e0).ppf([space["alpha"].low, space["alpha"].high])
        assert all(low <= alpha <= high for alpha in of_stage)
    scores = done.cv_results_["mean_test_score"]
    assert scores[stages == 2].max() == done.best_score_ > scores[stages == 0].max()
    out = capsys.readouterr().out
    assert "stage 1 of 3: 8 candidates in alpha [1e-06, 1], batch_size [8, 16, 32, 64, 100]" in out
    assert "stage 3 of 3" in out


def test_coarse_to_fine_tries_no_candidate_twice(capsys):
    given = {"n_iter": 9, "cv": 2, "random_state": 0, "verbose": 1}
    done = SearchCV(mlp(max_iter=1), {"batch_size": [16, 32, 64]}, strategy="coarse-to-fine", **given).fit(X, Y)
    sizes = [params["batch_size"] for params in done.cv_results_["params"]]
    assert sorted(sizes) == [16, 32, 64]
    assert ("at the edge of its space" in capsys.readouterr().out) == (done.best_params_["batch_size"] != 32)


def test_candidates_are_those_of_the_sampler():
    done = SearchCV(mlp(max_iter=1), SPACE, n_iter=3, cv=2, random_state=5).fit(X, Y)
    assert done.cv_results_["params"] == [*ParameterSampler(SPACE, 3, random_state=5)]
    assert isinstance(make_scorer(accuracy_score)(done, X, Y), float)
