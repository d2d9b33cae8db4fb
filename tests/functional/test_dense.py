"""Dense layers and biases: lost digits, gradients by differences, what does not fit."""

import numpy as np
import pytest
from finite_differences import differences

from fastopt import functional

# ---- Bias -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bias_gradient_of_many_rows_keeps_its_digits():
    ones = np.ones((2**22, 3), np.float32)
    ones[:, 1] = 0.1
    _, dbias = functional.bias_relu_backward(ones, np.ones_like(ones))
    np.testing.assert_allclose(dbias, ones.sum(axis=0, dtype=np.float64), rtol=1e-5)


def test_bias_relu_backward_by_finite_differences(rng):
    x, bias, dy = rng.standard_normal((4, 5)), rng.standard_normal(5), rng.standard_normal((4, 5))
    dx, dbias = functional.bias_relu_backward(dy, functional.bias_relu_forward(x, bias))
    for array, gradient in ((x, dx), (bias, dbias)):
        by_differences = differences(lambda: np.vdot(dy, functional.bias_relu_forward(x, bias)), array)
        np.testing.assert_allclose(gradient, by_differences, atol=1e-8)


# ---- Products -------------------------------------------------------------------------------------


def test_dense_refuses_what_does_not_fit(refuses):
    x, weight, dy = np.ones((5, 3)), np.ones((3, 4)), np.ones((5, 4))
    refuses(lambda: functional.dense_forward(x, weight.T.copy()), r"weight must have shape \(3, 3\), got \(4, 3\)")
    refuses(lambda: functional.dense_forward(x, np.ones(3)), r"weight must have shape \(3, columns\), got \(3,\)")
    refuses(lambda: functional.dense_forward(x, weight.astype("f")), "weight must be float64, got float32")
    refuses(lambda: functional.dense_forward(x, weight, np.ones(3)), r"bias must have shape \(4,\), got \(3,\)")
    refuses(lambda: functional.dense_forward(x, weight, relu=1), "relu must be True or False, got 1")
    refuses(lambda: functional.dense_input_grad(x, weight), r"weight must have shape \(3, 3\), got \(3, 4\)")
    refuses(lambda: functional.dense_weight_grad(x, dy[1:]), r"dy must have shape \(5, 4\), got \(4, 4\)")
    refuses(lambda: functional.dense_weight_grad(x, dy, out=dy), r"out must have shape \(3, 4\), got \(5, 4\)")
    refuses(lambda: functional.dense_weight_grad([[1.0]], dy), "x must be a NumPy array, got list")
