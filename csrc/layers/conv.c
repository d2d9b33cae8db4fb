/* Convolution of images (n, h, w, c) without im2col: sums of products along whole kernel rows, which lie side by side
 * in an image as in the weights.
 *
 * Forward, its gradient with respect to the input (a convolution of dy with other weights) and that with respect to the
 * weights are all blocks of
 *
 *   out[j][k] = start[j][k] + sum over runs and i of a[j step_j + i step_i] b[i step_b + k]
 *
 * in which the sum goes in order, by one product and one addition after the other: bits do not depend on how large the
 * blocks are. Forward, j is a pixel, i a place in a kernel row, and k a filter; for the weights, j is a place in a
 * kernel row, and i a pixel. */
#include "lanes.h"
#include "share.h"

/* A block has `BLOCK` rows of j by `WIDE` vectors of k, in accumulators that stay in registers. One vector is best
 * where an instruction multiplies by a number in memory: shared by two vectors, it would have to be spread out first,
 * in an instruction of its own, and the products run at two thirds of the speed (AVX-512 on Zen 4). */
#if defined(__AVX512F__)
enum { BLOCK = 16, WIDE = 1 };
#elif defined(__aarch64__)
enum { BLOCK = 8, WIDE = 2 };
#else
enum { BLOCK = 6, WIDE = 2 };
#endif
enum { SCRATCH = 1 << 14 /* reals; functional.py knows it, too */, MOST_RUNS = 64, ENOUGH = 128 };

struct run {
    const real *a, *b;
};

struct product {
    struct run runs[MOST_RUNS];
    int64_t count, length, step_j, step_i, step_b; /* runs, and the i of each */
    int64_t step_line;                             /* of a, where the j are in several lines */
    const real *start;                             /* null: zeros */
    real *out;
    int64_t step_start, step_out;
    int64_t width; /* of the k, at most WIDE vectors */
    int relu;
};

