/* Batch normalisation (Ioffe & Szegedy 2015) of x (outer, channels, inner), per channel:
 *
 *   forward    y = (x - mean) a + shift,  a = scale / sqrt(var + eps)
 *   backward   dx = a (dy - mean(dy) - c mean(dy c) / (var + eps)),  c = x - mean
 *              dshift = sum(dy),  dscale = sum(dy c) / sqrt(var + eps)
 *
 * Epilogues: with ReLU, y = max(y, 0), and dy counts as 0 where y is 0, for which backward computes y again, from the
 * same numbers in the same way. With dropout behind the ReLU, backward reads in y itself where that is 0 for either
 * reason.
 *
 * All sums are of x - high, where high is the mean rounded to the real type (at first, an estimate of it): that
 * difference is exact for elements near the mean, so a large offset costs no digits. The rounding error mean - high is
 * corrected in double, once per channel.
 *
 * The work goes by tiles: some channels with all their elements. A tile consists of lane blocks, each of which has
 * LANES accumulators, in the real type, and adds element i to accumulator i % LANES:
 *
 *   channels last (inner = 1)                        channels first (inner > 1)
 *
 *           0       1           last block                     inner
 *         +-------+-------+---+----+--+              outer 0  +-------+-------+----+   the elements of one channel,
 *   row 0 | LANES | LANES |   |    |  |                       | LANES | LANES |rest|   one lane block
 *   row 1 |       |       |   |    |  |                       +-------+-------+----+
 *     …   |       |       |   |    |  |              outer 1  +-------+-------+----+   stride further on
 *         +-------+-------+---+----+--+                       |       |       |    |
 *                              overlaps the one before it     +-------+-------+----+
 *
 * Where there are fewer channels than LANES, as many rows of x as fill whole lane blocks pass for one row. After
 * NORM_BLOCK additions, accumulators are flushed to double.
 *
 * A channel's bits depend on its own elements alone, whatever its neighbours are, and however the channels are shared
 * out: to ranges [begin, end) that begin at multiples of LANES and hold at least LANES channels, or all, if inner is 1.
 * Where that gives too few threads work, rows are shared out instead: one call takes the sums of blocks of NORM_BLOCK
 * rows, and the next has every thread add up those of all blocks, in order, and write its own rows.
 */
#include "../kernel.h"
#include "batch_norm.h"
#include "lanes.h"
#include "mask.h"
#include "share.h"

enum {
    MAX_LANE_BLOCKS = 34,
    MAX_CHANNELS = MAX_LANE_BLOCKS * LANES,
    CONTIGUOUS = 1 << 16, /* bytes side by side after which a jump in memory hardly counts */
    CACHED = 3 << 17,     /* bytes of each array that stay in the second-level cache */
    AHEAD = 512,          /* elements by which sums prefetch; in passes that write, prefetching hinders */
};

/* The axes of x, and how many blocks of rows there are where these are shared out. */
struct norm_shape {
    int64_t outer, channels, inner, blocks;
};

/* Where elements are read and written. */
struct elements {
    const real *dy, *x, *forward_y;
    real *y;        /* or dx */
    real dy_factor; /* of the dropout behind the norm */
};

/* x stands in for arrays that are not there; y then is not written. */
static struct elements elements(const real *dy, const real *x, const real *forward_y, real *y, real dy_factor)
{
    return (struct elements){dy ? dy : x, x, forward_y ? forward_y : x, y ? y : (real *)x, dy_factor};
}

INLINE struct elements advance(struct elements e, int64_t n)
{
    return (struct elements){e.dy + n, e.x + n, e.forward_y + n, e.y + n, e.dy_factor};
}

/* Some channels, as drawn above. The first lane block may overlap the second, so that this and the following begin with
 * a cache line. */
struct tile {
    struct elements at;
    int64_t outer, inner, first, channels;
    int64_t stride;             /* from row to row, or to a channel's next elements */
    int64_t lane_blocks, width; /* of a row */
    int64_t head;               /* elements of a row before the second lane block, if the first overlaps that, else 0 */
    int64_t begin, rows, rest;  /* the first row that is to be done, where rows end, and elements after them */
    int64_t blocks;             /* of rows, where these are shared out */
};

