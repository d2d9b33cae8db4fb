"""Layer kernels as functions on arrays, by what `kernels.def` says of their arguments, and nothing else.

A row of the table is the C struct of a kernel's arguments, in which arrays have shapes. `kernel` makes a function of
it: lengths are found from the arrays, outputs that are not given are made, and all is checked in C, by
`fastopt._kernels.Layer`, before anything is written. Where something does not fit, `Signature.explain` walks the same
rules in Python to say what.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Never

import numpy as np

from fastopt import _kernels, checks
from fastopt.checks import Array

_OPERATIONS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True)
class Axis:
    """One axis of an array, or in a fold any number of axes, and the expression of its length, as the table has it."""

    text: str

    @property
    def fold(self) -> bool:
        return self.text.endswith("...")

    @property
    def name(self) -> str:
        """The expression: a number's name, where its length is that number."""
        return self.text.removesuffix("...")

    @functools.cached_property
    def tree(self) -> ast.expr:
        return ast.parse(self.name, mode="eval").body

    def length(self, numbers: dict[str, int]) -> int | None:
        """Its length by numbers that are known; None where one is not, or where nothing has that length."""
        return _evaluate(self.tree, numbers)


@dataclass(frozen=True)
class Argument:
    """An array that a kernel reads or writes."""

    name: str
    type: str
    optional: bool
    written: bool
    in_place: str
    axes: tuple[Axis, ...]

    def dtype(self, real: np.dtype[Any] | None) -> np.dtype[Any] | None:
        """Its type beside arrays of a real type; None where any real type will do."""
        if self.type == "real":
            return real
        if self.type == "signed_word":
            return np.dtype(np.int64 if real == np.float64 else np.int32)
        return np.dtype(self.type.removesuffix("_t"))

    def lengths(self, shape: tuple[int, ...]) -> list[int] | None:
        """The length of each axis of an array of a shape, a fold being that of its axes in all; None where it has too
        few or too many axes, or several folds, which no shape tells apart."""
        folds = sum(axis.fold for axis in self.axes)
        more = len(shape) - len(self.axes)
        if folds > 1 or more < -folds or (more > 0 and not folds):
            return None
        lengths, at = [], 0
        for axis in self.axes:
            end = at + (more + 1 if axis.fold else 1)
            lengths.append(math.prod(shape[at:end]))
            at = end
        return lengths


