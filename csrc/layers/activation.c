/* ReLU, alone and as the epilogue of a bias. Elementwise kernels work in place, too.
 *
 * Here and elsewhere, both values of a ?: are loaded beforehand: on instruction sets without masked loads, a
 * conditional load would keep the compiler from vectorising the loop. */
#include "../kernel.h"
#include "bias_grad.h"
#include "bias_relu.h"
#include "share.h"

static void relu_forward(const void *arguments, struct fastopt_share share)
{
    const struct relu_forward_args *a = arguments;
    const real *x = a->x;
    real *y = a->y;
    const struct range own = own_range(a->n, LINE_OF_REALS, share);
    for (struct range part = up_to_line(own, y); part.begin < own.end; part = after(part, own))
#pragma omp simd
        for (int64_t i = part.begin; i < part.end; ++i)
            y[i] = x[i] <= 0 ? 0 : x[i]; /* NaN stays NaN */
}

/* dx = 0 where y is 0, else dy, for y the output of relu_forward. */
static void relu_backward(const void *arguments, struct fastopt_share share)
{
    const struct relu_backward_args *a = arguments;
    const real *dy = a->dy, *y = a->y;
    real *dx = a->dx;
    const struct range own = own_range(a->n, LINE_OF_REALS, share);
    for (struct range part = up_to_line(own, dx); part.begin < own.end; part = after(part, own))
#pragma omp simd
        for (int64_t i = part.begin; i < part.end; ++i) {
            const real d = dy[i];
            dx[i] = y[i] <= 0 ? 0 : d;
        }
}

/* y = x + bias, bias one value per column. */
static void bias_forward(const void *arguments, struct fastopt_share share)
{
    const struct bias_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range rows = own_range(a->rows, 1, share);
    const real *x = a->x + rows.begin * columns, *bias = a->bias;
    real *y = a->y + rows.begin * columns;
    for (int64_t row = rows.begin; row < rows.end; ++row, x += columns, y += columns)
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j)
            y[j] = x[j] + bias[j];
}

/* y = relu(x + bias). */
static void bias_relu_forward(const void *arguments, struct fastopt_share share)
{
    const struct bias_relu_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range rows = own_range(a->rows, 1, share);
    const real *x = a->x + rows.begin * columns, *bias = a->bias;
    real *y = a->y + rows.begin * columns;
    for (int64_t row = rows.begin; row < rows.end; ++row, x += columns, y += columns)
        bias_relu(x, bias, y, columns);
}

static void bias_backward(const void *arguments, struct fastopt_share share)
{
    const struct bias_backward_args *a = arguments;
    sum_any_rows(sum_rows_of_dy, a->dy, NULL, NULL, a->dbias, a->rows, a->columns, 1, share);
}

static void sum_rows_behind_relu(const real *dy, const real *y, real *dx, real *dbias, int64_t rows, int64_t columns,
                                 real factor, struct fastopt_share share)
{
    sum_rows(dy, y, dx, dbias, rows, columns, factor, share);
}

/* dx as in relu_backward, times factor (of the epilogue's dropout: what that dropped is 0 in y, too), and dbias. */
static void bias_relu_backward(const void *arguments, struct fastopt_share share)
{
    const struct bias_relu_backward_args *a = arguments;
    sum_any_rows(sum_rows_behind_relu, a->dy, a->y, a->dx, a->dbias, a->rows, a->columns, a->factor, share);
}
