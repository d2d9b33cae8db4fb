"""Callbacks: what a training run tells the outside, and lets it change."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from fastopt import checks, files
from fastopt.checks import Array
from fastopt.nn.training import Callback as Callback
from fastopt.nn.training import Run
from fastopt.schedules import ReduceOnPlateau

Mode = Literal["auto", "min", "max"]


# ---- By the value of a measure --------------------------------------------------------------------------------


class _Watcher(Callback):
    """What callbacks share that watch one measure of each epoch."""

    def __init__(self, monitor: str, mode: Mode, min_delta: float) -> None:
        self.monitor = monitor
        checks.choice("mode", mode, ("auto", "min", "max"))
        self.mode = mode if mode != "auto" else "min" if monitor.endswith("loss") else "max"
        self.min_delta = checks.number("min_delta", min_delta, "[0, inf)")

    def on_train_begin(self, run: Run) -> None:
        checks.choice("monitor", self.monitor, run.measures)
        self._run = run
        self._sign = 1.0 if self.mode == "min" else -1.0
        self._best, self._best_epoch = math.inf, -1

    def _improved(self, epoch: int, logs: dict[str, float]) -> bool:
        """Whether the measure is better than it ever was, by more than `min_delta`; NaN never is."""
        value = self._sign * logs[self.monitor]
        if not value < self._best - self.min_delta:
            return False
        self._best, self._best_epoch = value, epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "best_epoch": self._best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._best_epoch = state["best"], state["best_epoch"]


class EarlyStopping(_Watcher):
    """Ends the run where a measure has not got better for some epochs, and brings back the best weights [1]_.

    However the run ends, also by Ctrl-C, the model's parameters and running statistics are those of the best epoch
    then; the optimizer's state is that of the last.

    Parameters
    ----------
    monitor : str, default "val_loss"
        The measure: a key of `History`.
    patience : int, default 10
        How many epochs in a row may bring nothing better.
    min_delta : float, default 0.0
        Only what differs from the best by more than this is better, in [0, inf).
    mode : {"auto", "min", "max"}, default "auto"
        Whether lower is better, or higher: lower for losses where ``"auto"``.
    restore_best : bool, default True
        Whether to bring back the best weights.

    References
    ----------
    .. [1] L. Prechelt, "Early stopping – but when?", 1998.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: Mode = "auto",
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = checks.integer("patience", patience, 0)
        self.restore_best = checks.flag("restore_best", restore_best)

    def on_train_begin(self, run: Run) -> None:
        super().on_train_begin(run)
        self._weights: dict[str, Array] = {}

    def _live(self) -> dict[str, Array]:
        return self._run.model.params | self._run.model.state

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self._improved(epoch, logs):
            if self.restore_best:
                self._weights = {name: array.copy() for name, array in self._live().items()}
        elif epoch - self._best_epoch > self.patience:
            self._run.stop(
                f"{self.monitor} has not got better since epoch {self._best_epoch + 1}"
                if self._best_epoch >= 0
                else f"{self.monitor} was never a number"
            )

    def on_train_end(self) -> None:
        for name, array in self._weights.items():
            np.copyto(self._live()[name], array)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._weights = state["weights"]


