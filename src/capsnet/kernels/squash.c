/* Equation 1 and its gradient, where the numbers of a vector lie `inner` apart: s is (outer, dim, inner), contiguous.
 *
 * Lanes are vectors. With m the largest number of a vector by size, t = s / m, |t| = sqrt(sum of t t), e = t / |t|:
 *   squash(s) = t |t| / (1 / m^2 + |t|^2), which can only overflow or underflow to the right limit
 *   gradient  = k (g - e (e.g) + 2 e (e.g) / (1 + n^2)), with n = m |t| and k = n / (1 + n^2)
 */
#include "parallel.h"
#include "simd.h"

#define TINY 1.17549435e-38f /* the smallest normal number */
#define FAR 1e18f            /* the square of which is far from overflow */

typedef struct {
    const float *s, *g;
    float *to;
    n outer, dim, inner, parts;
} job;

INLINE v largest(const float *s, n dim, n inner, lanes some) {
    v m = SET(TINY); /* zero vectors stay zero */
    for (n d = 0; d < dim; d++) {
        const v x = LOAD_FIRST(some, s + d * inner);
        m = MAX(m, MAX(x, -x));
    }
    return m;
}

INLINE void forward(const float *s, float *to, n dim, n inner, lanes some) {
    const v m = largest(s, dim, inner, some);
    v sum = ZERO;
    for (n d = 0; d < dim; d++) {
        const v t = LOAD_FIRST(some, s + d * inner) / m;
        sum += t * t;
    }
    const v factor = SQRT(sum) / (SET(1) / (m * m) + sum);
    for (n d = 0; d < dim; d++) STORE_FIRST(to + d * inner, some, LOAD_FIRST(some, s + d * inner) / m * factor);
}

INLINE void backward(const float *s, const float *g, float *to, n dim, n inner, lanes some) {
    const v m = largest(s, dim, inner, some), near = MIN(MAX(m, SET(1 / FAR)), SET(FAR));
    v sum = ZERO, dot = ZERO;
    for (n d = 0; d < dim; d++) {
        const v t = LOAD_FIRST(some, s + d * inner) / m;
        sum += t * t;
        dot += t * LOAD_FIRST(some, g + d * inner);
    }
    const v norm = SQRT(sum), length = near * norm, above = SET(1) + length * length;
    /* Far from one k is n, or 1 / n: what `near` left out of n. */
    const v k = length / above * MIN(m / near, near / m);
    const v unit = SET(1) / MAX(norm, SET(TINY)), along = dot * unit, rest = along * SET(2) / above - along;
    for (n d = 0; d < dim; d++) {
        const v e = LOAD_FIRST(some, s + d * inner) / m * unit;
        STORE_FIRST(to + d * inner, some, k * (LOAD_FIRST(some, g + d * inner) + e * rest));
    }
}

static void part(const void *argument, n p) {
    const job *x = argument;
    const n size = x->dim * x->inner;
    for (n o = p * x->outer / x->parts; o < (p + 1) * x->outer / x->parts; o++)
        for (n i = 0; i < x->inner; i += L) {
            const n at = o * size + i;
            const lanes some = first_lanes(x->inner - i);
            if (x->g) backward(x->s + at, x->g + at, x->to + at, x->dim, x->inner, some);
            else forward(x->s + at, x->to + at, x->dim, x->inner, some);
        }
}

void capsnet_squash(const job *x, int threads) { share_out(part, 0, x, x->parts, threads); }
