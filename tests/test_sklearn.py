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


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_losses_of_hopeless_labels_are_clipped_likewise(task):
    kind, x, y, _ = data_of(task)
    a, b = both(kind, solver="sgd", learning_rate_init=1e-12, max_iter=2, random_state=0)
    for estimator in (a, b):
        estimator.fit(3e3 * x, y)
    assert a.loss_ > 5  # of most labels, the probability is 0
    np.testing.assert_allclose(a.loss_curve_, b.loss_curve_, rtol=1e-9)


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


def test_steps_one_by_one_are_the_same():
    """Where Python has a part in each: a callback's, or a loss's."""

    class Looks(nn.Callback):
        def on_gradients(self, batch, grads):
            assert grads.keys() == self.run.model.params.keys()

        def on_train_begin(self, run):
            self.run = run

    x = sparse.csr_array(np.where(SMALL > 0.7, SMALL, 0.0))
    weight = np.linspace(0.5, 1.5, len(SMALL))
    for given in (x, x.toarray()):
        one, other = (mlp(max_iter=4, batch_size=64, callbacks=c, alpha=1.0) for c in (None, Looks()))
        one.fit(given, LABELS, weight)
        other.fit(given, LABELS, weight)
        assert distance(one, other) == 0
        assert one.loss_curve_ == other.loss_curve_
    counts = np.random.default_rng(0).poisson(2.0, len(SMALL))
    thin, dense = (ours.MLPRegressor("poisson", max_iter=4, batch_size=64, random_state=0) for _ in range(2))
    assert distance(thin.fit(x, counts), dense.fit(x.toarray(), counts)) < 1e-12


def test_interrupts_end_the_run_with_a_warning():
    class Interrupts(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.warns(fastopt.TrainingWarning, match="Training interrupted by user"):
        clf = mlp(callbacks=Interrupts()).fit(SMALL, LABELS)
    assert clf.n_iter_ == len(clf.history_["loss"]) == 3
    assert clf.predict(SMALL).shape == (300,)


def test_warnings_are_those_of_scikit_learn():
    for kind in both("MLPClassifier", max_iter=2, batch_size=1000):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind.fit(SMALL, LABELS)
        assert [issubclass(w.category, base) for w, base in zip(caught, (UserWarning, ConvergenceWarning), strict=True)]
        if isinstance(kind, ours.MLPClassifier):
            assert [w.category for w in caught] == [fastopt.TrainingWarning, ours.ConvergenceWarning]
        assert "Maximum iterations (2) reached" in str(caught[1].message)


def test_a_schedule_that_runs_to_its_end_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = ours.MLPClassifier(max_iter=3, schedule=bind(cosine, peak=0.01, steps=6), random_state=0)
        assert clf.fit(SMALL, LABELS).n_iter_ == 3


def test_epochs_that_cannot_be_the_last_are_one_call(monkeypatch):
    """Until `n_iter_no_change` epochs without improvement, nothing can end the fit."""
    runs = []
    epochs = nn.trainer.Steps.epochs

    def counted(self, sizes, most, *given):
        taken = epochs(self, sizes, most, *given)
        runs.append((most, len(taken)))
        return taken

    monkeypatch.setattr(nn.trainer.Steps, "epochs", counted)
    monkeypatch.setattr(nn.program, "SLICE", 1e9)
    model = ours.MLPClassifier(max_iter=30, random_state=0).fit(X, Y)
    assert model.n_iter_ == 30
    assert runs == [(11, 0), (11, 11), (11, 11), (7, 7)]  # the first epoch shows how long steps take
    runs.clear()
    with pytest.warns(ConvergenceWarning):
        ours.MLPClassifier(max_iter=3, random_state=0, verbose=True).fit(X, Y)
    assert all(most == 1 for most, _ in runs)


# ---- What they have beyond -------------------------------------------------------------------------------------------


def mlp(**given):
    return ours.MLPClassifier(**{"max_iter": 30, "random_state": 0, "learning_rate_init": 0.01, **given})


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.2},
        {"dropout": [0.1, 0.3], "hidden_layer_sizes": (40, 30)},
        {"batch_norm": True},
        {"batch_norm": True, "dropout": 0.1, "activation": ["tanh", "gelu"], "hidden_layer_sizes": (40, 30)},
        {"weight_decay": 0.01},
        {"weight_decay": 0.01, "solver": "adamw"},
        {"schedule": bind(cosine, peak=0.01, steps=60)},
        {"max_norm": 2.0, "clip_global_norm": 1.0},
        {"solver": "nadam"},
        {"solver": "Lion", "learning_rate_init": 1e-3},
        {"solver": fastopt.RAdam},
        {"solver": "lookahead"},
        {"solver": functools.partial(fastopt.RMSProp, lr=0.005)},
        {"solver": fastopt.Momentum(np.zeros(1), 0.05, nesterov=True)},
        {"solver": fastopt.LookAhead},
    ]
    + [{"activation": name} for name in ("elu", "gelu", "leaky_relu", "silu", "softplus")],
    ids=str,
)
def test_it_learns_with(options):
    if options.get("solver") is fastopt.LookAhead:
        options = {"solver": lambda params: fastopt.LookAhead(fastopt.Adam(params, 0.01))}
    clf = mlp(**options).fit(SMALL, LABELS)
    assert clf.score(SMALL, LABELS) > 0.9
    assert not (clf.predict_proba(SMALL).sum(axis=1) - 1).round(12).any()
    again = mlp(**options).fit(SMALL, LABELS)
    assert all((a == b).all() for a, b in zip(arrays(clf), arrays(again), strict=True))


