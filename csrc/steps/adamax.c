/* Adamax (Kingma & Ba 2015, algorithm 2): the infinity norm of past gradients in place of the root of their mean
 * square:
 *
 *   m <- beta1 m + (1 - beta1) g;  u <- max(beta2 u, |g|);  p <- p - lr / (1 - beta1^t) m / (u + eps)
 *
 * or with eps in the maximum: u <- max(beta2 u, |g| + eps).
 */
#include "step.h"

static void adamax(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct adamax_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c = corrections(h->beta1, h->beta2, h->t);
    const struct average first = average(h->beta1);
    const real beta2 = h->beta2, step = h->lr / c.first;
    const real eps = h->eps_mode == EPS_INSIDE ? 0 : h->eps, eps_in_max = h->eps_mode == EPS_INSIDE ? h->eps : 0;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict u = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real m_new = averaged(first, m[i], g), u_new = larger(beta2 * u[i], fabs(g) + eps_in_max);
            m[i] = m_new;
            u[i] = u_new;
            param[i] = shrink * param[i] - step * m_new / (u_new + eps);
        }
    }
}
