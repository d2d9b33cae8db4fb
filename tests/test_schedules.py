"""Learning rates as functions of the step."""

import math

import numpy as np
import pytest

from fastopt.schedules import cosine


@pytest.mark.parametrize(
    ("step", "steps", "floor", "wanted"),
    [
        (0, 100, 0.0, 0.5),
        (50, 100, 0.0, 0.25),
        (100, 100, 0.0, 0.0),
        (250, 100, 0.0, 0.0),
        (0, 100, 0.1, 0.5),
        (50, 100, 0.1, 0.3),
        (100, 100, 0.1, 0.1),
        (101, 100, 0.1, 0.1),
        (25, 100, 0.0, 0.25 * (1 + math.sqrt(0.5))),
        (1, 3, 0.0, 0.375),
        (0, 0, 0.1, 0.1),
    ],
)
def test_cosine(step, steps, floor, wanted):
    assert cosine(step, steps=steps, peak=0.5, floor=floor) == pytest.approx(wanted, abs=1e-15)


def test_cosine_falls():
    assert (np.diff([cosine(step, steps=50, peak=1.0) for step in range(51)]) < 0).all()


def test_cosine_beside_torch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=17, eta_min=0.01)
    for step in range(18):
        assert cosine(step, steps=17, peak=0.3, floor=0.01) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()
