/* The thread pool. */
#ifndef PARALLEL_H
#define PARALLEL_H

#include "fastopt.h"

/* Does one part of a job. */
typedef void fastopt_part_fn(const void *work, struct fastopt_share share);

/* Has all parts of a job done, by this thread and by others, and returns when they are. `wake`: the job is large enough
 * for waking sleeping threads. */
void fastopt_parallel(fastopt_part_fn *part, const void *work, unsigned count, int wake);

/* A program begins, or ends, on this thread. A forked child forgets those of other threads. */
void fastopt_begin_program(void);
void fastopt_end_program(void);

/* How many threads a kernel that this thread calls may use now. */
unsigned fastopt_own_threads(void);

#endif
