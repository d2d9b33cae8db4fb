"""Activations: special values and lost digits."""

import math

import numpy as np
import pytest

from fastopt import functional, reference


def test_relu_of_special_values(isa, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    np.testing.assert_array_equal(functional.relu_forward(x), [np.nan, np.inf, 0, 0, 0])
    np.testing.assert_array_equal(
        functional.bias_relu_forward(x[:, None], np.ones(1, dtype))[:, 0], [np.nan, np.inf, 0, 1, 1]
    )
    dy, y = np.array([[1, np.nan, np.nan, np.inf, 2], [1, 1, 0, 0, np.nan]], dtype)
    np.testing.assert_array_equal(functional.relu_backward(dy, y), [1, np.nan, 0, 0, 2])


def spread(rng, shape, dtype):
    """Numbers of all sizes around those at which the functions bend."""
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 2, shape)).astype(dtype)


SEEING_OUTPUT = ("leaky_relu", "elu", "tanh", "sigmoid")
ALPHAS = [(kind, None) for kind in functional.ACTIVATIONS] + [("leaky_relu", 0.3), ("elu", 0.7), ("leaky_relu", 0)]


@pytest.mark.parametrize(("kind", "alpha"), ALPHAS)
def test_activation(isa, dtype, kind, alpha, rng):
    """To the last digits, on numbers of all sizes."""
    x, dy = spread(rng, 1003, dtype), spread(rng, 1003, dtype)
    y = functional.activation_forward(x, kind, alpha=alpha)
    wanted = reference.activation_forward(x.astype(np.float64), kind, alpha=alpha)
    eps = np.finfo(dtype).eps
    # The tails of GELU are exponentials of a square; and the reference takes the difference of 1 and nearly 1.
    tail = 1 + np.minimum(x.astype(np.float64), 0) ** 2 if kind.startswith("gelu") else 1
    assert (np.abs(y - wanted) <= 8 * (eps * np.abs(wanted) * tail + 2**-53 * np.abs(x))).all()
    seen = y if kind in SEEING_OUTPUT else x
    dx = functional.activation_backward(dy, seen, kind, alpha=alpha)
    wanted = reference.activation_backward(dy.astype(np.float64), seen.astype(np.float64), kind, alpha=alpha)
    np.testing.assert_allclose(dx, wanted, rtol=8 * eps, atol=8 * eps * np.abs(dy).max(initial=0))


@pytest.mark.parametrize("kind", functional.ACTIVATIONS)
def test_activations_of_special_values(isa, dtype, kind):
    y = functional.activation_forward(np.array([np.nan, 0.0, -0.0, 1e30, -1e30, np.inf], dtype), kind)
    low = {"leaky_relu": -1e28, "elu": -1.0, "tanh": -1.0}.get(kind, 0.0)
    high = 1.0 if kind in ("tanh", "sigmoid") else 1e30
    zero = {"sigmoid": 0.5, "softplus": math.log(2)}.get(kind, 0.0)
    np.testing.assert_allclose(y, [np.nan, zero, zero, high, low, max(high, np.inf if high > 1 else 1)], rtol=1e-6)


def test_the_normal_distribution_keeps_its_digits(isa, dtype):
    """gelu(x) / x far below 0, where 1 + erf has none."""
    x = np.linspace(-12, -0.01, 500) if dtype == np.float64 else np.linspace(-8, -0.01, 500)
    x = x.astype(dtype)
    wanted = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()])
    error = np.abs(functional.activation_forward(x, "gelu") / wanted - 1)
    assert (error <= 4 * np.finfo(dtype).eps * (1 + x.astype(np.float64) ** 2)).all()


def test_activation_refusals(refuses):
    x = np.ones((3, 4))
    refuses(lambda: functional.activation_forward(x, "swish"), "kind must be one of")
    refuses(lambda: functional.activation_forward(x, "elu", alpha=-1), r"alpha must be in \[0, inf\)")
    refuses(lambda: functional.activation_forward(x.astype(int), "elu"), "x must be float32 or float64")
    refuses(lambda: functional.activation_backward(x, np.ones(4), "elu"), r"seen must have shape \(3, 4\)", x)
    refuses(lambda: functional.softmax_forward(x, out=np.ones(4)), r"out must have shape \(3, 4\)")
    refuses(lambda: functional.softmax_forward(x, log_sum=np.ones(4)), r"log_sum must have shape \(3,\)", x)
    refuses(lambda: functional.softmax_backward(x, x[:2]), r"y must have shape \(3, 4\)", x)
