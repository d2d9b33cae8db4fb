"""Learning rates, and any other hyperparameter, as functions of the step.

Each function takes the step, counted from 0, and its options by keyword. It keeps no state: a run may begin anywhere.
`bind` ties the options to it; the `Schedule` that it returns can be compared, pickled, and written as a plain dict.
docs/schedules.md says which function gives whose numbers.

>>> from fastopt.schedules import bind, cosine, warmup
>>> schedule = bind(warmup, steps=10, then=bind(cosine, peak=0.1, steps=90))
>>> [round(schedule(step), 3) for step in (0, 5, 10, 55, 100)]
[0.0, 0.05, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import bisect
import functools
import inspect
import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fastopt import checks

F = TypeVar("F", bound=Callable[..., float])
Rule = Callable[[str, Any], Any]

# The annotation holds the rule: an interval, or the least integer.
Rate = Annotated[float, "[0, inf)"]
Factor = Annotated[float, "(0, inf)"]
Share = Annotated[float, "[0, 1]"]
Steps = Annotated[int, 0]
Period = Annotated[int, 1]
Anneal = Literal["cos", "linear"]


# ---- Binding ------------------------------------------------------------------------------------------------

#: Every schedule by its name; `register` adds to it.
SCHEDULES: dict[str, Callable[..., float]] = {}


def register(function: F) -> F:
    """Register a function, so that it can be bound, saved and loaded by its name, and checks its arguments; also a
    decorator.

    Parameters
    ----------
    function : callable
        ``function(step, *, …) -> float``. Each keyword is annotated with its rule: ``float``, ``int``, ``bool``,
        ``Literal["a", "b"]``, `Schedule`, ``Annotated[float, "[0, 1)"]`` (an interval), ``Annotated[int, 1]`` (the
        least integer), ``tuple[X, ...]`` or ``X | None`` of these.

    Returns
    -------
    callable
        The same function, with its arguments checked.

    Raises
    ------
    TypeError
        Where a keyword has another annotation, or the function takes other arguments.
    ValueError
        Where another function has its name.

    Examples
    --------
    >>> from typing import Annotated
    >>> @register
    ... def halving(step: int, *, peak: float, every: Annotated[int, 1]) -> float:
    ...     return peak / 2 ** (step // every)
    >>> bind(halving, peak=0.8, every=10)(25)
    0.2
    >>> del SCHEDULES["halving"]
    """
    name = function.__name__
    held = SCHEDULES.get(name, function)
    if not name.isidentifier() or (held.__module__, held.__qualname__) != (function.__module__, function.__qualname__):
        raise ValueError(f"function must have a name of its own, got {name!r}")
    rules = _rules(function)

    @functools.wraps(function)
    def checked(step: int, **keywords: Any) -> float:
        known = {key: rules[key](key, value) if key in rules else value for key, value in keywords.items()}
        return _value(function, checks.integer("step", step, 0, 2**53), known)

    SCHEDULES[name] = checked
    return cast(F, checked)


def _value(function: Callable[..., float], step: int, keywords: dict[str, Any]) -> float:
    """The value of a schedule with checked options."""
    try:
        return function(step, **keywords)
    except OverflowError:
        given = "".join(f", {key}={value!r}" for key, value in keywords.items())
        raise ValueError(f"{function.__name__} must stay within floats, but overflows at step {step}{given}") from None


@functools.cache
def _rules(function: Callable[..., float]) -> dict[str, Rule]:
    """How each keyword of a schedule is checked."""
    _, *keywords = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, include_extras=True)
    for keyword in keywords:
        if keyword.kind is not keyword.KEYWORD_ONLY or keyword.name == "schedule":
            raise TypeError(f"{function.__name__} must take only keywords, none called schedule, got {keyword}")
    return {keyword.name: _rule(keyword.name, hints.get(keyword.name)) for keyword in keywords}


def _count(name: str, value: Any, low: int) -> int:
    """A number of steps, which as a float is the same."""
    count = checks.integer(name, value, low)
    if count > 2**53:
        raise ValueError(f"{name} must be at most {2**53}, got {value!r}")
    return count


def _rule(name: str, annotation: Any) -> Rule:
    plain: dict[Any, Rule] = {
        float: checks.number,
        int: lambda name, value: checks.integer(name, value, -(2**63)),
        bool: checks.flag,
        Schedule: _bound,
    }
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is None and annotation in plain:
        return plain[annotation]
    if kind is Literal:
        return lambda name, value: checks.choice(name, value, arguments)
    if kind is Annotated and arguments[0] in (float, int):
        if arguments[0] is int:
            return lambda name, value: _count(name, value, arguments[1])
        return lambda name, value: checks.number(name, value, arguments[1])
    if kind in (Union, types.UnionType) and arguments[1:] == (types.NoneType,):
        rule = _rule(name, arguments[0])
        return lambda name, value: None if value is None else rule(name, value)
    if kind is tuple and arguments[1:] == (...,):
        return functools.partial(_several, _rule(name, arguments[0]))
    raise TypeError(f"{name} must have an annotation that says its rule, got {annotation!r}")


def _several(rule: Rule, name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple or a list, got {value!r}")
    return tuple(rule(f"{name}[{i}]", item) for i, item in enumerate(value))


def _bound(name: str, value: Any) -> Schedule:
    if not isinstance(value, Schedule):
        raise TypeError(f"{name} must be a Schedule, which bind returns, got {value!r}")
    return value


@dataclass(frozen=True, init=False, repr=False)
class Schedule:
    """A schedule with its options: called with a step, it returns a value. `bind` makes one.

    Attributes
    ----------
    name : str
        The name of the function.
    items : tuple of (str, value)
        Its options in the order of the signature, those left at their defaults among them.

    Examples
    --------
    >>> from fastopt.schedules import Schedule, bind, cosine, warmup
    >>> schedule = bind(warmup, steps=5, then=bind(cosine, peak=0.1, steps=10))
    >>> schedule(5), schedule.name
    (0.1, 'warmup')
    >>> schedule.as_dict()["then"]
    {'schedule': 'cosine', 'peak': 0.1, 'steps': 10, 'floor': 0.0}
    >>> Schedule.from_dict(schedule.as_dict()) == schedule
    True
    """

    name: str
    items: tuple[tuple[str, Any], ...]
    _call: functools.partial[float] = field(compare=False)

    def __init__(self, function: Callable[..., float], /, **keywords: Any) -> None:
        registered = SCHEDULES.get(getattr(function, "__name__", ""))
        if registered is None or function not in (registered, vars(registered)["__wrapped__"]):
            raise ValueError(f"function must be one of {', '.join(SCHEDULES)}, or be registered; got {function!r}")
        parameters = inspect.signature(registered).parameters
        given = {key: p.default for key, p in parameters.items() if p.default is not p.empty} | keywords
        registered(0, **given)  # which checks the options one by one, and together
        raw = vars(registered)["__wrapped__"]
        checked = {key: rule(key, given[key]) for key, rule in _rules(raw).items()}
        object.__setattr__(self, "name", registered.__name__)
        object.__setattr__(self, "items", tuple(checked.items()))
        object.__setattr__(self, "_call", functools.partial(_value, raw, keywords=checked))

    def __call__(self, step: int) -> float:
        return self._call(checks.integer("step", step, 0, 2**53))

    def as_dict(self) -> dict[str, Any]:
        """The schedule in plain values, as JSON has them.

        Returns
        -------
        dict
            ``{"schedule": name, option: value, …}``; tuples are lists, a schedule within is such a dict.
        """
        return {"schedule": self.name} | {key: _plain(value) for key, value in self.items}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schedule:
        """The schedule that `as_dict` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where it names no registered function, or an option breaks its rule.
        """
        options = {key: _revived(value) for key, value in checks.mapping("values", values).items()}
        name = checks.choice("schedule", options.pop("schedule"), tuple(SCHEDULES))
        return cls(SCHEDULES[name], **options)

    def __reduce__(self) -> Any:
        return Schedule.from_dict, (self.as_dict(),)

    def __repr__(self) -> str:
        return f"bind({', '.join([self.name, *(f'{key}={value!r}' for key, value in self.items)])})"


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _revived(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Schedule.from_dict(value)
    return [_revived(item) for item in value] if isinstance(value, list) else value


def bind(function: Callable[..., float], /, **keywords: Any) -> Schedule:
    """Bind a schedule to its options, which are checked here, once.

    Parameters
    ----------
    function : callable
        One of `SCHEDULES`.
    **keywords
        Its options.

    Returns
    -------
    Schedule
        ``bind(function, **keywords)(step)`` is ``function(step, **keywords)``.

    Raises
    ------
    TypeError, ValueError
        Where the function is not registered, or an option is missing, unknown, or breaks its rule.

    Examples
    --------
    >>> from fastopt.schedules import Schedule, bind, step_decay
    >>> schedule = bind(step_decay, peak=0.4, steps=10, gamma=0.5)
    >>> schedule(25), schedule
    (0.1, bind(step_decay, peak=0.4, steps=10, gamma=0.5))
    >>> Schedule.from_dict(schedule.as_dict()) == schedule
    True
    """
    return Schedule(function, **keywords)


def _done(step: int, steps: int) -> float:
    """The share of `steps` that is over, at most 1; 1 where `steps` is 0."""
    return min(step / steps, 1.0) if steps else 1.0


def _half_wave(done: float) -> float:
    """Half a cosine wave from 1 to 0, as `done` goes from 0 to 1."""
    return (1 + math.cos(math.pi * done)) / 2


# ---- Steps --------------------------------------------------------------------------------------------------


@register
def constant(step: int, *, value: Rate) -> float:
    """The same at every step.

    Parameters
    ----------
    step : int
        Counted from 0.
    value : float
        In [0, inf).

    Returns
    -------
    float
        `value`

    Examples
    --------
    >>> from fastopt.schedules import constant
    >>> [constant(step, value=0.1) for step in (0, 1000)]
    [0.1, 0.1]
    """
    return value


@register
def step_decay(step: int, *, peak: Rate, steps: Period, gamma: Factor = 0.1) -> float:
    """Multiplied by `gamma` every `steps` steps.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak : float
        The value at step 0, in [0, inf).
    steps : int
        The number of steps with one value, at least 1.
    gamma : float, default 0.1
        In (0, inf).

    Returns
    -------
    float
        ``peak·gamma^⌊step / steps⌋``

    Examples
    --------
    >>> from fastopt.schedules import step_decay
    >>> [step_decay(step, peak=0.4, steps=10, gamma=0.5) for step in (0, 9, 10, 25)]
    [0.4, 0.4, 0.2, 0.1]
    """
    return peak * gamma ** (step // steps)


@register
def multi_step(step: int, *, peak: Rate, milestones: tuple[Steps, ...], gamma: Factor = 0.1) -> float:
    """Multiplied by `gamma` at each milestone.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak : float
        The value before the first milestone, in [0, inf).
    milestones : tuple of int
        The steps at which `gamma` is applied; a milestone that is given twice counts twice.
    gamma : float, default 0.1
        In (0, inf).

    Returns
    -------
    float
        ``peak·gamma^n``, where n milestones are at most `step`.

    Examples
    --------
    >>> from fastopt.schedules import multi_step
    >>> [multi_step(step, peak=0.4, milestones=(30, 40), gamma=0.5) for step in (0, 29, 30, 45)]
    [0.4, 0.4, 0.2, 0.1]
    """
    return peak * gamma ** sum(milestone <= step for milestone in milestones)


@register
def piecewise_constant(step: int, *, boundaries: tuple[Steps, ...], values: tuple[Rate, ...]) -> float:
    """One value up to each boundary, and the last one after the last boundary.

    A boundary is the last step of its value, as in Keras; a milestone of `multi_step` is the first step of the next.

    Parameters
    ----------
    step : int
        Counted from 0.
    boundaries : tuple of int
        In increasing order.
    values : tuple of float
        One more than there are boundaries, each in [0, inf).

    Returns
    -------
    float
        ``values[i]``, where i boundaries are below `step`.

    Raises
    ------
    ValueError
        Where boundaries do not increase, or the number of values does not fit.

    Examples
    --------
    >>> from fastopt.schedules import piecewise_constant
    >>> [piecewise_constant(step, boundaries=(10, 20), values=(0.1, 0.05, 0.01)) for step in (0, 10, 11, 21)]
    [0.1, 0.1, 0.05, 0.01]
    """
    if not all(low < high for low, high in itertools.pairwise(boundaries)):
        raise ValueError(f"boundaries must increase, got {boundaries}")
    if len(values) != len(boundaries) + 1:
        raise ValueError(f"values must be one more than the {len(boundaries)} boundaries, got {values}")
    return values[bisect.bisect_left(boundaries, step)]


# ---- Decays -------------------------------------------------------------------------------------------------


@register
def exponential(step: int, *, peak: Rate, gamma: Factor, steps: Period = 1, staircase: bool = False) -> float:
    """Exponential decay: multiplied by `gamma` over every `steps` steps.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak : float
        The value at step 0, in [0, inf).
    gamma : float
        In (0, inf). Above 1 the value grows, as in a learning-rate range test, until OverflowError.
    steps : int, default 1
        The number of steps per factor of `gamma`, at least 1.
    staircase : bool, default False
        Whether the exponent is rounded down, as in `step_decay`.

    Returns
    -------
    float
        ``peak·gamma^(step / steps)``

    Examples
    --------
    >>> from fastopt.schedules import exponential
    >>> [round(exponential(step, peak=0.1, gamma=0.5, steps=10), 4) for step in (0, 5, 10, 20)]
    [0.1, 0.0707, 0.05, 0.025]
    """
    return peak * gamma ** (step // steps if staircase else step / steps)


@register
def inverse_time(step: int, *, peak: Rate, decay: Rate, steps: Period = 1, staircase: bool = False) -> float:
    """Decay by the inverse of the step.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak : float
        The value at step 0, in [0, inf).
    decay : float
        In [0, inf). With 1, the value is half of `peak` after `steps`.
    steps : int, default 1
        The unit of time, at least 1.
    staircase : bool, default False
        Whether ``step / steps`` is rounded down.

    Returns
    -------
    float
        ``peak / (1 + decay·step / steps)``

    Examples
    --------
    >>> from fastopt.schedules import inverse_time
    >>> [inverse_time(step, peak=0.1, decay=1.0, steps=10) for step in (0, 10, 30)]
    [0.1, 0.05, 0.025]
    """
    return peak / (1 + decay * (step // steps if staircase else step / steps))


@register
def inverse_sqrt(step: int, *, peak: Rate, warmup_steps: Steps) -> float:
    """Linear warm-up, then decay by the inverse square root of the step, as for the Transformer [1]_.

    Parameters
    ----------
    step : int
        Counted from 0; the paper counts from 1.
    peak : float
        The highest value, at step ``warmup_steps - 1``, in [0, inf). The paper has ``(d_model·warmup_steps)^-0.5``.
    warmup_steps : int
        The number of steps of warm-up. With 0 or 1, the first value is `peak`.

    Returns
    -------
    float
        ``peak·min(n / w, √(w / n))``, where ``n = step + 1`` and ``w = warmup_steps``.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention is all you need", 2017, eq. 3.

    Examples
    --------
    >>> from fastopt.schedules import inverse_sqrt
    >>> [inverse_sqrt(step, peak=0.1, warmup_steps=4) for step in (0, 1, 3, 15)]
    [0.025, 0.05, 0.1, 0.05]
    """
    ratio = (step + 1) / max(warmup_steps, 1)
    return peak * min(ratio, 1 / math.sqrt(ratio))


@register
def polynomial(
    step: int, *, peak: Rate, steps: Steps, power: Factor = 1.0, floor: Rate = 0.0, cycle: bool = False
) -> float:
    """Decay from `peak` at step 0 to `floor` at step `steps` and after, by a power of the remaining share of steps.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak, floor : float
        In [0, inf); `floor` is 0 by default.
    steps : int
        The number of steps of the decay. With 0, the value is always `floor`.
    power : float, default 1.0
        In (0, inf).
    cycle : bool, default False
        After `steps`, continue as a decay over twice as many steps, after those over three times as many, and so on.

    Returns
    -------
    float
        ``floor + (peak − floor)·(1 − step / steps)^power``; with `cycle`, `steps` is multiplied by ``⌈step / steps⌉``.

    Examples
    --------
    >>> from fastopt.schedules import polynomial
    >>> [polynomial(step, peak=0.1, steps=10, power=2.0) for step in (0, 5, 10, 20)]
    [0.1, 0.025, 0.0, 0.0]
    """
    if cycle and steps:
        steps *= max(-(-step // steps), 1)
    return floor + (peak - floor) * (1 - _done(step, steps)) ** power


@register
def linear(step: int, *, peak: Rate, steps: Steps, floor: Rate = 0.0) -> float:
    """Linear decay from `peak` at step 0 to `floor` at step `steps` and after.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak, floor : float
        In [0, inf); `floor` is 0 by default, and may be above `peak`.
    steps : int
        The number of steps of the decay. With 0, the value is always `floor`.

    Returns
    -------
    float
        ``floor + (peak − floor)·(1 − step / steps)``

    Examples
    --------
    >>> from fastopt.schedules import linear
    >>> [linear(step, peak=0.1, steps=10) for step in (0, 5, 10, 20)]
    [0.1, 0.05, 0.0, 0.0]
    """
    return floor + (peak - floor) * (1 - _done(step, steps))


@register
def cosine(step: int, *, peak: Rate, steps: Steps, floor: Rate = 0.0) -> float:
    """Cosine annealing from `peak` at step 0 to `floor` at step `steps` and after, by half a wave [1]_.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak, floor : float
        In [0, inf); `floor` is 0 by default.
    steps : int
        The number of steps of the decay. With 0, the value is always `floor`.

    Returns
    -------
    float
        ``floor + (peak − floor)·(1 + cos(π·step / steps)) / 2``

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5.

    Examples
    --------
    >>> from fastopt.schedules import cosine
    >>> [cosine(step, peak=0.1, steps=10) for step in (0, 5, 10, 20)]
    [0.1, 0.05, 0.0, 0.0]
    """
    return floor + (peak - floor) * _half_wave(_done(step, steps))


# ---- Cycles -------------------------------------------------------------------------------------------------


@register
def cosine_restarts(
    step: int,
    *,
    peak: Rate,
    steps: Period,
    t_mul: Annotated[float, "[1, inf)"] = 1.0,
    m_mul: Factor = 1.0,
    floor: Rate = 0.0,
) -> float:
    """Cosine annealing with warm restarts, each cycle `t_mul` times as long and `m_mul` times as high as before [1]_.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak, floor : float
        In [0, inf); `floor` is 0 by default.
    steps : int
        The number of steps of the first cycle, at least 1.
    t_mul : float, default 1.0
        The factor of the length at each restart, in [1, inf).
    m_mul : float, default 1.0
        The factor of the height above the floor at each restart, in (0, inf).

    Returns
    -------
    float
        ``floor + (peak − floor)·m_mul^i·(1 + cos(π·t / T)) / 2`` at t steps after the i-th restart, whose cycle has
        ``T = steps·t_mul^i`` steps.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5.

    Examples
    --------
    >>> from fastopt.schedules import cosine_restarts
    >>> [cosine_restarts(step, peak=0.1, steps=10, t_mul=2.0) for step in (0, 5, 10, 20, 30)]
    [0.1, 0.05, 0.1, 0.05, 0.1]
    """
    restarts, since, length = 0, float(step), float(steps)
    if t_mul == 1:
        restarts, since = divmod(step, steps)
    while since >= length:
        restarts, since, length = restarts + 1, since - length, length * t_mul
    return floor + (peak - floor) * m_mul**restarts * _half_wave(since / length)


@register
def cyclical(
    step: int,
    *,
    floor: Rate,
    peak: Rate,
    steps_up: Period,
    steps_down: Steps | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: Factor = 1.0,
) -> float:
    """The cyclical (triangular) schedule: linearly from `floor` to `peak` and back, repeated [1]_.

    Parameters
    ----------
    step : int
        Counted from 0.
    floor, peak : float
        In [0, inf).
    steps_up : int
        The number of steps from `floor` to `peak`, at least 1.
    steps_down : int, optional
        The number of steps back to `floor`; `steps_up` where absent.
    mode : {"triangular", "triangular2", "exp_range"}, default "triangular"
        The height of the peaks above the floor: constant, halved in each cycle, or multiplied by ``gamma^step``.
    gamma : float, default 1.0
        In (0, inf); for ``exp_range``.

    Returns
    -------
    float
        ``floor + (peak − floor)·h·x``, where x goes from 0 to 1 and back, and h is 1, ``½^cycle`` or ``gamma^step``.

    References
    ----------
    .. [1] L. Smith, "Cyclical learning rates for training neural networks", 2017, section 3.

    Examples
    --------
    >>> from fastopt.schedules import cyclical
    >>> [cyclical(step, floor=0.01, peak=0.05, steps_up=10) for step in (0, 5, 10, 15, 20)]
    [0.01, 0.03, 0.05, 0.03, 0.01]
    """
    down = steps_up if steps_down is None else steps_down
    cycle, since = divmod(step, steps_up + down)
    x = since / steps_up if since <= steps_up else (steps_up + down - since) / down
    height = 0.5**cycle if mode == "triangular2" else gamma**step if mode == "exp_range" else 1.0
    return floor + (peak - floor) * height * x


@register
def one_cycle(
    step: int,
    *,
    peak: Rate,
    steps: Steps,
    rise: Share = 0.3,
    div_factor: Factor = 25.0,
    final_div_factor: Factor = 1e4,
    three_phase: bool = False,
    anneal: Anneal = "cos",
) -> float:
    """The one-cycle policy: up to `peak`, and down to far below the first value [1]_.

    Parameters
    ----------
    step : int
        Counted from 0; the last is ``steps - 1``, after which the value is constant.
    peak : float
        The highest value, in [0, inf).
    steps : int
        The length of the run.
    rise : float, default 0.3
        The share of the run in which the value rises, in [0, 1]; with `three_phase`, in [0, 0.5].
    div_factor : float, default 25.0
        The first value is ``peak / div_factor``.
    final_div_factor : float, default 1e4
        The last value is ``peak / (div_factor·final_div_factor)``.
    three_phase : bool, default False
        Fall to the first value in as many steps as it rose, and then to the last one.
    anneal : {"cos", "linear"}, default "cos"
        Annealing by half a cosine wave, or linearly.

    Returns
    -------
    float
        ``b + (a − b)·(1 + cos(π·x)) / 2`` or ``b + (a − b)·(1 − x)``, as x goes from 0 to 1 in a phase from a to b.
        The rise ends at step ``rise·steps − 1``, the fall to the first value at ``2·rise·steps − 2``.

    References
    ----------
    .. [1] L. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large learning
       rates", 2018.

    Examples
    --------
    >>> from fastopt.schedules import one_cycle
    >>> [round(one_cycle(step, peak=0.1, steps=100), 6) for step in (0, 29, 64, 99)]
    [0.004, 0.1, 0.05, 0.0]
    """
    first = peak / div_factor
    levels = (first, peak, *[first] * three_phase, first / final_div_factor)
    return _in_phases(step, steps, rise, levels, anneal)


@register
def one_cycle_momentum(
    step: int,
    *,
    steps: Steps,
    peak: Share = 0.95,
    floor: Share = 0.85,
    rise: Share = 0.3,
    three_phase: bool = False,
    anneal: Anneal = "cos",
) -> float:
    """The momentum, or Adam's beta1, for `one_cycle`: it falls while the learning rate rises, and rises again.

    Parameters
    ----------
    step : int
        Counted from 0; the last is ``steps - 1``, after which the value is constant.
    steps : int
        The length of the run.
    peak, floor : float, default 0.95, 0.85
        In [0, 1].
    rise : float, default 0.3
        The share of the run in which the learning rate rises, in [0, 1]; with `three_phase`, in [0, 0.5].
    three_phase : bool, default False
        Rise again in as many steps as it fell, and be constant then.
    anneal : {"cos", "linear"}, default "cos"
        Annealing by half a cosine wave, or linearly.

    Returns
    -------
    float
        As in `one_cycle`, from `peak` to `floor` to `peak`.

    Examples
    --------
    >>> from fastopt.schedules import one_cycle_momentum
    >>> [round(one_cycle_momentum(step, steps=100), 2) for step in (0, 29, 64, 99)]
    [0.95, 0.85, 0.9, 0.95]
    """
    return _in_phases(step, steps, rise, (peak, floor, peak, *[peak] * three_phase), anneal)


def _in_phases(step: int, steps: int, rise: float, levels: Sequence[float], anneal: str) -> float:
    """Annealing from level to level, in two phases or three; the last level is reached at step ``steps - 1``."""
    ends = [rise * steps - 1, steps - 1]
    if len(levels) == 4:
        checks.number("rise, with three_phase,", rise, "[0, 0.5]")
        ends.insert(1, 2 * rise * steps - 2)
    phase = next((i for i, end in enumerate(ends[:-1]) if step <= end), len(ends) - 1)
    start, end = (ends[phase - 1] if phase else 0.0), ends[phase]
    done = min((step - start) / (end - start), 1.0) if start < end else 1.0
    before, after = levels[phase : phase + 2]
    return after + (before - after) * (_half_wave(done) if anneal == "cos" else 1 - done)


# ---- Warm-up ------------------------------------------------------------------------------------------------


@register
def warmup(step: int, *, steps: Steps, start: Rate = 0.0, then: Schedule) -> float:
    """Linear warm-up from `start` to the first value of another schedule, then that schedule [1]_.

    Step `steps` is step 0 of the other schedule, so the whole run has `steps` more than that.

    With ``start=0`` the first step does nothing, as in Keras. With ``start=peak/(steps + 1)`` the values are 1, 2, …,
    `steps` parts of ``steps + 1``. PyTorch's ``LinearLR(start_factor)`` is ``start=start_factor*peak``.

    Parameters
    ----------
    step : int
        Counted from 0.
    steps : int
        The number of steps of warm-up. With 0, there is none.
    start : float, default 0.0
        The value at step 0, in [0, inf).
    then : Schedule
        The schedule after the warm-up.

    Returns
    -------
    float
        ``start + (then(0) − start)·step / steps`` before step `steps`, ``then(step − steps)`` from it on.

    References
    ----------
    .. [1] P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2.

    Examples
    --------
    >>> from fastopt.schedules import bind, constant, warmup
    >>> schedule = bind(warmup, steps=4, then=bind(constant, value=0.1))
    >>> [schedule(step) for step in (0, 1, 2, 4, 100)]
    [0.0, 0.025, 0.05, 0.1, 0.1]
    """
    if step >= steps:
        return then(step - steps)
    return start + (then(0) - start) * (step / steps)


def linear_scaling(rate: float, batch_size: int, base_batch_size: int, *, power: float = 1.0) -> float:
    """The learning rate for another batch size: in proportion to it [1]_, or to its square root [2]_.

    Parameters
    ----------
    rate : float
        The learning rate that is good for `base_batch_size`, in [0, inf).
    batch_size, base_batch_size : int
        At least 1.
    power : float, default 1.0
        In [0, 1]; 0.5 is square-root scaling.

    Returns
    -------
    float
        ``rate·(batch_size / base_batch_size)^power``

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    References
    ----------
    .. [1] P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.1.
    .. [2] A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, section 5.

    Examples
    --------
    >>> from fastopt.schedules import linear_scaling
    >>> linear_scaling(0.1, 512, 128), linear_scaling(0.1, 512, 128, power=0.5)
    (0.4, 0.2)
    """
    sizes = (
        checks.integer("batch_size", batch_size, 1, 2**53),
        checks.integer("base_batch_size", base_batch_size, 1, 2**53),
    )
    ratio = sizes[0] / sizes[1]
    return checks.number("rate", rate, "[0, inf)") * ratio ** checks.number("power", power, "[0, 1]")


# ---- By a metric --------------------------------------------------------------------------------------------


class ReduceOnPlateau:
    """Multiplies the learning rate by `factor` when a metric has not improved for more than `patience` updates.

    Parameters
    ----------
    optimizer : optional
        The optimizer whose ``lr`` is read and set. Without it, use what `update` returns.
    lr : float, optional
        The initial learning rate, in [0, inf); given if and only if there is no optimizer.
    mode : {"min", "max"}, default "min"
        Whether lower is better, or higher.
    factor : float, default 0.1
        In (0, 1).
    patience : int, default 10
        The number of successive updates without improvement that are accepted.
    threshold : float, default 1e-4
        An improvement is one by more than this.
    threshold_mode : {"rel", "abs"}, default "rel"
        Whether `threshold` is relative to the best value, in [0, 1), or absolute, in [0, inf).
    cooldown : int, default 0
        The number of updates after a change that are not counted.
    min_lr : float, default 0.0
        The least learning rate, in [0, inf).
    eps : float, default 1e-8
        The learning rate is changed only by more than this, in [0, inf).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt.schedules import ReduceOnPlateau
    >>> plateau = ReduceOnPlateau(lr=0.1, factor=0.5, patience=1)
    >>> [plateau.update(loss) for loss in (1.0, 0.9, 0.9, 0.9, 0.8)]
    [0.1, 0.1, 0.1, 0.05, 0.05]
    >>> plateau.lr
    0.05
    >>> resumed = ReduceOnPlateau(lr=0.1, factor=0.5, patience=1)
    >>> resumed.load_state_dict(plateau.state_dict())
    >>> resumed.lr
    0.05
    """

    def __init__(
        self,
        optimizer: Any = None,
        *,
        lr: float | None = None,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if (optimizer is None) == (lr is None):
            raise TypeError(f"lr must be given if and only if there is no optimizer, got {lr!r}")
        self._optimizer = optimizer
        self._sign = 1.0 if checks.choice("mode", mode, ("min", "max")) == "min" else -1.0
        self._factor = checks.number("factor", factor, "(0, 1)")
        self._patience = checks.integer("patience", patience, 0)
        self._relative = checks.choice("threshold_mode", threshold_mode, ("rel", "abs")) == "rel"
        self._threshold = checks.number("threshold", threshold, "[0, 1)" if self._relative else "[0, inf)")
        self._cooldown = checks.integer("cooldown", cooldown, 0)
        self._min_lr = checks.number("min_lr", min_lr, "[0, inf)")
        self._eps = checks.number("eps", eps, "[0, inf)")
        self._lr = checks.number("lr", optimizer.lr if lr is None else lr, "[0, inf)")
        self._best, self._bad, self._cooling = math.inf * self._sign, 0, 0

    @property
    def lr(self) -> float:
        """The current learning rate."""
        return self._lr if self._optimizer is None else float(self._optimizer.lr)

    def update(self, metric: float) -> float:
        """Lower the learning rate if the metric, such as the validation loss of an epoch, calls for it.

        Parameters
        ----------
        metric : float
            NaN is no improvement.

        Returns
        -------
        float
            The learning rate after the update.
        """
        metric = checks.real("metric", metric)
        margin = self._sign * self._threshold
        bound = self._best * (1 - margin) if self._relative else self._best - margin
        better = self._sign * metric < self._sign * bound
        if better:
            self._best = metric
        self._bad = 0 if better else self._bad + 1
        if self._cooling:
            self._bad, self._cooling = 0, self._cooling - 1
        if self._bad > self._patience:
            self._bad, self._cooling = 0, self._cooldown
            self._reduce()
        return self.lr

    def _reduce(self) -> None:
        before = self.lr
        after = max(before * self._factor, self._min_lr)
        if before - after > self._eps:
            self._lr = after
            if self._optimizer is not None:
                self._optimizer.lr = after

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs: ``best``; the updates without improvement, ``bad``, and those of the cooldown
        that are left, ``resting``; and ``lr``."""
        return {"best": self._best, "bad": self._bad, "resting": self._cooling, "lr": self.lr}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, and the learning rate of the optimizer.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where something is missing or does not fit; then nothing has been changed.
        """
        best = checks.real("best", checks.mapping("state_dict", state_dict)["best"])
        bad, cooling = (checks.integer(key, state_dict[key], 0) for key in ("bad", "resting"))
        lr = checks.number("lr", state_dict["lr"], "[0, inf)")
        if self._optimizer is not None:
            self._optimizer.lr = lr
        self._best, self._bad, self._cooling, self._lr = best, bad, cooling, lr
