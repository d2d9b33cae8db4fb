/* What losses share: the total sample weight, by which their means divide, and labels that are none. */
#ifndef LOSS_H
#define LOSS_H

#include "../kernel.h"
#include "../sums.h"

/* Whether a label is one of the classes; the loss of a row whose label is not, and its gradient, are NaN. */
INLINE int is_class(int64_t label, int64_t classes)
{
    return (uint64_t)label < (uint64_t)classes;
}

/* The sum of weight mass over the rows, 1 standing for either that is null. */
static inline double total_weight(const real *weight, const real *mass, int64_t rows)
{
    if (!weight && !mass)
        return (double)rows;
    double lane[SUM_LANES] = {0};
    for (int64_t row = 0; row < rows; ++row)
        lane[row % SUM_LANES] += (weight ? (double)weight[row] : 1) * (mass ? (double)mass[row] : 1);
    return sum_of_lanes(lane);
}

/* A row's weight over the total, or 0 where all weights are. */
INLINE double part_of_total(const real *weight, int64_t row, double total)
{
    return total == 0 ? 0 : (weight ? (double)weight[row] : 1) / total;
}

#endif
