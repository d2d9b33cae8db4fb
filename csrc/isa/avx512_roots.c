/* The steps that take roots of float32, with roots by fused multiply-add: for CPUs whose divider is slow (dispatch.c).
 */
#define REAL_BITS 32
#define ROOTS_BY_FMA
#include "../kernel.h"

#pragma clang diagnostic ignored "-Wpass-failed" /* "omp simd" on loops over vectors */

#define ROOT_FILES
#include "../kernels.def"
#undef ROOT_FILES

extern fastopt_step_fn *const fastopt_avx512_roots[];
#define ROOT(name) name,
fastopt_step_fn *const fastopt_avx512_roots[] = {
#include "../kernels.def"
};
#undef ROOT
