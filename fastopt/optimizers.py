"""Optimizers: one class each, with its names, defaults and constraints.

A class says which kernel it drives (a row of csrc/kernels.def), the constraint of each hyperparameter in a class
attribute, and its default in the signature. Everything else (the functional
form, tests, benchmarks, the command line) is derived from that.

>>> import numpy as np, fastopt
>>> w = np.array([1.0, -2.0])
>>> optimizer = fastopt.Adam(w, lr=0.1)
>>> for _ in range(100):
...     optimizer.step(2 * w)          # the gradient of |w|^2
>>> bool(abs(w).max() < 0.1)
True
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from fastopt import _kernels, arena, checks
from fastopt.checks import Array, Arrays

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Momentum", "Optimizer", "RMSProp"]

#: Where eps stands, in the order of the enum in csrc/fastopt.h.
EPS_MODES = ("outside", "inside", "hat")
EpsMode = Literal["outside", "inside"]
AdamEpsMode = Literal["outside", "inside", "hat"]

T = TypeVar("T")


class _Declared(Generic[T]):
    """A hyperparameter: checked whenever it is set, and kept as a double in the plan."""

    #: The type of a value that needs no check where it equals the one that is held.
    kind: ClassVar[type]

    def __set_name__(self, owner: type[Optimizer], name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Optimizer, owner: type[Optimizer]) -> T:
        if optimizer is None:
            return self
        return self.decode(optimizer._plan.get_hyper(owner._place[self.name]))

    def __set__(self, optimizer: Optimizer, value: T) -> None:
        optimizer._plan.set_hyper(optimizer._place[self.name], self.encode(value))

    def encode(self, value: T) -> float:
        raise TypeError("a subclass says how a value is checked")

    def decode(self, code: float) -> T:
        raise TypeError("a subclass says what a double means")


class Number(_Declared[float]):
    """A real number within an interval such as ``[0, 1)``."""

    kind = float

    def __init__(self, bounds: str) -> None:
        self.bounds = bounds

    def encode(self, value: float) -> float:
        return checks.number(self.name, value, self.bounds)

    def decode(self, code: float) -> float:
        return code


class Flag(_Declared[bool]):
    """True or False."""

    kind = bool

    def encode(self, value: bool) -> float:
        return float(checks.flag(self.name, value))

    def decode(self, code: float) -> bool:
        return bool(code)


class Choice(_Declared[str]):
    """One of some words, which the kernel knows by their numbers."""

    kind = str

    def __init__(self, *options: str) -> None:
        self.options = options

    def encode(self, value: str) -> float:
        return float(self.options.index(checks.choice(self.name, value, self.options)))

    def decode(self, code: float) -> str:
        return self.options[int(code)]


class Optimizer:
    """What all optimizers share: binding arrays, stepping, and keeping state.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        The parameters: float32 or float64 (all alike), C-contiguous, of any shapes, no two overlapping. These very
        arrays are updated in place, and stay bound until the optimizer is gone: do not resize them, and give them new
        values by ``params["w"][...] = …``, since after ``params["w"] = …`` the old array is still the bound one.
    **hyper
        The hyperparameters of the kernel. Each is an attribute that may be changed between steps.

    Attributes
    ----------
    params : ndarray, list or dict of ndarray
        As given.
    state : mapping of mapping of ndarray
        The live state arrays by parameter and by name, such as ``state["W1"]["m"]``; change their values in place.
        Parameters in a list are named ``"0"``, ``"1"``, …; a lone array is named ``"param"``.
    t : int
        The number of steps taken.

    Raises
    ------
    TypeError, ValueError
        Where an array or a hyperparameter breaks its rule; then nothing has been changed.
    """

    kernel: ClassVar[str]
    #: Whether a step depends on its number t, which the functional form then asks for.
    counts_steps: ClassVar[bool] = False
    #: Hyperparameters of the kernel that the class decides.
    fixed: ClassVar[dict[str, float]] = {}
    _place: ClassVar[dict[str, int]]

    lr = Number("[0, inf)")
    weight_decay = Number("[0, inf)")

    def __init_subclass__(cls) -> None:
        cls._place = {name: place for place, name in enumerate(_kernels.STEPS[cls.kernel][1])}

    @classmethod
    def encode(cls, hyper: dict[str, Any]) -> tuple[float, ...]:
        """The checked hyperparameters as the kernel takes them, those after ``t`` and ``grad_scale``."""
        return tuple(
            cls.fixed[name] if name in cls.fixed else getattr(cls, name).encode(hyper[name])
            for name in list(cls._place)[2:]
        )

    @classmethod
    def hyper_names(cls) -> list[str]:
        """The names of the hyperparameters."""
        return [name for name in list(cls._place)[2:] if name not in cls.fixed]

    def __init__(self, params: Arrays, **hyper: Any) -> None:
        if type(self) is Optimizer:
            raise TypeError("Optimizer is what all optimizers share; use one of them, such as fastopt.Adam")
        encoded = self.encode(hyper)
        by_name = checks.named("param", params)
        for name, param in by_name.items():
            checks.array(checks.param_label(name), param, writable=True)
        keys = _kernels.STEPS[self.kernel][0]
        blocks = [arena.all_beside([*by_name.values()], self._initial_value(key)) for key in keys]
        state = {
            name: {key: block[i] for key, block in zip(keys, blocks, strict=True)} for i, name in enumerate(by_name)
        }
        checks.step_arrays(by_name, state)
        self._params = params
        self._state = MappingProxyType({name: MappingProxyType(arrays) for name, arrays in state.items()})
        bound = params if isinstance(params, np.ndarray) else copy.copy(params)
        states = [tuple(arrays.values()) for arrays in state.values()]
        explain = functools.partial(_explain, bound, checks.labelled(by_name, state))
        self._plan = _kernels.Plan(self.kernel, bound, states, (0, 1, *encoded), explain)
        if type(self).step is Optimizer.step:
            # The plan's own method goes before the one below: that call would be a quarter of a small step.
            vars(self)["step"] = self._plan.step

    def _initial_value(self, key: str) -> float:
        return 0.0

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name.startswith("_") or hasattr(type(self), name)):
            raise AttributeError(
                f"{type(self).__name__} has no hyperparameter {name!r}; it has {', '.join(self.hyper_names())}"
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        raise TypeError("an optimizer is bound to arrays and cannot be copied or pickled; use its state_dict()")

    def step(self, grads: Arrays, *, grad_scale: float = 1.0) -> None:
        """Update all parameters in place, in one call.

        Parameters
        ----------
        grads : ndarray, list or dict of ndarray
            The gradients: the structure, type and shapes of the parameters.
        grad_scale : float, default 1.0
            The gradients are multiplied by this first, on the fly: to unscale a scaled loss, or to clip.

        Raises
        ------
        TypeError, ValueError
            Where a gradient does not fit; then parameters, state and ``t`` are what they were.
        """
        self._plan.step(grads, grad_scale=grad_scale)

    @property
    def params(self) -> Arrays:
        return self._params

    @property
    def state(self) -> Mapping[str, Mapping[str, Array]]:
        return self._state

    @property
    def t(self) -> int:
        return int(self._plan.get_hyper(0))

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that `load_state_dict` needs to go on to the same bits.

        Returns
        -------
        dict
            ``optimizer``, the name of the class; ``t``; ``hyper``, a dict of hyperparameters; ``state``, a dict of
            dicts of arrays as in the attribute.
        """
        return {
            "optimizer": type(self).__name__,
            "t": self.t,
            "hyper": {name: getattr(self, name) for name in self.hyper_names()},
            "state": {name: {k: a.copy() for k, a in arrays.items()} for name, arrays in self.state.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the arrays are copied into the live ones.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where something is missing or does not fit; then nothing has been changed.
        """
        checks.choice("optimizer", state_dict["optimizer"], (type(self).__name__,))
        t = checks.integer("t", state_dict["t"], 0, 2**53)
        _same_keys("hyper", self.hyper_names(), state_dict["hyper"])
        encoded = self.encode(state_dict["hyper"])
        _same_keys("state", self.state, state_dict["state"])
        for name, arrays in self.state.items():
            _same_keys(f"state[{name!r}]", arrays, state_dict["state"][name])
            for key, own in arrays.items():
                given = state_dict["state"][name][key]
                checks.array(f"state[{name!r}][{key!r}]", given, dtype=own.dtype, shape=own.shape)
        self._plan.claim()
        for name, arrays in self.state.items():
            for key, own in arrays.items():
                own[...] = state_dict["state"][name][key]
        for place, value in enumerate((t, 1.0, *encoded)):
            self._plan.set_hyper(place, value)

    def __repr__(self) -> str:
        hyper = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.hyper_names())
        return f"{type(self).__name__}({hyper}, t={self.t})"


def _explain(params: Arrays, bound: dict[str, Array], plan: _kernels.Plan, grads: Any, grad_scale: Any) -> None:
    """Say why a step was refused; or take it, where only `grad_scale` was a number of another type."""
    scale = checks.number("grad_scale", grad_scale)
    if scale is not grad_scale:
        return plan.step(grads, grad_scale=scale)
    checks.gradients(params, grads, bound)
    raise AssertionError("a step was refused for no reason known")


def _same_keys(name: str, wanted: Iterable[str], given: Iterable[str]) -> None:
    if set(wanted) != set(given):
        raise ValueError(f"{name} must have the keys {sorted(wanted)}, got {sorted(given)}")


class SGD(Optimizer):
    """Stochastic gradient descent: ``p ← p − lr·g``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float
        Learning rate, in [0, inf).
    weight_decay : float, default 0.0
        Coupled decay (L2 penalty): ``weight_decay·p`` is added to the gradient.
    """

    kernel = "sgd"

    def __init__(self, params: Arrays, lr: float, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


class Momentum(Optimizer):
    """Gradient descent with momentum [1]_, plain or Nesterov's [2]_.

    ``v ← momentum·v + (1 − dampening)·g``, then ``p ← p − lr·v``, or with `nesterov`
    ``p ← p − lr·(g + momentum·v)``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float
        Learning rate, in [0, inf).
    momentum : float, default 0.9
        The share of the old velocity that is kept, in [0, 1].
    dampening : float, default 0.0
        In [0, 1]. As in PyTorch, the first gradient enters undampened. (The functional form has no first step:
        pass ``dampening=0`` there once for the same numbers.)
    nesterov : bool, default False
        Nesterov's step, from the gradient at the parameters as they are held.
    lr_in_velocity : bool, default False
        The other form: ``v ← momentum·v − lr·g``, then ``p ← p + v``, or with `nesterov`
        ``p ← p + momentum·v − lr·g``. It is that of Keras, cs231n and scikit-learn, and differs from PyTorch's
        where `lr` changes.
    weight_decay : float, default 0.0
        Coupled decay (L2 penalty).

    References
    ----------
    .. [1] B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, eq. 9.
    .. [2] I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, eq. 3–4.
    """

    kernel = "momentum"
    momentum = Number("[0, 1]")
    dampening = Number("[0, 1]")
    nesterov = Flag()
    lr_in_velocity = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: float,
        *,
        momentum: float = 0.9,
        dampening: float = 0.0,
        nesterov: bool = False,
        lr_in_velocity: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            lr_in_velocity=lr_in_velocity,
            weight_decay=weight_decay,
        )


class RMSProp(Optimizer):
    """RMSProp [1]_: ``G ← decay·G + (1 − decay)·g²``, then ``p ← p − lr·g / (√G + eps)``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate, in [0, inf).
    decay : float, default 0.99
        The share of the old average that is kept, in [0, 1].
    eps : float, default 1e-8
        Stabiliser, in [0, inf).
    eps_mode : {"outside", "inside"}, default "outside"
        ``√G + eps`` (PyTorch, cs231n) or ``√(G + eps)`` (Keras).
    weight_decay : float, default 0.0
        Coupled decay (L2 penalty).

    References
    ----------
    .. [1] T. Tieleman and G. Hinton, "Lecture 6.5: rmsprop", Coursera, 2012.
    """

    kernel = "rmsprop"
    decay = Number("[0, 1]")
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES[:2])

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        *,
        decay: float = 0.99,
        eps: float = 1e-8,
        eps_mode: EpsMode = "outside",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, decay=decay, eps=eps, eps_mode=eps_mode, weight_decay=weight_decay)


class Adagrad(Optimizer):
    """Adagrad [1]_: ``G ← G + g²``, then ``p ← p − lr·g / (√G + eps)``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-2
        Learning rate, in [0, inf).
    eps : float, default 1e-10
        Stabiliser, in [0, inf).
    eps_mode : {"outside", "inside"}, default "outside"
        ``√G + eps`` (PyTorch, cs231n) or ``√(G + eps)`` (Keras).
    initial_accumulator_value : float, default 0.0
        Where G begins, in [0, inf); Keras begins at 0.1. (In the functional form you make G yourself.)
    weight_decay : float, default 0.0
        Coupled decay (L2 penalty).

    References
    ----------
    .. [1] J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and stochastic
       optimization", 2011, fig. 1 (diagonal matrices).
    """

    kernel = "adagrad"
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES[:2])

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-2,
        *,
        eps: float = 1e-10,
        eps_mode: EpsMode = "outside",
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self._initial = checks.number("initial_accumulator_value", initial_accumulator_value, "[0, inf)")
        super().__init__(params, lr=lr, eps=eps, eps_mode=eps_mode, weight_decay=weight_decay)

    def _initial_value(self, key: str) -> float:
        return self._initial


class Adam(Optimizer):
    """Adam with bias correction [1]_.

    ``m ← beta1·m + (1 − beta1)·g``, ``v ← beta2·v + (1 − beta2)·g²``,
    ``p ← p − lr·m̂ / (√v̂ + eps)`` with ``m̂ = m / (1 − beta1ᵗ)`` and ``v̂ = v / (1 − beta2ᵗ)``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate, in [0, inf).
    beta1, beta2 : float, default 0.9, 0.999
        Decay rates of the moments, in [0, 1).
    eps : float, default 1e-8
        Stabiliser, in [0, inf).
    eps_mode : {"outside", "inside", "hat"}, default "outside"
        ``√v̂ + eps`` (the paper's algorithm, PyTorch), ``√(v̂ + eps)``, or the paper's "ε-hat", ``√v + eps`` with
        the corrections in the step size alone (Keras, TensorFlow, scikit-learn).
    weight_decay : float, default 0.0
        Coupled decay (L2 penalty). See `AdamW` for the decoupled one.

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """

    kernel = "adam"
    counts_steps = True
    fixed: ClassVar[dict[str, float]] = {"decoupled": 0.0}
    beta1 = Number("[0, 1)")
    beta2 = Number("[0, 1)")
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES)

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_mode: AdamEpsMode = "outside",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_mode=eps_mode, weight_decay=weight_decay)


class AdamW(Adam):
    """Adam with decoupled weight decay [1]_: ``p ← p − lr·weight_decay·p`` beside the step of `Adam`.

    Parameters
    ----------
    params, lr, beta1, beta2, eps, eps_mode
        See `Adam`.
    weight_decay : float, default 0.01
        Decoupled decay, in [0, inf); multiplied by `lr`, as in PyTorch.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """

    fixed: ClassVar[dict[str, float]] = {"decoupled": 1.0}

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_mode: AdamEpsMode = "outside",
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, beta1=beta1, beta2=beta2, eps=eps, eps_mode=eps_mode, weight_decay=weight_decay)


#: Every optimizer by its name in lower case, which is that of its functional form.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): cls for name, cls in globals().items() if name in __all__ and cls is not Optimizer
}
