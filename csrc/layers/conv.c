/* Convolution of images (n, h, w, c) without im2col: sums of products along whole kernel rows, which lie side by side
 * in an image as in the weights.
 *
 * Forward, its gradient with respect to the input (a convolution of dy with other weights) and that with respect to the
 * weights are all blocks of products (product.h). Forward, j is a pixel, i a place in a kernel row, and k a filter; for
 * the weights, j is a place in a kernel row, and i a pixel. */
#include "../kernel.h"
#include "bias_grad.h"
#include "product.h"
#include "share.h"

enum { ENOUGH = 128, PLACES_TOGETHER = 12 /* of a kernel row: a unit of the work on the weights */ };

/* Rows of an image in a place that was all zeros, where they stand between their padding. */
struct padded {
    real *at;
    int64_t begin, end, width; /* of the row itself, and in all */
};

static struct padded padded_rows(int64_t w, int64_t c, int64_t pad_w, int64_t pixels, int64_t rows, real *at)
{
    const int64_t begin = minimum(pad_w, pixels), end = minimum(begin + w, pixels);
    memset(at, 0, rows * pixels * c * sizeof(real));
    return (struct padded){at, begin * c, end * c, pixels * c};
}

/* A padded row, which it first makes of `row` if that is given. */
INLINE const real *padded_row(const struct padded *p, int64_t number, const real *row)
{
    real *to = p->at + number * p->width;
    if (row)
        memcpy(to + p->begin, row, (p->end - p->begin) * sizeof(real));
    return to;
}

/* Weights (taps, c, filters) as forward wants them: packed (⌈k / LANES⌉, taps c, LANES) for k filters, zeros behind the
 * last. For the gradient of the input, taps are in reverse order, and c and filters change places. */
static void conv_pack(const void *arguments, struct fastopt_share share)
{
    const struct conv_pack_args *a = arguments;
    const real *weight = a->weight;
    real *packed = a->packed;
    const int64_t taps = a->taps, c = a->c, filters = a->filters, reverse = a->reverse;
    const int64_t rows = taps * packed_rows(c, filters, reverse), wide = packed_columns(c, filters, reverse);
    const struct range own = own_range(panels(wide), 1, share);
    for (int64_t part = own.begin; part < own.end; ++part)
        for (int64_t row = 0; row < rows; ++row) {
            real *out = packed + (part * rows + row) * LANES;
            const int64_t first = part * LANES, n = minimum(wide - first, LANES);
            if (reverse) {
                const real *in = weight + (taps - 1 - row / filters) * c * filters + row % filters;
                for (int64_t k = 0; k < n; ++k)
                    out[k] = in[(first + k) * filters];
            } else {
                memcpy(out, weight + row * filters + first, n * sizeof(real));
            }
            memset(out + n, 0, (LANES - n) * sizeof(real));
        }
}

/* y = x * weight + bias, bias and ReLU where wanted. */
static void conv_forward(const void *arguments, struct fastopt_share share)
{
    const struct conv_forward_args *a = arguments;
    const int64_t relu = a->relu;
    const real *x = a->x, *packed = a->packed, *bias = a->bias;
    real *y = a->y, scratch[SCRATCH];
    const int64_t out_h = windows(a->h, a->size_h, a->stride_h, a->pad_h, 1);
    const int64_t out_w = windows(a->w, a->size_w, a->stride_w, a->pad_w, 1);
    const int64_t run = a->size_w * a->c, places = a->size_h * run;
    const struct range rows = own_range(a->n * out_h, 1, share);
    const struct padded padded =
        padded_rows(a->w, a->c, a->pad_w, (out_w - 1) * a->stride_w + a->size_w, a->pad_w ? a->size_h : 0, scratch);
    int64_t next = 0; /* row of the image to be padded: each stays until size_h later */
    const int64_t most = widest();
    struct product p;
    p.length = run;
    p.step_j = a->stride_w * a->c;
    p.step_i = 1;
    p.step_b = LANES;
    p.step_start = 0;
    p.step_out = a->filters;
    p.relu = relu != 0;
    p.cold = 0;

    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t top = row % out_h * a->stride_h - a->pad_h;
        const real *image = x + row / out_h * a->h * a->w * a->c, *in[MOST_RUNS], *weights[MOST_RUNS];
        if (row == rows.begin || row % out_h == 0)
            next = 0;
        p.count = 0;
        for (int64_t ky = 0, y = top; ky < a->size_h; ++ky, ++y)
            if (y >= 0 && y < a->h) {
                in[p.count] = image + y * a->w * a->c;
                if (a->pad_w)
                    in[p.count] = padded_row(&padded, y % a->size_h, y >= next ? in[p.count] : NULL);
                next = y >= next ? y + 1 : next;
                weights[p.count++] = packed + ky * run * LANES;
            }
        for (int64_t k = 0; k < a->filters; k += p.width) {
            for (int64_t r = 0; r < p.count; ++r)
                p.runs[r] = (struct run){in[r], weights[r] + k / LANES * places * LANES + k % LANES};
            p.width = minimum(a->filters - k, most);
            p.start = bias ? bias + k : NULL;
            p.out = y + row * out_w * a->filters + k;
            multiply(&p, out_w);
        }
    }
}

