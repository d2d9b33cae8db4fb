"""Many models at once: `fit_many` trains them in threads, and an `Ensemble` averages what they predict."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TextIO

import numpy as np

from fastopt import _kernels, checks, files
from fastopt.checks import Array
from fastopt.messages import logger
from fastopt.nn import losses, training
from fastopt.nn.activations import Sigmoid, Softmax
from fastopt.nn.arguments import samples as checked_samples
from fastopt.nn.arguments import weights
from fastopt.nn.feed import is_loader
from fastopt.nn.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, loss_of, softmax_cross_entropy
from fastopt.nn.metrics import MetricsLike, checked_metrics, value_of
from fastopt.nn.model import Sequential, read
from fastopt.nn.orders import Indices, rows_of
from fastopt.nn.program import SLICE
from fastopt.nn.targets import accuracy, are_labels, check_finite
from fastopt.nn.training import Callback, History, Run, Validation, interruptible
from fastopt.threads import blas_on_one_thread, get_num_threads

__all__ = ["Ensemble", "FitManyError", "Histories", "fit_many"]


class Histories(list[History]):
    """The `History` of each model of a `fit_many`, in their order.

    Attributes
    ----------
    errors : dict of Exception
        What the runs that failed have raised, by the number of the model. Their histories have the epochs of before,
        and say so in ``stopped``.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> models = [nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:], seed=seed) for seed in range(3)]
    >>> histories = nn.fit_many(models, x, y, epochs=2)
    >>> [len(history["loss"]) for history in histories], histories.errors
    ([2, 2, 2], {})
    >>> histories.save("histories.json")
    """

    def __init__(self, histories: Sequence[History], errors: Mapping[int, Exception]) -> None:
        super().__init__(histories)
        self.errors = dict(errors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all as a list in JSON, each as `History.save` writes it.

        Parameters
        ----------
        path : path
            A file that is replaced at once or not at all.
        """
        text = "[\n" + ",\n".join(history.as_json() for history in self) + "\n]\n"
        files.replace(path, lambda file: file.write(text.encode()))


class FitManyError(ExceptionGroup[Exception]):
    """What some runs of a `fit_many` have raised, each with a note of the model; the others have run to their end.

    Attributes
    ----------
    histories : Histories
        Of all models.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> models = [nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:], seed=seed) for seed in range(2)]
    >>> class Failing(nn.Callback):
    ...     def on_epoch_end(self, epoch, logs):
    ...         raise OSError("the disk is full")
    >>> try:
    ...     nn.fit_many(models, x, y, epochs=2, callbacks=lambda i: [Failing()] * i)
    ... except nn.FitManyError as error:
    ...     print(error.histories.errors, len(error.histories[0]["loss"]))
    {1: OSError('the disk is full')} 2
    """

    histories: Histories

    def __new__(cls, message: str, exceptions: Sequence[Exception], histories: Histories) -> FitManyError:
        made = super().__new__(cls, message, exceptions)
        made.histories = histories
        return made

    def derive(self, excs: Sequence[Exception]) -> FitManyError:  # type: ignore[override]
        return FitManyError(self.message, excs, self.histories)

    def __reduce__(self) -> Any:
        return FitManyError, (self.message, self.exceptions, self.histories)


# ---- The runs -------------------------------------------------------------------------------------------------------


