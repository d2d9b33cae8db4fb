"""`bench_mpi.py` runs, and its model is one of latency and bandwidth; nothing is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bench_mpi
import pytest


def test_the_line_is_found_again():
    line = bench_mpi.Line(3e-6, 5e9)
    found = bench_mpi.fitted(bench_mpi.SIZES, [line.of(size) for size in bench_mpi.SIZES])
    assert found == pytest.approx(line)


def test_a_ring_of_two_is_two_messages_of_half():
    assert bench_mpi.ring(2, 1000, 1e-6, 1e9) == pytest.approx(2 * (1e-6 + 0.5e-6))
    assert bench_mpi.ring(1, 1000, 1e-6, 1e9) == 0


def test_the_page_has_a_place_for_the_tables():
    page = (Path(bench_mpi.__file__).parents[1] / "docs/performance/zen4.md").read_text()
    assert page.count(bench_mpi.BEGIN) == page.count(bench_mpi.END) == 1
    for text in (page, "# Another CPU\n"):
        again = bench_mpi.written(text, "| other |")
        assert bench_mpi.written(again, "| other |") == again
        assert again.count("| other |") == 1
        assert again.startswith(text.partition(bench_mpi.BEGIN)[0])


def test_it_runs():
    pytest.importorskip("mpi4py")
    script = Path(bench_mpi.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--small"], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.count("\n| MLP") == 3
    assert "Allreduce: latency" in done.stdout
