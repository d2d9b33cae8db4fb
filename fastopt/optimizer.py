"""What all optimizers share: binding arrays, stepping, groups of parameters, schedules, and keeping state.

An optimizer has a `Slot` for each parameter: its array, its state, and how many steps it has taken. Parameters of the
same groups that have taken the same number of steps form a `Bucket`: they are stepped together, with hyperparameters
and a step counter in common. A plan (`fastopt._kernels.Plan`) holds all arrays, bucket by bucket; most optimizers have
one bucket. Schedules, norms of gradients and the like are computed by `Optimizer.step` before the plan's step; where an
optimizer needs none of that, its `step` is the plan's own method.

Whatever changes an optimizer first works everything out, and then makes a list of calls of builtin functions, which
`fastopt._kernels.uninterrupted` makes in one go: an exception, that of Ctrl-C included, comes before all or after all.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
import operator
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from fastopt import _kernels, arena, checks, dialects
from fastopt.checks import Array, Arrays
from fastopt.gradients import scale_down
from fastopt.hyper import REQUIRED as REQUIRED
from fastopt.hyper import Argument, Declared, Flag, Hyper, Limit, Number
from fastopt.schedules import Schedule

Params = TypeVar("Params", bound=Arrays)

#: A builtin function and its arguments: see `fastopt._kernels.uninterrupted`.
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class OptimizerLike(Protocol):
    """What `fit` and whatever else trains a model takes for an optimizer, whoever wrote it: for type checkers.

    Further attributes are used where they are there: `lr`, which callbacks set; `state_dict` and `load_state_dict`,
    which checkpoints call; `frozen`, the names of the parameters that are not stepped; `skip_nonfinite`.

    Attributes
    ----------
    params : ndarray, list or dict of ndarray
        Those of the model: the same arrays, which `step` updates in place.
    t : int
        The number of steps taken.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> class Plain:
    ...     def __init__(self, params, lr):
    ...         self.params, self.lr, self.t = params, lr, 0
    ...
    ...     def step(self, grads):
    ...         for name, grad in grads.items():
    ...             self.params[name] -= self.lr * grad
    ...         self.t += 1
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> history = model.fit(np.eye(2), np.arange(2), epochs=20, optimizer=Plain(model.params, lr=1.0))
    >>> history["loss"][-1] < 0.2
    True
    """

    @property
    def params(self) -> Any: ...

    @property
    def t(self) -> int: ...

    def step(self, grads: Any, /) -> Any:
        """Take a step along gradients, in the structure of the parameters."""


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

    __slots__ = ("_optimizer", "names")

    def __init__(self, optimizer: Optimizer, names: tuple[str, ...]) -> None:
        for name, value in (("_optimizer", optimizer), ("names", names)):
            object.__setattr__(self, name, value)

    @property
    def _settings(self) -> dict[str, Any]:
        return self._optimizer._own[self]

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


NO_STATE: Mapping[str, Array] = MappingProxyType({})

#: The settings by which gradients are clipped by their norms.
_CLIPS = ("clip_norm", "clip_global_norm", "clip_eps")

#: Settings that follow a schedule, or are about to be set, by group and name, as they are held.
Now = Mapping[tuple[Group | None, str], Any]
NOTHING: Now = MappingProxyType({})
#: New hyperparameters of a plan: place, value, and number of the bucket.
Changes = Sequence[tuple[int, float, int]]


@dataclass
class Bucket:
    """Parameters that are stepped together: of the same groups, after the same number of steps."""

    #: Its number in the plan, which counts its steps.
    number: int
    groups: tuple[Group, ...]


@dataclass
class Slot:
    """One parameter with its state."""

    param: Array
    #: State arrays; NO_STATE of a parameter that has never been stepped, being frozen.
    state: Mapping[str, Array] = field(default_factory=lambda: NO_STATE)
    groups: tuple[Group, ...] = ()
    #: None of a frozen parameter.
    bucket: Bucket | None = None
    #: The steps that it has taken, and its scalars; of a parameter in a bucket, those of before, as its bucket goes on.
    taken: int = 0
    scalars: Mapping[str, float] = field(default_factory=dict)
    #: The buffer of a direction that takes the place of the gradient: see `fastopt.matrices`.
    direction: Array | None = None

    @property
    def frozen(self) -> bool:
        return self.bucket is None


class Optimizer(Declared):
    """What all optimizers share: binding arrays, stepping, and keeping state.

    Hyperparameters are attributes that may be changed between steps. Each that is a number may be a
    `fastopt.schedules.Schedule`: it then follows the number of steps taken, `t`, until it is set to a value.

    Attributes
    ----------
    params : ndarray, list or dict of ndarray
        As given.
    state : mapping of mapping of ndarray
        The live state arrays by parameter and by name, such as ``state["W1"]["m"]``; change their values in place.
        Parameters in a list are named ``"0"``, ``"1"``, …, those of nests by all keys that lead to them, such as
        ``"layers.0.W"``; a lone array is named ``"param"``.
    t : int
        The number of steps taken.
    groups : tuple of Group
        Where ``params`` is that of a model with frozen parameters (`fastopt.nn.Sequential.freeze`), the first one is
        theirs.
    frozen : frozenset of str
        The names of the parameters that are not stepped.
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

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.schedules import bind, cosine
    >>> layers = [(np.ones((2, 3)), np.ones(3)), (np.ones((3, 1)), np.ones(1))]  # weights and biases
    >>> frozen = {"params": "0.*", "frozen": True}
    >>> optimizer = fastopt.Adam(layers, lr=bind(cosine, peak=0.1, steps=10), clip_global_norm=1.0, groups=[frozen])
    >>> optimizer.step([(np.ones_like(weight), np.ones_like(bias)) for weight, bias in layers])
    >>> sorted(optimizer.frozen), optimizer.grad_norm, layers[1][1]
    (['0.0', '0.1'], 2.0, array([0.9]))
    >>> resumed = fastopt.Adam(layers, groups=[frozen])
    >>> resumed.load_state_dict(optimizer.state_dict())
    >>> resumed.t, resumed.clip_global_norm
    (1, 1.0)
    """

    _common = "What every optimizer takes"
    kernel: ClassVar[str]
    #: The name of the functional form.
    name: ClassVar[str]
    #: Whether a step depends on its number t, which the functional form then asks for.
    counts_steps: ClassVar[bool] = False
    #: The learning rate with which `fit` makes one by its name, if it is not the default of `lr`: one with which small
    #: networks train, where there is no default, or it is for others. (A velocity sums up ten gradients, a step of
    #: schedule-free SGD has the size of its gradient, and Yogi's average of squares grows slowly.)
    default_rate: ClassVar[float | None] = None
    #: Whether it is for gradients of all samples, which have no noise.
    full_batch: ClassVar[bool] = False
    #: State that is not in arrays, before the first step: scalars that the kernel's row says, of each bucket.
    scalars: ClassVar[dict[str, float]] = {}
    #: How state arrays are initialised, for the docstring of the functional form (see `_initial`).
    begins: ClassVar[str] = "of zeros at first"

    params: Argument[Arrays, Arrays] = Argument(
        "ndarray, list or dict of ndarray",
        kw_only=False,
        doc="The parameters: float32 or float64 (all alike), C-contiguous, of any shapes, no two overlapping; an "
        "array, or a nest of dicts, lists and tuples to any depth, such as a list of (W, b). These "
        'very arrays are updated in place: give them new values by ``params["w"][...] = …``. After ``params["w"] = …`` '
        "a step raises, as the list or dict no longer holds the bound array; `rebind` binds the new one. (Where "
        "you gave a lone array, ``w = w - …`` cannot be seen: the old one is still stepped.)",
    )
    lr: Number = Number("[0, inf)", default=1e-3, kw_only=False, doc="Learning rate.")
    weight_decay: Number = Number(
        "[0, inf)",
        default=0.0,
        doc="Decay: coupled (L2 penalty, ``weight_decay·p`` is added to the gradient), or `decoupled`.",
    )
    decoupled: Flag = Flag(
        default=False,
        doc="Decoupled decay (Loshchilov & Hutter 2019): ``p ← p − lr·weight_decay·p`` beside the step. (`LAMB` and "
        "`ScheduleFreeAdamW` add ``weight_decay·p`` to the direction of the step.)",
    )
    l1: Number = Number(
        "[0, inf)",
        default=0.0,
        doc="L1 penalty: ``l1·sign(p)`` is added to the gradient. `fastopt.elastic_net` has both penalties.",
    )
    max_norm: Limit = Limit(
        "(0, inf)",
        default=None,
        doc="After a step, the incoming weights of each unit (all axes but the last of an array of two or more) are "
        "scaled down to this Euclidean norm where they exceed it (Srivastava et al. 2014, section 5.1).",
    )
    clip_value: Limit = Limit(
        "(0, inf)",
        default=None,
        doc="Each element of the gradient is clipped to [−clip_value, clip_value], before penalties are added.",
    )
    maximize: Flag = Flag(default=False, doc="Ascend the gradient.")
    clip_norm: Limit = Limit(
        "(0, inf)",
        default=None,
        per_group=False,
        doc="Each gradient is scaled down to this Euclidean norm where it exceeds it (Pascanu et al. 2013, algorithm "
        "1): after `grad_scale`, before `clip_value`.",
    )
    clip_global_norm: Limit = Limit(
        "(0, inf)", default=None, per_group=False, doc="The same for the norm of all gradients together."
    )
    clip_eps: Number = Number(
        "[0, inf)",
        default=0.0,
        per_group=False,
        doc="Is added to the norm that is divided by; 1e-6 in PyTorch.",
    )
    skip_nonfinite: Flag = Flag(
        default=False, per_group=False, doc="Take no step where a gradient is not finite; `skipped` counts."
    )
    groups: Argument[tuple[Group, ...], Sequence[Mapping[str, Any]]] = Argument(
        "sequence of mapping, optional",
        default=(),
        doc='Settings of some parameters: ``{"params": which, …}`` with hyperparameters of their own, ``lr_factor`` '
        "(of the learning rate, default 1) and ``frozen`` (True: they are not stepped, their steps not counted, and "
        'their gradients ignored). `which` is a name, a pattern such as ``"*bias"``, a list of these, or a '
        "function ``(name, array) -> bool`` such as `fastopt.vectors`. Where a parameter is in several groups, the "
        "later ones have the last word.",
    )

    # ---- What a class says ----------------------------------------------------------------------------------

    #: The kernel's hyperparameters, and settings that scalars depend on, by their places in the plan.
    _place: ClassVar[dict[str, int]] = {}
    #: The scalars by their places there.
    _scalar_place: ClassVar[dict[str, int]] = {}
    #: Hyperparameters of the kernel that the class decides, …
    fixed: ClassVar[dict[str, float]] = {}
    #: … and those that follow from scalars in each step; the functional form asks for them.
    computed: ClassVar[tuple[str, ...]] = ()
    _hyper_names: ClassVar[tuple[str, ...]] = ()
    _whole_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, abstract: bool = False) -> None:
        if hasattr(cls, "kernel"):
            _, hypers, beside = _kernels.STEPS[cls.kernel]
            behind = {name: place for place, name in enumerate(beside, start=len(hypers))}
            cls._scalar_place = {name: place for name, place in behind.items() if name in cls.scalars}
            cls._place = {name: place for place, name in enumerate(hypers)}
            cls._place |= {name: place for name, place in behind.items() if name not in cls.scalars}
        super().__init_subclass__()
        decided = {name: each for name, each in cls.declared.items() if isinstance(each, Hyper) and not each.init}
        cls.computed = tuple(name for name, each in decided.items() if each.default is REQUIRED)
        cls.fixed = {n: each.encode(each.default) for n, each in decided.items() if n not in cls.computed}
        settings = {name: each for name, each in cls.declared.items() if isinstance(each, Hyper) and each.init}
        cls._hyper_names = tuple(name for name, each in settings.items() if each.per_group)
        whole = (name for name, each in settings.items() if not each.per_group)
        cls._whole_names = tuple(sorted(whole, key=lambda name: name in vars(Optimizer)))
        if not abstract and "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @classmethod
    def _in_order(cls, names: Iterable[str]) -> list[str]:
        """First ``params`` and ``lr``, then the kernel's own in the order of its row, then all others."""
        order = ("params", "lr", *(name for name in cls._place if name not in vars(Optimizer)))
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))

    @classmethod
    def state_names(cls) -> tuple[str, ...]:
        """The names of the state arrays.

        Examples
        --------
        >>> import fastopt
        >>> fastopt.Adam.state_names()
        ('m', 'v')
        """
        return _kernels.STEPS[cls.kernel][0]

    @classmethod
    def hyper_names(cls) -> list[str]:
        """The names of the hyperparameters: the kernel's own, those that every step has, and further ones.

        Examples
        --------
        >>> import fastopt
        >>> fastopt.Momentum.hyper_names()[:5]
        ['lr', 'momentum', 'dampening', 'average', 'nesterov']
        """
        return list(cls._hyper_names)

    @classmethod
    def _setting_names(cls) -> list[str]:
        """Those, then what groups have no value of: the class's own, and that of every optimizer."""
        return [*cls._hyper_names, *cls._whole_names]

    @classmethod
    def _lineage(cls) -> list[str]:
        """The names of the class and its bases, under which `fastopt.dialects` has keywords."""
        return [base.__name__ for base in cls.__mro__]

    @classmethod
    def keywords(cls) -> dict[str, Any]:
        """The hyperparameters with their defaults, or REQUIRED.

        Examples
        --------
        >>> import fastopt
        >>> fastopt.Adam.keywords()["beta1"]
        0.9
        """
        given = inspect.signature(cls).parameters  # also of a subclass with a constructor of its own
        return {name: (given if name in given else cls.declared)[name].default for name in cls.hyper_names()}

    @classmethod
    def encode(cls, hyper: Mapping[str, Any]) -> tuple[float, ...]:
        """The checked hyperparameters as the kernel takes them, those after ``t`` and ``grad_scale``."""
        return tuple(
            cls.fixed[name] if name in cls.fixed else getattr(cls, name).encode(hyper[name])
            for name in _kernels.STEPS[cls.kernel][1][2:]
        )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        """What a state array is filled with, where the parameter's learning rate begins with `lr`."""
        return 0.0

    def _further_state(self, param: Array) -> dict[str, Array]:
        """State arrays of other shapes, which are not the kernel's."""
        return {}

    def _check_ready(self) -> None:
        """Raise where no step may be taken now; what changes the answer changes the route (`_routing`)."""

    def _check_param(self, label: str, param: Array) -> None:
        """Raise where an array cannot be a parameter of this optimizer."""
        checks.array(label, param, writable=True)

    def _advance(
        self, grads: Arrays, grad_scale: float, factors: Sequence[float], changes: Changes, t: int, now: Now
    ) -> list[Call]:
        """The calls that step along gradients, which are to be multiplied by a number, and each by its own factor."""
        return [(self._plan.advance, (grads, grad_scale, factors, changes, t))]

    # ---- Binding --------------------------------------------------------------------------------------------

    def __init__(
        self,
        params: Arrays,
        lr: float | Schedule = REQUIRED,
        *,
        groups: Sequence[Mapping[str, Any]] = (),
        **hyper: Any,
    ) -> None:
        if not hasattr(type(self), "name"):
            shared = type(self).__name__
            raise TypeError(f"{shared} is what optimizers share; use one of them, such as fastopt.Adam")
        self._itself = weakref.ref(self)
        names = self._setting_names()
        values = {name: self.declared[name].default for name in names} | hyper
        if lr is not REQUIRED:
            values["lr"] = lr
        for name, value in hyper.items():
            if name not in names:
                raise TypeError(dialects.unknown(type(self).__name__, self._lineage(), name, value, names))
        for name in values:
            if values[name] is REQUIRED:
                raise TypeError(f"{type(self).__name__}.__init__() missing 1 required positional argument: {name!r}")
        self._groups: tuple[Group, ...] = ()
        self._scheduled: dict[tuple[Group | None, str], Schedule] = {}
        self._settings: dict[str, float] = {}
        self._own: dict[Group, dict[str, Any]] = {}
        for name, value in values.items():
            self._put(name, value, None, 0)
        self._skipped = 0
        self._grad_norm: float | None = None
        by_name = self._checked(params)
        if isinstance(groups, (str, Mapping)) or not isinstance(groups, Iterable):
            raise TypeError(f"groups must be a sequence of mappings, {_A_GROUP}, got {groups!r}")
        own = frozen_groups(params, by_name)
        self._groups = tuple(self._group(each, by_name) for each in (*own, *groups))
        self._frozen_by_params = frozenset(name for group in own for name in group["params"])
        self._bind(params, {name: Slot(param, scalars=self.scalars) for name, param in by_name.items()}, 0)

    def _checked(self, params: Arrays) -> dict[str, Array]:
        """The parameters by name."""
        by_name = checks.named("param", params)
        for name, param in by_name.items():
            check_order(checks.param_label(name), param, checks.in_code(params, name))
            self._check_param(checks.param_label(name), param)
        return by_name

    def _group(self, given: Mapping[str, Any], by_name: Mapping[str, Array], owner: Optimizer | None = None) -> Group:
        """A group of this optimizer, or of the `owner` of this draft."""
        if not isinstance(given, Mapping):
            raise TypeError(f"a group must be a mapping, {_A_GROUP}, got {given!r}")
        settings = {name: value for name, value in given.items() if name != "params"}
        if "params" not in given:
            raise ValueError(f"a group must say which parameters it holds, under 'params'; got {dict(given)}")
        allowed = [*self.hyper_names(), *OF_GROUPS]
        for name in settings:
            if name not in allowed:
                instead = dialects.suggestion(self._lineage(), name, settings[name], allowed)
                raise ValueError(f"a group must have settings among {', '.join(allowed)}; got {name!r}{instead}")
        group = Group(owner or self, chosen_names(given["params"], by_name))
        self._own[group] = {}
        for name, value in settings.items():
            self._put(name, value, group, 0)
        return group

    def _bind(
        self,
        params: Arrays,
        slots: dict[str, Slot],
        t: int,
        with_state: Collection[str] = (),
        resting: frozenset[str] = frozenset(),
    ) -> None:
        """Sort slots, which are in no bucket yet, into buckets, and make a plan for them after t steps.

        Parameters that are stepped, or among `with_state`, get state arrays if they have none. Those that are `resting`
        have no gradient: they are in no bucket for now.
        """
        check_entries(params, {name: slot.param for name, slot in slots.items()})
        slots = {name: slots[name] for name in checks.named("param", params) if name in slots}
        kinds: dict[str, tuple[Any, ...]] = {}
        frozen = set()
        for name, slot in slots.items():
            slot.groups = tuple(group for group in self._groups if name in group.names)
            own = [self._own[group] for group in slot.groups]
            if next((each["frozen"] for each in reversed(own) if "frozen" in each), False):
                frozen.add(name)
            elif name not in resting:
                kinds[name] = slot.groups, slot.taken, tuple(sorted(slot.scalars.items()))
        # The first bucket, which may be empty, counts the steps of the optimizer.
        first = next((kind for kind in kinds.values() if kind[:2] == ((), t)), ((), t, tuple(self.scalars.items())))
        buckets = {kind: Bucket(number, kind[0]) for number, kind in enumerate(dict.fromkeys((first, *kinds.values())))}
        for name, kind in kinds.items():
            slots[name].bucket = buckets[kind]

        bare = [slot for name, slot in slots.items() if slot.state is NO_STATE and (slot.bucket or name in with_state)]
        made: list[dict[str, Array]] = [{} for _ in bare]
        for key in self.state_names():
            initial = [self._initial(key, slot.param, self._value("lr", slot.groups)) for slot in bare]
            beside = arena.all_beside([slot.param for slot in bare], initial)
            for arrays, array in zip(made, beside, strict=True):
                arrays[key] = array
        for slot, arrays in zip(bare, made, strict=True):
            slot.state = MappingProxyType(arrays | self._further_state(slot.param))

        active = {name: slot for name, slot in slots.items() if slot.bucket}
        in_plan = {name: slot.param for name, slot in active.items()}
        state = {name: {key: slot.state[key] for key in self.state_names()} for name, slot in active.items()}
        checks.step_arrays(in_plan, state)
        every = [slot.param for slot in slots.values()]
        bound = checks.structured(params, every)
        nested = isinstance(params, checks.NEST) and any(isinstance(item, checks.NEST) for item in _items(params))
        idle = frozenset(slots.keys() - active.keys())
        looks = looks_of(checks.labelled(in_plan, state))
        self._plan = _kernels.Plan(
            self.kernel,
            every if nested else bound,
            [tuple(state[name].values()) if name in state else () for name in slots],
            [
                (kind[1], 1.0, *self._values(bucket), *(dict(kind[2])[name] for name in self._scalar_place))
                for kind, bucket in buckets.items()
            ],
            [slot.bucket.number if slot.bucket else -1 for slot in slots.values()],
            functools.partial(_explain, self._itself, params, bound, looks, idle),
            params,
            checks.structured(params, itertools.repeat(None)) if nested else None,
        )
        self._params, self._bound, self._slots, self._buckets = params, bound, slots, [*buckets.values()]
        self._frozen, self._resting, self._idle = frozenset(frozen), resting, idle
        self._route()

    def _unbound(self) -> dict[str, Slot]:
        """Copies of the slots in no bucket, with the steps and scalars of the bucket that they were in."""
        unbound = {}
        for name, slot in self._slots.items():
            unbound[name] = Slot(slot.param, slot.state, taken=self._taken(slot), scalars=self._scalars(slot))
        return unbound

    def _taken(self, slot: Slot) -> int:
        """The number of steps that a parameter has taken."""
        return int(self._plan.get_hyper(0, slot.bucket.number)) if slot.bucket else slot.taken

    def _scalars(self, slot: Slot) -> Mapping[str, float]:
        """The scalars of a parameter after those steps."""
        if slot.bucket is None:
            return slot.scalars
        return {name: self._plan.get_hyper(place, slot.bucket.number) for name, place in self._scalar_place.items()}

    def _route(self) -> None:
        _kernels.uninterrupted(self._routing(self._settings, self._scheduled))

    def _routing(self, settings: Mapping[str, Any], scheduled: Collection[Any]) -> list[Call]:
        """Where a step is that of the plan alone, let the plan's method, in the instance, hide that of the class: a
        call of the latter would be a quarter of a small step."""
        cls = type(self)
        own = all(getattr(cls, name) is getattr(Optimizer, name) for name in ("step", "_stepping", "_advance"))
        if own and not (scheduled or self._resting or self._needs_norms(settings)):
            ones = [1.0] * len(self._slots)
            return [(self._plan.scale_each, (ones,)), (vars(self).update, ({"step": self._plan.step},))]
        return [(vars(self).pop, ("step", None))]

    @staticmethod
    def _needs_norms(held: Mapping[str, Any]) -> bool:
        """Whether a step depends on the norms of gradients."""
        return held["clip_norm"] < math.inf or held["clip_global_norm"] < math.inf or bool(held["skip_nonfinite"])

    def _draft(self) -> Self:
        """A copy that may be changed and bound: no trace of it is left unless this one takes it over (`_becoming`)."""
        draft = object.__new__(type(self))
        own = {group: dict(settings) for group, settings in self._own.items()}
        vars(draft).update(vars(self), _settings=dict(self._settings), _scheduled=dict(self._scheduled), _own=own)
        return draft

    def _becoming(self, draft: Self) -> list[Call]:
        """The calls that take a draft over."""
        return [(self._plan.retire, ()), (vars(self).pop, ("step", None)), (vars(self).update, (vars(draft),))]

    def rebind(self, params: Arrays) -> None:
        """Go on with other arrays in the place of the parameters, with all state, counters, groups and schedules.

        >>> import numpy as np, fastopt
        >>> params = {"w": np.zeros(2)}
        >>> optimizer = fastopt.SGD(params, lr=0.5)
        >>> params["w"] = np.ones(2)       # a loaded checkpoint, say
        >>> optimizer.rebind(params)
        >>> optimizer.step({"w": np.ones(2)})
        >>> params["w"]
        array([0.5, 0.5])

        Parameters
        ----------
        params : ndarray, list or dict of ndarray
            The structure that the optimizer was made with, or another one alike, with arrays of the same type and
            shapes.

        Raises
        ------
        TypeError, ValueError
            Where structure, type or a shape is another; then nothing has been changed.
        """
        _kernels.uninterrupted(self._rebinding(params))

    def _rebinding(self, params: Arrays) -> list[Call]:
        self._plan.claim()
        check_alike(self._bound, params)
        by_name, draft, slots = self._checked(params), self._draft(), self._unbound()
        for name, slot in slots.items():
            label = checks.param_label(name)
            slot.param = checks.array(label, by_name[name], dtype=slot.param.dtype, shape=slot.param.shape)
        draft._bind(params, slots, self.t)
        return self._becoming(draft)

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

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> params = {"weight": np.ones(2)}
        >>> optimizer = fastopt.SGD(params, lr=0.1)
        >>> optimizer.add_params({"head": np.ones(3)}, lr_factor=10.0)
        >>> optimizer.step({"weight": np.ones(2), "head": np.ones(3)})
        >>> optimizer.params
        {'weight': array([0.9, 0.9]), 'head': array([0., 0., 0.])}
        """
        _kernels.uninterrupted(self._adding(more, **settings))

    def _adding(self, more: Arrays, **settings: Any) -> list[Call]:
        self._plan.claim()
        merged = with_more(self._params, more)
        by_name, draft, slots = self._checked(merged), self._draft(), self._unbound()
        new = {name: Slot(param, scalars=self.scalars) for name, param in by_name.items() if name not in slots}
        if settings:
            draft._groups = (*self._groups, draft._group({"params": list(new), **settings}, by_name, self))
        draft._bind(merged, slots | new, self.t)
        return self._becoming(draft)

    # ---- Settings -------------------------------------------------------------------------------------------

    def _encoded(self, name: str, value: Any, t: int) -> tuple[Any, Schedule | None]:
        """A checked setting as the kernel takes it: of a schedule, which comes with it, its value at t."""
        if name in OF_GROUPS:
            return OF_GROUPS[name](name, value), None
        declared = getattr(type(self), name)
        if not isinstance(value, Schedule):
            if callable(value) and isinstance(declared, (Number, Limit)):
                raise TypeError(
                    f"{name} must be a number, or a schedule that fastopt.schedules.bind returns, got {value!r}: bind "
                    "one of fastopt.schedules, or write callbacks=nn.LearningRateScheduler(step=…) in fit"
                )
            return declared.encode(value), None
        if not isinstance(declared, (Number, Limit)):
            raise TypeError(f"{name} cannot follow a schedule, got {value!r}")
        return declared.encode(value(t)), value

    def _put(self, name: str, value: Any, group: Group | None, t: int) -> None:
        """Set a setting of an optimizer that is to be bound."""
        held, schedule = self._encoded(name, value, t)
        (self._settings if group is None else self._own[group])[name] = held
        self._scheduled.pop((group, name), None)
        if schedule is not None:
            self._scheduled[group, name] = schedule

    def _set(self, name: str, value: Any, group: Group | None = None) -> None:
        _kernels.uninterrupted(self._setting(name, value, group))

    def _setting(self, name: str, value: Any, group: Group | None = None) -> list[Call]:
        """The calls that set a setting."""
        if name == "frozen":
            self._plan.claim()
            draft = self._draft()
            draft._put(name, value, group, self.t)
            draft._bind(self._params, self._unbound(), self.t)
            return self._becoming(draft)
        held, schedule = self._encoded(name, value, self.t)
        now: Now = {(group, name): held}
        calls: list[Call] = [(self._plan.assign, (self._places(now),)), *self._holding(now)]
        if schedule is None and (group, name) not in self._scheduled and name in self._hyper_names:
            return calls  # a step takes the same way as before
        scheduled = {place: each for place, each in self._scheduled.items() if place != (group, name)}
        if schedule is not None:
            scheduled[group, name] = schedule
        settings = self._settings | {name: held} if group is None else self._settings
        storing: Call = (vars(self).update, ({"_scheduled": scheduled},))
        return [*calls, storing, *self._routing(settings, scheduled)]

    def _holding(self, now: Now) -> list[Call]:
        """The calls that store settings."""
        return [
            ((self._settings if group is None else self._own[group]).update, ({name: held},))
            for (group, name), held in now.items()
        ]

    def _places(self, now: Now) -> list[tuple[int, float, int]]:
        """Where settings stand in the plan."""
        changes = []
        for group, name in now:
            own = "lr" if name == "lr_factor" else name
            for bucket in self._buckets if own in self._place else ():
                if group is None or group in bucket.groups:
                    changes.append((self._place[own], self._value(own, bucket.groups, now), bucket.number))
        return changes

    def _value(self, name: str, groups: tuple[Group, ...], now: Now = NOTHING) -> float:
        """What a hyperparameter is for parameters of these groups, as the kernel takes it."""
        value, factor = now.get((None, name), self._settings[name]), 1.0
        for group in groups:
            own = self._own[group]
            value = now.get((group, name), own.get(name, value))
            factor = now.get((group, "lr_factor"), own.get("lr_factor", factor))
        return value * factor if name == "lr" else value

    def _values(self, bucket: Bucket) -> tuple[float, ...]:
        """All hyperparameters of a bucket, those after ``t`` and ``grad_scale``."""
        decided = self.fixed | dict.fromkeys(self.computed, 0.0)  # until the first step
        return tuple(
            decided[name] if name in decided else self._value(name, bucket.groups) for name in list(self._place)[2:]
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name.startswith("_") or hasattr(type(self), name)):
            names = self._setting_names()
            said = dialects.suggestion(self._lineage(), name, value, names) or f"; it has {', '.join(names)}"
            raise AttributeError(f"{type(self).__name__} has no hyperparameter {name!r}{said}")
        super().__setattr__(name, value)

    # ---- Stepping -------------------------------------------------------------------------------------------

    def step(self, grads: Arrays, *, grad_scale: float = 1.0, strict: bool = True) -> None:
        """Update all parameters in place, in one call.

        >>> import numpy as np, fastopt
        >>> layers = [(np.ones((2, 3)), np.zeros(3)), (np.ones((3, 1)), np.zeros(1))]
        >>> optimizer = fastopt.SGD(layers, lr=0.5)
        >>> optimizer.step([(np.ones((2, 3)), np.ones(3)), None], strict=False)
        >>> layers[0][1], layers[1][1]
        (array([-0.5, -0.5, -0.5]), array([0.]))

        Parameters
        ----------
        grads : ndarray, list or dict of ndarray
            The gradients: the structure, type and shapes of the parameters. Those of frozen parameters are ignored:
            they may be None, or absent from a dict.
        grad_scale : float, default 1.0
            The gradients are multiplied by this first, on the fly: to unscale a scaled loss, or to average a sum.
        strict : bool, default True
            False: dicts may have further keys, which are ignored; parameters whose gradient is None, or absent from a
            dict, are left as they are, without decay, and do not count the step. (Where these are others than in the
            step before, the optimizer binds its arrays anew, which costs more than a small step.)

        Raises
        ------
        TypeError, ValueError
            Where a gradient does not fit, or is not finite where it is to be clipped by its norm; then parameters,
            state and ``t`` are what they were.
        """
        _kernels.uninterrupted(self._taking(grads, grad_scale, strict)[0])

    def updated(self, params: Params, grads: Arrays, *, grad_scale: float = 1.0, strict: bool = True) -> Params:
        """Take a step out of place: return new arrays, and leave those of `params` as they are.

        The results have the same bits as those of `step`. They are then the parameters of this optimizer, as after
        `rebind`, whose costs come on top of a step's; its state is updated in place.

        >>> import numpy as np, fastopt
        >>> before = {"w": np.ones(2)}
        >>> optimizer = fastopt.SGD(before, lr=0.5)
        >>> after = optimizer.updated(before, {"w": np.ones(2)})
        >>> before["w"], after["w"], optimizer.params is after
        (array([1., 1.]), array([0.5, 0.5]), True)

        Parameters
        ----------
        params : ndarray, list or dict of ndarray
            Where the step begins: of the structure, type and shapes that the optimizer was made with, such as what the
            last call returned.
        grads, grad_scale, strict
            See `step`.

        Returns
        -------
        ndarray, list or dict of ndarray
            In the structure of `params`.

        Raises
        ------
        TypeError, ValueError
            As in `step`.
        """
        new = copies(self._bound, params)
        _kernels.uninterrupted(self._updating(new, grads, grad_scale, strict)[0])
        return new

    def _taking(self, grads: Arrays, grad_scale: float, strict: bool) -> tuple[list[Call], bool]:
        """The calls of a step, and whether it is taken, or skipped; parameters without a gradient rest."""
        if strict is True and not self._resting:
            return self._stepping(grads, grad_scale)
        resting: frozenset[str] = frozenset()
        if not checks.flag("strict", strict):
            given = checks.matched(self._bound, grads, self._frozen, strict=False)
            resting = frozenset(name for name, grad in given.items() if grad is None) - self._frozen
            grads = checks.structured(self._bound, given.values())
        if resting == self._resting:
            return self._stepping(grads, grad_scale)
        self._plan.claim()
        draft = self._draft()
        draft._bind(self._params, self._unbound(), self.t, resting, resting)
        calls, taken = draft._stepping(grads, grad_scale)
        return [*calls, *self._becoming(draft)], taken

    def _updating(self, params: Arrays, grads: Arrays, grad_scale: float, strict: bool) -> tuple[list[Call], bool]:
        """The same with other arrays in the place of the parameters."""
        self._plan.claim()
        draft, slots = self._draft(), self._unbound()
        for name, param in checks.named("param", params).items():
            slots[name].param = param
        draft._bind(params, slots, self.t, self._resting, self._resting)
        calls, taken = draft._taking(grads, grad_scale, strict)
        return [*calls, *self._becoming(draft)], taken

    def _stepping(self, grads: Arrays, grad_scale: float) -> tuple[list[Call], bool]:
        """The calls of a step along all gradients of the plan, and whether it is taken, or skipped."""
        self._check_ready()
        scale = checks.number("grad_scale", grad_scale)
        t, clip, norm, factors = self.t, 1.0, None, [1.0] * len(self._slots)
        now = {place: getattr(type(self), place[1]).encode(s(t)) for place, s in self._scheduled.items()}
        if self._needs_norms(self._settings):
            squares = self._plan.squares(grads)
            norms = [abs(scale) * root for root in _roots(squares, self._bound, grads, self._idle)]
            norm = _kernels.norm(norms)
            if not math.isfinite(norm) and self._settings["skip_nonfinite"]:
                return [(vars(self).update, ({"_skipped": self._skipped + 1, "_grad_norm": norm},))], False
            limits = [self._value(name, (), now) for name in ("clip_norm", "clip_global_norm", "clip_eps")]
            if not math.isfinite(norm) and min(limits[:2]) < math.inf:
                bad = [name for name, own in zip(self._slots, norms, strict=True) if not math.isfinite(own)]
                among = "" if isinstance(grads, np.ndarray) or not bad else f" (of grads[{'], grads['.join(bad)}])"
                raise ValueError(
                    f"grads must be finite to be clipped by their norm, got a norm of {norm}{among}; "
                    "skip_nonfinite=True skips such a step"
                )
            eps = limits[2]
            factors = [scale_down(own, limits[0], eps) for own in norms]
            clip = scale_down(_kernels.norm([min(own, limits[0]) for own in norms]), limits[1], eps)
        else:
            self._plan.check(grads)
        after: list[Call] = [*self._holding(now), (vars(self).update, ({"_grad_norm": norm},))]
        return [*self._advance(grads, scale * clip, factors, self._places(now), t, now), *after], True

    def upcoming(self, steps: int, varying: Varying | None = None) -> Upcoming | None:
        """The next steps, where they are those of the plan alone, with hyperparameters that may follow schedules; None
        where Python has a part in them.

        Parameters
        ----------
        steps : int
        varying : Varying, optional

        Returns
        -------
        Upcoming or None
        """
        cls, patched = type(self), vars(self).get("step")
        own = all(getattr(cls, name) is getattr(Optimizer, name) for name in ("step", "_stepping", "_advance"))
        if patched is not None and getattr(patched, "__self__", None) is not self._plan:
            own = False
        scheduled = {name for _, name in self._scheduled}
        if not own or self._resting or scheduled.intersection(_CLIPS) or (scheduled and varying):
            return None
        return Upcoming(self, self._plan, steps, varying)

    # ---- Inspection -----------------------------------------------------------------------------------------

    @property
    def state(self) -> Mapping[str, Mapping[str, Array]]:
        return MappingProxyType({name: slot.state for name, slot in self._slots.items() if slot.state is not NO_STATE})

    @property
    def t(self) -> int:
        return int(self._plan.get_hyper(0))

    @property
    def frozen(self) -> frozenset[str]:
        return self._frozen

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
        own = {name: self.declared[name].default for name in self._setting_names()}
        always = [name for name in self._hyper_names if name == "lr" or name not in Optimizer.declared]
        usual = {name: value for name, value in own.items() if name not in always}
        shown = {name: self.schedules.get(name, getattr(self, name)) for name in own}
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
            options; ``schedules``, a dict of dicts; ``groups``, a list of dicts; ``born``, a dict of the steps of
            ``t`` that each parameter has not taken (kept for files of 0.1); ``scalars``, a dict of dicts; ``state``,
            a dict of dicts of arrays as in the attribute. But for the arrays, all of it fits into JSON.
        """
        t, slots = self.t, self._unbound()
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
            "born": {name: t - slot.taken for name, slot in slots.items()},
            "scalars": {name: dict(slot.scalars) for name, slot in slots.items()},
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
        _kernels.uninterrupted(self._loading(state_dict))

    def _loading(self, state_dict: Mapping[str, Any]) -> list[Call]:
        self._plan.claim(True)
        draft = self._draft()
        copying = draft._load(state_dict)
        return [*self._becoming(draft), *copying]

    def _load(self, state_dict: Mapping[str, Any]) -> list[Call]:
        """Have a draft go on from a state; the calls that copy the arrays are returned."""
        checks.choice("optimizer", checks.mapping("state_dict", state_dict)["optimizer"], (type(self).__name__,))
        t = checks.integer("t", state_dict["t"], 0, 2**53)
        skipped = checks.integer("skipped", state_dict["skipped"], 0, 2**53)
        hyper = self._known(state_dict["hyper"])
        _same_keys("hyper", self._setting_names(), hyper)
        saved_groups = [checks.mapping("groups", saved) for saved in state_dict["groups"]]
        given = [list(saved["params"]) for saved in saved_groups]
        if given != [list(group.names) for group in self._groups]:
            raise ValueError(f"groups must hold {[list(group.names) for group in self._groups]}, got {given}")
        settings: dict[Group | None, tuple[Mapping[str, Any], Any]] = {None: (hyper, state_dict["schedules"])}
        for group, saved in zip(self._groups, saved_groups, strict=True):
            own = {name: value for name, value in saved.items() if name not in ("params", "schedules")}
            _same_keys("groups", self._own[group], own)
            settings[group] = own, saved["schedules"]
        slots = self._unbound()
        _same_keys("born", slots, state_dict["born"])
        _same_keys("scalars", slots, state_dict["scalars"])
        for name, slot in slots.items():
            scalars = state_dict["scalars"][name]
            _same_keys(f"scalars[{name!r}]", self.scalars, scalars)
            slot.scalars = {key: checks.number(key, value) for key, value in scalars.items()}
            slot.taken = t - checks.integer("born", state_dict["born"][name], 0, t)
        self._scheduled, self._skipped = {}, skipped
        for owner, (values, schedules) in settings.items():
            for name, value in values.items():
                self._put(name, value, owner, t)
            for name, plain in checks.mapping("schedules", schedules).items():
                if name not in values:
                    raise ValueError(f"schedules must be of {', '.join(values)}, got one of {name!r}")
                schedule = Schedule.from_dict(checks.mapping(f"schedules[{name!r}]", plain))
                self._encoded(name, schedule, t)
                self._scheduled[owner, name] = schedule
        arrays_of = checks.mapping("state", state_dict["state"])
        self._bind(self._params, slots, t, with_state=arrays_of)
        _same_keys("state", [name for name, slot in slots.items() if slot.bucket or name in arrays_of], arrays_of)
        copying: list[Call] = []
        for name, slot in slots.items():
            if name not in arrays_of:
                slot.state = NO_STATE
                continue
            _same_keys(f"state[{name!r}]", slot.state, arrays_of[name])
            for key, own_array in slot.state.items():
                value = arrays_of[name][key]
                checks.array(f"state[{name!r}][{key!r}]", value, dtype=own_array.dtype, shape=own_array.shape)
                copying.append((operator.setitem, (own_array, ..., value)))
        return copying

    @classmethod
    def _known(cls, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a saved state, of an earlier version, too: what has come since has its default, and what the
        class decides since is left out."""
        since = {name: cls.declared[name] for name in cls._setting_names()}
        added = {name: each.default for name, each in since.items() if isinstance(each, Hyper) and each.since}
        return added | {name: value for name, value in checks.mapping("hyper", hyper).items() if name not in cls.fixed}

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), self._params, self.state_dict())


def _rebuilt(cls: type[Optimizer], params: Arrays, state_dict: dict[str, Any]) -> Optimizer:
    """An optimizer like the one that had this state: how a copy, or one that was pickled, is made."""
    groups = [{key: value for key, value in group.items() if key != "schedules"} for group in state_dict["groups"]]
    # A plain copy, which knows nothing of frozen parameters: `groups` has them already.
    plain = params if isinstance(params, np.ndarray) else copy.copy(params)
    optimizer = cls(plain, groups=groups, **cls._known(state_dict["hyper"]))
    optimizer._params = params
    optimizer.load_state_dict(state_dict)
    return optimizer


class Varying(NamedTuple):
    """A setting of a group that differs from step to step: its values, which come again and again."""

    group: Group
    name: str
    values: Array


class Upcoming:
    """The next steps of an optimizer, for a program to take (`fastopt._kernels.Program.run`).

    Attributes
    ----------
    options : dict
        The plan, and the hyperparameters that change from step to step.
    steps : int
        How many they are: fewer where a schedule raises for a later one.
    """

    def __init__(self, optimizer: Optimizer, plan: _kernels.Plan, steps: int, varying: Varying | None) -> None:
        self._optimizer = optimizer
        self._now: list[Now] = []
        self.steps = steps
        self._clips = optimizer._needs_norms(optimizer._settings)
        self.options: dict[str, Any] = {"plan": plan}
        if self._clips:
            self.options["clips"] = tuple(optimizer._settings[name] for name in _CLIPS)
        if optimizer._scheduled:
            plan.scale_each([1.0] * len(optimizer._slots))
            t, cls = optimizer.t, type(optimizer)
            for i in range(steps):
                try:
                    now = {place: getattr(cls, place[1]).encode(s(t + i)) for place, s in optimizer._scheduled.items()}
                except Exception:  # of a later step: those before it are taken first
                    if not i:
                        raise
                    break
                self._now.append(now)
            self.steps = len(self._now)
            self._change(self._now)
        elif varying is not None:
            group, name, values = varying
            distinct, which = np.unique(values, return_inverse=True)
            declared, which = getattr(type(optimizer), name), np.resize(which, steps)
            now_of: list[Now] = [{(group, name): declared.encode(value)} for value in distinct.tolist()]
            self._now = [now_of[i] for i in which.tolist()]
            self._change(now_of)
            self.options["values"] = self.options["values"][which]

    def _change(self, each: Sequence[Now]) -> None:
        """Have settings be these in one step after the other."""
        changes = [self._optimizer._places(now) for now in each]
        self.options["places"] = [(place, bucket) for place, _, bucket in changes[0]]
        self.options["values"] = np.array([[value for _, value, _ in each] for each in changes])

    def finish(self, taken: int, norm: float) -> None:
        """Take note that so many of the steps were taken, and of the norm of the last one's gradients."""
        if not taken:
            return
        calls = self._optimizer._holding(self._now[taken - 1]) if self._now else []
        noting: Call = (vars(self._optimizer).update, ({"_grad_norm": norm if self._clips else None},))
        _kernels.uninterrupted([*calls, noting])


_A_GROUP = 'such as {"params": "*bias", "weight_decay": 0.0}'


def vectors(name: str, param: Array) -> bool:
    """Whether a parameter is a bias or the scale of a norm: of at most one axis that is longer than 1.

    So are (n, 1) and (1, n), the biases of programs that keep all arrays matrices. (The weight of a layer with one
    input or one output has such a shape, too: name the biases where it is to be treated as a matrix.)

    Parameters
    ----------
    name : str
        As in ``optimizer.state``; it has no part in the answer.
    param : ndarray

    Returns
    -------
    bool

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"w": np.ones((2, 3)), "b": np.zeros((1, 3))}
    >>> fastopt.AdamW(params, groups=[{"params": fastopt.vectors, "weight_decay": 0.0}]).groups
    (Group(b, weight_decay=0.0),)
    """
    return sum(length != 1 for length in checks.shape("param", param)) < 2


def frozen_groups(params: Arrays, among: Collection[str]) -> list[dict[str, Any]]:
    """The group of what is frozen in a model whose parameters these are (`fastopt.nn.Sequential.freeze`), if anything
    of these names is."""
    frozen: Collection[str] = getattr(params, "frozen", ())
    chosen = [name for name in among if name in frozen]
    return [{"params": chosen, "frozen": True}] if chosen else []


def chosen_names(which: Any, by_name: Mapping[str, Array], what: str = "a group") -> tuple[str, ...]:
    """The names of the parameters that a group, or what else it is, is to hold."""
    if callable(which):
        return tuple(name for name, param in by_name.items() if which(name, param))
    patterns = [which] if isinstance(which, str) else list(which) if isinstance(which, Iterable) else [which]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                "a group's params must be a name, a pattern, a list of these, or a function (name, array) -> bool, "
                f"got {pattern!r}"
            )
        if not any(name == pattern or fnmatchcase(name, pattern) for name in by_name):
            raise ValueError(f"{what} must hold parameters among {', '.join(by_name)}; none is {pattern!r}")
    return tuple(name for name in by_name if any(name == p or fnmatchcase(name, p) for p in patterns))


