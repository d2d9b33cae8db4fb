/* RMSProp (Tieleman & Hinton 2012, lecture 6e): G <- decay G + (1 - decay) g^2;  p <- p - lr g / (sqrt(G) + eps). */
#include "step.h"

static void rmsprop(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct rmsprop_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real lr = h->lr;
    const struct average mean = average(h->decay);
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, 1);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        reals *restrict param = tensor->param, *restrict square_avg = tensor->state[0];
        const reals *restrict grad = tensor->grad;
        const real scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n / WIDTH; ++i) {
            const reals g = scale * grad[i];
            const reals s = averaged(mean, square_avg[i], g * g);
            square_avg[i] = s;
            param[i] = shrink * param[i] - lr * g / root(s, eps);
        }
    }
}
