/* Softmax of rows, and its cross-entropy: the loss of each row and the gradient with respect to the logits, in one
 * pass.
 *
 *   softmax(x)_j = exp(x_j - max) / sum_k exp(x_k - max)
 *   loss = log sum_j exp(x_j - max) - (x_label - max);  dx_j = factor (softmax(x)_j - [j = label])
 */
#include "../kernel.h"
#include "../sums.h"
#include "elementary.h"
#include "lanes.h"
#include "loss.h"
#include "share.h"

/* The sum of a row, or its dot product with the factors. */
INLINE double row_sum(const real *x, const real *factor, int64_t n)
{
    lanes sum = lanes_all(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        sum = lanes_add(sum, factor ? lanes_multiply(lanes_load(x + i), lanes_load(factor + i)) : lanes_load(x + i));
    real rest[LANES] = {0};
    for (int64_t l = 0; l < n - i; ++l)
        rest[l] = factor ? x[i + l] * factor[i + l] : x[i + l];
    return lanes_sum(lanes_add(sum, lanes_load(rest)));
}

static real row_max(const real *x, int64_t n)
{
    real max = x[0];
#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < n; ++j)
        max = x[j] > max ? x[j] : max;
    return max;
}

enum { MOST_ROWS = 256 /* of a block */ };

/* The maximum of each row; of narrow rows, vectors go along a column. */
static void row_maxima(const real *x, int64_t rows, int64_t classes, real *max)
{
    if (classes >= LANES)
        for (int64_t row = 0; row < rows; ++row)
            max[row] = row_max(x + row * classes, classes);
    else
        for (int64_t j = 0; j < classes; ++j)
#pragma omp simd
            for (int64_t row = 0; row < rows; ++row) {
                const real next = x[row * classes + j];
                max[row] = j == 0 || next > max[row] ? next : max[row];
            }
}

static void row_sums(const real *x, int64_t rows, int64_t classes, double *sum)
{
    if (classes >= LANES)
        for (int64_t row = 0; row < rows; ++row)
            sum[row] = row_sum(x + row * classes, NULL, classes);
    else
        for (int64_t j = 0; j < classes; ++j)
#pragma omp simd
            for (int64_t row = 0; row < rows; ++row)
                sum[row] = (j == 0 ? 0 : sum[row]) + x[row * classes + j];
}

/* Rows of a block that stays in the first-level cache, over all of which exp and log are vectorised. */
static int64_t rows_in_cache(int64_t columns)
{
    return minimum(4096 / minimum(maximum(columns, 1), 4096), MOST_ROWS);
}

/* z = x - max, with the maximum of each row; z may be x. */
static void shifted(const real *x, int64_t rows, int64_t columns, real *max, real *z)
{
    row_maxima(x, rows, columns, max);
    for (int64_t row = 0; row < rows; ++row)
#pragma omp simd
        for (int64_t j = row * columns; j < (row + 1) * columns; ++j)
            z[j] = x[j] - max[row];
}

/* z becomes exp(z), with the sum of each row. */
static void exponentials_of_shifted(real *z, int64_t rows, int64_t columns, double *sum)
{
#pragma omp simd
    for (int64_t i = 0; i < rows * columns; ++i)
        z[i] = exp_of_negative(z[i]);
    row_sums(z, rows, columns, sum);
}

/* e = exp(x - max), with the maximum of each row and the sum of its e; e may be x. */
static void exponentials(const real *x, int64_t rows, int64_t columns, real *max, real *e, double *sum)
{
    shifted(x, rows, columns, max, e);
    exponentials_of_shifted(e, rows, columns, sum);
}

/* y = softmax(x), and log_sum = max + log sum_j exp(x_j - max). */
static void softmax_forward(const void *arguments, struct fastopt_share share)
{
    const struct softmax_forward_args *a = arguments;
    const int64_t columns = a->columns;
    const int64_t block = rows_in_cache(columns);
    const struct range own = own_range(a->rows, block, share);
    for (int64_t row = own.begin; columns == 0 && a->log_sum && row < own.end; ++row)
        a->log_sum[row] = -HUGE_VAL; /* the logarithm of an empty sum */
    for (int64_t first = own.begin, n; columns && first < own.end; first += n) {
        n = minimum(own.end - first, block);
        real *y = a->y + first * columns, max[MOST_ROWS];
        double *log_sum = a->log_sum ? a->log_sum + first : NULL, sum[MOST_ROWS];
        exponentials(a->x + first * columns, n, columns, max, y, sum);
        for (int64_t row = 0; row < n; ++row) {
            const real to_probability = 1 / sum[row];
#pragma omp simd
            for (int64_t j = row * columns; j < (row + 1) * columns; ++j)
                y[j] *= to_probability;
        }
        if (log_sum)
#pragma omp simd
            for (int64_t row = 0; row < n; ++row)
                log_sum[row] = max[row] + log_of_positive(sum[row]);
    }
}

/* dx = y (dy - sum_j dy_j y_j) */
static void softmax_backward(const void *arguments, struct fastopt_share share)
{
    const struct softmax_backward_args *a = arguments;
    const int64_t columns = a->columns;
    const struct range own = own_range(a->rows, 1, share);
    for (int64_t row = own.begin; row < own.end; ++row) {
        const real *dy = a->dy + row * columns, *y = a->y + row * columns;
        real *dx = a->dx + row * columns;
        const real mean = row_sum(dy, y, columns);
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j)
            dx[j] = y[j] * (dy[j] - mean);
    }
}

