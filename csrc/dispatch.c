/* Chooses the instruction set, and runs the kernels of the chosen one, on as many threads as pay. */
#include "kernel.h" /* the structs of arguments, whose layout is the same for both real types */
#include "parallel.h"
#include "program.h"

#include <math.h>
#include <string.h>

#define STEP(name, states, hypers) {#name, #states, #hypers},
const struct fastopt_step_row fastopt_step_rows[] = {
#include "kernels.def"
    {0}};
#undef STEP

#define TEXT(...) #__VA_ARGS__
#define TEXT_OF(list) TEXT(list)
const char fastopt_every_step[] = TEXT_OF((FASTOPT_EVERY_STEP));

/* For a step that needs sums first, those of its name, plus 1; else 0. */
#define STEP(name, states, hypers) STEP_##name,
enum {
#include "kernels.def"
    STEP_squares /* no step, but sums */
};
#undef STEP
#define SUMS(name) [STEP_##name] = FASTOPT_SUMS_##name + 1,
static const unsigned char sums_before[] = {
#include "kernels.def"
};
#undef SUMS

/* For a step with roots by fused multiply-add, its place among those, plus 1; else 0. */
#define ROOT(name) ROOT_##name,
enum {
#include "kernels.def"
};
#undef ROOT
#define ROOT(name) [STEP_##name] = ROOT_##name + 1,
static const unsigned char place_of_roots[STEP_squares] = {
#include "kernels.def"
};
#undef ROOT

