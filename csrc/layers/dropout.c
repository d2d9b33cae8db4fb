/* Inverted dropout (Srivastava et al. 2014): y = x factor where kept, 0 where dropped; factor = 1 / (1 - p).
 *
 * Element e of a group of 128 takes the e-th 16 bits of the group's 16 Philox blocks, in the order of random.h, and is
 * dropped where that is below threshold = p 2^16. The mask has a set bit per kept element, the lowest first.
 */
#include "lanes.h"
#include "random.h"
#include "share.h"

enum { GROUP = 2 * PHILOX_WORDS, TOGETHER = 32 /* elements whose bits make a word of the mask */ };

static const uint32_t bit_of[32] = {1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
                                    1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
                                    1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
                                    1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};

static void random_bits(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    uint32_t *out = array[0], bits[PHILOX_WORDS];
    const struct range blocks = own_range(size[0], PHILOX_LANES, share);
    const uint64_t seed = size[1], counter = size[2], first = size[3];
    (void)scalar;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int lane = block % PHILOX_LANES;
        if (lane == 0)
            philox(bits, seed, counter, first + block);
        for (int w = 0; w < 4; ++w)
            out[4 * block + w] = bits[w * PHILOX_LANES + lane];
    }
}

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
    for (int e = 0; e < 32; e += 16) {
        const __m128i *in = (const __m128i *)(bits + e);
        const __m128i low = _mm_cmpeq_epi16(_mm_subs_epu16(limit, _mm_loadu_si128(in)), zero);
        const __m128i high = _mm_cmpeq_epi16(_mm_subs_epu16(limit, _mm_loadu_si128(in + 1)), zero);
        mask |= (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(low, high)) << e;
    }
    return mask;
#else
    uint32_t mask = 0;
    for (int e = 0; e < 32; ++e)
        mask |= bits[e] >= threshold ? bit_of[e] : 0;
    return mask;
#endif
}

/* y = x factor where the mask has a bit, for up to 32 elements. */
INLINE void apply(const real *x, real *y, int n, uint32_t mask, real factor)
{
#pragma omp simd
    for (int e = 0; e < n; ++e) {
        const real scaled = x[e] * factor;
        y[e] = mask & bit_of[e] ? scaled : 0;
    }
}

/* Bytes are read and written one by one, so that neither the order of bytes in a word nor the end of the mask matters;
 * where n is 32, the compiler makes one load or store of it. */
INLINE uint32_t load_mask(const uint8_t *in, int n)
{
    uint32_t mask = 0;
#pragma GCC unroll 4
    for (int byte = 0; 8 * byte < n; ++byte)
        mask |= (uint32_t)in[byte] << 8 * byte;
    return mask;
}

INLINE void store_mask(uint8_t *out, int n, uint32_t mask)
{
#pragma GCC unroll 4
    for (int byte = 0; 8 * byte < n; ++byte)
        out[byte] = (uint8_t)(mask >> 8 * byte);
}

struct drawing {
    uint64_t seed, counter;
    uint16_t threshold;
};

/* Drops of the elements [begin, end) of x, begin being the first of a group; the mask may be absent. */
INLINE void drop(const struct drawing *d, struct range own, const real *x, real *y, uint8_t *mask, real factor)
{
    _Alignas(VECTOR_BYTES) uint16_t bits[GROUP];
    for (int64_t i = own.begin; i < own.end; i += TOGETHER) {
        const int64_t in_group = i % GROUP;
        if (in_group == 0)
            philox((uint32_t *)bits, d->seed, d->counter, (uint64_t)i / GROUP * PHILOX_LANES);
        const uint32_t m = kept(bits + in_group, d->threshold);
        if (own.end - i >= TOGETHER) {
            apply(x + i, y + i, TOGETHER, m, factor);
            if (mask)
                store_mask(mask + i / 8, TOGETHER, m);
        } else {
            const int left = (int)(own.end - i);
            apply(x + i, y + i, left, m, factor);
            if (mask)
                store_mask(mask + i / 8, left, m & ((1u << left) - 1)); /* no bits beyond the last element */
        }
    }
}

static void dropout_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const struct drawing d = {size[1], size[2], (uint16_t)size[3]};
    drop(&d, own_range(size[0], GROUP, share), array[0], array[1], array[2], scalar[0]);
}

static void dropout_apply(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const real *x = array[0], factor = scalar[0];
    const uint8_t *mask = array[1];
    real *y = array[2];
    const struct range own = own_range(size[0], GROUP, share);

    int64_t i = own.begin;
    for (; i + TOGETHER <= own.end; i += TOGETHER)
        apply(x + i, y + i, TOGETHER, load_mask(mask + i / 8, TOGETHER), factor);
    if (i < own.end)
        apply(x + i, y + i, (int)(own.end - i), load_mask(mask + i / 8, (int)(own.end - i)), factor);
}
