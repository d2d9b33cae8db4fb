/* What every step does beside its formula: it looks whether the gradient is finite, preprocesses it, sums squares for
 * norms, and constrains the parameter. Sums are in double, element i in lane i % SUM_LANES of its block: the same bits
 * on every instruction set.
 */
#ifndef AROUND_H
#define AROUND_H

#include "../sums.h"
#include "step.h"

/* Whether all of n reals are finite: an exponent of ones carries into the sign. */
static int all_finite(const void *numbers, size_t n)
{
    const word *bits = numbers, sign = (word)1 << (REAL_BITS - 1), one = (word)1 << MANTISSA_BITS;
    word carry = 0;
#pragma omp simd reduction(| : carry)
    for (size_t i = 0; i < n; ++i)
        carry |= (bits[i] & (sign - 1)) + one;
    return !(carry & sign);
}

/* Preprocesses a gradient: scales it (loss scale, clipping by norm), clips it by value, and adds the gradient of the
 * penalty l1 |param| + l2/2 |param|^2. Without a penalty the parameter is not read into it: 0 * inf would be NaN. */
static void preprocess(const struct fastopt_tensor *tensor, const double *hyper, void *preprocessed)
{
    const struct fastopt_every_step *h = (const void *)hyper;
    const real limit = h->clip_value, l1 = h->l1, l2 = h->decoupled ? 0 : h->weight_decay, scale = tensor->grad_scale;
    const real *restrict param = tensor->param, *restrict grad = tensor->grad;
    real *restrict out = preprocessed;
#pragma omp simd
    for (size_t i = 0; i < tensor->n; ++i) {
        const real g = scale * grad[i], clipped = g > limit ? limit : g < -limit ? -limit : g;
        const real decayed = l2 != 0 ? clipped + l2 * param[i] : clipped;
        out[i] = l1 != 0 ? decayed + l1 * sign_of(param[i]) : decayed;
    }
}

/* The squares of the gradient: the first sum. The second is not used. */
static void squares_sums(const struct fastopt_tensor *tensor, const double *hyper, double sums[FASTOPT_SUMS])
{
    (void)hyper;
    sums[0] = square_sum(tensor->grad, tensor->n);
    sums[1] = 0;
}

/* Max-norm constraint (Srebro & Shraibman 2005) on the incoming weights of each unit, a column of the parameter. */
static void constrain(const struct fastopt_tensor *tensor, size_t begin, size_t end, double limit)
{
    real *param = tensor->param, factor[FASTOPT_STRIP];
    const size_t columns = tensor->columns, rows = columns ? tensor->n / columns : 0;
    double sum[FASTOPT_STRIP] = {0};
    int any = 0;
    for (size_t row = 0; row < rows; ++row)
#pragma omp simd
        for (size_t column = begin; column < end; ++column) {
            const double p = param[row * columns + column];
            sum[column - begin] += p * p;
        }
    for (size_t column = begin; column < end; ++column) {
        const double norm = sqrt(sum[column - begin]);
        factor[column - begin] = norm > limit ? limit / norm : 1;
        any |= norm > limit;
    }
    for (size_t row = 0; any && row < rows; ++row)
#pragma omp simd
        for (size_t column = begin; column < end; ++column)
            param[row * columns + column] *= factor[column - begin];
}

#endif
