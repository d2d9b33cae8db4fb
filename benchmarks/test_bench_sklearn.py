"""The contests of `bench_sklearn.py` run, on a small scale, and estimators agree in them; measures nothing."""

import pytest

pytest.importorskip("sklearn")

import bench_sklearn


@pytest.mark.parametrize("contest", bench_sklearn.CONTESTS, ids=lambda contest: contest.name)
def test_contests_are_of_equal_work(contest):
    result = bench_sklearn.race(contest, rounds=1, small=True)
    assert result["epochs"] == {"scikit-learn": 2, "fastopt": 2}
    assert all(seconds > 0 for seconds in result["seconds"].values())


@pytest.mark.parametrize("name", bench_sklearn.SAME)
def test_coefficients_are_the_same(name):
    assert bench_sklearn.distance(bench_sklearn.SAME[name], epochs=3) <= bench_sklearn.DISTANCE
