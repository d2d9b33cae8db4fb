/* Group normalisation (Wu & He 2018) of x (rows, pixels, channels), whose channels are divided into channel groups: per
 * row and group, over the pixels and the group's channels. Layer norm (Ba et al. 2016) has one pixel and one group,
 * instance norm (Ulyanov et al. 2016) one channel in each group.
 *
 *   forward    y = n scale + shift,  n = (x - mean) / sqrt(var + eps)
 *   backward   dx = (g - mean(g) - n mean(g n)) / sqrt(var + eps),  g = dy scale
 *              dshift = sum(dy),  dscale = sum(dy n), over rows and pixels
 *
 * Sums are of c = x - high, where high is the mean rounded to the real type, or an estimate of it, as in batch_norm.c.
 *
 * Threads share out blocks of rows. Each block adds up its part of dscale and dshift, and the caller adds up the parts,
 * so bits do not depend on the threads.
 */
#include "../kernel.h"
#include "lanes.h"
#include "share.h"

enum {
    CHUNK = 256,   /* channels at a time */
    IN_REAL = 128, /* additions to a sum in the real type before that is added to one in double */
};

/* Some whole channel groups of one row, with the learnt values of their channels (or null). */
struct groups {
    const real *dy, *x; /* dy is null in forward */
    real *y;
    const real *scale, *shift;
    real *dscale, *dshift;
    int64_t pixels, stride, count /* of groups */, width /* of a group */;
    double weight; /* of an element in a mean */
};

/* Of each group: high, 1 / sqrt(var + eps), off = mean - high, and the sums of u and of u c, where u is c in forward,
 * and g in backward. */
struct moments {
    real high[CHUNK];
    double inv_std[CHUNK], off[CHUNK], sum[CHUNK], dot[CHUNK];
};

/* The sums of u and u c over n neighbouring elements with one high. */
INLINE void sums_along(const real *dy, const real *scale, const real *x, int64_t n, real high, double *sum, double *dot)
{
    const lanes highs = lanes_all(high);
    for (int64_t i = 0; i < n;) {
        const int64_t end = minimum(n, i + IN_REAL * LANES);
        lanes u_sum = lanes_all(0), dot_sum = u_sum;
        for (; i < end; i += LANES) {
            lanes c, u;
            if (i + LANES <= end) {
                c = lanes_subtract(lanes_load(x + i), highs);
                u = dy ? lanes_load(dy + i) : c;
                if (dy && scale)
                    u = lanes_multiply(u, lanes_load(scale + i));
            } else {
                real some_c[LANES] = {0}, some_u[LANES] = {0};
                for (int64_t l = 0; l < end - i; ++l) {
                    some_c[l] = x[i + l] - high;
                    some_u[l] = !dy ? some_c[l] : scale ? dy[i + l] * scale[i + l] : dy[i + l];
                }
                c = lanes_load(some_c);
                u = lanes_load(some_u);
            }
            u_sum = lanes_add(u_sum, u);
            dot_sum = lanes_add(dot_sum, lanes_multiply(u, c));
        }
        *sum += lanes_sum(u_sum);
        *dot += lanes_sum(dot_sum);
    }
}

/* The pixels of some channels. Where these are all channels and few, several pixels pass for one of `wide` channels, or
 * vectors would be partly empty. */
struct pixels {
    int64_t rows, wide, stride, rest; /* `rest`: elements after the rows */
};

INLINE struct pixels all_pixels(int64_t pixels, int64_t stride, int64_t channels)
{
    const int64_t fit = stride == channels && channels < CHUNK / 2 ? CHUNK / 2 / channels : 1;
    const int64_t together = minimum(fit, pixels);
    return (struct pixels){pixels / together, together * channels, together * stride, pixels % together * channels};
}

/* Repeats n values up to `wide` of them. */
static void repeat(real *value, int64_t n, int64_t wide)
{
    for (int64_t j = n; j < wide; ++j)
        value[j] = value[j - n];
}

/* The sums of u and u c over all pixels, for each of n channels; u is dy in backward. */
INLINE void sums_down(const real *dy, const real *x, int64_t pixels, int64_t stride, int64_t n, real *high, double *sum,
                      double *dot)
{
    const struct pixels all = all_pixels(pixels, stride, n);
    real some_sum[CHUNK], some_dot[CHUNK];
    repeat(high, n, all.wide);
    for (int64_t j = 0; j < n; ++j)
        sum[j] = dot[j] = 0;
    for (int64_t row = 0; row <= all.rows;) {
        const int64_t end = minimum(all.rows + 1, row + IN_REAL);
        for (int64_t j = 0; j < all.wide; ++j)
            some_sum[j] = some_dot[j] = 0;
        for (; row < end; ++row) {
            const int64_t at = row * all.stride, width = row < all.rows ? all.wide : all.rest;
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) {
                const real c = x[at + j] - high[j], u = dy ? dy[at + j] : c;
                some_sum[j] += u;
                some_dot[j] += u * c;
            }
        }
        for (int64_t k = 0; k < all.wide; k += n)
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) {
                sum[j] += some_sum[k + j];
                dot[j] += some_dot[k + j];
            }
    }
}

