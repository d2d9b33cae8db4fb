"""Schedules of the learning rate.

Every schedule of `fastopt.schedules` over a thousand steps, each from the same peak of 0.1: by steps, smoothly, in
cycles, and with a rise at the beginning.
"""

from fastopt import schedules as s
from fastopt.drawing import figure

PEAK, STEPS = 0.1, 1000
GROUPS = {
    "in steps": {
        "step_decay": s.bind(s.step_decay, peak=PEAK, steps=250, gamma=0.5),
        "multi_step": s.bind(s.multi_step, peak=PEAK, milestones=(500, 800)),
        "piecewise_constant": s.bind(s.piecewise_constant, boundaries=(150, 650), values=(PEAK, 0.04, 0.02)),
    },
    "smooth": {
        "constant": s.bind(s.constant, value=PEAK),
        "linear": s.bind(s.linear, peak=PEAK, steps=STEPS),
        "polynomial": s.bind(s.polynomial, peak=PEAK, steps=STEPS, power=2.0),
        "cosine": s.bind(s.cosine, peak=PEAK, steps=STEPS),
        "exponential": s.bind(s.exponential, peak=PEAK, gamma=0.05, steps=STEPS),
        "inverse_time": s.bind(s.inverse_time, peak=PEAK, decay=4.0, steps=STEPS),
    },
    "in cycles": {
        "cosine_restarts": s.bind(s.cosine_restarts, peak=PEAK, steps=250),
        "cyclical": s.bind(s.cyclical, peak=PEAK, floor=0.01, steps_up=150),
    },
    "with a rise": {
        "warmup, then cosine": s.bind(s.warmup, steps=150, then=s.bind(s.cosine, peak=PEAK, steps=STEPS - 150)),
        "one_cycle": s.bind(s.one_cycle, peak=PEAK, steps=STEPS),
        "inverse_sqrt": s.bind(s.inverse_sqrt, peak=PEAK, warmup_steps=150),
    },
}


def run(quick=False):
    return {title: {name: [f(t) for t in range(STEPS)] for name, f in own.items()} for title, own in GROUPS.items()}


def draw(groups):
    page = figure((10, 6))
    for axes, (title, curves) in zip(page.subplots(2, 2, sharex=True, sharey=True).flat, groups.items()):
        for (name, rates), dash in zip(curves.items(), ("-", "--", "-.", ":", (0, (8, 2)), (0, (1, 1)))):
            axes.plot(rates, linestyle=dash, linewidth=2, label=name)
        axes.set(title=title, xlabel="step", ylabel="learning rate", ylim=(-0.003, 0.145))
        axes.legend(fontsize=8, ncols=2, loc="upper right")
    return page


def claim(groups):
    assert all(0.099 < max(rates) <= PEAK for curves in groups.values() for rates in curves.values())
