"""The training loop: a run, what callbacks get of it, and its history."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import _kernels, checks, files
from fastopt.applied import Applied
from fastopt.checks import Array
from fastopt.dialects import Spelled
from fastopt.nn import arguments
from fastopt.nn.layers import Grads
from fastopt.nn.losses import Loss
from fastopt.nn.program import Compiled
from fastopt.nn.stack import room_for_convolutions
from fastopt.nn.targets import are_labels
from fastopt.nn.trace import NonFiniteError, find_anomaly
from fastopt.nn.trainer import Indices, NonFinite, Steps, Taken, alone, holding, look_ahead
from fastopt.optimizer import Optimizer

__all__ = ["Callback", "History", "Run", "batches"]


class History(dict[str, list[float]]):
    """The metrics of a run, each a list with a value per epoch: ``loss`` and ``accuracy`` (over the epoch's batches, in
    training), ``val_loss`` and ``val_accuracy`` (where there is validation data), ``samples_per_second``.
    Accuracies are there where the targets are integer labels.

    Attributes
    ----------
    stopped : str
        Why and when the run ended before its last epoch; empty where it did not.
    monitor : dict
        The record of a `fastopt.nn.monitor.Monitor`; empty where there was none.

    Examples
    --------
    >>> history = History()
    >>> history.add({"loss": 1.5})
    >>> history.add({"loss": 0.5})
    >>> history, history.stopped
    ({'loss': [1.5, 0.5]}, '')
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stopped = ""
        self.monitor: dict[str, Any] = {}

    def add(self, logs: dict[str, float]) -> None:
        """Append the metrics of one epoch."""
        for key, value in logs.items():
            self.setdefault(key, []).append(value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON, with null for NaN and infinity, and ``stopped`` and ``monitor`` unless empty.

        Parameters
        ----------
        path : path
            A file that is replaced at once or not at all.
        """
        more = {"stopped": self.stopped, "monitor": self.monitor}
        text = json.dumps(_finite(self | {k: v for k, v in more.items() if v}), indent=1) + "\n"
        files.replace(path, lambda file: file.write(text.encode()))


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
    """

    rank: int = 0
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
    samples, batch_size, accumulate, seed : int
        As for `Sequential.fit`, and the number of samples.
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
    """

    def __init__(
        self,
        model: Compiled,
        data: tuple[Array, Array, Array | None],
        optimizer: Optimizer,
        loss: Loss,
        *,
        epochs: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        validation_data: tuple[Array, Array] | tuple[Array, Array, Array] | None,
        callbacks: Sequence[Callback],
        on_nonfinite: str = "stop",
    ) -> None:
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.callbacks = sorted(callbacks, key=lambda callback: callback.rank)
        self.history = History()
        self.epochs, self.batch_size, self.accumulate, self.seed = epochs, batch_size, accumulate, seed
        self._x, self._y, self._weight = data
        self._validation_data = validation_data
        self._labelled = are_labels(self._y)
        own = ("loss", "accuracy") if self._labelled else ("loss",)
        validated = () if validation_data is None else ("loss", "accuracy")[: 1 + are_labels(validation_data[1])]
        self.on_nonfinite = on_nonfinite
        skipped = ("skipped",) if on_nonfinite == "skip" else ()
        self.measures = (*own, *skipped, "samples_per_second", *(f"val_{name}" for name in validated))
        self.samples = len(self._x)
        self.batches = -(-count_batches(self.samples, batch_size) // accumulate)
        self.epoch = 0
        self.stopped, self.interrupted = "", False
        self._where = ""
        self._steps = Steps(model, optimizer, check=on_nonfinite != "ignore")
        self._parts: list[Indices] = []
        self._counter = 0
        self._held: frozenset[str] | None = None
        self._kept: list[tuple[Array, Array]] = []
        needs_closure = getattr(optimizer, "needs_closure", False)
        if needs_closure:
            self._kept = [(array, array.copy()) for array in model.state.values()]
        #: The methods of callbacks that are called for each batch.
        self._hooks = {name for name in _OF_BATCHES for callback in self.callbacks if _has_own(callback, name)}
        self.average = _average(optimizer, self.callbacks)
        if needs_closure and self.batches > 1:
            call = f"model.fit(x, y, batch_size={self.samples}, optimizer=optimizer)"
            parts = count_batches(self.samples, batch_size)
            less = f"model.fit(x, y, batch_size={batch_size}, accumulate={parts}, optimizer=optimizer)"
            raise ValueError(
                f"{type(optimizer).__name__} needs the gradient of all samples in each step: call {call}, or, for less "
                f"memory, {less}; got {self.batches} steps for {self.samples} samples"
            )

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
        for i, chosen in enumerate(self._parts):
            weight = None if self._weight is None else self._weight[chosen]
            yield Batch(self.model.converted(self._x[chosen]), self._y[chosen], weight, self._counter + i)

    # ---- The loop -------------------------------------------------------------------------------------------

    def _tell(self, name: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*args)

    def go(self) -> History:
        """Run all epochs."""
        model = self.model
        with alone(model), _interruptible(self), room_for_convolutions(model), holding(model), self._steps:
            self._feed_first()
            _go_on(self.average, check=True)
            self._tell("on_train_begin", self)
            _go_on(self.average, check=False)  # from a checkpoint, whose parameters are averages
            while self.epoch < self.epochs and not self.stopped:
                self._tell("on_epoch_begin", self.epoch)
                logs = self._one_epoch()
                if logs is None:
                    break
                with self._averaged():
                    if self._validation_data is not None:
                        measured = self.model.evaluate(*self._validation_data, loss=self.loss)
                        logs |= {f"val_{key}": measured[key] for key in measured}
                    self.history.add(logs)
                    self._tell("on_epoch_end", self.epoch, logs)
                self.epoch += 1
            if self.stopped:
                self.history.stopped = f"{self.stopped}; stopped {self._where or f'after epoch {self.epoch}'}"
            average = self.average
            if average is not None and average.is_ready:
                average.apply()
            self._tell("on_train_end")
            if average is not None:
                average.note()
        return self.history

    def _feed_first(self) -> None:
        """Let steps take their batches from the samples."""
        self._steps.feed(self._x, self._y, self._weight, self.loss)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        average = self.average
        return average.applied() if average is not None and average.is_ready else contextlib.nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        """The run without its programs, which cannot be copied or pickled, as callbacks that hold it may be."""
        return vars(self) | {"_steps": None}

    def _one_epoch(self) -> dict[str, float] | None:
        """The epoch's metrics; None where it was stopped before its end."""
        started, taken, skipped, at, seen = time.perf_counter(), [], 0, 0, 0  # type: float, list[Taken], int, int, int
        each = self._batched()
        while at < len(each):
            step = at // self.accumulate
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
                taken.append(now)
                seen += each.rows(at, at + count)
            except NonFinite as error:
                for before in error.args:  # steps that C took before
                    taken.append(before)
                    seen += each.rows(at, at + len(before.loss))
                    at += len(before.loss)
                self._begin_step(each, at)
                step, skipped = at // self.accumulate, skipped + 1
                if self.on_nonfinite != "skip":
                    raise self._error(step) from None
                if skipped == self.batches:
                    raise self._error(step, "all steps of the epoch were skipped; the last one for ") from None
            at += count
            if self._hooks:
                self._tell("on_batch_end", step, {"loss": loss})
            if self.stopped and at < len(each):
                done = at // self.accumulate
                self._where = f"after {done} of {self.batches} batches of epoch {self.epoch + 1}"
                return None
        logs = self._metrics(taken, seen)
        if self.on_nonfinite == "skip":
            logs["skipped"] = skipped
        logs["samples_per_second"] = len(self._x) / (time.perf_counter() - started)
        self._check_arrays(self.batches - 1)
        return logs

    def _batched(self) -> Batches:
        """The batches of the epoch that begins."""
        return Batches(np.random.default_rng([self.seed, self.optimizer.t]).permutation(self.samples), self.batch_size)

    def _begin_step(self, each: Batches, at: int) -> None:
        """Let `parts` be those of the step that begins with a batch."""
        self._parts = [each[i] for i in range(at, min(at + self.accumulate, len(each)))]
        self._counter = self.optimizer.t * self.accumulate

    def _metrics(self, taken: Sequence[Taken], seen: int) -> dict[str, float]:
        """The mean loss of the epoch's steps, and, of labels, the share of right answers among so many samples."""
        loss, weight, right = (np.concatenate([one[k] for one in taken]) for k in range(3))
        logs = {"loss": math.fsum(loss * weight) / (math.fsum(weight) or 1.0)}
        if self._labelled:
            logs["accuracy"] = float(right.sum()) / seen
        return logs

    def _prepare(self) -> None:
        """What comes before the gradients of a step."""
        if (frozen := getattr(self.optimizer, "frozen", None)) is not self._held:
            self._held = frozen
            self.model.params.mark("held", frozen or ())
        for array, kept in self._kept:
            kept[...] = array
        look_ahead(self.optimizer)

    def _many(self, each: Batches, at: int) -> Taken | None:
        """The next steps, as many as C takes in one go, or one where callbacks are told of each; None for none."""
        if self.accumulate > 1 or "on_gradients" in self._hooks:
            return None
        most = self._most(each, at)
        return self._steps.many(each.order[at * each.size :], each.rows(at, at + 1), most, self.optimizer.t)

    def _most(self, each: Batches, at: int) -> int:
        """How many batches from one on may be taken in one go."""
        return 1 if self._hooks else each.alike(at)

    def _one(self, step: int) -> Taken:
        """Forward, backward and the optimizer's step."""
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
        loss, weight, right, grads = self._steps.gradients(self._parts, self._counter)
        if "on_gradients" in self._hooks:
            self._tell("on_gradients", step, grads)
        self._steps.check(grads)
        return Taken(np.array([loss]), np.array([weight]), np.array([right])), grads


#: The methods of callbacks that are called for each batch.
_OF_BATCHES = ("on_batch_begin", "on_gradients", "on_batch_end")


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
def _interruptible(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C end the run after its step, and a second one raise KeyboardInterrupt.

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


def batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Indices of all samples in random order, by batches. A single last sample joins the batch before.

    Parameters
    ----------
    n : int
        The number of samples.
    batch_size : int
    rng : numpy.random.Generator

    Yields
    ------
    ndarray of int64

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> [len(chosen) for chosen in nn.batches(9, 4, np.random.default_rng(0))]
    [4, 5]
    """
    each = Batches(rng.permutation(n), batch_size)
    for i in range(len(each)):
        yield each[i]


class Batches:
    """Rows in an order, by batches of a size. A single last row joins the batch before, if it may."""

    def __init__(self, order: Indices, size: int, *, join: bool = True) -> None:
        self.order, self.size = order, size
        self._count = count_batches(len(order), size) if join else -(-len(order) // size)

    def __len__(self) -> int:
        return self._count

    def rows(self, begin: int, end: int) -> int:
        """The number of rows in the batches from one to before another."""
        return (len(self.order) if end >= self._count else end * self.size) - begin * self.size

    def __getitem__(self, i: int) -> Indices:
        return self.order[i * self.size : i * self.size + self.rows(i, i + 1)]

    def alike(self, i: int) -> int:
        """The number of batches of the same size from one on."""
        whole = self._count - (self.rows(self._count - 1, self._count) != self.size)
        return max(1, whole - i)


def count_batches(n: int, batch_size: int) -> int:
    """The number of batches that `batches` yields."""
    lone = n > batch_size and (n - 1) % batch_size == 0
    return -(-n // batch_size) - lone


def fit(
    model: Compiled,
    x: Array,
    y: Array,
    *,
    epochs: int,
    batch_size: int,
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
) -> History:
    """`Sequential.fit`."""
    if on_nonfinite is not None:
        checks.choice("on_nonfinite", on_nonfinite, ("stop", "skip", "ignore"))
    finite = on_nonfinite != "ignore"
    given, (x, y, loss) = loss, arguments.samples(model, x, y, loss, finite=finite)
    if not len(x):
        raise ValueError("x must hold at least one sample, got none")
    validation = arguments.validation(model, validation_data, given, finite=finite)
    weight = arguments.weights(sample_weight, class_weight, y, loss, model.dtype)
    chosen = arguments.callbacks(callbacks, Callback)
    settings = {
        "epochs": checks.integer("epochs", epochs, 0),
        "batch_size": checks.integer("batch_size", batch_size, 1),
        "accumulate": checks.integer("accumulate", accumulate, 1),
        "seed": model.seed if seed is None else checks.integer("seed", seed, 0),
    }
    made = arguments.bound(model, optimizer, lr)
    steps = -(-count_batches(len(x), settings["batch_size"]) // settings["accumulate"])
    arguments.check_steps(made, steps, len(x))
    if on_nonfinite is None:
        on_nonfinite = "skip" if getattr(made, "skip_nonfinite", False) else "stop"
    run = Run(
        model,
        (x, y, weight),
        made,
        loss,
        validation_data=validation,
        callbacks=chosen,
        on_nonfinite=on_nonfinite,
        **settings,
    )
    history = run.go()
    if run.interrupted:
        print(f"fastopt: {history.stopped}; weights and history are kept", file=sys.stderr)
    return history
