/* The thread pool. */
#ifndef PARALLEL_H
#define PARALLEL_H

#include "fastopt.h"

/* Does one part of a job. */
typedef void fastopt_part_fn(const void *work, struct fastopt_share share);

/* Has all parts of a job done, by this thread and by others, and returns when they are. `wake`: the job is large enough
 * for waking sleeping threads. */
void fastopt_parallel(fastopt_part_fn *part, const void *work, unsigned count, int wake);

#endif
