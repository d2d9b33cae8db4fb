"""ROC, precision and recall, and the threshold.

A network learns to tell the 9s, one image in ten, from noisy digits; each threshold on its score is a point of these
curves. A lower one finds more of the 9s (recall), and takes more of the others for 9s (false alarms, lower
precision). Three of them are marked. The area under the ROC curve is the probability that a 9 scores higher than
another digit.
"""

import numpy as np

from fastopt import data, nn
from fastopt.drawing import BLUE, GREEN, ORANGE, RED, figure


def run(quick=False):
    x, y = data.digits()
    x = x + np.random.default_rng(0).normal(0, 0.25, x.shape)
    model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(1)], x.shape[1:])
    model.fit(x[:900], y[:900, None] == 9.0, epochs=20, loss="sigmoid_cross_entropy", lr=3e-3)
    return 1 / (1 + np.exp(-model.predict(x[900:])[:, 0])), y[900:] == 9


def curves(scores, nine):
    order = np.argsort(-scores)
    hits, alarms = np.cumsum(nine[order]), np.cumsum(~nine[order])
    return scores[order], hits / nine.sum(), alarms / (~nine).sum(), hits / (hits + alarms)


def area(scores, nine):
    return float((scores[nine][:, None] > scores[~nine]).mean())


def draw(found):
    thresholds, recall, alarms, precision = curves(*found)
    page = figure((12, 3.9))
    roc, pr, by = page.subplots(1, 3)
    roc.plot([0, *alarms], [0, *recall], color=BLUE)
    pr.plot(recall, precision, color=BLUE)
    for values, label, dash in ((recall, "recall", "-"), (precision, "precision", "--")):
        by.plot(thresholds, values, dash, label=label)
    for threshold, colour, marker in ((0.1, ORANGE, "o"), (0.5, RED, "s"), (0.9, GREEN, "^")):
        place = (thresholds >= threshold).sum() - 1
        for axes, points in ((roc, (alarms, recall)), (pr, (recall, precision))):
            axes.plot(*(each[place] for each in points), marker, color=colour, label=f"threshold {threshold}")
        by.axvline(threshold, color=colour, linewidth=1)
    roc.set(xlabel="false alarms", ylabel="recall", title=f"ROC, area {area(*found):.3f}")
    pr.set(xlabel="recall", ylabel="precision", title="precision and recall", ylim=(0, 1.03))
    by.set(xlabel="threshold", ylabel="share", title="by threshold")
    for axes in (roc, pr, by):
        axes.legend(loc="lower center")
    return page


def claim(found):
    _, recall, alarms, precision = curves(*found)
    under = np.sum(np.diff(alarms, prepend=0) * recall)
    assert abs(under - area(*found)) < 1e-3 and under > 0.9
    assert (np.diff(recall) >= 0).all() and (np.diff(alarms) >= 0).all() and precision[-1] < 0.2
