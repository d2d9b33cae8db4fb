/* Convolution of images (n, h, w, c) without im2col: what a kernel row covers lies side by side in the image as in the
 * weights, so that a convolution is a matrix product (gemm.h) with one block along k for each row of the kernel.
 *
 *                 m           k                            n         A
 *   forward       pixels      elements of a kernel row     filters   rows of x: neighbouring m overlap
 *   dweight       elements    pixels                       filters   the same, transposed
 *
 * The gradient of the input is the forward convolution of dy with weights that conv_pack has turned round. Rows of an
 * image that need padding are copied between zeros first. */
#include "../kernel.h"
#include "bias_grad.h"
#include "gemm.h"
#include "share.h"

enum {
    PIXELS = 128, /* in the rows that are multiplied at a time for dweight: they and their dy stay in the first-level
                     cache */
    ELEMENTS = 12 /* of a kernel row: m of dweight, and its unit of work */
};

/* Rows of an image in memory that was all zeros, where they stand between their padding. */
struct padded {
    real *at;
    int64_t begin, end, width; /* of the row itself, and in all */
};

/* Rows of w pixels of c channels, behind pad_w pixels of zeros, cut off or filled up to `pixels`. */
static struct padded padded_rows(int64_t w, int64_t c, int64_t pad_w, int64_t pixels, int64_t rows, real *at)
{
    const int64_t begin = minimum(pad_w, pixels), end = minimum(begin + w, pixels);
    memset(at, 0, rows * pixels * c * sizeof(real));
    return (struct padded){at, begin * c, end * c, pixels * c};
}

/* The padded row of that number, after copying `row` into it if given. */
INLINE const real *padded_row(const struct padded *p, int64_t number, const real *row)
{
    real *to = p->at + number * p->width;
    if (row)
        memcpy(to + p->begin, row, (p->end - p->begin) * sizeof(real));
    return to;
}

/* Packs weights (taps, c, filters), a matrix of taps c rows, for forward: panel by panel of LANES columns, zeros behind
 * the last filter. For the gradient of the input, taps are in reverse order, and c and filters change places. */
static void conv_pack(const void *arguments, struct fastopt_share share)
{
    const struct conv_pack_args *a = arguments;
    const real *weight = a->weight;
    real *packed = a->packed;
    const int64_t taps = a->taps, c = a->c, filters = a->filters, reverse = a->reverse;
    const int64_t rows = taps * packed_rows(c, filters, reverse), columns = packed_columns(c, filters, reverse);
    const struct range own = own_range(panels(columns), 1, share);
    for (int64_t panel = own.begin; panel < own.end; ++panel)
        for (int64_t row = 0; row < rows; ++row) {
            real *out = packed + (panel * rows + row) * LANES;
            const int64_t first = panel * LANES, n = minimum(columns - first, LANES);
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
    const int64_t kernel_row = a->size_w * a->c, kernel = a->size_h * kernel_row; /* elements */
    const struct range rows = own_range(a->n * out_h, 1, share);
    const struct padded padded =
        padded_rows(a->w, a->c, a->pad_w, (out_w - 1) * a->stride_w + a->size_w, a->pad_w ? a->size_h : 0, scratch);
    int64_t next = 0; /* row of the image to be copied: each stays in its place until the row size_h after it comes */
    struct gemm g;
    g.k = kernel_row;
    g.a_row = a->stride_w * a->c;
    g.a_column = 1;
    g.b_row = LANES;
    g.c0_row = 0;
    g.c_row = a->filters;
    g.relu = relu != 0;
    g.prefetch = 0;

    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t top = row % out_h * a->stride_h - a->pad_h;
        const real *image = x + row / out_h * a->h * a->w * a->c, *in[MAX_KERNEL_ROWS], *weights[MAX_KERNEL_ROWS];
        if (row == rows.begin || row % out_h == 0)
            next = 0;
        g.blocks = 0;
        for (int64_t ky = 0, line = top; ky < a->size_h; ++ky, ++line)
            if (line >= 0 && line < a->h) {
                in[g.blocks] = image + line * a->w * a->c;
                if (a->pad_w)
                    in[g.blocks] = padded_row(&padded, line % a->size_h, line >= next ? in[g.blocks] : NULL);
                next = line >= next ? line + 1 : next;
                weights[g.blocks++] = packed + ky * kernel_row * LANES;
            }
        for (int64_t j = 0; j < a->filters; j += g.n) {
            for (int64_t block = 0; block < g.blocks; ++block)
                g.block[block] =
                    (struct gemm_block){in[block], weights[block] + j / LANES * kernel * LANES + j % LANES};
            g.n = minimum(a->filters - j, NR);
            g.c0 = bias ? bias + j : NULL;
            g.c = y + row * out_w * a->filters + j;
            gemm(&g, out_w);
        }
    }
}

