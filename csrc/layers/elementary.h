/* Elementary functions made of correctly rounded operations, so the same bits everywhere, for loops that the compiler
 * vectorises.
 *
 * The polynomials are plain Taylor series on ranges small enough for them; only erfc has fitted constants. */
#ifndef ELEMENTARY_H
#define ELEMENTARY_H

#include "../kernel.h"
#include "lanes.h"

#if REAL_BITS == 32
enum { EXP_DEGREE = 7, LOG1P_DEGREE = 15, ERFC_TERMS = 10 };
#define LOWEST_EXPONENT -87.33654f
#else
enum { EXP_DEGREE = 13, LOG1P_DEGREE = 33, ERFC_TERMS = 26 };
#define LOWEST_EXPONENT -708.39641853226408
#endif

/* Range reduction: x = k log 2 + r with |r| <= log(2)/2, so that exp(x) = 2^k exp(r). Adding 1.5 * 2^MANTISSA_BITS
 * rounds x / log 2 to the integer k and leaves it in the low bits. */
struct exponent {
    real r, power; /* 2^k */
};

INLINE struct exponent split_exponent(real x)
{
#if REAL_BITS == 32
    const real ln2_high = 0x1.62e400p-1f, ln2_low = 0x1.7f7d1cp-20f;
#else
    const real ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
#endif
    const real rounder = (real)1.5 * ((word)1 << MANTISSA_BITS);
    const real shifted = x * (real)1.4426950408889634 + rounder, k = shifted - rounder;
    struct exponent split = {(x - k * ln2_high) - k * ln2_low, 0};
    word bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + EXPONENT_BIAS) << MANTISSA_BITS; /* the bits above k are shifted out */
    memcpy(&split.power, &bits, sizeof bits);
    return split;
}

/* The sum of r^(i - first) / i! from i = first on. */
INLINE real exponential_series(real r, int first)
{
    static const real inverse_factorial[] = {
        1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
        1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    real p = inverse_factorial[EXP_DEGREE];
#pragma GCC unroll 16
    for (int i = EXP_DEGREE - 1; i >= first; --i)
        p = p * r + inverse_factorial[i];
    return p;
}

/* exp(x) for x <= 0, within two units in the last place; 0 where the result would be denormal; NaN for NaN. */
INLINE real exp_of_negative(real x)
{
    const struct exponent e = split_exponent(x);
    return x < LOWEST_EXPONENT ? 0 : exponential_series(e.r, 0) * e.power;
}

/* exp(x) - 1 for x <= 0, likewise: small x lose no digits. */
INLINE real expm1_of_negative(real x)
{
    const struct exponent e = split_exponent(x);
    const real m = exponential_series(e.r, 1) * e.r;
    return x < LOWEST_EXPONENT ? -1 : m * e.power + (e.power - 1);
}

/* log(1 + x) for x in [0, 1]: 2 artanh(x / (2 + x)). */
INLINE real log1p_of_unit(real x)
{
    const real s = x / (2 + x), s2 = s * s;
    real sum = 0;
#pragma GCC unroll 32
    for (int i = LOG1P_DEGREE; i >= 1; i -= 2)
        sum = sum * s2 + (real)1 / i;
    return 2 * s * sum;
}

/* erfc(x) for x >= 0: with t = 2 / (2 + x), log(erfc(x) / t) + x^2 is a smooth function of t in (0, 1], here as the
 * first terms of its Chebyshev series in 2 t - 1. The relative error is a few units in the last place times 1 + x^2. */
INLINE real erfc_of_positive(real x)
{
    static const real series[] = {
        -0.6513268598908547171,     0.6419697923564902603,      0.019476473204185836312,    -0.0095615147868086316419,
        -0.0009465953444820368663,  0.00036683949785276145187,  4.2523324806907771645e-05,  -2.0278578112534243154e-05,
        -1.6242900046470255135e-06, 1.3036558355805232018e-06,  1.5626441722066143178e-08,  -8.5238095914926542525e-08,
        6.5290544390988514964e-09,  5.0593434955514689418e-09,  -9.9136415649303308674e-10, -2.2736512229318358557e-10,
        9.646791102015526802e-11,   2.3940380830391147447e-12,  -6.8860275264975533984e-12, 8.9448792730907257167e-13,
        3.1309213993429580783e-13,  -1.1270822361367252366e-13, 3.8109052551892320552e-16,  7.1060976136092369878e-15,
        -1.5230282014571043043e-15, -9.4574945712912340005e-17};
    const real t = 2 / (2 + x), y = 2 * t - 1, twice = 2 * y;
    real sum = 0, before = 0; /* Clenshaw's recurrence */
#pragma GCC unroll 32
    for (int i = ERFC_TERMS - 1; i >= 1; --i) {
        const real next = (twice * sum - before) + series[i];
        before = sum;
        sum = next;
    }
    return t * exp_of_negative(((y * sum - before) + series[0]) - x * x);
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
