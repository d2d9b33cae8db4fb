"""The examples about choosing among models, small: what their tables say holds."""

import runpy
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not beside the tests")


@pytest.fixture
def example():
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))


def test_random_search_beats_a_grid(example, tmp_path):
    """In the mean of few repetitions, of which each tries as many candidates."""
    module = example("random_search")
    found = module["search"](repetitions=8, epochs=6)
    for run in found:
        (grid, _), (random, _) = run["grid"], run["random"]
        assert grid.shape == random.shape == (9, 2)
        assert [len(np.unique(points[:, 0])) for points in (grid, random)] == [3, 9]
    best = module["best"](found)
    assert best["random"].mean() > best["grid"].mean()
    grid = found[0]["grid"][1].reshape(3, 3)
    assert 5 * np.ptp(grid, axis=1).max() < np.ptp(grid, axis=0).min()  # one parameter matters little
    pytest.importorskip("matplotlib")
    module["picture"](found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_accuracy_rises_while_the_loss_is_flat(example):
    curves, (before, after) = example("flat_loss")["run"]()
    assert curves["loss"][-1] > 0.98 * curves["loss"][0]
    assert curves["accuracy"][-1] > curves["accuracy"][0] + 0.2
    assert before < after < before + 0.01


def test_ensembles_gain(example):
    found = example("ensembles")["table"](seeds=2, epochs=80)
    single, snapshots, several = found.values()
    assert several.mean() > single.mean() + 1
    assert snapshots.mean() > single.mean() - 1  # their gain is less than what two seeds tell from none


def test_scores_that_chose_promise_too_much(example):
    honest, chosen, leak = example("splitting")["table"](seeds=4).values()
    assert abs(honest[0] - honest[1]) < 4
    assert chosen[0] - chosen[1] > 1
    assert leak[0] > 55
    assert abs(leak[1] - 50) < 4


def test_imports_are_replaced(example):
    """The same scores, to what rounding may do to one sample."""
    pytest.importorskip("sklearn")
    module = example("replace_import")
    for name, program in module["PROGRAMS"].items():
        if name != "GridSearchCV of MLPClassifier":
            (theirs, ours), _ = module["compare"](program, rounds=1, small=True)
            assert abs(theirs - ours) < 0.005, name
