/* ReLU, alone and after the bias of a dense or convolutional layer. Elementwise kernels work in place too.
 *
 * Here and elsewhere, both values of a ?: are loaded beforehand: a load that is conditional keeps a loop from
 * becoming a vector loop on instruction sets without masked loads. */
#include "bias_relu.h"
#include "lanes.h"
#include "share.h"

static void relu_forward(const void *arguments, struct fastopt_share share)
{
    const struct relu_forward_args *a = arguments;
    const real *x = a->x;
    real *y = a->y;
    const struct range own = own_range(a->n, LINE_OF_REALS, share);
    for (struct range part = up_to_line(own, y); part.begin < own.end; part = after(part, own))
#pragma omp simd
        for (int64_t i = part.begin; i < part.end; ++i)
            y[i] = x[i] <= 0 ? 0 : x[i]; /* NaN stays NaN */
}

/* dx = 0 where y is 0, else dy, for y the output of relu_forward. */
static void relu_backward(const void *arguments, struct fastopt_share share)
{
    const struct relu_backward_args *a = arguments;
    const real *dy = a->dy, *y = a->y;
    real *dx = a->dx;
    const struct range own = own_range(a->n, LINE_OF_REALS, share);
    for (struct range part = up_to_line(own, dx); part.begin < own.end; part = after(part, own))
#pragma omp simd
        for (int64_t i = part.begin; i < part.end; ++i) {
            const real d = dy[i];
            dx[i] = y[i] <= 0 ? 0 : d;
        }
}

/* y = x + bias, bias one value per column. */
static void bias_forward(const void *arguments, struct fastopt_share share)
{
    const struct bias_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range rows = own_range(a->rows, 1, share);
    const real *x = a->x + rows.begin * columns, *bias = a->bias;
    real *y = a->y + rows.begin * columns;
    for (int64_t row = rows.begin; row < rows.end; ++row, x += columns, y += columns)
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j)
            y[j] = x[j] + bias[j];
}

/* y = relu(x + bias). */
static void bias_relu_forward(const void *arguments, struct fastopt_share share)
{
    const struct bias_relu_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range rows = own_range(a->rows, 1, share);
    const real *x = a->x + rows.begin * columns, *bias = a->bias;
    real *y = a->y + rows.begin * columns;
    for (int64_t row = rows.begin; row < rows.end; ++row, x += columns, y += columns)
        bias_relu(x, bias, y, columns);
}

/* The sum of the rows, in order by blocks of them, and these in double. With y, dy counts only where y is not 0, times
 * factor, and is written to dx. */
INLINE void sum_rows(const real *all_dy, const real *all_y, real *all_dx, real *dbias, int64_t rows, int64_t columns,
                     real factor, struct fastopt_share share)
{
    enum { ROWS = 64, COLUMNS = 32 * LANES };
    const struct range own = own_range(columns, LANES, share);
    const lanes factors = lanes_all(factor);
    for (int64_t first = own.begin; first < own.end; first += COLUMNS) {
        const int64_t width = own.end - first < COLUMNS ? own.end - first : COLUMNS, whole = width - width % LANES;
        const real *dy = all_dy + first, *y = all_y ? all_y + first : NULL;
        real *dx = all_y ? all_dx + first : NULL;
        /* Rows that share one load of the sums: of wide rows, whose places in the first-level cache collide, only one.
         */
        const int64_t together = width > 8 * LANES ? 1 : 8;
        real sum[COLUMNS];
        double total[COLUMNS];
        memset(total, 0, width * sizeof *total);
        for (int64_t row = 0, end; row < rows; row = end) {
            end = row + together < rows ? row + together : rows;
            if (row % ROWS == 0)
                memset(sum, 0, width * sizeof *sum);
            for (int64_t j = 0; j < whole; j += LANES) {
                lanes sums = lanes_load(sum + j);
                for (int64_t at = row * columns + j; at < end * columns; at += columns) {
                    lanes d = lanes_load(dy + at);
                    if (y) {
                        d = lanes_multiply(lanes_gate(d, lanes_load(y + at)), factors);
                        lanes_store(dx + at, d);
                    }
                    sums = lanes_add(sums, d);
                }
                lanes_store(sum + j, sums);
            }
            for (int64_t at = row * columns; at < end * columns; at += columns)
                if (y) {
#pragma omp simd
                    for (int64_t j = whole; j < width; ++j) {
                        const real d = dy[at + j] * factor, seen = y[at + j] <= 0 ? 0 : d;
                        dx[at + j] = seen;
                        sum[j] += seen;
                    }
                } else {
#pragma omp simd
                    for (int64_t j = whole; j < width; ++j)
                        sum[j] += dy[at + j];
                }
            if (end % ROWS == 0 || end == rows)
                for (int64_t j = 0; j < width; ++j)
                    total[j] += sum[j];
        }
        for (int64_t j = 0; j < width; ++j)
            dbias[first + j] = total[j];
    }
}

/* The same, of rows of any width: narrow ones that fill the lanes side by side lie there so. */
INLINE void sum_any_rows(const real *dy, const real *y, real *dx, real *dbias, int64_t rows, int64_t columns,
                         real factor, struct fastopt_share share)
{
    if (columns >= LANES || columns == 0 || LANES % columns) {
        sum_rows(dy, y, dx, dbias, rows, columns, factor, share);
    } else if (share.index == 0) {
        const struct fastopt_share all = {0, 1};
        const int64_t whole = rows * columns / LANES, done = whole * LANES, rest = rows * columns - done;
        real sum[LANES], last[LANES] = {0};
        sum_rows(dy, y, dx, sum, whole, LANES, factor, all);
        sum_rows(dy + done, y ? y + done : NULL, y ? dx + done : NULL, last, 1, rest, factor, all);
        for (int64_t l = 0; l < LANES; ++l)
            sum[l] += last[l];
        for (int64_t half = LANES / 2; half >= columns; half /= 2)
            for (int64_t l = 0; l < half; ++l)
                sum[l] += sum[l + half];
        memcpy(dbias, sum, columns * sizeof(real));
    }
}

static void bias_backward(const void *arguments, struct fastopt_share share)
{
    const struct bias_backward_args *a = arguments;
    sum_any_rows(a->dy, NULL, NULL, a->dbias, a->rows, a->columns, 1, share);
}

/* dx as in relu_backward, times factor (of a dropout behind it: what that dropped is 0 in y, too), and dbias. */
static void bias_relu_backward(const void *arguments, struct fastopt_share share)
{
    const struct bias_relu_backward_args *a = arguments;
    sum_any_rows(a->dy, a->y, a->dx, a->dbias, a->rows, a->columns, a->factor, share);
}
