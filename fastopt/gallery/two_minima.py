"""Two minima.

The nearer minimum is not the lower one. Gradient descent, Adagrad and RMSProp end in the first that they meet;
momentum, Nesterov and Adam, which keep a velocity, roll through it and over the ridge into the lower one. (A higher
rate would do the same by chance: no method is safe.)
"""

from fastopt import landscape

OPTIMIZERS = ("sgd", "momentum", "look_ahead_nesterov", "adagrad", "rmsprop", "adam")


def run(quick=False):
    return {name: landscape.best(name, "two-minima") for name in OPTIMIZERS}


def draw(runs):
    return landscape.picture("two-minima", list(runs.values()))


def claim(runs):
    crossed = {name for name, run in runs.items() if run.points[-1, 0] < 0}
    assert crossed == {"momentum", "look_ahead_nesterov", "adam"}
