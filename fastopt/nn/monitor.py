"""Monitoring a training run: records of weights, activations and gradients, plots, and the origin of a NaN.

>>> from fastopt import data, nn
>>> x, y = data.digits()
>>> model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
>>> history = model.fit(x, y, epochs=3, callbacks=[nn.monitor.Monitor(), nn.monitor.DetectAnomaly()])
>>> nn.monitor.plot(history, "curves.png")
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.drawing import BLUE, GREY, ORANGE, figure
from fastopt.nn.layers import Grads, ReLU
from fastopt.nn.losses import Loss, loss_of, softmax_cross_entropy
from fastopt.nn.stack import Stack
from fastopt.nn.trace import NonFiniteError, find_anomaly, state_kept, trace
from fastopt.nn.training import Callback, Run

# ---- Anomalies --------------------------------------------------------------------------------------------------


#: What `DetectAnomaly` raises.
Anomaly = NonFiniteError


class DetectAnomaly(Callback):
    """Raises `Anomaly` before a step whose gradients hold a NaN or an infinity, while the parameters are still finite.

    Each gradient is read once per step.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(4, activation="relu"), nn.Dense(1)], (1,))
    >>> x, y = np.full((8, 1), 1e30, np.float32), np.zeros((8, 1), np.float32)
    >>> try:
    ...     model.fit(x, y, loss="squared_error", epochs=1, callbacks=[nn.monitor.DetectAnomaly()])
    ... except nn.NonFiniteError as error:
    ...     print(error)
    epoch 1, batch 1: the forward pass of the loss: in its output, 1 infinite of 1 values
    """

    def on_train_begin(self, run: Run) -> None:
        self._run = run

    def on_gradients(self, batch: int, grads: Grads) -> None:
        if all(np.isfinite(grad).all() for grad in grads.values()):
            return
        run = self._run
        found = [
            find_anomaly(run.model, part.x, part.y, run.loss, sample_weight=part.weight, counter=part.counter)
            for part in run.parts()
        ]
        cause = next((text for text in found if text), "gradients that were changed, or added up, since")
        error = Anomaly(f"epoch {run.epoch + 1}, batch {batch + 1}: {cause}")
        error.epochs = run.epoch
        raise error


# ---- Numbers ----------------------------------------------------------------------------------------------------


def norm(arrays: Mapping[str, Array]) -> float:
    """The Euclidean norm of all arrays together, in double precision.

    Parameters
    ----------
    arrays : mapping of str to ndarray

    Returns
    -------
    float

    Examples
    --------
    >>> norm({"a": np.array([3.0]), "b": np.array([[4.0]])})
    5.0
    """
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values()))


def dead_share(output: Array) -> float:
    """The share of features of (n, d), or channels of (n, h, w, c), that are 0 for the whole batch.

    Parameters
    ----------
    output : ndarray (n, …)

    Returns
    -------
    float

    Examples
    --------
    >>> dead_share(np.array([[0.0, 1.0], [0.0, 0.0]]))
    0.5
    """
    return float((output.reshape(-1, output.shape[-1]) == 0).all(axis=0).mean())


def noise_scale(
    model: Stack,
    x: Array,
    y: Array,
    loss: Loss = softmax_cross_entropy,
    *,
    sample_weight: Array | None = None,
    parts: int = 4,
    counter: int = 0,
) -> tuple[float, float]:
    """Unbiased estimates for the simple noise scale of gradients [1]_, from one batch and its parts.

    The noise scale is the ratio of the two, each averaged over many batches first: the batch size up to which
    larger batches make training faster almost in proportion.

    Parameters
    ----------
    model, x, y, loss, sample_weight, counter
        See `trace`.
    parts : int, default 4
        The number of parts of equal size that the batch is divided into, of two samples at least.

    Returns
    -------
    trace : float
        The trace of the covariance of a sample's gradient, ``tr Σ``.
    square : float
        The squared norm of the true gradient, ``|G|²``. Either estimate may be below 0 by chance.

    References
    ----------
    .. [1] S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch training", 2018, appendix A.1.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:])
    >>> trace, square = nn.monitor.noise_scale(model, x[:256], y[:256])
    >>> trace > square > 0
    True
    """
    parts = checks.integer("parts", min(parts, len(x) // 2), 2)
    small = len(x) // parts
    total: Grads = {}
    square = 0.0
    with state_kept(model):
        for i in range(parts):
            own = slice(i * small, (i + 1) * small)
            output, cache = model.forward(x[own], training=True, counter=counter)
            weight = None if sample_weight is None else sample_weight[own]
            _, grads = model.backward(loss_of(loss, output, y[own], weight)[1], cache)
            square += norm(grads) ** 2 / parts
            for name, grad in grads.items():
                total[name] = grad.astype(np.float64) + total.get(name, 0.0)
    big = small * parts
    big_square = norm(total) ** 2 / parts**2
    covariance = (square - big_square) / (1 / small - 1 / big)
    return covariance, (big * big_square - small * square) / (big - small)


# ---- Recording --------------------------------------------------------------------------------------------------


class Monitor(Callback):
    """Records norms, update ratios and histograms of a run into ``history.monitor``, which `plot` draws.

    A record takes about as long as two steps, and does not change a bit of the run.

    Parameters
    ----------
    every : int, default 20
        The number of steps from one record to the next; the first step is recorded.
    bins : int, default 40
        The number of bins of histograms.

    Raises
    ------
    TypeError, ValueError
        Where an argument is no positive integer.

    Notes
    -----
    ``history.monitor`` is a dict of lists with a value per record:

    - ``step``, ``loss`` (the mean since the record before), ``lr``
    - ``gradient_norm``: over all parameters, before the step
    - ``noise_scale``: see the function `noise_scale`; the ratio of running means (weight 0.1 of the newest)
    - ``update_ratio``, by parameter with two axes or more: the norm of the step's update over that of the parameter.
      About 1e-3 is healthy; far above, the learning rate is too high, far below, too low.
    - ``dead``, by layer with ReLU: the share of features or channels that are 0 for the whole batch
    - ``activations``, ``gradients``, by layer: histograms ``[low, high, counts]`` of its output, and of log10 of the
      magnitudes of the loss's gradient with respect to it, both without zeros. Activations that shrink or grow from
      layer to layer, and gradients that do so backwards, tell of a wrong initialisation.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:])
    >>> history = model.fit(x[:320], y[:320], epochs=2, callbacks=[nn.monitor.Monitor(every=10)])
    >>> history.monitor["step"], sorted(history.monitor["update_ratio"])
    ([0, 10], ['1.weight', '2.weight'])
    """

    def __init__(self, every: int = 20, *, bins: int = 40) -> None:
        self.every = checks.integer("every", every, 1)
        self.bins = checks.integer("bins", bins, 1)

    def on_train_begin(self, run: Run) -> None:
        self._run, self._due = run, False
        self._loss, self._count = 0.0, 0
        self._squares = [0.0, 0.0]
        run.history.monitor = {
            **{key: [] for key in ("step", "loss", "lr", "gradient_norm", "noise_scale")},
            **{key: {} for key in ("update_ratio", "dead", "activations", "gradients")},
        }

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self._loss, "count": self._count, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loss, self._count, self._squares = state["loss"], state["count"], state["squares"]

    def _add(self, key: str, value: Any, name: str | None = None) -> None:
        record = self._run.history.monitor[key]
        (record if name is None else record.setdefault(name, [])).append(value)

    def on_batch_begin(self, batch: int) -> None:
        run = self._run
        self._due = run.optimizer.t % self.every == 0
        if not self._due:
            return
        self._add("step", run.optimizer.t)
        x, y, weight, counter = next(run.parts())
        self._before = {name: param.copy() for name, param in run.model.params.items() if param.ndim > 1}
        traced = trace(run.model, x, y, run.loss, sample_weight=weight, counter=counter)
        for i, layer in enumerate(run.model.layers):
            name = f"{i} {type(layer).__name__}"
            if isinstance(layer, ReLU) or getattr(layer, "activation", None) == "relu":
                self._add("dead", dead_share(traced.outputs[i]), name)
            output, gradient = traced.outputs[i], np.abs(traced.gradients[i])
            self._add("activations", self._histogram(output[output != 0]), name)
            self._add("gradients", self._histogram(np.log10(gradient[gradient > 0])), name)
        self._add("noise_scale", math.nan)
        if len(x) >= 4:
            measured = noise_scale(run.model, x, y, run.loss, sample_weight=weight, counter=counter)
            self._squares = [0.9 * old + 0.1 * new for old, new in zip(self._squares, measured, strict=True)]
            covariance, square = self._squares
            if square > 0:  # the estimate may not be, after few records
                run.history.monitor["noise_scale"][-1] = covariance / square

    def _histogram(self, values: Array) -> list[Any]:
        values = values[np.isfinite(values)]
        counts, edges = np.histogram(values, self.bins)
        return [float(edges[0]), float(edges[-1]), counts.tolist()]

    def on_gradients(self, batch: int, grads: Grads) -> None:
        record = self._run.history.monitor
        if self._due and len(record["gradient_norm"]) < len(record["step"]):  # the first gradients of the step
            self._add("gradient_norm", norm(grads))

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self._loss, self._count = self._loss + logs["loss"], self._count + 1
        if not self._due:
            return
        record = self._run.history.monitor
        if len(record["gradient_norm"]) < len(record["step"]):  # the step was skipped
            self._add("gradient_norm", math.nan)
        self._add("lr", getattr(self._run.optimizer, "lr", math.nan))
        self._add("loss", self._loss / self._count)
        self._loss, self._count = 0.0, 0
        for name, before in self._before.items():
            size = norm({name: before})
            update = norm({name: self._run.model.params[name] - before})
            self._add("update_ratio", update / size if size else math.nan, name)


# ---- Drawing ----------------------------------------------------------------------------------------------------


def plot(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str] | None = None) -> Any:
    """Plot a run: loss and accuracy; and the record of a `Monitor`, on the same page.

    Parameters
    ----------
    history : History or mapping
        What `Sequential.fit` returned, or the contents of its JSON file.
    path : path, optional
        Where to write the page. Its suffix decides the format: ``.png``, ``.svg``, ``.pdf``.

    Returns
    -------
    matplotlib.figure.Figure or None
        The page, which a notebook shows; None where there is a path.

    Raises
    ------
    ImportError
        Where matplotlib is missing: it is the extra ``plot``.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:])
    >>> history = model.fit(x, y, epochs=3, callbacks=[nn.monitor.Monitor()])
    >>> nn.monitor.plot(history, "curves.png")
    """
    record = _record(history)
    if not record:
        page = figure((9, 3.6))
        loss, accuracy = page.subplots(1, 2)
    else:
        page = figure((14, 12.5))
        rows = page.subplot_mosaic(
            [
                ["loss"] * 2 + ["accuracy"] * 2 + ["lr"] * 2,
                ["update"] * 2 + ["norm"] * 2 + ["dead"] * 2,
                ["activations"] * 3 + ["gradients"] * 3,
            ],
            height_ratios=[1, 1, max(1.3, 0.16 * len(record["activations"]))],
        )
        loss, accuracy = rows["loss"], rows["accuracy"]
        _draw_record(rows, record)
    for axes, key in ((loss, "loss"), (accuracy, "accuracy")):
        shown = {
            name: (label, color, _numbers(history[name]))
            for name, label, color in ((key, "training", BLUE), (f"val_{key}", "validation", ORANGE))
            if history.get(name)
        }
        epochs = max((len(values) for *_, values in shown.values()), default=0)
        axes.set(xlabel="epoch", title=key, xlim=(0.5, max(epochs, 1) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        if key == "loss":
            _log_scale(axes, *(values for *_, values in shown.values()))
        for label, color, values in shown.values():
            _curve(axes, range(1, len(values) + 1), values, color=color, label=f"{label}, last {values[-1]:.4f}")
        if shown:
            axes.legend()
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
        if not any(math.isfinite(value) for *_, values in shown.values() for value in values):
            axes.set_yticks([])
    if path is None:
        return page
    page.savefig(path, dpi=120)
    return None


def _numbers(values: Sequence[float | None]) -> list[float]:
    """The values as floats: JSON has null for NaN."""
    return [math.nan if value is None else float(value) for value in values]


def _log_scale(axes: Any, *curves: Sequence[float | None]) -> None:
    """Make the scale logarithmic, where no number is negative and the positive ones cover a decade."""
    finite = [value for curve in curves for value in _numbers(curve) if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if positive and min(finite) >= 0 and max(positive) >= 10 * min(positive):
        axes.set_yscale("log", nonpositive="mask")


def _curve(axes: Any, x: Sequence[float], values: Sequence[float | None], **style: Any) -> None:
    """Plot a curve all of whose points are seen: those without neighbours as dots, those that have no place as crosses
    at the upper end of the axes (NaN, infinities) and as triangles at the lower end (0 on a logarithmic scale)."""
    x, values = x[: len(values)], _numbers(values)
    log = axes.get_yscale() == "log"
    shown = [math.isfinite(value) and (value > 0 or not log) for value in values]
    alone = [i for i, fine in enumerate(shown) if fine and not any(shown[max(0, i - 1) : i] + shown[i + 1 : i + 2])]
    drawn = [value if fine else math.nan for value, fine in zip(values, shown, strict=True)]
    (line,) = axes.plot(x, drawn, marker="o", markersize=5, markevery=alone, **{"linewidth": 1.5, **style})
    for marker, height, label in (("x", 0.97, "NaN or infinite"), ("v", 0.03, "0")):
        places = [x[i] for i, value in enumerate(values) if not shown[i] and math.isfinite(value) == (marker == "v")]
        if places:
            others = sum(
                other.get_marker() == marker for other in axes.lines
            )  # of other curves: these stand beside them
            height += (0.04 if marker == "v" else -0.04) * (others % 5)
            options = {"color": line.get_color(), "transform": axes.get_xaxis_transform()}
            axes.plot(places, [height] * len(places), marker, markersize=6, label="_" if others else label, **options)


def _record(history: Mapping[str, Any]) -> Any:
    """The record of a `Monitor`, from a History or the contents of its file; or None."""
    return getattr(history, "monitor", None) or history.get("monitor")


def _draw_record(axes: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Plot the record of a `Monitor`."""
    step = record["step"]
    names = {"update": "update_ratio", "dead": "dead"}
    curves = {
        "lr": {"loss": record["loss"]},
        "norm": {"gradient norm": record["gradient_norm"], "noise scale, in samples": record["noise_scale"]},
        **{key: record[name] for key, name in names.items()},
    }
    titles = {
        "lr": "loss (blue) and learning rate (orange)",
        "update": "norm of update / norm of weight",
        "norm": "gradient norm and noise scale",
        "dead": "dead ReLUs: share at 0 for a whole batch",
    }
    for key, title in titles.items():
        axes[key].set(xlabel="step", title=title, xlim=_limits(step))
        axes[key].grid(alpha=0.3)
        if key == "dead":
            axes[key].set_ylim(-0.02, 1.02)
        else:
            _log_scale(axes[key], *curves[key].values(), *([[1e-3]] if key == "update" else []))
        for label, values in curves[key].items():
            _curve(axes[key], step, values, label=label, linewidth=1)
        if key == "update":
            axes[key].axhline(1e-3, color="black", linestyle="--", linewidth=1)
        if axes[key].get_legend_handles_labels()[0] and (key != "lr" or len(axes[key].lines) > 1):
            axes[key].legend(fontsize=7, ncols=2)
    rate = axes["lr"].twinx()
    _curve(rate, step, record["lr"], color=ORANGE, linewidth=1)
    rate.set_ylim(bottom=0)
    _ridges(axes["activations"], record["activations"], "outputs of layers other than 0")
    low, high = axes["activations"].get_xlim()
    axes["activations"].set_xscale("asinh")
    highest = math.ceil(math.log10(max(-low, high, 1)))
    decades = [10.0**power for power in range(highest // 6, highest + 1, 1 + highest // 6)]
    ticks = [tick for tick in (*[-d for d in decades], 0, *decades) if low <= tick <= high]
    axes["activations"].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes["activations"].set_xlim(low, high)
    _ridges(axes["gradients"], record["gradients"], "log10 |gradient of the loss by the output|")


def _limits(steps: Sequence[int]) -> tuple[float, float]:
    """The ends of an axis of steps, on which one record has its place, too."""
    first, last = (steps[0], steps[-1]) if steps else (0, 0)
    margin = max(0.05 * (last - first), 0.5)
    return first - margin, last + margin


def _ridges(axes: Any, record: Mapping[str, list[list[Any]]], title: str) -> None:
    """Plot the first and the last histogram of each layer, from top to bottom."""
    for place, (_, histograms) in enumerate(record.items()):
        for which, style in ((0, {"color": GREY, "alpha": 0.8}), (-1, {"color": BLUE})):
            low, high, counts = histograms[which]
            heights = np.array(counts) / max(*counts, 1) * 0.85
            edges = np.linspace(low, high, len(counts) + 1)
            if any(counts):
                axes.stairs(heights - place, edges, baseline=-place, fill=which == -1, linewidth=1, **style)
        if not any(histograms[-1][2]):
            note = "last record: no finite number other than 0"
            options = {"fontsize": 8, "color": BLUE, "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}}
            axes.text(0.98, 0.6 - place, note, transform=axes.get_yaxis_transform(), ha="right", **options)
    axes.set_yticks([-place for place in range(len(record))], list(record), fontsize=8)
    axes.set_title(f"{title}: first record (grey), last (blue)")
    axes.grid(alpha=0.3, axis="x")
