"""Callbacks: what a training run tells the outside, and lets it change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from fastopt.optimizers import Optimizer

if TYPE_CHECKING:
    from fastopt.nn.model import Sequential


class Callback:
    """What a training run calls; override what you need. Names are those of Keras."""

    def on_train_begin(self, model: Sequential, optimizer: Optimizer, epochs: int, batches: int) -> None:
        """Before the first epoch, with the number of epochs and of batches in each."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before an epoch, counted from 0."""

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """After a step, with the batch's ``loss``."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch, with what `History` gets."""

    def on_train_end(self) -> None:
        """After the last epoch."""


class LearningRateScheduler(Callback):
    """Sets the learning rate before each step.

    Parameters
    ----------
    schedule : callable
        ``schedule(step, steps) -> learning rate``, step counted from 0 and steps being those of the whole run.
    """

    def __init__(self, schedule: Callable[[int, int], float]) -> None:
        self.schedule = schedule

    def on_train_begin(self, model: Sequential, optimizer: Optimizer, epochs: int, batches: int) -> None:
        self._optimizer, self._step, self._steps = optimizer, 0, epochs * batches
        optimizer.lr = self.schedule(0, self._steps)

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self._step += 1
        if self._step < self._steps:
            self._optimizer.lr = self.schedule(self._step, self._steps)


class Lines(Callback):
    """Prints a line per epoch; and where tqdm is installed and the output is a terminal, a progress bar above it.

    Parameters
    ----------
    file : text stream, optional
        Standard output where absent.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = sys.stdout if file is None else file

    def on_train_begin(self, model: Sequential, optimizer: Optimizer, epochs: int, batches: int) -> None:
        self._epochs, self._batches, self._bar = epochs, batches, None

    def on_epoch_begin(self, epoch: int) -> None:
        self._bar = _progress_bar(self._batches, f"epoch {epoch + 1}/{self._epochs}", self.file)

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.close()
        number = str(epoch + 1).rjust(len(str(self._epochs)))
        print(f"epoch {number}/{self._epochs}  {describe(logs)}", file=self.file, flush=True)


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
