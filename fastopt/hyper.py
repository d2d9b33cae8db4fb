"""Hyperparameters: each is declared once, with its rule, its default and its documentation; all else follows from that.

A class lists its hyperparameters as a dataclass lists its fields. The signature of its constructor, the checks, the
docstring and the functional form are made of that list, and type checkers read the signature from it as well.

>>> import inspect
>>> import fastopt
>>> from fastopt.hyper import Number
>>> class Signum(fastopt.NumPyOptimizer):
...     momentum: Number = Number("[0, 1]", default=0.9, doc="Decay rate of the velocity.")
...
...     def update(self, param, grad, state, *, lr, momentum): ...
>>> inspect.signature(Signum).parameters["momentum"].default
0.9

A subclass that changes a default says ``momentum = Signum.momentum.replace(default=0.5)``.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, Protocol, Self, TypedDict, TypeVar, Unpack, dataclass_transform, overload

from fastopt import checks
from fastopt.schedules import Schedule

__all__ = ["Choice", "Flag", "Limit", "Number", "Whole"]

#: Where there is no default.
REQUIRED: Any = inspect.Parameter.empty

#: What an attribute is read as, and what it may be set to.
T = TypeVar("T")
V = TypeVar("V")
Word = TypeVar("Word", bound=str)


class Options(TypedDict, total=False):
    """What a declaration may say beside rule and default: see `Hyper`."""

    doc: str
    kw_only: bool
    init: bool
    per_group: bool
    since: str


class Owner(Protocol):
    """What has hyperparameters: it holds the double of each, and takes new values."""

    _settings: dict[str, float]

    def _set(self, name: str, value: Any) -> None: ...


# ---- Kinds --------------------------------------------------------------------------------------------------


class Argument(Generic[T, V]):
    """An argument of constructors, and then an attribute that is only read.

    Parameters
    ----------
    type_ : str
        Its type, as docstrings have it.
    default : optional
        An argument without a default must be given.
    doc : str
        What it is, in full sentences.
    kw_only : bool, default True
        Whether it is given by its name alone.
    """

    name: str
    #: Whether constructors take it.
    init = True
    _declared = False

    def __init__(self, type_: str, *, default: V = REQUIRED, doc: str = "", kw_only: bool = True) -> None:
        self.type, self.default, self.doc, self.kw_only = type_, default, doc, kw_only

    def __set_name__(self, owner: type[Any], name: str) -> None:
        if self._declared and name != self.name:
            raise TypeError(f"{name} must be declared anew, or be {self.name}.replace(): this one is {self.name}")
        self.name, self._declared = name, True

    @overload
    def __get__(self, owner: None, cls: type[Any]) -> Self: ...
    @overload
    def __get__(self, owner: Any, cls: type[Any]) -> T: ...
    def __get__(self, owner: Any, cls: type[Any]) -> Any:
        return self if owner is None else self.read(owner)

    def __set__(self, owner: Any, value: V) -> None:
        self.write(owner, value)

    def read(self, owner: Any) -> Any:
        return getattr(owner, f"_{self.name}")

    def write(self, owner: Any, value: Any) -> None:
        raise AttributeError(f"{self.name} is given to {type(owner).__name__} when it is made, and cannot be set")

    def replace(self, **changes: Any) -> Self:
        """The same but for a few attributes, such as the default."""
        unknown = [name for name in changes if not hasattr(self, name)]
        if unknown:
            raise TypeError(f"a {type(self).__name__} has no {unknown[0]!r}")
        other = copy.copy(self)
        vars(other).update(changes)
        other._declared = False
        return other

    def parameter(self) -> inspect.Parameter:
        """What it is in a signature."""
        kind = inspect.Parameter.KEYWORD_ONLY if self.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Parameter(self.name, kind, default=self.default)

    def entry(self) -> str:
        """What it is in a docstring, in the form of numpydoc."""
        default = f'"{self.default}"' if isinstance(self.default, str) else repr(self.default)
        shown = "" if self.default is REQUIRED or self.default == () else f", default {default}"
        text = textwrap.fill(self.doc, 116, break_long_words=False, break_on_hyphens=False)
        return f"{self.name} : {self.type}{shown}\n{textwrap.indent(text, '    ')}".rstrip()


class Hyper(Argument[T, V]):
    """A hyperparameter: an attribute of optimizers, and of groups of their parameters.

    Parameters
    ----------
    type_, default, doc, kw_only
        See `Argument`.
    init : bool, default True
        False: no constructor takes it. The class decides: it has the default, or is worked out before each step where
        there is none.
    per_group : bool, default True
        Whether groups of parameters may have values of their own.
    since : str, optional
        The version that brought it, unless the first one did: a state that was saved before has its default.
    """

    #: The type of a value that needs no check where it equals the one that is held.
    kind: ClassVar[type]

    def __init__(
        self, type_: str, default: V, *, init: bool = True, per_group: bool = True, since: str = "", **options: Any
    ) -> None:
        super().__init__(type_, default=default, **options)
        self.init, self.per_group, self.since = init, per_group, since

    def read(self, owner: Owner) -> Any:
        if self.init:
            return self.decode(owner._settings[self.name])
        if self.default is REQUIRED:
            raise AttributeError(f"{self.name} is worked out before each step")
        return self.default

    def write(self, owner: Owner, value: Any) -> None:
        if not self.init:
            raise AttributeError(f"{self.name} is what {type(owner).__name__} decides, and cannot be set")
        owner._set(self.name, value)

    def encode(self, value: Any) -> float:
        """A value, which is checked, as the kernels take it."""
        raise TypeError("a subclass says how a value is checked")

    def decode(self, code: float) -> T:
        raise TypeError("a subclass says what a double means")


class Number(Hyper[float, float | Schedule]):
    """A real number within an interval such as ``[0, 1)``, or a schedule of such.

    Parameters
    ----------
    bounds : str
        The interval, with ``inf`` for no bound.
    default : float or Schedule, optional
        Without one, it must be given.
    **options
        ``doc``, a sentence for docstrings; ``per_group``, whether groups may have values of their own (default True);
        ``since``, the version that brought it, unless the first one did: a state that was saved before has its default.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.hyper import Number
    >>> class Scaled(fastopt.NumPyOptimizer):
    ...     scale: Number = Number("(0, inf)", default=1.0, doc="The factor of gradients.")
    ...
    ...     def update(self, param, grad, state, *, lr, scale):
    ...         param -= lr * scale * grad
    >>> w = np.ones(2)
    >>> optimizer = Scaled(w, lr=0.1, scale=5.0)
    >>> optimizer.step(np.ones(2))
    >>> w, optimizer.scale
    (array([0.5, 0.5]), 5.0)
    >>> try:
    ...     optimizer.scale = 0
    ... except ValueError as error:
    ...     print(error)
    scale must be in (0, inf), got 0
    """

    kind = float

    def __init__(self, bounds: str, *, default: float | Schedule = REQUIRED, **options: Unpack[Options]) -> None:
        super().__init__(f"float in {bounds}", default, **options)
        self.bounds = bounds

    def encode(self, value: Any) -> float:
        return checks.number(self.name, value, self.bounds)

    def read(self, owner: Any) -> Any:
        return owner._settings[self.name] if self.init else super().read(owner)

    def decode(self, code: float) -> float:
        return code


class Whole(Hyper[int, int]):
    """An integer of at least `low`.

    Parameters
    ----------
    low : int
    default : int, optional
        Without one, it must be given.
    **options
        See `Number`.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.hyper import Whole
    >>> class Late(fastopt.NumPyOptimizer):
    ...     begin: Whole = Whole(1, default=3, doc="The first step that changes anything.")
    ...
    ...     def update(self, param, grad, state, *, t, lr, begin):
    ...         param -= lr * grad * (t >= begin)
    >>> w = np.ones(2)
    >>> optimizer = Late(w, lr=0.1, begin=2)
    >>> for _ in range(2):
    ...     optimizer.step(np.ones(2))
    >>> w
    array([0.9, 0.9])
    """

    kind = int

    def __init__(self, low: int, *, default: int = REQUIRED, **options: Unpack[Options]) -> None:
        super().__init__(f"int, at least {low}", default, **options)
        self.low = low

    def encode(self, value: Any) -> float:
        return float(checks.integer(self.name, value, self.low, 2**53))

    def decode(self, code: float) -> int:
        return int(code)


class Limit(Hyper[float | None, float | Schedule | None]):
    """A real number within an interval, or None for no limit: infinity to a kernel.

    Parameters
    ----------
    bounds : str
        The interval.
    default : float, Schedule or None, optional
        Without one, it must be given.
    **options
        See `Number`.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.hyper import Limit
    >>> class Bounded(fastopt.NumPyOptimizer):
    ...     most: Limit = Limit("(0, inf)", default=None, doc="The longest step of a number.")
    ...
    ...     def update(self, param, grad, state, *, lr, most):
    ...         param -= np.clip(lr * grad, None, most)
    >>> w = np.ones(2)
    >>> Bounded(w, lr=1.0, most=0.5).step(np.array([3.0, 0.25]))
    >>> w, Bounded(w, lr=1.0).most
    (array([0.5 , 0.75]), None)
    """

    kind = type(None)  # infinity is refused, though it is the double of None

    def __init__(self, bounds: str, *, default: float | Schedule | None = REQUIRED, **options: Unpack[Options]) -> None:
        super().__init__(f"float in {bounds}, or None", default, **options)
        self.bounds = bounds

    def encode(self, value: Any) -> float:
        return math.inf if value is None else checks.number(self.name, value, self.bounds)

    def decode(self, code: float) -> float | None:
        return None if code == math.inf else code


class Flag(Hyper[bool, bool]):
    """True or False.

    Parameters
    ----------
    default : bool, optional
        Without one, it must be given.
    **options
        See `Number`.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.hyper import Flag
    >>> class Ascent(fastopt.NumPyOptimizer):
    ...     uphill: Flag = Flag(default=False, doc="Whether to climb.")
    ...
    ...     def update(self, param, grad, state, *, lr, uphill):
    ...         param -= (-lr if uphill else lr) * grad
    >>> w = np.ones(2)
    >>> Ascent(w, lr=0.5, uphill=True).step(np.ones(2))
    >>> w
    array([1.5, 1.5])
    """

    kind = bool

    def __init__(self, *, default: bool = REQUIRED, **options: Unpack[Options]) -> None:
        super().__init__("bool", default, **options)

    def encode(self, value: Any) -> float:
        return float(checks.flag(self.name, value))

    def decode(self, code: float) -> bool:
        return bool(code)


class Choice(Hyper[Word, Word]):
    """One of some words, which the kernel knows by their numbers.

    Parameters
    ----------
    *words : str
    default : str, optional
        Without one, it must be given.
    **options
        See `Number`.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.hyper import Choice
    >>> class Steps(fastopt.NumPyOptimizer):
    ...     of: Choice = Choice("value", "sign", default="value", doc="What of the gradient counts.")
    ...
    ...     def update(self, param, grad, state, *, lr, of):
    ...         param -= lr * (grad if of == "value" else np.sign(grad))
    >>> w = np.ones(2)
    >>> Steps(w, lr=0.5, of="sign").step(np.array([3.0, -0.1]))
    >>> w
    array([0.5, 1.5])
    """

    kind = str

    def __init__(self, *words: Word, default: Word = REQUIRED, **options: Unpack[Options]) -> None:
        quoted = ", ".join(f'"{word}"' for word in words)
        super().__init__(f"{{{quoted}}}", default, **options)
        self.options = words

    def encode(self, value: Any) -> float:
        return float(self.options.index(checks.choice(self.name, value, self.options)))

    def decode(self, code: float) -> Word:
        return self.options[int(code)]


#: Tuples and dicts of names that classes had in version 0.1, and what is declared in place of each name x.
INSTEAD = {
    "of_class": "each x with per_group=False",
    "defaults": "x = {}.x.replace(default=…)",
    "fixed": "x = {}.x.replace(default=…, init=False)",
    "computed": "each x with init=False, and without a default",
}


# ---- What is made of declarations ---------------------------------------------------------------------------


@dataclass_transform(
    eq_default=False, kw_only_default=True, field_specifiers=(Argument, Number, Whole, Limit, Flag, Choice)
)
class Declared:
    """What has its arguments and hyperparameters declared in its body, and in those of its bases.

    The first class that is derived from this one heads a family: its constructor serves all of them, and what it
    declares they have in common. The others get a signature and a list of parameters in their docstring, of what they
    declare beside that. (One that has a constructor of its own keeps that, and its docstring.)
    """

    #: What the head of a family says of the keywords that it declares.
    _common: ClassVar[str]
    #: All that is declared, in the order of the signature.
    declared: ClassVar[dict[str, Argument[Any, Any]]] = {}
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        every = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        every = {name: value for name, value in every.items() if isinstance(value, Argument)}
        cls.declared = {name: every[name] for name in cls._in_order(every)}
        head = cls.__mro__[cls.__mro__.index(Declared) - 1]
        for name in INSTEAD if cls is not head else ():
            if name in vars(cls):
                raise TypeError(f"{cls.__name__} must not have {name!r}: declare {INSTEAD[name].format(head.__name__)}")
        if cls is head:
            entries = [each.entry() for each in every.values() if each.doc]
        elif cls.__init__ is not vars(head)["__init__"]:
            _, *parameters = inspect.signature(cls.__init__).parameters.values()
            cls.__signature__ = inspect.Signature(parameters)
            return
        else:
            common = vars(head)
            own = {
                name: each for name, each in cls.declared.items() if each is not common.get(name) or not each.kw_only
            }
            parameters = [each.parameter() for each in own.values() if each.init]
            parameters.sort(key=lambda parameter: parameter.kind)
            parameters.append(inspect.Parameter("common", inspect.Parameter.VAR_KEYWORD))
            cls.__signature__ = inspect.Signature(parameters)
            see = f"See `{head.__name__}`."
            entries = [
                (each if isinstance(each, Hyper) else each.replace(doc=see)).entry()
                for each in own.values()
                if each.doc
            ]
            entries.append(f"**common\n    {cls._common}: see `{head.__name__}`.")
        if cls.__doc__ and "__doc__" in vars(cls):
            cls.__doc__ = with_parameters(cls.__doc__, entries)

    @classmethod
    def _in_order(cls, names: Iterable[str]) -> list[str]:
        """The names of arguments in the order of the signature."""
        return list(names)


def with_parameters(doc: str, entries: Iterable[str]) -> str:
    """A docstring with a section of parameters: behind the text, before other sections."""
    text = inspect.cleandoc(doc)
    if re.search(r"^Parameters\n---", text, re.MULTILINE):
        return doc
    section = re.search(r"^\w+\n---+$", text, re.MULTILINE)
    end = section.start() if section else len(text)
    parameters = "\n".join(["Parameters", "----------", *entries])
    return f"{text[:end].rstrip()}\n\n{parameters}\n\n{text[end:]}".rstrip() + "\n"
