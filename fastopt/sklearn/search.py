"""`SearchCV`: scikit-learn's searches over settings, with the networks of all candidates and folds trained at once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar

import joblib
import numpy as np
from sklearn import config_context, get_config
from sklearn.base import _fit_context, clone, is_classifier
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection import ParameterGrid, ParameterSampler, check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import _insert_error_scores, _score, _warn_or_raise_about_fit_failures
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params, _num_samples, indexable

from fastopt import _kernels, checks, files
from fastopt.messages import logger
from fastopt.nn.many import train
from fastopt.sklearn.fits import Fit
from fastopt.sklearn.layers import SequentialClassifier
from fastopt.sklearn.mlp import _Network

__all__ = ["SearchCV"]

Params = dict[str, Any]

#: Bytes of networks, and of the data of folds, that are held at a time.
MOST_BYTES = 2**30
#: Seconds from one writing of the file to the next.
PAUSE = 1.0


# ---- Spaces ---------------------------------------------------------------------------------------------------------


class Quantiles:
    """The part of a distribution of scipy.stats between two of its quantiles.

    Parameters
    ----------
    distribution : frozen distribution of scipy.stats
    low, high : float
    """

    def __init__(self, distribution: Any, low: float, high: float) -> None:
        self.distribution, self.low, self.high = distribution, low, high

    def rvs(self, size: Any = None, random_state: Any = None) -> Any:
        """Random values, as of distributions of scipy.stats."""
        return self._at(check_random_state(random_state).uniform(self.low, self.high, size))

    def _at(self, quantile: Any) -> Any:
        values = np.maximum(self.distribution.ppf(quantile), self.distribution.support()[0])  # one less at 0, if whole
        return values.astype(np.int64) if self._is_discrete else values

    @property
    def _is_discrete(self) -> bool:
        return hasattr(self.distribution, "pmf")

    def narrowed(self, best: Any, share: float) -> Quantiles:
        """The same, of a share of the width, around a value."""
        middle = place = float(self.distribution.cdf(best))
        if self._is_discrete:
            middle = 0.5 * (place + float(self.distribution.cdf(best - 1)))
        width = share * (self.high - self.low)
        low = min(max(middle - width / 2, self.low), self.high - width)
        return Quantiles(self.distribution, low, low + width)

    def __repr__(self) -> str:
        return f"[{self._at(self.low):.4g}, {self._at(self.high):.4g}]"


def _is_distribution(values: Any) -> bool:
    return all(hasattr(values, name) for name in ("rvs", "ppf", "cdf"))


def _are_numbers(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(v, Real) and not isinstance(v, (bool, np.bool_)) for v in values)


def _narrowed(values: Any, best: Any, tops: list[Any], factor: float) -> Any:
    """What is left of the values of a parameter, given that of the best candidate, and those of the best third."""
    if isinstance(values, Quantiles):
        return values.narrowed(best, 1 / factor)
    listed = list(values)
    if _are_numbers(listed):
        ordered = sorted(set(listed))
        keep = max(min(3, len(ordered)), math.ceil(len(ordered) / factor))
        begin = min(max(ordered.index(best) - keep // 2, 0), max(len(ordered) - keep, 0))
        return ordered[begin : begin + keep]
    return [value for value in listed if any(_are_same(value, top) for top in tops)]


def _are_same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(np.all(a == b))
    except (TypeError, ValueError):
        return False


# ---- Results that are kept ----------------------------------------------------------------------------------------


class Record:
    """Results of fits in a file, which is replaced at once or not at all.

    Parameters
    ----------
    path : path
    setting : dict of str
        What must be the same where results are taken from a file.
    """

    FORMAT = "fastopt search 1"

    def __init__(self, path: str | os.PathLike[str], setting: dict[str, str]) -> None:
        self._path, self._setting = os.fspath(path), setting
        self._results: dict[str, dict[str, Any]] = {}
        self._lock, self._written, self._changed = threading.Lock(), 0.0, False
        files.check(self._path)
        files.discard_parts(self._path)
        if not os.path.exists(self._path):
            return
        try:
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
            if found["format"] != self.FORMAT:
                raise ValueError(f"its format is {found['format']!r}")
            there, self._results = dict(found["setting"]), dict(found["results"])
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"file must name a file of SearchCV, or none that is there, got {path!r}: {error}"
            ) from None
        for name, value in setting.items():
            if there.get(name) != value:
                raise ValueError(
                    f"file must be of a search with the same {name}, got {path!r}: give another, or remove this one"
                )

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: str) -> dict[str, Any] | None:
        found = self._results.get(key)
        return None if found is None else dict(found)

    def put(self, key: str, result: dict[str, Any]) -> None:
        with self._lock:
            self._results[key] = {name: _plain(value) for name, value in result.items()}
            self._changed = True
            if time.monotonic() - self._written > PAUSE:
                self._write()

    def save(self) -> None:
        with self._lock:
            if self._changed:
                self._write()

    def _write(self) -> None:
        content = {"format": self.FORMAT, "setting": self._setting, "results": self._results}
        text = json.dumps(content, indent=0)
        files.replace(self._path, lambda file: file.write(text.encode()))
        self._written, self._changed = time.monotonic(), False


def _plain(value: Any) -> Any:
    """A result as JSON has it."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _hash(name: str, value: Any) -> str:
    try:
        return str(joblib.hash(value))
    except Exception as error:
        raise ValueError(
            f"{name} must be such that it can be pickled where there is a file, as results are found by it again, got "
            f"{value!r:.80}: {error}"
        ) from None


