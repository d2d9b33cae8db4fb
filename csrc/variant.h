/* All kernels, for one instruction set and one real type: the body of each file in isa/.
 *
 * Such a file says REAL_BITS (32 or 64) and VARIANT, the one name that it exports; its compiler flags say
 * the instruction set. Everything else here is static, so kernel files need no name mangling.
 *
 * Bits must not depend on the instruction set. Elementwise code gets that for free (no contraction by the compiler, no
 * fast-math, correctly rounded operations); sums get it from the fixed number of lanes in lanes.h, and sums of products
 * from the fused multiply-add of fma.h.
 */
#include "kernel.h"

#ifdef __AVX512F__
#define WIDE_ONLY
#endif

#define STEP_FILES
#include "kernels.def"
#undef STEP_FILES

#if defined(__clang__) && defined(__OPTIMIZE_SIZE__) /* steps keep their loops of vectors */
#pragma clang attribute push(__attribute__((minsize)), apply_to = function)
#endif
#define LAYER_FILES
#include "kernels.def"
#undef LAYER_FILES
#if defined(__clang__) && defined(__OPTIMIZE_SIZE__)
#pragma clang attribute pop
#endif

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

#define SCALARS(name, scalars) name##_scalars,
static fastopt_scalars_fn *const scalars[] = {
#include "kernels.def"
};
#undef SCALARS

#define LAYER(name, ...) name,
static fastopt_layer_fn *const layers[] = {
#include "kernels.def"
};
#undef LAYER

extern const struct fastopt_kernels VARIANT;
const struct fastopt_kernels VARIANT = {
    steps, sums, scalars, all_finite, preprocess, constrain, layers, sizeof layers / sizeof *layers, MR, NR};
