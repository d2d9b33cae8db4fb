/* RAdam (Liu et al. 2020, algorithm 2): Adam whose step is rectified for the variance of 1 / sqrt(v) in early steps:
 *
 *   rho_inf = 2 / (1 - beta2) - 1;  rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)
 *   p <- p - lr r_t (m / c1) / (sqrt(v / c2) + eps) where rho_t > threshold, else p <- p - lr m / c1
 *   r_t^2 = (rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t)
 */
#include "step.h"

static void radam(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct radam_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c = corrections(h->beta1, h->beta2, h->t);
    const struct average first = average(h->beta1), second = average(h->beta2);
    const double limit = 2 / (1 - h->beta2) - 1, rho = limit - 2 * h->t * (1 - c.second) / c.second;
    const int rectified = rho > h->threshold;
    const double square = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho);
    const real step = rectified ? h->lr * sqrt(square * c.second) / c.first : h->lr / c.first;
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
            param[i] = shrink * param[i] - (rectified ? step * m_new / root(v_new, eps) : step * m_new);
        }
    }
}
