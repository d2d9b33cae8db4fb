"""What type checkers make of the declarations of hyperparameters, of parameters and of `fit`; `make check` runs mypy
and pyright on it.

An error that is not found is one, too: both warn of each `type: ignore` that they do not need.
"""

from collections import OrderedDict
from typing import Any, Literal, NamedTuple, assert_type

import numpy as np

import fastopt
from fastopt import functional, nn
from fastopt.checks import Array, Arrays
from fastopt.hyper import Number
from fastopt.optimizer import Group, Optimizer
from fastopt.schedules import Schedule, bind, cosine


class Slow(fastopt.Adam):
    lr = fastopt.Adam.lr.replace(default=1e-5)
    patience: Number = Number("[0, inf)", default=1.0, per_group=False)


def accepted(w: Array, schedule: Schedule) -> None:
    fastopt.Adam(w, 1e-3, beta1=schedule, weight_decay=0.1, eps_mode="hat", clip_norm=None)
    fastopt.Adam([w], lr=schedule, groups=[{"params": "*", "lr": 0.1}])
    fastopt.AdaBound({"w": w}, final_lr=schedule, bias_correction=False, skip_nonfinite=True)
    fastopt.SGD(w, 0.1, maximize=True)
    Slow(w, beta2=0.9, patience=3)
    adam = fastopt.Adam(w)
    assert_type(adam.lr, float)
    assert_type(adam.clip_norm, float | None)
    assert_type(adam.bias_correction, bool)
    assert_type(adam.groups, tuple[Group, ...])
    assert_type(fastopt.RMSProp(w).eps_mode, Literal["outside", "inside"])
    assert_type(fastopt.MuonMatrices(w).steps, int)
    adam.lr = schedule
    adam.max_norm = None
    optimizers: list[type[Optimizer]] = [fastopt.Adam, fastopt.SGD]
    optimizers[0](w, lr=0.1)


class Layer(NamedTuple):
    w: Array
    b: Array


def nested(w: Array, b: Array) -> None:
    pairs = [(w, b), (w, b)]
    by_name = {"l1": {"W": w, "b": b}, "l2": {"W": w, "b": b}}
    for optimizer in (fastopt.Adam(pairs), fastopt.Adam([Layer(w, b)]), fastopt.Adam(by_name), fastopt.Adam((w, [b]))):
        optimizer.step(pairs, strict=False)
    fastopt.Adam({0: w, 1: [b]}, groups=[{"params": "0.*", "lr": 0.1}])
    fastopt.Adam(OrderedDict(a=w)).add_params({"b": [b]}, lr=0.1)
    assert_type(fastopt.SGD(pairs, lr=0.1).updated(pairs, pairs), list[tuple[Array, Array]])
    assert_type(fastopt.LookAhead(fastopt.Adam(by_name)).updated(by_name, by_name), dict[str, dict[str, Array]])
    assert_type(fastopt.Muon(w).updated(w, w, grad_scale=0.5), Array)
    fastopt.flatten([(w, {"b": b})])
    fastopt.EMA(by_name).update()
    fastopt.gradients.clip_by_global_norm(pairs, 1.0)
    fastopt.gradients.Accumulator(pairs).add(pairs)
    fastopt.LBFGS(pairs).step(lambda: (0.0, pairs))


def functions(w: Array, g: Array, m: Array, v: Array) -> None:
    functional.adam(w, g, m, v, t=1, lr=0.1)
    assert_type(functional.adam(w, g, m, v, t=1, out=np.empty_like(w)), Array)


class Signum(fastopt.NumPyOptimizer):
    momentum: Number = Number("[0, 1]", default=0.9)
    states = ("velocity",)

    def update(self, param: Array, grad: Array, state: dict[str, Array], *, t: int, lr: float, momentum: float) -> None:
        state["velocity"] = momentum * state["velocity"] + grad
        param -= lr * np.sign(state["velocity"])


class Duck:
    """An optimizer of somebody else's."""

    def __init__(self, params: dict[str, Array]) -> None:
        self.params, self.t = params, 0

    def step(self, grads: dict[str, Array]) -> None:
        self.t += 1


class NoOptimizer:
    def step(self, grads: dict[str, Array]) -> None: ...


