/* Batch normalisation (Ioffe & Szegedy 2015) of x (outer, channels, inner), per channel:
 *
 *   forward    y = (x - mean) a + shift,  a = scale / sqrt(var + eps)
 *   backward   dx = a (dy - mean(dy) - c mean(dy c) / (var + eps)),  c = x - mean
 *              dshift = sum(dy),  dscale = sum(dy c) / sqrt(var + eps)
 *
 * Elements enter as x - high, high being a real near the mean: that is exact where it matters, so large offsets
 * cost no digits. What separates high from the mean is put right in double, once per channel.
 *
 * Work goes tile by tile, a tile being whole channels, and all passes over it run while it is in cache.
 */
#include "lanes.h"

enum {
    MAX_GROUPS = 32,
    MAX_LANES = MAX_GROUPS * LANES,
    BLOCK = 8, /* rows that share one load of their columns' sums; more would collide in the first-level cache */
    GATHER_AFTER = 128, /* additions to a sum in the real type before it goes over to double */
};

/* How the elements of some channels lie in memory: rows of `groups` lanes each, then one of only `width` elements;
 * that is repeated `outer` times. Element l of a row belongs to channel first + l % channels. */
struct tile {
    int64_t outer, outer_stride, rows, stride, groups, width;
    int64_t offset, first, channels;
    int64_t fresh; /* channels before this one were in the tile before, too: the last tile is drawn back to be whole */
};

/* Per element of a row. */
struct columns {
    real high[MAX_LANES], sum[MAX_LANES], dot[MAX_LANES], a[MAX_LANES], b[MAX_LANES], q[MAX_LANES];
    double total_sum[MAX_LANES], total_dot[MAX_LANES];
};

static struct tile tile_at(int64_t outer, int64_t channels, int64_t inner, int64_t fresh)
{
    struct tile t = {.outer = 1, .fresh = fresh, .first = fresh, .groups = 1, .channels = 1};
    if (inner > 1) { /* one channel, its elements side by side */
        t.outer = outer;
        t.outer_stride = channels * inner;
        t.rows = inner / LANES;
        t.stride = LANES;
        t.width = inner % LANES;
        t.offset = fresh * inner;
    } else if (channels >= LANES) { /* many channels side by side */
        const int64_t left = (channels - fresh) / LANES;
        t.groups = left < 1 ? 1 : left < MAX_GROUPS ? left : MAX_GROUPS;
        t.channels = t.groups * LANES;
        if (left < 1)
            t.first = channels - LANES;
        t.rows = outer;
        t.stride = channels;
        t.offset = t.first;
    } else { /* few channels: as many rows of x at once as fill whole lanes */
        int64_t row = channels;
        while (row % LANES)
            row *= 2;
        t.groups = row / LANES;
        t.channels = channels;
        t.rows = outer * channels / row;
        t.stride = row;
        t.width = outer * channels % row;
    }
    return t;
}

static int64_t lanes_of(const struct tile *t)
{
    return t->groups * LANES;
}

/* Gives every element of a row what its channel has. */
static void spread(const struct tile *t, real *x)
{
    for (int64_t l = t->channels; l < lanes_of(t); ++l)
        x[l] = x[l - t->channels];
}

/* Moves the sums over to double, where long sums lose nothing. */
static void gather(const struct tile *t, struct columns *k)
{
#pragma omp simd
    for (int64_t l = 0; l < lanes_of(t); ++l) {
        k->total_sum[l] += k->sum[l];
        k->total_dot[l] += k->dot[l];
        k->sum[l] = k->dot[l] = 0;
    }
}

/* Asks for what is read after the next jump in memory, which the CPU does not foresee: the channel's next piece, or the
 * next block of rows. */
INLINE void prefetch(const struct tile *t, const real *dy, const real *x)
{
    const int64_t ahead = t->outer > 1 ? t->outer_stride : BLOCK * t->stride;
    lanes_prefetch(x, ahead);
    if (dy)
        lanes_prefetch(dy, ahead);
}

