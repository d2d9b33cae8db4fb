/* Sums and products element by element, in place too; and axes that change places. */
#include "../kernel.h"
#include "share.h"

/* y = a + b, or relu(a + b). */
static void add(const void *arguments, struct fastopt_share share)
{
    const struct add_args *args = arguments;
    const real *a = args->a, *b = args->b;
    real *y = args->y;
    const struct range own = own_range(args->n, LINE_OF_REALS, share);
    for (struct range part = up_to_line(own, y); part.begin < own.end; part = after(part, own))
        if (args->relu)
#pragma omp simd
            for (int64_t i = part.begin; i < part.end; ++i) {
                const real sum = a[i] + b[i];
                y[i] = sum <= 0 ? 0 : sum; /* NaN stays NaN */
            }
        else
#pragma omp simd
            for (int64_t i = part.begin; i < part.end; ++i)
                y[i] = a[i] + b[i];
}

/* y = x factor */
static void scale(const void *arguments, struct fastopt_share share)
{
    const struct scale_args *a = arguments;
    const real *x = a->x, factor = a->factor;
    real *y = a->y;
    const struct range own = own_range(a->n, LINE_OF_REALS, share);
    for (struct range part = up_to_line(own, y); part.begin < own.end; part = after(part, own))
#pragma omp simd
        for (int64_t i = part.begin; i < part.end; ++i)
            y[i] = x[i] * factor;
}

/* y = x factor, one factor for each channel of an image. */
static void scale_channels(const void *arguments, struct fastopt_share share)
{
    const struct scale_channels_args *a = arguments;
    const int64_t pixels = a->pixels, channels = a->channels;
    const struct range own = own_range(a->n * pixels, 1, share);
    for (int64_t pixel = own.begin; pixel < own.end; ++pixel) {
        const real *x = a->x + pixel * channels, *factor = a->factor + pixel / pixels * channels;
        real *y = a->y + pixel * channels;
#pragma omp simd
        for (int64_t j = 0; j < channels; ++j)
            y[j] = x[j] * factor[j];
    }
}

/* y (m, n, width) of x (n, m, width): threads share out the longer of the two axes. */
static void swap_axes(const void *arguments, struct fastopt_share share)
{
    enum { BLOCK = 64 /* rows of x that stay in the cache from one row of y to the next */ };
    const struct swap_axes_args *a = arguments;
    const int64_t n = a->n, m = a->m, width = a->width;
    const struct range all_n = {0, n}, all_m = {0, m};
    const struct range own_n = n >= m ? own_range(n, LINE_OF_REALS, share) : all_n;
    const struct range own_m = n >= m ? all_m : own_range(m, 1, share);
    for (int64_t begin = own_n.begin; begin < own_n.end; begin += BLOCK) {
        const int64_t end = minimum(begin + BLOCK, own_n.end);
        for (int64_t i = own_m.begin; i < own_m.end; ++i)
            if (width == 1)
                for (int64_t k = begin; k < end; ++k)
                    a->y[i * n + k] = a->x[k * m + i];
            else
                for (int64_t k = begin; k < end; ++k)
                    memcpy(a->y + (i * n + k) * width, a->x + (k * m + i) * width, width * sizeof(real));
    }
}