/* What a lane block needs for each lane, side by side in memory: in arrays of their own, at equal distances, these
 * would be in L1 set conflict. When the sums are done, SLOPE and OFFSET take their places. */
enum { HIGH, FACTOR, SHIFT, SUM, DOT, SLOPE = SUM, OFFSET = DOT, ROLES = DOT + 1 };

struct state {
    _Alignas(64) real lane_block[MAX_LANE_BLOCKS][ROLES][LANES];
    double sum[MAX_CHANNELS], dot[MAX_CHANNELS]; /* per lane, then per channel */
};

/* The passes over the elements: u is dy, or in forward c = x - high. */
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

/* A thread's share of the channels: all of them where rows are shared out. */
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
    struct tile t = {.at = advance(all, at), .outer = outer, .inner = inner, .blocks = shape->blocks, .first = first};
    if (inner > 1) {
        const int64_t bytes = outer > 32 ? CONTIGUOUS : CACHED / outer, fit = bytes / (inner * (int64_t)sizeof(real));
        t.channels = minimum(left, maximum(1, minimum(fit, MAX_LANE_BLOCKS)));
        t.lane_blocks = t.channels;
        t.stride = channels * inner;
    } else if (channels >= LANES) {
        t.channels = t.width =
            left <= MAX_CHANNELS - LANES ? left : MAX_CHANNELS - 2 * LANES; /* what is left must be at least LANES */
        t.rows = outer;
        t.stride = channels;
        if (t.channels >= 4 * LANES && channels * sizeof(real) % FASTOPT_LINE == 0)
            t.head = -(uintptr_t)t.at.x % FASTOPT_LINE / sizeof(real);
        t.lane_blocks = (t.head > 0) + (t.channels - t.head + LANES - 1) / LANES;
    } else {
        t.channels = t.stride = channels;
        while (t.stride % LANES)
            t.stride *= 2;
        t.width = t.stride;
        t.lane_blocks = t.stride / LANES;
        t.rows = outer * channels / t.stride;
        t.rest = outer * channels % t.stride;
    }
    return t;
}

/* Where a lane block begins in its row. */
static int64_t block_start(const struct tile *t, int64_t b)
{
    const int64_t at = t->head && b ? t->head + (b - 1) * LANES : b * LANES;
    return minimum(at, t->width - LANES);
}

/* The elements of a lane block, relative to its first. */
struct strip {
    int64_t rows, stride;
    int64_t ahead; /* elements by which sums prefetch */
    /* If keep is given, there is one more row, which begins `back` elements early, and of which only these lanes count.
     */
    const word *keep;
    int64_t back;
};

/* As many vectors of a lane block at a time as stay in registers, with what they need. */
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
            u = vector_gate(u * e.dy_factor, vector_load(e.forward_y + at));
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

/* The inner loops: all rows of one lane block, then of the next, which begins `step` elements later. */
INLINE void strips(enum work work, enum epilogue epilogue, real (*lane_block)[ROLES][LANES], int64_t lane_blocks,
                   int64_t step, const struct strip *strip, struct elements e)
{
    const struct strip s = *strip;
    for (int64_t b = 0; b < lane_blocks; ++b, ++lane_block, e = advance(e, step))
        for (int lane = 0; lane < LANES; lane += HELD * PER_VECTOR) {
            struct held h;
            for (int role = 0; role < ROLES; ++role)
                EACH_HELD (k)
                    h.role[role][k] = vector_load((*lane_block)[role] + lane + k * PER_VECTOR);
            const int64_t end = s.rows * s.stride + lane;
            for (int64_t at = lane; at < end; at += s.stride) {
                if (is_sum(work) && lane == 0)
                    lanes_prefetch(e.x + at, s.ahead);
                if (work == SUM_DY && lane == 0)
                    lanes_prefetch(e.dy + at, s.ahead);
                one_row(work, epilogue, &h, advance(e, at), NULL);
            }
            if (s.keep) {
                const int64_t at = end - s.back;
                one_row(work, epilogue, &h, advance(e, at), s.keep + lane);
            }
            for (int role = SUM; is_sum(work) && role <= DOT; ++role)
                EACH_HELD (k)
                    vector_store((*lane_block)[role] + lane + k * PER_VECTOR, h.role[role][k]);
        }
}

