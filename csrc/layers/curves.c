/* Activations other than ReLU. Elementwise kernels work in place too.
 *
 * The derivatives of the first four are functions of y, those of the others functions of x. */
#include "../kernel.h"
#include "elementary.h"
#include "lanes.h"
#include "share.h"

/* The logistic function 1 / (1 + exp(-x)), and 1 minus that, without cancellation. */
struct sigmoid {
    real value, complement;
};

INLINE struct sigmoid sigmoid_at(real x)
{
    const real e = exp_of_negative(-fabs(x)), large = 1 / (1 + e), small = e * large;
    return (struct sigmoid){x < 0 ? small : large, x < 0 ? large : small};
}

/* The cumulative distribution function of the standard normal distribution. */
INLINE real normal_cdf(real x)
{
    const real tail = (real)0.5 * erfc_of_positive(fabs(x) * (real)0.70710678118654752);
    return x < 0 ? tail : 1 - tail;
}

/* Twice the argument of the tanh in the approximation of GELU: 2 sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE real gelu_argument(real x)
{
    return (real)1.5957691216057308 * (x + (real)0.044715 * x * x * x);
}

INLINE real curve_value(enum activation kind, real x, real alpha)
{
    switch (kind) {
    case LEAKY_RELU:
        return x > 0 ? x : alpha * x;
    case ELU:
        return x > 0 ? x : alpha * expm1_of_negative(x > 0 ? 0 : x);
    case TANH: {
        const real m = expm1_of_negative(-2 * fabs(x)), size = -m / (2 + m);
        return x < 0 ? -size : size;
    }
    case SIGMOID:
        return sigmoid_at(x).value;
    case GELU:
        return x * normal_cdf(x);
    case GELU_TANH:
        return x * sigmoid_at(gelu_argument(x)).value;
    case SILU:
        return x * sigmoid_at(x).value;
    default:
        return (x > 0 ? x : 0) + log1p_of_unit(exp_of_negative(-fabs(x)));
    }
}

/* The derivative as a function of y or x. `one` is 1, which the compiler is not to know: it would not multiply by that,
 * and so leave a denormal dy what it is. */
INLINE real curve_slope(enum activation kind, real from, real alpha, real one)
{
    switch (kind) {
    case LEAKY_RELU:
        return from > 0 ? one : alpha;
    case ELU:
        return from > 0 ? one : from + alpha;
    case TANH:
        return 1 - from * from;
    case SIGMOID:
        return from * (1 - from);
    case GELU:
        return normal_cdf(from) + from * (real)0.39894228040143268 * exp_of_negative(from * from * (real)-0.5);
    case GELU_TANH: {
        const struct sigmoid s = sigmoid_at(gelu_argument(from));
        const real inner = (real)1.5957691216057308 * (1 + (real)(3 * 0.044715) * from * from);
        return s.value + from * s.value * s.complement * inner;
    }
    case SILU: {
        const struct sigmoid s = sigmoid_at(from);
        return s.value * (1 + from * s.complement);
    }
    default:
        return sigmoid_at(from).value;
    }
}

/* out = value(x), or with dy, out = dy slope(x). The last few elements are computed among as many as the others: a loop
 * of their own would be as much code again. */
INLINE void curve(enum activation kind, const real *dy, const real *x, real *out, struct range own, real alpha)
{
    real few[3][LANES] = {{0}};
    const volatile real unknown = 1;
    const real one = unknown;
    for (struct range part = up_to_line(own, out); part.begin < own.end; part = after(part, own))
        for (int64_t i = part.begin; i < part.end; i += LANES) {
            const int64_t n = part.end - i;
            const real *slope = dy ? dy + i : NULL, *from = x + i;
            real *to = out + i;
            if (n < LANES) {
                from = memcpy(few[0], from, (size_t)n * sizeof(real));
                slope = dy ? memcpy(few[1], slope, (size_t)n * sizeof(real)) : NULL;
                to = few[2];
            }
#pragma omp simd
            for (int k = 0; k < LANES; ++k)
                to[k] = dy ? slope[k] * curve_slope(kind, from[k], alpha, one) : curve_value(kind, from[k], alpha);
            if (n < LANES)
                memcpy(out + i, to, (size_t)n * sizeof(real));
        }
}

/* Compiles the loop for each kind. */
INLINE void any_curve(enum activation kind, const real *dy, const real *x, real *out, struct range own, real alpha)
{
    switch (kind) {
    case LEAKY_RELU:
        curve(LEAKY_RELU, dy, x, out, own, alpha);
        break;
    case ELU:
        curve(ELU, dy, x, out, own, alpha);
        break;
    case TANH:
        curve(TANH, dy, x, out, own, alpha);
        break;
    case SIGMOID:
        curve(SIGMOID, dy, x, out, own, alpha);
        break;
    case GELU:
        curve(GELU, dy, x, out, own, alpha);
        break;
    case GELU_TANH:
        curve(GELU_TANH, dy, x, out, own, alpha);
        break;
    case SILU:
        curve(SILU, dy, x, out, own, alpha);
        break;
    case SOFTPLUS:
        curve(SOFTPLUS, dy, x, out, own, alpha);
    }
}

static void activation_forward(const void *arguments, struct fastopt_share share)
{
    const struct activation_forward_args *a = arguments;
    any_curve(a->kind, NULL, a->x, a->y, own_range(a->n, LINE_OF_REALS, share), a->alpha);
}

static void activation_backward(const void *arguments, struct fastopt_share share)
{
    const struct activation_backward_args *a = arguments;
    any_curve(a->kind, a->dy, a->from, a->dx, own_range(a->n, LINE_OF_REALS, share), a->alpha);
}
