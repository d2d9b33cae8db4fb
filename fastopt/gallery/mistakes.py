"""The worst mistakes.

The fifteen test images with the highest loss of a small network, by `nn.debug.worst_mistakes`: above each what it is,
and what it was taken for. Look at them: some are badly written, some cut off, and some labels may be wrong. What they
have in common says what to do next.
"""

import numpy as np

from fastopt import data, nn
from fastopt.drawing import RED, figure


def run(quick=False):
    x, y, x_test, y_test = data.load("digits")
    model = nn.Sequential([nn.Flatten(), nn.Dense(32, activation="relu"), nn.Dense(10)], x.shape[1:])
    model.fit(x, y, epochs=10)
    return x_test, y_test, nn.debug.worst_mistakes(model, x_test, y_test, k=15), model.predict(x_test)


def draw(found):
    x, y, worst, _ = found
    page = figure((8, 6.4))
    for axes, i, loss, output in zip(page.subplots(3, 5).flat, *worst):
        axes.imshow(x[i, ..., 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[], xlabel=f"loss {loss:.2f}")
        axes.set_title(
            f"{y[i]}, taken for {output.argmax()}", color=RED if output.argmax() != y[i] else "black", fontsize=10
        )
    return page


def claim(found):
    _, y, worst, outputs = found
    losses = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(len(y)), y]
    np.testing.assert_allclose(np.sort(losses)[::-1][:15], worst.losses, rtol=1e-3)
    assert (worst.outputs.argmax(axis=1) != y[worst.indices]).mean() > 0.8
