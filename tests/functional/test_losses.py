"""Softmax and losses: large numbers, special values, labels, weights."""

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


# ---- Losses by rows -------------------------------------------------------------------------------

BY_LABELS = {
    "softmax": lambda x, labels, **more: functional.softmax_loss(x, labels, **more)[:2],
    "smoothed": lambda x, labels, **more: functional.softmax_loss(x, labels, label_smoothing=0.2, **more)[:2],
    "of classes": lambda x, labels, **more: functional.softmax_loss(
        x, labels, class_weight=np.arange(1, x.shape[1] + 1).astype(x.dtype), **more
    )[:2],
    "hinge": functional.hinge_loss,
}


def test_softmax_loss_of_labels_alone_is_softmax_cross_entropy(dtype, rng, same_bits):
    x, labels = rng.standard_normal((70, 11)).astype(dtype), rng.integers(11, size=70)
    each = np.zeros(70, dtype)
    loss, wanted = functional.softmax_cross_entropy(x, labels, losses=each)
    losses, dx, mass = functional.softmax_loss(x, labels)
    assert mass is None
    same_bits(losses, each)
    same_bits(dx, wanted)
    assert functional.mean_loss(losses).tolist() == [loss, 70]
    _, weighted, _ = functional.softmax_loss(x, labels, np.ones(70, dtype))
    same_bits(weighted, wanted)


def test_labels_are_distributions_of_one_class(isa, dtype, rng, close):
    x, labels = (5 * rng.standard_normal((65, 37))).astype(dtype), rng.integers(37, size=65)
    weights = {"weight": rng.uniform(size=65).astype(dtype), "class_weight": rng.uniform(size=37).astype(dtype)}
    for options in ({}, weights, {"label_smoothing": 0.3}, weights | {"label_smoothing": 0.3}):
        of_labels = functional.softmax_loss(x, labels, **options)
        of_targets = functional.softmax_loss(x, np.eye(37, dtype=dtype)[labels], **options)
        for one, other in zip(of_labels, of_targets, strict=True):
            if one is not None:
                close(one, other)


@pytest.mark.parametrize("name", BY_LABELS)
def test_a_label_that_is_none_spoils_its_row(name, isa, dtype, rng, same_bits):
    """And where labels have weights, which then have no sum, all rows."""
    x, labels = rng.standard_normal((5, 40)).astype(dtype), np.arange(5)
    wanted, gradient = BY_LABELS[name](x, labels)
    for label in (40, -1, 2**63 - 1, -(2**63)):
        losses, dx = BY_LABELS[name](x, np.where(labels == 2, label, labels))
        assert np.isnan(losses[2])
        assert np.isnan(dx[2]).all()
        same_bits(np.delete(losses, 2), np.delete(wanted, 2))
        if name == "of classes":
            assert np.isnan(dx).all()
        else:
            same_bits(np.delete(dx, 2, 0), np.delete(gradient, 2, 0))
    assert functional.count_right(x, np.full(5, -1)) == 0


@pytest.mark.parametrize("name", BY_LABELS)
def test_a_nan_spoils_the_loss_of_its_row_alone(name, isa, dtype, rng, same_bits):
    x, labels = rng.standard_normal((9, 40)).astype(dtype), np.arange(9)
    wanted, gradient = BY_LABELS[name](x, labels)
    x[4, 17] = np.nan
    losses, dx = BY_LABELS[name](x, labels)
    assert np.isnan(losses[4])
    assert np.isnan(dx[4, 17])
    same_bits(np.delete(losses, 4), np.delete(wanted, 4))
    same_bits(np.delete(dx, 4, 0), np.delete(gradient, 4, 0))


def test_classes_without_weight_add_nothing(isa, dtype):
    """A logit of −∞ is a class that cannot be."""
    x = np.array([[0.0, -np.inf, 0.0]], dtype)
    for targets in (np.array([[0.5, 0, 0.5]], dtype), np.array([2])):
        losses, dx, _ = functional.softmax_loss(x, targets, np.ones(1, dtype))
        assert losses == pytest.approx(np.log(2), rel=1e-6)
        assert np.isfinite(dx).all()
    assert functional.softmax_loss(x, np.array([[0.5, 0.1, 0.4]], dtype))[0] == np.inf