/* Whether a row is one group of one pixel, as in layer norm. */
INLINE int is_line(const struct groups *t)
{
    return t->pixels == 1 && t->count == 1;
}

/* The number of the group of each of n channels, from channel `first` on. */
static void groups_of(const struct groups *t, int64_t first, int64_t n, int64_t *group)
{
    int64_t g = first / t->width, left = (g + 1) * t->width - first;
    for (int64_t j = 0; j < n; ++j, --left) {
        if (left == 0) {
            ++g;
            left = t->width;
        }
        group[j] = g;
    }
}

/* The sums of c and c c of each group. */
static void forward_sums(const struct groups *t, struct moments *m)
{
    for (int64_t g = 0; g < t->count; ++g)
        m->sum[g] = m->dot[g] = 0;
    if (is_line(t)) {
        sums_along(NULL, NULL, t->x, t->width, m->high[0], m->sum, m->dot);
        return;
    }
    const int64_t all = t->count * t->width;
    for (int64_t first = 0, n; first < all; first += n) {
        real high[CHUNK];
        double sum[CHUNK], dot[CHUNK];
        int64_t group[CHUNK];
        n = minimum(all - first, CHUNK);
        groups_of(t, first, n, group);
        for (int64_t j = 0; j < n; ++j)
            high[j] = m->high[group[j]];
        sums_down(NULL, t->x + first, t->pixels, t->stride, n, high, sum, dot);
        for (int64_t j = 0; j < n; ++j) {
            m->sum[group[j]] += sum[j];
            m->dot[group[j]] += dot[j];
        }
    }
}

/* The sums of g and g n of each group, and its part of dscale and dshift. */
static void backward_sums(const struct groups *t, struct moments *m)
{
    for (int64_t g = 0; g < t->count; ++g)
        m->sum[g] = m->dot[g] = 0;
    if (is_line(t)) {
        sums_along(t->dy, t->scale, t->x, t->width, m->high[0], m->sum, m->dot);
        m->dot[0] = (m->dot[0] - m->off[0] * m->sum[0]) * m->inv_std[0];
        return; /* dscale and dshift are taken while dx is written */
    }
    const int64_t all = t->count * t->width;
    for (int64_t first = 0, n; first < all; first += n) {
        real high[CHUNK];
        double sum[CHUNK], dot[CHUNK];
        int64_t group[CHUNK];
        n = minimum(all - first, CHUNK);
        groups_of(t, first, n, group);
        for (int64_t j = 0; j < n; ++j)
            high[j] = m->high[group[j]];
        sums_down(t->dy + first, t->x + first, t->pixels, t->stride, n, high, sum, dot);
        for (int64_t j = 0; j < n; ++j) {
            const int64_t g = group[j];
            const double product = (dot[j] - m->off[g] * sum[j]) * m->inv_std[g];
            const double factor = t->scale ? t->scale[first + j] : 1;
            m->sum[g] += factor * sum[j];
            m->dot[g] += factor * product;
            if (t->dscale) {
                t->dscale[first + j] += product;
                t->dshift[first + j] += sum[j];
            }
        }
    }
}

/* y of a row that is one group. */
static void write_line(const struct groups *t, const struct moments *m)
{
    const real high = m->high[0], inv_std = m->inv_std[0], intercept = -m->off[0] * m->inv_std[0];
    const real *x = t->x, *scale = t->scale, *shift = t->shift;
    real *y = t->y;
#pragma omp simd
    for (int64_t j = 0; j < t->width; ++j)
        y[j] = ((x[j] - high) * inv_std + intercept) * (scale ? scale[j] : 1) + (shift ? shift[j] : 0);
}

