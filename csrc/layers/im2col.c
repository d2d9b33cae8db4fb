/* im2col: the patch under each output pixel as a row (size_h, size_w, c), so that a convolution is one matrix
 * product; col2im, its transpose, adds the rows back. Images are (n, h, w, c), padded with zeros.
 *
 * The pixels of one kernel row lie side by side in the image as in the patch, and are copied in one piece; with gaps
 * between them (dilation), one by one. */
#include "../kernel.h"
#include "patches.h"
#include "share.h"

/* One piece of a patch: `length` reals at `image + from` are those at `patch + at`; the rest is padding. */
struct patch_row {
    int64_t from, at, length;
};

/* The piece of `wide` pixels of image n from (y, left) on. */
INLINE struct patch_row patch_row(const struct patches *p, int64_t n, int64_t y, int64_t left, int64_t wide)
{
    if (y < 0 || y >= p->h)
        return (struct patch_row){0, 0, 0};
    const int64_t start = minimum(maximum(left, 0), p->w), end = minimum(maximum(left + wide, 0), p->w);
    return (struct patch_row){((n * p->h + y) * p->w + start) * p->c, (start - left) * p->c, (end - start) * p->c};
}

static void im2col(const void *arguments, struct fastopt_share share)
{
    const struct im2col_args *a = arguments;
    const struct patches patches = PATCHES(a), *p = &patches;
    const real *x = a->x;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, p->pad_h, p->dilation_h);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, p->pad_w, p->dilation_w);
    const int64_t wide = p->dilation_w == 1 ? p->size_w : 1, pieces = p->size_w / wide, width = wide * p->c;
    const struct range images = own_range(p->n, 1, share);
    real *patch = a->columns + images.begin * out_h * out_w * p->size_h * pieces * width;
    if (p->c == 0)
        return; /* the loops over pixels would find nothing to do */

    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox)
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < pieces; ++kx, patch += width) {
                        const struct patch_row row = patch_row(p, n, oy * p->stride_h - p->pad_h + ky * p->dilation_h,
                                                               ox * p->stride_w - p->pad_w + kx * p->dilation_w, wide);
                        if (row.length < width)
                            memset(patch, 0, width * sizeof(real));
                        for (int64_t i = 0; i < row.length; ++i)
                            patch[row.at + i] = x[row.from + i];
                    }
}

static void col2im(const void *arguments, struct fastopt_share share)
{
    const struct col2im_args *a = arguments;
    const struct patches patches = PATCHES(a), *p = &patches;
    real *dx = a->dx;
    const int64_t out_h = windows(p->h, p->size_h, p->stride_h, p->pad_h, p->dilation_h);
    const int64_t out_w = windows(p->w, p->size_w, p->stride_w, p->pad_w, p->dilation_w);
    const int64_t wide = p->dilation_w == 1 ? p->size_w : 1, pieces = p->size_w / wide, width = wide * p->c,
                  pixels = p->h * p->w * p->c;
    const struct range images = own_range(p->n, 1, share);
    const real *patch = a->columns + images.begin * out_h * out_w * p->size_h * pieces * width;
    if (p->c == 0)
        return; /* the loops over pixels would find nothing to do */

    memset(dx + images.begin * pixels, 0, (images.end - images.begin) * pixels * sizeof(real));
    for (int64_t n = images.begin; n < images.end; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox)
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < pieces; ++kx, patch += width) {
                        const struct patch_row row = patch_row(p, n, oy * p->stride_h - p->pad_h + ky * p->dilation_h,
                                                               ox * p->stride_w - p->pad_w + kx * p->dilation_w, wide);
#pragma omp simd
                        for (int64_t i = 0; i < row.length; ++i)
                            dx[row.from + i] += patch[row.at + i];
                    }
}
