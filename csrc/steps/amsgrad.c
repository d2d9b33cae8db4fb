/* AMSGrad (Reddi, Kale & Kumar 2018, algorithm 2): Adam with the largest second moment so far under the root:
 *
 *   m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  w <- max(w, v)
 *   p <- p - lr (m / c1) / (sqrt(w / c2) + eps),  or with the corrected moment in the maximum
 *   w <- max(w, v / c2);  p <- p - lr (m / c1) / (sqrt(w) + eps)
 */
#include "step.h"

static void amsgrad(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct amsgrad_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c =
        h->bias_correction ? corrections(h->beta1, h->beta2, h->t) : (struct corrections){1, 1};
    const struct average first = average(h->beta1), second = average(h->beta2);
    const double in_max = h->corrected_max ? c.second : 1, in_root = h->corrected_max ? 1 : c.second;
    const real factor = 1 / in_max, step = h->lr * sqrt(in_root) / c.first;
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, in_root);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1],
                       *restrict v_max = tensor->state[2];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real m_new = averaged(first, m[i], g), v_new = averaged(second, v[i], g * g);
            const real w = larger(v_max[i], factor * v_new);
            m[i] = m_new;
            v[i] = v_new;
            v_max[i] = w;
            param[i] = shrink * param[i] - step * m_new / root(w, eps);
        }
    }
}
