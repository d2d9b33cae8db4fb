/* ReLU with a slope below 0 that is learnt, one for each column. */
#include "../kernel.h"
#include "share.h"

static void prelu_forward(const void *arguments, struct fastopt_share share)
{
    const struct prelu_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range rows = own_range(a->rows, 1, share);
    const real *x = a->x + rows.begin * columns, *slope = a->slope;
    real *y = a->y + rows.begin * columns;
    for (int64_t row = rows.begin; row < rows.end; ++row, x += columns, y += columns)
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
            const real below = x[j] * slope[j];
            y[j] = x[j] > 0 ? x[j] : below;
        }
}

/* dx = dy, and dy slope where x <= 0; terms = dy x where x <= 0, else 0. `one`: see curve_slope in curves.c. */
static void prelu_backward(const void *arguments, struct fastopt_share share)
{
    const struct prelu_backward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range rows = own_range(a->rows, 1, share);
    const int64_t before = rows.begin * columns;
    const real *dy = a->dy + before, *x = a->x + before, *slope = a->slope;
    real *dx = a->dx + before, *terms = a->terms + before;
    const volatile real unknown = 1;
    const real one = unknown;
    for (int64_t row = rows.begin; row < rows.end; ++row, dy += columns, x += columns, dx += columns, terms += columns)
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
            const real d = dy[j], slope_here = slope[j], term = d * x[j];
            dx[j] = d * (x[j] > 0 ? one : slope_here);
            terms[j] = x[j] > 0 ? 0 : term;
        }
}
