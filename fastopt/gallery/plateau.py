"""A plateau.

A Gaussian well, and a start far out where the gradient is nearly 0. Gradient descent, at its best rate, does not move
for forty steps. RMSProp, Adagrad and Adam divide by the size of past gradients: for them the plain is as steep as the
well.
"""

from fastopt import landscape

OPTIMIZERS = ("sgd", "momentum", "look_ahead_nesterov", "adagrad", "rmsprop", "adam")


def run(quick=False):
    return {name: landscape.best(name, "plateau") for name in OPTIMIZERS}


def draw(runs):
    return landscape.picture("plateau", list(runs.values()))


def claim(runs):
    losses = {name: run.losses for name, run in runs.items()}
    assert losses["sgd"][30] > 0.99 * losses["sgd"][0]
    assert all(losses[name][15] < 0.5 * losses[name][0] for name in ("adagrad", "rmsprop", "adam"))
