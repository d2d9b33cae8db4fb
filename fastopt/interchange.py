"""The state of optimizers in files, and to and from PyTorch's form."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastopt import checks, files, optimizers
from fastopt.checks import Array
from fastopt.optimizer import Group, Optimizer

__all__ = ["describe_file", "load", "load_torch", "save", "to_torch"]


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
        ``.safetensors``, npz where it ends in ``.npz`` or has no ending. docs/files.md has what stands in it.

    Raises
    ------
    ImportError
        Where the format is that of safetensors, and the package is missing: it is the extra ``safetensors``.
    TypeError
        Where `optimizer` has no state to write.
    ValueError
        Where the name has another ending.
    OSError
        Where the file cannot be written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3)
    >>> optimizer = fastopt.Adam(w, lr=0.1)
    >>> optimizer.step(w.copy())
    >>> fastopt.save(optimizer, "adam.npz")
    >>> resumed = fastopt.Adam(w, lr=0.1)
    >>> fastopt.load(resumed, "adam.npz")
    >>> resumed.t, bool((resumed.state["param"]["m"] == optimizer.state["param"]["m"]).all())
    (1, True)
    """
    _check_resumable(optimizer)
    files.ending(path, "optimizer")
    files.write_arrays(path, files.pack("optimizer", optimizer.state_dict()), "optimizer")


