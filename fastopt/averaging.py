"""Weight averaging: LookAhead and Ranger, exponential and plain averages (EMA, SWA).

An average moves by ``a ← a + w·(p − a)``: that is the step of `fastopt.SGD` with p for the gradient and a decay of w,
one call for a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt import _kernels, checks, dialects
from fastopt.applied import Applied
from fastopt.checks import Array, Arrays
from fastopt.dialects import Spelled
from fastopt.optimizer import Call, OptimizerLike, Params, check_alike, copies, copying, with_more
from fastopt.optimizers import SGD, RAdam
from fastopt.schedules import Schedule

__all__ = ["EMA", "SWA", "LookAhead", "Ranger"]


class _Average:
    """Arrays that begin as copies of parameters and follow them."""

    def __init__(self, params: Arrays) -> None:
        named = checks.named("param", params)
        copies = [checks.array(checks.param_label(name), param).copy() for name, param in named.items()]
        self.params, self.averages = params, checks.structured(params, copies)
        self._sgd = SGD(self.averages, lr=1.0)

    def moving(self, weight: float, among: Arrays | None = None) -> list[Call]:
        """The calls that move the averages by a fraction `weight` of the way to the parameters, or to others."""
        among = self.params if among is None else among
        params, averages = checks.named("param", among), checks.named("param", self.averages)
        for name, average in averages.items():
            if name in params:
                label = checks.param_label(name)
                checks.array(label, params[name], dtype=average.dtype, shape=average.shape, contiguous=False)
        if weight == 1.0:
            return copying(params, averages)
        self._sgd._plan.check(among)
        decay = [(self._sgd._place["weight_decay"], weight, 0)]
        return [(self._sgd._plan.advance, (among, -weight, [1.0] * len(averages), decay, self._sgd.t))]

    def rebinding(self, params: Arrays) -> list[Call]:
        """The calls after which the averages follow other arrays."""
        check_alike(self.averages, params)
        named = checks.named("param", params)
        for name, average in checks.named("param", self.averages).items():
            checks.array(checks.param_label(name), named[name], dtype=average.dtype, shape=average.shape)
        return [(vars(self).update, ({"params": params},))]

    def adding(self, more: Arrays) -> list[Call]:
        """The calls after which the averages are of further parameters, too."""
        beside = _Average(more)
        params, averages = with_more(self.params, more), with_more(self.averages, beside.averages)
        return [(vars(self).update, ({"params": params, "averages": averages, "_sgd": SGD(averages, lr=1.0)},))]

    def arrays(self) -> dict[str, Array]:
        """Copies of the averages by name."""
        return {name: a.copy() for name, a in checks.named("param", self.averages).items()}

    def loading(self, label: str, arrays: Mapping[str, Array]) -> list[Call]:
        """The calls that take over what `arrays` returned."""
        own = checks.named("param", self.averages)
        if set(own) != set(checks.mapping(label, arrays)):
            raise ValueError(f"{label} must have the keys {sorted(own)}, got {sorted(arrays)}")
        for name, a in own.items():
            checks.array(f"{label}[{name!r}]", arrays[name], dtype=a.dtype, shape=a.shape)
        return copying(arrays, own)


# ---- Averages to evaluate ------------------------------------------------------------------------------------


class _WeightAverage(Applied, Spelled):
    """What EMA and SWA share."""

    def __init__(self, params: Arrays) -> None:
        self._average, self._count = _Average(params), 0

    @property
    def averages(self) -> Arrays:
        """The averages, in the structure of the parameters: live arrays."""
        return self._average.averages

    @property
    def count(self) -> int:
        """How often `update` was called."""
        return self._count

    def _weight(self) -> float:
        raise TypeError("a subclass says how far an average moves")

    def update(self) -> None:
        """Take in the parameters as they are now."""
        self._refuse_if_applied()
        self._move(self._weight(), self._count + 1)

    def reset(self) -> None:
        """Begin anew, from the parameters as they are now."""
        self._refuse_if_applied()
        self._move(1.0, 0)

    def _move(self, weight: float, count: int) -> None:
        """Move the averages by a weight, and set the count."""
        counting: Call = (vars(self).update, ({"_count": count},))
        _kernels.uninterrupted([*self._average.moving(weight), counting])

    def rebind(self, params: Arrays) -> None:
        """Follow other arrays of the same structure, type and shapes; see `Optimizer.rebind`."""
        _kernels.uninterrupted(self._average.rebinding(params))

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name."""
        return self._live()

    @property
    def is_ready(self) -> bool:
        """Whether `update` was called."""
        return self._count > 0

    def _live(self) -> dict[str, Array]:
        return checks.named("param", self._average.params)

    def averaged(self) -> dict[str, Array]:
        return self._average.arrays()

    def state_dict(self) -> dict[str, Any]:
        """A copy of ``count`` and ``averages``, a dict of arrays; while the parameters hold averages, ``trained`` has
        the values that are trained."""
        return {"count": self._count, "averages": self._average.arrays(), **self._applied_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where something is missing or does not fit; then nothing has been changed.
        """
        count = checks.integer("count", checks.mapping("state_dict", state_dict)["count"], 0)
        trained = self._checked_state(state_dict)
        loading = self._average.loading("averages", state_dict["averages"])
        _kernels.uninterrupted([*loading, (vars(self).update, ({"_count": count, "_trained": trained},))])


class EMA(_WeightAverage):
    """An exponential moving average of parameters (Polyak averaging): ``a ← decay·a + (1 − decay)·p``.

    Call `update` after each step, and evaluate within `applied`.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        float32 or float64, all alike, C-contiguous: those that are trained. The averages begin with their values.
    decay : float, default 0.999
        In [0, 1).
    warmup : bool, default False
        Early on, ``min(decay, (1 + n) / (10 + n))`` after n updates, as in TensorFlow.

    Notes
    -----
    B. Polyak and A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> optimizer, ema = fastopt.SGD(w, lr=1.0), fastopt.EMA(w, decay=0.9)
    >>> optimizer.step(np.ones(2))
    >>> ema.update()
    >>> w
    array([ 0., -3.])
    >>> with ema.applied():  # evaluate here
    ...     print(w)
    [ 0.9 -2.1]
    >>> w
    array([ 0., -3.])
    """

    def __init__(self, params: Arrays, decay: float = 0.999, *, warmup: bool = False) -> None:
        self.decay, self.warmup = checks.number("decay", decay, "[0, 1)"), checks.flag("warmup", warmup)
        super().__init__(params)

    def _weight(self) -> float:
        n = self._count
        return 1 - (min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay)


class SWA(_WeightAverage):
    """Stochastic weight averaging: the mean of the parameters at each `update`, usually at the end of late epochs.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        As in `EMA`.

    Notes
    -----
    P. Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018, algorithm 1. Batch
    norm's running statistics are those of other weights: compute them anew before you evaluate.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.zeros(1)
    >>> swa = fastopt.SWA(w)
    >>> for w[0] in (1.0, 2.0, 6.0):  # the ends of three epochs
    ...     swa.update()
    >>> swa.averages
    array([3.])
    """

    def _weight(self) -> float:
        return 1 / (self._count + 1)


# ---- Averages to train from ---------------------------------------------------------------------------------


class LookAhead(Spelled):
    """LookAhead: every k steps of an optimizer, slow weights go a part of the way, and the parameters go on from there.

    ``slow ← slow + alpha·(p − slow)``, then ``p ← slow``. All else is the wrapped optimizer's: hyperparameters,
    `params`, `t`, `groups` and so on are its attributes, and may be read and set through this one.

    Parameters
    ----------
    optimizer : Optimizer
        Any; it takes the fast steps.
    k : int, default 5
        At least 1.
    alpha : float, default 0.5
        In (0, 1].

    Attributes
    ----------
    optimizer : Optimizer
    slow : ndarray, list or dict of ndarray
        The slow weights.

    Notes
    -----
    M. Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", 2019, algorithm 1.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> optimizer = fastopt.LookAhead(fastopt.Adam(w, lr=0.1), k=5)
    >>> for _ in range(200):
    ...     optimizer.step(2 * w)
    >>> bool(abs(w).max() < 0.1)
    True
    """

    # Those of the wrapped one, by `__getattr__`.
    params: Arrays
    t: int
    optimizer: Any

    def __init__(self, optimizer: OptimizerLike, *, k: int = 5, alpha: float = 0.5) -> None:
        self.k, self.alpha = checks.integer("k", k, 1), checks.number("alpha", alpha, "(0, 1]")
        if not hasattr(optimizer, "params"):
            raise TypeError(
                f"optimizer must be an Optimizer, got {type(optimizer).__name__}: write LookAhead(fastopt.Adam(params))"
            )
        self._average = _Average(optimizer.params)
        self.optimizer = optimizer

    def step(self, grads: Arrays, *, grad_scale: float = 1.0, strict: bool = True) -> None:
        """See `Optimizer.step`."""
        inner = self.optimizer
        if "step" in vars(inner) and (inner.t + 1) % self.k:  # then it is one call
            inner.step(grads, grad_scale=grad_scale, strict=strict)
        else:
            _kernels.uninterrupted(self._taking(grads, grad_scale, strict)[0])

    def _taking(self, grads: Arrays, grad_scale: float, strict: bool) -> tuple[list[Call], bool]:
        calls, taken = self.optimizer._taking(grads, grad_scale, strict)
        if taken and (self.optimizer.t + 1) % self.k == 0:
            calls = [*calls, *self._synchronizing()]
        return calls, taken

    def updated(self, params: Params, grads: Arrays, *, grad_scale: float = 1.0, strict: bool = True) -> Params:
        """See `Optimizer.updated`; the slow weights are moved in place."""
        new = copies(self._average.averages, params)
        _kernels.uninterrupted(self._updating(new, grads, grad_scale, strict)[0])
        return new

    def _updating(self, params: Arrays, grads: Arrays, grad_scale: float, strict: bool) -> tuple[list[Call], bool]:
        calls, taken = self.optimizer._updating(params, grads, grad_scale, strict)
        if taken and (self.optimizer.t + 1) % self.k == 0:
            calls = [*calls, *self._synchronizing(params)]
        return [*calls, *self._average.rebinding(params)], taken

    def synchronize(self) -> None:
        """Move the slow weights now, and the parameters to them.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> w = np.array([1.0])
        >>> optimizer = fastopt.LookAhead(fastopt.SGD(w, lr=0.1), k=5)
        >>> optimizer.step(np.array([2.0]))
        >>> w, optimizer.slow
        (array([0.8]), array([1.]))
        >>> optimizer.synchronize()
        >>> w, optimizer.slow
        (array([0.9]), array([0.9]))
        """
        _kernels.uninterrupted(self._synchronizing())

    def _synchronizing(self, params: Arrays | None = None) -> list[Call]:
        params = self._average.params if params is None else params
        averages = checks.named("param", self._average.averages)
        return [*self._average.moving(self.alpha, params), *copying(averages, checks.named("param", params))]

    def rebind(self, params: Arrays) -> None:
        """See `Optimizer.rebind`; the slow weights stay what they are."""
        _kernels.uninterrupted(self._rebinding(params))

    def _rebinding(self, params: Arrays) -> list[Call]:
        return [*self.optimizer._rebinding(params), *self._average.rebinding(params)]

    def add_params(self, more: Arrays, **settings: Any) -> None:
        """See `Optimizer.add_params`; the slow weights of the new parameters begin with their values."""
        _kernels.uninterrupted(self._adding(more, **settings))

    def _adding(self, more: Arrays, **settings: Any) -> list[Call]:
        return [*self.optimizer._adding(more, **settings), *self._average.adding(more)]

    @property
    def slow(self) -> Arrays:
        return self._average.averages

    def state_dict(self) -> dict[str, Any]:
        """Like that of an optimizer: ``optimizer`` (the name of this class), ``k``, ``alpha``, ``inner``, ``slow``."""
        inner, slow = self.optimizer.state_dict(), self._average.arrays()
        return {"optimizer": type(self).__name__, "k": self.k, "alpha": self.alpha, "inner": inner, "slow": slow}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where something is missing or does not fit; then nothing has been changed.
        """
        _kernels.uninterrupted(self._loading(state_dict))

    def _loading(self, state_dict: Mapping[str, Any]) -> list[Call]:
        checks.choice("optimizer", checks.mapping("state_dict", state_dict)["optimizer"], (type(self).__name__,))
        k, alpha = checks.integer("k", state_dict["k"], 1), checks.number("alpha", state_dict["alpha"], "(0, 1]")
        slow = self._average.loading("slow", state_dict["slow"])
        own = (vars(self).update, ({"k": k, "alpha": alpha},))
        return [*self.optimizer._loading(state_dict["inner"]), *slow, own]

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # not there yet: while it is unpickled
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("k", "alpha", "optimizer") or name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.optimizer, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r}, k={self.k}, alpha={self.alpha})"


