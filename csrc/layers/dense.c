/* The three products of a dense layer, x (rows, inputs) times weight (inputs, columns): y = x weight + bias, and for
 * the gradients dx = dy weight' and dweight = x' dy.
 *
 * Each is blocks of products (product.h), panel by panel of LANES columns of the second factor. That is read where it
 * lies if its rows are near each other; else a panel is laid out first, as are narrower ones. Where a sum is long, it
 * is made of the sums of A_SUM products, each added to those before. */
#include "../kernel.h"
#include "bias_grad.h"
#include "product.h"
#include "share.h"

enum { A_SUM = SCRATCH / LANES, NEAR = 2048 /* bytes: farther rows compete for the same places in a cache */ };

/* out = a b + bias: (rows, length) by (length, columns), of which any may be transposed. */
struct factors {
    const real *a, *b, *bias;
    real *out;
    int64_t a_row, a_column, b_row, b_column; /* how far it is to the next one */
    int64_t length, columns;
    int relu, cold;
};

typedef real quad __attribute__((vector_size(4 * sizeof(real))));
typedef real unaligned_quad __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* Numbers of two quads: their places in the first (0 to 3) or the second (4 to 7). */
#if defined(__clang__)
#define CHOOSE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef word word_quad __attribute__((vector_size(4 * sizeof(word))));
#define CHOOSE(a, b, ...) __builtin_shuffle(a, b, (word_quad){__VA_ARGS__})
#endif

/* Four columns of four numbers, `step` apart from each other, as rows of scratch. */
INLINE void transpose(const real *columns, int64_t step, real *scratch)
{
    quad c[4], halves[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
        c[k] = *(const unaligned_quad *)(columns + k * step);
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
        halves[k] = CHOOSE(c[k], c[k + 2], 0, 4, 1, 5);
        halves[k + 2] = CHOOSE(c[k], c[k + 2], 2, 6, 3, 7);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
        *(unaligned_quad *)(scratch + i * LANES) = CHOOSE(halves[i], halves[i + 1], 0, 4, 1, 5);
        *(unaligned_quad *)(scratch + (i + 1) * LANES) = CHOOSE(halves[i], halves[i + 1], 2, 6, 3, 7);
    }
}

/* n rows of a panel of `wide` columns, and zeros up to LANES. */
static void lay_out(const real *b, int64_t row, int64_t column, int64_t n, int64_t wide, real *scratch)
{
    int64_t i = 0;
    if (wide == LANES && column == 1)
        for (; i < n; ++i) {
            lanes_prefetch(b, (i + 16) * row);
            lanes_store(scratch + i * LANES, lanes_load(b + i * row));
        }
    if (wide == LANES && row == 1)
        for (; i + 4 <= n; i += 4)
            for (int64_t k = 0; k < LANES; k += 4)
                transpose(b + i + k * column, column, scratch + i * LANES + k);
    for (; i < n; ++i)
        for (int64_t k = 0; k < LANES; ++k)
            scratch[i * LANES + k] = k < wide ? b[i * row + k * column] : 0;
}

/* A thread's share of all rows of a product: of panels, or of rows where there are more threads than panels. */
static void product_of(const struct factors *f, int64_t all_rows, struct fastopt_share share)
{
    const struct fastopt_share whole = {0, 1};
    const int by_rows = panels(f->columns) < share.count;
    const struct range rows = own_range(all_rows, LINE_OF_REALS, by_rows ? share : whole);
    const struct range columns = own_range(f->columns, LANES, by_rows ? whole : share);
    const int64_t most = widest();
    real scratch[SCRATCH];
    struct product p = {.count = 1, .step_j = f->a_row, .step_i = f->a_column, .step_out = f->columns};
    p.cold = f->cold;
    for (int64_t first = columns.begin; first < columns.end; first += LANES) {
        const int64_t wide = minimum(columns.end - first, LANES);
        const int near = f->b_column == 1 && f->b_row * (int64_t)sizeof(real) < NEAR && wide == LANES;
        p.step_b = near ? f->b_row : LANES;
        int64_t i = 0;
        do {
            const real *b = f->b + i * f->b_row + first * f->b_column;
            p.length = minimum(f->length - i, A_SUM);
            p.relu = f->relu && i + p.length == f->length;
            p.step_start = i ? f->columns : 0;
            if (!near)
                lay_out(b, f->b_row, f->b_column, p.length, wide, scratch);
            for (int64_t k = 0; k < wide; k += p.width) {
                const real *a = f->a + rows.begin * f->a_row + i * f->a_column;
                p.runs[0] = (struct run){a, (near ? b : scratch) + k};
                p.out = f->out + rows.begin * f->columns + first + k;
                p.start = i ? p.out : f->bias ? f->bias + first + k : NULL;
                p.width = minimum(wide - k, most);
                multiply(&p, rows.end - rows.begin);
            }
            i += p.length;
        } while (i < f->length);
    }
}

/* y = x weight + bias, bias and ReLU where wanted. */
static void dense_forward(const void *arguments, struct fastopt_share share)
{
    const struct dense_forward_args *a = arguments;
    const int64_t rows = a->rows, inputs = a->inputs, columns = a->columns;
    const struct factors f = {.a = a->x,
                              .b = a->weight,
                              .bias = a->bias,
                              .out = a->y,
                              .a_row = inputs,
                              .a_column = 1,
                              .b_row = columns,
                              .b_column = 1,
                              .length = inputs,
                              .columns = columns,
                              .relu = a->relu != 0};
    product_of(&f, rows, share);
}

static void dense_input_grad(const void *arguments, struct fastopt_share share)
{
    const struct dense_input_grad_args *a = arguments;
    const int64_t rows = a->rows, inputs = a->inputs, columns = a->columns;
    const struct factors f = {.a = a->dy,
                              .b = a->weight,
                              .out = a->dx,
                              .a_row = columns,
                              .a_column = 1,
                              .b_row = 1,
                              .b_column = columns,
                              .length = columns,
                              .columns = inputs};
    product_of(&f, rows, share);
}

/* dweight, and dbias if given. */
static void dense_weight_grad(const void *arguments, struct fastopt_share share)
{
    const struct dense_weight_grad_args *a = arguments;
    const int64_t rows = a->rows, inputs = a->inputs, columns = a->columns;
    const struct factors f = {.a = a->x,
                              .b = a->dy,
                              .out = a->dweight,
                              .a_row = 1,
                              .a_column = inputs,
                              .b_row = columns,
                              .b_column = 1,
                              .length = rows,
                              .columns = columns,
                              .cold = 1};
    product_of(&f, inputs, share);
    if (a->dbias)
        sum_any_rows(a->dy, NULL, NULL, a->dbias, rows, columns, 1, share);
}
