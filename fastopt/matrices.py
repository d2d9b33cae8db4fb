"""Optimizers that treat a parameter as a matrix: Adafactor, Muon.

Their directions come from sums over rows and columns, or from matrix products; then they are steps like others, by the
kernel of gradient descent. An array of more than two axes is a matrix of its last axis (the units) by all others.
Sums have the same bits on every instruction set and for any number of threads; products are NumPy's.

>>> import numpy as np, fastopt
>>> params = [np.ones((4, 3)), np.ones(3)]
>>> optimizer = fastopt.Muon(params)  # AdamW for the bias
>>> optimizer.step([np.ones((4, 3)), np.ones(3)])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fastopt import _kernels, checks
from fastopt.checks import Array, Arrays
from fastopt.dialects import Spelled
from fastopt.extending import InNumPy, Parameter
from fastopt.gradients import square_sum, square_sums
from fastopt.hyper import Choice, Flag, Limit, Number, Whole
from fastopt.kernel import kernel
from fastopt.optimizer import (
    Call,
    Changes,
    Now,
    Optimizer,
    Params,
    check_alike,
    check_entries,
    check_order,
    chosen_names,
    copies,
    copying,
    frozen_groups,
)
from fastopt.optimizers import AdamW
from fastopt.schedules import Schedule

__all__ = ["Adafactor", "Muon", "MuonMatrices", "adafactor", "muon", "orthogonalize"]

_factored_root = kernel("factored_root")


def _matrix(array: Array) -> Array:
    """A view of an array of two axes or more, units last."""
    return array.reshape(-1, array.shape[-1])


class _Directed(InNumPy, abstract=True):
    """Steps along directions that take the place of gradients: ``p ← p − lr·(f·d + weight_decay·p)``."""

    # The kernel of gradient descent would apply penalties and clipping by value to the direction.
    decoupled: Flag = Flag(default=True, init=False)
    l1: Number = Number("[0, inf)", default=0.0, init=False)
    clip_value: Limit = Limit("(0, inf)", default=None, init=False)
    maximize: Flag = Flag(default=False, init=False)

    def _advance(
        self, grads: Arrays, grad_scale: float, factors: Sequence[float], changes: Changes, t: int, now: Now
    ) -> list[Call]:
        directions = {name: slot.param for name, slot in self._slots.items()}
        lengths, storing = dict.fromkeys(directions, 0.0), []
        for of in self._each(grads, grad_scale, factors, now):
            slot = self._slots[of.name]
            if slot.direction is None:
                slot.direction = np.empty_like(slot.param)
            lengths[of.name], state = self._direct(of, slot.direction)
            directions[of.name] = slot.direction
            storing += copying(state, {key: slot.state[key] for key in state})
        along = checks.structured(self._bound, directions.values())
        return [(self._plan.advance, (along, 1.0, list(lengths.values()), changes, t)), *storing]

    def _direct(self, of: Parameter, out: Array) -> tuple[float, dict[str, Array]]:
        """Write a direction to `out`; return its factor f, and the state after the step."""
        raise TypeError("a subclass says what its direction is")


# ---- Adafactor ----------------------------------------------------------------------------------------------


class Adafactor(_Directed):
    """Adafactor [1]_: of the second moment of a matrix only means over rows and columns are kept.

    ``R ← β·R + (1 − β)·mean_columns(g²)``, ``C ← β·C + (1 − β)·mean_rows(g²)``, ``V = R·C / mean(R)``, and V itself for
    arrays of fewer than two axes, ``β = 1 − t^beta2_decay``. ``u = g / √max(V, eps1²)``, ``u ← u / max(1, rms(u) /
    d)``, ``p ← p − max(eps2, rms(p))·min(lr, 1/√t)·u``, as in PyTorch; decay is decoupled.

    References
    ----------
    .. [1] N. Shazeer and M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018, algorithms
       4, 5.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"weight": np.ones((512, 256)), "bias": np.ones(256)}
    >>> optimizer = fastopt.Adafactor(params)
    >>> {name: array.shape for name, array in optimizer.state["weight"].items()}  # instead of (512, 256)
    {'row_avg': (512,), 'column_avg': (256,)}
    >>> optimizer.step({name: param.copy() for name, param in params.items()})  # the gradients of |p|² / 2
    >>> params["bias"][:2].round(3)
    array([0.99, 0.99])
    """

    name = "adafactor"
    lr = Optimizer.lr.replace(default=1e-2, doc="The largest relative step.")
    beta2_decay: Number = Number("(-inf, 0]", default=-0.8, doc="How β approaches 1: ``β = 1 − t^beta2_decay``.")
    eps1: Limit = Limit(
        "[0, inf)",
        default=None,
        per_group=False,
        doc="Least root of a second moment; the machine epsilon of the parameters' type where None.",
    )
    eps2: Number = Number("[0, inf)", default=1e-3, doc="Least size of a parameter to which a step is in proportion.")
    d: Number = Number("(0, inf)", default=1.0, doc="The size of a direction beyond which it is scaled down.")

    def _further_state(self, param: Array) -> dict[str, Array]:
        return adafactor_state(param)

    def _direct(self, of: Parameter, out: Array) -> tuple[float, dict[str, Array]]:
        _, param, grad, scale, state, hyper, t = of
        if not param.size:
            return 0.0, {}
        info = np.finfo(param.dtype)
        eps1 = max(float(info.eps) if hyper["eps1"] == math.inf else hyper["eps1"], math.sqrt(info.tiny))
        new = float(t) ** hyper["beta2_decay"]
        if param.ndim > 1:
            matrix = _matrix(grad)
            rows, columns = matrix.shape
            sums = dict(zip(("row_avg", "column_avg"), square_sums(matrix), strict=True))
            means = {key: scale * scale / (columns if key == "row_avg" else rows) * sums[key] for key in sums}
        else:
            means = {"square_avg": (scale * grad) ** 2}
        after = {key: ((1 - new) * state[key] + new * mean).astype(param.dtype) for key, mean in means.items()}
        if param.ndim > 1:
            row_avg = after["row_avg"].astype(np.float64)
            row_avg /= max(math.fsum(row_avg.tolist()) / rows, eps1)
            _factored_root(matrix, row_avg.astype(param.dtype), after["column_avg"], _matrix(out), eps1 * eps1)
        else:
            np.divide(grad, np.sqrt(np.maximum(after["square_avg"], eps1 * eps1)), out=out)
        size = abs(scale) * math.sqrt(square_sum(out) / out.size)
        of_param = max(hyper["eps2"], math.sqrt(square_sum(param) / param.size))
        rate = of_param * min(hyper["lr"], 1 / math.sqrt(t)) / max(1.0, size / hyper["d"])
        return scale * rate / hyper["lr"] if hyper["lr"] else 0.0, after


def adafactor_state(param: Array) -> dict[str, Array]:
    """The state of Adafactor, zeros: ``row_avg`` and ``column_avg``, or ``square_avg`` where there are not two axes."""
    if param.ndim < 2:
        return {"square_avg": np.zeros_like(param)}
    rows, columns = _matrix(param).shape if param.size else (0, param.shape[-1])
    return {"row_avg": np.zeros(rows, param.dtype), "column_avg": np.zeros(columns, param.dtype)}


def adafactor(
    param: Array, grad: Array, state: Mapping[str, Array], *, t: int, lr: float = 1e-2, beta2_decay: float = -0.8,
    eps1: float | None = None, eps2: float = 1e-3, d: float = 1.0, weight_decay: float = 0.0, grad_scale: float = 1.0,
) -> None:  # fmt: skip
    """One step of `fastopt.Adafactor`, in place: see there.

    Parameters
    ----------
    param, grad : ndarray, any shape
    state : mapping of str to ndarray
        What `adafactor_state` made.
    t : int
        The number of this step, counted from 1.
    lr, beta2_decay, eps1, eps2, d, weight_decay
        See `fastopt.Adafactor`.
    grad_scale : float, default 1.0
        The gradient is multiplied by this first.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import matrices
    >>> weight = np.ones((3, 2))
    >>> state = matrices.adafactor_state(weight)
    >>> matrices.adafactor(weight, np.ones((3, 2)), state, t=1)
    >>> weight[0].round(3), state["row_avg"]
    (array([0.99, 0.99]), array([1., 1., 1.]))
    """
    checks.array("param", param)
    one = Adafactor(param, lr, beta2_decay=beta2_decay, eps1=eps1, eps2=eps2, d=d, weight_decay=weight_decay)
    _take_up(one, state, t, {"param": param, "grad": grad})
    one.step(grad, grad_scale=grad_scale)


def _take_up(optimizer: Optimizer, state: Mapping[str, Array], t: int, beside: Mapping[str, Array]) -> None:
    """Have an optimizer of one array use the caller's state, as before step t."""
    own = optimizer.state["param"]
    if set(own) != set(checks.mapping("state", state)):
        raise ValueError(f"state must have the keys {sorted(own)}, got {sorted(state)}")
    for key, array in own.items():
        checks.array(f"state[{key}]", state[key], dtype=array.dtype, shape=array.shape, writable=True)
        for name, other in beside.items():
            if isinstance(other, np.ndarray) and np.may_share_memory(other, state[key]):
                checks.apart({name: checks.array(name, other), f"state[{key}]": state[key]})
    checks.apart({f"state[{key}]": array for key, array in state.items()})
    optimizer._slots["param"].state = state
    optimizer._plan.set_hyper(0, checks.integer("t", t, 1, 2**53) - 1)


