"""`fastopt.optuna` with studies of Optuna."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("optuna")

import optuna

import fastopt
from fastopt import data, nn
from fastopt.optuna import Pruning

X, Y = data.digits()
X, Y, X_TEST, Y_TEST = X[:400], Y[:400], X[400:600], Y[400:600]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def study(pruner):
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)


def objective(trial, seen, **given):
    net = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], X.shape[1:], seed=0)
    adam = fastopt.Adam(net.params, lr=trial.suggest_float("lr", 1e-6, 1e-1, log=True))
    stopping = nn.EarlyStopping("val_accuracy", patience=100)
    history = net.fit(
        X, Y, epochs=6, optimizer=adam, validation_data=(X_TEST, Y_TEST),
        callbacks=[Pruning(trial, "val_accuracy", **given), stopping, Last(seen)],
    )  # fmt: skip
    return max(history["val_accuracy"])


class Last(nn.Callback):
    """Notes how runs end."""

    def __init__(self, seen):
        self.seen = seen

    def on_train_begin(self, run):
        self.run = run

    def on_train_end(self):
        self.seen.append((self.run.epoch, self.run.history.stopped, len(self.run.history["val_accuracy"])))


def test_a_study_prunes():
    seen = []
    done = study(optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1))
    done.optimize(lambda trial: objective(trial, seen), n_trials=12)
    states = [trial.state for trial in done.trials]
    pruned = [i for i, state in enumerate(states) if state is optuna.trial.TrialState.PRUNED]
    assert 0 < len(pruned) < 9
    assert len(seen) == 12
    for i, (epochs, stopped, count) in enumerate(seen):
        trial = done.trials[i]
        assert len(trial.intermediate_values) == count == epochs
        assert ("pruned by val_accuracy" in stopped) == (i in pruned)
        assert (epochs < 6) or i not in pruned
    complete = [trial for i, trial in enumerate(done.trials) if i not in pruned]
    assert done.best_value == max(trial.value for trial in complete) > 0.7
    assert all(trial.value == max(trial.intermediate_values.values()) for trial in complete)


def test_reports_at_intervals():
    done = study(optuna.pruners.NopPruner())
    done.optimize(lambda trial: objective(trial, [], every=2), n_trials=1)
    assert [*done.trials[0].intermediate_values] == [1, 3, 5]


def test_with_estimators():
    sklearn = pytest.importorskip("fastopt.sklearn")
    flat, test = X.reshape(len(X), -1), X_TEST.reshape(len(X_TEST), -1)

    def of_estimator(trial):
        clf = sklearn.MLPClassifier(
            (16,), max_iter=5, tol=0.0, batch_size=16, n_iter_no_change=99, random_state=0, metrics="f1_macro",
            learning_rate_init=trial.suggest_float("lr", 1e-6, 1e-1, log=True),
            callbacks=[Pruning(trial, "val_f1_macro")],
        )  # fmt: skip
        return max(clf.fit(flat, Y, validation_data=(test, Y_TEST)).history_["val_f1_macro"])

    done = study(optuna.pruners.ThresholdPruner(lower=0.3, n_warmup_steps=2))
    with pytest.warns(Warning, match="Maximum iterations"):
        done.optimize(of_estimator, n_trials=6)
    states = {trial.state for trial in done.trials}
    assert states == {optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.COMPLETE}


def test_refusals():
    trial = optuna.trial.FixedTrial({"lr": 0.01})
    with pytest.raises(TypeError, match="trial must be that of an objective"):
        Pruning(np.zeros(3))
    with pytest.raises(TypeError, match="monitor must be the name"):
        Pruning(trial, 3)
    with pytest.raises(ValueError, match="every must"):
        Pruning(trial, every=0)
    with pytest.raises(ValueError, match="monitor must be one of"):
        nn.Sequential([nn.Dense(10)], (64,)).fit(X.reshape(400, -1), Y, callbacks=[Pruning(trial, "val_f1")])
