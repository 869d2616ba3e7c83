// One vector of f32 lanes, spelt once for every instruction set. Kernels are written against this file and compiled per
// ISA (CARAVAN_ISA names it), so they contain maths and no intrinsics. bf16 exists at the edges only: it is widened by
// load and rounded to nearest even by store. Reductions use a fixed tree. Build with -ffp-contract=off: the only fused
// multiply-adds are those written `fma`.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/types.h"

#ifndef CARAVAN_ISA
#error "compile kernel sources with -DCARAVAN_ISA=portable|avx2|avx512|avx512bf16"
#endif

// clang-format off
#define CARAVAN_ISA_IS_portable 1
#define CARAVAN_ISA_IS_avx2 2
#define CARAVAN_ISA_IS_avx512 3
#define CARAVAN_ISA_IS_avx512bf16 4
#define CARAVAN_ISA_IS_(isa) CARAVAN_ISA_IS_##isa
#define CARAVAN_ISA_IS(isa) CARAVAN_ISA_IS_(isa)
#define CARAVAN_ISA_LEVEL CARAVAN_ISA_IS(CARAVAN_ISA)
// clang-format on

// Every ISA has its own namespace: the linker may not merge an AVX-512 copy of an inline function into the AVX2 code.
namespace caravan::CARAVAN_ISA {

#if CARAVAN_ISA_LEVEL >= 3

struct F32 {
  __m512 v;
  static constexpr int kLanes = 16;
};
static inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
static inline F32 zero() { return {_mm512_setzero_ps()}; }
static inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
static inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline F32 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
static inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
static inline void store_first(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
static inline F32 widen_bf16(__m256i h) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
static inline F32 load(const bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
static inline F32 load_first(const bf16* p, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
static inline __m256i narrow_bf16_by_words(F32 a) {
  __m512i wide = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(wide, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(wide, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __m512i quiet = _mm512_or_si512(wide, _mm512_set1_epi32(0x400000));
  __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
#if CARAVAN_ISA_LEVEL >= 4
static inline __m256i narrow_bf16(F32 a) {
  // The instruction would take denormal numbers for zero.
  constexpr int kDenormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(a.v, kDenormal) != 0, 0)) return narrow_bf16_by_words(a);
  return (__m256i)_mm512_cvtneps_pbh(a.v);
}
#else
static inline __m256i narrow_bf16(F32 a) { return narrow_bf16_by_words(a); }
#endif
static inline void store(bf16* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a)); }
static inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
/** a * b + c, rounded once. */
static inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
/** The float whose sign and exponent are the lowest nine bits of `a`, its fraction zero. */
static inline F32 exponent_from_low_bits(F32 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}
/** Lane by lane: a > b ? yes : no. */
static inline F32 select_greater(F32 a, F32 b, F32 yes, F32 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
/** Lane by lane: a > b ? 0 : y. */
static inline F32 zero_where_greater(F32 a, F32 b, F32 y) { return select_greater(a, b, zero(), y); }
/** Lane by lane: x where x is NaN, else y. */
static inline F32 keep_nan(F32 x, F32 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), y.v, x.v)};
}

#elif CARAVAN_ISA_LEVEL == 2

struct F32 {
  __m256 v;
  static constexpr int kLanes = 8;
};
alignas(32) static constexpr int32_t kFirstLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
static inline __m256i first_lanes(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes + 8 - n));
}
static inline F32 zero() { return {_mm256_setzero_ps()}; }
static inline F32 set1(float x) { return {_mm256_set1_ps(x)}; }
static inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline F32 load_first(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
static inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
static inline void store_first(float* p, F32 a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
static inline F32 widen_bf16(__m128i h) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
}
static inline F32 load(const bf16* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
static inline F32 load_first(const bf16* p, int n) {
  alignas(16) bf16 lanes[8] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(n) * 2);
  return load(lanes);
}
static inline __m128i narrow_bf16(F32 a) {
  __m256i wide = _mm256_castps_si256(a.v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(wide, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(wide, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(wide, _mm256_set1_epi32(0x400000));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
static inline void store(bf16* p, F32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(a)); }
static inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
static inline F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
static inline F32 exponent_from_low_bits(F32 a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 23))};
}
static inline F32 select_greater(F32 a, F32 b, F32 yes, F32 no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
// A blend would take a unit of the multiplications.
static inline F32 zero_where_greater(F32 a, F32 b, F32 y) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ), y.v)};
}
static inline F32 keep_nan(F32 x, F32 y) { return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q))}; }

#else  // portable: GCC/Clang vectors, which become SSE2 or NEON; fma is two roundings where the machine has no FMA

