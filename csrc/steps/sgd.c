/* Stochastic gradient descent: p <- p - lr g. */
#include "step.h"

static void sgd(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct sgd_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real lr = h->lr;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param;
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            param[i] = shrink * param[i] - lr * g;
        }
    }
}
