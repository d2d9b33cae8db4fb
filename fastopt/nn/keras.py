"""The weights of models to and from Keras 3, in its ``.weights.h5`` and ``.keras`` files: the extra ``h5py``."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastopt import checks, files
from fastopt.checks import Array
from fastopt.nn import activations, convolutions, embedding, layers, norms, preprocessing
from fastopt.nn.layers import Layer
from fastopt.nn.stack import Stack

__all__ = ["load_keras", "save_keras"]

#: What Keras calls the group of a layer in a file, less its number, by the class of ours; layouts are the same.
_KINDS: dict[type[Layer], str] = {
    layers.Dense: "dense",
    layers.Conv2D: "conv2d",
    convolutions.Conv1D: "conv1d",
    convolutions.Conv2DTranspose: "conv2d_transpose",
    embedding.Embedding: "embedding",
    norms.BatchNorm: "batch_normalization",
    norms.LayerNorm: "layer_normalization",
    norms.GroupNorm: "group_normalization",
    norms.InstanceNorm: "group_normalization",
    norms.RMSNorm: "rms_normalization",
    activations.PReLU: "p_re_lu",
    preprocessing.Standardize: "normalization",
}
#: Layers whose statistics are arrays of any shape of the same size.
_ANY_SHAPE = (activations.PReLU, preprocessing.Standardize)
#: Where a container keeps its layers, in the order in which we look: the second one is that of Keras 3.0.
_OF_LAYERS = ("layers", "_layer_checkpoint_dependencies")
_WEIGHTS_OF_KERAS = "model.weights.h5"


# ---- Our side -------------------------------------------------------------------------------------------------


@dataclass
class _Leaf:
    """A layer with arrays that Keras has a layer for."""

    prefix: str
    layer: Layer

    @property
    def depthwise(self) -> bool:
        """Whether each channel has filters of its own: a layer of its own in Keras."""
        return type(self.layer) is layers.Conv2D and self.layer.groups > 1 and self.layer.params["weight"].shape[2] == 1

    @property
    def kind(self) -> str:
        return "depthwise_conv2d" if self.depthwise else _KINDS[type(self.layer)]

    @property
    def text(self) -> str:
        return f"{self.prefix} {type(self.layer).__name__}"

    def arrays(self, count: int) -> list[tuple[Array, float | None]]:
        """Ours in Keras's order where it has so many, and the value of those that it has not; none where no layer of
        Keras has so many."""
        own = {**self.layer.params, **self.layer.state}
        if isinstance(self.layer, preprocessing.Standardize):
            return [(own["mean"], None), (own["var"], None)] if count == 3 else []  # the third is a counter
        if isinstance(self.layer, norms.BatchNorm) and count == 2:
            moments = [(own[name], None) for name in ("running_mean", "running_var")]
            return [*moments, (own["scale"], 1.0), (own["shift"], 0.0)]
        if "bias" in own and count == 1:
            return [(own["weight"], None), (own["bias"], 0.0)]
        return [(array, None) for array in own.values()] if count == len(own) else []


@dataclass
class _Level:
    """The layers of a model, those of models within it apart."""

    prefix: str
    leaves: list[_Leaf] = field(default_factory=list)
    levels: list[_Level] = field(default_factory=list)
    without: list[str] = field(default_factory=list)  # those that learn from data, and that Keras has not

    def flat(self) -> list[_Leaf]:
        return [*self.leaves, *(leaf for level in self.levels for leaf in level.flat())]


def _level(model: Stack, prefix: str = "", seen: list[Layer] | None = None) -> _Level:
    level = _Level(prefix)
    seen = [] if seen is None else seen

    def visit(layer: Layer, name: str) -> None:
        if any(layer is other for other in seen):
            return
        seen.append(layer)
        if isinstance(layer, Stack):
            level.levels.append(_level(layer, name, seen))
        elif type(layer) in _KINDS:
            if layer.params or layer.state:
                level.leaves.append(_Leaf(name, layer))
        elif isinstance(layer, preprocessing.LearnsFromData):
            level.without.extend([f"{name} {layer!r}"] if layer.state else [])
        elif isinstance(layer, norms.WeightNorm) or (not layer.parts and (layer.params or layer.state)):
            raise ValueError(
                f"{name} {layer!r} has no counterpart in Keras: copy arrays by hand, model.params[name] = value"
            )
        for key, part in layer.parts.items() if not isinstance(layer, Stack) else ():
            visit(part, f"{name}.{key}")

    for key, part in model.parts.items():
        visit(part, f"{prefix}.{key}" if prefix else key)
    return level


# ---- Their side -----------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """A layer of Keras with arrays, or a model with layers."""

    path: str  # names of groups, as in "sequential/dense_1"
    name: str  # what Keras calls the layer
    arrays: list[Any] = field(default_factory=list)  # datasets
    groups: list[_Group] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return re.sub(r"_\d+$", "", self.path.rpartition("/")[2])

    def flat(self) -> list[_Group]:
        return [*([self] if self.arrays else []), *(each for group in self.groups for each in group.flat())]


def h5py() -> Any:
    """The package, which is an extra."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Keras's files need h5py: pip install 'fastopt[h5py]'") from error
    return h5py


