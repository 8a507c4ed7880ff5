/* A pass of routing by agreement over all input capsules; routing.py says what it is for.
 *
 * Images are the lanes of a vector, L of them. The votes of one input capsule exist for L images at a time, in the
 * first-level cache, and nowhere else. With B = L blocks images, all arrays contiguous:
 *   u, grad_u           (blocks, I, d, L)
 *   sum                 (blocks, J, D, L)
 *   total, g            the same, one behind the other for as many iterations as are looked at
 *   weight, grad_weight (J, I, d, D)
 * The input capsules are cut into parts, one for each task. What is summed over them is summed for each part alone,
 * (parts, blocks, J, D, L), and added up by the caller, so that the result does not depend on who did what.
 */
#include "parallel.h"
#include "simd.h"

#define TILE 16 /* input capsules whose weights stay in the cache while the blocks of images pass by */

typedef struct {
    const float *u, *weight, *total, *g;
    float *sum, *grad_u, *grad_weight, *scratch;
    n blocks, I, J, d, D, parts, scratch_size;
    n totals, gs; /* iterations; a g without a total is that of the first one, in which all couplings are equal */
    int leaky, constant;
} pass;

/* e^x to two units in the last place (Cephes' polynomial); nothing here is above 0, below -87 all is the least. */
INLINE v exponential(v x) {
    x = MAX(SET(-87.0f), x); /* in this order NaN stays NaN */
    v k = ROUND(x * SET(1.44269504088896341f));
    v r = minus_product(k, SET(0.693359375f), x);
    r = minus_product(k, SET(-2.12194440e-4f), r);
    v p = SET(1.9875691500e-4f);
    p = p * r + SET(1.3981999507e-3f);
    p = p * r + SET(8.3334519073e-3f);
    p = p * r + SET(4.1665795894e-2f);
    p = p * r + SET(1.6666665459e-1f);
    p = p * r + SET(5.0000001201e-1f);
    return scale(p * r * r + r + SET(1.0f), k);
}

/* Logits to couplings, in place. Leaky: one more logit, zero, whose share is dropped. */
INLINE void softmax(float *c, n J, int leaky) {
    v top = leaky ? ZERO : LOAD(c);
    for (n j = 0; j < J; j++) top = MAX(top, LOAD(c + j * L));
    v sum = leaky ? exponential(-top) : ZERO;
    for (n j = 0; j < J; j++) {
        v x = exponential(LOAD(c + j * L) - top);
        STORE(c + j * L, x);
        sum += x;
    }
    v share = SET(1.0f) / sum;
    for (n j = 0; j < J; j++) STORE(c + j * L, LOAD(c + j * L) * share);
}

/* votes[e] = sum over p of weight[p, e] u[p] */
#define VOTES(E)                                                       \
    for (; e + E <= D; e += E) {                                       \
        v a[E];                                                        \
        for (int q = 0; q < E; q++) a[q] = ZERO;                       \
        for (n p = 0; p < d; p++) {                                    \
            v x = LOAD(u + p * L);                                     \
            for (int q = 0; q < E; q++) a[q] += SET(w[p * D + e + q]) * x; \
        }                                                              \
        for (int q = 0; q < E; q++) STORE(votes + (e + q) * L, a[q]);  \
    }

INLINE void votes_of(const float *w, const float *u, n d, n D, float *votes) {
    n e = 0;
    if (L == 16) VOTES(16) /* there are registers for as many sums */
    VOTES(8)
    VOTES(1)
}

INLINE v dot(const float *a, const float *b, n D) {
    v even = ZERO, odd = ZERO;
    n e = 0;
    for (; e + 2 <= D; e += 2) {
        even += LOAD(a + e * L) * LOAD(b + e * L);
        odd += LOAD(a + e * L + L) * LOAD(b + e * L + L);
    }
    if (e < D) even += LOAD(a + e * L) * LOAD(b + e * L);
    return even + odd;
}

/* to[e] += factor * of[e] */
INLINE void add(float *to, v factor, const float *of, n D) {
    for (n e = 0; e < D; e++) STORE(to + e * L, LOAD(to + e * L) + factor * LOAD(of + e * L));
}