@dataclass(frozen=True)
class Signature:
    """What a row of the table says.

    Attributes
    ----------
    name : str
        Of the kernel.
    arrays : tuple of Argument
        Those that are read, and then those that are written.
    numbers : dict of str to str
        The kind of each number by its name: ``"extent"`` where the shapes of arrays tell it, else the type of an option
        that the caller gives.
    public : dict of str to str
        How messages call an argument, where not by its name.
    """

    name: str
    arrays: tuple[Argument, ...]
    numbers: dict[str, str]
    public: dict[str, str] = field(default_factory=dict)

    def label(self, name: str) -> str:
        return self.public.get(name, name)

    def alike(self, argument: Argument) -> Argument | None:
        """The first array that is read, and always there, with the same list of axes: its shape is that array's."""
        for other in self.arrays:
            if other.name == argument.name or other.written:
                return None
            if not other.optional and other.axes == argument.axes:
                return other
        return None

    def explain(self, *arguments: Any) -> Never:
        """Raise what is wrong with the arguments of a call: the first rule that is broken, in their order."""
        options = [name for name, kind in self.numbers.items() if kind != "extent"]
        numbers: dict[str, int] = {}
        for name, value in zip(options, arguments[len(self.arrays) :], strict=True):
            if self.numbers[name] == "int64_t":
                numbers[name] = checks.integer(self.label(name), value, 0, 2**63 - 1)
        given = {a.name: value for a, value in zip(self.arrays, arguments, strict=False)}
        real = None
        for argument in self.arrays:
            value, label = given[argument.name], self.label(argument.name)
            if value is None and (argument.optional or argument.written):
                continue
            checks.array(label, value, dtype=argument.dtype(real), writable=argument.written)
            real = value.dtype if real is None and argument.type == "real" else real
            self._explain_shape(argument, value, numbers, given)
        for argument in self.arrays:  # again, by all that is known now
            if given[argument.name] is not None:
                self._explain_shape(argument, given[argument.name], numbers, given)
        for argument in self.arrays:
            if argument.written and given[argument.name] is not None:
                self._explain_overlap(argument, given)
        raise TypeError(f"{self.name} must get arrays that are what their attributes say, of sizes below 2**63")

    def _explain_shape(
        self, argument: Argument, value: Array, numbers: dict[str, int], given: dict[str, Array]
    ) -> None:
        """Raise where an array has not the shape that follows from those before it; note the lengths that it tells."""
        label, other = self.label(argument.name), self.alike(argument)
        if other is not None:
            checks.array(label, value, dtype=value.dtype, shape=given[other.name].shape)
            return
        lengths = argument.lengths(value.shape)
        for axis, length in zip(argument.axes, lengths or (), strict=False):
            if not argument.written and self.numbers.get(axis.name) == "extent":
                numbers.setdefault(axis.name, length)
        wanted = [axis.length(numbers) for axis in argument.axes]
        folds = sum(axis.fold for axis in argument.axes)
        if folds == 0:
            if lengths is None and None in wanted:
                shown = ", ".join(a.text if n is None else str(n) for a, n in zip(argument.axes, wanted, strict=True))
                raise ValueError(f"{label} must have shape ({shown}), got {value.shape}")
            known = [n if n is not None else own for n, own in zip(wanted, lengths or wanted, strict=True)]
            checks.array(label, value, dtype=value.dtype, shape=tuple(n for n in known if n is not None))
        elif folds == 1 and lengths is None:
            least = len(wanted) - 1
            raise ValueError(f"{label} must have at least {_dimensions(least)}, got shape {value.shape}")
        elif lengths is not None and any(n not in (None, own) for n, own in zip(wanted, lengths, strict=True)):
            if len(wanted) == 1:
                raise ValueError(f"{label} must have {wanted[0]} elements, got shape {value.shape}")
            shown = ", ".join("…" if a.fold else str(n) for a, n in zip(argument.axes, wanted, strict=True))
            raise ValueError(f"{label} must have shape ({shown}), got {value.shape}")
        elif lengths is None and None not in wanted and value.size != math.prod(n or 0 for n in wanted):
            raise ValueError(f"{label} must have {math.prod(n or 0 for n in wanted)} elements, got shape {value.shape}")

    def _explain_overlap(self, argument: Argument, given: dict[str, Array]) -> None:
        """Raise where an array that is written shares memory with another one."""
        value, label = given[argument.name], self.label(argument.name)
        for other, before in given.items():
            if other == argument.name or before is None:
                continue
            same = other == argument.in_place and _kernels.address(before) == _kernels.address(value)
            if not same:
                checks.apart({label: value, self.label(other): before})


def _dimensions(count: int) -> str:
    return "one dimension" if count == 1 else f"{count} dimensions"


@functools.cache
def _signature(name: str) -> Signature:
    return Signature(name, *read(_kernels.LAYERS[name]))


@functools.lru_cache(maxsize=256)
def shape_of(name: str, array: str, **numbers: int) -> tuple[int, ...]:
    """The shape that an array of a kernel has, given the numbers that it follows from.

    >>> shape_of("dropout_forward", "mask", n=20)
    (3,)
    """
    (argument,) = (argument for argument in _signature(name).arrays if argument.name == array)
    lengths = [axis.length(numbers) for axis in argument.axes]
    if None in lengths:
        raise ValueError(f"{array} of {name} has no shape for {numbers}")
    return tuple(length for length in lengths if length is not None)


def kernel(name: str, **public: str) -> _kernels.Layer:
    """A kernel as a function: see `_kernels.Layer` for how it is called.

    Parameters
    ----------
    name : str
        Of a row of the table.
    **public
        How messages are to call an argument, where not by its name in the table: ``y="out"``.

    Returns
    -------
    Layer
        Which returns what it has written: one array, or a tuple of them.
    """
    signature = replace(_signature(name), public=public)
    names = [argument.name for argument in signature.arrays]
    numbers = list(signature.numbers)
    rules = []
    for argument in signature.arrays:
        if any(axis.fold for axis in argument.axes) and not {axis.name for axis in argument.axes} <= {*numbers}:
            raise ValueError(f"{name}: the axes of {argument.name} must be numbers of the call, since one is a fold")
        other = signature.alike(argument)
        rules.append(
            (
                _kernels.TYPES.index(argument.type),
                argument.optional,
                argument.written,
                names.index(argument.in_place) if argument.in_place else -1,
                names.index(other.name) if other else -1,
                [_compiled(axis, numbers) for axis in argument.axes],
            )
        )
    counter = numbers.index("counter") if "counter" in numbers else -1
    return _kernels.Layer(name, rules, list(signature.numbers.values()), counter, signature.explain)


