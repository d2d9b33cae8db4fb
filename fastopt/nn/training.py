"""The training loop: a run, what callbacks get of it, and its history."""

from __future__ import annotations

import contextlib
import functools
import html
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import _kernels, checks, environment, files, mpi
from fastopt.applied import Applied
from fastopt.checks import Array
from fastopt.dialects import Spelled
from fastopt.messages import logger
from fastopt.nn import arguments, orders
from fastopt.nn.feed import Arrays, Block, Data, Feed, Loaded, Transformed, described, is_loader
from fastopt.nn.layers import Grads
from fastopt.nn.losses import Loss, softmax_cross_entropy
from fastopt.nn.metrics import Metric, checked_metrics, value_of
from fastopt.nn.orders import Indices, Shuffled
from fastopt.nn.preprocessing import adapt, unadapted
from fastopt.nn.program import Compiled
from fastopt.nn.ranks import Alone, Ranks
from fastopt.nn.stack import room_for_convolutions
from fastopt.nn.targets import are_labels
from fastopt.nn.trace import NonFiniteError, find_anomaly
from fastopt.nn.trainer import NonFinite, Taken, alone, holding, look_ahead
from fastopt.optimizer import Optimizer, Varying

__all__ = ["Callback", "History", "Run"]


class History(dict[str, list[float]]):
    """The metrics of a run, each a list with a value per epoch: ``loss`` and ``accuracy`` (over the epoch's batches, in
    training), ``val_loss`` and ``val_accuracy`` (where there is validation data), ``samples_per_second``; and the
    ``metrics`` that `fit` was given, over the epoch's batches, and as ``val_…``.
    Accuracies are there where the targets are integer labels.

    Attributes
    ----------
    stopped : str
        Why and when the run ended before its last epoch; empty where it did not.
    monitor : dict
        The record of a `fastopt.nn.monitor.Monitor`; empty where there was none.
    provenance : dict
        What the run depends on beside the program: the ``environment`` (versions, CPU, instruction set, threads), the
        ``seeds`` of the model and of the order of samples, and that ``order``; of a run that was resumed elsewhere, the
        environments of ``earlier`` parts.

    Examples
    --------
    >>> history = History()
    >>> history.add({"loss": 1.5})
    >>> history.add({"loss": 0.5})
    >>> history, history.stopped
    ({'loss': [1.5, 0.5]}, '')
    >>> history.save("history.json")
    >>> print(history.as_json())
    {
     "loss": [
      1.5,
      0.5
     ]
    }
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stopped = ""
        self.monitor: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}

    def add(self, logs: dict[str, float]) -> None:
        """Append the metrics of one epoch."""
        for key, value in logs.items():
            self.setdefault(key, []).append(value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON, with null for NaN and infinity; with its attributes, unless they are empty.

        Parameters
        ----------
        path : path
            A file that is replaced at once or not at all.
        """
        files.replace(path, lambda file: file.write(f"{self.as_json()}\n".encode()))

    def as_json(self) -> str:
        """What `save` writes."""
        more = {"stopped": self.stopped, "monitor": self.monitor, "provenance": self.provenance}
        return json.dumps(_finite(self | {k: v for k, v in more.items() if v}), indent=1)

    def _repr_html_(self) -> str:
        """A table of the epochs, for notebooks: of more than ten, the first and the last five."""
        count = max(map(len, self.values()), default=0)
        lines = [["epoch", *(html.escape(name.replace("_", " ")) for name in self)]]
        for epoch in range(count):
            shown = (f"{values[epoch]:.4g}" if epoch < len(values) else "" for values in self.values())
            lines.append([str(epoch + 1), *shown])
        if count > 10:
            lines[6:-5] = [["…", *[""] * len(self)]]
        rows = [f"<tr>{''.join(f'<td>{field}</td>' for field in line)}</tr>" for line in lines]
        rows[0] = rows[0].replace("td>", "th>")
        stopped = f"<p>{html.escape(self.stopped)}</p>" if self.stopped else ""
        return f"<table>{''.join(rows)}</table>{stopped}"


