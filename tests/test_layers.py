"""Every layer kernel against its formula in `fastopt.reference`, finite differences and known answers."""

import math

import numpy as np
import pytest

from fastopt import functional, reference
from fastopt.kernel import kernel

# ---- Activations ------------------------------------------------------------------------------------


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def test_relu(isa, dtype, size, rng, guarded, same_bits):
    x, dy = (normal(rng, size, dtype) for _ in range(2))
    y = functional.relu_forward(guarded(x, 1), out=guarded(x, 3))
    same_bits(y, reference.relu_forward(x))
    dx = functional.relu_backward(guarded(dy, 1), guarded(y, 2), out=guarded(x, 3))
    same_bits(dx, reference.relu_backward(dy, y))


@pytest.mark.parametrize("columns", [0, 1, 2, 16, 31, 32, 33, 100, 1061])
@pytest.mark.parametrize("rows", [0, 1, 3, 63, 64, 65, 1000])
def test_bias_relu(isa, dtype, rows, columns, rng, guarded, close, same_bits):
    x, dy, bias = (
        normal(rng, (rows, columns), dtype),
        normal(rng, (rows, columns), dtype),
        normal(rng, columns, dtype),
    )
    same_bits(functional.bias_forward(guarded(x, 1), guarded(bias, 2), out=guarded(x, 3)), x + bias)
    close(functional.bias_backward(guarded(dy, 1), out=guarded(bias, 2)), dy.sum(axis=0, dtype=np.float64))
    y = functional.bias_relu_forward(guarded(x, 1), guarded(bias, 2), out=guarded(x, 3))
    same_bits(y, reference.bias_relu_forward(x, bias))
    dx, dbias = functional.bias_relu_backward(guarded(dy, 1), guarded(y, 2), out=guarded(x, 3))
    wanted, wanted_bias = reference.bias_relu_backward(dy.astype(np.float64), y)
    np.testing.assert_array_equal(dx, wanted)
    close(dbias, wanted_bias)


def test_bias_of_images(rng, same_bits):
    x, bias = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal(5)
    same_bits(functional.bias_relu_forward(x, bias), reference.bias_relu_forward(x, bias))


def test_a_bias_gradient_of_many_rows_keeps_its_digits():
    ones = np.ones((2**22, 3), np.float32)
    ones[:, 1] = 0.1
    _, dbias = functional.bias_relu_backward(ones, np.ones_like(ones))
    np.testing.assert_allclose(dbias, ones.sum(axis=0, dtype=np.float64), rtol=1e-5)


