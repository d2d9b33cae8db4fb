/* The least that a step can do, a <- factor a + x for each array that it updates: its speed is the memory's, by which
 * the benchmarks measure steps. */
#include "../kernel.h"
#include "share.h"

static void stream(const void *arguments, struct fastopt_share share)
{
    const struct stream_args *arrays = arguments;
    const real *x = arrays->x, factor = arrays->factor;
    real *a = arrays->a, *b = arrays->b, *c = arrays->c, *d = arrays->d;
    const struct range own = own_range(arrays->n, LINE_OF_REALS, share);
    if (b && c && d) {
#pragma omp simd
        for (int64_t i = own.begin; i < own.end; ++i) {
            a[i] = factor * a[i] + x[i];
            b[i] = factor * b[i] + x[i];
            c[i] = factor * c[i] + x[i];
            d[i] = factor * d[i] + x[i];
        }
    } else if (b && c) {
#pragma omp simd
        for (int64_t i = own.begin; i < own.end; ++i) {
            a[i] = factor * a[i] + x[i];
            b[i] = factor * b[i] + x[i];
            c[i] = factor * c[i] + x[i];
        }
    } else if (b) {
#pragma omp simd
        for (int64_t i = own.begin; i < own.end; ++i) {
            a[i] = factor * a[i] + x[i];
            b[i] = factor * b[i] + x[i];
        }
    } else {
#pragma omp simd
        for (int64_t i = own.begin; i < own.end; ++i)
            a[i] = factor * a[i] + x[i];
    }
}