def _finite(value: Any) -> Any:
    """A nested value with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Batch(NamedTuple):
    """The arguments of one forward pass and its loss: inputs, targets, sample weights or None, and the counter."""

    x: Array
    y: Array
    weight: Array | None
    counter: int


class Callback(Spelled):
    """The base class of callbacks: methods that a run calls, which do nothing here. Their names are those of Keras.

    Attributes
    ----------
    rank : int
        Callbacks of a lower rank are called first, those of the same rank in the order given.
    on_every_rank : bool
        Whether it is called on all ranks of ``fit(comm=…)``; else on the first one, as what writes or prints is.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> class Stop(nn.Callback):
    ...     def on_train_begin(self, run):
    ...         self.run = run
    ...
    ...     def on_epoch_end(self, epoch, logs):
    ...         if logs["loss"] < 1:
    ...             self.run.stop("the loss is below 1")
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> model.fit(np.eye(2), np.arange(2), epochs=9, callbacks=[Stop()]).stopped
    'the loss is below 1; stopped after epoch 1'
    >>> class Told(nn.Callback):
    ...     def on_epoch_begin(self, epoch):
    ...         print("epoch", epoch)
    ...
    ...     def on_batch_begin(self, batch):
    ...         print(" batch", batch)
    ...
    ...     def on_gradients(self, batch, grads):
    ...         print("  gradients of", *grads)
    ...
    ...     def on_batch_end(self, batch, logs):
    ...         print("  loss:", logs["loss"] > 0)
    ...
    ...     def on_train_end(self):
    ...         print("end")
    ...
    ...     def state_dict(self):  # for a checkpoint
    ...         return {}
    ...
    ...     def load_state_dict(self, state):
    ...         pass
    >>> history = model.fit(np.eye(2), np.arange(2), batch_size=2, callbacks=Told())
    epoch 0
     batch 0
      gradients of 0.weight 0.bias
      loss: True
    end
    """

    rank: int = 0
    on_every_rank: bool = True
    #: What averages the parameters of the run, if the callback does: see `fastopt.nn.WeightAverage`.
    average: Applied | None = None

    def on_train_begin(self, run: Run) -> None:
        """Before the first epoch.

        Parameters
        ----------
        run : Run
            The run, with its model, optimizer, history, and ``stop(reason)``.
        """

    def on_epoch_begin(self, epoch: int) -> None:
        """Before an epoch, counted from 0."""

    def on_batch_begin(self, batch: int) -> None:
        """Before a step, counted from 0 in each epoch."""

    def on_gradients(self, batch: int, grads: Grads) -> None:
        """Between the backward pass and the step, with the gradients, which may be changed in place."""

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """After a step, with the batch's ``loss``; NaN where the step was skipped."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch, with its metrics, as they were added to the `History`.

        Where an optimizer or a callback averages the parameters, the model holds the averages here, as in validation;
        what is written to them is undone.
        """

    def on_train_end(self) -> None:
        """After the last epoch, also where the run was stopped; with the parameters that the model is left with."""

    def epochs_ahead(self) -> int:
        """How many of the next epochs may have been trained already when `on_epoch_begin` and `on_epoch_end` are called
        for the first of them: 1, as here, where the callback then looks at the model or the optimizer, changes them, or
        may stop the run. One that only reads ``logs`` may return ``sys.maxsize``: the steps of small networks take less
        time than what is done between calls of C.

        Returns
        -------
        int
            At least 1.

        Examples
        --------
        >>> import sys
        >>> import numpy as np
        >>> from fastopt import nn
        >>> class Losses(nn.Callback):
        ...     def on_train_begin(self, run):
        ...         self.losses = []
        ...
        ...     def on_epoch_end(self, epoch, logs):
        ...         self.losses.append(logs["loss"])
        ...
        ...     def epochs_ahead(self):
        ...         return sys.maxsize
        >>> model, losses = nn.Sequential([nn.Dense(2)], (2,)), Losses()
        >>> history = model.fit(np.eye(2), np.arange(2), epochs=5, callbacks=losses)
        >>> losses.losses == history["loss"]
        True
        """
        return 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for a resumed run to continue to the same bits.

        Returns
        -------
        dict
            Nested dicts, lists and tuples of numbers, text and arrays.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called after `on_train_begin`, unless it was empty."""


