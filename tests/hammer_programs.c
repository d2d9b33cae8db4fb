/* Hammers programs, for `make tsan`: threads that each run one of their own at the same time, as fit_many does, with
 * kernels large enough to be shared out among the pool's threads, and an optimizer's step. Each must end with the
 * numbers that it ends with alone. */
#include "kernel.h"
#include "program.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* dispatch.c names these; `baseline` of float is linked, and used alone. */
const struct fastopt_kernels fastopt_baseline_double, fastopt_avx2_float, fastopt_avx2_double, fastopt_avx512_float,
    fastopt_avx512_double;
fastopt_step_fn *const fastopt_avx512_roots[1];

enum { CALLERS = 4, BATCHES = 12, ROWS = 64, COLUMNS = 2048, N = ROWS * COLUMNS };

struct model {
    float *samples, *batch, *y, *param, *state;
    int64_t order[BATCHES * ROWS];
};

static size_t row_of(const char *name)
{
    size_t row = 0;
    while (strcmp(fastopt_layer_rows[row].name, name))
        ++row;
    return row;
}

static size_t step_of(const char *name)
{
    size_t row = 0;
    while (strcmp(fastopt_step_rows[row].name, name))
        ++row;
    return row;
}

static float *reals(size_t n, unsigned seed)
{
    float *made = malloc(n * sizeof(float));
    if (!made)
        abort();
    for (size_t i = 0; i < n; ++i)
        made[i] = (float)((i * 2654435761u + seed) % 2003) / 1000 - 1;
    return made;
}

static void run(struct model *model, unsigned seed)
{
    model->samples = reals(N, seed), model->batch = reals(N, 0), model->y = reals(N, 0);
    model->param = reals(N, seed + 1), model->state = reals(N, 0);
    for (int i = 0; i < BATCHES * ROWS; ++i)
        model->order[i] = (i * 7 + (int)seed) % ROWS;
    struct fastopt_tensor tensor = {.n = N, .param = model->param, .grad = model->y, .grad_scale = 1};
    tensor.state[0] = model->state;
    double hypers[2 * FASTOPT_MAX_HYPERS] = {0};
    struct momentum_hyper *h = (void *)hypers;
    h->grad_scale = 1, h->clip_value = h->max_norm = HUGE_VAL, h->lr = 0.01, h->momentum = 0.9;
    const ptrdiff_t place[] = {0}, first[] = {0, 1};
    double *scratch = calloc(FASTOPT_SUMS * (fastopt_blocks(N) + 1), sizeof(double));
    struct fastopt_plan plan = {.row = step_of("momentum"),
                                .real = FASTOPT_FLOAT,
                                .tensors = &tensor,
                                .params = 1,
                                .place = place,
                                .buckets = 1,
                                .first = first,
                                .hypers = hypers,
                                .next = hypers + FASTOPT_MAX_HYPERS,
                                .scratch = scratch};
    struct fastopt_item items[4] = {
        {.kind = FASTOPT_GATHER,
         .when = FASTOPT_EACH,
         .to = model->batch,
         .from = model->samples,
         .elements = COLUMNS,
         .row_stride = COLUMNS * sizeof(float),
         .to_stride = COLUMNS * sizeof(float),
         .moving = -1},
        {.kind = FASTOPT_CALL,
         .when = FASTOPT_EACH,
         .real = FASTOPT_FLOAT,
         .row = row_of("relu_forward"),
         .bytes = 2 * N * sizeof(float),
         .moving = -1},
        {.kind = FASTOPT_FINITE,
         .when = FASTOPT_EACH,
         .real = FASTOPT_FLOAT,
         .from = model->y,
         .elements = N,
         .moving = -1},
        {.kind = FASTOPT_STEP, .when = FASTOPT_EACH, .plan = &plan, .moving = -1},
    };
    items[1].arguments[0] = (int64_t)(uintptr_t)model->batch;
    items[1].arguments[1] = (int64_t)(uintptr_t)model->y;
    items[1].arguments[2] = N;
    const struct fastopt_leg leg = {
        .items = items, .end = 4, .order = model->order, .rows = ROWS, .batches = BATCHES, .every = 1};
    struct fastopt_stop stop;
    if (!fastopt_run_program(&leg, 1, 1, BATCHES, &stop))
        abort();
    free(scratch);
}

static struct model alone[CALLERS], together[CALLERS];

static void *caller(void *number)
{
    const unsigned i = *(unsigned *)number;
    run(&together[i], i);
    return NULL;
}

int main(void)
{
    pthread_t threads[CALLERS];
    unsigned numbers[CALLERS];
    if (!fastopt_use("baseline"))
        return 1;
    fastopt_set_num_threads(1);
    for (unsigned i = 0; i < CALLERS; ++i)
        run(&alone[i], i);
    fastopt_set_num_threads(8);
    for (int round = 0; round < 5; ++round) {
        for (unsigned i = 0; i < CALLERS; ++i) {
            numbers[i] = i;
            if (pthread_create(&threads[i], NULL, caller, &numbers[i]))
                return 1;
        }
        for (unsigned i = 0; i < CALLERS; ++i)
            pthread_join(threads[i], NULL);
        for (unsigned i = 0; i < CALLERS; ++i)
            if (memcmp(alone[i].param, together[i].param, N * sizeof(float))) {
                fprintf(stderr, "program %u has other bits beside others\n", i);
                return 1;
            }
    }
    puts("programs at the same time end with the bits that they end with alone");
    return 0;
}
