/* Stochastic gradient descent: p <- p - lr g. */
#include "step.h"

static void sgd(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct sgd_hyper *h = (const void *)hyper;
    const real scale = h->grad_scale, l2 = h->weight_decay, lr = h->lr;

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param;
        const real *restrict grad = tensor->grad;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i)
            param[i] -= lr * seen_gradient(grad[i], param[i], scale, l2);
    }
}
