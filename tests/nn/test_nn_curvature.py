"""The Hessian by its products, against the exact one."""

import math

import numpy as np
import pytest

from fastopt import nn
from fastopt.nn import curvature


def flat(named):
    return np.concatenate([array.ravel() for array in named.values()])


def softmax_regression(rng):
    """A model, samples, and the exact Hessian: the mean over samples of x xᵀ ⊗ (diag(p) − p pᵀ)."""
    x, y = rng.normal(size=(40, 3)), rng.integers(4, size=40)
    model = nn.Sequential([nn.Dense(4)], (3,), dtype=np.float64)
    logits = model.predict(x)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    inputs = np.concatenate([x, np.ones((40, 1))], axis=1)  # the bias is the weight of a 1
    inner = np.einsum("na,ab->nab", p, np.eye(4)) - np.einsum("na,nb->nab", p, p)
    return model, x, y, np.einsum("ni,nj,nab->iajb", inputs, inputs, inner).reshape(16, 16) / 40


def mlp_by_autograd(rng):
    """A model with a hidden layer and batch norm, samples, and the Hessian by automatic differentiation."""
    autograd = pytest.importorskip("autograd")
    np_ = autograd.numpy
    x, y = rng.normal(size=(30, 3)), rng.integers(3, size=30)
    model = nn.Sequential(
        [nn.Dense(5), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.5), nn.Dense(3)], (3,), dtype=np.float64
    )
    shapes = {name: param.shape for name, param in model.params.items()}

    def loss(vector):
        parts, at = {}, 0
        for name, shape in shapes.items():
            parts[name] = vector[at : at + math.prod(shape)].reshape(shape)
            at += math.prod(shape)
        h = np_.dot(x, parts["0.weight"]) + parts["0.bias"]
        centred = h - np_.mean(h, axis=0)
        h = centred / np_.sqrt(np_.mean(centred**2, axis=0) + 1e-5) * parts["1.scale"] + parts["1.shift"]
        logits = np_.dot(np_.maximum(h, 0), parts["4.weight"]) + parts["4.bias"]
        log_sum = np_.log(np_.sum(np_.exp(logits), axis=1))
        return np_.mean(log_sum - logits[np.arange(30), y])

    return model, x, y, autograd.hessian(loss)(flat(model.params))


@pytest.fixture(params=[softmax_regression, mlp_by_autograd])
def problem(request, rng):
    return request.param(rng)


def test_products(problem, rng):
    model, x, y, hessian = problem
    before = flat(model.params).tobytes()
    for _ in range(3):
        v = {name: rng.normal(size=param.shape) * 10 for name, param in model.params.items()}
        wanted = hessian @ flat(v)
        product = curvature.hessian_vector_product(model, x, y, v)
        assert {name: a.shape for name, a in product.items()} == {name: a.shape for name, a in v.items()}
        np.testing.assert_allclose(flat(product), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert flat(model.params).tobytes() == before
    zero = {name: np.zeros(param.shape) for name, param in model.params.items()}
    assert not flat(curvature.hessian_vector_product(model, x, y, zero)).any()


def test_the_largest_eigenvalue(problem):
    model, x, y, hessian = problem
    values, vectors = np.linalg.eigh(hessian)
    largest = np.argmax(np.abs(values))
    found = curvature.largest_eigenvalue(model, x, y, iterations=2000, tolerance=1e-5)
    assert found.value == pytest.approx(values[largest], rel=1e-6)
    assert abs(flat(found.vector) @ vectors[:, largest]) == pytest.approx(1, abs=1e-5)
    assert found.iterations < 2000
    assert curvature.largest_eigenvalue(model, x, y, iterations=3).iterations == 3


def test_the_ends_of_the_spectrum(problem):
    model, x, y, hessian = problem
    values = np.linalg.eigvalsh(hessian)
    found = curvature.condition_number(model, x, y, products=1000)
    assert found.largest == pytest.approx(values[-1], rel=1e-5)
    assert found.smallest == pytest.approx(values[0], abs=1e-6 * values[-1])


def quadratic(rng, condition):
    """Least squares with a given condition number."""
    q = np.linalg.qr(rng.normal(size=(20, 7)))[0]
    q -= q.mean(axis=0)
    q = np.linalg.qr(q)[0]
    x = q * np.sqrt(np.geomspace(1, condition, 7) * 10)  # the Hessian is 2/20 of xᵀx, and 2 for the bias
    return nn.Sequential([nn.Dense(1)], (7,), dtype=np.float64), x, rng.normal(size=(20, 1))


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_a_known_condition_number(rng, condition):
    model, x, y = quadratic(rng, condition)
    found = curvature.condition_number(model, x, y, nn.SquaredError())
    assert found.smallest == pytest.approx(1, rel=1e-4)
    assert found.largest == pytest.approx(condition, rel=1e-6)
    assert found.condition == pytest.approx(condition, rel=1e-4)
    assert found.condition == found.largest / found.smallest
    early = curvature.condition_number(model, x, y, nn.SquaredError(), products=3)
    assert early.condition < found.condition * (1 + 1e-6)


def test_a_saddle_has_no_condition_number():
    """Linear layers in a row, whose product is 0 where both weights are: there the Hessian is indefinite."""
    model = nn.Sequential([nn.Dense(1), nn.Dense(1)], (1,), dtype=np.float64)
    for param in model.params.values():
        param.fill(0)
    found = curvature.condition_number(model, np.ones((4, 1)), np.ones((4, 1)), nn.SquaredError())
    assert found.smallest < -1
    assert found.condition == math.inf


def test_float32_models_are_taken_in_double(rng):
    model, x, y, hessian = softmax_regression(rng)
    single = model.copy(dtype=np.float32)
    found = curvature.largest_eigenvalue(single, x, y, iterations=2000)
    assert found.value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: curvature.hessian_vector_product(m, x, y, {}), r"v must hold 0.weight of shape \(3, 4\)"),
        (lambda m, x, y: curvature.largest_eigenvalue(m, x, y, iterations=0), "iterations must be at least 1, got 0"),
        (lambda m, x, y: curvature.condition_number(m, x, y, products=0), "products must be at least 1, got 0"),
        (lambda m, x, y: curvature.condition_number(m, x[:0], y[:0]), "x must hold at least one sample"),
        (
            lambda m, x, y: curvature.condition_number(nn.Sequential([nn.ReLU()], (3,)), x, y % 3),
            "the model must have parameters",
        ),
    ],
)
def test_arguments_are_checked(rng, call, message):
    model, x, y, _ = softmax_regression(rng)
    with pytest.raises(ValueError, match=message):
        call(model, x, y)
