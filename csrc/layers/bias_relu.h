/* y = relu(x + bias) along a part of a row: NaN stays NaN. */
#ifndef BIAS_RELU_H
#define BIAS_RELU_H

#include "../kernel.h"

static inline void bias_relu(const real *x, const real *bias, real *y, int64_t n)
{
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const real sum = x[j] + bias[j];
        y[j] = sum <= 0 ? 0 : sum;
    }
}

#endif
