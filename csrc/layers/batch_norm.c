/* Batch normalisation (Ioffe & Szegedy 2015) of x (outer, channels, inner), per channel:
 *
 *   forward    y = (x - mean) a + shift,  a = scale / sqrt(var + eps)
 *   backward   dx = a (dy - mean(dy) - c mean(dy c) / (var + eps)),  c = x - mean
 *              dshift = sum(dy),  dscale = sum(dy c) / sqrt(var + eps)
 *
 * With relu, y = max(y, 0), and dy counts as 0 where y is 0: backward computes y again, from the same numbers in the
 * same way.
 *
 * Elements enter as x - high, high being a real near the mean: that is exact where it matters, so large offsets
 * cost no digits. What separates high from the mean is put right in double, once per channel.
 *
 * A channel's bits depend on its own elements alone, whatever its neighbours are, and however the channels are shared
 * out: to ranges [begin, end) that begin at multiples of LANES and hold at least LANES channels, or all, if inner is 1.
 */
#include "lanes.h"

enum {
    MAX_GROUPS = 33,
    MAX_CHANNELS = MAX_GROUPS * LANES,
    TILE_BYTES = 1 << 21, /* about what a core has of cache */
    AHEAD = 512,          /* elements of a channel to ask for memory ahead of reading: writing it would hinder */
    GATHER_AFTER = 128,   /* additions to a sum in the real type before it goes over to double */
};

/* Some channels, and where they lie. Their elements go by LANES at a time into the lanes of a *group*: where inner > 1,
 * a group is a channel, elsewhere LANES channels side by side; or, of few channels, each of the groups that a *row*
 * consists of, as many rows of x as fill whole groups. Channels that are no multiple of LANES make a last group that
 * overlaps the one before. */
struct tile {
    const real *dy, *x; /* dy is x where there is none */
    real *y;
    int64_t outer, inner, first, channels;
    int64_t groups, whole_groups, rows, stride /* of a row, or of a channel's next elements */, rest;
};

/* What the lanes of a group need, close together: far apart, at equal distances, they would compete for the same places
 * in the first-level cache. SLOPE and OFFSET follow upon the sums. */
enum { HIGH, FACTOR, SHIFT, SUM, DOT, SLOPE = SUM, OFFSET = DOT, ROLES = DOT + 1 };

struct state {
    _Alignas(64) real group[MAX_GROUPS][ROLES][LANES];
    double sum[MAX_CHANNELS], dot[MAX_CHANNELS]; /* per lane, then per channel */
};

