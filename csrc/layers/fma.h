/* The fused multiply-add a b + c, rounded once: what sums of products are chains of. It is one instruction on AVX2 with
 * FMA, AVX-512 and NEON, and is emulated elsewhere, exactly, and never by the C library, whose own may be inexact and
 * is a call per element.
 *
 * Kernels count denormals as zero, so that is part of the meaning: denormal operands are zeros, and a result that, once
 * rounded to the digits of a normal number, is below the smallest one is a zero of its sign. (NEON looks at the result
 * before it is rounded: where that is below the smallest normal number by less than half a unit, it gives a zero, and
 * the others that number.)
 *
 * Where rounding twice could matter, the emulation rests on rounding to odd (Boldo & Melquiond 2008, "Emulation of a
 * FMA and correctly rounded sums: proved algorithms using rounding to odd"): of the two neighbours of an inexact sum,
 * take the one whose last bit is 1. Rounding that again, to fewer digits or after one more addition, has the result of
 * rounding the exact sum. What is inexact, the error of a sum tells (TwoSum: Knuth, The Art of Computer Programming 2,
 * sec. 4.2.2, theorem B). */
#ifndef FMA_H
#define FMA_H

#include "../kernel.h"
#include "lanes.h"

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__FMA__) || defined(__aarch64__)
INLINE vector vector_fma(vector a, vector b, vector c)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX512F__)
    return (vector)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && REAL_BITS == 32
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    return (vector)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif REAL_BITS == 32
    return (vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return (vector)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#endif
}

/* What a vector is turned into once, if it is a factor of several products: here it stays what it is. */
typedef vector factor;

INLINE factor factor_of(vector x)
{
    return x;
}

INLINE vector factors_fma(factor a, factor b, vector c)
{
    return vector_fma(a, b, c);
}
#else
/* Two doubles: a vector of SSE2, whose comparisons are not taken apart. */
typedef double pair __attribute__((vector_size(16)));
typedef int64_t pair_bits __attribute__((vector_size(16)));

/* Whether any word of a mask has its bits set. */
INLINE int any(pair_bits mask)
{
#if defined(__SSE2__)
    return _mm_movemask_ps((__m128)mask);
#else
    return (mask[0] | mask[1]) != 0;
#endif
}

/* By how much sum = x + y, which is rounded, exceeds the exact sum. */
INLINE pair sum_excess(pair x, pair y, pair sum)
{
    const pair y_part = sum - x;
    return ((sum - y_part) - x) + (y_part - y);
}

/* x + y, rounded to odd. */
INLINE pair odd_sum(pair x, pair y)
{
    const pair sum = x + y, excess = sum_excess(x, y, sum);
    const pair_bits bits = (pair_bits)sum, even = (bits & 1) - 1, above = excess < 0;
    const pair_bits inexact = above | (excess > 0);         /* not NaN, where the sum is infinite */
    const pair_bits to_neighbour = (above ^ (sum > 0)) | 1; /* towards zero: -1; else 1 */
    return (pair)(bits + (to_neighbour & inexact & even));
}

#if REAL_BITS == 32
enum { PAIRS = PER_VECTOR / 2 };
typedef union {
    double all __attribute__((vector_size(PER_VECTOR * sizeof(double))));
    pair each[PAIRS];
} wide_vector;

INLINE wide_vector widened(vector a)
{
    wide_vector wide;
    wide.all = __builtin_convertvector(a, __typeof__(wide.all));
    return wide;
}

INLINE vector narrowed(wide_vector wide)
{
    return __builtin_convertvector(wide.all, vector);
}

static __attribute__((noinline)) vector fma_by_odd_sums(vector a, vector b, vector c)
{
    wide_vector product = widened(a), other = widened(b), sum = widened(c);
#pragma GCC unroll 2
    for (int i = 0; i < PAIRS; ++i)
        sum.each[i] = odd_sum(product.each[i] * other.each[i], sum.each[i]);
    return narrowed(sum);
}

typedef wide_vector factor;

INLINE factor factor_of(vector x)
{
    return widened(x);
}

/* The product of two floats is a double, as it is, and the odd sum has more than two digits more than a float. Where
 * the sum in double, rounded to nearest, is not in the middle between two floats, it lies on the same side of the
 * middle as the exact one, and will do. */
INLINE vector factors_fma(factor a, factor b, vector c)
{
    /* The digits behind those of a float: of each double, the lower word; in the upper one, what is never found. */
    const pair_bits digits = {0x1fffffff, 0x1fffffff};
    const word_vector middle = {0x10000000, 1, 0x10000000, 1};
    wide_vector sum = widened(c);
    word_vector in_the_middle = {0};
#pragma GCC unroll 2
    for (int i = 0; i < PAIRS; ++i) {
        sum.each[i] += a.each[i] * b.each[i];
        in_the_middle |= (word_vector)((word_vector)((pair_bits)sum.each[i] & digits) == middle);
    }
    if (__builtin_expect(any((pair_bits)in_the_middle), 0))
        return fma_by_odd_sums(narrowed(a), narrowed(b), c);
    return narrowed(sum);
}
#else
/* x and its upper and lower half of the digits (Dekker 1971, "A floating-point technique for extending the available
 * precision", by a factor of Veltkamp's), which are NaN where x is too small for the errors of its products. */
