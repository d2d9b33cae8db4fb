/* ReLU, alone and after the bias of a dense or convolutional layer. Elementwise kernels work in place too. */
#include "lanes.h"

static void relu_forward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0];
    real *y = array[1];
    (void)scalar;
#pragma omp simd
    for (int64_t i = 0; i < size[0]; ++i)
        y[i] = x[i] <= 0 ? 0 : x[i]; /* NaN stays NaN */
}

/* dx = 0 where y is 0, else dy, for y the output of relu_forward. */
static void relu_backward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *dy = array[0], *y = array[1];
    real *dx = array[2];
    (void)scalar;
#pragma omp simd
    for (int64_t i = 0; i < size[0]; ++i)
        dx[i] = y[i] <= 0 ? 0 : dy[i];
}

/* y = relu(x + bias), bias one value per column. */
static void bias_relu_forward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0], *bias = array[1];
    real *y = array[2];
    const int64_t rows = size[0], columns = size[1];
    (void)scalar;
    for (int64_t row = 0; row < rows; ++row, x += columns, y += columns)
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
            const real sum = x[j] + bias[j];
            y[j] = sum <= 0 ? 0 : sum;
        }
}

/* dx as in relu_backward, and dbias = the sum of dx over the rows, added up in order by blocks of rows. */
static void bias_relu_backward(void *const *array, const int64_t *size, const double *scalar)
{
    enum { BLOCK = 64 };
    const real *dy = array[0], *y = array[1];
    real *dx = array[2], *dbias = array[3];
    const int64_t rows = size[0], columns = size[1];
    (void)scalar;
    memset(dbias, 0, columns * sizeof(real));
    for (int64_t first = 0; first < columns; first += LANES) {
        const int64_t width = columns - first < LANES ? columns - first : LANES;
        for (int64_t row = 0; row < rows;) {
            const int64_t end = row + BLOCK < rows ? row + BLOCK : rows;
            real sum[LANES] = {0};
            for (; row < end; ++row) {
                const int64_t offset = row * columns + first;
#pragma omp simd
                for (int64_t j = 0; j < width; ++j) {
                    const real d = y[offset + j] <= 0 ? 0 : dy[offset + j];
                    dx[offset + j] = d;
                    sum[j] += d;
                }
            }
            for (int64_t j = 0; j < width; ++j)
                dbias[first + j] += sum[j];
        }
    }
}
