/* Philox4x32-7 (Salmon et al. 2011): random bits as a function of a 64-bit seed and a 128-bit counter. Seven rounds are
 * the fewest that pass all tests of BigCrush (table 2); ten, which are usual, are half as slow again. */
#ifndef RANDOM_H
#define RANDOM_H

#include "../kernel.h"
#include "lanes.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* Blocks are drawn PHILOX_LANES at a time: word w of block b is bits[w * PHILOX_LANES + b]. */
enum { PHILOX_LANES = 16, PHILOX_WORDS = 4 * PHILOX_LANES };

typedef uint64_t philox_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t unaligned_philox_vector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
enum { PHILOX_PER_VECTOR = VECTOR_BYTES / 4 };

/* The 64-bit products of the low halves with a 32-bit factor. Compilers do not find the one instruction for it. */
INLINE philox_vector philox_multiply(philox_vector a, uint32_t factor)
{
    const philox_vector b = (philox_vector){0} + factor;
#if defined(__AVX512F__)
    return (philox_vector)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (philox_vector)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (philox_vector)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffff) * b;
#endif
}

/* Four vectors of blocks go through the rounds side by side, to hide the latency of the multiplications. */
enum { PHILOX_CHAINS = 4 };
#define EACH_CHAIN(k) _Pragma("GCC unroll 4") for (int k = 0; k < PHILOX_CHAINS; ++k)

/* The blocks whose numbers are in c[0], one in each 64-bit element; only the low halves of c count. */
INLINE void philox_rounds(philox_vector c[4][PHILOX_CHAINS], uint64_t seed, uint64_t counter)
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    EACH_CHAIN (k) {
        c[1][k] = c[0][k] >> 32;
        c[2][k] = (philox_vector){0} + counter;
        c[3][k] = (philox_vector){0} + (counter >> 32);
    }
#pragma GCC unroll 7
    for (int round = 0; round < 7; ++round) {
        EACH_CHAIN (k) {
            const philox_vector product0 = philox_multiply(c[0][k], 0xD2511F53);
            const philox_vector product1 = philox_multiply(c[2][k], 0xCD9E8D57);
            c[0][k] = (product1 >> 32) ^ c[1][k] ^ key0;
            c[1][k] = product1;
            c[2][k] = (product0 >> 32) ^ c[3][k] ^ key1;
            c[3][k] = product0;
        }
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

/* PHILOX_LANES blocks `times` (an even number) over, number first, first + 1, …: the 128-bit counter of a block is its
 * number and, above that, `counter`. */
static void philox(uint32_t *restrict bits, int64_t times, uint64_t seed, uint64_t counter, uint64_t first)
{
    static const uint64_t evens[] = {0, 2, 4, 6, 8, 10, 12, 14};
    philox_vector number = first + *(const unaligned_philox_vector *)evens;
    for (int64_t at = 0; at < times * PHILOX_LANES;) {
        philox_vector c[4][PHILOX_CHAINS];
        EACH_CHAIN (k)
            c[0][k] = number + (k / 2 * PHILOX_PER_VECTOR + k % 2);
        number += PHILOX_CHAINS / 2 * PHILOX_PER_VECTOR;
        philox_rounds(c, seed, counter);
        for (int k = 0; k < PHILOX_CHAINS; k += 2, at += PHILOX_PER_VECTOR)
            for (int w = 0; w < 4; ++w) {
                /* The first of two 32-bit halves in memory is the block of even number. */
                const philox_vector both = (c[w][k] & 0xffffffff) | c[w][k + 1] << 32;
                uint32_t *out = bits + at / PHILOX_LANES * PHILOX_WORDS + w * PHILOX_LANES + at % PHILOX_LANES;
                *(unaligned_philox_vector *)out = both;
            }
    }
}

#endif
