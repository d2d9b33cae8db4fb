/* The thread pool: one job at a time, in as many parts as there are threads to do them.
 *
 * The calling thread does part 0 and worker i does part i, job after job, so that each core finds its part's data in
 * its own cache. A worker that comes late (it was asleep, or has lost its core) finds its part done by the caller: a
 * part belongs to whoever first writes the job's number into its worker's slot.
 *
 * Workers start when they are first needed, spin for a short while after each job, and then sleep. Waking them can take
 * fifty microseconds of the caller's time (on a virtual machine, where another CPU must be scheduled), in which much
 * work is done. So they are woken for large jobs, or when jobs follow each other so closely that they will stay awake.
 *
 * A call that finds the pool in use does all parts itself, as does every call where there are no threads. A forked
 * child has none of its parent's workers, and starts its own.
 *
 * The number of threads is that of the process. Programs that run at the same time, each by a thread of its own, have
 * it divided among them, and a thread may have a limit of its own.
 */
#define _POSIX_C_SOURCE 200809L
#include "parallel.h"

static void forget_programs(void);

#if defined(_WIN32) || defined(__STDC_NO_ATOMICS__) || defined(FASTOPT_NO_THREADS) ||                                  \
    (defined(__EMSCRIPTEN__) && !defined(__EMSCRIPTEN_PTHREADS__))

enum { MOST_THREADS = 1 };

typedef unsigned number_of_threads;
#define OF_THREAD static

static void watch_forks(void)
{
}