/* Compiles the inner loops for each kind of work. In forward, dropout is left to drop_out_tile. */
static void run_strips(enum work work, enum epilogue epilogue, real (*lane_block)[ROLES][LANES], int64_t lane_blocks,
                       int64_t step, const struct strip *strip, struct elements e)
{
    if (work == SUM_X)
        strips(SUM_X, NO_EPILOGUE, lane_block, lane_blocks, step, strip, e);
    else if (work == WRITE_Y && epilogue)
        strips(WRITE_Y, RELU, lane_block, lane_blocks, step, strip, e);
    else if (work == WRITE_Y)
        strips(WRITE_Y, NO_EPILOGUE, lane_block, lane_blocks, step, strip, e);
    else if (work == SUM_DY && epilogue == RELU_DROPOUT)
        strips(SUM_DY, RELU_DROPOUT, lane_block, lane_blocks, step, strip, e);
    else if (work == SUM_DY && epilogue)
        strips(SUM_DY, RELU, lane_block, lane_blocks, step, strip, e);
    else if (work == SUM_DY)
        strips(SUM_DY, NO_EPILOGUE, lane_block, lane_blocks, step, strip, e);
    else if (epilogue == RELU_DROPOUT)
        strips(WRITE_DX, RELU_DROPOUT, lane_block, lane_blocks, step, strip, e);
    else if (epilogue)
        strips(WRITE_DX, RELU, lane_block, lane_blocks, step, strip, e);
    else
        strips(WRITE_DX, NO_EPILOGUE, lane_block, lane_blocks, step, strip, e);
}

/* From element 2 LANES - n on, the mask of the first n lanes; from element n on, that of the last n. */
static const word edges[3 * LANES] = {[LANES... 2 * LANES - 1] = ~(word)0};

/* The same for fewer elements of a lane block than LANES, in a copy. */
static void run_partial(enum work work, enum epilogue epilogue, real (*lane_block)[ROLES][LANES], int64_t n,
                        struct elements e)
{
    const struct strip row = {.keep = edges + 2 * LANES - n};
    real dy[LANES] = {0}, x[LANES] = {0}, forward_y[LANES] = {0}, y[LANES];
    memcpy(dy, e.dy, n * sizeof(real));
    memcpy(x, e.x, n * sizeof(real));
    memcpy(forward_y, e.forward_y, n * sizeof(real));
    run_strips(work, epilogue, lane_block, 1, 0, &row, (struct elements){dy, x, forward_y, y, e.dy_factor});
    if (!is_sum(work))
        memcpy(e.y, y, n * sizeof(real));
}

/* Flushes the accumulators to double, where long sums lose no digits. */
static void flush_sums(const struct tile *t, struct state *s)
{
    for (int64_t b = 0; b < t->lane_blocks; ++b) {
        real *sum = s->lane_block[b][SUM], *dot = s->lane_block[b][DOT];
#pragma omp simd
        for (int64_t l = 0; l < LANES; ++l) {
            s->sum[b * LANES + l] += sum[l];
            s->dot[b * LANES + l] += dot[l];
            sum[l] = dot[l] = 0;
        }
    }
}

/* One pass over a tile with channels first. */
static void pass_over_images(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    int64_t added = 0;
    for (int64_t outer = 0; outer < t->outer; ++outer)
        for (int64_t start = 0; start < t->inner; start += NORM_BLOCK * LANES) {
            const int64_t n = minimum(t->inner - start, NORM_BLOCK * LANES), rest = n % LANES;
            const int64_t from = outer * t->stride + start;
            struct strip strip = {n / LANES, LANES, AHEAD, rest ? edges + rest : NULL, LANES - rest};
            int64_t b = t->lane_blocks;
            if (t->inner < LANES) { /* whole vectors also write into the next channels, whose own values follow */
                strip.keep = edges + 2 * LANES - n;
                strip.back = 0;
                b = maximum(0, t->lane_blocks - (LANES - 1) / n);
            }
            run_strips(work, epilogue, s->lane_block, b, t->inner, &strip, advance(t->at, from));
            for (int64_t at = from + b * n; b < t->lane_blocks; ++b, at += n)
                run_partial(work, epilogue, s->lane_block + b, n, advance(t->at, at));
            added += strip.rows + (rest > 0);
            if (is_sum(work) && added >= NORM_BLOCK) {
                flush_sums(t, s);
                added = 0;
            }
        }
}

