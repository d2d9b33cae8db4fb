/* Batch normalisation (Ioffe & Szegedy 2015) of x (outer, channels, inner), per channel:
 *
 *   forward    y = (x - mean) a + shift,  a = scale / sqrt(var + eps)
 *   backward   dx = a (dy - mean(dy) - c mean(dy c) / (var + eps)),  c = x - mean
 *              dshift = sum(dy),  dscale = sum(dy c) / sqrt(var + eps)
 *
 * With relu, y = max(y, 0), and dy counts as 0 where y is 0: backward computes y again, from the same numbers in the
 * same way. With dropout behind it, backward sees where y is 0, for either reason, in y itself.
 *
 * Elements enter as x - high, high being a real near the mean: that is exact where it matters, so large offsets
 * cost no digits. What separates high from the mean is put right in double, once per channel.
 *
 * A channel's bits depend on its own elements alone, whatever its neighbours are, and however the channels are shared
 * out: to ranges [begin, end) that begin at multiples of LANES and hold at least LANES channels, or all, if inner is 1.
 * Where that gives too few threads work, rows are shared out instead: one call takes the sums of blocks of rows, and
 * the next has every thread add up those of all blocks, in order, and write its own rows.
 */
#include "../kernel.h"
#include "batch_norm.h"
#include "lanes.h"
#include "mask.h"
#include "share.h"

enum {
    MAX_GROUPS = 34,
    MAX_CHANNELS = MAX_GROUPS * LANES,
    STRETCH = 1 << 16, /* bytes side by side after which a jump in memory hardly counts */
    CACHED = 3 << 17,  /* bytes of each array that stay in the second-level cache */
    AHEAD = 512,       /* elements to ask for memory ahead of reading; before writing that would hinder */
};

/* x, and how the rows of sums divide it: see kernels.def. */
struct norm_shape {
    int64_t outer, channels, inner, blocks;
};

/* Where elements are read and written. */
struct elements {
    const real *dy, *x, *seen; /* seen is the y that forward wrote */
    real *y;
    real dy_factor; /* of dropout, which dy went through last */
};

/* x stands in for arrays that are not there; y then is not written. */
static struct elements elements(const real *dy, const real *x, const real *seen, real *y, real dy_factor)
{
    return (struct elements){dy ? dy : x, x, seen ? seen : x, y ? y : (real *)x, dy_factor};
}

INLINE struct elements later(struct elements e, int64_t n)
{
    return (struct elements){e.dy + n, e.x + n, e.seen + n, e.y + n, e.dy_factor};
}

/* Some channels, and where they lie. Their elements go by LANES at a time into the lanes of a *group*.
 * Where inner > 1, each channel is a group. Elsewhere, groups lie side by side in a *row*: that is a row of x, or of
 * few channels, as many rows of x as fill whole groups. The row's first and last group may overlap their neighbours:
 * the last where a row does not end with a group, the first so that the following begin with a cache line. */
struct tile {
    struct elements at;
    int64_t outer, inner, first, channels;
    int64_t stride; /* of a row, or to a channel's next elements */
    int64_t groups, width, head /* elements of a row before the second group, if the first overlaps */;
    int64_t begin, rows, rest; /* the first row that is to be done, where rows end, and elements after them */
    int64_t blocks;            /* of rows, where these are shared out */
};

/* What the lanes of a group need, close together: far apart, at equal distances, they would compete for the same places
 * in the first-level cache. When the sums are done, SLOPE and OFFSET take their
 * places. */
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

INLINE int is_sum(enum work work)
{
    return work == SUM_X || work == SUM_DY;
}

/* The channels that are a thread's: all, where rows are shared out. */
static struct range own_channels(const struct norm_shape *shape, const double *sums, struct fastopt_share share)
{
    if (sums)
        return (struct range){0, shape->channels};
    const int64_t channels = shape->channels, grain = shape->inner > 1 ? 1 : LANES,
                  units = channels < grain ? 1 : channels / grain;
    const struct range own = own_range(units, 1, share);
    const int last = own.begin < own.end && own.end == units;
    return (struct range){own.begin * grain, last ? channels : own.end * grain};
}

