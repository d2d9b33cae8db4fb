/* Depthwise convolution of images (n, h, w, c), padded with zeros, with a weight (size_h, size_w, c): each channel by
 * itself. Channels are neighbours in memory, so a pixel is computed for LANES of them at once. */
#include "../kernel.h"
#include "fma.h"
#include "lanes.h"
#include "patches.h"
#include "share.h"

/* Which rows (or columns) of a window that begins at `start` are inside the image. */
static struct range inside(int64_t start, int64_t size, int64_t dilation, int64_t length)
{
    const int64_t begin = start < 0 ? (-start + dilation - 1) / dilation : 0;
    const int64_t end = start < length ? (length - start + dilation - 1) / dilation : 0;
    return (struct range){minimum(begin, size), minimum(end, size)};
}

/* sum += a b, element by element. */
INLINE void add_products(real *sum, const real *a, const real *b, int64_t n)
{
    int64_t at = 0;
    for (; at + PER_VECTOR <= n; at += PER_VECTOR)
        vector_store(sum + at, vector_fma(vector_load(a + at), vector_load(b + at), vector_load(sum + at)));
    const int64_t rest = n - at;
    if (rest) {
        const vector x = vector_load_some(a + at, rest), y = vector_load_some(b + at, rest);
        vector_store_some(sum + at, vector_fma(x, y, vector_load_some(sum + at, rest)), rest);
    }
}

/* One output pixel: the sum of window elements times weights, for LANES channels, or for the last few. */
INLINE void depthwise_pixel(const struct patches *p, const real *image, const real *weight, struct range rows,
                            struct range columns, int64_t top, int64_t left, real *y, int64_t channels)
{
    lanes sum = lanes_all(0);
    real few[LANES] = {0};
    for (int64_t ky = rows.begin; ky < rows.end; ++ky)
        for (int64_t kx = columns.begin; kx < columns.end; ++kx) {
            const real *x = image + ((top + ky * p->dilation_h) * p->w + left + kx * p->dilation_w) * p->c;
            const real *factor = weight + (ky * p->size_w + kx) * p->c;
            if (channels == LANES)
                sum = lanes_fma(lanes_load(x), lanes_load(factor), sum);
            else
                add_products(few, x, factor, channels);
        }
    if (channels == LANES)
        lanes_store(y, sum);
    else
        memcpy(y, few, channels * sizeof(real));
}

static void depthwise_forward(const void *arguments, struct fastopt_share share)
{
    const struct depthwise_forward_args *a = arguments;
    const struct patches patches = PATCHES(a), *p = &patches;
    const real *weight = a->weight;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, p->pad_h, p->dilation_h);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, p->pad_w, p->dilation_w);
    const struct range images = own_range(p->n, 1, share);
    real *y = a->y + images.begin * out_h * out_w * p->c;
    for (int64_t n = images.begin; n < images.end; ++n) {
        const real *image = a->x + n * p->h * p->w * p->c;
        for (int64_t oy = 0; oy < out_h; ++oy) {
            const int64_t top = oy * p->stride_h - p->pad_h;
            const struct range rows = inside(top, p->size_h, p->dilation_h, p->h);
            for (int64_t ox = 0; ox < out_w; ++ox, y += p->c) {
                const int64_t left = ox * p->stride_w - p->pad_w;
                const struct range columns = inside(left, p->size_w, p->dilation_w, p->w);
                int64_t c = 0;
                for (; c + LANES <= p->c; c += LANES)
                    depthwise_pixel(p, image + c, weight + c, rows, columns, top, left, y + c, LANES);
                if (c < p->c)
                    depthwise_pixel(p, image + c, weight + c, rows, columns, top, left, y + c, p->c - c);
            }
        }
    }
}

