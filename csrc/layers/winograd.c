/* Convolution by 3 x 3 weights at stride 1 with 16 products for what takes 36: Winograd's F(2 x 2, 3 x 3) (Lavin & Gray
 * 2016, sec. 4.1). Tiles of 4 x 4 pixels d overlap by two, and give 2 x 2 of y each:
 *
 *   y = A' [sum over c of (G g G') (B' d B)] A        (element by element of the 4 x 4)
 *   B' = 1  0 -1  0     G = 1    0    0     A' = 1  1  1  0
 *        0  1  1  0         1/2  1/2  1/2        0  1 -1 -1
 *        0 -1  1  0         1/2 -1/2  1/2
 *        0  1  0 -1         0    0    1
 *
 * and for the weights, dg = G' [sum over tiles of (B' d B) (A dy A')] G.
 *
 * The sums are 16 matrix products (gemm.h), one for each element of the transformed tiles. So those are taken apart: a
 * plane holds one element of all tiles, as a matrix.
 *
 *         x                          planes
 *   +---+---+---+---              +--- c ---+ +--- c ---+       +--- c ---+
 *   | tile 0    |       B' d B    | tile 0  | | tile 0  |       | tile 0  |
 *   +   +   +---+---   -------->  | tile 1  | | tile 1  |  ...  | tile 1  |
 *   |       |tile 1               | ...     | | ...     |       | ...     |
 *   +   +   +   +                 +---------+ +---------+       +---------+
 *   |       |   |                   (0, 0)      (0, 1)            (3, 3)
 *   +---+---+---+
 *
 *   forward    sums (tiles x filters) = plane of x (tiles x c)  times that of the packed weights (c x filters)
 *   dweight    sums (c x filters)     = plane of x' (c x tiles) times that of dy (tiles x filters)
 *
 * Channels and filters are multiples of WINOGRAD_GRAIN up to WINOGRAD_CHANNELS. */
#include "../kernel.h"
#include "bias_grad.h"
#include "gemm.h"
#include "share.h"

/* Planes are a cache line longer than what they hold: at a distance of a power of two, the 16 elements of a tile would
 * be stored to the same set of the first-level cache. */
enum { PLANES = 16, TILES = 16, SKEW = FASTOPT_LINE / sizeof(real) };
enum { TRANSFORMED = PLANES * (TILES * WINOGRAD_CHANNELS + SKEW) };

static const real zeros[WINOGRAD_CHANNELS];

/* The size of y, its tiles in both directions, and their number in all images. */
struct tiles {
    int64_t out_h, out_w, down, across, count;
};

static struct tiles all_tiles(int64_t images, int64_t out_h, int64_t out_w)
{
    struct tiles t = {.out_h = out_h, .out_w = out_w, .down = (out_h + 1) / 2, .across = (out_w + 1) / 2};
    t.count = images * t.down * t.across;
    return t;
}

/* Pointers to `size` x `size` pixels of an image (h, w, c), from (y, x) on; outside, to zeros. */
INLINE void locate(const real **pixel, int size, const real *image, int64_t h, int64_t w, int64_t c, int64_t y,
                   int64_t x)
{
    for (int i = 0; i < size; ++i)
        for (int j = 0; j < size; ++j) {
            const int inside = y + i >= 0 && y + i < h && x + j >= 0 && x + j < w;
            pixel[i * size + j] = inside ? image + ((y + i) * w + x + j) * c : zeros;
        }
}

/* B' d B of a tile's channels [begin, end), to 16 planes. */
static void transform_input(const real *const *pixel, int64_t begin, int64_t end, real *out, int64_t plane)
{
    for (int64_t c = begin; c < end; c += PER_VECTOR, out += PER_VECTOR) {
        vector t[4][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const vector d0 = vector_load(pixel[j] + c), d1 = vector_load(pixel[4 + j] + c);
            const vector d2 = vector_load(pixel[8 + j] + c), d3 = vector_load(pixel[12 + j] + c);
            if (j == 1 || j == 2) { /* the other columns belong to neighbouring tiles, too */
                prefetch_page(pixel[4 + j] + c);
                prefetch_page(pixel[8 + j] + c);
            }
            t[0][j] = d0 - d2;
            t[1][j] = d1 + d2;
            t[2][j] = d2 - d1;
            t[3][j] = d1 - d3;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            vector_store(out + (4 * i + 0) * plane, t[i][0] - t[i][2]);
            vector_store(out + (4 * i + 1) * plane, t[i][1] + t[i][2]);
            vector_store(out + (4 * i + 2) * plane, t[i][2] - t[i][1]);
            vector_store(out + (4 * i + 3) * plane, t[i][1] - t[i][3]);
        }
    }
}

