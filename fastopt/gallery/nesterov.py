"""One step of momentum, and one of Nesterov's.

After one step on an elongated bowl, the velocity is the same for both. Momentum adds the gradient at the point where
it is; Nesterov's method adds the one at the point to which the velocity leads. There the valley has been crossed, the
gradient points back, and the step is shorter: it corrects before it overshoots.
"""

import numpy as np

import fastopt
from fastopt.drawing import BLUE, GREEN, ORANGE, RED, figure

LR, MOMENTUM, SCALE = 0.25, 0.9, np.array([1.0, 3.0])  # the loss is (x² + 3y²) / 2


def run(quick=False):
    point = np.array([-2.0, 1.0])
    momentum = fastopt.Momentum(point, lr=LR, momentum=MOMENTUM)
    before = point.copy()
    momentum.step(SCALE * point)
    here, carried = point.copy(), MOMENTUM * (point - before)
    momentum.step(SCALE * point)
    ahead = here + carried
    return {"here": here, "ahead": ahead, "momentum": point, "nesterov": ahead - LR * SCALE * ahead}


def draw(d):
    page = figure((9, 4.4))
    x, y = np.meshgrid(np.linspace(-1.8, 0.3, 200), np.linspace(-0.8, 1.2, 200))
    for axes, name, at in zip(
        page.subplots(1, 2, sharex=True, sharey=True), ("momentum", "nesterov"), ("here", "ahead")
    ):
        axes.contour(x, y, x**2 + 3 * y**2, 14, colors="0.85", linewidths=1, zorder=0)
        parts = [("velocity", "here", d["ahead"], BLUE), (f"gradient step, taken {at}", "ahead", d[name], RED)]
        for label, start, end, colour in [*parts, ("the step", "here", d[name], GREEN)]:
            axes.annotate("", end, d[start], arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
            axes.plot([], [], color=colour, linewidth=2, label=label)
        axes.plot(*d["here"], "o", color="black", label="the point")
        axes.plot(0, 0, "*", color=ORANGE, markersize=14, label="minimum")
        axes.set(title=name, xlabel="x", ylabel="y", aspect="equal")
        axes.locator_params(nbins=6)
        axes.legend(loc="upper right", fontsize=8)
    return page


def claim(d):
    wanted = d["ahead"] - LR * SCALE * d["here"]
    np.testing.assert_allclose(d["momentum"], wanted, rtol=1e-12, atol=1e-12)
    assert np.sign(d["ahead"][1]) == -np.sign(d["here"][1]), "the valley has been crossed"
    assert np.linalg.norm(d["nesterov"] - d["here"]) < np.linalg.norm(d["momentum"] - d["here"])
