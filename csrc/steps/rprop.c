/* Rprop (Riedmiller & Braun 1993) without weight backtracking (Igel & Huesken 2000, iRprop-): each element has its own
 * step size, which grows while the gradient keeps its sign; where the sign changes it shrinks and no step is taken.
 */
#include "step.h"

/* sign_of by fewer comparisons, which are what takes the time here. */
INLINE real direction_of(real x)
{
    return fabs(x) > 0 ? copysign((real)1, x) : 0;
}

static void rprop(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct rprop_hyper *h = (const void *)hyper;
    const real keep = kept_share(h);
    const real grow = h->eta_plus, shrink = h->eta_minus, low = h->min_step, high = h->max_step;
    const real stay = h->eta_plus > 0; /* 1; if the compiler knew, it would make branches of the choice of a factor */

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param;
        real *restrict step_size = tensor->state[0], *restrict prev_grad = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i], sign = direction_of(g), old = step_size[i];
            const real agreement = sign * direction_of(prev_grad[i]);
            const real size = old * (agreement > 0 ? grow : agreement < 0 ? shrink : stay);
            const real above = size < low ? low : size, s = size > high ? high : above;
            const real kept = agreement < 0 ? 0 : 1;
            step_size[i] = s;
            prev_grad[i] = agreement < 0 ? 0 : g;
            param[i] = keep * param[i] - s * (kept * sign);
        }
    }
}