/* What is done with the elements: u is dy, or c = x - high in forward. */
enum work {
    SUM_X,    /* SUM <- sum of u, DOT <- sum of u c */
    SUM_DY,   /* the same */
    WRITE_Y,  /* y = c FACTOR + SHIFT */
    WRITE_DX, /* dx = u FACTOR - c SLOPE + OFFSET */
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static struct tile tile_at(int64_t first, int64_t end, const int64_t *size, const real *dy, const real *x, real *y)
{
    const int64_t outer = size[0], channels = size[1], inner = size[2], at = first * inner, left = end - first;
    struct tile t = {.dy = dy + at, .x = x + at, .y = y + at, .outer = outer, .inner = inner, .first = first};
    if (inner > 1) {
        const int64_t fit = TILE_BYTES / (int64_t)sizeof(real) / (outer * inner);
        t.channels = least(left, fit < 1 ? 1 : least(fit, MAX_GROUPS));
        t.groups = t.channels;
        t.stride = channels * inner;
    } else if (channels >= LANES) {
        t.channels = left <= MAX_CHANNELS ? left : MAX_CHANNELS - LANES; /* leaves LANES or more for the next */
        t.groups = (t.channels + LANES - 1) / LANES;
        t.whole_groups = t.channels / LANES;
        t.rows = outer;
        t.stride = channels;
    } else {
        t.channels = t.stride = channels;
        while (t.stride % LANES)
            t.stride *= 2;
        t.groups = t.whole_groups = t.stride / LANES;
        t.rows = outer * channels / t.stride;
        t.rest = outer * channels % t.stride;
    }
    return t;
}

/* What a group needs, in registers. */
struct held {
    lanes high, factor, shift, slope, offset, sum, dot;
};

/* Does the work on one row of a group. Of u, lanes where `keep` is 0 are not added, where it is given. */
INLINE void one_row(enum work work, int relu, struct held *h, const real *dy, const real *x, real *y, const word *keep)
{
    const int backward = work == SUM_DY || work == WRITE_DX;
    const lanes c = lanes_subtract(lanes_load(x), h->high), normal = lanes_add(lanes_multiply(c, h->factor), h->shift);
    lanes u = backward ? lanes_load(dy) : c;
    if (backward && relu)
        u = lanes_gate(u, normal);
    if (work == WRITE_Y) {
        lanes_store(y, relu ? lanes_gate(normal, normal) : normal);
    } else if (work == WRITE_DX) {
        const lanes change = lanes_subtract(lanes_multiply(u, h->factor), lanes_multiply(c, h->slope));
        lanes_store(y, lanes_add(change, h->offset));
    } else {
        if (keep)
            u = lanes_keep(u, keep);
        h->sum = lanes_add(h->sum, u);
        h->dot = lanes_add(h->dot, lanes_multiply(u, c));
    }
}

/* Does the work on rows of a group, and if `keep` is given, on one more that begins `back` elements early. */
INLINE void strip(enum work work, int relu, real group[ROLES][LANES], const real *dy, const real *x, real *y,
                  int64_t rows, int64_t stride, int64_t ahead, int64_t back, const word *keep)
{
    struct held h = {lanes_load(group[HIGH]),  lanes_load(group[FACTOR]), lanes_load(group[SHIFT]),
                     lanes_load(group[SLOPE]), lanes_load(group[OFFSET]), lanes_load(group[SUM]),
                     lanes_load(group[DOT])};
    for (; rows > 0; --rows, dy += stride, x += stride, y += stride) {
        if (ahead)
            lanes_prefetch(x, ahead);
        if (ahead && work == SUM_DY)
            lanes_prefetch(dy, ahead);
        one_row(work, relu, &h, dy, x, y, NULL);
    }
    if (keep)
        one_row(work, relu, &h, dy - back, x - back, y - back, keep);
    if (work == SUM_X || work == SUM_DY) {
        lanes_store(group[SUM], h.sum);
        lanes_store(group[DOT], h.dot);
    }
}

/* For the mask of the first n lanes, begin at 2 LANES - n; for that of the last n, at n. */
static const word edges[3 * LANES] = {[LANES... 2 * LANES - 1] = ~(word)0};

/* Does the work on fewer elements than LANES, in a copy. */
INLINE void short_strip(enum work work, int relu, real group[ROLES][LANES], const real *dy, const real *x, real *y,
                        int64_t n)
{
    real some_dy[LANES] = {0}, some_x[LANES] = {0}, some_y[LANES];
    memcpy(some_dy, dy, n * sizeof(real));
    memcpy(some_x, x, n * sizeof(real));
    strip(work, relu, group, some_dy, some_x, some_y, 0, 0, 0, 0, edges + 2 * LANES - n);
    if (work == WRITE_Y || work == WRITE_DX)
        memcpy(y, some_y, n * sizeof(real));
}

/* Moves the sums over to double, where long sums lose nothing. */
static void gather(const struct tile *t, struct state *s)
{
    for (int64_t g = 0; g < t->groups; ++g) {
        real *sum = s->group[g][SUM], *dot = s->group[g][DOT];
#pragma omp simd
        for (int64_t l = 0; l < LANES; ++l) {
            s->sum[g * LANES + l] += sum[l];
            s->dot[g * LANES + l] += dot[l];
            sum[l] = dot[l] = 0;
        }
    }
}

/* One pass over a tile whose channels have their elements side by side. */
INLINE void walk_images(enum work work, int relu, const struct tile *t, struct state *s)
{
    const int sums = work == SUM_X || work == SUM_DY;
    const int64_t inner = t->inner, groups = t->groups;
    int64_t added = 0;
    for (int64_t outer = 0; outer < t->outer; ++outer)
        for (int64_t start = 0; start < inner; start += GATHER_AFTER * LANES) {
            const int64_t n = least(inner - start, GATHER_AFTER * LANES), rows = n / LANES, rest = n % LANES;
            const word *keep = rest ? edges + rest : NULL;
            const real *dy = t->dy + outer * t->stride + start, *x = t->x + outer * t->stride + start;
            real *y = t->y + outer * t->stride + start;
            if (inner < LANES)
                for (int64_t g = 0, at = 0; g < groups; ++g, at += inner)
                    short_strip(work, relu, s->group[g], dy + at, x + at, y + at, n);
            else
                for (int64_t g = 0; g < groups; ++g, dy += inner, x += inner, y += inner)
                    strip(work, relu, s->group[g], dy, x, y, rows, LANES, sums ? AHEAD : 0, LANES - rest, keep);
            added += rows + (rest > 0);
            if (sums && added >= GATHER_AFTER) {
                gather(t, s);
                added = 0;
            }
        }
}

/* One pass over a tile whose channels stand side by side. */
INLINE void walk_rows(enum work work, int relu, const struct tile *t, struct state *s)
{
    const int sums = work == SUM_X || work == SUM_DY;
    const int64_t stride = t->stride, groups = t->groups, whole = t->whole_groups;
    /* Rows that share one load of what their group needs; their number divides GATHER_AFTER. */
    const int64_t together = (groups < 4 ? 4 : 1) * (sums ? 4 : 1), ahead = sums ? together * stride : 0;
    const real *dy = t->dy, *x = t->x;
    real *y = t->y;
    for (int64_t row = 0, rows; row < t->rows; row += rows) {
        rows = least(together, t->rows - row);
        for (int64_t g = 0, at = 0; g < whole; ++g, at += LANES)
            strip(work, relu, s->group[g], dy + at, x + at, y + at, rows, stride, ahead, 0, NULL);
        if (whole < groups) {
            const int64_t at = t->channels - LANES;
            strip(work, relu, s->group[whole], dy + at, x + at, y + at, rows, stride, ahead, 0, NULL);
        }
        if (sums && (row + rows) % GATHER_AFTER == 0)
            gather(t, s);
        dy += rows * stride;
        x += rows * stride;
        y += rows * stride;
    }
    for (int64_t g = 0, at = 0; at < t->rest; ++g, at += LANES)
        short_strip(work, relu, s->group[g], dy + at, x + at, y + at, least(t->rest - at, LANES));
}

INLINE void walk(enum work work, int relu, const struct tile *t, struct state *s)
{
    if (t->inner > 1)
        walk_images(work, relu, t, s);
    else
        walk_rows(work, relu, t, s);
}

/* A walk for each kind of work; what differs is fixed before the loops. */
static void pass(enum work work, int relu, const struct tile *t, struct state *s)
{
    if (work == SUM_X)
        walk(SUM_X, 0, t, s);
    else if (work == SUM_DY && relu)
        walk(SUM_DY, 1, t, s);
    else if (work == SUM_DY)
        walk(SUM_DY, 0, t, s);
    else if (work == WRITE_Y && relu)
        walk(WRITE_Y, 1, t, s);
    else if (work == WRITE_Y)
        walk(WRITE_Y, 0, t, s);
    else if (relu)
        walk(WRITE_DX, 1, t, s);
    else
        walk(WRITE_DX, 0, t, s);
}

/* Adds up what belongs to one channel. */
static void fold(const struct tile *t, double *total)
{
    if (t->inner > 1)
        for (int64_t g = 0; g < t->groups; ++g) {
            double *lane = total + g * LANES;
            for (int64_t half = LANES / 2; half > 0; half /= 2)
                for (int64_t l = 0; l < half; ++l)
                    lane[l] += lane[l + half];
            total[g] = lane[0];
        }
    else if (t->channels >= LANES)
        memmove(total + t->channels - LANES, total + (t->groups - 1) * LANES, LANES * sizeof *total);
    else
        for (int64_t half = t->stride / 2; half >= t->channels; half /= 2)
            for (int64_t l = 0; l < half; ++l)
                total[l] += total[l + half];
}

static void channel_sums(enum work work, int relu, const struct tile *t, struct state *s)
{
    for (int64_t g = 0; g < t->groups; ++g) {
        lanes_store(s->group[g][SUM], lanes_all(0));
        lanes_store(s->group[g][DOT], lanes_all(0));
    }
    memset(s->sum, 0, t->groups * LANES * sizeof *s->sum);
    memset(s->dot, 0, t->groups * LANES * sizeof *s->dot);
    pass(work, relu, t, s);
    gather(t, s);
    fold(t, s->sum);
    fold(t, s->dot);
}

/* Gives every lane what its channel has; `value` has room for all lanes. */
static void spread(const struct tile *t, real *value, int role, struct state *s)
{
    for (int64_t l = t->channels; l < t->groups * LANES && t->inner == 1; ++l)
        value[l] = value[l - t->channels];
    for (int64_t g = 0; g < t->groups; ++g)
        lanes_store(s->group[g][role], t->inner > 1           ? lanes_all(value[g])
                                       : g == t->whole_groups ? lanes_load(value + t->channels - LANES)
                                                              : lanes_load(value + g * LANES));
}

/* Of the channels of a tile, learnt values, or a substitute where there are none. */
static void learnt(const struct tile *t, const real *learnt, real substitute, real *value)
{
    for (int64_t j = 0; j < t->channels; ++j)
        value[j] = substitute;
    if (learnt)
        memcpy(value, learnt + t->first, t->channels * sizeof(real));
}

/* Prepares y = (x - high) FACTOR + SHIFT. All kernels do that here, so forward and backward see the same y. */
static void set_affine(const struct tile *t, const double *mean, const double *inv_std, const real *scale,
                       const real *shift, struct state *s)
{
    real high[MAX_CHANNELS], factor[MAX_CHANNELS], moved[MAX_CHANNELS];
    learnt(t, scale, 1, factor);
    learnt(t, shift, 0, moved);
#pragma omp simd
    for (int64_t j = 0; j < t->channels; ++j) {
        const double a = factor[j] * inv_std[j];
        high[j] = mean[j];
        factor[j] = a;
        moved[j] = moved[j] - (mean[j] - high[j]) * a;
    }
    spread(t, high, HIGH, s);
    spread(t, factor, FACTOR, s);
    spread(t, moved, SHIFT, s);
}

/* Values near the means of the channels: of eight elements each, from here and there. */
static void pilot_means(const struct tile *t, real *high)
{
    for (int64_t j = 0; j < t->channels; ++j)
        high[j] = 0;
    for (int64_t i = 0; i < 8; ++i) {
        const int64_t row = t->inner > 1 || t->channels >= LANES ? t->stride : t->channels;
        const real *some = t->x + i * t->outer / 8 * row + i * t->inner / 8;
        if (t->inner == 1)
            for (int64_t j = 0; j < t->channels; ++j)
                high[j] += some[j] * (real)0.125;
        else
            for (int64_t j = 0; j < t->channels; ++j)
                high[j] += some[j * t->inner] * (real)0.125;
    }
}

static void batch_norm_forward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0], *scale = array[1], *shift = array[2];
    real *y = array[3], *running_mean = array[6], *running_var = array[7];
    const int64_t begin = 0, end = size[1], relu = size[3];
    const double eps = scalar[0], new_weight = scalar[1], variance_factor = scalar[2];
    const double count = (double)size[0] * size[2], share = 1 / count;
    if (count == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = begin; first < end; first += t.channels) {
        t = tile_at(first, end, size, x, x, y);
        double *mean = (double *)array[4] + first, *inv_std = (double *)array[5] + first, var[MAX_CHANNELS];
        real high[MAX_CHANNELS];
        pilot_means(&t, high);
        /* Sums about a value within two standard deviations of the mean give the variance to nearly all digits.
         * Where it is further away, they at least give the mean, about which sums are then taken. */
        for (int passes = 0, again = 1; again && passes < 2; ++passes) {
            spread(&t, high, HIGH, &s);
            channel_sums(SUM_X, 0, &t, &s);
            again = 0;
            for (int64_t j = 0; j < t.channels && passes == 0; ++j) {
                const int far = s.sum[j] * s.sum[j] > 0.8 * count * s.dot[j];
                high[j] += far ? (real)(s.sum[j] * share) : 0;
                again |= far;
            }
        }
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j) {
            const double off = s.sum[j] * share; /* of the mean from high */
            const double rounded = s.dot[j] * share - off * off;
            var[j] = rounded < 0 ? 0 : rounded;
            mean[j] = high[j] + off;
            inv_std[j] = 1 / sqrt(var[j] + eps);
        }
        for (int64_t j = 0; running_mean && j < t.channels; ++j) {
            running_mean[first + j] += new_weight * (mean[j] - running_mean[first + j]);
            running_var[first + j] += new_weight * (variance_factor * var[j] - running_var[first + j]);
        }
        set_affine(&t, mean, inv_std, scale, shift, &s);
        pass(WRITE_Y, relu, &t, &s);
    }
}