static void write_y(const struct groups *t, const struct moments *m)
{
    const int64_t all = t->count * t->width;
    for (int64_t first = 0, n; first < all; first += n) {
        real high[CHUNK], inv_std[CHUNK], intercept[CHUNK], scale[CHUNK], shift[CHUNK];
        int64_t group[CHUNK];
        n = minimum(all - first, CHUNK);
        groups_of(t, first, n, group);
        for (int64_t j = 0; j < n; ++j) {
            const int64_t g = group[j];
            high[j] = m->high[g];
            inv_std[j] = m->inv_std[g];
            intercept[j] = -m->off[g] * m->inv_std[g];
            scale[j] = t->scale ? t->scale[first + j] : 1;
            shift[j] = t->shift ? t->shift[first + j] : 0;
        }
        const struct pixels pixels = all_pixels(t->pixels, t->stride, n);
        for (int i = 0; i < 5; ++i)
            repeat((real *[]){high, inv_std, intercept, scale, shift}[i], n, pixels.wide);
        const real *x = t->x + first;
        real *y = t->y + first;
        for (int64_t row = 0; row <= pixels.rows; ++row, x += pixels.stride, y += pixels.stride)
#pragma omp simd
            for (int64_t j = 0; j < (row < pixels.rows ? pixels.wide : pixels.rest); ++j)
                y[j] = ((x[j] - high[j]) * inv_std[j] + intercept[j]) * scale[j] + shift[j];
    }
}

/* The coefficients of dx = dy factor - c slope + offset, for a channel of this scale. */
struct linear {
    real factor, slope, offset;
};

INLINE struct linear linear_of(const struct groups *t, const struct moments *m, int64_t g, real scale)
{
    const double inv_std = m->inv_std[g], slope = inv_std * inv_std * m->dot[g] * t->weight;
    return (struct linear){scale * inv_std, slope, m->off[g] * slope - inv_std * m->sum[g] * t->weight};
}

/* dx of a row that is one group, and its part of dscale and dshift. */
static void write_line_back(const struct groups *t, const struct moments *m)
{
    const struct linear k = linear_of(t, m, 0, 1);
    const real high = m->high[0], inv_std = m->inv_std[0], intercept = -m->off[0] * m->inv_std[0];
    const real *dy = t->dy, *x = t->x, *scale = t->scale;
    real *dx = t->y, *dscale = t->dscale, *dshift = t->dshift;
#pragma omp simd
    for (int64_t j = 0; j < t->width; ++j)
        dx[j] = (scale ? dy[j] * scale[j] : dy[j]) * k.factor - (x[j] - high) * k.slope + k.offset;
    if (dscale)
#pragma omp simd
        for (int64_t j = 0; j < t->width; ++j) {
            dscale[j] += dy[j] * ((x[j] - high) * inv_std + intercept);
            dshift[j] += dy[j];
        }
}

static void write_dx(const struct groups *t, const struct moments *m)
{
    const int64_t all = t->count * t->width;
    for (int64_t first = 0, n; first < all; first += n) {
        real high[CHUNK], factor[CHUNK], slope[CHUNK], offset[CHUNK];
        int64_t group[CHUNK];
        n = minimum(all - first, CHUNK);
        groups_of(t, first, n, group);
        for (int64_t j = 0; j < n; ++j) {
            const struct linear k = linear_of(t, m, group[j], t->scale ? t->scale[first + j] : 1);
            high[j] = m->high[group[j]];
            factor[j] = k.factor;
            slope[j] = k.slope;
            offset[j] = k.offset;
        }
        const struct pixels pixels = all_pixels(t->pixels, t->stride, n);
        for (int i = 0; i < 4; ++i)
            repeat((real *[]){high, factor, slope, offset}[i], n, pixels.wide);
        const real *dy = t->dy + first, *x = t->x + first;
        real *dx = t->y + first;
        for (int64_t row = 0; row <= pixels.rows; ++row, dy += pixels.stride, x += pixels.stride, dx += pixels.stride)
#pragma omp simd
            for (int64_t j = 0; j < (row < pixels.rows ? pixels.wide : pixels.rest); ++j)
                dx[j] = dy[j] * factor[j] - (x[j] - high[j]) * slope[j] + offset[j];
    }
}

/* How many groups of that width, from number `first` on, are worked on at once. */
static int64_t groups_at(int64_t groups, int64_t width, int64_t first)
{
    const int64_t fit = CHUNK / width;
    return minimum(groups - first, maximum(fit, 1));
}

