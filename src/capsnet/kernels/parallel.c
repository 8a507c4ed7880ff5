#include "parallel.h"

#include <immintrin.h>
#include <sched.h>
#include <stdatomic.h>

#define SPINS 1000 /* looks before another program is let onto the core, who may be what we wait for */

typedef void gomp_parallel(void (*)(void *), void *, unsigned, unsigned);

static gomp_parallel *parallel; /* GOMP_parallel of the OpenMP library that PyTorch has loaded */

void capsnet_set_parallel(gomp_parallel *f) { parallel = f; }

typedef struct {
    task_fn *run;
    before_fn *before;
    const void *job;
    n tasks;
    _Alignas(64) atomic_long next;
    _Alignas(64) atomic_long done;
} queue;

/* Tasks are taken in order, so those which this one waits for are in work or done. Their count says which: none of
 * this task's own stage can be done before all of the last one are. */
static void await(queue *q, n t) {
    const n before = q->before ? q->before(q->job, t) : 0;
    for (n looks = 1; atomic_load_explicit(&q->done, memory_order_acquire) < before; looks++)
        if (looks % SPINS) _mm_pause();
        else sched_yield();
}

static void work(void *argument) {
    queue *q = argument;
    for (n t; (t = atomic_fetch_add(&q->next, 1)) < q->tasks;) {
        await(q, t);
        q->run(q->job, t);
        atomic_fetch_add(&q->done, 1);
    }
}

/* Which thread does a task is open; what a task computes must not depend on it, or runs would not repeat bit for bit.
 * A thread which another program holds up holds up the others with one task at most, until the end. */
void share_out(task_fn *run, before_fn *before, const void *job, n tasks, int threads) {
    queue q = {.run = run, .before = before, .job = job, .tasks = tasks};
    if (threads > tasks) threads = (int)tasks;
    if (parallel && threads > 1) parallel(work, &q, (unsigned)threads, 0);
    else work(&q);
}
