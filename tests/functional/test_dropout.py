"""Dropout, alone and behind bias and ReLU: masks, probabilities, special values."""

import numpy as np
import pytest

from fastopt import cases, functional, reference

# ---- Masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 33, 128, 1000, 2049])
def test_masks_of_any_format(dtype, size, rng, same_bits):
    x, dy = rng.standard_normal((2, size)).astype(dtype)
    y, bits = functional.dropout(x, 0.3, seed=7, counter=size)
    again, mask = functional.dropout(x, 0.3, seed=7, counter=size, mask_format="bytes")
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(bits, np.packbits(mask, bitorder="little"))
    same_bits(y == 0, ~mask)
    same_bits(again, y)
    dx = functional.dropout_backward(dy, bits, 0.3)
    for own in (mask, mask.astype(np.uint8), mask.astype(np.int64)):
        same_bits(functional.dropout_backward(dy, own, 0.3), dx)
        same_bits(functional.dropout_apply(x, own, 0.3), y)


def test_dropout_keeps_the_shape(rng):
    x = rng.standard_normal((3, 5, 7))
    y, mask = functional.dropout(x, 0.5, seed=1, counter=1, mask_format="bytes")
    flat, bits = functional.dropout(x.ravel(), 0.5, seed=1, counter=1)
    assert y.shape == mask.shape == x.shape
    assert bits.shape == (14,)
    np.testing.assert_array_equal(y.ravel(), flat)
    np.testing.assert_array_equal(functional.dropout_backward(x, bits, 0.5), functional.dropout_backward(x, mask, 0.5))


def test_a_mask_is_written_to_its_end_and_not_beyond(isa, dtype, same_bits):
    for past in range(0, 64, 5):
        for n in (31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 2047, 2048, 2049, 2825):
            size, memory = (n + 7) // 8, np.full(64 + past + 1024, 0xA5, np.uint8)
            x, mask = np.ones(n, dtype), memory[past : past + size]
            functional.dropout(x, 0.5, seed=3, counter=4, mask=mask)
            same_bits(mask, functional.dropout(x, 0.5, seed=3, counter=4)[1])
            assert (memory[:past] == 0xA5).all()
            assert (memory[past + size :] == 0xA5).all()


# ---- Probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0, 0.1, 0.5, 0.75, 1 - 2**-16, 1 - 2**-32])
def test_dropout_by_the_share_kept(p, rng, same_bits):
    x = rng.standard_normal(1000)
    y, mask = functional.dropout(x, p, seed=5, counter=6)
    other, other_mask = functional.dropout(x, 1 - p, seed=5, counter=6, p_is="keep")
    same_bits(other_mask, mask)
    same_bits(other, y)
    same_bits(functional.dropout_backward(x, mask, 1 - p, p_is="keep"), functional.dropout_backward(x, mask, p))


def test_dropout_of_nothing_changes_nothing(dtype, rng, same_bits):
    """Nor does that of less than half of 2**-16."""
    x = rng.standard_normal(77).astype(dtype)
    for p, p_is in ((0, "drop"), (1, "keep"), (2**-17, "drop"), (1e-300, "drop"), (1 - 2**-18, "keep")):
        y, mask = functional.dropout(x, p, seed=0, counter=0, p_is=p_is, mask_format="bytes")
        same_bits(y, x)
        assert mask.all()


@pytest.mark.parametrize(("p", "p_is"), [(1 - 2**-16, "drop"), (np.nextafter(1, 0), "drop"), (1e-300, "keep")])
def test_dropout_that_keeps_next_to_nothing(p, p_is, isa):
    """The largest word alone is kept, and stands for all 2**16."""
    n = 2**18
    y, mask = functional.dropout(np.ones(n, np.float32), p, seed=0, counter=0, p_is=p_is, mask_format="bytes")
    np.testing.assert_array_equal(mask, words_of_elements(n, 0, 0) == 2**16 - 1)
    assert mask.any()
    np.testing.assert_array_equal(y, np.where(mask, 2**16, 0))


