/* The gradients of batch normalisation by running statistics, which do not depend on x, channels last:
 *
 *   dx = dy scale r,  r = 1 / sqrt(running_var + eps);  dscale = sum(dy (x - running_mean)) r;  dshift = sum(dy)
 *
 * Threads share out the rows of dx, and then the channels, whose sums go over all rows in order. */
#include "../kernel.h"
#include "share.h"

static void batch_norm_inference_backward(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_inference_backward_args *a = arguments;
    const int64_t rows = a->rows, channels = a->channels;
    const struct range own_rows = own_range(rows, 1, share), own = own_range(channels, FASTOPT_STRIP, share);
    for (int64_t begin = 0; begin < channels; begin += FASTOPT_STRIP) {
        const int64_t n = minimum(channels - begin, FASTOPT_STRIP);
        real factor[FASTOPT_STRIP];
        for (int64_t j = 0; j < n; ++j)
            factor[j] = (a->scale ? (double)a->scale[begin + j] : 1) / sqrt(a->running_var[begin + j] + a->eps);
        for (int64_t row = own_rows.begin; row < own_rows.end; ++row) {
            const real *dy = a->dy + row * channels + begin;
            real *dx = a->dx + row * channels + begin;
#pragma omp simd
            for (int64_t j = 0; j < n; ++j)
                dx[j] = dy[j] * factor[j];
        }
    }
    for (int64_t begin = own.begin; begin < own.end; begin += FASTOPT_STRIP) {
        const int64_t n = minimum(own.end - begin, FASTOPT_STRIP);
        double sum[FASTOPT_STRIP] = {0}, dot[FASTOPT_STRIP] = {0}, mean[FASTOPT_STRIP];
        for (int64_t j = 0; j < n; ++j)
            mean[j] = a->running_mean[begin + j];
        for (int64_t row = 0; row < rows; ++row) {
            const real *dy = a->dy + row * channels + begin, *x = a->x + row * channels + begin;
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) {
                sum[j] += dy[j];
                dot[j] += (double)dy[j] * ((double)x[j] - mean[j]);
            }
        }
        for (int64_t j = 0; j < n; ++j) {
            a->dscale[begin + j] = dot[j] / sqrt(a->running_var[begin + j] + a->eps);
            a->dshift[begin + j] = sum[j];
        }
    }
}
