"""Softmax and its cross-entropy, and embeddings: large numbers, special values, labels."""

import math

import numpy as np
import pytest
from finite_differences import differences

from fastopt import functional, reference

# ---- Softmax --------------------------------------------------------------------------------------


def test_softmax_of_large_numbers(isa, dtype, rng, close):
    for shape in ((1, 1), (5, 3), (300, 10), (3, 33), (2, 3, 40), (2, 5000)):
        x = (1e4 + 5 * rng.standard_normal(shape)).astype(dtype)
        log_sum, exact = np.zeros(math.prod(shape[:-1])), x.astype(np.float64)
        close(functional.softmax_forward(x, log_sum=log_sum), reference.softmax_forward(exact))
        largest = exact.max(axis=-1)
        wanted = largest + np.log(np.exp(exact - largest[..., None]).sum(axis=-1))
        np.testing.assert_allclose(log_sum, wanted.ravel(), rtol=1e-6)


@pytest.mark.parametrize("spread", [30, 1e4])
def test_softmax_cross_entropy_of_large_logits(isa, dtype, spread, rng):
    for rows, classes in ((5, 1), (1, 2), (64, 10), (3, 33), (2, 4096)):
        logits = (spread * rng.uniform(-1, 1, (rows, classes))).astype(dtype)
        labels = rng.integers(classes, size=rows)
        loss, dlogits = functional.softmax_cross_entropy(logits, labels)
        expected_loss, expected = reference.softmax_cross_entropy(logits.astype(np.float64), labels)
        assert type(loss) is float
        tolerance = 1e-12 if dtype == np.float64 else 5e-6  # of a loss and of a probability: log p and p - 1 cancel
        assert loss == pytest.approx(expected_loss, rel=tolerance, abs=tolerance)
        np.testing.assert_allclose(dlogits, expected, rtol=0, atol=tolerance / rows)


@pytest.mark.parametrize("labels", ["int8", "uint8", "int32", "uint64", ">i4"])
def test_labels_of_any_integer_type(labels, rng):
    logits, wanted = rng.standard_normal((6, 5)), np.arange(6) % 5
    expected = functional.softmax_cross_entropy(logits, wanted)
    actual = functional.softmax_cross_entropy(logits, wanted.astype(labels))
    assert actual[0] == expected[0]
    np.testing.assert_array_equal(actual[1], expected[1])


def test_loss_of_equal_logits_is_the_log_of_the_classes(dtype):
    for classes in (1, 2, 10, 1000):
        loss, _ = functional.softmax_cross_entropy(np.full((4, classes), 7, dtype), np.zeros(4, int))
        assert loss == pytest.approx(np.log(classes), rel=1e-6)


def test_opposite_logits(isa, dtype):
    """Where all the others vanish beside one logit, the loss is the distance to it."""
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    loss, dlogits = functional.softmax_cross_entropy(logits, np.zeros(2, int))
    assert loss == 1e4
    np.testing.assert_array_equal(dlogits, [[0, 0], [-0.5, 0.5]])


def test_exp_and_log_of_the_kernels(isa, dtype):
    """Two classes a distance apart: its softmax is 1 / (1 + exp(distance)), its loss the log of that."""
    distance = np.linspace(0, 70 if dtype == np.float32 else 690, 20_001)
    logits = np.stack([np.zeros_like(distance), -distance], axis=1).astype(dtype)
    distance = -logits[:, 1].astype(np.float64)
    _, dlogits = functional.softmax_cross_entropy(logits, np.zeros(len(distance), int))
    softmax = dlogits[:, 1].astype(np.float64) * len(distance)
    np.testing.assert_allclose(softmax, np.exp(-distance) / (1 + np.exp(-distance)), rtol=8 * np.finfo(dtype).eps)
    losses = [functional.softmax_cross_entropy(row[None], np.array([1]))[0] for row in logits[:50]]
    np.testing.assert_allclose(losses, np.logaddexp(0, distance[:50]), rtol=8 * np.finfo(dtype).eps)


def test_a_nan_logit_spoils_its_row_alone(isa, dtype, rng):
    logits = rng.standard_normal((9, 40)).astype(dtype)
    expected = functional.softmax_cross_entropy(logits, np.zeros(9, int))[1]
    logits[4, 17] = np.nan
    loss, dlogits = functional.softmax_cross_entropy(logits, np.zeros(9, int))
    assert np.isnan(loss)
    assert np.isnan(dlogits[4]).all()
    np.testing.assert_array_equal(np.delete(dlogits, 4, 0), np.delete(expected, 4, 0))


def test_softmax_of_nothing():
    loss, dlogits = functional.softmax_cross_entropy(np.empty((0, 3)), np.empty(0, int))
    assert loss == 0.0
    assert dlogits.shape == (0, 3)


def test_softmax_cross_entropy_by_finite_differences(rng):
    logits, labels = rng.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    dlogits = functional.softmax_cross_entropy(logits, labels)[1]
    by_differences = differences(lambda: functional.softmax_cross_entropy(logits, labels)[0], logits)
    np.testing.assert_allclose(dlogits, by_differences, atol=1e-8)


# ---- Embeddings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", ["int8", "int16", "uint64"])
def test_entries_of_any_integer_type_and_shape(entries, rng, close):
    chosen, dy = rng.integers(9, size=(4, 11)), rng.standard_normal((4, 11, 7))
    dtable = functional.embedding_backward(dy, chosen.astype(entries), 9)
    close(dtable, reference.embedding_backward(dy, chosen, 9))


def test_embedding_refusals(refuses, rng):
    dy = rng.standard_normal((3, 2))
    refuses(lambda: functional.embedding_backward(dy, np.array([0, 5, 1]), 5), r"entries must be in \[0, 5\), got 5")
    refuses(lambda: functional.embedding_backward(dy, np.array([0, 1]), 5), r"entries must be an array of shape \(3,\)")
    refuses(lambda: functional.embedding_backward(dy, np.ones(3), 5), "entries must be an array of integers")
