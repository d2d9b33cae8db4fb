"""The command line: fastopt train | ablate | landscape | gallery | bench | info."""

from __future__ import annotations

import argparse
import ast
import codecs
import contextlib
import ctypes
import errno
import inspect
import io
import itertools
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np

import fastopt
from fastopt import bench as benchmarks
from fastopt import checks, data, files, mpi, nn
from fastopt import gallery as pictures
from fastopt.drawing import require_matplotlib
from fastopt.environment import record
from fastopt.landscape import SURFACES, Descent, Surface, best, check_path, descend, draw, expression, surface
from fastopt.messages import logger
from fastopt.optimizer import Optimizer
from fastopt.optimizers import OPTIMIZERS
from fastopt.schedules import cosine

T = TypeVar("T")

# ---- The command ----------------------------------------------------------------------------------------------------

#: Exit statuses; those of signals are what a shell says of a process that one has ended: 128 + its number.
FINE, FAILED, USAGE, INTERRUPTED, CLOSED = 0, 1, 2, 128 + 2, 128 + 13

_EPILOG = f"""\
exit status:
  {FINE:<4} done
  {FAILED:<4} a run could not be completed: its numbers were no longer finite, a disk was full, memory ended
  {USAGE:<4} nothing was computed: an argument is wrong, or a file or an extra is missing
  {INTERRUPTED:<4} interrupted by Ctrl-C; train has then written the model of the last step
  {CLOSED:<4} the output was closed, as `fastopt bench | head` does
"""


class Failure(Exception):
    """A run that has begun and cannot be completed."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the process where absent.

    Returns
    -------
    int
        The exit status, as ``fastopt --help`` shows them: 0, 1 where a run failed, 2 where an argument is wrong or a
        file or an extra is missing, 130 after Ctrl-C, 141 where the output was closed.

    Raises
    ------
    SystemExit
        By argparse: with status 2 where the arguments are not those of a command, 0 after ``--help`` and ``--version``.
    """
    with _streams():
        try:
            comm = mpi.world()
        except ImportError as error:
            return _say(str(error), USAGE)
        with _silence_unless_first(comm), _log():
            return _main(arguments, comm)


@contextlib.contextmanager
def _log() -> Iterator[None]:
    """Write what fastopt logs, from warnings on, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fastopt: %(message)s"))
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _main(arguments: list[str] | None, comm: Any) -> int:
    try:
        try:
            parsed = _parser().parse_args(arguments)
            if comm is not None and parsed.run is not train:
                raise ValueError(f"{parsed.run.__name__} is for one process: of mpiexec, train alone makes use")
            return int(parsed.run(parsed) or FINE)
        finally:
            _flush()
    except BrokenPipeError:
        return CLOSED
    except mpi.Elsewhere as error:
        return _say(str(error), FAILED if error.error is None else _described(error.error)[1])
    except (KeyboardInterrupt, Failure, OSError, MemoryError, ValueError, ImportError) as error:
        return _say(*_described(error))


@contextlib.contextmanager
def _silence_unless_first(comm: Any) -> Iterator[None]:
    """Drop what other ranks than the first print."""
    with contextlib.ExitStack() as stack:
        if comm is not None and comm.Get_rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


#: What the operating system says of a path that was given.
_OF_PATHS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def _described(error: BaseException) -> tuple[str, int]:
    """What is said of an exception, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, OSError):
        text = f"{error.strerror}: {error.filename!r}" if error.strerror and error.filename else str(error)
        return text, USAGE if isinstance(error, _OF_PATHS) else FAILED
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory", FAILED
    return str(error), USAGE if isinstance(error, (ValueError, ImportError)) else FAILED


