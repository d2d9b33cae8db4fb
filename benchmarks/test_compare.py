"""The demands are judged as they read, and every result can be drawn. Nothing is measured here."""

import demands
import pytest

from fastopt import bench


def result(name, size, **ratios):
    """What a contest might have come to, with fastopt at a microsecond."""
    seconds = {"fastopt": 1e-6, **{rival: ratio * 1e-6 for rival, ratio in ratios.items()}}
    return {
        "name": name, "size": size, "elements": int(size.replace(",", "")) if size[0].isdigit() else 1_000,
        "seconds": {who: dict.fromkeys(("q1", "median", "q3"), s) for who, s in seconds.items()},
        "times_faster": ratios,
    }  # fmt: skip


def judged(*results, threads=1):
    return {row["what"]: (row["value"], row["holds"]) for row in demands.judge(list(results), threads)}


def test_the_best_peer_is_neither_numpy_nor_a_yardstick():
    ratios = {"NumPy in place": 2.0, "streaming": 0.5, "flat": 1.0, "numba": 3.5, "PyTorch": 9.0}
    assert judged(result("sgd", "100", **ratios)) == {"sgd 100: best peer, numba takes": (3.5, True)}


def test_a_rival_that_is_absent_is_shown():
    assert judged(result("sgd", "1,000", streaming=1.0)) == {"sgd 1,000: best peer takes": (None, None)}


def test_at_most():
    measured = result("dropout", "8,388,608", copy=0.5)
    assert judged(measured) == {"dropout 8,388,608: takes of copy": (2.0, False)}


def test_demands_on_threads():
    measured = result("threads", "100,000", **{"one thread": 1.2})
    assert judged(measured) == {}
    rows = demands.judge([measured], 2)
    assert [row["holds"] for row in rows] == [False, True]
    assert "MISSED" in demands.format_rows(rows, markdown=False)


def test_an_instruction_set_is_judged_in_cache_alone():
    measured = [result("sgd", size, **{"NumPy in place": 2.5}) for size in ("10,000", "1,000,000")]
    assert [row["holds"] for row in demands.judge_confined(measured, "avx2")] == [False]
    assert [row["holds"] for row in demands.judge_confined(measured, "baseline")] == [True]


def test_every_demand_is_on_contests_that_there_are():
    keys = set(bench.catalogue(large=True, threads=2))
    names = {key.partition(" ")[0] for key in keys}
    for demand in demands.DEMANDS:
        assert set(demand.names.split()) <= names
        for name in demand.names.split():
            assert {f"{name} {size}" for size in demand.sizes or ()} <= keys
        assert (demand.at_least is None) != (demand.at_most is None)


def test_pictures(tmp_path):
    plot = pytest.importorskip("plot", reason="matplotlib is not installed", exc_type=ImportError)
    ratios = {"numba": 2.0, "NumPy in place": 4.0, "streaming": 0.9}
    results = [result("adam", size, **ratios) for size in ("100", "1,000", "ResNet-20", "MLP")]
    results += [result("adam", "10,000", **ratios, **{"PyTorch compiled": 3.0}), result("denormals", "1,000,000")]
    environment = {"fastopt": "0", "NumPy": "0", "instruction set": "avx2 (of avx2)", "threads": 1}
    paths = plot.draw({"environment": environment, "results": results}, tmp_path / "new")
    assert [path.name for path in paths] == ["adam.png", "adam-shapes.png"]
    assert all(path.stat().st_size for path in paths)
