/* Matrix products in registers, C = A B + C0: what dense layers and convolutions are made of.
 *
 *                                          NR columns: one or two vectors
 *                              B (k x n)  +---------------+
 *                                  row p  |###############|  rows b_row apart
 *                                         |               |
 *           A (m x k)  column p           +---------------+
 *          +------------+-+------+        +---------------+
 *          |            |#|      |        |  MR x NR sums |
 *     MR   |            |#|      |        |  in registers |  one tile of C (m x n), rows c_row apart
 *    rows  |            |#|      |        |               |
 *          +------------+-+------+        +---------------+
 *
 * For one p after the other, the micro-kernel loads row p of B, broadcasts each of the MR elements of column p of A,
 * and adds their products to the tile. So each element of C is a chain of fused multiply-adds (fma.h) in the order of
 * p: its bits depend neither on MR and NR nor on the vector width. C0, a bias or the sums so far, is added last, and
 * then comes the ReLU.
 *
 * A and B may consist of several blocks along k, which lie anywhere (a batch-reduce GEMM): the kernel rows of a
 * convolution. */
#ifndef GEMM_H
#define GEMM_H

#include "../kernel.h"
#include "fma.h"
#include "lanes.h"

/* MR is bounded by the registers: the sums, a row of B and an element of A must fit, 6 x 2 + 2 + 1 into 16 of them. Of
 * 32, no more is wanted than hides the latency of FMA: with two vectors, 8 rows are 4 % faster than 12 on AMD Zen 4 and
 * 8 % on Intel Emerald Rapids, and faster than one vector, which takes twice as many broadcasts per product. Tiles of
 * the last few columns, or of 16 filters, are one vector wide: there, 8 rows are 3 to 12 % faster than 16 on Zen 4. */
enum { NR_VECTORS = 2, NR = NR_VECTORS * PER_VECTOR };
#if defined(__AVX512F__) || defined(__aarch64__)
enum { MR = 8 };
#else
enum { MR = 6 };
#endif

/* A single row hides the latency of FMA by more vectors: the product of a weight with one sample. Where the registers
 * allow twice as many, a weight of 784 x 256 is read in one stream, in 0.6 to 0.8 of the time on AMD Zen 5. */
#if defined(__AVX512F__)
enum { ROW_VECTORS = 16 };
#else
enum { ROW_VECTORS = 8 };
#endif
enum { LEAST_ROW = 8 * PER_VECTOR };

/* How many of n columns a single row takes at a time; 0 where there are too few. */
INLINE int64_t row_columns(int64_t n)
{
    return n >= ROW_VECTORS * PER_VECTOR ? ROW_VECTORS * PER_VECTOR : n >= LEAST_ROW ? LEAST_ROW : 0;
}

struct gemm_block {
    const real *a, *b;
};

struct gemm {
    struct gemm_block block[MAX_KERNEL_ROWS]; /* along k */
    int64_t blocks, k, a_row, a_column;       /* k of each block; from one row (column) of A to the next */
    int64_t b_row, a_line; /* a_line: where the rows of A are on several lines, from one to the next */
    const real *c0;        /* null: zeros */
    real *c;
    int64_t c0_row, c_row; /* c0_row is 0 for a bias */
    int64_t n;             /* at most NR, or row_columns() for a single row of C */
    int relu, prefetch;    /* prefetch: C is not in the caches */
};

/* Loops over a tile are unrolled, so that its sums are in registers; but where products are emulated, which the sums
 * wait for anyway, that would be nothing but code. */
#if !defined(__FMA__) && !defined(__aarch64__)
#define UNROLLED _Pragma("GCC unroll 1")
#elif defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)") /* the only one that clang 14 knows */
#else
#define UNROLLED _Pragma("GCC unroll 32")
#endif

/* Writes a row of a tile: its sums, plus C0, and the ReLU of that; `last` columns of the last vector. */
INLINE void finish_row(const vector *sum, const real *c0, int relu, real *c, int vectors, int64_t last)
{
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
        const int64_t at = v * PER_VECTOR, columns = v < vectors - 1 ? PER_VECTOR : last;
        vector y = c0 ? sum[v] + vector_load_some(c0 + at, columns) : sum[v];
        if (relu)
            y = vector_gate(y, y);
        vector_store_some(c + at, y, columns);
    }
}

INLINE void finish_rows(const struct gemm *g, const vector *sum, int rows, int vectors, int64_t last)
{
    const int64_t c_row = g->c_row, c0_row = g->c0_row;
    const int relu = g->relu;
    const real *c0 = g->c0;
    real *c = g->c;
    for (int i = 0; i < rows; ++i, c += c_row, sum += vectors) {
        finish_row(sum, c0, relu, c, vectors, last);
        c0 = c0 ? c0 + c0_row : c0;
    }
}

