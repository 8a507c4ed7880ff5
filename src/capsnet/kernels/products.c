/* Many small matrix products at once; `products.py` plans them and makes their tables of offsets.
 *
 * c[z, row, column] (+)= sum over k of a[z, row, k] b[z, k, column], each of the three wherever its offsets say: so that
 * sums over strided pixels, products over frequencies and convolutions are all the same thing, and nothing is copied into
 * shape first. Columns come in runs that are contiguous in c, and in b too unless `bcolumn` says otherwise.
 *
 * A program is a list of such batches of products, over buffers which are given when it runs. All of it is one parallel
 * region: to enter and leave one costs little where all cores are free, and milliseconds where another program has one.
 */
#include "parallel.h"
#include "simd.h"

#define WIDE (2 * L) /* columns of a panel */
#define DEEP 256     /* most rows of a panel: 16 or 32 KiB, which stay in the first-level cache */
#define COPIED 128   /* most rows of a that are copied at a time: 128 KiB, which stay in the second-level cache */

typedef struct {
    const n *a0, *b0, *c0;               /* where each product starts */
    const n *bk, *crow;                  /* k in b, rows of c */
    const n *brun, *crun, *length;       /* runs of columns: where they start in b and c, and how long they are */
    const n *bcolumn;                    /* columns of b within a run, if they are not contiguous */
    const n *aplace;                     /* k in a, if not one step apart: then rows of a are copied side by side */
    n arow, ak;                          /* from one row of a to the next, from one k to the next */
    n products, rows, depth, runs, rows_a_task;
} plan;

typedef struct {
    const plan *plan;
    n a, b, c, bias;             /* numbers of buffers; bias may be -1, for none */
    n hidden_by, sums;           /* the same; where rows of a are copied: only where these are positive; their sums */
    n a_start, b_start, c_start; /* where in them */
    n first;                     /* number of its first task */
    n before;                    /* tasks that must be done before any of its own */
    int add, relu, stream;
} call;

typedef struct {
    const call *calls;
    n count;
    float *const *buffers;
} program;

INLINE int side_by_side(const n *at) {
    int all = 1;
    for (n i = 1; i < L; i++) all &= at[i] == at[0] + i;
    return all;
}

static void pack(float *restrict panel, const float *b, const n *bk, const n *bcolumn, n depth, n columns) {
    const lanes left = first_lanes(columns), right = first_lanes(columns - L);
    n k = 0;
    if (!bcolumn) {
        for (; k < depth; k++) {
            STORE(panel + k * WIDE, LOAD_FIRST(left, b + bk[k]));
            STORE(panel + k * WIDE + L, LOAD_FIRST(right, b + bk[k] + L));
        }
        return;
    }
    for (; k + L <= depth && side_by_side(bk + k); k += L) /* here columns are read whole */
        for (n x = 0; x < WIDE; x += L) {
            v some[L];
            for (int i = 0; i < L; i++) some[i] = x + i < columns ? LOAD(b + bk[k] + bcolumn[x + i]) : ZERO;
            transpose(some);
            for (int i = 0; i < L; i++) STORE(panel + (k + i) * WIDE + x, some[i]);
        }
    for (; k < depth; k++)
        for (n x = 0; x < WIDE; x++) panel[k * WIDE + x] = x < columns ? b[bk[k] + bcolumn[x]] : 0;
}

/* Rows of a, copied side by side; what they add up to is added to `sums`. */
static void copy_rows(float *restrict to, const float *a, const float *by, const n *place, n arow, n rows, n depth,
                      float *sums) {
    int whole_vector[DEEP / L + 1];
    for (n k = 0; k < depth; k += L) whole_vector[k / L] = k + L <= depth && side_by_side(place + k);
    for (n row = 0; row < rows; row++, a += arow, by = by ? by + arow : 0, to += depth) {
        v sum = ZERO;
        float rest = 0, each[L];
        for (n k = 0; k < depth; k += L)
            if (whole_vector[k / L]) {
                v x = LOAD(a + place[k]);
                if (by) x = unless_hidden(x, LOAD(by + place[k]));
                STORE(to + k, x);
                sum += x;
            } else
                for (n i = k; i < k + L && i < depth; i++) {
                    to[i] = by && by[place[i]] <= 0 ? 0 : a[place[i]];
                    rest += to[i];
                }
        if (!sums) continue;
        STORE(each, sum);
        for (int i = 0; i < L; i++) rest += each[i];
        sums[row] += rest;
    }
}

