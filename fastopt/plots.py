"""Pictures of how models do and how they were chosen: the extra ``plot``, and ``sklearn`` for curves of scores.

Each function returns a page, a `matplotlib.figure.Figure`, and writes it where it is given a path. Curves differ in
more than colour.

>>> from fastopt import plots
>>> page = plots.histories({"small": {"loss": [2.0, 1.0]}, "large": {"loss": [1.5, 0.5]}})
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, figure

__all__ = [
    "confusion",
    "histories",
    "learning_curve",
    "precision_recall",
    "roc",
    "trials",
    "validation_curve",
]

Path = str | os.PathLike[str] | None

_COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)  # neighbours that differ most
_DASHES = ("-", "--", ":", "-.")


def _style(number: int) -> dict[str, Any]:
    """The look of one of several curves."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _DASHES[(number + 2 * (number // len(_COLOURS))) % len(_DASHES)],
        "linewidth": 1.6,
    }


def _written(page: Any, target: str | None) -> Any:
    if target is not None:
        page.savefig(target, dpi=150)
    return page


def _target(path: Path) -> str | None:
    return None if path is None else os.fspath(path)


def _metrics() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise ImportError("these curves need scikit-learn: pip install 'fastopt[sklearn]'") from error
    return sklearn.metrics


# ---- Arguments ------------------------------------------------------------------------------------------------


def _labels(name: str, value: Any) -> Array:
    given = np.asarray(value)
    if given.ndim != 1 or given.dtype.kind not in "iubfUSO" or not len(given):
        raise ValueError(f"{name} must be labels (n,) of one sample or more, got {given.dtype} {given.shape}")
    if given.dtype.kind == "f" and not (given == np.floor(given)).all():
        raise ValueError(f"{name} must be labels of classes, got numbers that are not whole")
    return given.astype(np.int64) if given.dtype.kind in "fb" else given


def _numbers(name: str, value: Any, ndims: tuple[int, ...]) -> Array:
    given = np.asarray(value)
    if given.dtype.kind not in "fiu" or given.ndim not in ndims or not given.size:
        raise ValueError(
            f"{name} must be numbers of {' or '.join(map(str, ndims))} dimensions, got {given.dtype} {given.shape}"
        )
    return given.astype(np.float64)


def _names(value: Any, classes: Sequence[Any]) -> list[str]:
    if value is None:
        return [str(each) for each in classes]
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)) or len(value) != len(classes):
        raise ValueError(f"names must hold a text for each of {len(classes)} classes, got {value!r:.80}")
    return [str(each) for each in value]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    return value


class _OneClass(NamedTuple):
    """One class against the rest."""

    name: str
    belongs: Array  # (n,), bool
    scores: Array  # (n,)


def _each_class(y: Any, scores: Any, names: Any) -> list[_OneClass]:
    """The classes whose curves are drawn: the second one of two, else all."""
    labels, scores = _labels("y", y), _numbers("scores", scores, (1, 2))
    if len(scores) != len(labels):
        raise ValueError(f"scores must have one row per label, {len(labels)}, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite, got NaN or infinities")
    count = 2 if scores.ndim == 1 or scores.shape[1] == 1 else scores.shape[1]
    if labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < count:
        classes: Sequence[Any] = range(count)
    else:
        classes = np.unique(labels).tolist()
        if len(classes) != count:
            raise ValueError(f"y must have {count} classes for scores {scores.shape}, got {len(classes)}")
    called = _names(names, classes)
    columns = scores.reshape(len(scores), -1)
    if count == 2:
        columns = np.stack([-columns[:, -1], columns[:, -1]], axis=1)
    found = [
        _OneClass(called[i], np.asarray([label == each for label in labels.tolist()]), columns[:, i])
        for i, each in enumerate(classes)
    ]
    for each in found:
        if each.belongs.all() or not each.belongs.any():
            raise ValueError(f"y must have samples in class {each.name} and others, got {each.belongs.sum()} in it")
    return found[1:] if count == 2 else found


