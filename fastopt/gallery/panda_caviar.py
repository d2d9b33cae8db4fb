"""Panda against caviar.

Two ways to look for a learning rate. The panda: one run, looked after by `ReduceLROnPlateau`, which begins at a high
rate and lowers it whenever the validation loss no longer falls. Caviar: thirty runs at random rates in parallel, by
one call of `fit_many`; most come to little, and the best is as good as the one that was looked after.
"""

import numpy as np

import fastopt
from fastopt import data, nn
from fastopt.drawing import BLUE, GREY, RED, figure


class Rates(nn.Callback):
    def on_train_begin(self, run):
        self.run, self.rates = run, []

    def on_epoch_end(self, epoch, logs):
        self.rates.append(self.run.optimizer.lr)


def run(quick=False):
    x, y = data.digits()
    rates = 10 ** np.random.default_rng(0).uniform(-5, 0, 10 if quick else 30)
    model = nn.Sequential([nn.Flatten(), nn.Dense(32, activation="relu"), nn.Dense(10)], x.shape[1:])
    panda, caviar, watch = model.copy(), [model.copy() for _ in rates], Rates()
    options = {"validation_data": (x[1::2], y[1::2]), "epochs": 30}
    care = [nn.ReduceLROnPlateau(patience=2, factor=0.3), watch]
    alone = panda.fit(x[::2], y[::2], lr=0.05, callbacks=care, **options)
    adams = [fastopt.Adam(each.params, lr=rate) for each, rate in zip(caviar, rates)]
    many = nn.fit_many(caviar, x[::2], y[::2], optimizer=adams, **options)
    return watch.rates, alone["val_loss"], np.array([history["val_loss"] for history in many])


def draw(found):
    rates, panda, caviar = found
    page = figure((10, 4))
    left, right = page.subplots(1, 2, sharey=True)
    epochs, best = np.arange(1, len(rates) + 1), caviar[caviar[:, -1].argmin()]
    left.plot(epochs, panda, color=RED, linewidth=2)
    for epoch in epochs[1:][np.diff(rates) < 0]:
        left.axvline(epoch, color="0.7", linestyle=":")
    right.plot(epochs, caviar.T, color=GREY, linewidth=0.7)
    right.plot(epochs, best, color=BLUE, linewidth=2)
    left.set(xlabel="epoch (dotted: the rate is lowered)", ylabel="validation loss", yscale="log", ylim=(0.08, 5))
    left.set_title(f"panda: one run, at last {panda[-1]:.3f}")
    right.set(xlabel="epoch", title=f"caviar: {len(caviar)} runs, the best {best[-1]:.3f}")
    return page


def claim(found):
    rates, panda, caviar = found
    assert rates[-1] < rates[0]
    assert caviar[:, -1].min() < 1.2 * panda[-1] < 1.2 * np.median(caviar[:, -1])
