"""scikit-learn's own MLPs, with its optimizers' updates by fastopt's kernels: same numbers, in one pass."""

from __future__ import annotations

import contextlib
import copyreg
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sklearn
from sklearn.neural_network import _multilayer_perceptron as module
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array

__all__ = ["patch", "patched", "unpatch"]

#: Versions of scikit-learn whose updates these are.
KNOWN = ("1.9",)


def _fits(*lists: Sequence[Any]) -> bool:
    """Whether kernels take these arrays as they are."""
    arrays = [array for each in lists for array in each]
    dtype = getattr(arrays[0], "dtype", None)
    return dtype in (np.float32, np.float64) and all(
        isinstance(a, np.ndarray) and a.dtype == dtype and a.flags.c_contiguous for a in arrays
    )


class _Fused:
    """The update in place. Pickles are those of scikit-learn's class."""

    def __reduce__(self) -> Any:
        return copyreg._reconstructor, (type(self).__mro__[2], object, None), vars(self)  # type: ignore[attr-defined]


class FusedAdam(_Fused, AdamOptimizer):
    """scikit-learn's Adam."""

    def update_params(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        if not _fits(params, grads, self.ms, self.vs):
            super().update_params(params, grads)
            return
        self.t += 1
        options = {"beta1": self.beta_1, "beta2": self.beta_2, "eps": self.epsilon, "eps_mode": "hat"}
        for param, grad, m, v in zip(params, grads, self.ms, self.vs, strict=True):
            F.adam(param, grad, m, v, t=self.t, lr=self.learning_rate_init, **options)
        correction = np.sqrt(1 - self.beta_2**self.t) / (1 - self.beta_1**self.t)
        self.learning_rate = self.learning_rate_init * correction


class FusedSGD(_Fused, SGDOptimizer):
    """scikit-learn's SGD with momentum."""

    def update_params(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        if not _fits(params, grads, self.velocities):
            super().update_params(params, grads)
            return
        options = {"momentum": self.momentum, "nesterov": self.nesterov, "lr_in_velocity": True}
        for param, grad, velocity in zip(params, grads, self.velocities, strict=True):
            F.momentum(param, grad, velocity, lr=self.learning_rate, **options)


def patch() -> None:
    """Speed up scikit-learn's own `MLPClassifier` and `MLPRegressor` from now on, in this process.

    The updates of adam and sgd become one pass each; their numbers are the same up to rounding. Estimators that are
    fitted meanwhile are pickled as they are without.

    Raises
    ------
    ImportError
        Where the version of scikit-learn is another than those that this was made for.

    Examples
    --------
    >>> from fastopt import sklearn
    >>> sklearn.patch()
    >>> sklearn.unpatch()
    """
    if ".".join(sklearn.__version__.split(".")[:2]) not in KNOWN:
        raise ImportError(f"patch knows scikit-learn {', '.join(KNOWN)}, got {sklearn.__version__}")
    module.AdamOptimizer, module.SGDOptimizer = FusedAdam, FusedSGD


def unpatch() -> None:
    """Let scikit-learn's estimators be as they were.

    Examples
    --------
    >>> from fastopt import sklearn
    >>> sklearn.unpatch()
    """
    module.AdamOptimizer, module.SGDOptimizer = AdamOptimizer, SGDOptimizer


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """A block in which scikit-learn's own MLPs are sped up: see `patch`.

    Raises
    ------
    ImportError
        As of `patch`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from fastopt.sklearn import patched
    >>> with patched():
    ...     clf = MLPClassifier(random_state=0, max_iter=500).fit(*load_iris(return_X_y=True))
    >>> type(clf).__module__
    'sklearn.neural_network._multilayer_perceptron'
    """
    before = module.AdamOptimizer, module.SGDOptimizer
    patch()
    try:
        yield
    finally:
        module.AdamOptimizer, module.SGDOptimizer = before
