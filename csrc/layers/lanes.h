/* LANES reals side by side: vectors of a length that does not depend on the instruction set.
 *
 * A sum over many elements adds element i to lane i % LANES, in order, and the lanes are added up by halves at the end.
 * How many registers hold the lanes is the compiler's choice, and does not affect the result: sums have the same bits
 * on every instruction set.
 */
#ifndef LANES_H
#define LANES_H

#include "../kernel.h"

#if defined(__AVX512F__)
#include <immintrin.h>
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX__) && defined(__FMA__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif

typedef real vector __attribute__((vector_size(VECTOR_BYTES)));
typedef real unaligned_vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef word word_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef word unaligned_word_vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(word)), may_alias));
enum { VECTORS = LANES * sizeof(real) / VECTOR_BYTES, PER_VECTOR = LANES / VECTORS };

INLINE vector vector_load(const real *x)
{
    return *(const unaligned_vector *)x;
}

INLINE void vector_store(real *x, vector a)
{
    *(unaligned_vector *)x = a;
}

/* The first n elements, at most PER_VECTOR, and zeros. */
INLINE vector vector_load_some(const real *x, int64_t n)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return (vector)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x);
#elif defined(__AVX512F__)
    return (vector)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), x);
#else
    if (n == PER_VECTOR)
        return vector_load(x);
    real some[PER_VECTOR] = {0};
    memcpy(some, x, n * sizeof(real));
    return vector_load(some);
#endif
}

INLINE void vector_store_some(real *x, vector a, int64_t n)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    _mm512_mask_storeu_ps(x, (__mmask16)((1u << n) - 1), (__m512)a);
#elif defined(__AVX512F__)
    _mm512_mask_storeu_pd(x, (__mmask8)((1u << n) - 1), (__m512d)a);
#else
    if (n == PER_VECTOR) {
        vector_store(x, a);
        return;
    }
    real some[PER_VECTOR];
    vector_store(some, a);
    memcpy(x, some, n * sizeof(real));
#endif
}

/* The elements of a, or 0 where those of gate are <= 0. */
INLINE vector vector_gate(vector a, vector gate)
{
    return (vector)((word_vector)a & ~(word_vector)(gate <= 0));
}

/* The elements of a where the bits of mask are set, else 0. */
INLINE vector vector_keep(vector a, const word *mask)
{
    return (vector)((word_vector)a & *(const unaligned_word_vector *)mask);
}

typedef struct {
    vector v[VECTORS];
} lanes;

#define EACH_VECTOR(k) _Pragma("GCC unroll 16") for (int k = 0; k < VECTORS; ++k)

INLINE lanes lanes_all(real x)
{
    lanes a;
    EACH_VECTOR (k)
        a.v[k] = (vector){0} + x;
    return a;
}

INLINE lanes lanes_load(const real *x)
{
    lanes a;
    EACH_VECTOR (k)
        a.v[k] = vector_load(x + k * PER_VECTOR);
    return a;
}

/* Prefetches the cache lines of the lanes so many reals ahead, which need not exist. */
INLINE void lanes_prefetch(const real *x, int64_t ahead)
{
    const uintptr_t start = (uintptr_t)x + ahead * sizeof(real);
    for (size_t byte = 0; byte < LANES * sizeof(real); byte += 64)
        __builtin_prefetch((const void *)(start + byte));
}

/* Prefetch what lies a page further on, where hardware prefetchers do not reach: where the caches are cold, that halves
 * the time of a loop. */
enum { PAGE = 4096 };

INLINE void prefetch_page(const real *x)
{
    __builtin_prefetch((const void *)((uintptr_t)x + PAGE));
}

INLINE void prefetch_page_to_write(real *x)
{
    __builtin_prefetch((const void *)((uintptr_t)x + PAGE), 1);
}

INLINE void lanes_store(real *x, lanes a)
{
    EACH_VECTOR (k)
        vector_store(x + k * PER_VECTOR, a.v[k]);
}

INLINE lanes lanes_add(lanes a, lanes b)
{
    EACH_VECTOR (k)
        a.v[k] += b.v[k];
    return a;
}

INLINE lanes lanes_subtract(lanes a, lanes b)
{
    EACH_VECTOR (k)
        a.v[k] -= b.v[k];
    return a;
}

INLINE lanes lanes_multiply(lanes a, lanes b)
{
    EACH_VECTOR (k)
        a.v[k] *= b.v[k];
    return a;
}

/* The lanes of a, or 0 where those of gate are <= 0. */
INLINE lanes lanes_gate(lanes a, lanes gate)
{
    EACH_VECTOR (k)
        a.v[k] = vector_gate(a.v[k], gate.v[k]);
    return a;
}

/* The lanes of a whose bit in the mask is set, or 0, the lowest bit for the first. Written as a bitwise and, lest the
 * compiler turn it into masked loads, which run at half the speed. */
INLINE lanes lanes_keep(lanes a, uint32_t mask)
{
    static const word bit_of[LANES] = {1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
                                       1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
                                       1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
                                       1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
    EACH_VECTOR (k) {
        const word_vector bit = *(const unaligned_word_vector *)(bit_of + k * PER_VECTOR);
        a.v[k] = (vector)((word_vector)a.v[k] & (word_vector)((bit & mask) == bit));
    }
    return a;
}

/* The sum of the lanes, by halves. */
static inline double lanes_sum(lanes a)
{
    real x[LANES];
    lanes_store(x, a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l)
            x[l] += x[l + half];
    return x[0];
}

#endif