/* A step's scalars: behind so many hyperparameters, as so many doubles, by the function of that number. */
#define SCALARS(name, scalars) SCALARS_##name,
enum {
#include "kernels.def"
};
#undef SCALARS
#define SCALARS(name, scalars)                                                                                         \
    [STEP_##name] = {sizeof(struct name##_hyper) / sizeof(double), sizeof(struct name##_scalars) / sizeof(double),     \
                     SCALARS_##name},
static const struct {
    size_t begin, count, number;
} scalars_of[STEP_squares] = {
#include "kernels.def"
};
#undef SCALARS

#define SCALARS(name, scalars) {#name, #scalars},
const struct fastopt_scalars_row fastopt_scalars_rows[] = {
#include "kernels.def"
    {0}};
#undef SCALARS

#define LAYER(name, ...) {#name, #__VA_ARGS__},
const struct fastopt_layer_row fastopt_layer_rows[] = {
#include "kernels.def"
    {0}};
#undef LAYER

#define LIMIT(name, value) {#name, value},
const struct fastopt_limit fastopt_limits[] = {
#include "kernels.def"
    {0}};
#undef LIMIT

#define CHOICES(name, ...) {#name, #__VA_ARGS__},
const struct fastopt_choice_row fastopt_choice_rows[] = {
#include "kernels.def"
    {0}};
#undef CHOICES

#define DIMENSION(name, parameters, expression) {#name, #parameters, #expression},
const struct fastopt_dimension_row fastopt_dimension_rows[] = {
#include "kernels.def"
    {0}};
#undef DIMENSION

#define LAYER(name, ...) LAYER_##name,
enum {
#include "kernels.def"
};
#undef LAYER

/* The multiplications of a layer that is a product of matrices, else 0. */
#define PRODUCTS(name)                                                                                                 \
    if (row == LAYER_##name) {                                                                                         \
        const struct name##_args *a = arguments;                                                                       \
        return (size_t)(a->rows * a->inputs * a->columns);                                                             \
    }
static size_t multiplications(size_t row, const void *arguments)
{
#include "kernels.def"
    return 0;
}
#undef PRODUCTS

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
extern fastopt_step_fn *const fastopt_avx512_roots[];

/* The registers that the operating system saves: bits 1, 2 for AVX, and 5, 6, 7 for AVX-512. */
static unsigned saved_registers(void)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Whether the operating system saves these registers, and the CPU has FMA and these features of leaf 7. */
static int has(unsigned registers, unsigned features)
{
    unsigned a, b, c, d;
    return (saved_registers() & registers) == registers && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_FMA) &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features) == features;
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
    {"avx512", has_avx512, {&fastopt_avx512_float, &fastopt_avx512_double}, fastopt_avx512_roots},
    {"avx2", has_avx2, {&fastopt_avx2_float, &fastopt_avx2_double}, 0},
    {"baseline", always, {&fastopt_baseline_float, &fastopt_baseline_double}, 0},
    {0},
};
#elif defined(__aarch64__)
/* NEON is part of every such CPU, so it is what the plain compilation uses. */
const struct fastopt_variant fastopt_variants[] = {
    {"neon", always, {&fastopt_baseline_float, &fastopt_baseline_double}, 0},
    {0},
};
#else
const struct fastopt_variant fastopt_variants[] = {
    {"baseline", always, {&fastopt_baseline_float, &fastopt_baseline_double}, 0},
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

/* ---- Tuning by CPU family -----------------------------------------------------------------------------------------
 *
 * Each row but the last stands for a measurement on such a CPU: one thread, arrays in cache. */
const struct fastopt_tuning fastopt_tunings[] = {
    /* Emerald Rapids, and Sapphire Rapids, which has the same core: 16 roots and 16 quotients occupy the divider for 22
     * cycles. Adam at 10,000 parameters was 1.20 to 1.27 times as fast by FMA, RMSProp 1.36 to 1.45 times. */
    {"golden-cove", "GenuineIntel", 6, {0x8f, 0xcf}, BY_FMA},
    /* Adam by FMA took 1.24 to 1.31 times as long. (Zen 3, of the same family, has no AVX-512.) */
    {"zen4", "AuthenticAMD", 0x19, {0}, BY_DIVIDER},
    /* At 10,000 parameters Adam by FMA took 1.37 times as long, RMSProp 1.33, Adagrad 1.18 times. */
    {"zen5", "AuthenticAMD", 0x1a, {0}, BY_DIVIDER},
    {"common", 0, 0, {0}, BY_DIVIDER},
    {0},
};

#if defined(__x86_64__)
/* The vendor of this CPU, its family and model. */
static void identify(char vendor[13], unsigned *family, unsigned *model)
{
    unsigned a = 0, words[3] = {0}, b, c, d;
    __get_cpuid(0, &a, &words[0], &words[2], &words[1]);
    memcpy(vendor, words, 12);
    vendor[12] = 0;
    a = 0;
    __get_cpuid(1, &a, &b, &c, &d);
    *family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
    *model = (a >> 4 & 0xf) | (a >> 12 & 0xf0);
}
#else
static void identify(char vendor[13], unsigned *family, unsigned *model)
{
    vendor[0] = 0;
    *family = *model = 0;
}
#endif

static int fits(const struct fastopt_tuning *tuning)
{
    char vendor[13];
    unsigned family, model;
    identify(vendor, &family, &model);
    if (!tuning->vendor)
        return 1;
    int listed = !tuning->models[0];
    for (size_t i = 0; i < sizeof(tuning->models) / sizeof(tuning->models[0]) && tuning->models[i]; ++i)
        listed |= tuning->models[i] == model;
    return listed && !strcmp(tuning->vendor, vendor) && tuning->family == family;
}

static const struct fastopt_tuning *tuned;

const struct fastopt_tuning *fastopt_tune(const char *name)
{
    for (const struct fastopt_tuning *tuning = fastopt_tunings; tuning->name; ++tuning)
        if (name ? !strcmp(name, tuning->name) : fits(tuning))
            return tuned = tuning;
    return 0;
}

int fastopt_roots_by_fma(void)
{
    return active->roots && tuned->roots == BY_FMA;
}

const struct fastopt_kernels *fastopt_active(enum fastopt_real real)
{
    return active->kernels[real];
}

/* The floating-point mode of kernels, whatever the caller's is: rounding to nearest, no traps, and denormals that are
 * read and written as zero (one costs a hundred cycles on many CPUs, and moments decay into that range). Each thread
 * sets its own mode, and puts the old one back, with the flags of exceptions that were raised before. */
#if defined(__x86_64__)
typedef unsigned float_mode;

static float_mode set_mode(void)
{
    const float_mode old = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* FTZ: results; all exceptions masked; DAZ: operands */
    return old;
}

static void restore(float_mode old)
{
    _mm_setcsr(old);
}
#elif defined(__aarch64__)
typedef struct {
    uint64_t control, status;
} float_mode;

static float_mode set_mode(void)
{
    float_mode old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old.control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(old.status));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)1 << 24)); /* FZ alone */
    return old;
}

static void restore(float_mode old)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(old.control));
    __asm__ volatile("msr fpsr, %0" : : "r"(old.status));
}
#else
typedef int float_mode;

static float_mode set_mode(void)
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
    WORTH_WAKING = 1 << 24, /* bytes for which a thread that has to be woken saves more time than that takes */
    PRODUCTS_PER_BYTE = 4,  /* multiplications in the time that moving a byte takes */
};

