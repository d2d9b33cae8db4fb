/* Batch normalisation (Ioffe & Szegedy 2015) of x (outer, channels, inner), per channel:
 *
 *   forward    y = c a + shift,  c = x - mean,  a = scale / sqrt(var + eps)
 *   backward   dx = a (dy - mean(dy) - c mean(dy c) / (var + eps))
 *              dshift = sum(dy),  dscale = sum(dy c) / sqrt(var + eps)
 *
 * Work goes tile by tile, and all passes over a tile run while it is in cache. A tile is what the lanes of
 * lanes.h can hold: 32 channels side by side where inner is 1, else one channel, its elements side by side.
 *
 * Means are kept in double and enter as two reals, high + low: x - high is exact for x near the mean, so large
 * offsets cost no digits. The variance is the corrected two-pass one (Chan, Golub & LeVeque 1983, eq. 1.7).
 */
#include "lanes.h"

/* Rows of lanes in memory. After `full` whole rows come `part` rows of only `width` elements; that is repeated
 * `outer` times. Lane l belongs to channel first + l % period, and the channels from `fresh` on are not in the
 * tile before (the last tile is drawn back to be whole). */
struct tile {
    int64_t outer, outer_stride, full, full_stride, part, part_stride, width;
    int64_t offset, first, fresh, channels, period;
};

/* A value per lane, as the passes want it. */
struct centre {
    real high[LANES], low[LANES];
};

/* The tile whose first new channel is `fresh`. */
static struct tile tile_at(int64_t outer, int64_t channels, int64_t inner, int64_t fresh)
{
    if (inner > 1)
        return (struct tile){outer, channels * inner, inner / LANES, LANES, inner % LANES != 0, 0, inner % LANES,
                             fresh * inner, fresh, fresh, 1, 1};
    if (channels >= LANES) {
        const int64_t first = fresh + LANES <= channels ? fresh : channels - LANES;
        return (struct tile){1, 0, outer, channels, 0, 0, 0, first, first, fresh, LANES, LANES};
    }
    if (LANES % channels == 0) { /* several rows of x fill a row of lanes */
        const int64_t elements = outer * channels;
        return (struct tile){1, 0, elements / LANES, LANES, elements % LANES != 0, 0, elements % LANES,
                             0, 0, 0, channels, channels};
    }
    return (struct tile){1, 0, 0, 0, outer, channels, channels, 0, 0, 0, channels, LANES};
}

/* The channel of lane l, or of the tile's first where the lane holds nothing. */
static int64_t channel_of(const struct tile *t, int l)
{
    const int64_t channel = l % t->period;
    return t->first + (channel < t->channels ? channel : 0);
}

static void set_centre(struct centre *c, int l, double mean)
{
    c->high[l] = mean;
    c->low[l] = mean - c->high[l];
}

/* Adds what the lanes have gathered to totals in double, so that long sums lose nothing. */
INLINE void gather(double total[LANES], lanes *sum)
{
    real x[LANES];
    lanes_store(x, *sum);
    for (int l = 0; l < LANES; ++l)
        total[l] += x[l];
    *sum = lanes_all(0);
}

/* Per channel (at its lane < period) the sums of u and of u c over a tile, u being dy, or c itself where dy is null. */
INLINE void tile_sums(const struct tile *t, const real *dy, const real *x, const struct centre *centre,
                      double sum_u[LANES], double sum_uc[LANES])
{
    enum { GATHER_AFTER = 128 };
    const lanes high = lanes_load(centre->high), low = lanes_load(centre->low);
    lanes u_lanes = lanes_all(0), uc_lanes = lanes_all(0);
    int pending = 0;
    memset(sum_u, 0, LANES * sizeof *sum_u);
    memset(sum_uc, 0, LANES * sizeof *sum_uc);

    for (int64_t outer = 0; outer < t->outer; ++outer) {
        int64_t at = t->offset + outer * t->outer_stride;
        for (int64_t row = 0; row < t->full + t->part; ++row) {
            lanes c, u;
            if (row < t->full) {
                c = lanes_subtract(lanes_subtract(lanes_load(x + at), high), low);
                u = dy ? lanes_load(dy + at) : c;
                at += t->full_stride;
            } else {
                real c_part[LANES] = {0}, u_part[LANES] = {0};
                for (int64_t l = 0; l < t->width; ++l) {
                    c_part[l] = (x[at + l] - centre->high[l]) - centre->low[l];
                    u_part[l] = dy ? dy[at + l] : c_part[l];
                }
                c = lanes_load(c_part);
                u = lanes_load(u_part);
                at += t->part_stride;
            }
            u_lanes = lanes_add(u_lanes, u);
            uc_lanes = lanes_add(uc_lanes, lanes_multiply(u, c));
            if (++pending == GATHER_AFTER) {
                gather(sum_u, &u_lanes);
                gather(sum_uc, &uc_lanes);
                pending = 0;
            }
        }
    }
    gather(sum_u, &u_lanes);
    gather(sum_uc, &uc_lanes);
    for (int64_t half = LANES / 2; half >= t->period; half /= 2)
        for (int64_t l = 0; l < half; ++l) {
            sum_u[l] += sum_u[l + half];
            sum_uc[l] += sum_uc[l + half];
        }
}

