"""Trials of an Optuna study that are pruned while they train: the extra ``optuna``, without which the import of this
module is an ImportError.

>>> import optuna
>>> from fastopt.optuna import Pruning
>>> trial = optuna.trial.FixedTrial({"lr": 0.01})
>>> Pruning(trial, "val_accuracy").monitor
'val_accuracy'
"""

from __future__ import annotations

from typing import Any

from fastopt import checks
from fastopt.nn import Callback, Run

try:
    import optuna
except ImportError as error:
    raise ImportError("fastopt.optuna needs optuna: pip install 'fastopt[optuna]'", name="optuna") from error

__all__ = ["Pruning"]


class Pruning(Callback):
    """Reports a metric of each epoch to a trial, and ends the run where the study's pruner says so.

    The run then ends as by `Run.stop`, all callbacks told, and `fit` raises `optuna.TrialPruned`.

    Parameters
    ----------
    trial : optuna.trial.Trial
    monitor : str, default "val_loss"
        The metric: a key of `History`. The study's direction says whether it is to be low or high.
    every : int, default 1
        The number of epochs from one report to the next.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the run begins, `monitor` is no metric of it.

    Examples
    --------
    >>> import optuna
    >>> import fastopt
    >>> from fastopt import data, nn
    >>> from fastopt.optuna import Pruning
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> x, y = data.digits()
    >>> def objective(trial):
    ...     model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:])
    ...     adam = fastopt.Adam(model.params, lr=trial.suggest_float("lr", 1e-5, 1e-1, log=True))
    ...     history = model.fit(
    ...         x[:1000], y[:1000], epochs=5, optimizer=adam, validation_data=(x[1000:], y[1000:]),
    ...         callbacks=[Pruning(trial, "val_accuracy")],
    ...     )
    ...     return history["val_accuracy"][-1]
    >>> sampler, pruner = optuna.samplers.RandomSampler(seed=0), optuna.pruners.MedianPruner(n_startup_trials=3)
    >>> study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    >>> study.optimize(objective, n_trials=8)
    >>> study.best_value > 0.8
    True
    """

    rank = 3  # the last to be told, as what it raises ends the run

    def __init__(self, trial: Any, monitor: str = "val_loss", *, every: int = 1) -> None:
        for name in ("report", "should_prune"):
            if not callable(getattr(trial, name, None)):
                raise TypeError(f"trial must be that of an objective, optuna.trial.Trial, got {type(trial).__name__}")
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be the name of a metric, got {monitor!r}")
        self.trial, self.monitor, self.every = trial, monitor, checks.integer("every", every, 1)

    def on_train_begin(self, run: Run) -> None:
        checks.choice("monitor", self.monitor, run.measures)
        self._run, self._said = run, ""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if (epoch + 1) % self.every:
            return
        self.trial.report(float(logs[self.monitor]), epoch)
        if self.trial.should_prune():
            self._said = f"pruned by {self.monitor}, {logs[self.monitor]:.6g} after epoch {epoch + 1}"
            self._run.stop(f"pruned by {self.monitor}")

    def on_train_end(self) -> None:
        if self._said:
            raise optuna.TrialPruned(self._said)
