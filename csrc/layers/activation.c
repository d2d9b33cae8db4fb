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

/* dx as in relu_backward, and dbias = the sum of dx over the rows, added up in order by blocks of rows, and these in
 * double. */
static void bias_relu_backward(void *const *array, const int64_t *size, const double *scalar)
{
    enum { BLOCK_ROWS = 64, BLOCK_COLUMNS = 32 * LANES };
    const real *dy = array[0], *y = array[1];
    real *dx = array[2], *dbias = array[3];
    const int64_t rows = size[0], columns = size[1];
    (void)scalar;
    for (int64_t first = 0; first < columns; first += BLOCK_COLUMNS) {
        const int64_t width = columns - first < BLOCK_COLUMNS ? columns - first : BLOCK_COLUMNS;
        const int64_t whole = width - width % LANES;
        double total[BLOCK_COLUMNS];
        memset(total, 0, width * sizeof *total);
        for (int64_t row = 0; row < rows; row += BLOCK_ROWS) {
            const int64_t start = row * columns + first;
            const int64_t end = (row + BLOCK_ROWS < rows ? row + BLOCK_ROWS : rows) * columns;
            real sum[LANES];
            for (int64_t j = 0; j < whole; j += LANES) {
                lanes sums = lanes_all(0);
                for (int64_t at = start + j; at < end; at += columns) {
                    const lanes d = lanes_gate(lanes_load(dy + at), lanes_load(y + at));
                    lanes_store(dx + at, d);
                    sums = lanes_add(sums, d);
                }
                lanes_store(sum, sums);
                for (int64_t l = 0; l < LANES; ++l)
                    total[j + l] += sum[l];
            }
            memset(sum, 0, sizeof sum);
            for (int64_t at = start + whole; at < end; at += columns)
#pragma omp simd
                for (int64_t l = 0; l < width - whole; ++l) {
                    const real d = dy[at + l], seen = y[at + l] <= 0 ? 0 : d;
                    dx[at + l] = seen;
                    sum[l] += seen;
                }
            for (int64_t l = 0; l < width - whole; ++l)
                total[whole + l] += sum[l];
        }
        for (int64_t j = 0; j < width; ++j)
            dbias[first + j] = total[j];
    }
}
