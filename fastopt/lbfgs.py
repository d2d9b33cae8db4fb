"""L-BFGS for gradients of the whole data: SciPy's, on the arrays and with the state of the other optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt import _kernels, checks
from fastopt.checks import Array, Arrays
from fastopt.dialects import Spelled
from fastopt.optimizer import Call, check_alike, check_entries, check_order, copying

__all__ = ["LBFGS"]

Closure = Callable[[], tuple[float, Arrays]]


class LBFGS(Spelled):
    """Limited-memory BFGS with a line search [1]_: SciPy's L-BFGS-B, without bounds, or with them.

    It is for losses without noise: of all data, or of one large batch that stays. A step is a run of several
    iterations, each of which asks for the loss and the gradients one or more times. A model's `fit` gives it both:
    ``model.fit(x, y, batch_size=len(x), optimizer=fastopt.LBFGS(model.params))``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        float32 or float64, all alike, C-contiguous; updated in place. SciPy computes in float64.
    max_iter : int, default 20
        Iterations of a step, at least 1.
    history_size : int, default 10
        Pairs of differences that the inverse Hessian is made of, at least 1. Each step begins without any.
    tolerance_grad : float, default 1e-7
        A step ends where no element of the gradient exceeds it, in [0, inf).
    tolerance_change : float, default 1e-12
        … or where the loss falls by less than this share of it, in [0, inf).
    bounds : (float or None, float or None), optional
        Lower and upper bound of every parameter.

    Attributes
    ----------
    params : ndarray, list or dict of ndarray
        As given.
    t : int
        The number of steps taken.
    evaluations, iterations : int
        How often closures were called, and the iterations of all steps.
    converged : bool or None
        Whether the last step ended by a tolerance.

    Raises
    ------
    ImportError
        At the first step, where SciPy is missing: it is the extra ``scipy``.

    References
    ----------
    .. [1] C. Zhu, R. Byrd, P. Lu and J. Nocedal, "Algorithm 778: L-BFGS-B", 1997.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([-1.2, 1.0])
    >>> def rosenbrock():
    ...     a, b = w
    ...     slopes = [-400 * a * (b - a * a) - 2 * (1 - a), 200 * (b - a * a)]
    ...     return 100 * (b - a * a) ** 2 + (1 - a) ** 2, np.array(slopes)
    >>> optimizer = fastopt.LBFGS(w, max_iter=100)
    >>> bool(optimizer.step(rosenbrock) < 1e-9)
    True
    >>> resumed = fastopt.LBFGS(w, max_iter=100)
    >>> resumed.load_state_dict(optimizer.state_dict())
    >>> resumed.t, optimizer.converged
    (1, True)
    """

    #: For `fastopt.nn`: `step` takes a function.
    needs_closure = True

    def __init__(
        self,
        params: Arrays,
        *,
        max_iter: int = 20,
        history_size: int = 10,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-12,
        bounds: tuple[float | None, float | None] | None = None,
    ) -> None:
        self.max_iter = checks.integer("max_iter", max_iter, 1)
        self.history_size = checks.integer("history_size", history_size, 1)
        self.tolerance_grad = checks.number("tolerance_grad", tolerance_grad, "[0, inf)")
        self.tolerance_change = checks.number("tolerance_change", tolerance_change, "[0, inf)")
        self.bounds = bounds
        #: Those that are frozen in a model whose parameters these are.
        self.frozen = self._frozen_by_params = frozenset(getattr(params, "frozen", ()))
        self._named = self._checked(params)
        self.params = params
        self.t = self.evaluations = self.iterations = 0
        self.converged: bool | None = None

    def _checked(self, params: Arrays) -> dict[str, Array]:
        """The parameters by name that are not frozen."""
        every, dtype = checks.named("param", params), None
        named = {name: param for name, param in every.items() if name not in self.frozen}
        for name, param in named.items():
            check_order(checks.param_label(name), param, checks.in_code(params, name))
            dtype = checks.array(checks.param_label(name), param, dtype=dtype, writable=True).dtype
        checks.apart({checks.param_label(name): param for name, param in named.items()})
        return named

    def rebind(self, params: Arrays) -> None:
        """Go on with other arrays of the same structure, type and shapes; see `Optimizer.rebind`."""
        check_alike(self.params, params)
        named = self._checked(params)
        for name, param in self._named.items():
            checks.array(checks.param_label(name), named[name], dtype=param.dtype, shape=param.shape)
        _kernels.uninterrupted([(vars(self).update, ({"params": params, "_named": named},))])

    def step(self, closure: Closure) -> float:
        """Go down a loss, for at most `max_iter` iterations.

        Parameters
        ----------
        closure : callable
            ``closure() -> (loss, grads)`` at the parameters as they then are; gradients in their structure.

        Returns
        -------
        loss : float
            That at the parameters that are left, the best that were found.

        Raises
        ------
        TypeError, ValueError
            Where a gradient does not fit, or the first loss is not finite. Then, and where the closure raises, the
            parameters are what they were.
        """
        try:
            from scipy.optimize import minimize
        except ImportError as error:
            raise ImportError("LBFGS needs SciPy: pip install 'fastopt[scipy]'") from error
        check_entries(self.params, self._named)
        for name, param in self._named.items():
            checks.array(checks.param_label(name), param, writable=True)
        begin = self._vector(self._named)
        calls = 0
        done: list[bool] = []

        def evaluate(x: Array) -> tuple[float, Array]:
            nonlocal calls
            _kernels.uninterrupted(self._placing(x))
            loss, grads = closure()
            loss = checks.real("loss", loss)
            calls += 1
            checks.gradients(self.params, grads, {}, self.frozen)
            if calls == 1 and not math.isfinite(loss):
                raise ValueError(f"the loss must be finite at the beginning of a step, got {loss}")
            return loss, self._vector(checks.named("param", grads))

        options = {"maxiter": self.max_iter, "maxcor": self.history_size, "gtol": self.tolerance_grad,
                   "ftol": self.tolerance_change, "maxfun": 20 * self.max_iter}  # fmt: skip
        bounds = None if self.bounds is None else [self.bounds] * begin.size
        try:
            result = minimize(evaluate, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            taken = {
                "t": self.t + 1,
                "evaluations": self.evaluations + calls,
                "iterations": self.iterations + int(result.nit),
                "converged": bool(result.success),
            }
            placing = self._placing(result.x)
            _kernels.uninterrupted([*placing, (vars(self).update, (taken,)), (done.append, (True,))])
        except BaseException:
            if not done:
                _kernels.uninterrupted(self._placing(begin))
            raise
        return float(result.fun)

    def _vector(self, arrays: Mapping[str, Array]) -> Array:
        parts = [np.asarray(arrays[name], np.float64).ravel() for name in self._named]
        return np.concatenate(parts) if parts else np.empty(0)

    def _placing(self, x: Array) -> list[Call]:
        """The calls that copy a vector to the parameters."""
        parts, at = {}, 0
        for name, param in self._named.items():
            parts[name] = x[at : at + param.size].reshape(param.shape)
            at += param.size
        return copying(parts, self._named)

    def state_dict(self) -> dict[str, Any]:
        """``optimizer`` (the name of the class) and its counters; it keeps no arrays from step to step."""
        return {"optimizer": "LBFGS", "t": self.t, "evaluations": self.evaluations, "iterations": self.iterations}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        checks.choice("optimizer", state_dict["optimizer"], ("LBFGS",))
        counts = [checks.integer(name, state_dict[name], 0) for name in ("t", "evaluations", "iterations")]
        vars(self).update(zip(("t", "evaluations", "iterations"), counts, strict=True))

    def __repr__(self) -> str:
        return f"LBFGS(max_iter={self.max_iter}, history_size={self.history_size}, t={self.t})"
