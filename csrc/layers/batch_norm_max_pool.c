/* Batch norm with given statistics, ReLU where wanted, and max pooling by windows that do not overlap, of images
 * (n, h, w, channels), fused: no intermediate result of the size of x is written.
 *
 * `chosen` are the elements of x that were the maxima of their windows. By comparison with them backward finds these:
 *
 *   dx = a (dy if x is the maximum, else 0, - dshift / count - c dscale inv_std / count),  c = x - mean,  a = scale
 * inv_std
 *
 * As no other elements have a gradient, batch_norm_backward takes dscale and dshift from dy and chosen alone. */
#include "../kernel.h"
#include "batch_norm.h"
#include "lanes.h"
#include "share.h"

/* What both kernels have in common. */
struct pooled_norm {
    int64_t n, h, w, channels, size_h, size_w, relu;
};

#define POOLED_NORM(a) {(a)->n, (a)->h, (a)->w, (a)->channels, (a)->size_h, (a)->size_w, (a)->relu}

enum { CHANNELS = 256 }; /* at a time: their coefficients stay in the first-level cache */

struct coefficients {
    real high[CHANNELS], factor[CHANNELS], intercept[CHANNELS]; /* normal = (x - high) factor + intercept */
    real slope[CHANNELS], offset[CHANNELS];                     /* dx = dy factor - (x - high) slope + offset */
};

/* y of n channels from c on, and chosen if given. */
INLINE void pool_some(const struct pooled_norm *p, int64_t size_h, int64_t size_w, const struct coefficients *t,
                      int64_t c, int64_t n, const real *x, real *y, real *chosen)
{
    const vector high = vector_load(t->high + c), factor = vector_load(t->factor + c);
    const vector intercept = vector_load(t->intercept + c);
    vector choice = vector_load_some(x + c, n), best = (choice - high) * factor + intercept;
    for (int64_t ky = 0; ky < size_h; ++ky)
        for (int64_t kx = ky == 0; kx < size_w; ++kx) {
            const vector next = vector_load_some(x + (ky * p->w + kx) * p->channels + c, n);
            const vector normal = (next - high) * factor + intercept;
            const word_vector wins = ~(word_vector)(best >= normal) & (word_vector)(best == best); /* as in pooling.c */
            best = (vector)(((word_vector)normal & wins) | ((word_vector)best & ~wins));
            choice = (vector)(((word_vector)next & wins) | ((word_vector)choice & ~wins));
        }
    vector_store_some(y + c, p->relu ? vector_gate(best, best) : best, n);
    if (chosen)
        vector_store_some(chosen + c, choice, n);
}

INLINE void pool_window(const struct pooled_norm *p, int64_t size_h, int64_t size_w, const struct coefficients *t,
                        int64_t channels, const real *x, real *y, real *chosen)
{
    int64_t c = 0;
    for (; c + PER_VECTOR <= channels; c += PER_VECTOR)
        pool_some(p, size_h, size_w, t, c, PER_VECTOR, x, y, chosen);
    if (c < channels)
        pool_some(p, size_h, size_w, t, c, channels - c, x, y, chosen);
}

static void batch_norm_max_pool_forward(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_max_pool_forward_args *a = arguments;
    const struct pooled_norm pool = POOLED_NORM(a), *p = &pool;
    const real *x = a->x, *scale = a->scale, *shift = a->shift;
    const double *mean = a->mean, *inv_std = a->inv_std, eps = a->eps;
    real *y = a->y, *chosen = a->chosen;
    const int64_t out_h = p->h / p->size_h, out_w = p->w / p->size_w;
    const struct range rows = own_range(p->n * out_h, 1, share);

    for (int64_t first = 0, count; first < p->channels; first += count) {
        struct coefficients t = {0};
        double means[CHANNELS], inv_stds[CHANNELS];
        count = minimum(p->channels - first, CHANNELS);
        if (mean) {
            memcpy(means, mean + first, count * sizeof *means);
            memcpy(inv_stds, inv_std + first, count * sizeof *inv_stds);
        } else {
            running_statistics(first, count, a->running_mean, a->running_var, eps, means, inv_stds);
        }
        affine(first, count, means, inv_stds, scale, shift, t.high, t.factor, t.intercept);
        for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t column = 0; column < out_w; ++column) {
                const int64_t corner = (row / out_h * p->h + row % out_h * p->size_h) * p->w + column * p->size_w;
                const int64_t from = corner * p->channels + first, to = (row * out_w + column) * p->channels + first;
                real *choice = chosen ? chosen + to : NULL;
                if (p->size_h == 2 && p->size_w == 2) /* unrolled */
                    pool_window(p, 2, 2, &t, count, x + from, y + to, choice);
                else
                    pool_window(p, p->size_h, p->size_w, &t, count, x + from, y + to, choice);
            }
    }
}

