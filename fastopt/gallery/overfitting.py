"""Under- and overfitting, and early stopping.

Three networks learn 300 noisy digits. One of two hidden units underfits: its losses stay high, both of them. The
others learn their samples by heart, the larger one sooner: the training loss goes to 0, while the validation loss
falls and rises again. `EarlyStopping` ends such a run and takes the weights of the lowest point (dotted line).
"""

import numpy as np

from fastopt import data, nn
from fastopt.drawing import BLUE, ORANGE, figure

UNITS = {"2 hidden units": 2, "16 hidden units": 16, "512 hidden units": 512}


def run(quick=False):
    x, y = data.digits()
    x = x + np.random.default_rng(0).normal(0, 0.4, x.shape)
    train, validation = (x[:300], y[:300]), (x[300:], y[300:])
    curves = {}
    for name, units in UNITS.items():
        model = nn.Sequential([nn.Flatten(), nn.Dense(units, activation="relu"), nn.Dense(10)], x.shape[1:])
        stopped, options = model.copy(), {"epochs": 60, "lr": 5e-3, "validation_data": validation}
        history = model.fit(*train, **options)
        stopper = stopped.fit(*train, **options, callbacks=nn.EarlyStopping(patience=5))
        best = int(np.argmin(stopper["val_loss"]))
        curves[name] = history["loss"], history["val_loss"], best, stopped.evaluate(*validation)["loss"]
    return curves


def draw(curves):
    page = figure((12, 3.8))
    for axes, (name, (loss, val_loss, best, _)) in zip(page.subplots(1, 3, sharey=True), curves.items()):
        axes.plot(range(1, len(loss) + 1), loss, color=BLUE, label="training")
        axes.plot(range(1, len(loss) + 1), val_loss, "--", color=ORANGE, label="validation")
        axes.axvline(best + 1, color="black", linestyle=":", label=f"early stopping, {val_loss[best]:.2f}")
        axes.set(title=name, xlabel="epoch", ylabel="loss", ylim=(0, 2.7))
        axes.legend()
    return page


def claim(curves):
    small, medium, large = curves.values()
    assert large[2] < medium[2]
    assert small[0][-1] > 0.5 and small[1][-1] > 0.9
    assert all(loss[-1] < 0.05 and val[-1] > 1.2 * min(val) for loss, val, *_ in (medium, large))
    assert all(np.isclose(stopped, val_loss[best]) for _, val_loss, best, stopped in curves.values())
