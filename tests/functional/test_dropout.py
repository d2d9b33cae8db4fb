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
        same_bits(functional.dropout_apply(x, own, functional.kept_share(0.3), p_is="keep"), y)


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


@pytest.mark.parametrize("first", [0, 1, 31, 127, 128, 129, 1000, 1024])
def test_a_part_has_the_mask_that_it_has_in_the_whole(first, isa, dtype, rng, same_bits):
    x, bias = rng.standard_normal((60, 47)).astype(dtype), np.zeros(1, dtype)
    whole, mask = functional.dropout(x, 0.4, seed=7, counter=9, mask_format="bytes")
    fused = functional.bias_relu_dropout_forward(x.reshape(-1, 1), bias, 0.4, seed=7, counter=9).ravel()
    for size in (1, 64, 700, x.size - first):
        part = slice(first, first + size)
        own = x.ravel()[part]
        y, kept = functional.dropout(own, 0.4, seed=7, counter=9, first=first, mask_format="bytes")
        same_bits(y, whole.ravel()[part])
        same_bits(kept, mask.ravel()[part])
        y = functional.bias_relu_dropout_forward(own.reshape(-1, 1), bias, 0.4, seed=7, counter=9, first=first)
        same_bits(y.ravel(), fused[part])


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
        same_bits(functional.dropout_backward(x, mask, p), functional.dropout_backward(x, mask, nearest))


@pytest.mark.parametrize("p", [0, 0.1, 0.3, 1 / 3, 0.5, 1 - 2**-30])
def test_a_mask_of_ones_own_scales_by_the_exact_p(p, dtype, rng):
    """As cs231n has it: ``mask = (rng.random(x.shape) < keep) / keep``."""
    x, keep = rng.standard_normal((9, 7)).astype(dtype), 1 - p
    own = rng.random(x.shape) < keep
    expected = x * (own / keep).astype(dtype)
    np.testing.assert_array_equal(functional.dropout_apply(x, own, p), expected)
    np.testing.assert_array_equal(functional.dropout_apply(x, own, keep, p_is="keep"), expected)


def test_dropout_apply_refusals(refuses):
    x, mask = np.ones(3), np.ones(3, bool)
    refuses(lambda: functional.dropout_apply(x, mask, 1), r"p must be in \[0, 1\)")
    refuses(lambda: functional.dropout_apply(x, mask, 0, p_is="keep"), r"p must be in \(0, 1\]")
    refuses(lambda: functional.dropout_apply(x, mask, 1e-300, p_is="keep"), "1 / p must be at most")
    refuses(lambda: functional.dropout_apply(x, mask, 0.5, p_is="kept"), "p_is must be one of")


def test_the_expectation_of_dropout_is_its_input():
    """The share kept times the factor is 1, but for the one rounding of the factor."""
    ones, all_kept = np.ones(1), np.ones(1, np.uint8)
    for p in np.linspace(0, 1, 5000, endpoint=False):
        share = 1 - reference.dropout_probability(p)
        assert abs(share * functional.dropout_backward(ones, all_kept, p)[0] - 1) <= 2**-53


# ---- Where random bits come from ------------------------------------------------------------------


def with_bias(x, p, **key):
    return functional.bias_relu_dropout_forward(x, np.ones(x.shape[-1]), p, **key)


CALLS = [lambda x, p, **key: functional.dropout(x, p, **key)[0], with_bias]


@pytest.mark.parametrize("call", CALLS, ids=["dropout", "bias_relu_dropout_forward"])
def test_a_counter_counts_by_itself(call, same_bits):
    x, counter = np.ones((9, 30)), functional.Counter(2**64 - 2)
    for number in (2**64 - 2, 2**64 - 1, 0, 1):
        assert counter.value == number
        same_bits(call(x, 0.5, seed=3, counter=counter), call(x, 0.5, seed=3, counter=number))
    assert repr(counter) == "Counter(2)"


def test_batch_norm_counts_what_it_drops(rng, same_bits):
    x, counter = rng.standard_normal((40, 6)), functional.Counter(7)
    how = {"seed": 3, "relu": True, "dropout": 0.5}
    for number in (7, 8):
        same_bits(functional.batch_norm_forward(x, **how, counter=counter)[0],
                  functional.batch_norm_forward(x, **how, counter=number)[0])  # fmt: skip
    functional.batch_norm_forward(x, **how | {"dropout": 0}, counter=counter)
    functional.batch_norm_forward(x, running_mean=np.ones(6), running_var=np.ones(6), **how, counter=counter,
                                  training=False)  # fmt: skip
    assert counter.value == 9


@pytest.mark.parametrize("call", CALLS, ids=["dropout", "bias_relu_dropout_forward"])
def test_a_generator_draws_the_key(call, same_bits):
    """Other masks each time, and the same ones from a generator of the same seed."""
    x, (first, second) = np.ones((9, 30)), (np.random.default_rng(5) for _ in range(2))
    drawn = [call(x, 0.5, rng=first) for _ in range(3)]
    for y in drawn:
        same_bits(call(x, 0.5, rng=second), y)
    assert len({y.tobytes() for y in drawn}) == 3
    seed, counter = np.random.default_rng(5).integers(2**64, size=2, dtype=np.uint64)
    same_bits(drawn[0], call(x, 0.5, seed=seed, counter=counter))


@pytest.mark.parametrize("call", CALLS, ids=["dropout", "bias_relu_dropout_forward"])
def test_what_is_refused_draws_nothing(call, refuses):
    x, rng, counter = np.ones((9, 30)), np.random.default_rng(5), functional.Counter()
    state = rng.bit_generator.state
    for key in ({"rng": rng}, {"seed": 1, "counter": counter}):
        refuses(lambda key=key: call(x.astype(int), 0.5, **key), "x must be float32 or float64")
        refuses(lambda key=key: call(x, 1.5, **key), r"p must be in \[0, 1\)")
        refuses(lambda key=key: call(x, 0.5, out=np.ones(3), **key), "")
    refuses(lambda: call(x, 0.5, rng=rng, seed=1), "rng must not be given with seed or counter")
    refuses(lambda: call(x, 0.5, rng=rng, counter=counter), "rng must not be given with seed or counter")
    refuses(lambda: call(x, 0.5, seed=-1, counter=counter), "seed must be in")
    assert rng.bit_generator.state == state
    assert counter.value == 0
    refuses(lambda: call(x, 0.5), "seed and counter must be given, or rng, such as")
    refuses(lambda: call(x, 0.5, seed=1), "counter must be an integer, got None")
    refuses(lambda: call(x, 0.5, rng=3), r"rng must be a numpy\.random\.Generator, such as .*default_rng\(3\), got int")
    refuses(lambda: call(x, 0.5, rng=np.random.RandomState(3)), "rng must be a .* got RandomState")
    refuses(lambda: functional.Counter(-1), "value must be in")
    refuses(lambda: functional.Counter(0.5), "value must be an integer")


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
