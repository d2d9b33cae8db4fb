"""Training by several processes: what an Allreduce costs by its size, and steps as predicted from that and as measured.

    python benchmarks/bench_mpi.py    # --ranks 4, --small (a try of each), --busy, --write docs/performance/zen4.md

Times are medians, of float32. A step of P ranks is predicted as that of one process on a P-th of the batch, batch by
batch, plus one Allreduce of the gradients, ``latency + bytes / bandwidth``; these two are fitted to measured ones.
Where the machine is not left alone, ``--busy`` takes minima in the place of medians, and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastopt import mpi, nn

#: Bytes of the messages.
SIZES = tuple(4**k for k in range(2, 13))
#: A network for which steps are predicted: seconds, and bytes per second, of an Ethernet of 10 Gbit/s.
NETWORK = (25e-6, 1.1e9)


@dataclass(frozen=True)
class Contest:
    name: str
    layers: tuple[int, ...]  # units of dense layers; of the CNN none
    shape: tuple[int, ...]
    batch: int

    def model(self) -> nn.Sequential:
        if not self.layers:
            layers = [
                nn.Conv2D(16, activation="relu"),
                nn.MaxPool2D(),
                nn.Conv2D(32, activation="relu"),
                nn.MaxPool2D(),
            ]
            return nn.Sequential([*layers, nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], self.shape)
        hidden = [nn.Dense(units, activation="relu") for units in self.layers]
        return nn.Sequential([*hidden, nn.Dense(10)], self.shape)


CONTESTS = (
    Contest("MLP 64-32-10, batch 32", (32,), (64,), 32),
    Contest("MLP 784-256-128-10, batch 256", (256, 128), (784,), 256),
    Contest("MLP 784-1024-1024-10, batch 512", (1024, 1024), (784,), 512),
    Contest("CNN 28 x 28, 16 and 32 filters, batch 64", (), (28, 28, 1), 64),
)


def typical(seconds: list[float]) -> float:
    """The median; on a busy machine the least."""
    return min(seconds) if "--busy" in sys.argv else statistics.median(seconds)


# ---- Measuring ------------------------------------------------------------------------------------------------------


class ByBatch(nn.Callback):
    """Has a process take its steps batch by batch, as ranks do."""

    def on_gradients(self, batch: int, grads: Any) -> None:
        pass


def seconds_of_step(contest: Contest, batch: int, small: bool, comm: Any = None, *, by_batch: bool = False) -> float:
    """The median over epochs."""
    steps, epochs = (2, 2) if small else (max(5, 4000 // batch), 9)
    rng, model = np.random.default_rng(0), contest.model()
    x = rng.normal(size=(batch * steps, *contest.shape)).astype(np.float32)
    y = rng.integers(10, size=len(x))
    history = model.fit(x, y, epochs=epochs, batch_size=batch, comm=comm, callbacks=[ByBatch()] if by_batch else [])
    return typical([batch / each for each in history["samples_per_second"][1:]])


def seconds_of_allreduce(group: mpi.Group, size: int, small: bool) -> float:
    """The median of many, each after the one before; rank 0's."""
    array, times = np.zeros(size // 4, np.float32), []
    for _ in range(5 if small else 300 if size < 1 << 20 else 30):
        began = time.perf_counter()
        group.sum(array)
        times.append(time.perf_counter() - began)
    return typical(times)


def measure(ranks: int, small: bool) -> dict[str, Any]:
    """What this process, or this group, measures."""
    comm = mpi.world()
    if comm is None:
        return {
            "whole": [seconds_of_step(contest, contest.batch, small) for contest in CONTESTS],
            "part": [seconds_of_step(each, each.batch // ranks, small, by_batch=True) for each in CONTESTS],
        }
    with mpi.joined(comm) as group:
        assert group is not None
        allreduce = [seconds_of_allreduce(group, size, small) for size in SIZES]
    return {"allreduce": allreduce, "ranks": [seconds_of_step(each, each.batch, small, comm) for each in CONTESTS]}


def run(command: list[str], small: bool, ranks: int, threads: int) -> dict[str, Any]:
    """What a process, or a group, has measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        told = [sys.executable, __file__, "--ranks", str(ranks), "--into", str(out), *(["--small"] if small else [])]
        told += ["--busy"] if "--busy" in sys.argv else []
        subprocess.run([*command, *told], check=True, env={**os.environ, "FASTOPT_NUM_THREADS": str(threads)})
        return json.loads(out.read_text())


# ---- The model ------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """Seconds of an Allreduce between two ranks: ``latency + bytes / bandwidth``."""

    latency: float
    bandwidth: float

    def of(self, size: int) -> float:
        return self.latency + size / self.bandwidth


def fitted(sizes: tuple[int, ...], seconds: list[float]) -> Line:
    """The line with the least sum of squared relative errors."""
    measured = np.array(seconds)
    terms = np.stack([np.ones(len(sizes)), np.array(sizes)], axis=1) / measured[:, None]
    (latency, inverse), *_ = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)
    return Line(float(max(latency, 0)), float(1 / max(inverse, 1e-15)))


def ring(ranks: int, size: int, latency: float, bandwidth: float) -> float:
    """Seconds of an Allreduce of P ranks in a ring: 2 (P - 1) messages of a P-th of the bytes."""
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def tables(ranks: int, single: dict[str, Any], threaded: dict[str, Any], group: dict[str, Any]) -> str:
    """The measurements and the predictions in Markdown."""
    line = fitted(SIZES, group["allreduce"])
    where = processor() + (", shared with others (minima)" if "--busy" in sys.argv else "")
    rows = [
        f"{ranks} ranks on one machine, {where}. Allreduce: latency {1e6 * line.latency:.1f} µs, bandwidth "
        f"{line.bandwidth / 1e9:.2f} GB/s.",
        "",
        "| Allreduce, bytes | measured, µs | latency + bytes / bandwidth, µs |",
        "| ---: | ---: | ---: |",
        *(
            f"| {size:,} | {1e6 * seconds:.1f} | {1e6 * line.of(size):.1f} |"
            for size, seconds in zip(SIZES, group["allreduce"], strict=True)
        ),
        "",
        f"| a step, ms | bytes of gradients | one process, one thread | one process, {ranks} threads | {ranks} ranks, "
        "measured | predicted | 8 machines, predicted |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for i, contest in enumerate(CONTESTS):
        size = sum(array.nbytes for array in contest.model().params.values())
        predicted = single["part"][i] + line.of(size)
        # A step that an eighth of the batch takes, if the part of a batch is proportional to its size.
        far = single["whole"][i] / 8 + ring(8, size, *NETWORK)
        numbers = single["whole"][i], threaded["whole"][i], group["ranks"][i], predicted, far
        rows.append(f"| {contest.name} | {size:,} | " + " | ".join(f"{1e3 * each:.3f}" for each in numbers) + " |")
    return "\n".join(rows)


def processor() -> str:
    """The name of the CPU."""
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


BEGIN, END = "<!-- benchmarks/bench_mpi.py --write -->", "<!-- end -->"


def written(page: str, text: str) -> str:
    """The page with other tables; at its end where it has none."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def launcher() -> str:
    """The mpiexec beside this Python, or on the path."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise SystemExit("bench_mpi.py needs mpiexec: pip install 'fastopt[mpi]'")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a try of each: times mean nothing")
    parser.add_argument("--busy", action="store_true", help="minima in the place of medians")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables into the page of this CPU")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    ranks, small = arguments.ranks, arguments.small
    if arguments.into is not None:
        measured, comm = measure(ranks, small), mpi.world()
        if comm is None or comm.Get_rank() == 0:
            arguments.into.write_text(json.dumps(measured))
        return
    single = run([], small, ranks, 1)
    threaded = run([], small, ranks, ranks)
    group = run([launcher(), "-n", str(ranks)], small, ranks, 1)
    text = tables(ranks, single, threaded, group)
    print(text)
    if arguments.write is not None:
        arguments.write.write_text(written(arguments.write.read_text(), text))


if __name__ == "__main__":
    main()
