"""A function of your own.

A bowl with ripples, given as a formula, and momentum with three decay rates of the velocity at the same learning
rate. At 0.5, the first ripple ends the run; at 0.9, it rolls over it and comes to rest at the minimum; at 0.95, it
rolls past that into the next. The command is `fastopt landscape --function "x**2 + y**2 + 2*sin(4*x)" --start=-2.5,2
--limits=-3,3,-2.5,2.5 --optimizers momentum:momentum=0.5,momentum:momentum=0.9,momentum:momentum=0.95 --rates 0.01
--out mine.png`.
"""

from fastopt import landscape

RIPPLES = landscape.surface(
    landscape.expression("x**2 + y**2 + 2*sin(4*x)"),
    start=(-2.5, 2.0),
    limits=(-3, 3, -2.5, 2.5),
    steps=150,
    title="A bowl with ripples: x² + y² + 2 sin 4x",
)


def run(quick=False):
    return [landscape.descend("momentum", RIPPLES, 0.01, momentum=momentum) for momentum in (0.5, 0.9, 0.95)]


def draw(runs):
    return landscape.picture(RIPPLES, runs)


def claim(runs):
    short, right, past = (run.points[-1, 0] - RIPPLES.minima[0][0] for run in runs)
    assert short < -1
    assert abs(right) < 0.01
    assert past > 1