# ---- Muon ---------------------------------------------------------------------------------------------------

#: The factor of a direction of Muon by the shape (inputs, units).
ADJUSTMENTS = {
    "original": lambda inputs, units: math.sqrt(max(1.0, units / inputs)),
    "match_rms_adamw": lambda inputs, units: 0.2 * math.sqrt(max(inputs, units)),
    "none": lambda inputs, units: 1.0,
}
Adjust = Literal["original", "match_rms_adamw", "none"]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(x: Array, *, steps: int = 5, eps: float = 1e-7) -> Array:
    """A nearly orthogonal matrix with the singular vectors of x, by Newton–Schulz steps [1]_.

    After division by its norm, ``X ← aX + (bA + cA²)X`` with ``A = XXᵀ`` brings all singular values near 1 (0.7 to 1.2
    after five steps, those below a thousandth of the largest less so).

    Parameters
    ----------
    x : ndarray (m, n)
    steps : int, default 5
    eps : float, default 1e-7
        Is added to the norm that is divided by.

    Returns
    -------
    ndarray (m, n)

    References
    ----------
    .. [1] K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import matrices
    >>> x = np.random.default_rng(0).normal(size=(4, 3))
    >>> np.linalg.svd(x, compute_uv=False).round(1)
    array([2.2, 0.9, 0.3])
    >>> np.linalg.svd(matrices.orthogonalize(x), compute_uv=False).round(1)
    array([1. , 0.7, 0.7])
    """
    checks.array("x", x, ndim=2)
    steps, eps = checks.integer("steps", steps, 0), checks.number("eps", eps, "[0, inf)")
    a, b, c = (x.dtype.type(k) for k in COEFFICIENTS)
    wide = x.T if x.shape[0] > x.shape[1] else x
    norm = math.sqrt(square_sum(x)) + eps
    wide = wide / x.dtype.type(norm) if norm > 0 else wide.copy()
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * (gram @ gram)) @ wide
    return np.ascontiguousarray(wide.T if x.shape[0] > x.shape[1] else wide)