# ---- Scores of classifiers ------------------------------------------------------------------------------------


def roc(y: Any, scores: Any, *, names: Sequence[str] | None = None, path: Path = None) -> Any:
    """Curves of the receiver operating characteristic with the areas under them, each class against the rest.

    Parameters
    ----------
    y : array_like (n,)
        Labels: integers from 0, or anything that sorts.
    scores : array_like (n,) or (n, classes)
        How much a sample looks like the second class of two, or like each: probabilities or logits.
    names : sequence of str, optional
        Of the classes.
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib or scikit-learn is missing.
    TypeError, ValueError
        Where an argument breaks its rule, or a class has no samples, or all.

    Examples
    --------
    >>> from fastopt import plots
    >>> page = plots.roc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> page.axes[0].get_legend().get_texts()[0].get_text()
    '1, AUC 0.750'
    """
    classes, target, metrics = _each_class(y, scores, names), _target(path), _metrics()
    page = figure((5.4, 4.8))
    ax = page.subplots()
    areas = []
    for i, each in enumerate(classes):
        false, true, _ = metrics.roc_curve(each.belongs, each.scores)
        areas.append(metrics.auc(false, true))
        ax.plot(false, true, label=f"{each.name}, AUC {areas[-1]:.3f}", **_style(i))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="chance, AUC 0.500")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.set_title(f"ROC, mean AUC {np.mean(areas):.4f}" if len(areas) > 1 else "ROC")
    return _finished(page, ax, target, aspect="equal")


def precision_recall(y: Any, scores: Any, *, names: Sequence[str] | None = None, path: Path = None) -> Any:
    """Curves of precision over recall with average precisions, each class against the rest.

    Average precision is the area under the curve as steps, which is not too large as by trapezoids.

    Parameters
    ----------
    y, scores, names, path
        As for `roc`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError, TypeError, ValueError
        As for `roc`.

    Examples
    --------
    >>> from fastopt import plots
    >>> page = plots.precision_recall([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> page.axes[0].get_legend().get_texts()[0].get_text()
    '1, AP 0.833'
    """
    classes, target, metrics = _each_class(y, scores, names), _target(path), _metrics()
    page = figure((5.4, 4.8))
    ax = page.subplots()
    areas = []
    for i, each in enumerate(classes):
        precision, recall, _ = metrics.precision_recall_curve(each.belongs, each.scores)
        areas.append(metrics.average_precision_score(each.belongs, each.scores))
        label = f"{each.name}, AP {areas[-1]:.3f}"
        ax.plot(recall, precision, drawstyle="steps-post", label=label, **_style(i))
    if len(classes) == 1:
        share = classes[0].belongs.mean()
        ax.axhline(share, color=GREY, linewidth=0.8, label=f"chance, AP {share:.3f}")
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.03))
    ax.set_title(f"precision and recall, mean AP {np.mean(areas):.4f}" if len(areas) > 1 else "precision and recall")
    return _finished(page, ax, target, aspect="equal")


def _finished(page: Any, ax: Any, target: str | None, **more: Any) -> Any:
    ax.set(**more)
    handles = len(ax.get_legend_handles_labels()[0])
    ax.legend(fontsize=8, ncols=1 + (handles > 12))
    return _written(page, target)


