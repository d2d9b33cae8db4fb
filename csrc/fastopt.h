/* The C interface of fastopt: what the Python bridge may call. C never knows Python.
 *
 * A *step* is one optimizer update of a list of tensors; a *layer* is anything else. Each is a row of
 * kernels.def, and is compiled once per instruction set and per real type (variant.h). One variant, an
 * instruction set with all its kernels, is active at a time.
 */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stddef.h>
#include <stdint.h>

enum {
    FASTOPT_MAX_STATES = 4,
    FASTOPT_MAX_HYPERS = 24,  /* the scalars of a step among them */
    FASTOPT_MAX_ARRAYS = 12,  /* of a layer */
    FASTOPT_MAX_NUMBERS = 20, /* of a layer: extents, options, and doubles */
    FASTOPT_MAX_THREADS = 256,
};

/* NumPy aligns arrays to 16 bytes, but vectors that straddle cache lines run at half the speed. So kernels go through
 * long arrays by whole cache lines of the array that is written. */
enum { FASTOPT_LINE = 64, FASTOPT_LONG = 8192 /* bytes */ };

enum { FASTOPT_SUMS = 2, FASTOPT_STRIP = 64 /* columns that are constrained at a time */ };

/* One parameter with its gradient and state: arrays of n reals each, no two of which overlap. */
struct fastopt_tensor {
    size_t n;
    void *param;
    const void *grad;
    void *state[FASTOPT_MAX_STATES];
    size_t columns;    /* the length of the last of two or more axes, else 0 */
    double grad_scale; /* the factor of this gradient, beside the step's grad_scale; in a kernel, the product of both */
    double sums[FASTOPT_SUMS]; /* over the whole tensor, by fastopt_run_sums */
};

/* The hyperparameters that every step has: the first members of each `struct <name>_hyper`, doubles all. */
#define FASTOPT_EVERY_STEP t, grad_scale, maximize, clip_value, l1, weight_decay, decoupled, max_norm
struct fastopt_every_step {
    double FASTOPT_EVERY_STEP, lr;
};

/* A thread's share of a kernel's work: part number `index` of `count` parts. */
struct fastopt_share {
    unsigned index, count;
};

typedef void fastopt_step_fn(const struct fastopt_tensor *tensors, size_t count, const double *hyper);
/* Brings the scalars of a step to the step that hyper says, and works out what follows from them. */
typedef void fastopt_scalars_fn(double *hyper, double *scalars);
typedef void fastopt_sums_fn(const struct fastopt_tensor *tensor, const double *hyper, double sums[FASTOPT_SUMS]);
/* Writes the preprocessed gradient, where that is more than a scale: clipping by value and penalties. */
typedef int fastopt_finite_fn(const void *numbers, size_t n);
typedef void fastopt_preprocess_fn(const struct fastopt_tensor *tensor, const double *hyper, void *preprocessed);
/* Scales the columns in [begin, end) of a matrix down to a norm, where theirs exceeds it. */
typedef void fastopt_constrain_fn(const struct fastopt_tensor *tensor, size_t begin, size_t end, double limit);

/* A layer's arguments are a `struct <name>_args`, laid out as the row says: pointers to arrays, then integers, then
 * doubles, each number at a multiple of 8 bytes. The layout is the same for both real types. */
typedef void fastopt_layer_fn(const void *arguments, struct fastopt_share share);
typedef int64_t extent; /* an integer that follows from the shapes of arrays */

/* What the rows of kernels.def say, as text; each table ends with a row of null pointers. */
struct fastopt_step_row {
    const char *name, *states, *hypers;
};
struct fastopt_scalars_row {
    const char *name, *scalars;
};
struct fastopt_layer_row {
    const char *name, *arguments;
};
struct fastopt_limit {
    const char *name;
    int64_t value;
};
struct fastopt_choice_row {
    const char *name, *words;
};
struct fastopt_dimension_row {
    const char *name, *parameters, *expression;
};
extern const char fastopt_every_step[]; /* FASTOPT_EVERY_STEP, as text */
extern const struct fastopt_step_row fastopt_step_rows[];
extern const struct fastopt_scalars_row fastopt_scalars_rows[];
extern const struct fastopt_layer_row fastopt_layer_rows[];
extern const struct fastopt_limit fastopt_limits[];
extern const struct fastopt_choice_row fastopt_choice_rows[];
extern const struct fastopt_dimension_row fastopt_dimension_rows[];