static struct tile tile_at(int64_t first, int64_t end, const struct norm_shape *shape, struct elements all)
{
    const int64_t outer = shape->outer, channels = shape->channels, inner = shape->inner;
    const int64_t at = first * inner, left = end - first;
    struct tile t = {.at = later(all, at), .outer = outer, .inner = inner, .blocks = shape->blocks, .first = first};
    if (inner > 1) {
        const int64_t bytes = outer > 32 ? STRETCH : CACHED / outer, fit = bytes / (inner * (int64_t)sizeof(real));
        t.channels = minimum(left, maximum(1, minimum(fit, MAX_GROUPS)));
        t.groups = t.channels;
        t.stride = channels * inner;
    } else if (channels >= LANES) {
        t.channels = t.width = left <= MAX_CHANNELS - LANES ? left : MAX_CHANNELS - 2 * LANES; /* or leaves too few */
        t.rows = outer;
        t.stride = channels;
        if (t.channels >= 4 * LANES && channels * sizeof(real) % FASTOPT_LINE == 0)
            t.head = -(uintptr_t)t.at.x % FASTOPT_LINE / sizeof(real);
        t.groups = (t.head > 0) + (t.channels - t.head + LANES - 1) / LANES;
    } else {
        t.channels = t.stride = channels;
        while (t.stride % LANES)
            t.stride *= 2;
        t.width = t.stride;
        t.groups = t.stride / LANES;
        t.rows = outer * channels / t.stride;
        t.rest = outer * channels % t.stride;
    }
    return t;
}

/* Where a group begins in its row. */
static int64_t place(const struct tile *t, int64_t g)
{
    const int64_t at = t->head && g ? t->head + (g - 1) * LANES : g * LANES;
    return minimum(at, t->width - LANES);
}

/* Where the elements of a group lie, as seen from its first. */
struct strip {
    int64_t rows, stride;
    int64_t ahead;    /* elements to ask for memory ahead of reading */
    const word *keep; /* if given, one more row, `back` elements early, of which only these lanes are new */
    int64_t back;
};

/* As many vectors of a group at a time as can stay in registers, with what they need. */
enum { HELD = VECTORS < 4 ? VECTORS : 4 };
#define EACH_HELD(k) _Pragma("GCC unroll 4") for (int k = 0; k < HELD; ++k)

struct held {
    vector role[ROLES][HELD];
};

/* Does the work on one row of them. */
INLINE void one_row(enum work work, enum epilogue epilogue, struct held *h, struct elements e, const word *keep)
{
    const int backward = work == SUM_DY || work == WRITE_DX;
    EACH_HELD (k) {
        const int at = k * PER_VECTOR;
        vector c = vector_load(e.x + at) - h->role[HIGH][k], u = backward ? vector_load(e.dy + at) : c;
        const vector normal = c * h->role[FACTOR][k] + h->role[SHIFT][k];
        if (backward && epilogue == RELU)
            u = vector_gate(u, normal);
        if (backward && epilogue == RELU_DROPOUT)
            u = vector_gate(u * e.dy_factor, vector_load(e.seen + at));
        if (work == WRITE_Y) {
            vector_store(e.y + at, epilogue ? vector_gate(normal, normal) : normal);
        } else if (work == WRITE_DX) {
            vector_store(e.y + at, u * h->role[FACTOR][k] - c * h->role[SLOPE][k] + h->role[OFFSET][k]);
        } else {
            if (keep) {
                c = vector_keep(c, keep + at);
                u = vector_keep(u, keep + at);
            }
            h->role[SUM][k] += u;
            h->role[DOT][k] += u * c;
        }
    }
}

/* The inner loops: all rows of one group, then of the next, which begins `step` elements later. */
INLINE void strips(enum work work, enum epilogue epilogue, real (*group)[ROLES][LANES], int64_t groups, int64_t step,
                   const struct strip *strip, struct elements e)
{
    const struct strip s = *strip;
    for (int64_t g = 0; g < groups; ++g, ++group, e = later(e, step))
        for (int lane = 0; lane < LANES; lane += HELD * PER_VECTOR) {
            struct held h;
            for (int role = 0; role < ROLES; ++role)
                EACH_HELD (k)
                    h.role[role][k] = vector_load((*group)[role] + lane + k * PER_VECTOR);
            const int64_t end = s.rows * s.stride + lane;
            for (int64_t at = lane; at < end; at += s.stride) {
                if (is_sum(work) && lane == 0)
                    lanes_prefetch(e.x + at, s.ahead);
                if (work == SUM_DY && lane == 0)
                    lanes_prefetch(e.dy + at, s.ahead);
                one_row(work, epilogue, &h, later(e, at), NULL);
            }
            if (s.keep) {
                const int64_t at = end - s.back;
                one_row(work, epilogue, &h, later(e, at), s.keep + lane);
            }
            for (int role = SUM; is_sum(work) && role <= DOT; ++role)
                EACH_HELD (k)
                    vector_store((*group)[role] + lane + k * PER_VECTOR, h.role[role][k]);
        }
}