def fit_many(
    models: Sequence[Sequential],
    x: Array,
    y: Array,
    *,
    optimizer: Any = "adam",
    samples: Sequence[Any] | None = None,
    validation_data: Any = None,
    callbacks: Callable[[int], Sequence[Callback]] | None = None,
    each: Sequence[Mapping[str, Any]] | None = None,
    threads: int | None = None,
    progress: bool | TextIO = False,
    on_error: Literal["raise", "keep"] = "raise",
    **options: Any,
) -> Histories:
    """Train many models on one copy of the data, in threads: each to the bits that it has by `Sequential.fit` alone.

    Parameters
    ----------
    models : sequence of Sequential
        Of whatever architectures, with no parameters in common.
    x : ndarray (n, …)
        Inputs.
    y : ndarray (n, …)
        Targets.
    optimizer : str, callable or sequence, default "adam"
        As for `Sequential.fit` for all; or a function of the model that returns its optimizer; or an optimizer, or a
        name, for each.
    samples : sequence of ndarray, optional
        The samples that each model is trained on, such as folds: indices (k,), which may occur more than once, or a
        mask (n,). All where absent. What each model then does is ``model.fit(x[samples], y[samples], …)``, without the
        copies; `batches` are of these samples.
    validation_data : (ndarray, ndarray), (ndarray, ndarray, ndarray) or "rest", optional
        As for `Sequential.fit`, for all; or, for each, those that its `samples` leave over.
    callbacks : callable, optional
        A function of the number of the model that returns its callbacks, which hold the state of one run.
    each : sequence of dict, optional
        What differs from model to model: a dict of options of `Sequential.fit` for each, which come before those for
        all. ``each=[{"seed": s, "epochs": 10 * s} for s in range(1, 9)]``
    threads : int, optional
        How many models are trained at the same time, at most 256: where absent, as many as `fastopt.get_num_threads`
        says. That number of kernel threads is divided among them.
    progress : bool or text stream, default False
        Whether to show how far all models are, on one line of standard output, or of that stream.
    on_error : {"raise", "keep"}, default "raise"
        What happens, when all others are done, where a run has failed, by its numbers or its callbacks: `FitManyError`
        is raised, which has the histories; or they are returned, with the exceptions in ``errors``.
    **options
        Those of `Sequential.fit`, for all. `transform` is called by the threads of the models: several at once.

    Returns
    -------
    Histories
        The `History` of each.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, before any model is trained. A note says for which.
    FitManyError
        An ExceptionGroup, where runs have failed, and `on_error` is ``"raise"``.

    Notes
    -----
    The models with most to compute begin first. The last ones take turns, in slices of about 10 ms, so that all
    threads have work to the end; the number of threads has no part in the results.

    C releases Python's lock for each slice, which is several epochs where there is nothing to do between them, such as
    validation or callbacks of the epoch. Parts of a model that Python calls (a layer without kernels, a loss or
    callbacks of your own) hold it, and run in turn.

    Ctrl-C ends each run after its step, as in `Sequential.fit`; a second one raises KeyboardInterrupt.

    Examples
    --------
    >>> import fastopt
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> def mlp(seed):
    ...     return nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:], seed=seed)
    >>> models = [mlp(seed) for seed in range(4)]
    >>> histories = nn.fit_many(models, x, y, optimizer=lambda model: fastopt.Adam(model.params, lr=3e-3), epochs=3)
    >>> alone = mlp(3)
    >>> history = alone.fit(x, y, optimizer=fastopt.Adam(alone.params, lr=3e-3), epochs=3)
    >>> histories[3]["loss"] == history["loss"]
    True
    >>> nn.Ensemble(models).evaluate(x, y)["accuracy"] > 0.9
    True
    """
    checks.choice("on_error", on_error, ("raise", "keep"))
    count, stream = _thread_count(threads), _stream(progress)
    listed = _models(models)
    runs = _runs(listed, x, y, optimizer, samples, validation_data, callbacks, each, options)
    errors, interrupted = train(runs, threads=count, progress=stream or False)
    for number, error in errors.items():
        error.add_note(f"in the fit of models[{number}]")
        runs[number].history.stopped = f"{type(error).__name__}: {error}"
    histories = Histories([run.history for run in runs], errors)
    if interrupted:
        done = sum(not history.stopped for history in histories)
        logger.warning("interrupted; %d of %d models are complete; weights and histories are kept", done, len(runs))
    if errors and on_error == "raise":
        raise FitManyError(f"{len(errors)} of {len(runs)} models could not be trained", [*errors.values()], histories)
    return histories


