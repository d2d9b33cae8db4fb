"""Optimizers: one class each, with its names, defaults and constraints.

A class says which kernel it drives (a row of csrc/kernels.def), the constraint of each hyperparameter in a class
attribute, and its default in the signature; what every optimizer has beside these is in `fastopt.optimizer`.
Everything else (the functional form, tests, benchmarks, the command line) is derived from that.

>>> import numpy as np, fastopt
>>> w = np.array([1.0, -2.0])
>>> optimizer = fastopt.Adam(w, lr=0.1)
>>> for _ in range(100):
...     optimizer.step(2 * w)          # the gradient of |w|^2
>>> bool(abs(w).max() < 0.1)
True
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Unpack

from fastopt import checks
from fastopt.checks import Array, Arrays
from fastopt.hyper import Choice, Flag, Number
from fastopt.optimizer import Common, Optimizer
from fastopt.schedules import Schedule

__all__ = [
    "LAMB",
    "SGD",
    "AMSBound",
    "AMSGrad",
    "AdaBelief",
    "AdaBound",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CenteredRMSProp",
    "Lion",
    "LookAheadNesterov",
    "Momentum",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSProp",
    "RMSPropMomentum",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Yogi",
]

#: Where eps stands, in the order of the enum in csrc/fastopt.h.
EPS_MODES = ("outside", "inside", "hat")
EpsMode = Literal["outside", "inside"]
AdamEpsMode = Literal["outside", "inside", "hat"]
#: A number, or what it follows.
Rate = float | Schedule


# ---- Gradient descent and momentum --------------------------------------------------------------------------


class SGD(Optimizer):
    """Stochastic gradient descent: ``p ← p − lr·g``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float
        Learning rate, in [0, inf).
    **common
        What every optimizer takes: see `Optimizer`.
    """

    kernel = "sgd"

    def __init__(
        self,
        params: Arrays,
        lr: Rate,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, **common)


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
        Nesterov's step, from the gradient at the parameters as they are held. See `LookAheadNesterov` for the other
        form.
    lr_in_velocity : bool, default False
        The other form: ``v ← momentum·v − lr·g``, then ``p ← p + v``, or with `nesterov`
        ``p ← p + momentum·v − lr·g``. It is that of Keras, cs231n and scikit-learn, and differs from PyTorch's
        where `lr` changes.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, eq. 9.
    .. [2] I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, eq. 3–4.
    """

    kernel = "momentum"
    fixed: ClassVar[dict[str, float]] = {"look_ahead": 0.0}
    momentum = Number("[0, 1]")
    dampening = Number("[0, 1]")
    nesterov = Flag()
    lr_in_velocity = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: Rate,
        *,
        momentum: Rate = 0.9,
        dampening: Rate = 0.0,
        nesterov: bool = False,
        lr_in_velocity: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            lr_in_velocity=lr_in_velocity,
            **common,
        )