/* dweight = x' dy for each element of the kernel, and dbias if given; filters are a multiple of 16, so whole vectors.
 * Some rows of pixels at a time are the blocks along k: they stay in the first-level cache, and their sums are added to
 * dweight. Threads share out the elements of the kernel, or, where these are nine in all, the filters. */
static void conv_weight_grad(const void *arguments, struct fastopt_share share)
{
    const struct conv_weight_grad_args *a = arguments;
    const real *x = a->x, *dy = a->dy;
    real *dweight = a->dweight, *dbias = a->dbias, scratch[SCRATCH];
    const int64_t out_h = windows(a->h, a->size_h, a->stride_h, a->pad_h, 1);
    const int64_t out_w = windows(a->w, a->size_w, a->stride_w, a->pad_w, 1);
    const int64_t kernel_row = a->size_w * a->c, pixels = (out_w - 1) * a->stride_w + a->size_w, width = pixels * a->c;
    /* Three kernel rows of three elements are one tile, on three lines of x: each alone would be a tile of three rows,
     * too few to hide the latency of additions. */
    const int nine = a->size_h == 3 && kernel_row == 3;
    const int64_t parts = nine ? 1 : (kernel_row + ELEMENTS - 1) / ELEMENTS; /* of a kernel row */
    const struct range whole = {0, nine ? 1 : a->size_h * parts};
    const struct range own = nine ? whole : own_range(whole.end, 1, share);
    const struct range filters = nine ? own_range(a->filters, 16, share) : (struct range){0, a->filters};
    int64_t together = minimum((PIXELS + out_w - 1) / out_w, MAX_KERNEL_ROWS);
    while (together > 1 && ((together - 1) * a->stride_h + a->size_h) * width > SCRATCH)
        --together;
    const int64_t most = nine ? PER_VECTOR : NR;
    struct gemm g;
    g.k = out_w;
    g.a_row = 1;
    g.a_line = width;
    g.a_column = a->stride_w * a->c;
    g.b_row = g.c0_row = g.c_row = a->filters;
    g.relu = g.prefetch = 0;
    if (share.index > 0 && !nine)
        dbias = NULL;
    if ((own.begin == own.end && !dbias) || filters.begin == filters.end)
        return;
    const struct padded padded =
        padded_rows(a->w, a->c, a->pad_w, pixels, (together - 1) * a->stride_h + a->size_h, scratch);

    for (int64_t part = own.begin; part < own.end; ++part) {
        const int64_t at = part / parts * kernel_row + part % parts * ELEMENTS;
        const int64_t m = nine ? 9 : minimum(kernel_row - part % parts * ELEMENTS, ELEMENTS);
        for (int64_t i = at; i < at + m; ++i)
            memset(dweight + i * a->filters + filters.begin, 0, (filters.end - filters.begin) * sizeof(real));
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
                else if (nine)
                    memset(scratch + row * width, 0, width * sizeof(real));
            const real *d = dy + (image * out_h + first) * out_w * a->filters;
            if (dbias)
                add_rows(d + filters.begin, rows * out_w, a->filters, filters.end - filters.begin,
                         dbias + filters.begin);
            for (int64_t j = filters.begin; j < filters.end; j += g.n) {
                g.n = minimum(filters.end - j, most);
                for (int64_t part = own.begin; part < own.end; ++part) {
                    const int64_t ky = part / parts, i = part % parts * ELEMENTS;
                    g.blocks = 0;
                    for (int64_t row = 0; row < rows; ++row) {
                        const int64_t in = row * a->stride_h + ky;
                        if (nine || (top + in >= 0 && top + in < a->h)) {
                            g.block[g.blocks].a = scratch + in * width + i;
                            g.block[g.blocks++].b = d + row * out_w * g.b_row + j;
                        }
                    }
                    g.c0 = g.c = dweight + (ky * kernel_row + i) * a->filters + j;
                    if (nine)
                        micro_kernel(&g, 3, 3, 1, 1);
                    else
                        gemm(&g, minimum(kernel_row - i, ELEMENTS));
                }
            }
        }
}
