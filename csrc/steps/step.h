/* What the formulas of optimizer steps have in common: decay, moving averages, bias corrections, stabilisers. */
#ifndef STEP_H
#define STEP_H

#include "../kernel.h"

/* What formulas compute with: one element, of many of which the compiler makes vectors; or, where roots are taken by
 * fused multiply-add, WIDTH of them. Loops take whole ones, and leave the rest to the other compilation. */
#if defined(ROOTS_BY_FMA)
#include "roots.h"
#else
typedef real reals;
enum { WIDTH = 1 };

INLINE real square_root(real x)
{
    return sqrt(x);
}
#endif

/* The factor of a parameter under decoupled decay (Loshchilov & Hutter 2019): 1 - lr decay. */
static inline double shrinkage(const void *hyper)
{
    const struct fastopt_every_step *h = hyper;
    return h->decoupled ? 1 - h->lr * h->weight_decay : 1;
}

INLINE real sign_of(real x)
{
    return (real)(x > 0) - (real)(x < 0);
}

/* A direction with decoupled decay as a part of it: for steps that scale or average the whole direction. */
INLINE real decayed_direction(real decay, real direction, real param)
{
    return decay != 0 ? direction + decay * param : direction;
}

/* The maximum; NaN where either operand is NaN. */
INLINE real larger(real x, real y)
{
    return x > y || x != x ? x : y;
}

/* The stabiliser eps of a root, where eps_mode puts it: sqrt(x + in_root) + outside. */
struct stabiliser {
    real outside, in_root;
};

/* For sqrt(x / correction) + eps, which is computed as (sqrt(x + in_root) + outside) / sqrt(correction): steps divide
 * the learning rate by the latter. */
static inline struct stabiliser stabiliser(double eps, double eps_mode, double correction)
{
    return (struct stabiliser){
        .outside = eps_mode == EPS_OUTSIDE ? eps * sqrt(correction)
                   : eps_mode == EPS_HAT   ? eps
                                           : 0,
        .in_root = eps_mode == EPS_INSIDE ? eps * correction : 0,
    };
}

INLINE reals root(reals x, struct stabiliser eps)
{
    return square_root(x + eps.in_root) + eps.outside;
}

/* An exponential moving average. The weights are computed in double: 1 - 0.999f is wrong in the fifth digit. */
struct average {
    real old_weight, new_weight;
};

static inline struct average average(double old_weight)
{
    return (struct average){old_weight, 1 - old_weight};
}

INLINE reals averaged(struct average a, reals old, reals value)
{
    return a.old_weight * old + a.new_weight * value;
}

/* a <- a^t and b <- b^t for the step number t, by repeated squaring: the same bits on every machine, unlike the pow of
 * C libraries. Both at once, and without a branch on the bits of t, since small steps spend most of their time here. */
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

/* x^y for x, y >= 0, by squaring and taking roots: the same bits on every machine. */
static inline double power(double x, double y)
{
    const double most = 0x1p63; /* a power of which is 0, 1 or infinite */
    const double whole = y < most ? floor(y) : most;
    double result = 1, square = x, root = x;
    for (uint64_t n = (uint64_t)whole; n; n >>= 1) {
        if (n & 1)
            result *= square;
        square *= square;
    }
    for (double rest = y < most ? y - whole : 0; rest != 0; rest -= floor(rest)) {
        rest *= 2;
        root = sqrt(root);
        if (rest >= 1)
            result *= root;
    }
    return result;
}

/* Bias corrections of moments that begin at zero: 1 - beta^t. */
struct corrections {
    double first, second;
};

static inline struct corrections corrections(double beta1, double beta2, double t)
{
    powers(&beta1, &beta2, t);
    return (struct corrections){1 - beta1, 1 - beta2};
}

#endif
