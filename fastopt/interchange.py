"""The state of optimizers in files, and to and from PyTorch's form."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastopt import checks, files, optimizers
from fastopt.checks import Array
from fastopt.optimizer import Group, Optimizer

__all__ = ["load", "load_torch", "save", "to_torch"]


class _Resumable(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...


# ---- Files --------------------------------------------------------------------------------------------------


def save(optimizer: _Resumable, path: str | os.PathLike[str]) -> None:
    """Write all that an optimizer needs to go on to the same bits, without pickle. Its parameters are not among it.

    Parameters
    ----------
    optimizer : Optimizer, or anything with a `state_dict` of arrays and what JSON knows
        Such as `LookAhead`, `Muon` or `EMA`.
    path : str or path
        A file that is replaced at once or not at all: in the format of safetensors where its name ends in
        ``.safetensors``, else npz.

    Raises
    ------
    ImportError
        Where the format is that of safetensors, and the package is missing: it is the extra ``safetensors``.
    """
    _check_resumable(optimizer)
    entries = files.pack("optimizer", optimizer.state_dict())
    if Path(path).suffix == ".safetensors":
        text = {"optimizer": entries.pop("optimizer")}
        data = _safetensors().numpy.save(entries, metadata=text)
        files.replace(path, lambda file: file.write(data))
    else:
        files.write_arrays(path, entries)


def load(optimizer: _Resumable, path: str | os.PathLike[str]) -> None:
    """Take over what `save` wrote of an optimizer of the same class, parameters and groups.

    Raises
    ------
    ImportError
        As in `save`.
    ValueError
        Where it is no such file.
    KeyError, TypeError, ValueError
        Where something does not fit; then nothing has been changed.
    """
    _check_resumable(optimizer)
    safetensors = _safetensors() if Path(path).suffix == ".safetensors" else None
    errors = (KeyError, ValueError, zipfile.BadZipFile, *([safetensors.SafetensorError] if safetensors else []))
    try:
        if safetensors:
            with safetensors.safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
                state_dict = files.unpack("optimizer", {**arrays, **(file.metadata() or {})})
        else:
            with open(path, "rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as entries:
                state_dict = files.unpack("optimizer", entries)
    except errors as error:
        raise ValueError(f"path must name a file that fastopt.save wrote, got {os.fspath(path)!r}: {error}") from error
    optimizer.load_state_dict(state_dict)


def _check_resumable(optimizer: Any) -> None:
    if not (hasattr(optimizer, "state_dict") and hasattr(optimizer, "load_state_dict")):
        raise TypeError(f"optimizer must have a state_dict, got {type(optimizer).__name__}")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("*.safetensors needs safetensors: pip install 'fastopt[safetensors]'") from error
    return safetensors


# ---- PyTorch ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """How PyTorch keeps what an optimizer of ours does."""

    #: State arrays, ours and theirs.
    state: Mapping[str, str] = field(default_factory=dict)
    #: Settings, ours and theirs.
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Settings of theirs that are two of ours.
    pairs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: What ours must be set to.
    ours: Mapping[str, Any] = field(default_factory=dict)
    #: What theirs must be set to.
    theirs: Mapping[str, Any] = field(default_factory=dict)
    #: How PyTorch runs it, which is left to its defaults.
    run: tuple[str, ...] = ("foreach", "capturable", "differentiable")
    #: Whether its state has the number of steps, …
    counts: bool = True
    #: … and is there before the first one.
    at_once: bool = False


_EVERY = {"lr": "lr", "maximize": "maximize"}
_DECAYS = {**_EVERY, "weight_decay": "weight_decay"}
_DECOUPLED = {**_DECAYS, "eps": "eps", "decoupled": "decoupled_weight_decay"}
_RMSPROP = {**_DECAYS, "eps": "eps", "decay": "alpha"}
_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}
_BETAS = {"betas": ("beta1", "beta2")}
_COUPLED = {"decoupled": False}
_OUTSIDE = {"eps_mode": "outside"}
_ADAM = {"eps_mode": "outside", "bias_correction": True}
_FUSED = ("foreach", "differentiable", "fused")
_FORMS: dict[type[Optimizer], _Form] = {
    optimizers.SGD: _Form(
        {}, _DECAYS, ours=_COUPLED, theirs={"momentum": 0, "dampening": 0, "nesterov": False}, run=_FUSED, counts=False
    ),
    optimizers.Momentum: _Form(
        {"velocity": "momentum_buffer"},
        {**_DECAYS, "momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov"},
        ours={**_COUPLED, "lr_in_velocity": False},
        run=_FUSED,
        counts=False,
    ),
    optimizers.RMSProp: _Form(
        {"square_avg": "square_avg"},
        _RMSPROP,
        ours=_COUPLED | _OUTSIDE,
        theirs={"momentum": 0, "centered": False},
    ),
    optimizers.RMSPropMomentum: _Form(
        {"square_avg": "square_avg", "velocity": "momentum_buffer"},
        {**_RMSPROP, "momentum": "momentum"},
        ours={**_COUPLED, **_OUTSIDE, "lr_in_velocity": False},
        theirs={"centered": False},
    ),
    optimizers.CenteredRMSProp: _Form(
        {"square_avg": "square_avg", "velocity": "momentum_buffer", "grad_avg": "grad_avg"},
        {**_RMSPROP, "momentum": "momentum"},
        ours={**_COUPLED, **_OUTSIDE, "lr_in_velocity": False},
        theirs={"centered": True},
    ),
    optimizers.Adagrad: _Form(
        {"square_sum": "sum"},
        {**_DECAYS, "eps": "eps", "initial_accumulator_value": "initial_accumulator_value"},
        ours=_COUPLED | _OUTSIDE,
        theirs={"lr_decay": 0},
        run=_FUSED,
        at_once=True,
    ),
    optimizers.Adadelta: _Form(
        {"square_avg": "square_avg", "square_step": "acc_delta"},
        {**_DECAYS, "decay": "rho", "eps": "eps"},
        ours=_COUPLED,
    ),
    optimizers.Adam: _Form(
        _MOMENTS, _DECOUPLED, _BETAS, _ADAM, {"amsgrad": False}, ("foreach", "capturable", *_FUSED[1:])
    ),
    optimizers.AdamW: _Form(
        _MOMENTS,
        {**_DECAYS, "eps": "eps"},
        _BETAS,
        _ADAM,
        {"amsgrad": False, "decoupled_weight_decay": True},
        ("foreach", "capturable", *_FUSED[1:]),
    ),
    optimizers.AMSGrad: _Form(
        {**_MOMENTS, "v_max": "max_exp_avg_sq"},
        _DECOUPLED,
        _BETAS,
        {**_ADAM, "corrected_max": False},
        {"amsgrad": True},
        ("foreach", "capturable", *_FUSED[1:]),
    ),
    optimizers.Adamax: _Form(
        {"m": "exp_avg", "u": "exp_inf"}, {**_DECAYS, "eps": "eps"}, _BETAS, {**_COUPLED, "eps_mode": "inside"}
    ),
    optimizers.NAdam: _Form(_MOMENTS, {**_DECOUPLED, "momentum_decay": "momentum_decay"}, _BETAS, _OUTSIDE),
    optimizers.RAdam: _Form(_MOMENTS, _DECOUPLED, _BETAS, {"eps_mode": "hat", "threshold": 5.0}),
    optimizers.Rprop: _Form(
        {"step_size": "step_size", "prev_grad": "prev"},
        _EVERY,
        {"etas": ("eta_minus", "eta_plus"), "step_sizes": ("min_step", "max_step")},
        {**_COUPLED, "weight_decay": 0.0},
    ),
}


def to_torch(optimizer: Optimizer, *, tensors: bool = True) -> dict[str, Any]:
    """What the ``state_dict`` of PyTorch's optimizer of the same kind would be.

    Parameters
    ----------
    optimizer : Optimizer
        One that PyTorch has, too: SGD, momentum, RMSProp in all forms, Adagrad, Adadelta, Adam, AdamW, AMSGrad, Adamax,
        NAdam, RAdam or Rprop, with those options that give PyTorch's numbers.
    tensors : bool, default True
        False leaves NumPy arrays, and does without PyTorch.

    Returns
    -------
    dict
        ``state`` and ``param_groups``, for ``load_state_dict`` of an optimizer with the same parameters. Those of no
        group come first, then those of the first group alone, of the first and the second, and so on; within these,
        they are in their order here. Schedules are given by their values for the next step. What goes before a step
        (clipping, `skip_nonfinite`) is not part of PyTorch's optimizers, nor of this.

    Raises
    ------
    TypeError
        Where PyTorch has no such optimizer.
    ValueError
        Where an option gives other numbers than PyTorch's.
    """
    form = _form(optimizer)
    own = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    param_groups = []
    number = 0
    for groups, names in _sets(optimizer):
        values = {key: _value(optimizer, groups, key) for key in _settings_of(form)}
        given = {**form.theirs, **{theirs: values[ours] for ours, theirs in form.settings.items()}}
        given |= {theirs: tuple(values[ours] for ours in pair) for theirs, pair in form.pairs.items()}
        given |= {key: None if key in ("foreach", "fused") else False for key in form.run}
        param_groups.append({**given, "params": [*range(number, number + len(names))]})
        for name in names:
            steps = own["t"] - own["born"][name]
            if form.state and (steps or form.at_once) and name in own["state"]:
                arrays = {theirs: own["state"][name][ours] for ours, theirs in form.state.items()}
                if values.get("momentum") == 0:
                    del arrays["momentum_buffer"]
                dtype = own["state"][name][next(iter(form.state))].dtype
                scalars = {key: np.array(value, dtype) for key, value in own["scalars"][name].items()}
                state[number] = ({"step": np.array(steps, np.float32)} if form.counts else {}) | scalars | arrays
            number += 1
    if tensors:
        import torch

        state = {i: {key: torch.from_numpy(a) for key, a in arrays.items()} for i, arrays in state.items()}
    return {"state": state, "param_groups": param_groups}


def load_torch(optimizer: Optimizer, state_dict: Mapping[str, Any], *, t: int | None = None) -> None:
    """Take over the ``state_dict`` of PyTorch's optimizer of the same kind; PyTorch itself is not needed.

    Parameters
    ----------
    optimizer : Optimizer
        See `to_torch`. Its parameters are not changed.
    state_dict : mapping
        What PyTorch's ``state_dict`` or `to_torch` returned, of tensors or NumPy arrays, with parameters in the order
        that `to_torch` describes. Its settings become those of the optimizer and of its groups, but for those that
        follow a schedule.
    t : int, optional
        The number of steps taken, for SGD and momentum, whose state in PyTorch does not have it; by default that of the
        optimizer.

    Raises
    ------
    KeyError, TypeError, ValueError
        Where something is missing or does not fit, or settings differ among parameters that have them in common here;
        then nothing has been changed.
    """
    form = _form(optimizer)
    if t is not None:
        if form.counts:
            raise TypeError(f"t must not be given where the state has it, got {t!r}")
        checks.integer("t", t, 0, 2**53)
    own = optimizer.state_dict()
    given = [checks.mapping("a group", group) for group in checks.mapping("state_dict", state_dict)["param_groups"]]
    sets = _sets(optimizer)
    their_state = checks.mapping("state", state_dict["state"])
    sizes, given_sizes = [len(names) for _, names in sets], [len(group["params"]) for group in given]
    if sizes != given_sizes:
        raise ValueError(f"param_groups must hold {sizes} parameters, got {given_sizes}")
    _take_settings(optimizer, form, given, own)

    order = [(name, i, group) for (_, names), group in zip(sets, given, strict=True)
             for name, i in zip(names, group["params"], strict=True)]  # fmt: skip
    params = checks.named("param", optimizer.params)
    steps: dict[str, int] = {}
    for name, i, group in order:
        given_state = checks.mapping(f"state[{i}]", their_state.get(i, {}))
        theirs = {key: value for key, value in given_state.items() if value is not None}
        own["scalars"][name] = dict(optimizer.scalars)
        steps[name] = 0
        if theirs:
            steps[name] = _whole(f"state[{i}]['step']", theirs["step"]) if form.counts else 1
            own["scalars"][name] = {key: float(theirs[key]) for key in optimizer.scalars}
        elif name not in own["state"]:
            continue
        own["state"][name] = arrays = {}
        for key, their_key in form.state.items():
            if theirs and not (their_key == "momentum_buffer" and not group["momentum"]):
                arrays[key] = _array(theirs[their_key])
            else:
                arrays[key] = np.full_like(params[name], optimizer._initial(key, params[name], group["lr"]))
    if form.counts:
        own["t"] = max(steps.values(), default=0)
    else:
        own["t"] = max(own["t"] if t is None else t, *steps.values())
        steps = {name: own["t"] if taken or not form.state else 0 for name, taken in steps.items()}
    own["born"] = {name: own["t"] - taken for name, taken in steps.items()}
    optimizer.load_state_dict(own)


def _form(optimizer: Optimizer) -> _Form:
    """PyTorch's form of an optimizer whose options give PyTorch's numbers."""
    form = _FORMS.get(type(optimizer))
    if form is None:
        known = ", ".join(cls.__name__ for cls in _FORMS)
        raise TypeError(f"optimizer must be one that PyTorch has, {known}; got {type(optimizer).__name__}")
    for groups, _ in _sets(optimizer):
        wanted = {**form.ours, "l1": 0.0, "max_norm": None}
        if "dampening" in form.settings and _value(optimizer, groups, "momentum") == 0:
            wanted["dampening"] = 0.0  # which PyTorch does not look at then
        for name, value in wanted.items():
            if (own := _value(optimizer, groups, name)) != value:
                raise ValueError(f"{name} must be {value!r} to have PyTorch's numbers, got {own!r}")
    return form


def _settings_of(form: _Form) -> list[str]:
    return [*form.settings, *(name for pair in form.pairs.values() for name in pair)]


def _sets(optimizer: Optimizer) -> list[tuple[tuple[Group, ...], list[str]]]:
    """Parameters by the groups that they are in: what is one group in PyTorch."""
    sets: dict[tuple[int, ...], list[str]] = {}
    for name in checks.named("param", optimizer.params):
        places = tuple(place for place, group in enumerate(optimizer.groups) if name in group.names)
        sets.setdefault(places, []).append(name)
    return [(tuple(optimizer.groups[place] for place in places), sets[places]) for places in sorted(sets)]


def _owner(groups: tuple[Group, ...], name: str) -> Group | None:
    """Whose setting it is: that of the last group that has it, or the optimizer's."""
    return next((group for group in reversed(groups) if name in group._settings), None)


