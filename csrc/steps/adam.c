/* Adam (Kingma & Ba 2015, algorithm 1) and, with decoupled decay, AdamW (Loshchilov & Hutter 2019, algorithm 2):
 *
 *   m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
 *   p <- p - lr (m / c1) / (sqrt(v / c2) + eps),  c1 = 1 - beta1^t,  c2 = 1 - beta2^t
 *
 * The corrections c1, c2 are the same for all elements, so they are folded into the step size and eps:
 *   p <- p - step m / (sqrt(v + eps_in_root) + eps'),  step = lr sqrt(c2) / c1
 */
#include "step.h"

static void adam(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct adam_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c =
        h->bias_correction ? corrections(h->beta1, h->beta2, h->t) : (struct corrections){1, 1};
    const struct average first = average(h->beta1), second = average(h->beta2);
    const real step = h->lr * sqrt(c.second) / c.first;
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, c.second);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        reals *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1];
        const reals *restrict grad = tensor->grad;
        const real scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n / WIDTH; ++i) {
            const reals g = scale * grad[i];
            const reals m_new = averaged(first, m[i], g), v_new = averaged(second, v[i], g * g);
            m[i] = m_new;
            v[i] = v_new;
            param[i] = shrink * param[i] - step * m_new / root(v_new, eps);
        }
    }
}
