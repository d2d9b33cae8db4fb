/* All kernels, for one instruction set and one real type: the body of each file in isa/.
 *
 * Such a file says REAL_BITS (32 or 64) and VARIANT, the one name that it exports; its compiler flags say
 * the instruction set. Everything else here is static, so kernel files need no name mangling.
 *
 * Bits must not depend on the instruction set. Elementwise code gets that for free (no contraction to FMA, no
 * fast-math, correctly rounded operations); sums get it from the fixed number of lanes in lanes.h.
 */
#include <string.h>
#include <tgmath.h>

#include "fastopt.h"

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

#define FILES
#include "kernels.def"
#undef FILES

#define STEP(name, states, hypers) name,
static fastopt_step_fn *const steps[] = {
#include "kernels.def"
};
#undef STEP

#define SUMS(name) name##_sums,
static fastopt_sums_fn *const sums[] = {
#include "kernels.def"
};
#undef SUMS

#define LAYER(name, arrays, sizes, scalars) name,
static fastopt_layer_fn *const layers[] = {
#include "kernels.def"
};
#undef LAYER

extern const struct fastopt_kernels VARIANT;
const struct fastopt_kernels VARIANT = {steps, sums, see, constrain, layers};
