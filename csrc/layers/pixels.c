/* What augmentation does to batches of images: pixels moved within their images, and images mixed in pairs. */
#include "../kernel.h"
#include "share.h"

/* The longest run of columns of y that are columns of x in order, one after the other (step 1) or backwards (-1). */
struct run {
    int64_t begin, end, step;
};

static struct run longest_run(const int64_t *column, int64_t wide, int64_t w)
{
    struct run best = {0, 0, 1};
    for (int64_t begin = 0; begin < wide; ++begin) {
        if (column[begin] < 0 || column[begin] >= w)
            continue;
        int64_t end = begin + 1;
        const int64_t step = end < wide && column[end] < column[begin] ? -1 : 1;
        while (end < wide && column[end] >= 0 && column[end] < w && column[end] == column[end - 1] + step)
            ++end;
        if (end - begin > best.end - best.begin)
            best = (struct run){begin, end, step};
        begin = end - 1;
    }
    return best;
}

/* Pixels in reverse order: y goes forwards, x backwards. Each but the first and the last is moved by `wide` bytes, of
 * which those beyond the pixel are its neighbour's, and are overwritten by the next. */
INLINE void reversed(uint8_t *restrict y, const uint8_t *restrict x, int64_t count, size_t bytes, size_t wide)
{
    memcpy(y, x, bytes);
    for (int64_t i = 1; i < count - 1; ++i)
        memcpy(y + i * bytes, x - i * bytes, wide);
    memcpy(y + (count - 1) * bytes, x - (count - 1) * bytes, bytes);
}

/* The same with sizes that the compiler knows: bytes, floats and doubles, grey and of three colours. */
static void reverse(uint8_t *y, const uint8_t *x, int64_t count, int64_t bytes)
{
    switch (bytes) {
    case 1:
        reversed(y, x, count, 1, 1);
        break;
    case 3:
        reversed(y, x, count, 3, 4);
        break;
    case 4:
        reversed(y, x, count, 4, 4);
        break;
    case 8:
        reversed(y, x, count, 8, 8);
        break;
    case 12:
        reversed(y, x, count, 12, 16);
        break;
    case 24:
        reversed(y, x, count, 24, 32);
        break;
    default:
        reversed(y, x, count, bytes, bytes);
    }
}

static void gather_pixels(const void *arguments, struct fastopt_share share)
{
    const struct gather_pixels_args *a = arguments;
    const int64_t h = a->h, w = a->w, bytes = a->bytes, high = a->high, wide = a->wide;
    const struct range own = own_range(a->n * high, 1, share);
    struct run run = {0, 0, 1};
    for (int64_t row = own.begin; row < own.end && wide * bytes > 0; ++row) {
        const int64_t image = row / high, from = a->row[row], *column = a->column + image * wide;
        const int inside = from >= 0 && from < h;
        const uint8_t *x = a->x + (inside ? image * h + from : 0) * w * bytes;
        uint8_t *y = a->y + row * wide * bytes;
        if (row == own.begin || row % high == 0)
            run = longest_run(column, wide, w);
        for (int64_t j = 0; j < wide; ++j) {
            if (inside && j == run.begin && run.end > run.begin) {
                const uint8_t *first = x + column[j] * bytes;
                if (run.step > 0)
                    memcpy(y + j * bytes, first, (run.end - run.begin) * bytes);
                else
                    reverse(y + j * bytes, first, run.end - run.begin, bytes);
                j = run.end - 1;
                continue;
            }
            const int there = inside && column[j] >= 0 && column[j] < w;
            memcpy(y + j * bytes, there ? x + column[j] * bytes : a->fill, bytes);
        }
    }
}

static void mix_images(const void *arguments, struct fastopt_share share)
{
    const struct mix_images_args *a = arguments;
    const int64_t n = a->n, size = a->size;
    const struct range own = own_range(n * size, LINE_OF_REALS, share);
    for (int64_t begin = own.begin, end; begin < own.end; begin = end) {
        const int64_t image = begin / size, other = a->partner[image];
        end = minimum(own.end, (image + 1) * size);
        const real *x = a->x + begin, *beside = x + (other < 0 || other >= n ? 0 : other - image) * size;
        real *y = a->y + begin;
        const real kept = a->kept[image], rest = 1 - a->kept[image];
        if (rest == 0) {
            memcpy(y, x, (end - begin) * sizeof(real));
            continue;
        }
#pragma omp simd
        for (int64_t i = 0; i < end - begin; ++i)
            y[i] = kept * x[i] + rest * beside[i];
    }
}
