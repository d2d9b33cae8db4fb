"""Files, histories and benchmarks say what they were computed with."""

import json
import platform
import re
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, data, environment, nn
from fastopt.cli import main

FIXTURES = Path(__file__).parent / "fixtures" / "0.1"
ELSEWHERE = {"fastopt": "0.1.0", "CPU": "another"}


def mlp(seed=3):
    return nn.Sequential([nn.Dense(4, activation="relu"), nn.Dropout(0.1), nn.Dense(3)], (5,), seed=seed)


@pytest.fixture
def samples(rng):
    return rng.normal(size=(24, 5)), np.arange(24) % 3


def write(folder, ending, samples):
    """A file of each kind, and the model."""
    folder.mkdir()
    paths = {kind: folder / f"{kind}.{ending}" for kind in ("model", "checkpoint", "optimizer", "ensemble")}
    model = mlp()
    adam = fastopt.Adam(model.params)
    saves = nn.ModelCheckpoint(paths["checkpoint"])
    history = model.fit(*samples, epochs=2, batch_size=8, seed=11, optimizer=adam, callbacks=[saves])
    model.save(paths["model"])
    fastopt.save(adam, paths["optimizer"])
    nn.Ensemble([model, mlp(4)]).save(paths["ensemble"])
    paths["history"] = folder / "history.json"
    history.save(paths["history"])
    return paths


SAID = {
    "model": {"seeds": {"model": 3}},
    "optimizer": {},
    "ensemble": {"seeds": {"models": [3, 4]}},
    "checkpoint": {"seeds": {"model": 3, "fit": 11}, "order": "Shuffled(8)"},
    "history": {"seeds": {"model": 3, "fit": 11}, "order": "Shuffled(8)"},
}


# ---- The record -----------------------------------------------------------------------------------------


def test_the_record_is_of_this_process(isa):
    before, said = fastopt.get_num_threads(), environment.record()
    assert said["fastopt"] == fastopt.__version__
    assert said["NumPy"] == np.__version__
    assert said["Python"] == platform.python_version()
    assert said["instruction set"].partition(" ")[0] == fastopt.isa() == _kernels.isa()
    assert said["BLAS"].split()[0] == np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    assert said["kernel threads"] == str(before)
    try:
        fastopt.set_num_threads(3)
        changed = {name for name, value in environment.record().items() if said[name] != value}
    finally:
        fastopt.set_num_threads(before)
    assert changed == ({"kernel threads"} if before != 3 else set())
    assert environment.record() == said


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no such file here")
def test_the_cpu_is_that_of_the_system():
    listed = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.+)$", listed, re.MULTILINE)
    name = environment.record()["CPU"]
    assert name == found[1].strip() if found else name


def test_names_of_cpus():
    assert environment.cpu_name("processor : 0\nmodel name : A\n\nprocessor : 1\nmodel name : B\n") == "A"
    assert environment.cpu_name("CPU part : 0xd0c\nCPU implementer : 0x41\n") == "CPU implementer 0x41, CPU part 0xd0c"
    assert environment.cpu_name("") == (platform.processor() or platform.machine()) != ""


# ---- Files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_files_say_what_they_were_computed_with(tmp_path, ending, samples):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    paths = write(tmp_path / "files", ending, samples)
    for kind, path in paths.items():
        said = fastopt.describe_file(path)
        assert said.pop("kind") == kind
        assert said.pop("format", 2) == 2
        assert said.pop("environment") == environment.record(), kind
        assert said == SAID[kind]
    again = write(tmp_path / "again", ending, samples)
    for kind in ("model", "optimizer", "ensemble"):
        assert paths[kind].read_bytes() == again[kind].read_bytes()


def test_what_a_file_says_of_itself_has_a_checksum(tmp_path):
    path = tmp_path / "m.npz"
    mlp().save(path)
    with np.load(path) as arrays:
        entries = dict(arrays)
    header = json.loads(str(entries.pop("fastopt")))
    for changed in (ELSEWHERE, [], None):
        with open(path, "wb") as file:
            np.savez(file, fastopt=json.dumps(header | {"environment": changed}), **entries)
        for read in (nn.load, fastopt.describe_file):
            with pytest.raises(ValueError, match="its header does not have the checksum that was written"):
                read(path)


