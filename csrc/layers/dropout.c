/* Inverted dropout (Srivastava et al. 2014): y = x factor where kept, 0 where dropped; factor = 1 / (1 - p). */
#include "bias_relu.h"
#include "mask.h"
#include "share.h"

static void random_bits(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    enum { TIMES = 2, TOGETHER = TIMES * PHILOX_LANES };
    uint32_t *out = array[0], bits[TIMES * PHILOX_WORDS];
    const struct range blocks = own_range(size[0], TOGETHER, share);
    const uint64_t seed = size[1], counter = size[2], first = size[3];
    (void)scalar;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t place = block % TOGETHER;
        if (place == 0)
            philox(bits, TIMES, seed, counter, first + block);
        for (int w = 0; w < 4; ++w)
            out[4 * block + w] = bits[place / PHILOX_LANES * PHILOX_WORDS + w * PHILOX_LANES + place % PHILOX_LANES];
    }
}

static void dropout_forward(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const real *x = array[0];
    real *y = array[1];
    uint8_t *mask = array[2];
    const struct drawing d = {size[1], size[2], (uint16_t)size[3], scalar[0]};
    const struct range own = own_range(size[0], GROUP, share);
    for (int64_t first = own.begin; first < own.end; first += DRAWN) {
        const struct range block = {0, own.end - first < DRAWN ? own.end - first : DRAWN};
        draw(&d, first, block.end, mask + first / 8);
        apply_all(x + first, y + first, mask + first / 8, block, d.factor, 2 * DRAWN);
    }
}

/* y = dropout(relu(x + bias)). Its mask need not be kept: what was dropped is 0 in y, as is what passes no gradient. */
static void bias_relu_dropout_forward(void *const *array, const int64_t *size, const double *scalar,
                                      struct fastopt_share share)
{
    const real *x = array[0], *bias = array[1];
    real *y = array[2];
    const int64_t columns = size[1];
    const struct drawing d = {size[2], size[3], (uint16_t)size[4], scalar[0]};
    const struct range own = own_range(size[0] * columns, GROUP, share);
    for (int64_t first = own.begin; first < own.end; first += DRAWN) {
        const int64_t end = own.end - first < DRAWN ? own.end : first + DRAWN;
        for (int64_t i = first, n; i < end; i += n) {
            const int64_t column = i % columns;
            n = columns - column < end - i ? columns - column : end - i;
            bias_relu(x + i, bias + column, y + i, n);
        }
        drop_out(&d, y, (struct range){first, end});
    }
}

static void dropout_apply(void *const *array, const int64_t *size, const double *scalar, struct fastopt_share share)
{
    const struct range own = own_range(size[0], GROUP, share);
    for (struct range part = up_to_line(own, array[2]); part.begin < own.end; part = after(part, own))
        apply_all(array[0], array[2], array[1], part, scalar[0], 0);
}
