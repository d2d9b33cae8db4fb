"""Batch norm and decorrelated batch norm.

Two correlated channels of a batch, as they are, after batch norm, and after decorrelated batch norm. Batch norm gives
each of them mean 0 and variance 1, and leaves their correlation; decorrelated batch norm takes it off too (ZCA
whitening), so that the cloud is round.
"""

import numpy as np

from fastopt import nn
from fastopt.drawing import BLUE, figure


def run(quick=False):
    x = np.random.default_rng(0).normal(size=(200 if quick else 600, 2)) @ [[1.8, 1.3], [0.0, 0.7]] + [1.5, -1.0]
    found = {"inputs": x}
    for name, layer in (("batch norm", nn.BatchNorm()), ("decorrelated batch norm", nn.DecorrelatedBatchNorm(2))):
        model = nn.Sequential([layer], (2,), dtype=np.float64)
        found[name] = model.forward(x, training=True)[0]
    return found


def draw(found):
    page = figure((10, 3.8))
    for axes, (name, x) in zip(page.subplots(1, 3, sharex=True, sharey=True), found.items()):
        axes.scatter(*x.T, s=7, alpha=0.5, color=BLUE)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_title(f"{name}\ncorrelation {round(np.corrcoef(x.T)[0, 1], 2) + 0:.2f}")
        axes.set(xlabel="first channel", ylabel="second channel", aspect="equal")
    return page


def claim(found):
    plain, round_ = (np.cov(found[name].T, bias=True) for name in ("batch norm", "decorrelated batch norm"))
    np.testing.assert_allclose(np.diag(plain), 1, atol=1e-3)
    assert plain[0, 1] > 0.8
    np.testing.assert_allclose(round_, np.eye(2), atol=1e-3)
