"""Optimizers: one class each, with its formula, its hyperparameters and where they come from.

A class says which kernel it drives (a row of csrc/kernels.def), and declares each hyperparameter with its rule, its
default and its documentation; what every optimizer has beside these is in `fastopt.optimizer`. Everything else
(signatures, docstrings, the functional form, tests, benchmarks, the command line) is derived from that.

>>> import numpy as np, fastopt
>>> w = np.array([1.0, -2.0])
>>> optimizer = fastopt.Adam(w, lr=0.1)
>>> for _ in range(100):
...     optimizer.step(2 * w)          # the gradient of |w|^2
>>> bool(abs(w).max() < 0.1)
True
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from fastopt import _kernels, checks
from fastopt.applied import Applied
from fastopt.checks import Array, Arrays
from fastopt.hyper import Choice, Flag, Number
from fastopt.optimizer import Bucket, Call, Group, Optimizer, copying

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
EpsMode = Literal["outside", "inside"]
AdamEpsMode = Literal["outside", "inside", "hat"]


# ---- Gradient descent and momentum --------------------------------------------------------------------------


class _Descent(Optimizer, abstract=True):
    """Steps in proportion to the gradient: no learning rate suits all problems, so there is no default."""

    lr: Number = Number(Optimizer.lr.bounds, doc=Optimizer.lr.doc, kw_only=False)


class SGD(_Descent):
    """Stochastic gradient descent: ``p ← p − lr·g``.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.schedules import bind, step_decay
    >>> w = np.array([1.0, -2.0])
    >>> optimizer = fastopt.SGD(w, lr=bind(step_decay, peak=0.1, steps=2, gamma=0.5))
    >>> for _ in range(4):
    ...     optimizer.step(np.ones(2))
    >>> w, optimizer.t, optimizer.lr
    (array([ 0.7, -2.3]), 4, 0.05)
    """

    kernel = "sgd"
    default_rate = 0.05


class _Velocity(_Descent, abstract=True):
    kernel = "momentum"
    default_rate = 0.01
    momentum: Number = Number("[0, 1]", default=0.9, doc="The share of the old velocity that is kept.")


class Momentum(_Velocity):
    """Gradient descent with momentum [1]_, plain or Nesterov's [2]_.

    ``v ← momentum·v + (1 − dampening)·g``, then ``p ← p − lr·v``, or with `nesterov`
    ``p ← p − lr·(g + momentum·v)``; with `average`, g is ``(1 − momentum)`` times the gradient.

    References
    ----------
    .. [1] B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, eq. 9.
    .. [2] I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, eq. 3–4.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.zeros(1)
    >>> optimizer = fastopt.Momentum(w, lr=0.1, momentum=0.9, nesterov=True)
    >>> for _ in range(2):
    ...     optimizer.step(np.ones(1))
    ...     print(w.round(3), optimizer.state["param"]["velocity"])
    [-0.19] [1.]
    [-0.461] [1.9]
    """

    dampening: Number = Number(
        "[0, 1]",
        default=0.0,
        doc="The share of a gradient that does not enter. As in PyTorch, the first gradient enters undampened. (The "
        "functional form has no first step: pass ``dampening=0`` there once for the same numbers.)",
    )
    average: Flag = Flag(
        default=False,
        since="0.2",
        doc="The velocity is a moving average, ``v ← momentum·v + (1 − momentum)·g`` from the first step on (Coursera, "
        "autograd); `dampening` would leave the first gradient as it is.",
    )
    nesterov: Flag = Flag(
        default=False,
        doc="Nesterov's step, from the gradient at the parameters as they are held. See `LookAheadNesterov` for the "
        "other form.",
    )
    lr_in_velocity: Flag = Flag(
        default=False,
        doc="The other form: ``v ← momentum·v − lr·g``, then ``p ← p + v``, or with `nesterov` ``p ← p + momentum·v − "
        "lr·g``. It is that of Keras, cs231n and scikit-learn, and differs from PyTorch's where `lr` changes.",
    )
    at_look_ahead: Flag = Flag(default=False, init=False)


class LookAheadNesterov(_Velocity):
    """Nesterov's momentum as it was conceived [1]_: the gradient is taken where the momentum is about to lead.

    ``v ← momentum·v − lr·g(w + momentum·v)``, then ``w ← w + v``. Before each gradient, call `look_ahead`: it moves the
    parameters to ``w + momentum·v``, and `step` goes on from there.

    .. warning:: Which point the parameters are differs from form to form, though the gradients are taken at the same
       points. After `step` this class holds w, the iterate itself. ``Momentum(nesterov=True)``, PyTorch and Keras hold
       the next look-ahead point all the time, ``w + momentum·v``, and never w. Evaluate and save what you hold
       knowingly.

    References
    ----------
    .. [1] I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, eq. 3–4.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> optimizer = fastopt.LookAheadNesterov(w, lr=0.1)
    >>> for _ in range(60):
    ...     optimizer.look_ahead()
    ...     optimizer.step(2 * w)
    >>> bool(abs(w).max() < 0.1)
    True
    >>> optimizer.look_ahead()
    >>> optimizer.ahead
    True
    >>> optimizer.step(2 * w)
    >>> optimizer.ahead
    False
    """

    name = "look_ahead_nesterov"
    dampening: Number = Number("[0, 1]", default=0.0, init=False)
    average: Flag = Flag(default=False, init=False)
    nesterov: Flag = Flag(default=False, init=False)
    lr_in_velocity: Flag = Flag(default=True, init=False)
    at_look_ahead: Flag = Flag(default=True, init=False)
    _ahead = False

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
        slots = {name: slot for name, slot in self._slots.items() if not slot.frozen}
        ahead = {n: s.param + self._value("momentum", s.groups) * s.state["velocity"] for n, s in slots.items()}
        moving = copying(ahead, {name: slot.param for name, slot in slots.items()})
        _kernels.uninterrupted([*moving, (vars(self).update, ({"_ahead": True},))])

    def step(self, grads: Arrays, *, grad_scale: float = 1.0, strict: bool = True) -> None:
        """See `Optimizer.step`; the gradients must be those at the look-ahead point.

        Raises
        ------
        RuntimeError
            Where `look_ahead` has not been called since the last step.
        """
        super().step(grads, grad_scale=grad_scale, strict=strict)

    def _stepping(self, grads: Arrays, grad_scale: float) -> tuple[list[Call], bool]:
        if not self._ahead:
            raise RuntimeError("the gradient must be taken at the look-ahead point: call look_ahead() before it")
        if self._resting:  # they could not go back to where they came from
            raise ValueError(
                "grads must hold one array per parameter, since all are at the look-ahead point, but lacks "
                f"{', '.join(sorted(self._resting))}"
            )
        calls, taken = super()._stepping(grads, grad_scale)
        return [*calls, (vars(self).update, ({"_ahead": not taken},))], taken

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`; ``ahead`` says which point the parameters are."""
        return super().state_dict() | {"ahead": self._ahead}

    def _load(self, state_dict: Mapping[str, Any]) -> list[Call]:
        calls = super()._load(state_dict)
        self._ahead = checks.flag("ahead", state_dict["ahead"])
        return calls


