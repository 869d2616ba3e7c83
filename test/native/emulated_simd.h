// Stands in for cpu/simd.h when the 16-lane matrix product is tested on a processor without AVX-512: the same names on
// 64-byte compiler vectors, so that every packing, edge and mask decision of the 16-lane code runs. With
// CARAVAN_EMULATE_PAIRS the bf16 pair product is emulated too, in the order that Intel documents for vdpbf16ps: the
// upper product is added first, then the lower one.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "core/types.h"

#define CARAVAN_GEMM_LANES 16
#define CARAVAN_ISA_LEVEL 0

namespace caravan::CARAVAN_ISA {

typedef float Emulated __attribute__((vector_size(64)));

struct F32 {
  Emulated v;
  static constexpr int kLanes = 16;
};

static inline F32 zero() { return {Emulated{}}; }
static inline F32 set1(float x) { return {Emulated{} + x}; }
static inline F32 load(const float* p) {
  F32 a;
  __builtin_memcpy(&a.v, p, 64);
  return a;
}
static inline F32 load_first(const float* p, int n) {
  F32 a = zero();
  for (int i = 0; i < n; i++) a.v[i] = p[i];
  return a;
}
static inline void store(float* p, F32 a) { __builtin_memcpy(p, &a.v, 64); }
static inline void store_first(float* p, F32 a, int n) {
  for (int i = 0; i < n; i++) p[i] = a.v[i];
}
static inline F32 load_first(const bf16* p, int n) {
  F32 a = zero();
  for (int i = 0; i < n; i++) a.v[i] = to_f32(p[i]);
  return a;
}
static inline F32 load(const bf16* p) { return load_first(p, 16); }
static inline void store_first(bf16* p, F32 a, int n) {
  for (int i = 0; i < n; i++) p[i] = to_bf16(a.v[i]);
}
static inline void store(bf16* p, F32 a) { store_first(p, a, 16); }
static inline F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
static inline F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
/** a * b + c by halves. Not inlined: hundreds of copies in the tiles would take minutes to compile. */
__attribute__((noinline, unused)) static void fma_halves(const float* a, const float* b, float* c) {
  for (int half = 0; half < 16; half += 8) {
    __m256 sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + half), _mm256_loadu_ps(b + half), _mm256_loadu_ps(c + half));
    _mm256_storeu_ps(c + half, sum);
  }
}

static inline F32 fma(F32 a, F32 b, F32 c) {
  fma_halves(reinterpret_cast<float*>(&a.v), reinterpret_cast<float*>(&b.v), reinterpret_cast<float*>(&c.v));
  return c;
}

#ifdef CARAVAN_EMULATE_PAIRS
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

typedef uint32_t EmulatedBits __attribute__((vector_size(64)));

static inline F32 dot_pairs(F32 a, F32 b, F32 acc) {
  const EmulatedBits x = (EmulatedBits)a.v, y = (EmulatedBits)b.v;
  F32 upper = fma({(Emulated)(x & 0xffff0000u)}, {(Emulated)(y & 0xffff0000u)}, acc);
  return fma({(Emulated)(x << 16)}, {(Emulated)(y << 16)}, upper);
}
static inline void store_sum(bf16* to, F32 sum) { store(to, sum); }

}  // namespace caravan::CARAVAN_ISA
