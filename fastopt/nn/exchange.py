"""The weights of models to and from PyTorch: layouts and names."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastopt import checks, files
from fastopt.checks import Array
from fastopt.nn import activations, convolutions, embedding, layers, norms, preprocessing, shapes
from fastopt.nn.layers import Layer, Shape
from fastopt.nn.stack import Stack

__all__ = ["load_torch", "to_torch_state"]

#: What PyTorch calls each array, by the class of the layer. Those of a module of PyTorch that we have no place for are
#: counters, which are left out.
_NAMES = {"weight": "weight", "bias": "bias", "scale": "weight", "shift": "bias", "slope": "weight"}
_LEFT_OUT = ("num_batches_tracked",)
_GAINS = ("parametrizations.weight.original0", "weight_g")
_DIRECTIONS = ("parametrizations.weight.original1", "weight_v")
#: Axes of PyTorch's weight, in our order.
_AXES: dict[type[Layer], tuple[int, ...]] = {
    layers.Dense: (1, 0),
    layers.Conv2D: (2, 3, 1, 0),
    convolutions.Conv1D: (2, 1, 0),
    convolutions.Conv2DTranspose: (2, 3, 1, 0),
    embedding.Embedding: (0, 1),
}
#: Kinds of modules by the number of axes of their weight.
_KINDS = {2: "matrices", 3: "convolutions of sequences", 4: "convolutions of images", 1: "norms or slopes"}


@dataclass
class _Place:
    """An array of ours, as PyTorch has it."""

    array: Array  # of the model
    names: tuple[str, ...]  # what PyTorch may call it, within its module
    to_ours: Callable[[Array], Array]
    to_theirs: Callable[[Array], Array]
    absent: float | None = None  # the value where PyTorch has none


@dataclass
class _Leaf:
    """A layer with arrays that PyTorch has a module for."""

    prefix: str
    layer: Layer
    kind: str
    places: list[_Place] = field(default_factory=list)


# ---- Our side -------------------------------------------------------------------------------------------------


def _leaves(model: Stack) -> list[_Leaf]:
    """The layers with arrays, in order."""
    found: list[_Leaf] = []
    seen: list[Layer] = []
    order: list[Array | None] = [None]  # of features after Flatten: PyTorch has channels first

    def visit(layer: Layer, prefix: str) -> None:
        if any(layer is other for other in seen):
            return
        if not isinstance(layer, (layers.Flatten, layers.ReLU)):
            seen.append(layer)
        if isinstance(layer, layers.Flatten):
            order[0] = _order(layer.input_shape)
        elif isinstance(layer, shapes.Reshape) and max(len(layer.input_shape or ()), len(layer.shape)) > 2:
            raise ValueError(
                f"{prefix} {layer!r} has no counterpart in PyTorch, where channels come second and Reshape orders "
                "numbers otherwise: copy arrays by hand, model.params[name] = value"
            )
        elif isinstance(layer, norms.WeightNorm):
            found.append(_weight_norm(layer, prefix, order[0]))
            order[0] = None
        elif isinstance(layer, preprocessing.LearnsFromData):
            if isinstance(layer, preprocessing.Whiten):
                order[0] = None
        elif layer.parts:
            for key, part in layer.parts.items():
                before = order[0]
                visit(part, f"{prefix}.{key}" if prefix else key)
                if not isinstance(layer, Stack):
                    order[0] = before
        elif layer.params or layer.state:
            found.append(_leaf(layer, prefix, order[0]))
            if isinstance(layer, layers.Dense):
                order[0] = None

    visit(model, "")
    return found


def _order(shape: Shape | None) -> Array | None:
    """For each of our features of flattened images, its number in PyTorch; None where they are alike."""
    if shape is None or len(shape) < 2 or shape[-1] == 1 or math.prod(shape[:-1]) == 1:
        return None
    numbers = np.arange(math.prod(shape)).reshape(shape[-1], *shape[:-1])
    return np.moveaxis(numbers, 0, -1).ravel()


def _axes(layer: Layer, prefix: str, order: Array | None) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The layout of a weight, there and back."""
    axes = _AXES[type(layer)]
    if type(layer) is not layers.Dense or order is None:
        return lambda a: a.transpose(axes), lambda a: a.transpose(np.argsort(axes))
    back = np.argsort(order)
    return lambda a: a.T[order], lambda a: a[back].T


