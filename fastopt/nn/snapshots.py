"""An ensemble of one run: `Snapshots` at the ends of cycles of the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import checks
from fastopt.nn.losses import Loss
from fastopt.nn.many import Ensemble
from fastopt.nn.model import Sequential
from fastopt.nn.training import Callback, Run
from fastopt.schedules import bind, cosine_restarts, warmup

__all__ = ["Snapshots"]


class Snapshots(Callback):
    """Lets the learning rate fall from that of the optimizer to 0 along a cosine in each of some cycles, and copies the
    model at the end of each: an ensemble for the price of one run [1]_.

    After the run, the optimizer has the learning rate of before.

    Parameters
    ----------
    cycles : int
        The number of cycles, of which that of epochs must be a multiple.
    last : int, optional
        How many copies, the last ones, make the ensemble; all where absent.

    Attributes
    ----------
    models : list of Sequential
        The copies so far.
    ensemble : Ensemble
        Of them, the last ones.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; or, when the run begins, the epochs are no multiple of the cycles, or the
        optimizer has no learning rate that is a number.

    References
    ----------
    .. [1] G. Huang et al., "Snapshot ensembles: train 1, get M for free", 2017, section 3.

    Examples
    --------
    >>> import fastopt
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:])
    >>> snapshots = nn.Snapshots(3)
    >>> adam = fastopt.Adam(model.params, lr=0.01)
    >>> history = model.fit(x, y, epochs=6, optimizer=adam, callbacks=[snapshots])
    >>> len(snapshots.ensemble.models), adam.lr
    (3, 0.01)
    >>> snapshots.ensemble.evaluate(x, y)["accuracy"] > 0.8
    True
    """

    def __init__(self, cycles: int, *, last: int | None = None) -> None:
        self.cycles = checks.integer("cycles", cycles, 1)
        self.last = None if last is None else checks.integer("last", last, 1, self.cycles)
        self.models: list[Sequential] = []
        self._loss: Loss | None = None

    @property
    def ensemble(self) -> Ensemble:
        if not self.models or self._loss is None:
            raise RuntimeError("ensemble must be asked for after the first cycle of a run has ended")
        return Ensemble(self.models[-(self.last or self.cycles) :], self._loss)

    def on_train_begin(self, run: Run) -> None:
        if run.epochs % self.cycles:
            raise ValueError(f"epochs must be a multiple of cycles, {self.cycles}, got {run.epochs}")
        optimizer: Any = run.optimizer
        if not hasattr(optimizer, "lr") or "lr" in getattr(optimizer, "schedules", ()):
            raise ValueError(
                f"optimizer must have a learning rate that is a number, which the cycles begin with, got {optimizer!r}"
            )
        self._run, self._rate = run, float(optimizer.lr)
        self._loss = getattr(run.loss, "plain", run.loss)
        self.models = []
        steps = run.epochs // self.cycles * run.batches
        schedule = bind(cosine_restarts, peak=self._rate, steps=steps) if steps else None
        if schedule is not None:  # of the steps of the optimizer, which may have taken some before
            optimizer.lr = bind(warmup, steps=optimizer.t, then=schedule) if optimizer.t else schedule

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if (epoch + 1) % (self._run.epochs // self.cycles) == 0:
            model: Any = self._run.model
            self.models.append(model.copy())

    def on_train_end(self) -> None:
        optimizer: Any = self._run.optimizer
        optimizer.lr = self._rate

    def state_dict(self) -> dict[str, Any]:
        return {"models": [{**model.params, **model.state} for model in self.models], "rate": self._rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        model: Any = self._run.model
        models = [model.copy() for _ in state["models"]]
        for made, kept in zip(models, state["models"], strict=True):
            live = {**made.params, **made.state}
            if live.keys() != kept.keys():
                raise ValueError("the snapshots must be of the model")
            for name, array in live.items():
                np.copyto(array, kept[name])
        self.models, self._rate = models, state["rate"]
