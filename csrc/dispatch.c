/* Chooses the instruction set, and runs the kernels of the chosen one, on as many threads as pay. */
#include "parallel.h"

#include <string.h>

#define STEP(name, states, hypers) {#name, #states, #hypers},
const struct fastopt_step_row fastopt_step_rows[] = {
#include "kernels.def"
    {0}};
#undef STEP

#define LAYER(name, arrays, sizes, scalars) {#name, arrays, sizes, scalars},
const struct fastopt_layer_row fastopt_layer_rows[] = {
#include "kernels.def"
    {0}};
#undef LAYER

extern const struct fastopt_kernels fastopt_baseline_float, fastopt_baseline_double;

static int always(void)
{
    return 1;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

extern const struct fastopt_kernels fastopt_avx2_float, fastopt_avx2_double;
extern const struct fastopt_kernels fastopt_avx512_float, fastopt_avx512_double;

/* The registers that the operating system saves: bits 1, 2 for AVX, and 5, 6, 7 for AVX-512. */
static unsigned saved_registers(void)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has(unsigned registers, unsigned features)
{
    unsigned a, b, c, d;
    return (saved_registers() & registers) == registers && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (b & features) == features;
}

static int has_avx2(void)
{
    return has(0x06, bit_AVX2);
}

static int has_avx512(void)
{
    return has(0xe6, bit_AVX2 | bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL);
}

const struct fastopt_variant fastopt_variants[] = {
    {"avx512", has_avx512, {&fastopt_avx512_float, &fastopt_avx512_double}},
    {"avx2", has_avx2, {&fastopt_avx2_float, &fastopt_avx2_double}},
    {"baseline", always, {&fastopt_baseline_float, &fastopt_baseline_double}},
    {0},
};
#elif defined(__aarch64__)
/* NEON is part of every such CPU, so it is what the plain compilation uses. */
const struct fastopt_variant fastopt_variants[] = {
    {"neon", always, {&fastopt_baseline_float, &fastopt_baseline_double}},
    {0},
};
#else
const struct fastopt_variant fastopt_variants[] = {
    {"baseline", always, {&fastopt_baseline_float, &fastopt_baseline_double}},
    {0},
};
#endif

static const struct fastopt_variant *active;

const char *fastopt_use(const char *name)
{
    for (const struct fastopt_variant *variant = fastopt_variants; variant->name; ++variant) {
        /* "baseline" means the last variant, whatever that is called here. */
        const int named = !name || !strcmp(name, variant->name) || (!strcmp(name, "baseline") && !variant[1].name);
        if (named && variant->supported()) {
            active = variant;
            return variant->name;
        }
    }
    return 0;
}

/* A denormal number costs a hundred cycles on many CPUs, and moments decay into that range: while a kernel
 * runs, denormals are read and written as zero. Each thread sets its own mode, and puts it back. */
#if defined(__x86_64__)
typedef unsigned float_mode;

static float_mode flush_denormals(void)
{
    const float_mode old = _mm_getcsr();
    _mm_setcsr(old | 0x8040); /* FTZ: results; DAZ: operands */
    return old;
}

static void restore(float_mode old)
{
    _mm_setcsr(old);
}
#elif defined(__aarch64__)
typedef uint64_t float_mode;

static float_mode flush_denormals(void)
{
    float_mode old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(old | 1u << 24));
    return old;
}

static void restore(float_mode old)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
}
#else
typedef int float_mode;

static float_mode flush_denormals(void)
{
    return 0;
}

static void restore(float_mode old)
{
    (void)old;
}
#endif

static const size_t size_of[] = {[FASTOPT_FLOAT] = sizeof(float), [FASTOPT_DOUBLE] = sizeof(double)};

enum {
    WORTH_A_THREAD = 1 << 18, /* bytes on which a thread that is awake saves more than the handing over costs */
    WORTH_WAKING = 1 << 24,   /* … and one that sleeps */
};

/* Runs a kernel's work on so many bytes, on as many threads as pay. */
static void run(fastopt_part_fn *part, const void *work, size_t bytes)
{
    const size_t worth = bytes / WORTH_A_THREAD + 1, threads = fastopt_get_num_threads();
    fastopt_parallel(part, work, (unsigned)(worth < threads ? worth : threads), bytes >= WORTH_WAKING);
}

