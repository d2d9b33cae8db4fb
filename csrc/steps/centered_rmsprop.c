/* RMSProp centered by the mean gradient, with momentum (Graves 2013, eq. 38-45):
 *
 *   G <- decay G + (1 - decay) g^2;  M <- decay M + (1 - decay) g
 *   v <- rho v + g / (sqrt(G - M^2) + eps);  p <- p - lr v,  or the step in v, as in rmsprop_momentum.c
 *
 * The variance G - M^2 is never negative but for rounding.
 */
#include "step.h"

static void centered_rmsprop(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct centered_rmsprop_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real rho = h->momentum, in_v = h->lr_in_velocity ? h->lr : 1, of_v = h->lr_in_velocity ? 1 : h->lr;
    const struct average mean = average(h->decay);
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, 1);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict square_avg = tensor->state[0],
                       *restrict grad_avg = tensor->state[1], *restrict velocity = tensor->state[2];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real s = averaged(mean, square_avg[i], g * g), m = averaged(mean, grad_avg[i], g);
            const real variance = s - m * m;
            const real v = rho * velocity[i] + in_v * g / root(variance < 0 ? 0 : variance, eps);
            square_avg[i] = s;
            grad_avg[i] = m;
            velocity[i] = v;
            param[i] = shrink * param[i] - of_v * v;
        }
    }
}
