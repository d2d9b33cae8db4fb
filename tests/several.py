"""Functions that several processes of MPI call together, in tests."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

#: Seconds after which processes that have not ended are killed, and the test fails.
LIMIT = 600


def mpiexec() -> str:
    """The launcher beside this Python, or on the path; without it, or mpi4py, the test is skipped."""
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("mpiexec is not installed")
    return found


class Ended(NamedTuple):
    """What processes have left."""

    status: int
    out: str
    err: str


def run(n: int, *command: str, cwd: Path, **environment: str) -> Ended:
    """Run a command of Python's by so many processes, all of which are killed if they do not end."""
    started = subprocess.Popen(
        [mpiexec(), "-n", str(n), sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = started.communicate(timeout=LIMIT)
    except BaseException:
        os.killpg(started.pid, signal.SIGTERM)  # of mpiexec, which then ends all
        try:
            started.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
        raise
    return Ended(started.returncode, out, err)


def call(n: int, function, *arguments, folder: Path):
    """What a function of a test module returns on each of n ranks, called as ``function(comm, *arguments)``."""
    ended = start(n, function, *arguments, folder=folder)
    assert ended.status == 0, ended.err
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(n)]


def start(n: int, function, *arguments, folder: Path) -> Ended:
    """The same, for functions that do not return."""
    (folder / "arguments.pickle").write_bytes(pickle.dumps(arguments))
    module = sys.modules[function.__module__].__file__
    return run(n, "-W", "error", __file__, module, function.__name__, str(folder), cwd=folder)


def _main(module: str, name: str, folder: Path) -> None:
    from fastopt import mpi

    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    loaded = sys.modules[Path(module).stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    comm = mpi.world()
    result = getattr(loaded, name)(comm, *pickle.loads((folder / "arguments.pickle").read_bytes()))
    (folder / f"{comm.Get_rank()}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
