/* The three products of a dense layer, x (rows, inputs) times weight (inputs, columns): y = x weight + bias, and for
 * the gradients dx = dy weight' and dweight = x' dy.
 *
 * Each is blocks of products (product.h), panel by panel of LANES columns of the second factor. That is read where it
 * lies if its rows are near each other; else a panel is laid out first, as are narrower ones. Where a sum is long, it
 * is made of the sums of A_SUM products, each added to those before. */
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
typedef word word_quad __attribute__((vector_size(4 * sizeof(word))));
typedef real unaligned_quad __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* Four columns of four numbers, `step` apart from each other, as rows of scratch. */
INLINE void transpose(const real *columns, int64_t step, real *scratch)
{
    quad c[4], halves[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
        c[k] = *(const unaligned_quad *)(columns + k * step);
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
        halves[k] = __builtin_shuffle(c[k], c[k + 2], (word_quad){0, 4, 1, 5});
        halves[k + 2] = __builtin_shuffle(c[k], c[k + 2], (word_quad){2, 6, 3, 7});
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
        *(unaligned_quad *)(scratch + i * LANES) = __builtin_shuffle(halves[i], halves[i + 1], (word_quad){0, 4, 1, 5});
        *(unaligned_quad *)(scratch + (i + 1) * LANES) =
            __builtin_shuffle(halves[i], halves[i + 1], (word_quad){2, 6, 3, 7});
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

static void panels(const struct factors *f, struct range rows, struct range columns)
{
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
                p.width = minimum(wide - k, widest());
                multiply(&p, rows.end - rows.begin);
            }
            i += p.length;
        } while (i < f->length);
    }
}

/* y = x weight + bias, bias and ReLU where wanted. */
static void dense_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const int64_t rows = size[0], inputs = size[1], columns = size[2];
    const struct factors f = {.a = array[0],
                              .b = array[1],
                              .bias = array[2],
                              .out = array[3],
                              .a_row = inputs,
                              .a_column = 1,
                              .b_row = columns,
                              .b_column = 1,
                              .length = inputs,
                              .columns = columns,
                              .relu = size[3] != 0};
    (void)scalar;
    panels(&f, (struct range){0, rows}, own_range(columns, LANES, share));
}

static void dense_input_grad(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const int64_t rows = size[0], inputs = size[1], columns = size[2];
    const struct factors f = {.a = array[0],
                              .b = array[1],
                              .out = array[2],
                              .a_row = columns,
                              .a_column = 1,
                              .b_row = 1,
                              .b_column = columns,
                              .length = columns,
                              .columns = inputs};
    (void)scalar;
    panels(&f, (struct range){0, rows}, own_range(inputs, LANES, share));
}

/* dweight, and dbias if given. */
static void dense_weight_grad(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const int64_t rows = size[0], inputs = size[1], columns = size[2];
    const struct factors f = {.a = array[0],
                              .b = array[1],
                              .out = array[2],
                              .a_row = 1,
                              .a_column = inputs,
                              .b_row = columns,
                              .b_column = 1,
                              .length = rows,
                              .columns = columns,
                              .cold = 1};
    panels(&f, own_range(inputs, LINE_OF_REALS, share), (struct range){0, columns});
    if (array[3])
        bias_backward((void *const[]){array[1], array[3]}, (const int64_t[]){rows, columns}, scalar, share);
}