def confusion(y: Any, predicted: Any, *, names: Sequence[str] | None = None, path: Path = None) -> Any:
    """The confusion matrix: how many samples of each class (rows) were taken for which (columns).

    Colours show the share of the row; on the diagonal that is the recall.

    Parameters
    ----------
    y, predicted : array_like (n,)
        Labels; of scores, write ``scores.argmax(axis=1)``.
    names : sequence of str, optional
        Of the classes in sorted order.
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError, TypeError, ValueError
        As for `roc`.

    Examples
    --------
    >>> from fastopt import plots
    >>> page = plots.confusion([0, 1, 1], [0, 0, 1], names=["cat", "dog"])
    >>> [text.get_text() for text in page.axes[0].texts]
    ['1', '0', '1', '1']
    """
    y, predicted, target = _labels("y", y), _labels("predicted", predicted), _target(path)
    if y.shape != predicted.shape:
        raise ValueError(f"predicted must have one label per sample, {len(y)}, got {len(predicted)}")
    if (y.dtype.kind in "iu") != (predicted.dtype.kind in "iu"):
        raise TypeError(f"predicted must have the type of y, {y.dtype}, got {predicted.dtype}")
    counts = _metrics().confusion_matrix(y, predicted)
    called = _names(names, np.unique(np.concatenate([y, predicted])).tolist())
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.6, 1.6 + 0.48 * len(counts)), 14.0)
    page = figure((side + 0.8, side))
    ax = page.subplots()
    ax.grid(False)
    shown = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= 30:
        for (i, j), count in np.ndenumerate(counts):
            color = "white" if shares[i, j] > 0.55 else "black" if count else "0.75"
            ax.text(j, i, str(count), ha="center", va="center", color=color, fontsize=9 if len(counts) <= 12 else 6)
    places = range(len(counts))
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, called)) > 3 else {}
    ax.set_xticks(places, called, **turned)
    ax.set_yticks(places, called)
    ax.set(xlabel="predicted class", ylabel="true class", title=f"accuracy {np.trace(counts) / counts.sum():.4f}")
    page.colorbar(shown, ax=ax, label="share of the true class", shrink=0.85)
    return _written(page, target)


# ---- Curves ---------------------------------------------------------------------------------------------------


def _log(values: Array) -> bool:
    """Whether values are seen better on a logarithmic scale: positive, over a decade."""
    finite = values[np.isfinite(values)]
    return bool(finite.size) and bool(finite.min() > 0) and bool(finite.max() >= 10 * finite.min())


def _scores(train_scores: Any, test_scores: Any, count: int) -> list[Array]:
    """Both, checked, with a row for each point."""
    found = []
    for name, value in (("train_scores", train_scores), ("test_scores", test_scores)):
        scores = _numbers(name, value, (1, 2))
        if len(scores) != count:
            raise ValueError(f"{name} must have one row for each of {count} points, got shape {scores.shape}")
        found.append(scores.reshape(count, -1))
    return found


def _both_curves(ax: Any, x: Array, train: Array, test: Array) -> None:
    """Means and standard deviations of scores in training and in validation."""
    order = np.argsort(x, kind="stable")
    for i, (label, scores, marker) in enumerate((("training", train, "s"), ("validation", test, "o"))):
        mean, deviation = scores[order].mean(axis=1), scores[order].std(axis=1)
        style = _style(i)
        ax.plot(x[order], mean, marker=marker, markersize=4, label=label, **style)
        if scores.shape[1] > 1:
            ax.fill_between(x[order], mean - deviation, mean + deviation, color=style["color"], alpha=0.18, linewidth=0)


def learning_curve(
    sizes: Any, train_scores: Any, test_scores: Any, *, score: str = "accuracy", path: Path = None
) -> Any:
    """Scores by the number of training samples, which is on a logarithmic scale.

    ``plots.learning_curve(*sklearn.model_selection.learning_curve(estimator, X, y))`` draws what that function returns.

    Parameters
    ----------
    sizes : array_like (k,)
        Numbers of training samples, above 0.
    train_scores, test_scores : array_like (k,) or (k, folds)
        Of several folds, the mean is drawn, and a band of a standard deviation on both sides.
    score : str, default "accuracy"
        What scores are called.
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt import plots
    >>> page = plots.learning_curve([10, 100, 1000], [1.0, 0.99, 0.98], [0.6, 0.8, 0.95])
    >>> page.axes[0].get_xscale()
    'log'
    """
    sizes, target = _numbers("sizes", sizes, (1,)), _target(path)
    if not (np.isfinite(sizes).all() and sizes.min() > 0):
        raise ValueError("sizes must be numbers of samples above 0")
    train, test = _scores(train_scores, test_scores, len(sizes))
    page = figure((6, 4.2))
    ax = page.subplots()
    ax.set_xscale("log")
    _both_curves(ax, sizes, train, test)
    ax.set(xlabel="training samples", ylabel=_text("score", score), title="learning curve")
    return _finished(page, ax, target)


