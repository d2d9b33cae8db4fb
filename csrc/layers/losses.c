/* Losses of outputs x, row by row, with the gradient of their weighted mean, sum(weight loss) / sum(weight):
 *
 *   element_loss   the mean over a row's elements of
 *                    sigmoid cross-entropy   log(1 + exp(x)) - t x
 *                    squared error           (x - t)^2
 *                    L1                      |x - t|
 *                    Huber                   e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2),  e = x - t
 *   hinge_loss     sum over j != label of max(0, x_j - x_label + margin)
 *
 * (softmax.c has those of softmax); that mean itself; and how many rows have their largest number at the label. */
#include "../kernel.h"
#include "../sums.h"
#include "elementary.h"
#include "loss.h"
#include "share.h"

enum { LOSS_ELEMENTS = 1024 /* whose losses are computed before they are summed */ };

struct loss_at {
    real value, slope;
};

INLINE struct loss_at loss_at(enum loss kind, real x, real t, real delta)
{
    const real e = x - t;
    switch (kind) {
    case LOSS_SIGMOID_CROSS_ENTROPY: {
        /* Neither is a difference of large numbers, nor of numbers near 1. */
        const real tail = exp_of_negative(-fabs(x)), large = 1 / (1 + tail), small = tail * large;
        const real value = log1p_of_unit(tail) + (x > 0 ? (1 - t) * x : -t * x);
        return (struct loss_at){value, (1 - t) * (x < 0 ? small : large) - t * (x < 0 ? large : small)};
    }
    case LOSS_SQUARED_ERROR:
        return (struct loss_at){e * e, 2 * e};
    case LOSS_L1:
        return (struct loss_at){fabs(e), e > 0 ? 1 : e < 0 ? -1 : e};
    default: {
        const real slope = e > delta ? delta : e < -delta ? -delta : e;
        return (struct loss_at){slope * (e - slope / 2), slope};
    }
    }
}

/* The losses of n elements and their slopes; d may be x. */
INLINE void losses_of(enum loss kind, const real *x, const real *t, real *value, real *d, int64_t n, real delta)
{
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const struct loss_at at = loss_at(kind, x[i], t[i], delta);
        value[i] = at.value;
        d[i] = at.slope;
    }
}

/* Compiles the loop for each kind. */
static void losses_at(enum loss kind, const real *x, const real *t, real *value, real *d, int64_t n, real delta)
{
    switch (kind) {
    case LOSS_SIGMOID_CROSS_ENTROPY:
        losses_of(LOSS_SIGMOID_CROSS_ENTROPY, x, t, value, d, n, delta);
        break;
    case LOSS_SQUARED_ERROR:
        losses_of(LOSS_SQUARED_ERROR, x, t, value, d, n, delta);
        break;
    case LOSS_L1:
        losses_of(LOSS_L1, x, t, value, d, n, delta);
        break;
    default:
        losses_of(LOSS_HUBER, x, t, value, d, n, delta);
    }
}

static void element_loss(const void *arguments, struct fastopt_share share)
{
    const struct element_loss_args *a = arguments;
    const int64_t columns = a->columns, block = maximum(1, LOSS_ELEMENTS / maximum(columns, 1));
    const struct range own = own_range(a->rows, block, share);
    const double total = total_weight(a->weight, NULL, a->rows);
    real value[LOSS_ELEMENTS];
    for (int64_t first = own.begin, n; first < own.end; first += n) {
        n = minimum(own.end - first, block);
        const real *x = a->x + first * columns, *t = a->targets + first * columns;
        real *d = a->dx + first * columns;
        double sum[LOSS_ELEMENTS] = {0};
        for (int64_t begin = 0, elements = n * columns; begin < elements; begin += LOSS_ELEMENTS) {
            const int64_t some = minimum(elements - begin, LOSS_ELEMENTS); /* all, if there are several rows */
            losses_at(a->kind, x + begin, t + begin, value, d + begin, some, a->delta);
            for (int64_t row = 0; row < n; ++row)
                sum[row] += sum_of(value + row * columns, minimum(some, columns));
        }
        for (int64_t row = 0; row < n; ++row) {
            const real factor = part_of_total(a->weight, first + row, total) / (double)maximum(columns, 1);
            a->losses[first + row] = sum[row] / (double)maximum(columns, 1);
#pragma omp simd
            for (int64_t i = row * columns; i < (row + 1) * columns; ++i)
                d[i] *= factor;
        }
    }
}