/* Runs a kernel that moves so many bytes, on as many threads as pay. */
static void run(fastopt_part_fn *part, const void *work, size_t bytes)
{
    const size_t worth = bytes / WORTH_A_THREAD + 1, threads = worth > 1 ? fastopt_own_threads() : 1;
    fastopt_parallel(part, work, (unsigned)(worth < threads ? worth : threads), bytes >= WORTH_WAKING);
}

enum { PIECES = 64 };

/* A tensor's n elements from `start` on. */
static struct fastopt_tensor piece(const struct fastopt_tensor *tensor, size_t start, size_t n, size_t real_size)
{
    struct fastopt_tensor part = *tensor;
    part.n = n;
    part.param = (char *)tensor->param + start * real_size;
    part.grad = (const char *)tensor->grad + start * real_size;
    for (int k = 0; k < FASTOPT_MAX_STATES && tensor->state[k]; ++k)
        part.state[k] = (char *)tensor->state[k] + start * real_size;
    return part;
}

/* The number of elements of a long tensor before its first whole cache line. */
static size_t before_line(const struct fastopt_tensor *tensor, size_t real_size)
{
    const size_t beyond = (uintptr_t)tensor->param % FASTOPT_LINE;
    return beyond && tensor->n * real_size >= FASTOPT_LONG ? (FASTOPT_LINE - beyond) / real_size : 0;
}

/* Where to divide a tensor near its element k: at the element with which a cache line of the parameter begins. */
static size_t cut(const struct fastopt_tensor *tensor, int64_t k, size_t real_size)
{
    if (k <= 0)
        return 0;
    if ((size_t)k >= tensor->n)
        return tensor->n;
    const size_t beyond = ((uintptr_t)tensor->param + (size_t)k * real_size) % FASTOPT_LINE / real_size;
    return beyond < (size_t)k ? (size_t)k - beyond : 0;
}

/* ---- Steps --------------------------------------------------------------------------------------------------------
 *
 * Formulas contain nothing of what all steps share. They multiply the gradient by one scale; where preprocessing is
 * more than that, the preprocessed gradient is written block by block to a buffer that stays in the L1 cache. */

enum { BLOCK = 1 << 12 }; /* elements of the buffer, and of a partial sum */

struct step_work {
    const struct fastopt_kernels *kernels;
    fastopt_step_fn *roots; /* the step with roots by fused multiply-add, or null */
    size_t row;             /* of the step, or of the sums */
    const struct fastopt_tensor *tensors;
    size_t count, elements, real_size;
    const double *hyper;
    double *scratch;
};

/* A piece with the product of all factors of its gradient. */
static struct fastopt_tensor scaled(const struct step_work *w, struct fastopt_tensor part)
{
    const struct fastopt_every_step *h = (const void *)w->hyper;
    part.grad_scale *= h->maximize ? -h->grad_scale : h->grad_scale;
    return part;
}

/* A scaled piece with its gradient preprocessed, in a buffer. */
static struct fastopt_tensor preprocessed(const struct step_work *w, struct fastopt_tensor part, void *buffer)
{
    w->kernels->preprocess(&part, w->hyper, buffer);
    part.grad = buffer;
    part.grad_scale = 1;
    return part;
}

static int needs_buffer(const double *hyper)
{
    const struct fastopt_every_step *h = (const void *)hyper;
    return h->clip_value < HUGE_VAL || h->l1 != 0 || (h->weight_decay != 0 && !h->decoupled);
}

enum { ROOTS_AT_ONCE = 16, ROOTS_PAY = 512 }; /* elements of a vector, and of pieces that are worth a call more */

/* Steps pieces, at most PIECES: where roots are taken by fused multiply-add, whole vectors of long pieces first. */
static void step_plain(const struct step_work *w, const struct fastopt_tensor *pieces, size_t count)
{
    if (w->roots) {
        struct fastopt_tensor whole[PIECES], rest[PIECES];
        size_t long_ones = 0, rests = 0;
        for (size_t i = 0; i < count; ++i) {
            const size_t n = pieces[i].n, taken = n < ROOTS_PAY ? 0 : n - n % ROOTS_AT_ONCE;
            if (taken)
                whole[long_ones++] = piece(&pieces[i], 0, taken, w->real_size);
            if (n > taken)
                rest[rests++] = piece(&pieces[i], taken, n - taken, w->real_size);
        }
        if (long_ones)
            w->roots(whole, long_ones, w->hyper);
        if (rests)
            w->kernels->steps[w->row](rest, rests, w->hyper);
    } else
        w->kernels->steps[w->row](pieces, count, w->hyper);
}

