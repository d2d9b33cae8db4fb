"""Newton's step, L-BFGS and gradient descent.

Rosenbrock's function from the usual start. Newton's method divides by the curvature, the inverse of the Hessian: six
steps. L-BFGS guesses the curvature from the gradients that it has seen, and needs some dozens of them. Gradient
descent, at its best rate, is on the way after three hundred.
"""

import numpy as np

import fastopt
from fastopt import landscape

SURFACE = landscape.SURFACES["rosenbrock"]


def run(quick=False):
    paths = {"gradient descent": landscape.best("sgd", "rosenbrock").points}
    point, seen = np.array(SURFACE.start), []
    lbfgs = fastopt.LBFGS(point, max_iter=100)
    lbfgs.step(lambda: (seen.append(point.copy()), (SURFACE.function(*point), np.array(SURFACE.gradient(*point))))[1])
    paths["L-BFGS, each evaluation"] = np.array(seen)
    newton = [np.array(SURFACE.start)]
    for _ in range(6):
        x, y = newton[-1]
        hessian = np.array([[2 - 400 * (y - 3 * x**2), -400 * x], [-400 * x, 200]])
        newton.append(newton[-1] - np.linalg.solve(hessian, SURFACE.gradient(x, y)))
    return paths | {"Newton": np.array(newton)}


def draw(paths):
    steps = max(map(len, paths.values()))
    padded = {name: np.pad(points, ((0, steps - len(points)), (0, 0)), mode="edge") for name, points in paths.items()}
    page = landscape.picture(
        SURFACE._replace(limits=(-2.6, 2.6, -3.4, 2.2)),
        [landscape.Descent(name, np.nan, points, SURFACE.function(*points.T)) for name, points in padded.items()],
    )
    page.suptitle("Rosenbrock's function: gradient descent, L-BFGS, Newton's method")
    page.axes[1].set(xscale="symlog", xlim=(0, steps))
    return page


def claim(paths):
    newton, lbfgs, descent = (
        SURFACE.excess(*paths[name].T) for name in sorted(paths, key=lambda name: len(paths[name]))
    )
    assert len(newton) == 7 and newton[-1] < 1e-8
    assert len(lbfgs) < 80 and lbfgs[-1] < 1e-8
    assert descent[-1] > 1e-3
