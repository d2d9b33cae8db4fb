"""Callbacks for training runs: early stopping, checkpoints, learning rates, logs."""

from __future__ import annotations

import csv
import inspect
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from fastopt import checks, files
from fastopt.averaging import EMA, SWA
from fastopt.checks import Array
from fastopt.messages import logger
from fastopt.nn.config import are_alike
from fastopt.nn.training import Callback as Callback
from fastopt.nn.training import Run
from fastopt.schedules import ReduceOnPlateau, Schedule

__all__ = [
    "CSVLogger",
    "EarlyStopping",
    "LearningRateScheduler",
    "Lines",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "TensorBoard",
    "WeightAverage",
]

Mode = Literal["auto", "min", "max"]


# ---- By a metric --------------------------------------------------------------------------------------------------


class _Watcher(Callback):
    """The base of callbacks that watch one metric of each epoch."""

    def __init__(self, monitor: str, mode: Mode, min_delta: float) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be the name of a metric, got {monitor!r}")
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
        """Whether the metric is better than its best value so far by more than `min_delta`; NaN never is."""
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
    """Ends the run when a metric has not improved for some epochs, and restores the best weights [1]_.

    However the run ends, also by Ctrl-C, the model's parameters and running statistics are then those of the best
    epoch; the optimizer's state is that of the last.

    Parameters
    ----------
    monitor : str, default "val_loss"
        The metric: a key of `History`.
    patience : int, default 10
        The number of successive epochs without improvement that are accepted.
    min_delta : float, default 0.0
        An improvement is one by more than this, in [0, inf).
    mode : {"auto", "min", "max"}, default "auto"
        Whether lower is better, or higher: lower for losses where ``"auto"``.
    restore_best : bool, default True
        Whether to restore the best weights.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the run begins, `monitor` is no metric of it.

    References
    ----------
    .. [1] L. Prechelt, "Early stopping – but when?", 1998.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> history = model.fit(
    ...     np.eye(2), np.arange(2), epochs=9, optimizer=fastopt.SGD(model.params, lr=0.0),
    ...     callbacks=[nn.EarlyStopping("loss", patience=2)],
    ... )
    >>> history.stopped
    'loss has not got better since epoch 1; stopped after epoch 4'
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

    def epochs_ahead(self) -> int:
        if self.restore_best or type(self) is not EarlyStopping:  # of which nobody knows what it looks at
            return 1
        return max(1, self._best_epoch + self.patience + 2 - self._run.epoch)  # none before can be the last

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
    """Saves the run after its epochs, so that it can be resumed to the same bits.

    The file holds the model (`fastopt.nn.load` reads it), the optimizer's state, the history, the epoch, the state of
    the other callbacks, and what decides random numbers: the seed and the number of steps. It is written beside the old
    one, flushed to the disk, and renamed: a process that is killed at any moment leaves a complete file.

    Parameters
    ----------
    path : path
        ``{epoch}`` and metrics in it are replaced by their values: ``"cnn-{epoch:02d}-{val_loss:.3f}.npz"``, epochs
        counted from 1. The ending is ``.npz``, ``.safetensors`` or none, as in `Sequential.save`. No other run may
        write there.
    monitor : str, default "val_loss"
        With `best_only`, the metric: a key of `History`.
    best_only : bool, default False
        Whether to save only when the metric has improved.
    every : int, default 1
        The number of epochs from one file to the next. The last epoch is always saved.
    mode : {"auto", "min", "max"}, default "auto"
        See `EarlyStopping`.
    resume : bool, default False
        Whether to continue from the file if there is one. The same program, run again after it was killed, then comes
        to the same bits: seed, samples, batch size and callbacks must be the same; the number of epochs may grow.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the run begins, the file is damaged or no checkpoint of such a run;
        then model and optimizer are what they were.
    OSError
        Where, when the run begins, no file can be written there.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from fastopt import nn
    >>> def run(path, epochs):
    ...     model = nn.Sequential([nn.Dense(2)], (2,))
    ...     checkpoint = nn.ModelCheckpoint(path, resume=True)
    ...     return model.fit(np.eye(2), np.arange(2), epochs=epochs, callbacks=[checkpoint])["loss"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     whole = run(os.path.join(folder, "whole.npz"), 3)
    ...     for epochs in (1, 3):
    ...         resumed = run(os.path.join(folder, "parts.npz"), epochs)
    >>> resumed == whole
    True
    """

    on_every_rank = False

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
        self.rank = 2 if resume else 1  # it resumes after all others have begun, and saves after they are done
        if self.resume and "{" in self.path:
            raise ValueError(f"path must name one file where resume is True, got {self.path!r}")
        if "{" not in self.path:
            files.ending(self.path)

    def on_train_begin(self, run: Run) -> None:
        if self.best_only:
            super().on_train_begin(run)
        self._run = run
        path = self._path(0, dict.fromkeys(run.measures, 0.0))
        files.ending(path)
        files.check(path)
        if self.resume:
            files.discard_parts(self.path)
            if os.path.exists(self.path):
                self._restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        due = (epoch + 1) % self.every == 0 or epoch + 1 == self._run.epochs or bool(self._run.stopped)
        if due and (not self.best_only or self._improved(epoch, logs)):
            files.write_arrays(self._path(epoch + 1, logs), self._entries(epoch + 1), "checkpoint")

    def _path(self, epoch: int, logs: dict[str, float]) -> str:
        try:
            return self.path.format(epoch=epoch, **logs)
        except (AttributeError, LookupError, ValueError) as error:
            known = ", ".join(["epoch", *logs])
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"path may have {known} in braces, with formats, got {self.path!r}: {said}") from error

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
                "provenance": run.history.provenance,
                "monitor": run.history.monitor,
                "stopped": "" if run.interrupted else run.stopped,
                "callbacks": [callback.state_dict() for callback in run.callbacks],
            },
        )

    def _setting(self) -> dict[str, Any]:
        """What must be the same in a run that is resumed."""
        run = self._run
        return {
            "samples": run.samples,
            "batch_size": run.batch_size,
            "accumulate": run.accumulate,
            "seed": run.seed,
            "callbacks": [type(callback).__name__ for callback in run.callbacks],
        }

    def _restore(self) -> None:
        """Take over all of the file, or nothing."""
        run = self._run
        saved, config, entries = files.read_arrays(self.path, "checkpoint", take=_saved_run)
        for name, value in self._setting().items():
            if saved["setting"].get(name) != value:
                raise ValueError(f"{name} must be {saved['setting'].get(name)!r} as in {self.path!r}, got {value!r}")
        if saved["epoch"] > run.epochs:
            raise ValueError(f"epochs must be at least {saved['epoch']} as in {self.path!r}, got {run.epochs}")
        if not are_alike(config, run.model.entries()["config"]):
            raise ValueError(f"the model must be the one in {self.path!r}, got {run.model!r}")
        arrays = run.model.matched(entries)
        states = [(each, state) for each, state in zip(run.callbacks, saved["callbacks"], strict=True) if state]
        before = run.optimizer.state_dict(), [array.copy() for array, _ in arrays], run.history.monitor
        others = [(callback, callback.state_dict()) for callback, _ in states]
        try:
            run.optimizer.load_state_dict(saved["optimizer"])
            for array, value in arrays:
                np.copyto(array, value)
            run.history.monitor = saved["monitor"]
            for callback, state in states:
                callback.load_state_dict(state)
        except BaseException as error:
            run.history.monitor = before[2]
            for (array, _), value in zip(arrays, before[1], strict=True):
                np.copyto(array, value)
            run.optimizer.load_state_dict(before[0])
            for callback, state in others:
                callback.load_state_dict(state)
            if isinstance(error, (ArithmeticError, AttributeError, LookupError)):
                said = f"{type(error).__name__}: {error}"
                raise ValueError(f"path must name a checkpoint of such a run, got {self.path!r}: {said}") from error
            raise
        run.history.update(saved["history"])
        own = run.history.provenance
        if earlier := [each for each in saved["environments"] if each != own["environment"]]:
            own["earlier"] = earlier
        run.epoch, run.stopped = saved["epoch"], saved["stopped"]
        logger.info("goes on from %r after epoch %d", self.path, run.epoch)


def _saved_run(entries: dict[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The state of a run, checked as far as it can be without one, the configuration of its model, and all entries."""
    saved = files.unpack("run", entries)
    checks.integer("epoch", saved["epoch"], 0)
    for key, kind in {"setting": dict, "history": dict, "monitor": dict, "callbacks": list, "stopped": str}.items():
        if not isinstance(saved[key], kind):
            raise TypeError(f"{key} must be a {kind.__name__}, got {saved[key]!r}")
    then = saved.get("provenance", {})  # which older files have not
    saved["environments"] = [dict(each) for each in (*then.get("earlier", ()), then.get("environment", {})) if each]
    return saved, str(entries["config"]), entries


# ---- Learning rates ---------------------------------------------------------------------------------------------


class LearningRateScheduler(Callback):
    """Sets the learning rate before each epoch, or before each step.

    Parameters
    ----------
    schedule : callable or Schedule, optional
        ``schedule(epoch, lr) -> learning rate``, or ``schedule(epoch)``, as in Keras: the epoch is counted from 0, and
        `lr` is the rate as it is. Or what `fastopt.schedules.bind` returns, which is a function of the step.
    step : callable or Schedule, optional
        ``step(step, steps) -> learning rate``, or ``step(step)``: the step is counted from 0, and `steps` are those of
        the whole run.

    Raises
    ------
    TypeError
        Where not one of the two is given, or it cannot be called so.
    ValueError
        When the run begins, where the optimizer has no learning rate.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt
    >>> from fastopt import nn
    >>> from fastopt.schedules import cosine
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> adam = fastopt.Adam(model.params, lr=0.1)
    >>> halving = nn.LearningRateScheduler(lambda epoch, lr: lr / 2 if epoch else lr)
    >>> history = model.fit(np.eye(2), np.arange(2), epochs=3, optimizer=adam, callbacks=halving)
    >>> round(adam.lr, 4)
    0.025
    >>> falling = nn.LearningRateScheduler(step=lambda step, steps: cosine(step, steps=steps, peak=0.1))
    >>> history = model.fit(np.eye(2), np.arange(2), epochs=3, optimizer=adam, callbacks=falling)
    >>> round(adam.lr, 4)
    0.025
    """

    def __init__(
        self,
        schedule: Schedule | Callable[[int, float], float] | Callable[[int], float] | None = None,
        *,
        step: Schedule | Callable[[int, int], float] | Callable[[int], float] | None = None,
    ) -> None:
        if (schedule is None) == (step is None):
            raise TypeError("LearningRateScheduler must have a schedule of the epoch, or step=, a function of the step")
        if isinstance(schedule, Schedule):
            schedule, step = None, schedule
        self.by_step = schedule is None
        self.schedule: Callable[..., float]
        if schedule is None:
            self.schedule, self._count = _called("step", step, "step(step, steps) or step(step)")
        else:
            self.schedule, self._count = _called("schedule", schedule, "schedule(epoch, lr) or schedule(epoch)")
            if _first_of(schedule) in ("step", "steps", "iteration"):
                raise TypeError(
                    f"schedule must be a function of the epoch, got {schedule!r}: for one of the step write "
                    "LearningRateScheduler(step=…)"
                )

    def on_train_begin(self, run: Run) -> None:
        _check_rate(run)
        self._run = run

    def on_epoch_begin(self, epoch: int) -> None:
        optimizer = self._run.optimizer
        if self.by_step:
            self._set_by_step(0)
        else:
            optimizer.lr = self.schedule(*(epoch, optimizer.lr)[: self._count])

    def on_batch_begin(self, batch: int) -> None:
        if batch and self.by_step:
            self._set_by_step(batch)

    def _set_by_step(self, batch: int) -> None:
        run = self._run
        steps = run.epoch * run.batches + batch, run.epochs * run.batches
        run.optimizer.lr = self.schedule(*steps[: self._count])


def _called(name: str, function: Any, how: str) -> tuple[Callable[..., float], int]:
    """A function, and how many of two arguments it takes."""
    wanted = f"{name} must be called as {how}"
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"{wanted}, got {function!r}")
    if isinstance(function, Schedule):
        return function, 1
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a builtin
        return function, 2
    for count in (2, 1):
        try:
            signature.bind(*range(count))
        except TypeError as error:
            said = error
        else:
            return function, count
    raise TypeError(
        f"{wanted}, got {function!r}: {said}; fastopt.schedules.bind(cosine, steps=…, peak=…) binds options"
    )


