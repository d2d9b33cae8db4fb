"""A noisy bowl.

Each gradient is off by chance, as those of mini-batches are. At a fixed rate, gradient descent does not come to rest:
it wanders about the minimum. Adagrad, whose steps shrink as gradients add up, and schedule-free SGD, which averages
its points, come closer.
"""

from fastopt import landscape

OPTIMIZERS = ("sgd", "momentum", "adagrad", "adam", "schedule_free_sgd")


def run(quick=False):
    return {name: landscape.best(name, "noisy-bowl") for name in OPTIMIZERS}


def draw(runs):
    return landscape.picture("noisy-bowl", list(runs.values()))


def claim(runs):
    last = {name: run.losses[-100:].mean() for name, run in runs.items()}
    assert max(last["adagrad"], last["schedule_free_sgd"]) < min(last["sgd"], last["momentum"])
