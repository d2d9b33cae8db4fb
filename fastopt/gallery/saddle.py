"""A saddle.

Six optimizers at their best rates, started almost on the ridge of a saddle, where the way down begins flat. Gradient
descent slides to the saddle point and stands there for some thirty steps. Methods that scale each coordinate by its
own gradients, such as RMSProp, leave at once.
"""

from fastopt import landscape

OPTIMIZERS = ("sgd", "momentum", "look_ahead_nesterov", "adagrad", "rmsprop", "adam")


def run(quick=False):
    return {name: landscape.best(name, "saddle") for name in OPTIMIZERS}


def draw(runs):
    return landscape.picture("saddle", list(runs.values()))


def claim(runs):
    surface = landscape.SURFACES["saddle"]
    stuck, out = (surface.excess(*runs[name].points[20]) for name in ("sgd", "rmsprop"))
    assert stuck > surface.excess(0, 0) - 0.01, "still at the saddle after 20 steps"
    assert out < 1e-6, "at the minimum by then"
