"""Measure training end to end: samples per second of fastopt and its peers, side by side in one process.

python benchmarks/bench_training.py [--only MLP] [--threads 2] [--no-compiled] [--json FILE] [--markdown]
python benchmarks/bench_training.py --many [--rounds 15]
python benchmarks/bench_training.py --tiny    # the time per step of small networks
env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/bench_training.py    # as most users have it

Each contender trains one epoch in its turn, round after round; a rate is that of the median round. `outside products`
is the share of fastopt's time that is not spent in products (with bias and ReLU, where a kernel makes both in one), for
nets without convolutions.
"""

import argparse
import gc
import json
import os
import statistics
import time
from pathlib import Path
from unittest import mock

#: What the project demands of itself on one thread: net, rival, how many times its rate.
DEMANDS = (
    ("MLP, batch 64", "PyTorch's best", 2.5),
    ("MLP, batch 64", "JAX", 1.6),
    ("MLP, batch 128", "PyTorch's best", 2.5),
    ("MLP, batch 128", "JAX", 1.6),
    ("plain MLP, batch 64", "scikit-learn", 3.5),
    ("CNN 28×28", "PyTorch's best", 2.5),
    ("CNN 28×28", "NumPy", 5.0),
    ("CNN 32×32×3", "PyTorch's best", 1.8),
    ("ResNet-20", "PyTorch's best", 1.4),
)
MOST_OUTSIDE = 0.25


def main() -> None:
    arguments = parse()
    os.environ["FASTOPT_BENCH_THREADS"] = str(arguments.threads)  # libraries read their threads when they load
    import settings  # noqa: F401

    if arguments.many:
        bench_many(arguments)
        return
    import trainers

    import fastopt
    from fastopt import cli

    fastopt.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    variables = [
        f"{name}={os.environ[name]}" for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ
    ]
    fence = "```\n" if arguments.markdown else ""
    print(f"{fence}{cli.describe_environment()}\nBLAS variables   {', '.join(variables) or 'unset'}\n"
          f"threads of all   {arguments.threads}\nload before      {load:.1f}\n{fence}", flush=True)  # fmt: skip
    if arguments.tiny:
        import tiny

        tiny.main(arguments.rounds, arguments.markdown)
        return
    results = {}
    for name, net in trainers.NETS.items():
        if arguments.only in name:
            results[name] = race(trainers, net, arguments)
            print(f"{row(name, results[name])}", flush=True)
            gc.collect()
    shown = judge(results)
    print("\n" + table(results, markdown=arguments.markdown))
    print("\nMust show" + "".join(f"\n{line}" for line in shown))
    if arguments.json:
        environment = cli.environment() | {"threads": arguments.threads, "load before": load, "variables": variables}
        arguments.json.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")


def bench_many(arguments):
    """Many small models at once: see many.py."""
    import many

    from fastopt import cli

    load = os.getloadavg()[0]
    print(f"{cli.describe_environment()}\nload before      {load:.1f}\n", flush=True)
    results = many.report(arguments.rounds, models=arguments.models, epochs=arguments.epochs, peers=arguments.peers)
    if arguments.json:
        environment = cli.environment() | {"load before": load}
        arguments.json.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")


def race(trainers, net, arguments):
    """Samples per second of each contender, and the share of our time outside matrix products."""
    epochs, absent = {}, {}
    for name, make in trainers.trainers(net, compiled=arguments.compiled).items():
        if arguments.peers or name == "fastopt":
            try:
                epochs[name] = make()
                epochs[name](trainers.epoch_batches(net, 0))  # compiles; makes memory
            except ImportError as error:
                absent[name] = str(error)
    times = {name: [] for name in epochs}
    for number in range(1, arguments.rounds + 1):
        chosen = trainers.epoch_batches(net, number)
        for name, epoch in epochs.items():
            until = time.perf_counter() + (0.12 if arguments.threads > 1 else 0)  # a BLAS's threads spin that long
            while time.perf_counter() < until:
                pass
            start = time.perf_counter()
            epoch(chosen)
            times[name].append(time.perf_counter() - start)
    rates = {name: net.samples / statistics.median(taken) for name, taken in times.items()}
    share = None if len(net.shape) == 3 else outside(epochs["fastopt"], lambda: trainers.fastopt_trainer(net))
    return {"rates": rates, "outside": share, "absent": absent}