class Run:
    """A training run, as callbacks get it in `Callback.on_train_begin`.

    Attributes
    ----------
    model : Sequential
    optimizer : Optimizer
    loss : callable
    callbacks : list of Callback
    history : History
        The metrics of the epochs so far.
    epochs, batches : int
        The number of epochs, and of steps in each.
    samples, accumulate, seed : int
        As for `Sequential.fit`, and the number of samples.
    batch_size : int or str
        The size of batches, or what else decides it.
    on_nonfinite : str
        As for `Sequential.fit`.
    average : Applied or None
        What averages the parameters: a schedule-free optimizer, or the `average` of a callback.
    measures : tuple of str
        The names of the metrics that an epoch's ``logs`` will have.
    epoch : int
        The epoch, counted from 0. `Callback.on_train_begin` may set the one to begin with.
    stopped : str
        Why the run is to end; empty until `stop`.
    interrupted : bool
        Whether it was stopped by Ctrl-C.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> class Enough(nn.Callback):
    ...     def on_train_begin(self, run):
    ...         self.run = run
    ...
    ...     def on_epoch_end(self, epoch, logs):
    ...         if logs["accuracy"] > 0.9:
    ...             self.run.stop("90 %")
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:])
    >>> history = model.fit(x, y, epochs=50, callbacks=[Enough()])
    >>> history.stopped, len(history["loss"]) < 50
    ('90 %; stopped after epoch 12', True)
    """

    def __init__(
        self,
        model: Compiled,
        feed: Feed,
        optimizer: Optimizer,
        loss: Loss,
        *,
        epochs: int,
        accumulate: int,
        seed: int,
        validation: Validation | None,
        callbacks: Sequence[Callback],
        on_nonfinite: str = "stop",
        metrics: Mapping[str, Metric],
        ranks: Alone | None = None,
    ) -> None:
        self._ranks = ranks or Alone()
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.callbacks = sorted(callbacks, key=lambda callback: callback.rank)
        self.history = History()
        self.history.provenance = {
            "environment": environment.record(),
            "seeds": {"model": model.seed, **({"fit": seed} if feed.seeds is None else feed.seeds)},
            "order": feed.order,
        }
        self.epochs, self.batch_size, self.accumulate, self.seed = epochs, feed.size, accumulate, seed
        self._feed, self._validation, self._own_metrics = feed, validation, dict(metrics)
        self._data: Data = feed.first()
        self._labelled = are_labels(self._data[1])
        own = ("loss", "accuracy") if self._labelled else ("loss",)
        validated: tuple[str, ...] = ()
        if validation is not None:
            validated = ("loss", "accuracy", *metrics) if are_labels(validation.y) else ("loss", *metrics)
        self.on_nonfinite = on_nonfinite
        skipped = ("skipped",) if on_nonfinite == "skip" else ()
        self.measures = (*own, *metrics, *skipped, "samples_per_second", *(f"val_{name}" for name in validated))
        self.samples = feed.samples
        self.batches = -(-feed.batches // accumulate)
        self.epoch = 0
        self.stopped, self.interrupted = "", False
        self._where = ""
        #: The share of all steps that were taken, and whether the run has ended.
        self.done, self.is_over = 0.0, False
        how: dict[str, Any] = {"check": on_nonfinite != "ignore", "outputs": bool(metrics), "accumulate": accumulate}
        self.steps = self._ranks.steps(model, optimizer, **how)
        self._parts: list[Indices] = []
        self._counter = 0
        self._held: frozenset[str] | None = None
        self._kept: list[tuple[Array, Array]] = []
        if getattr(optimizer, "needs_closure", False):
            self._kept = [(array, array.copy()) for array in model.state.values()]
        #: The methods of callbacks that are called for each batch.
        self._hooks = {name for name in _OF_BATCHES for callback in self.callbacks if _has_own(callback, name)}
        self.average = _average(optimizer, self.callbacks)
        #: The callbacks that are told of epochs.
        self._told = [each for each in self.callbacks if any(_has_own(each, name) for name in _OF_EPOCHS)]
        #: A setting of the optimizer that differs from step to step of each epoch.
        self._varying: Varying | None = None

    def stop(self, reason: str) -> None:
        """End the run after the current step.

        Parameters
        ----------
        reason : str
            What `History.stopped` will say; that of the first call counts.
        """
        self.stopped = self.stopped or reason

    def parts(self) -> Iterator[Batch]:
        """The batches of the current step: one, or as many as gradients are accumulated over."""
        x, y, weight = self._data
        for i, chosen in enumerate(self._parts):
            own = None if weight is None else weight[chosen]
            yield Batch(self.model.converted(x[chosen]), y[chosen], own, self._counter + i)

    # ---- The loop -------------------------------------------------------------------------------------------

    def _tell(self, name: str, *args: Any) -> None:
        for callback in self._ranks.told(self.callbacks):
            getattr(callback, name)(*args)

    def go(self) -> History:
        """Run all epochs."""
        with interruptible(self):
            for _ in self.slices():
                pass
        return self.history

    def slices(self) -> Generator[None]:
        """The same, in slices of at most about 50 ms, after each of which others may have the thread."""
        model = self.model
        with alone(model), room_for_convolutions(model), holding(model), self.steps, _resting(self._feed):
            self._hooks = self._ranks.agree(self, self._data, self._hooks)
            self.steps.feed(*self._data, self.loss)
            _go_on(self.average, check=True)
            self._ranks.together(lambda: self._tell("on_train_begin", self))
            self._ranks.take_over(self)
            logger.debug("a run of %d epochs of %d steps: %s", self.epochs, self.batches, self.history.provenance)
            _go_on(self.average, check=False)  # from a checkpoint, whose parameters are averages
            ahead: list[_Epoch] = []
            over = self._ranks.stops(self, epoch=True)
            while self.epoch < self.epochs and (ahead or not over):
                self._tell("on_epoch_begin", self.epoch)
                if not ahead and (ahead := self._several()):
                    yield
                epoch, *ahead = ahead or [_Epoch()]
                logs = yield from self._one_epoch(epoch)
                if logs is None:
                    break
                if not ahead:  # else C has looked at them
                    self._check_arrays(self.batches - 1)
                with self._averaged():
                    if self._validation is not None:
                        measured = self._ranks.measured(self._validation, self.model, self._own_metrics)
                        logs |= {f"val_{key}": measured[key] for key in measured}
                    logs = self._ranks.logged(self, logs)
                    self.history.add(logs)
                    self._ranks.together(functools.partial(self._tell, "on_epoch_end", self.epoch, logs))
                self.epoch += 1
                over = self._ranks.stops(self, epoch=True)
            if self.stopped:
                self.history.stopped = f"{self.stopped}; stopped {self._where or f'after epoch {self.epoch}'}"
            average = self.average
            if average is not None and average.is_ready:
                average.apply()
            self._ranks.together(lambda: self._tell("on_train_end"))
            if average is not None:
                average.note()
            self.is_over = True

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        average = self.average
        if average is None or not average.is_ready or not (self._told or self._validation):  # nobody would see it
            return contextlib.nullcontext()
        return average.applied()

    def __getstate__(self) -> dict[str, Any]:
        """The run without its programs, which cannot be copied or pickled, as callbacks that hold it may be."""
        return vars(self) | {"steps": None, "_ranks": Alone()}

    def _several(self) -> list[_Epoch]:
        """The next epochs whose steps C takes in one go, of which the last may have been taken in part; none where
        Python has a part in the steps."""
        feed, most = self._feed, self.epochs - self.epoch
        if self._hooks or self._own_metrics or self._kept or not isinstance(feed, Arrays):
            return []
        sizes, first = feed.sizes, self.optimizer.t
        if not sizes:
            return []

        each: list[orders.Batches] = []

        def draw(count: int) -> list[orders.Batches]:
            steps = range(first, first + count * self.batches, self.batches)
            data, made = feed.several(self.seed, steps, self.epoch, self.epochs - self.epoch)
            self._feed_from(data)
            each.extend(made)
            return each

        if self._validation is not None:
            most = 1
        for told in self._told:
            most = min(most, checks.integer(f"{type(told).__name__}.epochs_ahead()", told.epochs_ahead(), 1))
        self._prepare()
        began = time.perf_counter()
        taken = self.steps.epochs(sizes, most, draw, self._varying)
        seconds = (time.perf_counter() - began) / max(1, self.optimizer.t - first)
        return [_Epoch(one, own, seconds, self.accumulate) for one, own in zip(taken, each, strict=False)]

    def _one_epoch(self, epoch: _Epoch) -> Generator[None, None, dict[str, float] | None]:
        """The epoch's metrics; None where it was stopped before its end."""
        if epoch.steps < self.batches:
            epoch.began = time.perf_counter()
            with self._feed.epoch(self.seed, self.optimizer.t - epoch.steps, self.epoch) as blocks:
                for block in blocks:
                    if not (yield from self._one_block(block, epoch)):
                        return None
            epoch.seconds += time.perf_counter() - epoch.began
        self._progress(epoch)
        logs = epoch.metrics(self._labelled, self._own_metrics, self._ranks.summed)
        if self.on_nonfinite == "skip":
            logs["skipped"] = epoch.skipped
        order = [name for name in self.measures if name in logs]
        return {name: logs[name] for name in order} | {"samples_per_second": epoch.rows / max(epoch.seconds, 1e-9)}

    def _one_block(self, block: Block, epoch: _Epoch) -> Generator[None, None, bool]:
        """The steps of a block; whether the run goes on."""
        each, at = block.batches, min(epoch.before, len(block.batches))
        epoch.before -= at
        self._feed_from((block.x, block.y, block.weight))

        def took(taken: Taken, count: int) -> None:
            """Steps were taken on so many batches."""
            epoch.taken.append(taken)
            begin, end = each.start(at), each.start(at + count)
            epoch.seen += end - begin
            if self._own_metrics:
                epoch.targets.append(block.y[each.order[begin:end]])

        while at < len(each):
            step = epoch.steps
            if self._hooks:
                self._begin_step(each, at)
                self._tell("on_batch_begin", step)
            loss, count = math.nan, self.accumulate
            try:
                self._prepare()
                now = self._many(each, at)
                if now is None:
                    self._begin_step(each, at)
                    now = self._one(step)
                loss, count = float(now.loss[-1]), len(now.loss) * self.accumulate
                took(now, count)
            except NonFinite as error:
                for before in error.args:  # steps that C took before
                    took(before, len(before.loss) * self.accumulate)
                    at += len(before.loss) * self.accumulate
                    epoch.steps += len(before.loss)
                self._begin_step(each, at)
                step, epoch.skipped = epoch.steps, epoch.skipped + 1
                if self.on_nonfinite != "skip":
                    raise self._error(step) from None
                if epoch.skipped == self.batches:
                    raise self._error(step, "all steps of the epoch were skipped; the last one for ") from None
            at += count
            epoch.steps += count // self.accumulate
            self._progress(epoch)
            if self._hooks:
                self._tell("on_batch_end", step, {"loss": loss})
            if self._ranks.stops(self) and epoch.steps < self.batches:
                self._where = f"after {epoch.steps} of {self.batches} batches of epoch {self.epoch + 1}"
                return False
            paused = time.perf_counter()
            yield
            epoch.began += time.perf_counter() - paused
        epoch.rows += len(each.order)
        return True

    def _feed_from(self, data: Data) -> None:
        """Let batches be of the rows of these arrays from now on."""
        if any(mine is not other for mine, other in zip(data, self._data, strict=True)):
            self._data = data
            self.steps.feed(*data, self.loss)

    def _progress(self, epoch: _Epoch) -> None:
        self.done = (self.epoch + epoch.steps / self.batches) / min(self.epochs, 2**62)

    def _begin_step(self, each: orders.Batches, at: int) -> None:
        """Let `parts` be those of the step that begins with a batch."""
        self._parts = [each[i] for i in range(at, min(at + self.accumulate, len(each)))]
        self._counter = self.optimizer.t * self.accumulate

    def _prepare(self) -> None:
        """What comes before the gradients of a step."""
        if (frozen := getattr(self.optimizer, "frozen", None)) is not self._held:
            self._held = frozen
            self.model.params.mark("held", frozen or ())
        for array, kept in self._kept:
            kept[...] = array
        look_ahead(self.optimizer)

    def _many(self, each: orders.Batches, at: int) -> Taken | None:
        """The next steps, as many as C takes in one go, or one where callbacks are told of each; None for none."""
        if "on_gradients" in self._hooks:
            return None
        most, begin, every = each.alike(at), each.start(at), self.accumulate
        if self._hooks:
            most = min(most, every)
        if at + most < len(each):  # whole steps
            most -= most % every
        if not most:
            return None
        return self.steps.many(each.order[begin:], each.start(at + 1) - begin, most, self.optimizer.t)

    def _one(self, step: int) -> Taken:
        """Forward, backward and the optimizer's step."""
        with self.steps.whole():
            if getattr(self.optimizer, "needs_closure", False):
                return self._step_by_closure(step)
            taken, grads = self._gradients(step)
            self.optimizer.step(grads)
            return taken

    def _step_by_closure(self, step: int) -> Taken:
        """A step of an optimizer that asks for the loss and the gradients as often as it likes."""
        first: list[Taken] = []

        def closure() -> tuple[float, Grads]:
            for array, kept in self._kept:
                array[...] = kept
            taken, grads = self._gradients(step)
            first.append(taken)
            return float(taken.loss[0]), grads

        self.optimizer.step(closure)  # type: ignore[arg-type]
        if self._kept:  # running statistics are to be those of the parameters that are left
            closure()
        return first[0]

    def _error(self, step: int, said: str = "") -> NonFiniteError:
        """What is wrong with the present step, whose loss or gradients are not finite."""
        found = (
            find_anomaly(self.model, part.x, part.y, self.loss, sample_weight=part.weight, counter=part.counter)
            for part in self.parts()
        )
        cause = next((text for text in found if text), "gradients that were changed, or added up, since")
        error = NonFiniteError(f"epoch {self.epoch + 1}, batch {step + 1}: {said}{cause}")
        error.epochs = self.epoch
        return error

    def _check_arrays(self, step: int) -> None:
        """Raise where parameters or running statistics are not finite."""
        model, where = self.model, f"epoch {self.epoch + 1}, after batch {step + 1}"
        for arrays, kind in ((model.params, "params"), (model.state, "state")):
            if self.on_nonfinite != "ignore" and not _kernels.all_finite([*arrays.values()]):
                name = next(name for name, array in arrays.items() if not np.isfinite(array).all())
                error = NonFiniteError(f"{where}: {kind}[{name}] is not finite: that step was too long, or overflowed")
                error.epochs = self.epoch
                raise error

    def _gradients(self, step: int) -> tuple[Taken, Grads]:
        """What the batches of a step gave, and the gradients."""
        taken, grads = self.steps.gradients(self._parts, self._counter)
        if "on_gradients" in self._hooks:
            self._tell("on_gradients", step, grads)
        self.steps.check(grads)
        return taken, grads


class _Epoch:
    """What the steps of an epoch gave: at first those on the first of some batches, as many each as gradients are
    accumulated over, that took so many seconds each."""

    def __init__(
        self, taken: Taken | None = None, each: orders.Batches | None = None, seconds: float = 0.0, accumulate: int = 1
    ) -> None:
        self.taken: list[Taken] = []
        self.targets: list[Array] = []
        self.steps = self.skipped = 0
        self.seen = self.rows = 0  # samples, those of steps that were taken, and all
        self.began = self.seconds = 0.0
        self.before = 0  # batches to leave out
        if taken is not None and each is not None:
            self.taken.append(taken)
            self.steps = len(taken.loss)
            self.before = min(len(each), self.steps * accumulate)
            self.seen = each.start(self.before)
            self.rows = self.seen if self.before == len(each) else 0
            self.seconds = seconds * self.steps

    def all(self, name: str) -> Array:
        """A field of what was taken, of all batches."""
        each = [getattr(one, name) for one in self.taken]
        return each[0] if len(each) == 1 else np.concatenate(each)

    def metrics(
        self, labelled: bool, metrics: Mapping[str, Metric], summed: Callable[[list[float]], list[float]]
    ) -> dict[str, float]:
        """The mean loss of the steps, of labels the share of right answers, and metrics of the outputs; `summed` adds
        up over all ranks."""
        loss, weight, right = self.all("loss"), self.all("weight"), self.all("right")
        sums = math.fsum((loss * weight).tolist()), math.fsum(weight.tolist()), float(sum(right.tolist()))
        total, divisor, count = summed([*sums])
        logs = {"loss": total / (divisor or 1.0)}
        if labelled:
            logs["accuracy"] = count / self.seen
        if metrics:
            y = np.concatenate(self.targets)
            output = np.concatenate([one.output for one in self.taken if one.output is not None])
            logs |= {name: value_of(name, metric, y, output) for name, metric in metrics.items()}
        return logs


class Validation(NamedTuple):
    """What a run validates on: y and weights are those of the rows of x, where there are some."""

    x: Array
    y: Array
    weight: Array | None
    rows: Indices | None = None
    loss: Loss = softmax_cross_entropy

    def measure(self, model: Compiled, metrics: Mapping[str, Metric], share: Any = None) -> dict[str, float]:
        return model.measure(self.x, self.y, self.weight, self.rows, loss=self.loss, metrics=metrics, share=share)


#: The methods of callbacks that are called for each batch.
_OF_BATCHES = ("on_batch_begin", "on_gradients", "on_batch_end")
_OF_EPOCHS = ("on_epoch_begin", "on_epoch_end")


def _has_own(callback: Callback, name: str) -> bool:
    """Whether a callback does anything in a method."""
    return name in vars(callback) or getattr(type(callback), name) is not getattr(Callback, name)


def _average(optimizer: Any, callbacks: Sequence[Callback]) -> Applied | None:
    """What averages the parameters of a run."""
    found = [callback.average for callback in callbacks if callback.average is not None]
    inner = getattr(optimizer, "optimizer", optimizer)  # of LookAhead
    if isinstance(inner, Applied):
        found.append(inner)
    if len(found) > 1:
        names = " and ".join(type(each).__name__ for each in found)
        raise ValueError(f"callbacks and optimizer must have one average of the parameters between them, got {names}")
    return found[0] if found else None


@contextlib.contextmanager
def _resting(feed: Feed) -> Iterator[None]:
    """After the block, nothing is made ahead any more."""
    try:
        yield
    finally:
        if isinstance(feed, Arrays):
            feed.rest()


def _go_on(average: Applied | None, *, check: bool) -> None:
    """Let the parameters be those that are trained, where a run before has left the averages in their place."""
    if average is None or not average.is_applied:
        return
    if check and not average.is_noted():
        raise ValueError(
            f"the parameters were changed since {type(average).__name__} left its averages in them: call its restore() "
            "to go on from the values that were trained, or make a new one to begin from those that are there"
        )
    average.restore()


@contextlib.contextmanager
def interruptible(run: Any) -> Iterator[None]:
    """Let the first Ctrl-C set ``run.interrupted`` and call ``run.stop``, and a second one raise KeyboardInterrupt.

    A handler that the program has installed is kept; threads other than the main one receive no signals.
    """
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGINT, usual)
        run.interrupted = True
        run.stop("interrupted")

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _validation(model: Compiled, given: Any, loss: Any, own: Loss, finite: bool) -> Validation | None:
    """What a run validates on, whose loss is given as `loss` and is its `own`."""
    if not isinstance(given, Validation):
        checked = arguments.validation(model, given, loss, finite=finite)
        if checked is None:
            return None
        given = Validation(*checked[:2], checked[2] if len(checked) == 3 else None)
    x = given.x if given.rows is None else given.x[given.rows[:1]]
    y = given.y if given.rows is None else given.y[:1]
    return given._replace(loss=arguments.samples(model, x, y, own, "validation ")[2])