static void softmax_cross_entropy(const void *arguments, struct fastopt_share share)
{
    const struct softmax_cross_entropy_args *a = arguments;
    const int64_t rows = a->rows, classes = a->classes;
    const real factor = a->factor; /* rounded once, so that what should cancel does */
    const int64_t block = rows_in_cache(classes);
    const struct range own = own_range(rows, block, share);

    for (int64_t first = own.begin, n; first < own.end; first += n) {
        n = minimum(own.end - first, block);
        const real *x = a->logits + first * classes;
        const int64_t *labels = a->labels + first;
        real *losses = a->losses + first, *d = a->dlogits + first * classes;
        real max[MOST_ROWS], to_probability[MOST_ROWS];
        double sum[MOST_ROWS];

        for (int64_t row = 0; row < n; ++row)
            losses[row] = is_class(labels[row], classes) ? -x[row * classes + labels[row]] : NAN; /* d may be x */
        exponentials(x, n, classes, max, d, sum);
#pragma omp simd
        for (int64_t row = 0; row < n; ++row) {
            losses[row] = (max[row] + losses[row]) + log_of_positive(sum[row]);
            to_probability[row] = factor / sum[row];
        }
        for (int64_t row = 0; row < n; ++row) {
            const int right = is_class(labels[row], classes);
            const real scale = right ? to_probability[row] : NAN;
#pragma omp simd
            for (int64_t j = row * classes; j < (row + 1) * classes; ++j)
                d[j] *= scale;
            if (right)
                d[row * classes + labels[row]] -= factor;
        }
    }
}

/* The cross-entropy of softmax(x) with any targets, where a row's classes have the weights
 *
 *   v_j = ((1 - smoothing) t_j + smoothing / classes) class_weight_j,  t = targets, or [j = label]:
 *
 *   loss = sum_j v_j (log sum_k exp(x_k - max) - (x_j - max));  dx_j = w (softmax(x)_j sum_k v_k - v_j)
 *
 * with w = weight mass / total, mass = sum_j t_j class_weight_j, total = sum over rows of weight mass. What a label has
 * alone of its v, `of_label`, is left out of v_j. */
struct class_weights {
    const real *target, *class_weight; /* or null */
    real keep, uniform, of_label;
    int64_t label; /* -1 where there are targets */
    real mass;
};

