"""Draw what compare.py measured: a picture per family of contests, the time of an element against the size.

python benchmarks/plot.py RESULTS.json DIR
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

from fastopt.bench import COPY, FLAT, NORMAL, ONE_THREAD, STREAM, families

#: A library's colour (after Okabe and Ito, who chose them for all eyes) …
COLOURS = {
    "fastopt": "#D55E00", "numba": "#009E73", "PyTorch": "#0072B2", "JAX": "#CC79A7", "DeepSpeed": "#56B4E9",
    "scikit-learn": "#B8860B", "thinc": "#8C564B", "numexpr": "#6A51A3", "MKL": "#E69F00", "NumPy": "#777777",
    ONE_THREAD: "#0072B2", FLAT: "#D55E00", NORMAL: "#D55E00", STREAM: "#000000", COPY: "#000000",
}  # fmt: skip
#: … and a contender's marker and dashes within the library.
STYLES = {
    "PyTorch foreach": ("s", "--"), "PyTorch fused": ("D", "-"), "PyTorch compiled": ("^", ":"),
    "PyTorch, other layout": ("s", "--"), "numba, other layout": ("s", "--"), "numba parallel": ("^", ":"),
    "numba parallel, other layout": ("D", ":"), "NumPy textbook": ("s", ":"), STREAM: ("", "--"), COPY: ("|", "--"),
    FLAT: ("|", "--"),
}  # fmt: skip
FLOORS = (STREAM, COPY)
TITLES = {"sgd": "SGD", "rmsprop": "RMSProp", "adam": "Adam", "adamw": "AdamW", "threads": "Adam on several threads"}


def draw(everything: dict, folder: Path) -> list[Path]:
    """Draw each family of at least two contests; return where."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, results in families(everything["results"]).items():
        along = [result for result in results if result["size"].replace(",", "").isdigit()]
        apart = [result for result in results if result not in along]
        for picture, chosen, suffix in ((lines, along, ""), (dots, apart, "-shapes" if along else "")):
            if len(chosen) > 1:
                figure = picture(chosen)
                figure.suptitle(f"{TITLES.get(name, name.replace('_', ' ').capitalize())}: time per element",
                                x=0.01, ha="left", fontsize=13, fontweight="bold")  # fmt: skip
                figure.text(0.01, 0.005, _footnote(everything["environment"]), fontsize=7, color="#666666")
                paths.append(folder / f"{name}{suffix}.png")
                figure.savefig(paths[-1], dpi=140)
                plt.close(figure)
    return paths


def lines(results: list[dict]) -> plt.Figure:
    """Sizes along the axis, a line for each contender, named at its left end, where they lie far apart."""
    figure, axes = plt.subplots(figsize=(9, 6), facecolor="white")
    figure.subplots_adjust(left=0.2, right=0.91, top=0.9, bottom=0.13)
    ends = {}
    for name in _contenders(results):
        rows = [result for result in results if name in result["seconds"]]
        x = [result["elements"] for result in rows]
        y = [_per_element(result, name) for result in rows]
        colour, marker, dashes, ours = _look(name)
        axes.plot(x, y, dashes, marker=marker, color=colour, linewidth=3 if ours else 1.3, markersize=6 if ours else 4,
                  zorder=5 if ours else 3)  # fmt: skip
        if name in FLOORS:
            axes.fill_between(x, y, 1e-9, color="#000000", alpha=0.06, linewidth=0)
        if x[0] == results[0]["elements"]:
            ends[name] = y[0]
        else:
            axes.annotate(name, (x[0], y[0]), xytext=(6, 4), textcoords="offset points", color=colour, fontsize=8)
    values = [_per_element(result, name) for result in results for name in result["seconds"]]
    axes.set(xscale="log", yscale="log", xlabel="elements", ylim=(min(values) / 1.4, max(values) * 1.5))
    axes.yaxis.tick_right()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} ns")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _tidy(axes)
    low, high = (math.log(limit) for limit in axes.get_ylim())
    wanted = {name: (math.log(value) - low) / (high - low) for name, value in ends.items()}
    for name, place in _spread(wanted, 0.037).items():
        colour, _, _, ours = _look(name)
        axes.annotate(name, (results[0]["elements"], ends[name]), xytext=(-0.055, place), textcoords="axes fraction",
                      ha="right", va="center", color=colour, fontsize=9, fontweight="bold" if ours else "normal",
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6,
                                  "relpos": (1, 0.5), "shrinkA": 1, "shrinkB": 3})  # fmt: skip
    return figure


def dots(results: list[dict]) -> plt.Figure:
    """A row for each shape, a mark for each contender."""
    height = 1.6 + 0.42 * len(results)
    figure, axes = plt.subplots(figsize=(9, max(height, 3.6)), facecolor="white")
    figure.subplots_adjust(left=0.25, right=0.76, top=1 - 0.5 / height, bottom=0.75 / height)
    for name in _contenders(results):
        rows = [(i, result) for i, result in enumerate(results) if name in result["seconds"]]
        colour, marker, dashes, ours = _look(name)
        marker = "|" if name in FLOORS else marker
        size = 16 if marker == "|" else 9 if ours else 6
        axes.plot([_per_element(result, name) for _, result in rows], [i for i, _ in rows], marker, color=colour,
                  markersize=size, markerfacecolor=colour if dashes == "-" else "white", markeredgewidth=1.3,
                  zorder=5 if ours else 3, label=name)  # fmt: skip
    axes.set(xscale="log", yticks=range(len(results)), yticklabels=[result["size"] for result in results])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ns")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.invert_yaxis()
    axes.margins(y=0.5 / len(results))
    _tidy(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def _contenders(results: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["seconds"]))


def _per_element(result: dict, name: str) -> float:
    return 1e9 * result["seconds"][name]["median"] / result["elements"]


def _look(name: str) -> tuple[str, str, str, bool]:
    """Colour, marker and dashes of a contender, and whether it is fastopt."""
    colour = next(colour for library, colour in COLOURS.items() if name.startswith(library))
    marker, dashes = STYLES.get(name, ("o", "-"))
    return colour, marker, dashes, name == "fastopt"


def _tidy(axes: plt.Axes) -> None:
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=9)
    axes.minorticks_off()
    axes.spines[:].set_visible(False)


def _spread(places: dict[str, float], gap: float) -> dict[str, float]:
    """The places moved apart until no two are closer than `gap`, as little as may be."""
    names = sorted(places, key=places.__getitem__)
    values = [places[name] for name in names]
    for _ in range(500):
        for i in range(len(values) - 1):
            lacking = gap - (values[i + 1] - values[i])
            if lacking > 0:
                values[i] -= lacking / 2
                values[i + 1] += lacking / 2
    return dict(zip(names, values, strict=True))


def _footnote(environment: dict) -> str:
    number = int(environment.get("threads", 1))  # as `fastopt bench` has it
    count = "one thread" if number == 1 else f"{number} threads"
    return (
        f"float32, {count}, {environment['instruction set'].split()[0]}; medians of interleaved rounds. "
        f"fastopt {environment['fastopt']}, NumPy {environment['NumPy']}. Lower is faster."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for path in draw(json.loads(arguments.results.read_text()), arguments.folder):
        print(path)