@contextlib.contextmanager
def _opened(path: Any) -> Iterator[_Group]:
    """What a file of Keras 3 holds."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be that of a .weights.h5 or .keras file, got {type(path).__name__}")
    package, name = h5py(), os.fspath(path)
    with contextlib.ExitStack() as stack:
        source: Any = stack.enter_context(open(path, "rb"))
        try:
            if Path(name).suffix.lower() == ".keras":
                with zipfile.ZipFile(source) as members:
                    source = io.BytesIO(members.read(_WEIGHTS_OF_KERAS))
            file = stack.enter_context(package.File(source, "r"))
            if "layer_names" in file.attrs:
                raise ValueError("it is one of Keras 2: load it there, and write model.save_weights('x.weights.h5')")
            root = _group(file, "", "")
            if not root.flat():
                raise ValueError(f"it has no layers with weights, but {', '.join(file) or 'nothing'}")
        except (ValueError, KeyError, OSError, RuntimeError, zipfile.BadZipFile) as error:
            text = str(error).strip("'\"")
            raise ValueError(f"{name!r} must be a .weights.h5 or .keras file of Keras 3: {text}") from error
        yield root


def _group(group: Any, path: str, name: str) -> _Group:
    """The arrays of a layer and the layers within it, in the order of their numbers."""
    package, found = h5py(), _Group(path, name)
    own = _member(group, "vars", package.Group)
    if own is not None:
        found.name = str(own.attrs.get("name", name))
        found.arrays = [_member(own, key, package.Dataset) for key in sorted(own, key=_number)]
    inner = next((key for key in _OF_LAYERS if key in group), None)
    for key in sorted(group if inner is None else group[inner], key=_numbered):
        if key == "vars" or key == "seed_generator" or (inner is None and not path):
            continue
        part = _member(group if inner is None else group[inner], key, package.Group)
        if part is not None:
            made = _group(part, f"{path}/{key}" if path else key, key)
            if made.flat():
                found.groups.append(made)
    return found


def _member(group: Any, key: str, kind: Any) -> Any:
    """What a group has by a name, in the file itself; None where there is none."""
    package = h5py()
    if key not in group:
        return None
    link = group.get(key, getlink=True)
    if not isinstance(link, package.HardLink):
        raise ValueError(f"{group.name}/{key} points to somewhere else")
    found = group[key]
    if not isinstance(found, kind):
        raise ValueError(f"{group.name}/{key} is no {kind.__name__.lower()}")
    if isinstance(found, package.Dataset) and (found.is_virtual or found.external):
        raise ValueError(f"{group.name}/{key} has its numbers somewhere else")
    return found


def _number(key: str) -> int:
    if not key.isdigit():
        raise ValueError(f"it has an array {key!r} where there should be numbered ones")
    return int(key)


def _numbered(key: str) -> tuple[str, int]:
    name, _, number = key.rpartition("_")
    return (name, int(number)) if number.isdigit() else (key, 0)


# ---- Both -----------------------------------------------------------------------------------------------------


def _paired(level: _Level, root: _Group, names: Mapping[str, str] | None) -> dict[str, tuple[_Leaf, _Group]]:
    """Each layer of ours with Keras's: as `names` says, others in order, among those of their kind."""
    given = dict(checks.mapping("names", names or {}))
    ours, theirs = {leaf.prefix: leaf for leaf in level.flat()}, root.flat()
    pairs: dict[str, tuple[_Leaf, _Group]] = {}
    for mine, wanted in given.items():
        if mine not in ours:
            raise ValueError(f"names must be of layers among {', '.join(ours)}; got {mine!r}")
        found = [group for group in theirs if wanted in (group.path, group.name)]
        if len(found) != 1:
            known = ", ".join(f"{group.path} ({group.name})" for group in theirs)
            raise ValueError(f"names must give layers among {known}; got {wanted!r} for {mine!r}")
        pairs[mine] = ours[mine], found[0]
    taken = [group for _, group in pairs.values()]
    _pair(level, root, pairs, taken)
    return {prefix: pairs[prefix] for prefix in ours if prefix in pairs}