/* Per channel, total_sum = sum of u and total_dot = sum of u c, for c = x - high and u = dy, or c where dy is null. */
INLINE void tile_sums(const struct tile *t, const real *dy, const real *x, struct columns *k)
{
    const int64_t block = t->groups > 1 ? BLOCK : GATHER_AFTER;
    int64_t pending = 0;
    for (int64_t l = 0; l < lanes_of(t); ++l)
        k->sum[l] = k->dot[l] = k->total_sum[l] = k->total_dot[l] = 0;

    for (int64_t outer = 0; outer < t->outer; ++outer) {
        const int64_t start = t->offset + outer * t->outer_stride;
        for (int64_t row = 0; row < t->rows; row += block) {
            const int64_t rows = t->rows - row < block ? t->rows - row : block;
            for (int64_t l = 0; l < lanes_of(t); l += LANES) {
                const lanes high = lanes_load(k->high + l);
                lanes sum = lanes_load(k->sum + l), dot = lanes_load(k->dot + l);
                for (int64_t r = row; r < row + rows; ++r) {
                    const int64_t at = start + r * t->stride + l;
                    prefetch(t, dy ? dy + at : NULL, x + at);
                    const lanes c = lanes_subtract(lanes_load(x + at), high), u = dy ? lanes_load(dy + at) : c;
                    sum = lanes_add(sum, u);
                    dot = lanes_add(dot, lanes_multiply(u, c));
                }
                lanes_store(k->sum + l, sum);
                lanes_store(k->dot + l, dot);
            }
            pending += rows;
            if (pending >= GATHER_AFTER) {
                gather(t, k);
                pending = 0;
            }
        }
        const int64_t at = start + t->rows * t->stride;
#pragma omp simd
        for (int64_t l = 0; l < t->width; ++l) {
            const real c = x[at + l] - k->high[l], u = dy ? dy[at + l] : c;
            k->sum[l] += u;
            k->dot[l] += u * c;
        }
        if (++pending >= GATHER_AFTER) {
            gather(t, k);
            pending = 0;
        }
    }
    gather(t, k);
    for (int64_t half = lanes_of(t) / 2; half >= t->channels; half /= 2)
        for (int64_t l = 0; l < half; ++l) {
            k->total_sum[l] += k->total_sum[l + half];
            k->total_dot[l] += k->total_dot[l + half];
        }
}

/* y = c a + b for c = x - high, and where dy is given y = dy a - c q + b. */
INLINE void tile_write(const struct tile *t, const real *dy, const real *x, real *y, struct columns *k)
{
    const int64_t block = t->groups > 1 ? BLOCK : t->rows;
    spread(t, k->a);
    spread(t, k->b);
    if (dy)
        spread(t, k->q);

    for (int64_t outer = 0; outer < t->outer; ++outer) {
        const int64_t start = t->offset + outer * t->outer_stride;
        for (int64_t row = 0; row < t->rows; row += block) {
            const int64_t rows = t->rows - row < block ? t->rows - row : block;
            for (int64_t l = 0; l < lanes_of(t); l += LANES) {
                const lanes high = lanes_load(k->high + l), a = lanes_load(k->a + l), b = lanes_load(k->b + l);
                const lanes q = lanes_load(dy ? k->q + l : k->a + l);
                for (int64_t r = row; r < row + rows; ++r) {
                    const int64_t at = start + r * t->stride + l;
                    prefetch(t, dy ? dy + at : NULL, x + at);
                    const lanes c = lanes_subtract(lanes_load(x + at), high);
                    lanes out = dy ? lanes_subtract(lanes_multiply(lanes_load(dy + at), a), lanes_multiply(c, q))
                                   : lanes_multiply(c, a);
                    lanes_store(y + at, lanes_add(out, b));
                }
            }
        }
        const int64_t at = start + t->rows * t->stride;
#pragma omp simd
        for (int64_t l = 0; l < t->width; ++l) {
            const real c = x[at + l] - k->high[l];
            y[at + l] = (dy ? dy[at + l] * k->a[l] - c * k->q[l] : c * k->a[l]) + k->b[l];
        }
    }
}

/* Fills high with values near the means of the channels: of eight elements each, from here and there. */
static void pilot_means(const struct tile *t, const real *x, int64_t outer, int64_t channels, int64_t inner,
                        struct columns *k)
{
    for (int64_t j = 0; j < t->channels; ++j)
        k->high[j] = 0;
    for (int64_t i = 0; i < 8; ++i) {
        const real *some = x + (i * outer / 8 * channels + t->first) * inner + i * inner / 8;
        if (inner == 1)
            for (int64_t j = 0; j < t->channels; ++j)
                k->high[j] += some[j] * (real)0.125;
        else
            k->high[0] += some[0] * (real)0.125;
    }
}

/* Gives a and b the learnt scale and shift, where there are any. */
static void set_affine(const struct tile *t, const real *scale, const real *shift, struct columns *k)
{
    for (int64_t j = 0; j < t->channels; ++j)
        k->a[j] = 1;
    for (int64_t j = 0; scale && j < t->channels; ++j)
        k->a[j] = scale[t->first + j];
    for (int64_t j = 0; j < t->channels; ++j)
        k->b[j] = 0;
    for (int64_t j = 0; shift && j < t->channels; ++j)
        k->b[j] = shift[t->first + j];
}

