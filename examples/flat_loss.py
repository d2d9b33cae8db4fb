"""The loss seems to stand still, and accuracy rises.

    python examples/flat_loss.py --plot flat-loss.png

At first all ten classes are about as probable, and the loss is log 10 = 2.303. With a small learning rate,
probabilities leave 0.1 by little, and the loss hardly moves. But the right class comes to be a little ahead of the
others, and accuracy asks for no more. So a loss that seems to stand still says that the learning rate is too small, not
that nothing is learnt.
"""

from __future__ import annotations

import argparse

import numpy as np

import fastopt
from fastopt import data, nn, plots

LR = 5e-4


def run(epochs=20, seed=0):
    """The loss and the accuracy in validation before each epoch and after the last one, and what the model gives the
    right class in the mean, before and after."""
    x, y, x_validation, y_validation = data.load("digits")
    layers = [nn.Center("pixel"), nn.Flatten(), nn.Dense(32, activation="relu"), nn.Dense(10, init=nn.Normal(0.01))]
    model = nn.Sequential(layers, (8, 8, 1), seed=seed)
    model.adapt(x)
    before, sure = model.evaluate(x_validation, y_validation), [probability(model)]
    sgd = fastopt.SGD(model.params, lr=LR)
    validation = (x_validation, y_validation)
    history = model.fit(x, y, epochs=epochs, optimizer=sgd, validation_data=validation, seed=seed)
    curves = {name: [before[name], *history[f"val_{name}"]] for name in ("loss", "accuracy")}
    return curves, [*sure, probability(model)]


def probability(model):
    """The mean probability of the right class in validation."""
    _, _, x, y = data.load("digits")
    probabilities = nn.Softmax().forward(model.predict(x))[0]
    return float(probabilities[np.arange(len(y)), y].mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", help="where to draw loss and accuracy")
    arguments = parser.parse_args()
    curves, (before, after) = run()
    print("| epochs | loss in validation | of log 10 | accuracy |\n| ---: | ---: | ---: | ---: |")
    for epoch in (0, 1, 5, 10, 20):
        loss, accuracy = curves["loss"][epoch], curves["accuracy"][epoch]
        print(f"| {epoch} | {loss:.4f} | {100 * loss / np.log(10):.1f} % | {100 * accuracy:.1f} |")
    print(f"\nmean probability of the right class: {before:.3f} before, {after:.3f} after")
    if arguments.plot:
        page = plots.histories({"validation": {name: curve[1:] for name, curve in curves.items()}})
        page.axes[0].set_ylim(0, 2.5)
        page.axes[1].set_ylim(0, 1)
        page.savefig(arguments.plot, dpi=120)


if __name__ == "__main__":
    main()
