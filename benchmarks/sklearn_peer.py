"""scikit-learn: the optimizers beneath its MLPClassifier, which take lists of NumPy arrays.

They are of another dialect (see docs/dialects.md). The learning rate is within the velocity, which makes the same
steps while it stays the same. Adam has "ε-hat": ε stands where the textbook has ε·√(1 − β₂ᵗ), and is here what that is
in the first steps, over which the contenders must agree.
"""

import functools

import sklearn
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

VERSION = sklearn.__version__

LR = 1e-3
STEPS = {
    "momentum": functools.partial(SGDOptimizer, learning_rate_init=LR, momentum=0.9, nesterov=False),
    "nesterov": functools.partial(SGDOptimizer, learning_rate_init=LR, momentum=0.9, nesterov=True),
    "adam": functools.partial(AdamOptimizer, learning_rate_init=LR, epsilon=5e-10),
}


def contenders(contest):
    """What scikit-learn enters into a contest: a function, and where it leaves its result."""
    if contest.name not in STEPS:
        return {}
    params = [param.copy() for param in contest.params]
    update = STEPS[contest.name](params).update_params
    return {"scikit-learn": (functools.partial(update, params, contest.grads), params)}