enum { PIECES = 64 };

/* A tensor's n elements from `start` on. */
static struct fastopt_tensor piece(const struct fastopt_tensor *tensor, size_t start, size_t n, size_t real_size)
{
    struct fastopt_tensor part = {
        n, (char *)tensor->param + start * real_size, (const char *)tensor->grad + start * real_size, {0}};
    for (int k = 0; k < FASTOPT_MAX_STATES && tensor->state[k]; ++k)
        part.state[k] = (char *)tensor->state[k] + start * real_size;
    return part;
}

/* The elements of a long tensor before the first cache line. */
static size_t before_line(const struct fastopt_tensor *tensor, size_t real_size)
{
    const size_t beyond = (uintptr_t)tensor->param % FASTOPT_LINE;
    return beyond && tensor->n * real_size >= FASTOPT_LONG ? (FASTOPT_LINE - beyond) / real_size : 0;
}

/* The element of a tensor at which a cut at its element k is made: where a line of the parameter begins. */
static size_t cut(const struct fastopt_tensor *tensor, int64_t k, size_t real_size)
{
    if (k <= 0)
        return 0;
    if ((size_t)k >= tensor->n)
        return tensor->n;
    const size_t beyond = ((uintptr_t)tensor->param + (size_t)k * real_size) % FASTOPT_LINE / real_size;
    return beyond < (size_t)k ? (size_t)k - beyond : 0;
}

struct step_work {
    fastopt_step_fn *step;
    const struct fastopt_tensor *tensors;
    size_t count, elements, real_size;
    const double *hyper;
};

/* Steps a share of all elements, as if the tensors were one. */
static void step_part(const void *work, struct fastopt_share share)
{
    const struct step_work *w = work;
    const int64_t begin = (int64_t)(w->elements * share.index / share.count);
    const int64_t end = (int64_t)(w->elements * (share.index + 1) / share.count);
    const float_mode old = flush_denormals();
    int64_t before = 0; /* elements of earlier tensors */
    for (size_t i = 0; i < w->count && before < end;) {
        struct fastopt_tensor pieces[PIECES];
        size_t filled = 0;
        for (; i < w->count && filled + 2 <= PIECES; before += (int64_t)w->tensors[i++].n) {
            const struct fastopt_tensor *tensor = &w->tensors[i];
            const size_t first = cut(tensor, begin - before, w->real_size),
                         last = cut(tensor, end - before, w->real_size);
            const size_t head = first ? first : before_line(tensor, w->real_size), line = head < last ? head : last;
            if (line > first)
                pieces[filled++] = piece(tensor, first, line - first, w->real_size);
            if (last > line)
                pieces[filled++] = piece(tensor, line, last - line, w->real_size);
        }
        w->step(pieces, filled, w->hyper);
    }
    restore(old);
}

void fastopt_run_step(size_t row, enum fastopt_real real, const struct fastopt_tensor *tensors, size_t count,
                      const double *hyper)
{
    struct step_work work = {active->kernels[real]->steps[row], tensors, count, 0, size_of[real], hyper};
    size_t arrays = 2;
    while (arrays < 2 + FASTOPT_MAX_STATES && count && tensors[0].state[arrays - 2])
        ++arrays;
    for (size_t i = 0; i < count; ++i)
        work.elements += tensors[i].n;
    run(step_part, &work, work.elements * work.real_size * arrays);
}

struct layer_work {
    fastopt_layer_fn *layer;
    void *const *array;
    const int64_t *size;
    const double *scalar;
};

static void layer_part(const void *work, struct fastopt_share share)
{
    const struct layer_work *w = work;
    const float_mode old = flush_denormals();
    w->layer(w->array, w->size, w->scalar, share);
    restore(old);
}

void fastopt_run_layer(size_t row, enum fastopt_real real, void *const *array, const int64_t *size,
                       const double *scalar, size_t bytes)
{
    const struct layer_work work = {active->kernels[real]->layers[row], array, size, scalar};
    run(layer_part, &work, bytes);
}
