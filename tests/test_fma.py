"""The fused multiply-add that sums of products are chains of: correctly rounded, and alike on every instruction set.

Against exact integers, and between instruction sets by the million: where instructions and their emulation
(csrc/layers/fma.h) could part, which is next to the middle between two numbers, where the sum cancels, and at both ends
of the exponents.
"""

from fractions import Fraction

import numpy as np
import pytest
from conftest import is_quick

from fastopt import cases
from fastopt import functional as F  # noqa: N812

fma = cases.fused_multiply_add


# ---- Operands -----------------------------------------------------------------------------------------------


class Operands:
    """Draws n numbers of a type at a time."""

    def __init__(self, dtype, n: int) -> None:
        self.rng, self.n, self.dtype, self.info = np.random.default_rng(7), n, dtype, np.finfo(dtype)
        self.digits = self.info.nmant + 1

    def bits(self):
        """Any bits at all: one in a hundred floats is no finite number."""
        return self.rng.integers(0, 2 ** (8 * self.dtype.itemsize), self.n, f"u{self.dtype.itemsize}").view(self.dtype)

    def numbers(self, low: int, high: int):
        """Of either sign, with exponents from low to high and all digits."""
        exponents = self.rng.integers(low, high + 1, self.n)
        return np.ldexp(self.rng.choice([-1, 1], self.n) * self.rng.uniform(1, 2, self.n), exponents).astype(self.dtype)

    def few_digits(self, digits: int):
        """In [1, 2), of so many digits; many are powers of two."""
        tail = self.rng.integers(0, 2 ** (digits - 1), self.n) * self.rng.integers(0, 2, self.n)
        return (1 + np.ldexp(tail.astype(np.float64), 1 - digits)).astype(self.dtype)

    def neighbours(self, x):
        """Up to two steps from x."""
        for _ in range(2):
            x = np.nextafter(x, self.rng.choice([-np.inf, np.inf], self.n).astype(self.dtype))
        return x

    def signs(self):
        return self.rng.choice([-1, 1], self.n).astype(self.dtype)


def ordinary(x):
    return x.numbers(-3, 3), x.numbers(-3, 3), x.numbers(-5, 5)


