/* Sums of products in registers: what convolutions and dense layers are made of. Each is blocks of
 *
 *   out[j][k] = start[j][k] + sum over runs and i of a[j step_j + i step_i] b[i step_b + k]
 *
 * in which the sum goes in order, by one product and one addition after the other: bits do not depend on how large the
 * blocks are. */
#ifndef PRODUCT_H
#define PRODUCT_H

#include "../kernel.h"
#include "lanes.h"

/* A block has as many rows of j, by one or by `WIDE` vectors of k, as there are accumulators that stay in registers.
 * Two vectors ask for the fewest numbers of a. But those are spread over a register by an instruction of their own,
 * which on some CPUs takes a place among the products, while one vector is multiplied by a number in memory: see
 * fastopt_product_vectors. */
enum { WIDE = 2 };
#if defined(__AVX512F__)
enum { BLOCK = 12, BLOCK_OF_ONE = 16 };
#elif defined(__aarch64__)
enum { BLOCK = 8, BLOCK_OF_ONE = 8 };
#else
enum { BLOCK = 6, BLOCK_OF_ONE = 6 };
#endif

struct run {
    const real *a, *b;
};

struct product {
    struct run runs[MOST_RUNS];
    int64_t count, length, step_j, step_i, step_b; /* runs, and the i of each */
    int64_t step_line;                             /* of a, where the j are in several lines */
    const real *start;                             /* null: zeros */
    real *out;
    int64_t step_start, step_out;
    int64_t width;  /* of the k, at most `widest` */
    int relu, cold; /* cold: out is not in the caches */
};

/* How many k a product may have, from now on to the end of a kernel. */
INLINE int64_t widest(void)
{
    return (VECTOR_BYTES == 64 && fastopt_product_vectors < WIDE ? 1 : WIDE) * PER_VECTOR;
}

/* The block of so many lines of `rows` j each, and so many vectors of k; all are constants, as is step_j if it is 1. */
INLINE void block(const struct product *p, int lines, int rows, int vectors, int64_t step_j)
{
    vector sum[BLOCK * WIDE > BLOCK_OF_ONE ? BLOCK * WIDE : BLOCK_OF_ONE];
    const int64_t last = p->width - (vectors - 1) * PER_VECTOR; /* of the last vector */
#pragma GCC unroll 32
    for (int at = 0; at < lines * rows * vectors; ++at)
        sum[at] = (vector){0};
    for (int64_t r = 0; r < p->count; ++r) {
        const real *a = p->runs[r].a, *b = p->runs[r].b;
        for (int64_t i = 0; i < p->length; ++i, a += p->step_i, b += p->step_b) {
            vector wide[WIDE];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v)
                wide[v] = vector_load(b + v * PER_VECTOR);
#pragma GCC unroll 16
            for (int j = 0; j < lines * rows; ++j) {
                const vector one = a[j / rows * p->step_line + j % rows * step_j] - (vector){0};
#pragma GCC unroll 2
                for (int v = 0; v < vectors; ++v)
                    sum[j * vectors + v] += one * wide[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < lines * rows; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = v * PER_VECTOR, wide = v < vectors - 1 ? PER_VECTOR : last;
            vector y = sum[j * vectors + v];
            if (p->start)
                y += vector_load_some(p->start + j * p->step_start + at, wide);
            if (p->relu)
                y = vector_gate(y, y);
            vector_store_some(p->out + j * p->step_out + at, y, wide);
        }
}

INLINE void multiply_by(struct product *p, int64_t rows, int64_t step_j)
{
    const int two = p->width > PER_VECTOR;
    const int64_t most = two ? BLOCK : BLOCK_OF_ONE, blocks = (rows + most - 1) / most;
    const int64_t equal = blocks ? (rows + blocks - 1) / blocks : 0; /* a short last block would wait for its sums */
    for (int64_t n; rows > 0; rows -= n) {
        n = minimum(rows, equal);
        for (int64_t j = 0; p->cold && j < n; ++j)
            for (int64_t k = 0; k < p->width; k += LINE_OF_REALS)
                __builtin_prefetch(p->out + j * p->step_out + k, 1);
#define ROWS(n)                                                                                                        \
    case n:                                                                                                            \
        if (two && n <= BLOCK)                                                                                         \
            block(p, 1, n, WIDE, step_j);                                                                              \
        else if (n <= BLOCK_OF_ONE)                                                                                    \
            block(p, 1, n, 1, step_j);                                                                                 \
        break;
        switch (n) {
            ROWS(1)
            ROWS(2)
            ROWS(3)
            ROWS(4)
            ROWS(5)
            ROWS(6)
            ROWS(7)
            ROWS(8)
            ROWS(9)
            ROWS(10)
            ROWS(11)
            ROWS(12)
            ROWS(13)
            ROWS(14)
            ROWS(15)
            ROWS(16)
        }
#undef ROWS
        for (int64_t r = 0; r < p->count; ++r)
            p->runs[r].a += n * step_j;
        if (p->start)
            p->start += n * p->step_start;
        p->out += n * p->step_out;
    }
}

static void multiply_apart(struct product *p, int64_t rows)
{
    multiply_by(p, rows, p->step_j);
}

static void multiply_side_by_side(struct product *p, int64_t rows)
{
    multiply_by(p, rows, 1);
}

/* So many rows j, block after block, at whose end p then is. */
static void multiply(struct product *p, int64_t rows)
{
    (p->step_j == 1 ? multiply_side_by_side : multiply_apart)(p, rows);
}

#endif