def _leaf(layer: Layer, prefix: str, order: Array | None) -> _Leaf:
    kind = type(layer)
    arrays = {**layer.params, **layer.state}
    if kind in _AXES:
        there, back = _axes(layer, prefix, order)
        places = [_Place(arrays["weight"], ("weight",), there, back)]
        if "bias" in arrays:
            places.append(_Place(arrays["bias"], ("bias",), _same, _same, 0.0))
        named = "convolutions of images" if kind in (layers.Conv2D, convolutions.Conv2DTranspose) else (
            "convolutions of sequences" if kind is convolutions.Conv1D else "matrices"
        )  # fmt: skip
        return _Leaf(prefix, layer, named, places)
    there, back = _vectors(layer, order)
    usual = (norms.BatchNorm, norms.LayerNorm, norms.GroupNorm, norms.InstanceNorm, norms.RMSNorm)
    if kind in usual or kind is activations.PReLU:
        places = []
        for name, array in arrays.items():
            absent = {"scale": 1.0, "shift": 0.0}.get(name)
            places.append(_Place(array, (_NAMES.get(name, name),), there, back, absent))
        return _Leaf(prefix, layer, "batch norms" if kind is norms.BatchNorm else "norms or slopes", places)
    raise ValueError(
        f"{prefix} {layer!r} has no counterpart in PyTorch: copy arrays by hand, model.params[name] = value"
    )


def _vectors(layer: Layer, order: Array | None) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The layout of arrays that go with channels or features."""
    if isinstance(layer, norms.LayerNorm) and layer.axes > 1:
        return (lambda a: np.moveaxis(a, 0, -1)), (lambda a: np.moveaxis(a, -1, 0))
    if order is None or (isinstance(layer, activations.PReLU) and layer.shared):
        return _same, _same
    back = np.argsort(order)
    return (lambda a: a[order]), (lambda a: a[back])


def _weight_norm(layer: norms.WeightNorm, prefix: str, order: Array | None) -> _Leaf:
    there, back = _axes(layer.layer, prefix, order)
    ndim = layer.params["direction"].ndim
    kind = "matrices" if ndim == 2 else "convolutions of images"
    gain = _Place(
        layer.params["gain"], _GAINS, lambda a: a.reshape(-1), lambda a: a.reshape(-1, *(1,) * (ndim - 1))
    )  # fmt: skip
    direction = _Place(layer.params["direction"], _DIRECTIONS, there, back)
    return _Leaf(
        prefix, layer, kind, [gain, direction, _Place(layer.params["layer.bias"], ("bias",), _same, _same, 0.0)]
    )


def _same(a: Array) -> Array:
    return a


# ---- Their side -----------------------------------------------------------------------------------------------


def _modules(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arrays of each module, those that occur again left out."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[Any] = set()
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(f"state must have names that are text, got {name!r}")
        if not hasattr(value, "shape"):
            raise TypeError(f"state[{name!r}] must be a tensor or an array of numbers, got {type(value).__name__}")
        module, _, rest = name.rpartition(".")
        if module.endswith("parametrizations.weight"):
            module = module.removesuffix("parametrizations.weight").rstrip(".")
            rest = f"parametrizations.weight.{rest}"
        if rest in _LEFT_OUT:
            continue
        place = (value.data_ptr(), tuple(value.shape)) if hasattr(value, "data_ptr") else id(value)
        if place in seen and math.prod(value.shape):
            continue
        seen.add(place)
        found.setdefault(module, {})[rest] = value
    return found


def _kind(arrays: Mapping[str, Any]) -> str:
    if "running_mean" in arrays or "running_var" in arrays:
        return "batch norms"
    weight = next((arrays[name] for name in ("weight", *_DIRECTIONS) if name in arrays), None)
    if weight is None:
        return "others"
    if "bias" in arrays and arrays["bias"].shape == weight.shape:
        return "norms or slopes"
    return _KINDS.get(len(weight.shape), "others")


def _values(name: str, value: Any) -> Array:
    """A tensor, or what is like one, as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()
        value = value.numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise TypeError(f"state[{name!r}] must be a tensor or an array of numbers, got {type(value).__name__}")
    return value


