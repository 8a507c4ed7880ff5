/* Many small matrix products at once, for AVX-512; `products.py` describes a job and makes its tables of offsets.
 *
 * c[z, row, column] (+)= sum over k of a[z, row, k] b[z, k, column], each of the three wherever its offsets say: so that
 * sums over strided pixels, products over frequencies and convolutions are all the same thing, and nothing is copied into
 * shape first. Columns come in runs that are contiguous in c, and in b too unless `bcolumn` says otherwise.
 */
#include <immintrin.h>

#include "parallel.h"

typedef __m512 v;
#define L 16
#define WIDE (2 * L) /* columns of a panel */
#define DEEP 512     /* rows of a panel: 64 KiB, which stay in the second-level cache, with as much of 256 rows of a */

typedef struct {
    const float *a, *b, *bias;
    float *c;
    const n *a0, *b0, *c0;               /* where each product starts */
    const n *arow, *ak, *bk, *crow;      /* rows of a, k in a, k in b, rows of c */
    const n *brun, *crun, *length;       /* runs of columns: where they start in b and c, and how long they are */
    const n *bcolumn;                    /* columns of b within a run, if they are not contiguous */
    n products, rows, depth, runs, rows_a_task;
    int add, relu, stream;
} job;

/* Rows of a packed panel. */
static n packed[DEEP];

__attribute__((constructor)) static void number_rows(void) {
    for (n k = 0; k < DEEP; k++) packed[k] = k * WIDE;
}

static void pack(float *restrict panel, const float *b, const n *bk, const n *bcolumn, n depth, n columns) {
    const unsigned mask = columns >= WIDE ? ~0u : (1u << columns) - 1;
    if (!bcolumn)
        for (n k = 0; k < depth; k++) {
            _mm512_store_ps(panel + k * WIDE, _mm512_maskz_loadu_ps((__mmask16)mask, b + bk[k]));
            _mm512_store_ps(panel + k * WIDE + L, _mm512_maskz_loadu_ps((__mmask16)(mask >> L), b + bk[k] + L));
        }
    else
        for (n k = 0; k < depth; k++)
            for (n x = 0; x < WIDE; x++) panel[k * WIDE + x] = x < columns ? b[bk[k] + bcolumn[x]] : 0;
}

typedef struct {
    const float *a, *b, *bias;
    float *c;
    const n *arow, *ak, *bk, *crow;
    n depth, ahead;
    __mmask16 left, right;
    int add, relu, stream;
} strip;

/* Up to eight rows of c, 32 columns: their sums are registers, written out because the compiler must not put them
 * elsewhere. */
#define EACH1(F) F(0)
#define EACH2(F) EACH1(F) F(1)
#define EACH3(F) EACH2(F) F(2)
#define EACH4(F) EACH3(F) F(3)
#define EACH5(F) EACH4(F) F(4)
#define EACH6(F) EACH5(F) F(5)
#define EACH7(F) EACH6(F) F(6)
#define EACH8(F) EACH7(F) F(7)
#define BEGIN(r)                                \
    const float *a##r = s->a + s->arow[row + r]; \
    v x##r = _mm512_setzero_ps(), y##r = x##r;
