/* LAMB (You et al. 2020, algorithm 2): Adam's direction, layer by layer in proportion to the parameter's norm:
 *
 *   m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
 *   u = (m / c1) / (sqrt(v / c2) + eps) + decay p;  p <- p - lr |p| / |u| u
 *
 * where a norm is 0, |p| / |u| counts as 1. With the decay outside (Keras), p <- (1 - lr decay) p comes first, and u
 * has no decay. The moments are updated with the sums of squares; then the step is taken.
 */
#include "around.h"

struct lamb {
    struct average first, second;
    struct stabiliser eps;
    real factor, decay, shrink; /* of m / root, of the parameter in u, and of the parameter before */
};

static struct lamb lamb_constants(const struct lamb_hyper *h)
{
    const struct corrections c =
        h->bias_correction ? corrections(h->beta1, h->beta2, h->t) : (struct corrections){1, 1};
    return (struct lamb){
        .first = average(h->beta1),
        .second = average(h->beta2),
        .eps = stabiliser(h->eps, EPS_OUTSIDE, c.second),
        .factor = sqrt(c.second) / c.first,
        .decay = h->decoupled && !h->decay_outside ? h->weight_decay : 0,
        .shrink = h->decay_outside ? shrinkage(h) : 1,
    };
}

INLINE real lamb_update(struct lamb k, real m, real v, real param)
{
    return decayed_direction(k.decay, k.factor * m / root(v, k.eps), param);
}

/* Of at most SUM_LANES elements. Two loops, or clang takes no more floats than doubles at a time. */
INLINE void lamb_strip(struct lamb k, const struct fastopt_tensor *tensor, size_t start, size_t width, double *of_param,
                       double *of_update)
{
    const real *restrict param = (const real *)tensor->param + start;
    const real *restrict grad = (const real *)tensor->grad + start;
    real *restrict m = (real *)tensor->state[0] + start, *restrict v = (real *)tensor->state[1] + start;
    const real scale = tensor->grad_scale;
    real shrunk[SUM_LANES], update[SUM_LANES];
#pragma omp simd
    for (size_t l = 0; l < width; ++l) {
        const real g = scale * grad[l];
        const real m_new = averaged(k.first, m[l], g), v_new = averaged(k.second, v[l], g * g);
        m[l] = m_new;
        v[l] = v_new;
        shrunk[l] = k.shrink * param[l];
        update[l] = lamb_update(k, m_new, v_new, shrunk[l]);
    }
#pragma omp simd
    for (size_t l = 0; l < width; ++l) {
        of_param[l] += (double)shrunk[l] * shrunk[l];
        of_update[l] += (double)update[l] * update[l];
    }
}

static void lamb_sums(const struct fastopt_tensor *tensor, const double *hyper, double sums[FASTOPT_SUMS])
{
    const struct lamb k = lamb_constants((const void *)hyper);
    double of_param[SUM_LANES] = {0}, of_update[SUM_LANES] = {0};
    size_t start = 0;
    for (; start + SUM_LANES <= tensor->n; start += SUM_LANES)
        lamb_strip(k, tensor, start, SUM_LANES, of_param, of_update);
    lamb_strip(k, tensor, start, tensor->n - start, of_param, of_update);
    sums[0] = sum_of_lanes(of_param);
    sums[1] = sum_of_lanes(of_update);
}

static void lamb(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct lamb_hyper *h = (const void *)hyper;
    const struct lamb k = lamb_constants(h);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        const int both = tensor->sums[0] > 0 && tensor->sums[1] > 0;
        const real step = both ? h->lr * (sqrt(tensor->sums[0]) / sqrt(tensor->sums[1])) : h->lr;
        real *restrict param = tensor->param;
        const real *restrict m = tensor->state[0], *restrict v = tensor->state[1];
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real shrunk = k.shrink * param[i];
            param[i] = shrunk - step * lamb_update(k, m[i], v[i], shrunk);
        }
    }
}