def _read(state: Any) -> Mapping[str, Any]:
    if isinstance(state, Mapping):
        return state
    if not isinstance(state, (str, os.PathLike)):
        raise TypeError(f"state must be a state_dict or the path of a .safetensors file, got {type(state).__name__}")
    if Path(state).suffix.lower() != ".safetensors":
        raise ValueError(
            f"state must be a state_dict or the path of a .safetensors file, got {os.fspath(state)!r}; of PyTorch's "
            "own files write torch.load(path, weights_only=True)"
        )
    try:
        with files.safetensors().safe_open(os.fspath(state), framework="np") as file:
            # The order of modules is not kept: numbers as numbers, it is that of layers in a Sequential of PyTorch.
            return {name: file.get_tensor(name) for name in sorted(file.keys(), key=_by_numbers)}
    except files.safetensors().SafetensorError as error:
        raise ValueError(f"{os.fspath(state)!r} must be a .safetensors file: {error}") from error


def _by_numbers(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(word)) if word.isdigit() else (1, word) for word in re.split(r"(\d+)|\.", name) if word]


# ---- Both -----------------------------------------------------------------------------------------------------


def _paired(
    leaves: list[_Leaf], modules: dict[str, dict[str, Any]], names: Mapping[str, str] | None
) -> Iterator[tuple[_Leaf, str]]:
    """Each layer of ours with its module of PyTorch: as `names` says, others in order, among those of their kind."""
    given = dict(checks.mapping("names", names or {}))
    ours = {leaf.prefix: leaf for leaf in leaves}
    for mine, theirs in given.items():
        if mine not in ours:
            raise ValueError(f"names must be of layers among {', '.join(ours)}; got {mine!r}")
        if theirs not in modules:
            raise ValueError(f"names must give modules among {', '.join(modules)}; got {theirs!r} for {mine!r}")
    left = {name: arrays for name, arrays in modules.items() if name not in given.values()}
    by_kind: dict[str, list[str]] = {}
    for name, arrays in left.items():
        by_kind.setdefault(_kind(arrays), []).append(name)
    wanted: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        if leaf.prefix in given:
            yield leaf, given[leaf.prefix]
        else:
            wanted.setdefault(leaf.kind, []).append(leaf)
    for kind in {**wanted, **by_kind}:
        mine, others = wanted.get(kind, []), by_kind.get(kind, [])
        if len(mine) != len(others):
            listed = ", ".join(f"{leaf.prefix} {type(leaf.layer).__name__}" for leaf in mine) or "none"
            raise ValueError(
                f"state must have as many {kind} as the model, {len(mine)} ({listed}), got {len(others)} "
                f"({', '.join(others) or 'none'})"
            )
        yield from zip(mine, others, strict=True)


