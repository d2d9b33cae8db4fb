/* y = a b + c, rounded once: what sums of products are made of, for itself, so that tests can look at it. */
#include "../kernel.h"
#include "fma.h"
#include "share.h"

static void fused_multiply_add(const void *arguments, struct fastopt_share share)
{
    const struct fused_multiply_add_args *args = arguments;
    const struct range own = own_range(args->n, LANES, share);
    for (int64_t i = own.begin, n; i < own.end; i += n) {
        n = minimum(own.end - i, PER_VECTOR);
        const vector a = vector_load_some(args->a + i, n), b = vector_load_some(args->b + i, n);
        vector_store_some(args->y + i, vector_fma(a, b, vector_load_some(args->c + i, n)), n);
    }
}