class MuonMatrices(_Directed):
    """Muon [1]_ for matrices alone: momentum whose step is made orthogonal.

    ``m ← momentum·m + (1 − momentum)·g``, ``u = (1 − momentum)·g + momentum·m`` with `nesterov`, else m, then
    ``p ← p − lr·(f·orthogonalize(u) + weight_decay·p)``, f by the shape. Parameters have two axes or more each: an
    array is a matrix of its last axis, the units, by all others.

    References
    ----------
    .. [1] K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    .. [2] J. Liu et al., "Muon is scalable for LLM training", 2025, eq. 4.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> weight = np.diag([3.0, 0.5])
    >>> optimizer = fastopt.MuonMatrices(weight, lr=0.1)
    >>> optimizer.step(weight.copy())
    >>> (np.diag([3.0, 0.5]) - weight).diagonal().round(2)  # alike, though one gradient is six times the other
    array([0.07, 0.1 ])
    """

    name = "muon_matrices"
    lr = Optimizer.lr.replace(default=2e-2)
    momentum: Number = Number("[0, 1]", default=0.95, doc="The share of the old momentum that is kept.")
    nesterov: Flag = Flag(default=True, doc="Nesterov's momentum.")
    adjust: Choice[Adjust] = Choice(
        "original",
        "match_rms_adamw",
        "none",
        default="original",
        doc="f is ``√max(1, units/inputs)``; or ``0.2·√max(inputs, units)`` [2]_, for the learning rate and decay of "
        "AdamW; or 1. (PyTorch's matrices are (units, inputs), so that its factors are the same for the same layer.)",
    )
    steps: Whole = Whole(0, default=5, per_group=False, doc="Of Newton and Schulz.")

    def _check_param(self, label: str, param: Array) -> None:
        super()._check_param(label, param)
        if param.ndim < 2:
            raise ValueError(f"{label} must have two axes or more to be a matrix, got shape {param.shape}")

    def _further_state(self, param: Array) -> dict[str, Array]:
        return {"momentum": np.zeros_like(param)}

    def _direct(self, of: Parameter, out: Array) -> tuple[float, dict[str, Array]]:
        if not of.param.size:
            return 0.0, {}
        real, keep = of.param.dtype.type, of.hyper["momentum"]
        np.multiply(of.grad, real((1 - keep) * of.scale), out=out)
        momentum = of.state["momentum"] * real(keep)
        momentum += out
        u = out + real(keep) * momentum if of.hyper["nesterov"] else momentum
        _matrix(out)[...] = orthogonalize(_matrix(u), steps=int(of.hyper["steps"]))
        factor = ADJUSTMENTS[tuple(ADJUSTMENTS)[int(of.hyper["adjust"])]](*_matrix(of.param).shape)
        return factor, {"momentum": momentum}