def _feed(
    model: Compiled,
    x: Any,
    y: Any,
    loss: Any,
    *,
    finite: bool,
    rows: Indices | None,
    ahead: bool,
    batch_size: int | None,
    accumulate: int,
    sample_weight: Any,
    class_weight: Any,
    seed: int | None,
    batches: Any,
    transform: Any,
) -> Feed:
    """Where the batches of a run come from, checked."""
    if is_loader(x):
        own = {"y": y, "batch_size": batch_size, "batches": batches, "transform": transform, "seed": seed}
        own |= {"sample_weight": sample_weight, "class_weight": class_weight}
        for name, value in own.items():
            if value is not None:
                raise ValueError(f"{name} must not be given beside a loader, which has its own, got {value!r:.80}")

        def of_batch(x: Any, y: Any, weight: Any) -> Data:
            x, y, made = arguments.samples(model, x, y, loss, "a loader's ", finite=finite)
            if not len(x):
                raise ValueError("x must be a loader of batches of at least one sample, got none")
            return x, y, arguments.weights(weight, None, y, made, model.dtype)

        return Loaded(x, of_batch, accumulate)
    if y is None:
        raise TypeError("y must have one target per input, got None")
    x, y, made = arguments.samples(model, x, y, loss, finite=finite)
    if not len(x):
        raise ValueError("x must hold at least one sample, got none")
    weight = _weights(sample_weight, class_weight, y, made, model.dtype, rows)
    count = len(x) if rows is None else len(rows)
    if batches is None:
        size: Any = 32 if batch_size is None else checks.integer("batch_size", batch_size, 1)
        each: Any = Shuffled(count, size)
    elif batch_size is not None:
        raise ValueError(f"batch_size must not be given beside batches, which have their own, got {batch_size!r}")
    else:
        each = orders.checked(batches, count)
        size = each.batch_size if type(each) is Shuffled else described(each)
    if transform is None:
        return Arrays((x, y, weight), each, rows, size)
    if isinstance(transform, type) or not callable(transform):
        raise TypeError(f"transform must be a function (x, y, rng) -> (x, y), got {transform!r:.80}")

    def changed(x: Array, y: Array) -> tuple[Array, Array]:
        return arguments.samples(model, x, y, loss, "transformed ")[:2]

    return Transformed((x, y, weight), each, rows, size, transform, changed, accumulate, ahead=ahead)


