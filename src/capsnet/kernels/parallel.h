/* Tasks shared out among PyTorch's own threads: a second pool of threads would compete with the first for the cores. */
#ifndef PARALLEL_H
#define PARALLEL_H

typedef long n; /* sizes and offsets, in numbers */
typedef void task_fn(const void *job, n task);
typedef n before_fn(const void *job, n task); /* how many tasks, the first ones, must be done before this one starts */

/* `before` may be 0 where no task waits for another; otherwise it must not fall from one task to the next. */
void share_out(task_fn *run, before_fn *before, const void *job, n tasks, int threads);

#endif