def muon(
    param: Array, grad: Array, momentum_avg: Array, *, lr: float = 2e-2, momentum: float = 0.95, nesterov: bool = True,
    adjust: Adjust = "original", steps: int = 5, weight_decay: float = 0.0, grad_scale: float = 1.0,
) -> None:  # fmt: skip
    """One step of `fastopt.MuonMatrices`, in place: see there.

    Parameters
    ----------
    param, grad : ndarray of two axes or more
    momentum_avg : ndarray like `param`
        The state, of zeros at first. Updated in place.
    lr, momentum, nesterov, adjust, steps, weight_decay
        See `fastopt.MuonMatrices`.
    grad_scale : float, default 1.0
        The gradient is multiplied by this first.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import matrices
    >>> weight, momentum_avg = np.eye(2), np.zeros((2, 2))
    >>> matrices.muon(weight, np.eye(2), momentum_avg, lr=0.1)
    >>> bool((weight.diagonal() < 1).all()), momentum_avg.diagonal().round(2)
    (True, array([0.05, 0.05]))
    """
    checks.array("param", param)
    one = MuonMatrices(
        param, lr, momentum=momentum, nesterov=nesterov, adjust=adjust, steps=steps, weight_decay=weight_decay
    )
    _take_up(one, {"momentum": momentum_avg}, 1, {"param": param, "grad": grad})
    one.step(grad, grad_scale=grad_scale)


