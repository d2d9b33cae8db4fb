"""Looking at a training run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def plot(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Draw the curves of loss and accuracy, in training and validation, into a picture file.

    Parameters
    ----------
    history : mapping of str to sequence of float
        A `fastopt.nn.History`, or the same read back from its JSON file.
    path : path
        Its ending decides the format: ``.png``, ``.svg``, ``.pdf``.

    Raises
    ------
    ImportError
        Where matplotlib is missing: it is part of the extra ``train``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for name, label, style in ((key, "training", "C0-"), (f"val_{key}", "validation", "C1-")):
            if history.get(name):
                epochs = range(1, len(history[name]) + 1)
                axes.plot(epochs, history[name], style, label=f"{label}, last {history[name][-1]:.4f}", linewidth=1.5)
        axes.set(xlabel="epoch", title=key)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        if key == "loss":
            axes.set_yscale("log")
    figure.savefig(path, dpi=120)
