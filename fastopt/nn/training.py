"""The training loop: a run, what callbacks get of it, and its history."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn.layers import Grads
from fastopt.nn.losses import Loss, SoftmaxCrossEntropy, softmax_cross_entropy
from fastopt.nn.memory import FRESH, Memory
from fastopt.nn.playback import Passes
from fastopt.nn.stack import Stack, room_for_convolutions, samples
from fastopt.nn.targets import are_labels, count_right, weights
from fastopt.optimizer import Optimizer
from fastopt.optimizers import OPTIMIZERS, LookAheadNesterov

__all__ = ["Callback", "History", "Run", "batches"]

Indices = NDArray[np.int64]


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

    def save(self, path: str | Path) -> None:
        """Write the history as JSON, with null for NaN and infinity, and ``stopped`` and ``monitor`` unless empty.

        Parameters
        ----------
        path : path
        """
        more = {"stopped": self.stopped, "monitor": self.monitor}
        Path(path).write_text(json.dumps(_finite(self | {k: v for k, v in more.items() if v}), indent=1) + "\n")


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


class Callback:
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
        """After a step, with the batch's ``loss``."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch, with its metrics, as they were added to the `History`."""

    def on_train_end(self) -> None:
        """After the last epoch, also where the run was stopped."""

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
        model: Stack,
        data: tuple[Array, Array, Array | None],
        optimizer: Optimizer,
        loss: Loss,
        *,
        epochs: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        validation_data: tuple[Array, Array] | None,
        callbacks: Sequence[Callback],
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
        self.measures = (*own, "samples_per_second", *(f"val_{name}" for name in validated))
        self.samples = len(self._x)
        self.batches = -(-count_batches(self.samples, batch_size) // accumulate)
        self.epoch = 0
        self.stopped, self.interrupted = "", False
        self._where = ""
        self._memory = model.workspace()
        self._passes: dict[int, Passes] = {}
        self._sums: Grads = {}
        self._parts: list[Indices] = []
        self._counter = 0

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
            yield Batch(self._x[chosen], self._y[chosen], weight, self._counter + i)

    # ---- The loop -------------------------------------------------------------------------------------------

    def _tell(self, name: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*args)

    def go(self) -> History:
        """Run all epochs."""
        with _interruptible(self), room_for_convolutions(self.model):
            self._tell("on_train_begin", self)
            while self.epoch < self.epochs and not self.stopped:
                self._tell("on_epoch_begin", self.epoch)
                logs = self._one_epoch()
                if logs is None:
                    break
                self.history.add(logs)
                self._tell("on_epoch_end", self.epoch, logs)
                self.epoch += 1
            if self.stopped:
                self.history.stopped = f"{self.stopped}; stopped {self._where or f'after epoch {self.epoch}'}"
            self._tell("on_train_end")
        return self.history

    def __getstate__(self) -> dict[str, Any]:
        """The run without recorded calls, which cannot be copied or pickled, as callbacks that hold it may be."""
        return vars(self) | {"_passes": {}}

    def _steps(self) -> Iterator[list[Indices]]:
        """The indices of the samples of each step, by batches, for one epoch."""
        order = np.random.default_rng([self.seed, self.optimizer.t])
        each = batches(len(self._x), self.batch_size, order)
        while parts := list(itertools.islice(each, self.accumulate)):
            yield parts

    def _one_epoch(self) -> dict[str, float] | None:
        """The epoch's metrics; None where it was stopped before its end."""
        started, total, right, total_weight = time.perf_counter(), 0.0, 0.0, 0.0
        for step, parts in enumerate(self._steps()):
            self._parts, self._counter = parts, self.optimizer.t * self.accumulate
            self._tell("on_batch_begin", step)
            value, correct, weight = self._step(step)
            total, right, total_weight = total + value * weight, right + correct, total_weight + weight
            self._tell("on_batch_end", step, {"loss": value})
            if self.stopped and step + 1 < self.batches:
                self._where = f"after {step + 1} of {self.batches} batches of epoch {self.epoch + 1}"
                return None
        logs: dict[str, float] = {"loss": total / (total_weight or 1.0)}
        if self._labelled:
            logs["accuracy"] = right / len(self._x)
        logs["samples_per_second"] = len(self._x) / (time.perf_counter() - started)
        if self._validation_data is not None:
            # Schedule-free optimizers take gradients at other parameters than those to be evaluated.
            with getattr(self.optimizer, "applied", contextlib.nullcontext)():
                measured = self.model.evaluate(*self._validation_data, loss=self.loss)
            logs |= {f"val_{key}": measured[key] for key in measured}
        return logs

    def _step(self, step: int) -> tuple[float, float, float]:
        """Forward, backward and the optimizer's step; returns the mean loss, the number of right answers, and the total
        sample weight."""
        memory = self._memory
        part_weights = [self._total_weight(chosen) for chosen in self._parts]
        total = sum(part_weights)
        value = right = 0.0
        look_ahead(self.optimizer)
        for i, chosen in enumerate(self._parts):
            inputs, targets = gather("x", self._x, chosen, memory), gather("y", self._y, chosen, memory)
            weight = None if self._weight is None else self._weight[chosen]
            passes = self._passes.get(len(chosen))
            if passes is None:
                passes = self._passes[len(chosen)] = Passes(self.model, memory)
            output = passes.forward(inputs, self._counter + i)
            part, dy = loss_of(self.loss, output, targets, weight, memory)
            share = 1.0
            if len(part_weights) > 1:
                share = part_weights[i] / (total or 1.0)
                dy = dy * share
            grads = passes.backward(dy)
            if len(part_weights) > 1:
                grads = self._summed(grads, begin=i == 0)
            value += share * part
            right += count_right(output, targets) if self._labelled else 0
        self._tell("on_gradients", step, grads)
        self.optimizer.step(grads)
        return value, right, total

    def _total_weight(self, chosen: Indices) -> float:
        """The total weight of samples, by which the mean of their losses divides."""
        weight = None if self._weight is None else self._weight[chosen]
        if hasattr(self.loss, "total_weight"):
            return float(self.loss.total_weight(self._y[chosen], weight))
        return float(len(chosen) if weight is None else weight.sum())

    def _summed(self, grads: Grads, *, begin: bool) -> Grads:
        """The sum of the gradients since the call with `begin`."""
        for name, grad in grads.items():
            if begin:
                np.copyto(self._sums.setdefault(name, np.empty_like(grad)), grad)
            else:
                self._sums[name] += grad
        return self._sums


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
    order = rng.permutation(n)
    start = 0
    while start < n:
        end = start + batch_size
        if n - end == 1:
            end = n
        yield order[start:end]
        start = end


def count_batches(n: int, batch_size: int) -> int:
    """The number of batches that `batches` yields."""
    lone = n > batch_size and (n - 1) % batch_size == 0
    return -(-n // batch_size) - lone


def gather(name: str, samples: Array, chosen: Indices, memory: Memory) -> Array:
    """The chosen samples in one array of `memory`."""
    out = memory.array(name, (len(chosen), *samples.shape[1:]), samples.dtype)
    return samples.take(chosen, axis=0, out=out, mode="clip")  # other modes make a copy


def loss_of(
    loss: Loss, output: Array, y: Array, sample_weight: Array | None = None, memory: Memory = FRESH
) -> tuple[float, Array]:
    """A loss and its gradient; softmax cross-entropy writes to arrays of `memory`."""
    if sample_weight is not None:
        loss = SoftmaxCrossEntropy() if loss is softmax_cross_entropy else loss
        return loss(output, y, sample_weight=sample_weight)
    if loss is not softmax_cross_entropy:
        return loss(output, y)
    losses = memory.array("losses", output.shape[:1], output.dtype)
    return loss(output, y, out=memory.array("dy", output.shape, output.dtype), losses=losses)


def _identities(arrays: Mapping[str, Array]) -> dict[str, int]:
    return {name: id(array) for name, array in arrays.items()}


def look_ahead(optimizer: Optimizer) -> None:
    """Move the parameters to where `LookAheadNesterov` takes the gradient; other optimizers leave them as they are."""
    if isinstance(optimizer, LookAheadNesterov) and not optimizer.ahead:
        optimizer.look_ahead()


def bound(model: Stack, optimizer: Optimizer | str) -> Optimizer:
    """The optimizer, which must be bound to the model's parameters; or a new one of that name, with its defaults."""
    if isinstance(optimizer, str):
        return OPTIMIZERS[checks.choice("optimizer", optimizer, tuple(OPTIMIZERS))](model.params)
    if not hasattr(optimizer, "params"):
        raise TypeError(f"optimizer must be an Optimizer or the name of one, got {type(optimizer).__name__}")
    if _identities(checks.named("param", optimizer.params)) != _identities(model.params):
        raise ValueError("optimizer must be bound to model.params")
    return optimizer


def fit(
    model: Stack,
    x: Array,
    y: Array,
    *,
    epochs: int,
    batch_size: int,
    accumulate: int,
    optimizer: Optimizer | str,
    validation_data: tuple[Array, Array] | None,
    loss: Loss,
    sample_weight: Any,
    class_weight: Any,
    seed: int | None,
    callbacks: Sequence[Callback],
) -> History:
    """`Sequential.fit`."""
    x, y = samples(model, x, y, loss)
    if not len(x):
        raise ValueError("x must hold at least one sample, got none")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be a sequence of Callback, got {type(callback).__name__} in it")
    run = Run(
        model,
        (x, y, weights(sample_weight, class_weight, y, model.dtype)),
        loss=loss,
        epochs=checks.integer("epochs", epochs, 0),
        batch_size=checks.integer("batch_size", batch_size, 1),
        accumulate=checks.integer("accumulate", accumulate, 1),
        seed=model.seed if seed is None else checks.integer("seed", seed, 0),
        validation_data=None if validation_data is None else samples(model, *validation_data, loss),
        optimizer=bound(model, optimizer),
        callbacks=callbacks,
    )
    history = run.go()
    if run.interrupted:
        print(f"fastopt: {history.stopped}; weights and history are kept", file=sys.stderr)
    return history