/* y = ((x - high) - low) a + b, and where dy is given: y = (dy - b - ((x - high) - low) q) a. */
INLINE void tile_write(const struct tile *t, const real *dy, const real *x, real *y, const struct centre *centre,
                       const real a[LANES], const real b[LANES], const real q[LANES])
{
    const lanes high = lanes_load(centre->high), low = lanes_load(centre->low);
    const lanes a_lanes = lanes_load(a), b_lanes = lanes_load(b), q_lanes = lanes_load(dy ? q : a);

    for (int64_t outer = 0; outer < t->outer; ++outer) {
        int64_t at = t->offset + outer * t->outer_stride;
        for (int64_t row = 0; row < t->full; ++row, at += t->full_stride) {
            const lanes c = lanes_subtract(lanes_subtract(lanes_load(x + at), high), low);
            if (dy) {
                const lanes d = lanes_subtract(lanes_load(dy + at), b_lanes);
                lanes_store(y + at, lanes_multiply(lanes_subtract(d, lanes_multiply(c, q_lanes)), a_lanes));
            } else {
                lanes_store(y + at, lanes_add(lanes_multiply(c, a_lanes), b_lanes));
            }
        }
        for (int64_t row = 0; row < t->part; ++row, at += t->part_stride)
#pragma omp simd
            for (int64_t l = 0; l < t->width; ++l) {
                const real c = (x[at + l] - centre->high[l]) - centre->low[l];
                y[at + l] = dy ? (dy[at + l] - b[l] - c * q[l]) * a[l] : c * a[l] + b[l];
            }
    }
}

static void batch_norm_forward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0], *scale = array[1], *shift = array[2];
    real *y = array[3], *running_mean = array[6], *running_var = array[7];
    double *mean = array[4], *inv_std = array[5];
    const int64_t outer = size[0], channels = size[1], inner = size[2];
    const double eps = scalar[0], new_weight = scalar[1], variance_factor = scalar[2];
    const double count = (double)outer * inner;
    if (count == 0)
        return;

    for (int64_t fresh = 0; fresh < channels;) {
        const struct tile t = tile_at(outer, channels, inner, fresh);
        struct centre centre;
        double sum[LANES], square_sum[LANES];

        for (int l = 0; l < LANES; ++l) /* any value near the mean will do at first: the first one */
            set_centre(&centre, l, x[channel_of(&t, l) * inner]);
        tile_sums(&t, NULL, x, &centre, sum, square_sum);
        for (int l = 0; l < LANES; ++l)
            set_centre(&centre, l, centre.high[l] + sum[l % t.period] / count);
        tile_sums(&t, NULL, x, &centre, sum, square_sum);

        for (int64_t j = t.fresh - t.first; j < t.channels; ++j) {
            const int64_t channel = t.first + j;
            const double square = square_sum[j] - sum[j] * sum[j] / count;
            const double var = square < 0 ? 0 : square / count;
            mean[channel] = (double)centre.high[j] + centre.low[j];
            inv_std[channel] = 1 / sqrt(var + eps);
            if (running_mean) {
                running_mean[channel] += new_weight * (mean[channel] - running_mean[channel]);
                running_var[channel] += new_weight * (variance_factor * var - running_var[channel]);
            }
        }

        real a[LANES], b[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t channel = channel_of(&t, l);
            a[l] = (scale ? scale[channel] : 1) * inv_std[channel];
            b[l] = shift ? shift[channel] : 0;
        }
        tile_write(&t, NULL, x, y, &centre, a, b, NULL);
        fresh = t.first + t.channels;
    }
}

static void batch_norm_inference(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0], *scale = array[1], *shift = array[2], *mean = array[3], *var = array[4];
    real *y = array[5];
    const int64_t outer = size[0], channels = size[1], inner = size[2];
    const double eps = scalar[0];
    if (outer * inner == 0)
        return;

    for (int64_t fresh = 0; fresh < channels;) {
        const struct tile t = tile_at(outer, channels, inner, fresh);
        struct centre centre;
        real a[LANES], b[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t channel = channel_of(&t, l);
            set_centre(&centre, l, mean[channel]);
            a[l] = (scale ? scale[channel] : 1) / sqrt(var[channel] + eps);
            b[l] = shift ? shift[channel] : 0;
        }
        tile_write(&t, NULL, x, y, &centre, a, b, NULL);
        fresh = t.first + t.channels;
    }
}

static void batch_norm_backward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *dy = array[0], *x = array[1], *scale = array[2];
    const double *mean = array[3], *inv_std = array[4];
    real *dx = array[5], *dscale = array[6], *dshift = array[7];
    const int64_t outer = size[0], channels = size[1], inner = size[2];
    const double count = (double)outer * inner;
    (void)scalar;
    if (count == 0)
        return;

    for (int64_t fresh = 0; fresh < channels;) {
        const struct tile t = tile_at(outer, channels, inner, fresh);
        struct centre centre;
        double sum[LANES], dot[LANES];
        for (int l = 0; l < LANES; ++l)
            set_centre(&centre, l, mean[channel_of(&t, l)]);
        tile_sums(&t, dy, x, &centre, sum, dot);

        for (int64_t j = t.fresh - t.first; j < t.channels; ++j) {
            dshift[t.first + j] = sum[j];
            dscale[t.first + j] = dot[j] * inv_std[t.first + j];
        }
        real a[LANES], b[LANES], q[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t channel = channel_of(&t, l);
            const int64_t j = channel - t.first;
            a[l] = (scale ? scale[channel] : 1) * inv_std[channel];
            b[l] = sum[j] / count;
            q[l] = dot[j] / count * inv_std[channel] * inv_std[channel];
        }
        tile_write(&t, dy, x, dx, &centre, a, b, q);
        fresh = t.first + t.channels;
    }
}