typedef struct {
    pair all, high, low;
} factor;

INLINE factor factor_of(vector x)
{
    const pair large = x * 0x1p27 + x, high = large - (large - x), size = (pair)((pair_bits)x & INT64_MAX);
    const pair small = (pair)((pair_bits)x & (size < 0x1p-450)); /* or 0 */
    return (factor){x, high, (pair)((pair_bits)(x - high) | (small != 0))};
}

/* By how much product = a b, which is rounded, exceeds the exact product (Dekker). */
INLINE pair product_excess(factor a, factor b, pair product)
{
    return ((product - a.high * b.high) - a.high * b.low - a.low * b.high) - a.low * b.low;
}

enum { EXPONENT_MASK = 0x7ff };

INLINE int64_t exponent_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (int64_t)(bits >> MANTISSA_BITS & EXPONENT_MASK) - EXPONENT_BIAS;
}

/* Of a normal number, with another exponent. */
INLINE double with_exponent(double x, int64_t exponent)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= ~((uint64_t)EXPONENT_MASK << MANTISSA_BITS);
    bits |= (uint64_t)(exponent + EXPONENT_BIAS) << MANTISSA_BITS;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Of any numbers, of which the finite ones are brought to exponents of about 0: those of a and b are 0, and that of c
 * is as far from that of a b, but for a distance at which c, or a b, only decides which way the other is rounded. */
static double fma_of_any(double a, double b, double c)
{
    enum { FAR = 120 };
    const double least = 0x1p-1022, most = 0x1.fffffffffffffp1023;
    if (!(fabs(a) <= most && fabs(b) <= most) || fabs(a) < least || fabs(b) < least)
        return a * b + c; /* a product that is exact */
    if (!(fabs(c) <= most))
        return c + c;
    int64_t exponent = exponent_of(a) + exponent_of(b);
    pair addend = {0};
    if (fabs(c) >= least) {
        const int64_t distance = exponent_of(c) - exponent, near = maximum(minimum(distance, FAR), -FAR);
        exponent += maximum(distance - FAR, 0);
        addend += with_exponent(c, near);
    }
    const pair zero = {0};
    const factor x = factor_of(zero + with_exponent(a, 0)), y = factor_of(zero + with_exponent(b, 0));
    const pair product = x.all * y.all, sum = product + addend;
    const pair scaled = sum - odd_sum(sum_excess(product, addend, sum), product_excess(x, y, product));
    const int64_t half = exponent / 2;
    return scaled[0] * with_exponent(1, half) * with_exponent(1, exponent - half);
}

static __attribute__((noinline)) vector fma_of_each(vector a, vector b, vector c)
{
    for (int i = 0; i < PER_VECTOR; ++i)
        c[i] = fma_of_any(a[i], b[i], c[i]);
    return c;
}

/* product + c, less what the product and this sum exceed their exact values by. The sum of these two excesses is
 * rounded to nearest, by which no result can change, unless it comes out in the middle between two numbers. The excess
 * of a product is at most two units in the last place of a sum that is inexact, so such a middle differs from the sum
 * by four digits at most: where excess has more, it need not be rounded to odd, nor where the product is exact. All
 * that is too small or too large ends as NaN. */
INLINE vector factors_fma(factor a, factor b, vector c)
{
    enum { BEFORE = 64 - MANTISSA_BITS + 3 }; /* sign, exponent, and four digits, of which one is not stored */
    const pair product = a.all * b.all, sum = product + c, of_product = product_excess(a, b, product);
    const pair excess = sum_excess(product, c, sum) + of_product, y = sum - excess; /* no excess is +0: y may be -0 */
    const pair_bits few_digits = (pair)((pair_bits)excess << BEFORE) == 0;          /* or what counts as zero */
    const pair doubtful = (pair)((pair_bits)of_product & few_digits); /* or 0, as y - y is, if it is a number */
    if (__builtin_expect(any(doubtful != y - y), 0))
        return fma_of_each(a.all, b.all, c);
    return y;
}
#endif

static __attribute__((noinline)) vector vector_fma(vector a, vector b, vector c)
{
    return factors_fma(factor_of(a), factor_of(b), c);
}
#endif

INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
    EACH_VECTOR (k)
        c.v[k] = vector_fma(a.v[k], b.v[k], c.v[k]);
    return c;
}

#endif
