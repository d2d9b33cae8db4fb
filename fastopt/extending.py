"""The base of optimizers that are written in NumPy: see docs/extending.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastopt import checks
from fastopt.checks import Array, Arrays
from fastopt.gradients import square_sums
from fastopt.optimizer import Call, Changes, Now, Optimizer, copying

__all__ = ["NumPyOptimizer"]

#: How many arguments `update` gets by their place: itself, a parameter, its gradient, its state.
_BY_PLACE = 4


class Parameter(NamedTuple):
    """One parameter in one step: its gradient, which is to be multiplied by `scale`, its state, the settings that hold
    for it, as kernels take them, and the number of its step."""

    name: str
    param: Array
    grad: Array
    scale: float
    state: Mapping[str, Array]
    hyper: Mapping[str, float]
    t: int


class InNumPy(Optimizer, abstract=True):
    """What optimizers have in common that see each parameter by itself, in NumPy."""

    kernel = "sgd"  # its row has what every step has, and a learning rate

    def _each(self, grads: Arrays, grad_scale: float, factors: Sequence[float], now: Now) -> Iterator[Parameter]:
        """The parameters that are stepped."""
        given, names = checks.matched(self._bound, grads, self._idle), self._setting_names()
        for (name, slot), grad, factor in zip(self._slots.items(), given.values(), factors, strict=True):
            if slot.bucket is not None:
                hyper = {key: self._value(key, slot.groups, now) for key in names}
                scale, taken = grad_scale * factor, self._taken(slot)
                yield Parameter(name, slot.param, np.asarray(grad, order="C"), scale, slot.state, hyper, taken + 1)


class NumPyOptimizer(InNumPy, abstract=True):
    """The base of optimizers that are written in NumPy: a class says how one parameter is updated.

    It declares its hyperparameters, names its state arrays, and has a method ``update(self, param, grad, state, *, …)``
    that changes `param` and what is in the dict `state`. After the asterisk it asks for what it needs: `t`, the number
    of the parameter's step from 1 on, `lr`, and hyperparameters that it declares. All else is that of every optimizer:
    nested parameters, groups, schedules, clipping, penalties, decay, constraints, freezing, saving, `LookAhead`, `fit`.

    Attributes
    ----------
    states : tuple of str
        The names of the state arrays; see `initial_state`.

    Raises
    ------
    TypeError
        Where a class has no `update`, or one that asks for something else.

    Notes
    -----
    `grad` is preprocessed: scaled, clipped, with coupled decay and the L1 penalty. Decoupled decay is taken off `param`
    before `update`; `max_norm` holds after it. `update` works on copies: where it raises, nothing has been changed.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.hyper import Number
    >>> class Signum(fastopt.NumPyOptimizer):
    ...     momentum: Number = Number("[0, 1]", default=0.9)
    ...     states = ("velocity",)
    ...
    ...     def update(self, param, grad, state, *, lr, momentum):
    ...         state["velocity"] *= momentum
    ...         state["velocity"] += (1 - momentum) * grad
    ...         param -= lr * np.sign(state["velocity"])
    >>> w = np.array([1.0, -2.0])
    >>> optimizer = Signum(w, lr=0.02, weight_decay=0.01)
    >>> for _ in range(150):
    ...     optimizer.step(2 * w)
    >>> bool(abs(w).max() < 0.3)
    True
    """

    states: ClassVar[tuple[str, ...]] = ()
    _asked: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, abstract: bool = False) -> None:
        super().__init_subclass__(abstract)
        if abstract:
            return
        if cls.update is NumPyOptimizer.update:
            raise TypeError(f"{cls.__name__} must have a method update(self, param, grad, state, *, …)")
        known = ["t", "lr", *(name for name in cls._setting_names() if name not in Optimizer.declared)]
        parameters = inspect.signature(cls.update).parameters.values()
        by_place = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        asked = by_place[_BY_PLACE:] + [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        if len(by_place) < _BY_PLACE:
            raise TypeError(f"{cls.__name__}.update must take (self, param, grad, state, *, …), got {by_place}")
        for name in asked:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__}.update asks for {name!r}, but may ask for {', '.join(known)}: declare it, as in "
                    f"{name}: Number = Number('[0, 1]', default=0.9)"
                )
        cls._asked = tuple(known if any(each.kind is each.VAR_KEYWORD for each in parameters) else asked)

    def update(self, *arrays: Any, **hyper: Any) -> None:
        """Change a parameter in place: ``update(self, param, grad, state, *, …)``.

        Parameters
        ----------
        param : ndarray
        grad : ndarray like `param`
            Its gradient, preprocessed; it may be changed.
        state : dict of ndarray
            What `initial_state` returned, as the last step has left it. Arrays may be changed, or replaced by others
            of the same shape.
        **hyper
            Those of `t`, `lr` and the hyperparameters that the method has among its arguments.
        """
        raise TypeError("a subclass says how a parameter is updated")

    def initial_state(self, param: Array) -> dict[str, Array]:
        """The state before the first step of a parameter: zeros like it for each name in `states`.

        A class may return other arrays, of other shapes and types.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> class UnitSteps(fastopt.NumPyOptimizer):
        ...     def initial_state(self, param):
        ...         return {"path": np.zeros(())}  # how far the parameter has come
        ...
        ...     def update(self, param, grad, state, *, lr):
        ...         param -= lr * grad / np.linalg.norm(grad)
        ...         state["path"] += lr
        >>> w = np.array([3.0, 4.0])
        >>> optimizer = UnitSteps(w, lr=0.5)
        >>> optimizer.step(w.copy())
        >>> w, optimizer.state
        (array([2.7, 3.6]), mappingproxy({'param': mappingproxy({'path': array(0.5)})}))
        """
        return {name: np.zeros_like(param) for name in self.states}

    def _further_state(self, param: Array) -> dict[str, Array]:
        made = checks.mapping("initial_state", self.initial_state(param))
        for key, value in made.items():
            if not (isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
                raise TypeError(f"initial_state must return arrays of numbers by name, got {key!r}: {value!r}")
        return {key: np.array(value, order="C") for key, value in made.items()}

    def _advance(
        self, grads: Arrays, grad_scale: float, factors: Sequence[float], changes: Changes, t: int, now: Now
    ) -> list[Call]:
        storing: list[Call] = []
        for each in self._each(grads, grad_scale, factors, now):
            param, state = self._updated(each)
            storing += copying({"param": param} | state, {"param": each.param} | dict(each.state))
        return [(self._plan.count_alone, (grad_scale, changes, t)), *storing]

    def _updated(self, of: Parameter) -> tuple[Array, dict[str, Array]]:
        """A parameter and its state after a step."""
        param, state, hyper = of.param.copy(), {key: array.copy() for key, array in of.state.items()}, of.hyper
        grad = preprocessed(of)
        if hyper["decoupled"] and hyper["weight_decay"]:
            param *= param.dtype.type(1 - hyper["lr"] * hyper["weight_decay"])
        asked = {key: of.t if key == "t" else getattr(type(self), key).decode(hyper[key]) for key in self._asked}
        returned = self.update(param, grad, state, **asked)  # type: ignore[func-returns-value]
        if returned is not None:
            raise TypeError(
                f"{type(self).__name__}.update must return nothing, and change param in place, by param -= … or "
                f"param[...] = …; got {type(returned).__name__}"
            )
        if state.keys() != of.state.keys():
            raise ValueError(f"state must have the keys {sorted(of.state)} after update, got {sorted(state)}")
        for key, before in of.state.items():
            after = state[key] = np.asarray(state[key])
            if after.shape != before.shape or not np.can_cast(after.dtype, before.dtype, "same_kind"):
                label = checks.state_label(of.name, key)
                raise ValueError(
                    f"{label} must be {before.dtype} of shape {before.shape} after update, got {after.dtype} of shape "
                    f"{after.shape}"
                )
        if hyper["max_norm"] < np.inf and param.ndim > 1 and param.size:
            constrain(param.reshape(-1, param.shape[-1]), hyper["max_norm"])
        return param, state


def preprocessed(of: Parameter) -> Array:
    """A gradient as formulas take it: scaled, clipped by value, with the gradients of penalties."""
    real, hyper = of.param.dtype.type, of.hyper
    grad = np.multiply(of.grad, real(-of.scale if hyper["maximize"] else of.scale), out=np.empty_like(of.param))
    if hyper["clip_value"] < np.inf:
        np.clip(grad, -real(hyper["clip_value"]), real(hyper["clip_value"]), out=grad)
    if hyper["weight_decay"] and not hyper["decoupled"]:
        grad += real(hyper["weight_decay"]) * of.param
    if hyper["l1"]:
        grad += real(hyper["l1"]) * np.sign(of.param)
    return grad


def constrain(matrix: Array, limit: float) -> None:
    """Scale the columns of a matrix down to a norm where they exceed it."""
    norms = np.sqrt(square_sums(matrix)[1])
    if (norms > limit).any():
        matrix *= np.where(norms > limit, limit / np.maximum(norms, limit), 1).astype(matrix.dtype)
