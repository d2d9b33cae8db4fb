/* Programs: what is done with each batch, as a list of calls that runs for many batches without Python. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include "fastopt.h"

/* An optimizer's step: parameters and state that are bound, by bucket (`fastopt_run_step` for each), and what changes
 * from step to step. A program raises the counters of steps, which come first among the hyperparameters. */
struct fastopt_plan {
    size_t row;
    enum fastopt_real real;
    struct fastopt_tensor *tensors;
    size_t params;          /* of the user … */
    const ptrdiff_t *place; /* … and where each is among the tensors, or -1 */
    size_t buckets;
    const ptrdiff_t *first; /* the first tensor of each bucket, and their number */
    double *hypers, *next;  /* FASTOPT_MAX_HYPERS for each bucket; room for as many */
    double *scratch;
    int scalars;   /* whether the row has some, behind the hyperparameters */
    double *norms; /* room for those of the gradients, where these are clipped by them; else null */
    double clip_norm, clip_global_norm, clip_eps;
    double norm;          /* of all gradients, of the last step */
    size_t changes;       /* hyperparameters that follow a schedule … */
    const size_t *places; /* … where they stand in `hypers` … */
    const double *values; /* … and their values, for each step of a run */
    size_t steps;         /* taken in this run */
};

/* Converts so many numbers. */
typedef void fastopt_convert_fn(const void *from, void *to, size_t n);

/* The types of rows that are gathered, and what they become. */
enum {
    FASTOPT_FROM_UINT8,
    FASTOPT_FROM_UINT16,
    FASTOPT_FROM_UINT32,
    FASTOPT_FROM_UINT64,
    FASTOPT_FROM_INT8,
    FASTOPT_FROM_INT16,
    FASTOPT_FROM_INT32,
    FASTOPT_FROM_INT64,
    FASTOPT_FROM_HALF,
    FASTOPT_FROM_FLOAT,
    FASTOPT_FROM_DOUBLE,
    FASTOPT_SOURCES
};
enum { FASTOPT_TO_FLOAT, FASTOPT_TO_DOUBLE, FASTOPT_TO_INT64, FASTOPT_TARGETS };
extern fastopt_convert_fn *const fastopt_convert[FASTOPT_SOURCES][FASTOPT_TARGETS];

enum fastopt_kind {
    FASTOPT_CALL,   /* of a layer kernel */
    FASTOPT_GATHER, /* the batch's rows, converted to one array */
    FASTOPT_COPY,   /* of memory */
    FASTOPT_FINITE, /* stop where a number is not */
    FASTOPT_ZERO,   /* stop where an integer is not */
    FASTOPT_SCALE,  /* an array by a number of the batch */
    FASTOPT_STEP,   /* of an optimizer */
};

/* The batches of a step for which an item is run: one that is the only one is its first and its last. */
enum { FASTOPT_FIRST = 1, FASTOPT_LATER = 2, FASTOPT_LAST = 4, FASTOPT_EACH = FASTOPT_FIRST | FASTOPT_LATER };

/* One item of a program. What differs from batch to batch is at most one argument of a call: a pointer that moves on by
 * `stride` bytes, or a counter (of dropout) that is `start` for pass 0 and `stride` more for each pass. */
struct fastopt_item {
    enum fastopt_kind kind;
    unsigned when;          /* the batches of a step */
    enum fastopt_real real; /* of a call, and of numbers that are looked at or scaled */
    size_t row;             /* of a call */
    size_t bytes;           /* of a call's arrays, or of what is copied */
    ptrdiff_t moving;       /* the argument that differs, or -1 */
    int counts;             /* whether that is a counter */
    int64_t start, stride;
    int64_t arguments[FASTOPT_MAX_ARRAYS + FASTOPT_MAX_NUMBERS];
    void *to; /* of rows that are gathered, of a copy, and what is scaled */
    const void *from;
    size_t elements;               /* of a row; of numbers that are looked at, or scaled */
    int64_t row_stride, to_stride; /* bytes from row to row */
    fastopt_convert_fn *convert;
    size_t source_bytes; /* of a number in rows that C cannot read where they are: not aligned, or of the other order */
    int swapped;         /* whether it is that of bytes */
    struct fastopt_plan *plan;
};

/* A part of each round of a run: the items in [begin, end) of a program, for some batches. */
struct fastopt_leg {
    struct fastopt_item *items;
    size_t begin, end;
    const int64_t *order;        /* the rows of all its batches; null means 0, 1, 2, … */
    size_t rows;                 /* of a batch */
    size_t batches, first_batch; /* of a round; the number of the first one of all */
    uint64_t pass;               /* of the model: the number of that batch */
    size_t every;                /* batches whose gradients make a step; those that are left in a round make one, too */
    size_t before, after;        /* batches of the round before this leg, and after it */
};

/* Where a run was stopped: rounds and legs that were completed before, the batches of the leg in that round, and the
 * item. */
struct fastopt_stop {
    size_t round, leg, batch, item;
};

/* Runs some legs one after the other, for so many rounds; `passes` is how many passes of the model a round has.
 * Returns whether all was done; if not, *stop says how much. */
int fastopt_run_program(const struct fastopt_leg *legs, size_t count, size_t rounds, uint64_t passes,
                        struct fastopt_stop *stop);

/* The same in the floating-point mode of the caller, for it to call. */
int fastopt_run_legs(const struct fastopt_leg *legs, size_t count, size_t rounds, uint64_t passes,
                     struct fastopt_stop *stop);

/* The Euclidean norm of n numbers that are not negative. */
double fastopt_norm(const double *numbers, size_t n);

/* Whether all of n numbers are finite. */
int fastopt_finite(enum fastopt_real real, const void *numbers, size_t n);

#endif
