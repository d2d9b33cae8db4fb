"""What the benchmarks must show: the demands that the project makes on itself, and whether a run meets them."""

import importlib.util
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fastopt.bench import (
    CLASSICS,
    COPY,
    FLAT,
    NORMAL,
    ONE_THREAD,
    STREAM,
    UNCLIPPED,
    UNFUSED,
    WITH_NORMS,
    YARDSTICKS,
    steps,
)

#: The fastest of all that is neither NumPy nor a yardstick.
BEST_PEER = "best peer"
FUSED, PYTORCH, FOREACH, COMPILED = "PyTorch fused", "PyTorch", "PyTorch foreach", "PyTorch compiled"
NUMPY = "NumPy in place"


@dataclass
class Demand:
    """Each of these contests: the rival takes at least so many times as long, or fastopt at most."""

    names: str
    sizes: tuple[str, ...] | None  # None is every size
    rival: str
    at_least: float | None = None
    at_most: float | None = None
    threads: tuple[int, ...] = (1,)


SIMPLE = "sgd momentum nesterov rmsprop adagrad"
CLASSIC, UNFUSED = " ".join(CLASSICS), " ".join(UNFUSED)
OTHERS = " ".join(name for name in steps() if name not in (*CLASSICS, *WITH_NORMS))
MILLIONS, LARGE = ("1,000,000", "10,000,000", "50,000,000"), ("10,000,000", "50,000,000")
IN_CACHE, IN_MEMORY = ("1,048,576",), ("8,388,608",)
SHAPES = ("(64, 512)", "(256, 1024)", "(128, 16, 32, 32)", "(64, 64, 28, 28)", "(32, 256, 14, 14)")
TALL = ("(4096, 1024)",)
LAST = tuple(f"{shape} channels last" for shape in ("(128, 32, 32, 16)", "(64, 28, 28, 64)", "(32, 14, 14, 256)"))
FORWARD, BACKWARD = "batch_norm_forward", "batch_norm_backward"
BOTH = f"{FORWARD} {BACKWARD}"

# fmt: off
DEMANDS = [
    Demand("adam",             ("100",),             BEST_PEER,  at_least=8),
    Demand("adam",             ("1,000",),           BEST_PEER,  at_least=4),
    Demand("adam",             ("10,000",),          BEST_PEER,  at_least=1.5),
    Demand("adam",             ("100,000",),         BEST_PEER,  at_least=1.1),
    Demand("adam",             ("1,000,000",),       BEST_PEER,  at_least=1.25),
    Demand("adam",             ("10,000,000",),      BEST_PEER,  at_least=1.0),
    Demand(SIMPLE,             ("100",),             BEST_PEER,  at_least=3),
    Demand(SIMPLE,             ("1,000",),           BEST_PEER,  at_least=2),
    Demand(SIMPLE,             ("10,000",),          BEST_PEER,  at_least=1.3),
    Demand(SIMPLE,             ("100,000",),         BEST_PEER,  at_least=1.0),
    Demand(SIMPLE,             MILLIONS,             BEST_PEER,  at_least=1.0),
    Demand("adam",             ("100",),             NUMPY,      at_least=20),
    Demand("adam",             ("10,000",),          NUMPY,      at_least=6),
    Demand("adam",             ("100,000",),         NUMPY,      at_least=4.5),
    Demand("adam",             ("ResNet-20",),       FUSED,      at_least=6),
    Demand("adam",             ("ResNet-20",),       "numba",    at_least=1.8),
    Demand("adam",             ("ResNet-20",),       FLAT,       at_most=1.10),
    Demand("adam",             ("MLP",),             FUSED,      at_least=2.5),
    Demand("adam",             ("MLP",),             BEST_PEER,  at_least=1.3),
    Demand(CLASSIC,            LARGE,                STREAM,     at_least=0.92, threads=(1, 2)),
    Demand(OTHERS,             ("10,000,000",),      STREAM,     at_least=0.88),
    Demand(UNFUSED,            ("1,000,000",),       PYTORCH,    at_least=4),
    Demand(UNFUSED,            ("1,000,000",),       FOREACH,    at_least=4),
    Demand(UNFUSED,            ("1,000,000",),       COMPILED,   at_least=1.3),
    Demand(UNFUSED,            ("ResNet-20",),       PYTORCH,    at_least=6),
    Demand(UNFUSED,            ("ResNet-20",),       FOREACH,    at_least=6),
    Demand(UNFUSED,            ("ResNet-20",),       COMPILED,   at_least=6),
    Demand("clipped_adam",     ("10,000,000",),      UNCLIPPED,  at_most=1.35),
    Demand("threads",          ("100,000", "300,000", "1,000,000"), ONE_THREAD, at_least=1.5, threads=(2,)),
    Demand("threads",          None,                 ONE_THREAD, at_least=0.95, threads=(2,)),
    Demand("denormals",        None,                 NORMAL,     at_most=1.2),
    Demand("dropout",          IN_CACHE,             BEST_PEER,  at_least=2),
    Demand("dropout",          IN_CACHE,             PYTORCH,    at_least=30),
    Demand("dropout",          IN_MEMORY,            COPY,       at_most=1.25),
    Demand("dropout_backward", IN_MEMORY,            COPY,       at_most=1.15),
    Demand(FORWARD,            ("(64, 512)",),       PYTORCH,    at_least=4),
    Demand(FORWARD,            SHAPES,               PYTORCH,    at_least=2.5),
    Demand(FORWARD,            TALL,                 PYTORCH,    at_least=1.5),
    Demand(FORWARD,            (*SHAPES, *TALL),     BEST_PEER,  at_least=1.3),
    Demand(BACKWARD,           (*SHAPES, *TALL),     PYTORCH,    at_least=1.5),
    Demand(BACKWARD,           (*SHAPES, *TALL),     BEST_PEER,  at_least=1.2),
    Demand(BOTH,               LAST,                 PYTORCH,    at_least=1.2),
]
# fmt: on
IMPORT_MS, PACKAGE_MB = 30, 2
#: How many times as long NumPy in place must take, in cache, where fastopt is confined to a weaker instruction set.
CONFINED, CONFINED_ELEMENTS = {"avx2": 3, "baseline": 2}, 100_000