# ---- Adaptive rates without momentum ------------------------------------------------------------------------


class RMSProp(Optimizer):
    """RMSProp [1]_: ``G ← decay·G + (1 − decay)·g²``, then ``p ← p − lr·g / (√G + eps)``.

    References
    ----------
    .. [1] T. Tieleman and G. Hinton, "Lecture 6.5: rmsprop", Coursera, 2012.
    """

    kernel = "rmsprop"
    decay: Number = Number("[0, 1]", default=0.99, doc="The share of the old average that is kept.")
    eps: Number = Number("[0, inf)", default=1e-8, doc="Stabiliser.")
    eps_mode: Choice[EpsMode] = Choice(
        "outside", "inside", default="outside", doc="``√G + eps`` (PyTorch, cs231n) or ``√(G + eps)`` (Keras)."
    )
    initial_accumulator_value: Number = Number(
        "[0, inf)",
        default=0.0,
        per_group=False,
        since="0.2",
        doc="Where G begins; autograd and TensorFlow 1 begin at 1. (In the functional form you make G yourself.)",
    )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return self.initial_accumulator_value if key == "square_avg" else 0.0


class RMSPropMomentum(RMSProp):
    """RMSProp [1]_ with momentum: ``v ← momentum·v + g / (√G + eps)``, then ``p ← p − lr·v``.

    G is that of `RMSProp`.

    References
    ----------
    .. [1] T. Tieleman and G. Hinton, "Lecture 6.5: rmsprop", Coursera, 2012.
    """

    kernel = "rmsprop_momentum"
    name = "rmsprop_momentum"
    default_rate: ClassVar[float | None] = 3e-4
    momentum: Number = _Velocity.momentum
    lr_in_velocity: Flag = Flag(
        default=False,
        doc="``v ← momentum·v + lr·g / …``, then ``p ← p − v`` (Keras, TensorFlow): another step where `lr` changes.",
    )


