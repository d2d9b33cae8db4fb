/* Pooling of images (n, h, w, c) without padding: the maximum of each window, or its mean. Channels are neighbours in
 * memory, so a window's maxima are taken for a vector of channels at once.
 *
 * winner is the index of the maximum in its window, row by row: the first of equal ones, and the first NaN if any. */
#include "../kernel.h"
#include "lanes.h"
#include "share.h"

/* What the four kernels have in common. */
struct pooling {
    int64_t n, h, w, c, size_h, size_w, stride_h, stride_w;
};

#define POOLING(a) {(a)->n, (a)->h, (a)->w, (a)->c, (a)->size_h, (a)->size_w, (a)->stride_h, (a)->stride_w}

/* The maxima of one window for a vector of neighbouring channels. */
INLINE void vector_maxima(const struct pooling *p, int64_t size_h, int64_t size_w, const real *corner, real *y,
                          signed_word *winner)
{
    vector best = vector_load(corner);
    word_vector index = {0}, number = {0};
    for (int64_t ky = 0; ky < size_h; ++ky)
        for (int64_t kx = 0; kx < size_w; ++kx, number += 1) {
            const vector next = vector_load(corner + (ky * p->w + kx) * p->c);
            /* unless best >= next, which is false for NaN; but once best is NaN, it stays */
            const word_vector wins = ~(word_vector)(best >= next) & (word_vector)(best == best);
            best = (vector)(((word_vector)next & wins) | ((word_vector)best & ~wins));
            index = (number & wins) | (index & ~wins);
        }
    vector_store(y, best);
    *(unaligned_word_vector *)winner = index;
}

/* The same for one channel. */
static void channel_maximum(const struct pooling *p, const real *corner, real *y, signed_word *winner)
{
    real best = corner[0];
    signed_word index = 0, number = 0;
    for (int64_t ky = 0; ky < p->size_h; ++ky)
        for (int64_t kx = 0; kx < p->size_w; ++kx, ++number) {
            const real next = corner[(ky * p->w + kx) * p->c];
            if (!(best >= next) && best == best) {
                best = next;
                index = number;
            }
        }
    *y = best;
    *winner = index;
}

static void max_pool_forward(const void *arguments, struct fastopt_share share)
{
    const struct max_pool_forward_args *a = arguments;
    const struct pooling pooling = POOLING(a), *p = &pooling;
    const real *x = a->x;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, 0, 1);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, 0, 1);
    const struct range images = own_range(p->n, 1, share);
    const int64_t before = images.begin * out_h * out_w * p->c;
    real *y = a->y + before;
    signed_word *winner = a->winner + before;
    if (p->c == 0)
        return; /* the loops over pixels would find nothing to do */

    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, y += p->c, winner += p->c) {
                const real *corner = x + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                int64_t c = 0;
                if (p->size_h == 2 && p->size_w == 2) /* unrolled */
                    for (; c + PER_VECTOR <= p->c; c += PER_VECTOR)
                        vector_maxima(p, 2, 2, corner + c, y + c, winner + c);
                for (; c + PER_VECTOR <= p->c; c += PER_VECTOR)
                    vector_maxima(p, p->size_h, p->size_w, corner + c, y + c, winner + c);
                for (; c < p->c; ++c)
                    channel_maximum(p, corner + c, y + c, winner + c);
            }
}

/* dx of one window that no other window overlaps. */
INLINE void window_gradient(const struct pooling *p, const real *dy, const signed_word *winner, real *corner)
{
    int64_t c = 0;
    for (; c + PER_VECTOR <= p->c; c += PER_VECTOR) {
        const word_vector d = (word_vector)vector_load(dy + c), won = *(const unaligned_word_vector *)(winner + c);
        word_vector index = {0};
        for (int64_t ky = 0; ky < p->size_h; ++ky)
            for (int64_t kx = 0; kx < p->size_w; ++kx, index += 1)
                vector_store(corner + (ky * p->w + kx) * p->c + c, (vector)(d & (word_vector)(won == index)));
    }
    for (; c < p->c; ++c)
        for (int64_t ky = 0; ky < p->size_h; ++ky)
            for (int64_t kx = 0; kx < p->size_w; ++kx)
                corner[(ky * p->w + kx) * p->c + c] = winner[c] == ky * p->size_w + kx ? dy[c] : 0;
}

static void max_pool_backward(const void *arguments, struct fastopt_share share)
{
    const struct max_pool_backward_args *a = arguments;
    const struct pooling pooling = POOLING(a), *p = &pooling;
    real *dx = a->dx;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, 0, 1);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, 0, 1);
    const struct range images = own_range(p->n, 1, share);
    const int64_t before = images.begin * out_h * out_w * p->c, pixels = p->h * p->w * p->c;
    const real *dy = a->dy + before;
    const signed_word *winner = a->winner + before;
    if (p->c == 0)
        return; /* the loops over pixels would find nothing to do */

    /* Where windows neither overlap nor leave gaps, each pixel of theirs is written once. */
    const int apart = p->stride_h == p->size_h && p->stride_w == p->size_w;
    if (!apart || p->h != out_h * p->size_h || p->w != out_w * p->size_w)
        memset(dx + images.begin * pixels, 0, (images.end - images.begin) * pixels * sizeof(real));
    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, dy += p->c, winner += p->c) {
                real *corner = dx + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                if (apart) {
                    window_gradient(p, dy, winner, corner);
                    continue;
                }
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < p->size_w; ++kx) {
                        real *receiver = corner + (ky * p->w + kx) * p->c;
                        const signed_word index = (signed_word)(ky * p->size_w + kx);
#pragma omp simd
                        for (int64_t c = 0; c < p->c; ++c) {
                            const real d = dy[c];
                            receiver[c] += winner[c] == index ? d : 0;
                        }
                    }
            }
}

static void average_pool_forward(const void *arguments, struct fastopt_share share)
{
    const struct average_pool_forward_args *a = arguments;
    const struct pooling pooling = POOLING(a), *p = &pooling;
    const real *x = a->x;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, 0, 1);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, 0, 1);
    const struct range images = own_range(p->n, 1, share);
    const real weight = 1 / ((double)p->size_h * p->size_w);
    real *y = a->y + images.begin * out_h * out_w * p->c;
    if (p->c == 0)
        return; /* the loops over pixels would find nothing to do */

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

static void average_pool_backward(const void *arguments, struct fastopt_share share)
{
    const struct average_pool_backward_args *a = arguments;
    const struct pooling pooling = POOLING(a), *p = &pooling;
    real *dx = a->dx;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, 0, 1);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, 0, 1);
    const struct range images = own_range(p->n, 1, share);
    const int64_t pixels = p->h * p->w * p->c;
    const real weight = 1 / ((double)p->size_h * p->size_w);
    const real *dy = a->dy + images.begin * out_h * out_w * p->c;
    if (p->c == 0)
        return; /* the loops over pixels would find nothing to do */

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