def load_torch(
    model: Stack, state: Mapping[str, Any] | str | os.PathLike[str], *, names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Take over the weights and running statistics of a model of PyTorch.

    Parameters
    ----------
    model : Sequential
        The same architecture, built; what has no arrays, such as activations, may differ from PyTorch's in number and
        form. Its ``eps`` must be PyTorch's, of which a state says nothing: the defaults agree.
    state : mapping of str to tensor or ndarray, or path
        What ``state_dict()`` returned, or a ``.safetensors`` file (the extra ``safetensors``).
    names : mapping of str to str, optional
        The modules of PyTorch for layers, as in ``{"0": "stem.conv"}``, where order does not tell: the others are found
        in their order among those of their kind (convolutions, matrices, batch norms, other norms and slopes). A file
        does not keep the order of modules: it is then that of their names, numbers being numbers.

    Returns
    -------
    dict of str to str
        The module that each layer was loaded from.

    Raises
    ------
    ImportError
        Where `state` is a file, and safetensors is missing.
    TypeError, ValueError
        Where a layer has no counterpart, or what does not fit, which is named; nothing was changed then.
    OSError
        Where the file cannot be read.

    Notes
    -----
    Channels are second in PyTorch, and last here: weights of convolutions change their axes, and so do the inputs of a
    dense layer behind a Flatten. A layer whose module has no bias gets zeros. Layers that learn from data, such as
    `Standardize`, keep what they have.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Conv2D(4), nn.ReLU(), nn.Flatten(), nn.Dense(2)], (3, 3, 1))
    >>> state = nn.to_torch_state(model)
    >>> {name: array.shape for name, array in state.items()}
    {'0.weight': (4, 1, 3, 3), '0.bias': (4,), '3.weight': (2, 36), '3.bias': (2,)}
    >>> nn.load_torch(model, state)
    {'0': '0', '3': '3'}
    """
    if not isinstance(model, Stack):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    model.check_built()
    modules = _modules(_read(state))
    changes: list[tuple[Array, Array | float]] = []
    pairs = {leaf.prefix: (leaf, module) for leaf, module in _paired(_leaves(model), modules, names)}
    for prefix, (leaf, module) in pairs.items():
        arrays = dict(modules[module])
        for place in leaf.places:
            own = next((name for name in place.names if name in arrays), None)
            what = f"layer {prefix} {type(leaf.layer).__name__} and {module or 'the module'}"
            if own is None:
                if place.absent is None:
                    raise ValueError(f"{what} must both have {place.names[0]}, got {', '.join(modules[module])}")
                changes.append((place.array, place.absent))
                continue
            value, wanted = _values(f"{module}.{own}", arrays.pop(own)), place.to_theirs(place.array).shape
            if value.shape != wanted:
                raise ValueError(f"{what} must fit: {own} must have shape {wanted}, got {value.shape}")
            changes.append((place.array, place.to_ours(value)))
        if arrays:
            raise ValueError(
                f"layer {prefix} {type(leaf.layer).__name__} must have a place for all of {module or 'the module'}, "
                f"but has none for {', '.join(arrays)}"
            )
    for array, new in changes:
        array[...] = new
    return {prefix: module for prefix, (_, module) in pairs.items()}


def to_torch_state(
    model: Stack, *, like: Mapping[str, Any] | None = None, names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The weights and running statistics of a model in PyTorch's layouts: the inverse of `load_torch`.

    Parameters
    ----------
    model : Sequential
    like : mapping of str to tensor or ndarray, optional
        The ``state_dict()`` of the model of PyTorch, for its names: what is returned then holds tensors of its types,
        for ``load_state_dict``. Where absent, names are those of a ``torch.nn.Sequential`` of the same structure.
    names : mapping of str to str, optional
        As for `load_torch`.

    Returns
    -------
    dict of str to ndarray or tensor
        New arrays. To write them to a file that PyTorch reads: ``safetensors.numpy.save_file(state, path)``.

    Raises
    ------
    TypeError, ValueError
        Where a layer has no counterpart, or what does not fit, which is named.

    Examples
    --------
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm()], (3,))
    >>> list(nn.to_torch_state(model))
    ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var']
    """
    if not isinstance(model, Stack):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    model.check_built()
    leaves = _leaves(model)
    if like is None:
        return {
            f"{leaf.prefix}.{place.names[0]}": np.array(place.to_theirs(place.array), order="C")
            for leaf in leaves
            for place in leaf.places
        }
    modules = _modules(checks.mapping("like", like))
    made = dict(like)
    for leaf, module in _paired(leaves, modules, names):
        for place in leaf.places:
            own = next((name for name in place.names if name in modules[module]), None)
            what = f"layer {leaf.prefix} {type(leaf.layer).__name__} and {module or 'the module'}"
            if own is None:
                if place.absent is None or (place.array != place.absent).any():
                    raise ValueError(f"{what} must both have {place.names[0]}, got {', '.join(modules[module])}")
                continue
            full, value = f"{module}.{own}" if module else own, place.to_theirs(place.array)
            wanted = tuple(modules[module][own].shape)
            if value.shape != wanted:
                raise ValueError(f"{what} must fit: {own} must have shape {value.shape}, got {wanted}")
            made[full] = _like(modules[module][own], value)
    first: dict[Any, str] = {}  # of what occurs again, under its other names
    for name, value in like.items():
        if hasattr(value, "data_ptr") and math.prod(value.shape):
            place_of = value.data_ptr(), tuple(value.shape)
            made[name] = made[first.setdefault(place_of, name)]
    return made


def _like(tensor: Any, value: Array) -> Any:
    """An array as what it takes the place of: a tensor of its type, or an array."""
    if isinstance(tensor, np.ndarray):
        return np.array(value, tensor.dtype, order="C")
    import torch

    return torch.from_numpy(np.array(value, order="C")).to(tensor.dtype)