class CenteredRMSProp(RMSPropMomentum):
    """RMSProp by the variance of the gradient, with momentum [1]_.

    ``G ← decay·G + (1 − decay)·g²``, ``M ← decay·M + (1 − decay)·g``, ``v ← momentum·v + g / (√(G − M²) + eps)``,
    ``p ← p − lr·v``.

    References
    ----------
    .. [1] A. Graves, "Generating sequences with recurrent neural networks", 2013, eq. 38–45.
    """

    kernel = "centered_rmsprop"
    name = "centered_rmsprop"
    default_rate = None
    momentum = RMSPropMomentum.momentum.replace(default=0.0)


class Adagrad(Optimizer):
    """Adagrad [1]_: ``G ← G + g²``, then ``p ← p − lr·g / (√G + eps)``.

    References
    ----------
    .. [1] J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and stochastic
       optimization", 2011, fig. 1 (diagonal matrices).
    """

    kernel = "adagrad"
    lr = Optimizer.lr.replace(default=1e-2)
    eps: Number = Number("[0, inf)", default=1e-10, doc="Stabiliser.")
    eps_mode: Choice[EpsMode] = RMSProp.eps_mode
    root: Flag = Flag(
        default=True,
        since="0.2",
        doc="False divides by ``G + eps`` itself: rates that fall with the square of the gradients, as some lectures "
        "have it.",
    )
    initial_accumulator_value: Number = Number(
        "[0, inf)",
        default=0.0,
        per_group=False,
        doc="Where G begins; Keras begins at 0.1. (In the functional form you make G yourself.)",
    )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return self.initial_accumulator_value if key == "square_sum" else 0.0


class Adadelta(Optimizer):
    """Adadelta [1]_: each step is as long as past steps were, in proportion to past gradients.

    ``G ← decay·G + (1 − decay)·g²``, ``d = √(D + eps) / √(G + eps) · g``, ``D ← decay·D + (1 − decay)·d²``,
    ``p ← p − lr·d``.

    References
    ----------
    .. [1] M. Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1.
    """

    kernel = "adadelta"
    lr = Optimizer.lr.replace(default=1.0)
    decay: Number = Number("[0, 1]", default=0.9, doc="The share of the old averages that is kept.")
    eps: Number = Number("[0, inf)", default=1e-6, doc="Stabiliser.")


class Rprop(Optimizer):
    """Rprop [1]_ in the form iRprop− [2]_: each element has a step size, which grows while its gradient keeps its sign.

    Where the sign has changed, the step size shrinks, and no step is taken. It is for gradients of the whole data,
    which have no noise in their signs.

    References
    ----------
    .. [1] M. Riedmiller and H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
       algorithm", 1993.
    .. [2] C. Igel and M. Hüsken, "Improving the Rprop learning algorithm", 2000, section 2.2.
    """

    kernel = "rprop"
    full_batch = True
    begins = "`step_size` being the first length of steps, and `prev_grad` zeros at first"
    lr = Optimizer.lr.replace(
        default=1e-2,
        doc="Where step sizes begin. (In the functional form you fill `step_size` yourself.) Then it has no part.",
    )
    eta_minus: Number = Number("(0, 1)", default=0.5, doc="By what step sizes shrink.")
    eta_plus: Number = Number("(1, inf)", default=1.2, doc="By what step sizes grow.")
    min_step: Number = Number("[0, inf)", default=1e-6, doc="The least step size.")
    max_step: Number = Number("[0, inf)", default=50.0, doc="The largest step size.")

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return lr if key == "step_size" else 0.0


# ---- Adam and its kin ---------------------------------------------------------------------------------------


class _Moments(Optimizer, abstract=True):
    """Steps by moving averages of the gradient and of its square, or the like, corrected for their first steps."""

    counts_steps = True
    beta1: Number = Number("[0, 1)", default=0.9, doc="Decay rate of the first moment.")
    beta2: Number = Number("[0, 1)", default=0.999, doc="Decay rate of the second moment.")
    eps: Number = Number("[0, inf)", default=1e-8, doc="Stabiliser.")


