/* Softmax of rows, and its cross-entropy: the loss of each row and the gradient with respect to the logits, in one
 * pass.
 *
 *   softmax(x)_j = exp(x_j - max) / sum_k exp(x_k - max)
 *   loss = log sum_j exp(x_j - max) - (x_label - max);  dx_j = factor (softmax(x)_j - [j = label])
 */
#include "../kernel.h"
#include "elementary.h"
#include "lanes.h"
#include "share.h"

/* The sum of a row, or its dot product with the factors. */
INLINE double row_sum(const real *x, const real *factor, int64_t n)
{
    lanes sum = lanes_all(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        sum = lanes_add(sum, factor ? lanes_multiply(lanes_load(x + i), lanes_load(factor + i)) : lanes_load(x + i));
    real rest[LANES] = {0};
    for (int64_t l = 0; l < n - i; ++l)
        rest[l] = factor ? x[i + l] * factor[i + l] : x[i + l];
    return lanes_sum(lanes_add(sum, lanes_load(rest)));
}

static real row_max(const real *x, int64_t n)
{
    real max = x[0];
#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < n; ++j)
        max = x[j] > max ? x[j] : max;
    return max;
}

enum { MOST_ROWS = 256 /* of a block */ };

/* The maximum of each row; of narrow rows, vectors go along a column. */
static void row_maxima(const real *x, int64_t rows, int64_t classes, real *max)
{
    if (classes >= LANES)
        for (int64_t row = 0; row < rows; ++row)
            max[row] = row_max(x + row * classes, classes);
    else
        for (int64_t j = 0; j < classes; ++j)
#pragma omp simd
            for (int64_t row = 0; row < rows; ++row) {
                const real next = x[row * classes + j];
                max[row] = j == 0 || next > max[row] ? next : max[row];
            }
}

static void row_sums(const real *x, int64_t rows, int64_t classes, double *sum)
{
    if (classes >= LANES)
        for (int64_t row = 0; row < rows; ++row)
            sum[row] = row_sum(x + row * classes, NULL, classes);
    else
        for (int64_t j = 0; j < classes; ++j)
#pragma omp simd
            for (int64_t row = 0; row < rows; ++row)
                sum[row] = (j == 0 ? 0 : sum[row]) + x[row * classes + j];
}

/* Rows of a block that stays in the first-level cache, over all of which exp and log are vectorised. */
static int64_t rows_in_cache(int64_t columns)
{
    return minimum(4096 / minimum(maximum(columns, 1), 4096), MOST_ROWS);
}

/* e = exp(x - max), with the maximum of each row and the sum of its e; e may be x. */
static void exponentials(const real *x, int64_t rows, int64_t columns, real *max, real *e, double *sum)
{
    row_maxima(x, rows, columns, max);
    for (int64_t row = 0; row < rows; ++row)
#pragma omp simd
        for (int64_t j = row * columns; j < (row + 1) * columns; ++j)
            e[j] = x[j] - max[row];
#pragma omp simd
    for (int64_t i = 0; i < rows * columns; ++i)
        e[i] = exp_of_negative(e[i]);
    row_sums(e, rows, columns, sum);
}

/* y = softmax(x), and log_sum = max + log sum_j exp(x_j - max). */
static void softmax_forward(const void *arguments, struct fastopt_share share)
{
    const struct softmax_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const int64_t block = rows_in_cache(columns);
    const struct range own = own_range(a->rows, block, share);
    for (int64_t row = own.begin; columns == 0 && a->log_sum && row < own.end; ++row)
        a->log_sum[row] = -HUGE_VAL; /* the logarithm of an empty sum */
    for (int64_t first = own.begin, n; columns && first < own.end; first += n) {
        n = minimum(own.end - first, block);
        real *y = a->y + first * columns, max[MOST_ROWS];
        double *log_sum = a->log_sum ? a->log_sum + first : NULL, sum[MOST_ROWS];
        exponentials(a->x + first * columns, n, columns, max, y, sum);
        for (int64_t row = 0; row < n; ++row) {
            const real to_probability = 1 / sum[row];
#pragma omp simd
            for (int64_t j = row * columns; j < (row + 1) * columns; ++j)
                y[j] *= to_probability;
        }
        if (log_sum)
#pragma omp simd
            for (int64_t row = 0; row < n; ++row)
                log_sum[row] = max[row] + log_of_positive(sum[row]);
    }
}

/* dx = y (dy - sum_j dy_j y_j) */
static void softmax_backward(const void *arguments, struct fastopt_share share)
{
    const struct softmax_backward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range own = own_range(a->rows, 1, share);
    for (int64_t row = own.begin; row < own.end; ++row) {
        const real *dy = a->dy + row * columns, *y = a->y + row * columns;
        real *dx = a->dx + row * columns;
        const real mean = row_sum(dy, y, columns);
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j)
            dx[j] = y[j] * (dy[j] - mean);
    }
}

static void softmax_cross_entropy(const void *arguments, struct fastopt_share share)
{
    const struct softmax_cross_entropy_args *a = arguments;
    const int64_t rows = a->rows, classes = a->classes;
    const real factor = a->factor; /* rounded once, so that what should cancel does */
    const int64_t block = rows_in_cache(classes);
    const struct range own = own_range(rows, block, share);

    for (int64_t first = own.begin, n; first < own.end; first += n) {
        n = minimum(own.end - first, block);
        const real *x = a->logits + first * classes;
        const int64_t *labels = a->labels + first;
        real *losses = a->losses + first, *d = a->dlogits + first * classes;
        real max[MOST_ROWS], to_probability[MOST_ROWS];
        double sum[MOST_ROWS];

        for (int64_t row = 0; row < n; ++row)
            losses[row] = -x[row * classes + labels[row]]; /* before d, which may be x, is written */
        exponentials(x, n, classes, max, d, sum);
#pragma omp simd
        for (int64_t row = 0; row < n; ++row) {
            losses[row] = (max[row] + losses[row]) + log_of_positive(sum[row]);
            to_probability[row] = factor / sum[row];
        }
        for (int64_t row = 0; row < n; ++row) {
#pragma omp simd
            for (int64_t j = row * classes; j < (row + 1) * classes; ++j)
                d[j] *= to_probability[row];
            d[row * classes + labels[row]] -= factor;
        }
    }
}
