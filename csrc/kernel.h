/* What every kernel file builds on: the real type that it is compiled for, integers of that width, and what follows
 * from kernels.def: the structs of hyperparameters and of arguments, limits, choices, and dimensions.
 *
 * Each file in isa/ says REAL_BITS, 32 or 64; a kernel file that is opened by itself, as editors do, is one of float.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

#include "fastopt.h"

#ifndef REAL_BITS
#define REAL_BITS 32
#endif

#if REAL_BITS == 32
typedef float real;
typedef uint32_t word; /* as wide as a real */
typedef int32_t signed_word;
enum { MANTISSA_BITS = 23, EXPONENT_BIAS = 127 };
#else
typedef double real;
typedef uint64_t word;
typedef int64_t signed_word;
enum { MANTISSA_BITS = 52, EXPONENT_BIAS = 1023 };
#endif

enum { LINE_OF_REALS = FASTOPT_LINE / sizeof(real) };

/* For helpers on vectors, which the ABI would pass through memory, and for loops that are compiled for each value of an
 * option. Where little code is wanted (setup.py), the compiler decides. */
#ifdef __OPTIMIZE_SIZE__
#define INLINE static inline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

static inline int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t maximum(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "masks and random bits are laid out for little-endian machines"
#endif

/* struct <name>_hyper: the hyperparameters of a step, those of every step first. */
#define UNWRAP(...) __VA_ARGS__
#define STEP(name, states, hypers)                                                                                     \
    struct name##_hyper {                                                                                              \
        double FASTOPT_EVERY_STEP, UNWRAP hypers;                                                                      \
    };
#include "kernels.def"
#undef STEP

#define STEP(name, states, hypers)                                                                                     \
    _Static_assert(sizeof(struct name##_hyper) <= FASTOPT_MAX_HYPERS * sizeof(double), #name);                         \
    _Static_assert(offsetof(struct name##_hyper, lr) == offsetof(struct fastopt_every_step, lr), #name);
#include "kernels.def"
#undef STEP

/* struct <name>_scalars: what a step has beside them, and keeps from step to step. */
#define SCALARS(name, scalars)                                                                                         \
    struct name##_scalars {                                                                                            \
        double UNWRAP scalars;                                                                                         \
    };                                                                                                                 \
    _Static_assert(sizeof(struct name##_hyper) + sizeof(struct name##_scalars) <= FASTOPT_MAX_HYPERS * sizeof(double), \
                   #name);
#include "kernels.def"
#undef SCALARS
#undef UNWRAP

#define LIMIT(name, value) name = value,
enum {
#include "kernels.def"
};
#undef LIMIT

#define CHOICES(name, ...) enum name { __VA_ARGS__ };
#include "kernels.def"
#undef CHOICES

#define DIMENSION(name, parameters, expression)                                                                        \
    INLINE int64_t name parameters                                                                                     \
    {                                                                                                                  \
        return expression;                                                                                             \
    }
#include "kernels.def"
#undef DIMENSION

/* struct <name>_args: what a layer is called with. */
#define SHAPE(...)
#define OPTIONAL
#define IN_PLACE(array)
#define LAYER(name, ...)                                                                                               \
    struct name##_args {                                                                                               \
        __VA_ARGS__;                                                                                                   \
    };                                                                                                                 \
    _Static_assert(sizeof(struct name##_args) % sizeof(int64_t) == 0 &&                                                \
                       sizeof(struct name##_args) <=                                                                   \
                           FASTOPT_MAX_ARRAYS * sizeof(void *) + FASTOPT_MAX_NUMBERS * sizeof(int64_t),                \
                   #name);
#include "kernels.def"
#undef LAYER
#undef SHAPE
#undef OPTIONAL
#undef IN_PLACE

#endif
