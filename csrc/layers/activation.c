/* ReLU, alone and after the bias of a dense or convolutional layer. Elementwise kernels work in place too.
 *
 * Here and elsewhere, both values of a ?: are loaded beforehand: a load that is conditional keeps a loop from
 * becoming a vector loop on instruction sets without masked loads. */
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
    for (int64_t i = 0; i < size[0]; ++i) {
        const real d = dy[i];
        dx[i] = y[i] <= 0 ? 0 : d;
    }
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
    enum { BLOCK_ROWS = 64 };
    const real *dy = array[0], *y = array[1];
    real *dx = array[2], *dbias = array[3];
    const int64_t rows = size[0], columns = size[1], whole = columns - columns % LANES;
    (void)scalar;
    memset(dbias, 0, columns * sizeof(real));
    for (int64_t row = 0; row < rows; row += BLOCK_ROWS) {
        const int64_t end = (row + BLOCK_ROWS < rows ? row + BLOCK_ROWS : rows) * columns;
        for (int64_t j = 0; j < whole; j += LANES) {
            lanes sum = lanes_all(0);
            for (int64_t at = row * columns + j; at < end; at += columns) {
                const lanes d = lanes_gate(lanes_load(dy + at), lanes_load(y + at));
                lanes_store(dx + at, d);
                sum = lanes_add(sum, d);
            }
            lanes_store(dbias + j, lanes_add(lanes_load(dbias + j), sum));
        }
        real sum[LANES] = {0};
        for (int64_t at = row * columns + whole; at < end; at += columns)
#pragma omp simd
            for (int64_t l = 0; l < columns - whole; ++l) {
                const real d = dy[at + l], seen = y[at + l] <= 0 ? 0 : d;
                dx[at + l] = seen;
                sum[l] += seen;
            }
        for (int64_t l = 0; l < columns - whole; ++l)
            dbias[whole + l] += sum[l];
    }
}
