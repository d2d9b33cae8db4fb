/* exp and log from operations that are rounded alike everywhere, for loops that the compiler vectorises.
 *
 * The polynomials are plain Taylor series on ranges small enough for them: no table, no fitted constant. */
#ifndef ELEMENTARY_H
#define ELEMENTARY_H

#include "lanes.h"

/* exp(x) for x <= 0, within two units in the last place; 0 where the result would be denormal; NaN for NaN.
 *
 * x = k log 2 + r with |r| <= log(2)/2, and exp(x) = 2^k exp(r). Adding 1.5 * 2^MANTISSA_BITS rounds x / log 2
 * to the integer k and leaves it in the low bits. */
INLINE real exp_of_negative(real x)
{
#if REAL_BITS == 32
    enum { DEGREE = 7 };
    const real lowest = -87.33654f, ln2_high = 0x1.62e400p-1f, ln2_low = 0x1.7f7d1cp-20f;
#else
    enum { DEGREE = 13 };
    const real lowest = -708.39641853226408, ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
#endif
    static const real inverse_factorial[] = {
        1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
        1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    const real rounder = (real)1.5 * ((word)1 << MANTISSA_BITS);
    const real shifted = x * (real)1.4426950408889634 + rounder, k = shifted - rounder;
    const real r = (x - k * ln2_high) - k * ln2_low;
    real p = inverse_factorial[DEGREE];
#pragma GCC unroll 16
    for (int i = DEGREE - 1; i >= 0; --i)
        p = p * r + inverse_factorial[i];
    word bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + EXPONENT_BIAS) << MANTISSA_BITS; /* 2^k; what stands above k is shifted out */
    real power;
    memcpy(&power, &bits, sizeof power);
    return x < lowest ? 0 : p * power;
}

/* log(x) for a normal x > 0, to double precision; NaN for NaN.
 *
 * x = 2^k m with m in [sqrt(1/2), sqrt(2)), and log m = 2 artanh((m - 1) / (m + 1)). */
INLINE double log_of_positive(double x)
{
    const double sqrt2 = 1.4142135623730951;
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint64_t one = (bits & 0xfffffffffffff) | (uint64_t)1023 << 52;
    double half;
    memcpy(&half, &one, sizeof half);
    const int above = half > sqrt2;
    const double m = above ? half / 2 : half, k = (int32_t)(bits >> 52) - 1023 + above;
    const double s = (m - 1) / (m + 1), s2 = s * s;
    double sum = 0;
#pragma GCC unroll 16
    for (int i = 23; i >= 1; i -= 2)
        sum = sum * s2 + 1.0 / i;
    const double log = k * 0x1.a39ef35793c76p-33 + 2 * s * sum + k * 0x1.62e42fee00000p-1;
    return x > 0 ? log : NAN;
}

#endif
