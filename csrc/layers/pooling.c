/* Max-pooling of images (n, h, w, c) without padding. Neighbours in memory are channels, so a window's maxima
 * are taken for all channels at once.
 *
 * winner is the place of the maximum in its window, row by row; NaN wins, and the first of equals. */

struct pooling {
    int64_t n, h, w, c, size_h, size_w, stride_h, stride_w;
};

static void max_pool_forward(void *const *array, const int64_t *size, const double *scalar)
{
    const struct pooling *p = (const void *)size;
    const real *x = array[0];
    real *y = array[1];
    signed_word *winner = array[2];
    const int64_t out_h = (p->h - p->size_h) / p->stride_h + 1, out_w = (p->w - p->size_w) / p->stride_w + 1;
    (void)scalar;

    for (int64_t n = 0; n < p->n; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, y += p->c, winner += p->c) {
                const real *corner = x + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                memcpy(y, corner, p->c * sizeof(real));
                memset(winner, 0, p->c * sizeof *winner);
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < p->size_w; ++kx) {
                        const real *candidate = corner + (ky * p->w + kx) * p->c;
                        const signed_word place = (signed_word)(ky * p->size_w + kx);
#pragma omp simd
                        for (int64_t c = 0; c < p->c; ++c) {
                            const real best = y[c], next = candidate[c];
                            const signed_word holder = winner[c];
                            /* not above next, which NaN never is; but NaN once there stays */
                            const int wins = !(best >= next) & (best == best);
                            y[c] = wins ? next : best;
                            winner[c] = wins ? place : holder;
                        }
                    }
            }
}

static void max_pool_backward(void *const *array, const int64_t *size, const double *scalar)
{
    const struct pooling *p = (const void *)size;
    const real *dy = array[0];
    const signed_word *winner = array[1];
    real *dx = array[2];
    const int64_t out_h = (p->h - p->size_h) / p->stride_h + 1, out_w = (p->w - p->size_w) / p->stride_w + 1;
    (void)scalar;

    memset(dx, 0, p->n * p->h * p->w * p->c * sizeof(real));
    for (int64_t n = 0; n < p->n; ++n)
        for (int64_t oy = 0; oy < out_h; ++oy)
            for (int64_t ox = 0; ox < out_w; ++ox, dy += p->c, winner += p->c) {
                real *corner = dx + ((n * p->h + oy * p->stride_h) * p->w + ox * p->stride_w) * p->c;
                for (int64_t ky = 0; ky < p->size_h; ++ky)
                    for (int64_t kx = 0; kx < p->size_w; ++kx) {
                        real *receiver = corner + (ky * p->w + kx) * p->c;
                        const signed_word place = (signed_word)(ky * p->size_w + kx);
#pragma omp simd
                        for (int64_t c = 0; c < p->c; ++c) {
                            const real d = dy[c];
                            receiver[c] += winner[c] == place ? d : 0;
                        }
                    }
            }
}