def validation_curve(
    values: Any,
    train_scores: Any,
    test_scores: Any,
    *,
    parameter: str = "value",
    score: str = "accuracy",
    path: Path = None,
) -> Any:
    """Scores by the values of one hyperparameter, on a logarithmic scale where they are positive over a decade.

    ``plots.validation_curve(values, *sklearn.model_selection.validation_curve(…, param_range=values))`` draws what that
    function returns.

    Parameters
    ----------
    values : sequence (k,)
        Numbers, or anything else, which is then drawn in the order that it has.
    train_scores, test_scores : array_like (k,) or (k, folds)
        Of several folds, the mean is drawn, and a band of a standard deviation on both sides.
    parameter : str, default "value"
        What values are called.
    score : str, default "accuracy"
        What scores are called.
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt import plots
    >>> page = plots.validation_curve([1e-4, 1e-2, 1], [0.9, 0.99, 0.5], [0.8, 0.9, 0.5], parameter="lr")
    >>> page.axes[0].get_xlabel(), page.axes[0].get_xscale()
    ('lr', 'log')
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)) or not len(values):
        raise TypeError(f"values must be a sequence, got {values!r:.80}")
    target, axis = _target(path), _Axis(_text("parameter", parameter), list(values))
    train, test = _scores(train_scores, test_scores, len(values))
    page = figure((6, 4.2))
    ax = page.subplots()
    x = axis.numbers if axis.words is None else np.arange(len(values), dtype=np.float64)
    if axis.words is not None:
        ax.set_xticks(x, [_word(value) for value in values])
    elif axis.log:
        ax.set_xscale("log")
    _both_curves(ax, x, train, test)
    best = float(x[test.mean(axis=1).argmax()])
    ax.axvline(best, color=GREY, linewidth=1, label="best in validation")
    ax.set(xlabel=parameter, ylabel=_text("score", score), title="validation curve")
    return _finished(page, ax, target)


def histories(
    runs: Mapping[str, Mapping[str, Sequence[float | None]]],
    *,
    metrics: Sequence[str] = ("loss", "accuracy"),
    path: Path = None,
) -> Any:
    """Several runs in one picture: a panel for each metric, thick lines for validation, thin ones for training.

    Parameters
    ----------
    runs : mapping of str to History
        By what they are called; the contents of their JSON files will do.
    metrics : sequence of str, default ("loss", "accuracy")
        Each as it is called in training; ``val_`` and the name are its values in validation. What no run has is left
        out.
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    TypeError, ValueError
        Where an argument breaks its rule, or the runs have none of the metrics.

    Examples
    --------
    >>> from fastopt import plots
    >>> runs = {"sgd": {"loss": [2.0, 1.0], "val_loss": [2.1, 1.5]}, "adam": {"loss": [1.0, 0.1]}}
    >>> len(plots.histories(runs).axes[0].lines)
    3
    """
    runs, target = checks.mapping("runs", runs), _target(path)
    if not runs:
        raise ValueError("runs must hold one or more, got none")
    for name, run in runs.items():
        checks.mapping(f"runs[{name!r}]", run)
    if isinstance(metrics, (str, bytes)) or not isinstance(metrics, Sequence):
        raise TypeError(f"metrics must be a sequence of str, got {metrics!r:.80}")
    wanted = [_text("metrics", metric) for metric in metrics]
    shown = [m for m in wanted if any(run.get(key) for run in runs.values() for key in (m, f"val_{m}"))]
    if not shown:
        known = sorted({key.removeprefix("val_") for run in runs.values() for key in run})
        raise ValueError(f"metrics must be among {', '.join(known)}; got {', '.join(wanted) or 'none'}")
    page = figure((5.2 * len(shown), 4))
    for ax, metric in zip(page.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        curves: list[Array] = []
        for i, (name, run) in enumerate(runs.items()):
            validated = bool(run.get(f"val_{metric}"))
            for key, width, alpha in ((metric, 0.9, 0.6 if validated else 1.0), (f"val_{metric}", 2.0, 1.0)):
                values = np.array([math.nan if v is None else float(v) for v in run.get(key) or ()])
                if not values.size:
                    continue
                curves.append(values)
                thick = key != metric or not validated
                style = _style(i) | {"linewidth": 1.8 if thick else width, "alpha": alpha}
                marker = {"marker": "o", "markersize": 4} if len(values) == 1 else {}
                label = str(name) if thick else None
                ax.plot(np.arange(1, len(values) + 1), values, label=label, **style, **marker)
        if metric.endswith("loss") and _log(np.concatenate(curves)):
            ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.set(xlabel="epoch", ylabel=metric)
        ax.set_title(
            "validation thick, training thin" if any(run.get(f"val_{metric}") for run in runs.values()) else ""
        )
        ax.title.set_fontsize(9)
        ax.legend(fontsize=8)
    return _written(page, target)


# ---- Searches -------------------------------------------------------------------------------------------------


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


class _Axis:
    """The values of a parameter as places on an axis: numbers, or words in order."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        self.words: list[str] | None = None
        numeric = all(isinstance(v, (int, float, np.number)) and not isinstance(v, (bool, np.bool_)) for v in values)
        if numeric and all(math.isfinite(v) for v in values):
            self.numbers = np.array(values, np.float64)
        else:
            texts = [_word(value) for value in values]
            self.words = sorted(set(texts))
            self.numbers = np.array([self.words.index(text) for text in texts], np.float64)
        self.log = self.words is None and _log(self.numbers)

    @property
    def varies(self) -> bool:
        return bool(np.nanmax(self.numbers) > np.nanmin(self.numbers))

    def height(self, values: Array) -> Array:
        """Places in [0, 1]."""
        low, high = self._low_high()
        values = np.log(values) if self.log else values
        return (values - low) / (high - low) if high > low else np.full(np.shape(values), 0.5)

    def ticks(self) -> list[tuple[float, str]]:
        """Places in [0, 1], and their texts."""
        from matplotlib import ticker

        if self.words is not None:
            return [(float(self.height(np.array(i, np.float64))), word) for i, word in enumerate(self.words)]
        low, high = float(np.nanmin(self.numbers)), float(np.nanmax(self.numbers))
        locator = ticker.LogLocator(numticks=8) if self.log else ticker.MaxNLocator(5)
        places = [float(place) for place in locator.tick_values(low, high) if low <= place <= high]
        if len(places) < 2:
            places = sorted({low, *places, high})
        return [(float(self.height(np.array(place))), f"{place:.3g}") for place in places]

    def _low_high(self) -> tuple[float, float]:
        low, high = float(np.nanmin(self.numbers)), float(np.nanmax(self.numbers))
        return (math.log(low), math.log(high)) if self.log else (low, high)