def _pair(level: _Level, group: _Group, pairs: dict[str, tuple[_Leaf, _Group]], taken: list[_Group]) -> None:
    models = [each for each in group.groups if each.groups]
    leaves, others = level.leaves, group.flat()
    if models and len(models) == len(level.levels) and len({each.kind for each in models}) == 1:
        for inner, model in zip(level.levels, models, strict=True):
            _pair(inner, model, pairs, taken)
        others = [each for each in group.groups if not each.groups]
    else:
        leaves = level.flat()
    wanted: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        if leaf.prefix not in pairs:
            wanted.setdefault(leaf.kind, []).append(leaf)
    found: dict[str, list[_Group]] = {}
    for each in others:
        if not any(each is other for other in taken):
            found.setdefault(each.kind, []).append(each)
    for kind in {**wanted, **found}:
        mine, their = wanted.get(kind, []), found.get(kind, [])
        if kind == "normalization" and not their:
            continue  # layers that learn from data keep what they have
        if len(mine) != len(their):
            raise ValueError(
                f"path must have as many layers {kind} as the model, {len(mine)} "
                f"({', '.join(leaf.text for leaf in mine) or 'none'}), got {len(their)} "
                f"({', '.join(each.path for each in their) or 'none'})"
            )
        pairs.update((leaf.prefix, (leaf, each)) for leaf, each in zip(mine, their, strict=True))


def _fitting(leaf: _Leaf, group: _Group) -> list[tuple[Array, Any]]:
    """Arrays of ours, each with the dataset of Keras's or the value that is in its place."""
    what, arrays = f"layer {leaf.text} and {group.path} must fit", leaf.arrays(len(group.arrays))
    if not arrays:
        full = len({**leaf.layer.params, **leaf.layer.state})
        lacks = group.kind.endswith("_normalization") and len(group.arrays) < full
        hint = "; whether it lacks scale or shift, a file does not say" if lacks else ""
        raise ValueError(f"{what}: it must have {full} arrays, got {len(group.arrays)}{hint}")
    made: list[tuple[Array, Any]] = []
    for i, (array, absent) in enumerate(arrays):
        if absent is not None:
            made.append((array, absent))
            continue
        dataset = group.arrays[i]
        same = dataset.shape == array.shape
        if isinstance(leaf.layer, _ANY_SHAPE) or getattr(leaf.layer, "axes", 1) > 1 or (leaf.depthwise and i == 0):
            same = math.prod(dataset.shape) == array.size
        if not same:
            raise ValueError(f"{what}: array {i} must have shape {array.shape}, got {dataset.shape}")
        if dataset.dtype.kind not in "fiu":
            raise ValueError(f"{what}: array {i} must hold numbers, got {dataset.dtype}")
        made.append((array, dataset))
    return made


