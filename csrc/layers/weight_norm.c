/* Weight normalisation (Salimans & Kingma 2016, eq. 2 and 3) of a matrix whose columns are outputs, ||v|| per column:
 *
 *   forward    w = g v / ||v||
 *   backward   dg = sum(dw v) / ||v||,  dv = g / ||v|| (dw - dg v / ||v||)
 *
 * Threads share out the columns, whose sums go over all rows in order. */
#include "../kernel.h"
#include "share.h"

/* The sums over the rows of x y, of the columns [begin, end), at most FASTOPT_STRIP. */
static void column_sums(const real *x, const real *y, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                        double *sum)
{
    memset(sum, 0, FASTOPT_STRIP * sizeof *sum);
    for (int64_t at = begin; at < rows * columns; at += columns)
#pragma omp simd
        for (int64_t j = 0; j < end - begin; ++j)
            sum[j] += (double)x[at + j] * (double)y[at + j];
}

static void weight_norm_forward(const void *arguments, struct fastopt_share share)
{
    const struct weight_norm_forward_args *a = arguments;
    const int64_t rows = a->rows, columns = a->columns;
    const struct range own = own_range(columns, FASTOPT_STRIP, share);
    for (int64_t begin = own.begin; begin < own.end; begin += FASTOPT_STRIP) {
        const int64_t end = minimum(begin + FASTOPT_STRIP, own.end);
        double sum[FASTOPT_STRIP];
        real factor[FASTOPT_STRIP];
        column_sums(a->direction, a->direction, rows, columns, begin, end, sum);
        for (int64_t j = 0; j < end - begin; ++j) {
            a->norm[begin + j] = sqrt(sum[j]);
            factor[j] = a->gain[begin + j] / sqrt(sum[j]);
        }
        for (int64_t at = begin; at < rows * columns; at += columns)
#pragma omp simd
            for (int64_t j = 0; j < end - begin; ++j)
                a->weight[at + j] = a->direction[at + j] * factor[j];
    }
}

static void weight_norm_backward(const void *arguments, struct fastopt_share share)
{
    const struct weight_norm_backward_args *a = arguments;
    const int64_t rows = a->rows, columns = a->columns;
    const struct range own = own_range(columns, FASTOPT_STRIP, share);
    for (int64_t begin = own.begin; begin < own.end; begin += FASTOPT_STRIP) {
        const int64_t end = minimum(begin + FASTOPT_STRIP, own.end);
        double sum[FASTOPT_STRIP];
        real factor[FASTOPT_STRIP], slope[FASTOPT_STRIP];
        column_sums(a->dweight, a->direction, rows, columns, begin, end, sum);
        for (int64_t j = 0; j < end - begin; ++j) {
            const double norm = a->norm[begin + j], dgain = sum[j] / norm;
            a->dgain[begin + j] = dgain;
            factor[j] = a->gain[begin + j] / norm;
            slope[j] = dgain / norm;
        }
        for (int64_t at = begin; at < rows * columns; at += columns)
#pragma omp simd
            for (int64_t j = 0; j < end - begin; ++j)
                a->ddirection[at + j] = factor[j] * (a->dweight[at + j] - a->direction[at + j] * slope[j]);
    }
}