/* The sum of the votes of input capsules i0 to i1, each with its coupling. */
INLINE void sum_votes(const pass *x, float *sum, float *scratch, n i0, n i1, n d, n D) {
    const n J = x->J, I = x->I;
    float *votes = scratch, *c = votes + J * D * L;
    for (n b = 0; b < x->blocks; b++) {
        const float *total = x->total + b * J * D * L, *u = x->u + b * I * d * L;
        float *s = sum + b * J * D * L;
        if (!x->total) { /* the first iteration: all couplings are equal */
            for (n j = 0; j < J; j++) {
                votes_of(x->weight + (j * I + i0) * d * D, u + i0 * d * L, (i1 - i0) * d, D, votes);
                add(s + j * D * L, SET(1.0f / (float)(J + x->leaky)), votes, D);
            }
            continue;
        }
        for (n i = i0; i < i1; i++) {
            for (n j = 0; j < J; j++) {
                votes_of(x->weight + (j * I + i) * d * D, u + i * d * L, d, D, votes + j * D * L);
                STORE(c + j * L, dot(votes + j * D * L, total + j * D * L, D));
            }
            softmax(c, J, x->leaky);
            for (n j = 0; j < J; j++) add(s + j * D * L, LOAD(c + j * L), votes + j * D * L, D);
        }
    }
}

/* grad_u[p] += sum over e of weight[p, e] grad_vote[e] */
#define PULL(P)                                                                \
    for (; p + P <= d; p += P) {                                               \
        v a[P];                                                                \
        for (int q = 0; q < P; q++) a[q] = LOAD(grad_u + (p + q) * L);         \
        for (n e = 0; e < D; e++) {                                            \
            v x = LOAD(grad_vote + e * L);                                     \
            for (int q = 0; q < P; q++) a[q] += SET(w[(p + q) * D + e]) * x;   \
        }                                                                      \
        for (int q = 0; q < P; q++) STORE(grad_u + (p + q) * L, a[q]);         \
    }

INLINE void pull(float *grad_u, const float *w, const float *grad_vote, n d, n D) {
    n p = 0;
    PULL(8)
    PULL(1)
}

/* grad_w[p, e] += sum over images b of u[p, b] grad_vote[e, b]: here e are the lanes */
#define PUSH(P)                                                                             \
    for (; p + P <= d; p += P) {                                                            \
        v a[P];                                                                             \
        for (int q = 0; q < P; q++) a[q] = LOAD_FIRST(mask, grad_w + (p + q) * D + e);      \
        for (int b = 0; b < L; b++)                                                         \
            for (int q = 0; q < P; q++) a[q] += SET(u[(p + q) * L + b]) * image[b];         \
        for (int q = 0; q < P; q++) STORE_FIRST(grad_w + (p + q) * D + e, mask, a[q]);      \
    }

INLINE void push(float *grad_w, const float *u, const float *grad_vote, n d, n D) {
    for (n e = 0; e < D; e += L) {
        const lanes mask = first_lanes(D - e);
        v image[L];
        for (int q = 0; q < L; q++) image[q] = e + q < D ? LOAD(grad_vote + (e + q) * L) : ZERO;
        transpose(image);
        n p = 0;
        PUSH(8)
        PUSH(1)
    }
}

/* With g the gradient of the sum, and ^ for a vote: c = softmax(^ . total), grad c = ^ . g,
 * h = grad logit = c (grad c - sum over j of c grad c). */
INLINE void grad_logits(const pass *x, const float *votes, const float *total, const float *g, float *c, float *h, n D) {
    const n J = x->J;
    for (n j = 0; j < J; j++) {
        STORE(c + j * L, dot(votes + j * D * L, total + j * D * L, D));
        if (!x->constant) STORE(h + j * L, dot(votes + j * D * L, g + j * D * L, D));
    }
    softmax(c, J, x->leaky);
    if (x->constant) return;
    v mean = ZERO;
    for (n j = 0; j < J; j++) mean += LOAD(c + j * L) * LOAD(h + j * L);
    for (n j = 0; j < J; j++) STORE(h + j * L, LOAD(c + j * L) * (LOAD(h + j * L) - mean));
}

