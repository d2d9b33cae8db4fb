/* The gradient of a bias: the sum of the rows of dy. */
#ifndef BIAS_GRAD_H
#define BIAS_GRAD_H

#include "../kernel.h"
#include "lanes.h"
#include "share.h"

/* dbias: sums over blocks of ROWS rows in the real type, and over the blocks in double. With y, that of a ReLU (and a
 * dropout) behind the bias, dy first becomes dx: times factor where y is above 0, else 0. */
INLINE void sum_rows(const real *all_dy, const real *all_y, real *all_dx, real *dbias, int64_t rows, int64_t columns,
                     real factor, struct fastopt_share share)
{
    enum { ROWS = 64, COLUMNS = 32 * LANES };
    const struct range own = own_range(columns, LANES, share);
    const lanes factors = lanes_all(factor);
    for (int64_t first = own.begin; first < own.end; first += COLUMNS) {
        const int64_t width = minimum(own.end - first, COLUMNS), whole = width - width % LANES;
        const real *dy = all_dy + first, *y = all_y ? all_y + first : NULL;
        real *dx = all_y ? all_dx + first : NULL;
        /* Rows that share one load of the sums: only one of wide rows, which are in L1 set conflict. */
        const int64_t together = width > 8 * LANES ? 1 : 8;
        real sum[COLUMNS];
        double total[COLUMNS];
        memset(total, 0, width * sizeof *total);
        for (int64_t row = 0, end; row < rows; row = end) {
            end = minimum(row + together, rows);
            if (row % ROWS == 0)
                memset(sum, 0, width * sizeof *sum);
            for (int64_t j = 0; j < whole; j += LANES) {
                lanes sums = lanes_load(sum + j);
                for (int64_t at = row * columns + j; at < end * columns; at += columns) {
                    lanes d = lanes_load(dy + at);
                    if (y) {
                        d = lanes_multiply(lanes_gate(d, lanes_load(y + at)), factors);
                        lanes_store(dx + at, d);
                    }
                    sums = lanes_add(sums, d);
                }
                lanes_store(sum + j, sums);
            }
            for (int64_t at = row * columns; at < end * columns; at += columns)
                if (y) {
#pragma omp simd
                    for (int64_t j = whole; j < width; ++j) {
                        const real d = dy[at + j] * factor, passed = y[at + j] <= 0 ? 0 : d;
                        dx[at + j] = passed;
                        sum[j] += passed;
                    }
                } else {
#pragma omp simd
                    for (int64_t j = whole; j < width; ++j)
                        sum[j] += dy[at + j];
                }
            if (end % ROWS == 0 || end == rows)
                for (int64_t j = 0; j < width; ++j)
                    total[j] += sum[j];
        }
        for (int64_t j = 0; j < width; ++j)
            dbias[first + j] = total[j];
    }
}

typedef void sum_rows_fn(const real *dy, const real *y, real *dx, real *dbias, int64_t rows, int64_t columns,
                         real factor, struct fastopt_share share);

static void sum_rows_of_dy(const real *dy, const real *y, real *dx, real *dbias, int64_t rows, int64_t columns,
                           real factor, struct fastopt_share share)
{
    (void)y;
    sum_rows(dy, NULL, dx, dbias, rows, columns, factor, share);
}

/* The same for rows of any width: where LANES is a multiple of it, several narrow rows pass for one. */
INLINE void sum_any_rows(sum_rows_fn *sum_rows, const real *dy, const real *y, real *dx, real *dbias, int64_t rows,
                         int64_t columns, real factor, struct fastopt_share share)
{
    if (columns >= LANES || columns == 0 || LANES % columns) {
        sum_rows(dy, y, dx, dbias, rows, columns, factor, share);
    } else if (share.index == 0) {
        const struct fastopt_share all = {0, 1};
        const int64_t whole = rows * columns / LANES, done = whole * LANES, rest = rows * columns - done;
        real sum[LANES], last[LANES] = {0};
        sum_rows(dy, y, dx, sum, whole, LANES, factor, all);
        sum_rows(dy + done, y ? y + done : NULL, y ? dx + done : NULL, last, 1, rest, factor, all);
        for (int64_t l = 0; l < LANES; ++l)
            sum[l] += last[l];
        for (int64_t half = LANES / 2; half >= columns; half /= 2)
            for (int64_t l = 0; l < half; ++l)
                sum[l] += sum[l + half];
        memcpy(dbias, sum, columns * sizeof(real));
    }
}

/* Adds rows of dy to dbias; filters are whole vectors. */
static void add_rows(const real *dy, int64_t rows, int64_t step, int64_t filters, real *dbias)
{
    for (int64_t k = 0; k < filters; k += PER_VECTOR) {
        vector sum[4] = {0}; /* four chains of additions, or each would wait for the latency of the one before it */
        for (int64_t row = 0; row < rows; row += 4)
#pragma GCC unroll 4
            for (int64_t i = 0; i < 4; ++i)
                if (row + i < rows)
                    sum[i] += vector_load(dy + (row + i) * step + k);
        vector_store(dbias + k, vector_load(dbias + k) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
}

#endif