def test_older_files_say_less(tmp_path, monkeypatch, samples):
    said = {path.stem: fastopt.describe_file(path) for path in FIXTURES.glob("*.npz") if path.stem != "expected"}
    assert said["mlp"] == {"kind": "model", "format": 1, "seeds": {"model": nn.load(FIXTURES / "mlp.npz").seed}}
    assert said["adam"] == {"kind": "optimizer", "format": 1}
    assert said["checkpoint"] == {"kind": "checkpoint", "format": 1}
    assert {each["format"] for each in said.values()} == {1}
    monkeypatch.setattr(environment, "record", lambda: None)  # as those of format 2 were at first
    paths = write(tmp_path / "files", "npz", samples)
    model = nn.load(paths["model"])
    monkeypatch.undo()
    assert "environment" not in fastopt.describe_file(paths["model"])
    assert fastopt.describe_file(paths["optimizer"]) == {"kind": "optimizer", "format": 2}
    fastopt.load(fastopt.Adam(model.params), paths["optimizer"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"{", "Expecting property name"),
        (b'{"loss": 1}', "it is JSON, but no history"),
        (b"[1]", "it is JSON, but no history"),
        (b"PK\5\6" + bytes(18), "it is not of fastopt, and holds nothing"),
    ],
    ids=["empty", "cut", "number", "list", "archive"],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^path must name a file that fastopt wrote, got .*file': {message}"):
        fastopt.describe_file(path)
    with pytest.raises(FileNotFoundError):
        fastopt.describe_file(tmp_path / "none")


# ---- Histories ------------------------------------------------------------------------------------------


def test_histories_of_several_runs(tmp_path, samples):
    histories = nn.fit_many([mlp(seed) for seed in (5, 6)], *samples)
    histories.save(tmp_path / "histories.json")
    said = fastopt.describe_file(tmp_path / "histories.json")
    assert said["kind"] == "histories"
    assert [run["seeds"] for run in said["runs"]] == [{"model": seed, "fit": seed} for seed in (5, 6)]
    assert [run["environment"] for run in said["runs"]] == [environment.record()] * 2
    nn.History(loss=[1.0]).save(tmp_path / "bare.json")
    assert fastopt.describe_file(tmp_path / "bare.json") == {"kind": "history"}


def test_orders_and_their_seeds(samples):
    stratified = mlp().fit(*samples, batches=nn.Stratified(samples[1], 6)).provenance
    assert (stratified["order"], stratified["seeds"]) == ("Stratified(6)", {"model": 3, "fit": 3})
    loaded = mlp().fit(data.Loader(samples, 4, seed=8)).provenance
    assert (loaded["order"], loaded["seeds"]) == ("Loader(4)", {"model": 3, "loader": 8})


def test_estimators_have_the_random_state():
    ours = pytest.importorskip("fastopt.sklearn")
    x, y = np.eye(6), np.arange(6) % 2
    for state, wanted in ((7, 7), (np.random.RandomState(0), None)):
        clf = ours.MLPClassifier((3,), max_iter=1, random_state=state)
        with pytest.warns(ours.ConvergenceWarning):
            clf.fit(x, y)
        assert clf.history_.provenance["seeds"]["random_state"] == wanted
        assert clf.history_.provenance["order"] == "scikit-learn's(6)"


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch, samples):
    def run(epochs):
        checkpoint = nn.ModelCheckpoint(tmp_path / "run.npz", resume=True)
        return mlp().fit(*samples, epochs=epochs, callbacks=[checkpoint]).provenance

    here = environment.record()
    assert "earlier" not in run(1)
    assert "earlier" not in run(2)
    monkeypatch.setattr(environment, "record", lambda: ELSEWHERE)
    there = run(3)
    assert (there["environment"], there["earlier"]) == (ELSEWHERE, [here])
    monkeypatch.undo()
    assert run(4)["earlier"] == [ELSEWHERE]
    assert fastopt.describe_file(tmp_path / "run.npz")["earlier"] == [ELSEWHERE]


# ---- The command ----------------------------------------------------------------------------------------


def test_info_of_a_file(tmp_path, samples, capsys):
    paths = write(tmp_path / "files", "npz", samples)
    assert main(["info"]) == 0
    here = capsys.readouterr().out.splitlines()
    for kind in paths:
        assert main(["info", str(paths[kind])]) == 0
        facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert facts["file"] == str(paths[kind])
        assert facts["kind"] == kind
        for name, value in environment.record().items():
            assert facts[name] == value
            assert any(re.split(r"\s{2,}", line) == [name, value] for line in here)
    assert (facts["seeds model"], facts["seeds fit"], facts["order"]) == ("3", "11", "Shuffled(8)")
    assert main(["info", str(tmp_path / "none.npz")]) == 2
    assert capsys.readouterr().err.startswith("fastopt: No such file")