static struct class_weights class_weights(const struct softmax_loss_args *a, int64_t row)
{
    const int64_t classes = a->classes, label = a->labels ? a->labels[row] : -1;
    const real keep = 1 - a->smoothing, uniform = a->smoothing / (double)classes;
    struct class_weights v = {NULL, a->class_weight, keep, uniform, 0, label, 1};
    if (a->targets) {
        v.target = a->targets + row * classes;
        if (a->class_weight)
            v.mass = product_sum(v.target, a->class_weight, classes);
    } else if (is_class(label, classes)) {
        v.mass = a->class_weight ? a->class_weight[label] : 1;
        v.of_label = keep * v.mass;
    } else {
        v.mass = v.uniform = NAN; /* so that all that comes of it is */
        v.label = -1;
    }
    return v;
}

INLINE real class_weight_at(const struct class_weights *v, int64_t j)
{
    const real target = v->target ? v->keep * v->target[j] + v->uniform : v->uniform;
    return v->class_weight ? target * v->class_weight[j] : target;
}

/* Over a row: sum_j v_j, and sum_j v_j z_j, where -infinity counts for nothing if its weight is 0. */
struct weighted_row {
    double weight, sum;
};

static struct weighted_row weighted_row(const struct class_weights *v, const real *z, int64_t classes)
{
    struct weighted_row of = {0, 0};
    if (v->target || v->uniform != 0) {
        double weight[SUM_LANES] = {0}, sum[SUM_LANES] = {0};
        for (int64_t start = 0; start < classes; start += SUM_LANES) {
            const int64_t n = minimum(classes - start, SUM_LANES);
#pragma omp simd
            for (int64_t l = 0; l < n; ++l) {
                const real at = class_weight_at(v, start + l);
                weight[l] += at;
                sum[l] += at == 0 ? 0 : (double)at * (double)z[start + l];
            }
        }
        of = (struct weighted_row){sum_of_lanes(weight), sum_of_lanes(sum)};
    }
    if (v->label >= 0 && v->of_label != 0) {
        of.weight += v->of_label;
        of.sum += (double)v->of_label * (double)z[v->label];
    }
    return of;
}

static void softmax_loss(const void *arguments, struct fastopt_share share)
{
    const struct softmax_loss_args *a = arguments;
    const int64_t classes = a->classes, block = rows_in_cache(classes);
    const struct range own = own_range(a->rows, block, share);

    double lane[SUM_LANES] = {0};
    for (int64_t row = 0; a->class_weight && row < a->rows; ++row)
        lane[row % SUM_LANES] += (a->weight ? (double)a->weight[row] : 1) * (double)class_weights(a, row).mass;
    const double total = a->class_weight ? sum_of_lanes(lane) : total_weight(a->weight, NULL, a->rows);

    for (int64_t first = own.begin, n; first < own.end; first += n) {
        n = minimum(own.end - first, block);
        real *d = a->dx + first * classes, max[MOST_ROWS];
        double sum[MOST_ROWS];
        struct weighted_row of[MOST_ROWS];
        shifted(a->x + first * classes, n, classes, max, d);
        for (int64_t row = 0; row < n; ++row) {
            const struct class_weights v = class_weights(a, first + row);
            of[row] = weighted_row(&v, d + row * classes, classes);
            if (a->mass)
                a->mass[first + row] = v.mass;
        }
        exponentials_of_shifted(d, n, classes, sum);
        for (int64_t row = 0; row < n; ++row) {
            const struct class_weights v = class_weights(a, first + row);
            const double share_of_row = part_of_total(a->weight, first + row, total);
            const real factor = share_of_row, together = share_of_row * of[row].weight,
                       to_probability = together / sum[row];
            real *own_d = d + row * classes;
            a->losses[first + row] = of[row].weight * log_of_positive(sum[row]) - of[row].sum;
#pragma omp simd
            for (int64_t j = 0; j < classes; ++j)
                own_d[j] = own_d[j] * to_probability - factor * class_weight_at(&v, j);
            if (v.label >= 0)
                own_d[v.label] -= factor * v.of_label;
        }
    }
}
