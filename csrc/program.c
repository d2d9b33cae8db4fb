/* Runs programs: see program.h. */
#include "program.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

/* ---- Rows of samples ------------------------------------------------------------------------------------------ */

typedef uint16_t half;

/* What an IEEE 754 binary16 is, exactly: no operand is denormal, as kernels take those for 0. */
static inline float of_half(half bits)
{
    const uint32_t size = bits & 0x7fffu, sign = (uint32_t)(bits & 0x8000u) << 16;
    const float small = (float)(int32_t)size * 0x1p-24f; /* denormal, or 0 */
    uint32_t result;
    memcpy(&result, &small, sizeof(result));
    result = size < 0x0400u ? result : (size << 13) + (size < 0x7c00u ? 0x38000000u : 0x70000000u);
    result |= sign;
    float value;
    memcpy(&value, &result, sizeof(value));
    return value;
}

#define FROM uint8_t
#include "convert.inc"
#define FROM uint16_t
#include "convert.inc"
#define FROM uint32_t
#include "convert.inc"
#define FROM uint64_t
#include "convert.inc"
#define FROM int8_t
#include "convert.inc"
#define FROM int16_t
#include "convert.inc"
#define FROM int32_t
#include "convert.inc"
#define FROM int64_t
#include "convert.inc"
#define FROM half
#define VALUE of_half
#include "convert.inc"
#define FROM float
#include "convert.inc"
#define FROM double
#include "convert.inc"

#define TO_ALL(from) {from##_to_float, from##_to_double, from##_to_int64_t}
fastopt_convert_fn *const fastopt_convert[FASTOPT_SOURCES][FASTOPT_TARGETS] = {
    [FASTOPT_FROM_UINT8] = TO_ALL(uint8_t),   [FASTOPT_FROM_UINT16] = TO_ALL(uint16_t),
    [FASTOPT_FROM_UINT32] = TO_ALL(uint32_t), [FASTOPT_FROM_UINT64] = TO_ALL(uint64_t),
    [FASTOPT_FROM_INT8] = TO_ALL(int8_t),     [FASTOPT_FROM_INT16] = TO_ALL(int16_t),
    [FASTOPT_FROM_INT32] = TO_ALL(int32_t),   [FASTOPT_FROM_INT64] = TO_ALL(int64_t),
    [FASTOPT_FROM_HALF] = TO_ALL(half),       [FASTOPT_FROM_FLOAT] = TO_ALL(float),
    [FASTOPT_FROM_DOUBLE] = TO_ALL(double),
};

/* Converts the numbers of a row that C cannot read where they are, through a buffer. */
static void convert_in_parts(const struct fastopt_item *item, const char *from, char *to)
{
    enum { PART = 64 };
    uint64_t part[PART];
    const size_t bytes = item->source_bytes, to_bytes = (size_t)item->to_stride / item->elements;
    for (size_t begin = 0; begin < item->elements; begin += PART) {
        const size_t count = item->elements - begin < PART ? item->elements - begin : PART;
        const char *own = from + begin * bytes;
        if (item->swapped)
            for (size_t i = 0; i < count * bytes; i += bytes)
                for (size_t k = 0; k < bytes; ++k)
                    ((char *)part)[i + k] = own[i + bytes - 1 - k];
        else
            memcpy(part, own, count * bytes);
        item->convert(part, to + begin * to_bytes, count);
    }
}

/* The batch's rows, one after the other; those that are to be as they are have no function that converts. */
static void gather(const struct fastopt_item *item, const int64_t *order, size_t first, size_t rows)
{
    const int single = !item->convert && item->to_stride == sizeof(int64_t); /* such as a label */
    for (size_t k = 0; k < rows; ++k) {
        const int64_t row = order ? order[first + k] : (int64_t)(first + k);
        const char *from = (const char *)item->from + row * item->row_stride;
        char *to = (char *)item->to + (int64_t)k * item->to_stride;
        if (single)
            memcpy(to, from, sizeof(int64_t));
        else if (item->source_bytes)
            convert_in_parts(item, from, to);
        else if (item->convert)
            item->convert(from, to, item->elements);
        else
            memcpy(to, from, (size_t)item->to_stride);
    }
}

/* ---- What stops a batch --------------------------------------------------------------------------------------- */

int fastopt_finite(enum fastopt_real real, const void *numbers, size_t n)
{
    return fastopt_active(real)->all_finite(numbers, n);
}

/* ---- Gradients of several batches ------------------------------------------------------------------------------ */

static void scale(enum fastopt_real real, void *numbers, size_t n, double by)
{
    const float rounded = (float)by;
    float *floats = numbers;
    double *doubles = numbers;
    if (real == FASTOPT_FLOAT)
        for (size_t i = 0; i < n; ++i)
            floats[i] *= rounded;
    else
        for (size_t i = 0; i < n; ++i)
            doubles[i] *= by;
}

/* Which of the batches of a step one of a leg is: `when` of the items that are run. */
static unsigned place_in_step(const struct fastopt_leg *leg, size_t batch)
{
    const size_t part = (leg->before + batch) % leg->every;
    const int is_last = part + 1 == leg->every || (batch + 1 == leg->batches && !leg->after);
    return (part ? FASTOPT_LATER : FASTOPT_FIRST) | (is_last ? FASTOPT_LAST : 0);
}

/* ---- Steps ---------------------------------------------------------------------------------------------------- */

double fastopt_norm(const double *numbers, size_t n)
{
    double largest = 0, sum = 0;
    for (size_t i = 0; i < n; ++i)
        if (!(numbers[i] <= largest)) /* NaN, too */
            largest = numbers[i];
    if (!(largest > 0 && largest < HUGE_VAL))
        return largest;
    for (size_t i = 0; i < n; ++i)
        sum += numbers[i] / largest * (numbers[i] / largest);
    return largest * sqrt(sum);
}