def _first_of(function: Any) -> str:
    """The name of a function's first argument; empty where it is not known."""
    try:
        return next(iter(inspect.signature(function).parameters), "")
    except ValueError:
        return ""


def _check_rate(run: Run) -> None:
    if not hasattr(run.optimizer, "lr"):
        raise ValueError(f"optimizer must have a learning rate to be set, got {type(run.optimizer).__name__}")


class ReduceLROnPlateau(_Watcher):
    """Lowers the learning rate when a metric has not improved: `fastopt.schedules.ReduceOnPlateau`, once per epoch.

    Parameters
    ----------
    monitor : str, default "val_loss"
        The metric: a key of `History`.
    factor : float, default 0.1
        The factor of the learning rate, in (0, 1).
    patience : int, default 10
        The number of successive epochs without improvement that are accepted.
    min_delta : float, default 1e-4
        An improvement is one by more than this, in [0, inf).
    cooldown : int, default 0
        The number of epochs after a change that are not counted.
    min_lr : float, default 0.0
        The least learning rate, in [0, inf).
    mode : {"auto", "min", "max"}, default "auto"
        See `EarlyStopping`.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the run begins, `monitor` is no metric of it.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> sgd = fastopt.SGD(model.params, lr=0.5)
    >>> plateau = nn.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=10)
    >>> history = model.fit(np.eye(2), np.arange(2), epochs=3, optimizer=sgd, callbacks=[plateau])
    >>> sgd.lr
    0.25
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
        _check_rate(run)
        self._plateau = ReduceOnPlateau(run.optimizer, **self._options)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._plateau.update(logs[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        return self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._plateau.load_state_dict(state)


# ---- Averages ---------------------------------------------------------------------------------------------------


class WeightAverage(Callback):
    """Averages the parameters beside the run: validation, the other callbacks' ``on_epoch_end``, checkpoints, and the
    model that the run leaves have the averages; training goes on from the parameters themselves.

    Schedule-free optimizers need no callback for that.

    Parameters
    ----------
    average : EMA or SWA
        Of ``model.params``.
    every : {"step", "epoch"}, optional
        When it takes the parameters in: after each step, or after each epoch. ``"epoch"`` for SWA where absent, else
        ``"step"``.
    begin : int, default 0
        The first epoch, counted from 0, that it does so in; until then, there are no averages. If that is not the
        first one, the average then begins with the parameters as they are.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the run begins, `average` is not of the model's parameters, or the
        optimizer or another callback averages them, too.

    Notes
    -----
    The running statistics of batch norm are those of the parameters themselves.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> ema = fastopt.EMA(model.params, 0.9)
    >>> history = model.fit(
    ...     np.eye(2), np.arange(2), epochs=3, validation_data=(np.eye(2), np.arange(2)),
    ...     callbacks=[nn.WeightAverage(ema)],
    ... )
    >>> model.evaluate(np.eye(2), np.arange(2))["loss"] == history["val_loss"][-1]
    True
    """

    def __init__(self, average: EMA | SWA, *, every: Literal["step", "epoch"] | None = None, begin: int = 0) -> None:
        if not isinstance(average, (EMA, SWA)):
            raise TypeError(f"average must be an EMA or an SWA, got {type(average).__name__}")
        usual = "epoch" if isinstance(average, SWA) else "step"
        self.every = usual if every is None else checks.choice("every", every, ("step", "epoch"))
        self.begin = checks.integer("begin", begin, 0)
        self._own = self.average = average

    def on_train_begin(self, run: Run) -> None:
        live = self._own.params
        if {name: id(array) for name, array in live.items()} != {n: id(a) for n, a in run.model.params.items()}:
            raise ValueError("average must be of model.params")
        self._run = run

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        run = self._run
        due = self.every == "step" or batch + 1 == run.batches
        if run.epoch < self.begin or not due or math.isnan(logs["loss"]):
            return
        if self.begin and not self._own.is_ready:
            self._own.reset()
        self._own.update()

    def state_dict(self) -> dict[str, Any]:
        return self._own.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._own.load_state_dict(state)


# ---- Loggers ------------------------------------------------------------------------------------------------------


class Lines(Callback):
    """Prints a line per epoch; and, where tqdm is installed and the output is a terminal or a notebook, a progress bar.

    Parameters
    ----------
    file : text stream, optional
        Standard output where absent.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2, init="zeros")], (2,))
    >>> history = model.fit(np.eye(2), np.arange(2), epochs=1, callbacks=[nn.Lines()])  # doctest: +ELLIPSIS
    epoch 1/1  loss 0.6931  accuracy 0.5000  samples per second ...
    """

    on_every_rank = False

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
    """A progress bar of tqdm; None where there is neither a terminal nor a notebook, or no tqdm."""
    in_notebook = file is sys.stdout and _has_notebook()
    if not (in_notebook or file.isatty()):
        return None
    try:
        if in_notebook:
            from tqdm.auto import tqdm  # a widget, or text where there is no ipywidgets
        else:
            from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, file=file, leave=False, unit="batch")


def _has_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def describe(logs: dict[str, float]) -> str:
    """The metrics of an epoch on one line."""
    shown = {key: f"{value:,.0f}" if key == "samples_per_second" else f"{value:.4f}" for key, value in logs.items()}
    return "  ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


class CSVLogger(Callback):
    """Writes the history to a CSV file after each epoch: ``epoch``, counted from 1, and the keys of `History`.

    The file is replaced each time, so that a run which is resumed has each epoch in it once.

    Parameters
    ----------
    path : path

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.csv")
    ...     history = model.fit(np.eye(2), np.arange(2), epochs=2, callbacks=[nn.CSVLogger(path)])
    ...     with open(path) as file:
    ...         file.readline().strip()
    'epoch,loss,accuracy,samples_per_second'
    """

    rank = 1
    on_every_rank = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_train_begin(self, run: Run) -> None:
        files.check(self.path)
        self._history = run.history

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["epoch", *self._history])
        table.writerows([number, *row] for number, row in enumerate(zip(*self._history.values(), strict=True), start=1))
        files.replace(self.path, lambda file: file.write(text.getvalue().encode()))


class TensorBoard(Callback):
    """Writes the metrics and the learning rate of each epoch for TensorBoard (extra ``tensorboard``).

    Parameters
    ----------
    folder : path
        One per run.
    histograms : bool, default False
        Whether to write histograms of the parameters, too.

    Raises
    ------
    TypeError
        Where `histograms` is no flag.
    ImportError
        When the run begins, where tensorboardX is missing.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     history = model.fit(np.eye(2), np.arange(2), callbacks=[nn.TensorBoard(folder)])
    ...     len(os.listdir(folder))
    1
    """

    on_every_rank = False

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
        if self._writer is None:  # the first epoch is not known before, as a checkpoint may set it
            self._writer = self._make(self.folder, purge_step=epoch or None)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        optimizer = self._run.optimizer
        for name, value in {**logs, **({"lr": optimizer.lr} if hasattr(optimizer, "lr") else {})}.items():
            self._writer.add_scalar(name, value, epoch)
        if self.histograms:
            for name, param in self._run.model.params.items():
                self._writer.add_histogram(name, param, epoch)
        self._writer.flush()

    def on_train_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
