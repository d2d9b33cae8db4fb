"""The learning-rate range test."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any, NamedTuple

import numpy as np

from fastopt import checks
from fastopt.applied import Applied
from fastopt.checks import Array
from fastopt.drawing import GREEN, GREY, ORANGE, RED, figure
from fastopt.nn.arguments import bound, samples
from fastopt.nn.losses import LossLike, softmax_cross_entropy
from fastopt.nn.model import Sequential
from fastopt.nn.orders import Shuffled
from fastopt.nn.trainer import Steps, holding, look_ahead
from fastopt.optimizer import OptimizerLike

__all__ = ["LRRange", "lr_find"]


class LRRange(NamedTuple):
    """The result of a learning-rate range test.

    Attributes
    ----------
    rates, losses : ndarray (steps,)
        The loss of each batch, and the learning rate of the step after it; up to where the loss diverged.
    smoothed : ndarray (steps,)
        Running means of the losses.
    lowest, steepest : float
        The learning rates at which the smoothed loss is lowest, and at which it falls fastest over the logarithm of
        the learning rate.
    suggestion : float
        An initial learning rate: the geometric mean of a tenth of `lowest`, which is often too high for adaptive
        optimizers, and of `steepest`, which is often too low for plain ones.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:])
    >>> found = nn.lr_find(model, x, y, steps=100)
    >>> found.steepest < found.lowest, len(found.rates) == len(found.losses) == len(found.smoothed)
    (True, True)
    >>> history = model.fit(x, y, epochs=1, lr=found.suggestion)
    >>> found.plot("rates.png")
    """

    rates: Array
    losses: Array
    smoothed: Array
    lowest: float
    steepest: float
    suggestion: float

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Plot the losses to a file (extra ``plot``), whose suffix decides the format; without one, return the page,
        a matplotlib.figure.Figure, which a notebook shows."""
        page = figure((7, 4))
        axes = page.subplots()
        axes.plot(self.rates, self.losses, color=GREY, linewidth=0.7, label="loss")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        for name, color, line in (("steepest", GREEN, ":"), ("suggestion", ORANGE, "--"), ("lowest", RED, "-.")):
            rate = getattr(self, name)
            axes.axvline(rate, color=color, linestyle=line, label=f"{name}, {rate:.2g}")
        axes.set(xscale="log", xlabel="learning rate", title="learning-rate range test")
        axes.set_ylim(0, 1.5 * max(self.smoothed[0], self.smoothed.min()))
        axes.grid(alpha=0.3)
        axes.legend()
        if path is None:
            return page
        page.savefig(path, dpi=120)
        return None


def lr_find(
    model: Sequential,
    x: Array,
    y: Array,
    *,
    optimizer: OptimizerLike | str | type = "adam",
    loss: LossLike = softmax_cross_entropy,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 150,
    batch_size: int = 32,
    smoothing: float = 0.9,
    seed: int | None = None,
) -> LRRange:
    """The learning-rate range test [1]_: train with a learning rate that grows from step to step, and record the loss.

    Model and optimizer are afterwards what they were before, to the bit.

    Parameters
    ----------
    model : Sequential
    x, y : ndarray
        Training data.
    optimizer : Optimizer, str or class, default "adam"
        As for `Sequential.fit`.
    loss : callable or str, default softmax_cross_entropy
    low, high : float, default 1e-6, 10.0
        The first and the last learning rate, in (0, inf), with a geometric progression in between. The test ends when
        the smoothed loss is four times its minimum.
    steps : int, default 150
        At least 2.
    batch_size : int, default 32
    smoothing : float, default 0.9
        The weight of the old value in the running mean, in [0, 1).
    seed : int, optional
        Decides the order of samples; the model's own seed where absent.

    Returns
    -------
    LRRange

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or the loss diverges at the first learning rate.

    References
    ----------
    .. [1] L. Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3; the geometric
       progression, and a tenth of the rate at the minimum, are from S. Gugger, "How do you find a good learning rate",
       2018.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:])
    >>> 1e-4 < nn.lr_find(model, x, y).suggestion < 1e-1
    True
    """
    x, y, loss = samples(model, x, y, loss, finite=True)
    if not len(x):
        raise ValueError("x must hold at least one sample, got none")
    low, high = checks.number("low", low, "(0, inf)"), checks.number("high", high, "(0, inf)")
    if not low < high:
        raise ValueError(f"high must be above low, {low}, got {high}")
    steps, batch_size = checks.integer("steps", steps, 2), checks.integer("batch_size", batch_size, 1)
    smoothing = checks.number("smoothing", smoothing, "[0, 1)")
    rng = np.random.default_rng(model.seed if seed is None else checks.integer("seed", seed, 0))
    optimizer = bound(model, optimizer)
    if not hasattr(optimizer, "lr"):
        raise ValueError(f"optimizer must have a learning rate, got {type(optimizer).__name__}")

    arrays = [*model.params.values(), *model.state.values()]
    before, state = [array.copy() for array in arrays], optimizer.state_dict()
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    order = itertools.chain.from_iterable(map(Shuffled(len(x), batch_size).epoch, itertools.repeat(rng)))
    try:
        with np.errstate(all="ignore"), holding(model, optimizer), Steps(model, optimizer, check=False) as taken:
            taken.feed(x, y, None, loss)
            if isinstance(optimizer, Applied) and optimizer.is_applied:
                optimizer.restore()  # to the parameters that are trained, for the time of the test
            for step, (rate, chosen) in enumerate(zip(np.geomspace(low, high, steps), order, strict=False)):
                look_ahead(optimizer)
                gave, grads = taken.gradients([chosen], step)
                value = float(gave.loss[0])
                mean = smoothing * mean + (1 - smoothing) * value
                current = mean / (1 - smoothing ** (step + 1))
                if not math.isfinite(value) or (smoothed and current > 4 * min(smoothed)):
                    break
                rates.append(float(rate))
                losses.append(value)
                smoothed.append(current)
                optimizer.lr = float(rate)
                optimizer.step(grads)
    finally:
        for array, kept in zip(arrays, before, strict=True):
            np.copyto(array, kept)
        optimizer.load_state_dict(state)
    if len(rates) < 2:
        raise ValueError(f"low must be a rate at which the model trains, got {low}: the loss exploded at once")
    end = int(np.argmin(smoothed))
    lowest, steepest = rates[end], rates[_steepest(smoothed[: end + 1], len(rates) // 10)]
    suggestion = math.sqrt(lowest / 10 * steepest)
    return LRRange(np.array(rates), np.array(losses), np.array(smoothed), lowest, steepest, suggestion)


def _steepest(values: list[float], half: int) -> int:
    """The index at which a least-squares line through the neighbouring values falls most, without the noisy ends."""
    if len(values) < 4 * half + 1 or half < 1:
        return len(values) // 2
    weights = np.arange(half, -half - 1, -1) / (half * (half + 1) * (2 * half + 1) / 3)
    slopes = np.convolve(values, weights, "valid")
    return int(np.argmin(slopes[half:])) + 2 * half