def _weights(
    sample_weight: Any, class_weight: Any, y: Array, loss: Loss, dtype: Any, rows: Indices | None
) -> Array | None:
    """The weights of all samples, of which those of some rows count."""
    if rows is None:
        return arguments.weights(sample_weight, class_weight, y, loss, dtype)
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight)
        if sample_weight.shape != y.shape[:1]:
            raise ValueError(f"sample_weight must have shape {y.shape[:1]}, got {sample_weight.shape}")
        sample_weight = sample_weight[rows]
    own = arguments.weights(sample_weight, class_weight, y[rows], loss, dtype)
    if own is None:
        return None
    weight = np.zeros(len(y), dtype)
    weight[rows] = own
    return weight


def prepare(
    model: Compiled,
    x: Any,
    y: Any,
    *,
    epochs: int,
    batch_size: int | None,
    accumulate: int,
    optimizer: Any,
    lr: Any,
    validation_data: Any,
    loss: Any,
    sample_weight: Any,
    class_weight: Any,
    seed: int | None,
    callbacks: Any,
    on_nonfinite: str | None,
    batches: Any,
    transform: Any,
    metrics: Any,
    rows: Indices | None = None,
    finite: bool = True,
    validation_finite: bool = True,
    ahead: bool = True,
    ranks: Alone | None = None,
) -> Run:
    """The run of `Sequential.fit`, all arguments checked.

    `rows` are those of x and y to train on, all where absent; validation data may be a `Validation`. `finite` and
    `validation_finite` are whether numbers that are not finite are looked for in samples; `ahead`, whether a thread
    transforms them; `ranks`, who takes part.
    """
    if on_nonfinite is not None:
        checks.choice("on_nonfinite", on_nonfinite, ("stop", "skip", "ignore"))
    looked_at = on_nonfinite != "ignore"
    every = checks.integer("accumulate", accumulate, 1)
    feed = _feed(
        model,
        x,
        y,
        loss,
        finite=finite and looked_at,
        rows=rows,
        ahead=ahead,
        batch_size=batch_size,
        accumulate=every,
        sample_weight=sample_weight,
        class_weight=class_weight,
        seed=seed,
        batches=batches,
        transform=transform,
    )
    given = x
    x, y, _ = feed.first()
    own = arguments.samples(model, x, y, loss)[2]  # that of such targets
    held_out = _validation(model, validation_data, loss, own, validation_finite and looked_at)
    chosen, measured = arguments.callbacks(callbacks, Callback), checked_metrics(metrics, own, y)
    epochs = checks.integer("epochs", epochs, 0)
    seed = model.seed if seed is None else checks.integer("seed", seed, 0)
    made = arguments.bound(model, optimizer, lr)
    arguments.check_steps(made, -(-feed.batches // every), feed.samples, feed.batches)
    if on_nonfinite is None:
        on_nonfinite = "skip" if getattr(made, "skip_nonfinite", False) else "stop"
    _adapt(model, given, rows)
    return Run(
        model,
        feed,
        made,
        own,
        epochs=epochs,
        accumulate=every,
        seed=seed,
        validation=held_out,
        callbacks=chosen,
        on_nonfinite=on_nonfinite,
        metrics=measured,
        ranks=ranks,
    )


def _adapt(model: Compiled, x: Any, rows: Indices | None) -> None:
    """Let the layers that learn from data do so, from the samples to train on, if they have not yet."""
    if not unadapted(model):
        return
    if is_loader(x):
        raise ValueError("the model has layers that learn from data: before fit(loader), call model.adapt(x)")
    x = model.rows("x", x)
    adapt(model, x if rows is None else x[rows], anew=False)


def fit(model: Compiled, x: Any, y: Any, *, comm: Any = None, **options: Any) -> History:
    """`Sequential.fit`."""
    with mpi.joined(comm) as group:
        ranks = Alone() if group is None else Ranks(group)
        run = ranks.together(lambda: prepare(model, x, y, ranks=ranks, **options))
        history: History = run.go()
    if run.interrupted and ranks.is_first:
        logger.warning("%s; weights and history are kept", history.stopped)
    return history
