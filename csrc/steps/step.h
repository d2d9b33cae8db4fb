/* What the optimizer steps share: what is done to a gradient before a formula sees it, and the pieces of formulas. */
#ifndef STEP_H
#define STEP_H

#include "../kernel.h"

/* What decoupled decay (Loshchilov & Hutter 2019) leaves of a parameter: 1 - lr decay. */
static inline double kept_share(const void *hyper)
{
    const struct fastopt_every_step *h = hyper;
    return h->decoupled ? 1 - h->lr * h->weight_decay : 1;
}

INLINE real sign_of(real x)
{
    return (real)(x > 0) - (real)(x < 0);
}

/* Where a step's length depends on the direction as a whole, decoupled decay is a part of the direction. */
INLINE real decayed_direction(real decay, real direction, real param)
{
    return decay != 0 ? direction + decay * param : direction;
}

/* The larger one; NaN where either is. */
INLINE real larger(real x, real y)
{
    return x > y || x != x ? x : y;
}

/* The stabiliser of a root, at its place: sqrt(x + in_root) + outside. */
struct stabiliser {
    real outside, in_root;
};

/* For the root of x / correction, when it is the root of x that is taken and the correction's goes into the step. */
static inline struct stabiliser stabiliser(double eps, double eps_mode, double correction)
{
    return (struct stabiliser){
        .outside = eps_mode == EPS_OUTSIDE ? eps * sqrt(correction)
                   : eps_mode == EPS_HAT   ? eps
                                           : 0,
        .in_root = eps_mode == EPS_INSIDE ? eps * correction : 0,
    };
}

INLINE real root(real x, struct stabiliser eps)
{
    return sqrt(x + eps.in_root) + eps.outside;
}

/* A moving average that forgets: its weights are worked out in double, 1 - 0.999f being wrong in the fifth digit. */
struct average {
    real old_weight, new_weight;
};

static inline struct average average(double old_weight)
{
    return (struct average){old_weight, 1 - old_weight};
}

INLINE real averaged(struct average a, real old, real value)
{
    return a.old_weight * old + a.new_weight * value;
}

/* a <- a^t and b <- b^t for the number t of a step, by squaring: alike on every machine, as the pow of a C library is
 * not. The two go together, and without a branch on the bits of t, because in a small step this is what takes the time.
 */
static inline void powers(double *a, double *b, double t)
{
    double a_square = *a, b_square = *b;
    *a = *b = 1;
    for (uint64_t n = (uint64_t)t; n; n >>= 1) {
        *a *= ((double[2]){1, a_square})[n & 1];
        *b *= ((double[2]){1, b_square})[n & 1];
        a_square *= a_square;
        b_square *= b_square;
    }
}

/* What makes up for moments that begin at zero: 1 - beta^t. */
struct corrections {
    double first, second;
};

static inline struct corrections corrections(double beta1, double beta2, double t)
{
    powers(&beta1, &beta2, t);
    return (struct corrections){1 - beta1, 1 - beta2};
}

#endif
