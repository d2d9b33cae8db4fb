/* Masks of dropout, drawn and applied.
 *
 * Element e of a group of 128 takes the e-th 16 bits of the group's 16 Philox blocks, in the order of random.h, and is
 * dropped where that is below threshold = p 2^16. A mask has a set bit per kept element, the lowest first.
 */
#ifndef MASK_H
#define MASK_H

#include "../kernel.h"
#include "lanes.h"
#include "random.h"
#include "share.h"

enum { GROUP = 2 * PHILOX_WORDS };

/* The mask of 32 elements with these random bits. Compilers do not find the instructions that gather comparisons. */
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

/* The up to 32 bits of a mask that begin so many bits after a byte. */
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
INLINE void apply(const real *x, real *y, unsigned n, uint32_t bits, lanes factor)
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

/* The same for a range of elements and its mask. What is so many elements ahead is asked for meanwhile. */
INLINE void apply_all(const real *x, real *y, const uint8_t *mask, struct range range, real scale, int64_t ahead)
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
        apply(x + i, y + i, LANES, mask_bits(in, shift, LANES), factor);
    }
    const unsigned left = (unsigned)(range.end - i);
    if (left)
        apply(x + i, y + i, left, mask_bits(in, shift, left), factor);
}

struct drawing {
    uint64_t seed, counter;
    uint16_t threshold;
    real factor;
};

enum { DRAWN = 8 * GROUP /* elements whose mask is drawn at once */ };

/* Draws the mask of so many elements, at most DRAWN of them; the number `first` is that of a group's first. */
static void draw(const struct drawing *d, int64_t first, int64_t length, uint8_t *mask)
{
    _Alignas(VECTOR_BYTES) uint16_t bits[DRAWN];
    uint32_t words[DRAWN / LANES];
    const int64_t pairs = (length + 2 * GROUP - 1) / (2 * GROUP);
    philox((uint32_t *)bits, 2 * pairs, d->seed, d->counter, (uint64_t)first / GROUP * PHILOX_LANES);
    for (int64_t e = 0; e < length; e += LANES)
        words[e / LANES] = kept(bits + e, d->threshold);
    store_mask(mask, length, words);
}

/* Dropout in place, of the elements in a range; the mask need not be kept where zeros say what was dropped. */
static void drop_out(const struct drawing *d, real *y, struct range range)
{
    for (int64_t first = range.begin / GROUP * GROUP; first < range.end; first += DRAWN) {
        const int64_t begin = maximum(range.begin, first);
        const int64_t end = minimum(range.end, first + DRAWN);
        uint8_t mask[DRAWN / 8];
        draw(d, first, end - first, mask);
        apply_all(y + first, y + first, mask, (struct range){begin - first, end - first}, d->factor, 0);
    }
}

#endif
