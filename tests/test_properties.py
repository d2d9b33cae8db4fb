"""Properties that hold for all shapes, alignments and values, NaN, infinities and denormals among them."""

import math

import numpy as np
import pytest

from fastopt import _kernels, functional, reference
from fastopt.cases import by_hand
from fastopt.optimizers import OPTIMIZERS

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

modest = settings(max_examples=150)
dtypes = st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)])
shapes = st.lists(st.integers(0, 12), max_size=3).map(tuple)
seeds = st.integers(0, 2**64 - 1)


@st.composite
def arrays(draw, shape, dtype, special=True):
    """Random numbers at any alignment within a buffer, a few of them picked by hypothesis."""
    size, offset = math.prod(shape), draw(st.integers(0, 17))
    array = np.zeros(size + 40, dtype)[offset : offset + size]
    array[...] = np.random.default_rng(draw(seeds)).standard_normal(size)
    picked = st.floats(-1000, 1000, width=8 * dtype.itemsize)
    if special:
        tiny = np.finfo(dtype).tiny
        picked |= st.sampled_from([math.nan, math.inf, -math.inf, -0.0, tiny, -tiny / 4, tiny / 8])
    for place, value in draw(st.dictionaries(st.integers(0, max(0, size - 1)), picked, max_size=8)).items():
        array[place:][:1] = value
    return array.reshape(shape)


def assert_agrees(actual, expected, magnitude):
    """Alike where finite, to rounding of numbers of a magnitude; a NaN for a NaN, an infinity for its like."""
    info = np.finfo(actual.dtype)
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    # Denormals count as zero, and may have been divided by an eps of 1e-10.
    allowed = 100 * info.eps * (magnitude + np.abs(expected)) + 1e12 * info.tiny
    assert (np.abs(actual - expected)[finite] <= allowed[finite]).all()


#: Steps that one element decides for all, that go by signs, or whose textbook form takes infinity from infinity.
TAME = ("lamb", "lion", "rprop", "look_ahead_nesterov", "schedule_free_sgd", "schedule_free_adamw")


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(modest, max_examples=25)
@given(st.data(), dtypes, shapes, st.floats(1e-4, 1), st.sampled_from([1.0, 0.5, -2.0]))
def test_a_step_is_that_of_the_reference(name, data, dtype, shape, lr, grad_scale):
    optimizer = OPTIMIZERS[name]
    param, *grads = (data.draw(arrays(shape, dtype, special=name not in TAME)) for _ in range(3))
    if name in TAME:
        for array in (param, *grads):
            array[np.abs(array) < 1e-3] = 0
    states = [np.zeros_like(param) for _ in optimizer.state_names()]
    magnitude = 1 + sum(np.nan_to_num(np.abs(a), nan=0, posinf=0) for a in (param, *grads))
    expected = param, *states
    with np.errstate(all="ignore"):
        for t, grad in enumerate(grads, start=1):
            options = {"lr": lr, "grad_scale": grad_scale} | by_hand(optimizer, t)
            expected = getattr(reference, name)(expected[0].copy(), grad, *expected[1:], **options)
            getattr(functional, name)(param, grad, *states, **options)
        for actual, wanted in zip((param, *states), expected, strict=True):
            assert_agrees(actual, np.asarray(wanted), magnitude)


@modest
@given(st.data(), dtypes, shapes)
def test_relu_passes_what_is_positive(data, dtype, shape):
    x, dy = (data.draw(arrays(shape, dtype)) for _ in range(2))
    tiny = np.finfo(dtype).tiny
    y = functional.relu_forward(x)
    np.testing.assert_array_equal(y, np.where(np.abs(x) < tiny, 0, np.maximum(x, 0)))
    np.testing.assert_array_equal(functional.relu_forward(y), y)
    np.testing.assert_array_equal(functional.relu_backward(dy, x), functional.relu_backward(dy, y))


@modest
@given(st.data(), dtypes, shapes, st.floats(0, 0.99), seeds, seeds, st.sampled_from(_kernels.isas()))
def test_dropout_follows_its_mask(data, dtype, shape, p, seed, counter, isa):
    x = data.draw(arrays(shape, dtype))
    before = _kernels.isa()
    _kernels.use_isa(isa)
    y, mask = functional.dropout(x, p, seed=seed, counter=counter, mask_format="bytes")
    _kernels.use_isa(before)
    expected = reference.dropout_mask(x.size, p, seed=seed, counter=counter).reshape(shape)
    np.testing.assert_array_equal(mask, expected)
    assert not y[~mask].any()
    share = dtype.type(1 - reference.dropout_probability(p))
    with np.errstate(all="ignore"):
        assert_agrees(y[mask], np.asarray(x[mask] / share), np.zeros(mask.sum()))
    np.testing.assert_array_equal(functional.dropout_backward(x, mask, p), y)
    # The first elements have the same mask however many follow.
    _, bits = functional.dropout(np.ones(x.size + 100), p, seed=seed, counter=counter, mask_format="bytes")
    np.testing.assert_array_equal(bits[: x.size], mask.ravel())