def copying(source: Mapping[str, Array], target: Mapping[str, Array]) -> list[Call]:
    """The calls that copy arrays to those of the same name."""
    return [(operator.setitem, (array, ..., source[name])) for name, array in target.items()]


def copies(bound: Arrays, params: Params) -> Params:
    """New arrays with the values of parameters that are like those that are bound, in their structure."""
    check_alike(bound, params)
    given, wanted = checks.named("param", params), checks.named("param", bound)
    for name, array in wanted.items():
        checks.array(checks.param_label(name), given[name], dtype=array.dtype, shape=array.shape, contiguous=False)
    return checks.structured(params, [arena.beside(wanted[name], param) for name, param in given.items()])


def with_more(params: Arrays, more: Arrays, name: str = "") -> Any:
    """A nest of parameters with further ones: new entries of dicts, and more items of lists."""
    at = f"[{name}]" if name else ""
    if isinstance(params, dict) and isinstance(more, dict):
        merged = dict(params)
        for key, item in more.items():
            path = f"{name}.{key}" if name else str(key)
            if key in params and not isinstance(item, checks.NEST):
                raise ValueError(f"more must hold new parameters, but {path} is one already")
            merged[key] = with_more(params[key], item, path) if key in params else item
        return merged
    if isinstance(params, (list, tuple)) and isinstance(more, (list, tuple)):
        return [*params, *more]
    wanted, got = type(params).__name__, type(more).__name__
    raise TypeError(f"more{at} must be a list or a dict, as params{at} is: {wanted}, got {got}")


