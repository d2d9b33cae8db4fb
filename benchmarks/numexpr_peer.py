"""numexpr: each formula as few compiled expressions, one for each array that is written.

The expressions are compiled beforehand and called as the objects that they are, which spares `evaluate` its look-up.
All constants are float32 operands, since those within an expression make it compute in float64.
"""

import functools
import itertools
import math

import numexpr
import numpy as np
from settings import THREADS

from fastopt.bench import together

VERSION = numexpr.__version__
numexpr.set_num_threads(THREADS)
f32 = np.float32
LR, RHO = f32(1e-3), f32(0.9)


@functools.cache
def compiled(expression, names):
    return numexpr.NumExpr(expression, [(name, float) for name in names.split()])  # its word for float32


def into(out, expression, **operands):
    """A call that writes the value of the expression to an array."""
    call = compiled(expression, " ".join(operands))
    values = tuple(operands.values())
    return lambda: call(*values, out=out, ex_uses_vml=False)


def contenders(contest):
    """What numexpr enters into a contest: a function, and where it leaves its result."""
    if contest.name in STEPS:
        make, states = STEPS[contest.name]
        held = [(param.copy(), grad, *(np.zeros_like(param) for _ in range(states)))
                for param, grad in zip(contest.params, contest.grads, strict=True)]  # fmt: skip
        return {"numexpr": (together([make(*arrays) for arrays in held]), [arrays[0] for arrays in held])}
    if contest.name in LAYERS:
        arrays = contest.arrays
        out = np.empty_like(next(iter(arrays.values())))
        return {"numexpr": (LAYERS[contest.name](out, **arrays), out)}
    return {}


# ---- Optimizer steps ----------------------------------------------------------------------------------------


def sgd(p, g):
    return into(p, "p - lr * g", p=p, g=g, lr=LR)


def momentum(p, g, v):
    return together([into(v, "rho * v + g", v=v, g=g, rho=RHO), into(p, "p - lr * v", p=p, v=v, lr=LR)])


def nesterov(p, g, v):
    return together([
        into(v, "rho * v + g", v=v, g=g, rho=RHO), into(p, "p - lr * (g + rho * v)", p=p, g=g, v=v, lr=LR, rho=RHO),
    ])  # fmt: skip


def rmsprop(p, g, s):
    return together([
        into(s, "old * s + new * g * g", s=s, g=g, old=f32(0.99), new=f32(0.01)),
        into(p, "p - lr * g / (sqrt(s) + eps)", p=p, g=g, s=s, lr=LR, eps=f32(1e-8)),
    ])  # fmt: skip


def adagrad(p, g, s):
    return together([
        into(s, "s + g * g", s=s, g=g),
        into(p, "p - lr * g / (sqrt(s) + eps)", p=p, g=g, s=s, lr=LR, eps=f32(1e-10)),
    ])  # fmt: skip


def adam(p, g, m, v, keep=1.0):
    first = into(m, "old * m + new * g", m=m, g=g, old=f32(0.9), new=f32(0.1))
    second = into(v, "old * v + new * g * g", v=v, g=g, old=f32(0.999), new=f32(0.001))
    update = compiled("keep * p - size * m / (sqrt(v) + eps)", "keep p size m v eps")
    keep, number = f32(keep), itertools.count(1)

    def step():
        t = next(number)
        root = math.sqrt(1 - 0.999**t)
        first()
        second()
        update(keep, p, f32(1e-3 * root / (1 - 0.9**t)), m, v, f32(1e-8 * root), out=p, ex_uses_vml=False)

    return step


#: What makes the step, and its number of state arrays.
STEPS = {
    "sgd": (sgd, 0), "momentum": (momentum, 1), "nesterov": (nesterov, 1), "rmsprop": (rmsprop, 1),
    "adagrad": (adagrad, 1), "adam": (adam, 2), "adamw": (functools.partial(adam, keep=1 - 1e-3 * 0.01), 2),
}  # fmt: skip


# ---- Layers -------------------------------------------------------------------------------------------------


def relu_forward(out, x):
    return into(out, "where(x > zero, x, zero)", x=x, zero=f32(0))


def relu_backward(out, dy, y):
    return into(out, "where(y > zero, dy, zero)", dy=dy, y=y, zero=f32(0))


def bias_relu_forward(out, x, bias):
    return into(out, "where(x + bias > zero, x + bias, zero)", x=x, bias=bias, zero=f32(0))


def dropout(out, x):
    generator, draws = np.random.Generator(np.random.SFC64(0)), np.empty_like(x)
    keep = into(out, "where(draws >= half, two * x, zero)", draws=draws, x=x, half=f32(0.5), two=f32(2), zero=f32(0))

    def call():
        generator.random(out=draws, dtype=f32)
        keep()

    return call


LAYERS = {
    "relu_forward": relu_forward, "relu_backward": relu_backward, "bias_relu_forward": bias_relu_forward,
    "dropout": dropout,
}  # fmt: skip
