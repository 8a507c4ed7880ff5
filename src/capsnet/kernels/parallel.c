#include "parallel.h"

#include <stdatomic.h>

typedef void gomp_parallel(void (*)(void *), void *, unsigned, unsigned);

static gomp_parallel *parallel; /* GOMP_parallel of the OpenMP library that PyTorch has loaded */

void capsnet_set_parallel(gomp_parallel *f) { parallel = f; }

typedef struct {
    task_fn *run;
    const void *job;
    n tasks;
    atomic_long next;
} queue;

static void work(void *argument) {
    queue *q = argument;
    for (n t; (t = atomic_fetch_add(&q->next, 1)) < q->tasks;) q->run(q->job, t);
}

/* Which thread does a task is open; what a task computes must not depend on it, or runs would not repeat bit for bit. */
void share_out(task_fn *run, const void *job, n tasks, int threads) {
    queue q = {run, job, tasks, 0};
    if (threads > tasks) threads = (int)tasks;
    if (parallel && threads > 1) parallel(work, &q, (unsigned)threads, 0);
    else work(&q);
}