/* A dy A' of a tile's filters [begin, end), to 16 planes. */
static void transform_output_grad(const real *const *pixel, int64_t begin, int64_t end, real *out, int64_t plane)
{
    for (int64_t k = begin; k < end; k += PER_VECTOR, out += PER_VECTOR) {
        vector t[4][2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const vector d0 = vector_load(pixel[j] + k), d1 = vector_load(pixel[2 + j] + k);
            prefetch_page(pixel[j] + k);
            prefetch_page(pixel[2 + j] + k);
            t[0][j] = d0;
            t[1][j] = d0 + d1;
            t[2][j] = d0 - d1;
            t[3][j] = -d1;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            vector_store(out + (4 * i + 0) * plane, t[i][0]);
            vector_store(out + (4 * i + 1) * plane, t[i][0] + t[i][1]);
            vector_store(out + (4 * i + 2) * plane, t[i][0] - t[i][1]);
            vector_store(out + (4 * i + 3) * plane, -t[i][1]);
        }
    }
}

/* A' m A of some filters, from 16 planes, with bias and ReLU, to the tile's pixels of y (null: outside of it). */
static void transform_output(const real *in, int64_t plane, const real *bias, int relu, real *const *pixel,
                             int64_t filters)
{
    for (int64_t k = 0; k < filters; k += PER_VECTOR) {
        vector t[2][4];
        const vector b = bias ? vector_load(bias + k) : (vector){0};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const vector m0 = vector_load(in + j * plane + k), m1 = vector_load(in + (4 + j) * plane + k);
            const vector m2 = vector_load(in + (8 + j) * plane + k), m3 = vector_load(in + (12 + j) * plane + k);
            t[0][j] = m0 + m1 + m2;
            t[1][j] = m1 - m2 - m3;
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const vector y0 = t[i][0] + t[i][1] + t[i][2] + b, y1 = t[i][1] - t[i][2] - t[i][3] + b;
            if (pixel[2 * i])
                vector_store(pixel[2 * i] + k, relu ? vector_gate(y0, y0) : y0);
            if (pixel[2 * i + 1])
                vector_store(pixel[2 * i + 1] + k, relu ? vector_gate(y1, y1) : y1);
        }
    }
}

/* G g G' of weights (3, 3, c, filters), packed for each plane panel by panel of LANES columns; nothing reads what is
 * behind the last filter. For the gradient of the input, taps are in reverse order, and c and filters change places. */
static void winograd_pack(const void *arguments, struct fastopt_share share)
{
    const struct winograd_pack_args *a = arguments;
    const real *weight = a->weight;
    real *packed = a->packed;
    const int64_t c = a->c, filters = a->filters, reverse = a->reverse;
    const int64_t rows = packed_rows(c, filters, reverse), columns = packed_columns(c, filters, reverse);
    const struct range own = own_range(rows, 1, share);
    for (int64_t row = own.begin; row < own.end; ++row)
        for (int64_t first = 0, n; first < columns; first += n) {
            real transformed[PLANES][LANES];
            n = minimum(columns - first, LANES);
            for (int64_t k = 0; k < n; ++k) {
                double g[9], t[12];
                for (int tap = 0; tap < 9; ++tap)
                    g[tap] = weight[reverse ? ((8 - tap) * c + first + k) * filters + row
                                            : (tap * c + row) * filters + first + k];
                for (int j = 0; j < 3; ++j) {
                    t[j] = g[j];
                    t[3 + j] = 0.5 * (g[j] + g[3 + j] + g[6 + j]);
                    t[6 + j] = 0.5 * (g[j] - g[3 + j] + g[6 + j]);
                    t[9 + j] = g[6 + j];
                }
                for (int i = 0; i < 4; ++i) {
                    const double *u = t + 3 * i;
                    transformed[4 * i + 0][k] = u[0];
                    transformed[4 * i + 1][k] = 0.5 * (u[0] + u[1] + u[2]);
                    transformed[4 * i + 2][k] = 0.5 * (u[0] - u[1] + u[2]);
                    transformed[4 * i + 3][k] = u[2];
                }
            }
            for (int plane = 0; plane < PLANES; ++plane)
                memcpy(packed + ((plane * panels(columns) + first / LANES) * rows + row) * LANES, transformed[plane],
                       n * sizeof(real));
        }
}

