/* ReLU, alone and after the bias of a dense or convolutional layer. Elementwise kernels work in place too.
 *
 * Here and elsewhere, both values of a ?: are loaded beforehand: a load that is conditional keeps a loop from
 * becoming a vector loop on instruction sets without masked loads. */
#include "bias_relu.h"
#include "lanes.h"
#include "share.h"

static void relu_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const real *x = array[0];
    real *y = array[1];
    const struct range own = own_range(size[0], LINE_OF_REALS, share);
    (void)scalar;
    for (struct range part = up_to_line(own, y); part.begin < own.end; part = after(part, own))
#pragma omp simd
        for (int64_t i = part.begin; i < part.end; ++i)
            y[i] = x[i] <= 0 ? 0 : x[i]; /* NaN stays NaN */
}

/* dx = 0 where y is 0, else dy, for y the output of relu_forward. */
static void relu_backward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const real *dy = array[0], *y = array[1];
    real *dx = array[2];
    const struct range own = own_range(size[0], LINE_OF_REALS, share);
    (void)scalar;
    for (struct range part = up_to_line(own, dx); part.begin < own.end; part = after(part, own))
#pragma omp simd
        for (int64_t i = part.begin; i < part.end; ++i) {
            const real d = dy[i];
            dx[i] = y[i] <= 0 ? 0 : d;
        }
}

/* y = x + bias, bias one value per column. */
static void bias_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const int64_t columns = size[1];
    const struct range rows = own_range(size[0], 1, share);
    const real *x = (const real *)array[0] + rows.begin * columns, *bias = array[1];
    real *y = (real *)array[2] + rows.begin * columns;
    (void)scalar;
    for (int64_t row = rows.begin; row < rows.end; ++row, x += columns, y += columns)
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j)
            y[j] = x[j] + bias[j];
}

/* y = relu(x + bias). */
static void bias_relu_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const int64_t columns = size[1];
    const struct range rows = own_range(size[0], 1, share);
    const real *x = (const real *)array[0] + rows.begin * columns, *bias = array[1];
    real *y = (real *)array[2] + rows.begin * columns;
    (void)scalar;
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

static void bias_backward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    (void)scalar;
    sum_any_rows(array[0], NULL, NULL, array[1], size[0], size[1], 1, share);
}

/* dx as in relu_backward, times factor (of a dropout behind it: what that dropped is 0 in y, too), and dbias. */
static void bias_relu_backward(void *const *array, const int64_t *size, const double *scalar,
                               struct fastopt_share share)
{
    sum_any_rows(array[0], array[1], array[2], array[3], size[0], size[1], scalar[0], share);
}
