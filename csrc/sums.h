/* Sums in double: element i in lane i % SUM_LANES, the lanes added by halving, so that they have the same bits on every
 * instruction set. */
#ifndef SUMS_H
#define SUMS_H

#include "kernel.h"

enum { SUM_LANES = 32 };

/* The sum of all lanes, by halving. */
static inline double sum_of_lanes(double lane[SUM_LANES])
{
    for (int half = SUM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l)
            lane[l] += lane[l + half];
    return lane[0];
}

/* The sum of the squares of n numbers. */
static double square_sum(const real *restrict x, size_t n)
{
    double lane[SUM_LANES] = {0};
    size_t start = 0;
    for (; start + SUM_LANES <= n; start += SUM_LANES) {
#pragma omp simd
        for (int l = 0; l < SUM_LANES; ++l)
            lane[l] += (double)x[start + l] * (double)x[start + l];
    }
    for (size_t i = start; i < n; ++i)
        lane[i - start] += (double)x[i] * (double)x[i];
    return sum_of_lanes(lane);
}

/* The sum of n numbers; of a few, one after the other. */
static inline double sum_of(const real *x, int64_t n)
{
    double lane[SUM_LANES] = {0}, sum = 0;
    if (n < SUM_LANES) {
        for (int64_t i = 0; i < n; ++i)
            sum += x[i];
        return sum;
    }
    for (int64_t start = 0; start < n; start += SUM_LANES) {
        const int64_t width = n - start < SUM_LANES ? n - start : SUM_LANES;
#pragma omp simd
        for (int64_t l = 0; l < width; ++l)
            lane[l] += x[start + l];
    }
    return sum_of_lanes(lane);
}

/* The sum of the products of n numbers. */
static inline double product_sum(const real *x, const real *y, int64_t n)
{
    double lane[SUM_LANES] = {0};
    for (int64_t start = 0; start < n; start += SUM_LANES) {
        const int64_t width = n - start < SUM_LANES ? n - start : SUM_LANES;
#pragma omp simd
        for (int64_t l = 0; l < width; ++l)
            lane[l] += (double)x[start + l] * (double)y[start + l];
    }
    return sum_of_lanes(lane);
}

#endif