/* Compiles the inner loops for each kind of work. */
static void work_on(enum work work, enum epilogue epilogue, real (*group)[ROLES][LANES], int64_t groups, int64_t step,
                    const struct strip *strip, struct elements e)
{
    if (work == SUM_X)
        strips(SUM_X, NO_EPILOGUE, group, groups, step, strip, e);
    else if (work == WRITE_Y && epilogue)
        strips(WRITE_Y, RELU, group, groups, step, strip, e);
    else if (work == WRITE_Y)
        strips(WRITE_Y, NO_EPILOGUE, group, groups, step, strip, e);
    else if (work == SUM_DY && epilogue == RELU_DROPOUT)
        strips(SUM_DY, RELU_DROPOUT, group, groups, step, strip, e);
    else if (work == SUM_DY && epilogue)
        strips(SUM_DY, RELU, group, groups, step, strip, e);
    else if (work == SUM_DY)
        strips(SUM_DY, NO_EPILOGUE, group, groups, step, strip, e);
    else if (epilogue == RELU_DROPOUT)
        strips(WRITE_DX, RELU_DROPOUT, group, groups, step, strip, e);
    else if (epilogue)
        strips(WRITE_DX, RELU, group, groups, step, strip, e);
    else
        strips(WRITE_DX, NO_EPILOGUE, group, groups, step, strip, e);
}

/* For the mask of the first n lanes, begin at 2 LANES - n; for that of the last n, at n. */
static const word edges[3 * LANES] = {[LANES... 2 * LANES - 1] = ~(word)0};

