/* Tasks shared out among PyTorch's own threads: a second pool of threads would compete with the first for the cores. */
#ifndef PARALLEL_H
#define PARALLEL_H

typedef long n; /* sizes and offsets, in numbers */
typedef void task_fn(const void *job, n task);

void share_out(task_fn *run, const void *job, n tasks, int threads);

#endif
