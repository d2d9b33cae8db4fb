"""The command, as one calls it."""

import errno
import functools
import gzip
import importlib.util
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_mnist

import fastopt
from fastopt import _kernels, data, nn
from fastopt.cli import ablations, build, main, peak_rate
from fastopt.optimizers import OPTIMIZERS

CURVES = {"curves.png"} if importlib.util.find_spec("matplotlib") else set()


@pytest.fixture
def run(capsys):
    """Runs the command, which must succeed, and returns its lines."""

    def call(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out.splitlines()

    return call


def arrays_of(folder):
    with np.load(folder / "model.npz", allow_pickle=False) as file:
        return {name: file[name].tobytes() for name in file}


def ran(arguments, env=None, **options):
    """The command in a process of its own, to its end: what `subprocess.run` returns."""
    command = [sys.executable, "-m", "fastopt", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | (env or {})
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=300, env=environment, **options)


def accuracy_of(lines) -> float:
    return float(re.fullmatch(r"test accuracy: ([01]\.\d{4})", lines[-1])[1])


# ---- Endings --------------------------------------------------------------------------------------------


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fastopt {fastopt.__version__}\n"


def test_help_has_the_exit_statuses(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  (\d+) ", out.partition("exit status:\n")[2], re.MULTILINE) == ["0", "1", "2", "130", "141"]


@pytest.mark.parametrize(
    "arguments",
    [["info"], ["--help"], ["train", "--model", "mlp", "--epochs", "9", "--out", "run"]],
    ids=lambda each: each[0],
)
def test_closed_output(arguments, tmp_path):
    """As by ``| head``, which has read enough."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = ran(arguments, stdout=writing, cwd=tmp_path)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train", "info"])
def test_no_output_at_all(name, tmp_path):
    """As by ``fastopt info >&-``."""
    arguments = ["info"] if name == "info" else [*FAST, "0", "--out", "run"]
    script = 'exec "$0" -m fastopt "$@" >&-'
    command = ["sh", "-c", script, sys.executable, *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "run" / "model.npz").exists() == (name == "train")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_output():
    with open("/dev/full", "wb") as full:
        done = ran(["info"], stdout=full)
    assert done.returncode == 1
    assert re.fullmatch(rb"fastopt: .*No space left on device.*\n", done.stderr)


def test_closed_output_and_error(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    assert main(["train", "--data", "nowhere"]) == 2
    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["info"]) == 141


@pytest.mark.slow
@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}], ids=["PYTHONIOENCODING", "LC_ALL"])
def test_an_ascii_terminal(locale, tmp_path):
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments, part in (
        (["train", "--help"], b"out-2, ... that is"),
        (["bench", "--quick", "--only", "adagrad 100"], b"x NumPy in place"),
        (
            [*FAST, "0", "--out", "lief\u00e9"],
            b"wrote lief\\xe9/model.npz" if "LC_ALL" not in locale else b"wrote lief",
        ),
    ):
        done = ran(arguments, stdout=subprocess.PIPE, env=plain | locale, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert part in b" ".join(done.stdout.split())
        if "LC_ALL" not in locale:
            done.stdout.decode("ascii")


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", r"1 us, 2 x, 3-4, a, ..., \u03b2\xe9\U0001f600\udcff"),
        ("latin-1", r"1 µs, 2 ×, 3-4, a, ..., \u03b2é\U0001f600\udcff"),
        ("utf-8", "1 µs, 2 ×, 3–4, a, …, βé😀\\udcff"),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_characters_that_a_terminal_does_not_have(name, encoding, written, monkeypatch):
    def say(arguments):
        print("1 µs, 2 ×, 3–4, a, …, βé😀\udcff", file=getattr(sys, name))

    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr("fastopt.cli.describe_environment", lambda: say(None) or "")
    assert main(["info"]) == 0
    stream.flush()
    assert bytes_.getvalue().decode(encoding).splitlines()[0] == written
    assert stream.errors == "strict"


def test_interrupted_before_anything_is_trained(capsys, monkeypatch, tmp_path):
    def load(source):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", load)
    assert main([*FAST, "1", "--out", str(tmp_path / "a")]) == 130
    assert capsys.readouterr() == ("", "fastopt: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c(run, tmp_path):
    """The first one ends the run after its step, writes the model and leaves a checkpoint, from which it is resumed."""
    options = [*FAST, "2000", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "fastopt", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    usual = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it
    with subprocess.Popen(command, **pipes, preexec_fn=usual) as process:
        for line in process.stdout:
            if line.startswith("epoch"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert re.fullmatch(r"fastopt: interrupted; stopped .*; weights and history are kept\n", err)
    assert f"--resume --out {tmp_path} goes on from {tmp_path / 'checkpoint.npz'}" in out.splitlines()
    accuracy_of(out.splitlines())
    assert (tmp_path / "model.npz").exists()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/model.npz"), 1, "No space left on device: 'a/model.npz'"),
        (OSError(errno.EIO, "Input/output error"), 1, "[Errno 5] Input/output error"),
        (MemoryError(), 1, "not enough memory"),
        (MemoryError("Unable to allocate 1 TiB"), 1, "not enough memory: Unable to allocate 1 TiB"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "Permission denied: 'x'"),
        (ValueError("lr must be in [0, inf), got nan"), 2, "lr must be in [0, inf), got nan"),
        (ImportError("drawing needs matplotlib"), 2, "drawing needs matplotlib"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
)
def test_what_an_error_ends_with(error, status, message, capsys, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr("fastopt.cli.describe_environment", fail)
    assert main(["info"]) == status
    assert capsys.readouterr().err == f"fastopt: {message}\n"


# ---- train ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_train(run, model, tmp_path):
    lines = run("train", "--model", model, "--epochs", 2, "--out", tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    assert accuracy_of(lines) > 0.85
    assert {path.name for path in folder.iterdir()} == {"model.npz", "history.json"} | CURVES
    assert lines[-2].startswith(f"wrote {folder / 'model.npz'}, {folder / 'history.json'}")
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "data digits: 1211 to train on, 136 to validate, 450 held out" in lines
    assert any(line.startswith("seed 0, batches of 32, AdamW(lr=0.003,") for line in lines)

    history = json.loads((folder / "history.json").read_text())
    assert history.pop("provenance")["seeds"] == {"model": 0, "fit": 0}
    assert {key: len(values) for key, values in history.items()} == dict.fromkeys(
        ["loss", "accuracy", "samples_per_second", "val_loss", "val_accuracy"], 2
    )
    _, _, x, y = data.load("digits")
    assert round(nn.load(folder / "model.npz").evaluate(x, y)["accuracy"], 4) == accuracy_of(lines)


@pytest.mark.slow
def test_the_default_training_is_good(run, tmp_path):
    assert accuracy_of(run("train", "--out", tmp_path)) >= 0.98


def test_the_seed_decides(run, tmp_path):
    for name, seed in (("one", 3), ("twin", 3), ("other", 4)):
        run("train", "--model", "mlp", "--epochs", 1, "--seed", seed, "--out", tmp_path / name)
    one, twin, other = (arrays_of(tmp_path / name) for name in ("one", "twin", "other"))
    assert one == twin
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name.endswith("weight"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_train_with_every_optimizer(run, name, tmp_path):
    lines = run("train", "--model", "mlp", "--epochs", 2, "--optimizer", name, "--out", tmp_path)
    assert any(OPTIMIZERS[name].__name__ + "(lr=" in line for line in lines)
    assert accuracy_of(lines) > 0.5  # some begin slowly


def test_what_is_written_has_been_measured(run, tmp_path):
    """The averaged weights, in a schedule-free optimizer's case."""
    run("train", "--model", "mlp", "--epochs", 1, "--optimizer", "schedule_free_adamw", "--out", tmp_path)
    x, y, *_ = data.load("digits")
    _, _, validation, _ = data.split(np.arange(len(y)), y, validation=0.1)
    measured = nn.load(tmp_path / "model.npz").evaluate(x[validation], y[validation])
    assert measured["loss"] == json.loads((tmp_path / "history.json").read_text())["val_loss"][-1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_a_rate_that_trains(name):
    x, y, _, _ = data.load("digits")
    model = build("cnn", x.shape[1:], 10, seed=0)
    optimizer = OPTIMIZERS[name](model.params, lr=peak_rate(name))
    size = {"batch_size": 480, "epochs": 30} if optimizer.full_batch else {"epochs": 4}
    losses = model.fit(x[:480], y[:480], optimizer=optimizer, **size)["loss"]
    assert losses[-1] < min(losses[0], 0.9 * math.log(10))


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("options", [{}, *(options for options, _ in ablations().values() if options)], ids=str)
def test_the_first_loss_is_that_of_guessing(model, options):
    x, y, _, _ = data.load("digits")
    for seed in range(5):
        assert nn.debug.check_initial_loss(build(model, x.shape[1:], 10, seed, **options), x[:100], y[:100])


def test_options_are_taken(run, tmp_path):
    lines = run(
        "train", "--model=mlp", "--epochs=1", "--batch-size=100", "--lr=0.25", "--optimizer=SGD", "--out", tmp_path
    )
    assert "seed 0, batches of 100, SGD(lr=0.25, t=0)" in lines


@pytest.mark.slow
def test_train_under_watch(run, tmp_path):
    pytest.importorskip("matplotlib")
    run("train", "--model", "mlp", "--epochs", 1, "--monitor", "--out", tmp_path)
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["monitor"]["step"] == [0, 20]


def test_numbers_gone_bad_are_an_error(capsys, tmp_path):
    """An earlier model stays as it is."""
    (tmp_path / "model.npz").write_bytes(b"of an earlier run")
    options = ["train", "--model", "mlp", "--lr", "1000", "--epochs", "2", "--overwrite", "--out", str(tmp_path)]
    assert main(options) == 1
    out, err = capsys.readouterr()
    assert re.match(r"fastopt: epoch 1, batch \d+: the \w+ pass of layer \d \(\w+\): in .*; no model was written", err)
    assert "test accuracy" not in out
    assert (tmp_path / "model.npz").read_bytes() == b"of an earlier run"


def test_numbers_gone_bad_leave_the_last_good_model(capsys, tmp_path, monkeypatch):
    def late(step, *, steps, peak):
        return peak if step < 38 else 1e30

    monkeypatch.setattr("fastopt.cli.cosine", late)
    assert main(["train", "--model", "mlp", "--optimizer", "sgd", "--epochs", "3", "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("fastopt: epoch 2, batch ")
    drawn = f", {tmp_path / 'curves.png'} shows the run" if CURVES else ""
    assert f"{tmp_path / 'checkpoint.npz'} has the model of epoch 1{drawn}; try a lower --lr" in err
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.npz"} | CURVES
    x, y, *_ = data.load("digits")
    _, _, validation, _ = data.split(np.arange(len(y)), y, validation=0.1)
    loss = nn.load(tmp_path / "checkpoint.npz").evaluate(x[validation], y[validation])["loss"]
    assert f"val loss {loss:.4f}" in out


def test_no_epochs(run, tmp_path):
    assert accuracy_of(run("train", "--model", "mlp", "--epochs", 0, "--out", tmp_path)) < 0.5


# ---- The folder of a run --------------------------------------------------------------------------------

FAST = ["train", "--model", "mlp", "--epochs"]


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs the command, which must refuse before it reads any data, and returns what it says."""

    def call(*arguments):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(data, "load", lambda source: pytest.fail("computed before the refusal"))
            assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return call


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_is_not_lost(run, refused, tmp_path, epochs):
    run(*FAST, 1, "--out", tmp_path)
    before = contents(tmp_path)
    said = refused(*FAST, epochs, "--out", tmp_path, "--seed", 1)
    assert said == (
        f"fastopt: --out must be a folder without a run, got {str(tmp_path)!r}, which holds model.npz, history.json; "
        "--overwrite replaces it\n"
    )
    assert contents(tmp_path) == before
    run(*FAST, epochs, "--out", tmp_path, "--seed", 1, "--overwrite")
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert after["model.npz"] != before["model.npz"]


def test_one_file_of_a_run_is_enough(refused, tmp_path):
    for name in ("model.npz", "history.json", "checkpoint.npz"):
        (tmp_path / name).touch()
        assert f"holds {name}; --overwrite replaces it" in refused(*FAST, 1, "--out", tmp_path)
        (tmp_path / name).unlink()


def test_a_folder_with_other_things(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run(*FAST, 0, "--out", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_train_again_without_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("out", "out-2", "out-3"):
        assert f"wrote {name}/model.npz" in run(*FAST, 0)[-2]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-2", "out-3"}


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_which_run_is_to_be_said(refused, option):
    assert refused(*FAST, 1, option) == f"fastopt: {option} needs --out: the folder of the run\n"


def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for out in ([], ["--out", "a/b"]):
        assert main([*FAST, "-1", *out]) == 2
        assert main([*FAST, "1", "--lr", "nan", *out]) == 2
    assert list(tmp_path.iterdir()) == []


class Interrupt(nn.Callback):
    """Ends a run at the beginning of an epoch: by an exception, or after a step, as Ctrl-C does."""

    def __init__(self, epoch, raises=True):
        self.epoch, self.raises = epoch, raises

    def on_train_begin(self, run):
        self.run = run

    def on_epoch_begin(self, epoch):
        if epoch == self.epoch and self.raises:
            raise KeyboardInterrupt
        if epoch == self.epoch:
            self.run.stop("interrupted")


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_resume(run, refused, tmp_path, monkeypatch, capsys, optimizer, raises):
    lines = type("Lines", (Interrupt,), {})  # by whose name it is resumed
    options = [*FAST, 3, "--optimizer", optimizer, "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(*options, whole)
    with monkeypatch.context() as patch:
        patch.setattr(nn, "Lines", lambda: lines(2, raises))
        if raises:
            assert main([str(each) for each in (*options, parts)]) == 130
            assert capsys.readouterr().err == "fastopt: interrupted\n"
            assert {path.name for path in parts.iterdir()} == {"checkpoint.npz"}
        else:
            assert main([str(each) for each in (*options, parts)]) == 130
            said = capsys.readouterr().out.splitlines()
            assert f"--resume --out {parts} goes on from {parts / 'checkpoint.npz'}" in said
            assert (parts / "model.npz").exists()
    assert "--overwrite replaces it, --resume goes on with it" in refused(*options, parts)
    for option, value in (("--lr", 0.5), ("--epochs", 4), ("--seed", 1), ("--batch-size", 16)):
        assert main([str(each) for each in (*options, parts, "--resume", option, value)]) == 2
        name = option[2:].replace("-", ".")
        assert re.search(f"{name} must be .*, got {value}", capsys.readouterr().err)
    run(*options, parts, "--resume")
    assert arrays_of(parts) == arrays_of(whole)
    ours, theirs = (json.loads((folder / "history.json").read_text()) for folder in (parts, whole))
    assert {**ours, "samples_per_second": 0} == {**theirs, "samples_per_second": 0}
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}
    assert f"--resume needs a run that was interrupted; the one in {str(parts)!r} is complete" in refused(
        *options, parts, "--resume"
    )


def test_resume_where_nothing_is_yet(run, tmp_path):
    run(*FAST, 1, "--out", tmp_path / "a", "--resume")
    run(*FAST, 1, "--out", tmp_path / "b")
    assert arrays_of(tmp_path / "a") == arrays_of(tmp_path / "b")


def test_overwriting_forgets_the_checkpoint(tmp_path, monkeypatch):
    """A run that is killed before its first checkpoint is not resumed as the one before it."""
    shutil.copy(Path(__file__).parent / "fixtures" / "0.1" / "checkpoint.npz", tmp_path)
    monkeypatch.setattr(nn, "Lines", lambda: Interrupt(0))
    assert main([*FAST, "1", "--out", str(tmp_path), "--overwrite"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "curves.png").write_bytes(b"of an earlier run")
    lines = run("train", "--model", "mlp", "--epochs", 1, "--out", tmp_path)
    assert "no picture of the curves: matplotlib is not installed" in lines
    assert {path.name for path in tmp_path.iterdir()} == {"model.npz", "history.json"}
    accuracy_of(lines)


@pytest.mark.parametrize("name", ["model.npz", "a/run.safetensors", "curves.PNG", "history.json", "net.pt"])
def test_a_folder_is_no_file(refused, tmp_path, name):
    said = refused(*FAST, 1, "--out", tmp_path / name)
    named = repr(str(tmp_path / name))
    assert said == (
        f"fastopt: --out must be a folder, for model.npz, history.json, curves.png; got the name of a file, {named}\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_folders_with_dots(run, tmp_path):
    (tmp_path / "mine.npz").mkdir()
    for name in ("mine.npz", "run-0.25", "v1.2"):
        assert accuracy_of(run(*FAST, 0, "--out", tmp_path / name)) < 0.5


def test_pictures_that_are_asked_for_need_matplotlib(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = refused(*FAST, 1, "--monitor", "--out", tmp_path / "a")
    assert said == "fastopt: drawing needs matplotlib: pip install 'fastopt[plot]'\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_train_on_files_of_your_own(run, model, tmp_path):
    write_mnist(tmp_path, gzip.compress, ".gz", n=120, n_test=31)
    lines = run("train", "--model", model, "--data", tmp_path, "--epochs", 3, "--out", tmp_path / "out")
    assert f"data {tmp_path}: 108 to train on, 12 to validate, 31 held out" in lines
    assert accuracy_of(lines) > 0.5
    assert nn.load(tmp_path / "out" / "model.npz").shapes[-1] == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "data must be 'digits', .* got 'nowhere'"),
        (["--lr", "nan"], r"lr must be in \[0, inf\), got nan"),
        (["--lr", "-1"], r"lr must be in \[0, inf\), got -1.0"),
        (["--epochs", "-1"], "epochs must be at least 0, got -1"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--out", __file__], "File exists"),
    ],
)
def test_wrong_values_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model", "mlp", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastopt: ")
    assert error.count("\n") == 1
    assert re.search(message, error)


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["train", "--model", "rnn"], ["train", "--lr", "fast"], ["train", "digits"], ["info", "-x"]],
)
def test_wrong_words(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert re.match("fastopt.*: error: ", capsys.readouterr().err.splitlines()[-1])


def test_an_optimizer_that_is_meant(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--optimizer", "adamm"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert re.search(
        "error: argument --optimizer: optimizer must be one of .*; got 'adamm': did you mean 'adam'\\?\n$", said
    )


# ---- ablate ---------------------------------------------------------------------------------------------


def test_ablate(run):
    lines = run("ablate", "--model", "mlp", "--epochs", 1, "--seeds", 2, "--only", "no ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows[2:]] == ["no batch norm", "no dropout"]
    assert {len(row) for row in rows} == {6}
    for row in rows[2:]:
        assert 1e-6 < float(row[1]) < 1
        mean, lowest, highest = (float(cell.removesuffix(" %")) for cell in row[2:5])
        assert 50 < lowest <= mean <= highest <= 100
        assert mean == pytest.approx((lowest + highest) / 2, abs=0.011)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--epochs", "-1"], "epochs must be at least 0, got -1"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--only", "sdg"], "--only must be in the name of a row: all of it, no batch norm, .*; got 'sdg'"),
    ],
)
def test_ablate_refuses_before_it_computes(refused, arguments, message):
    assert re.match(f"fastopt: {message}\n", refused("ablate", *arguments))


def test_ablate_ends_at_the_first_interrupt(capsys, monkeypatch):
    """Which `fit_many` takes for a request to end after the step."""

    def fit_many(models, *args, **options):
        fitted.append(models)
        history = nn.History()
        history.stopped = "interrupted; stopped in epoch 1"
        return nn.Histories([history], {})

    fitted = []
    monkeypatch.setattr(nn, "fit_many", fit_many)
    assert main(["ablate", "--model", "mlp", "--epochs", "1", "--only", "no "]) == 130
    assert capsys.readouterr().err == "fastopt: interrupted\n"
    assert len(fitted) == 1


# ---- Several seeds ----------------------------------------------------------------------------------------------


def test_train_with_seeds(run, tmp_path):
    """An ensemble of the networks that each seed alone makes."""
    out, one = tmp_path / "many", tmp_path / "one"
    options = ["--model", "mlp", "--epochs", 2]
    lines = run("train", *options, "--seed", 3, "--seeds", 3, "--out", out)
    assert {path.name for path in out.iterdir()} == {"ensemble.npz", "histories.json"}
    assert any(line.startswith("seeds 3 to 5, batches of 32, ") for line in lines)
    assert any("models 3/3  epochs 6/6  loss " in line for line in lines)
    found = re.fullmatch(
        r"test accuracy: ([\d.]+) on average, ([\d.]+) to ([\d.]+); of all together ([\d.]+)", lines[-1]
    )
    mean, low, high, together = map(float, found.groups())
    assert 0.5 < low <= mean <= high <= 1
    assert together > low
    ensemble = nn.Ensemble.load(out / "ensemble.npz")
    run("train", *options, "--seed", 4, "--out", one)
    alone = nn.load(one / "model.npz")
    for name, array in alone.params.items():
        np.testing.assert_array_equal(ensemble.models[1].params[name], array)
    histories = json.loads((out / "histories.json").read_text())
    own = json.loads((one / "history.json").read_text())
    assert len(histories) == 3
    assert histories[1]["val_loss"] == own["val_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--seeds", "2", "--resume"], "--resume is for one network, got --seeds 2"),
        (["--seeds", "2", "--monitor"], "--monitor is for one network, got --seeds 2"),
    ],
)
def test_seeds_that_are_refused(refused, arguments, message):
    assert re.match(f"fastopt: {message}\n", refused("train", *arguments))


def test_a_folder_of_seeds_is_kept(run, refused, tmp_path):
    options = ["train", "--model", "mlp", "--epochs", "1", "--out", str(tmp_path / "o")]
    run(*options, "--seeds", "2")
    assert "which holds ensemble.npz, histories.json; --overwrite replaces it" in refused(*options)
    run(*options, "--overwrite")
    assert {path.suffix for path in (tmp_path / "o").iterdir()} <= {".npz", ".json", ".png"}
    assert not (tmp_path / "o" / "ensemble.npz").exists()
    run(*options, "--overwrite", "--seeds", "2")
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"ensemble.npz", "histories.json"}


def test_seeds_that_fail_are_named(tmp_path, capsys):
    options = ["train", "--model", "mlp", "--epochs", "1", "--out", str(tmp_path / "o"), "--seeds", "2"]
    assert main([*options, "--optimizer", "sgd", "--lr", "1e38"]) == 1
    said = capsys.readouterr().err
    assert "fastopt: seed 0: epoch 1, " in said
    assert said.endswith("fastopt: no network could be trained, and none was written; try a lower --lr\n")
    assert not (tmp_path / "o").exists()


def test_what_ablate_compares():
    rows = ablations()
    assert {optimizer for _, optimizer in rows.values()} == set(OPTIMIZERS) - {"rprop"}  # which is for full batches
    texts = [
        repr(build(model, (8, 8, 1), 10, 0, **options)) for options, _ in rows.values() for model in ("mlp", "cnn")
    ]
    for i in range(4):
        for text in texts[2 * i : 2 * i + 2]:
            assert ("BatchNorm" in text) == (i != 1)
            assert ("Dropout" in text) == (i != 2)
            assert ("init='xavier'" in text) == (i == 3)


# ---- info and bench -------------------------------------------------------------------------------------


def test_info(run):
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in run("info"))
    assert facts["fastopt"] == fastopt.__version__
    assert facts["NumPy"] == np.__version__
    assert facts["instruction set"] == f"{_kernels.isa()} (of {', '.join(_kernels.isas())})"
    assert facts["BLAS"]
    assert facts["dense layers"] == "products of fastopt's"
    rows, columns = {"avx512": (8, 32), "avx2": (6, 16), "neon": (8, 8)}.get(_kernels.isa(), (6, 8))
    assert facts["tuning"].startswith(f"{_kernels.tuning()} (roots by ")
    assert facts["micro-kernel"] == f"{rows} × {columns} float32"


def test_bench_table(run):
    lines = run("bench", "--quick", "--only", "adagrad")
    start = next(i for i, line in enumerate(lines) if re.match("kernel +size", line))
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[start : start + 4]]
    assert rows[0][:5] == ["kernel", "size", "fastopt", "quartiles", "GB/s"]
    assert [row[:2] for row in rows[1:]] == [["adagrad", size] for size in ("100", "10,000", "1,000,000")]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert any(line.startswith("instruction set") for line in lines[:start])


def test_bench_json(run):
    printed = json.loads("\n".join(run("bench", "--quick", "--json", "--only", "adagrad 10")))
    assert printed["environment"]["fastopt"] == fastopt.__version__
    assert [(result["name"], result["size"]) for result in printed["results"]] == [
        ("adagrad", "100"),
        ("adagrad", "10,000"),
    ]
    for result in printed["results"]:
        assert set(result["seconds"]) == {"fastopt", "NumPy in place", "NumPy textbook", "streaming"}
        assert set(result["times_faster"]) == set(result["seconds"]) - {"fastopt"}
        for times in result["seconds"].values():
            assert 0 < times["q1"] <= times["median"] <= times["q3"] < math.inf


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[Path(sys.executable).with_name("fastopt")], [sys.executable, "-m", "fastopt"]],
    ids=["script", "module"],
)
def test_the_command_itself(command, tmp_path):
    if not Path(command[0]).exists():
        pytest.skip("the script is not beside the interpreter")
    ran = subprocess.run([*command, "info"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.splitlines()[0].split() == ["fastopt", fastopt.__version__]
    assert ran.stderr == ""
    wrong = subprocess.run([*command, "train", "--data", "nowhere"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("fastopt: data must be")
