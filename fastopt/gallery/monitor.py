"""The monitor: gradients and the ratio of updates.

A network learns the digits at three learning rates, with a `Monitor` among its callbacks: the loss, the norm of the
gradient, and the norm of each update of the first weights over that of the weights themselves. About 1e-3 is healthy
(dashed): the low rate is far below it and the loss hardly falls; the high one begins at more than 1e-2, and the loss
jumps about near that of guessing, 2.3.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import figure

RATES = {"low": 1e-5, "good": 1e-3, "high": 0.5}


def run(quick=False):
    x, y = data.digits()
    records = {}
    for name, rate in RATES.items():
        model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
        adam, watch = fastopt.Adam(model.params, lr=rate), nn.monitor.Monitor(every=5)
        history = model.fit(x, y, epochs=2 if quick else 6, optimizer=adam, callbacks=watch)
        records[name] = history.monitor | {"ratio": history.monitor["update_ratio"]["1.weight"]}
    return records


def draw(records):
    page = figure((12, 3.6))
    titles = {"loss": "loss", "gradient_norm": "norm of the gradient", "ratio": "norm of update / norm of weights"}
    for axes, (key, title) in zip(page.subplots(1, 3), titles.items()):
        for (name, record), dash in zip(records.items(), ("--", "-", ":")):
            axes.plot(record["step"], record[key], dash, label=f"{name}: {RATES[name]:g}")
        axes.set(yscale="log", xlabel="step", ylabel=title)
    axes.axhline(1e-3, color="black", linestyle="--", linewidth=1)
    page.axes[0].legend(title="learning rate")
    return page


def claim(records):
    ratio = {name: np.median(record["ratio"][:10]) for name, record in records.items()}
    assert ratio["low"] < 2e-4 < 3e-4 < ratio["good"] < 1e-2 < ratio["high"]
    loss = {name: np.array(record["loss"]) for name, record in records.items()}
    assert loss["low"][-1] > 0.8 * loss["low"][0]
    assert loss["good"][-1] < 0.5 * loss["good"][0]
    assert loss["high"][-10:].min() > loss["good"][-10:].max()
