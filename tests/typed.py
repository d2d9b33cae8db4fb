"""What a type checker makes of the declarations of hyperparameters; `make check` runs mypy on it.

An error that is not found is one, too: mypy warns of each `type: ignore` that it does not need.
"""

from typing import Literal, assert_type

import numpy as np

import fastopt
from fastopt import nn
from fastopt.checks import Array
from fastopt.hyper import Number
from fastopt.optimizer import Group, Optimizer
from fastopt.schedules import Schedule


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