class _Trials(NamedTuple):
    axes: list[_Axis]  # of the parameters that vary
    scores: Array
    spread: Array | None
    stopped: Array  # whether a trial lost before the last round
    best: int


def _trials(results: Any, score: str) -> _Trials:
    """Of each candidate its last round, as of a ``cv_results_``."""
    results = checks.mapping("results", results)
    for key in ("params", score):
        if key not in results:
            raise ValueError(
                f"results must have {key!r}, as cv_results_ of a search has, got {', '.join(map(str, results))}"
            )
    params = list(results["params"])
    scores = _numbers(score, results[score], (1,))
    if len(params) != len(scores) or not all(isinstance(each, Mapping) for each in params):
        raise ValueError(f"results['params'] must be a dict for each of {len(scores)} scores, got {len(params)}")
    rounds = np.asarray(results["iter"] if "iter" in results else np.zeros(len(params)))
    if rounds.shape != scores.shape:
        raise ValueError(f"results['iter'] must have a number for each of {len(scores)} scores, got {rounds.shape}")
    resources = results.get("n_resources", ())
    if len(resources) == len(params):  # the number of epochs, say, which is no choice
        of_rounds = [
            name for name in params[0] if all(p.get(name) == n for p, n in zip(params, resources, strict=True))
        ]
        params = [{name: value for name, value in each.items() if name not in of_rounds} for each in params]
    last: dict[str, int] = {}
    for i, each in enumerate(params):
        key = repr(sorted((str(name), repr(value)) for name, value in each.items()))
        if key not in last or rounds[i] > rounds[last[key]] or "iter" not in results:
            last[key if "iter" in results else f"{i}"] = i
    chosen = np.array(sorted(last.values()))
    names = list(dict.fromkeys(name for each in params for name in each))
    axes = [_Axis(str(name), [params[i].get(name, "—") for i in chosen]) for name in names]
    axes = [axis for axis in axes if axis.varies]
    if not axes:
        raise ValueError("results must have a parameter that varies, got none")
    spread = results.get(score.replace("mean_", "std_")) if score.startswith("mean_") else None
    stopped = rounds[chosen] < rounds.max()
    own = scores[chosen]
    finite = np.where(np.isfinite(own) & ~stopped, own, -math.inf)
    if not np.isfinite(finite).any():
        raise ValueError(f"results must have a finite {score} in the last round, got none")
    return _Trials(
        axes, own, None if spread is None else _numbers("std", spread, (1,))[chosen], stopped, int(finite.argmax())
    )


