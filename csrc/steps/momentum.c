/* Momentum (Polyak 1964) and Nesterov's accelerated gradient, in the forms that are in use.
 *
 * All are  v <- rho v + a g;  p <- p - b v - c g:
 *
 *                                    a        b        c
 *   gradient in v   plain            1 - tau  lr       0     PyTorch, tau being the dampening
 *                   Nesterov         1 - tau  lr rho   lr    (Sutskever et al. 2013 at constant lr)
 *   step in v       plain            -lr      -1       0     Keras, cs231n, scikit-learn (tau = 0)
 *                   Nesterov         -lr      -rho     lr
 *                   look-ahead       -lr      0        lr    p being the point w + rho v before, and w after
 *
 * where v is to be an average of gradients, all of them enter times 1 - rho: a and c (Coursera, autograd).
 */
#include "step.h"

/* Where b or c is zero, it is so as a constant: not every compiler takes the conditions out of the loop. */
INLINE void momentum_loop(const struct fastopt_tensor *tensor, real shrink, real rho, real in_v, real b, real c)
{
    real *restrict param = tensor->param, *restrict velocity = tensor->state[0];
    const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
    for (size_t i = 0; i < tensor->n; ++i) {
        const real g = scale * grad[i];
        const real v = rho * velocity[i] + in_v * g;
        velocity[i] = v;
        param[i] = shrink * param[i] - (b != 0 ? b * v : 0) - (c != 0 ? c * g : 0); /* 0 * inf would be NaN */
    }
}

static void momentum(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct momentum_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const double step_of_v = h->lr_in_velocity ? -1 : h->lr;
    const double tau = h->t == 1 ? 0 : h->dampening; /* as in PyTorch, the first gradient is not dampened */
    const double weight = h->average ? 1 - h->momentum : 1;
    const real rho = h->momentum, in_v = (h->lr_in_velocity ? -h->lr : 1) * (1 - tau) * weight;
    const real b = h->at_look_ahead ? 0 : h->nesterov ? step_of_v * h->momentum : step_of_v;
    const real c = h->at_look_ahead || h->nesterov ? h->lr * weight : 0;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor)
        if (c == 0)
            momentum_loop(tensor, shrink, rho, in_v, b, 0);
        else if (b == 0)
            momentum_loop(tensor, shrink, rho, in_v, 0, c);
        else
            momentum_loop(tensor, shrink, rho, in_v, b, c);
}