def test_sigmoid_cross_entropy_keeps_its_digits(isa, dtype):
    """Where the probability is next to its target."""
    x = np.array([[-60.0], [60.0], [20.0], [-1e4], [1e4]], dtype)
    targets = (x > 0).astype(dtype)
    losses, dx = functional.element_loss(x, targets, "sigmoid_cross_entropy")
    small = np.exp(-np.abs(x.astype(np.float64)))
    np.testing.assert_allclose(losses, np.log1p(small).ravel(), rtol=1e-6)
    np.testing.assert_allclose(dx, np.where(targets, -1, 1) * small / (1 + small) / 5, rtol=1e-6)


@pytest.mark.parametrize("kind", functional.ELEMENT_LOSSES)
def test_element_losses_by_finite_differences(kind, rng):
    x, weight = rng.standard_normal((4, 3, 2)), np.array([1.0, 0.0, 2.0, 0.5])
    targets = rng.uniform(size=x.shape)
    _, dx = functional.element_loss(x, targets, kind, weight, delta=0.4)

    def loss():
        return functional.mean_loss(functional.element_loss(x, targets, kind, delta=0.4)[0], weight)[0]

    np.testing.assert_allclose(dx, differences(loss, x), atol=1e-8)
    assert not dx[1].any()


def test_weights_of_zero_have_a_mean_of_zero(dtype):
    x, labels, none = np.ones((3, 4), dtype), np.arange(3), np.zeros(3, dtype)
    for losses, dx in (
        functional.hinge_loss(x, labels, none),
        functional.softmax_loss(x, labels, none)[:2],
        functional.softmax_loss(x, labels, class_weight=np.zeros(4, dtype))[:2],
        functional.element_loss(x, 2 * x, "l1", none),
    ):
        assert not dx.any()
        assert functional.mean_loss(losses, none).tolist() == [0, 0]


def test_large_weights_do_not_overflow(isa, dtype):
    weight = np.full(2, np.finfo(np.float32).max, dtype)
    losses, dx = functional.element_loss(np.full((2, 1), 9, dtype), np.zeros((2, 1), dtype), "l1", weight)
    np.testing.assert_array_equal(dx, 0.5)
    assert functional.mean_loss(losses, weight).tolist() == [9, 2 * float(weight[0])]


def test_loss_refusals(refuses, rng):
    x, labels, soft = rng.standard_normal((3, 4)), np.arange(3), np.full((3, 4), 0.25)
    loss = functional.softmax_loss
    refuses(lambda: loss(x, labels, label_smoothing=2), r"label_smoothing must be in \[0, 1\]", x)
    refuses(lambda: loss(x, labels.astype(np.int32)), "targets must be int64, got int32", x)
    refuses(lambda: loss(x, soft.astype(np.float32)), "targets must be float64", x)
    refuses(lambda: loss(x, soft[:, :3].copy()), r"targets must have shape \(3, 4\)", x)
    refuses(lambda: loss(x, labels[:2]), r"targets must have shape \(3,\)", x)
    refuses(lambda: loss(x[:, :0].copy(), labels), r"x must have at least one class, got shape \(3, 0\)", x)
    refuses(lambda: loss(x, labels, mass=np.ones(3)), "mass must come with class_weight", x)
    refuses(lambda: loss(x, labels, class_weight=np.ones(3)), r"class_weight must have shape \(4,\)", x)
    refuses(lambda: functional.hinge_loss(x, labels, margin=-1), r"margin must be in \[0, inf\)", x)
    refuses(lambda: functional.element_loss(x, x, "l2"), "kind must be one of 'sigmoid_cross_entropy', ", x)
    refuses(lambda: functional.element_loss(x, soft, "huber", delta=0), r"delta must be in \(0, inf\)", x)
    refuses(lambda: functional.mean_loss(np.ones(3), result=np.ones(1)), r"result must have shape \(2,\)")


# ---- Right answers --------------------------------------------------------------------------------


def test_count_right_counts_as_numpy(isa, dtype, rng):
    for classes in (1, 2, 6, 31, 33, 100):
        scores = rng.integers(-2, 3, size=(500, classes)).astype(dtype)  # ties among them
        scores[rng.random(scores.shape) < 0.02] = np.nan
        scores[rng.random(scores.shape) < 0.1] = -np.inf
        largest = scores.argmax(axis=1)
        labels = np.where(rng.random(500) < 0.5, largest, rng.integers(classes, size=500))
        assert functional.count_right(scores, labels).tolist() == [np.count_nonzero(largest == labels)]
        scores = rng.normal(size=(500, classes)).astype(dtype)  # of which one is the largest
        largest = scores.argmax(axis=1)
        labels = np.where(rng.random(500) < 0.5, largest, rng.integers(classes, size=500))
        assert functional.count_right(scores, labels).tolist() == [np.count_nonzero(largest == labels)]