def trials(
    results: Mapping[str, Any], *, kind: str = "parallel", score: str = "mean_test_score", path: Path = None
) -> Any:
    """The trials of a search: candidates and their scores.

    Those that lost before the last round of a halving search are dashed or crosses; those that failed are left out. The
    best one is in black.

    Parameters
    ----------
    results : mapping
        ``cv_results_`` of a search of scikit-learn or of `fastopt.sklearn`: ``params``, the scores, and ``iter`` of
        halving, the round of each.
    kind : {"parallel", "scatter"}, default "parallel"
        Parallel coordinates, a line for each candidate through its values of all parameters to its score; or a panel
        for each parameter with the score over its values. Parameters that do not vary are left out.
    score : str, default "mean_test_score"
        Which entry of `results` is drawn; larger is better.
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    TypeError, ValueError
        Where an argument breaks its rule, no parameter varies, or no candidate has a score.

    Examples
    --------
    >>> from fastopt import plots
    >>> found = {"params": [{"lr": 0.1}, {"lr": 0.01}, {"lr": 0.001}], "mean_test_score": [0.5, 0.9, 0.8]}
    >>> [ax.get_xlabel() for ax in plots.trials(found, kind="scatter").axes]
    ['lr']
    """
    kind = checks.choice("kind", kind, ("parallel", "scatter"))
    found, target = _trials(results, _text("score", score)), _target(path)
    page = _parallel(found, score) if kind == "parallel" else _scattered(found, score)
    return _written(page, target)