class Adam(_Moments):
    """Adam with bias correction [1]_.

    ``m ← beta1·m + (1 − beta1)·g``, ``v ← beta2·v + (1 − beta2)·g²``,
    ``p ← p − lr·m̂ / (√v̂ + eps)`` with ``m̂ = m / (1 − beta1ᵗ)`` and ``v̂ = v / (1 − beta2ᵗ)``.

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"weight": np.array([[1.0, -2.0]]), "bias": np.array([0.5])}
    >>> optimizer = fastopt.Adam(params, lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.step({name: 2 * param for name, param in params.items()})  # the gradients of |p|²
    >>> max(abs(param).max() for param in params.values()) < 0.1
    np.True_
    >>> optimizer.lr = 0.01  # from now on
    >>> optimizer.t, list(optimizer.state), list(optimizer.state["bias"])
    (100, ['weight', 'bias'], ['m', 'v'])
    """

    kernel = "adam"
    eps_mode: Choice[AdamEpsMode] = Choice(
        "outside",
        "inside",
        "hat",
        default="outside",
        doc="``√v̂ + eps`` (the paper's algorithm, PyTorch), ``√(v̂ + eps)``, or the paper's ε-hat, ``√v + eps`` with "
        "the corrections in the step size alone (Keras, TensorFlow, scikit-learn).",
    )
    bias_correction: Flag = Flag(
        default=True, doc='False leaves the moments as they are, biased towards zero ("Adam, almost").'
    )


class AdamW(Adam):
    """Adam with decoupled weight decay [1]_: ``p ← p − lr·weight_decay·p`` beside the step of `Adam`.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"weight": np.ones((2, 3)), "bias": np.ones(3)}
    >>> no_decay = {"params": fastopt.vectors, "weight_decay": 0.0}
    >>> optimizer = fastopt.AdamW(params, lr=0.1, weight_decay=0.5, groups=[no_decay])
    >>> optimizer.step({name: np.zeros_like(param) for name, param in params.items()})
    >>> params["weight"][0, 0], params["bias"][0]  # the decay alone
    (np.float64(0.95), np.float64(1.0))
    """

    decoupled: Flag = Flag(default=True, init=False)
    weight_decay = Optimizer.weight_decay.replace(default=0.01, doc="Decoupled decay.")


class AMSGrad(Adam):
    """AMSGrad [1]_: `Adam` with the largest second moment so far under the root, so that rates never grow.

    ``w ← max(w, v)``, then ``p ← p − lr·m̂ / (√ŵ + eps)`` with ``ŵ = w / (1 − beta2ᵗ)``. It is PyTorch's
    ``Adam(amsgrad=True)``; the paper's algorithm is without bias correction.

    References
    ----------
    .. [1] S. Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond", 2018, algorithm 2.
    """

    kernel = "amsgrad"
    corrected_max: Flag = Flag(
        default=False, doc="Optax's form: ``w ← max(w, v̂)``, then ``p ← p − lr·m̂ / (√w + eps)``."
    )


class Adamax(_Moments):
    """Adamax [1]_: Adam by the largest gradient so far, which is forgotten little by little.

    ``m ← beta1·m + (1 − beta1)·g``, ``u ← max(beta2·u, |g|)``, ``p ← p − lr / (1 − beta1ᵗ) · m / (u + eps)``. (The
    paper has no eps.)

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 2.
    """

    kernel = "adamax"
    lr = Optimizer.lr.replace(default=2e-3)
    eps_mode: Choice[EpsMode] = Choice(
        "outside",
        "inside",
        default="outside",
        doc="``u + eps`` (Keras), or within the maximum (PyTorch): ``u ← max(beta2·u, |g| + eps)``.",
    )


