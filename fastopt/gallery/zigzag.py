"""Gradient descent in a ravine, by learning rate.

A quadratic that is 80 times as steep across as along, and plain gradient descent at four learning rates. A low rate
creeps; a good one goes to and fro across the ravine while it walks along it; a rate just below 2/80 does so for long,
since each step jumps to the other wall; and above 2/80 each jump is larger than the one before: it diverges.
"""

import numpy as np

from fastopt import landscape

RATES = {"low": 0.003, "good": 0.02, "high": 0.0243, "very high": 0.0258}


def run(quick=False):
    return [landscape.descend("sgd", "ravine", rate, steps=25) for rate in RATES.values()]


def draw(runs):
    page = landscape.picture("ravine", runs)
    page.suptitle("Gradient descent in a ravine: the steepest wall decides the rate, 2 / 80 = 0.025")
    return page


def across(run):
    """The coordinate across the ravine, whose direction is turned by 30 degrees."""
    return run.points @ [-np.sin(np.pi / 6), np.cos(np.pi / 6)]


def claim(runs):
    low, good, high, very_high = runs
    signs = [np.sign(across(run)) for run in runs]
    assert (signs[0] == signs[0][0]).all(), "a low rate does not jump across"
    assert all((sign[1:21] == -sign[:20]).all() for sign in signs[1:]), "each step of the others does"
    assert good.losses[-1] < min(low.losses[-1], high.losses[-1])
    assert (np.diff(very_high.losses) > 0)[5:].all(), "it diverges"
