"""Results as tables."""

from __future__ import annotations

from typing import Any

from fastopt.bench.contests import STREAM


def families(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results by the names of their contests."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["name"], []).append(result)
    return found


NOTE = (
    "quartiles: of fastopt's time, in the same unit. × name: how many times as long as fastopt it takes. "
    f"{STREAM}: one multiply-add per array."
)


def table(results: list[dict[str, Any]], *, markdown: bool = False) -> str:
    """Results as text: the time of fastopt, its rate, and how many times the others take."""
    others: dict[str, None] = {}
    for result in results:
        others.update(dict.fromkeys(name for name in result["seconds"] if name != "fastopt"))
    header = ["kernel", "size", "fastopt", "quartiles", "GB/s", *(f"× {name}" for name in others)]
    rows = [header]
    for result in results:
        ours, ratios = result["seconds"]["fastopt"], result["times_faster"]
        _, factor = _unit(ours["median"])
        rows.append([
            result["name"], result["size"], duration(ours["median"]),
            f"{ours['q1'] * factor:.3g}–{ours['q3'] * factor:.3g}", f"{result['bytes_per_second'] / 1e9:.1f}",
            *(f"{ratios[name]:.2f}" if name in ratios else "–" for name in others),
        ])  # fmt: skip
    if markdown:
        rows.insert(1, ["---" if i < 2 else "---:" for i in range(len(header))])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (" | " if markdown else "  ").join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    )


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit, factor = _unit(seconds)
    return f"{seconds * factor:.3g} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return unit, factor
    return "ns", 1e9