def test_options_reach_the_network_and_its_optimizer():
    clf = mlp(
        max_iter=2, hidden_layer_sizes=(8, 6), dropout=[0.0, 0.5], batch_norm=True, activation=["tanh", "identity"]
    )
    clf.fit(SMALL, LABELS)
    kinds = [type(layer).__name__ for layer in clf.network_.layers]
    assert kinds == ["Dense", "BatchNorm", "Tanh", "Dense", "BatchNorm", "Dropout", "Dense"]
    clf = mlp(max_iter=2, weight_decay=0.1, max_norm=0.5, clip_global_norm=0.01).fit(SMALL, LABELS)
    assert max(np.linalg.norm(w, axis=0).max() for w in clf.coefs_) <= 0.5 + 1e-12
    assert clf._stepper.clip_global_norm == 0.01
    (group,) = clf._stepper.groups
    assert (group.names, group.weight_decay, group.decoupled) == (("0.weight", "1.weight"), 0.1, True)
    schedule = bind(cosine, peak=0.01, steps=60)
    assert mlp(max_iter=2, schedule=schedule).fit(SMALL, LABELS)._stepper.schedules["lr"] == schedule
    settings = fastopt.RMSProp(np.zeros(1), 0.02, decay=0.7)
    made = mlp(solver=settings, max_iter=1).fit(SMALL, LABELS)._stepper
    assert (type(made), made.lr, made.decay) == (fastopt.RMSProp, 0.02, 0.7)
    assert mlp(solver=fastopt.Lion, max_iter=1, learning_rate_init=1e-4).fit(SMALL, LABELS)._stepper.lr == 1e-4