def _say(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # standard error may be closed, too
        print(f"fastopt: {message}", file=sys.stderr, flush=True)
    return status


def _flush() -> None:
    """Flush standard output. Where that fails, what is left is dropped, or the interpreter would try again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise


#: How text is written for terminals that do not have a character; others are escaped.
_PLAIN = {"…": "...", "µ": "u", "×": "x", "–": "-", "−": "-", "·": "*", "→": "->", "←": "<-", "’": "'"}


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: the character as `_PLAIN` has it, or escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    error.end = error.start + 1
    return _PLAIN.get(error.object[error.start]) or codecs.backslashreplace_errors(error)[0], error.end


codecs.register_error("fastopt.plain", _spelled)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard output and error that take every character, spelled in theirs, and text where they are closed."""
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream: Any = getattr(sys, name)
            if stream is None:  # as by `fastopt info >&-`
                stack.callback(setattr, sys, name, None)
                setattr(sys, name, stack.enter_context(open(os.devnull, "w")))
            elif isinstance(stream, io.TextIOWrapper):
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="fastopt.plain")
        yield


def _optimizer(text: str) -> str:
    """The name of an optimizer, in any writing."""
    try:
        return checks.word("optimizer", text.strip(), tuple(OPTIMIZERS))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _optimizers(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Optimizers with hyperparameters, of ``name:key=value:…,name``."""
    found = []
    for each in text.split(","):
        name, *settings = each.split(":")
        hyper = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not (equals and key.strip().isidentifier()):
                raise argparse.ArgumentTypeError(f"hyperparameters must be NAME=VALUE, got {setting!r}")
            try:
                hyper[key.strip()] = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                hyper[key.strip()] = value.strip()
        found.append((_optimizer(name), hyper))
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, got {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastopt",
        description=fastopt.__doc__.splitlines()[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastopt {fastopt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | ablate | landscape | gallery | bench | info")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", choices=["mlp", "cnn"], default="cnn", help="default: cnn")
    shared.add_argument(
        "--data", default="digits", metavar="digits|PATH", help="a folder with MNIST's or CIFAR-10's files, or digits"
    )
    shared.add_argument("--epochs", type=int, default=20, help="default: 20")
    shared.add_argument("--batch-size", type=int, default=32, help="default: 32")

    command = commands.add_parser("train", parents=[shared], help="train a network and measure it on held-out data")
    command.set_defaults(run=train)
    command.add_argument(
        "--optimizer",
        type=_optimizer,
        default=OPTIMIZER,
        metavar="NAME",
        help=f"one of {', '.join(OPTIMIZERS)} (default: {OPTIMIZER})",
    )
    command.add_argument(
        "--lr",
        type=float,
        help="initial learning rate, which is annealed by a cosine (default: one for the optimizer)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="decides weights, masks and the order of samples (default: 0)"
    )
    command.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train N networks at once, with this seed and those after it, and write them as an ensemble (default: 1)",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: the first of out, out-2, … that is not there)"
    )
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the run that DIR holds")
    existing.add_argument(
        "--resume", action="store_true", help="go on with the run in DIR, where it was interrupted or killed"
    )
    command.add_argument("--monitor", action="store_true", help="also plot weights, activations and gradients")

    command = commands.add_parser(
        "ablate", parents=[shared], help="train without batch norm, without dropout, …, and with every optimizer"
    )
    command.set_defaults(run=ablate)
    command.add_argument("--seeds", type=int, default=5, help="the number of runs of each (default: 5)")
    command.add_argument("--only", default="", metavar="TEXT", help="the rows whose name holds TEXT")

    command = commands.add_parser(
        "landscape",
        help="plot the paths of optimizers on a surface",
        description="Plot the paths of optimizers on a surface, or a function of your own (extra plot): each with its "
        "best learning rate of some, or with those that are given.",
        epilog="example: fastopt landscape --function 'x**2 + y**2 + 2*sin(4*x)' --start=-2.5,2 --limits=-3,3,-2.5,2.5 "
        "--optimizers momentum:momentum=0.5,momentum:momentum=0.9 --rates 0.01 --out mine.png",
    )
    command.set_defaults(run=landscape)
    ground = command.add_mutually_exclusive_group()
    ground.add_argument("--surface", choices=list(SURFACES), default="rosenbrock", help="default: rosenbrock")
    ground.add_argument(
        "--function", metavar="FORMULA", help="your own, of x, y, numbers, + - * / % ** and NumPy's exp, sin, …"
    )
    command.add_argument("--start", type=_numbers, metavar="X,Y", help="--start=-2,1 (default: that of the surface)")
    command.add_argument(
        "--limits", type=_numbers, metavar="L,R,B,T", help="left, right, bottom and top of the plot (default: its own)"
    )
    command.add_argument(
        "--optimizers",
        type=_optimizers,
        metavar="A,B,…",
        help=f"which of {', '.join(OPTIMIZERS)} (default: some that differ there), also with hyperparameters: "
        "momentum:momentum=0.5,adam:beta1=0.8:beta2=0.9",
    )
    command.add_argument(
        "--rates", type=_numbers, metavar="A,B,…", help="a run with each of these rates (default: the best of some)"
    )
    command.add_argument("--steps", type=int, help="default: that of the surface")
    command.add_argument("--noise", type=float, help="the standard deviation of that of gradients (default: its own)")
    command.add_argument("--seed", type=int, default=0, help="decides the noise (default: 0)")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".png, .svg, .pdf, or .gif for an animation"
    )

    command = commands.add_parser(
        "gallery",
        help="draw the pictures of a course, each from real runs",
        description="Draw the pictures of a course on neural networks, each from real runs (extra plot).",
    )
    command.set_defaults(run=gallery)
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="which (default: all; --list names them), or a .py file of your own"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write them")
    command.add_argument("--format", choices=["png", "svg", "pdf"], default="png", help="default: png")
    command.add_argument("--page", action="store_true", help="also write README.md, the page of all with captions")
    command.add_argument("--list", action="store_true", help="list names and titles, and draw nothing")
    command.add_argument("--source", action="store_true", help="print the files that make them, and draw nothing")

    command = commands.add_parser("bench", help="measure every kernel beside NumPy")
    command.set_defaults(run=bench)
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--quick", action="store_true", help="few rounds and small sizes")
    command.add_argument("--only", default="", metavar="TEXT", help="the rows whose name holds TEXT")

    command = commands.add_parser(
        "info", help="show version, CPU, instruction set, threads and BLAS, or those of a file"
    )
    command.set_defaults(run=info)
    command.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="a model, checkpoint, state of an optimizer or history"
    )

    return parser


# ---- train and ablate ---------------------------------------------------------------------------------------

OPTIMIZER = "adamw"  #: the default of `train`


def build(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    *,
    batch_norm: bool = True,
    dropout: bool = True,
    init: Literal["he", "xavier"] = "he",
) -> nn.Sequential:
    """The network of that name, complete or without a part.

    Parameters
    ----------
    name : {"cnn", "mlp"}
    input_shape : tuple of int
    classes, seed : int
    batch_norm, dropout : bool, default True
        Whether it has such layers.
    init : {"he", "xavier"}, default "he"

    Returns
    -------
    Sequential
    """
    norm = [nn.BatchNorm] if batch_norm else []
    drop = [nn.Dropout] if dropout else []
    layers: list[nn.Layer] = []
    if name == "cnn":
        for filters, pool in ((32, False), (64, True), (128, True)):
            layers += [nn.Conv2D(filters, init=init), *(make() for make in norm), nn.ReLU()]
            if pool:
                layers += [nn.MaxPool2D(), *(make(0.25) for make in drop)]
        layers += [nn.Flatten(), nn.Dense(128, activation="relu", init=init), *(make(0.5) for make in drop)]
    else:
        layers += [nn.Flatten()]
        for units in (256, 128):
            layers += [nn.Dense(units, init=init), *(make() for make in norm), nn.ReLU(), *(make(0.3) for make in drop)]
    layers += [nn.Dense(classes, init="small")]  # so that the initial loss is that of guessing
    return nn.Sequential(layers, input_shape, seed=seed)


def peak_rate(name: str) -> float:
    """The default of the initial learning rate for an optimizer: its `default_rate`, or three times its default."""
    optimizer = OPTIMIZERS[name]
    return optimizer.default_rate or 3 * inspect.signature(optimizer).parameters["lr"].default


def _fit(
    model: nn.Sequential, optimizer: Optimizer, x: Any, y: Any, epochs: int, batch_size: int, **options: Any
) -> nn.History:
    """Train with the optimizer's learning rate annealed by a cosine."""
    peak = optimizer.lr
    falling = nn.LearningRateScheduler(step=lambda step, steps: cosine(step, steps=steps, peak=peak))
    callbacks = [falling, *options.pop("callbacks", ())]
    return model.fit(x, y, epochs=epochs, batch_size=batch_size, optimizer=optimizer, callbacks=callbacks, **options)


def _fit_many(
    models: list[nn.Sequential],
    optimizers: list[Optimizer],
    x: Any,
    y: Any,
    epochs: int,
    batch_size: int,
    samples: Any = None,
    **options: Any,
) -> nn.Histories:
    """`_fit` of many models at once; `samples` are those that all are trained on."""

    def falling(i: int) -> list[nn.Callback]:
        peak = optimizers[i].lr
        return [nn.LearningRateScheduler(step=lambda step, steps: cosine(step, steps=steps, peak=peak))]

    chosen = None if samples is None else [samples] * len(models)
    shared: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "callbacks": falling, "samples": chosen}
    return nn.fit_many(models, x, y, optimizer=optimizers, **shared, **options)