def words_of_elements(n, seed, counter):
    """The random bits of elements, 16 each: the low halves of 32 words of Philox, then the high ones, word by word."""
    words = reference.philox(np.arange(-(-n // 128) * 16), seed, counter).reshape(-1, 16, 4).transpose(0, 2, 1)
    return np.ascontiguousarray(words).astype("<u4").view("<u2").reshape(-1)[:n]


def test_dropped_is_zero_whatever_it_was(isa, dtype):
    x = np.full(200, np.nan, dtype)
    y, mask = functional.dropout(x, 0.5, seed=0, counter=0, mask_format="bytes")
    np.testing.assert_array_equal(y, np.where(mask, np.nan, 0))


def test_dropped_is_what_lies_below_p(isa, dtype):
    """Random words are multiples of 2**-16, and so are probabilities; a word that equals p is kept."""
    for place, word in enumerate(words_of_elements(128, 7, 8).tolist()):
        for p, kept in ((word / 2**16, True), ((word + 1) / 2**16, word == 2**16 - 1)):
            _, mask = functional.dropout(
                np.ones(128, dtype), min(p, 1 - 2**-16), seed=7, counter=8, mask_format="bytes"
            )
            assert mask[place] == kept


def test_a_probability_is_the_nearest_multiple(isa, dtype, same_bits):
    """In the mask and in the factor: p between two multiples of 2**-16 gives the numbers of the nearer one."""
    x = np.linspace(-1, 1, 1000, dtype=dtype)
    for p in (0.1, 0.3, 1 / 3, 0.5, 0.999):
        nearest = round(p * 2**16) / 2**16
        y, mask = functional.dropout(x, p, seed=1, counter=1)
        other, other_mask = functional.dropout(x, nearest, seed=1, counter=1)
        same_bits(y, other)
        same_bits(mask, other_mask)
        same_bits(functional.dropout_apply(x, mask, p), functional.dropout_apply(x, mask, nearest))


def test_the_expectation_of_dropout_is_its_input():
    """The share kept times the factor is 1, but for the one rounding of the factor."""
    ones, all_kept = np.ones(1), np.ones(1, bool)
    for p in np.linspace(0, 1, 5000, endpoint=False):
        share = 1 - reference.dropout_probability(p)
        assert abs(share * functional.dropout_apply(ones, all_kept, p)[0] - 1) <= 2**-53


# ---- Dropout behind bias and ReLU -----------------------------------------------------------------


def test_bias_relu_dropout_is_the_one_after_the_other(isa, dtype, edges, same_bits):
    case = cases.LAYERS["bias_relu_dropout_forward"]
    for size in edges(case):
        arguments = case.arguments(cases.normal(dtype), size)
        x, bias, p, seed, counter = arguments.values()
        before = functional.bias_relu_forward(x, bias)
        expected, mask = functional.dropout(before, p, seed=seed, counter=counter)
        y = functional.bias_relu_dropout_forward(**arguments)
        same_bits(y, expected)
        masked = functional.dropout_backward(x, mask, p)
        dx, dbias = functional.bias_relu_dropout_backward(x, y, p)
        for actual, wanted in zip((dx, dbias), functional.bias_relu_backward(masked, before), strict=True):
            same_bits(actual, wanted)


@pytest.mark.parametrize(("p", "other"), [(0.0, 1.0), (0.25, 0.75), (1 - 2**-16, 2**-16)])
def test_bias_relu_dropout_by_the_share_kept(p, other, rng, same_bits):
    x, bias, key = rng.standard_normal((50, 70)), rng.standard_normal(70), {"seed": 5, "counter": 6}
    y = functional.bias_relu_dropout_forward(x, bias, p, **key)
    same_bits(functional.bias_relu_dropout_forward(x, bias, other, p_is="keep", **key), y)
    for actual, expected in zip(
        functional.bias_relu_dropout_backward(x, y, other, p_is="keep"),
        functional.bias_relu_dropout_backward(x, y, p),
        strict=True,
    ):
        same_bits(actual, expected)


def test_bias_relu_dropout_of_nothing_is_bias_relu(isa, dtype, rng, same_bits):
    x, bias, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((9, 70), (70,), (9, 70)))
    y = functional.bias_relu_dropout_forward(x, bias, 0, seed=1, counter=1)
    same_bits(y, functional.bias_relu_forward(x, bias))
    for actual, expected in zip(
        functional.bias_relu_dropout_backward(dy, y, 0), functional.bias_relu_backward(dy, y), strict=True
    ):
        same_bits(actual, expected)


def test_bias_relu_dropout_of_special_values(isa, dtype):
    """What is dropped is zero whatever it was; NaN and infinity pass where they are kept."""
    n = 300
    x = np.resize(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], dtype), (n, 1))
    _, kept = functional.dropout(np.ones((n, 1)), 0.5, seed=1, counter=1, mask_format="bytes")
    y = functional.bias_relu_dropout_forward(x, np.zeros(1, dtype), 0.5, seed=1, counter=1)
    np.testing.assert_array_equal(y, np.where(kept, 2 * np.resize([np.nan, np.inf, 0, 0, 0, 1], (n, 1)), 0))