/* dx of a window, n channels from c on; without dy, of pixels that are in no window. */
INLINE void unpool_some(const struct pooled_norm *p, int64_t size_h, int64_t size_w, const struct coefficients *t,
                        int64_t c, int64_t n, const real *dy, const real *chosen, const real *x, real *dx)
{
    const vector high = vector_load(t->high + c), factor = vector_load(t->factor + c);
    const vector slope = vector_load(t->slope + c), offset = vector_load(t->offset + c);
    vector choice = {0};
    word_vector gradient = {0}; /* of the maximum, until that is found */
    if (dy) {
        vector d = vector_load_some(dy + c, n);
        prefetch_page(dy + c);
        prefetch_page(chosen + c);
        choice = vector_load_some(chosen + c, n);
        if (p->relu)
            d = vector_gate(d, (choice - high) * factor + vector_load(t->intercept + c));
        gradient = (word_vector)(d * factor);
    }
    for (int64_t ky = 0; ky < size_h; ++ky)
        for (int64_t kx = 0; kx < size_w; ++kx) {
            const int64_t at = (ky * p->w + kx) * p->channels + c;
            const vector next = vector_load_some(x + at, n);
            const word_vector wins = (word_vector)(next == choice);
            prefetch_page_to_write(dx + at);
            if (dx != x)
                prefetch_page(x + at);
            vector_store_some(dx + at, (vector)(gradient & wins) - (next - high) * slope + offset, n);
            gradient &= ~wins;
        }
}

INLINE void unpool_window(const struct pooled_norm *p, int64_t size_h, int64_t size_w, const struct coefficients *t,
                          int64_t channels, const real *dy, const real *chosen, const real *x, real *dx)
{
    int64_t c = 0;
    for (; c + PER_VECTOR <= channels; c += PER_VECTOR)
        unpool_some(p, size_h, size_w, t, c, PER_VECTOR, dy, chosen, x, dx);
    if (c < channels)
        unpool_some(p, size_h, size_w, t, c, channels - c, dy, chosen, x, dx);
}

static void batch_norm_max_pool_backward(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_max_pool_backward_args *a = arguments;
    const struct pooled_norm pool = POOLED_NORM(a), *p = &pool;
    const real *dy = a->dy, *chosen = a->chosen, *x = a->x, *scale = a->scale, *shift = a->shift;
    const double *mean = a->mean, *inv_std = a->inv_std;
    const real *dscale = a->dscale, *dshift = a->dshift;
    real *dx = a->dx;
    const int64_t out_h = p->h / p->size_h, out_w = p->w / p->size_w;
    const struct range rows = own_range(p->n * out_h, 1, share);
    const double weight = 1 / ((double)p->n * p->h * p->w);

    for (int64_t first = 0, count; first < p->channels; first += count) {
        struct coefficients t = {0};
        double product[CHANNELS], sum[CHANNELS];
        count = minimum(p->channels - first, CHANNELS);
        for (int64_t j = 0; j < count; ++j) {
            product[j] = dscale[first + j];
            sum[j] = dshift[first + j];
        }
        affine(first, count, mean + first, inv_std + first, scale, shift, t.high, t.factor, t.intercept);
        slopes(first, count, mean + first, inv_std + first, scale, weight, product, sum, t.slope, t.offset);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            /* The last window of a row or column is followed by the pixels beyond it, which are in no window. */
            const int64_t oy = row % out_h, top = oy * p->size_h, end = oy + 1 < out_h ? top + p->size_h : p->h;
            const int64_t image = row / out_h * p->h;
            for (int64_t column = 0; column < out_w; ++column) {
                const int64_t at = ((image + top) * p->w + column * p->size_w) * p->channels + first;
                const int64_t of = (row * out_w + column) * p->channels + first;
                if (p->size_h == 2 && p->size_w == 2)
                    unpool_window(p, 2, 2, &t, count, dy + of, chosen + of, x + at, dx + at);
                else
                    unpool_window(p, p->size_h, p->size_w, &t, count, dy + of, chosen + of, x + at, dx + at);
            }
            for (int64_t y = top; y < end; ++y)
                for (int64_t column = y < top + p->size_h ? out_w * p->size_w : 0; column < p->w; ++column) {
                    const int64_t at = ((image + y) * p->w + column) * p->channels + first;
                    unpool_window(p, 1, 1, &t, count, NULL, NULL, x + at, dx + at);
                }
        }
    }
}