#define STEP(r)                         \
    {                                   \
        v y = _mm512_set1_ps(a##r[at]); \
        x##r += y * left;               \
        y##r += y * right;              \
    }
#define END(r)                                                    \
    {                                                             \
        float *to = s->c + s->crow[row + r];                      \
        if (s->add) {                                             \
            x##r += _mm512_maskz_loadu_ps(s->left, to);           \
            y##r += _mm512_maskz_loadu_ps(s->right, to + L);      \
        }                                                         \
        if (s->bias) {                                            \
            x##r += _mm512_set1_ps(s->bias[row + r]);             \
            y##r += _mm512_set1_ps(s->bias[row + r]);             \
        }                                                         \
        if (s->relu) { /* in this order NaN stays NaN */                                            \
            x##r = _mm512_max_ps(_mm512_setzero_ps(), x##r);      \
            y##r = _mm512_max_ps(_mm512_setzero_ps(), y##r);      \
        }                                                         \
        if (s->stream) {                                          \
            _mm512_stream_ps(to, x##r);                           \
            _mm512_stream_ps(to + L, y##r);                       \
        } else {                                                  \
            _mm512_mask_storeu_ps(to, s->left, x##r);             \
            _mm512_mask_storeu_ps(to + L, s->right, y##r);        \
        }                                                         \
    }
#define ROWS(R)                                                                         \
    static void rows##R(const strip *s, n row) {                                        \
        EACH##R(BEGIN)                                                                  \
        for (n k = 0; k < s->depth; k++) {                                              \
            const v left = _mm512_maskz_loadu_ps(s->left, s->b + s->bk[k]);             \
            const v right = _mm512_maskz_loadu_ps(s->right, s->b + s->bk[k] + L);       \
            const n at = s->ak[k];                                                      \
            _mm_prefetch(a0 + at + s->ahead, _MM_HINT_T0);                              \
            _mm_prefetch(s->b + s->bk[k] + 8 * WIDE, _MM_HINT_T0);                      \
            _mm_prefetch(s->b + s->bk[k] + 8 * WIDE + L, _MM_HINT_T0);                  \
            EACH##R(STEP)                                                               \
        }                                                                               \
        EACH##R(END)                                                                    \
    }
ROWS(1)
ROWS(2)
ROWS(3)
ROWS(4)
ROWS(5)
ROWS(6)
ROWS(7)
ROWS(8)
static void (*const rows[])(const strip *, n) = {0, rows1, rows2, rows3, rows4, rows5, rows6, rows7, rows8};

static void task(const void *argument, n t) {
    const job *j = argument;
    const n row_tasks = (j->rows + j->rows_a_task - 1) / j->rows_a_task;
    const n z = t / (row_tasks * j->runs), first = t / j->runs % row_tasks * j->rows_a_task, run = t % j->runs;
    const n last = first + j->rows_a_task < j->rows ? first + j->rows_a_task : j->rows;
    const int pack_first = last - first > 16 || j->bcolumn; /* else reading it in place twice is quicker */
    float panel[DEEP * WIDE] __attribute__((aligned(64)));
    const n length = j->length[run];
    for (n k = 0; k < j->depth; k += DEEP)
        for (n x = 0; x < length; x += WIDE) {
            const n columns = length - x < WIDE ? length - x : WIDE;
            const unsigned mask = columns == WIDE ? ~0u : (1u << columns) - 1;
            const n depth = j->depth - k < DEEP ? j->depth - k : DEEP;
            const int end = k + depth == j->depth;
            const float *b = j->b + j->b0[z] + j->brun[run] + (j->bcolumn ? 0 : x);
            if (pack_first) pack(panel, b, j->bk + k, j->bcolumn ? j->bcolumn + x : 0, depth, columns);
            const strip s = {
                .a = j->a + j->a0[z],
                .b = pack_first ? panel : b,
                .bias = end ? j->bias : 0,
                .c = j->c + j->c0[z] + j->crun[run] + x,
                .arow = j->arow,
                .ak = j->ak + k,
                .bk = pack_first ? packed : j->bk + k,
                .crow = j->crow,
                .depth = depth,
                /* where rows lie side by side, the next ones: nobody else would fetch them in time */
                .ahead = j->rows > 1 && j->arow[1] - j->arow[0] == 1 ? L : 0,
                .left = (__mmask16)mask,
                .right = (__mmask16)(mask >> L),
                .add = j->add || k,
                .relu = end && j->relu,
                .stream = j->stream && columns == WIDE,
            };
            for (n row = first, count; row < last; row += count) {
                const n left = last - row; /* nine to fifteen in two equal parts: few rows at a time are slow */
                count = left >= 16 || left == 8 ? 8 : left > 8 ? (left + 1) / 2 : left;
                rows[count](&s, row);
            }
        }
}

void capsnet_products(const job *j, int threads) {
    const n row_tasks = (j->rows + j->rows_a_task - 1) / j->rows_a_task;
    share_out(task, j, j->products * row_tasks * j->runs, threads);
}
