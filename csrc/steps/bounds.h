/* The bounds of the rates of AdaBound and AMSBound (Luo et al. 2019, section 4): both tend to final_lr. */
#ifndef BOUNDS_H
#define BOUNDS_H

#include "../kernel.h"

struct bounds {
    real low, high;
};

static inline struct bounds closing_bounds(double final_lr, double gamma, double t)
{
    return (struct bounds){final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))};
}

INLINE real bounded(real rate, struct bounds b)
{
    return rate > b.high ? b.high : rate < b.low ? b.low : rate;
}

#endif
