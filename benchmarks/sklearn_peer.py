"""scikit-learn: the optimizers beneath its MLPClassifier, which take lists of NumPy arrays.

They are of another dialect: the learning rate is within the velocity, which for one that stays the same makes the
same steps, and Adam has "ε-hat" (see docs/dialects.md), which differs in digits that single precision does not have.
"""

import functools

import sklearn
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

VERSION = sklearn.__version__

LR = 1e-3
STEPS = {
    "momentum": functools.partial(SGDOptimizer, learning_rate_init=LR, momentum=0.9, nesterov=False),
    "nesterov": functools.partial(SGDOptimizer, learning_rate_init=LR, momentum=0.9, nesterov=True),
    "adam": functools.partial(AdamOptimizer, learning_rate_init=LR),
}


def contenders(contest):
    """What scikit-learn enters into a contest: a function, and where it leaves its result."""
    if contest.name not in STEPS:
        return {}
    params = [param.copy() for param in contest.params]
    update = STEPS[contest.name](params).update_params
    return {"scikit-learn": (functools.partial(update, params, contest.grads), params)}