def load_keras(model: Stack, path: str | os.PathLike[str], *, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Take over the weights and running statistics of a model of Keras 3.

    Parameters
    ----------
    model : Sequential
        The same architecture, built; what has no arrays, such as activations, may differ from Keras's in number and
        form. A file of weights says nothing of ``eps``: that of Keras's batch norm is 1e-3, ``nn.BatchNorm(eps=1e-3)``.
    path : path
        A ``.weights.h5`` file of ``save_weights``, or a ``.keras`` file of ``save``.
    names : mapping of str to str, optional
        The layers of Keras for ours, by their names or their groups in the file, as in ``{"0": "stem"}``, where order
        does not tell: the others are found in their order among those of their class.

    Returns
    -------
    dict of str to str
        The group in the file that each layer was loaded from.

    Raises
    ------
    ImportError
        Where h5py is missing.
    TypeError, ValueError
        Where the file is damaged or none of Keras 3, a layer has no counterpart, or what does not fit, which is named;
        nothing was changed then.
    OSError
        Where the file cannot be read.

    Notes
    -----
    Layouts are those of Keras. ``Normalization`` goes to `Standardize`, which then has adapted; where the file has
    none, layers that learn from data keep what they have. ``DepthwiseConv2D`` is a convolution of as many groups as
    channels. A model within a model is found as such, or else by its
    layers. A layer of Keras without a bias gives zeros.

    Examples
    --------
    >>> import tempfile
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Conv2D(4), nn.ReLU(), nn.Flatten(), nn.Dense(2)], (3, 3, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save_keras(model, f"{folder}/small.weights.h5")
    ...     nn.load_keras(model, f"{folder}/small.weights.h5")
    {'0': 'conv2d', '3': 'dense'}
    """
    level = _checked(model)
    with _opened(path) as root:
        pairs = _paired(level, root, names)
        changes = [change for leaf, group in pairs.values() for change in _fitting(leaf, group)]
        try:
            new = [(array, value if isinstance(value, float) else value[()]) for array, value in changes]
        except OSError as error:
            raise ValueError(f"{os.fspath(path)!r} must be a whole file: {error}") from error
        found = {prefix: group.path for prefix, (_, group) in pairs.items()}
    for array, value in new:
        array[...] = value if isinstance(value, float) else value.reshape(array.shape)
    for leaf, _ in pairs.values():
        if isinstance(leaf.layer, preprocessing.Standardize):
            leaf.layer.state["adapted"][...] = 1
    return found


def _checked(model: Any) -> _Level:
    if not isinstance(model, Stack):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    model.check_built()
    return _level(model)


def save_keras(
    model: Stack,
    path: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Write the weights and running statistics of a model as a ``.weights.h5`` file, for Keras's ``load_weights``.

    Parameters
    ----------
    model : Sequential
    path : path
        Ends with ``.weights.h5``. The file is replaced at once or not at all.
    like : path, optional
        A ``.weights.h5`` or ``.keras`` file of the model of Keras, whose layers the new one then has. Where absent,
        they are those of a ``keras.Sequential`` of the same structure, which residual blocks have not.
    names : mapping of str to str, optional
        As for `load_keras`, with `like`.

    Raises
    ------
    ImportError
        Where h5py is missing.
    TypeError, ValueError
        Where a layer has no counterpart, or what does not fit, which is named.
    OSError
        Where a file cannot be read or written.

    Examples
    --------
    >>> import tempfile
    >>> from fastopt import nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save_keras(nn.Sequential([nn.Dense(2)], (3,)), f"{folder}/small.weights.h5")
    """
    level = _checked(model)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be that of a .weights.h5 file, got {type(path).__name__}")
    if not os.fspath(path).endswith(".weights.h5"):
        raise ValueError(f"path must end with .weights.h5, as Keras asks for, got {os.fspath(path)!r}")
    if names is not None and like is None:
        raise ValueError("names must come with like, the file that has these layers")
    arrays: dict[str, tuple[str, list[Array]]] = {}  # the name of the layer and its arrays, by its group
    if like is None:
        _listed(level, "", arrays)
    else:
        with _opened(like) as root:
            for leaf, group in _paired(level, root, names).values():
                fitting = _fitting(leaf, group)
                if any((array != value).any() for array, value in fitting if isinstance(value, float)):
                    raise ValueError(f"layer {leaf.text} and {group.path} must fit: that has no bias, scale and shift")
                ours = [
                    np.reshape(array, dataset.shape).astype(dataset.dtype)
                    for array, dataset in fitting
                    if not isinstance(dataset, float)
                ]
                ours += [dataset[()] for dataset in group.arrays[len(ours) :]]
                arrays[group.arrays[0].parent.name] = group.name, ours
    stream, package = io.BytesIO(), h5py()
    with package.File(stream, "w") as file:
        for group_path, (name, own) in arrays.items():
            group = file.create_group(group_path)
            group.attrs["name"] = name
            for i, array in enumerate(own):
                group.create_dataset(str(i), data=array)
    files.replace(os.fspath(path), lambda file: file.write(stream.getvalue()))


def _listed(level: _Level, path: str, found: dict[str, tuple[str, list[Array]]]) -> None:
    """Groups as those of a `keras.Sequential`: names of classes, numbered among the layers of one model."""
    counts: dict[str, int] = {}
    if level.without:
        raise ValueError(f"{level.without[0]} has no counterpart in Keras: save a model without it")

    def named(kind: str, prefix: str) -> str:
        depth = prefix.removeprefix(level.prefix).lstrip(".")
        if "." in depth:
            raise ValueError(
                f"{prefix} is in a block that a keras.Sequential has not: give the file of Keras's model as like"
            )
        number = counts[kind] = counts.get(kind, -1) + 1
        return f"{kind}_{number}" if number else kind

    for inner in level.levels:
        _listed(inner, f"{path}/layers/{named('sequential', inner.prefix)}", found)
    for leaf in level.leaves:
        layer: Any = leaf.layer
        name = named(leaf.kind, leaf.prefix)
        own = [*layer.params.values(), *layer.state.values()]
        if isinstance(layer, preprocessing.Standardize):
            own = [layer.state["mean"], layer.state["var"], np.zeros((), np.int64)]
        elif leaf.depthwise:
            own[0] = own[0].reshape(*own[0].shape[:2], layer.groups, -1)
        elif isinstance(layer, activations.PReLU):
            own = [own[0].reshape((1,) * (len(layer.input_shape or (1,)) - 1) + (-1,))]
        found[f"{path}/layers/{name}/vars"] = name, own
