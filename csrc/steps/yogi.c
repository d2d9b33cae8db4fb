/* Yogi (Zaheer et al. 2018, algorithm 2): Adam whose second moment moves by at most g^2 either way:
 *
 *   v <- v - (1 - beta2) sign(v - g^2) g^2
 */
#include "step.h"

static void yogi(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct yogi_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c =
        h->bias_correction ? corrections(h->beta1, h->beta2, h->t) : (struct corrections){1, 1};
    const struct average first = average(h->beta1);
    const real new_weight = 1 - h->beta2, step = h->lr * sqrt(c.second) / c.first;
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, c.second);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real square = g * g, m_new = averaged(first, m[i], g);
            const real v_new = v[i] - new_weight * sign_of(v[i] - square) * square;
            m[i] = m_new;
            v[i] = v_new;
            param[i] = shrink * param[i] - step * m_new / root(v_new, eps);
        }
    }
}