def read(text: str) -> tuple[tuple[Argument, ...], dict[str, str]]:
    """The members of a struct of arguments: arrays, and numbers."""
    arrays: list[Argument] = []
    numbers: dict[str, str] = {}
    for declaration in text.split(";"):
        qualifier, type_, declarators = _matched(r"(const )?(\w+) (.*)", declaration.strip())
        for each in _split(declarators):
            if each.isidentifier():
                numbers[each] = type_
                continue
            pattern = r"\*(\w+)( OPTIONAL)?(?: IN_PLACE\((\w+)\))? SHAPE\((.*)\)"
            name, optional, in_place, axes = _matched(pattern, each)
            shape = tuple(map(Axis, _split(axes)))
            arrays.append(Argument(name, type_, bool(optional), not qualifier, in_place or "", shape))
    return tuple(arrays), numbers


def _matched(pattern: str, text: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, text, re.DOTALL)
    if match is None:
        raise ValueError(f"kernels.def: {text!r} is no array and no number")
    return match.groups()


def _split(text: str) -> list[str]:
    """What stands between the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _evaluate(tree: ast.expr, numbers: dict[str, int]) -> int | None:
    """The value of an expression; None where it needs a number that is not known, or some part of it is negative."""
    match tree:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return _kernels.LIMITS.get(name, numbers.get(name))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            parameters, body = _dimension(name)
            values = [_evaluate(argument, numbers) for argument in arguments]
            known = {p: v for p, v in zip(parameters, values, strict=True) if v is not None}
            return _evaluate(body, known)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left, numbers), _evaluate(right, numbers)
            if a is None or b is None:
                return None
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else -1}[_OPERATIONS[type(op)]]
            return value if 0 <= value < 2**63 else None
    raise ValueError(f"the table has an expression that is none: {ast.unparse(tree)}")


@functools.cache
def _dimension(name: str) -> tuple[tuple[str, ...], ast.expr]:
    """A function of the table: the names of its parameters, and its value."""
    parameters, expression = _kernels.DIMENSIONS[name]
    return parameters, ast.parse(expression, mode="eval").body


def dimension(name: str, *values: int) -> int | None:
    """The value of a function of the table, such as ``windows``; None where some part of it is negative.

    >>> dimension("windows", 28, 3, 1, 1, 1)
    28
    """
    parameters, body = _dimension(name)
    return _evaluate(body, dict(zip(parameters, values, strict=True)))


def _compiled(axis: Axis, numbers: list[str]) -> tuple[bool, int, list[tuple[str, int]]]:
    """An axis for the bridge: whether it is a fold, the number that is its length, or else the expression of it."""
    if axis.name in numbers:
        return axis.fold, numbers.index(axis.name), []
    return axis.fold, -1, _postfix(axis.tree, {name: [("N", i)] for i, name in enumerate(numbers)})


def _postfix(tree: ast.expr, values: dict[str, list[tuple[str, int]]]) -> list[tuple[str, int]]:
    """The operations of an expression in postfix order, those of its names being given."""
    match tree:
        case ast.Constant(value=int(value)):
            return [("n", value)]
        case ast.Name(id=name):
            return [("n", _kernels.LIMITS[name])] if name in _kernels.LIMITS else values[name]
        case ast.Call(func=ast.Name(id=name), args=arguments):
            parameters, body = _dimension(name)
            return _postfix(body, dict(zip(parameters, [_postfix(a, values) for a in arguments], strict=True)))
        case ast.BinOp(left=left, op=op, right=right):
            return [*_postfix(left, values), *_postfix(right, values), (_OPERATIONS[type(op)], 0)]
    raise ValueError(f"the table has an expression that is none: {ast.unparse(tree)}")
