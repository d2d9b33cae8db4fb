/* What the optimizer steps share. */
#ifndef STEP_H
#define STEP_H

/* The gradient that a step sees: scaled (unscaling a loss, clipping), then with the gradient l2 * param of
 * an L2 penalty l2/2 |param|^2 added. Without a penalty the parameter does not enter, be it infinite. */
static inline real seen_gradient(real grad, real param, real scale, real l2)
{
    return l2 != 0 ? scale * grad + l2 * param : scale * grad;
}

/* base^t for the number t of a step, by squaring: alike on every machine, as the pow of a C library is not. */
static inline double power(double base, double t)
{
    double result = 1;
    for (uint64_t n = (uint64_t)t; n; n >>= 1, base *= base)
        if (n & 1)
            result *= base;
    return result;
}

#endif