/* Works on fewer elements of a group than LANES, in a copy. */
static void work_on_few(enum work work, enum epilogue epilogue, real (*group)[ROLES][LANES], int64_t n,
                        struct elements e)
{
    const struct strip row = {.keep = edges + 2 * LANES - n};
    real dy[LANES] = {0}, x[LANES] = {0}, seen[LANES] = {0}, y[LANES];
    memcpy(dy, e.dy, n * sizeof(real));
    memcpy(x, e.x, n * sizeof(real));
    memcpy(seen, e.seen, n * sizeof(real));
    work_on(work, epilogue, group, 1, 0, &row, (struct elements){dy, x, seen, y, e.dy_factor});
    if (!is_sum(work))
        memcpy(e.y, y, n * sizeof(real));
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
static void pass_over_images(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    int64_t added = 0;
    for (int64_t outer = 0; outer < t->outer; ++outer)
        for (int64_t start = 0; start < t->inner; start += NORM_BLOCK * LANES) {
            const int64_t n = minimum(t->inner - start, NORM_BLOCK * LANES), rest = n % LANES;
            const int64_t from = outer * t->stride + start;
            struct strip strip = {n / LANES, LANES, AHEAD, rest ? edges + rest : NULL, LANES - rest};
            int64_t g = t->groups;
            if (t->inner < LANES) { /* a whole vector reaches into the next channels, which mend what it writes there */
                strip.keep = edges + 2 * LANES - n;
                strip.back = 0;
                g = maximum(0, t->groups - (LANES - 1) / n);
            }
            work_on(work, epilogue, s->group, g, t->inner, &strip, later(t->at, from));
            for (int64_t at = from + g * n; g < t->groups; ++g, at += n)
                work_on_few(work, epilogue, s->group + g, n, later(t->at, at));
            added += strip.rows + (rest > 0);
            if (is_sum(work) && added >= NORM_BLOCK) {
                gather(t, s);
                added = 0;
            }
        }
}

/* Rows that share one load of what their group needs: a divisor of NORM_BLOCK. Measured: narrow rows want many, wide
 * ones few, as rows of 4 KiB all want the same places in the first-level cache; and writing likes one long stretch. */
static int64_t rows_together(enum work work, int64_t groups)
{
    if (groups < 8)
        return groups < 2 ? 64 : is_sum(work) ? 16 : 4;
    return work == SUM_X || (work == SUM_DY && groups < 24) ? 4 : 1;
}

/* One pass over a tile whose channels stand side by side. */
static void pass_over_rows(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    const int64_t together = rows_together(work, t->groups);
    const int64_t first = t->head > 0, whole = (t->width - t->head) / LANES;
    for (int64_t row = t->begin; row < t->rows; row += together) {
        const struct strip strip = {minimum(together, t->rows - row), t->stride, together * t->stride, NULL, 0};
        const struct elements e = later(t->at, row * t->stride);
        if (first)
            work_on(work, epilogue, s->group, 1, 0, &strip, e);
        work_on(work, epilogue, s->group + first, whole, LANES, &strip, later(e, t->head));
        if (first + whole < t->groups)
            work_on(work, epilogue, s->group + t->groups - 1, 1, 0, &strip, later(e, t->width - LANES));
        if ((row + strip.rows) % NORM_BLOCK == 0 && is_sum(work))
            gather(t, s);
    }
    for (int64_t g = 0, at = t->rows * t->stride, rest = t->rest; rest > 0; ++g, at += LANES, rest -= LANES)
        work_on_few(work, epilogue, s->group + g, minimum(rest, LANES), later(t->at, at));
}

static void pass(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    if (t->inner > 1)
        pass_over_images(work, epilogue, t, s);
    else
        pass_over_rows(work, epilogue, t, s);
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
        for (int64_t g = 0; g < t->groups; ++g)
            memmove(total + place(t, g), total + g * LANES, LANES * sizeof *total);
    else
        for (int64_t half = t->stride / 2; half >= t->channels; half /= 2)
            for (int64_t l = 0; l < half; ++l)
                total[l] += total[l + half];
}

/* Rows may be shared out, too, in blocks of NORM_BLOCK; what is left at the end goes with the last one. Of each, the
 * sums are those that `gather` would add in its turn. These are the rows of some blocks, which may be none. */
static struct tile rows_of(const struct tile *t, struct range blocks)
{
    struct tile some = *t;
    some.begin = blocks.begin * NORM_BLOCK;
    if (blocks.begin == blocks.end || blocks.end < t->blocks) {
        some.rows = blocks.end * NORM_BLOCK;
        some.rest = 0;
    }
    return some;
}

static void sum_up(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    for (int64_t g = 0; g < t->groups; ++g) {
        lanes_store(s->group[g][SUM], lanes_all(0));
        lanes_store(s->group[g][DOT], lanes_all(0));
    }
    memset(s->sum, 0, t->groups * LANES * sizeof *s->sum);
    memset(s->dot, 0, t->groups * LANES * sizeof *s->dot);
    pass(work, epilogue, t, s);
    gather(t, s);
}

/* Of a thread's blocks, the sums of all lanes, to sums (blocks, 2, lanes). */
static void block_sums(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s,
                       struct fastopt_share share, double *sums)
{
    const int64_t lanes = t->groups * LANES;
    const struct range own = own_range(t->blocks, 1, share);
    for (int64_t block = own.begin; block < own.end; ++block) {
        const struct tile one = rows_of(t, (struct range){block, block + 1});
        sum_up(work, epilogue, &one, s);
        memcpy(sums + 2 * block * lanes, s->sum, lanes * sizeof *sums);
        memcpy(sums + (2 * block + 1) * lanes, s->dot, lanes * sizeof *sums);
    }
}

/* The sums of a tile's channels, from those of all blocks where they are given. */
static void channel_sums(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s,
                         const double *sums)
{
    const int64_t lanes = t->groups * LANES;
    if (sums) {
        memset(s->sum, 0, lanes * sizeof *s->sum);
        memset(s->dot, 0, lanes * sizeof *s->dot);
        for (const double *end = sums + 2 * t->blocks * lanes; sums < end; sums += 2 * lanes)
            for (int64_t l = 0; l < lanes; ++l) {
                s->sum[l] += sums[l];
                s->dot[l] += sums[lanes + l];
            }
    } else {
        sum_up(work, epilogue, t, s);
    }
    fold(t, s->sum);
    fold(t, s->dot);
}

/* Gives every lane what its channel has; `value` has room for all lanes. */
static void spread(const struct tile *t, real *value, int role, struct state *s)
{
    for (int64_t l = t->channels; l < t->width; ++l)
        value[l] = value[l - t->channels];
    for (int64_t g = 0; g < t->groups; ++g)
        lanes_store(s->group[g][role], t->inner > 1 ? lanes_all(value[g]) : lanes_load(value + place(t, g)));
}

static void set_affine(const struct tile *t, const double *mean, const double *inv_std, const real *scale,
                       const real *shift, struct state *s)
{
    real high[MAX_CHANNELS], factor[MAX_CHANNELS], moved[MAX_CHANNELS];
    affine(t->first, t->channels, mean, inv_std, scale, shift, high, factor, moved);
    spread(t, high, HIGH, s);
    spread(t, factor, FACTOR, s);
    spread(t, moved, SHIFT, s);
}

/* Values near the means of the channels: of eight elements each, from here and there. */
static void pilot_means(const struct tile *t, int64_t channels, real *high)
{
    for (int64_t j = 0; j < t->channels; ++j)
        high[j] = 0;
    for (int64_t i = 0; i < 8; ++i) {
        const real *some = t->at.x + (i * t->outer / 8 * channels) * t->inner + i * t->inner / 8;
        if (t->inner == 1)
            for (int64_t j = 0; j < t->channels; ++j)
                high[j] += some[j] * (real)0.125;
        else
            for (int64_t j = 0; j < t->channels; ++j)
                high[j] += some[j * t->inner] * (real)0.125;
    }
}

/* Moves those values to the mean that are further from it than two standard deviations; returns how many. */
static int recentre(const struct tile *t, const struct state *s, double weight, real *high)
{
    double moved = 0;
#pragma omp simd reduction(+ : moved)
    for (int64_t j = 0; j < t->channels; ++j) {
        const double off = s->sum[j] * weight, move = s->sum[j] * off > 0.8 * s->dot[j] ? off : 0;
        high[j] += move;
        moved += move != 0 ? 1 : 0;
    }
    return moved;
}

/* Dropout of a tile: of its rows if it has all channels, else of its channels, from one `outer` to the next. */
static void drop_out_tile(const struct drawing *d, const struct tile *t, int64_t channels, real *y)
{
    const int64_t whole = channels * t->inner, own = t->channels * t->inner;
    if (own == whole && t->inner == 1) {
        drop_out(d, y, (struct range){t->begin * t->stride, t->rows * t->stride + t->rest});
    } else if (own == whole) {
        drop_out(d, y, (struct range){0, t->outer * whole});
    } else {
        for (int64_t begin = t->first * t->inner; begin < t->outer * whole; begin += whole)
            drop_out(d, y, (struct range){begin, begin + own});
    }
}

static void batch_norm_sums(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_sums_args *a = arguments;
    const struct norm_shape shape = {a->outer, a->channels, a->inner, a->blocks};
    struct state s;
    real high[MAX_CHANNELS];
    const struct tile t = tile_at(0, a->channels, &shape, elements(NULL, a->x, NULL, NULL, 1));
    pilot_means(&t, a->channels, high);
    spread(&t, high, HIGH, &s);
    block_sums(SUM_X, NO_EPILOGUE, &t, &s, share, a->sums);
}

static void batch_norm_forward(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_forward_args *a = arguments;
    const struct norm_shape shape = {a->outer, a->channels, a->inner, a->blocks};
    const real *scale = a->scale, *shift = a->shift;
    const double *sums = a->sums;
    real *y = a->y, *running_mean = a->running_mean, *running_var = a->running_var;
    const enum epilogue epilogue = a->epilogue;
    const struct drawing drawing = {a->seed, a->counter, (uint16_t)a->threshold, a->factor};
    const struct range own = own_channels(&shape, sums, share);
    const double eps = a->eps, new_weight = a->new_weight, variance_factor = a->variance_factor;
    const double count = (double)a->outer * a->inner, weight = 1 / count;
    if (count == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = own.begin; first < own.end; first += t.channels) {
        t = tile_at(first, own.end, &shape, elements(NULL, a->x, NULL, y, 1));
        double mean[MAX_CHANNELS], inv_std[MAX_CHANNELS], var[MAX_CHANNELS];
        real high[MAX_CHANNELS];
        pilot_means(&t, a->channels, high);
        /* Sums about a value within two standard deviations of the mean give the variance to nearly all digits.
         * Where it is further away, they at least give the mean, about which sums are then taken. */
        for (int passes = 0, again = 1; again && passes < 2; ++passes) {
            spread(&t, high, HIGH, &s);
            channel_sums(SUM_X, NO_EPILOGUE, &t, &s, passes ? NULL : sums);
            again = passes == 0 && recentre(&t, &s, weight, high);
        }
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j) {
            const double off = s.sum[j] * weight; /* of the mean from high */
            const double rounded = s.dot[j] * weight - off * off;
            var[j] = rounded < 0 ? 0 : rounded;
            mean[j] = high[j] + off;
            inv_std[j] = 1 / sqrt(var[j] + eps);
        }
        if (!sums || share.index == 0) {
            memcpy(a->mean + first, mean, t.channels * sizeof *mean);
            memcpy(a->inv_std + first, inv_std, t.channels * sizeof *inv_std);
            for (int64_t j = 0; running_mean && j < t.channels; ++j) {
                running_mean[first + j] += new_weight * (mean[j] - running_mean[first + j]);
                running_var[first + j] += new_weight * (variance_factor * var[j] - running_var[first + j]);
            }
        }
        if (!y)
            continue;
        set_affine(&t, mean, inv_std, scale, shift, &s);
        const struct tile own_rows = sums ? rows_of(&t, own_range(t.blocks, 1, share)) : t;
        pass(WRITE_Y, epilogue, &own_rows, &s);
        if (epilogue == RELU_DROPOUT)
            drop_out_tile(&drawing, &own_rows, a->channels, y);
    }
}

