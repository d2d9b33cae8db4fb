/* What the optimizer steps share. */
#ifndef STEP_H
#define STEP_H

/* The gradient that a step sees: scaled (unscaling a loss, clipping), then with the gradient l2 * param of
 * an L2 penalty l2/2 |param|^2 added. Without a penalty the parameter does not enter, be it infinite. */
static inline real seen_gradient(real grad, real param, real scale, real l2)
{
    return l2 != 0 ? scale * grad + l2 * param : scale * grad;
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

#endif
