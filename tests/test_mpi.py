"""Processes that work together, and the command under mpiexec."""

from __future__ import annotations

import json

import numpy as np
import pytest
import several

from fastopt import cli, mpi, nn, threads

# ---- Groups ---------------------------------------------------------------------------------------------------------


def exchange(comm):
    with mpi.joined(comm) as group:
        rank = group.rank

        def fails_on(which):
            if rank in which:
                raise FileNotFoundError(2, "no such thing", f"of rank {rank}")
            return rank

        def attempt(which):
            try:
                return group.together(lambda: fails_on(which))
            except (OSError, mpi.Elsewhere) as error:
                return type(error).__name__, str(error), type(getattr(error, "error", None)).__name__

        first = np.full(3, rank, np.int64)
        group.copy_first(first)
        mine = {
            "rank": (rank, group.size),
            "sum": group.sum(np.array([1.0, rank])).tolist(),
            "gather": group.gather(np.array([rank, 7])).tolist(),
            "everyone": group.everyone({"rank": rank}),
            "of_first": group.of_first(f"rank {rank}"),
            "copy_first": first.tolist(),
            "rows": [group.rows(n) for n in (0, 2, 10)],
            "together": attempt(()),
            "fails on one": attempt((1,)),
            "fails on all": attempt((0, 1, 2)),
        }
        shared = threads.available() // group.size
    mine["threads"] = mpi._threads(comm) == max(1, shared)
    with mpi.joined(comm.Split(rank)) as alone:
        mine["alone"] = alone is None
    try:
        with mpi.joined(comm):
            raise ValueError("on all ranks")
    except ValueError as error:
        mine["all raise"] = str(error)
    return mine


def test_what_ranks_exchange(tmp_path):
    pytest.importorskip("mpi4py")
    ranks = several.call(3, exchange, folder=tmp_path)
    for i, own in enumerate(ranks):
        assert own.pop("rank") == (i, 3)
        assert own.pop("together") == i
        assert own.pop("rows") == [[(0, 0), (0, 0), (0, 3)], [(0, 0), (0, 1), (3, 6)], [(0, 0), (1, 2), (6, 10)]][i]
        one, all_of_them = own.pop("fails on one"), own.pop("fails on all")
        missing = f"[Errno 2] no such thing: 'of rank {i}'"
        assert all_of_them == ("FileNotFoundError", missing, "NoneType")
        other = "rank 1 of 3 failed: FileNotFoundError: [Errno 2] no such thing: 'of rank 1'"
        assert one == (all_of_them if i == 1 else ("Elsewhere", other, "FileNotFoundError"))
        assert own == {
            "sum": [3.0, 3.0],
            "gather": [[0, 7], [1, 7], [2, 7]],
            "everyone": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "of_first": "rank 0",
            "copy_first": [0, 0, 0],
            "threads": True,
            "alone": True,
            "all raise": "on all ranks",
        }


def test_one_process_is_no_group(monkeypatch):
    for name in mpi._SIZES:
        monkeypatch.delenv(name, raising=False)
    assert mpi.world() is None
    with mpi.joined(None) as group:
        assert group is None


def test_several_processes_without_mpi4py_are_refused(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(ImportError, match=r"several processes need mpi4py: pip install 'fastopt\[mpi\]'"):
        mpi.world()
    assert cli.main(["info"]) == 2
    assert "pip install 'fastopt[mpi]'" in capsys.readouterr().err


# ---- The command ----------------------------------------------------------------------------------------------------

TRAIN = ("train", "--model", "mlp", "--epochs", "3", "--batch-size", "128")

#: The command, of which rank 1 is killed before the third epoch.
KILLED = """
import os, signal, sys
from fastopt import cli

class _SameArguments(cli._SameArguments):
    def on_epoch_begin(self, epoch):
        if epoch == 2 and os.environ["PMI_RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

cli._SameArguments = _SameArguments
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_command_by_two_processes(tmp_path, monkeypatch, capsys):
    ended = several.run(2, "-m", "fastopt", *TRAIN, "--out", "two", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*TRAIN, "--out", "one"]) == 0
    more = "2 ranks, each on its part of every batch; where one is lost, all end, and --resume --out two goes on from"
    assert more in ended.out
    same = [line.partition("  ")[0] for line in capsys.readouterr().out.replace("one/", "two/").splitlines()]
    lines = [line.partition("  ")[0] for line in ended.out.splitlines() if more not in line]
    assert lines[:-1] == same[:-1]  # the last one is the accuracy
    runs = [json.loads((tmp_path / out / "history.json").read_text()) for out in ("one", "two")]
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(runs[1][name], runs[0][name], rtol=1e-3)  # float32, and AdamW
    assert (tmp_path / "two" / "model.npz").exists()
    assert not (tmp_path / "two" / "checkpoint.npz").exists()
    again = several.run(2, "-m", "fastopt", *TRAIN, "--out", "two", cwd=tmp_path)
    assert (again.status, again.out) == (2, "")
    assert again.err.count("fastopt: --out must be a folder without a run, got 'two'") == 1


def test_only_train_is_for_several_processes(tmp_path):
    ended = several.run(2, "-m", "fastopt", "info", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "fastopt: info is for one process: of mpiexec, train alone makes use\n"


@pytest.mark.slow
def test_a_run_that_has_lost_a_process_is_resumed(tmp_path):
    ended = several.run(2, "-c", KILLED, *TRAIN, "--out", "run", cwd=tmp_path)
    assert ended.status != 0
    assert "signal 9" in ended.out + ended.err
    assert "epoch 2/3" in ended.out
    assert "epoch 3/3" not in ended.out
    assert nn.load(tmp_path / "run" / "checkpoint.npz").shapes[-1] == (10,)
    resumed = several.run(2, "-m", "fastopt", *TRAIN, "--out", "run", "--resume", cwd=tmp_path)
    assert resumed.status == 0, resumed.err
    assert "epoch 2/3" not in resumed.out
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())["loss"]) == 3
