"""Nothing prints unless asked; warnings have classes, and what is said of a run goes to the logger."""

import ast
import inspect
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import messages, nn

ROOT = Path(fastopt.__file__).parent
SOURCES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}

#: Where fastopt writes to a stream, and who asks for it.
PRINTS = {
    "cli.py": "the command",
    "nn/callbacks.py": "nn.Lines",
    "nn/many.py": "progress=True",
    "sklearn/mlp.py": "verbose=True",
    "sklearn/search.py": "verbose=1",
    "mpi.py": "nobody: an exception that ends all processes, as the interpreter shows one that ends it",
}
#: A process with Python's own filters, in which all that is said of a run would be said.
QUIET = """
import os, signal, tempfile
import numpy as np
import fastopt
from fastopt import data, functional, gradients, nn, schedules

signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt(nn.Callback):
    def on_epoch_end(self, epoch, logs):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

x, y = data.digits()
model = nn.Sequential([nn.Flatten(), nn.Dense(8, activation="relu"), nn.Dense(10)], x.shape[1:])
adam = fastopt.Adam(model.params)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "run.npz")
    history = model.fit(x, y, epochs=3, optimizer=adam, callbacks=[Interrupt(), nn.ModelCheckpoint(path)])
    assert history.stopped.startswith("interrupted"), history.stopped
    again = nn.load(path)
    fastopt.save(adam, path)
    fastopt.load(fastopt.Adam(again.params), path)
    histories = nn.fit_many([again], x, y, callbacks=lambda i: [Interrupt()], epochs=10**6)
    assert histories[0].stopped.startswith("interrupted"), histories[0].stopped
    again.evaluate(x, y)
"""


def calls(tree, *names):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]


def test_importing_and_training_print_nothing():
    command = [sys.executable, "-c", QUIET]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_who_prints_is_asked_to():
    found = {path for path, tree in SOURCES.items() if calls(tree, "print", "sys.stderr.write", "sys.stdout.write")}
    assert found == {*PRINTS}


def test_warnings_have_classes_of_fastopt():
    own = {*messages.__all__, "ConvergenceWarning"}
    found = [(path, call) for path, tree in SOURCES.items() for call in calls(tree, "warnings.warn", "warn")]
    assert len(found) >= 4
    for path, call in found:
        assert ast.unparse(call.args[1]) in own, f"{path}:{call.lineno}"
    assert not [path for path, tree in SOURCES.items() if calls(tree, "logging.getLogger") if path != "messages.py"]


def test_the_classes_form_a_tree():
    for name in messages.__all__:
        kind = getattr(fastopt, name)
        assert issubclass(kind, fastopt.FastoptWarning)
        assert issubclass(kind, UserWarning)
        assert inspect.getdoc(kind)
    ours, theirs = pytest.importorskip("fastopt.sklearn"), pytest.importorskip("sklearn.exceptions")
    assert issubclass(ours.ConvergenceWarning, fastopt.TrainingWarning)
    assert issubclass(ours.ConvergenceWarning, theirs.ConvergenceWarning)


def test_a_class_can_be_filtered():
    def pool(n):
        fastopt.functional.max_pool_forward(np.ones((n, 3, 32, 32)), 3)  # looked at once for each shape

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", fastopt.TrainingWarning)
        with pytest.raises(fastopt.LayoutWarning):
            pool(21)
        warnings.simplefilter("ignore", fastopt.FastoptWarning)
        pool(22)


def test_a_program_that_logs_is_told_of_runs(tmp_path, caplog):
    def run(epochs):
        saves = nn.ModelCheckpoint(tmp_path / "run.npz", resume=True)
        nn.Sequential([nn.Dense(2)], (2,), seed=5).fit(np.eye(2), [0, 1], epochs=epochs, callbacks=[saves])

    with caplog.at_level(logging.DEBUG, "fastopt"):
        run(1)
        (begun,) = caplog.records
        caplog.clear()
        run(2)
    assert begun.levelno == logging.DEBUG
    assert begun.getMessage().startswith("a run of 1 epochs of 1 steps: {'environment': {'fastopt': ")
    assert "'seeds': {'model': 5, 'fit': 5}" in begun.getMessage()
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told[0] == ("INFO", f"goes on from {str(tmp_path / 'run.npz')!r} after epoch 1")
    assert [level for level, _ in told] == ["INFO", "DEBUG"]


def test_the_logger_is_silent_without_a_handler():
    (handler,) = (each for each in logging.getLogger("fastopt").handlers if isinstance(each, logging.NullHandler))
    assert handler in messages.logger.handlers
    assert messages.logger.level == logging.NOTSET