def train(
    runs: Sequence[Run],
    *,
    threads: int | None = None,
    progress: bool | TextIO = False,
    finish: Callable[[int, float], None] | None = None,
) -> tuple[dict[int, Exception], bool]:
    """Have runs done as `fit_many` does, whose arguments these are.

    Parameters
    ----------
    runs : sequence of Run
        Of different models.
    threads, progress
        As of `fit_many`.
    finish : callable, optional
        ``finish(number, seconds)`` is called when a run has ended without an exception, by the thread that ended it.

    Returns
    -------
    errors : dict of Exception
        What runs, or `finish`, have raised, by the number of the run.
    interrupted : bool
        Whether Ctrl-C has ended runs.
    """
    stream = _stream(progress)
    crowd = _Crowd(list(runs), min(_thread_count(threads), len(runs)), get_num_threads(), finish)
    with interruptible(crowd):
        crowd.go(stream)
    return {task.number: task.error for task in crowd.tasks if task.error is not None}, crowd.interrupted


def _thread_count(threads: int | None) -> int:
    return get_num_threads() if threads is None else checks.integer("threads", threads, 1, _kernels.MAX_THREADS)


def _models(models: Any) -> list[Sequential]:
    """The models, which share nothing that is trained."""
    if isinstance(models, Sequential) or not isinstance(models, Sequence):
        raise TypeError(f"models must be a sequence of Sequential, got {type(models).__name__}")
    if not models:
        raise ValueError("models must hold at least one model, got none")
    owner: dict[int, int] = {}
    for i, model in enumerate(models):
        if not isinstance(model, Sequential):
            raise TypeError(f"models[{i}] must be a Sequential, got {type(model).__name__}")
        for name, array in {**model.params, **model.state}.items():
            other = owner.setdefault(_kernels.address(array), i) if array.size else i
            if other != i:
                raise ValueError(
                    f"models must have no parameters in common, but models[{i}] has {name} of models[{other}]: make "
                    "each of layers of its own, or copy it by model.copy()"
                )
    return list(models)


def _runs(
    models: list[Sequential],
    x: Any,
    y: Any,
    optimizer: Any,
    samples: Any,
    validation_data: Any,
    callbacks: Any,
    each: Any,
    options: dict[str, Any],
) -> list[Run]:
    """The run of each model, checked."""
    if is_loader(x):
        raise TypeError(f"x must be an array, which all models share, got {type(x).__name__}")
    parameters = inspect.signature(Sequential.fit).parameters
    usual = {
        name: parameter.default for name, parameter in parameters.items() if parameter.default is not parameter.empty
    }
    del usual["y"], usual["comm"]
    own = _each("each", each, len(models), Mapping, "a dict")
    rows = _each("samples", samples, len(models), object, "an array")
    for i, given in enumerate([options, *own]):
        for name in given or ():
            if name not in usual:
                where = "fit_many" if i == 0 else f"each[{i - 1}]"
                raise TypeError(f"{where} must be given options of fit, {', '.join(usual)}; got {name!r}")
    if callbacks is not None and (not callable(callbacks) or isinstance(callbacks, (Callback, type))):
        raise TypeError(
            "callbacks must be a function of the number of a model that returns callbacks for it, such as "
            f"lambda i: [nn.EarlyStopping()], got {callbacks!r:.80}"
        )
    optimizers = _optimizers(optimizer, models)
    rest = isinstance(validation_data, str)
    if rest and (validation_data != "rest" or samples is None):
        raise ValueError(f"validation_data must be data, or 'rest' beside samples, got {validation_data!r}")
    x, y = np.asarray(x), np.asarray(y)
    if not _kernels.gathers(x) and len({model.dtype for model in models}) == 1:
        x = models[0].rows("x", x)  # one copy for all
    looked_at: set[np.dtype[Any]] = set()
    runs: list[Run] = []
    used: dict[int, int] = {}
    for i, model in enumerate(models):
        try:
            chosen = None if rows[i] is None else rows_of(f"samples[{i}]", rows[i], len(x) if x.ndim else 0)
            given = {**usual, "validation_data": None if rest else validation_data, **options, **(own[i] or {})}
            if "optimizer" not in (own[i] or {}):
                given["optimizer"] = optimizers(i)
            if callbacks is not None and "callbacks" not in (own[i] or {}):
                given["callbacks"] = callbacks(i)
            finite = given["on_nonfinite"] != "ignore"
            if finite and model.dtype not in looked_at:
                looked_at.add(model.dtype)
                check_finite("x", x, model.dtype)
                check_finite("y", y)
                _check_pair(validation_data, model.dtype)
            if rest and "validation_data" not in (own[i] or {}):
                given["validation_data"] = _rest(model, x, y, given["loss"], chosen, i)
            fresh = finite and given["validation_data"] is (own[i] or {}).get("validation_data", model)
            run = training.prepare(
                model, x, y, **given, rows=chosen, finite=False, validation_finite=fresh, ahead=False
            )
            for callback in run.callbacks:
                if used.setdefault(id(callback), i) != i:
                    raise ValueError(
                        f"callbacks must be new ones for each model, since they hold the state of a run, but a "
                        f"{type(callback).__name__} is of models[{used[id(callback)]}], too"
                    )
            runs.append(run)
        except Exception as error:
            error.add_note(f"for models[{i}]")
            raise
    return runs