def _parallel(found: _Trials, score: str) -> Any:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    page = figure((1.9 * (len(found.axes) + 1) + 1.2, 4.4))
    shown = np.flatnonzero(np.isfinite(found.scores))
    scores = _Axis(score, found.scores[shown].tolist())
    scores.log = False
    axes = [*found.axes, scores]
    ax = page.subplots()
    ax.grid(False)
    heights = [each.height(each.numbers[shown]) for each in found.axes] + [scores.height(scores.numbers)]
    colors = ScalarMappable(Normalize(scores.numbers.min(), scores.numbers.max()), matplotlib.colormaps["cividis_r"])
    places = np.arange(len(axes))
    for k in np.argsort(scores.numbers, kind="stable"):
        line, i = [height[k] for height in heights], shown[k]
        if i == found.best:
            ax.plot(places, line, color="black", linewidth=2.6, marker="o", markersize=5, zorder=4)
        elif found.stopped[i]:
            ax.plot(places, line, color=colors.to_rgba(scores.numbers[k]), linewidth=0.8, linestyle="--", zorder=2)
        else:
            ax.plot(places, line, color=colors.to_rgba(scores.numbers[k]), linewidth=1.5, zorder=3)
    for place, axis in zip(places, axes, strict=True):
        ax.axvline(place, color="0.3", linewidth=0.9, zorder=1)
        for height, text in axis.ticks():
            ax.plot([place - 0.02, place + 0.02], [height] * 2, color="0.3", linewidth=0.9, zorder=1)
            box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
            ax.text(place + 0.04, height, text, fontsize=8, va="center", zorder=5, bbox=box)
    ax.set_xticks(places, [f"{axis.name}\n(log)" if axis.log else axis.name for axis in axes])
    ax.set(yticks=[], xlim=(-0.15, len(axes) - 0.55), ylim=(-0.05, 1.05))
    for spine in ax.spines.values():
        spine.set_visible(False)
    handles = [Line2D([], [], color="black", linewidth=2.6, marker="o", label=f"best, {found.scores[found.best]:.4g}")]
    if found.stopped.any():
        handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=0.8, label="stopped early"))
    page.legend(handles=handles, loc="outside upper right", fontsize=8, ncols=2)
    page.colorbar(colors, ax=ax, label=score, pad=0.02)
    return page


def _scattered(found: _Trials, score: str) -> Any:
    columns = min(len(found.axes), 4)
    rows = -(-len(found.axes) // columns)
    page = figure((3.3 * columns + 0.6, 3.0 * rows + 0.5))
    panels = page.subplots(rows, columns, squeeze=False, sharey=True)
    fine = np.isfinite(found.scores)
    for ax in panels.ravel()[len(found.axes) :]:
        ax.remove()
    for k, (ax, axis) in enumerate(zip(panels.ravel(), found.axes, strict=False)):
        kept, lost = fine & ~found.stopped, fine & found.stopped
        if found.spread is not None:
            bars = {"ecolor": "0.75", "elinewidth": 0.8, "fmt": "none", "zorder": 1}
            ax.errorbar(axis.numbers[kept], found.scores[kept], found.spread[kept], **bars)
        ax.scatter(axis.numbers[kept], found.scores[kept], s=22, color=BLUE, zorder=3, label="trained to the end")
        if lost.any():
            ax.scatter(
                axis.numbers[lost],
                found.scores[lost],
                s=22,
                marker="x",
                color=RED,
                zorder=2,
                label="stopped early",
            )
        best = axis.numbers[found.best], found.scores[found.best]
        label = f"best, {best[1]:.4g}"
        ax.scatter(*best, s=110, facecolor="none", edgecolor="black", linewidth=1.8, zorder=4, label=label)
        if axis.words is not None:
            ax.set_xticks(range(len(axis.words)), axis.words, fontsize=8)
            ax.set_xlim(-0.5, len(axis.words) - 0.5)
        elif axis.log:
            ax.set_xscale("log")
        ax.set(xlabel=axis.name, ylabel=score if k % columns == 0 else "")
    handles, labels = panels.ravel()[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside upper right", fontsize=8, ncols=3)
    return page
