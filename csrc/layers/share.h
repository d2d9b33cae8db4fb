/* How the units of a layer's work (rows, images, panels, …) are divided among threads. */
#ifndef SHARE_H
#define SHARE_H

#include "../kernel.h"

struct range {
    int64_t begin, end;
};

/* A thread's share of n units; where it begins, and ends before n, is a multiple of `grain`. */
static inline struct range own_range(int64_t n, int64_t grain, struct fastopt_share share)
{
    /* Rounded up, so that the larger parts come first: those threads begin earlier. */
    const int64_t grains = (n + grain - 1) / grain, up = share.count - 1;
    const int64_t begin = (grains * share.index + up) / share.count * grain;
    const int64_t end = (grains * (share.index + 1) + up) / share.count * grain;
    return (struct range){minimum(begin, n), minimum(end, n)};
}

/* The first elements of a range, up to where a cache line of y begins. A short range is left whole. */
static inline struct range up_to_line(struct range range, const real *y)
{
    const int64_t beyond = ((uintptr_t)(y + range.begin) % FASTOPT_LINE + sizeof(real) - 1) / sizeof(real);
    if ((range.end - range.begin) * (int64_t)sizeof(real) >= FASTOPT_LONG)
        range.end = range.begin + (beyond ? LINE_OF_REALS - beyond : 0);
    return range;
}

/* The rest of a range, after a part of it. */
static inline struct range after(struct range part, struct range range)
{
    return (struct range){part.end, range.end};
}

#endif