def _each(name: str, given: Any, count: int, kind: type, called: str) -> list[Any]:
    """One value for each model, None where absent."""
    if given is None:
        return [None] * count
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise TypeError(f"{name} must be a sequence, of {called} for each model, got {type(given).__name__}")
    if len(given) != count:
        raise ValueError(f"{name} must have {called} for each model, {count}, got {len(given)}")
    for i, value in enumerate(given):
        if not isinstance(value, kind):
            raise TypeError(f"{name}[{i}] must be {called}, got {type(value).__name__}")
    return list(given)


def _optimizers(given: Any, models: list[Sequential]) -> Callable[[int], Any]:
    """What gives the optimizer of the model of a number."""
    if isinstance(given, (str, type)):
        return lambda i: given
    if isinstance(given, (list, tuple)):
        listed = _each("optimizer", given, len(models), object, "one")
        return lambda i: listed[i]
    if callable(given) and not hasattr(given, "step"):
        return lambda i: given(models[i])
    raise TypeError(
        "optimizer must be a name, a function of the model that returns its optimizer, or a list of one for each, got "
        f"{type(given).__name__}"
    )


def _check_pair(given: Any, dtype: np.dtype[Any]) -> None:
    """Refuse numbers that are not finite in validation data for all."""
    if isinstance(given, (tuple, list)) and len(given) in (2, 3):
        check_finite("validation x", np.asarray(given[0]), dtype)
        check_finite("validation y", np.asarray(given[1]))


def _rest(model: Sequential, x: Array, y: Array, loss: Loss, chosen: Indices | None, i: int) -> Validation:
    """The samples that are not chosen."""
    x, y, made = checked_samples(model, x, y, loss)
    left = np.ones(len(x), bool)
    left[chosen] = False
    rows = np.flatnonzero(left)
    if not len(rows):
        raise ValueError(f"samples[{i}] must leave some over to validate on, got all {len(x)}")
    return Validation(x, y[rows], None, rows, made)


# ---- The threads ----------------------------------------------------------------------------------------------------

#: A turn, when models take turns, as a part of the time of a slice, in which one may be alone in the end.
TURN = 0.2