def at_a_midpoint(x):
    """a b is about half a unit in the last place of c, or half of that, where c is a power of two."""
    half = x.dtype.type(2.0) ** x.rng.integers(-x.digits - 2, -x.digits + 3, x.n).astype(x.dtype)
    a = x.few_digits(x.digits // 2)
    return a * half, x.neighbours((1 / a).astype(x.dtype)) * x.signs(), x.few_digits(x.digits) * x.signs()


def with_a_short_addend(x):
    """c is far below a b, whose last digits stand at a midpoint: a product of halves has that digit."""
    a, b = x.few_digits(x.digits // 2 + 1), x.few_digits(x.digits - x.digits // 2)
    return a, b * x.signs(), x.numbers(-4 * x.digits, -x.digits)


def cancelling(x):
    a, b = x.numbers(-30, 30), x.numbers(-30, 30)
    return a, b, -x.neighbours(a * b)


def at_the_smallest(x):
    """Sums about the smallest normal number, and operands that are denormal."""
    low = x.info.minexp
    a = x.numbers(low // 2 - 2, low // 2 + 3)
    return a, x.numbers(low // 2 - 2, low // 2 + 3), x.numbers(low - 3, low + 3)


def next_to_the_smallest(x):
    """Sums that differ from the smallest normal number by less than a unit in its last place, or by some."""
    scale, tiny = x.dtype.type(2.0) ** (x.info.minexp // 2), x.info.tiny
    a = x.few_digits(x.digits) * x.signs()
    b = (x.rng.integers(-8, 9, x.n) * x.info.eps / 4).astype(x.dtype) * (1 / a).astype(x.dtype)
    return a * scale, b * scale * x.dtype.type(2.0) ** (x.info.minexp - 2 * (x.info.minexp // 2)), x.signs() * tiny


def far_apart(x):
    """Any exponents, so that a b is far beyond both ends."""
    low, high = x.info.minexp, x.info.maxexp - 1
    return x.numbers(low, high), x.numbers(low, high), x.numbers(low, high)


def at_the_largest(x):
    high = x.info.maxexp
    a, b = x.numbers(high // 2 - 1, high // 2 + 1), x.numbers(high // 2 - 2, high // 2)
    return a, b, x.neighbours(x.signs() * x.info.max)


def any_bits(x):
    return x.bits(), x.bits(), x.bits()


def special(x):
    """Zeros, infinities, NaN, ones and denormal, smallest and largest numbers, each with each."""
    some = [0, 1, np.inf, x.info.max, x.info.tiny, x.info.tiny / 4, x.info.smallest_subnormal]
    values = np.array([*some, *(-v for v in some), np.nan], x.dtype)
    return [a.ravel().copy() for a in np.meshgrid(values, values, values)]


KINDS = (
    *(ordinary, at_a_midpoint, with_a_short_addend, cancelling, at_the_smallest, next_to_the_smallest, far_apart),
    *(at_the_largest, any_bits, special),
)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def operands(request, dtype):
    """A function of how many to make, of which a cross-section takes a fiftieth."""

    def made(n: int):
        with np.errstate(all="ignore"):
            return request.param(Operands(dtype, n // 50 if is_quick(request.node) else n))

    return made


# ---- Exact values -------------------------------------------------------------------------------------------


def rounded(size: Fraction, info, *, flushed_first: bool) -> float:
    """To the nearest number, of two the even one, as if there were no bounds of exponents; then 0 below the smallest
    normal number, and infinity above the largest."""
    if not size:
        return 0.0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - info.nmant)
    nearest = round(size / unit) * unit  # round() of a fraction takes the even one of two
    if (size if flushed_first else nearest) < Fraction(float(info.tiny)):
        nearest = Fraction(0)
    return float(nearest) if nearest <= Fraction(float(info.max)) else np.inf


def fused(a, b, c, info, **how) -> float:
    """What a kernel should make of three numbers."""
    a, b, c = (float(np.copysign(0, x)) if abs(x) < info.tiny else float(x) for x in (a, b, c))
    if not np.isfinite([a, b, c]).all():
        finite = np.isfinite(a) and np.isfinite(b)
        return (0.0 if finite else a * b) + c
    if a == 0 or b == 0:
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    size = rounded(abs(exact), info, **how)
    return -size if exact < 0 else size


def test_the_oracle():
    info = np.finfo(np.float32)
    assert fused(1, 1 + 2.0**-23, 2.0**-24, info, flushed_first=False) == 1 + 2.0**-22  # a tie, to the even one
    assert fused(1, 1, 2.0**-24, info, flushed_first=False) == 1
    assert fused(2.0**-60, -(2.0**-70), 0.0, info, flushed_first=False) == 0
    for flushed_first, expected in ((False, 2.0**-126), (True, 0.0)):  # 1 - 2^-26 smallest numbers
        assert fused(1 - 2.0**-13, (1 + 2.0**-13) * 2.0**-126, 0.0, info, flushed_first=flushed_first) == expected
    assert fused(2.0**100, 2.0**100, -(2.0**127), info, flushed_first=False) == np.inf


def test_results_are_correctly_rounded(operands, isa, dtype, same_bits):
    a, b, c = operands(5000)
    info = np.finfo(dtype)
    expected = [fused(*each, info, flushed_first=isa == "neon") for each in zip(a, b, c, strict=True)]
    same_bits(fma(a, b, c), np.array(expected, dtype))


# ---- By the million -----------------------------------------------------------------------------------------


@pytest.mark.bits
def test_every_isa_has_the_same_bits(operands, on_each_isa, same_bits):
    a, b, c = operands(1_000_000)
    first, *others = on_each_isa(lambda: fma(a, b, c))
    assert np.isfinite(first).any()
    for other in others:
        same_bits(other, first)


def test_products_are_chains_of_it(isa, dtype, rng, same_bits):
    """Of each kind of sum, by the kernel of one multiply-add after the other."""
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 40), (40, 37)))
    chain = np.zeros((5, 37), dtype)
    for k in range(40):
        a, b = (np.ascontiguousarray(np.broadcast_to(v, chain.shape)) for v in (x[:, k, None], weight[k]))
        chain = fma(a, b, chain)
    same_bits(F.dense_forward(x, weight), chain)
    same_bits(F.dense_input_grad(x, np.ascontiguousarray(weight.T)), chain)
    same_bits(F.dense_weight_grad(np.ascontiguousarray(x.T), weight), chain)
    images, kernel = x.reshape(5, 1, 1, 40), weight[:, :32].reshape(1, 1, 40, 32).copy()
    same_bits(F.conv2d(images, kernel).reshape(5, 32), chain[:, :32])
    pixels, window = weight[None, None].copy(), x[0, :, None].repeat(37, axis=1)[None]
    same_bits(F.depthwise_forward(pixels, window, padding=0).reshape(37), chain[0])