def _name_of(scoring: Any) -> Any:
    if isinstance(scoring, Mapping):
        return {str(name): _name_of(each) for name, each in scoring.items()}
    if isinstance(scoring, (list, tuple, set)):
        return [_name_of(each) for each in scoring]
    return (
        scoring if scoring is None or isinstance(scoring, str) else getattr(scoring, "__name__", type(scoring).__name__)
    )


# ---- Fits -----------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """The data of a fold."""

    train: tuple[Any, Any]
    test: tuple[Any, Any]
    fit_params: Params
    score_params: tuple[Params, Params]
    #: What the steps before the last one of a pipeline have made of the training data, by the number of their settings.
    transformed: dict[int, tuple[Any, list[Any]]] = field(default_factory=dict)


@dataclass
class Trial:
    """A candidate on a fold."""

    candidate: int
    split: int
    params: Params
    key: str
    #: A pipeline, or what it would end in.
    estimator: Any = None
    fit: Fit | None = None
    part: Part | None = None
    left: int = 0
    seconds: float = 0.0
    result: dict[str, Any] | None = None


class Trials:
    """Fits candidates on folds, and scores them.

    Parameters
    ----------
    search : SearchCV
    base : estimator
    X, y
    splits : list of (ndarray, ndarray)
    routed : Bunch
        Parameters of fit, scores and folds.
    scorers
    """

    def __init__(self, search: Any, base: Any, X: Any, y: Any, splits: list[Any], routed: Any, scorers: Any) -> None:
        self._search, self._base, self._X, self._y, self._splits = search, base, X, y, splits
        self._fit_params, self._score_params = routed.estimator.fit, routed.scorer.score
        self._scorers, self._config = scorers, get_config()
        self._seeds = [None] if search.seeds is None else list(search.seeds)
        self._parts: dict[int, Part] = {}
        self._prefixes: list[Params] = []
        self._lock = threading.Lock()
        #: Trials that may go on, by candidate (its number at first) and split.
        self.going: dict[tuple[int, int], Trial] = {}
        self._record: Record | None = None
        if search.file is not None:
            setting = {
                "estimator": _hash("estimator", base),
                "data": _hash("data", (X, y, dict(self._fit_params), dict(self._score_params))),
                "folds": _hash("cv", [(np.asarray(a), np.asarray(b)) for a, b in splits]),
                "scoring": json.dumps([_name_of(search.scoring), bool(search.return_train_score)]),
            }
            self._record = Record(search.file, setting)

    @property
    def n_splits(self) -> int:
        return len(self._splits) * len(self._seeds)

    def close(self) -> None:
        if self._record is not None:
            self._record.save()

    # ---- Of one trial -----------------------------------------------------------------------------------------

    def made(self, params: Params, split: int = 0) -> Any:
        """The estimator of a candidate, to be fitted."""
        estimator = clone(self._base).set_params(**clone(params, safe=False))
        last, prefix = _last(estimator)
        seed = self._seeds[split % len(self._seeds)]
        if seed is not None:
            estimator.set_params(**{f"{prefix}random_state": int(seed)})
        if not isinstance(last, (_Network, SequentialClassifier)):
            raise TypeError(
                "estimator must be one of fastopt.sklearn, or a Pipeline whose last step is, got "
                f"{type(last).__name__}: search it by scikit-learn's RandomizedSearchCV, GridSearchCV or "
                "HalvingRandomSearchCV"
            )
        return estimator

    def _part(self, split: int) -> Part:
        fold = split // len(self._seeds)
        if fold not in self._parts:
            train, test = self._splits[fold]
            weights = [_check_method_params(self._X, params=self._score_params, indices=i) for i in (train, test)]
            self._parts[fold] = Part(
                _safe_split(self._base, self._X, self._y, train),
                _safe_split(self._base, self._X, self._y, test, train),
                _check_method_params(self._X, params=self._fit_params, indices=train),
                (weights[0], weights[1]),
            )
        return self._parts[fold]

    def _begin(self, trial: Trial) -> None:
        """The fit of a trial, up to its first step."""
        began = time.perf_counter()
        part = trial.part = self._part(trial.split)
        try:
            trial.estimator = self.made(trial.params, trial.split)
            X, y = part.train
            given = part.fit_params
            last, _ = _last(trial.estimator)
            if isinstance(trial.estimator, Pipeline):
                X, given = self._transformed(trial.estimator, trial.params, part)
            if hasattr(last, "_parameter_constraints"):
                last._validate_params()
            trial.fit = last._begin_fit(X, y, **given)
            trial.left = len(trial.fit.runs)
        except Exception:
            self._failed(trial)
        trial.seconds += time.perf_counter() - began

    def _transformed(self, pipe: Any, params: Params, part: Part) -> tuple[Any, Params]:
        """What the steps before the last one make of the training data, once for candidates that agree in them, and
        what the last one's fit is given."""
        name = pipe.steps[-1][0]
        own = {key: value for key, value in params.items() if key != name and not key.startswith(f"{name}__")}
        number = next((i for i, known in enumerate(self._prefixes) if _are_candidates(own, known)), -1)
        if number < 0:
            number = len(self._prefixes)
            self._prefixes.append(own)
        if pipe.transform_input is not None:
            raise ValueError(f"transform_input of the pipeline must be None, got {pipe.transform_input!r}")
        routed = pipe._check_method_params(method="fit", props=part.fit_params)
        if number not in part.transformed:
            pipe.steps = list(pipe.steps)
            pipe._validate_steps()
            X, y = part.train
            steps = []
            for key, step in pipe.steps[:-1]:
                if step is not None and step != "passthrough":
                    if hasattr(step, "fit_transform"):
                        X = step.fit_transform(X, y, **routed[key].get("fit_transform", {}))
                    else:
                        X = step.fit(X, y, **routed[key].get("fit", {})).transform(X)
                steps.append((key, step))
            part.transformed[number] = X, steps
        X, steps = part.transformed[number]
        pipe.steps = [*steps, pipe.steps[-1]]
        return X, routed[name]["fit"]

    def _failed(self, trial: Trial) -> None:
        """Note the exception that is being handled."""
        search, scorers = self._search, self._scorers
        if search.error_score == "raise":
            raise
        scores: Any = search.error_score
        if isinstance(scorers, _MultimetricScorer):
            scores = dict.fromkeys(scorers._scorers, search.error_score)
        trial.fit = None
        self._note(trial, scores, scores, 0.0, traceback.format_exc())

    def _scored(self, trial: Trial) -> None:
        """Score what was fitted."""
        assert trial.part is not None
        part, error_score = trial.part, self._search.error_score
        began = time.perf_counter()
        scores, of_training = _score(
            trial.estimator, *part.test, self._scorers, part.score_params[1], error_score
        ), None  # fmt: skip
        seconds = time.perf_counter() - began
        if self._search.return_train_score:
            of_training = _score(trial.estimator, *part.train, self._scorers, part.score_params[0], error_score)
        self._note(trial, scores, of_training, seconds, None)

    def _note(self, trial: Trial, scores: Any, of_training: Any, seconds: float, error: str | None) -> None:
        assert trial.part is not None
        trial.result = {
            "fit_error": error,
            "test_scores": scores,
            **({"train_scores": of_training} if self._search.return_train_score else {}),
            "n_test_samples": _num_samples(trial.part.test[0]),
            "fit_time": trial.seconds,
            "score_time": seconds,
        }
        if self._record is not None and error is None:
            self._record.put(trial.key, trial.result)
        if self._search.verbose > 1:
            self._say(trial)

    def _say(self, trial: Trial) -> None:
        assert trial.result is not None
        named = ", ".join(f"{name}={trial.params[name]}" for name in sorted(trial.params))
        scores = trial.result["test_scores"]
        listed = scores if isinstance(scores, Mapping) else {"score": scores}
        told = ", ".join(f"{name}={float(value):.3f}" for name, value in listed.items())
        print(f"[CV {trial.split + 1}/{self.n_splits}] END {named}; {told} total time={trial.seconds:.1f}s", flush=True)

    def _ended(self, trial: Trial, keep: bool) -> None:
        """What is to be done when all runs of a trial have ended."""
        assert trial.fit is not None
        if any(run.interrupted for run in trial.fit.runs):
            return
        began = time.perf_counter()
        try:
            with config_context(**self._config), trial.fit.ended() if keep else contextlib.nullcontext():
                if not keep:
                    trial.fit.end(True)
                trial.seconds += time.perf_counter() - began
                self._scored(trial)
        except Exception:
            self._failed(trial)

    # ---- Of many ------------------------------------------------------------------------------------------------

    def results(
        self,
        candidates: Sequence[Params],
        numbers: Sequence[int] | None = None,
        resource: tuple[str, int] | None = None,
        keep: bool = False,
    ) -> list[dict[str, Any]]:
        """The results of candidates, by candidates and splits.

        Parameters
        ----------
        candidates : sequence of dict
        numbers : sequence of int, optional
            By which trials that may go on are known.
        resource : (str, int), optional
            The parameter that says how many epochs there are, and their number.
        keep : bool, default False
            Whether they are to be kept.
        """
        trials = []
        for place, params in enumerate(candidates):
            self.made(params)  # refuses what cannot be set
            hashed = "" if self._record is None else _hash("space", params)
            for split in range(self.n_splits):
                fold, seed = divmod(split, len(self._seeds))
                trials.append(Trial(place, split, params, f"{hashed}/{fold}/{self._seeds[seed]}"))
        if self._search.verbose > 0:
            print(
                f"Fitting {self.n_splits} folds for each of {len(candidates)} candidates, totalling {len(trials)} fits"
            )
        try:
            self._go(trials, numbers, resource, keep)
        except KeyboardInterrupt:
            if self._record is not None:
                self.close()
                logger.warning(
                    "interrupted; %d fits are in %r, from which the same search goes on",
                    len(self._record),
                    os.fspath(self._search.file),
                )
            raise
        return [trial.result for trial in trials if trial.result is not None]

    def _go(
        self,
        trials: list[Trial],
        numbers: Sequence[int] | None,
        resource: tuple[str, int] | None,
        keep: bool,
    ) -> None:
        """Have all trials done: as many at once as there is memory for, by folds."""
        held = 0
        waiting: list[Trial] = []
        for trial in sorted(trials, key=lambda trial: trial.split // len(self._seeds)):
            if self._record is not None and (found := self._record.get(trial.key)) is not None:
                trial.result = found
                continue
            number = -1 if numbers is None else numbers[trial.candidate]
            before = self.going.pop((number, trial.split), None)
            if before is not None and before.fit is not None and resource is not None:
                trial.estimator, trial.fit, trial.part = before.estimator, before.fit, before.part
                trial.seconds, trial.left = before.seconds, len(before.fit.runs)
                _set_epochs(trial.estimator, trial.fit, *resource)
            else:
                new = trial.split // len(self._seeds) not in self._parts
                self._begin(trial)
                held += _size_of(trial.part.train[0]) if new and trial.part is not None else 0
            if trial.fit is not None:
                waiting.append(trial)
                held += sum(4 * array.nbytes for run in trial.fit.runs for array in run.model.params.values())
            if held > MOST_BYTES:
                self._train(waiting, False)
                self.going.clear()  # there is no memory for them
                self._parts.clear()
                waiting, held, keep = [], 0, False
        self._train(waiting, keep)
        if keep and numbers is not None:
            for trial in waiting:
                if trial.fit is not None and trial.fit.runs and _may_go_on(trial.estimator):
                    self.going[numbers[trial.candidate], trial.split] = trial
        elif not keep:
            self._parts.clear()

    def _train(self, waiting: list[Trial], keep: bool) -> None:
        owners = [trial for trial in waiting if trial.fit is not None for _ in trial.fit.runs]

        def finish(number: int, seconds: float) -> None:
            trial = owners[number]
            with self._lock:
                trial.seconds += seconds
                trial.left -= 1
                is_last = not trial.left
            if is_last:
                self._ended(trial, keep)

        if owners:
            runs = [run for trial in waiting if trial.fit is not None for run in trial.fit.runs]
            errors, interrupted = train(
                runs, threads=self._search.threads, progress=self._search.progress, finish=finish
            )
            for number, error in errors.items():
                if owners[number].result is None:
                    try:
                        raise error
                    except Exception:
                        self._failed(owners[number])
            if interrupted:
                raise KeyboardInterrupt
        for trial in waiting:
            if trial.fit is not None and not trial.fit.runs:  # by SciPy
                self._ended(trial, False)
            if not keep:
                trial.fit = trial.estimator = trial.part = None


def _last(estimator: Any) -> tuple[Any, str]:
    """The last step of a pipeline, and what its parameters begin with; else the estimator."""
    if not isinstance(estimator, Pipeline):
        return estimator, ""
    name, last = estimator.steps[-1]
    return last, f"{name}__"


def _size_of(X: Any) -> int:
    return int(getattr(X, "nbytes", 0) or getattr(getattr(X, "data", None), "nbytes", 0))


def _may_go_on(estimator: Any) -> bool:
    """Whether a fit with more epochs has the bits of one that goes on: callbacks may depend on how many there are."""
    return _last(estimator)[0].callbacks is None


def _set_epochs(estimator: Any, fit: Fit, name: str, epochs: int) -> None:
    estimator.set_params(**{name: epochs})
    for each in fit.estimators:
        each.set_params(**{name.rpartition("__")[2]: epochs})
    fit.go_on(epochs)


# ---- The search -----------------------------------------------------------------------------------------------------


#: Parameters that scikit-learn's searches have.
_AS_THERE = ("estimator", "scoring", "refit", "cv", "verbose", "error_score", "return_train_score")


class SearchCV(BaseSearchCV):
    """A search for the best settings of an estimator by cross-validation, all networks trained at once.

    API and results are those of scikit-learn's searches, scores equal to theirs: of
    `sklearn.model_selection.RandomizedSearchCV`, `GridSearchCV` and `HalvingRandomSearchCV`.

    Parameters
    ----------
    estimator : estimator
        One of `fastopt.sklearn`, or a `sklearn.pipeline.Pipeline` whose last step is one. The steps before are fitted
        on each fold, once for all candidates that agree in them.
    space : dict or list of dict
        For each parameter a list of values, or a distribution of `scipy.stats`, such as ``loguniform(1e-5, 1e-1)``.
    strategy : {"random", "grid", "halving", "coarse-to-fine"}, default "random"
        ``"random"`` [1]_: `n_iter` candidates from the space. ``"grid"``: all combinations of lists. ``"halving"``
        [2]_: `n_iter` candidates get few epochs, the best ``1/factor`` of them `factor` times as many, and so on; they
        go on where they were, unless the estimator has callbacks. ``"coarse-to-fine"``: `n_iter` candidates in
        `n_stages` stages, each from a space ``1/factor`` as wide, around the best so far: distributions between
        quantiles (of a loguniform one on the log scale), numbers of a list that are neighbours; other values where one
        of the best third has them. With `verbose`, it says so; ``spaces_`` has them.
    n_iter : int, default 10
        The number of candidates; of ``"grid"``, all are taken.
    scoring, refit, cv, error_score, return_train_score
        As of scikit-learn's searches.
    seeds : sequence of int, optional
        The `random_state` of networks: each candidate is trained with each of these on each fold, as further splits
        (those of a fold follow each other), and the last fit has the first. That of the estimator where absent.
    random_state : int, RandomState or None, default None
        Decides the candidates.
    verbose : int, default 0
        1: what is searched. 2: a line for each fit, too.
    progress : bool or text stream, default False
        Whether to show how far all fits are, on one line, as of `fastopt.nn.fit_many`.
    threads : int, optional
        How many networks are trained at the same time: where absent, as many as `fastopt.get_num_threads` says.
    file : path, optional
        A file of the results of fits, which is replaced at once or not at all, about once a second. A search that was
        interrupted goes on from it to the same results, and one with a larger `n_iter` or another space takes what is
        there; estimator, data, folds and scoring must be the same. Candidates must be picklable, and `random_state` an
        int.
    resource : str, default "auto"
        Of ``"halving"``: the parameter that is the number of epochs, ``"max_iter"`` or ``"epochs"``.
    factor : float, default 3
        Of ``"halving"`` and ``"coarse-to-fine"``, above 1.
    max_resources : int or "auto", default "auto"
        Of ``"halving"``: the most epochs; those of the estimator where ``"auto"``.
    min_resources : int, "exhaust" or "smallest", default "exhaust"
        The first number of epochs: so many that the last candidates get the most; or 1, where ``"smallest"``.
    aggressive_elimination : bool, default False
        As of scikit-learn: whether candidates stay at the first number of epochs until at most `factor` of them are
        left in the end.
    n_stages : int, default 3
        Of ``"coarse-to-fine"``.

    Attributes
    ----------
    cv_results_, best_estimator_, best_params_, best_score_, best_index_, scorer_, n_splits_, refit_time_, \
multimetric_, classes_, n_features_in_, feature_names_in_
        As of scikit-learn's searches. Beside these, ``cv_results_`` has ``iter`` and ``n_resources`` of halving, whose
        best candidate is one of the last iteration; and ``stage`` of coarse to fine, counted from 0.
    n_iterations_, n_resources_, n_candidates_, n_remaining_candidates_, min_resources_, max_resources_, \
n_required_iterations_, n_possible_iterations_
        Of halving, as of scikit-learn.
    spaces_ : list of dict
        The space of each stage of coarse to fine.

    References
    ----------
    .. [1] J. Bergstra, Y. Bengio, "Random search for hyper-parameter optimization", 2012.
    .. [2] K. Jamieson, A. Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016.

    Examples
    --------
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> from fastopt.sklearn import MLPClassifier, SearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MLPClassifier((16,), max_iter=200, batch_size=16, tol=0.01, random_state=0)
    >>> space = {"learning_rate_init": loguniform(1e-3, 1e-1), "dropout": [0.0, 0.2]}
    >>> search = SearchCV(net, space, n_iter=9, strategy="halving", cv=3, random_state=0)
    >>> bool(search.fit(X, y).best_score_ > 0.9)
    True
    >>> search.n_candidates_, search.n_resources_
    ([9, 3, 1], [22, 66, 198])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **{name: BaseSearchCV._parameter_constraints[name] for name in _AS_THERE},
        "space": [dict, list],
        "strategy": [StrOptions({"random", "grid", "halving", "coarse-to-fine"})],
        "n_iter": [Interval(Integral, 1, None, closed="left")],
        "seeds": ["array-like", None],
        "random_state": ["random_state"],
        "progress": ["boolean", HasMethods(["write"])],
        "threads": [Interval(Integral, 1, _kernels.MAX_THREADS, closed="both"), None],
        "file": [str, os.PathLike, None],
        "resource": [str],
        "factor": [Interval(Real, 1, None, closed="neither")],
        "max_resources": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "min_resources": [Interval(Integral, 1, None, closed="left"), StrOptions({"exhaust", "smallest"})],
        "aggressive_elimination": ["boolean"],
        "n_stages": [Interval(Integral, 1, None, closed="left")],
    }  # fmt: skip

    def __init__(
        self,
        estimator: Any,
        space: Any,
        *,
        strategy: str = "random",
        n_iter: int = 10,
        scoring: Any = None,
        refit: Any = True,
        cv: Any = None,
        seeds: Sequence[int] | None = None,
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        verbose: int = 0,
        progress: Any = False,
        threads: int | None = None,
        file: str | os.PathLike[str] | None = None,
        resource: str = "auto",
        factor: float = 3,
        max_resources: int | str = "auto",
        min_resources: int | str = "exhaust",
        aggressive_elimination: bool = False,
        n_stages: int = 3,
    ) -> None:
        self.estimator = estimator
        self.space = space
        self.strategy = strategy
        self.n_iter = n_iter
        self.scoring = scoring
        self.refit = refit
        self.cv = cv
        self.seeds = seeds
        self.random_state = random_state
        self.error_score = error_score
        self.return_train_score = return_train_score
        self.verbose = verbose
        self.progress = progress
        self.threads = threads
        self.file = file
        self.resource = resource
        self.factor = factor
        self.max_resources = max_resources
        self.min_resources = min_resources
        self.aggressive_elimination = aggressive_elimination
        self.n_stages = n_stages

    def set_callbacks(self, *callbacks: Any) -> Any:
        """Refused: callbacks are those of fastopt, which the estimator has.

        Raises
        ------
        AttributeError
        """
        raise AttributeError("SearchCV has no callbacks of scikit-learn's: write progress=True, or verbose=2")

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, **params: Any) -> SearchCV:
        """Fit all candidates on all folds, and the best one on all data.

        Parameters
        ----------
        X : array_like (n, …)
        y : array_like (n,) or (n, outputs)
        **params
            As of scikit-learn's searches: those of the estimator's ``fit``, whose arrays of n are divided as X is.

        Returns
        -------
        SearchCV
            Itself.

        Raises
        ------
        TypeError, ValueError
            Where an argument or a parameter breaks its rule; or, where `error_score` is ``"raise"``, what a fit raised.
        KeyboardInterrupt
            By Ctrl-C, after the present steps.
        """
        self._check_settings()
        scorers, metric = self._get_scorers()
        X, y = indexable(X, y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        folds = self._checked_cv_orig = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(folds.split(X, y, **routed.splitter.split))
        expected = folds.get_n_splits(X, y, **routed.splitter.split)
        if len(splits) != expected:
            raise ValueError(
                "cv.split and cv.get_n_splits return inconsistent results. "
                f"Expected {expected} splits, got {len(splits)}"
            )
        base = clone(self.estimator)
        trials = Trials(self, base, X, y, splits, routed, scorers)
        self.n_splits_ = trials.n_splits
        table = _Table(self, trials, metric)
        try:
            {
                "grid": self._by_grid,
                "random": self._at_random,
                "halving": self._halved,
                "coarse-to-fine": self._refined,
            }[self.strategy](table)
        finally:
            trials.close()
        results = table.results
        self.multimetric_ = isinstance(table.out[0]["test_scores"], dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(table.out[0]["test_scores"])
            metric = self.refit
        if self.refit or not self.multimetric_:
            if self.strategy == "halving" and not callable(self.refit):
                self.best_index_ = table.best_of_last(self._metric(metric))
            else:
                self.best_index_ = self._select_best_index(self.refit, metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            self.best_estimator_ = trials.made(self.best_params_)
            began = time.perf_counter()
            self.best_estimator_.fit(X, y, **routed.estimator.fit)
            self.refit_time_ = time.perf_counter() - began
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        self.scorer_ = scorers._scorers if isinstance(scorers, _MultimetricScorer) else scorers
        self.cv_results_ = results
        return self

    # ---- Settings -----------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Refuse settings that do not fit each other."""
        for part in [self.space] if isinstance(self.space, dict) else self.space:
            if not isinstance(part, dict):
                raise TypeError(f"space must be a dict, or a list of dicts, got {type(part).__name__} in it")
            for name, values in part.items():
                if isinstance(values, (str, bytes)) or not (hasattr(values, "rvs") or isinstance(values, Iterable)):
                    raise TypeError(
                        f"space must have lists or distributions, got {values!r} for {name!r}: write [{values!r}]"
                    )
                if self.strategy == "grid" and hasattr(values, "rvs"):
                    raise ValueError(f"space must have lists for strategy='grid', got a distribution for {name!r}")
        if self.strategy == "coarse-to-fine":
            if not isinstance(self.space, dict):
                raise TypeError("space must be one dict for strategy='coarse-to-fine', got a list")
            for name, values in self.space.items():
                if hasattr(values, "rvs") and not _is_distribution(values):
                    raise TypeError(
                        f"space must have distributions with cdf and ppf for strategy='coarse-to-fine', got {values!r} "
                        f"for {name!r}"
                    )
        if self.file is not None and self.strategy != "grid" and not isinstance(self.random_state, Integral):
            raise ValueError(
                f"random_state must be an int beside file, so that candidates are the same, got {self.random_state!r}"
            )
        if self.seeds is not None:
            if not len(self.seeds):
                raise ValueError("seeds must hold at least one seed, got none")
            for seed in self.seeds:
                checks.integer("seeds", seed, 0, 2**32 - 1)

    def _metric(self, metric: Any) -> str:
        """What candidates are compared by."""
        if not isinstance(metric, str):
            raise ValueError(f"refit must be the name of a metric for strategy={self.strategy!r}, got {self.refit!r}")
        return metric

    def _sampled(self, space: Any, count: int, random_state: Any) -> list[Params]:
        return list(ParameterSampler(space, count, random_state=random_state))

    # ---- Strategies -----------------------------------------------------------------------------------------------

    def _by_grid(self, table: _Table) -> None:
        table.add(list(ParameterGrid(self.space)))

    def _at_random(self, table: _Table) -> None:
        table.add(self._sampled(self.space, self.n_iter, self.random_state))

    def _halved(self, table: _Table) -> None:
        metric = self._metric(table.metric)
        resource, epochs = self._resource()
        candidates = self._sampled(self.space, self.n_iter, self.random_state)
        if any(resource in candidate for candidate in candidates):
            raise ValueError(f"resource must be no parameter that is searched, got {resource!r}")
        most = self.max_resources_ = epochs if isinstance(self.max_resources, str) else self.max_resources
        least = 1 if isinstance(self.min_resources, str) else self.min_resources
        required = 1 + math.floor(math.log(len(candidates), self.factor))
        if self.min_resources == "exhaust":
            least = max(least, int(most // self.factor ** (required - 1)))
        if least > most:
            raise ValueError(f"min_resources must be at most max_resources, {most}, got {least}")
        possible = 1 + math.floor(math.log(most // least, self.factor))
        iterations = required if self.aggressive_elimination else min(possible, required)
        self.min_resources_, self.n_iterations_ = least, iterations
        self.n_required_iterations_, self.n_possible_iterations_ = required, possible
        self.n_resources_: list[int] = []
        self.n_candidates_: list[int] = []
        numbers = list(range(len(candidates)))
        for i in range(iterations):
            power = max(0, i - required + possible) if self.aggressive_elimination else i
            amount = min(int(self.factor**power * least), most)
            self.n_resources_.append(amount)
            self.n_candidates_.append(len(candidates))
            if self.verbose:
                print(f"iteration {i + 1} of {iterations}: {len(candidates)} candidates, {resource}={amount}")
            given = [{**candidate, resource: amount} for candidate in candidates]
            more = {"iter": i, "n_resources": amount}
            table.add(given, more, numbers=numbers, resource=(resource, amount), keep=i + 1 < iterations)
            kept = table.best(metric, len(given), math.ceil(len(given) / self.factor))[::-1]  # as scikit-learn has them
            candidates, numbers = [candidates[k] for k in kept], [numbers[k] for k in kept]
            table.trials.going = {key: t for key, t in table.trials.going.items() if key[0] in numbers}
        self.n_remaining_candidates_ = len(candidates)

    def _resource(self) -> tuple[str, int]:
        """The parameter that says how many epochs there are, and what the estimator has for it."""
        last, prefix = _last(self.estimator)
        own = prefix + ("epochs" if isinstance(last, SequentialClassifier) else "max_iter")
        if self.resource not in ("auto", own):
            raise ValueError(
                f"resource must be {own!r}, the number of epochs, or 'auto', got {self.resource!r}: for others, such "
                "as 'n_samples', take scikit-learn's HalvingRandomSearchCV"
            )
        return own, int(getattr(last, own.rpartition("__")[2], 1))

    def _refined(self, table: _Table) -> None:
        metric = self._metric(table.metric)
        rng = check_random_state(self.random_state)
        space = {name: Quantiles(v, 0.0, 1.0) if _is_distribution(v) else list(v) for name, v in self.space.items()}
        self.spaces_: list[Params] = []
        tried: list[Params] = []
        for stage in range(self.n_stages):
            count = (self.n_iter - len(tried)) // (self.n_stages - stage)
            if not count:
                continue
            self.spaces_.append(space)
            if self.verbose:
                told = ", ".join(f"{name} {values!r}" for name, values in space.items())
                print(f"stage {stage + 1} of {self.n_stages}: {count} candidates in {told}")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The total space of parameters")
                drawn = self._sampled(space, count, rng)
            new = [each for each in drawn if not any(_are_candidates(each, old) for old in tried)]
            if new:
                table.add(new, {"stage": stage})
                tried += new
            tops = [tried[k] for k in table.best(metric, len(tried), math.ceil(len(tried) / 3))]
            best = tops[0]
            if self.verbose:
                self._warn_of_edges(best)
            space = {
                name: _narrowed(values, best[name], [top[name] for top in tops], self.factor)
                for name, values in space.items()
            }

    def _warn_of_edges(self, best: Params) -> None:
        """Say where the best value is at an end of the whole space."""
        for name, values in self.space.items():
            if _is_distribution(values):
                place = float(values.cdf(best[name]))
                at = place < 0.05 or place > 0.95
            else:
                at = len(values) > 2 and _are_numbers(list(values)) and best[name] in (min(values), max(values))
            if at:
                print(
                    f"the best {name} so far, {best[name]:.4g}, is at the edge of its space: a wider one may be better"
                )


def _are_candidates(a: Params, b: Params) -> bool:
    """Whether two candidates are the same."""
    return a.keys() == b.keys() and all(_are_same(a[name], b[name]) for name in a)


class _Table:
    """The candidates of a search so far, and their results."""

    def __init__(self, search: Any, trials: Trials, metric: Any) -> None:
        self._search, self.trials, self.metric = search, trials, metric
        self._params: list[Params] = []
        self.out: list[dict[str, Any]] = []
        self._more: dict[str, list[Any]] = {}
        self.results: dict[str, Any] = {}

    def add(
        self,
        candidates: list[Params],
        more: Mapping[str, int] | None = None,
        *,
        numbers: Sequence[int] | None = None,
        resource: tuple[str, int] | None = None,
        keep: bool = False,
    ) -> None:
        """Fit candidates, and let their results be behind those of before."""
        out = self.trials.results(candidates, numbers, resource, keep)
        if not out:
            raise ValueError("No fits were performed. Was the CV iterator empty? Were there no candidates?")
        _warn_or_raise_about_fit_failures(out, self._search.error_score)
        if callable(self._search.scoring):
            _insert_error_scores(out, self._search.error_score)
        self._params += candidates
        self.out += out
        for name, value in (more or {}).items():
            self._more.setdefault(name, []).extend([value] * len(candidates))
        self.results = self._search._format_results(self._params, self.trials.n_splits, self.out, self._more)

    def best(self, metric: str, last: int, keep: int) -> list[int]:
        """Of the last candidates, the places of the best ones among them, the best first; as scikit-learn has ties."""
        scores = self.results[f"mean_test_{metric}"][-last:]
        return np.roll(np.argsort(scores), np.count_nonzero(np.isnan(scores)))[-keep:][::-1].tolist()

    def best_of_last(self, metric: str) -> int:
        """The best candidate of the last iteration."""
        last = np.flatnonzero(self.results["iter"] == np.max(self.results["iter"]))
        scores = self.results[f"mean_test_{metric}"][last]
        return int(last[0 if np.isnan(scores).all() else np.nanargmax(scores)])
