"""Learning rates by depth, for a model that was trained before."""

from __future__ import annotations

from typing import Any

from fastopt import checks
from fastopt.nn.stack import Stack

__all__ = ["groups_by_depth"]


def groups_by_depth(model: Stack, factor: float = 1 / 2.6) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, whose rates fall from layer to layer towards the input: layers that were
    trained before, and see what all images have in common, are to change less [1]_.

    Parameters
    ----------
    model : Sequential
    factor : float, default 1/2.6
        The rate of a layer divided by that of the next one with parameters, in (0, 1].

    Returns
    -------
    list of dict
        A group for each layer with parameters, the last one aside, whose rate is the optimizer's: ``params``, the
        names, and ``lr_factor``. Frozen parameters may be among them, and stay frozen.

    Raises
    ------
    TypeError, ValueError
        Where `factor` breaks its rule, or `model` is no model.

    References
    ----------
    .. [1] J. Howard and S. Ruder, "Universal language model fine-tuning for text classification", 2018, section 3.2,
       where the factor is 1/2.6.

    Examples
    --------
    >>> import fastopt
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(4), nn.ReLU(), nn.Dense(3), nn.Dense(2)], (5,))
    >>> groups = nn.groups_by_depth(model, 0.5)
    >>> groups[0]
    {'params': ['0.weight', '0.bias'], 'lr_factor': 0.25}
    >>> adam = fastopt.Adam(model.params, lr=1e-3, groups=groups)
    """
    if not isinstance(model, Stack):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    factor = checks.number("factor", factor, "(0, 1]")
    names = [
        [f"{i}.{name}" for name in layer.params] for i, layer in enumerate(model.layers) if model.first[i] == i
    ]  # of a layer that occurs again, where it is first
    names = [own for own in names if own]
    depth = len(names) - 1
    return [{"params": own, "lr_factor": factor ** (depth - i)} for i, own in enumerate(names[:-1])]