static void batch_norm_forward(void *const *array, const int64_t *size, const double *scalar,
                               struct fastopt_share share)
{
    const real *x = array[0], *scale = array[1], *shift = array[2];
    real *y = array[3], *running_mean = array[6], *running_var = array[7];
    double *mean = array[4], *inv_std = array[5];
    const int64_t outer = size[0], channels = size[1], inner = size[2];
    const double eps = scalar[0], new_weight = scalar[1], variance_factor = scalar[2];
    const double count = (double)outer * inner;
    if (share.index)
        return;
    if (count == 0)
        return;

    struct columns k;
    struct tile t;
    for (int64_t fresh = 0; fresh < channels; fresh = t.first + t.channels) {
        t = tile_at(outer, channels, inner, fresh);
        pilot_means(&t, x, outer, channels, inner, &k);
        /* Sums about a value within two standard deviations of the mean give the variance to nearly all digits.
         * Where it is further away, they at least give the mean, about which sums are then taken. */
        int again = 1;
        for (int pass = 0; pass < 2 && again; ++pass) {
            spread(&t, k.high);
            tile_sums(&t, NULL, x, &k);
            again = 0;
            for (int64_t j = 0; j < t.channels; ++j)
                again |= !(k.total_sum[j] * k.total_sum[j] <= 0.8 * count * k.total_dot[j]);
            if (pass == 0 && again)
                for (int64_t j = 0; j < t.channels; ++j)
                    k.high[j] += k.total_sum[j] / count;
        }

        set_affine(&t, scale, shift, &k);
        double var[MAX_LANES];
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j) {
            const double off = k.total_sum[j] / count; /* of the mean from high */
            const double rounded = k.total_dot[j] / count - off * off;
            var[j] = rounded < 0 ? 0 : rounded;
            const double inverse = 1 / sqrt(var[j] + eps), a = k.a[j] * inverse;
            k.a[j] = a;
            k.b[j] = k.b[j] - off * a;
            mean[t.first + j] = k.high[j] + off;
            inv_std[t.first + j] = inverse;
        }
        for (int64_t j = t.fresh - t.first; running_mean && j < t.channels; ++j) {
            const int64_t channel = t.first + j;
            running_mean[channel] += new_weight * (mean[channel] - running_mean[channel]);
            running_var[channel] += new_weight * (variance_factor * var[j] - running_var[channel]);
        }
        tile_write(&t, NULL, x, y, &k);
    }
}

static void batch_norm_inference(void *const *array, const int64_t *size, const double *scalar,
                                 struct fastopt_share share)
{
    const real *x = array[0], *scale = array[1], *shift = array[2], *mean = array[3], *var = array[4];
    real *y = array[5];
    const int64_t outer = size[0], channels = size[1], inner = size[2];
    const double eps = scalar[0];
    if (share.index)
        return;
    if (outer * inner == 0)
        return;

    struct columns k;
    struct tile t;
    for (int64_t fresh = 0; fresh < channels; fresh = t.first + t.channels) {
        t = tile_at(outer, channels, inner, fresh);
        set_affine(&t, scale, shift, &k);
        for (int64_t j = 0; j < t.channels; ++j) {
            k.high[j] = mean[t.first + j];
            k.a[j] = k.a[j] / sqrt(var[t.first + j] + eps);
        }
        spread(&t, k.high);
        tile_write(&t, NULL, x, y, &k);
    }
}

static void batch_norm_backward(void *const *array, const int64_t *size, const double *scalar,
                                struct fastopt_share share)
{
    const real *dy = array[0], *x = array[1], *scale = array[2];
    const double *mean = array[3], *inv_std = array[4];
    real *dx = array[5], *dscale = array[6], *dshift = array[7];
    const int64_t outer = size[0], channels = size[1], inner = size[2];
    const double count = (double)outer * inner;
    if (share.index)
        return;
    (void)scalar;
    if (count == 0)
        return;

    struct columns k;
    struct tile t;
    for (int64_t fresh = 0; fresh < channels; fresh = t.first + t.channels) {
        t = tile_at(outer, channels, inner, fresh);
        for (int64_t j = 0; j < t.channels; ++j)
            k.high[j] = mean[t.first + j];
        spread(&t, k.high);
        tile_sums(&t, dy, x, &k);

        set_affine(&t, scale, NULL, &k);
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j) {
            const int64_t channel = t.first + j;
            const double off = mean[channel] - k.high[j]; /* of the mean from high */
            const double sum = k.total_sum[j], dot = k.total_dot[j] - off * sum, a = k.a[j] * inv_std[channel];
            const double q = a * dot / count * inv_std[channel] * inv_std[channel];
            k.a[j] = a;
            k.q[j] = q;
            k.b[j] = off * q - a * sum / count;
            dshift[channel] = sum;
            dscale[channel] = dot * inv_std[channel];
        }
        tile_write(&t, dy, x, dx, &k);
    }
}