/* Rows that share one load of a lane block's roles: a divisor of NORM_BLOCK. As measured: many of narrow rows; few of
 * wide ones, as rows of 4 KiB are in L1 set conflict; one where rows are written, whose stores then are contiguous. */
static int64_t rows_together(enum work work, int64_t lane_blocks)
{
    if (lane_blocks < 8)
        return lane_blocks < 2 ? 64 : is_sum(work) ? 16 : 4;
    return work == SUM_X || (work == SUM_DY && lane_blocks < 24) ? 4 : 1;
}

/* One pass over a tile with channels last. */
static void pass_over_rows(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    const int64_t together = rows_together(work, t->lane_blocks);
    const int64_t first = t->head > 0, whole = (t->width - t->head) / LANES;
    for (int64_t row = t->begin; row < t->rows; row += together) {
        const struct strip strip = {minimum(together, t->rows - row), t->stride, together * t->stride, NULL, 0};
        const struct elements e = advance(t->at, row * t->stride);
        if (first)
            run_strips(work, epilogue, s->lane_block, 1, 0, &strip, e);
        run_strips(work, epilogue, s->lane_block + first, whole, LANES, &strip, advance(e, t->head));
        if (first + whole < t->lane_blocks)
            run_strips(work, epilogue, s->lane_block + t->lane_blocks - 1, 1, 0, &strip, advance(e, t->width - LANES));
        if ((row + strip.rows) % NORM_BLOCK == 0 && is_sum(work))
            flush_sums(t, s);
    }
    for (int64_t b = 0, at = t->rows * t->stride, rest = t->rest; rest > 0; ++b, at += LANES, rest -= LANES)
        run_partial(work, epilogue, s->lane_block + b, minimum(rest, LANES), advance(t->at, at));
}

static void pass(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    if (t->inner > 1)
        pass_over_images(work, epilogue, t, s);
    else
        pass_over_rows(work, epilogue, t, s);
}

/* The sums of channels from those of lanes. */
static void reduce_lanes(const struct tile *t, double *total)
{
    if (t->inner > 1)
        for (int64_t b = 0; b < t->lane_blocks; ++b) {
            double *lane = total + b * LANES;
            for (int64_t half = LANES / 2; half > 0; half /= 2)
                for (int64_t l = 0; l < half; ++l)
                    lane[l] += lane[l + half];
            total[b] = lane[0];
        }
    else if (t->channels >= LANES)
        for (int64_t b = 0; b < t->lane_blocks; ++b)
            memmove(total + block_start(t, b), total + b * LANES, LANES * sizeof *total);
    else
        for (int64_t half = t->stride / 2; half >= t->channels; half /= 2)
            for (int64_t l = 0; l < half; ++l)
                total[l] += total[l + half];
}

/* The rows of some blocks, which may be none: of NORM_BLOCK rows each, whose sums are those that flush_sums would add
 * in its turn; what is left at the end belongs to the last one. */
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

/* The sums of all lanes, in double. */
static void sum_tile(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s)
{
    for (int64_t b = 0; b < t->lane_blocks; ++b) {
        lanes_store(s->lane_block[b][SUM], lanes_all(0));
        lanes_store(s->lane_block[b][DOT], lanes_all(0));
    }
    memset(s->sum, 0, t->lane_blocks * LANES * sizeof *s->sum);
    memset(s->dot, 0, t->lane_blocks * LANES * sizeof *s->dot);
    pass(work, epilogue, t, s);
    flush_sums(t, s);
}

