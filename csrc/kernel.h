/* What every kernel file builds on: the real type that it is compiled for, integers of that width, and the structs of
 * hyperparameters that follow from kernels.def.
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

/* Inlined always, or vectors would travel through memory. */
#define INLINE static inline __attribute__((always_inline))

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
#undef UNWRAP

#endif
