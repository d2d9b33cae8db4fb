/* AdaBound (Luo et al. 2019, algorithm 2): Adam whose rates are confined to bounds that close in on final_lr:
 *
 *   p <- p - clip(lr sqrt(c2) / c1 / (sqrt(v) + eps'), low, high) m
 *   low = final_lr (1 - 1 / (gamma t + 1)),  high = final_lr (1 + 1 / (gamma t))
 */
#include "bounds.h"
#include "step.h"

static void adabound(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct adabound_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c =
        h->bias_correction ? corrections(h->beta1, h->beta2, h->t) : (struct corrections){1, 1};
    const struct average first = average(h->beta1), second = average(h->beta2);
    const real step = h->lr * sqrt(c.second) / c.first;
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, c.second);
    const struct bounds bounds = closing_bounds(h->final_lr, h->gamma, h->t);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real m_new = averaged(first, m[i], g), v_new = averaged(second, v[i], g * g);
            m[i] = m_new;
            v[i] = v_new;
            param[i] = shrink * param[i] - bounded(step / root(v_new, eps), bounds) * m_new;
        }
    }
}