typedef struct {
    const float *a, *b, *bias;
    float *c;
    const n *bk, *crow;
    n arow, ak, depth, ahead;
    lanes left, right;
    int add, relu, stream;
} strip;

/* Up to MOST_ROWS rows of c, two vectors of columns: their sums are registers, written out because the compiler must not put them
 * elsewhere. */
#define EACH1(F) F(0)
#define EACH2(F) EACH1(F) F(1)
#define EACH3(F) EACH2(F) F(2)
#define EACH4(F) EACH3(F) F(3)
#define EACH5(F) EACH4(F) F(4)
#define EACH6(F) EACH5(F) F(5)
#define EACH7(F) EACH6(F) F(6)
#define EACH8(F) EACH7(F) F(7)
#define BEGIN(r) v x##r = ZERO, y##r = x##r;
/* Of eight rows each second group of four has a pointer of its own: an address is then a part of the load. */
#define A0 a0[0]
#define A1 a0[step]
#define A2 a0[2 * step]
#define A3 a0[3 * step]
#define A4 a4[0]
#define A5 a4[step]
#define A6 a4[2 * step]
#define A7 a4[3 * step]
#define STEP(r)                \
    {                          \
        const v y = SET(A##r); \
        x##r += y * left;      \
        y##r += y * right;     \
    }
#define END(r)                                           \
    {                                                    \
        float *to = s->c + s->crow[row + r];             \
        if (s->add) {                                    \
            x##r += LOAD_FIRST(s->left, to);             \
            y##r += LOAD_FIRST(s->right, to + L);        \
        }                                                \
        if (s->bias) {                                   \
            x##r += SET(s->bias[row + r]);               \
            y##r += SET(s->bias[row + r]);               \
        }                                                \
        if (s->relu) { /* in this order NaN stays NaN */ \
            x##r = MAX(ZERO, x##r);                      \
            y##r = MAX(ZERO, y##r);                      \
        }                                                \
        if (s->stream) {                                 \
            STREAM(to, x##r);                            \
            STREAM(to + L, y##r);                        \
        } else {                                         \
            STORE_FIRST(to, s->left, x##r);              \
            STORE_FIRST(to + L, s->right, y##r);         \
        }                                                \
    }
/* How a strip is read: from a panel, all of it one after the other, or where it lies. */
#define PANEL(k, x) LOAD(s->b + (k) * WIDE + (x) * L)
#define PANEL_AHEAD(k)
#define PLACE(k, x) LOAD_FIRST(x ? s->right : s->left, s->b + s->bk[k] + (x) * L)
#define PLACE_AHEAD(k)                                     \
    _mm_prefetch(s->b + s->bk[k] + 8 * WIDE, _MM_HINT_T0); \
    _mm_prefetch(s->b + s->bk[k] + 8 * WIDE + L, _MM_HINT_T0);
#define ROWS(R, B)                                                \
    static void B##_rows##R(const strip *s, n row) {              \
        const n step = s->arow;                                   \
        const float *a0 = s->a + row * step, *a4 = a0 + 4 * step; \
        EACH##R(BEGIN)                                            \
        for (n k = 0; k < s->depth; k++) {                        \
            const v left = B(k, 0), right = B(k, 1);              \
            _mm_prefetch(a0 + s->ahead, _MM_HINT_T0);             \
            B##_AHEAD(k)                                          \
            EACH##R(STEP)                                         \
            a0 += s->ak;                                          \
            a4 += s->ak;                                          \
        }                                                         \
        EACH##R(END)                                              \
    }
#define BOTH(R) ROWS(R, PANEL) ROWS(R, PLACE)
BOTH(1)
BOTH(2)
BOTH(3)
BOTH(4)
BOTH(5)
BOTH(6)
#if MOST_ROWS == 8
BOTH(7)
BOTH(8)
#define LIST(B) {0, B##_rows1, B##_rows2, B##_rows3, B##_rows4, B##_rows5, B##_rows6, B##_rows7, B##_rows8}
#else
#define LIST(B) {0, B##_rows1, B##_rows2, B##_rows3, B##_rows4, B##_rows5, B##_rows6}
#endif
typedef void rows_fn(const strip *, n);
static rows_fn *const panel_rows[] = LIST(PANEL), *const place_rows[] = LIST(PLACE);

static n row_tasks(const plan *p) { return (p->rows + p->rows_a_task - 1) / p->rows_a_task; }

static n tasks(const plan *p) { return p->products * row_tasks(p) * p->runs; }

static const call *call_of(const program *g, n t) {
    n low = 0, high = g->count;
    while (high - low > 1) {
        const n middle = (low + high) / 2;
        if (g->calls[middle].first <= t) low = middle;
        else high = middle;
    }
    return g->calls + low;
}

static n before(const void *argument, n t) { return call_of(argument, t)->before; }

static void task(const void *argument, n t) {
    const program *g = argument;
    const call *j = call_of(g, t);
    const plan *p = j->plan;
    t -= j->first;
    const n z = t / (row_tasks(p) * p->runs), first = t / p->runs % row_tasks(p) * p->rows_a_task, run = t % p->runs;
    const n last = first + p->rows_a_task < p->rows ? first + p->rows_a_task : p->rows;
    const float *a = g->buffers[j->a] + j->a_start + p->a0[z], *from = g->buffers[j->b] + j->b_start + p->b0[z];
    const float *bias = j->bias < 0 ? 0 : g->buffers[j->bias];
    const float *by = j->hidden_by < 0 ? 0 : g->buffers[j->hidden_by] + j->a_start + p->a0[z];
    float *sums = j->sums < 0 || run ? 0 : g->buffers[j->sums] + z * p->rows + first;
    float *to = g->buffers[j->c] + j->c_start + p->c0[z] + p->crun[run];
    /* Few rows: reading them in place twice is quicker, unless the first would overwrite what the second read. */
    const int pack_first = last - first > 16 || p->bcolumn || g->buffers[j->b] == g->buffers[j->c];
    const int stream = j->stream && (unsigned long)to % sizeof(v) == 0;
    rows_fn *const *rows = pack_first ? panel_rows : place_rows;
    float panel[DEEP * WIDE] __attribute__((aligned(64))), copied[p->aplace ? COPIED * DEEP : 1];
    const n length = p->length[run], pieces = (p->depth + DEEP - 1) / DEEP;
    const n deep = pieces ? (p->depth + pieces - 1) / pieces : 1; /* equal pieces: a short one costs as much as a whole */
    n k = 0;
    do { /* once where there is nothing to sum up, too: then c is zero */
        const n depth = p->depth - k < deep ? p->depth - k : deep;
        const int end = k + depth == p->depth;
        if (p->aplace) copy_rows(copied, a + first * p->arow, by ? by + first * p->arow : 0, p->aplace + k, p->arow,
                                 last - first, depth, sums);
        for (n x = 0; x < length; x += WIDE) {
            const n columns = length - x < WIDE ? length - x : WIDE;
            const float *b = from + p->brun[run] + (p->bcolumn ? 0 : x);
            if (pack_first) pack(panel, b, p->bk + k, p->bcolumn ? p->bcolumn + x : 0, depth, columns);
            const strip s = {
                .a = p->aplace ? copied - first * depth : a + k * p->ak,
                .b = pack_first ? panel : b,
                .bias = end ? bias : 0,
                .c = to + x,
                .bk = p->bk + k,
                .crow = p->crow,
                .arow = p->aplace ? depth : p->arow,
                .ak = p->aplace ? 1 : p->ak,
                .depth = depth,
                /* where rows lie side by side, the next ones: nobody else would fetch them in time */
                .ahead = p->arow == 1 ? L : 0,
                .left = first_lanes(columns),
                .right = first_lanes(columns - L),
                .add = j->add || k,
                .relu = end && j->relu,
                .stream = stream && columns == WIDE,
            };
            for (n row = first, count; row < last; row += count) {
                const n left = last - row; /* the last few in two equal parts: few rows at a time are slow */
                count = left >= 2 * MOST_ROWS || left == MOST_ROWS ? MOST_ROWS : left > MOST_ROWS ? (left + 1) / 2 : left;
                rows[count](&s, row);
            }
        }
    } while ((k += deep) < p->depth);
}

/* Numbers the tasks of a program, once. Returns how many there are. */
n capsnet_plan(call *calls, n count) {
    n total = 0, stage = 0;
    for (n i = 0; i < count; i++) {
        if (calls[i].before) stage = total; /* here: whether it waits for those before */
        calls[i].before = stage;
        calls[i].first = total;
        total += tasks(calls[i].plan);
    }
    return total;
}

void capsnet_products(const program *g, int threads) {
    const call *last = g->calls + g->count - 1;
    share_out(task, before, g, last->first + tasks(last->plan), threads);
}