class _Task:
    """A run, and what is known of its length."""

    def __init__(self, number: int, run: Run, finish: Callable[[int, float], None] | None) -> None:
        self.number, self.run, self._finish = number, run, finish
        self.slices: Generator[None] | None = run.slices()
        self.cost, self.seconds = _cost(run), 0.0
        self.error: Exception | None = None

    def go(self, is_over: Callable[[Run, float], bool]) -> bool:
        """Go on until it is done, or its turn is over; whether it is done."""
        assert self.slices is not None
        began = time.perf_counter()
        try:
            for _ in self.slices:
                if is_over(self.run, time.perf_counter() - began):
                    return False
            if self._finish is not None:
                self._finish(self.number, self.seconds + time.perf_counter() - began)
        except Exception as error:
            self.error = error
        finally:
            self.seconds += time.perf_counter() - began
        self.slices = None
        return True


def _cost(run: Run) -> float:
    """About how long a run takes, in units of its own: products, parameters, and calls."""
    model = run.model
    products = size = 0
    for layer, shape in zip(model.layers, model.shapes[1:], strict=True):
        own = sum(array.size for array in layer.params.values())
        products += own * math.prod(shape[:-1])
        size += own
    return min(run.epochs, 2**62) * (
        3.0 * run.samples * products + run.batches * (4.0 * size + 1e4 * len(model.layers))
    )


