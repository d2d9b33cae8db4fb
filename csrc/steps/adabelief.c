/* AdaBelief (Zhuang et al. 2020, algorithm 2): Adam with the variance of g about its moving average in place of the
 * second moment:
 *
 *   m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) (g - m)^2 + eps_root
 *   p <- p - lr (m / c1) / (sqrt(s / c2) + eps)
 */
#include "step.h"

static void adabelief(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct adabelief_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c = corrections(h->beta1, h->beta2, h->t);
    const struct average first = average(h->beta1), second = average(h->beta2);
    const real step = h->lr * sqrt(c.second) / c.first, eps_root = h->eps_root;
    const struct stabiliser eps = stabiliser(h->eps, EPS_OUTSIDE, c.second);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict s = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real m_new = averaged(first, m[i], g);
            const real s_new = averaged(second, s[i], (g - m_new) * (g - m_new)) + eps_root;
            m[i] = m_new;
            s[i] = s_new;
            param[i] = shrink * param[i] - step * m_new / root(s_new, eps);
        }
    }
}
