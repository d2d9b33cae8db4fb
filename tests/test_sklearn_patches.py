"""`fastopt.sklearn.patch`: scikit-learn's own MLPs, whose numbers stay the same."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier, _multilayer_perceptron, _stochastic_optimizers

from fastopt.sklearn import patch, patched, patches, unpatch

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_digits(return_X_y=True)
X, Y = X[:400] / 16, Y[:400]


def is_patched():
    return _multilayer_perceptron.AdamOptimizer is not _stochastic_optimizers.AdamOptimizer


def distance(one, other):
    pairs = zip(one.coefs_ + one.intercepts_, other.coefs_ + other.intercepts_, strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in pairs)


@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "sgd"}, {"solver": "sgd", "nesterovs_momentum": False}, {"early_stopping": True}],
    ids=str,
)
def test_same_numbers(options, monkeypatch):
    calls = []
    for name in ("adam", "momentum"):
        kernel = getattr(patches.F, name)
        counted = lambda *a, kernel=kernel, **k: (calls.append(1), kernel(*a, **k))  # noqa: E731
        monkeypatch.setattr(patches.F, name, counted)

    def fitted():
        return MLPClassifier(random_state=0, max_iter=5, **options).fit(X, Y)

    plain = fitted()
    assert not calls
    with patched():
        fast = fitted()
    assert len(calls) >= 5 * 2 * 4
    assert distance(plain, fast) < 1e-12
    assert plain.loss_curve_ == pytest.approx(fast.loss_curve_, rel=1e-12)
    assert plain._optimizer.learning_rate == pytest.approx(fast._optimizer.learning_rate, rel=1e-15)
    with patched():
        fast.partial_fit(X, Y) if "early_stopping" not in options else None
    if "early_stopping" not in options:
        assert distance(plain.partial_fit(X, Y), fast) < 1e-12


def test_what_kernels_do_not_take_goes_as_before():
    rng = np.random.default_rng(0)
    start, grad = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    for kind, params in (("Adam", [start.copy().T]), ("SGD", [start.copy().T])):
        theirs = getattr(_stochastic_optimizers, f"{kind}Optimizer")(params)
        ours = getattr(patches, f"Fused{kind}")([params[0].copy()])
        mine = [np.asfortranarray(params[0])]
        theirs.update_params(params, [grad.T])
        ours.update_params(mine, [grad.T])
        np.testing.assert_array_equal(mine[0], params[0])


def test_it_is_undone():
    assert not is_patched()
    patch()
    assert is_patched()
    with patched():
        assert is_patched()
    assert is_patched()
    unpatch()
    assert not is_patched()
    with pytest.raises(KeyError), patched():
        raise KeyError
    assert not is_patched()


def test_pickles_need_no_fastopt():
    with patched():
        clf = MLPClassifier(random_state=0, max_iter=2).fit(X, Y)
    text = pickle.dumps(clf)
    assert b"fastopt" not in text
    twin = pickle.loads(text)
    assert type(twin._optimizer) is _stochastic_optimizers.AdamOptimizer
    assert vars(twin._optimizer).keys() == vars(clf._optimizer).keys()
    assert "fastopt" in sys.modules


def test_other_versions_are_refused(monkeypatch):
    monkeypatch.setattr(sklearn, "__version__", "1.10.0")
    with pytest.raises(ImportError, match=r"patch knows scikit-learn 1.9, got 1.10.0"):
        patch()
    assert not is_patched()