static void batch_norm_inference(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_inference_args *a = arguments;
    const struct norm_shape shape = {a->outer, a->channels, a->inner, 0};
    const struct range own = own_channels(&shape, NULL, share);
    if (a->outer * a->inner == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = own.begin; first < own.end; first += t.channels) {
        t = tile_at(first, own.end, &shape, elements(NULL, a->x, NULL, a->y, 1));
        double mean[MAX_CHANNELS], inv_std[MAX_CHANNELS];
        running_statistics(first, t.channels, a->running_mean, a->running_var, a->eps, mean, inv_std);
        set_affine(&t, mean, inv_std, a->scale, a->shift, &s);
        pass(WRITE_Y, a->epilogue, &t, &s);
    }
}

static void batch_norm_grad_sums(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_grad_sums_args *a = arguments;
    const struct norm_shape shape = {a->outer, a->channels, a->inner, a->blocks};
    struct state s;
    const struct tile t = tile_at(0, a->channels, &shape, elements(a->dy, a->x, a->y, NULL, a->factor));
    set_affine(&t, a->mean, a->inv_std, a->scale, a->shift, &s);
    block_sums(SUM_DY, a->epilogue, &t, &s, share, a->sums);
}

static void batch_norm_backward(const void *arguments, struct fastopt_share share)
{
    const struct batch_norm_backward_args *a = arguments;
    const struct norm_shape shape = {a->outer, a->channels, a->inner, a->blocks};
    const real *scale = a->scale, *shift = a->shift;
    const double *sums = a->sums;
    real *dx = a->dx, *dscale = a->dscale, *dshift = a->dshift;
    const enum epilogue epilogue = a->epilogue;
    const struct range own = own_channels(&shape, sums, share);
    const double count = (double)a->outer * a->inner, weight = 1 / count;
    const struct elements all = elements(a->dy, a->x, a->y, dx, a->factor);
    if (count == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = own.begin; first < own.end; first += t.channels) {
        t = tile_at(first, own.end, &shape, all);
        const double *mean = a->mean + first, *inv_std = a->inv_std + first;
        set_affine(&t, mean, inv_std, scale, shift, &s);
        channel_sums(SUM_DY, epilogue, &t, &s, sums);

        double product[MAX_CHANNELS];
        real slope[MAX_CHANNELS], offset[MAX_CHANNELS];
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j)
            product[j] = (s.dot[j] - (mean[j] - (real)mean[j]) * s.sum[j]) * inv_std[j]; /* about the mean, not high */
        for (int64_t j = 0; j < t.channels && (!sums || share.index == 0); ++j) {
            dscale[first + j] = product[j];
            dshift[first + j] = s.sum[j];
        }
        if (!dx)
            continue;
        slopes(first, t.channels, mean, inv_std, scale, weight, product, s.sum, slope, offset);
        spread(&t, slope, SLOPE, &s);
        spread(&t, offset, OFFSET, &s);
        const struct tile own_rows = sums ? rows_of(&t, own_range(t.blocks, 1, share)) : t;
        pass(WRITE_DX, epilogue, &own_rows, &s);
    }
}
