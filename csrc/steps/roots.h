/* Square roots without the CPU's divider, which the steps' quotients keep busy: 16 floats at a time, by AVX-512.
 *
 * From an estimate y of 1 / sqrt(x) come g near sqrt(x) and h near 1 / (2 sqrt(x)), each brought nearer by one coupled
 * Newton step (Goldschmidt); the residual x - g^2, times h, corrects g in the one rounding that counts (Markstein 1990,
 * "Computation of elementary functions on the IBM RISC System/6000 processor"). The result is sqrt(x), correctly
 * rounded, for every x from 2^-96 to below 2^120 and every y whose relative error is at most 2^-14, which is all that
 * is said of the instruction, and so for any CPU's table of estimates:
 *
 * - For 1 <= x < 4 there are 2^24 floats x, with at most 2^11 such floats y each. `make roots` tries them all.
 * - Any other x is 4^k times one of those, and y, g, h are 2^-k, 2^k, 2^-k times theirs. No operation overflows. Only
 * the residual can be flushed to 0: it is then below 2^-126 <= 2^-30 x, so that what it would add to g, less than 2^-31
 * g, is below a quarter of g's last digit, and rounds away.
 *
 * Vectors with an element outside the range (zeros, infinities, negative numbers, NaN) take the instruction. */
#ifndef ROOTS_H
#define ROOTS_H

#include "../kernel.h"

#include <immintrin.h>

enum { WIDTH = 16 };

typedef float reals __attribute__((vector_size(64), aligned(sizeof(float)), may_alias));

/* sqrt(x) for an estimate of 1 / sqrt(x). */
INLINE __m512 root_by_estimate(__m512 x, __m512 estimate)
{
    const __m512 half = _mm512_set1_ps(0.5F), g0 = _mm512_mul_ps(x, estimate), h0 = _mm512_mul_ps(estimate, half);
    const __m512 error = _mm512_fnmadd_ps(g0, h0, half);
    const __m512 g = _mm512_fmadd_ps(g0, error, g0), h = _mm512_fmadd_ps(h0, error, h0);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(g, g, x), h, g);
}

INLINE reals square_root(reals x)
{
    enum { LEAST = 0x0f800000, END = 0x7b800000 }; /* the bits of 2^-96 and 2^120 */
    const __m512i above = _mm512_sub_epi32((__m512i)x, _mm512_set1_epi32(LEAST));
    if (__builtin_expect(_mm512_cmpge_epu32_mask(above, _mm512_set1_epi32(END - LEAST)) != 0, 0))
        return (reals)_mm512_sqrt_ps((__m512)x);
    return (reals)root_by_estimate((__m512)x, _mm512_rsqrt14_ps((__m512)x));
}

#endif
