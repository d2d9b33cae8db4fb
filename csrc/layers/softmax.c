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

static void softmax_cross_entropy(void *const *array, const int64_t *size, const double *scalar,
                                  struct fastopt_share share)
{
    const real *logits = array[0];
    const int64_t *labels = array[1];
    real *losses = array[2], *dlogits = array[3];
    const int64_t rows = size[0], classes = size[1];
    const real factor = scalar[0]; /* rounded once, so that what should cancel does */
    /* Rows go in blocks that stay in the first-level cache; exp runs over a whole block, however few the classes. */
    const int64_t block = classes < 4096 ? 4096 / classes : 1;
    const struct range own = own_range(rows, block, share);

    for (int64_t first = own.begin; first < own.end; first += block) {
        const int64_t end = first + block < own.end ? first + block : own.end;
        for (int64_t row = first; row < end; ++row) {
            const real *x = logits + row * classes;
            real *d = dlogits + row * classes;
            real max = x[0];
#pragma omp simd reduction(max : max)
            for (int64_t j = 0; j < classes; ++j)
                max = x[j] > max ? x[j] : max;
            losses[row] = max - x[labels[row]];
#pragma omp simd
            for (int64_t j = 0; j < classes; ++j)
                d[j] = x[j] - max;
        }
#pragma omp simd
        for (int64_t i = first * classes; i < end * classes; ++i)
            dlogits[i] = exp_of_negative(dlogits[i]);
        for (int64_t row = first; row < end; ++row) {
            real *d = dlogits + row * classes;
            const double sum = row_sum(d, classes);
            const real to_probability = factor / sum;
            losses[row] = losses[row] + log_of_positive(sum);
#pragma omp simd
            for (int64_t j = 0; j < classes; ++j)
                d[j] *= to_probability;
            d[labels[row]] -= factor;
        }
    }
}
