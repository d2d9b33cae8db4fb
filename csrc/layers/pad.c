/* Images (n, h, w, c) with a border of one value. Threads share out the rows of the larger images. */
#include "../kernel.h"
#include "share.h"

static void fill(real *y, int64_t count, real value)
{
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
        y[i] = value;
}

static void pad_forward(const void *arguments, struct fastopt_share share)
{
    const struct pad_forward_args *a = arguments;
    const int64_t high = a->h + a->top + a->bottom, wide = (a->w + a->left + a->right) * a->c, inner = a->w * a->c;
    const struct range own = own_range(a->n * high, 1, share);
    const real value = a->value;
    for (int64_t row = own.begin; row < own.end; ++row) {
        real *y = a->y + row * wide;
        const int64_t from = row % high - a->top;
        if (from < 0 || from >= a->h) {
            fill(y, wide, value);
            continue;
        }
        fill(y, a->left * a->c, value);
        if (inner > 0)
            memcpy(y + a->left * a->c, a->x + (row / high * a->h + from) * inner, inner * sizeof(real));
        fill(y + a->left * a->c + inner, a->right * a->c, value);
    }
}

static void pad_backward(const void *arguments, struct fastopt_share share)
{
    const struct pad_backward_args *a = arguments;
    const int64_t high = a->h + a->top + a->bottom, wide = (a->w + a->left + a->right) * a->c, inner = a->w * a->c;
    const struct range own = own_range(a->n * a->h, 1, share);
    for (int64_t row = own.begin; row < own.end && inner > 0; ++row) {
        const int64_t from = row / a->h * high + a->top + row % a->h;
        memcpy(a->dx + row * inner, a->dy + from * wide + a->left * a->c, inner * sizeof(real));
    }
}