def _items(nest: Any) -> Iterable[Any]:
    return nest.values() if isinstance(nest, dict) else nest


def check_order(label: str, param: Array, code: str) -> None:
    """Where a parameter has gaps or its axes in another order, say what helps: a copy would be trained in its stead."""
    if isinstance(param, np.ndarray) and not param.flags.c_contiguous:
        cure = f"before the optimizer is made, write {code} = np.ascontiguousarray({code})"
        if param.T.flags.c_contiguous:
            cure += ", or keep the array that this is the transpose of as the parameter, and transpose where it is used"
        raise ValueError(
            f"{label} must be C-contiguous, got strides {param.strides} for shape {param.shape}; it is updated in "
            f"place: {cure}"
        )


def check_alike(bound: Any, params: Any, name: str = "") -> None:
    """The same structure: one array, as many in a list, or a dict with the same keys; and so on for what is in it."""
    at = f"[{name}]" if name else ""
    if name and not isinstance(bound, checks.NEST) and not isinstance(params, (dict, tuple)):
        checks.array(f"params{at}", params, contiguous=False)
        return
    if not any(isinstance(bound, kind) and isinstance(params, kind) for kind in (np.ndarray, dict, (list, tuple))):
        wanted, got = type(bound).__name__, type(params).__name__
        raise TypeError(f"params{at} must have the structure that the optimizer was made with, {wanted}, got {got}")
    if isinstance(bound, np.ndarray):
        return
    if isinstance(bound, dict) and set(bound) != set(params):
        raise ValueError(f"params{at} must have the keys {list(bound)}, got {list(params)}")
    if len(bound) != len(params):
        raise ValueError(f"params{at} must hold {len(bound)} arrays, got {len(params)}")
    for key in bound if isinstance(bound, dict) else range(len(bound)):
        check_alike(bound[key], params[key], f"{name}.{key}" if name else str(key))


