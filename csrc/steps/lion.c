/* Lion (Chen et al. 2023, algorithm 2): p <- p - lr sign(beta1 m + (1 - beta1) g);  m <- beta2 m + (1 - beta2) g. */
#include "step.h"

static void lion(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct lion_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const real lr = h->lr;
    const struct average now = average(h->beta1), kept = average(h->beta2);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real direction = averaged(now, m[i], g);
            m[i] = averaged(kept, m[i], g);
            param[i] = shrink * param[i] - lr * sign_of(direction);
        }
    }
}