/* The block of so many lines of `rows` j each, and so many vectors of k; all are constants. */
INLINE void block(const struct product *p, int lines, int rows, int vectors)
{
    vector sum[BLOCK * WIDE];
    const int64_t last = p->width - (vectors - 1) * PER_VECTOR; /* of the last vector */
#pragma GCC unroll 16
    for (int at = 0; at < lines * rows * vectors; ++at)
        sum[at] = (vector){0};
    for (int64_t r = 0; r < p->count; ++r) {
        const real *a = p->runs[r].a, *b = p->runs[r].b;
        for (int64_t i = 0; i < p->length; ++i, a += p->step_i, b += p->step_b) {
            vector wide[WIDE];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v)
                wide[v] = vector_load(b + v * PER_VECTOR);
#pragma GCC unroll 16
            for (int j = 0; j < lines * rows; ++j) {
                const vector one = a[j / rows * p->step_line + j % rows * p->step_j] - (vector){0};
#pragma GCC unroll 2
                for (int v = 0; v < vectors; ++v)
                    sum[j * vectors + v] += one * wide[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < lines * rows; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = v * PER_VECTOR, wide = v < vectors - 1 ? PER_VECTOR : last;
            vector y = sum[j * vectors + v];
            if (p->start)
                y += vector_load_some(p->start + j * p->step_start + at, wide);
            if (p->relu)
                y = vector_gate(y, y);
            vector_store_some(p->out + j * p->step_out + at, y, wide);
        }
}

static void multiply(const struct product *p, int64_t rows)
{
#define ROWS(n)                                                                                                        \
    case n:                                                                                                            \
        if (n <= BLOCK)                                                                                                \
            WIDE > 1 && p->width > PER_VECTOR ? block(p, 1, n, WIDE) : block(p, 1, n, 1);                              \
        break;
    switch (rows) {
        ROWS(1)
        ROWS(2)
        ROWS(3)
        ROWS(4)
        ROWS(5)
        ROWS(6)
        ROWS(7)
        ROWS(8)
        ROWS(9)
        ROWS(10)
        ROWS(11)
        ROWS(12)
        ROWS(13)
        ROWS(14)
        ROWS(15)
        ROWS(16)
    }
#undef ROWS
}

struct convolution {
    int64_t n, h, w, c, size_h, size_w, stride_h, stride_w, pad_h, pad_w, filters;
};

static int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Rows of an image in a place that was all zeros, where they stand between their padding. */
struct padded {
    real *at;
    int64_t begin, end, width; /* of the row itself, and in all */
};

static struct padded padded_rows(const struct convolution *v, int64_t pixels, int64_t rows, real *at)
{
    const int64_t begin = minimum(v->pad_w, pixels), end = minimum(begin + v->w, pixels);
    memset(at, 0, rows * pixels * v->c * sizeof(real));
    return (struct padded){at, begin * v->c, end * v->c, pixels * v->c};
}

/* A padded row, which it first makes of `row` if that is given. */
INLINE const real *padded_row(const struct padded *p, int64_t number, const real *row)
{
    real *to = p->at + number * p->width;
    if (row)
        memcpy(to + p->begin, row, (p->end - p->begin) * sizeof(real));
    return to;
}

/* Adds rows of dy to dbias. */
static void add_rows(const real *dy, int64_t rows, int64_t step, int64_t filters, real *dbias)
{
    for (int64_t k = 0; k < filters; k += PER_VECTOR) {
        vector sum[4] = {0}; /* or each addition would wait for the one before it */
        for (int64_t row = 0; row < rows; row += 4)
#pragma GCC unroll 4
            for (int64_t i = 0; i < 4; ++i)
                if (row + i < rows)
                    sum[i] += vector_load(dy + (row + i) * step + k);
        vector_store(dbias + k, vector_load(dbias + k) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
}

/* Weights (taps, c, filters) as forward wants them: packed (⌈k / LANES⌉, taps c, LANES) for k filters, zeros behind the
 * last. For the gradient of the input, taps are in reverse order, and c and filters change places. */
static void conv_pack(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const real *weight = array[0];
    real *packed = array[1];
    const int64_t taps = size[0], c = size[1], filters = size[2], reverse = size[3];
    const int64_t rows = taps * (reverse ? filters : c), wide = reverse ? c : filters;
    const struct range own = own_range((wide + LANES - 1) / LANES, 1, share);
    (void)scalar;
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
static void conv_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const struct convolution *v = (const void *)size;
    const int64_t relu = size[11];
    const real *x = array[0], *packed = array[1], *bias = array[2];
    real *y = array[3], scratch[SCRATCH];
    const int64_t out_h = (v->h + 2 * v->pad_h - v->size_h) / v->stride_h + 1;
    const int64_t out_w = (v->w + 2 * v->pad_w - v->size_w) / v->stride_w + 1;
    const int64_t run = v->size_w * v->c, places = v->size_h * run;
    const struct range rows = own_range(v->n * out_h, 1, share);
    const struct padded padded =
        padded_rows(v, (out_w - 1) * v->stride_w + v->size_w, v->pad_w ? v->size_h : 0, scratch);
    int64_t next = 0; /* row of the image to be padded: each stays until size_h later */
    struct product p;
    p.length = run;
    p.step_j = v->stride_w * v->c;
    p.step_i = 1;
    p.step_b = LANES;
    p.step_start = 0;
    p.step_out = v->filters;
    p.relu = relu != 0;
    (void)scalar;

    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t top = row % out_h * v->stride_h - v->pad_h;
        const real *image = x + row / out_h * v->h * v->w * v->c, *in[MOST_RUNS], *weights[MOST_RUNS];
        if (row == rows.begin || row % out_h == 0)
            next = 0;
        p.count = 0;
        for (int64_t ky = 0, y = top; ky < v->size_h; ++ky, ++y)
            if (y >= 0 && y < v->h) {
                in[p.count] = image + y * v->w * v->c;
                if (v->pad_w)
                    in[p.count] = padded_row(&padded, y % v->size_h, y >= next ? in[p.count] : NULL);
                next = y >= next ? y + 1 : next;
                weights[p.count++] = packed + ky * run * LANES;
            }
        for (int64_t ox = 0; ox < out_w; ox += BLOCK)
            for (int64_t k = 0; k < v->filters; k += p.width) {
                for (int64_t r = 0; r < p.count; ++r) {
                    p.runs[r].a = in[r] + ox * p.step_j;
                    p.runs[r].b = weights[r] + k / LANES * places * LANES + k % LANES;
                }
                p.width = minimum(v->filters - k, WIDE * PER_VECTOR);
                p.start = bias ? bias + k : NULL;
                p.out = y + (row * out_w + ox) * v->filters + k;
                multiply(&p, minimum(out_w - ox, BLOCK));
            }
    }
}

/* dweight = sum over pixels of x at the place, times dy, and dbias if given; filters are a multiple of 16, so whole
 * vectors. Rows of pixels go in blocks, which stay in the first-level cache, and whose sums are added to those of
 * earlier blocks. */
static void conv_weight_grad(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const struct convolution *v = (const void *)size;
    const real *x = array[0], *dy = array[1];
    real *dweight = array[2], *dbias = array[3], scratch[SCRATCH];
    const int64_t out_h = (v->h + 2 * v->pad_h - v->size_h) / v->stride_h + 1;
    const int64_t out_w = (v->w + 2 * v->pad_w - v->size_w) / v->stride_w + 1;
    const int64_t run = v->size_w * v->c, pixels = (out_w - 1) * v->stride_w + v->size_w, width = pixels * v->c;
    /* So few places that a row of the kernel alone would wait for its sums: all go together. */
    const int few = v->size_h == 3 && run == 3;
    const int64_t blocks = few ? 1 : (run + BLOCK - 1) / BLOCK;
    const struct range whole = {0, few ? 1 : v->size_h * blocks};
    const struct range own = few ? whole : own_range(whole.end, 1, share);
    const struct range filters = few ? own_range(v->filters, 16, share) : (struct range){0, v->filters};
    int64_t together = minimum((ENOUGH + out_w - 1) / out_w, MOST_RUNS);
    while (together > 1 && ((together - 1) * v->stride_h + v->size_h) * width > SCRATCH)
        --together;
    struct product p;
    p.length = out_w;
    p.step_j = 1;
    p.step_line = width;
    p.step_i = v->stride_w * v->c;
    p.step_b = p.step_start = p.step_out = v->filters;
    p.relu = 0;
    (void)scalar;
    if (share.index > 0 && !few)
        dbias = NULL;
    if ((own.begin == own.end && !dbias) || filters.begin == filters.end)
        return;
    const struct padded padded = padded_rows(v, pixels, (together - 1) * v->stride_h + v->size_h, scratch);

    for (int64_t unit = own.begin; unit < own.end; ++unit) {
        const int64_t at = unit / blocks * run + unit % blocks * BLOCK;
        const int64_t n = few ? 9 : minimum(run - unit % blocks * BLOCK, BLOCK);
        for (int64_t j = at; j < at + n; ++j)
            memset(dweight + j * v->filters + filters.begin, 0, (filters.end - filters.begin) * sizeof(real));
    }
    if (dbias)
        memset(dbias + filters.begin, 0, (filters.end - filters.begin) * sizeof(real));
    for (int64_t image = 0; image < v->n; ++image)
        for (int64_t first = 0, rows; first < out_h; first += rows) {
            rows = minimum(out_h - first, together);
            const int64_t top = first * v->stride_h - v->pad_h, high = (rows - 1) * v->stride_h + v->size_h;
            for (int64_t row = 0; row < high; ++row)
                if (top + row >= 0 && top + row < v->h)
                    padded_row(&padded, row, x + (image * v->h + top + row) * v->w * v->c);
                else if (few)
                    memset(scratch + row * width, 0, width * sizeof(real));
            const real *d = dy + (image * out_h + first) * out_w * v->filters;
            if (dbias)
                add_rows(d + filters.begin, rows * out_w, v->filters, filters.end - filters.begin,
                         dbias + filters.begin);
            for (int64_t k = filters.begin; k < filters.end; k += p.width) {
                p.width = minimum(filters.end - k, few ? PER_VECTOR : WIDE * PER_VECTOR);
                for (int64_t unit = own.begin; unit < own.end; ++unit) {
                    const int64_t ky = unit / blocks, i = unit % blocks * BLOCK;
                    p.count = 0;
                    for (int64_t row = 0; row < rows; ++row) {
                        const int64_t in = row * v->stride_h + ky;
                        if (few || (top + in >= 0 && top + in < v->h)) {
                            p.runs[p.count].a = scratch + in * width + i;
                            p.runs[p.count++].b = d + row * out_w * p.step_b + k;
                        }
                    }
                    p.start = p.out = dweight + (ky * run + i) * v->filters + k;
                    if (few)
                        block(&p, 3, 3, 1);
                    else
                        multiply(&p, minimum(run - i, BLOCK));
                }
            }
        }
}