class NAdam(_Moments):
    """NAdam [1]_: Adam with Nesterov's momentum, which is warmed up.

    ``μₜ = beta1·(1 − ½·0.96^(t·momentum_decay))``, ``p ← p − lr·m̄ / (√v̂ + eps)`` with
    ``m̄ = μₜ₊₁·m / (1 − μ₁⋯μₜ₊₁) + (1 − μₜ)·g / (1 − μ₁⋯μₜ)``; m and v̂ are those of `Adam`.

    References
    ----------
    .. [1] T. Dozat, "Incorporating Nesterov momentum into Adam", 2016, algorithm 2 and section 3.
    """

    kernel = "nadam"
    scalars: ClassVar[dict[str, float]] = {"mu_product": 1.0}
    lr = Optimizer.lr.replace(default=2e-3)
    eps_mode: Choice[AdamEpsMode] = Adam.eps_mode.replace(doc="As in `Adam`; PyTorch and Keras: outside.")
    momentum_decay: Number = Number(
        "[0, inf)",
        default=4e-3,
        doc="How fast μ approaches beta1. A large one, such as 1e6, leaves it at beta1 (Optax).",
    )
    mu_product: Number = Number(
        "[0, 1]", init=False, doc="Of the functional form alone: ``μ₁⋯μₜ₋₁``, which is 1 in the first step."
    )


class RAdam(_Moments):
    """RAdam [1]_: Adam whose step is rectified for the variance that its rates have in early steps.

    With ``ρ∞ = 2 / (1 − beta2) − 1`` and ``ρₜ = ρ∞ − 2t·beta2ᵗ / (1 − beta2ᵗ)``: where ``ρₜ > threshold``,
    ``p ← p − lr·rₜ·m̂ / (√v̂ + eps)``, ``rₜ² = (ρₜ − 4)(ρₜ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρₜ)``; else ``p ← p − lr·m̂``.

    References
    ----------
    .. [1] L. Liu et al., "On the variance of the adaptive learning rate and beyond", 2020, algorithm 2.
    """

    kernel = "radam"
    beta2: Number = Number(
        "(0.6, 1)", default=0.999, doc="Decay rate of the second moment: below 0.6, nothing is ever rectified."
    )
    eps_mode: Choice[AdamEpsMode] = Adam.eps_mode.replace(doc="As in `Adam`; PyTorch's is \"hat\", Optax's outside.")
    threshold: Number = Number("[4, inf)", default=4.0, doc="The paper's is 4; 5 in PyTorch and Optax.")


class AdaBound(Adam):
    """AdaBound [1]_: Adam that turns into SGD, since its rates are confined to bounds that close in on `final_lr`.

    ``p ← p − clip(lr·√(1 − beta2ᵗ) / (1 − beta1ᵗ) / (√v + eps'), low, high)·m`` with
    ``low = final_lr·(1 − 1 / (gamma·t + 1))`` and ``high = final_lr·(1 + 1 / (gamma·t))``; m and v are those of `Adam`.
    (The paper divides by √t on top; a schedule does that. The authors' code has ``eps_mode="hat"``.)

    References
    ----------
    .. [1] L. Luo et al., "Adaptive gradient methods with dynamic bound of learning rate", 2019, algorithm 2.
    """

    kernel = "adabound"
    final_lr: Number = Number(
        "[0, inf)",
        default=0.1,
        doc="The rate of SGD at which it ends. The authors' code scales it with `lr` where that follows a schedule; "
        "give it the same schedule for that.",
    )
    gamma: Number = Number("(0, inf)", default=1e-3, doc="How fast the bounds close in.")


class AMSBound(AdaBound):
    """AMSBound [1]_: `AdaBound` with the largest second moment so far, ``w ← max(w, v)``, under the root.

    References
    ----------
    .. [1] L. Luo et al., "Adaptive gradient methods with dynamic bound of learning rate", 2019, section 4.
    """

    kernel = "amsbound"


class Yogi(Adam):
    """Yogi [1]_: Adam whose second moment moves by at most g² either way: ``v ← v − (1 − beta2)·sign(v − g²)·g²``.

    References
    ----------
    .. [1] M. Zaheer et al., "Adaptive methods for nonconvex optimization", 2018, algorithm 2.
    """

    kernel = "yogi"
    default_rate = 3e-3
    lr = Optimizer.lr.replace(default=1e-2)
    eps = Adam.eps.replace(default=1e-3)
    initial_accumulator_value: Number = Number(
        "[0, inf)", default=1e-6, per_group=False, doc="Where v begins. (In the functional form you make v yourself.)"
    )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return self.initial_accumulator_value if key == "v" else 0.0


class AdaBelief(_Moments):
    """AdaBelief [1]_: Adam by how far gradients are from their mean: ``s ← beta2·s + (1 − beta2)·(g − m)² + eps_root``.

    ``p ← p − lr·m̂ / (√ŝ + eps)``, with m and the corrections of `Adam`.

    References
    ----------
    .. [1] J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", 2020,
       algorithm 2.
    """

    kernel = "adabelief"
    eps = _Moments.eps.replace(default=1e-16)
    eps_root: Number = Number("[0, inf)", default=1e-16, doc="Stabiliser, which is added to s in each step.")


