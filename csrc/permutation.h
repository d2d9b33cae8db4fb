/* Orders of samples as NumPy's generator draws them, whose construction takes as long in Python as the steps of a small
 * network: SeedSequence (M. O'Neill, "Simple portable C++ seed entropy", 2015), PCG64 (M. O'Neill, "PCG: a family of
 * better random number generators", 2014; XSL-RR 128/64), and as random integers words under a mask, again where they
 * are too large. */
#ifndef PERMUTATION_H
#define PERMUTATION_H

#include <stddef.h>
#include <stdint.h>

/* What NumPy draws as `default_rng(entropy).permutation(n)`, n < 2^32, of entropy in 32-bit words; returns whether the
 * compiler has the integers for it. */
int fastopt_permutation(const uint32_t *entropy, size_t words, int64_t n, int64_t *order);

#endif
