/* The three products of a dense layer, x (rows, inputs) times weight (inputs, columns): y = x weight + bias, and for
 * the gradients dx = dy weight' and dweight = x' dy; and the fourth, of two transposed matrices. In gemm.h's letters:
 *
 *                          panel: LANES columns
 *                         +--------+--------+---      B (k x n) is taken panel by panel, and a panel by blocks of KC
 *                  KC     |        |        |         rows, which all rows of A pass over before the next one. A block
 *                  rows   | block  |        |         is packed into scratch memory: its rows side by side, filled up
 *                         +--------+--------+---      with zeros. One that lies well is read in place: rows of LANES
 *                         |        |        |         elements that are near each other.
 *        A (m x k)        +--------+--------+---
 *       +--------+-----+  +--------+--------+---
 *       |   KC   |     |  |        |        |         C (m x n): each block's sums are added to those before; bias and
 *       |        |     |  |        |        |         ReLU are the epilogue of the last block.
 */
#include "../kernel.h"
#include "bias_grad.h"
#include "gemm.h"
#include "share.h"

enum {
    KC = SCRATCH / LANES,
    NEAR = 2048, /* bytes from row to row of B: rows further apart are in L1 set conflict */
};

/* C = A B + bias. With these strides, A and B may be transposed matrices. */
struct product {
    const real *a, *b, *bias;
    real *c;
    int64_t a_row, a_column, b_row, b_column;
    int64_t k, n;
    int relu, prefetch;
};

typedef real quad __attribute__((vector_size(4 * sizeof(real))));
typedef real unaligned_quad __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* Elements of two quads: numbers 0 to 3 are of the first, 4 to 7 of the second. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef word word_quad __attribute__((vector_size(4 * sizeof(word))));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (word_quad){__VA_ARGS__})
#endif

/* Transposes 4 x 4 elements: columns that are `step` apart become rows of a packed block. */
INLINE void transpose(const real *columns, int64_t step, real *packed)
{
    quad c[4], halves[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
        c[j] = *(const unaligned_quad *)(columns + j * step);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
        halves[j] = SHUFFLE(c[j], c[j + 2], 0, 4, 1, 5);
        halves[j + 2] = SHUFFLE(c[j], c[j + 2], 2, 6, 3, 7);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
        *(unaligned_quad *)(packed + i * LANES) = SHUFFLE(halves[i], halves[i + 1], 0, 4, 1, 5);
        *(unaligned_quad *)(packed + (i + 1) * LANES) = SHUFFLE(halves[i], halves[i + 1], 2, 6, 3, 7);
    }
}

/* Packs k rows of n columns of B, and zeros up to LANES. */
static void pack_block(const real *b, int64_t b_row, int64_t b_column, int64_t k, int64_t n, real *packed)
{
    int64_t p = 0;
    if (n == LANES && b_column == 1)
        for (; p < k; ++p) {
            lanes_prefetch(b, (p + 16) * b_row);
            lanes_store(packed + p * LANES, lanes_load(b + p * b_row));
        }
    if (n == LANES && b_row == 1)
        for (; p + 4 <= k; p += 4)
            for (int64_t j = 0; j < LANES; j += 4)
                transpose(b + p + j * b_column, b_column, packed + p * LANES + j);
    if (n < LANES && b_column == 1) /* whole vectors of what is there: no tile reads more */
        for (; p < k; ++p)
            for (int64_t j = 0; j < n; j += PER_VECTOR)
                vector_store(packed + p * LANES + j, vector_load_some(b + p * b_row + j, minimum(n - j, PER_VECTOR)));
    for (; p < k; ++p)
        for (int64_t j = 0; j < LANES; ++j)
            packed[p * LANES + j] = j < n ? b[p * b_row + j * b_column] : 0;
}

