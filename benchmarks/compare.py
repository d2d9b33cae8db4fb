"""Measure fastopt beside NumPy and every installed peer, side by side in one process on one thread.

python benchmarks/compare.py [--only adam] [--sizes 100 10000] [--json FILE] [--markdown]
python benchmarks/compare.py --check        # only: do all compute the same numbers?
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

import peers

from fastopt import bench, cli

#: How many times as long as fastopt a rival must take, at least.
TIMES = {
    ("adam", "100", "NumPy in place"): 20,
    ("adam", "10,000", "NumPy in place"): 6,
    ("adam", "10,000", "numba"): 1.3,
    ("adam", "100,000", "NumPy in place"): 4.5,
    ("adam", "100,000", "PyTorch fused"): 2.5,
}
#: The share of the streaming speed that every step must reach on arrays far larger than the caches.
LARGE, SHARE = "10,000,000", 0.85
IMPORT_MS, PACKAGE_MB = 30, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose name holds TEXT")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="the rows of arrays of N elements")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15; 3 or more")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything that was measured")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--check", action="store_true", help="compare the numbers, measure nothing")
    arguments = parser.parse_args()

    fence = "```\n" if arguments.markdown else ""
    print(f"{fence}{cli.describe_environment()}\n\n{peers.describe()}\n{fence}", flush=True)
    endings = tuple(f" {n:,}" for n in arguments.sizes or ())
    results = []
    for name, make in bench.catalogue().items():
        if arguments.only in name and (not endings or name.endswith(endings)):
            contest = peers.agree(peers.add(make()))
            if arguments.check:
                print(f"{name}: the same from {', '.join(contest.contenders)}", flush=True)
                continue
            if sys.stderr.isatty():
                print(f"\r{name:<44}\r", end="", file=sys.stderr, flush=True)
            results.append(bench.measure(contest, rounds=arguments.rounds))
    if arguments.check:
        return
    shown = must_show(results)
    print(bench.table(results, markdown=arguments.markdown))
    print(f"\nMust show\n\n{format_shown(shown, markdown=arguments.markdown)}")
    if arguments.json:
        everything = {
            "environment": cli.environment(), "peers": peers.PEERS, "results": results, "must_show": shown,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")


# ---- What must show -----------------------------------------------------------------------------------------


def must_show(results: list[dict]) -> list[dict]:
    """Each demand on what was measured: its text, the value (None where there is none), and whether it holds."""
    shown = []

    def show(what: str, value: float | None, demand: float, unit: str, *, at_least: bool) -> None:
        holds = None if value is None else (value >= demand if at_least else value < demand)
        text = f"{'≥' if at_least else '<'} {demand} {unit}"
        shown.append({"what": what, "value": value, "unit": unit, "demand": text, "holds": holds})

    rows = {(result["name"], result["size"]): result for result in results}
    for (name, size, rival), times in TIMES.items():
        if (name, size) in rows:
            value = rows[name, size]["times_faster"].get(rival)
            show(f"{name} {size}: {rival} takes", value, times, "times as long", at_least=True)
    for (name, size), result in rows.items():
        if size == LARGE and "share_of_streaming" in result:
            percent = 100 * result["share_of_streaming"]
            show(f"{name} {size}: share of streaming", percent, 100 * SHARE, "%", at_least=True)
    milliseconds, foreign = import_cost()
    show("import fastopt after NumPy", milliseconds, IMPORT_MS, "ms", at_least=False)
    show(f"modules of others imported {foreign or ''}".strip(), len(foreign), 1, "modules", at_least=False)
    show("installed without data", package_size() / 1e6, PACKAGE_MB, "MB", at_least=False)
    return shown


def format_shown(shown: list[dict], *, markdown: bool) -> str:
    rows = [["demand", "measured", "demanded", "verdict"], *(["---"] * 4 for _ in range(markdown))]
    for row in shown:
        measured = "not installed" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
        verdict = {True: "holds", False: "MISSED", None: "–"}[row["holds"]]
        rows.append([row["what"], measured, row["demand"], verdict])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join((" | " if markdown else "  ").join(map(str.ljust, row, wide)).rstrip() for row in rows)


_IMPORT = """
import sys, time, numpy
before = set(sys.modules)
start = time.perf_counter()
import fastopt
print(time.perf_counter() - start)
for name in set(sys.modules) - before:
    top = name.partition(".")[0]
    ours = top in ("fastopt", "numpy") or top in sys.stdlib_module_names
    if not ours and getattr(sys.modules[name], "__file__", None):  # Cython's own have no file
        print(top)
"""


def import_cost(repetitions: int = 9) -> tuple[float, list[str]]:
    """The median milliseconds of ``import fastopt`` after NumPy, and which modules of others came with it."""
    seconds, foreign = [], set()
    for _ in range(repetitions + 1):
        command = [sys.executable, "-P", "-c", _IMPORT]
        first, *others = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        seconds.append(float(first))
        foreign.update(others)
    return 1e3 * statistics.median(seconds[1:]), sorted(foreign)  # the first may have compiled to bytecode


def package_size() -> int:
    """The bytes that an installed fastopt takes on disk, but for its data set and the bytecode."""
    spec = importlib.util.find_spec("fastopt")
    root = Path(spec.submodule_search_locations[0])
    return sum(
        path.stat().st_size
        for path in root.rglob("*")
        if path.is_file()
        and path.relative_to(root).parts[0] != "data"
        and "__pycache__" not in path.parts
        and path.suffix not in (".c", ".pyx")
    )


if __name__ == "__main__":
    main()
