"""Preprocessing: centre, decorrelate, whiten.

Two correlated features as they are, with their mean taken off, turned to the axes along which they are not
correlated, and scaled to variance 1 along each. Whitened data have the identity as their covariance.
"""

import numpy as np

from fastopt import nn
from fastopt.drawing import BLUE, figure

STEPS = {
    "centred": nn.Center,
    "decorrelated": lambda: nn.Whiten("decorrelate"),
    "whitened": lambda: nn.Whiten("pca", eps=0),
}


def run(quick=False):
    x = np.random.default_rng(0).normal(size=(200 if quick else 600, 2)) @ [[2.0, 1.0], [0.0, 0.6]] + [3.0, 1.0]
    return {"original": x} | {name: make().fit(x).transform(x) for name, make in STEPS.items()}


def draw(steps):
    page = figure((12, 3.4))
    for axes, (name, x) in zip(page.subplots(1, 4, sharex=True, sharey=True), steps.items()):
        axes.scatter(*x.T, s=7, alpha=0.5, color=BLUE)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        (a, b), (_, d) = np.cov(x.T)
        axes.set_title(f"{name}\nvariances {a:.2f}, {d:.2f}\ncovariance {round(b, 2) + 0:.2f}", fontsize=10)
        axes.set(xlabel="first feature", ylabel="second feature", aspect="equal")
    return page


def claim(steps):
    np.testing.assert_allclose(steps["centred"].mean(axis=0), 0, atol=1e-5)
    assert abs(np.cov(steps["decorrelated"].T)[0, 1]) < 1e-5
    np.testing.assert_allclose(np.cov(steps["whitened"].T), np.eye(2), atol=0.01)