def test_relu_of_special_values(isa, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    np.testing.assert_array_equal(functional.relu_forward(x), [np.nan, np.inf, 0, 0, 0])
    np.testing.assert_array_equal(
        functional.bias_relu_forward(x[:, None], np.ones(1, dtype))[:, 0], [np.nan, np.inf, 0, 1, 1]
    )
    dy, y = np.array([[1, np.nan, np.nan, np.inf, 2], [1, 1, 0, 0, np.nan]], dtype)
    np.testing.assert_array_equal(functional.relu_backward(dy, y), [1, np.nan, 0, 0, 2])


# Functions that may write onto their first argument.
IN_PLACE = {
    "relu_forward": lambda x, out: functional.relu_forward(x, out=out),
    "relu_backward": lambda x, out: functional.relu_backward(x, np.arange(-3.0, 4, 1 / 11)[:70], out=out),
    "bias_relu_forward": lambda x, out: functional.bias_relu_forward(x, np.linspace(-1, 1, 70), out=out),
    "bias_relu_backward": lambda x, out: functional.bias_relu_backward(x, np.arange(-3.0, 4, 1 / 11)[:70], out=out)[0],
    "dropout": lambda x, out: functional.dropout(x, 0.4, seed=1, counter=2, out=out)[0],
    "dropout_apply": lambda x, out: functional.dropout_apply(x, np.arange(70) % 3 == 0, 0.4, out=out),
    "dropout_backward": lambda x, out: functional.dropout_backward(x, np.arange(70) % 3 == 0, 0.4, out=out),
    "bias_relu_dropout_forward": lambda x, out: functional.bias_relu_dropout_forward(
        x, np.linspace(-1, 1, 70), 0.4, seed=1, counter=2, out=out
    ),
    "bias_relu_dropout_backward": lambda x, out: functional.bias_relu_dropout_backward(
        x, np.arange(-3.0, 4, 1 / 11)[:70], 0.4, out=out
    )[0],
    "softmax_cross_entropy": lambda x, out: functional.softmax_cross_entropy(
        x.reshape(7, 10), np.arange(7), out=None if out is None else out.reshape(7, 10)
    )[1].reshape(70),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_is_the_same(name, isa, rng, guarded, same_bits):
    x = guarded(rng.standard_normal(70), 1)
    expected = IN_PLACE[name](x, None)
    assert not np.shares_memory(expected, x)
    assert np.shares_memory(IN_PLACE[name](x, x), x)
    same_bits(x, expected)


# ---- Softmax cross-entropy --------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1, 30, 1e4])
@pytest.mark.parametrize(
    ("rows", "classes"), [(1, 1), (5, 1), (1, 2), (64, 10), (3, 33), (500, 17), (2, 4096), (3, 9001)]
)
def test_softmax_cross_entropy(isa, dtype, rows, classes, spread, rng, guarded, close):
    logits = (spread * rng.uniform(-1, 1, (rows, classes))).astype(dtype)
    labels = rng.integers(classes, size=rows)
    given = guarded(logits, 1)
    loss, dlogits = functional.softmax_cross_entropy(given, guarded(labels), out=guarded(logits, 2))
    expected_loss, expected = reference.softmax_cross_entropy(logits.astype(np.float64), labels)
    assert type(loss) is float
    tolerance = 1e-12 if dtype == np.float64 else 5e-6  # of a loss and of a probability: log p and p - 1 cancel
    assert loss == pytest.approx(expected_loss, rel=tolerance, abs=tolerance)
    np.testing.assert_allclose(dlogits, expected, rtol=0, atol=tolerance / rows)
    np.testing.assert_array_equal(given, logits)


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
    logits = normal(rng, (9, 40), dtype)
    expected = functional.softmax_cross_entropy(logits, np.zeros(9, int))[1]
    logits[4, 17] = np.nan
    loss, dlogits = functional.softmax_cross_entropy(logits, np.zeros(9, int))
    assert np.isnan(loss)
    assert np.isnan(dlogits[4]).all()
    np.testing.assert_array_equal(np.delete(dlogits, 4, 0), np.delete(expected, 4, 0))


# ---- Random bits ------------------------------------------------------------------------------------

ALL = 2**64 - 1
# The known answers of Random123 for philox4x32 with 7 rounds, (block, counter, seed): words.
PHILOX = {
    (0, 0, 0): "5f6fb709 0d893f64 4f121f81 4f730a48",
    (ALL, ALL, ALL): "5207ddc2 45165e59 4d8ee751 8c52f662",
    (0x85A308D3_243F6A88, 0x03707344_13198A2E, 0x299F31D0_A4093822): "4dfccaba 190a87f0 c47362ba b6b5242a",
}


@pytest.mark.parametrize(("where", "words"), PHILOX.items(), ids=str)
def test_philox_gives_the_known_answers(where, words, isa, guarded):
    block, counter, seed = where
    bits = guarded(np.zeros(4, np.int32)).view(np.uint32)
    kernel("random_bits")(bits.reshape(1, 4), 1, seed, counter, block)
    of_reference = reference.philox(np.array([block], np.uint64), seed, counter)[0]
    for answer in (bits, of_reference):
        assert " ".join(f"{word:08x}" for word in answer) == words


@pytest.mark.parametrize("blocks", [15, 16, 17, 31, 32, 33, 50, 100])
def test_philox_beyond_one_call_of_lanes(blocks, isa, guarded):
    bits = guarded(np.zeros((blocks, 4), np.int32)).view(np.uint32)
    kernel("random_bits")(bits, blocks, 12345, 678, 2**32 - 20)
    np.testing.assert_array_equal(bits, reference.philox(np.arange(2**32 - 20, 2**32 - 20 + blocks), 12345, 678))


# ---- Dropout ----------------------------------------------------------------------------------------

MASK_SIZES = (0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 95, 97, 127, 128, 129, 1000, 1023, 1024, 1025, 2049, 100003)


@pytest.mark.parametrize("size", MASK_SIZES)
def test_dropout(isa, dtype, size, rng, guarded, close, same_bits):
    x, dy = normal(rng, size, dtype), normal(rng, size, dtype)
    seed, counter = 2**64 - size - 1, size
    expected, kept = reference.dropout(x.astype(np.float64), 0.3, seed=seed, counter=counter)
    y, bits = functional.dropout(guarded(x, 1), 0.3, seed=seed, counter=counter, out=guarded(x, 2))
    close(y, expected)
    np.testing.assert_array_equal(bits, np.packbits(kept, bitorder="little"))
    same_bits(y == 0, ~kept)

    again, mask = functional.dropout(x, 0.3, seed=seed, counter=counter, mask_format="bytes")
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, kept)
    same_bits(again, y)

    dx = functional.dropout_backward(guarded(dy, 1), bits, 0.3, out=guarded(x, 3))
    close(dx, reference.dropout_backward(dy.astype(np.float64), kept, 0.3))
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
    x = normal(rng, 77, dtype)
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


# ---- Dropout behind bias and ReLU -------------------------------------------------------------------


@pytest.mark.parametrize("columns", [0, 1, 2, 31, 32, 70, 512, 1061, 2500])
@pytest.mark.parametrize("rows", [0, 1, 3, 130])
def test_bias_relu_dropout_is_the_one_after_the_other(isa, dtype, rows, columns, rng, guarded, close, same_bits):
    x, dy = (normal(rng, (rows, columns), dtype) for _ in range(2))
    bias = normal(rng, columns, dtype)
    key = {"seed": 2**64 - 1 - rows, "counter": columns}
    expected, mask = functional.dropout(functional.bias_relu_forward(x, bias), 0.3, **key)
    y = functional.bias_relu_dropout_forward(guarded(x, 1), guarded(bias, 2), 0.3, **key, out=guarded(x, 3))
    same_bits(y, expected)
    close(y, reference.bias_relu_dropout_forward(x.astype(np.float64), bias.astype(np.float64), 0.3, **key))

    dx, dbias = functional.bias_relu_dropout_backward(guarded(dy, 1), guarded(y, 2), 0.3, out=guarded(x, 3))
    wanted, wanted_bias = reference.bias_relu_dropout_backward(dy.astype(np.float64), y, 0.3)
    close(dx, wanted)
    close(dbias, wanted_bias)
    masked = functional.dropout_backward(dy, mask, 0.3)  # what the two backward passes give one after the other
    same_bits(dx, functional.bias_relu_backward(masked, functional.bias_relu_forward(x, bias))[0])


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
    x, bias, dy = normal(rng, (9, 70), dtype), normal(rng, 70, dtype), normal(rng, (9, 70), dtype)
    y = functional.bias_relu_dropout_forward(x, bias, 0, seed=1, counter=1)
    same_bits(y, functional.bias_relu_forward(x, bias))
    for actual, expected in zip(
        functional.bias_relu_dropout_backward(dy, y, 0), functional.bias_relu_backward(dy, y), strict=True
    ):
        same_bits(actual, expected)


def test_bias_relu_dropout_of_images_and_in_place(isa, rng, guarded, same_bits):
    x, bias, dy = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal(5), rng.standard_normal((2, 3, 4, 5))
    y = functional.bias_relu_dropout_forward(x, bias, 0.5, seed=1, counter=1)
    dx, dbias = functional.bias_relu_dropout_backward(dy, y, 0.5)
    assert y.shape == dx.shape == x.shape
    own = guarded(x, 3)
    assert functional.bias_relu_dropout_forward(own, bias, 0.5, seed=1, counter=1, out=own) is own
    same_bits(own, y)
    own = guarded(dy, 3)
    same, own_dbias = functional.bias_relu_dropout_backward(own, y, 0.5, out=own)
    assert same is own
    same_bits(own, dx)
    same_bits(own_dbias, dbias)


def test_bias_relu_dropout_of_special_values(isa, dtype):
    """What is dropped is zero whatever it was; NaN and infinity pass where they are kept."""
    n = 300
    x = np.resize(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], dtype), (n, 1))
    _, kept = functional.dropout(np.ones((n, 1)), 0.5, seed=1, counter=1, mask_format="bytes")
    y = functional.bias_relu_dropout_forward(x, np.zeros(1, dtype), 0.5, seed=1, counter=1)
    np.testing.assert_array_equal(y, np.where(kept, 2 * np.resize([np.nan, np.inf, 0, 0, 0, 1], (n, 1)), 0))


# ---- Every alignment --------------------------------------------------------------------------------

