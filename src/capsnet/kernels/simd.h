/* Vectors of L numbers, and what AVX-512 and AVX2 call differently. */
#ifndef SIMD_H
#define SIMD_H

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__

#define L 16
#define MOST_ROWS 8 /* of two vectors each, that have sums in registers */
typedef __m512 v;
typedef int whole __attribute__((vector_size(64)));
#define LANE ((whole){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
typedef __mmask16 lanes;
#define SET _mm512_set1_ps
#define ZERO _mm512_setzero_ps()
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define STREAM _mm512_stream_ps
#define MAX _mm512_max_ps
#define MIN _mm512_min_ps
#define SQRT _mm512_sqrt_ps
#define LOAD_FIRST(lanes, from) _mm512_maskz_loadu_ps(lanes, from)
#define STORE_FIRST(to, lanes, x) _mm512_mask_storeu_ps(to, lanes, x)
#define ROUND(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
INLINE v minus_product(v a, v b, v c) { return _mm512_fnmadd_ps(a, b, c); } /* c - ab */
INLINE v scale(v x, v k) { return _mm512_scalef_ps(x, k); }                 /* x 2^k */
INLINE v unless_hidden(v x, v by) { /* x where `by` is above zero, or NaN */
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(by, ZERO, _CMP_NLE_UQ), x);
}
INLINE lanes first_lanes(long count) { return count >= L ? 0xffff : count > 0 ? (lanes)((1u << count) - 1) : 0; }

#else /* AVX2 and FMA */

#define L 8
#define MOST_ROWS 6
typedef __m256 v;
typedef int whole __attribute__((vector_size(32)));
#define LANE ((whole){0, 1, 2, 3, 4, 5, 6, 7})
typedef __m256i lanes;
#define SET _mm256_set1_ps
#define ZERO _mm256_setzero_ps()
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define STREAM _mm256_stream_ps
#define MAX _mm256_max_ps
#define MIN _mm256_min_ps
#define SQRT _mm256_sqrt_ps
#define LOAD_FIRST(lanes, from) _mm256_maskload_ps(from, lanes)
#define STORE_FIRST(to, lanes, x) _mm256_maskstore_ps(to, lanes, x)
#define ROUND(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
INLINE v minus_product(v a, v b, v c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE v scale(v x, v k) { /* for k of -126 and more */
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
INLINE v unless_hidden(v x, v by) { return _mm256_and_ps(_mm256_cmp_ps(by, ZERO, _CMP_NLE_UQ), x); }
INLINE lanes first_lanes(long count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count > L ? L : count < 0 ? 0 : (int)count), lane);
}

#endif

/* L vectors become the vectors of their first numbers, their second numbers, ... */
INLINE void transpose(v x[L]) {
#define SWAP(D) /* of pairs D apart: what is in the wrong half */                \
    for (int i = 0; i < L; i++)                                                  \
        if (!(i & D)) {                                                          \
            const v a = x[i], b = x[i + D];                                      \
            const whole from = LANE + (LANE & D) / D * (L - D);                  \
            x[i] = __builtin_shuffle(a, b, from);                                \
            x[i + D] = __builtin_shuffle(a, b, from + D);                        \
        }
    SWAP(1)
    SWAP(2)
    SWAP(4)
#if L == 16
    SWAP(8)
#endif
}

#endif