/* Sums over tensors: of squared gradients, and those that the steps of the same names need before they begin. */
enum fastopt_sums {
#define SUMS(name) FASTOPT_SUMS_##name,
#include "kernels.def"
#undef SUMS
    FASTOPT_NO_SUMS
};

/* The kernels of one instruction set for one real type, in the order of the rows. */
struct fastopt_kernels {
    fastopt_step_fn *const *steps;
    fastopt_sums_fn *const *sums;
    fastopt_scalars_fn *const *scalars; /* of the rows that have some */
    fastopt_finite_fn *all_finite;
    fastopt_preprocess_fn *preprocess;
    fastopt_constrain_fn *constrain;
    fastopt_layer_fn *const *layers;
    size_t layer_count;          /* of the first rows; the kernels of the others are those of the next variant */
    int tile_rows, tile_columns; /* of the micro-kernel that products of matrices are made of */
};

enum fastopt_real { FASTOPT_FLOAT, FASTOPT_DOUBLE };

struct fastopt_variant {
    const char *name;
    int (*supported)(void);                   /* by this CPU and its operating system */
    const struct fastopt_kernels *kernels[2]; /* by enum fastopt_real */
    fastopt_step_fn *const *roots; /* the steps of the rows ROOT for float32, on multiples of 16 elements; or null */
};

/* Strongest first; the last one runs everywhere; a row of null pointers ends the table. */
extern const struct fastopt_variant fastopt_variants[];

/* Makes the variant of that name active (null: the strongest supported one).
 * Returns its name, or null, with nothing changed, where it is unknown or unsupported. */
const char *fastopt_use(const char *name);

/* What is chosen by CPU family among kernels of one instruction set, all of the same bits. */
struct fastopt_tuning {
    const char *name, *vendor;         /* of the CPU, as cpuid says it; null: any */
    unsigned family, models[4];        /* 0: any */
    enum { BY_DIVIDER, BY_FMA } roots; /* how the steps of the rows ROOT take them, where there is a choice */
};

/* The last one fits every CPU; a row of null pointers ends the table. */
extern const struct fastopt_tuning fastopt_tunings[];

/* Makes the tuning of that name active (null: the first one that fits this CPU). Returns it, or null, with nothing
 * changed, where it is unknown. */
const struct fastopt_tuning *fastopt_tune(const char *name);

/* Whether the active variant and tuning take the roots of steps by fused multiply-add. */
int fastopt_roots_by_fma(void);

/* The active kernels for one real type. */
const struct fastopt_kernels *fastopt_active(enum fastopt_real real);

/* Run a row's kernel of the active variant, in the floating-point mode of kernels (see dispatch.c): on several threads
 * where there is enough to do, which for a layer the number of bytes in its arrays says.
 *
 * Sums are taken block by block, so that their bits do not depend on how blocks are shared out; `scratch` has room for
 * FASTOPT_SUMS doubles per block. A step that needs sums takes them first. */
void fastopt_run_step(size_t row, enum fastopt_real real, struct fastopt_tensor *tensors, size_t count,
                      const double *hyper, double *scratch);
void fastopt_run_sums(enum fastopt_sums row, enum fastopt_real real, struct fastopt_tensor *tensors, size_t count,
                      const double *hyper, double *scratch);
/* Brings the scalars of a step, which stand behind its hyperparameters, to the step whose number those say. Returns 0,
 * with nothing changed, where a scalar would not be finite. A step without scalars has nothing to bring. */
int fastopt_next_scalars(size_t row, double *hyper);
size_t fastopt_blocks(size_t n); /* of a tensor of n elements */
void fastopt_run_layer(size_t row, enum fastopt_real real, const void *arguments, size_t bytes);
/* The same for a caller that is in that mode already. */
void fastopt_run_layer_in_mode(size_t row, enum fastopt_real real, const void *arguments, size_t bytes);

/* How many threads a kernel may use, the calling one among them: at least 1, at most FASTOPT_MAX_THREADS. */
unsigned fastopt_get_num_threads(void);
void fastopt_set_num_threads(unsigned count);
/* Of these, those for kernels that this thread calls, from now on. Returns the limit of before; at first there is none,
 * which is FASTOPT_MAX_THREADS. */
unsigned fastopt_limit_threads(unsigned count);

#endif
