/* Rprop (Riedmiller & Braun 1993) without weight backtracking (Igel & Huesken 2000, iRprop-): each element has its own
 * step size, which grows while the gradient keeps its sign; where the sign changes it shrinks and no step is taken.
 */
#include "step.h"

static void rprop(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct rprop_hyper *h = (const void *)hyper;
    const real keep = kept_share(h);
    const real grow = h->eta_plus, shrink = h->eta_minus, low = h->min_step, high = h->max_step;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict step_size = tensor->state[0],
                       *restrict prev_grad = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real agreement = sign_of(g) * sign_of(prev_grad[i]);
            const real size = step_size[i] * (agreement > 0 ? grow : agreement < 0 ? shrink : 1);
            const real s = size > high ? high : size < low ? low : size, taken = agreement < 0 ? 0 : g;
            step_size[i] = s;
            prev_grad[i] = taken;
            param[i] = keep * param[i] - s * sign_of(taken);
        }
    }
}