def _factor(groups: tuple[Group, ...], name: str) -> float:
    owner = _owner(groups, "lr_factor") if name == "lr" else None
    return 1.0 if owner is None else float(owner.lr_factor)


def _value(optimizer: Optimizer, groups: tuple[Group, ...], name: str) -> Any:
    """A setting of the parameters in these groups, as it will be in the next step."""
    owner = _owner(groups, name)
    schedule = optimizer._scheduled.get((owner, name))
    value = getattr(optimizer if owner is None else owner, name) if schedule is None else schedule(optimizer.t)
    return value * _factor(groups, name) if name == "lr" else value


def _take_settings(optimizer: Optimizer, form: _Form, given: list[Mapping[str, Any]], own: dict[str, Any]) -> None:
    """Put PyTorch's settings into a state dict of ours, each to whom it belongs."""
    taken: dict[tuple[Group | None, str], Any] = {}
    for (groups, names), theirs in zip(_sets(optimizer), given, strict=True):
        for key, value in form.theirs.items():
            if theirs.get(key, value) != value:
                raise ValueError(f"{key} must be {value!r} for {type(optimizer).__name__}, got {theirs[key]!r}")
        values = {ours: theirs[key] for ours, key in form.settings.items()}
        values |= {ours: theirs[key][i] for key, pair in form.pairs.items() for i, ours in enumerate(pair)}
        for name, value in values.items():
            place = owner, name = _owner(groups, name), name
            now, factor = _value(optimizer, groups, name), _factor(groups, name)
            if place in optimizer._scheduled:
                continue
            whole = getattr(optimizer if owner is None else owner, name)
            if value != now:
                whole = value / factor if factor else math.nan
            if taken.setdefault(place, whole) != whole and not math.isclose(taken[place], whole, rel_tol=1e-12):
                raise ValueError(
                    f"{name} must be the same for all parameters that have it in common: {', '.join(names)} would have "
                    f"{value!r} beside others with {taken[place]!r}; make a group with an own {name}"
                )
    for (owner, name), value in taken.items():
        settings = own["hyper"] if owner is None else own["groups"][optimizer.groups.index(owner)]
        settings[name] = value


def _array(value: Any) -> Array:
    """A copy of a tensor or an array."""
    return np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value, order="C")


def _whole(name: str, value: Any) -> int:
    number = float(value)
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"{name} must be a number of steps, got {value!r}")
    return int(number)
