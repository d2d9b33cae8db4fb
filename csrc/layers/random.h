/* Philox4x32-10 (Salmon et al. 2011): random bits as a function of a 64-bit seed and a 128-bit counter. */
#ifndef RANDOM_H
#define RANDOM_H

#include "lanes.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* Blocks are made PHILOX_LANES at a time: word w of block b is bits[w * PHILOX_LANES + b]. */
enum { PHILOX_LANES = 16, PHILOX_WORDS = 4 * PHILOX_LANES };

typedef uint64_t philox_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t unaligned_words __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
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

/* The blocks whose numbers are in `block`, one in each 64-bit element; only the low halves of c count. */
INLINE void philox_rounds(philox_vector c[4], philox_vector block, uint64_t seed, uint64_t counter)
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    c[0] = block;
    c[1] = block >> 32;
    c[2] = (philox_vector){0} + counter;
    c[3] = (philox_vector){0} + (counter >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const philox_vector product0 = philox_multiply(c[0], 0xD2511F53), product1 = philox_multiply(c[2], 0xCD9E8D57);
        c[0] = (product1 >> 32) ^ c[1] ^ key0;
        c[1] = product1;
        c[2] = (product0 >> 32) ^ c[3] ^ key1;
        c[3] = product0;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

/* The blocks number first, first + 1, …: the counter is (number of the block, counter). */
static inline void philox(uint32_t bits[restrict PHILOX_WORDS], uint64_t seed, uint64_t counter, uint64_t first)
{
    for (int at = 0; at < PHILOX_LANES; at += PHILOX_PER_VECTOR) {
        philox_vector number, even[4], odd[4];
        for (int i = 0; i < PHILOX_PER_VECTOR / 2; ++i)
            number[i] = first + at + 2 * i;
        philox_rounds(even, number, seed, counter);
        philox_rounds(odd, number + 1, seed, counter);
        for (int w = 0; w < 4; ++w) {
            /* The first of two 32-bit halves in memory is the block of even number. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            const philox_vector both = even[w] << 32 | (odd[w] & 0xffffffff);
#else
            const philox_vector both = (even[w] & 0xffffffff) | odd[w] << 32;
#endif
            *(unaligned_words *)(bits + w * PHILOX_LANES + at) = (unaligned_words)both;
        }
    }
}

#endif
