/* How a layer's work is divided among threads: each kernel says what its units of work are. */
#ifndef SHARE_H
#define SHARE_H

struct range {
    int64_t begin, end;
};

/* A thread's share of n units; where it begins, and ends before n, is a multiple of `grain`. */
static inline struct range own_range(int64_t n, int64_t grain, struct fastopt_share share)
{
    const int64_t grains = (n + grain - 1) / grain;
    const int64_t begin = grains * share.index / share.count * grain;
    const int64_t end = grains * (share.index + 1) / share.count * grain;
    return (struct range){begin, end < n ? end : n};
}

enum { LINE_OF_REALS = 64 / sizeof(real) };

#endif