/* y = x * weight + bias, bias and ReLU where wanted: TILES tiles at a time through all planes, so that what is
 * transformed stays in the second-level cache, and for each NR filters of them, the sums of the planes in the first. */
static void winograd_forward(const void *arguments, struct fastopt_share share)
{
    const struct winograd_forward_args *a = arguments;
    const int relu = a->relu != 0;
    const real *x = a->x, *packed = a->packed, *bias = a->bias;
    real *y = a->y;
    _Alignas(FASTOPT_LINE) real inputs[TRANSFORMED], sums[PLANES * (TILES * NR + SKEW)];
    const struct tiles all = all_tiles(a->n, windows(a->h, 3, 1, a->pad_h, 1), windows(a->w, 3, 1, a->pad_w, 1));
    const int64_t plane_size = TILES * a->c + SKEW, sum_size = TILES * NR + SKEW;
    const int64_t all_panels = panels(a->filters);
    const struct range own = own_range(all.count, TILES, share);
    struct gemm g = {.blocks = 1, .k = a->c, .a_row = a->c, .a_column = 1, .b_row = LANES, .c_row = NR};

    for (int64_t first = own.begin, n; first < own.end; first += n) {
        real *pixel[TILES][4];
        n = minimum(own.end - first, TILES);
        for (int64_t t = 0; t < n; ++t) {
            const int64_t image = (first + t) / (all.down * all.across), row = (first + t) / all.across % all.down * 2;
            const int64_t column = (first + t) % all.across * 2;
            const real *in[16];
            locate(in, 4, x + image * a->h * a->w * a->c, a->h, a->w, a->c, row - a->pad_h, column - a->pad_w);
            transform_input(in, 0, a->c, inputs + t * a->c, plane_size);
            for (int i = 0; i < 4; ++i) {
                const int64_t oy = row + i / 2, ox = column + i % 2;
                const int inside = oy < all.out_h && ox < all.out_w;
                pixel[t][i] = inside ? y + ((image * all.out_h + oy) * all.out_w + ox) * a->filters : NULL;
                for (int64_t k = 0; inside && k < a->filters; k += LINE_OF_REALS)
                    __builtin_prefetch(pixel[t][i] + k, 1); /* will be there when the products are done */
            }
        }
        for (int64_t j = 0; j < a->filters; j += g.n) {
            g.n = minimum(a->filters - j, NR);
            for (int64_t plane = 0; plane < PLANES; ++plane) {
                const real *b = packed + (plane * all_panels + j / LANES) * a->c * LANES + j % LANES;
                g.block[0] = (struct gemm_block){inputs + plane * plane_size, b};
                g.c = sums + plane * sum_size;
                gemm(&g, n);
            }
            for (int64_t t = 0; t < n; ++t) {
                real *to[4];
                for (int i = 0; i < 4; ++i)
                    to[i] = pixel[t][i] ? pixel[t][i] + j : NULL;
                transform_output(sums + t * g.c_row, sum_size, bias ? bias + j : NULL, relu, to, g.n);
            }
        }
    }
}

/* dweight, and dbias if given, by way of sums (16, c, filters), of which a thread has some channels, or some filters
 * where there are more of those. The products are taken of as many tiles at a time as fit. */