static void group_norm_forward(const void *arguments, struct fastopt_share share)
{
    const struct group_norm_forward_args *a = arguments;
    const real *scale = a->scale, *shift = a->shift;
    if (a->pixels * a->channels == 0)
        return;
    const int64_t width = a->channels / a->groups;
    const double weight = 1 / ((double)a->pixels * width);
    const struct range own = own_range(a->rows, 1, share);
    for (int64_t row = own.begin; row < own.end; ++row)
        for (int64_t first = 0, count; first < a->groups; first += count) {
            count = groups_at(a->groups, width, first);
            const int64_t at = row * a->pixels * a->channels + first * width;
            double *mean = a->mean + row * a->groups + first;
            double *inv_std = a->inv_std + row * a->groups + first;
            const struct groups t = {.x = a->x + at,
                                     .y = a->y + at,
                                     .scale = scale ? scale + first * width : NULL,
                                     .shift = shift ? shift + first * width : NULL,
                                     .pixels = a->pixels,
                                     .stride = a->channels,
                                     .count = count,
                                     .width = width};
            struct moments m;
            for (int64_t g = 0; g < count; ++g) {
                m.high[g] = 0;
                for (int64_t i = 0; i < 8; ++i) /* the mean of eight elements, from all over the group */
                    m.high[g] += (real)0.125 * t.x[i * t.pixels / 8 * t.stride + g * width + i * width / 8];
            }
            /* Sums about an estimate within two standard deviations of the mean give the variance to nearly all digits.
             * Where it is further off, they at least give the mean, about which the sums are then taken again. */
            for (int passes = 0, again = 1; again && passes < 2; ++passes) {
                forward_sums(&t, &m);
                again = 0;
                for (int64_t g = 0; g < count && passes == 0; ++g) {
                    const double off = m.sum[g] * weight;
                    if (m.sum[g] * off > 0.8 * m.dot[g]) {
                        m.high[g] += off;
                        again = 1;
                    }
                }
            }
            for (int64_t g = 0; g < count; ++g) {
                const double off = m.sum[g] * weight, var = m.dot[g] * weight - off * off;
                mean[g] = m.high[g] + off;
                inv_std[g] = m.inv_std[g] = 1 / sqrt((var < 0 ? 0 : var) + a->eps);
                m.high[g] = mean[g];
                m.off[g] = mean[g] - m.high[g];
            }
            (is_line(&t) ? write_line : write_y)(&t, &m);
        }
}

static void group_norm_backward(const void *arguments, struct fastopt_share share)
{
    const struct group_norm_backward_args *a = arguments;
    const real *scale = a->scale;
    if (a->pixels == 0 && share.index == 0)
        memset(a->parts, 0, (a->rows + a->block - 1) / a->block * 2 * a->channels * sizeof(real));
    if (a->pixels * a->channels == 0)
        return;
    const int64_t width = a->channels / a->groups;
    const struct range own = own_range(a->rows, a->block, share);
    for (int64_t row = own.begin; row < own.end; ++row) {
        real *part = a->parts + row / a->block * 2 * a->channels;
        if (row % a->block == 0)
            memset(part, 0, 2 * a->channels * sizeof(real));
        for (int64_t first = 0, count; first < a->groups; first += count) {
            count = groups_at(a->groups, width, first);
            const int64_t at = row * a->pixels * a->channels + first * width;
            const double *mean = a->mean + row * a->groups + first;
            const double *inv_std = a->inv_std + row * a->groups + first;
            const struct groups t = {.dy = a->dy + at,
                                     .x = a->x + at,
                                     .y = a->dx + at,
                                     .scale = scale ? scale + first * width : NULL,
                                     .dscale = part + first * width,
                                     .dshift = part + a->channels + first * width,
                                     .pixels = a->pixels,
                                     .stride = a->channels,
                                     .count = count,
                                     .width = width,
                                     .weight = 1 / ((double)a->pixels * width)};
            struct moments m;
            for (int64_t g = 0; g < count; ++g) {
                m.high[g] = mean[g];
                m.off[g] = mean[g] - m.high[g];
                m.inv_std[g] = inv_std[g];
            }
            backward_sums(&t, &m);
            (is_line(&t) ? write_line_back : write_dx)(&t, &m);
        }
    }
}

/* dscale and dshift: the sums over all blocks of rows, in order. */
static void group_norm_learnt_grads(const void *arguments, struct fastopt_share share)
{
    const struct group_norm_learnt_grads_args *a = arguments;
    const struct range own = own_range(a->channels, LINE_OF_REALS, share);
    for (int64_t j = own.begin; j < own.end; ++j) {
        double dscale = 0, dshift = 0;
        for (int64_t block = 0; block < a->blocks; ++block) {
            dscale += a->parts[2 * block * a->channels + j];
            dshift += a->parts[(2 * block + 1) * a->channels + j];
        }
        a->dscale[j] = dscale;
        a->dshift[j] = dshift;
    }
}
