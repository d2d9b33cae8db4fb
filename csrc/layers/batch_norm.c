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
#include "lanes.h"
#include "mask.h"
#include "share.h"

enum {
    MAX_GROUPS = 34,
    MAX_CHANNELS = MAX_GROUPS * LANES,
    GATHER_AFTER = 128, /* additions to a sum in the real type before it goes over to double; functional.py knows it */
    STRETCH = 1 << 16,  /* bytes side by side after which a jump in memory hardly counts */
    CACHED = 3 << 17,   /* bytes of each array that stay in the second-level cache */
    AHEAD = 512,        /* elements to ask for memory ahead of reading; before writing that would hinder */
};

/* Where elements are read and written. */
struct elements {
    const real *dy, *x, *seen; /* seen is the y that forward wrote; x stands in for what there is none of */
    real *y;
    real dy_factor; /* of dropout, which dy went through last */
};

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

/* What came behind: nothing, ReLU, or ReLU and dropout, which is no affair of forward's inner loops. */
enum behind { NOTHING, RELU, RELU_DROPOUT };

INLINE int is_sum(enum work work)
{
    return work == SUM_X || work == SUM_DY;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The channels that are a thread's: all, where rows are shared out. */
static struct range own_channels(const int64_t *size, const double *sums, struct fastopt_share share)
{
    if (sums)
        return (struct range){0, size[1]};
    const int64_t channels = size[1], grain = size[2] > 1 ? 1 : LANES, units = channels < grain ? 1 : channels / grain;
    const struct range own = own_range(units, 1, share);
    const int last = own.begin < own.end && own.end == units;
    return (struct range){own.begin * grain, last ? channels : own.end * grain};
}

static struct tile tile_at(int64_t first, int64_t end, const int64_t *size, struct elements all)
{
    const int64_t outer = size[0], channels = size[1], inner = size[2], at = first * inner, left = end - first;
    struct tile t = {.at = later(all, at), .outer = outer, .inner = inner, .first = first};
    if (inner > 1) {
        const int64_t bytes = outer > 32 ? STRETCH : CACHED / outer, fit = bytes / (inner * (int64_t)sizeof(real));
        t.channels = least(left, fit < 1 ? 1 : least(fit, MAX_GROUPS));
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
    return least(at, t->width - LANES);
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
INLINE void one_row(enum work work, enum behind behind, struct held *h, struct elements e, const word *keep)
{
    const int backward = work == SUM_DY || work == WRITE_DX;
    EACH_HELD (k) {
        const int at = k * PER_VECTOR;
        vector c = vector_load(e.x + at) - h->role[HIGH][k], u = backward ? vector_load(e.dy + at) : c;
        const vector normal = c * h->role[FACTOR][k] + h->role[SHIFT][k];
        if (backward && behind == RELU)
            u = vector_gate(u, normal);
        if (backward && behind == RELU_DROPOUT)
            u = vector_gate(u * e.dy_factor, vector_load(e.seen + at));
        if (work == WRITE_Y) {
            vector_store(e.y + at, behind ? vector_gate(normal, normal) : normal);
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
INLINE void strips(enum work work, enum behind behind, real (*group)[ROLES][LANES], int64_t groups, int64_t step,
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
                one_row(work, behind, &h, later(e, at), NULL);
            }
            if (s.keep) {
                const int64_t at = end - s.back;
                one_row(work, behind, &h, later(e, at), s.keep + lane);
            }
            for (int role = SUM; is_sum(work) && role <= DOT; ++role)
                EACH_HELD (k)
                    vector_store((*group)[role] + lane + k * PER_VECTOR, h.role[role][k]);
        }
}

/* Compiles the inner loops for each kind of work. */
static void work_on(enum work work, enum behind behind, real (*group)[ROLES][LANES], int64_t groups, int64_t step,
                    const struct strip *strip, struct elements e)
{
    if (work == SUM_X)
        strips(SUM_X, NOTHING, group, groups, step, strip, e);
    else if (work == WRITE_Y && behind)
        strips(WRITE_Y, RELU, group, groups, step, strip, e);
    else if (work == WRITE_Y)
        strips(WRITE_Y, NOTHING, group, groups, step, strip, e);
    else if (work == SUM_DY && behind == RELU_DROPOUT)
        strips(SUM_DY, RELU_DROPOUT, group, groups, step, strip, e);
    else if (work == SUM_DY && behind)
        strips(SUM_DY, RELU, group, groups, step, strip, e);
    else if (work == SUM_DY)
        strips(SUM_DY, NOTHING, group, groups, step, strip, e);
    else if (behind == RELU_DROPOUT)
        strips(WRITE_DX, RELU_DROPOUT, group, groups, step, strip, e);
    else if (behind)
        strips(WRITE_DX, RELU, group, groups, step, strip, e);
    else
        strips(WRITE_DX, NOTHING, group, groups, step, strip, e);
}

/* For the mask of the first n lanes, begin at 2 LANES - n; for that of the last n, at n. */
static const word edges[3 * LANES] = {[LANES... 2 * LANES - 1] = ~(word)0};

/* Works on fewer elements of a group than LANES, in a copy. */
static void work_on_few(enum work work, enum behind behind, real (*group)[ROLES][LANES], int64_t n, struct elements e)
{
    const struct strip row = {.keep = edges + 2 * LANES - n};
    real dy[LANES] = {0}, x[LANES] = {0}, seen[LANES] = {0}, y[LANES];
    memcpy(dy, e.dy, n * sizeof(real));
    memcpy(x, e.x, n * sizeof(real));
    memcpy(seen, e.seen, n * sizeof(real));
    work_on(work, behind, group, 1, 0, &row, (struct elements){dy, x, seen, y, e.dy_factor});
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
static void pass_over_images(enum work work, enum behind behind, const struct tile *t, struct state *s)
{
    int64_t added = 0;
    for (int64_t outer = 0; outer < t->outer; ++outer)
        for (int64_t start = 0; start < t->inner; start += GATHER_AFTER * LANES) {
            const int64_t n = least(t->inner - start, GATHER_AFTER * LANES), rest = n % LANES;
            const int64_t from = outer * t->stride + start;
            struct strip strip = {n / LANES, LANES, AHEAD, rest ? edges + rest : NULL, LANES - rest};
            int64_t g = t->groups;
            if (t->inner < LANES) { /* a whole vector reaches into the next channels, which mend what it writes there */
                strip.keep = edges + 2 * LANES - n;
                strip.back = 0;
                g = most(0, t->groups - (LANES - 1) / n);
            }
            work_on(work, behind, s->group, g, t->inner, &strip, later(t->at, from));
            for (int64_t at = from + g * n; g < t->groups; ++g, at += n)
                work_on_few(work, behind, s->group + g, n, later(t->at, at));
            added += strip.rows + (rest > 0);
            if (is_sum(work) && added >= GATHER_AFTER) {
                gather(t, s);
                added = 0;
            }
        }
}

/* Rows that share one load of what their group needs: a divisor of GATHER_AFTER. Measured: narrow rows want many, wide
 * ones few, as rows of 4 KiB all want the same places in the first-level cache; and writing likes one long stretch. */
static int64_t rows_together(enum work work, int64_t groups)
{
    if (groups < 8)
        return groups < 2 ? 64 : is_sum(work) ? 16 : 4;
    return work == SUM_X || (work == SUM_DY && groups < 24) ? 4 : 1;
}

/* One pass over a tile whose channels stand side by side. */
static void pass_over_rows(enum work work, enum behind behind, const struct tile *t, struct state *s)
{
    const int64_t together = rows_together(work, t->groups);
    const int64_t first = t->head > 0, whole = (t->width - t->head) / LANES;
    for (int64_t row = t->begin; row < t->rows; row += together) {
        const struct strip strip = {least(together, t->rows - row), t->stride, together * t->stride, NULL, 0};
        const struct elements e = later(t->at, row * t->stride);
        if (first)
            work_on(work, behind, s->group, 1, 0, &strip, e);
        work_on(work, behind, s->group + first, whole, LANES, &strip, later(e, t->head));
        if (first + whole < t->groups)
            work_on(work, behind, s->group + t->groups - 1, 1, 0, &strip, later(e, t->width - LANES));
        if ((row + strip.rows) % GATHER_AFTER == 0 && is_sum(work))
            gather(t, s);
    }
    for (int64_t g = 0, at = t->rows * t->stride, rest = t->rest; rest > 0; ++g, at += LANES, rest -= LANES)
        work_on_few(work, behind, s->group + g, least(rest, LANES), later(t->at, at));
}

static void pass(enum work work, enum behind behind, const struct tile *t, struct state *s)
{
    if (t->inner > 1)
        pass_over_images(work, behind, t, s);
    else
        pass_over_rows(work, behind, t, s);
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

/* Rows may be shared out, too, in blocks of GATHER_AFTER; what is left at the end goes with the last one. Of each, the
 * sums are those that `gather` would add in its turn. */
static int64_t blocks_of(const struct tile *t)
{
    return t->rows / GATHER_AFTER + 1;
}

/* The rows of some blocks, which may be none. */
static struct tile rows_of(const struct tile *t, struct range blocks)
{
    struct tile some = *t;
    some.begin = blocks.begin * GATHER_AFTER;
    if (blocks.begin == blocks.end || blocks.end < blocks_of(t)) {
        some.rows = blocks.end * GATHER_AFTER;
        some.rest = 0;
    }
    return some;
}

static void sum_up(enum work work, enum behind behind, const struct tile *t, struct state *s)
{
    for (int64_t g = 0; g < t->groups; ++g) {
        lanes_store(s->group[g][SUM], lanes_all(0));
        lanes_store(s->group[g][DOT], lanes_all(0));
    }
    memset(s->sum, 0, t->groups * LANES * sizeof *s->sum);
    memset(s->dot, 0, t->groups * LANES * sizeof *s->dot);
    pass(work, behind, t, s);
    gather(t, s);
}

/* Of a thread's blocks, the sums of all lanes, to sums (blocks, 2, lanes). */
static void block_sums(enum work work, enum behind behind, const struct tile *t, struct state *s,
                       struct fastopt_share share, double *sums)
{
    const int64_t lanes = t->groups * LANES;
    const struct range own = own_range(blocks_of(t), 1, share);
    for (int64_t block = own.begin; block < own.end; ++block) {
        const struct tile one = rows_of(t, (struct range){block, block + 1});
        sum_up(work, behind, &one, s);
        memcpy(sums + 2 * block * lanes, s->sum, lanes * sizeof *sums);
        memcpy(sums + (2 * block + 1) * lanes, s->dot, lanes * sizeof *sums);
    }
}

/* The sums of a tile's channels, from those of all blocks where they are given. */
static void channel_sums(enum work work, enum behind behind, const struct tile *t, struct state *s, const double *sums)
{
    const int64_t lanes = t->groups * LANES;
    if (sums) {
        memset(s->sum, 0, lanes * sizeof *s->sum);
        memset(s->dot, 0, lanes * sizeof *s->dot);
        for (const double *end = sums + 2 * blocks_of(t) * lanes; sums < end; sums += 2 * lanes)
            for (int64_t l = 0; l < lanes; ++l) {
                s->sum[l] += sums[l];
                s->dot[l] += sums[lanes + l];
            }
    } else {
        sum_up(work, behind, t, s);
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

/* Of n channels, learnt values, or a substitute where there are none. */
static void learnt(const real *learnt, int64_t first, int64_t n, real substitute, real *value)
{
    for (int64_t j = 0; j < n; ++j)
        value[j] = substitute;
    if (learnt)
        memcpy(value, learnt + first, n * sizeof(real));
}

/* Prepares y = (x - high) factor + moved. All kernels do that here, so forward and backward see the same y. */
static void affine(int64_t first, int64_t n, const double *mean, const double *inv_std, const real *scale,
                   const real *shift, real *high, real *factor, real *moved)
{
    learnt(scale, first, n, 1, factor);
    learnt(shift, first, n, 0, moved);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const double a = factor[j] * inv_std[j];
        high[j] = mean[j];
        factor[j] = a;
        moved[j] = moved[j] - (mean[j] - high[j]) * a;
    }
}

/* Prepares dx = dy factor - (x - high) slope + offset; dscale and dshift are known. */
static void slopes(int64_t first, int64_t n, const double *mean, const double *inv_std, const real *scale,
                   double weight, const double *dscale, const double *dshift, real *slope, real *offset)
{
    learnt(scale, first, n, 1, slope);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const double off = mean[j] - (real)mean[j]; /* of the mean from high */
        const double a = slope[j] * inv_std[j], q = a * dscale[j] * weight * inv_std[j];
        slope[j] = q;
        offset[j] = off * q - a * dshift[j] * weight;
    }
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
static void pilot_means(const struct tile *t, const int64_t *size, real *high)
{
    for (int64_t j = 0; j < t->channels; ++j)
        high[j] = 0;
    for (int64_t i = 0; i < 8; ++i) {
        const real *some = t->at.x + (i * t->outer / 8 * size[1]) * t->inner + i * t->inner / 8;
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
static void drop_out_tile(const struct drawing *d, const struct tile *t, const int64_t *size, real *y)
{
    const int64_t whole = size[1] * t->inner, own = t->channels * t->inner;
    if (own == whole && t->inner == 1) {
        drop_out(d, y, (struct range){t->begin * t->stride, t->rows * t->stride + t->rest});
    } else if (own == whole) {
        drop_out(d, y, (struct range){0, t->outer * whole});
    } else {
        for (int64_t begin = t->first * t->inner; begin < t->outer * whole; begin += whole)
            drop_out(d, y, (struct range){begin, begin + own});
    }
}

static void batch_norm_sums(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    real *x = array[0]; /* not written */
    struct state s;
    real high[MAX_CHANNELS];
    const struct tile t = tile_at(0, size[1], size, (struct elements){x, x, x, x, 1});
    (void)scalar;
    pilot_means(&t, size, high);
    spread(&t, high, HIGH, &s);
    block_sums(SUM_X, NOTHING, &t, &s, share, array[1]);
}

static void batch_norm_forward(void *const *array, const int64_t *size, const double *scalar,
                               struct fastopt_share share)
{
    const real *scale = array[1], *shift = array[2];
    const double *sums = array[3];
    real *x = array[0] /* not written */, *y = array[4], *running_mean = array[7], *running_var = array[8];
    const enum behind behind = size[3];
    const struct drawing drawing = {size[4], size[5], (uint16_t)size[6], scalar[3]};
    const struct range own = own_channels(size, sums, share);
    const double eps = scalar[0], new_weight = scalar[1], variance_factor = scalar[2];
    const double count = (double)size[0] * size[2], weight = 1 / count;
    if (count == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = own.begin; first < own.end; first += t.channels) {
        t = tile_at(first, own.end, size, (struct elements){x, x, x, y ? y : x, 1});
        double mean[MAX_CHANNELS], inv_std[MAX_CHANNELS], var[MAX_CHANNELS];
        real high[MAX_CHANNELS];
        pilot_means(&t, size, high);
        /* Sums about a value within two standard deviations of the mean give the variance to nearly all digits.
         * Where it is further away, they at least give the mean, about which sums are then taken. */
        for (int passes = 0, again = 1; again && passes < 2; ++passes) {
            spread(&t, high, HIGH, &s);
            channel_sums(SUM_X, NOTHING, &t, &s, passes ? NULL : sums);
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
            memcpy((double *)array[5] + first, mean, t.channels * sizeof *mean);
            memcpy((double *)array[6] + first, inv_std, t.channels * sizeof *inv_std);
            for (int64_t j = 0; running_mean && j < t.channels; ++j) {
                running_mean[first + j] += new_weight * (mean[j] - running_mean[first + j]);
                running_var[first + j] += new_weight * (variance_factor * var[j] - running_var[first + j]);
            }
        }
        if (!y)
            continue;
        set_affine(&t, mean, inv_std, scale, shift, &s);
        const struct tile own_rows = sums ? rows_of(&t, own_range(blocks_of(&t), 1, share)) : t;
        pass(WRITE_Y, behind, &own_rows, &s);
        if (behind == RELU_DROPOUT)
            drop_out_tile(&drawing, &own_rows, size, y);
    }
}

static void running_statistics(int64_t first, int64_t n, const real *running_mean, const real *running_var, double eps,
                               double *mean, double *inv_std)
{
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        mean[j] = running_mean[first + j];
        inv_std[j] = 1 / sqrt(running_var[first + j] + eps);
    }
}

static void batch_norm_inference(void *const *array, const int64_t *size, const double *scalar,
                                 struct fastopt_share share)
{
    const real *x = array[0], *scale = array[1], *shift = array[2], *running_mean = array[3], *running_var = array[4];
    real *y = array[5];
    const enum behind behind = size[3];
    const struct range own = own_channels(size, NULL, share);
    const double eps = scalar[0];
    if (size[0] * size[2] == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = own.begin; first < own.end; first += t.channels) {
        t = tile_at(first, own.end, size, (struct elements){x, x, x, y, 1});
        double mean[MAX_CHANNELS], inv_std[MAX_CHANNELS];
        running_statistics(first, t.channels, running_mean, running_var, eps, mean, inv_std);
        set_affine(&t, mean, inv_std, scale, shift, &s);
        pass(WRITE_Y, behind, &t, &s);
    }
}

static void batch_norm_grad_sums(void *const *array, const int64_t *size, const double *scalar,
                                 struct fastopt_share share)
{
    const real *dy = array[0], *scale = array[2], *shift = array[3], *y = array[6];
    real *x = array[1]; /* not written */
    const enum behind behind = size[3];
    struct state s;
    const struct tile t = tile_at(0, size[1], size, (struct elements){dy, x, y ? y : x, x, scalar[0]});
    set_affine(&t, array[4], array[5], scale, shift, &s);
    block_sums(SUM_DY, behind, &t, &s, share, array[7]);
}

static void batch_norm_backward(void *const *array, const int64_t *size, const double *scalar,
                                struct fastopt_share share)
{
    const real *dy = array[0], *scale = array[2], *shift = array[3], *y = array[6];
    const double *sums = array[7];
    real *x = array[1] /* not written */, *dx = array[8], *dscale = array[9], *dshift = array[10];
    const enum behind behind = size[3];
    const struct range own = own_channels(size, sums, share);
    const double count = (double)size[0] * size[2], weight = 1 / count;
    const struct elements all = {dy, x, y ? y : x, dx ? dx : x, scalar[0]};
    if (count == 0)
        return;

    struct state s;
    struct tile t;
    for (int64_t first = own.begin; first < own.end; first += t.channels) {
        t = tile_at(first, own.end, size, all);
        const double *mean = (double *)array[4] + first, *inv_std = (double *)array[5] + first;
        set_affine(&t, mean, inv_std, scale, shift, &s);
        channel_sums(SUM_DY, behind, &t, &s, sums);

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
        const struct tile own_rows = sums ? rows_of(&t, own_range(blocks_of(&t), 1, share)) : t;
        pass(WRITE_DX, behind, &own_rows, &s);
    }
}
