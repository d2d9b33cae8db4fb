/* Softmax cross-entropy: the loss of each row and the gradient with respect to the logits, in one pass.
 *
 *   loss = log sum_j exp(x_j - max) - (x_label - max);  dx_j = factor (softmax(x)_j - [j = label])
 */
#include "elementary.h"
#include "lanes.h"
#include "share.h"

static double row_sum(const real *x, int64_t n)
{
    lanes sum = lanes_all(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        sum = lanes_add(sum, lanes_load(x + i));
    real rest[LANES] = {0};
    memcpy(rest, x + i, (n - i) * sizeof(real));
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

enum { MOST_ROWS = 256 };

/* The maximum of each row, or of rows of few classes, all rows at once. */
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
            sum[row] = row_sum(x + row * classes, classes);
    else
        for (int64_t j = 0; j < classes; ++j)
#pragma omp simd
            for (int64_t row = 0; row < rows; ++row)
                sum[row] = (j == 0 ? 0 : sum[row]) + x[row * classes + j];
}

static void softmax_cross_entropy(void *const *array, const int64_t *size, const double *scalar,
                                  struct fastopt_share share)
{
    const int64_t rows = size[0], classes = size[1];
    const real factor = scalar[0]; /* rounded once, so that what should cancel does */
    /* Rows go in blocks that stay in the first-level cache; exp and log run over a whole block. */
    const int64_t fit = classes < 4096 ? 4096 / classes : 1, block = fit < MOST_ROWS ? fit : MOST_ROWS;
    const struct range own = own_range(rows, block, share);

    for (int64_t first = own.begin, n; first < own.end; first += n) {
        n = own.end - first < block ? own.end - first : block;
        const real *x = (const real *)array[0] + first * classes;
        const int64_t *labels = (const int64_t *)array[1] + first;
        real *losses = (real *)array[2] + first, *d = (real *)array[3] + first * classes;
        real max[MOST_ROWS], to_probability[MOST_ROWS];
        double sum[MOST_ROWS];

        row_maxima(x, n, classes, max);
        for (int64_t row = 0; row < n; ++row)
            losses[row] = max[row] - x[row * classes + labels[row]];
        for (int64_t row = 0; row < n; ++row)
#pragma omp simd
            for (int64_t j = row * classes; j < (row + 1) * classes; ++j)
                d[j] = x[j] - max[row];
#pragma omp simd
        for (int64_t i = 0; i < n * classes; ++i)
            d[i] = exp_of_negative(d[i]);
        row_sums(d, n, classes, sum);
#pragma omp simd
        for (int64_t row = 0; row < n; ++row) {
            losses[row] = losses[row] + log_of_positive(sum[row]);
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