batches = st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(1, 40)).map(
    lambda shape: shape[:2] if shape[2] % 3 == 0 else shape
)


@pytest.mark.slow
@modest
@given(st.data(), dtypes, batches)
def test_batch_norm_invariances(data, dtype, shape):
    """Mean 0 and variance 1 after it; blind to the scale and offset of x; its gradients are at right angles to both."""
    rng = np.random.default_rng(data.draw(seeds))
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    axes = (0, *range(2, len(shape)))
    tolerance = 3e-4 if dtype == np.float32 else 1e-9
    y, cache = functional.batch_norm_forward(x, axis=1, eps=0)
    np.testing.assert_allclose(y.mean(axis=axes, dtype=float), 0, atol=tolerance)
    np.testing.assert_allclose(y.var(axis=axes, dtype=float), 1, rtol=tolerance)

    factor, offset = (
        dtype.type(data.draw(st.sampled_from([0.5, 4, 1024]))),
        dtype.type(data.draw(st.floats(-8, 8, width=32))),
    )
    moved, _ = functional.batch_norm_forward(x * factor + offset, axis=1, eps=0)
    spread = (1 / cache.inv_std).min()
    np.testing.assert_allclose(moved, y, atol=tolerance * max(1, 1 / spread))

    dx, dscale, dshift = functional.batch_norm_backward(dy, cache)
    size = np.abs(cache.inv_std).max() * shape[0] * math.prod(shape[2:])
    np.testing.assert_allclose(dx.sum(axis=axes, dtype=float), 0, atol=tolerance * size)
    np.testing.assert_allclose((dx * y).sum(axis=axes, dtype=float), 0, atol=tolerance * size)
    np.testing.assert_allclose(dshift, dy.sum(axis=axes, dtype=float), atol=tolerance * size)
    np.testing.assert_allclose(dscale, (dy.astype(float) * y).sum(axis=axes), atol=tolerance * size)


@pytest.mark.slow
@modest
@given(st.data(), dtypes, batches, st.sampled_from([1, -1]))
def test_batch_norm_with_relu_is_both(data, dtype, shape, axis):
    """To the bit, for all values and wherever the arrays lie."""
    x, dy = (data.draw(arrays(shape, dtype)) for _ in range(2))
    scale, shift = (data.draw(arrays((shape[axis],), dtype)) for _ in range(2))
    y, cache = functional.batch_norm_forward(x, scale, shift, axis=axis)
    fused, fused_cache = functional.batch_norm_forward(x, scale, shift, axis=axis, relu=True)
    np.testing.assert_array_equal(fused, functional.relu_forward(y))
    wanted = functional.batch_norm_backward(functional.relu_backward(dy, fused), cache)
    for gradient, right in zip(functional.batch_norm_backward(dy, fused_cache), wanted, strict=True):
        np.testing.assert_array_equal(gradient, right)


@pytest.mark.slow
@modest
@given(st.data(), dtypes, st.integers(1, 20), st.integers(1, 50), st.floats(-100, 100, width=32))
def test_softmax_cross_entropy_is_blind_to_an_offset(data, dtype, rows, classes, offset):
    rng = np.random.default_rng(data.draw(seeds))
    logits, labels = data.draw(arrays((rows, classes), dtype, special=False)), rng.integers(classes, size=rows)
    loss, dlogits = functional.softmax_cross_entropy(logits, labels)
    eps = float(np.finfo(dtype).eps)
    assert loss >= 0
    np.testing.assert_allclose(dlogits.sum(axis=1, dtype=float), 0, atol=2 * classes * eps)
    assert (np.abs(dlogits) <= 1 / rows).all()
    moved, _ = functional.softmax_cross_entropy(logits + dtype.type(offset), labels)
    assert moved == pytest.approx(loss, abs=1e4 * eps)


windows = st.tuples(st.integers(1, 4), st.integers(1, 4))


@pytest.mark.slow
@modest
@given(
    st.data(),
    dtypes,
    st.tuples(st.integers(0, 3), st.integers(4, 9), st.integers(4, 9), st.integers(1, 40)),
    windows,
    windows,
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_images_follow_the_reference(data, dtype, shape, size, stride, padding):
    x = data.draw(arrays(shape, dtype))
    columns = functional.im2col(x, size, stride, padding)
    np.testing.assert_array_equal(columns, reference.im2col(x, size, stride, padding))
    rng = np.random.default_rng(0)
    y = rng.integers(-9, 9, columns.shape).astype(dtype)
    image = rng.integers(-9, 9, shape).astype(dtype)
    back = functional.col2im(y, shape, size, stride, padding)
    np.testing.assert_array_equal(back, reference.col2im(y, shape, size, stride, padding))
    assert np.vdot(functional.im2col(image, size, stride, padding), y) == np.vdot(image, back)

    x = np.where(np.abs(x) < np.finfo(dtype).tiny, 0, x)  # a denormal is a tie with zero
    y, winner = functional.max_pool_forward(x, size, stride)
    expected, expected_winner = reference.max_pool_forward(x, size, stride)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winner, expected_winner)