static void batch_norm_inference(void *const *array, const int64_t *size, const double *scalar)
{
    const real *x = array[0], *scale = array[1], *shift = array[2], *running_mean = array[3], *running_var = array[4];
    real *y = array[5];
    const int64_t begin = 0, end = size[1], relu = size[3];
    const double eps = scalar[0];
    if (size[0] * size[2] == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = begin; first < end; first += t.channels) {
        t = tile_at(first, end, size, x, x, y);
        double mean[MAX_CHANNELS], inv_std[MAX_CHANNELS];
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j) {
            mean[j] = running_mean[first + j];
            inv_std[j] = 1 / sqrt(running_var[first + j] + eps);
        }
        set_affine(&t, mean, inv_std, scale, shift, &s);
        pass(WRITE_Y, relu, &t, &s);
    }
}

static void batch_norm_backward(void *const *array, const int64_t *size, const double *scalar)
{
    const real *dy = array[0], *x = array[1], *scale = array[2], *shift = array[3];
    real *dx = array[6], *dscale = array[7], *dshift = array[8];
    const int64_t begin = 0, end = size[1], relu = size[3];
    const double count = (double)size[0] * size[2], share = 1 / count;
    (void)scalar;
    if (count == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = begin; first < end; first += t.channels) {
        t = tile_at(first, end, size, dy, x, dx);
        const double *mean = (double *)array[4] + first, *inv_std = (double *)array[5] + first;
        set_affine(&t, mean, inv_std, scale, shift, &s);
        channel_sums(SUM_DY, relu, &t, &s);

        real slope[MAX_CHANNELS], offset[MAX_CHANNELS];
        learnt(&t, scale, 1, slope);
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j) {
            const double off = mean[j] - (real)mean[j]; /* of the mean from high */
            const double sum = s.sum[j], product = (s.dot[j] - off * sum) * inv_std[j], a = slope[j] * inv_std[j];
            const double q = a * product * share * inv_std[j];
            slope[j] = q;
            offset[j] = off * q - a * sum * share;
            dscale[first + j] = product;
            dshift[first + j] = sum;
        }
        spread(&t, slope, SLOPE, &s);
        spread(&t, offset, OFFSET, &s);
        pass(WRITE_DX, relu, &t, &s);
    }
}
