/* Runs programs: see program.h. */
#include "program.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

/* ---- Rows of samples ------------------------------------------------------------------------------------------ */

#define FROM uint8_t
#include "convert.inc"
#define FROM int32_t
#include "convert.inc"
#define FROM int64_t
#include "convert.inc"
#define FROM float
#include "convert.inc"
#define FROM double
#include "convert.inc"

#define TO_ALL(from) {from##_to_float, from##_to_double, from##_to_int64_t}
fastopt_convert_fn *const fastopt_convert[FASTOPT_SOURCES][FASTOPT_TARGETS] = {
    [FASTOPT_FROM_UINT8] = TO_ALL(uint8_t), [FASTOPT_FROM_INT32] = TO_ALL(int32_t),
    [FASTOPT_FROM_INT64] = TO_ALL(int64_t), [FASTOPT_FROM_FLOAT] = TO_ALL(float),
    [FASTOPT_FROM_DOUBLE] = TO_ALL(double),
};

/* The batch's rows, one after the other; those that are to be as they are have no function that converts. */
static void gather(const struct fastopt_item *item, const int64_t *order, size_t first, size_t rows)
{
    for (size_t k = 0; k < rows; ++k) {
        const int64_t row = order ? order[first + k] : (int64_t)(first + k);
        const char *from = (const char *)item->from + row * item->row_stride;
        char *to = (char *)item->to + (int64_t)k * item->to_stride;
        if (item->convert)
            item->convert(from, to, item->elements);
        else
            memcpy(to, from, (size_t)item->to_stride);
    }
}

/* ---- What stops a batch --------------------------------------------------------------------------------------- */

int fastopt_finite(enum fastopt_real real, const void *numbers, size_t n)
{
    /* An exponent of ones carries into the sign. */
    if (real == FASTOPT_FLOAT) {
        const uint32_t *bits = numbers;
        uint32_t carry = 0;
        for (size_t i = 0; i < n; ++i)
            carry |= (bits[i] & 0x7fffffffu) + 0x00800000u;
        return carry >> 31 == 0;
    }
    const uint64_t *bits = numbers;
    uint64_t carry = 0;
    for (size_t i = 0; i < n; ++i)
        carry |= (bits[i] & 0x7fffffffffffffffu) + 0x0010000000000000u;
    return carry >> 63 == 0;
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
        fastopt_run_layer(item->row, item->real, item->arguments, item->bytes);
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
    }
    return 0;
}

/* Runs a leg for the batches of a round; returns whether all were completed. */
static int run_leg(const struct fastopt_leg *leg, size_t first_batch, uint64_t pass, struct fastopt_stop *stop)
{
    for (stop->batch = 0; stop->batch < leg->batches; ++stop->batch)
        for (stop->item = leg->begin; stop->item < leg->end; ++stop->item)
            if (!run_item(&leg->items[stop->item], leg->order, leg->rows, first_batch + stop->batch,
                          pass + stop->batch))
                return 0;
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
