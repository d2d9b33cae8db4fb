/* Inverted dropout (Srivastava et al. 2014): y = x factor where kept, 0 where dropped; factor = 1 / (1 - p). */
#include "../kernel.h"
#include "bias_relu.h"
#include "mask.h"
#include "share.h"

static void random_bits(const void *arguments, struct fastopt_share share)
{
    const struct random_bits_args *a = arguments;
    enum { TIMES = 2, TOGETHER = TIMES * PHILOX_LANES };
    uint32_t *out = a->bits, bits[TIMES * PHILOX_WORDS];
    const struct range blocks = own_range(a->blocks, TOGETHER, share);
    const uint64_t seed = a->seed, counter = a->counter, first = a->first_block;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t at = block % TOGETHER;
        if (at == 0)
            philox(bits, TIMES, seed, counter, first + block);
        for (int w = 0; w < 4; ++w)
            out[4 * block + w] = bits[at / PHILOX_LANES * PHILOX_WORDS + w * PHILOX_LANES + at % PHILOX_LANES];
    }
}

static void dropout_forward(const void *arguments, struct fastopt_share share)
{
    const struct dropout_forward_args *a = arguments;
    const real *x = a->x;
    real *y = a->y;
    uint8_t *mask = a->mask;
    const struct drawing d = {a->seed, a->counter, a->from, (uint16_t)a->threshold, a->factor};
    const struct range own = own_range(a->n, MASK_BLOCK, share);
    for (int64_t first = own.begin; first < own.end; first += MASK_CHUNK) {
        const struct range block = {0, minimum(own.end - first, MASK_CHUNK)};
        draw(&d, first, block.end, mask + first / 8);
        apply_mask(x + first, y + first, mask + first / 8, block, d.factor, 2 * MASK_CHUNK);
    }
}

/* y = dropout(relu(x + bias)). No mask is stored: backward passes no gradient where y is 0, for either reason. */
static void bias_relu_dropout_forward(const void *arguments, struct fastopt_share share)
{
    const struct bias_relu_dropout_forward_args *a = arguments;
    const real *x = a->x, *bias = a->bias;
    real *y = a->y;
    const int64_t columns = a->columns;
    const struct drawing d = {a->seed, a->counter, a->from, (uint16_t)a->threshold, a->factor};
    const struct range own = own_range(a->rows * columns, MASK_BLOCK, share);
    for (int64_t first = own.begin; first < own.end; first += MASK_CHUNK) {
        const int64_t end = minimum(own.end, first + MASK_CHUNK);
        for (int64_t i = first, n; i < end; i += n) {
            const int64_t column = i % columns;
            n = minimum(columns - column, end - i);
            bias_relu(x + i, bias + column, y + i, n);
        }
        drop_out(&d, y, (struct range){first, end});
    }
}

static void dropout_apply(const void *arguments, struct fastopt_share share)
{
    const struct dropout_apply_args *a = arguments;
    const struct range own = own_range(a->n, MASK_BLOCK, share);
    for (struct range part = up_to_line(own, a->y); part.begin < own.end; part = after(part, own))
        apply_mask(a->x, a->y, a->mask, part, a->factor, 0);
}
