/* RMSProp (Tieleman & Hinton 2012, lecture 6e): G <- decay G + (1 - decay) g^2;  p <- p - lr g / (sqrt(G) + eps). */
#include "step.h"

static void rmsprop(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct rmsprop_hyper *h = (const void *)hyper;
    const real scale = h->grad_scale, l2 = h->weight_decay, lr = h->lr;
    const real old_weight = h->decay, new_weight = 1 - h->decay;
    const real eps = h->eps_mode == EPS_INSIDE ? 0 : h->eps;
    const real eps_in_root = h->eps_mode == EPS_INSIDE ? h->eps : 0;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict square_avg = tensor->state[0];
        const real *restrict grad = tensor->grad;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = seen_gradient(grad[i], param[i], scale, l2);
            const real s = old_weight * square_avg[i] + new_weight * (g * g);
            square_avg[i] = s;
            param[i] -= lr * g / (sqrt(s + eps_in_root) + eps);
        }
    }
}