def check_entries(params: Arrays, bound: Mapping[str, Array]) -> None:
    """A list or a dict still holds the arrays that are bound by these names."""
    given = checks.named("param", params)
    for name, array in bound.items():
        if given.get(name) is not array:
            entry = checks.in_code(params, name)
            what = "another array now" if name in given else "gone"
            raise ValueError(
                f"{entry} must be the array that the optimizer steps, but is {what}: give that array new values "
                f"({entry}[...] = …), or have the optimizer step the new one: optimizer.rebind(params)"
            )


#: Arrays as they were bound: label, array, type, shape, and where it lies.
Looks = Sequence[tuple[str, Array, np.dtype[Any], tuple[int, ...], int]]


def looks_of(arrays: Mapping[str, Array]) -> Looks:
    return [(label, a, a.dtype, a.shape, _kernels.address(a)) for label, a in arrays.items()]


def check_looks(looks: Looks) -> None:
    """Arrays are as they were bound."""
    for label, array, dtype, shape, address in looks:
        checks.array(label, array, dtype=dtype, shape=shape, writable=True)
        if _kernels.address(array) != address:
            raise ValueError(f"{label} must stay where it was in memory, but was resized; make a new optimizer")


def _explain(
    itself: Callable[[], Optimizer | None], owner: Arrays, params: Arrays, looks: Looks, idle: frozenset[str],
    plan: _kernels.Plan, grads: Any, grad_scale: Any, strict: Any = True,
) -> Any:  # fmt: skip
    """Say why a step was refused; or take it, where it is not strict, or `grad_scale` was a number of another type."""
    if strict is not True:
        optimizer = itself()
        if optimizer is None:
            raise RuntimeError(
                "a step that is not strict is the optimizer's, which is gone: keep it, and call its step"
            )
        return type(optimizer).step(optimizer, grads, grad_scale=grad_scale, strict=strict)
    scale = checks.number("grad_scale", grad_scale)
    if scale is not grad_scale:
        return plan.step(grads, grad_scale=scale)
    check_entries(owner, checks.named("param", params))
    check_looks(looks)
    checks.gradients(params, grads, {label: array for label, array, *_ in looks}, idle)
    raise TypeError("grads must be arrays that are what their attributes say")


def _roots(squares: Sequence[float], params: Arrays, grads: Arrays, idle: Collection[str]) -> Iterator[float]:
    """The norms of gradients; where squares of finite numbers have overflowed, with the largest one taken out."""
    for place, square in enumerate(squares):
        if square == math.inf:
            grad = list(checks.matched(params, grads, idle).values())[place]
            if grad.dtype == np.float64 and np.isfinite(grad).all():
                largest = float(np.abs(grad).max())
                yield largest * math.sqrt(float(np.square(grad / largest).sum()))
                continue
        yield math.sqrt(square)


def _same_keys(name: str, wanted: Iterable[Any], given: Iterable[Any]) -> None:
    if set(wanted) != set(checks.mapping(name, given)):
        raise ValueError(f"{name} must have the keys {sorted(wanted)}, got {sorted(map(str, given))}")