static void winograd_weight_grad(const void *arguments, struct fastopt_share share)
{
    const struct winograd_weight_grad_args *a = arguments;
    const real *x = a->x, *dy = a->dy;
    real *dweight = a->dweight, *sums = a->sums, *dbias = a->dbias;
    _Alignas(FASTOPT_LINE) real inputs[TRANSFORMED], outputs[TRANSFORMED];
    const struct tiles all = all_tiles(a->n, windows(a->h, 3, 1, a->pad_h, 1), windows(a->w, 3, 1, a->pad_w, 1));
    const int by_filters = a->filters > a->c;
    const struct range whole = {0, by_filters ? a->c : a->filters};
    const struct range part = own_range(by_filters ? a->filters : a->c, WINOGRAD_GRAIN, share);
    const struct range channels = by_filters ? whole : part, filters = by_filters ? part : whole;
    const int64_t m = channels.end - channels.begin, n = filters.end - filters.begin;
    if (m == 0 || n == 0)
        return;
    const int64_t together = TILES * WINOGRAD_CHANNELS / (by_filters ? a->filters : a->c);
    const int64_t in_size = together * m + SKEW, out_size = together * n + SKEW; /* of planes */
    const int64_t row_size = a->filters, first_sum = channels.begin * row_size + filters.begin;
    struct gemm g = {.blocks = 1, .a_row = 1, .a_column = m, .b_row = n, .c0_row = row_size, .c_row = row_size};

    if (channels.begin > 0)
        dbias = NULL;
    if (dbias)
        memset(dbias + filters.begin, 0, n * sizeof(real));
    for (int64_t plane = 0; plane < PLANES; ++plane)
        for (int64_t c = channels.begin; c < channels.end; ++c)
            memset(sums + (plane * a->c + c) * row_size + filters.begin, 0, n * sizeof(real));
    for (int64_t first = 0; first < all.count; first += g.k) {
        g.k = minimum(all.count - first, together);
        for (int64_t t = 0; t < g.k; ++t) {
            const int64_t image = (first + t) / (all.down * all.across), row = (first + t) / all.across % all.down * 2;
            const int64_t column = (first + t) % all.across * 2;
            const real *in[16];
            locate(in, 4, x + image * a->h * a->w * a->c, a->h, a->w, a->c, row - a->pad_h, column - a->pad_w);
            transform_input(in, channels.begin, channels.end, inputs + t * m, in_size);
            locate(in, 2, dy + image * all.out_h * all.out_w * row_size, all.out_h, all.out_w, row_size, row, column);
            transform_output_grad(in, filters.begin, filters.end, outputs + t * n, out_size);
        }
        if (dbias) /* element (1, 1) of A dy A' is the sum of a tile's pixels */
            add_rows(outputs + 5 * out_size, g.k, n, n, dbias + filters.begin);
        for (int64_t plane = 0; plane < PLANES; ++plane)
            for (int64_t j = 0; j < n; j += g.n) {
                g.n = minimum(n - j, NR);
                g.block[0] = (struct gemm_block){inputs + plane * in_size, outputs + plane * out_size + j};
                g.c0 = g.c = sums + first_sum + plane * a->c * row_size + j;
                gemm(&g, m);
            }
    }
    const int64_t matrix = a->c * row_size;
    for (int64_t at = 0; at < m * n; at += PER_VECTOR) { /* G' sums G */
        const int64_t i = first_sum + at / n * row_size + at % n;
        vector t[3][4];
        const vector half = (vector){0} + (real)0.5;
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const real *u = sums + i + j * matrix;
            const vector u0 = vector_load(u), u1 = half * vector_load(u + 4 * matrix);
            const vector u2 = half * vector_load(u + 8 * matrix), u3 = vector_load(u + 12 * matrix);
            t[0][j] = u0 + u1 + u2;
            t[1][j] = u1 - u2;
            t[2][j] = u1 + u2 + u3;
        }
#pragma GCC unroll 3
        for (int tap = 0; tap < 3; ++tap) {
            const vector t1 = half * t[tap][1], t2 = half * t[tap][2];
            vector_store(dweight + (3 * tap + 0) * matrix + i, t[tap][0] + t1 + t2);
            vector_store(dweight + (3 * tap + 1) * matrix + i, t1 - t2);
            vector_store(dweight + (3 * tap + 2) * matrix + i, t1 + t2 + t[tap][3]);
        }
    }
}