def test_decoupled_decay_is_that_of_adamw():
    """An update by hand: alpha has no part in it."""
    clf = mlp(max_iter=1, weight_decay=0.3, alpha=5.0, batch_size=300)
    first = mlp(max_iter=1, alpha=0.0, batch_size=300).fit(SMALL, LABELS)
    clf.fit(SMALL, LABELS)
    start = np.random.RandomState(0)
    shapes = [(64, 100), (100, 10)]
    for w, plain, shape in zip(clf.coefs_, first.coefs_, shapes, strict=True):
        bound = np.sqrt(6 / sum(shape))
        before = start.uniform(-bound, bound, shape)
        start.uniform(-bound, bound, shape[1])
        np.testing.assert_allclose(w, plain - 0.01 * 0.3 * before, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(clf.intercepts_[0], first.intercepts_[0], rtol=1e-12)


def test_class_weight():
    y = np.where(LABELS < 3, "rare", "often")
    rare = slice(None, None, 1)
    by_dict = mlp(class_weight={"rare": 3.0, "often": 0.5}).fit(SMALL[rare], y)
    weight = np.where(y == "rare", 3.0, 0.5)
    assert distance(by_dict, mlp().fit(SMALL, y, sample_weight=weight)) == 0
    balanced = len(y) / (2 * np.where(y == "rare", (y == "rare").sum(), (y == "often").sum()))
    both_weights = mlp(class_weight="balanced").fit(SMALL, y, sample_weight=weight)
    assert distance(both_weights, mlp().fit(SMALL, y, sample_weight=weight * balanced)) == 0
    with pytest.raises(ValueError, match="must be a dict in partial_fit"):
        mlp(class_weight="balanced").partial_fit(SMALL, y, classes=np.unique(y))


def test_any_labels():
    for y in (
        LABELS % 2 == 0,
        np.array(list("abcdefghij"), object)[LABELS],
        np.array([f"class {k}" for k in LABELS]),
        LABELS - 4.0,
    ):
        clf = mlp().fit(SMALL, y)
        assert {*clf.predict(SMALL)} == {*y}
        assert clf.score(SMALL, y) > 0.95


def test_callbacks_metrics_and_validation_data():
    def errors(y_true, y_pred):
        return float((y_true != y_pred).sum())

    seen = []

    class Seen(nn.Callback):
        def on_train_begin(self, run):
            self.run = run
            assert {"loss", "val_f1_macro", "val_score"} <= {*run.measures}

        def on_epoch_end(self, epoch, logs):
            seen.append(logs["val_f1_macro"])
            if epoch == 4:
                self.run.stop("enough")

    x, y = X[1000:] / 16, Y[1000:]
    clf = mlp(callbacks=Seen(), metrics=["f1_macro", errors]).fit(SMALL, LABELS, validation_data=(x, y))
    assert {*clf.history_} == {
        *("loss", "accuracy", "samples_per_second", "val_loss", "val_score", "val_f1_macro", "val_errors")
    }
    assert clf.n_iter_ == 5
    assert clf.history_.stopped.startswith("enough")
    from sklearn.metrics import f1_score, log_loss

    assert clf.history_["val_f1_macro"] == seen
    assert seen[-1] == f1_score(y, clf.predict(x), average="macro")
    assert clf.history_["val_score"][-1] == clf.score(x, y)
    assert clf.history_["val_errors"][-1] == round((1 - clf.score(x, y)) * len(y))
    assert clf.history_["val_loss"][-1] == pytest.approx(log_loss(y, clf.predict_proba(x)), rel=1e-9)
    alone = mlp(metrics={"right": "accuracy"}, max_iter=3).fit(SMALL, LABELS)
    assert alone.history_["right"][-1] == alone.score(SMALL, LABELS)
    stopper = nn.EarlyStopping("val_errors", patience=1)
    stopped = mlp(callbacks=[stopper], metrics=errors, max_iter=200).fit(SMALL, LABELS, validation_data=(x, y))
    assert stopped.n_iter_ < 200
    assert "val_errors" in stopped.history_.stopped


def test_early_stopping_goes_by_validation_data():
    x, y = X[1000:] / 16, Y[1000:]
    clf = mlp(early_stopping=True, max_iter=300, n_iter_no_change=3, batch_norm=True)
    clf.fit(SMALL, LABELS, validation_data=(x, y))
    assert clf.n_iter_ < 300
    assert clf.t_ == clf.n_iter_ * len(SMALL)  # nothing set aside
    assert clf.score(x, y) == max(clf.validation_scores_) == clf.best_validation_score_
    regressor = ours.MLPRegressor(early_stopping=True, max_iter=5, random_state=0)
    regressor.fit(SMALL, LABELS / 9, validation_data=(x, y / 9, np.ones(len(y))))
    assert regressor.history_["val_score"] == regressor.validation_scores_


def test_averages_are_what_is_left():
    clf = mlp(max_iter=40)

    def solver(params):
        clf.set_params(callbacks=nn.WeightAverage(fastopt.EMA(params, 0.9)))
        return fastopt.Adam(params, 0.01)

    clf.set_params(solver=solver).fit(SMALL, LABELS)
    average = clf.get_params()["callbacks"].average
    assert average.is_applied
    assert clf.score(SMALL, LABELS) > 0.95
    schedule_free = mlp(solver="schedule_free_adamw").fit(SMALL, LABELS)
    assert schedule_free.score(SMALL, LABELS) > 0.95


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"solver": "sgd"}, {"solver": "lbfgs"}], ids=str)
def test_pickled_estimators_go_on(options, tmp_path):
    joblib = pytest.importorskip("joblib")
    clf = mlp(max_iter=3, **options).fit(SMALL, LABELS)
    joblib.dump(clf, tmp_path / "clf")
    twins = [pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf), joblib.load(tmp_path / "clf", mmap_mode="r")]
    for twin in twins:
        assert (twin.predict_proba(SMALL) == clf.predict_proba(SMALL)).all()
    if "lbfgs" in options.values():
        return
    clf.partial_fit(SMALL, LABELS)
    for twin in twins:
        twin.partial_fit(SMALL, LABELS)
        assert distance(clf, twin) == 0
        assert (twin.predict_proba(SMALL) == clf.predict_proba(SMALL)).all()