/* Steps pieces by preprocessed gradients. */
static void step_buffered(const struct step_work *w, const struct fastopt_tensor *pieces, size_t count)
{
    _Alignas(FASTOPT_LINE) double buffer[BLOCK];
    for (size_t i = 0; i < count; ++i)
        for (size_t start = 0; start < pieces[i].n; start += BLOCK) {
            const size_t rest = pieces[i].n - start;
            const struct fastopt_tensor part =
                preprocessed(w, piece(&pieces[i], start, rest < BLOCK ? rest : BLOCK, w->real_size), buffer);
            step_plain(w, &part, 1);
        }
}

static void sum_block(const struct step_work *w, struct fastopt_tensor block, int buffered, double *sums)
{
    _Alignas(FASTOPT_LINE) double buffer[BLOCK];
    const struct fastopt_tensor part = scaled(w, block), in = buffered ? preprocessed(w, part, buffer) : part;
    w->kernels->sums[w->row](&in, w->hyper, sums);
}

/* Steps a thread's share of all elements, as if the tensors were one. */
static void step_part(const void *work, struct fastopt_share share)
{
    const struct step_work *w = work;
    const int64_t begin = (int64_t)(w->elements * share.index / share.count);
    const int64_t end = (int64_t)(w->elements * (share.index + 1) / share.count);
    const int buffered = needs_buffer(w->hyper);
    const float_mode old = set_mode();
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
                pieces[filled++] = scaled(w, piece(tensor, first, line - first, w->real_size));
            if (last > line)
                pieces[filled++] = scaled(w, piece(tensor, line, last - line, w->real_size));
        }
        (buffered ? step_buffered : step_plain)(w, pieces, filled);
    }
    restore(old);
}

/* The bytes of `arrays` arrays of each tensor's size. */
static size_t bytes_of(const struct step_work *w, size_t arrays)
{
    return w->elements * w->real_size * arrays;
}

static struct step_work work_of(size_t row, enum fastopt_real real, const struct fastopt_tensor *tensors, size_t count,
                                const double *hyper, double *scratch)
{
    struct step_work work = {active->kernels[real], 0, row, tensors, count, 0, size_of[real], hyper, scratch};
    for (size_t i = 0; i < count; ++i)
        work.elements += tensors[i].n;
    return work;
}

/* How many arrays a step streams: parameter, gradient, and state. */
static size_t arrays_of(const struct fastopt_tensor *tensors, size_t count)
{
    size_t arrays = 2;
    while (arrays < 2 + FASTOPT_MAX_STATES && count && tensors[0].state[arrays - 2])
        ++arrays;
    return arrays;
}

size_t fastopt_blocks(size_t n)
{
    return (n + BLOCK - 1) / BLOCK;
}

/* Sums over a thread's share of all blocks. */
static void sums_part(const void *work, struct fastopt_share share)
{
    const struct step_work *w = work;
    size_t blocks = 0, before = 0; /* of all tensors, of earlier ones */
    for (size_t i = 0; i < w->count; ++i)
        blocks += fastopt_blocks(w->tensors[i].n);
    const size_t begin = blocks * share.index / share.count, end = blocks * (share.index + 1) / share.count;
    const int buffered = w->row != FASTOPT_SUMS_squares && needs_buffer(w->hyper);
    const float_mode old = set_mode();
    for (size_t i = 0; i < w->count && before < end; before += fastopt_blocks(w->tensors[i++].n)) {
        const struct fastopt_tensor *tensor = &w->tensors[i];
        const size_t own = fastopt_blocks(tensor->n);
        for (size_t k = begin > before ? begin - before : 0; k < own && before + k < end; ++k) {
            const size_t n = k + 1 < own ? BLOCK : tensor->n - k * BLOCK;
            sum_block(w, piece(tensor, k * BLOCK, n, w->real_size), buffered, w->scratch + FASTOPT_SUMS * (before + k));
        }
    }
    restore(old);
}

/* Adds up the sums over blocks. Not inlined: the compiler does not know that arithmetic depends on the mode. */
static __attribute__((noinline)) void add_blocks(struct fastopt_tensor *tensors, size_t count, const double *scratch)
{
    for (size_t i = 0; i < count; ++i) {
        const size_t blocks = fastopt_blocks(tensors[i].n);
        for (int k = 0; k < FASTOPT_SUMS; ++k) {
            tensors[i].sums[k] = 0;
            for (size_t block = 0; block < blocks; ++block)
                tensors[i].sums[k] += scratch[FASTOPT_SUMS * block + k];
        }
        scratch += FASTOPT_SUMS * blocks;
    }
}

