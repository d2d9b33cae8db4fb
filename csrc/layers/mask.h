/* Masks of dropout, drawn and applied.
 *
 * Elements are drawn in mask blocks of 128: element e takes the e-th 16 bits of the 16 Philox blocks of its mask block,
 * in the order of random.h, and is dropped where that number is below threshold = p 2^16. The bit of a kept element is
 * set in the mask, the lowest first.
 */
#ifndef MASK_H
#define MASK_H

#include "../kernel.h"
#include "lanes.h"
#include "random.h"
#include "share.h"

enum { MASK_BLOCK = 2 * PHILOX_WORDS };

/* The mask of 32 elements with these random bits. Compilers do not find the instructions that turn comparisons into
 * bits.
 */
INLINE uint32_t kept(const uint16_t *bits, uint16_t threshold)
{
#if defined(__AVX512BW__)
    return _mm512_cmpge_epu16_mask(_mm512_loadu_si512(bits), _mm512_set1_epi16((short)threshold));
#elif defined(__AVX2__)
    const __m256i limit = _mm256_set1_epi16((short)threshold), zero = _mm256_setzero_si256();
    const __m256i *in = (const __m256i *)bits;
    const __m256i low = _mm256_cmpeq_epi16(_mm256_subs_epu16(limit, _mm256_loadu_si256(in)), zero);
    const __m256i high = _mm256_cmpeq_epi16(_mm256_subs_epu16(limit, _mm256_loadu_si256(in + 1)), zero);
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8));
#elif defined(__SSE2__)
    const __m128i limit = _mm_set1_epi16((short)threshold), zero = _mm_setzero_si128();
    uint32_t mask = 0;
    for (int e = 0; e < LANES; e += 16) {
        const __m128i *in = (const __m128i *)(bits + e);
        const __m128i low = _mm_cmpeq_epi16(_mm_subs_epu16(limit, _mm_loadu_si128(in)), zero);
        const __m128i high = _mm_cmpeq_epi16(_mm_subs_epu16(limit, _mm_loadu_si128(in + 1)), zero);
        mask |= (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(low, high)) << e;
    }
    return mask;
#else
    uint32_t mask = 0;
    for (int e = 0; e < LANES; ++e)
        mask |= (uint32_t)(bits[e] >= threshold) << e;
    return mask;
#endif
}

/* Up to 32 bits of a mask, from so many bits after the start of a byte on. */
INLINE uint32_t mask_bits(const uint8_t *in, unsigned shift, unsigned n)
{
    const unsigned last = (shift + n - 1) / 8;
    uint64_t bits = (uint64_t)in[last] << 8 * last;
    if (n == LANES) /* one load */
        bits |= in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
    else
        for (unsigned byte = 0; byte < last; ++byte)
            bits |= (uint64_t)in[byte] << 8 * byte;
    return (uint32_t)(bits >> shift);
}

/* Writes a mask of n elements, its last byte filled up with zeros. */
static void store_mask(uint8_t *out, int64_t n, const uint32_t *words)
{
    memcpy(out, words, (n + 7) / 8);
    if (n % 8)
        out[n / 8] &= (1u << n % 8) - 1;
}

/* y = x factor where there is a bit, for up to 32 elements. */
INLINE void apply_bits(const real *x, real *y, unsigned n, uint32_t bits, lanes factor)
{
    if (n == LANES) {
        lanes_store(y, lanes_keep(lanes_multiply(lanes_load(x), factor), bits));
    } else {
        real some[LANES] = {0};
        memcpy(some, x, n * sizeof(real));
        lanes_store(some, lanes_keep(lanes_multiply(lanes_load(some), factor), bits));
        memcpy(y, some, n * sizeof(real));
    }
}

/* The same for a range of elements and its mask, prefetching so many elements ahead. */
INLINE void apply_mask(const real *x, real *y, const uint8_t *mask, struct range range, real scale, int64_t ahead)
{
    const lanes factor = lanes_all(scale);
    int64_t i = range.begin;
    const unsigned shift = i % 8;
    const uint8_t *in = mask + i / 8;
    for (; i + LANES <= range.end; i += LANES, in += LANES / 8) {
        if (ahead) {
            lanes_prefetch(x + i, ahead);
            lanes_prefetch(y + i, ahead);
        }
        apply_bits(x + i, y + i, LANES, mask_bits(in, shift, LANES), factor);
    }
    const unsigned left = (unsigned)(range.end - i);
    if (left)
        apply_bits(x + i, y + i, left, mask_bits(in, shift, left), factor);
}

/* What determines a mask, and the factor of what is kept; `from` is the number of the array's first element. */
struct drawing {
    uint64_t seed, counter;
    int64_t from;
    uint16_t threshold;
    real factor;
};

enum { MASK_CHUNK = 8 * MASK_BLOCK }; /* elements whose mask is drawn at once */

/* Draws the mask of so many elements of the array, at most MASK_CHUNK, from place `first` on. */
static void draw(const struct drawing *d, int64_t first, int64_t length, uint8_t *mask)
{
    _Alignas(VECTOR_BYTES) uint16_t bits[MASK_CHUNK + 2 * MASK_BLOCK];
    uint32_t words[MASK_CHUNK / LANES];
    const uint64_t number = (uint64_t)d->from + (uint64_t)first;
    const int64_t skipped = number % MASK_BLOCK;
    const int64_t pairs = (skipped + length + 2 * MASK_BLOCK - 1) / (2 * MASK_BLOCK);
    philox((uint32_t *)bits, 2 * pairs, d->seed, d->counter, number / MASK_BLOCK * PHILOX_LANES);
    for (int64_t e = 0; e < length; e += LANES)
        words[e / LANES] = kept(bits + skipped + e, d->threshold);
    store_mask(mask, length, words);
}

/* Dropout in place, of the elements in a range, without storing the mask. */
static void drop_out(const struct drawing *d, real *y, struct range range)
{
    for (int64_t first = range.begin / MASK_BLOCK * MASK_BLOCK; first < range.end; first += MASK_CHUNK) {
        const int64_t begin = maximum(range.begin, first);
        const int64_t end = minimum(range.end, first + MASK_CHUNK);
        uint8_t mask[MASK_CHUNK / 8];
        draw(d, first, end - first, mask);
        apply_mask(y + first, y + first, mask, (struct range){begin - first, end - first}, d->factor, 0);
    }
}

#endif
