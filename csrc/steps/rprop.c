/* Rprop (Riedmiller & Braun 1993) without weight backtracking (Igel & Huesken 2000, iRprop-): each element has its own
 * step size, which grows while the gradient keeps its sign; where the sign changes it shrinks and no step is taken.
 */
#include "step.h"

/* sign_of with fewer comparisons: their throughput bounds this step. */
INLINE real direction_of(real x)
{
    return fabs(x) > 0 ? copysign((real)1, x) : 0;
}

static void rprop(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct rprop_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real up = h->eta_plus, down = h->eta_minus;
    const real stay = h->eta_plus > 0; /* 1, which the compiler must not know: it would branch on the sign */
    const real low = stay * (real)h->min_step, high = stay * (real)h->max_step; /* a denormal one is 0 */

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param;
        real *restrict step_size = tensor->state[0], *restrict prev_grad = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i], sign = direction_of(g), old = step_size[i];
            const real agreement = sign * direction_of(prev_grad[i]);
            const real size = old * (agreement > 0 ? up : agreement < 0 ? down : stay);
            const real above = size < low ? low : size, s = size > high ? high : above;
            const real taken = agreement < 0 ? 0 : 1;
            step_size[i] = s;
            prev_grad[i] = agreement < 0 ? 0 : g;
            param[i] = shrink * param[i] - s * (taken * sign);
        }
    }
}
