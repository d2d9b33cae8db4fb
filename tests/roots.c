/* Tries square roots by fused multiply-add (csrc/steps/roots.h), one by one, against the instruction: `make roots`.
 *
 * First, what the proof in that header rests on: for every float x with 1 <= x < 4, every float y that is as near to
 * 1 / sqrt(x) as 2^-14 of it. Then, what this CPU does: all floats that there are. */
#include "../csrc/steps/roots.h"

#include <stdio.h>

static __m512 from_bits(uint32_t first)
{
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_set1_epi32((int)first), count));
}

static float as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t as_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* How many of 16 results differ; a NaN is a NaN, whatever its bits. */
static unsigned differ(__m512 x, __m512 y)
{
    const unsigned both_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) & _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
    const unsigned other = _mm512_cmpneq_epi32_mask(_mm512_castps_si512(x), _mm512_castps_si512(y));
    return (unsigned)__builtin_popcount(other & ~both_nan);
}

int main(void)
{
    const uint32_t one = as_bits(1), four = as_bits(4);
    uint64_t tried = 0, wrong = 0;
    _mm_setcsr(0x9fc0); /* the mode of kernels */
    for (uint32_t bits = one; bits < four; bits += WIDTH) {
        const __m512 x = from_bits(bits), exact = _mm512_sqrt_ps(x);
        const float low = (float)((1 - 0x1p-14) / sqrt((double)as_float(bits + WIDTH - 1))),
                    high = (float)((1 + 0x1p-14) / sqrt((double)as_float(bits)));
        for (uint32_t y = as_bits(low) - 1; y <= as_bits(high) + 1; ++y, tried += WIDTH)
            wrong += differ(root_by_estimate(x, _mm512_set1_ps(as_float(y))), exact);
    }
    printf("%llu pairs of x and estimate: %llu wrong\n", (unsigned long long)tried, (unsigned long long)wrong);
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += WIDTH) {
        const __m512 x = from_bits((uint32_t)bits);
        wrong += differ((__m512)square_root((reals)x), _mm512_sqrt_ps(x));
    }
    printf("all floats, with this CPU's estimates: %llu wrong with those above\n", (unsigned long long)wrong);
    return wrong != 0;
}