def fitted(model: nn.Sequential, x: Array, y: Array) -> None:
    model.fit(x, y, optimizer="adam")
    model.fit(x, y, optimizer=fastopt.Adam(model.params))
    model.fit(x, y, optimizer=fastopt.LookAhead(fastopt.Adam(model.params), k=3))
    model.fit(x, y, optimizer=fastopt.LookAhead(fastopt.LookAhead(fastopt.Muon(model.params))))
    model.fit(x, y, optimizer=fastopt.Ranger(model.params, lr=bind(cosine, peak=0.1, steps=9)))
    model.fit(x, y, optimizer=fastopt.Muon(model.params, momentum=bind(cosine, peak=0.1, steps=9)))
    model.fit(x, y, optimizer=fastopt.LBFGS(model.params))
    model.fit(x, y, optimizer=Signum(model.params, lr=0.1, momentum=0.5, clip_norm=1.0))
    model.fit(x, y, optimizer=Duck(model.params))
    like: list[fastopt.OptimizerLike] = [fastopt.Adam(x), fastopt.Ranger(x), fastopt.Muon(x), Duck(model.params)]
    model.fit(x, y, optimizer=like[0])
    model.fit(x, y, optimizer=NoOptimizer())  # type: ignore[arg-type]
    model.fit(x, y, optimizer=fastopt.Adam)


def scheduled(w: Array) -> None:
    adam = fastopt.Adam(w, lr=bind(cosine, peak=0.1, steps=9))
    adam.lr = bind(cosine, peak=0.1, steps=9)
    adam.clip_norm = bind(cosine, peak=0.1, steps=9)
    adam.lr = 0.5
    assert_type(adam.schedules["lr"], Schedule)
    look_ahead = fastopt.LookAhead(adam)
    look_ahead.lr = bind(cosine, peak=0.1, steps=9)
    assert_type(look_ahead.params, Arrays)
    assert_type(look_ahead.t, int)
    signum = Signum(w, momentum=bind(cosine, peak=0.1, steps=9))
    signum.momentum = bind(cosine, peak=0.1, steps=9)
    assert_type(signum.momentum, float)


def refused(w: Array, schedule: Schedule) -> None:
    fastopt.Adam(w, lr=1e-3, beta3=1)  # type: ignore[call-arg]
    fastopt.Adam(w, 1e-3, 0.9)  # type: ignore[call-arg]
    fastopt.Adam(w, lr="fast")  # type: ignore[arg-type]
    fastopt.Adam(w, bias_correction=schedule)  # type: ignore[arg-type]
    fastopt.RMSProp(w, eps_mode="hat")  # type: ignore[arg-type]
    fastopt.SGD(w)  # type: ignore[call-arg]
    fastopt.AdamW(w, decoupled=False)  # type: ignore[call-arg]
    fastopt.LookAheadNesterov(w, 0.1, nesterov=True)  # type: ignore[call-arg]
    fastopt.NAdam(w, mu_product=1.0)  # type: ignore[call-arg]
    fastopt.Adafactor(w, l1=0.1)  # type: ignore[call-arg]
    fastopt.Adam(w).lr = "fast"  # type: ignore[assignment]
    Slow(w, patience=np.ones(3))  # type: ignore[arg-type]
    adam: Any = fastopt.Adam([(w, 1.0)])  # type: ignore[list-item]
    fastopt.Adam({"l1": {"W": 1.0}})  # type: ignore[dict-item]
    Signum(w, rho=0.5)  # type: ignore[call-arg]
    Signum(w).momentum = True and "much"  # type: ignore[assignment]
    fastopt.SGD(w, lr=0.1).updated({"w": w}, adam, strict="no")  # type: ignore[arg-type]


def trained(model: nn.Sequential, x: Array, schedule: Schedule) -> None:
    model.fit(x, x, optimizer="sgd", lr=schedule, loss="mse", callbacks=nn.Lines(), validation_data=(x, x, x))
    model.fit(x, x, optimizer=fastopt.Adam, loss=nn.SquaredError, class_weight="balanced", callbacks=None)
    model.fit(x, x, optimizer=fastopt.LookAhead(fastopt.Adam(model.params)), callbacks=[nn.Lines()])
    nn.LearningRateScheduler(lambda epoch, lr: 0.5 * lr)
    nn.LearningRateScheduler(step=lambda step, steps: step / steps)
    model.fit(x, x, verbose=1)  # type: ignore[call-arg]
    model.compile(optimizer="adam")  # type: ignore[call-arg]
    nn.Conv2D(8, kernel_size=3)  # type: ignore[call-arg]
    nn.SigmoidCrossEntropy(from_logits=True)  # type: ignore[call-arg]
