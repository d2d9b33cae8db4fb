"""The training loop and its history."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn.callbacks import Callback
from fastopt.nn.losses import Loss, softmax_cross_entropy
from fastopt.optimizers import OPTIMIZERS, Optimizer

if TYPE_CHECKING:
    from fastopt.nn.model import Sequential


class History(dict[str, list[float]]):
    """What was measured, per epoch: ``loss``, ``accuracy`` (over the epoch's batches, as trained on),
    ``val_loss``, ``val_accuracy`` (where there is validation data), ``samples_per_second``.
    Accuracies are there where the targets are integer labels."""

    def add(self, logs: dict[str, float]) -> None:
        """Append the values of one epoch."""
        for key, value in logs.items():
            self.setdefault(key, []).append(value)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, in which NaN and infinity become null."""
        finite = {key: [v if math.isfinite(v) else None for v in values] for key, values in self.items()}
        Path(path).write_text(json.dumps(finite, indent=1) + "\n")


def batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices of all samples in random order, by batches. A lone last sample joins the batch before."""
    order = rng.permutation(n)
    start = 0
    while start < n:
        end = start + batch_size
        if n - end == 1:
            end = n
        yield order[start:end]
        start = end


def samples(model: Sequential, x: Array, y: Array, loss: Loss) -> tuple[Array, Array]:
    """Inputs and targets, checked, as arrays that the model takes."""
    x, y = model.inputs("x", x), np.asarray(y)
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"y must have one target per input, {len(x)}, got shape {y.shape}")
    if loss is softmax_cross_entropy:
        checks.labels("y", y, len(x), model.shapes[-1][-1])
    return x, y


def are_labels(y: Array) -> bool:
    """Whether targets are integer labels, so that a model can be right about them."""
    return y.ndim == 1 and y.dtype.kind in "iu"


def accuracy(output: Array, y: Array) -> float:
    """The share of rows whose largest output is at the label; 0.0 for none."""
    return float((output.argmax(axis=1) == y).mean()) if len(y) else 0.0


def _identities(arrays: Mapping[str, Array]) -> dict[str, int]:
    return {name: id(array) for name, array in arrays.items()}


def fit(
    model: Sequential,
    x: Array,
    y: Array,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer | str,
    validation_data: tuple[Array, Array] | None,
    loss: Loss,
    seed: int | None,
    callbacks: Sequence[Callback],
) -> History:
    """`Sequential.fit`."""
    x, y = samples(model, x, y, loss)
    if not len(x):
        raise ValueError("x must hold at least one sample, got none")
    if validation_data is not None:
        validation_data = samples(model, *validation_data, loss)
    epochs, batch_size = checks.integer("epochs", epochs, 0), checks.integer("batch_size", batch_size, 1)
    seed = model.seed if seed is None else checks.integer("seed", seed, 0)
    if isinstance(optimizer, str):
        optimizer = OPTIMIZERS[checks.choice("optimizer", optimizer, tuple(OPTIMIZERS))](model.params)
    elif _identities(checks.named("param", optimizer.params)) != _identities(model.params):
        raise ValueError("optimizer must be bound to model.params")
    count = sum(1 for _ in batches(len(x), batch_size, np.random.default_rng(0)))
    labelled = are_labels(y)
    memory = model.workspace()
    history = History()

    for callback in callbacks:
        callback.on_train_begin(model, optimizer, epochs, count)
    for epoch in range(epochs):
        for callback in callbacks:
            callback.on_epoch_begin(epoch)
        started, total, right = time.perf_counter(), 0.0, 0.0
        for batch, chosen in enumerate(batches(len(x), batch_size, np.random.default_rng([seed, optimizer.t]))):
            targets = y[chosen]
            inputs = np.take(
                x, chosen, axis=0, out=memory.array("x", (len(chosen), *x.shape[1:]), x.dtype), mode="clip"
            )
            output, cache = model.forward(inputs, training=True, counter=optimizer.t, memory=memory)
            value, dy = loss(output, targets)
            _, grads = model.backward(dy, cache, memory=memory)
            optimizer.step(grads)
            total += value * len(chosen)
            right += accuracy(output, targets) * len(chosen) if labelled else 0.0
            for callback in callbacks:
                callback.on_batch_end(batch, {"loss": value})
        logs: dict[str, float] = {"loss": total / len(x)}
        if labelled:
            logs["accuracy"] = right / len(x)
        logs["samples_per_second"] = len(x) / (time.perf_counter() - started)
        if validation_data is not None:
            measured = model.evaluate(*validation_data, loss=loss)
            logs |= {f"val_{key}": measured[key] for key in measured}
        history.add(logs)
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)
    for callback in callbacks:
        callback.on_train_end()
    return history
