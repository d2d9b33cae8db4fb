/* Pooling of images (n, h, w, c) without padding: the maximum of each window, or its mean. Neighbours in memory are
 * channels, so a window's maxima are taken for all channels at once.
 *
 * winner is the place of the maximum in its window, row by row; NaN wins, and the first of equals. */
#include "share.h"

enum { CHANNELS = 16 };

struct pooling {
    int64_t n, h, w, c, size_h, size_w, stride_h, stride_w;
};

/* The maxima of one window for `width` neighbouring channels. */
INLINE void window_maxima(const struct pooling *p, const real *corner, real *y, signed_word *winner, int64_t width)
{
    real best[CHANNELS];
    signed_word place[CHANNELS];
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
        best[c] = corner[c];
        place[c] = 0;
    }
    signed_word number = 0;
    for (int64_t ky = 0; ky < p->size_h; ++ky)
        for (int64_t kx = 0; kx < p->size_w; ++kx, ++number) {
            const real *candidate = corner + (ky * p->w + kx) * p->c;
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                const real old = best[c], next = candidate[c];
                const signed_word holder = place[c];
                /* not above next, which NaN never is; but NaN once there stays */
                const int wins = !(old >= next) & (old == old);
                best[c] = wins ? next : old;
                place[c] = wins ? number : holder;
            }
        }
    memcpy(y, best, width * sizeof(real));
    memcpy(winner, place, width * sizeof *winner);
}

static void max_pool_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const struct pooling *p = (const void *)size;
    const real *x = array[0];
    const int64_t out_h = (p->h - p->size_h) / p->stride_h + 1, out_w = (p->w - p->size_w) / p->stride_w + 1;
    const struct range images = own_range(p->n, 1, share);
    const int64_t before = images.begin * out_h * out_w * p->c;
    real *y = (real *)array[1] + before;
    signed_word *winner = (signed_word *)array[2] + before;
    (void)scalar;
    if (p->c == 0)
        return; /* or it would take time to do nothing */

    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, y += p->c, winner += p->c) {
                const real *corner = x + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                int64_t c = 0;
                for (; c + CHANNELS <= p->c; c += CHANNELS) /* a constant number: no loop is left */
                    window_maxima(p, corner + c, y + c, winner + c, CHANNELS);
                if (c < p->c)
                    window_maxima(p, corner + c, y + c, winner + c, p->c - c);
            }
}

static void max_pool_backward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const struct pooling *p = (const void *)size;
    real *dx = array[2];
    const int64_t out_h = (p->h - p->size_h) / p->stride_h + 1, out_w = (p->w - p->size_w) / p->stride_w + 1;
    const struct range images = own_range(p->n, 1, share);
    const int64_t before = images.begin * out_h * out_w * p->c, pixels = p->h * p->w * p->c;
    const real *dy = (const real *)array[0] + before;
    const signed_word *winner = (const signed_word *)array[1] + before;
    (void)scalar;
    if (p->c == 0)
        return; /* or it would take time to do nothing */

    memset(dx + images.begin * pixels, 0, (images.end - images.begin) * pixels * sizeof(real));
    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, dy += p->c, winner += p->c) {
                real *corner = dx + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < p->size_w; ++kx) {
                        real *receiver = corner + (ky * p->w + kx) * p->c;
                        const signed_word place = (signed_word)(ky * p->size_w + kx);
#pragma omp simd
                        for (int64_t c = 0; c < p->c; ++c) {
                            const real d = dy[c];
                            receiver[c] += winner[c] == place ? d : 0;
                        }
                    }
            }
}

static void average_pool_forward(void *const *array, const int64_t *size, const double *scalar,
                                 struct fastopt_share share)
{
    const struct pooling *p = (const void *)size;
    const real *x = array[0];
    const int64_t out_h = (p->h - p->size_h) / p->stride_h + 1, out_w = (p->w - p->size_w) / p->stride_w + 1;
    const struct range images = own_range(p->n, 1, share);
    const real weight = 1 / ((double)p->size_h * p->size_w);
    real *y = (real *)array[1] + images.begin * out_h * out_w * p->c;
    (void)scalar;
    if (p->c == 0)
        return; /* or it would take time to do nothing */

    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, y += p->c) {
                const real *corner = x + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                memset(y, 0, p->c * sizeof(real));
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < p->size_w; ++kx) {
                        const real *pixel = corner + (ky * p->w + kx) * p->c;
#pragma omp simd
                        for (int64_t c = 0; c < p->c; ++c)
                            y[c] += pixel[c];
                    }
#pragma omp simd
                for (int64_t c = 0; c < p->c; ++c)
                    y[c] *= weight;
            }
}

static void average_pool_backward(void *const *array, const int64_t *size, const double *scalar,
                                  struct fastopt_share share)
{
    const struct pooling *p = (const void *)size;
    real *dx = array[1];
    const int64_t out_h = (p->h - p->size_h) / p->stride_h + 1, out_w = (p->w - p->size_w) / p->stride_w + 1;
    const struct range images = own_range(p->n, 1, share);
    const int64_t pixels = p->h * p->w * p->c;
    const real weight = 1 / ((double)p->size_h * p->size_w);
    const real *dy = (const real *)array[0] + images.begin * out_h * out_w * p->c;
    (void)scalar;
    if (p->c == 0)
        return; /* or it would take time to do nothing */

    memset(dx + images.begin * pixels, 0, (images.end - images.begin) * pixels * sizeof(real));
    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, dy += p->c) {
                real *corner = dx + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < p->size_w; ++kx) {
                        real *receiver = corner + (ky * p->w + kx) * p->c;
#pragma omp simd
                        for (int64_t c = 0; c < p->c; ++c)
                            receiver[c] += dy[c] * weight;
                    }
            }
}