/* A thread's share of m rows of C: some panels, or some rows where there are more threads than panels. */
static void multiply(const struct product *f, int64_t m, struct fastopt_share share)
{
    const struct fastopt_share whole = {0, 1};
    const int by_rows = panels(f->n) < share.count;
    const struct range rows = own_range(m, LINE_OF_REALS, by_rows ? share : whole);
    const struct range columns = own_range(f->n, LANES, by_rows ? whole : share);
    real scratch[SCRATCH];
    struct gemm g = {.blocks = 1, .a_row = f->a_row, .a_column = f->a_column, .c_row = f->n};
    g.prefetch = f->prefetch;
    const int one_row = rows.end - rows.begin == 1 && f->a_row > 1 && f->b_column == 1;
    for (int64_t first = columns.begin, width; first < columns.end; first += width) {
        const int64_t wide = one_row ? row_columns(columns.end - first) : 0; /* read once, so in place */
        width = wide ? wide : minimum(columns.end - first, LANES);
        const int near = f->b_column == 1 && f->b_row * (int64_t)sizeof(real) < NEAR && width == LANES;
        const int in_place = wide || near;
        g.b_row = in_place ? f->b_row : LANES;
        int64_t p = 0;
        do {
            const real *b = f->b + p * f->b_row + first * f->b_column;
            g.k = minimum(f->k - p, KC);
            g.relu = f->relu && p + g.k == f->k;
            g.c0_row = p ? f->n : 0;
            if (!in_place)
                pack_block(b, f->b_row, f->b_column, g.k, width, scratch);
            for (int64_t j = 0; j < width; j += g.n) {
                const real *a = f->a + rows.begin * f->a_row + p * f->a_column;
                g.block[0] = (struct gemm_block){a, (in_place ? b : scratch) + j};
                g.c = f->c + rows.begin * f->n + first + j;
                g.c0 = p ? g.c : f->bias ? f->bias + first + j : NULL;
                g.n = wide ? wide : minimum(width - j, NR);
                gemm(&g, rows.end - rows.begin);
            }
            p += g.k;
        } while (p < f->k); /* once for k = 0: y = bias */
    }
}

/* y = x weight + bias, bias and ReLU where wanted. */
static void dense_forward(const void *arguments, struct fastopt_share share)
{
    const struct dense_forward_args *a = arguments;
    const struct product f = {.a = a->x,
                              .b = a->weight,
                              .bias = a->bias,
                              .c = a->y,
                              .a_row = a->inputs,
                              .a_column = 1,
                              .b_row = a->columns,
                              .b_column = 1,
                              .k = a->inputs,
                              .n = a->columns,
                              .relu = a->relu != 0};
    multiply(&f, a->rows, share);
}

/* dx = dy weight'. */
static void dense_input_grad(const void *arguments, struct fastopt_share share)
{
    const struct dense_input_grad_args *a = arguments;
    const struct product f = {.a = a->dy,
                              .b = a->weight,
                              .c = a->dx,
                              .a_row = a->columns,
                              .a_column = 1,
                              .b_row = 1,
                              .b_column = a->columns,
                              .k = a->columns,
                              .n = a->inputs};
    multiply(&f, a->rows, share);
}

/* dweight = x' dy, and dbias if given. */
static void dense_weight_grad(const void *arguments, struct fastopt_share share)
{
    const struct dense_weight_grad_args *a = arguments;
    const struct product f = {.a = a->x,
                              .b = a->dy,
                              .c = a->dweight,
                              .a_row = 1,
                              .a_column = a->inputs,
                              .b_row = a->columns,
                              .b_column = 1,
                              .k = a->rows,
                              .n = a->columns,
                              .prefetch = 1};
    multiply(&f, a->inputs, share);
    if (a->dbias)
        sum_any_rows(sum_rows_of_dy, a->dy, NULL, NULL, a->dbias, a->rows, a->columns, 1, share);
}

/* y = a' b'. */
static void transposed_matmul(const void *arguments, struct fastopt_share share)
{
    const struct transposed_matmul_args *a = arguments;
    const struct product f = {.a = a->a,
                              .b = a->b,
                              .c = a->y,
                              .a_row = 1,
                              .a_column = a->rows,
                              .b_row = 1,
                              .b_column = a->inputs,
                              .k = a->inputs,
                              .n = a->columns};
    multiply(&f, a->rows, share);
}