def test_coefficients_that_are_set_are_used():
    clf = mlp(max_iter=2, activation="gelu").fit(SMALL, LABELS)
    clf.coefs_[0] = clf.coefs_[0] * 0
    clf.intercepts_ = [b * 0 for b in clf.intercepts_]
    assert (clf.predict_proba(SMALL) == 0.1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "'activation' parameter"),
        ({"activation": ["relu", "tanh"]}, "activation must hold one value per hidden layer, 1, got 2"),
        ({"activation": ["relux"]}, "activation must be"),
        ({"dropout": 1.0}, "'dropout' parameter"),
        ({"dropout": [1.5]}, r"dropout must be in \[0, 1\)"),
        ({"solver": "adamx"}, "solver must be one of"),
        ({"solver": "lbfgs", "dropout": 0.1}, "dropout must be left as scikit-learn has it with solver='lbfgs'"),
        ({"solver": "rprop", "batch_size": 50, "weight_decay": -1.0}, "'weight_decay' parameter"),
        ({"solver": "lookahead", "weight_decay": 0.1}, "weight_decay must be left out"),
        ({"metrics": [3]}, "metrics must be names of scorers"),
        ({"class_weight": "even"}, "'class_weight' parameter"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mlp(**options).fit(SMALL, LABELS)


def test_refusals_of_fit():
    with pytest.raises(ValueError, match="validation_data must be"):
        mlp().fit(SMALL, LABELS, validation_data=SMALL)
    with pytest.raises(ValueError, match="must have classes of y, got 77"):
        mlp().fit(SMALL, LABELS, validation_data=(SMALL[:2], np.array([1, 77])))
    with pytest.raises(ValueError, match="solver='lbfgs'"):
        mlp(solver="lbfgs").fit(SMALL, LABELS, validation_data=(SMALL, LABELS))
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        mlp(solver="sgd", learning_rate_init=1e30).fit(SMALL, LABELS)


def test_clones_have_all_parameters():
    given = {"dropout": 0.2, "metrics": ["f1_macro"], "solver": "lion", "class_weight": "balanced", "batch_norm": True}
    assert clone(mlp(**given)).get_params() == mlp(**given).get_params()
    defaults = {**theirs.MLPClassifier().get_params()}
    assert {name: ours.MLPClassifier().get_params()[name] for name in defaults} == defaults
    defaults = {**theirs.MLPRegressor().get_params()}
    assert {name: ours.MLPRegressor().get_params()[name] for name in defaults} == defaults
