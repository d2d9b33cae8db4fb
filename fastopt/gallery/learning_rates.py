"""Loss by learning rate.

Four copies of a small network learn the digits by SGD, at a low, a good, a high and a very high rate; the loss of
each epoch. At the low rate it falls slowly, at the good one fast and far; at the high one it falls as fast at first,
and then jumps up again and again; at the very high one it never gets below that of guessing, log 10.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import figure

RATES = {"low": 0.01, "good": 0.5, "high": 1.0, "very high": 5.0}


def run(quick=False):
    x, y = data.digits()
    model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
    models = [model.copy() for _ in RATES]
    sgds = [fastopt.SGD(model.params, lr=rate) for model, rate in zip(models, RATES.values())]
    histories = nn.fit_many(models, x, y, optimizer=sgds, epochs=30, batch_size=64, on_nonfinite="ignore")
    return {name: np.array(history["loss"]) for name, history in zip(RATES, histories)}


def draw(losses):
    page = figure((7, 4))
    axes = page.subplots()
    for (name, loss), dash in zip(losses.items(), ("-", "--", "-.", ":")):
        axes.plot(np.arange(1, len(loss) + 1), loss, dash, linewidth=2, label=f"{name}: {RATES[name]:g}")
    axes.set(yscale="log", xlabel="epoch", ylabel="training loss", title="Loss by learning rate", ylim=(0.01, 6))
    axes.axhline(np.log(10), color="0.7", linewidth=1, zorder=0)
    axes.legend(title="learning rate")
    return page


def claim(losses):
    assert losses["high"][3] < 0.2 * losses["low"][3]
    assert losses["good"][-3:].max() < 0.5 * min(losses["low"][-3:].max(), losses["high"][-3:].max())
    assert (losses["very high"] > 0.98 * np.log(10)).all(), "no better than guessing"
