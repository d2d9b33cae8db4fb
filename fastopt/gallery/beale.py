"""Beale's function.

A plain between steep walls: rates that the walls allow are too low for the plain. Six optimizers, 200 steps, each at
its best rate. Plain gradient descent ends highest, though all of them go down.
"""

from fastopt import landscape

OPTIMIZERS = ("sgd", "momentum", "look_ahead_nesterov", "adagrad", "rmsprop", "adam")


def run(quick=False):
    return {name: landscape.best(name, "beale") for name in OPTIMIZERS}


def draw(runs):
    return landscape.picture("beale", list(runs.values()))


def claim(runs):
    last = {name: run.losses[-1] for name, run in runs.items()}
    assert max(last, key=last.get) == "sgd"
    assert all(run.losses[-1] < 0.1 * run.losses[0] for run in runs.values())
