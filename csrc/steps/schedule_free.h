/* What schedule-free steps share: the weight of the new z in the average, and the constants of a step. Loops are called
 * with a decay that is known to be zero, where it is: not every compiler takes the condition out of them. */
#ifndef SCHEDULE_FREE_H
#define SCHEDULE_FREE_H

#include "step.h"

/* The weight is the iterate's, t^weight_power lr^lr_power for the largest lr so far, as a part of the sum of all. */
static inline double next_weight(double t, double lr, double weight_power, double lr_power, double *weight_sum,
                                 double *largest_lr)
{
    *largest_lr = *largest_lr > lr ? *largest_lr : lr;
    const double weight = power(t, weight_power) * power(*largest_lr, lr_power);
    *weight_sum += weight;
    return *weight_sum > 0 ? weight / *weight_sum : 0;
}

struct schedule_free {
    real lr, lr_y, c, rest;
};

static inline struct schedule_free schedule_free(double lr, double beta, double average_weight)
{
    return (struct schedule_free){
        .lr = lr, .lr_y = lr * (1 - beta * (1 - average_weight)), .c = average_weight, .rest = 1 - average_weight};
}

#endif
