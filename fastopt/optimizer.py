"""What all optimizers share: binding arrays, stepping, groups of parameters, schedules, and keeping state.

A step is one call of a plan (`fastopt._kernels.Plan`), which holds all arrays. Parameters with the same settings
form a *cell* of that plan, with hyperparameters and a step counter of its own; most optimizers have one cell. What the
kernel cannot know beforehand (schedules, norms of gradients) is worked out around the plan's step, by `Optimizer.step`;
where there is no such thing, an optimizer's `step` is the plan's own.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar, TypedDict

import numpy as np

from fastopt import _kernels, arena, checks
from fastopt.checks import Array, Arrays
from fastopt.gradients import scale_down
from fastopt.hyper import Flag, Hyper, Limit, Number
from fastopt.schedules import Schedule

#: Where there is no default.
REQUIRED = inspect.Parameter.empty


class Common(TypedDict, total=False):
    """The keywords that every optimizer takes: see `Optimizer`."""

    weight_decay: float | Schedule
    decoupled: bool
    l1: float | Schedule
    max_norm: float | Schedule | None
    clip_value: float | Schedule | None
    maximize: bool
    clip_norm: float | Schedule | None
    clip_global_norm: float | Schedule | None
    clip_eps: float
    skip_nonfinite: bool
    groups: Sequence[Mapping[str, Any]]


#: The defaults of hyperparameters that every step has, …
EVERY_STEP: dict[str, Any] = {
    "weight_decay": 0.0,
    "decoupled": False,
    "l1": 0.0,
    "max_norm": None,
    "clip_value": None,
    "maximize": False,
}
#: … and of what is done before a step, by the class alone.
BEFORE_STEP: dict[str, Any] = {"clip_norm": None, "clip_global_norm": None, "clip_eps": 0.0, "skip_nonfinite": False}
#: What groups may say beside hyperparameters of the kernel.
OF_GROUPS: dict[str, Callable[[str, Any], Any]] = {
    "lr_factor": functools.partial(checks.number, bounds="[0, inf)"),
    "frozen": checks.flag,
}


class Group:
    """Some of an optimizer's parameters, and their settings: what is not among them is that of the optimizer.

    Settings are attributes, such as ``optimizer.groups[0].lr``; a setting that the group was made with may be changed.

    Attributes
    ----------
    names : tuple of str
        The parameters' names, as in ``optimizer.state``.
    """

    __slots__ = ("_optimizer", "_settings", "names")

    def __init__(self, optimizer: Optimizer, names: tuple[str, ...], settings: dict[str, Any]) -> None:
        for name, value in (("_optimizer", optimizer), ("names", names), ("_settings", settings)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in self._settings:
            raise AttributeError(f"this group has no setting {name!r}; it has {', '.join(self._settings)}")
        value = self._settings[name]
        return value if name in OF_GROUPS else getattr(type(self._optimizer), name).decode(value)

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self, name)
        self._optimizer._set(name, value, self)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={getattr(self, name)!r}" for name in self._settings)
        return f"Group({', '.join(self.names)}{settings})"


@dataclass
class _Cell:
    """Parameters that are stepped with the same hyperparameters."""

    groups: tuple[Group, ...] = ()
    #: The optimizer's step number when the parameters were added.
    born: int = 0
    #: What the class keeps from step to step beside state arrays.
    scalars: dict[str, float] = field(default_factory=dict)


class Optimizer:
    """What all optimizers share: binding arrays, stepping, and keeping state.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        The parameters: float32 or float64 (all alike), C-contiguous, of any shapes, no two overlapping. These very
        arrays are updated in place, and stay bound until the optimizer is gone: do not resize them, and give them new
        values by ``params["w"][...] = …``, since after ``params["w"] = …`` the old array is still the bound one.
    weight_decay : float, default 0.0
        Decay, in [0, inf): coupled (L2 penalty, ``weight_decay·p`` is added to the gradient), or `decoupled`.
    decoupled : bool, default False
        Decoupled decay (Loshchilov & Hutter 2019): ``p ← p − lr·weight_decay·p`` beside the step. (LAMB and the
        schedule-free steps add ``weight_decay·p`` to the direction of the step.)
    l1 : float, default 0.0
        L1 penalty, in [0, inf): ``l1·sign(p)`` is added to the gradient. `fastopt.elastic_net` has both penalties.
    max_norm : float or None, default None
        After a step, the incoming weights of each unit (all axes but the last of an array of two or more) are scaled
        down to this Euclidean norm where they exceed it (Srivastava et al. 2014, section 5.1), in (0, inf).
    clip_value : float or None, default None
        Each element of the gradient is clipped to [−clip_value, clip_value], in (0, inf), before penalties are added.
    maximize : bool, default False
        Ascend the gradient.
    clip_norm, clip_global_norm : float or None, default None
        Each gradient, or all together, are scaled down to this Euclidean norm where they exceed it (Pascanu et al.
        2013, algorithm 1), in (0, inf): after `grad_scale`, before `clip_value`. Only the class has these two and the
        next two.
    clip_eps : float, default 0.0
        Is added to the norm that is divided by; 1e-6 in PyTorch.
    skip_nonfinite : bool, default False
        Take no step where a gradient is not finite; `skipped` counts.
    groups : sequence of mapping, optional
        Settings of some parameters: ``{"params": which, …}`` with hyperparameters of their own, ``lr_factor`` (of the
        learning rate, default 1) and ``frozen`` (True: they are not stepped, their steps not counted, and their
        gradients not looked at).
        `which` is a name, a pattern such as ``"*bias"``, a list of these, or a function ``(name, array) -> bool``
        such as `fastopt.vectors`. Where a parameter is in several groups, the later ones have the last word.
    **hyper
        The hyperparameters of the kernel. Each is an attribute that may be changed between steps, and may be a
        `fastopt.schedules.Schedule`: it then follows the number of steps taken, `t`, until it is set to a value.

    Attributes
    ----------
    params : ndarray, list or dict of ndarray
        As given.
    state : mapping of mapping of ndarray
        The live state arrays by parameter and by name, such as ``state["W1"]["m"]``; change their values in place.
        Parameters in a list are named ``"0"``, ``"1"``, …; a lone array is named ``"param"``.
    t : int
        The number of steps taken.
    groups : tuple of Group
    schedules : mapping of str to Schedule
        What follows `t`, groups aside.
    grad_norm : float or None
        The norm of all gradients of the last step, before clipping; None where no option asks for it.
    skipped : int
        The number of steps that were skipped.

    Raises
    ------
    TypeError, ValueError
        Where an array or a hyperparameter breaks its rule; then nothing has been changed.

    Notes
    -----
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019, algorithms 1 and 2. N. Srivastava et
    al., "Dropout: a simple way to prevent neural networks from overfitting", 2014. R. Pascanu, T. Mikolov and Y.
    Bengio, "On the difficulty of training recurrent neural networks", 2013.
    """

    kernel: ClassVar[str]
    #: The name of the functional form.
    name: ClassVar[str]
    #: Whether a step depends on its number t, which the functional form then asks for.
    counts_steps: ClassVar[bool] = False
    #: Hyperparameters of the kernel that the class decides, …
    fixed: ClassVar[dict[str, float]] = {}
    #: … and those that it works out before each step (see `_compute`); the functional form asks for them.
    computed: ClassVar[tuple[str, ...]] = ()
    #: What `_compute` begins with.
    scalars: ClassVar[dict[str, float]] = {}
    #: With what state arrays begin, in words (see `_initial`).
    begins: ClassVar[str] = "of zeros at first"
    #: Settings of the class alone, such as how its state begins; groups have none of their own.
    of_class: ClassVar[tuple[str, ...]] = ()
    #: Defaults other than those of EVERY_STEP.
    defaults: ClassVar[dict[str, Any]] = {}
    _place: ClassVar[dict[str, int]]

    lr = Number("[0, inf)")
    weight_decay = Number("[0, inf)")
    decoupled = Flag()
    l1 = Number("[0, inf)")
    max_norm = Limit("(0, inf)")
    clip_value = Limit("(0, inf)")
    maximize = Flag()
    clip_norm = Limit("(0, inf)")
    clip_global_norm = Limit("(0, inf)")
    clip_eps = Number("[0, inf)")
    skip_nonfinite = Flag()

    # ---- What follows from a class --------------------------------------------------------------------------

    def __init_subclass__(cls, abstract: bool = False) -> None:
        if abstract:
            return
        cls._place = {name: place for place, name in enumerate(_kernels.STEPS[cls.kernel][1])}
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @classmethod
    def state_names(cls) -> tuple[str, ...]:
        """The names of the state arrays."""
        return _kernels.STEPS[cls.kernel][0]

    @classmethod
    def hyper_names(cls) -> list[str]:
        """The names of the hyperparameters: its own, and then those that every step has."""
        decided = {"t", "grad_scale", *cls.fixed, *cls.computed}
        own = [name for name in cls._place if name not in EVERY_STEP]
        return [name for name in (*own, *EVERY_STEP) if name not in decided]

    @classmethod
    def keywords(cls) -> dict[str, Any]:
        """The hyperparameters with their defaults, or REQUIRED: its own as in the signature, then the others."""
        signature = inspect.signature(cls).parameters
        names = cls.hyper_names()
        own = {name: p.default for name, p in signature.items() if name in names}
        return own | {name: (EVERY_STEP | cls.defaults)[name] for name in names if name not in own}

    @classmethod
    def encode(cls, hyper: Mapping[str, Any]) -> tuple[float, ...]:
        """The checked hyperparameters as the kernel takes them, those after ``t`` and ``grad_scale``."""
        return tuple(
            cls.fixed[name] if name in cls.fixed else getattr(cls, name).encode(hyper[name])
            for name in list(cls._place)[2:]
        )

    def _compute(
        self, hyper: Mapping[str, float], scalars: Mapping[str, float], t: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """For step t, what is `computed`, and the `scalars` to remember after it."""
        return {}, {}

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        """What a state array is filled with, where the parameter's learning rate begins with `lr`."""
        return 0.0

    def _further_state(self, param: Array) -> dict[str, Array]:
        """State arrays of other shapes, which are not the kernel's."""
        return {}

    def _advance(self, grads: Arrays, grad_scale: float, factors: Sequence[float]) -> None:
        """Step along gradients that are to be multiplied by a number, and each by its own factor."""
        self._plan.scale_each(factors)
        self._plan.step(grads, grad_scale=grad_scale)

    # ---- Binding --------------------------------------------------------------------------------------------

    def __init__(self, params: Arrays, *, groups: Sequence[Mapping[str, Any]] = (), **hyper: Any) -> None:
        if type(self) is Optimizer:
            raise TypeError("Optimizer is what all optimizers share; use one of them, such as fastopt.Adam")
        unknown = [name for name in hyper if name not in self._setting_names()]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no keyword {unknown[0]!r}; it takes {', '.join(self._setting_names())}"
            )
        self._scheduled: dict[tuple[Group | None, str], Schedule] = {}
        self._held: dict[str, float] = {}
        for name, value in (EVERY_STEP | BEFORE_STEP | self.defaults | hyper).items():
            if name in self._setting_names():
                self._held[name] = self._encoded(name, value, None, 0)
        self._params = params
        self._skipped = 0
        self._grad_norm: float | None = None
        self._state: dict[str, Mapping[str, Array]] = {}
        self._groups: tuple[Group, ...] = ()
        self._cells = [_Cell(scalars=dict(self.scalars))]
        self._cell_of: dict[str, int] = {}
        by_name = checks.named("param", params)
        for name, param in by_name.items():
            checks.array(checks.param_label(name), param, writable=True)
        self._groups = tuple(self._group(each, by_name) for each in groups)
        self._born = dict.fromkeys(by_name, 0)
        #: Of parameters that are frozen: the steps that they have taken, and the scalars of their cell.
        self._resting: dict[str, tuple[int, Mapping[str, float]]] = {}
        self._bind()

    @classmethod
    def _setting_names(cls) -> list[str]:
        return [*cls.hyper_names(), *cls.of_class, *BEFORE_STEP]

    def _group(self, given: Mapping[str, Any], by_name: Mapping[str, Array]) -> Group:
        settings = {name: value for name, value in given.items() if name != "params"}
        if "params" not in given:
            raise ValueError(f"a group must say which parameters it holds, under 'params'; got {dict(given)}")
        allowed = [*self.hyper_names(), *OF_GROUPS]
        for name in settings:
            if name not in allowed:
                raise ValueError(f"a group must have settings among {', '.join(allowed)}; got {name!r}")
        group = Group(self, chosen_names(given["params"], by_name), {})
        for name, value in settings.items():
            group._settings[name] = self._encoded(name, value, group, 0)
        return group

    def _bind(self, t: int | None = None, with_state: Collection[str] = ()) -> None:
        """Make the plan anew, with state arrays for those that have none, of what is stepped or among `with_state`.

        What cells hold stays, and `t` where it is not given. A parameter that was frozen goes on where it was.
        """
        by_name = checks.named("param", self._params)
        if t is None:
            t = self.t if vars(self).get("_plan") else 0
        born, resting = dict(self._born), dict(self._resting)
        old = {(cell.groups, cell.born): cell for cell in self._cells}
        cells, cell_of = [old.get(((), 0), self._cells[0])], {}
        for name in by_name:
            groups = tuple(group for group in self._groups if name in group.names)
            frozen = [group._settings["frozen"] for group in groups if "frozen" in group._settings]
            if frozen and frozen[-1]:
                if name not in resting:
                    scalars = self._cells[self._cell_of[name]].scalars if name in self._cell_of else self.scalars
                    resting[name] = t - born[name], dict(scalars)
                cell_of[name] = -1
                continue
            rested = resting.pop(name, None)
            if rested:
                born[name] = t - rested[0]
            kind = groups, born[name]
            kinds = [(cell.groups, cell.born) for cell in cells]
            if kind not in kinds:
                cells.append(old.get(kind) or _Cell(*kind, scalars=dict(self.scalars)))
                kinds.append(kind)
            number = kinds.index(kind)
            if rested and number not in cell_of.values():
                cells[number].scalars = dict(rested[1])
            cell_of[name] = number
        active = [name for name in by_name if cell_of[name] >= 0]
        kept = [name for name in by_name if name in active or name in with_state]
        state = {name: self._state.get(name, {}) for name in kept}
        bare = [name for name in kept if name not in self._state]
        for key in self.state_names():
            rates = [self._in_cell(cells[max(cell_of[name], 0)], "lr") for name in bare]
            initial = [self._initial(key, by_name[name], lr) for name, lr in zip(bare, rates, strict=True)]
            for name, array in zip(bare, arena.all_beside([by_name[name] for name in bare], initial), strict=True):
                state[name] = {**state[name], key: array}
        kernel_state = {name: {key: state[name][key] for key in self.state_names()} for name in active}
        checks.step_arrays({name: by_name[name] for name in active}, kernel_state)
        bound = self._params if isinstance(self._params, np.ndarray) else copy.copy(self._params)
        labelled = checks.labelled({name: by_name[name] for name in active}, kernel_state)
        frozen_names = frozenset(name for name in by_name if cell_of[name] < 0)
        plan = _kernels.Plan(
            self.kernel,
            bound,
            [tuple(kernel_state[name].values()) if name in kernel_state else () for name in by_name],
            [(t - cell.born, 1.0, *self._effective(cell)) for cell in cells],
            [cell_of[name] for name in by_name],
            functools.partial(_explain, bound, labelled, frozen_names),
        )
        self._plan, self._cells, self._cell_of = plan, cells, cell_of
        self._bound, self._born, self._resting = bound, born, resting
        for name in bare:
            state[name] = {**state[name], **self._further_state(by_name[name])}
        self._state = {**self._state, **{name: MappingProxyType(dict(state[name])) for name in kept}}
        self._route()

    def _route(self) -> None:
        """Where nothing is to be done around a step, the plan's own method goes before the class's: the call of that
        would be a quarter of a small step."""
        own = type(self).step is Optimizer.step and type(self)._advance is Optimizer._advance
        if own and not (self.computed or self._scheduled or self._looks_at_gradients()):
            self._plan.scale_each([1.0] * len(self._cell_of))
            vars(self)["step"] = self._plan.step
        else:
            vars(self).pop("step", None)

    def _looks_at_gradients(self) -> bool:
        held = self._held
        return held["clip_norm"] < math.inf or held["clip_global_norm"] < math.inf or bool(held["skip_nonfinite"])

    def add_params(self, more: Arrays, **settings: Any) -> None:
        """Take further parameters in; their state and their step counter, which corrects biases, begin anew.

        Parameters
        ----------
        more : list or dict of ndarray
            As the structure that the optimizer was made with. `params` is then a new list or dict of all; gradients
            must hold those of the new parameters, too.
        **settings
            Of a group of theirs.

        Raises
        ------
        TypeError, ValueError
            Where an array breaks its rule; then nothing has been changed.
        """
        self._plan.claim()
        if isinstance(self._params, dict) and isinstance(more, dict):
            taken = [name for name in more if name in self._params]
            if taken:
                raise ValueError(f"more must hold new parameters, but {taken[0]} is one already")
            merged: Any = {**self._params, **more}
        elif isinstance(self._params, (list, tuple)) and isinstance(more, (list, tuple)):
            merged = [*self._params, *more]
        else:
            wanted, got = type(self._params).__name__, type(more).__name__
            raise TypeError(f"more must be a list or a dict, as params is: {wanted}, got {got}")
        by_name = checks.named("param", merged)
        for name, param in by_name.items():
            checks.array(checks.param_label(name), param, writable=True)
        before = dict(vars(self))
        try:
            new = [name for name in by_name if name not in self._born]
            self._born = self._born | dict.fromkeys(new, self.t)
            self._scheduled = dict(self._scheduled)
            if settings:
                self._groups = (*self._groups, self._group({"params": new, **settings}, by_name))
            self._params = merged
            self._bind()
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    # ---- Settings -------------------------------------------------------------------------------------------

    def _encoded(self, name: str, value: Any, group: Group | None, t: int) -> Any:
        """A checked setting as it is held; where it is a schedule, that is noted, and its present value held."""
        if name in OF_GROUPS:
            return OF_GROUPS[name](name, value)
        declared: Hyper[Any] = getattr(type(self), name)
        schedule = value if isinstance(value, Schedule) else None
        if schedule is not None and not isinstance(declared, (Number, Limit)):
            raise TypeError(f"{name} cannot follow a schedule, got {value!r}")
        held = declared.encode(value if schedule is None else schedule(t))
        self._scheduled.pop((group, name), None)
        if schedule is not None:
            self._scheduled[group, name] = schedule
        return held

    def _set(self, name: str, value: Any, group: Group | None = None) -> None:
        held = self._encoded(name, value, group, self.t)
        self._hold(name, held, group)
        if name == "frozen":
            self._plan.claim()
            self._bind()
        self._route()

    def _hold(self, name: str, held: Any, group: Group | None) -> None:
        """Put a checked value in its place, and in the plan's."""
        (self._held if group is None else group._settings)[name] = held
        name = "lr" if name == "lr_factor" else name
        if name in self._place:
            for number, cell in enumerate(self._cells):
                if group is None or group in cell.groups:
                    self._plan.set_hyper(self._place[name], self._in_cell(cell, name), number)

    def _in_cell(self, cell: _Cell, name: str) -> float:
        """The effective value of a hyperparameter."""
        value, factor = self._held[name], 1.0
        for group in cell.groups:
            value = group._settings.get(name, value)
            factor = group._settings.get("lr_factor", factor)
        return value * factor if name == "lr" else value

    def _effective(self, cell: _Cell) -> tuple[float, ...]:
        """All hyperparameters of a cell as the kernel takes them, those after ``t`` and ``grad_scale``."""
        decided = self.fixed | dict.fromkeys(self.computed, 0.0)
        return tuple(decided[name] if name in decided else self._in_cell(cell, name) for name in list(self._place)[2:])

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name.startswith("_") or hasattr(type(self), name)):
            raise AttributeError(
                f"{type(self).__name__} has no hyperparameter {name!r}; it has {', '.join(self._setting_names())}"
            )
        super().__setattr__(name, value)

    # ---- Stepping -------------------------------------------------------------------------------------------

    def step(self, grads: Arrays, *, grad_scale: float = 1.0) -> None:
        """Update all parameters in place, in one call.

        Parameters
        ----------
        grads : ndarray, list or dict of ndarray
            The gradients: the structure, type and shapes of the parameters. Those of frozen parameters are not looked
            at: they may be None, or absent from a dict.
        grad_scale : float, default 1.0
            The gradients are multiplied by this first, on the fly: to unscale a scaled loss, or to average a sum.

        Raises
        ------
        TypeError, ValueError
            Where a gradient does not fit, or is not finite where it is to be clipped by its norm; then parameters,
            state and ``t`` are what they were.
        """
        scale = checks.number("grad_scale", grad_scale)
        t, clip, factors = self.t, 1.0, [1.0] * len(self._cell_of)
        now = {place: getattr(type(self), place[1]).encode(s(t)) for place, s in self._scheduled.items()}
        if self._looks_at_gradients():
            squares = self._plan.squares(grads)
            norms = [abs(scale) * root for root in _roots(squares, self._bound, grads)]
            norm = math.hypot(*norms)
            if not math.isfinite(norm) and self._held["skip_nonfinite"]:
                self._skipped += 1
                self._grad_norm = norm
                return
            limits = [now.get((None, name), self._held[name]) for name in ("clip_norm", "clip_global_norm")]
            if not math.isfinite(norm) and min(limits) < math.inf:
                raise ValueError(
                    f"grads must be finite to be clipped by their norm, got a norm of {norm}; skip_nonfinite=True "
                    "skips such a step"
                )
            eps = self._held["clip_eps"]
            factors = [scale_down(own, limits[0], eps) for own in norms]
            clip = scale_down(math.hypot(*(min(own, limits[0]) for own in norms)), limits[1], eps)
            self._grad_norm = norm
        else:
            self._plan.check(grads)
            self._grad_norm = None
        for (group, name), held in now.items():
            self._hold(name, held, group)
        scalars = []
        for number, cell in enumerate(self._cells) if self.computed else ():
            own = {name: self._in_cell(cell, name) for name in self.hyper_names()} if cell.groups else self._held
            values, after = self._compute(own, cell.scalars, t - cell.born + 1)
            for name in self.computed:
                self._plan.set_hyper(self._place[name], values[name], number)
            scalars.append((cell, after))
        self._advance(grads, scale * clip, factors)
        for cell, after in scalars:
            cell.scalars = after

    # ---- Looking at it --------------------------------------------------------------------------------------

    @property
    def params(self) -> Arrays:
        return self._params

    @property
    def state(self) -> Mapping[str, Mapping[str, Array]]:
        return MappingProxyType(self._state)

    @property
    def t(self) -> int:
        return int(self._plan.get_hyper(0))

    @property
    def groups(self) -> tuple[Group, ...]:
        return self._groups

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        return MappingProxyType({name: s for (group, name), s in self._scheduled.items() if group is None})

    @property
    def grad_norm(self) -> float | None:
        return self._grad_norm

    @property
    def skipped(self) -> int:
        return self._skipped

    def __repr__(self) -> str:
        signature = inspect.signature(type(self)).parameters
        usual = EVERY_STEP | BEFORE_STEP | self.defaults | {name: signature[name].default for name in self.of_class}
        shown = {name: self.schedules.get(name, getattr(self, name)) for name in self._setting_names()}
        parts = [f"{name}={value!r}" for name, value in shown.items() if name not in usual or value != usual[name]]
        if self._groups:
            parts.append(f"groups={[*self._groups]!r}")
        return f"{type(self).__name__}({', '.join(parts)}, t={self.t})"

    # ---- State ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that `load_state_dict` needs to go on to the same bits.

        Returns
        -------
        dict
            ``optimizer``, the name of the class; ``t`` and ``skipped``; ``hyper``, a dict of hyperparameters and
            options; ``schedules``, a dict of dicts; ``groups``, a list of dicts; ``born``, a dict of the steps before
            each parameter's first one (as if it had rested until then, where it has rested since); ``scalars``, a dict
            of dicts; ``state``, a dict of dicts of arrays as in the attribute. But for the arrays, all of it fits into
            JSON.
        """
        t = self.t
        cells = {name: self._cells[number] for name, number in self._cell_of.items() if number >= 0}
        taken = self._resting | {name: (t - cell.born, cell.scalars) for name, cell in cells.items()}
        return {
            "optimizer": type(self).__name__,
            "t": t,
            "skipped": self.skipped,
            "hyper": {name: getattr(self, name) for name in self._setting_names()},
            "schedules": self._schedules_of(None),
            "groups": [
                {
                    "params": list(group.names),
                    **{name: getattr(group, name) for name in group._settings},
                    "schedules": self._schedules_of(group),
                }
                for group in self._groups
            ],
            "born": {name: t - taken[name][0] for name in self._cell_of},
            "scalars": {name: dict(taken[name][1]) for name in self._cell_of},
            "state": {name: {k: a.copy() for k, a in arrays.items()} for name, arrays in self.state.items()},
        }

    def _schedules_of(self, group: Group | None) -> dict[str, Any]:
        return {name: s.as_dict() for (owner, name), s in self._scheduled.items() if owner is group}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the arrays are copied into the live ones.

        The optimizer must hold the same parameters, and groups of the same ones. Settings, schedules and counters
        become those of the state.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where something is missing or does not fit; then nothing has been changed.
        """
        checks.choice("optimizer", state_dict["optimizer"], (type(self).__name__,))
        t = checks.integer("t", state_dict["t"], 0, 2**53)
        skipped = checks.integer("skipped", state_dict["skipped"], 0, 2**53)
        _same_keys("hyper", self._setting_names(), state_dict["hyper"])
        settings: list[tuple[Group | None, Mapping[str, Any]]] = [(None, state_dict["hyper"])]
        given = [list(group["params"]) for group in state_dict["groups"]]
        if given != [list(group.names) for group in self._groups]:
            raise ValueError(f"groups must hold {[list(group.names) for group in self._groups]}, got {given}")
        for group, saved in zip(self._groups, state_dict["groups"], strict=True):
            own = {name: value for name, value in saved.items() if name not in ("params", "schedules")}
            _same_keys("groups", group._settings, own)
            settings.append((group, own))
        _same_keys("born", self._born, state_dict["born"])
        _same_keys("scalars", self._born, state_dict["scalars"])
        taken: dict[str, tuple[int, Mapping[str, float]]] = {}
        for name, step in state_dict["born"].items():
            _same_keys(f"scalars[{name!r}]", self.scalars, state_dict["scalars"][name])
            numbers = {key: checks.number(key, value) for key, value in state_dict["scalars"][name].items()}
            taken[name] = t - checks.integer("born", step, 0, t), numbers
        arrays_of = state_dict["state"]
        schedules = [state_dict["schedules"], *(group["schedules"] for group in state_dict["groups"])]
        self._plan.claim()
        before, before_in_groups = dict(vars(self)), [dict(group._settings) for group in self._groups]
        try:
            self._held, self._scheduled, self._resting, self._skipped = {}, {}, taken, skipped
            for owner, (_, values), scheduled in zip((None, *self._groups), settings, schedules, strict=True):
                for name, value in values.items():
                    held = self._held if owner is None else owner._settings
                    held[name] = self._encoded(name, value, owner, t)
                for name, plain in scheduled.items():
                    self._encoded(name, Schedule.from_dict(plain), owner, t)
            self._cells, self._cell_of = [_Cell(scalars=dict(self.scalars))], {}
            self._bind(t, with_state=arrays_of)
            _same_keys(
                "state", [name for name in self._state if name in arrays_of or self._cell_of[name] >= 0], arrays_of
            )
            for name in arrays_of:
                _same_keys(f"state[{name!r}]", self._state[name], arrays_of[name])
                for key, own_array in self._state[name].items():
                    value = arrays_of[name][key]
                    checks.array(f"state[{name!r}][{key!r}]", value, dtype=own_array.dtype, shape=own_array.shape)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            for group, held in zip(self._groups, before_in_groups, strict=True):
                group._settings.update(held)
            raise
        self._state = {name: self._state[name] for name in arrays_of}
        for name, arrays in self._state.items():
            for key, own_array in arrays.items():
                own_array[...] = arrays_of[name][key]

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), self._params, self.state_dict())


