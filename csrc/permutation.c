/* See permutation.h. */
#include "permutation.h"

#ifdef __SIZEOF_INT128__
__extension__ typedef unsigned __int128 wide;

struct pcg {
    wide state, increment;
    uint64_t drawn; /* whose upper half is the next word, if it is kept */
    int kept;
};

enum { POOL = 4 };

/* Hashes a word; the constant is another for the next one. */
static uint32_t hashed(uint32_t value, uint32_t *constant, uint32_t factor)
{
    value ^= *constant;
    *constant *= factor;
    value *= *constant;
    return value ^ value >> 16;
}

static uint32_t mixed(uint32_t a, uint32_t b)
{
    const uint32_t mix = 0xca01f9ddu * a - 0x4973f715u * b;
    return mix ^ mix >> 16;
}

static void advance(struct pcg *pcg)
{
    const wide factor = (wide)0x2360ed051fc65da4u << 64 | 0x4385df649fccf645u;
    pcg->state = pcg->state * factor + pcg->increment;
}

static struct pcg seeded(const uint32_t *entropy, size_t words)
{
    const uint32_t factor = 0x931e8875u;
    uint32_t pool[POOL], constant = 0x43b0d7e5u;
    for (size_t i = 0; i < POOL; ++i)
        pool[i] = hashed(i < words ? entropy[i] : 0, &constant, factor);
    for (size_t from = 0; from < POOL; ++from)
        for (size_t to = 0; to < POOL; ++to)
            if (from != to)
                pool[to] = mixed(pool[to], hashed(pool[from], &constant, factor));
    for (size_t from = POOL; from < words; ++from)
        for (size_t to = 0; to < POOL; ++to)
            pool[to] = mixed(pool[to], hashed(entropy[from], &constant, factor));
    uint64_t of_seed[POOL];
    constant = 0x8b51f9ddu;
    for (size_t i = 0; i < POOL; ++i) {
        const uint32_t low = hashed(pool[2 * i % POOL], &constant, 0x58f38dedu);
        of_seed[i] = (uint64_t)hashed(pool[(2 * i + 1) % POOL], &constant, 0x58f38dedu) << 32 | low;
    }
    struct pcg pcg = {0, ((wide)of_seed[2] << 64 | of_seed[3]) << 1 | 1, 0, 0};
    advance(&pcg);
    pcg.state += (wide)of_seed[0] << 64 | of_seed[1];
    advance(&pcg);
    return pcg;
}

static uint32_t next_word(struct pcg *pcg)
{
    pcg->kept = !pcg->kept;
    if (!pcg->kept)
        return (uint32_t)(pcg->drawn >> 32);
    advance(pcg);
    const unsigned turn = (unsigned)(pcg->state >> 122);
    const uint64_t both = (uint64_t)(pcg->state >> 64) ^ (uint64_t)pcg->state;
    pcg->drawn = both >> turn | both << (64 - turn) % 64;
    return (uint32_t)pcg->drawn;
}

int fastopt_permutation(const uint32_t *entropy, size_t words, int64_t n, int64_t *order)
{
    struct pcg pcg = seeded(entropy, words);
    for (int64_t i = 0; i < n; ++i)
        order[i] = i;
    uint32_t mask = 1, i = n > 0 ? (uint32_t)(n - 1) : 0;
    while (mask < i)
        mask = mask << 1 | 1;
    while (i > 0) { /* a word that is too large exchanges nothing: a branch would not be foreseen */
        const uint32_t word = next_word(&pcg) & mask, other = word <= i ? word : i;
        const int64_t held = order[i];
        order[i] = order[other];
        order[other] = held;
        i -= word <= i;
        mask >>= i <= mask >> 1;
    }
    return 1;
}
#else
int fastopt_permutation(const uint32_t *entropy, size_t words, int64_t n, int64_t *order)
{
    (void)entropy, (void)words, (void)n, (void)order;
    return 0;
}
#endif