def _was_interrupted(history: nn.History) -> bool:
    """Whether a run has ended by Ctrl-C, which `Sequential.fit` takes for a request to end after the step."""
    return history.stopped.startswith("interrupted")


def train(arguments: argparse.Namespace) -> int:
    """Train, evaluate on held-out data, and write model, history and curves; and while it trains, checkpoints."""
    with mpi.joined(mpi.world()) as group:
        if checks.integer("seeds", arguments.seeds, 1) == 1:
            return _train_one(arguments, group)
        if group is not None:
            raise ValueError(f"--seeds must be 1 where mpiexec starts several processes, got {arguments.seeds}")
        return _train_many(arguments)


def _train_one(arguments: argparse.Namespace, group: mpi.Group | None) -> int:
    """`train` with one seed, by one process or a group of them, of which the first reads and writes in the folder."""
    is_first = group is None or group.rank == 0

    def by_first(function: Callable[[], T]) -> T | None:
        if group is None:
            return function()
        return group.of_first(group.together(lambda: function() if is_first else None))

    by_first(lambda: _check_folder(arguments))
    if arguments.monitor:
        require_matplotlib()
    x, y, x_test, y_test = data.load(arguments.data)
    training, _, validation, _ = data.split(np.arange(len(y)), y, validation=0.1)
    model = build(arguments.model, x.shape[1:], int(y.max()) + 1, arguments.seed)
    optimizer = OPTIMIZERS[arguments.optimizer]
    bound = optimizer(model.params, lr=peak_rate(arguments.optimizer) if arguments.lr is None else arguments.lr)
    batch_size = len(training) if optimizer.full_batch else arguments.batch_size
    print(model.summary())
    print(
        f"data {arguments.data}: {len(training)} to train on, {len(validation)} to validate, {len(x_test)} held out\n"
        f"seed {arguments.seed}, batches of {batch_size}, {bound!r}",
        flush=True,
    )
    with contextlib.ExitStack() as stack:
        out = by_first(lambda: stack.enter_context(_folder(arguments.out)))
        assert out is not None
        checkpoint = out / CHECKPOINT
        if arguments.overwrite:
            by_first(lambda: _remove(out, CHECKPOINT, *_OF_SEEDS))
        if group is not None:
            told = f"where one is lost, all end, and --resume --out {out} goes on from the last epoch"
            print(f"{group.size} ranks, each on its part of every batch; {told}", flush=True)
        same = _SameArguments(arguments, bound.lr)
        try:
            history = _fit(
                model,
                bound,
                x[training],
                y[training],
                arguments.epochs,
                batch_size,
                validation_data=(x[validation], y[validation]),
                callbacks=[
                    same,
                    nn.Lines(),
                    *([nn.monitor.Monitor()] if arguments.monitor else []),
                    nn.ModelCheckpoint(checkpoint, resume=arguments.resume),
                ],
                comm=mpi.world(),
            )
        except nn.NonFiniteError as error:
            kept = "no model was written"
            if error.epochs:
                kept = f"{checkpoint} has the model of epoch {error.epochs}"
                same.run.history.add({"loss": math.nan})  # that of the epoch which was not completed
                drawn = by_first(lambda: _draw(same.run.history, out))
                kept += "".join(f", {out / name} shows the run" for name in drawn or [])
            raise Failure(f"{error}; {kept}; try a lower --lr") from error
        by_first(lambda: _write(model, history, out))
    by_first(lambda: print(f"test accuracy: {model.evaluate(x_test, y_test)['accuracy']:.4f}"))
    return INTERRUPTED if _was_interrupted(history) else FINE


