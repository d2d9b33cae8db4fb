"""A picture of what an augmentation does."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.data.augment.base import Transform, images, targets
from fastopt.drawing import BLUE, figure


def preview(
    x: Array,
    augmentation: Transform,
    y: Array | None = None,
    *,
    draws: int = 7,
    names: Sequence[str] | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """A contact sheet: a row for each image, which begins with the image itself. Needs the extra ``plot``.

    Parameters
    ----------
    x : ndarray (n, h, w, c), uint8, or real numbers in [0, 1]
        One or three channels; 20 images at most.
    augmentation : callable
        Called as ``(x, y, rng) -> (x, y)``.
    y : ndarray (n,) or (n, classes), optional
        Labels or distributions, which are written under the images.
    draws : int, default 7
        How many times each image is augmented.
    names : sequence of str, optional
        Of the classes.
    seed : int, default 0
    path : path, optional
        Where to write the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt import data
    >>> from fastopt.data import augment
    >>> x, y = data.digits()
    >>> sheet = augment.preview(x[:4], augment.Affine(rotate=20), y[:4], path="digits.png")
    """
    x = images(x)
    y = targets(y, len(x))
    if len(x) > 20 or x.shape[-1] not in (1, 3):
        raise ValueError(f"x must be 20 images at most, of one or three channels, got {x.shape}")
    if not callable(augmentation) or isinstance(augmentation, type):
        raise TypeError(f"augmentation must be callable as (x, y, rng), got {augmentation!r:.80}")
    draws = checks.integer("draws", draws, 1, 50)
    if names is not None and (isinstance(names, bytes) or not isinstance(names, Sequence)):
        raise TypeError(f"names must be a sequence of text, got {type(names).__name__}")
    target = None if path is None else os.fspath(path)
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    columns = [(x, y), *(augmentation(x, y, rng) for _ in range(draws))]
    side = 1.1
    captions = [_caption(label, names) for _, labels in columns if labels is not None for label in labels]
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    title = textwrap.wrap(repr(augmentation), width=max(int(13 * side * (draws + 1)), 20))[:4]
    height = len(x) * (side * x.shape[1] / x.shape[2] + 0.03 + 0.12 * lines) + 0.3 + 0.16 * len(title)
    page = figure((side * (draws + 1), height))
    page.suptitle("\n".join(title), fontsize=9)
    axes = page.subplots(len(x), draws + 1, squeeze=False)
    for column, (pictures, labels) in enumerate(columns):
        for row, picture in enumerate(pictures):
            ax = axes[row, column]
            shown = picture / 255 if picture.dtype == np.uint8 else np.clip(picture, 0, 1)
            ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
            if labels is not None:
                ax.set_xlabel(_caption(labels[row], names), fontsize=7, labelpad=2)
        axes[0, column].set_title("original" if column == 0 else "", fontsize=8)
    for ax in axes[:, 0]:
        for spine in ax.spines.values():
            spine.set(linewidth=2, color=BLUE)
    if target is not None:
        page.savefig(target, dpi=150)
    return page


def _caption(target: Any, names: Sequence[str] | None) -> str:
    """A label, or the classes of which there is most, with their shares."""

    def name(label: int) -> str:
        return str(names[label]) if names is not None and 0 <= label < len(names) else f"{label}"

    target = np.asarray(target)
    if target.ndim == 0:
        return name(int(target)) if target.dtype.kind in "iu" else f"{target.item():.5}"
    if target.ndim > 1 or target.dtype.kind != "f":
        return ""
    best = [int(each) for each in np.argsort(-target, kind="stable")[:2] if target[each] > 0.005]
    return "\n".join(f"{name(each)} {target[each]:.2f}" for each in best)