/* dweight = sum over pixels of x at the place, times dy, and dbias if given; filters are a multiple of 16, so whole
 * vectors. Rows of pixels go in blocks, which stay in the first-level cache, and whose sums are added to those of
 * earlier blocks. */
static void conv_weight_grad(const void *arguments, struct fastopt_share share)
{
    const struct conv_weight_grad_args *a = arguments;
    const real *x = a->x, *dy = a->dy;
    real *dweight = a->dweight, *dbias = a->dbias, scratch[SCRATCH];
    const int64_t out_h = windows(a->h, a->size_h, a->stride_h, a->pad_h, 1);
    const int64_t out_w = windows(a->w, a->size_w, a->stride_w, a->pad_w, 1);
    const int64_t run = a->size_w * a->c, pixels = (out_w - 1) * a->stride_w + a->size_w, width = pixels * a->c;
    /* So few places that a row of the kernel alone would wait for its sums: all go together. */
    const int few = a->size_h == 3 && run == 3;
    const int64_t blocks = few ? 1 : (run + PLACES_TOGETHER - 1) / PLACES_TOGETHER;
    const struct range whole = {0, few ? 1 : a->size_h * blocks};
    const struct range own = few ? whole : own_range(whole.end, 1, share);
    const struct range filters = few ? own_range(a->filters, 16, share) : (struct range){0, a->filters};
    int64_t together = minimum((ENOUGH + out_w - 1) / out_w, MOST_RUNS);
    while (together > 1 && ((together - 1) * a->stride_h + a->size_h) * width > SCRATCH)
        --together;
    const int64_t most = few ? PER_VECTOR : widest();
    struct product p;
    p.length = out_w;
    p.step_j = 1;
    p.step_line = width;
    p.step_i = a->stride_w * a->c;
    p.step_b = p.step_start = p.step_out = a->filters;
    p.relu = p.cold = 0;
    if (share.index > 0 && !few)
        dbias = NULL;
    if ((own.begin == own.end && !dbias) || filters.begin == filters.end)
        return;
    const struct padded padded =
        padded_rows(a->w, a->c, a->pad_w, pixels, (together - 1) * a->stride_h + a->size_h, scratch);

    for (int64_t unit = own.begin; unit < own.end; ++unit) {
        const int64_t at = unit / blocks * run + unit % blocks * PLACES_TOGETHER;
        const int64_t n = few ? 9 : minimum(run - unit % blocks * PLACES_TOGETHER, PLACES_TOGETHER);
        for (int64_t j = at; j < at + n; ++j)
            memset(dweight + j * a->filters + filters.begin, 0, (filters.end - filters.begin) * sizeof(real));
    }
    if (dbias)
        memset(dbias + filters.begin, 0, (filters.end - filters.begin) * sizeof(real));
    for (int64_t image = 0; image < a->n; ++image)
        for (int64_t first = 0, rows; first < out_h; first += rows) {
            rows = minimum(out_h - first, together);
            const int64_t top = first * a->stride_h - a->pad_h, high = (rows - 1) * a->stride_h + a->size_h;
            for (int64_t row = 0; row < high; ++row)
                if (top + row >= 0 && top + row < a->h)
                    padded_row(&padded, row, x + (image * a->h + top + row) * a->w * a->c);
                else if (few)
                    memset(scratch + row * width, 0, width * sizeof(real));
            const real *d = dy + (image * out_h + first) * out_w * a->filters;
            if (dbias)
                add_rows(d + filters.begin, rows * out_w, a->filters, filters.end - filters.begin,
                         dbias + filters.begin);
            for (int64_t k = filters.begin; k < filters.end; k += p.width) {
                p.width = minimum(filters.end - k, most);
                for (int64_t unit = own.begin; unit < own.end; ++unit) {
                    const int64_t ky = unit / blocks, i = unit % blocks * PLACES_TOGETHER;
                    p.count = 0;
                    for (int64_t row = 0; row < rows; ++row) {
                        const int64_t in = row * a->stride_h + ky;
                        if (few || (top + in >= 0 && top + in < a->h)) {
                            p.runs[p.count].a = scratch + in * width + i;
                            p.runs[p.count++].b = d + row * out_w * p.step_b + k;
                        }
                    }
                    p.start = p.out = dweight + (ky * run + i) * a->filters + k;
                    if (few)
                        block(&p, 3, 3, 1, 1);
                    else
                        multiply(&p, minimum(run - i, PLACES_TOGETHER));
                }
            }
        }
}
