/* Chooses the instruction set, and runs the kernels of the chosen one. */
#include "fastopt.h"

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
 * runs, denormals are read and written as zero. Only the calling thread is touched, and then put back. */
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

enum { LINE = 64 /* bytes of a cache line */, SPLIT_FROM = 8192 /* bytes of a parameter */, PIECES = 64 };

/* A tensor's n elements from `start` on. */
static struct fastopt_tensor piece(const struct fastopt_tensor *tensor, size_t start, size_t n, size_t real_size)
{
    struct fastopt_tensor part = {
        n, (char *)tensor->param + start * real_size, (const char *)tensor->grad + start * real_size, {0}};
    for (int k = 0; k < FASTOPT_MAX_STATES && tensor->state[k]; ++k)
        part.state[k] = (char *)tensor->state[k] + start * real_size;
    return part;
}

/* The elements of a large tensor before the first cache line; NumPy puts arrays at any multiple of 16 bytes, and wide
 * vectors that straddle lines run at half the speed. Arrays that disagree with the parameter straddle all the same. */
static size_t before_line(const struct fastopt_tensor *tensor, size_t real_size)
{
    const size_t beyond = (uintptr_t)tensor->param % LINE;
    return beyond && tensor->n * real_size >= SPLIT_FROM ? (LINE - beyond) / real_size : 0;
}

void fastopt_run_step(size_t row, enum fastopt_real real, const struct fastopt_tensor *tensors, size_t count,
                      const double *hyper)
{
    fastopt_step_fn *const step = active->kernels[real]->steps[row];
    const size_t real_size = real == FASTOPT_FLOAT ? sizeof(float) : sizeof(double);
    const float_mode old = flush_denormals();
    for (size_t i = 0; i < count;) {
        struct fastopt_tensor pieces[PIECES];
        size_t filled = 0;
        for (; i < count && filled + 2 <= PIECES; ++i) {
            const size_t head = before_line(&tensors[i], real_size);
            if (head)
                pieces[filled++] = piece(&tensors[i], 0, head, real_size);
            pieces[filled++] = piece(&tensors[i], head, tensors[i].n - head, real_size);
        }
        step(pieces, filled, hyper);
    }
    restore(old);
}

void fastopt_run_layer(size_t row, enum fastopt_real real, void *const *array, const int64_t *size,
                       const double *scalar)
{
    const float_mode old = flush_denormals();
    active->kernels[real]->layers[row](array, size, scalar);
    restore(old);
}