/* dx: each dy is added to the elements of its window, times their weights. */
static void depthwise_backward(const void *arguments, struct fastopt_share share)
{
    const struct depthwise_backward_args *a = arguments;
    const struct patches patches = PATCHES(a), *p = &patches;
    const real *weight = a->weight;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, p->pad_h, p->dilation_h);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, p->pad_w, p->dilation_w);
    const int64_t pixels = p->h * p->w * p->c;
    const struct range images = own_range(p->n, 1, share);
    const real *dy = a->dy + images.begin * out_h * out_w * p->c;
    for (int64_t n = images.begin; n < images.end; ++n) {
        real *image = a->dx + n * pixels;
        memset(image, 0, pixels * sizeof(real));
        for (int64_t oy = 0; oy < out_h; ++oy) {
            const int64_t top = oy * p->stride_h - p->pad_h;
            const struct range rows = inside(top, p->size_h, p->dilation_h, p->h);
            for (int64_t ox = 0; ox < out_w; ++ox, dy += p->c) {
                const int64_t left = ox * p->stride_w - p->pad_w;
                const struct range columns = inside(left, p->size_w, p->dilation_w, p->w);
                for (int64_t ky = rows.begin; ky < rows.end; ++ky)
                    for (int64_t kx = columns.begin; kx < columns.end; ++kx) {
                        real *dx = image + ((top + ky * p->dilation_h) * p->w + left + kx * p->dilation_w) * p->c;
                        add_products(dx, dy, weight + (ky * p->size_w + kx) * p->c, p->c);
                    }
            }
        }
    }
}

/* Which outputs along one axis have element k of their window inside the image. */
static struct range outputs(int64_t k, int64_t count, int64_t stride, int64_t pad, int64_t dilation, int64_t length)
{
    const int64_t start = k * dilation - pad; /* of the first output's element */
    const int64_t begin = start < 0 ? (-start + stride - 1) / stride : 0;
    const int64_t end = start < length ? (length - start + stride - 1) / stride : 0;
    return (struct range){minimum(begin, count), minimum(end, count)};
}

/* dweight of one element of the window, for LANES channels, or for the last few: sums over at least 128 products, in
 * whole rows of outputs, in the real type, and sums of these in double. */
INLINE void depthwise_weight(const struct patches *p, const real *x, const real *dy, int64_t ky, int64_t kx,
                             int64_t out_h, int64_t out_w, real *dweight, int64_t channels)
{
    const struct range rows = outputs(ky, out_h, p->stride_h, p->pad_h, p->dilation_h, p->h);
    const struct range columns = outputs(kx, out_w, p->stride_w, p->pad_w, p->dilation_w, p->w);
    double total[LANES] = {0};
    int64_t added = 0;
    lanes sum = lanes_all(0);
    real few[LANES] = {0};
    for (int64_t n = 0; n < p->n; ++n)
        for (int64_t oy = rows.begin; oy < rows.end; ++oy) {
            const int64_t row = n * p->h + oy * p->stride_h - p->pad_h + ky * p->dilation_h;
            const int64_t left = kx * p->dilation_w - p->pad_w;
            for (int64_t ox = columns.begin; ox < columns.end; ++ox) {
                const real *a = x + (row * p->w + left + ox * p->stride_w) * p->c;
                const real *b = dy + ((n * out_h + oy) * out_w + ox) * p->c;
                if (channels == LANES)
                    sum = lanes_fma(lanes_load(a), lanes_load(b), sum);
                else
                    add_products(few, a, b, channels);
            }
            added += columns.end - columns.begin;
            if (added >= 128 || (n == p->n - 1 && oy == rows.end - 1)) {
                if (channels == LANES)
                    lanes_store(few, sum);
                for (int64_t j = 0; j < LANES; ++j) {
                    total[j] += few[j];
                    few[j] = 0;
                }
                sum = lanes_all(0);
                added = 0;
            }
        }
    for (int64_t j = 0; j < channels; ++j)
        dweight[j] = total[j];
}

static void depthwise_weight_backward(const void *arguments, struct fastopt_share share)
{
    const struct depthwise_weight_backward_args *a = arguments;
    const struct patches patches = PATCHES(a), *p = &patches;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, p->pad_h, p->dilation_h);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, p->pad_w, p->dilation_w);
    const struct range own = own_range(p->c, LANES, share);
    for (int64_t c = own.begin; c < own.end; c += LANES) {
        const real *dy = a->dy + c, *x = a->x + c;
        real *dweight = a->dweight + c;
        for (int64_t ky = 0; ky < p->size_h; ++ky)
            for (int64_t kx = 0; kx < p->size_w; ++kx, dweight += p->c)
                if (own.end - c >= LANES)
                    depthwise_weight(p, x, dy, ky, kx, out_h, out_w, dweight, LANES);
                else
                    depthwise_weight(p, x, dy, ky, kx, out_h, out_w, dweight, own.end - c);
    }
}
