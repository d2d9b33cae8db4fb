/* Rows of a table, looked up by numbers; and the gradient of the table: for each entry the sum of the dy of all places
 * that looked it up. */
#include "../kernel.h"
#include "share.h"

/* The entry that a number names, or -1. */
INLINE int64_t entry_named(real x, int64_t entries)
{
    if (!(x >= 0 && (double)x < (double)entries))
        return -1;
    const int64_t entry = x;
    return (real)entry == x ? entry : -1;
}

static void wrong_entries(const void *arguments, struct fastopt_share share)
{
    const struct wrong_entries_args *a = arguments;
    int64_t wrong = 0;
    if (share.index > 0)
        return;
    for (int64_t i = 0; i < a->places; ++i)
        wrong += entry_named(a->x[i], a->entries) < 0;
    a->wrong[0] = wrong;
}

static void embedding_forward(const void *arguments, struct fastopt_share share)
{
    const struct embedding_forward_args *a = arguments;
    const int64_t places = a->places, entries = a->entries, width = a->width;
    const struct range own = own_range(places, LINE_OF_REALS, share);
    for (int64_t i = own.begin; i < own.end; ++i) {
        const int64_t entry = entry_named(a->x[i], entries);
        a->entry[i] = maximum(entry, 0);
        if (entry < 0)
            memset(a->y + i * width, 0, width * sizeof(real));
        else
            memcpy(a->y + i * width, a->weight + entry * width, width * sizeof(real));
    }
}

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
