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
    double beta1_t = h->beta1, beta2_t = h->beta2;
    powers(&beta1_t, &beta2_t, h->t);
    const double c1 = 1 - beta1_t, c2 = 1 - beta2_t;
    const real scale = h->grad_scale, l2 = h->decoupled ? 0 : h->weight_decay;
    const real keep = h->decoupled ? 1 - h->lr * h->weight_decay : 1;
    const real beta1 = h->beta1, new_weight1 = 1 - h->beta1;
    const real beta2 = h->beta2, new_weight2 = 1 - h->beta2;
    const real step = h->lr * sqrt(c2) / c1;
    const real eps = h->eps_mode == EPS_OUTSIDE ? h->eps * sqrt(c2) : h->eps_mode == EPS_HAT ? h->eps : 0;
    const real eps_in_root = h->eps_mode == EPS_INSIDE ? h->eps * c2 : 0;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1];
        const real *restrict grad = tensor->grad;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = seen_gradient(grad[i], param[i], scale, l2);
            const real m_new = beta1 * m[i] + new_weight1 * g, v_new = beta2 * v[i] + new_weight2 * (g * g);
            m[i] = m_new;
            v[i] = v_new;
            param[i] = keep * param[i] - step * m_new / (sqrt(v_new + eps_in_root) + eps);
        }
    }
}
