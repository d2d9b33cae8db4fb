/* Schedule-free AdamW (Defazio et al. 2024, algorithm 1): schedule_free_sgd.c with g / (sqrt(v / c2) + eps) for g,
 * v <- beta2 v + (1 - beta2) g^2, c2 = 1 - beta2^t. The decay acts at y, on y and z.
 */
#include "schedule_free.h"

static void schedule_free_adamw_scalars(double *hyper, double *scalars)
{
    struct schedule_free_adamw_hyper *h = (void *)hyper;
    struct schedule_free_adamw_scalars *s = (void *)scalars;
    h->average_weight = next_weight(h->t, h->lr, s->weight_power, s->lr_power, &s->weight_sum, &s->largest_lr);
}

INLINE void schedule_free_adamw_loop(const struct fastopt_tensor *tensor, struct schedule_free k, struct average second,
                                     struct stabiliser eps, real root_c2, real decay)
{
    real *restrict param = tensor->param, *restrict z = tensor->state[0], *restrict v = tensor->state[1];
    const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
    for (size_t i = 0; i < tensor->n; ++i) {
        const real g = scale * grad[i];
        const real v_new = averaged(second, v[i], g * g), old = z[i];
        const real d = decayed_direction(decay, root_c2 * g / root(v_new, eps), param[i]);
        v[i] = v_new;
        z[i] = old - k.lr * d;
        param[i] = k.rest * param[i] + k.c * old - k.lr_y * d;
    }
}

static void schedule_free_adamw(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct schedule_free_adamw_hyper *h = (const void *)hyper;
    const real decay = h->decoupled ? h->weight_decay : 0;
    const double c2 = corrections(h->beta2, h->beta2, h->t).second;
    const struct average second = average(h->beta2);
    const struct stabiliser eps = stabiliser(h->eps, EPS_OUTSIDE, c2);
    const struct schedule_free k = schedule_free(h->lr, h->beta1, h->average_weight);
    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor)
        if (decay != 0)
            schedule_free_adamw_loop(tensor, k, second, eps, sqrt(c2), decay);
        else
            schedule_free_adamw_loop(tensor, k, second, eps, sqrt(c2), 0);
}
