/* dtable = for each entry the sum of the dy of all places that looked it up. */
#include "share.h"

static void embedding_backward(void *const *array, const int64_t *size, const double *scalar,
                               struct fastopt_share share)
{
    const int64_t places = size[0], entries = size[1], width = size[2], *entry = array[1];
    const real *dy = array[0];
    real *dtable = array[2];
    const struct range own = own_range(width, LINE_OF_REALS, share);
    (void)scalar;
    for (int64_t e = 0; e < entries; ++e)
        memset(dtable + e * width + own.begin, 0, (own.end - own.begin) * sizeof(real));
    for (int64_t i = 0; i < places; ++i) {
        real *sum = dtable + entry[i] * width;
#pragma omp simd
        for (int64_t j = own.begin; j < own.end; ++j)
            sum[j] += dy[i * width + j];
    }
}
