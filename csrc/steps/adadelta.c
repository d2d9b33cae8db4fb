/* Adadelta (Zeiler 2012, algorithm 1), D being the mean of squared steps:
 *
 *   G <- decay G + (1 - decay) g^2;  d = sqrt((D + eps) / (G + eps)) g;  D <- decay D + (1 - decay) d^2;  p <- p - lr d
 */
#include "step.h"

static void adadelta(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct adadelta_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real lr = h->lr, eps = h->eps;
    const struct average mean = average(h->decay);
    /* One root of a quotient is faster than a quotient of two roots; scaled, it does not underflow for huge gradients.
     */
    const real up = 0x1p40, down = 0x1p-20;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict square_avg = tensor->state[0],
                       *restrict square_step = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real s = averaged(mean, square_avg[i], g * g);
            const real d = down * sqrt(up * (square_step[i] + eps) / (s + eps)) * g;
            square_avg[i] = s;
            square_step[i] = averaged(mean, square_step[i], d * d);
            param[i] = shrink * param[i] - lr * d;
        }
    }
}
