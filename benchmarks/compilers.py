"""Kernels from two compilers, timed side by side: products, steps, and batch norm.

python benchmarks/compilers.py                                      # gcc and clang
python benchmarks/compilers.py gcc "python -m ziglang cc -target x86_64-linux-gnu.2.17"
python benchmarks/compilers.py --rounds 30 --only dense

Each compiler's kernels are built into a folder of their own below build/compilers, and run in a process of its own; the
two take turns within each round. Ratios are medians over rounds; beyond 1.05, the slower compiler is named. That bits
are the same is what `make clang-test` shows.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "compilers"
#: Times that differ by no more are counted as equal.
EQUAL = 1.05
#: How long a measurement takes, at least.
SECONDS = 0.01


# ---- The work, in a process of each compiler's -----------------------------------------------------------------


def work() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import numpy as np

    import fastopt
    from fastopt import functional as F  # noqa: N812

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    calls: dict[str, Callable[[], object]] = {}
    for rows, inputs, columns in ((64, 784, 256), (64, 256, 128), (32, 64, 100), (200, 100, 100), (512, 512, 512)):
        size, x, w, dy = f"{rows}×{inputs}×{columns}", draw(rows, inputs), draw(inputs, columns), draw(rows, columns)
        y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
        calls[f"dense_forward {size}"] = lambda x=x, w=w, y=y: F.dense_forward(x, w, out=y)
        calls[f"dense_input_grad {size}"] = lambda dy=dy, w=w, x=x, dx=dx: F.dense_input_grad(dy, w, out=dx)
        calls[f"dense_weight_grad {size}"] = lambda x=x, dy=dy, dw=dw: F.dense_weight_grad(x, dy, out=dw)
    image, kernel = draw(16, 28, 28, 16), draw(3, 3, 16, 32)
    calls["conv2d 16×28×28×16, 3×3, 32"] = lambda: F.conv2d(image, kernel)
    for n in (1_000, 10_000, 100_000):
        grad = draw(n)
        for name, optimizer in sorted(fastopt.optimizers.OPTIMIZERS.items()):
            if hasattr(optimizer, "look_ahead"):  # whose kernel is that of momentum
                continue
            step = optimizer(draw(n), lr=1e-6).step
            calls[f"{name} {n:,}"] = lambda step=step, grad=grad: step(grad)
    for shape in ((64, 512), (64, 14, 14, 64)):
        x, (scale, shift, mean, var) = draw(*shape), np.ones((4, shape[-1]), np.float32)
        dy, (y, cache) = draw(*shape), F.batch_norm_forward(x, scale, shift, mean, var, axis=-1)
        size = "×".join(map(str, shape))
        calls[f"batch_norm_forward {size}"] = lambda x=x, v=(scale, shift, mean, var), y=y: F.batch_norm_forward(
            x, *v, axis=-1, out=y
        )
        calls[f"batch_norm_backward {size}"] = lambda dy=dy, cache=cache: F.batch_norm_backward(dy, cache)
    return calls


def seconds(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def serve() -> None:
    """Time what is asked for: lines of names in, seconds of a call out."""
    calls, counts = work(), {}
    print(json.dumps([*calls]), flush=True)
    for line in sys.stdin:
        call = calls[line.rstrip("\n")]
        if call not in counts:
            call()
            counts[call] = max(1, round(SECONDS / max(seconds(call, 3), 1e-9)))
        print(seconds(call, counts[call]), flush=True)


# ---- The race ------------------------------------------------------------------------------------------------


def built(compiler: str, number: int) -> Path:
    """A folder with the package as a compiler makes it."""
    source, site = FOLDER / f"source-{number}", FOLDER / f"site-{number}"
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), "."]
    environment = os.environ | {"CC": compiler, "LDSHARED": f"{compiler} -shared"}
    subprocess.run(command, cwd=source, env=environment, check=True)
    return site


class Worker:
    """A process with the kernels of one compiler."""

    def __init__(self, site: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(site), "FASTOPT_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.names = json.loads(self.process.stdout.readline())

    def seconds(self, name: str) -> float:
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compilers", nargs="*", default=["gcc", "clang"], help="two commands; gcc and clang")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="what names must contain")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    if len(arguments.compilers) != 2:
        parser.error("there must be two compilers")
    workers = [Worker(built(compiler, number)) for number, compiler in enumerate(arguments.compilers)]
    first, second = arguments.compilers
    print(f"{'µs of a call':<40} {first[:12]:>12} {second[:12]:>12} {'ratio':>6}")
    for name in (name for name in workers[0].names if arguments.only in name):
        times = [[worker.seconds(name) for worker in workers] for _ in range(arguments.rounds)]
        ratio = statistics.median(b / a for a, b in times)
        one, other = (1e6 * statistics.median(each) for each in zip(*times, strict=True))
        slower = f"  {second} is slower" if ratio > EQUAL else f"  {first} is slower" if ratio < 1 / EQUAL else ""
        print(f"{name:<40} {one:12.2f} {other:12.2f} {ratio:6.3f}{slower}")


if __name__ == "__main__":
    main()