static void hinge_loss(const void *arguments, struct fastopt_share share)
{
    const struct hinge_loss_args *a = arguments;
    const int64_t classes = a->classes;
    const struct range own = own_range(a->rows, 1, share);
    const double total = total_weight(a->weight, NULL, a->rows);
    const real margin = a->margin;
    for (int64_t row = own.begin; row < own.end; ++row) {
        const real *x = a->x + row * classes, factor = part_of_total(a->weight, row, total);
        const int64_t label = a->labels[row];
        const int right = is_class(label, classes);
        const real of_label = right ? x[label] : NAN; /* before d, which may be x, is written */
        real *d = a->dx + row * classes, excess[LOSS_ELEMENTS];
        double sum = right ? 0 : NAN;
        int64_t above = 0;
        for (int64_t begin = 0; begin < classes; begin += LOSS_ELEMENTS) {
            const int64_t n = minimum(classes - begin, LOSS_ELEMENTS);
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) {
                const real by = (x[begin + j] - of_label) + margin;
                excess[j] = by <= 0 ? 0 : by; /* NaN stays NaN */
            }
            if (begin <= label && label < begin + n)
                excess[label - begin] = 0;
#pragma omp simd reduction(+ : above)
            for (int64_t j = 0; j < n; ++j) {
                d[begin + j] = excess[j] > 0 ? factor : excess[j];
                above += excess[j] > 0;
            }
            sum += sum_of(excess, n);
        }
        if (right)
            d[label] = 0 - (real)above * factor;
        a->losses[row] = sum;
    }
}

/* result: the weighted mean of the losses, which is 0 where all weights are, and the total weight. */
static void mean_loss(const void *arguments, struct fastopt_share share)
{
    const struct mean_loss_args *a = arguments;
    if (share.index > 0)
        return;
    double lane[SUM_LANES] = {0};
    for (int64_t row = 0; row < a->rows; ++row)
        lane[row % SUM_LANES] += (a->weight ? (double)a->weight[row] : 1) * (double)a->losses[row];
    const double total = total_weight(a->weight, a->mass, a->rows);
    a->result[0] = sum_of_lanes(lane) / (total == 0 ? 1 : total);
    a->result[1] = total;
}

/* Whether a number is the largest of n, and of those that are as large the first; NaN is the largest, as NumPy has it.
 */
static int is_first_largest(const real *x, int64_t at, int64_t n)
{
    const real largest = x[at];
    signed_word wrong = 0;
    if (largest != largest) {
        for (int64_t j = 0; j < at; ++j)
            wrong |= x[j] != x[j];
        return !wrong;
    }
#pragma omp simd reduction(| : wrong)
    for (int64_t j = 0; j < at; ++j)
        wrong |= !(x[j] < largest);
#pragma omp simd reduction(| : wrong)
    for (int64_t j = at + 1; j < n; ++j)
        wrong |= !(x[j] <= largest);
    return !wrong;
}

enum { FEW_CLASSES = 32 /* for which vectors go along a column */, ROWS = 64 /* of a block */ };

/* The right answers among at most ROWS rows of few classes. */
static int64_t right_of_few(const real *x, const int64_t *labels, int64_t rows, int64_t classes)
{
    real largest[ROWS];
    signed_word at[ROWS], wrong[ROWS];
    for (int64_t row = 0; row < rows; ++row) {
        wrong[row] = !is_class(labels[row], classes);
        at[row] = wrong[row] ? 0 : (signed_word)labels[row];
        largest[row] = x[row * classes + at[row]];
    }
    for (signed_word j = 0; j < classes; ++j)
#pragma omp simd
        for (int64_t row = 0; row < rows; ++row) {
            const real next = x[row * classes + j];
            wrong[row] |= j < at[row] ? !(next < largest[row]) : !(next <= largest[row]);
        }
    int64_t right = 0;
    for (int64_t row = 0; row < rows; ++row)
        right += !wrong[row];
    for (int64_t row = 0; row < rows; ++row)
        if (largest[row] != largest[row] && is_class(labels[row], classes)) /* of which the comparisons say nothing */
            right += is_first_largest(x + row * classes, labels[row], classes);
    return right;
}

static void count_right(const void *arguments, struct fastopt_share share)
{
    const struct count_right_args *a = arguments;
    const int64_t classes = a->classes;
    int64_t right = 0;
    if (share.index > 0)
        return;
    if (0 < classes && classes <= FEW_CLASSES)
        for (int64_t row = 0; row < a->rows; row += ROWS)
            right += right_of_few(a->scores + row * classes, a->labels + row, minimum(a->rows - row, ROWS), classes);
    else
        for (int64_t row = 0; row < a->rows; ++row)
            right += is_class(a->labels[row], classes) &&
                     is_first_largest(a->scores + row * classes, a->labels[row], classes);
    a->right[0] = right;
}