/* Not inlined: it would be most of the code of each tile of two vectors. */
static __attribute__((noinline)) void finish_tile(const struct gemm *g, const vector *sum, int rows, int vectors)
{
    const int64_t last = g->n - (vectors - 1) * PER_VECTOR;
    if (vectors > NR_VECTORS) /* a single row */
        finish_rows(g, sum, rows, vectors, last);
    else if (last == PER_VECTOR)
        finish_rows(g, sum, rows, NR_VECTORS, PER_VECTOR);
    else
        finish_rows(g, sum, rows, NR_VECTORS, last);
}

/* One tile: `lines` times `rows` rows of A, and so many vectors. All of them are constants, as is a_row if it is 1. */
INLINE void micro_kernel(const struct gemm *g, int lines, int rows, int vectors, int64_t a_row)
{
    vector sum[MR * NR_VECTORS], finished[MR * NR_VECTORS]; /* the former in registers */
    UNROLLED
    for (int at = 0; at < lines * rows * vectors; ++at)
        sum[at] = (vector){0};
    for (int64_t block = 0; block < g->blocks; ++block) {
        const real *a = g->block[block].a, *b = g->block[block].b;
        for (int64_t p = 0; p < g->k; ++p, a += g->a_column, b += g->b_row) {
            factor row[ROW_VECTORS];
            UNROLLED
            for (int v = 0; v < vectors; ++v)
                row[v] = factor_of(vector_load(b + v * PER_VECTOR));
            UNROLLED
            for (int i = 0; i < lines * rows; ++i) {
                const factor broadcast = factor_of(a[i / rows * g->a_line + i % rows * a_row] - (vector){0});
                UNROLLED
                for (int v = 0; v < vectors; ++v)
                    sum[i * vectors + v] = factors_fma(broadcast, row[v], sum[i * vectors + v]);
            }
        }
    }
    if (vectors == 1) { /* of few columns, and often few products: a detour through memory would be felt */
        UNROLLED
        for (int i = 0; i < lines * rows; ++i)
            finish_row(sum + i, g->c0 ? g->c0 + i * g->c0_row : NULL, g->relu, g->c + i * g->c_row, 1, g->n);
        return;
    }
    UNROLLED
    for (int at = 0; at < lines * rows * vectors; ++at)
        finished[at] = sum[at];
    finish_tile(g, finished, lines * rows, vectors);
}

/* m rows of C in tiles of about equal height: one of few rows does not hide the latency of FMA. */
INLINE void gemm_by_tiles(struct gemm *g, int64_t m, int64_t a_row)
{
    const int two = g->n > PER_VECTOR;
    const int64_t tiles = (m + MR - 1) / MR, equal = tiles ? (m + tiles - 1) / tiles : 0;
    for (int64_t rows; m > 0; m -= rows) {
        rows = minimum(m, equal);
        for (int64_t i = 0; g->prefetch && i < rows; ++i)
            for (int64_t j = 0; j < g->n; j += LINE_OF_REALS)
                __builtin_prefetch(g->c + i * g->c_row + j, 1);
#define TILE(rows)                                                                                                     \
    case rows:                                                                                                         \
        if (rows <= MR && two)                                                                                         \
            micro_kernel(g, 1, rows, NR_VECTORS, a_row);                                                               \
        else if (rows <= MR)                                                                                           \
            micro_kernel(g, 1, rows, 1, a_row);                                                                        \
        break;
        switch (rows) {
            TILE(1)
            TILE(2)
            TILE(3)
            TILE(4)
            TILE(5)
            TILE(6)
            TILE(7)
            TILE(8)
        }
#undef TILE
        for (int64_t block = 0; block < g->blocks; ++block)
            g->block[block].a += rows * a_row;
        if (g->c0)
            g->c0 += rows * g->c0_row;
        g->c += rows * g->c_row;
    }
}

static void gemm_of_rows(struct gemm *g, int64_t m)
{
    if (g->n > LEAST_ROW)
        micro_kernel(g, 1, 1, ROW_VECTORS, g->a_row);
    else if (g->n > NR)
        micro_kernel(g, 1, 1, LEAST_ROW / PER_VECTOR, g->a_row);
    else
        gemm_by_tiles(g, m, g->a_row);
}

/* A is transposed: MR elements of a column are neighbours in memory. */
static void gemm_of_columns(struct gemm *g, int64_t m)
{
    gemm_by_tiles(g, m, 1);
}

/* Writes m rows of C, and leaves g at the row after them. */
static void gemm(struct gemm *g, int64_t m)
{
    (g->a_row == 1 ? gemm_of_columns : gemm_of_rows)(g, m);
}

#endif