class _Crowd:
    """Runs, and threads that take them over, the longest first."""

    def __init__(
        self,
        runs: list[Run],
        threads: int,
        kernel_threads: int,
        finish: Callable[[int, float], None] | None = None,
    ) -> None:
        self.tasks = [_Task(number, run, finish) for number, run in enumerate(runs)]
        self.interrupted = False
        self._waiting = sorted(self.tasks, key=lambda task: (task.cost, -task.number))
        self._threads, self._kernel_threads = threads, kernel_threads
        self._left = len(runs)  # that are not done
        self._fatal: BaseException | None = None
        self._changed = threading.Condition()

    def stop(self, reason: str) -> None:
        """End each run after its step."""
        for task in self.tasks:
            task.run.interrupted = self.interrupted
            task.run.stop(reason)

    def go(self, stream: TextIO | None) -> None:
        """Have all runs done by threads, and wait for them."""
        line = None if stream is None else _Line(stream, [task.run for task in self.tasks])
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._work,), name=f"fastopt-fit-{i}")
            for i in range(self._threads)
        ]
        with blas_on_one_thread() if self._threads > 1 else contextlib.nullcontext():
            try:
                for thread in threads:
                    thread.start()
                with self._changed:
                    while self._left and self._fatal is None:
                        self._changed.wait(None if line is None else 0.2)
                        if line is not None:
                            line.show()
            except BaseException as error:
                self._fatal = error
                raise
            finally:
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
                for task in self.tasks:
                    if task.slices is not None:
                        task.slices.close()
                if line is not None:
                    line.end()
        if self._fatal is not None:
            raise self._fatal

    def _work(self) -> None:
        """What each thread does."""
        try:
            _kernels.limit_threads(max(1, self._kernel_threads // self._threads))
            while (task := self._next()) is not None:
                is_done = task.go(self._is_over)
                with self._changed:
                    if is_done:
                        self._left -= 1
                    else:
                        self._waiting.append(task)
                    self._changed.notify_all()
        except BaseException as error:  # such as SystemExit in a callback
            with self._changed:
                self._fatal = error
                self._changed.notify_all()

    def _next(self) -> _Task | None:
        """The longest run that waits; None where none will."""
        with self._changed:
            while not self._waiting and self._left >= self._threads and self._fatal is None:
                self._changed.wait()
            if not self._waiting or self._fatal is not None:
                return None
            if self._take_turns():
                self._waiting.sort(key=self._remaining)
            task = self._waiting.pop()
            self._cut(task.run)
            return task

    def _take_turns(self) -> bool:
        """Whether so few wait that they take turns, or one of them would be left alone in the end."""
        return 0 < len(self._waiting) <= 2 * self._threads and self._threads > 1

    def _cut(self, run: Run) -> None:
        """Let the next slice of a run be as long as its turn."""
        run.steps.part = TURN if self._take_turns() else 1.0

    def _remaining(self, task: _Task) -> float:
        """About how many seconds a run will still take."""
        known = [(each.seconds, each.cost * each.run.done) for each in self.tasks if each.seconds and each.run.done]
        rate = sum(seconds for seconds, _ in known) / (sum(cost for _, cost in known) or 1.0) if known else 1.0
        if task.seconds and task.run.done:
            rate = task.seconds / (task.cost * task.run.done or 1.0)
        return rate * task.cost * (1 - task.run.done)

    def _is_over(self, run: Run, seconds: float) -> bool:
        """Whether the turn of a run that has had the thread for so long is over; if not, it has its kernel threads."""
        _kernels.limit_threads(max(1, self._kernel_threads // max(1, min(self._threads, self._left))))
        self._cut(run)
        return self._fatal is not None or (self._take_turns() and seconds > TURN * SLICE)


# ---- Progress -------------------------------------------------------------------------------------------------------


def _stream(progress: Any) -> TextIO | None:
    if isinstance(progress, (bool, np.bool_)):
        return sys.stdout if progress else None
    if not callable(getattr(progress, "write", None)):
        raise TypeError(f"progress must be a bool or a text stream, got {type(progress).__name__}")
    stream: TextIO = progress
    return stream


class _Line:
    """How far all runs are, on one line, which a terminal shows again and again; elsewhere at each tenth of it."""

    def __init__(self, stream: TextIO, runs: list[Run]) -> None:
        self._stream, self._runs = stream, runs
        self._terminal = stream.isatty()
        self._wide = self._tenth = 0
        self._said = ""

    def show(self) -> None:
        tenth = int(10 * sum(run.done for run in self._runs) / len(self._runs))
        if self._terminal:
            text = self._text()
            self._stream.write(f"\r{text:<{self._wide}}")
            self._stream.flush()
            self._wide = len(text)
        elif tenth > self._tenth:
            self._tenth = tenth
            self._say()

    def end(self) -> None:
        if self._terminal:
            self.show()
            print(file=self._stream, flush=True)
        elif self._text() != self._said:  # some may have ended since
            self._say()

    def _say(self) -> None:
        self._said = self._text()
        print(self._said, file=self._stream, flush=True)

    def _text(self) -> str:
        runs = self._runs
        done = sum(len(run.history.get("loss", ())) for run in runs)
        complete = sum(run.is_over for run in runs)
        text = f"models {complete}/{len(runs)}  epochs {done}/{sum(run.epochs for run in runs)}"
        for name in ("loss", "val_loss", "val_accuracy"):
            last = [run.history[name][-1] for run in runs if run.history.get(name)]
            if last:
                low, high = f"{min(last):.4f}", f"{max(last):.4f}"
                text += f"  {name.replace('_', ' ')} {low}" + (f" to {high}" if high != low else "")
        return text


# ---- Ensembles ------------------------------------------------------------------------------------------------------


class Ensemble:
    """Models that predict together: the mean of their probabilities, or of their outputs [1]_.

    Parameters
    ----------
    models : sequence of Sequential
        With inputs and outputs of the same shapes.
    loss : callable, default softmax_cross_entropy
        That of their training: with softmax cross-entropy, probabilities are softmax of the outputs, with sigmoid
        cross-entropy sigmoid of them; with any other loss, the outputs themselves are averaged.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    References
    ----------
    .. [1] B. Lakshminarayanan, A. Pritzel, C. Blundell, "Simple and scalable predictive uncertainty estimation using
       deep ensembles", 2017, section 2.4.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> models = [nn.Sequential([nn.Dense(2)], (2,), seed=seed) for seed in range(3)]
    >>> ensemble = nn.Ensemble(models)
    >>> np.allclose(ensemble.predict(np.eye(2)).sum(axis=1), 1)
    True
    >>> sorted(ensemble.evaluate(np.eye(2), np.arange(2)))
    ['accuracy', 'loss']
    >>> ensemble.save("ensemble.npz")
    >>> np.array_equal(nn.Ensemble.load("ensemble.npz").predict(np.eye(2)), ensemble.predict(np.eye(2)))
    True
    """

    def __init__(self, models: Sequence[Sequential], loss: Loss = softmax_cross_entropy) -> None:
        if isinstance(models, Sequential) or not isinstance(models, Sequence):
            raise TypeError(f"models must be a sequence of Sequential, got {type(models).__name__}")
        if not models:
            raise ValueError("models must hold at least one model, got none")
        for i, model in enumerate(models):
            if not isinstance(model, Sequential):
                raise TypeError(f"models[{i}] must be a Sequential, got {type(model).__name__}")
            own, first = (model.check_built(), model.shapes[-1]), (models[0].input_shape, models[0].shapes[-1])
            if own != first:
                raise ValueError(
                    f"models must have inputs and outputs of the same shapes, {first[0]} and {first[1]}, but "
                    f"models[{i}] has {own[0]} and {own[1]}"
                )
        if not callable(loss) or isinstance(loss, type):
            raise TypeError(f"loss must be a function such as fastopt.nn.SquaredError(), got {loss!r}")
        self.models, self.loss = list(models), loss

    def predict(self, x: Array, *, batch_size: int = 256) -> Array:
        """The mean of what the models predict.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs.
        batch_size : int, default 256

        Returns
        -------
        ndarray (n, …)
            Probabilities where the loss is a cross-entropy, else outputs; float32 where all models are.

        Raises
        ------
        TypeError, ValueError
            Where inputs do not fit the models.
        """
        size = checks.integer("batch_size", batch_size, 1)
        dtype = np.result_type(*(model.dtype for model in self.models))
        return self._mean(x, size).astype(dtype, copy=False)

    def _mean(self, x: Array, size: int) -> Array:
        """In float64, added up in the order of the models."""
        link = self._link()

        def one(model: Sequential) -> Array:
            output = model.predict(x, batch_size=size)
            return output if link is None else link.forward(output)[0]

        total: Any = 0.0
        threads = min(get_num_threads(), len(self.models))
        with ThreadPoolExecutor(threads) as pool:
            for begin in range(0, len(self.models), threads):  # no more outputs than that at a time
                for output in pool.map(one, self.models[begin : begin + threads]):
                    total = total + output.astype(np.float64)
        mean: Array = total / len(self.models)
        return mean

    def _link(self) -> Softmax | Sigmoid | None:
        """What makes probabilities of outputs."""
        if self.loss is softmax_cross_entropy or isinstance(self.loss, SoftmaxCrossEntropy):
            return Softmax()
        return Sigmoid() if isinstance(self.loss, SigmoidCrossEntropy) else None

    def evaluate(
        self,
        x: Array,
        y: Array,
        sample_weight: Array | None = None,
        *,
        batch_size: int = 256,
        metrics: MetricsLike | None = None,
    ) -> dict[str, float]:
        """Loss and accuracy of what is predicted together.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs.
        y : ndarray (n, …)
            Targets.
        sample_weight : ndarray (n,), optional
            As for `Sequential.evaluate`.
        batch_size : int, default 256
        metrics : str, callable, or sequence or dict of these, optional
            As for `Sequential.fit`; scores are what `predict` returns.

        Returns
        -------
        dict of float
            ``"loss"``; and ``"accuracy"`` where `y` are integer labels; and the `metrics`.

        Raises
        ------
        TypeError, ValueError
            Where inputs, targets or weights do not fit the models or the loss.
        """
        first = self.models[0]
        x, y, loss = checked_samples(first, x, y, self.loss)
        weight = weights(sample_weight, None, y, loss, np.dtype(np.float64))
        measured_by = checked_metrics(metrics, loss, y, made=self._link() is not None)
        mean = self._mean(x, checks.integer("batch_size", batch_size, 1))
        link, scores = self._link(), mean
        if link is not None:  # back to outputs, of which the loss makes these probabilities
            scores = np.log(np.clip(mean, np.finfo(np.float64).tiny, None))
            if isinstance(link, Sigmoid):
                scores = scores - np.log(np.clip(1 - mean, np.finfo(np.float64).tiny, None))
        value, _ = loss_of(loss, scores, y, weight)
        measured = {"loss": float(value)}
        if are_labels(y):
            measured["accuracy"] = accuracy(scores, y)
        dtype = np.result_type(*(model.dtype for model in self.models))
        return measured | {name: value_of(name, f, y, mean.astype(dtype)) for name, f in measured_by.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all models to one file, which `load` reads.

        Parameters
        ----------
        path : path
            As for `Sequential.save`.

        Raises
        ------
        ImportError, ValueError, OSError
            As for `Sequential.save`.
        """
        entries: dict[str, Any] = {"ensemble": json.dumps({"models": len(self.models), "loss": _described(self.loss)})}
        for i, model in enumerate(self.models):
            entries |= {f"{i}/{name}": value for name, value in model.entries().items()}
        files.write_arrays(path, entries, "ensemble")

    @classmethod
    def load(cls, path: str | os.PathLike[str], loss: Loss | None = None) -> Ensemble:
        """The ensemble in a file that `save` wrote.

        Parameters
        ----------
        path : path
        loss : callable, optional
            That of training, where it is a function of your own, which no file holds.

        Returns
        -------
        Ensemble

        Raises
        ------
        ImportError, OSError, ValueError
            As for `fastopt.nn.load`; or where `loss` is needed.

        Examples
        --------
        >>> import os, tempfile
        >>> from fastopt import nn
        >>> models = [nn.Sequential([nn.Dense(2)], (2,), seed=seed) for seed in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "ensemble.npz")
        ...     nn.Ensemble(models).save(path)
        ...     len(nn.Ensemble.load(path).models)
        3
        """

        def take(entries: dict[str, Any]) -> tuple[list[Sequential], Any]:
            config = json.loads(str(entries.pop("ensemble")))
            count = checks.integer("models", config["models"], 1, len(entries))
            parts: list[dict[str, Any]] = [{} for _ in range(count)]
            for name, value in entries.items():
                number, _, own = name.partition("/")
                parts[checks.integer("number", int(number), 0, count - 1)][own] = value
            return [read(part) for part in parts], config["loss"]

        models, described = files.read_arrays(path, "ensemble", take=take)
        if loss is None:
            if described is None:
                raise ValueError(f"loss must be given: {os.fspath(path)!r} was written with a function of your own")
            loss = _loss_of(described)
        return cls(models, loss)

    def __repr__(self) -> str:
        return f"Ensemble({len(self.models)} models, loss={self.loss!r})"


def _described(loss: Loss) -> Any:
    """A loss as JSON values; None where it is the user's."""
    if loss is softmax_cross_entropy:
        return "softmax_cross_entropy"
    name = type(loss).__name__
    if name not in losses.__all__ or getattr(losses, name) is not type(loss):
        return None
    options = {key: getattr(loss, key) for key in inspect.signature(type(loss)).parameters}
    return [name, {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in options.items()}]


def _loss_of(described: Any) -> Loss:
    if described == "softmax_cross_entropy":
        return softmax_cross_entropy
    name, options = described
    kind = checks.choice("loss", name, [n for n in losses.__all__ if isinstance(getattr(losses, n), type)])
    made: Loss = getattr(losses, kind)(**options)
    return made