def rivals(result: dict, rival: str) -> dict[str, float]:
    """How many times as long as fastopt the rival takes, by its name: one row, or none where it is absent."""
    ratios = result["times_faster"]
    if rival != BEST_PEER:
        return {rival: ratios[rival]} if rival in ratios else {}
    peers = {name: ratio for name, ratio in ratios.items() if name not in YARDSTICKS and not name.startswith("NumPy")}
    best = min(peers, key=peers.__getitem__, default=None)
    return {f"{BEST_PEER}, {best}": peers[best]} if best else {}


def judge(results: list[dict], threads: int) -> list[dict]:
    """Each demand on each contest that was measured: the value (None where the rival is absent), whether it holds."""
    rows = []
    for demand in DEMANDS:
        for result in results:
            if threads not in demand.threads or result["name"] not in demand.names.split():
                continue
            if demand.sizes is None or result["size"] in demand.sizes:
                rows.append(_row(result, demand.rival, demand.at_least, demand.at_most))
    return rows


def judge_confined(results: list[dict], isa: str) -> list[dict]:
    """That no weaker instruction set makes fastopt slow."""
    return [_row(r, NUMPY, CONFINED[isa], None) for r in results if r["elements"] <= CONFINED_ELEMENTS]


def _row(result: dict, rival: str, at_least: float | None, at_most: float | None) -> dict:
    found = rivals(result, rival)
    name, ratio = next(iter(found.items()), (rival, None))
    what = f"{result['name']} {result['size']}: "
    if at_least is not None:
        share = name == STREAM
        what += "share of streaming" if share else f"{name} takes"
        factor, unit = (100, "%") if share else (1, "times as long")
        return row(what, None if ratio is None else ratio * factor, unit, at_least=at_least * factor)
    return row(f"{what}takes of {name}", None if ratio is None else 1 / ratio, "times the time", at_most=at_most)


def row(what: str, value: float | None, unit: str, *, at_least: float | None = None, at_most: float | None = None):
    """A row of the table of demands."""
    sign, bound = ("≥", at_least) if at_least is not None else ("≤", at_most)
    holds = None if value is None else (value >= bound if sign == "≥" else value <= bound)
    return {"what": what, "value": value, "unit": unit, "demand": f"{sign} {bound:.3g} {unit}", "holds": holds}


def format_rows(rows: list[dict], *, markdown: bool) -> str:
    """The demands as a table."""
    lines = [["demand", "measured", "demanded", "verdict"], *(["---"] * 4 for _ in range(markdown))]
    for row in rows:
        measured = "not installed" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
        verdict = {True: "holds", False: "MISSED", None: "–"}[row["holds"]]
        lines.append([row["what"], measured, row["demand"], verdict])
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join((" | " if markdown else "  ").join(map(str.ljust, line, wide)).rstrip() for line in lines)


# ---- Import and size ----------------------------------------------------------------------------------------


def footprint() -> list[dict]:
    """What fastopt costs whoever installs and imports it."""
    milliseconds, foreign = import_cost()
    return [
        row("import fastopt after NumPy", milliseconds, "ms", at_most=IMPORT_MS),
        row(" ".join(["modules of others imported", *foreign]), len(foreign), "modules", at_most=0),
        row("installed without data", package_size() / 1e6, "MB", at_most=PACKAGE_MB),
    ]


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