/* grad total = sum over i of h ^, of one iteration. */
INLINE void grad_total(const pass *x, float *sum, float *scratch, n i0, n i1, n d, n D) {
    const n J = x->J, I = x->I;
    float *votes = scratch, *c = votes + J * D * L, *h = c + J * L;
    for (n b = 0; b < x->blocks; b++) {
        const n at = b * J * D * L;
        for (n i = i0; i < i1; i++) {
            const float *u = x->u + (b * I + i) * d * L;
            for (n j = 0; j < J; j++) votes_of(x->weight + (j * I + i) * d * D, u, d, D, votes + j * D * L);
            grad_logits(x, votes, x->total + at, x->g + at, c, h, D);
            for (n j = 0; j < J; j++) add(sum + at + j * D * L, LOAD(h + j * L), votes + j * D * L, D);
        }
    }
}

/* grad ^ = sum of c g + h total, of all iterations together; from it those of inputs and weight. */
INLINE void gradients(const pass *x, float *scratch, n i0, n i1, n d, n D) {
    const n J = x->J, I = x->I, size = x->blocks * J * D * L; /* of what belongs to an iteration */
    float *votes = scratch, *c = votes + J * D * L, *h = c + x->totals * J * L, *grad_vote = h + x->totals * J * L;
    const v equal = SET(1.0f / (float)(J + x->leaky));
    for (n b = 0; b < x->blocks; b++)
        for (n i = i0; i < i1; i++) {
            const float *u = x->u + (b * I + i) * d * L;
            for (n j = 0; x->totals && j < J; j++)
                votes_of(x->weight + (j * I + i) * d * D, u, d, D, votes + j * D * L);
            for (n t = 0; t < x->totals; t++) {
                const n at = t * size + b * J * D * L;
                grad_logits(x, votes, x->total + at, x->g + at, c + t * J * L, h + t * J * L, D);
            }
            for (n j = 0; j < J; j++) {
                const n at = (b * J + j) * D * L, w = (j * I + i) * d * D;
                const float *first = x->gs > x->totals ? x->g + x->totals * size + at : 0;
                for (n e = 0; e < D; e++) {
                    v y = ZERO;
                    if (first) y = equal * LOAD(first + e * L);
                    for (n t = 0; t < x->totals; t++) {
                        const n to = t * size + at + e * L;
                        y += LOAD(c + (t * J + j) * L) * LOAD(x->g + to);
                        if (!x->constant) y += LOAD(h + (t * J + j) * L) * LOAD(x->total + to);
                    }
                    STORE(grad_vote + e * L, y);
                }
                pull(x->grad_u + (b * I + i) * d * L, x->weight + w, grad_vote, d, D);
                push(x->grad_weight + w, u, grad_vote, d, D);
            }
        }
}

/* The paper's sizes are compiled in. */
#define SIZES(f, ...) (x->d == 8 && x->D == 16 ? f(__VA_ARGS__, 8, 16) : f(__VA_ARGS__, x->d, x->D))

static void sum_part(const void *job, n part) {
    const pass *x = job;
    const n end = (part + 1) * x->I / x->parts;
    float *sum = x->sum + part * x->blocks * x->J * x->D * L, *scratch = x->scratch + part * x->scratch_size;
    for (n i = part * x->I / x->parts; i < end; i += TILE) {
        const n next = i + TILE < end ? i + TILE : end;
        if (x->g) SIZES(grad_total, x, sum, scratch, i, next);
        else SIZES(sum_votes, x, sum, scratch, i, next);
    }
}

static void gradients_part(const void *job, n part) {
    const pass *x = job;
    const n end = (part + 1) * x->I / x->parts;
    for (n i = part * x->I / x->parts; i < end; i += TILE)
        SIZES(gradients, x, x->scratch + part * x->scratch_size, i, i + TILE < end ? i + TILE : end);
}

/* The sum of the votes, or where there is g the gradient of total. */
void capsnet_sums(const pass *x, int threads) { share_out(sum_part, 0, x, x->parts, threads); }

void capsnet_gradients(const pass *x, int threads) { share_out(gradients_part, 0, x, x->parts, threads); }

int capsnet_lanes(void) { return L; }