typedef float PortableFloats __attribute__((vector_size(32)));
typedef int32_t PortableInts __attribute__((vector_size(32)));
struct F32 {
  PortableFloats v;
  static constexpr int kLanes = 8;
};
static inline F32 zero() { return {PortableFloats{}}; }
static inline F32 set1(float x) { return {PortableFloats{x, x, x, x, x, x, x, x}}; }
static inline F32 load(const float* p) {
  F32 a;
  __builtin_memcpy(&a.v, p, 32);
  return a;
}
static inline F32 load_first(const float* p, int n) {
  F32 a = zero();
  for (int i = 0; i < n; i++) a.v[i] = p[i];
  return a;
}
static inline void store(float* p, F32 a) { __builtin_memcpy(p, &a.v, 32); }
static inline void store_first(float* p, F32 a, int n) {
  for (int i = 0; i < n; i++) p[i] = a.v[i];
}
static inline F32 load(const bf16* p) {
  F32 a;
  for (int i = 0; i < 8; i++) a.v[i] = to_f32(p[i]);
  return a;
}
static inline F32 load_first(const bf16* p, int n) {
  F32 a = zero();
  for (int i = 0; i < n; i++) a.v[i] = to_f32(p[i]);
  return a;
}
static inline void store(bf16* p, F32 a) {
  for (int i = 0; i < 8; i++) p[i] = to_bf16(a.v[i]);
}
static inline F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
static inline F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
static inline F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
static inline F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
static inline F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
// Like the x86 instructions: the second operand when either is NaN.
static inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
static inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
static inline F32 sqrt(F32 a) {
  for (int i = 0; i < 8; i++) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
static inline F32 exponent_from_low_bits(F32 a) {
  PortableInts bits;
  __builtin_memcpy(&bits, &a.v, 32);
  bits <<= 23;
  __builtin_memcpy(&a.v, &bits, 32);
  return a;
}
static inline F32 select_greater(F32 a, F32 b, F32 yes, F32 no) { return {a.v > b.v ? yes.v : no.v}; }
static inline F32 zero_where_greater(F32 a, F32 b, F32 y) { return select_greater(a, b, zero(), y); }
static inline F32 keep_nan(F32 x, F32 y) { return {x.v == x.v ? y.v : x.v}; }

#endif

static inline void store_first(bf16* p, F32 a, int n) {
#if CARAVAN_ISA_LEVEL >= 3
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_bf16(a));
#else
  bf16 lanes[F32::kLanes];
  store(lanes, a);
  __builtin_memcpy(p, lanes, static_cast<size_t>(n) * 2);
#endif
}

// ---- the same for every instruction set -----------------------------------------------------------------------------

static inline F32 operator-(F32 a) { return zero() - a; }

/** e^x = (1 + rest) * scale, for x in [-87.3, 88.3]; NaN stays NaN. */
struct ExpParts {
  F32 rest, scale;
};

/** x = n ln2 + r, |r| <= ln2 / 2; e^r by its Taylor polynomial of degree 7, whose tail is below 1e-8 on the interval,
 * as 1 + (r + r^2 q(r)) with q in pairs, so that fewer multiply-adds wait for each other than in Horner's rule. */
static inline ExpParts exp_parts(F32 x) {
  // Adding 1.5 * 2^23 + 127 rounds to an integer, and leaves n + 127, the exponent field of 2^n, in the lowest bits.
  const F32 shift = set1(12582912.0f + 127.0f);
  F32 shifted = fma(x, set1(1.44269504088896341f), shift);
  F32 n = shifted - shift;
  F32 r = fma(n, set1(-0.693145751953125f), x);
  r = fma(n, set1(-1.42860682030941723e-6f), r);
  F32 r2 = r * r;
  F32 q = fma(fma(set1(8.33333333e-3f), r, set1(4.16666667e-2f)), r2, fma(set1(1.66666667e-1f), r, set1(0.5f)));
  q = fma(fma(set1(1.98412698e-4f), r, set1(1.38888889e-3f)), r2 * r2, q);
  return {fma(q, r2, r), exponent_from_low_bits(shifted)};
}

/** e^x for x <= 88.3 with a relative error below 2e-7; x below -87.3 give 0, NaN stays NaN. */
static inline F32 exp_bounded(F32 x) {
  // Below the interval the parts are bits without meaning, which are dropped.
  const ExpParts parts = exp_parts(x);
  return zero_where_greater(set1(-87.3f), x, (set1(1.0f) + parts.rest) * parts.scale);
}

/** As exp_bounded; larger x give +inf. */
static inline F32 exp(F32 x) { return select_greater(x, set1(88.3f), set1(__builtin_inff()), exp_bounded(x)); }

/** 1 / (1 + e^-x). */
static inline F32 sigmoid(F32 x) { return set1(1.0f) / (set1(1.0f) + exp(-x)); }

/** The lanes by a fixed tree: lane i meets lane i + half, halving. */
template <typename Meet>
static inline float fold_lanes(F32 a, const Meet& meet) {
#if CARAVAN_ISA_LEVEL >= 3
  const auto eight = meet(__builtin_shufflevector(a.v, a.v, 0, 1, 2, 3, 4, 5, 6, 7),
                          __builtin_shufflevector(a.v, a.v, 8, 9, 10, 11, 12, 13, 14, 15));
#else
  const auto eight = a.v;
#endif
  const auto four =
      meet(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
  const auto two = meet(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return meet(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}

static inline float reduce_sum(F32 a) {
  return fold_lanes(a, [](auto x, auto y) { return x + y; });
}

/** Largest lane. */
static inline float reduce_max(F32 a) {
  return fold_lanes(a, [](auto x, auto y) { return x > y ? x : y; });
}

/** body(offset, n) over [0, count) in whole vectors, then once for the rest with n < kLanes (use the *_first forms). */
template <typename Whole, typename Rest>
static inline void for_lanes(int64_t count, const Whole& whole, const Rest& rest) {
  int64_t i = 0;
  for (; i + F32::kLanes <= count; i += F32::kLanes) whole(i);
  if (i < count) rest(i, static_cast<int>(count - i));
}

}  // namespace caravan::CARAVAN_ISA
