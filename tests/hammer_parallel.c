/* Hammers the thread pool of csrc/parallel.c, for `make tsan`: several threads hand in works at once, of counts that
 * change from call to call, some close upon each other and some after the pool has gone to sleep; and processes fork
 * meanwhile. Each part must be done once, by the time that the call returns; who does it is left to chance.
 *
 * What parts write and callers read is plain memory, so ThreadSanitizer sees whether the pool puts one before the
 * other.
 */
#define _GNU_SOURCE
#include "parallel.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CALLERS = 4, WORKS = 4000, MOST = 12, EACH = 64 };

struct job {
    const int *in; /* EACH numbers for each part */
    int *out, *times;
    unsigned count;
};

static void do_part(const void *work, struct fastopt_share share)
{
    const struct job *job = work;
    if (share.count != job->count || share.index >= share.count)
        abort();
    for (unsigned i = share.index * EACH; i < (share.index + 1) * EACH; ++i)
        job->out[i] = job->in[i] + (int)share.index;
    ++job->times[share.index];
}

static unsigned next(unsigned *state) /* xorshift */
{
    *state ^= *state << 13, *state ^= *state >> 17;
    return *state ^= *state << 5;
}

static void hammer(unsigned seed, int works)
{
    for (int n = 0; n < works; ++n) {
        int in[MOST * EACH], out[MOST * EACH] = {0}, times[MOST] = {0}; /* on the stack, as the works of kernels are */
        const struct job job = {in, out, times, 1 + next(&seed) % MOST};
        for (int i = 0; i < MOST * EACH; ++i)
            in[i] = n + i;
        fastopt_parallel(do_part, &job, job.count, next(&seed) % 2);
        for (unsigned part = 0; part < MOST; ++part)
            if (times[part] != (part < job.count)) {
                fprintf(stderr, "part %u of %u was done %d times\n", part, job.count, times[part]);
                abort();
            }
        for (int i = 0; i < (int)job.count * EACH; ++i)
            if (out[i] != n + i + i / EACH) {
                fprintf(stderr, "element %d of part %d is not there\n", i % EACH, i / EACH);
                abort();
            }
        if (next(&seed) % 64 == 0) /* until the pool sleeps */
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void *caller(void *seed)
{
    const int inside = *(unsigned *)seed % 2;
    if (inside)
        fastopt_begin_program();
    hammer(*(unsigned *)seed, WORKS);
    if (inside)
        fastopt_end_program();
    return NULL;
}

static void expect(unsigned threads, const char *when)
{
    if (fastopt_own_threads() == threads)
        return;
    fprintf(stderr, "%s there are %u threads, not %u\n", when, fastopt_own_threads(), threads);
    abort();
}

static pthread_barrier_t barrier;

static void *program(void *unused)
{
    fastopt_begin_program();
    fastopt_begin_program(); /* within it */
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    fastopt_end_program();
    fastopt_end_program();
    return unused;
}

/* Threads that run programs have the number divided among them, and limits are of the thread. */
static void check_shares(void)
{
    pthread_t others[2];
    fastopt_set_num_threads(9);
    pthread_barrier_init(&barrier, NULL, 3);
    expect(9, "alone");
    for (int i = 0; i < 2; ++i)
        if (pthread_create(&others[i], NULL, program, NULL))
            abort();
    pthread_barrier_wait(&barrier);
    expect(3, "beside two threads that run programs");
    fastopt_begin_program();
    expect(3, "in a program beside them");
    const pid_t child = fork();
    if (child == 0) {
        expect(9, "in a child, which has one program,");
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        abort();
    fastopt_end_program();
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 2; ++i)
        pthread_join(others[i], NULL);
    expect(9, "after them");
    if (fastopt_limit_threads(3) != FASTOPT_MAX_THREADS)
        abort();
    expect(3, "with a limit");
    if (fastopt_limit_threads(0) != 3)
        abort();
    expect(1, "with the least limit");
    fastopt_limit_threads(FASTOPT_MAX_THREADS);
}

int main(int argc, char **argv)
{
    const unsigned forks = argc > 1 ? (unsigned)atoi(argv[1]) : 0;
    check_shares();
    pthread_t threads[CALLERS];
    unsigned seeds[CALLERS];
    for (unsigned i = 0; i < CALLERS; ++i) {
        seeds[i] = i + 1;
        if (pthread_create(&threads[i], NULL, caller, &seeds[i]))
            return 1;
    }
    for (unsigned i = 0; i < forks; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            hammer(100 + i, 100);
            _exit(0);
        }
        int status;
        hammer(200 + i, 100);
        if (waitpid(child, &status, 0) != child || status != 0) {
            fprintf(stderr, "child %u ended with status %d\n", i, status);
            return 1;
        }
    }
    for (unsigned i = 0; i < CALLERS; ++i)
        pthread_join(threads[i], NULL);
    puts("every part of every work was done once");
    return 0;
}
