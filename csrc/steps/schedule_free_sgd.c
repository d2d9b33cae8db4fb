/* Schedule-free SGD (Defazio et al. 2024, eq. 7-9): gradients are taken at y = (1 - beta) z + beta x, x being the
 * average of z. The parameter is y; x is not stored: it follows from y and z. With c, the weight of the new z in x:
 *
 *   y <- (1 - c) y + c z - lr (1 - beta (1 - c)) g;  z <- z - lr g
 */
#include "schedule_free.h"

static void schedule_free_sgd_scalars(double *hyper, double *scalars)
{
    struct schedule_free_sgd_hyper *h = (void *)hyper;
    struct schedule_free_sgd_scalars *s = (void *)scalars;
    h->average_weight = next_weight(h->t, h->lr, s->weight_power, s->lr_power, &s->weight_sum, &s->largest_lr);
}

INLINE void schedule_free_sgd_loop(const struct fastopt_tensor *tensor, struct schedule_free k, real decay)
{
    real *restrict param = tensor->param, *restrict z = tensor->state[0];
    const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
    for (size_t i = 0; i < tensor->n; ++i) {
        const real g = scale * grad[i];
        const real d = decayed_direction(decay, g, param[i]), old = z[i];
        z[i] = old - k.lr * d;
        param[i] = k.rest * param[i] + k.c * old - k.lr_y * d;
    }
}

static void schedule_free_sgd(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct schedule_free_sgd_hyper *h = (const void *)hyper;
    const real decay = h->decoupled ? h->weight_decay : 0;
    const struct schedule_free k = schedule_free(h->lr, h->beta, h->average_weight);
    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor)
        if (decay != 0)
            schedule_free_sgd_loop(tensor, k, decay);
        else
            schedule_free_sgd_loop(tensor, k, 0);
}
