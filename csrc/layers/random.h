/* Philox4x32-10 (Salmon et al. 2011): random bits as a function of a 64-bit seed and a 128-bit counter. */
#ifndef RANDOM_H
#define RANDOM_H

/* Blocks are made PHILOX_LANES at a time: word w of block b is bits[w * PHILOX_LANES + b]. */
enum { PHILOX_LANES = 16, PHILOX_WORDS = 4 * PHILOX_LANES };

/* The blocks number first, first + 1, …: the counter is (number of the block, counter). */
static inline void philox(uint32_t bits[restrict PHILOX_WORDS], uint64_t seed, uint64_t counter, uint64_t first)
{
#pragma omp simd
    for (int lane = 0; lane < PHILOX_LANES; ++lane) {
        uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
        uint32_t c0 = (uint32_t)(first + lane), c1 = (uint32_t)((first + lane) >> 32);
        uint32_t c2 = (uint32_t)counter, c3 = (uint32_t)(counter >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
            const uint64_t product0 = (uint64_t)0xD2511F53 * c0, product1 = (uint64_t)0xCD9E8D57 * c2;
            c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
            c1 = (uint32_t)product1;
            c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
            c3 = (uint32_t)product0;
            key0 += 0x9E3779B9;
            key1 += 0xBB67AE85;
        }
        bits[0 * PHILOX_LANES + lane] = c0;
        bits[1 * PHILOX_LANES + lane] = c1;
        bits[2 * PHILOX_LANES + lane] = c2;
        bits[3 * PHILOX_LANES + lane] = c3;
    }
}

#endif