/* The factor, at most 1, that scales a norm down to a limit. */
static double scale_down(double norm, double limit, double eps)
{
    const double factor = limit / (norm + eps);
    return norm > 0 && factor < 1 ? factor : 1;
}

/* Scales each gradient, and all of them, down to the limits of their norms; returns whether those are finite. */
static int clip(struct fastopt_plan *plan, double *global)
{
    size_t count = (size_t)plan->first[plan->buckets];
    double *norms = plan->norms;
    fastopt_run_sums(FASTOPT_SUMS_squares, plan->real, plan->tensors, count, plan->hypers, plan->scratch);
    for (size_t i = 0; i < plan->params; ++i)
        norms[i] = plan->place[i] < 0 ? 0 : sqrt(plan->tensors[plan->place[i]].sums[0]);
    plan->norm = fastopt_norm(norms, plan->params);
    if (!(plan->norm < HUGE_VAL))
        return 0;
    for (size_t i = 0; i < plan->params; ++i) {
        if (plan->place[i] >= 0)
            plan->tensors[plan->place[i]].grad_scale = scale_down(norms[i], plan->clip_norm, plan->clip_eps);
        norms[i] = norms[i] < plan->clip_norm ? norms[i] : plan->clip_norm;
    }
    *global = scale_down(fastopt_norm(norms, plan->params), plan->clip_global_norm, plan->clip_eps);
    return 1;
}

/* Takes a step; returns whether it was taken: else nothing has changed, and the optimizer says why. */
static int step(struct fastopt_plan *plan)
{
    double global = 1;
    if (plan->norms && !clip(plan, &global))
        return 0;
    memcpy(plan->next, plan->hypers, plan->buckets * FASTOPT_MAX_HYPERS * sizeof(double));
    for (size_t i = 0; i < plan->changes; ++i)
        plan->next[plan->places[i]] = plan->values[plan->steps * plan->changes + i];
    for (size_t bucket = 0; bucket < plan->buckets; ++bucket) {
        double *hyper = plan->next + bucket * FASTOPT_MAX_HYPERS;
        hyper[0] += 1; /* t */
        hyper[1] = global;
        if (plan->scalars && !fastopt_next_scalars(plan->row, hyper))
            return 0;
    }
    memcpy(plan->hypers, plan->next, plan->buckets * FASTOPT_MAX_HYPERS * sizeof(double));
    for (size_t bucket = 0; bucket < plan->buckets; ++bucket)
        fastopt_run_step(plan->row, plan->real, plan->tensors + plan->first[bucket],
                         (size_t)(plan->first[bucket + 1] - plan->first[bucket]),
                         plan->hypers + bucket * FASTOPT_MAX_HYPERS, plan->scratch);
    ++plan->steps;
    return 1;
}

/* ---- The list ------------------------------------------------------------------------------------------------- */

/* Does an item for a batch; returns whether the batch may go on. */
static int run_item(struct fastopt_item *item, const int64_t *order, size_t rows, size_t batch, uint64_t pass)
{
    switch (item->kind) {
    case FASTOPT_CALL:
        if (item->moving >= 0)
            item->arguments[item->moving] =
                (int64_t)((uint64_t)item->start + (uint64_t)item->stride * (item->counts ? pass : batch));
        fastopt_run_layer_in_mode(item->row, item->real, item->arguments, item->bytes);
        return 1;
    case FASTOPT_GATHER:
        gather(item, order, batch * rows, rows);
        return 1;
    case FASTOPT_COPY:
        memcpy((char *)item->to + (int64_t)batch * item->to_stride, item->from, item->bytes);
        return 1;
    case FASTOPT_FINITE:
        return fastopt_finite(item->real, (const char *)item->from + (int64_t)batch * item->stride, item->elements);
    case FASTOPT_ZERO:
        return *(const int64_t *)item->from == 0;
    case FASTOPT_STEP:
        return step(item->plan);
    case FASTOPT_SCALE:
        scale(item->real, item->to, item->elements,
              *(const double *)((const char *)item->from + (int64_t)batch * item->stride));
        return 1;
    }
    return 0;
}

/* Runs a leg for the batches of a round; returns whether all were completed. */
static int run_leg(const struct fastopt_leg *leg, size_t first_batch, uint64_t pass, struct fastopt_stop *stop)
{
    for (stop->batch = 0; stop->batch < leg->batches; ++stop->batch) {
        const unsigned now = place_in_step(leg, stop->batch);
        for (stop->item = leg->begin; stop->item < leg->end; ++stop->item) {
            struct fastopt_item *item = &leg->items[stop->item];
            if ((item->when & now) &&
                !run_item(item, leg->order, leg->rows, first_batch + stop->batch, pass + stop->batch))
                return 0;
        }
    }
    return 1;
}

static int run_round(const struct fastopt_leg *legs, size_t count, size_t round, uint64_t passes,
                     struct fastopt_stop *stop)
{
    for (stop->leg = 0; stop->leg < count; ++stop->leg) {
        const struct fastopt_leg *leg = &legs[stop->leg];
        if (!run_leg(leg, leg->first_batch + round * leg->batches, leg->pass + round * passes, stop))
            return 0;
    }
    return 1;
}

int fastopt_run_legs(const struct fastopt_leg *legs, size_t count, size_t rounds, uint64_t passes,
                     struct fastopt_stop *stop)
{
    fastopt_begin_program();
    stop->round = 0;
    while (stop->round < rounds && run_round(legs, count, stop->round, passes, stop))
        ++stop->round;
    fastopt_end_program();
    return stop->round == rounds;
}