class Ranger(LookAhead):
    """Ranger: `LookAhead` around `RAdam`.

    Parameters
    ----------
    params, lr, beta1, beta2, eps, threshold
        See `RAdam`, with Ranger's defaults.
    k, alpha
        See `LookAhead`; by default 6 and 0.5.
    **common
        What every optimizer takes: see `Optimizer`.

    Notes
    -----
    L. Wright, "Ranger: a synergistic optimizer", 2019 (software).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> optimizer = fastopt.Ranger(w, lr=0.1)
    >>> for _ in range(200):
    ...     optimizer.step(2 * w)
    >>> bool(abs(w).max() < 0.1), type(optimizer.optimizer).__name__, optimizer.k
    (True, 'RAdam', 6)
    """

    #: See `Optimizer.default_rate`.
    default_rate = 3e-3

    def __init__(
        self,
        params: Arrays,
        lr: float | Schedule = 1e-3,
        *,
        k: int = 6,
        alpha: float = 0.5,
        beta1: float | Schedule = 0.95,
        beta2: float | Schedule = 0.999,
        eps: float | Schedule = 1e-5,
        threshold: float | Schedule = 5.0,
        **common: Any,
    ) -> None:
        taken = (*RAdam._setting_names(), "groups")
        for name in common:
            if name not in taken:
                of = ("Ranger", "RAdam", "Optimizer", "LookAhead")
                raise TypeError(dialects.unknown("Ranger", of, name, common[name], ("k", "alpha", *taken)))
        radam = RAdam(params, lr, beta1=beta1, beta2=beta2, eps=eps, threshold=threshold, **common)
        super().__init__(radam, k=k, alpha=alpha)
