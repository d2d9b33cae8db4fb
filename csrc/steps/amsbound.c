/* AMSBound (Luo et al. 2019, section 4): AdaBound with AMSGrad's largest second moment so far, w <- max(w, v), under
 * the root. */
#include "bounds.h"
#include "step.h"

static void amsbound(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct amsbound_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c =
        h->bias_correction ? corrections(h->beta1, h->beta2, h->t) : (struct corrections){1, 1};
    const struct average first = average(h->beta1), second = average(h->beta2);
    const real step = h->lr * sqrt(c.second) / c.first;
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, c.second);
    const struct bounds bounds = closing_bounds(h->final_lr, h->gamma, h->t);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1],
                       *restrict v_max = tensor->state[2];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real m_new = averaged(first, m[i], g), v_new = averaged(second, v[i], g * g);
            const real w = larger(v_max[i], v_new);
            m[i] = m_new;
            v[i] = v_new;
            v_max[i] = w;
            param[i] = shrink * param[i] - bounded(step / root(w, eps), bounds) * m_new;
        }
    }
}