class LookAheadNesterov(Momentum):
    """Nesterov's momentum as it was conceived [1]_: the gradient is taken where the momentum is about to lead.

    ``v ← momentum·v − lr·g(w + momentum·v)``, then ``w ← w + v``. Before each gradient, call `look_ahead`: it moves the
    parameters to ``w + momentum·v``, and `step` goes on from there.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> optimizer = fastopt.LookAheadNesterov(w, lr=0.1)
    >>> for _ in range(60):
    ...     optimizer.look_ahead()
    ...     optimizer.step(2 * w)
    >>> bool(abs(w).max() < 0.1)
    True

    .. warning:: Which point the parameters are differs from form to form, though the gradients are taken at the same
       points. After `step` this class holds w, the iterate itself. ``Momentum(nesterov=True)``, PyTorch and Keras hold
       the next look-ahead point all the time, ``w + momentum·v``, and never w. Evaluate and save what you hold
       knowingly.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float
        Learning rate, in [0, inf).
    momentum : float, default 0.9
        The share of the old velocity that is kept, in [0, 1].
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, eq. 3–4.
    """

    name = "look_ahead_nesterov"
    fixed: ClassVar[dict[str, float]] = {"look_ahead": 1.0, "lr_in_velocity": 1.0, "nesterov": 0.0, "dampening": 0.0}

    def __init__(self, params: Arrays, lr: Rate, *, momentum: Rate = 0.9, **common: Unpack[Common]) -> None:
        Optimizer.__init__(self, params, lr=lr, momentum=momentum, **common)

    @property
    def ahead(self) -> bool:
        """Whether the parameters are at the look-ahead point; also after a step that was skipped."""
        return self._ahead

    def look_ahead(self) -> None:
        """Move the parameters from w to ``w + momentum·v``, where the next gradient is to be taken.

        Raises
        ------
        RuntimeError
            Where they are there already.
        """
        if self._ahead:
            raise RuntimeError("the parameters are at the look-ahead point already; take a step from there")
        for name, param in checks.named("param", self.params).items():
            if self._cell_of[name] >= 0:
                rate = self._in_cell(self._cells[self._cell_of[name]], "momentum")
                param += rate * self.state[name]["velocity"]
        self._ahead = True

    def step(self, grads: Arrays, *, grad_scale: float = 1.0) -> None:
        """See `Optimizer.step`; the gradients must be those at the look-ahead point.

        Raises
        ------
        RuntimeError
            Where `look_ahead` has not been called since the last step.
        """
        if not self._ahead:
            raise RuntimeError("the gradient must be taken at the look-ahead point: call look_ahead() before it")
        taken = self.t
        super().step(grads, grad_scale=grad_scale)
        self._ahead = self.t == taken  # a step that was skipped

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`; ``ahead`` says which point the parameters are."""
        return super().state_dict() | {"ahead": self._ahead}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See `Optimizer.load_state_dict`."""
        ahead = checks.flag("ahead", state_dict["ahead"])
        super().load_state_dict(state_dict)
        self._ahead = ahead

    _ahead = False


# ---- Adaptive rates without momentum ------------------------------------------------------------------------


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
    **common
        What every optimizer takes: see `Optimizer`.

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
        lr: Rate = 1e-3,
        *,
        decay: Rate = 0.99,
        eps: Rate = 1e-8,
        eps_mode: EpsMode = "outside",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, decay=decay, eps=eps, eps_mode=eps_mode, **common)


class RMSPropMomentum(RMSProp):
    """RMSProp [1]_ with momentum: ``v ← momentum·v + g / (√G + eps)``, then ``p ← p − lr·v``.

    G is that of `RMSProp`.

    Parameters
    ----------
    params, lr, decay, eps, eps_mode
        See `RMSProp`.
    momentum : float, default 0.9
        The share of the old velocity that is kept, in [0, 1].
    lr_in_velocity : bool, default False
        ``v ← momentum·v + lr·g / …``, then ``p ← p − v`` (Keras, TensorFlow): another step where `lr` changes.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] T. Tieleman and G. Hinton, "Lecture 6.5: rmsprop", Coursera, 2012.
    """

    kernel = "rmsprop_momentum"
    name = "rmsprop_momentum"
    momentum = Number("[0, 1]")
    lr_in_velocity = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        decay: Rate = 0.99,
        momentum: Rate = 0.9,
        eps: Rate = 1e-8,
        eps_mode: EpsMode = "outside",
        lr_in_velocity: bool = False,
        **common: Unpack[Common],
    ) -> None:
        Optimizer.__init__(
            self,
            params,
            lr=lr,
            decay=decay,
            momentum=momentum,
            eps=eps,
            eps_mode=eps_mode,
            lr_in_velocity=lr_in_velocity,
            **common,
        )


class CenteredRMSProp(RMSPropMomentum):
    """RMSProp by the variance of the gradient, with momentum [1]_.

    ``G ← decay·G + (1 − decay)·g²``, ``M ← decay·M + (1 − decay)·g``, ``v ← momentum·v + g / (√(G − M²) + eps)``,
    ``p ← p − lr·v``.

    Parameters
    ----------
    params, lr, decay, eps, eps_mode, lr_in_velocity
        See `RMSPropMomentum`.
    momentum : float, default 0.0
        The share of the old velocity that is kept, in [0, 1].
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] A. Graves, "Generating sequences with recurrent neural networks", 2013, eq. 38–45.
    """

    kernel = "centered_rmsprop"
    name = "centered_rmsprop"

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        decay: Rate = 0.99,
        momentum: Rate = 0.0,
        eps: Rate = 1e-8,
        eps_mode: EpsMode = "outside",
        lr_in_velocity: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr,
            decay=decay,
            momentum=momentum,
            eps=eps,
            eps_mode=eps_mode,
            lr_in_velocity=lr_in_velocity,
            **common,
        )


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
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and stochastic
       optimization", 2011, fig. 1 (diagonal matrices).
    """

    kernel = "adagrad"
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES[:2])
    of_class = ("initial_accumulator_value",)
    initial_accumulator_value = Number("[0, inf)")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-2,
        *,
        eps: Rate = 1e-10,
        eps_mode: EpsMode = "outside",
        initial_accumulator_value: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, eps=eps, eps_mode=eps_mode, initial_accumulator_value=initial_accumulator_value, **common
        )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return self._held["initial_accumulator_value"] if key == "square_sum" else 0.0


class Adadelta(Optimizer):
    """Adadelta [1]_: each step is as long as past steps were, in proportion to past gradients.

    ``G ← decay·G + (1 − decay)·g²``, ``d = √(D + eps) / √(G + eps) · g``, ``D ← decay·D + (1 − decay)·d²``,
    ``p ← p − lr·d``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1.0
        Learning rate, in [0, inf).
    decay : float, default 0.9
        The share of the old average that is kept, in [0, 1].
    eps : float, default 1e-6
        Stabiliser, in [0, inf).
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] M. Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1.
    """

    kernel = "adadelta"
    decay = Number("[0, 1]")
    eps = Number("[0, inf)")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1.0,
        *,
        decay: Rate = 0.9,
        eps: Rate = 1e-6,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, decay=decay, eps=eps, **common)


class Rprop(Optimizer):
    """Rprop [1]_ in the form iRprop− [2]_: each element has a step size, which grows while its gradient keeps its sign.

    Where the sign has changed, the step size shrinks, and no step is taken. It is for gradients of the whole data,
    which have no noise in their signs.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-2
        Where step sizes begin, in [0, inf). (In the functional form you fill `step_size` yourself.) Then it has no
        part.
    eta_minus, eta_plus : float, default 0.5, 1.2
        By what step sizes shrink, in (0, 1), and grow, in (1, inf).
    min_step, max_step : float, default 1e-6, 50.0
        The bounds of step sizes, in [0, inf).
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] M. Riedmiller and H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
       algorithm", 1993.
    .. [2] C. Igel and M. Hüsken, "Improving the Rprop learning algorithm", 2000, section 2.2.
    """

    kernel = "rprop"
    begins = "`step_size` being the first length of steps, and `prev_grad` zeros at first"
    eta_minus = Number("(0, 1)")
    eta_plus = Number("(1, inf)")
    min_step = Number("[0, inf)")
    max_step = Number("[0, inf)")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-2,
        *,
        eta_minus: Rate = 0.5,
        eta_plus: Rate = 1.2,
        min_step: Rate = 1e-6,
        max_step: Rate = 50.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, eta_minus=eta_minus, eta_plus=eta_plus, min_step=min_step, max_step=max_step, **common
        )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return lr if key == "step_size" else 0.0


# ---- Adam and its kin ---------------------------------------------------------------------------------------


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
    bias_correction : bool, default True
        False leaves the moments as they are, biased towards zero ("Adam, almost").
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """

    kernel = "adam"
    counts_steps = True
    beta1 = Number("[0, 1)")
    beta2 = Number("[0, 1)")
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES)
    bias_correction = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        eps_mode: AdamEpsMode = "outside",
        bias_correction: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            eps_mode=eps_mode,
            bias_correction=bias_correction,
            **common,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay [1]_: ``p ← p − lr·weight_decay·p`` beside the step of `Adam`.

    Parameters
    ----------
    params, lr, beta1, beta2, eps, eps_mode, bias_correction
        See `Adam`.
    **common
        What every optimizer takes: see `Optimizer`. Here `decoupled` is True, and `weight_decay` 0.01 by default.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """

    fixed: ClassVar[dict[str, float]] = {"decoupled": 1.0}
    defaults: ClassVar[dict[str, Any]] = {"weight_decay": 0.01}


class AMSGrad(Adam):
    """AMSGrad [1]_: `Adam` with the largest second moment so far under the root, so that rates never grow.

    ``w ← max(w, v)``, then ``p ← p − lr·m̂ / (√ŵ + eps)`` with ``ŵ = w / (1 − beta2ᵗ)``. It is PyTorch's
    ``Adam(amsgrad=True)``; the paper's algorithm is without bias correction.

    Parameters
    ----------
    params, lr, beta1, beta2, eps, eps_mode, bias_correction
        See `Adam`.
    corrected_max : bool, default False
        Optax's form: ``w ← max(w, v̂)``, then ``p ← p − lr·m̂ / (√w + eps)``.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] S. Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond", 2018, algorithm 2.
    """

    kernel = "amsgrad"
    corrected_max = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        eps_mode: AdamEpsMode = "outside",
        bias_correction: bool = True,
        corrected_max: bool = False,
        **common: Unpack[Common],
    ) -> None:
        Optimizer.__init__(
            self,
            params,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            eps_mode=eps_mode,
            bias_correction=bias_correction,
            corrected_max=corrected_max,
            **common,
        )


class Adamax(Optimizer):
    """Adamax [1]_: Adam by the largest gradient so far, which is forgotten little by little.

    ``m ← beta1·m + (1 − beta1)·g``, ``u ← max(beta2·u, |g|)``, ``p ← p − lr / (1 − beta1ᵗ) · m / (u + eps)``. (The
    paper has no eps.)

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 2e-3
        Learning rate, in [0, inf).
    beta1, beta2 : float, default 0.9, 0.999
        Decay rates of the moments, in [0, 1).
    eps : float, default 1e-8
        Stabiliser, in [0, inf).
    eps_mode : {"outside", "inside"}, default "outside"
        ``u + eps`` (Keras), or within the maximum (PyTorch): ``u ← max(beta2·u, |g| + eps)``.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 2.
    """

    kernel = "adamax"
    counts_steps = True
    beta1 = Number("[0, 1)")
    beta2 = Number("[0, 1)")
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES[:2])

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 2e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        eps_mode: EpsMode = "outside",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_mode=eps_mode, **common)


class NAdam(Optimizer):
    """NAdam [1]_: Adam with Nesterov's momentum, which is warmed up.

    ``μₜ = beta1·(1 − ½·0.96^(t·momentum_decay))``, ``p ← p − lr·m̄ / (√v̂ + eps)`` with
    ``m̄ = μₜ₊₁·m / (1 − μ₁⋯μₜ₊₁) + (1 − μₜ)·g / (1 − μ₁⋯μₜ)``; m and v̂ are those of `Adam`.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 2e-3
        Learning rate, in [0, inf).
    beta1, beta2 : float, default 0.9, 0.999
        Decay rates of the moments, in [0, 1).
    eps : float, default 1e-8
        Stabiliser, in [0, inf).
    eps_mode : {"outside", "inside", "hat"}, default "outside"
        As in `Adam`; PyTorch and Keras: outside.
    momentum_decay : float, default 4e-3
        How fast μ approaches beta1, in [0, inf). A large one, such as 1e6, leaves it at beta1 (Optax).
    mu_product : float
        Of the functional form alone: ``μ₁⋯μₜ₋₁``, which is 1 in the first step, in [0, 1].
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] T. Dozat, "Incorporating Nesterov momentum into Adam", 2016, algorithm 2 and section 3.
    """

    kernel = "nadam"
    counts_steps = True
    computed = ("mu_product",)
    scalars: ClassVar[dict[str, float]] = {"mu_product": 1.0}
    beta1 = Number("[0, 1)")
    beta2 = Number("[0, 1)")
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES)
    momentum_decay = Number("[0, inf)")
    mu_product = Number("[0, 1]")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 2e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        eps_mode: AdamEpsMode = "outside",
        momentum_decay: Rate = 4e-3,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_mode=eps_mode, momentum_decay=momentum_decay, **common
        )

    def _compute(
        self, hyper: Mapping[str, float], scalars: Mapping[str, float], t: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        mu = hyper["beta1"] * (1 - 0.5 * 0.96 ** (t * hyper["momentum_decay"]))
        return dict(scalars), {"mu_product": scalars["mu_product"] * mu}


class RAdam(Optimizer):
    """RAdam [1]_: Adam whose step is rectified for the variance that its rates have in early steps.

    With ``ρ∞ = 2 / (1 − beta2) − 1`` and ``ρₜ = ρ∞ − 2t·beta2ᵗ / (1 − beta2ᵗ)``: where ``ρₜ > threshold``,
    ``p ← p − lr·rₜ·m̂ / (√v̂ + eps)``, ``rₜ² = (ρₜ − 4)(ρₜ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρₜ)``; else ``p ← p − lr·m̂``.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate, in [0, inf).
    beta1 : float, default 0.9
        Decay rate of the first moment, in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the second moment, in (0.6, 1): below that, nothing is ever rectified.
    eps : float, default 1e-8
        Stabiliser, in [0, inf).
    eps_mode : {"outside", "inside", "hat"}, default "outside"
        As in `Adam`; PyTorch's is "hat", Optax's outside.
    threshold : float, default 4.0
        In [4, inf): the paper's; 5 in PyTorch and Optax.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] L. Liu et al., "On the variance of the adaptive learning rate and beyond", 2020, algorithm 2.
    """

    kernel = "radam"
    counts_steps = True
    beta1 = Number("[0, 1)")
    beta2 = Number("(0.6, 1)")
    eps = Number("[0, inf)")
    eps_mode = Choice(*EPS_MODES)
    threshold = Number("[4, inf)")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        eps_mode: AdamEpsMode = "outside",
        threshold: Rate = 4.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_mode=eps_mode, threshold=threshold, **common
        )


class AdaBound(Adam):
    """AdaBound [1]_: Adam that turns into SGD, since its rates are confined to bounds that close in on `final_lr`.

    ``p ← p − clip(lr·√(1 − beta2ᵗ) / (1 − beta1ᵗ) / (√v + eps'), low, high)·m`` with
    ``low = final_lr·(1 − 1 / (gamma·t + 1))`` and ``high = final_lr·(1 + 1 / (gamma·t))``; m and v are those of `Adam`.
    (The paper divides by √t on top; a schedule does that.)

    Parameters
    ----------
    params, lr, beta1, beta2, eps, eps_mode, bias_correction
        See `Adam`; the authors' code has ``eps_mode="hat"``.
    final_lr : float, default 0.1
        The rate of SGD at which it ends, in [0, inf). The authors' code scales it with `lr` where that follows a
        schedule; give it the same schedule for that.
    gamma : float, default 1e-3
        How fast the bounds close in, in (0, inf).
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] L. Luo et al., "Adaptive gradient methods with dynamic bound of learning rate", 2019, algorithm 2.
    """

    kernel = "adabound"
    final_lr = Number("[0, inf)")
    gamma = Number("(0, inf)")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        eps_mode: AdamEpsMode = "outside",
        bias_correction: bool = True,
        final_lr: Rate = 0.1,
        gamma: Rate = 1e-3,
        **common: Unpack[Common],
    ) -> None:
        Optimizer.__init__(
            self,
            params,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            eps_mode=eps_mode,
            bias_correction=bias_correction,
            final_lr=final_lr,
            gamma=gamma,
            **common,
        )


class AMSBound(AdaBound):
    """AMSBound [1]_: `AdaBound` with the largest second moment so far, ``w ← max(w, v)``, under the root.

    Parameters
    ----------
    params, lr, beta1, beta2, eps, eps_mode, bias_correction, final_lr, gamma
        See `AdaBound`.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] L. Luo et al., "Adaptive gradient methods with dynamic bound of learning rate", 2019, section 4.
    """

    kernel = "amsbound"


class Yogi(Adam):
    """Yogi [1]_: Adam whose second moment moves by at most g² either way: ``v ← v − (1 − beta2)·sign(v − g²)·g²``.

    Parameters
    ----------
    params, beta1, beta2, eps_mode, bias_correction
        See `Adam`.
    lr : float, default 1e-2
        Learning rate, in [0, inf).
    eps : float, default 1e-3
        Stabiliser, in [0, inf).
    initial_accumulator_value : float, default 1e-6
        Where v begins, in [0, inf). (In the functional form you make v yourself.)
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] M. Zaheer et al., "Adaptive methods for nonconvex optimization", 2018, algorithm 2.
    """

    kernel = "yogi"
    of_class = ("initial_accumulator_value",)
    initial_accumulator_value = Number("[0, inf)")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-2,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-3,
        eps_mode: AdamEpsMode = "outside",
        bias_correction: bool = True,
        initial_accumulator_value: float = 1e-6,
        **common: Unpack[Common],
    ) -> None:
        Optimizer.__init__(
            self,
            params,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            eps_mode=eps_mode,
            bias_correction=bias_correction,
            initial_accumulator_value=initial_accumulator_value,
            **common,
        )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return self._held["initial_accumulator_value"] if key == "v" else 0.0


class AdaBelief(Optimizer):
    """AdaBelief [1]_: Adam by how far gradients are from their mean: ``s ← beta2·s + (1 − beta2)·(g − m)² + eps_root``.

    ``p ← p − lr·m̂ / (√ŝ + eps)``, with m and the corrections of `Adam`.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate, in [0, inf).
    beta1, beta2 : float, default 0.9, 0.999
        Decay rates of the moments, in [0, 1).
    eps, eps_root : float, default 1e-16
        Stabilisers, in [0, inf).
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", 2020,
       algorithm 2.
    """

    kernel = "adabelief"
    counts_steps = True
    beta1 = Number("[0, 1)")
    beta2 = Number("[0, 1)")
    eps = Number("[0, inf)")
    eps_root = Number("[0, inf)")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-16,
        eps_root: Rate = 1e-16,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_root=eps_root, **common)


class Lion(Optimizer):
    """Lion [1]_: ``p ← p − lr·sign(beta1·m + (1 − beta1)·g)``, then ``m ← beta2·m + (1 − beta2)·g``.

    Its decay is decoupled by default.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-4
        Learning rate, in [0, inf).
    beta1, beta2 : float, default 0.9, 0.99
        Decay rates of the direction, and of the moment that is kept, in [0, 1).
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] X. Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.
    """

    kernel = "lion"
    defaults: ClassVar[dict[str, Any]] = {"decoupled": True}
    beta1 = Number("[0, 1]")
    beta2 = Number("[0, 1]")

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-4,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.99,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, **common)


class LAMB(Optimizer):
    """LAMB [1]_: Adam's direction, for each array in proportion to the norm of the parameter.

    ``u = m̂ / (√v̂ + eps) + weight_decay·p``, then ``p ← p − lr·‖p‖ / ‖u‖·u``, where a norm of 0 leaves ``p ← p −
    lr·u``. Its decay is decoupled by default: it is a part of u. The norms' bits depend neither on threads nor on the
    instruction set.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate, in [0, inf).
    beta1, beta2 : float, default 0.9, 0.999
        Decay rates of the moments, in [0, 1).
    eps : float, default 1e-6
        Stabiliser, in [0, inf).
    bias_correction : bool, default True
        False leaves the moments as they are, biased towards zero ("Adam, almost").
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020, algorithm 2.
    """

    kernel = "lamb"
    counts_steps = True
    defaults: ClassVar[dict[str, Any]] = {"decoupled": True}
    beta1 = Number("[0, 1)")
    beta2 = Number("[0, 1)")
    eps = Number("[0, inf)")
    bias_correction = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-6,
        bias_correction: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, bias_correction=bias_correction, **common)


# ---- Schedule-free ------------------------------------------------------------------------------------------


class _ScheduleFree(Optimizer, abstract=True):
    """What both schedule-free optimizers share: the average x of their iterates z, which y lies between."""

    counts_steps = True
    begins = "z being a copy of `param` at first, all else zeros"
    computed = ("average_weight",)
    scalars: ClassVar[dict[str, float]] = {"weight_sum": 0.0, "largest_lr": 0.0}
    average_weight = Number("[0, 1]")
    #: The hyperparameter that says how far y is towards x.
    _towards_x: ClassVar[str]
    of_class = ("weight_power", "lr_power")
    weight_power = Number("[0, inf)")
    lr_power = Number("[0, inf)")

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return param if key == "z" else 0.0

    def _compute(
        self, hyper: Mapping[str, float], scalars: Mapping[str, float], t: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        largest = max(scalars["largest_lr"], hyper["lr"])
        weight = t**self.weight_power * largest**self.lr_power
        total = scalars["weight_sum"] + weight
        return {"average_weight": weight / total if total else 0.0}, {"weight_sum": total, "largest_lr": largest}

    def averaged(self) -> dict[str, Array]:
        """The average x of all iterates, by the names of the parameters, as new arrays: ``x = z + (y − z) / beta``.

        Where beta is 0, y is z and x is not known: then it is y that is returned.
        """
        averages = {}
        for name, param in checks.named("param", self.params).items():
            averages[name] = param.copy()
            if self._cell_of[name] >= 0:
                beta = self._in_cell(self._cells[self._cell_of[name]], self._towards_x)
                z = self.state[name]["z"]
                if beta:
                    averages[name] = z + (param - z) / param.dtype.type(beta)
        return averages

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the parameters hold the averages: to evaluate or to save. Then they are what they were."""
        params = checks.named("param", self.params)
        kept = {name: param.copy() for name, param in params.items()}
        try:
            for name, average in self.averaged().items():
                params[name][...] = average
            yield
        finally:
            for name, value in kept.items():
                params[name][...] = value


class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-free SGD [1]_: gradient descent whose iterates z are averaged to x, by gradients at a point y between.

    ``y = (1 − beta)·z + beta·x``, ``z ← z − lr·g(y)``, ``x ← (1 − c)·x + c·z``, c being the weight of the new z.

    The parameters are y, where gradients are taken. What is to be evaluated and saved is x: see `averaged`
    and `applied`.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1.0
        Learning rate, in [0, inf).
    beta : float, default 0.9
        Where y is: 0 at z, 1 at x, in [0, 1].
    weight_power, lr_power : float, default 0.0, 2.0
        Of the class alone: the k-th iterate has a weight of ``k**weight_power · lr**lr_power``, lr being the largest so
        far, in the average.
    average_weight : float
        Of the functional form alone: the weight of the new z in x, in [0, 1]; 1 in the first step, 1/t for a plain
        mean.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] A. Defazio et al., "The road less scheduled", 2024, eq. 7–9 and algorithm 1.
    """

    kernel = "schedule_free_sgd"
    name = "schedule_free_sgd"
    beta = Number("[0, 1]")
    _towards_x = "beta"

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1.0,
        *,
        beta: Rate = 0.9,
        weight_power: float = 0.0,
        lr_power: float = 2.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, weight_power=weight_power, lr_power=lr_power, **common)


class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-free AdamW [1]_: `ScheduleFreeSGD` along ``g / (√v̂ + eps)``, v̂ being the second moment of `Adam`.

    Its decay is decoupled by default: ``weight_decay·y`` is added to the direction.

    The parameters are y, where gradients are taken. What is to be evaluated and saved is x: see `averaged`
    and `applied`.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate, in [0, inf).
    beta1, beta2 : float, default 0.9, 0.999
        Where y is (0 at z, 1 at x, in [0, 1]), and the decay rate of the second moment, in [0, 1).
    eps : float, default 1e-8
        Stabiliser, in [0, inf).
    weight_power, lr_power : float, default 0.0, 2.0
        Of the class alone: the k-th iterate has a weight of ``k**weight_power · lr**lr_power``, lr being the largest so
        far, in the average.
    average_weight : float
        Of the functional form alone: the weight of the new z in x, in [0, 1]; 1 in the first step, 1/t for a plain
        mean.
    **common
        What every optimizer takes: see `Optimizer`.

    References
    ----------
    .. [1] A. Defazio et al., "The road less scheduled", 2024, eq. 7–9 and algorithm 1.
    """

    kernel = "schedule_free_adamw"
    name = "schedule_free_adamw"
    defaults: ClassVar[dict[str, Any]] = {"decoupled": True}
    beta1 = Number("[0, 1]")
    beta2 = Number("[0, 1)")
    eps = Number("[0, inf)")
    _towards_x = "beta1"

    def __init__(
        self,
        params: Arrays,
        lr: Rate = 1e-3,
        *,
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        weight_power: float = 0.0,
        lr_power: float = 2.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_power=weight_power,
            lr_power=lr_power,
            **common,
        )


#: Every optimizer by the name of its functional form.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.name: cls for name, cls in list(globals().items()) if name in __all__ and cls is not Optimizer
}
