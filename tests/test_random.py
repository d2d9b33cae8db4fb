"""The masks of dropout and the random words behind them, as statistics see them.

Seeds are fixed, so each test always comes out alike; what it allows is what chance gives a fair generator but once in a
million times or so: 5 standard deviations, or a chi-square that lies as far out.
"""

import math

import numpy as np
import pytest

from fastopt import functional, reference
from fastopt.kernel import kernel

SIGMAS = 5
PROBABILITIES = [0.001, 0.1, 0.3, 1 / 3, 0.5, 0.7, 0.9, 1 - 1 / 300]


def mask_of(n, p=0.5, seed=3, counter=0):
    return functional.dropout(np.ones(n, np.float32), p, seed=seed, counter=counter, mask_format="bytes")[1]


def words_of(n, seed=3, counter=0):
    """So many random words of 16 bits, as the masks take them, but for their order."""
    bits = np.empty((n // 8, 4), np.uint32)
    kernel("random_bits")(bits, n // 8, seed, counter, 0)
    return bits.view(np.uint16).ravel()


def assert_uniform(counts, expected=None):
    """By chi-square, which with many bins is about normal: neither too far from what is expected, nor too near."""
    expected = counts.sum() / counts.size if expected is None else expected
    freedom = counts.size - 1
    chi_square = (np.square(counts - expected) / expected).sum()
    assert abs(chi_square - freedom) < SIGMAS * math.sqrt(2 * freedom)


def correlation(a, b, p):
    """Of two masks that keep 1 - p, in standard deviations of what chance gives."""
    a, b = (np.ravel(mask) - (1 - p) for mask in (a, b))
    return np.dot(a, b) / (p * (1 - p) * math.sqrt(a.size))


# ---- Known answers --------------------------------------------------------------------------------

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


# ---- Words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["word", "high byte", "low byte", "middle"])
def test_words_are_uniform(part):
    words = words_of(2**22)
    bins = {"word": words, "high byte": words >> 8, "low byte": words & 0xFF, "middle": (words >> 4) & 0xFF}[part]
    assert_uniform(np.bincount(bins, minlength=2**16 if part == "word" else 2**8))


@pytest.mark.slow
def test_every_bit_of_a_word_is_fair_and_on_its_own():
    n = 2**20
    bits = np.unpackbits(words_of(n).view(np.uint8).reshape(n, 2), axis=1) - 0.5
    products = bits.T @ bits / (0.25 * math.sqrt(n)) - math.sqrt(n) * np.eye(16)
    assert abs(products).max() < SIGMAS
    assert abs(bits.sum(axis=0)).max() < SIGMAS * math.sqrt(n / 4)


@pytest.mark.parametrize("lag", [1, 2, 4, 8, 16, 32, 64, 128])
def test_pairs_of_words_are_uniform(lag):
    high = (words_of(2**20) >> 12).astype(int)
    assert_uniform(np.bincount(16 * high[lag:] + high[:-lag], minlength=256))


# ---- One mask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", PROBABILITIES)
def test_dropout_drops_its_share(p):
    """In all, in every eighth of the elements, and at every place in a byte, in a group and in a unit of drawing."""
    n = 2**21
    dropped = ~mask_of(n, p)
    for per in (1, 8, 128, 1024):
        for shares in (dropped.reshape(-1, per).mean(axis=0), dropped.reshape(8, -1).mean(axis=1), dropped.mean()):
            count = n / np.size(shares)
            np.testing.assert_array_less(abs(shares - p), SIGMAS * math.sqrt(p * (1 - p) / count))


@pytest.mark.parametrize("lag", [1, 2, 7, 8, 16, 32, 64, 128, 256, 1024])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_do_not_know_of_each_other(p, lag):
    mask = mask_of(2**21, p)
    assert abs(correlation(mask[lag:], mask[:-lag], p)) < SIGMAS


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rows_and_columns(p):
    """Sums of rows and of columns vary as binomials do, and neighbours do not go together."""
    mask = mask_of(2**20, p).reshape(1024, 1024)
    variance = 1024 * p * (1 - p)
    for rows in (mask, mask.T):
        sums = rows.sum(axis=1)
        spread = np.square(sums - 1024 * (1 - p)).sum() / variance  # a chi-square of 1024
        assert abs(spread - 1024) < SIGMAS * math.sqrt(2 * 1024)
        assert abs(correlation(rows[1:], rows[:-1], p)) < SIGMAS
        neighbours = [correlation(a, b, p) for a, b in zip(rows[1:], rows[:-1], strict=True)]
        assert max(map(abs, neighbours)) < SIGMAS + 1  # of a thousand


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_runs(p):
    """As many stretches of kept elements as chance gives, and as many of each length."""
    n = 2**21
    mask = mask_of(n, p)
    edges = np.flatnonzero(np.diff(mask)) + 1
    runs, q = len(edges) + 1, p * (1 - p)
    assert abs(runs - 2 * n * q) < SIGMAS * math.sqrt(4 * n * q * (1 - 3 * q))
    lengths = np.diff(edges)[mask[edges[:-1]]]  # of those of kept elements: geometric
    longest = int(math.log(1000 / len(lengths)) / math.log(1 - p))  # of which there are still a thousand
    counts = np.bincount(np.minimum(lengths, longest + 1))[1:]
    shares = np.array([*(p * (1 - p) ** np.arange(longest)), (1 - p) ** longest])
    assert_uniform(counts, len(lengths) * shares)


def test_every_byte_of_a_mask_is_as_likely():
    _, bits = functional.dropout(np.ones(2**22, np.float32), 0.5, seed=8, counter=2)
    assert_uniform(np.bincount(bits, minlength=256))
    assert_uniform(np.bincount(bits.view(np.uint16), minlength=2**16))


def test_bytes_of_another_probability():
    """Each pattern as often as its kept and dropped bits say."""
    p, n = 0.25, 2**22
    _, bits = functional.dropout(np.ones(n, np.float32), p, seed=8, counter=3)
    kept = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
    assert_uniform(np.bincount(bits, minlength=256), n / 8 * (1 - p) ** kept * p ** (8 - kept))


# ---- Many masks -------------------------------------------------------------------------------------

KEYS = [(0, 0), (1, 0), (0, 1), (1, 1), (2**64 - 1, 0), (0, 2**64 - 1), (2**63, 2**63), (2, 3), (3, 2)]
KEYS += [(1 << bit, 0) for bit in (1, 7, 16, 31, 32, 33, 48, 62)] + [(0, 1 << bit) for bit in (2, 8, 31, 32, 63)]


def test_masks_of_other_seeds_and_counters_are_independent():
    """Among them seeds and counters that differ in one bit, or in their order."""
    assert len(set(KEYS)) == len(KEYS)
    masks = np.array([mask_of(2**18, seed=seed, counter=counter) for seed, counter in KEYS]) - 0.5
    for lag in (0, 1, 128):
        products = masks[:, lag:] @ masks[:, : masks.shape[1] - lag].T / (0.25 * math.sqrt(masks.shape[1] - lag))
        assert abs(products - (lag == 0) * np.diag(np.diag(products))).max() < SIGMAS


@pytest.mark.parametrize("step", ["seed", "counter"])
def test_an_element_over_many_steps(step):
    """A training run gives each call the next counter: an element is then dropped as if by throws of one coin."""
    steps, n, p = 2000, 512, 0.3
    masks = np.array([mask_of(n, p, **{"seed": 9, "counter": 9} | {step: i}) for i in range(steps)])
    dropped = steps * n - masks.sum()
    assert abs(dropped - steps * n * p) < SIGMAS * math.sqrt(steps * n * p * (1 - p))
    of_elements = np.square(masks.sum(axis=0) - steps * (1 - p)).sum() / (steps * p * (1 - p))
    assert abs(of_elements - n) < SIGMAS * math.sqrt(2 * n)
    assert abs(correlation(masks[1:], masks[:-1], p)) < SIGMAS


def test_the_mean_of_dropout_is_its_input():
    """Over many counters the mean of y tends to x, element by element."""
    steps, p = 3000, 0.1
    x = np.linspace(-1, 1, 256)
    mean = np.mean([functional.dropout(x, p, seed=1, counter=i)[0] for i in range(steps)], axis=0)
    np.testing.assert_array_less(abs(mean - x), SIGMAS * abs(x) * math.sqrt(p / (1 - p) / steps) + 1e-12)