def _write(model: nn.Sequential, history: nn.History, out: Path) -> None:
    """Write what a run leaves, in the place of its checkpoint where it is complete."""
    model.save(out / "model.npz")
    history.save(out / "history.json")
    written = ["model.npz", "history.json", *_draw(history, out)]
    if len(written) == 2:
        print("no picture of the curves: matplotlib is not installed")
    print(f"wrote {', '.join(str(out / name) for name in written)}")
    checkpoint = out / CHECKPOINT
    if not history.stopped:
        checkpoint.unlink(missing_ok=True)
    elif checkpoint.exists():
        print(f"--resume --out {out} goes on from {checkpoint}")


def _remove(out: Path, *names: str) -> None:
    for name in names:
        (out / name).unlink(missing_ok=True)


def _train_many(arguments: argparse.Namespace) -> int:
    """`train` with several seeds, all at once: an ensemble, and the history of each."""
    for option in ("resume", "monitor"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} is for one network, got --seeds {arguments.seeds}")
    _check_folder(arguments)
    x, y, x_test, y_test = data.load(arguments.data)
    training, _, validation, _ = data.split(np.arange(len(y)), y, validation=0.1)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    models = [build(arguments.model, x.shape[1:], int(y.max()) + 1, seed) for seed in seeds]
    optimizer = OPTIMIZERS[arguments.optimizer]
    rate = peak_rate(arguments.optimizer) if arguments.lr is None else arguments.lr
    optimizers = [optimizer(model.params, lr=rate) for model in models]
    batch_size = len(training) if optimizer.full_batch else arguments.batch_size
    print(models[0].summary())
    print(
        f"data {arguments.data}: {len(training)} to train on, {len(validation)} to validate, {len(x_test)} held out\n"
        f"seeds {seeds[0]} to {seeds[-1]}, batches of {batch_size}, {optimizers[0]!r}",
        flush=True,
    )
    with _folder(arguments.out) as out:
        if arguments.overwrite:
            _remove(out, CHECKPOINT, *_WRITTEN, *_OF_SEEDS)
        histories = _fit_many(
            models,
            optimizers,
            x,
            y,
            arguments.epochs,
            batch_size,
            training,
            validation_data="rest",
            progress=True,
            on_error="keep",
        )
        trained = [model for i, model in enumerate(models) if i not in histories.errors]
        for i, error in histories.errors.items():
            print(f"fastopt: seed {seeds[i]}: {error}", file=sys.stderr)
        if not trained:
            raise Failure("no network could be trained, and none was written; try a lower --lr")
        ensemble = nn.Ensemble(trained)
        ensemble.save(out / "ensemble.npz")
        histories.save(out / "histories.json")
    print(f"wrote {', '.join(str(out / name) for name in _OF_SEEDS)}")
    accuracies = [model.evaluate(x_test, y_test)["accuracy"] for model in trained]
    together = ensemble.evaluate(x_test, y_test)["accuracy"]
    mean, low, high = (f"{value:.4f}" for value in (np.mean(accuracies), min(accuracies), max(accuracies)))
    print(f"test accuracy: {mean} on average, {low} to {high}; of all together {together:.4f}")
    if any(_was_interrupted(history) for history in histories):
        return INTERRUPTED
    return FAILED if histories.errors else FINE


