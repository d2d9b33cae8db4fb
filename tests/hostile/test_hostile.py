"""Wrong arguments for everything that is public: a sample of the calls that `make hostile` makes."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt
from fastopt import data, functional, gradients, matrices, mpi, nn, schedules
from fastopt.data import augment

sys.path.insert(0, str(Path(__file__).parent))
from calls import CALLS

HERE = Path(__file__).parent
#: Calls for the suite; `make sanitize` makes fewer, each of which takes longer.
COUNT = int(os.environ.get("FASTOPT_HOSTILE_CALLS", "4000"))


def hostile(*arguments):
    """Run the calls in a process of their own."""
    return subprocess.run(
        [sys.executable, HERE / "run.py", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("of", ["functional.", "_kernels.", ""])
def test_nothing_crashes_nothing_changes_nothing_is_unexplained(of):
    done = hostile("--seed", 20, "--calls", COUNT // 2 if of else COUNT, "--of", of)
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert not findings, "\n".join([*map(str, findings), done.stderr[-5000:]])
    assert done.returncode == 0, done.stderr


def test_what_is_wrong_is_found():
    """By functions that crash, hang, write where they must not, and raise what they must not."""
    done = hostile("--self-test", "--seed", 1, "--calls", 60)
    found = {(kind, name) for kind, _, name, _, _ in map(json.loads, done.stdout.splitlines())}
    assert found == {
        ("crash", "crashes"),
        ("exception", "raises"),
        ("no message", "mumbles"),
        ("changed though refused", "writes and refuses"),
        ("state changed though refused", "moves and refuses"),
        ("changed what is not its own", "writes to its input"),
        ("changed what is not its own", "writes behind its output"),
    }, done.stderr
    assert done.returncode == 1


#: Public names that are not in the table of calls, and why.
LEFT_OUT = {
    "what all share": ("Augmentation", "Callback", "Composite", "Initializer", "Layer", "Optimizer", "OptimizerLike"),
    "caches": ("BatchNormCache", "GroupNormCache", "RMSNormCache", "WeightNormCache"),
    "results": ("Epoch", "FitManyError", "Histories", "History", "LRRange", "NonFiniteError", "Table"),
    "a protocol": ("Source",),
    "made by the trainer": ("Program", "Run"),
    "of several processes": ("Elsewhere", "Group"),
    "functions of many steps of the trainer": ("lr_find", "lsuv"),
    "takes a function of one's own": ("register",),
    "classes of warnings": ("FastoptWarning", "LayoutWarning", "TrainingWarning"),
}


def test_everything_public_is_called():
    modules = {fastopt: "", functional: "functional.", gradients: "gradients.", data: "data.",
               augment: "augment.", matrices: "matrices.",
               schedules: "schedules.", nn: "nn.", mpi: "mpi."}  # fmt: skip
    called, missing = {name.partition(" ")[0].rstrip(",") for name in CALLS}, []
    for module, prefix in modules.items():
        for name in getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"]):
            value = getattr(module, name)
            own = inspect.isroutine(value) or inspect.isclass(value) or type(value).__module__ == "fastopt._kernels"
            of_fastopt = getattr(value, "__module__", "").startswith("fastopt")
            if own and of_fastopt and not {prefix + name, name, f"functional.{name}"} & called:
                missing.append(name)
    assert sorted(missing) == sorted(name for names in LEFT_OUT.values() for name in names)