def _rebuilt(cls: type[Optimizer], params: Arrays, state_dict: dict[str, Any]) -> Optimizer:
    """An optimizer like the one that had this state: how a copy, or one that was pickled, is made."""
    groups = [{key: value for key, value in group.items() if key != "schedules"} for group in state_dict["groups"]]
    optimizer = cls(params, groups=groups, **state_dict["hyper"])
    optimizer.load_state_dict(state_dict)
    return optimizer


def vectors(name: str, param: Array) -> bool:
    """Whether a parameter is a bias or the scale of a norm: of fewer than two axes.

    >>> import numpy as np, fastopt
    >>> params = {"w": np.ones((2, 3)), "b": np.zeros(3)}
    >>> fastopt.AdamW(params, groups=[{"params": fastopt.vectors, "weight_decay": 0.0}]).groups
    (Group(b, weight_decay=0.0),)
    """
    return param.ndim < 2


def chosen_names(which: Any, by_name: Mapping[str, Array]) -> tuple[str, ...]:
    """The names of the parameters that a group is to hold."""
    if callable(which):
        return tuple(name for name, param in by_name.items() if which(name, param))
    patterns = [which] if isinstance(which, str) else list(which)
    for pattern in patterns:
        if not any(name == pattern or fnmatchcase(name, pattern) for name in by_name):
            raise ValueError(f"a group must hold parameters among {', '.join(by_name)}; none is {pattern!r}")
    return tuple(name for name in by_name if any(name == p or fnmatchcase(name, p) for p in patterns))