def _draw(history: nn.History, out: Path) -> list[str]:
    """Draw the curves of a run in the place of those of an earlier one; their files, none without matplotlib."""
    (out / "curves.png").unlink(missing_ok=True)
    try:
        nn.monitor.plot(history, out / "curves.png")
    except ImportError:
        return []
    return ["curves.png"]


#: What the folder of a run holds until the run is complete.
CHECKPOINT = "checkpoint.npz"
#: What it holds then.
_WRITTEN = ("model.npz", "history.json", "curves.png")
#: And where there are several seeds.
_OF_SEEDS = ("ensemble.npz", "histories.json")
#: Endings that a folder for them is not meant to have.
_OF_FILES = (".npz", ".npy", ".safetensors", ".json", ".csv", ".h5", ".keras", ".onnx", ".pt", ".pth", ".pkl", ".png",
             ".svg", ".pdf", ".gif", ".jpg", ".jpeg")  # fmt: skip


def _check_folder(arguments: argparse.Namespace) -> None:
    """Refuse a folder whose run would be lost, or that has none to go on with, before anything is computed."""
    out = arguments.out
    if out is None:
        for option in ("overwrite", "resume"):
            if getattr(arguments, option):
                raise ValueError(f"--{option} needs --out: the folder of the run")
        return
    if out.exists() and not out.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
    if out.suffix.lower() in _OF_FILES and not out.exists():
        raise ValueError(f"--out must be a folder, for {', '.join(_WRITTEN)}; got the name of a file, {str(out)!r}")
    held = [name for name in (CHECKPOINT, *_WRITTEN[:2], *_OF_SEEDS) if (out / name).exists()]
    if arguments.resume and held and CHECKPOINT not in held:
        raise ValueError(f"--resume needs a run that was interrupted; the one in {str(out)!r} is complete")
    if held and not (arguments.overwrite or arguments.resume):
        more = "--overwrite replaces it" + (", --resume goes on with it" if CHECKPOINT in held else "")
        raise ValueError(
            f"--out must be a folder without a run, got {str(out)!r}, which holds {', '.join(held)}; {more}"
        )


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder to write to: a new one where none is given. What was made and not filled is removed again."""
    made: list[Path] = []
    if out is None:
        numbers = itertools.count(1)
        while not made:
            out = Path("out" if (number := next(numbers)) == 1 else f"out-{number}")
            with contextlib.suppress(FileExistsError):
                out.mkdir()
                made.append(out)
    else:
        made += itertools.takewhile(lambda folder: not folder.exists(), [out, *out.parents])
        out.mkdir(parents=True, exist_ok=True)
    assert out is not None
    try:
        yield out
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in made:
                folder.rmdir()
        raise


class _SameArguments(nn.Callback):
    """Sees to it that a run is resumed with the arguments that it was begun with."""

    def __init__(self, arguments: argparse.Namespace, lr: float) -> None:
        names = ("model", "data", "optimizer", "epochs", "batch_size", "seed")
        self.own = {name: getattr(arguments, name) for name in names} | {"lr": lr}

    def on_train_begin(self, run: nn.Run) -> None:
        self.run = run

    def state_dict(self) -> dict[str, Any]:
        return self.own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.own.items():
            if state[name] != value:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be {state[name]!r} as in the run that is resumed, got {value!r}")


def ablations() -> dict[str, tuple[dict[str, Any], str]]:
    """The variants that `ablate` compares: options of `build`, and an optimizer for mini-batches, by the row's name."""
    return {
        "all of it": ({}, OPTIMIZER),
        "no batch norm": ({"batch_norm": False}, OPTIMIZER),
        "no dropout": ({"dropout": False}, OPTIMIZER),
        "Xavier instead of He": ({"init": "xavier"}, OPTIMIZER),
        **{name: ({}, name) for name, cls in OPTIMIZERS.items() if name != OPTIMIZER and not cls.full_batch},
    }


