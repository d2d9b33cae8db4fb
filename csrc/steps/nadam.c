/* NAdam (Dozat 2016, algorithm 8, with the momentum schedule of its section 3):
 *
 *   m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  mu_t = beta1 (1 - 0.96^(t psi) / 2)
 *   p <- p - lr (mu_{t+1} m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g / (1 - mu_1 ... mu_t)) / (sqrt(v / c2) + eps)
 *
 * where psi is the momentum decay, and mu_product = mu_1 ... mu_{t-1}.
 */
#include "step.h"

/* exp(-x) for 0 <= x < 700, as 2^-k exp(r) with r = k log 2 - x: the same bits on every machine. The series ends at
 * r^13, below half a unit in the last place of a sum of at least 0.7. */
static inline double exp_minus(double x)
{
    const double log_2 = 0x1.62e42feep-1, rest_of_log_2 = 0x1.a39ef35793c76p-33; /* k log_2 is exact */
    const int64_t k = (int64_t)(x * 0x1.71547652b82fep+0 + 0.5);
    const double r = (k * log_2 - x) + k * rest_of_log_2, r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
    const double below_8 =
        (1 + r + r2 * (1 / 2. + r * (1 / 6.))) + r4 * (1 / 24. + r * (1 / 120.) + r2 * (1 / 720. + r * (1 / 5040.)));
    const double above = (1 / 40320. + r * (1 / 362880.) + r2 * (1 / 3628800. + r * (1 / 39916800.))) +
                         r4 * (1 / 479001600. + r * (1 / 6227020800.));
    const uint64_t bits = (uint64_t)(1023 - k) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof(scale));
    return (below_8 + r8 * above) * scale;
}

static inline double nadam_momentum(double beta1, double decay, double t)
{
    const double minus_log_096 = 0.04082199452025517;
    const double x = minus_log_096 * decay * t;
    return beta1 * (1 - 0.5 * (x < 700 ? exp_minus(x) : 0));
}

static inline void nadam_scalars(double *hyper, double *scalars)
{
    struct nadam_hyper *h = (void *)hyper;
    struct nadam_scalars *s = (void *)scalars;
    h->mu_product = s->mu_product;
    s->mu_product *= nadam_momentum(h->beta1, h->momentum_decay, h->t);
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
        reals *restrict param = tensor->param, *restrict m = tensor->state[0], *restrict v = tensor->state[1];
        const reals *restrict grad = tensor->grad;
        const real scale = tensor->grad_scale;
#pragma omp simd
        for (size_t i = 0; i < tensor->n / WIDTH; ++i) {
            const reals g = scale * grad[i];
            const reals m_new = averaged(first, m[i], g), v_new = averaged(second, v[i], g * g);
            m[i] = m_new;
            v[i] = v_new;
            param[i] = shrink * param[i] - (step_m * m_new + step_g * g) / root(v_new, eps);
        }
    }
}