void fastopt_run_sums(enum fastopt_sums row, enum fastopt_real real, struct fastopt_tensor *tensors, size_t count,
                      const double *hyper, double *scratch)
{
    const struct step_work work = work_of(row, real, tensors, count, hyper, scratch);
    run(sums_part, &work, bytes_of(&work, row == FASTOPT_SUMS_squares ? 1 : arrays_of(tensors, count)));
    const float_mode old = set_mode();
    add_blocks(tensors, count, scratch);
    restore(old);
}

/* Constrains a thread's share of the columns of each matrix. */
static void constrain_part(const void *work, struct fastopt_share share)
{
    const struct step_work *w = work;
    const double limit = ((const struct fastopt_every_step *)w->hyper)->max_norm;
    const float_mode old = set_mode();
    for (size_t i = 0; i < w->count; ++i) {
        const size_t columns = w->tensors[i].columns, strips = (columns + FASTOPT_STRIP - 1) / FASTOPT_STRIP;
        const size_t end = strips * (share.index + 1) / share.count;
        for (size_t strip = strips * share.index / share.count; strip < end; ++strip)
            w->kernels->constrain(&w->tensors[i], strip * FASTOPT_STRIP,
                                  strip + 1 < strips ? (strip + 1) * FASTOPT_STRIP : columns, limit);
    }
    restore(old);
}

void fastopt_run_step(size_t row, enum fastopt_real real, struct fastopt_tensor *tensors, size_t count,
                      const double *hyper, double *scratch)
{
    if (sums_before[row])
        fastopt_run_sums(sums_before[row] - 1, real, tensors, count, hyper, scratch);
    struct step_work work = work_of(row, real, tensors, count, hyper, scratch);
    if (real == FASTOPT_FLOAT && place_of_roots[row] && fastopt_roots_by_fma())
        work.roots = active->roots[place_of_roots[row] - 1];
    run(step_part, &work, bytes_of(&work, arrays_of(tensors, count)));
    if (((const struct fastopt_every_step *)hyper)->max_norm < HUGE_VAL)
        run(constrain_part, &work, bytes_of(&work, 1));
}

int fastopt_next_scalars(size_t row, double *hyper)
{
    const size_t begin = scalars_of[row].begin, end = begin + scalars_of[row].count;
    if (begin == end)
        return 1;
    double next[FASTOPT_MAX_HYPERS];
    memcpy(next, hyper, end * sizeof(double));
    const float_mode old = set_mode();
    active->kernels[FASTOPT_DOUBLE]->scalars[scalars_of[row].number](next, next + begin);
    restore(old);
    for (size_t k = begin; k < end; ++k)
        if (!(fabs(next[k]) < HUGE_VAL))
            return 0;
    memcpy(hyper, next, end * sizeof(double));
    return 1;
}

/* A row's kernel: the active variant's, or that of the next one that has it. */
static fastopt_layer_fn *layer_of(size_t row, enum fastopt_real real)
{
    const struct fastopt_variant *variant = active;
    while (row >= variant->kernels[real]->layer_count)
        ++variant;
    return variant->kernels[real]->layers[row];
}

struct layer_work {
    fastopt_layer_fn *layer;
    const void *arguments;
};

static void layer_part(const void *work, struct fastopt_share share)
{
    const struct layer_work *w = work;
    const float_mode old = set_mode();
    w->layer(w->arguments, share);
    restore(old);
}

void fastopt_run_layer(size_t row, enum fastopt_real real, const void *arguments, size_t bytes)
{
    const struct layer_work work = {layer_of(row, real), arguments};
    run(layer_part, &work, bytes + multiplications(row, arguments) / PRODUCTS_PER_BYTE);
}

void fastopt_run_layer_in_mode(size_t row, enum fastopt_real real, const void *arguments, size_t bytes)
{
    const size_t work = bytes + multiplications(row, arguments) / PRODUCTS_PER_BYTE;
    if (work < WORTH_A_THREAD || fastopt_own_threads() == 1)
        layer_of(row, real)(arguments, (struct fastopt_share){0, 1});
    else
        fastopt_run_layer(row, real, arguments, bytes);
}

/* Rows are converted, and norms taken, in the mode of kernels. */
int fastopt_run_program(const struct fastopt_leg *legs, size_t count, size_t rounds, uint64_t passes,
                        struct fastopt_stop *stop)
{
    const float_mode old = set_mode();
    const int done = fastopt_run_legs(legs, count, rounds, passes, stop);
    restore(old);
    return done;
}
