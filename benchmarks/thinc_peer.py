"""thinc: what its NumPy backend has of the same work."""

import itertools
import math

import numpy as np
import thinc
from thinc.api import get_ops

from fastopt.bench import together

VERSION = thinc.about.__version__
ops = get_ops("cpu")


def contenders(contest):
    """What thinc enters into a contest: a function, and where it leaves its result."""
    if contest.name == "adam":
        entered = [adam(param, grad) for param, grad in zip(contest.params, contest.grads, strict=True)]
        return {"thinc": (together([call for call, _ in entered]), [param for _, param in entered])}
    make = {"relu_forward": relu_forward, "relu_backward": relu_backward, "dropout": dropout}
    return {"thinc": make[contest.name](**contest.arrays)} if contest.name in make else {}


def adam(param, grad):
    """Its step leaves zeros in the gradient, which is therefore filled anew: a copy that it must be granted."""
    param, own, number = param.copy(), np.empty_like(grad), itertools.count(1)
    m, v = np.zeros_like(param), np.zeros_like(param)
    flat = [array.ravel() for array in (param, own, m, v)]

    def step():
        t = next(number)
        root = math.sqrt(1 - 0.999**t)
        np.copyto(own, grad)
        ops.adam(*flat, 0.9, 0.999, 1e-8 * root, 1e-3 * root / (1 - 0.9**t))

    return step, param


def relu_forward(x):
    return lambda: ops.relu(x), None


def relu_backward(dy, y):
    return lambda: ops.backprop_relu(dy, y), None


def dropout(x):
    return lambda: x * ops.get_dropout_mask(x.shape, 0.5), None