class Lion(Optimizer):
    """Lion [1]_: ``p ← p − lr·sign(beta1·m + (1 − beta1)·g)``, then ``m ← beta2·m + (1 − beta2)·g``.

    References
    ----------
    .. [1] X. Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.
    """

    kernel = "lion"
    default_rate = 3e-4
    lr = Optimizer.lr.replace(default=1e-4)
    decoupled = Optimizer.decoupled.replace(default=True)
    beta1: Number = Number("[0, 1]", default=0.9, doc="Decay rate of the direction.")
    beta2: Number = Number("[0, 1]", default=0.99, doc="Decay rate of the moment that is kept.")


class LAMB(_Moments):
    """LAMB [1]_: Adam's direction, for each array in proportion to the norm of the parameter.

    ``u = m̂ / (√v̂ + eps) + weight_decay·p``, then ``p ← p − lr·‖p‖ / ‖u‖·u``, where a norm of 0 leaves ``p ← p −
    lr·u``. The norms' bits depend neither on threads nor on the instruction set.

    Keras decays outside of the ratio: see `decay_outside`.

    References
    ----------
    .. [1] Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020, algorithm 2.
    """

    kernel = "lamb"
    default_rate = 3e-3
    decoupled = Optimizer.decoupled.replace(
        default=True, doc="Decoupled decay: it is a part of u, unless `decay_outside`. False adds it to the gradient."
    )
    eps = _Moments.eps.replace(default=1e-6)
    bias_correction: Flag = Adam.bias_correction
    decay_outside: Flag = Flag(
        default=False,
        since="0.2",
        doc="Keras's form of decoupled decay: ``p ← p − lr·weight_decay·p`` before the step, and u without it.",
    )

    def _values(self, bucket: Bucket) -> tuple[float, ...]:
        return self._agreeing(super()._values(bucket))

    def _setting(self, name: str, value: Any, group: Group | None = None) -> list[Call]:
        calls = super()._setting(name, value, group)
        for bucket in self._buckets:
            now = dict(zip(list(self._place)[2:], super()._values(bucket), strict=True))
            if name in ("decoupled", "decay_outside") and (group is None or group in bucket.groups):
                self._agreeing(tuple((now | {name: float(value)}).values()))
        return calls

    @classmethod
    def _agreeing(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        """All hyperparameters, where those of the decay agree."""
        now = dict(zip(list(cls._place)[2:], values, strict=True))
        if now["decay_outside"] and not now["decoupled"]:
            raise ValueError("decay_outside must be False where decoupled is False, got True: coupled decay is in u")
        return values


# ---- Schedule-free ------------------------------------------------------------------------------------------


class _ScheduleFree(Applied, Optimizer, abstract=True):
    """What both schedule-free optimizers share: the average x of their iterates z, which y lies between."""

    counts_steps = True
    begins = "z being a copy of `param` at first, all else zeros"
    scalars: ClassVar[dict[str, float]] = {"weight_sum": 0.0, "largest_lr": 0.0}
    #: The hyperparameter that says how far y is towards x.
    _towards_x: ClassVar[str]
    weight_power: Number = Number(
        "[0, inf)",
        default=0.0,
        per_group=False,
        doc="Of the class alone: the k-th iterate has a weight of ``k**weight_power · lr**lr_power``, lr being the "
        "largest so far, in the average.",
    )
    lr_power: Number = Number("[0, inf)", default=2.0, per_group=False, doc="Of the class alone: see `weight_power`.")
    average_weight: Number = Number(
        "[0, 1]",
        init=False,
        doc="Of the functional form alone: the weight of the new z in x; 1 in the first step, 1/t for a plain mean.",
    )

    def _initial(self, key: str, param: Array, lr: float) -> float | Array:
        return param if key == "z" else 0.0

    def averaged(self) -> dict[str, Array]:
        """The average x of all iterates, by the names of the parameters, as new arrays: ``x = z + (y − z) / beta``.

        Where beta is 0, y is z and x is not known: then it is y that is returned.
        """
        averages = {}
        for name, slot in self._slots.items():
            averages[name] = slot.param.copy()
            beta = self._value(self._towards_x, slot.groups)
            if beta and name not in self._frozen:
                z = slot.state["z"]
                averages[name] = z + (slot.param - z) / slot.param.dtype.type(beta)
        return averages

    def _live(self) -> dict[str, Array]:
        return {name: slot.param for name, slot in self._slots.items()}

    def _check_ready(self) -> None:
        self._refuse_if_applied()

    def _routing(self, settings: Mapping[str, Any], scheduled: Collection[Any]) -> list[Call]:
        return self._routing_of(self._trained, settings, scheduled)

    def _routing_of(
        self, trained: dict[str, Array] | None, settings: Mapping[str, Any], scheduled: Collection[Any]
    ) -> list[Call]:
        """Where the parameters hold averages, and the values that are trained are these, steps are refused."""
        return super()._routing(settings, scheduled) if trained is None else [(vars(self).pop, ("step", None))]

    def _exchanging(self, values: Mapping[str, Array], trained: dict[str, Array] | None) -> list[Call]:
        return [*super()._exchanging(values, trained), *self._routing_of(trained, self._settings, self._scheduled)]

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`; while the parameters hold averages, ``trained`` has the values to be trained."""
        return super().state_dict() | self._applied_state()

    def _load(self, state_dict: Mapping[str, Any]) -> list[Call]:
        calls = super()._load(state_dict)
        self._trained = self._checked_state(state_dict)
        self._route()
        return calls


class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-free SGD [1]_: gradient descent whose iterates z are averaged to x, by gradients at a point y between.

    ``y = (1 − beta)·z + beta·x``, ``z ← z − lr·g(y)``, ``x ← (1 − c)·x + c·z``, c being the weight of the new z.

    The parameters are y, where gradients are taken. What is to be evaluated and saved is x: see `averaged`
    and `applied`.

    References
    ----------
    .. [1] A. Defazio et al., "The road less scheduled", 2024, eq. 7–9 and algorithm 1.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> optimizer = fastopt.ScheduleFreeSGD(w, lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.step(2 * w)
    >>> with optimizer.applied():  # evaluate and save here
    ...     bool(abs(w).max() < 0.1)
    True
    """

    kernel = "schedule_free_sgd"
    name = "schedule_free_sgd"
    default_rate = 0.3
    lr = Optimizer.lr.replace(default=1.0)
    decoupled: Flag = Flag(default=False, init=False)  # in the direction, decay would do the very same
    weight_decay = Optimizer.weight_decay.replace(doc="Decay: ``weight_decay·y`` is added to the gradient.")
    beta: Number = Number("[0, 1]", default=0.9, doc="Where y is: 0 at z, 1 at x.")
    _towards_x = "beta"


class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-free AdamW [1]_: `ScheduleFreeSGD` along ``g / (√v̂ + eps)``, v̂ being the second moment of `Adam`.

    The parameters are y, where gradients are taken. What is to be evaluated and saved is x: see `averaged`
    and `applied`.

    References
    ----------
    .. [1] A. Defazio et al., "The road less scheduled", 2024, eq. 7–9 and algorithm 1.
    """

    kernel = "schedule_free_adamw"
    name = "schedule_free_adamw"
    decoupled = Optimizer.decoupled.replace(
        default=True, doc="Decoupled decay: ``weight_decay·y`` is added to the direction."
    )
    beta1: Number = ScheduleFreeSGD.beta.replace()
    beta2: Number = Adam.beta2
    eps: Number = Adam.eps
    _towards_x = "beta1"


#: Every optimizer by the name of its functional form.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.name: cls for name, cls in list(globals().items()) if name in __all__ and cls is not Optimizer
}


def _example(cls: type[Optimizer]) -> str:
    """The section of examples of a docstring that has none."""
    states = sorted(cls.state_names())
    shown, held = (', sorted(optimizer.state["param"])', f"(True, {states})") if states else ("", "True")
    return f"""
Examples
--------
>>> import numpy as np, fastopt
>>> w = np.array([1.0, -2.0])
>>> optimizer = fastopt.{cls.__name__}(w, lr=0.1)
>>> for _ in range(100):
...     optimizer.step(2 * w)  # the gradient of the loss |w|², which is 5 at first
>>> bool(w @ w < 5){shown}
{held}
"""


for _cls in OPTIMIZERS.values():
    if _cls.__doc__ and ">>>" not in _cls.__doc__:
        _cls.__doc__ += _example(_cls)