class ModelCheckpoint(_Watcher):
    """Saves the run after its epochs, so that it can go on from there to the same bits.

    The file holds the model (`fastopt.nn.load` reads it), the optimizer's state, the history, the epoch, the state of
    the other callbacks, and what random numbers follow from: the seed and the number of steps. It is written beside
    the old one, brought to the disk, and put in its place: a process that is killed at any moment leaves a whole one.

    Parameters
    ----------
    path : path
        ``{epoch}`` and measures in it are replaced by their values: ``"cnn-{epoch:02d}-{val_loss:.3f}.npz"``, epochs
        counted from 1. A run must be the only one that writes there.
    monitor : str, default "val_loss"
        With `best_only`, the measure that decides: a key of `History`.
    best_only : bool, default False
        Whether to save only where the measure is better than ever.
    every : int, default 1
        The number of epochs from one file to the next. The last epoch is always saved.
    mode : {"auto", "min", "max"}, default "auto"
        See `EarlyStopping`.
    resume : bool, default False
        Whether to go on from the file where there is one. The same program, run again after it was killed, then goes
        on to the same bits: seed, samples, batch size and callbacks must be the same; the number of epochs may grow.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        monitor: str = "val_loss",
        best_only: bool = False,
        every: int = 1,
        mode: Mode = "auto",
        resume: bool = False,
    ) -> None:
        super().__init__(monitor, mode, 0.0)
        self.path = os.fspath(path)
        self.best_only = checks.flag("best_only", best_only)
        self.every = checks.integer("every", every, 1)
        self.resume = checks.flag("resume", resume)
        self.rank = 2 if resume else 1  # what it resumes, all others have begun; what it saves, they have done
        if self.resume and "{" in self.path:
            raise ValueError(f"path must name one file where resume is True, got {self.path!r}")

    def on_train_begin(self, run: Run) -> None:
        if self.best_only:
            super().on_train_begin(run)
        self._run = run
        if self.resume:
            files.discard_parts(self.path)
            if os.path.exists(self.path):
                self._restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        due = (epoch + 1) % self.every == 0 or epoch + 1 == self._run.epochs or bool(self._run.stopped)
        if due and (not self.best_only or self._improved(epoch, logs)):
            files.write_arrays(self.path.format(epoch=epoch + 1, **logs), self._entries(epoch + 1))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() if self.best_only else {}

    def _entries(self, epoch: int) -> dict[str, Any]:
        run = self._run
        return run.model.entries() | files.pack(
            "run",
            {
                "epoch": epoch,
                "setting": self._setting(),
                "optimizer": run.optimizer.state_dict(),
                "history": dict(run.history),
                "monitor": run.history.monitor,
                "stopped": "" if run.interrupted else run.stopped,
                "callbacks": [callback.state_dict() for callback in run.callbacks],
            },
        )

    def _setting(self) -> dict[str, Any]:
        """What must be the same in a run that goes on."""
        run = self._run
        return {
            "samples": run.samples,
            "batch_size": run.batch_size,
            "accumulate": run.accumulate,
            "seed": run.seed,
            "callbacks": [type(callback).__name__ for callback in run.callbacks],
        }

    def _restore(self) -> None:
        run = self._run
        live = {f"params/{name}": array for name, array in run.model.params.items()}
        live |= {f"state/{name}": array for name, array in run.model.state.items()}
        try:
            with open(self.path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as entries:
                saved, config = files.unpack("run", entries), str(entries["config"])
                arrays = {name: entries[name] for name in live if name in entries}
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"path must name a checkpoint of a run, got {self.path!r}: {error}") from error
        for name, value in self._setting().items():
            if saved["setting"][name] != value:
                raise ValueError(f"{name} must be {saved['setting'][name]!r} as in {self.path!r}, got {value!r}")
        if config != run.model.entries()["config"]:
            raise ValueError(f"the model must be the one in {self.path!r}, got {run.model!r}")
        run.optimizer.load_state_dict(saved["optimizer"])
        for name, array in live.items():
            np.copyto(array, arrays[name])
        run.history.update(saved["history"])
        run.history.monitor = saved["monitor"]
        run.epoch, run.stopped = saved["epoch"], saved["stopped"]
        for callback, state in zip(run.callbacks, saved["callbacks"], strict=True):
            if state:
                callback.load_state_dict(state)


# ---- Learning rates ---------------------------------------------------------------------------------------------


class LearningRateScheduler(Callback):
    """Sets the learning rate before each step.

    Parameters
    ----------
    schedule : callable
        ``schedule(step, steps) -> learning rate``, step counted from 0 and steps being those of the whole run.
    """

    def __init__(self, schedule: Callable[[int, int], float]) -> None:
        self.schedule = schedule

    def on_train_begin(self, run: Run) -> None:
        self._run = run

    def on_epoch_begin(self, epoch: int) -> None:
        self._set(0)

    def on_batch_begin(self, batch: int) -> None:
        if batch:
            self._set(batch)

    def _set(self, batch: int) -> None:
        run = self._run
        run.optimizer.lr = self.schedule(run.epoch * run.batches + batch, run.epochs * run.batches)


class ReduceLROnPlateau(_Watcher):
    """Lowers the learning rate where a measure has not got better: `fastopt.schedules.ReduceOnPlateau`, once per epoch.

    Parameters
    ----------
    monitor : str, default "val_loss"
        The measure: a key of `History`.
    factor : float, default 0.1
        What the rate is multiplied by, in (0, 1).
    patience : int, default 10
        How many epochs in a row may bring nothing better.
    min_delta : float, default 1e-4
        Only what differs from the best by more than this is better, in [0, inf).
    cooldown : int, default 0
        How many epochs after a change do not count.
    min_lr : float, default 0.0
        The rate does not fall below this, in [0, inf).
    mode : {"auto", "min", "max"}, default "auto"
        See `EarlyStopping`.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        mode: Mode = "auto",
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self._options: dict[str, Any] = {
            "mode": self.mode,
            "factor": factor,
            "patience": patience,
            "threshold": self.min_delta,
            "threshold_mode": "abs",
            "cooldown": cooldown,
            "min_lr": min_lr,
        }
        ReduceOnPlateau(lr=0.0, **self._options)  # which checks them

    def on_train_begin(self, run: Run) -> None:
        super().on_train_begin(run)
        self._plateau = ReduceOnPlateau(run.optimizer, **self._options)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._plateau.update(logs[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        return self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._plateau.load_state_dict(state)


# ---- Loggers ------------------------------------------------------------------------------------------------------


class Lines(Callback):
    """Prints a line per epoch; and where tqdm is installed and the output is a terminal, a progress bar above it.

    Parameters
    ----------
    file : text stream, optional
        Standard output where absent.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = sys.stdout if file is None else file

    def on_train_begin(self, run: Run) -> None:
        self._run, self._bar = run, None

    def on_epoch_begin(self, epoch: int) -> None:
        self._bar = _progress_bar(self._run.batches, f"epoch {epoch + 1}/{self._run.epochs}", self.file)

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._close()
        number = str(epoch + 1).rjust(len(str(self._run.epochs)))
        print(f"epoch {number}/{self._run.epochs}  {describe(logs)}", file=self.file, flush=True)

    def on_train_end(self) -> None:
        self._close()
        if self._run.history.stopped:
            print(self._run.history.stopped, file=self.file, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _progress_bar(total: int, label: str, file: TextIO) -> Any:
    """A bar of tqdm, or None where there is no terminal or no tqdm."""
    if not file.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, file=file, leave=False, unit="batch")


def describe(logs: dict[str, float]) -> str:
    """The values of an epoch on one line."""
    shown = {key: f"{value:,.0f}" if key == "samples_per_second" else f"{value:.4f}" for key, value in logs.items()}
    return "  ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


class CSVLogger(Callback):
    """Writes the history to a CSV file after each epoch: ``epoch``, counted from 1, and the keys of `History`.

    The file is replaced each time, so a run that resumes from a checkpoint has each epoch once in it.

    Parameters
    ----------
    path : path
    """

    rank = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_train_begin(self, run: Run) -> None:
        self._history = run.history

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["epoch", *self._history])
        table.writerows([number, *row] for number, row in enumerate(zip(*self._history.values(), strict=True), start=1))
        files.replace(self.path, lambda file: file.write(text.getvalue().encode()))


class TensorBoard(Callback):
    """Writes what TensorBoard shows: the measures and the learning rate of each epoch (extra ``tensorboard``).

    Parameters
    ----------
    folder : path
        One per run.
    histograms : bool, default False
        Whether to write histograms of the parameters, too.

    Raises
    ------
    ImportError
        When the run begins, where tensorboardX is missing.
    """

    def __init__(self, folder: str | os.PathLike[str], *, histograms: bool = False) -> None:
        self.folder = os.fspath(folder)
        self.histograms = checks.flag("histograms", histograms)

    def on_train_begin(self, run: Run) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard needs tensorboardX: pip install 'fastopt[tensorboard]'") from error
        self._run, self._make = run, SummaryWriter
        self._writer: Any = None

    def on_epoch_begin(self, epoch: int) -> None:
        if self._writer is None:  # not before it is known with which epoch the run begins
            self._writer = self._make(self.folder, purge_step=epoch or None)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        for name, value in {**logs, "lr": self._run.optimizer.lr}.items():
            self._writer.add_scalar(name, value, epoch)
        if self.histograms:
            for name, param in self._run.model.params.items():
                self._writer.add_histogram(name, param, epoch)
        self._writer.flush()

    def on_train_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
