/* dtable = for each entry the sum of the dy of all places that looked it up. */
#include "../kernel.h"
#include "share.h"

static void embedding_backward(const void *arguments, struct fastopt_share share)
{
    const struct embedding_backward_args *a = arguments;
    const int64_t places = a->places, entries = a->entries, width = a->width, *entry = a->entry;
    const real *dy = a->dy;
    real *dtable = a->dtable;
    const struct range own = own_range(width, LINE_OF_REALS, share);
    for (int64_t e = 0; e < entries; ++e)
        memset(dtable + e * width + own.begin, 0, (own.end - own.begin) * sizeof(real));
    for (int64_t i = 0; i < places; ++i) {
        real *sum = dtable + entry[i] * width;
#pragma omp simd
        for (int64_t j = own.begin; j < own.end; ++j)
            sum[j] += dy[i * width + j];
    }
}
