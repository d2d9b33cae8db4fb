/* The coefficients of batch norm per channel, from statistics and learnt values: forward and backward are one linear
 * function of the elements each. */
#ifndef BATCH_NORM_H
#define BATCH_NORM_H

#include "../kernel.h"

/* The statistics of inference, of n channels from number `first` on. */
static void running_statistics(int64_t first, int64_t n, const real *running_mean, const real *running_var, double eps,
                               double *mean, double *inv_std)
{
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        mean[j] = running_mean[first + j];
        inv_std[j] = 1 / sqrt(running_var[first + j] + eps);
    }
}

/* The learnt values of n channels from number `first` on, or a substitute where there are none. */
static void learnt(const real *given, int64_t first, int64_t n, real substitute, real *value)
{
    for (int64_t j = 0; j < n; ++j)
        value[j] = substitute;
    if (given)
        memcpy(value, given + first, n * sizeof(real));
}

/* The coefficients of y = (x - high) factor + intercept. All kernels take them from here, so that backward computes
 * the y of forward, bit by bit. */
static void affine(int64_t first, int64_t n, const double *mean, const double *inv_std, const real *scale,
                   const real *shift, real *high, real *factor, real *intercept)
{
    learnt(scale, first, n, 1, factor);
    learnt(shift, first, n, 0, intercept);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const double a = factor[j] * inv_std[j];
        high[j] = mean[j];
        factor[j] = a;
        intercept[j] = intercept[j] - (mean[j] - high[j]) * a;
    }
}

/* The coefficients of dx = dy factor - (x - high) slope + offset, from dscale and dshift. */
static void slopes(int64_t first, int64_t n, const double *mean, const double *inv_std, const real *scale,
                   double weight, const double *dscale, const double *dshift, real *slope, real *offset)
{
    learnt(scale, first, n, 1, slope);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const double off = mean[j] - (real)mean[j]; /* mean - high */
        const double a = slope[j] * inv_std[j], q = a * dscale[j] * weight * inv_std[j];
        slope[j] = q;
        offset[j] = off * q - a * dshift[j] * weight;
    }
}

#endif