/* The sums of all lanes of a thread's blocks, to sums (blocks, 2, lanes). */
static void block_sums(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s,
                       struct fastopt_share share, double *sums)
{
    const int64_t lanes = t->lane_blocks * LANES;
    const struct range own = own_range(t->blocks, 1, share);
    for (int64_t block = own.begin; block < own.end; ++block) {
        const struct tile one = rows_of(t, (struct range){block, block + 1});
        sum_tile(work, epilogue, &one, s);
        memcpy(sums + 2 * block * lanes, s->sum, lanes * sizeof *sums);
        memcpy(sums + (2 * block + 1) * lanes, s->dot, lanes * sizeof *sums);
    }
}

/* The sums of a tile's channels, from those of all blocks where they are given. */
static void channel_sums(enum work work, enum epilogue epilogue, const struct tile *t, struct state *s,
                         const double *sums)
{
    const int64_t lanes = t->lane_blocks * LANES;
    if (sums) {
        memset(s->sum, 0, lanes * sizeof *s->sum);
        memset(s->dot, 0, lanes * sizeof *s->dot);
        for (const double *end = sums + 2 * t->blocks * lanes; sums < end; sums += 2 * lanes)
            for (int64_t l = 0; l < lanes; ++l) {
                s->sum[l] += sums[l];
                s->dot[l] += sums[lanes + l];
            }
    } else {
        sum_tile(work, epilogue, t, s);
    }
    reduce_lanes(t, s->sum);
    reduce_lanes(t, s->dot);
}

/* Broadcasts the value of a channel to its lanes; `value` has room for all lanes. */
static void broadcast(const struct tile *t, real *value, int role, struct state *s)
{
    for (int64_t l = t->channels; l < t->width; ++l)
        value[l] = value[l - t->channels];
    for (int64_t b = 0; b < t->lane_blocks; ++b)
        lanes_store(s->lane_block[b][role], t->inner > 1 ? lanes_all(value[b]) : lanes_load(value + block_start(t, b)));
}

static void set_affine(const struct tile *t, const double *mean, const double *inv_std, const real *scale,
                       const real *shift, struct state *s)
{
    real high[MAX_CHANNELS], factor[MAX_CHANNELS], intercept[MAX_CHANNELS];
    affine(t->first, t->channels, mean, inv_std, scale, shift, high, factor, intercept);
    broadcast(t, high, HIGH, s);
    broadcast(t, factor, FACTOR, s);
    broadcast(t, intercept, SHIFT, s);
}

/* Estimates of the means of channels: the mean of eight elements each, from all over x. */
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

/* Moves estimates to the mean that are further from it than two standard deviations; returns how many. */
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

/* Dropout of y in a tile: row by row if it has all channels, else of its channels in each `outer`. */
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
    broadcast(&t, high, HIGH, &s);
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
    const struct drawing drawing = {a->seed, a->counter, 0, (uint16_t)a->threshold, a->factor};
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
        /* Sums about an estimate within two standard deviations of the mean give the variance to nearly all digits.
         * Where it is further off, they at least give the mean, about which the sums are then taken again. */
        for (int passes = 0, again = 1; again && passes < 2; ++passes) {
            broadcast(&t, high, HIGH, &s);
            channel_sums(SUM_X, NO_EPILOGUE, &t, &s, passes ? NULL : sums);
            again = passes == 0 && recentre(&t, &s, weight, high);
        }
#pragma omp simd
        for (int64_t j = 0; j < t.channels; ++j) {
            const double off = s.sum[j] * weight; /* mean - high */
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
            product[j] = (s.dot[j] - (mean[j] - (real)mean[j]) * s.sum[j]) * inv_std[j]; /* about the mean itself */
        for (int64_t j = 0; j < t.channels && (!sums || share.index == 0); ++j) {
            dscale[first + j] = product[j];
            dshift[first + j] = s.sum[j];
        }
        if (!dx)
            continue;
        slopes(first, t.channels, mean, inv_std, scale, weight, product, s.sum, slope, offset);
        broadcast(&t, slope, SLOPE, &s);
        broadcast(&t, offset, OFFSET, &s);
        const struct tile own_rows = sums ? rows_of(&t, own_range(t.blocks, 1, share)) : t;
        pass(WRITE_DX, epilogue, &own_rows, &s);
    }
}