def load(optimizer: _Resumable, path: str | os.PathLike[str]) -> None:
    """Take over what `save` wrote of an optimizer of the same class, parameters and groups.

    Parameters
    ----------
    optimizer : Optimizer, or anything with a `load_state_dict`
        The one that is to go on.
    path : str or path

    Raises
    ------
    ImportError
        As in `save`.
    OSError
        Where the file cannot be read.
    TypeError, ValueError
        Where it is no such file, it is damaged, or something does not fit; then nothing has been changed.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> fastopt.save(fastopt.Adam(np.ones(3), lr=0.1), "adam.npz")
    >>> optimizer = fastopt.Adam(np.ones(3))
    >>> fastopt.load(optimizer, "adam.npz")
    >>> optimizer.lr
    0.1
    >>> fastopt.load(fastopt.SGD(np.ones(3), lr=0.1), "adam.npz")
    Traceback (most recent call last):
        ...
    ValueError: optimizer must be one of 'SGD'; got 'Adam'
    """
    _check_resumable(optimizer)
    state_dict = files.read_arrays(path, "optimizer", take=lambda entries: files.unpack("optimizer", entries))
    try:
        optimizer.load_state_dict(state_dict)
    except (ArithmeticError, AttributeError, LookupError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"path must name the state of such an optimizer, got {os.fspath(path)!r}: {said}") from error


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file that fastopt wrote says of itself: what it holds, and what it was computed with.

    ``fastopt info PATH`` prints it.

    Parameters
    ----------
    path : str or path
        A model, an ensemble, a checkpoint, the state of an optimizer, the history of a run or those of several, or what
        ``fastopt bench --json`` prints.

    Returns
    -------
    dict
        ``kind``: ``"model"``, ``"ensemble"``, ``"checkpoint"``, ``"optimizer"``, ``"history"``, ``"histories"`` or
        ``"benchmark"``; and, as far as the file says so, its ``format``, the ``environment`` that it was written in
        (versions, CPU, instruction set, threads), and the ``seeds`` and the ``order`` of samples of a run; of
        histories, a list ``runs`` of these.

    Raises
    ------
    ImportError, OSError, ValueError
        As in `load`.

    Examples
    --------
    >>> import fastopt
    >>> from fastopt import nn
    >>> nn.Sequential([nn.Dense(3)], (2,), seed=7).save("model.npz")
    >>> said = fastopt.describe_file("model.npz")
    >>> said["kind"], said["environment"]["fastopt"] == fastopt.__version__, said["seeds"]
    ('model', True, {'model': 7})
    """
    return files.read_any(path, take=_described)


def _described(header: dict[str, Any], entries: Any) -> dict[str, Any]:
    """What `describe_file` returns, of the header of a file and its entries, or of the contents of one in JSON."""
    match header["kind"], entries:
        case "json", {"environment": dict(environment), "results": _}:
            return {"kind": "benchmark", "environment": environment}
        case "json", [dict(), *_]:
            return {"kind": "histories", "runs": [_of_history(each) for each in entries]}
        case "json", _:
            return {"kind": "history", **_of_history(entries)}
        case "model", _:
            return header | {"seeds": {"model": json.loads(entries["config"])["seed"]}}
        case "ensemble", _:
            count = json.loads(entries["ensemble"])["models"]
            return header | {"seeds": {"models": [json.loads(entries[f"{i}/config"])["seed"] for i in range(count)]}}
        case "checkpoint", _:
            return header | dict(files.unpack("run", entries).get("provenance", {}))
    return header


def _of_history(content: Any) -> dict[str, Any]:
    """What a history in JSON says of its run."""
    others = {"stopped": str, "monitor": dict, "provenance": dict}
    if not isinstance(content, dict) or any(not isinstance(v, others.get(k, list)) for k, v in content.items()):
        raise ValueError("it is JSON, but no history")
    return dict(content.get("provenance", {}))


def _check_resumable(optimizer: Any) -> None:
    if not (hasattr(optimizer, "state_dict") and hasattr(optimizer, "load_state_dict")):
        hint = "; a model is written by its method save, and read by fastopt.nn.load"
        is_model = hasattr(optimizer, "predict")
        raise TypeError(f"optimizer must have a state_dict, got {type(optimizer).__name__}{hint if is_model else ''}")


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
    #: Options of PyTorch's implementation, which are left at their defaults.
    run: tuple[str, ...] = ("foreach", "capturable", "differentiable")
    #: Whether PyTorch's state has the number of steps, …
    counts: bool = True
    #: … and exists before the first one.
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

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> optimizer = fastopt.Adam(np.ones(3, np.float32), lr=0.1)
    >>> optimizer.step(np.ones(3, np.float32))
    >>> state_dict = fastopt.to_torch(optimizer, tensors=False)
    >>> sorted(state_dict["state"][0]), state_dict["param_groups"][0]["betas"]
    (['exp_avg', 'exp_avg_sq', 'step'], (0.9, 0.999))
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
    TypeError, ValueError
        Where something is missing or does not fit, or settings differ among parameters that have them in common here;
        then nothing has been changed.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> theirs = fastopt.to_torch(fastopt.Adam(np.ones(3), lr=0.1), tensors=False)  # or torch_optimizer.state_dict()
    >>> optimizer = fastopt.Adam(np.ones(3))
    >>> fastopt.load_torch(optimizer, theirs)
    >>> optimizer.lr
    0.1
    """
    form = _form(optimizer)
    if t is not None:
        if form.counts:
            raise TypeError(f"t must not be given where the state has it, got {t!r}")
        checks.integer("t", t, 0, 2**53)
    own = optimizer.state_dict()
    sets, given = _sets(optimizer), _groups_of(state_dict)
    sizes, given_sizes = [len(names) for _, names in sets], [len(group["params"]) for group in given]
    if sizes != given_sizes:
        raise ValueError(f"param_groups must hold {sizes} parameters, got {given_sizes}")
    numbers = [i for group in given for i in group["params"]]
    if len({*numbers}) < len(numbers):
        raise ValueError(f"param_groups must hold each parameter once, got {numbers}")
    _take_settings(optimizer, form, given, own)

    order = [(name, i, group) for (_, names), group in zip(sets, given, strict=True)
             for name, i in zip(names, group["params"], strict=True)]  # fmt: skip
    state = _mapping("state", _get(state_dict, "state", "state_dict"))
    params = checks.named("param", optimizer.params)
    steps: dict[str, int] = {}
    for name, i, group in order:
        label = f"state[{i}]"
        theirs = {key: value for key, value in _mapping(label, state.get(i, {})).items() if value is not None}
        own["scalars"][name] = dict(optimizer.scalars)
        steps[name] = 0
        if theirs:
            steps[name] = _whole(f"{label}['step']", _get(theirs, "step", label)) if form.counts else 1
            own["scalars"][name] = {
                key: checks.number(f"{label}[{key!r}]", _get(theirs, key, label)) for key in optimizer.scalars
            }
        elif name not in own["state"]:
            continue
        own["state"][name] = arrays = {}
        for key, their_key in form.state.items():
            if theirs and not (their_key == "momentum_buffer" and not group["momentum"]):
                arrays[key] = _array(_get(theirs, their_key, label))
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
            wanted["dampening"] = 0.0  # which PyTorch ignores then
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
    """Which group's setting applies, the last one's that has it; None for the optimizer's."""
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


