/* Inverted dropout (Srivastava et al. 2014): y = x factor where kept, 0 where dropped; factor = 1 / (1 - p).
 *
 * Element e of a group of 64 takes word e of the group's 16 Philox blocks, in the order of random.h, and is
 * dropped where that is below threshold = p 2^32. The mask has a set bit per kept element, the lowest first.
 */
#include "lanes.h"
#include "random.h"

enum { GROUP = PHILOX_WORDS };

static const uint32_t bit_of[32] = {1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
                                    1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
                                    1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
                                    1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};

static void random_bits(void *const *array, const int64_t *size, const double *scalar)
{
    uint32_t *out = array[0], bits[PHILOX_WORDS];
    const int64_t blocks = size[0];
    const uint64_t seed = size[1], counter = size[2], first = size[3];
    (void)scalar;
    for (int64_t block = 0; block < blocks; ++block) {
        const int lane = block % PHILOX_LANES;
        if (lane == 0)
            philox(bits, seed, counter, first + block);
        for (int w = 0; w < 4; ++w)
            out[4 * block + w] = bits[w * PHILOX_LANES + lane];
    }
}

/* The mask of 32 elements with these random bits. */
static inline uint32_t kept(const uint32_t *bits, uint32_t threshold)
{
    uint32_t mask = 0;
#pragma omp simd reduction(| : mask)
    for (int e = 0; e < 32; ++e)
        mask |= bits[e] >= threshold ? bit_of[e] : 0;
    return mask;
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

static void dropout_forward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0], factor = scalar[0];
    real *y = array[1];
    uint8_t *mask = array[2];
    const int64_t n = size[0];
    const uint64_t seed = size[1], counter = size[2];
    const uint32_t threshold = (uint32_t)size[3];
    uint32_t bits[PHILOX_WORDS];

    for (int64_t i = 0; i < n; i += 32) {
        const int64_t half = i % GROUP;
        if (half == 0)
            philox(bits, seed, counter, (uint64_t)i / GROUP * PHILOX_LANES);
        uint32_t m = kept(bits + half, threshold);
        if (n - i >= 32) {
            apply(x + i, y + i, 32, m, factor);
            store_mask(mask + i / 8, 32, m);
        } else {
            m &= (1u << (n - i)) - 1; /* no bits beyond the last element */
            apply(x + i, y + i, (int)(n - i), m, factor);
            store_mask(mask + i / 8, (int)(n - i), m);
        }
    }
}

static void dropout_apply(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0], factor = scalar[0];
    const uint8_t *mask = array[1];
    real *y = array[2];
    const int64_t n = size[0];

    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        apply(x + i, y + i, 32, load_mask(mask + i / 8, 32), factor);
    if (i < n)
        apply(x + i, y + i, (int)(n - i), load_mask(mask + i / 8, (int)(n - i)), factor);
}
