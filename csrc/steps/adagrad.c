/* Adagrad (Duchi, Hazan & Singer 2011, diagonal form): G <- G + g^2;  p <- p - lr g / (sqrt(G) + eps), or, without the
 * root, p <- p - lr g / (G + eps). */
#include "step.h"

static void adagrad(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct adagrad_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real lr = h->lr;
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, 1);
    const real bare = h->eps;
    const int rooted = h->root != 0;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        reals *restrict param = tensor->param, *restrict square_sum = tensor->state[0];
        const reals *restrict grad = tensor->grad;
        const real scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n / WIDTH; ++i) {
            const reals g = scale * grad[i];
            const reals s = square_sum[i] + g * g, sum = s + bare;
            square_sum[i] = s;
            param[i] = shrink * param[i] - lr * g / (rooted ? root(s, eps) : sum);
        }
    }
}