def ablate(arguments: argparse.Namespace) -> None:
    """Train variants, and print a table of their accuracies on held-out data.

    The learning rate of each is the better of two, that of `train` and that of `fastopt.nn.lr_find`, by the loss on a
    tenth of the training data after a short run; then each is trained on all of them.
    """
    seeds = range(checks.integer("seeds", arguments.seeds, 1))
    checks.integer("epochs", arguments.epochs, 0)
    checks.integer("batch_size", arguments.batch_size, 1)
    chosen = {name: variant for name, variant in ablations().items() if arguments.only in name}
    if not chosen:
        raise ValueError(f"--only must be in the name of a row: {', '.join(ablations())}; got {arguments.only!r}")
    x, y, x_test, y_test = data.load(arguments.data)
    training, _, validation, _ = data.split(np.arange(len(y)), y, validation=0.1)
    columns = ("variant", "rate", "mean accuracy", "lowest", "highest", "CPU seconds a run")
    print(f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}")

    for name, (options, named) in chosen.items():

        def fresh(seed: int, options: dict[str, Any] = options) -> nn.Sequential:
            return build(arguments.model, x.shape[1:], int(y.max()) + 1, seed, **options)

        def trained(
            seeds: Sequence[int], rates: list[float], samples: Any, epochs: int, named: str = named
        ) -> list[nn.Sequential]:
            models = [fresh(seed) for seed in seeds]
            optimizers = [OPTIMIZERS[named](model.params, lr=rate) for model, rate in zip(models, rates, strict=True)]
            histories = _fit_many(
                models, optimizers, x, y, epochs, arguments.batch_size, samples, on_nonfinite="ignore"
            )
            if any(_was_interrupted(history) for history in histories):
                raise KeyboardInterrupt
            return models

        rates = [peak_rate(named)]
        rates.append(nn.lr_find(fresh(0), x[training], y[training], optimizer=named).suggestion)
        tried = trained([0, 0], rates, training, -(-arguments.epochs // 3))
        losses = [model.evaluate(x[validation], y[validation])["loss"] for model in tried]
        rate = rates[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]
        started = time.process_time()
        models = trained(seeds, [rate] * len(seeds), None, arguments.epochs)
        seconds = (time.process_time() - started) / len(seeds)
        accuracies = [model.evaluate(x_test, y_test)["accuracy"] for model in models]
        numbers = [f"{100 * value:.2f} %" for value in (np.mean(accuracies), min(accuracies), max(accuracies))]
        print(f"| {name} | {rate:.2g} | {' | '.join(numbers)} | {seconds:.1f} |", flush=True)


# ---- landscape ----------------------------------------------------------------------------------------------


def landscape(arguments: argparse.Namespace) -> None:
    """Run optimizers on a surface, print their last points, and plot their paths."""
    check_path(arguments.out)
    ground = _ground(arguments)
    chosen = [(name, {}) for name in ground.optimizers] if arguments.optimizers is None else arguments.optimizers
    jobs = []
    for name, hyper in chosen:
        rates = (hyper["lr"],) if "lr" in hyper else arguments.rates
        options = {key: value for key, value in hyper.items() if key != "lr"}
        try:
            for rate in rates or (1.0,):
                OPTIMIZERS[name](np.zeros(2), lr=rate, **options)
        except TypeError as error:  # there is no such hyperparameter
            raise ValueError(str(error)) from error
        jobs.append((name, rates, {"steps": arguments.steps, "seed": arguments.seed, **options}))
    runs: list[Descent] = []
    for name, rates, options in jobs:
        if rates is None:
            runs.append(best(name, ground, **options))
        else:
            runs += [descend(name, ground, rate, **options) for rate in rates]
    wide = max(20, *(len(run.label) for run in runs))
    for run in runs:
        x, y = run.points[-1]
        rate = f"{run.optimizer:<20}  lr {run.lr:<6g}" if not run.hyper else f"{run.label:<{wide}}"
        print(f"{rate}  ends at ({x:.4f}, {y:.4f}), {ground.excess(x, y):.1e} above the minimum")
    draw(ground, runs, arguments.out)
    print(f"wrote {arguments.out}")


def _ground(arguments: argparse.Namespace) -> Surface:
    """The surface that is meant: one of ours, maybe changed, or one of a formula."""
    if arguments.function is not None:
        for option in ("start", "limits"):
            if getattr(arguments, option) is None:
                raise ValueError(f"--function needs --{option}")
        function = expression(arguments.function)
        options = {} if arguments.noise is None else {"noise": arguments.noise}
        return surface(function, start=arguments.start, limits=arguments.limits, title=arguments.function, **options)
    known = SURFACES[arguments.surface]
    if arguments.start is None and arguments.limits is None and arguments.noise is None:
        return known
    changed = surface(
        known.function,
        gradient=known.gradient,
        start=known.start if arguments.start is None else arguments.start,
        limits=known.limits if arguments.limits is None else arguments.limits,
        steps=known.steps,
        optimizers=known.optimizers,
        noise=known.noise if arguments.noise is None else arguments.noise,
        title=known.title,
    )
    return changed._replace(minima=known.minima)


# ---- gallery ------------------------------------------------------------------------------------------------


def gallery(arguments: argparse.Namespace) -> None:
    """Draw pictures, or list them, or print their files."""
    names: list[str] = arguments.names or list(pictures.NAMES)
    if arguments.source:
        for name in names:
            print(pictures.source(name), end="")
        return
    modules = {module.__name__.rpartition(".")[2]: module for module in map(pictures.load, names)}
    if arguments.list:
        wide = max(map(len, modules))
        for name, module in modules.items():
            print(f"{name:<{wide}}  {pictures.title(module)}")
        return
    if arguments.out is None:
        raise ValueError("--out must be given: the folder to write to")
    require_matplotlib()
    arguments.out.mkdir(parents=True, exist_ok=True)
    troubles = []
    for name, module in _progress(modules):
        path = arguments.out / f"{name}.{arguments.format}"
        try:
            data = module.run()
        except ImportError as error:  # of an extra
            troubles.append(f"{name}: {error}")
            continue
        pictures.save(module.draw(data), path)
        print(f"wrote {path}", flush=True)
        try:
            module.claim(data)
        except AssertionError as error:
            troubles.append(f"{name}: what its caption claims does not hold" + (f": {error}" if str(error) else ""))
    if arguments.page:
        files.replace(arguments.out / "README.md", lambda file: file.write(pictures.page().encode()))
        print(f"wrote {arguments.out / 'README.md'}")
    if troubles:
        raise Failure("; ".join(troubles))


def _progress(modules: dict[str, ModuleType]) -> Iterator[tuple[str, ModuleType]]:
    """The pictures, with a progress bar of tqdm in a terminal, if that is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from modules.items()
        return
    with tqdm(modules.items(), unit="picture", disable=None) as bar:  # which it is where there is no terminal
        for name, module in bar:
            bar.set_description(name)
            bar.clear()
            yield name, module


# ---- bench and info -----------------------------------------------------------------------------------------


def bench(arguments: argparse.Namespace) -> None:
    """Measure every kernel beside NumPy."""
    results = benchmarks.run(quick=arguments.quick, only=arguments.only)
    if arguments.json:
        print(json.dumps({"environment": environment(), "results": results}, indent=1))
    else:
        print(describe_environment())
        print(f"{benchmarks.table(results)}\n\n{benchmarks.NOTE}")


def info(arguments: argparse.Namespace) -> None:
    """Print what measurements on this machine depend on, or what a file says of where and how it was made."""
    if arguments.file is None:
        print(describe_environment())
    else:
        print(_columns({"file": str(arguments.file), **_flat(fastopt.describe_file(arguments.file))}))


def _flat(said: dict[str, Any], before: str = "") -> dict[str, str]:
    """Nested values as lines: of seeds, say, one for each."""
    lines: dict[str, str] = {}
    for name, value in said.items():
        if isinstance(value, dict):
            lines |= _flat(value, "" if name == "environment" else f"{before}{name} ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, each in enumerate(value, 1):
                lines |= _flat(each, f"{before}{name} {number} ")
        else:
            lines[f"{before}{name}"] = str(value)
    return lines


def environment() -> dict[str, str]:
    """What `fastopt.environment.record` has, and what the BLAS uses at the moment."""
    return record() | _blas_runtime()


def _blas_runtime() -> dict[str, str]:
    """Threads and core type of the OpenBLAS that NumPy has loaded; nothing where it is another library."""
    try:
        with open("/proc/self/maps") as maps:
            paths = set(re.findall(r"\S*openblas\S*\.so\S*", maps.read()))
    except OSError:
        return {}
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("", ""), ("scipy_", "")):
            try:
                threads = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
                core = getattr(library, f"{prefix}openblas_get_corename{suffix}")
            except AttributeError:
                continue
            core.restype = ctypes.c_char_p
            return {"BLAS threads": str(threads()), "BLAS core type": core().decode()}
    return {}


def describe_environment() -> str:
    """The environment as text, a line for each entry."""
    return _columns(environment())


def _columns(facts: dict[str, str]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())
