/* Sums of squares over the rows and columns of a matrix, in double and in an order that depends neither on threads nor
 * on the width of vectors; and the direction that Adafactor derives from them. */
#include "../kernel.h"
#include "../sums.h"
#include "share.h"

static void square_sums(const void *arguments, struct fastopt_share share)
{
    const struct square_sums_args *a = arguments;
    const real *x = a->x;
    double *of_rows = a->of_rows, *of_columns = a->of_columns;
    const int64_t rows = a->rows, columns = a->columns;
    const struct range own_rows = own_range(rows, 1, share), own = own_range(columns, FASTOPT_STRIP, share);
    for (int64_t row = own_rows.begin; row < own_rows.end; ++row)
        of_rows[row] = square_sum(x + row * columns, (size_t)columns);
    for (int64_t begin = own.begin; of_columns && begin < own.end; begin += FASTOPT_STRIP) {
        const int64_t end = minimum(begin + FASTOPT_STRIP, own.end);
        double sum[FASTOPT_STRIP] = {0};
        for (int64_t row = 0; row < rows; ++row)
#pragma omp simd
            for (int64_t column = begin; column < end; ++column)
                sum[column - begin] += (double)x[row * columns + column] * (double)x[row * columns + column];
        memcpy(of_columns + begin, sum, (size_t)(end - begin) * sizeof(double));
    }
}

/* Adafactor's direction (Shazeer & Stern 2018, algorithm 4), the second moment of an element being the product of a
 * row's and a column's: y = x / sqrt(max(of_rows of_columns, least)). */
static void factored_root(const void *arguments, struct fastopt_share share)
{
    const struct factored_root_args *a = arguments;
    const real *restrict x = a->x, *restrict of_rows = a->of_rows, *restrict of_columns = a->of_columns,
                         least = a->least;
    real *restrict y = a->y;
    const int64_t columns = a->columns;
    const struct range own = own_range(a->rows, 1, share);
    for (int64_t row = own.begin; row < own.end; ++row)
#pragma omp simd
        for (int64_t column = 0; column < columns; ++column) {
            const real square = of_rows[row] * of_columns[column];
            y[row * columns + column] = x[row * columns + column] / sqrt(square < least ? least : square);
        }
}