def _mapping(name: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, got {type(value).__name__}")
    return value


def _get(mapping: Any, key: Any, name: str) -> Any:
    """What a mapping of that name holds under a key."""
    if key not in _mapping(name, mapping):
        raise ValueError(f"{key!r} must be a key of {name}, got {', '.join(map(repr, mapping)) or 'none'}")
    return mapping[key]


def _groups_of(state_dict: Any) -> list[dict[str, Any]]:
    """PyTorch's groups, with numbers for tensors that hold one."""
    groups = _get(state_dict, "param_groups", "state_dict")
    if not isinstance(groups, (list, tuple)):
        raise TypeError(f"param_groups must be a list of dicts, got {type(groups).__name__}")
    for place, group in enumerate(groups):
        label = f"param_groups[{place}]"
        numbers = _get(group, "params", label)
        if not isinstance(numbers, (list, tuple)):
            raise TypeError(f"{label}['params'] must be a list of integers, got {type(numbers).__name__}")
        for number in numbers:
            checks.integer(f"{label}['params']", number, 0)
    return [{key: _plain(value) for key, value in group.items()} for group in groups]


def _plain(value: Any) -> Any:
    """The number in a tensor or an array of one element; anything else as it is."""
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _is(given: Any, value: Any) -> bool:
    """Whether a setting has a value; an array never has."""
    return not hasattr(given, "shape") and bool(given == value)


def _take_settings(optimizer: Optimizer, form: _Form, given: list[dict[str, Any]], own: dict[str, Any]) -> None:
    """Put PyTorch's settings into a state dict of ours: of the optimizer, or of the group whose setting applies."""
    taken: dict[tuple[Group | None, str], Any] = {}
    for i, ((groups, names), theirs) in enumerate(zip(_sets(optimizer), given, strict=True)):
        label = f"param_groups[{i}]"
        for key, value in form.theirs.items():
            if not _is(theirs.get(key, value), value):
                raise ValueError(f"{key} must be {value!r} for {type(optimizer).__name__}, got {theirs[key]!r}")
        values = {ours: _get(theirs, key, label) for ours, key in form.settings.items()}
        for key, pair in form.pairs.items():
            both = _get(theirs, key, label)
            if not (isinstance(both, tuple) and len(both) == 2):
                raise ValueError(f"{label}[{key!r}] must be a pair, ({', '.join(pair)}), got {both!r}")
            values |= zip(pair, both, strict=True)
        for name, value in values.items():
            place = owner, name = _owner(groups, name), name
            now, factor = _value(optimizer, groups, name), _factor(groups, name)
            if place in optimizer._scheduled:
                continue
            whole = getattr(optimizer if owner is None else owner, name)
            value = checks.flag(name, value) if isinstance(whole, bool) else checks.number(name, value)
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
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # PyTorch's for a tensor of several
        number = math.nan
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"{name} must be a number of steps, got {value!r}")
    return int(number)
