"""A snapshot ensemble.

One run with cosine restarts: at the end of each cycle the rate is 0, the network is at a minimum, and is kept; then
the rate jumps up and leads to another one. The snapshots together, as an `Ensemble` of averaged probabilities, have a
lower loss than each of them, at the price of one run. (G. Huang et al., "Snapshot ensembles: train 1, get M for
free", 2017.)
"""

import numpy as np

from fastopt import data, nn
from fastopt.drawing import BLUE, GREEN, ORANGE, figure

CYCLES, EPOCHS = 8, 4


def run(quick=False):
    x, y, x_test, y_test = data.load("digits")
    layers = [nn.Flatten(), nn.Dense(128, activation="relu"), nn.Dropout(0.3), nn.Dense(10)]
    model = nn.Sequential(layers, x.shape[1:])
    keep = nn.Snapshots(CYCLES)
    history = model.fit(x, y, epochs=CYCLES * EPOCHS, lr=0.03, validation_data=(x_test, y_test), callbacks=keep)
    single = [each.evaluate(x_test, y_test)["loss"] for each in keep.models]
    together = [nn.Ensemble(keep.models[: n + 1]).evaluate(x_test, y_test)["loss"] for n in range(CYCLES)]
    return history["loss"], history["val_loss"], single, together


def draw(found):
    loss, val_loss, single, together = found
    page = figure((10, 3.9))
    left, right = page.subplots(1, 2)
    ends = np.arange(EPOCHS, CYCLES * EPOCHS + 1, EPOCHS)
    left.plot(range(1, len(loss) + 1), loss, color=BLUE, label="training")
    left.plot(range(1, len(loss) + 1), val_loss, "--", color=ORANGE, label="test")
    left.plot(ends, np.array(val_loss)[ends - 1], "o", color="black", label="snapshots")
    right.plot(range(1, CYCLES + 1), single, "o", color="black", label="each by itself")
    right.plot(range(1, CYCLES + 1), together, "s-", color=GREEN, label="the first n together")
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    right.set(xlabel="snapshot n", ylabel="test loss", xticks=range(1, CYCLES + 1))
    left.legend()
    right.legend()
    return page


def claim(found):
    *_, single, together = found
    assert together[-1] < min(single)
