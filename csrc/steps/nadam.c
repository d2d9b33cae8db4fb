/* NAdam (Dozat 2016, algorithm 8, with the momentum schedule of its section 3):
 *
 *   m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  mu_t = beta1 (1 - 0.96^(t psi) / 2)
 *   p <- p - lr (mu_{t+1} m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g / (1 - mu_1 ... mu_t)) / (sqrt(v / c2) + eps)
 *
 * where psi is the momentum decay; the caller gives mu_product = mu_1 ... mu_{t-1}.
 */
#include "step.h"

/* exp(-x) for x >= 0: the series at x / 2^24, squared 24 times; the same bits on every machine. */
static inline double exp_minus(double x)
{
    enum { SQUARINGS = 24 };
    const double small = x / (1 << SQUARINGS);
    double minus_1 = -small * (1 - small / 2 * (1 - small / 3)); /* exp(-small) - 1, which does not cancel */
    for (int i = 0; i < SQUARINGS; ++i)
        minus_1 = minus_1 * (2 + minus_1);
    return 1 + minus_1;
}

static inline double nadam_momentum(double beta1, double decay, double t)
{
    const double minus_log_096 = 0.04082199452025517;
    const double x = minus_log_096 * decay * t;
    return beta1 * (1 - 0.5 * (x < 700 ? exp_minus(x) : 0));
}

static void nadam(const struct fastopt_tensor *tensors, size_t count, const double *hyper)
{
    const struct nadam_hyper *h = (const void *)hyper;
    const real shrink = shrinkage(h);
    const struct corrections c = corrections(h->beta1, h->beta2, h->t);
    const struct average first = average(h->beta1), second = average(h->beta2);
    const double mu = nadam_momentum(h->beta1, h->momentum_decay, h->t);
    const double next = nadam_momentum(h->beta1, h->momentum_decay, h->t + 1);
    const double product = h->mu_product * mu, root_c2 = sqrt(c.second);
    const real step_m = h->lr * root_c2 * next / (1 - product * next),
               step_g = h->lr * root_c2 * (1 - mu) / (1 - product);
    const struct stabiliser eps = stabiliser(h->eps, h->eps_mode, c.second);

    for (const struct fastopt_tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
        real *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1];
        const real *restrict grad = tensor->grad, scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n; ++i) {
            const real g = scale * grad[i];
            const real m_new = averaged(first, m[i], g), v_new = averaged(second, v[i], g * g);
            m[i] = m_new;
            v[i] = v_new;
            param[i] = shrink * param[i] - (step_m * m_new + step_g * g) / root(v_new, eps);
        }
    }
}