# Kernels that first step to a cache line of their output: arrays of n elements, all but the mask placed by `at`.
TO_A_LINE = {
    "relu_forward": lambda n, at: [functional.relu_forward(at(n, 1), out=at(n, 0))],
    "relu_backward": lambda n, at: [functional.relu_backward(at(n, 1), at(n, 2), out=at(n, 0))],
    "dropout": lambda n, at: list(functional.dropout(at(n, 1), 0.3, seed=n, counter=1, out=at(n, 0))),
    "dropout_apply": lambda n, at: [
        functional.dropout_apply(at(n, 1), np.arange(n) % 3 > 0, 0.3, out=at(n, 0)),
        functional.dropout_apply(at(n, 1), np.arange((n + 7) // 8, dtype=np.uint8), 0.3, out=at(n, 0)),
    ],
    "bias_relu_dropout_forward": lambda n, at: [
        functional.bias_relu_dropout_forward(at(n, 1), at(n, 2), 0.3, seed=n, counter=1, out=at(n, 0)),
    ],
}


def sizes_around_thresholds(itemsize):
    return sorted({n + by for n in (32, 128, 1024, 8192 // itemsize) for by in (-1, 0, 1)} | {8192 // itemsize + 777})


@pytest.mark.parametrize("name", TO_A_LINE)
def test_every_alignment_of_the_output(name, isa, dtype, rng, guarded, same_bits):
    """At each place of an output in its cache line, with inputs that are elsewhere in theirs."""
    values, per_line = rng.standard_normal((3, 8192)).astype(dtype), 64 // dtype.itemsize
    for n in sizes_around_thresholds(dtype.itemsize):
        expected = TO_A_LINE[name](n, lambda n, i: values[i, :n].copy())
        for offset in range(per_line):
            for beside in (0, 1):  # whether the inputs go along with the output
                results = TO_A_LINE[name](
                    n, lambda n, i, offset=offset, beside=beside: guarded(values[i, :n], offset + i * beside)
                )
                for actual, wanted in zip(results, expected, strict=True):
                    same_bits(actual, wanted, f"{n} elements, offset {offset}")


@pytest.mark.parametrize("past", range(0, 64, 5))
def test_a_mask_is_written_to_its_end_and_not_beyond(isa, dtype, past, same_bits):
    for n in sizes_around_thresholds(dtype.itemsize):
        size, memory = (n + 7) // 8, np.full(64 + past + 1024, 0xA5, np.uint8)
        x, y, mask = np.ones(n, dtype), np.ones(n, dtype), memory[past : past + size]
        kernel("dropout_forward")(x, y, mask, 3, 4, 2**15, 2.0)
        same_bits(mask, functional.dropout(x, 0.5, seed=3, counter=4)[1])
        assert (memory[:past] == 0xA5).all()
        assert (memory[past + size :] == 0xA5).all()


# ---- Batch norm -------------------------------------------------------------------------------------

CHANNELS = (1, 2, 3, 10, 16, 20, 31, 32, 33, 40, 64, 100)
INNER = ((2,), (31,), (32,), (33,), (7, 7), (32, 32), (5, 1, 13), (1,), (1, 1))
SHAPES = [(n, c) for n in (2, 37, 500) for c in CHANNELS]
SHAPES += [(3, c, *inner) for c in (1, 2, 3, 33) for inner in INNER]
SHAPES += [(5, 300), (70, 1061), (3, 2100), (1, 4, 33), (200, 2, 3), (2, 2, 9001), (9001, 3), (50_000, 1)]
SHAPES += [(9, c) for c in (128, 256, 1024, 1056, 1057, 1088)] + [(40, 37, 9, 11), (2, 3, 64, 64), (2, 1, 4097)]


def batch(rng, shape, dtype):
    """x, dy; scale, shift, running mean and variance."""
    c = shape[1]
    x = rng.normal(rng.normal(size=(c, *[1] * (len(shape) - 2))), rng.uniform(0.5, 2), shape)
    vectors = [rng.normal(size=c), rng.normal(size=c), rng.normal(size=c), rng.uniform(0.5, 2, c)]
    return x.astype(dtype), normal(rng, shape, dtype), [v.astype(dtype) for v in vectors]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm(isa, dtype, shape, rng, guarded, close):
    x, dy, vectors = batch(rng, shape, dtype)
    wide = [v.astype(np.float64) for v in vectors]
    placed = [guarded(v, i + 1) for i, v in enumerate(vectors)]
    given = guarded(x, 2)
    y, cache = functional.batch_norm_forward(given, *placed, out=guarded(x, 3))
    expected, expected_cache, *running = reference.batch_norm_forward(x.astype(np.float64), *wide)
    np.testing.assert_array_equal(given, x)
    close(y, expected)
    for array, wanted in zip(placed, [*wide[:2], *running], strict=True):
        close(array, wanted)

    dx, *dvectors = functional.batch_norm_backward(guarded(dy, 1), cache, out=guarded(x, 2))
    wanted, *wanted_vectors = reference.batch_norm_backward(dy.astype(np.float64), expected_cache)
    tolerance = 1e-12 if dtype == np.float64 else 5e-6
    a = np.abs(expected_cache[1] * expected_cache[2]).max()  # dx = a (dy - …) may cancel to next to nothing
    np.testing.assert_allclose(dx, wanted, rtol=tolerance, atol=tolerance * a * np.abs(dy).max())
    for array, right in zip(dvectors, wanted_vectors, strict=True):
        np.testing.assert_allclose(array, right, rtol=tolerance, atol=tolerance * np.sqrt(x.size))

    y, cache = functional.batch_norm_forward(given, *placed, training=False, out=guarded(x, 1))
    assert cache is None
    close(y, reference.batch_norm_forward(x.astype(np.float64), *wide[:2], *running, training=False)[0])


LAST = [(6, 3), (6, 40), (5, 7, 9, 3), (5, 7, 9, 40), (2, 3, 4, 5, 32)]


@pytest.mark.parametrize("shape", LAST, ids=str)
def test_batch_norm_with_channels_last(isa, dtype, shape, rng, guarded, close, same_bits):
    c = shape[-1]
    x, dy, vectors = batch(rng, (math.prod(shape[:-1]), c), dtype)
    images, images_dy = (guarded(a.reshape(shape), i) for i, a in enumerate((x, dy)))
    for axis in (-1, len(shape) - 1):
        flat, own = ([v.copy() for v in vectors] for _ in range(2))
        y, cache = functional.batch_norm_forward(images, *own, axis=axis, out=guarded(images, 3))
        same_bits(y, functional.batch_norm_forward(x, *flat)[0].reshape(shape))
        for array, wanted in zip(own, flat, strict=True):
            same_bits(array, wanted)
        wide = [v.astype(np.float64) for v in vectors]
        expected, expected_cache, *_ = reference.batch_norm_forward(images.astype(np.float64), *wide, axis=axis)
        close(y, expected)
        gradients = functional.batch_norm_backward(images_dy, cache)
        wanted = reference.batch_norm_backward(images_dy.astype(np.float64), expected_cache)
        for gradient, right in zip(gradients, wanted, strict=True):
            atol = 1e-5 * np.abs(right).max()
            np.testing.assert_allclose(gradient, right, rtol=1e-5, atol=atol)
        y, _ = functional.batch_norm_forward(images, *flat, axis=axis, training=False)
        same_bits(y, functional.batch_norm_forward(x, *flat, training=False)[0].reshape(shape))


FUSED = [(50, 3), (9, 32), (37, 45), (70, 256), (5, 3, 4), (5, 3, 31), (4, 33, 7, 7), (3, 2, 70, 70)]


@pytest.mark.parametrize("shape", FUSED, ids=str)
@pytest.mark.parametrize("absent", [(), (0,), (1,), (0, 1)], ids=str)
def test_batch_norm_with_relu_is_both_one_after_the_other(isa, dtype, shape, absent, rng, same_bits):
    x, dy, (scale, shift, *running) = batch(rng, shape, dtype)
    x[0, 0] += 1e4  # an offset, and zeros of all kinds before the ReLU
    scale[1:2] = shift[1:3] = 0
    scale[2:3] = 1
    learnt = [None if i in absent else v for i, v in enumerate((scale, shift))]
    y, cache = functional.batch_norm_forward(x, *learnt)
    y = functional.relu_forward(y)
    fused, fused_cache = functional.batch_norm_forward(x, *learnt, relu=True)
    same_bits(fused, y)
    assert (y == 0).any()
    assert (y > 0).any()
    wanted = functional.batch_norm_backward(functional.relu_backward(dy, y), cache)
    for gradient, right in zip(functional.batch_norm_backward(dy, fused_cache), wanted, strict=True):
        same_bits(gradient, right)
    expected, expected_cache, *_ = reference.batch_norm_forward(
        x.astype(np.float64), *(1.0 - i if v is None else v.astype(np.float64) for i, v in enumerate(learnt)), relu=True
    )
    np.testing.assert_allclose(fused, expected, rtol=1e-5, atol=1e-5 * expected.max())
    if dtype == np.float64:  # whose zeros are zeros of the reference, too
        wanted = reference.batch_norm_backward(dy, expected_cache)
        for gradient, right in zip(functional.batch_norm_backward(dy, fused_cache), wanted, strict=True):
            np.testing.assert_allclose(gradient, right, atol=1e-9 * np.abs(right).max())

    y, _ = functional.batch_norm_forward(x, *learnt, *running, training=False)
    fused, _ = functional.batch_norm_forward(x, *learnt, *running, training=False, relu=True)
    same_bits(fused, functional.relu_forward(y))


@pytest.mark.parametrize("shape", [*FUSED, (300, 1200)], ids=str)
@pytest.mark.parametrize("p", [2**-16, 0.3, 0.9])
def test_batch_norm_with_relu_and_dropout_is_all_three_one_after_the_other(isa, dtype, shape, p, rng, same_bits):
    x, dy, (scale, shift, *running) = batch(rng, shape, dtype)
    scale[:1] = shift[1:2] = 0
    seeds = {"seed": 2**63 + 5, "counter": 2**40 + 3}
    y, cache = functional.batch_norm_forward(x, scale, shift, relu=True)
    y, mask = functional.dropout(y, p, **seeds)
    fused, fused_cache = functional.batch_norm_forward(x, scale, shift, relu=True, dropout=p, **seeds)
    same_bits(fused, y)
    wanted = functional.batch_norm_backward(functional.dropout_backward(dy, mask, p), cache)
    for gradient, right in zip(functional.batch_norm_backward(dy, fused_cache), wanted, strict=True):
        same_bits(gradient, right)

    y, _ = functional.batch_norm_forward(x, scale, shift, *running, training=False, relu=True)
    fused, _ = functional.batch_norm_forward(x, scale, shift, *running, training=False, relu=True, dropout=p)
    same_bits(fused, y)


WITH_POOL = [
    ((2, 5, 7, 3), (2, 2)),
    ((3, 8, 8, 16), (2, 2)),
    ((1, 9, 4, 33), (3, 2)),
    ((2, 6, 6, 1), (6, 6)),
    ((4, 7, 5, 40), (1, 3)),
    ((2, 5, 5, 300), (2, 2)),
    ((3, 2, 3, 32), (1, 1)),
]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("absent", [(), (0, 1)], ids=str)
@pytest.mark.parametrize(("shape", "size"), WITH_POOL, ids=str)
def test_batch_norm_with_max_pool_is_both_one_after_the_other(
    isa, dtype, shape, size, absent, relu, rng, guarded, same_bits
):
    c, options = shape[3], {"axis": -1, "relu": relu}
    x = rng.integers(-3, 3, shape).astype(dtype)  # with many ties
    vectors = [v.astype(dtype) for v in (*rng.normal(size=(3, c)), rng.uniform(0.5, 2, c))]
    vectors[0][:1] = 0
    vectors[0][1:2] = 1e-30  # by which different x become the same y
    own = [None if i in absent else v.copy() for i, v in enumerate(vectors)]
    flat = [None if i in absent else v.copy() for i, v in enumerate(vectors)]
    y, cache = functional.batch_norm_forward(x, *flat, **options)
    pooled, winner = functional.max_pool_forward(y, size)
    given = guarded(x, 1)
    places = {"out": guarded(pooled * 0, 2), "chosen": guarded(pooled * 0, 3)}
    fused, fused_cache = functional.batch_norm_forward(given, *own, **options, max_pool=size, **places)
    assert fused is places["out"]
    assert fused_cache.chosen is places["chosen"]
    for one, other in zip([fused, *own[2:], fused_cache.mean], [pooled, *flat[2:], cache.mean], strict=True):
        same_bits(one, other)

    dy = normal(rng, pooled.shape, dtype)
    wanted = functional.batch_norm_backward(functional.max_pool_backward(dy, winner, shape, size), cache)
    gradients = functional.batch_norm_backward(guarded(dy, 1), fused_cache, out=guarded(x, 2))
    tolerance = 1e-13 if dtype == np.float64 else 2e-6
    atol = tolerance * np.sqrt(x.size) * np.abs(dy).max()
    for gradient, right in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=0, atol=atol * max(1, np.abs(right).max()))
    wide = [1.0 - i if v is None else v.astype(np.float64) for i, v in enumerate(own)]
    expected, expected_cache, *_ = reference.batch_norm_forward(x.astype(np.float64), *wide[:2], **options)
    np.testing.assert_allclose(fused, reference.max_pool_forward(expected, size, size)[0], rtol=1e-5, atol=1e-5)
    by_reference = reference.batch_norm_backward(
        reference.max_pool_backward(dy.astype(np.float64), winner, shape, size, size), expected_cache
    )
    for gradient, right in zip(gradients, by_reference, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=0, atol=atol * max(1, np.abs(right).max()))
    in_place = functional.batch_norm_backward(dy, fused_cache, out=given)
    assert in_place[0] is given
    for one, other in zip(in_place, gradients, strict=True):
        same_bits(one, other)

    y, _ = functional.batch_norm_forward(x, *own, **options, training=False)
    fused, nothing = functional.batch_norm_forward(x, *own, **options, training=False, max_pool=size)
    assert nothing is None
    same_bits(fused, functional.max_pool_forward(y, size)[0])


def test_batch_norm_with_max_pool_keeps_nan(isa, dtype, rng):
    x = normal(rng, (2, 6, 4, 19), dtype)
    x[1, 2, 3, 4] = np.nan
    y, cache = functional.batch_norm_forward(x, axis=-1, relu=True, max_pool=2)
    dx, dscale, _ = functional.batch_norm_backward(np.ones_like(y), cache)
    bad = np.arange(19) == 4
    for result in (y, dx, dscale):
        np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(bad, result.shape))


def test_relu_of_a_batch_norm_keeps_nan(isa, dtype, rng):
    x = normal(rng, (40, 35), dtype)
    x[3, 7] = np.nan
    y, cache = functional.batch_norm_forward(x, relu=True)
    assert np.isnan(y[:, 7]).all()
    assert (np.delete(y, 7, 1) >= 0).all()
    dx, _, _ = functional.batch_norm_backward(np.ones_like(x), cache)
    assert np.isnan(dx[:, 7]).all()
    assert np.isfinite(np.delete(dx, 7, 1)).all()


def everything(x, dy, vectors, **options):
    """All that batch norm returns and updates."""
    vectors = [v.copy() for v in vectors]
    y, cache = functional.batch_norm_forward(x, *vectors, **options)
    return [y, cache.mean, cache.inv_std, *vectors[2:], *functional.batch_norm_backward(dy, cache)]


def of_channels(results, which):
    """What concerns some channels."""
    return [a[:, which] if a.ndim > 1 else a[which] for a in results]


NEIGHBOURS = {
    "NaN": lambda x: np.full_like(x, np.nan),
    "infinite": lambda x: np.full_like(x, np.inf),
    "far off": lambda x: outlier(x + 1e4, -3e6),
    "an outlier where means are guessed": lambda x: outlier(x.copy(), 1e7),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", NEIGHBOURS)
@pytest.mark.parametrize("shape", [(50, 3), (150, 20), (300, 40), (30, 1061), (6, 40, 7, 7), (40, 37, 33), (9, 50, 3)])
def test_a_channel_does_not_depend_on_its_neighbours(isa, dtype, shape, kind, relu, rng, same_bits):
    x, dy, vectors = batch(rng, shape, dtype)
    own = np.arange(shape[1]) % 3 == 1
    expected = of_channels(everything(x, dy, vectors, relu=relu), own)
    with np.errstate(all="ignore"):
        x[:, ~own] = NEIGHBOURS[kind](x[:, ~own])
    for actual, wanted in zip(of_channels(everything(x, dy, vectors, relu=relu), own), expected, strict=True):
        same_bits(actual, wanted)


@pytest.mark.parametrize(
    ("shape", "start", "end"),
    [((70, 1061), 0, 32), ((300, 1061), 64, 1061), ((150, 128), 32, 80), ((150, 40), 0, 32), ((9, 2200), 1024, 2200)]
    + [(shape, c, c + 1) for shape in [(6, 40, 7, 7), (40, 37, 33), (40, 3, 1100), (9, 5, 3)] for c in (0, 2)],
)
def test_channels_alone_have_the_bits_that_they_have_among_others(isa, dtype, shape, start, end, rng, same_bits):
    """To be shared out among threads: where channels lie side by side, at multiples of 32 channels."""
    x, dy, vectors = batch(rng, shape, dtype)
    outlier(x, 1e6)  # has means looked for twice
    expected = of_channels(everything(x, dy, vectors), slice(start, end))
    x, dy = (np.ascontiguousarray(a[:, start:end]) for a in (x, dy))
    for actual, wanted in zip(everything(x, dy, [v[start:end] for v in vectors]), expected, strict=True):
        same_bits(actual, wanted)


@pytest.mark.parametrize("shape", [(37, 256), (37, 133), (50, 16), (3, 5, 196)], ids=str)
def test_batch_norm_does_not_depend_on_where_arrays_lie(isa, dtype, shape, rng, guarded, same_bits):
    x, dy, vectors = batch(rng, shape, dtype)
    expected = everything(x, dy, vectors, relu=True)
    for offset in range(17):
        placed = guarded(x, offset), guarded(dy, offset // 2), [guarded(v, offset) for v in vectors]
        for actual, wanted in zip(everything(*placed, relu=True), expected, strict=True):
            same_bits(actual, wanted)


@pytest.mark.parametrize("absent", [(0,), (1,), (0, 1), (2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(9, 40), (9, 5), (4, 3, 35)], ids=str)
def test_batch_norm_without_some_of_its_vectors(shape, absent, rng, close):
    x, dy, vectors = batch(rng, shape, np.float64)
    vectors = [None if i in absent else v for i, v in enumerate(vectors)]
    stand_ins = [default if v is None else v for v, default in zip(vectors[:2], (1.0, 0.0), strict=True)]
    expected, expected_cache, *running = reference.batch_norm_forward(x, *stand_ins, *vectors[2:])
    y, cache = functional.batch_norm_forward(x, *vectors)
    close(y, expected)
    for gradient, wanted in zip(
        functional.batch_norm_backward(dy, cache),
        reference.batch_norm_backward(dy, expected_cache),
        strict=True,
    ):
        close(gradient, wanted)
    if vectors[2] is not None:
        close(vectors[2], running[0])
        close(vectors[3], running[1])
        y, _ = functional.batch_norm_forward(x, *vectors, training=False)
        close(y, reference.batch_norm_forward(x, *stand_ins, *vectors[2:], training=False)[0])


@pytest.mark.parametrize("eps", [0, 1e-5, 10])
@pytest.mark.parametrize("momentum_of", ["new", "old"])
@pytest.mark.parametrize("momentum", [0, 0.1, 0.99, 1])
@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_options(eps, momentum, momentum_of, unbiased, rng, close):
    options = {"eps": eps, "momentum": momentum, "momentum_of": momentum_of, "unbiased": unbiased}
    x, _, vectors = batch(rng, (5, 3), np.float64)
    expected, _, *running = reference.batch_norm_forward(x, *vectors, **options)
    y, _ = functional.batch_norm_forward(x, *vectors, **options)
    for array, wanted in zip((y, *vectors[2:]), (expected, *running), strict=True):
        close(array, wanted)


def test_batch_norm_of_one_value_per_channel(rng):
    """Its variance is 0, so nothing is left but the shift; the biased running variance takes the 0 in."""
    x, _, (scale, shift, mean, var) = batch(rng, (1, 5), np.float64)
    np.testing.assert_array_equal(functional.batch_norm_forward(x, scale, shift)[0], shift[None])
    before = var.copy()
    functional.batch_norm_forward(x, scale, shift, mean, var, unbiased=False)
    np.testing.assert_allclose(var, 0.9 * before)


HARD = {  # what stands in the way of a sum in float32
    "offset": lambda rng, shape, noise: 1e4 + noise * rng.standard_normal(shape),
    "negative offset": lambda rng, shape, noise: -1e4 + noise * rng.standard_normal(shape),
    "first is an outlier": lambda rng, shape, noise: outlier(1e4 + noise * rng.standard_normal(shape), 2e4),
    "first is far off": lambda rng, shape, noise: outlier(0.1 + noise * rng.standard_normal(shape), -1e4),
}


def outlier(x, value):
    x.reshape(*x.shape[:2], -1)[0, :, 0] = value
    return x


@pytest.mark.parametrize("shape", [(300, 5), (1000, 33), (100_000, 2), (4, 3, 57), (2, 2, 100_003)], ids=str)
@pytest.mark.parametrize("noise", [0.01, 1, 100])
@pytest.mark.parametrize("kind", HARD)
def test_batch_norm_loses_no_digits(isa, kind, noise, shape, rng):
    x = HARD[kind](rng, shape, noise).astype(np.float32)
    dy = normal(rng, shape, np.float32)
    running = np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)
    y, cache = functional.batch_norm_forward(x, None, None, *running, momentum=1)
    expected, expected_cache, *expected_running = reference.batch_norm_forward(
        x.astype(np.float64), 1.0, 0.0, *(r.astype(np.float64) for r in running), momentum=1
    )
    gradients = functional.batch_norm_backward(dy, cache)
    wanted = reference.batch_norm_backward(dy.astype(np.float64), expected_cache)
    for actual, right in zip((y, running[1], *gradients), (expected, expected_running[1], *wanted), strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-4 * np.sqrt(np.mean(right**2)))
    np.testing.assert_allclose(running[0], expected_running[0], rtol=1e-6, atol=1e-4 * x.std())


def test_batch_norm_of_a_constant_is_the_shift(isa, dtype):
    for value in (0.1, 1e4 + 0.1, -3e7):
        x = np.full((1000, 7), value, dtype)
        y, _ = functional.batch_norm_forward(x, np.ones(7, dtype), np.full(7, 0.25, dtype))
        np.testing.assert_allclose(y, 0.25, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 3), (2, 33), (2, 1, 2, 2)], ids=str)
def test_batch_norm_backward_by_finite_differences(shape, rng):
    x, dy, (scale, shift, *_) = batch(rng, shape, np.float64)
    _, cache = functional.batch_norm_forward(x, scale, shift)
    gradients = functional.batch_norm_backward(dy, cache)

    def loss():
        return np.vdot(dy, functional.batch_norm_forward(x, scale, shift)[0])

    for array, gradient in zip((x, scale, shift), gradients, strict=True):
        np.testing.assert_allclose(gradient, differences(loss, array), rtol=1e-6, atol=1e-7)


def differences(loss, array, h=1e-6):
    """The gradient of a loss with respect to an array that it reads, by central differences."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + h
        above = loss()
        array[index] = kept - h
        gradient[index] = (above - loss()) / (2 * h)
        array[index] = kept
    return gradient


def test_a_nan_spoils_its_channel_alone(isa, dtype, rng):
    for shape, clean in (
        ((50, 40), (slice(None), np.arange(40) != 7)),
        ((5, 4, 45), (slice(None), np.arange(4) != 2)),
    ):
        x = normal(rng, shape, dtype)
        expected = functional.batch_norm_forward(x)[0]
        x[1, ~clean[1]] = np.nan
        y = functional.batch_norm_forward(x)[0]
        assert np.isnan(y[:, ~clean[1]]).all()
        np.testing.assert_allclose(y[clean], expected[clean], atol=4 * np.finfo(dtype).eps)


def test_softmax_and_bias_backward_by_finite_differences(rng):
    logits, labels = rng.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    dlogits = functional.softmax_cross_entropy(logits, labels)[1]
    np.testing.assert_allclose(
        dlogits, differences(lambda: functional.softmax_cross_entropy(logits, labels)[0], logits), atol=1e-8
    )
    x, bias, dy = rng.standard_normal((4, 5)), rng.standard_normal(5), rng.standard_normal((4, 5))
    dx, dbias = functional.bias_relu_backward(dy, functional.bias_relu_forward(x, bias))
    for array, gradient in ((x, dx), (bias, dbias)):
        by_differences = differences(lambda: np.vdot(dy, functional.bias_relu_forward(x, bias)), array)
        np.testing.assert_allclose(gradient, by_differences, atol=1e-8)


# ---- Images -----------------------------------------------------------------------------------------

IMAGES = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 8, 8, 16), (3, 9, 4, 33), (2, 6, 6, 1)]
WINDOWS = [
    ((1, 1), (1, 1)),
    ((2, 2), (2, 2)),
    ((3, 3), (1, 1)),
    ((3, 2), (2, 1)),
    ((2, 3), (3, 4)),
    ((1, 4), (1, 2)),
]
FITTING = [
    (shape, size, stride) for shape in IMAGES for size, stride in WINDOWS if size[0] <= shape[1] and size[1] <= shape[2]
]


@pytest.mark.parametrize(("shape", "size", "stride"), FITTING, ids=str)
def test_max_pool(isa, dtype, shape, size, stride, rng, guarded, same_bits):
    x = rng.integers(-3, 3, shape).astype(dtype)  # with many ties
    expected, expected_winner = reference.max_pool_forward(x, size, stride)
    y, winner = functional.max_pool_forward(guarded(x, 1), size, stride, out=guarded(expected * 0, 2))
    same_bits(y, expected)
    np.testing.assert_array_equal(winner, expected_winner)
    dy = rng.integers(-9, 9, y.shape).astype(dtype)  # whole numbers, so that no sum is rounded
    dx = functional.max_pool_backward(guarded(dy, 1), winner, shape, size, stride, out=guarded(x, 3))
    np.testing.assert_array_equal(dx, reference.max_pool_backward(dy, winner, shape, size, stride))


def test_max_pool_of_nan(isa, dtype, rng):
    x = normal(rng, (2, 9, 9, 5), dtype)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[rng.random(x.shape) < 0.2] = -np.inf
    expected, expected_winner = reference.max_pool_forward(x, (3, 3), (2, 2))
    y, winner = functional.max_pool_forward(x, 3, 2)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winner, expected_winner)


def test_one_number_stands_for_height_and_width_and_the_stride_is_the_size(rng):
    x = rng.standard_normal((2, 7, 7, 3))
    expected = functional.max_pool_forward(x, (2, 2), (2, 2))
    for actual, wanted in zip(functional.max_pool_forward(x, 2), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    np.testing.assert_array_equal(functional.im2col(x, 3, 2, 1), functional.im2col(x, (3, 3), (2, 2), (1, 1)))


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize(("shape", "size", "stride"), FITTING, ids=str)
def test_im2col_and_its_transpose(isa, dtype, shape, size, stride, padding, rng, guarded, same_bits):
    x = rng.integers(-9, 9, shape).astype(dtype)
    expected = reference.im2col(x, size, stride, padding)
    columns = functional.im2col(guarded(x, 1), size, stride, padding, out=guarded(expected * 0, 2))
    same_bits(columns, expected)
    assert columns.shape == functional.patches_shape(shape, size, stride, padding)

    y = rng.integers(-9, 9, columns.shape).astype(dtype)
    back = functional.col2im(guarded(y, 1), shape, size, stride, padding, out=guarded(x, 3))
    np.testing.assert_array_equal(back, reference.col2im(y, shape, size, stride, padding))
    assert np.vdot(columns, y) == np.vdot(x, back)


@pytest.mark.parametrize("dilation", [(2, 1), (1, 2), (3, 2)], ids=str)
@pytest.mark.parametrize(("size", "stride", "padding"), [((2, 3), (1, 1), (0, 0)), ((3, 2), (2, 3), (2, 4))], ids=str)
def test_im2col_with_dilation(isa, dtype, size, stride, padding, dilation, rng, guarded, same_bits):
    shape = (2, 9, 8, 5)
    x = rng.integers(-9, 9, shape).astype(dtype)
    expected = reference.im2col(x, size, stride, padding, dilation)
    options = {"size": size, "stride": stride, "padding": padding, "dilation": dilation}
    columns = functional.im2col(guarded(x, 1), out=guarded(expected * 0, 2), **options)
    same_bits(columns, expected)
    assert columns.shape == functional.patches_shape(shape, **options)
    y = rng.integers(-9, 9, columns.shape).astype(dtype)
    back = functional.col2im(guarded(y, 1), shape, out=guarded(x, 3), **options)
    np.testing.assert_array_equal(back, reference.col2im(y, shape, size, stride, padding, dilation))
    assert np.vdot(columns, y) == np.vdot(x, back)


# ---- Dense layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "inputs", "columns"),
    [
        *((1, 1, 1), (7, 3, 10), (64, 33, 32), (13, 600, 45), (25, 40, 96), (12, 5, 513), (3, 1100, 70), (600, 4, 64)),
        *((0, 4, 40), (5, 0, 40), (5, 4, 0)),
    ],
)
def test_dense(isa, dtype, rows, inputs, columns, rng, guarded):
    """Of whole numbers, so that no sum is rounded."""
    x, weight, dy = (
        rng.integers(-9, 9, shape).astype(dtype) for shape in ((rows, inputs), (inputs, columns), (rows, columns))
    )
    bias = rng.integers(-99, 99, columns).astype(dtype)
    placed = guarded(x, 1), guarded(weight, 2)
    np.testing.assert_array_equal(functional.dense_forward(*placed, out=guarded(dy, 3)), x @ weight)
    y = functional.dense_forward(*placed, guarded(bias, 3), relu=True)
    np.testing.assert_array_equal(y, np.maximum(x @ weight + bias, 0))
    dx = guarded(x, 3)
    assert functional.dense_input_grad(guarded(dy, 1), placed[1], out=dx) is dx
    np.testing.assert_array_equal(dx, dy @ weight.T)
    dbias = guarded(bias, 1)
    dweight = functional.dense_weight_grad(placed[0], guarded(dy, 2), out=guarded(weight, 1), dbias=dbias)
    np.testing.assert_array_equal(dweight, x.T @ dy)
    np.testing.assert_array_equal(dbias, dy.sum(axis=0))


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


@pytest.mark.parametrize(("products", "pays"), [("own", True), ("blas", False)])
def test_products_can_be_chosen(products, pays, monkeypatch):
    monkeypatch.setattr(functional.dense, "PRODUCTS", products)
    assert functional.dense_pays() is pays


@pytest.mark.parametrize(
    ("shape", "size", "filters", "stride", "padding"),
    [
        ((2, 5, 9, 3), (3, 3), 16, (1, 1), (1, 1)),
        ((2, 7, 33, 5), (3, 3), 48, (1, 1), (1, 1)),
        ((1, 6, 5, 1), (3, 3), 80, (1, 1), (0, 0)),
        ((2, 9, 40, 1), (3, 3), 16, (1, 1), (1, 1)),
        ((3, 8, 9, 1), (3, 3), 48, (2, 3), (2, 1)),
        ((2, 7, 6, 3), (3, 1), 16, (1, 1), (1, 0)),
        ((3, 1, 1, 35), (3, 3), 16, (1, 1), (1, 1)),
        ((2, 9, 10, 4), (2, 5), 32, (1, 1), (1, 4)),
        ((2, 9, 10, 4), (4, 1), 32, (1, 1), (3, 0)),
        ((2, 9, 21, 4), (3, 2), 16, (2, 3), (1, 2)),
        ((1, 2, 2, 2), (3, 3), 16, (1, 1), (2, 2)),
        ((1, 3, 150, 2), (3, 3), 16, (1, 1), (1, 1)),
        ((1, 70, 1, 2), (1, 1), 16, (1, 1), (0, 0)),
        ((1, 4, 339, 16), (3, 3), 16, (1, 1), (0, 0)),  # as large as fits
        ((2, 5, 5, 0), (3, 3), 16, (1, 1), (1, 1)),
    ],
    ids=str,
)
def test_conv2d(isa, dtype, shape, size, filters, stride, padding, rng, guarded, same_bits):
    """Of whole numbers, so that no sum is rounded."""
    x, weight = rng.integers(-9, 9, shape).astype(dtype), rng.integers(-9, 9, (*size, shape[3], filters)).astype(dtype)
    bias = rng.integers(-99, 99, filters).astype(dtype)
    columns = reference.im2col(x, size, stride, padding)
    rows = columns.reshape(math.prod(columns.shape[:3]), -1 if columns.size else 0)
    expected = (rows @ weight.reshape(rows.shape[1], filters) + bias).reshape(*columns.shape[:3], filters)
    assert functional.conv2d_fits(shape, filters, size, stride, padding)
    placed = guarded(x, 1), guarded(weight, 2), guarded(bias, 3), stride, padding
    np.testing.assert_array_equal(functional.conv2d(*placed, out=guarded(expected * 0, 3)), expected)
    packed = guarded(np.ones(functional.packed_shape(weight.shape), dtype), 1)
    np.testing.assert_array_equal(functional.conv2d(*placed, relu=True, packed=packed), np.maximum(expected, 0))
    for fewer in (1, 7, filters - 1):
        own = np.ascontiguousarray(weight[..., :fewer])
        y = functional.conv2d(x, own, None, stride, padding, out=guarded(expected[..., :fewer], 1))
        np.testing.assert_array_equal(y, (expected - bias)[..., :fewer])

    dy = rng.integers(-9, 9, expected.shape).astype(dtype)
    dweight = guarded(weight, 1)
    dbias = guarded(bias, 2)
    placed = {"out": dweight, "dbias": dbias}
    assert functional.conv2d_weight_grad(guarded(x, 2), guarded(dy, 3), size, stride, padding, **placed) is dweight
    np.testing.assert_array_equal(dbias, dy.sum(axis=(0, 1, 2)))
    np.testing.assert_array_equal(dweight, (rows.T @ dy.reshape(-1, filters)).reshape(weight.shape))
    if stride == (1, 1):
        dx = functional.conv2d_input_grad(dy, weight, shape, padding, out=guarded(x, 3))
        dcolumns = (dy.reshape(-1, filters) @ weight.reshape(rows.shape[1], filters).T).reshape(columns.shape)
        np.testing.assert_array_equal(dx, reference.col2im(dcolumns, shape, size, stride, padding))


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize(
    ("shape", "filters"),
    [((2, 9, 8, 16), 32), ((1, 3, 3, 48), 16), ((3, 14, 7, 16), 80), ((2, 6, 33, 128), 112), ((0, 5, 5, 16), 16)],
    ids=str,
)
def test_conv2d_by_winograd(isa, dtype, shape, filters, padding, rng, guarded, same_bits):
    """Of whole numbers that are multiples of 4, so that no sum is rounded."""
    c = shape[3]
    x, weight = rng.integers(-9, 9, shape).astype(dtype), 4 * rng.integers(-3, 3, (3, 3, c, filters)).astype(dtype)
    bias = rng.integers(-99, 99, filters).astype(dtype)
    expected = functional.conv2d(x, weight, bias, 1, padding)
    packed = np.ones(functional.packed_shape(weight.shape, winograd=True), dtype)
    for relu in (False, True):
        placed = {"out": guarded(expected * 0, 1), "packed": guarded(packed)}
        arrays = guarded(x, 1), guarded(weight, 2), guarded(bias, 3)
        y = functional.conv2d(*arrays, 1, padding, relu=relu, winograd=True, **placed)
        np.testing.assert_array_equal(y, np.maximum(expected, 0) if relu else expected)
    dy = 4 * rng.integers(-9, 9, expected.shape).astype(dtype)
    wanted = functional.conv2d_weight_grad(x, dy, 3, 1, padding)
    dbias = guarded(bias, 3)
    placed = {"out": guarded(weight, 1), "sums": guarded(np.ones((16, c, filters), dtype), 2), "dbias": dbias}
    actual = functional.conv2d_weight_grad(guarded(x, 3), guarded(dy, 2), 3, 1, padding, winograd=True, **placed)
    np.testing.assert_array_equal(actual, wanted)
    np.testing.assert_array_equal(dbias, dy.sum(axis=(0, 1, 2)))
    wanted = functional.conv2d_input_grad(dy, weight, shape, padding)
    actual = functional.conv2d_input_grad(dy, weight, shape, padding, winograd=True, out=guarded(x, 3))
    np.testing.assert_array_equal(actual, wanted)


def test_winograd_loses_no_more_digits_than_sums_in_order(isa, rng):
    x, weight, dy = (normal(rng, shape, np.float64) for shape in ((4, 12, 12, 64), (3, 3, 64, 32), (4, 10, 10, 32)))
    x += 1
    own = [a.astype(np.float32) for a in (x, weight, dy)]
    for function, arrays in (
        (lambda x, w, dy, **o: functional.conv2d(x, w, **o), (x, weight, dy)),
        (lambda x, w, dy, **o: functional.conv2d_input_grad(dy, w, x.shape, **o), (x, weight, dy)),
        (lambda x, w, dy, **o: functional.conv2d_weight_grad(x, dy, 3, **o), (x, weight, dy)),
    ):
        exact = function(*arrays)
        for winograd in (False, True):
            off = np.abs(function(*own, winograd=winograd) - exact).max() / np.abs(exact).max()
            assert off < 3e-6


def test_conv2d_keeps_nan(isa, dtype):
    x, weight = np.ones((1, 9, 9, 2), dtype), np.ones((3, 3, 2, 16), dtype)
    x[0, 4, 4, 0] = np.nan
    y = functional.conv2d(x, weight, None, 1, 1, relu=True)
    reached = np.zeros((9, 9), bool)
    reached[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y[0, :, :, 5]), reached)


def test_conv2d_of_what_does_not_fit(rng):
    x, weight = rng.normal(size=(1, 5, 200, 64)), rng.normal(size=(3, 3, 64, 16))
    assert not functional.conv2d_fits(x.shape, 16, 3, 1, 1)
    with pytest.raises(ValueError, match="must fit"):
        functional.conv2d(x, weight, None, 1, 1)
    with pytest.raises(ValueError, match=r"weight must have shape \(kh, kw, 64, k\), got \(3, 3, 63, 16\)"):
        functional.conv2d(x, weight[:, :, 1:].copy(), None, 1, 1)
    with pytest.raises(ValueError, match="a multiple of 16 filters"):
        functional.conv2d_weight_grad(x[:, :, :9].copy(), np.ones((1, 5, 9, 15)), 3, 1, 1)
    for shape, stride in (((3, 3, 24, 16), 1), ((3, 2, 16, 16), 1), ((3, 3, 16, 16), 2), ((3, 3, 144, 16), 1)):
        with pytest.raises(ValueError, match="winograd must be False for a weight of shape"):
            functional.conv2d(np.ones((1, 5, 5, shape[2])), np.ones(shape), None, stride, winograd=True)
    with pytest.raises(ValueError, match="winograd must be False"):
        functional.conv2d_weight_grad(np.ones((1, 5, 5, 8)), np.ones((1, 3, 3, 16)), 3, winograd=True)
    with pytest.raises(ValueError, match="padding must be below the weight's size"):
        functional.conv2d_input_grad(np.ones((1, 9, 9, 16)), np.ones((3, 3, 2, 16)), (1, 5, 5, 2), 3)


# ---- Empty arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 3, 4), (2, 3, 0)], ids=str)
def test_batch_norm_of_nothing(shape):
    c = shape[1]
    running = np.zeros(c), np.ones(c)
    y, cache = functional.batch_norm_forward(np.empty(shape), np.ones(c), np.ones(c), *running)
    dx, dscale, dshift = functional.batch_norm_backward(y, cache)
    assert y.shape == dx.shape == shape
    for zero in (dscale, dshift, running[0], running[1] - 1):
        np.testing.assert_array_equal(zero, np.zeros(c))


def test_softmax_of_nothing():
    loss, dlogits = functional.softmax_cross_entropy(np.empty((0, 3)), np.empty(0, int))
    assert loss == 0.0
    assert dlogits.shape == (0, 3)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 0)], ids=str)
def test_images_of_nothing(shape):
    y, winner = functional.max_pool_forward(np.empty(shape), 2)
    assert functional.max_pool_backward(y, winner, shape, 2).shape == shape
    columns = functional.im2col(np.empty(shape), 3, 1, 1)
    assert functional.col2im(columns, shape, 3, 1, 1).shape == shape


# ---- The yardstick of the benchmarks ----------------------------------------------------------------


@pytest.mark.parametrize("arrays", [1, 2, 3, 4])
def test_stream(isa, dtype, arrays, rng, guarded, same_bits):
    x, *values = (normal(rng, 1001, dtype) for _ in range(1 + arrays))
    placed = [guarded(a, i) for i, a in enumerate(values)]
    kernel("stream")(x, *placed, *[None] * (4 - arrays), 0.5)
    for array, a in zip(placed, values, strict=True):
        same_bits(array, (dtype.type(0.5) * a + x))
