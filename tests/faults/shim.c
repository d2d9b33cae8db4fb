/* Preloaded by tests/test_faults.py: has allocations fail and threads refused, where the test says so.
 *
 * Of glibc alone, whose own functions have these names. What fails is counted for the thread that asked for it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);

/* How many allocations succeed before one fails; less than 0: all do. */
static _Thread_local long left __attribute__((tls_model("initial-exec"))) = -1;
static _Thread_local long failed __attribute__((tls_model("initial-exec")));
static int threads_refused;

void shim_fail_after(long allocations)
{
    left = allocations;
    failed = 0;
}

/* Ends that, and returns whether one has failed. */
long shim_stop(void)
{
    left = -1;
    return failed;
}

void shim_refuse_threads(int whether)
{
    threads_refused = whether;
}

static int fails(void)
{
    if (left < 0 || left-- > 0)
        return 0;
    failed = 1;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
    return fails() ? NULL : __libc_realloc(memory, size);
}

typedef int create_fn(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    create_fn *const create = (create_fn *)dlsym(RTLD_NEXT, "pthread_create");
    return threads_refused ? EAGAIN : create(thread, attributes, start, argument);
}
