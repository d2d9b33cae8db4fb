"""Rosenbrock's function.

A bent valley with a nearly flat floor: its walls hold the rate down, and along the floor there is hardly a slope.
After 300 steps, each at its best rate, gradient descent is still on the way; what keeps a velocity (momentum,
Nesterov, Adam) is a hundred times lower.
"""

from fastopt import landscape

OPTIMIZERS = ("sgd", "momentum", "look_ahead_nesterov", "rmsprop", "adam")


def run(quick=False):
    return {name: landscape.best(name, "rosenbrock") for name in OPTIMIZERS}


def draw(runs):
    return landscape.picture("rosenbrock", list(runs.values()))


def claim(runs):
    last = {name: run.losses[-1] for name, run in runs.items()}
    assert max(last["momentum"], last["look_ahead_nesterov"], last["adam"]) < 0.02 * last["sgd"]