static int share_out(fastopt_part_fn *part, const void *work, unsigned count, int wake)
{
    (void)part, (void)work, (void)count, (void)wake;
    return 0;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum {
    MOST_THREADS = FASTOPT_MAX_THREADS,
    AWAKE = 1 << 18, /* ticks, some 0.1 ms: longer than the gap between kernels, too short for a user to notice */
    SPINS = 500,     /* before the CPU is yielded to other threads, such as those of a BLAS */
#ifdef __SANITIZE_THREAD__ /* whose own state stands there, too */
    STACK = 1 << 23,
#else
    STACK = 1 << 20, /* twice what a kernel needs at most */
#endif
};

typedef _Atomic uint32_t job_number; /* which wraps around */
typedef _Atomic unsigned number_of_threads;
#define OF_THREAD static _Thread_local

/* Threads communicate through as few cache lines as possible: passing one on takes a hundred nanoseconds or more. */
struct slot {
    _Alignas(64) job_number claimed, done; /* the last jobs whose part of this worker is claimed, and is done */
    _Atomic int asleep;
    pthread_cond_t wake;
};

static struct {
    _Alignas(64) job_number number; /* of the job below: written last */
    unsigned count;
    fastopt_part_fn *part;
    const void *work;
    _Alignas(64) atomic_flag in_use;
    pthread_mutex_t mutex; /* of sleeping workers */
    unsigned started;
    int64_t last_end; /* of a job, in ticks */
    struct slot slots[MOST_THREADS];
} pool = {.in_use = ATOMIC_FLAG_INIT, .mutex = PTHREAD_MUTEX_INITIALIZER};

/* The time, in units of about half a nanosecond. A system call would take longer than a small step. */
static int64_t ticks(void)
{
#if defined(__x86_64__)
    return (int64_t)__builtin_ia32_rdtsc();
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 2 * ((int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
#endif
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Does a part unless another thread has claimed it, and returns whether it did. The job outlives all its parts. */
static int do_unclaimed(struct slot *slot, uint32_t number)
{
    uint32_t before = number - 1;
    const int mine = atomic_compare_exchange_strong(&slot->claimed, &before, number);
    if (mine) {
        pool.part(pool.work, (struct fastopt_share){(unsigned)(slot - pool.slots), pool.count});
        atomic_store_explicit(&slot->done, number, memory_order_release);
    }
    return mine;
}

/* Waits for a job other than the last one, and returns its number. A worker that is woken stays awake for a while even
 * if it comes too late for this job: otherwise it would come too late for each that follows. */
static uint32_t next_job(struct slot *slot, uint32_t last, int64_t *bedtime)
{
    uint32_t number = atomic_load(&pool.number);
    for (; number == last && ticks() < *bedtime; sched_yield())
        for (int spin = 0; spin < SPINS && (number = atomic_load(&pool.number)) == last; ++spin)
            relax();
    if (number == last) {
        pthread_mutex_lock(&pool.mutex);
        atomic_store(&slot->asleep, 1); /* before reading the number, which callers write before they read this */
        while ((number = atomic_load(&pool.number)) == last)
            pthread_cond_wait(&slot->wake, &pool.mutex);
        atomic_store(&slot->asleep, 0);
        pthread_mutex_unlock(&pool.mutex);
        *bedtime = ticks() + AWAKE;
    }
    return number;
}

static void *worker(void *argument)
{
    struct slot *slot = argument;
    uint32_t number = atomic_load(&slot->claimed);
    for (int64_t bedtime = ticks() + AWAKE;;) {
        number = next_job(slot, number, &bedtime);
        if (do_unclaimed(slot, number)) /* jobs in which it has no part do not keep it awake */
            bedtime = ticks() + AWAKE;
    }
    return NULL;
}

/* In a forked child, which has none of the pool's threads. */
static void forget_workers(void)
{
    static const pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pool.mutex = mutex;
    pool.started = 0;
    atomic_flag_clear(&pool.in_use);
    forget_programs();
}

static void register_handler(void)
{
    pthread_atfork(NULL, NULL, forget_workers);
}

static void watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_handler);
}

/* Starts workers until there are so many, or as many as the system grants. */
static void start_workers(unsigned wanted)
{
    watch_forks();
    sigset_t all, old;
    sigfillset(&all); /* signals are left to the threads of Python */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK); /* some systems give too little, others eight times as much */
    while (pool.started < wanted) {
        struct slot *slot = &pool.slots[pool.started + 1];
        static const pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
        slot->wake = wake;
        atomic_store(&slot->asleep, 0);
        atomic_store(&slot->claimed, atomic_load(&pool.number));
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker, slot))
            break;
        ++pool.started;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Marks all jobs up to this one as claimed. Usually they are, and the slot's cache line stays with its worker. */
static void offer(struct slot *slot, uint32_t claimed)
{
    if (atomic_load_explicit(&slot->claimed, memory_order_relaxed) != claimed)
        atomic_store_explicit(&slot->claimed, claimed, memory_order_relaxed);
}

/* Returns whether the job is done: not so where the pool is busy with another thread's job. */
static int share_out(fastopt_part_fn *part, const void *work, unsigned count, int wake)
{
    if (atomic_flag_test_and_set_explicit(&pool.in_use, memory_order_acquire))
        return 0;
    if (pool.started < count - 1)
        start_workers(count - 1);

    const uint32_t number = atomic_load(&pool.number) + 1;
    pool.part = part;
    pool.work = work;
    pool.count = count;
    for (unsigned i = 1; i < count; ++i)
        offer(&pool.slots[i], number - 1);
    for (unsigned i = count; i <= pool.started; ++i)
        offer(&pool.slots[i], number); /* no part for it */
    atomic_store(&pool.number, number);
    wake |= ticks() - pool.last_end < AWAKE;
    for (unsigned i = 1; wake && i < count; ++i)
        if (atomic_load(&pool.slots[i].asleep)) {
            pthread_mutex_lock(&pool.mutex);
            pthread_cond_signal(&pool.slots[i].wake);
            pthread_mutex_unlock(&pool.mutex);
        }

    part(work, (struct fastopt_share){0, count});
    for (unsigned i = 1; i < count; ++i)
        do_unclaimed(&pool.slots[i], number);
    for (unsigned i = 1; i < count; ++i)
        for (int spin = 1; atomic_load_explicit(&pool.slots[i].done, memory_order_acquire) != number; ++spin)
            spin % SPINS ? relax() : (void)sched_yield();
    pool.last_end = ticks();
    atomic_flag_clear_explicit(&pool.in_use, memory_order_release);
    return 1;
}

#endif

static number_of_threads threads = 1;
static number_of_threads programs; /* how many threads run some at present … */
OF_THREAD unsigned inside;         /* … this one among them, within so many */
OF_THREAD unsigned limit = FASTOPT_MAX_THREADS;

static void forget_programs(void)
{
    programs = inside > 0; /* other threads have not come along */
}

void fastopt_begin_program(void)
{
    watch_forks();
    if (inside++ == 0)
        ++programs;
}

void fastopt_end_program(void)
{
    if (--inside == 0)
        --programs;
}

unsigned fastopt_limit_threads(unsigned count)
{
    const unsigned before = limit;
    limit = count < 1 ? 1 : count;
    return before;
}

unsigned fastopt_own_threads(void)
{
    const unsigned others = programs - (inside > 0), share = threads / (others + 1);
    const unsigned most = share < limit ? share : limit;
    return most < 1 ? 1 : most;
}

unsigned fastopt_get_num_threads(void)
{
    return threads;
}

void fastopt_set_num_threads(unsigned count)
{
    threads = count < 1 ? 1 : count < MOST_THREADS ? count : MOST_THREADS;
}

void fastopt_parallel(fastopt_part_fn *part, const void *work, unsigned count, int wake)
{
    if (count > 1 && share_out(part, work, count, wake))
        return;
    for (unsigned i = 0; i < count; ++i)
        part(work, (struct fastopt_share){i, count});
}
