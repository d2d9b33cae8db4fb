/* RMSProp (Tieleman & Hinton 2012, lecture 6e) with momentum, as in PyTorch, TensorFlow and Keras:
 *
 *   G <- decay G + (1 - decay) g^2;  v <- rho v + g / (sqrt(G) + eps);  p <- p - lr v,  or with the step in v
 *   v <- rho v + lr g / (sqrt(G) + eps);  p <- p - v
 */
#include "step.h"

static void rmsprop_momentum(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct rmsprop_momentum_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real rho = h->momentum, in_v = h->lr_in_velocity ? h->lr : 1, of_v = h->lr_in_velocity ? 1 : h->lr;
    const struct average mean = average(h->decay);
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, 1);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        reals *restrict param = tensor->param, *restrict square_avg = tensor->state[0],
                        *restrict velocity = tensor->state[1];
        const reals *restrict grad = tensor->grad;
        const real scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n / WIDTH; ++i) {
            const reals g = scale * grad[i];
            const reals s = averaged(mean, square_avg[i], g * g);
            const reals v = rho * velocity[i] + in_v * g / root(s, eps);
            square_avg[i] = s;
            velocity[i] = v;
            param[i] = shrink * param[i] - of_v * v;
        }
    }
}
