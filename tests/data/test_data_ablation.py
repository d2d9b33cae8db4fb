"""The example that shows what augmentations are worth."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "augmentation.py"


@pytest.fixture(scope="module")
def accuracies():
    if not EXAMPLE.exists():
        pytest.skip("the examples are not beside the tests")
    return runpy.run_path(str(EXAMPLE))["accuracies"]


def test_digits_that_are_moved(accuracies):
    """What was seen in training is known again, and the rest is not."""
    nothing, shifts, turns = (accuracies("digits", variant, 0) for variant in ("nothing", "shifts", "turns"))
    assert nothing["as they are"] > 0.88
    assert shifts["shifted"] > nothing["shifted"] + 0.2
    assert turns["turned"] > nothing["turned"] + 0.05
    assert turns["shifted"] < nothing["shifted"] + 0.1


@pytest.mark.slow
def test_shapes_from_few_pictures(accuracies):
    nothing = accuracies("shapes", "nothing", 0)["as they are"]
    flips = accuracies("shapes", "flips", 0)["as they are"]
    every = accuracies("shapes", "flips, colours and crops", 0)["as they are"]
    assert nothing + 0.05 < flips < every
    assert every > 0.93