class Muon(Spelled):
    """Muon for matrices, and AdamW for all other parameters: `MuonMatrices` and `AdamW` as one optimizer.

    Parameters
    ----------
    params : list or dict of ndarray
        See `Optimizer`.
    lr : float, default 2e-2
        Learning rate of the matrices, in [0, inf).
    rest_lr : float, default 1e-3
        That of the rest. Where `lr` is set later, this one keeps its ratio to it.
    matrices : str, list of str or callable, optional
        Which parameters Muon takes: names, patterns or a function, as in the groups of `Optimizer`. By default those of
        two axes or more; embeddings and the last layer are better left to AdamW.
    momentum, nesterov, adjust, steps
        See `MuonMatrices`.
    beta1, beta2, eps : float, default 0.9, 0.95, 1e-8
        Of `AdamW`.
    weight_decay : float, default 0.0
        Decoupled, for both.

    Attributes
    ----------
    matrices, rest : Optimizer
        The two, whose hyperparameters are their own attributes.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"weight": np.ones((3, 2)), "bias": np.ones(2)}
    >>> optimizer = fastopt.Muon(params, lr=0.02, rest_lr=0.001)
    >>> list(optimizer.matrices.state), list(optimizer.rest.state)
    (['weight'], ['bias'])
    >>> optimizer.step({"weight": np.ones((3, 2)), "bias": np.ones(2)})
    >>> params["bias"].round(4)
    array([0.999, 0.999])
    """

    def __init__(
        self,
        params: Arrays,
        lr: float = 2e-2,
        *,
        rest_lr: float = 1e-3,
        matrices: Any = lambda name, param: param.ndim > 1,
        momentum: float | Schedule = 0.95,
        nesterov: bool = True,
        adjust: Adjust = "original",
        steps: int = 5,
        beta1: float | Schedule = 0.9,
        beta2: float | Schedule = 0.95,
        eps: float | Schedule = 1e-8,
        weight_decay: float | Schedule = 0.0,
    ) -> None:
        by_name = checks.named("param", params)
        for name, param in by_name.items():
            check_order(checks.param_label(name), param, checks.in_code(params, name))
            checks.array(checks.param_label(name), param, writable=True)
        checks.apart({checks.param_label(name): param for name, param in by_name.items()})
        chosen = chosen_names(matrices, by_name)
        self.params = params
        rest = {name: param for name, param in by_name.items() if name not in chosen}
        self.matrices = MuonMatrices(
            {name: by_name[name] for name in chosen}, lr, groups=frozen_groups(params, chosen),
            momentum=momentum, nesterov=nesterov, adjust=adjust, steps=steps, weight_decay=weight_decay,
        )  # fmt: skip
        self.rest = AdamW(
            rest, rest_lr, groups=frozen_groups(params, rest),
            beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
        )  # fmt: skip
        self._frozen_by_params = self.frozen

    @property
    def lr(self) -> float:
        return self.matrices.lr

    @lr.setter
    def lr(self, value: float) -> None:
        value = checks.number("lr", value, "[0, inf)")
        old = self.matrices.lr
        ratio = self.rest.lr / old if old else self._ratio
        setting = [*self.matrices._setting("lr", value), *self.rest._setting("lr", ratio * value)]
        _kernels.uninterrupted([*setting, (vars(self).update, ({"_ratio": ratio},))])

    _ratio = 0.0

    @property
    def t(self) -> int:
        return self.rest.t

    @property
    def frozen(self) -> frozenset[str]:
        return self.matrices.frozen | self.rest.frozen

    @property
    def state(self) -> Mapping[str, Mapping[str, Array]]:
        return {**self.matrices.state, **self.rest.state}

    def step(self, grads: Arrays, *, grad_scale: float = 1.0, strict: bool = True) -> None:
        """See `Optimizer.step`."""
        _kernels.uninterrupted(self._taking(grads, grad_scale, strict)[0])

    def updated(self, params: Params, grads: Arrays, *, grad_scale: float = 1.0, strict: bool = True) -> Params:
        """See `Optimizer.updated`."""
        new = copies(self.params, params)
        _kernels.uninterrupted(self._updating(new, grads, grad_scale, strict)[0])
        return new

    def _taking(self, grads: Arrays, grad_scale: float, strict: bool) -> tuple[list[Call], bool]:
        parts = (checks.named("param", part.params) for part in (self.matrices, self.rest))
        check_entries(self.params, {name: param for part in parts for name, param in part.items()})
        calls: list[Call] = []
        for part, given in self._parted(self.params, grads, strict):
            calls += part._taking(given, grad_scale, strict)[0]
        return calls, True

    def _updating(self, params: Arrays, grads: Arrays, grad_scale: float, strict: bool) -> tuple[list[Call], bool]:
        by_name = checks.named("param", params)
        calls: list[Call] = []
        for part, given in self._parted(params, grads, strict):
            calls += part._updating({name: by_name[name] for name in given}, given, grad_scale, strict)[0]
        return [*calls, (vars(self).update, ({"params": params},))], True

    def _parted(self, params: Arrays, grads: Arrays, strict: bool) -> list[tuple[Optimizer, dict[str, Any]]]:
        """The two, each with its gradients by the names of its parameters, once these fit in whole."""
        given = checks.matched(params, grads, self.frozen, strict=checks.flag("strict", strict))
        resting = set() if strict else {name for name, grad in given.items() if grad is None}
        bound = checks.labelled(checks.named("param", params), self.state)
        checks.gradients(params, checks.structured(params, given.values()), bound, self.frozen | resting)
        return [(part, {name: given[name] for name in part._slots}) for part in (self.matrices, self.rest)]

    def rebind(self, params: Arrays) -> None:
        """See `Optimizer.rebind`."""
        _kernels.uninterrupted(self._rebinding(params))

    def _rebinding(self, params: Arrays) -> list[Call]:
        check_alike(self.params, params)
        by_name = checks.named("param", params)
        parts = [part._rebinding({name: by_name[name] for name in part._slots}) for part in (self.matrices, self.rest)]
        checks.apart({checks.param_label(name): param for name, param in by_name.items()})
        return [*parts[0], *parts[1], (vars(self).update, ({"params": params},))]

    def state_dict(self) -> dict[str, Any]:
        """Like that of an optimizer: ``optimizer``, the name of the class, and those of ``matrices`` and ``rest``."""
        return {"optimizer": "Muon", "matrices": self.matrices.state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where something is missing or does not fit; then nothing has been changed.
        """
        _kernels.uninterrupted(self._loading(state_dict))

    def _loading(self, state_dict: Mapping[str, Any]) -> list[Call]:
        checks.choice("optimizer", checks.mapping("state_dict", state_dict)["optimizer"], ("Muon",))
        return [*self.matrices._loading(state_dict["matrices"]), *self.rest._loading(state_dict["rest"])]

    def __repr__(self) -> str:
        return f"Muon(matrices={self.matrices!r}, rest={self.rest!r})"