def outside(epoch, make):
    """The share of an epoch's time that is not spent in products, with what they have fused: bias and ReLU. Products
    are timed in epochs of another trainer, as that takes time, too."""
    import numpy as np

    from fastopt import _kernels
    from fastopt.nn.trainer import Steps

    own, seconds, whole, inside = ("dense_forward", "dense_input_grad", "dense_weight_grad"), {}, [], []
    made, multiply = _kernels.Program, np.matmul

    class Timed:
        """A program whose items are timed."""

        def __init__(self):
            self.calls = made()

        def run(self, *arguments, **options):
            return self.calls.run(*arguments, seconds=seconds, **options)

        def __len__(self):
            return len(self.calls)

        def __getattr__(self, name):
            return getattr(self.calls, name)

    def timed_matmul(*arguments, **options):
        start = time.perf_counter()
        result = multiply(*arguments, **options)
        seconds["matmul"] = seconds.get("matmul", 0.0) + time.perf_counter() - start
        return result

    def timed():
        with mock.patch.object(Steps, "epochs", return_value=[]):  # one after the other, as `Timed.run` has them
            trained(None)

    with mock.patch.object(_kernels, "Program", Timed), mock.patch.object(np, "matmul", timed_matmul):
        trained = make()
        timed()
    for _ in range(9):
        start = time.perf_counter()
        epoch(None)
        whole.append(time.perf_counter() - start)
        seconds.clear()
        timed()
        inside.append(sum(seconds.get(name, 0.0) for name in ("matmul", *own)))
    return 1 - statistics.median(inside) / statistics.median(whole)


def rival(rates, name):
    """The rate of a rival, or None."""
    if name == "PyTorch's best":
        return max((rate for key, rate in rates.items() if key.startswith("PyTorch")), default=None)
    return rates.get(name)


def judge(results):
    """A line for each demand on what was measured."""
    lines = []
    for net, name, wanted in DEMANDS:
        if net in results and (theirs := rival(results[net]["rates"], name)):
            ratio = results[net]["rates"]["fastopt"] / theirs
            lines.append(f"{'yes' if ratio >= wanted else 'NO ':<4} {net}: {ratio:.2f} × {name} (at least {wanted})")
    if "MLP, batch 64" in results:
        share = results["MLP, batch 64"]["outside"]
        met = "yes" if share < MOST_OUTSIDE else "NO "
        lines.append(f"{met:<4} MLP, batch 64: {share:.0%} of a step outside products (under {MOST_OUTSIDE:.0%})")
    return lines


def row(name, result):
    rates = ", ".join(f"{key} {rate:,.0f}" for key, rate in result["rates"].items())
    share = "" if result["outside"] is None else f"; {result['outside']:.0%} outside products"
    return f"{name}: {rates} samples/s{share}" + "".join(
        f"; {key} absent ({why})" for key, why in result["absent"].items()
    )


def table(results, *, markdown):
    """Our rate, and how many times each other's it is."""
    others = list(dict.fromkeys(name for result in results.values() for name in result["rates"] if name != "fastopt"))
    rows = [["net", "fastopt, samples/s", "outside products", *(f"× {name}" for name in others)]]
    for net, result in results.items():
        rates = result["rates"]
        ratios = [f"{rates['fastopt'] / rates[name]:.2f}" if name in rates else "–" for name in others]
        share = "–" if result["outside"] is None else f"{result['outside']:.0%}"
        rows.append([net, f"{rates['fastopt']:,.0f}", share, *ratios])
    if markdown:
        rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, wide, strict=True)))
                     for r in rows)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="the nets whose name holds TEXT")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every contender; default: 1")
    parser.add_argument("--tiny", action="store_true", help="the time per step of small networks instead")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="the peers too")
    parser.add_argument("--many", action="store_true", help="many small models at once, in the place of the nets")
    parser.add_argument("--models", type=int, default=32, metavar="N", help="of --many; default: 32")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of --many, for each model; default: 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything that was measured")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
