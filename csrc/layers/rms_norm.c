/* RMS normalisation (Zhang & Sennrich 2019, eq. 4) of the rows of x, with r = 1 / sqrt(mean(x^2) + eps):
 *
 *   forward    y = x r scale
 *   backward   dx = r (g - x r^2 mean(g x)),  g = dy scale;  dscale = sum over rows of dy x r
 */
#include "../kernel.h"
#include "../sums.h"
#include "share.h"

enum { RMS_COLUMNS = 64 /* whose sums over all rows are made at a time */ };

static void rms_norm_forward(const void *arguments, struct fastopt_share share)
{
    const struct rms_norm_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range own = own_range(a->rows, 1, share);
    for (int64_t row = own.begin; row < own.end; ++row) {
        const real *x = a->x + row * columns, *scale = a->scale;
        real *y = a->y + row * columns;
        const double mean = columns ? square_sum(x, (size_t)columns) / (double)columns : 0;
        const real r = a->inv_rms[row] = 1 / sqrt(mean + a->eps);
        if (scale)
#pragma omp simd
            for (int64_t j = 0; j < columns; ++j)
                y[j] = x[j] * r * scale[j];
        else
#pragma omp simd
            for (int64_t j = 0; j < columns; ++j)
                y[j] = x[j] * r;
    }
}

/* The sum of dy scale x along a row, in double: element j in lane j % SUM_LANES. */
static double weighted_sum(const real *dy, const real *scale, const real *x, int64_t n)
{
    double lane[SUM_LANES] = {0};
    int64_t start = 0;
    for (; start + SUM_LANES <= n; start += SUM_LANES)
#pragma omp simd
        for (int l = 0; l < SUM_LANES; ++l)
            lane[l] += (double)dy[start + l] * (scale ? (double)scale[start + l] : 1) * (double)x[start + l];
    for (int64_t j = start; j < n; ++j)
        lane[j - start] += (double)dy[j] * (scale ? (double)scale[j] : 1) * (double)x[j];
    return sum_of_lanes(lane);
}

/* Threads share out the rows of dx, and then the columns of dscale, whose sums go over all rows in order. */
static void rms_norm_backward(const void *arguments, struct fastopt_share share)
{
    const struct rms_norm_backward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range rows = own_range(a->rows, 1, share), own = own_range(columns, RMS_COLUMNS, share);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const real *dy = a->dy + row * columns, *x = a->x + row * columns, *scale = a->scale;
        real *dx = a->dx + row * columns;
        const double inv_rms = a->inv_rms[row], dot = weighted_sum(dy, scale, x, columns);
        const real r = inv_rms, slope = dot / (double)columns * inv_rms * inv_rms * inv_rms;
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j)
            dx[j] = r * (scale ? dy[j] * scale[j] : dy[j]) - slope * x[j];
    }
    for (int64_t begin = own.begin; begin < own.end; begin += RMS_COLUMNS) {
        const int64_t n = minimum(own.end - begin, RMS_COLUMNS);
        double sum[RMS_COLUMNS] = {0};
        for (int64_t row = 0; row < a->rows; ++row) {
            const real *dy = a->dy + row * columns + begin, *x = a->x + row * columns + begin;
            const double inv_rms = a->inv_rms[row];
#pragma omp simd
            for (int64_t j = 0; j < n; ++j)
                sum[j] += (double)dy[j] * (double)x[j] * inv_rms;
        }
        for (int64_t j = 0; j < n; ++j)
            a->dscale[begin + j] = sum[j];
    }
}