def _explain(
    params: Arrays, bound: dict[str, Array], frozen: frozenset[str], plan: _kernels.Plan, grads: Any, grad_scale: Any
) -> Any:
    """Say why a step was refused; or take it, where only `grad_scale` was a number of another type."""
    scale = checks.number("grad_scale", grad_scale)
    if scale is not grad_scale:
        return plan.step(grads, grad_scale=scale)
    checks.gradients(params, grads, bound, frozen)
    raise AssertionError("a step was refused for no reason known")


def _roots(squares: Sequence[float], params: Arrays, grads: Arrays) -> Iterator[float]:
    """The norms of gradients; where squares of finite numbers have overflowed, with the largest one taken out."""
    for square, grad in zip(squares, checks.named("grad", _ordered(params, grads)).values(), strict=True):
        if square == math.inf and grad.dtype == np.float64 and np.isfinite(grad).all():
            largest = float(np.abs(grad).max())
            yield largest * math.sqrt(float(np.square(grad / largest).sum()))
        else:
            yield math.sqrt(square)


def _ordered(params: Arrays, grads: Arrays) -> Arrays:
    """Gradients in the order of the parameters."""
    if isinstance(params, dict) and isinstance(grads, dict):
        return {name: grads.get(name) for name in params}  # type: ignore[misc]
    return grads


def _same_keys(name: str, wanted: Iterable[Any], given: Iterable[Any]) -> None:
    if set(wanted) != set(given):
        raise ValueError(f"{name} must have the keys {sorted(wanted)}, got {sorted(given)}")
