// The AVX-512 intrinsics that native/cpu uses, written out lane by lane from Intel's Intrinsics Guide, so that the
// 16-lane kernels can be compiled and tested on a processor without AVX-512 (-DCARAVAN_EMULATE_AVX512=ON). Slow, and
// for tests only. Force-included before any other header.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

namespace emulated {

template <typename Body>
static inline __m512 lanes(const Body& body) {
  float out[16];
  for (int i = 0; i < 16; i++) out[i] = body(i);
  __m512 result;
  __builtin_memcpy(&result, out, 64);
  return result;
}

template <typename Body>
static inline __m512i words(const Body& body) {
  uint32_t out[16];
  for (int i = 0; i < 16; i++) out[i] = body(i);
  __m512i result;
  __builtin_memcpy(&result, out, 64);
  return result;
}

struct Floats {
  float v[16];
  explicit Floats(__m512 a) { __builtin_memcpy(v, &a, 64); }
  float operator[](int i) const { return v[i]; }
};

struct Words {
  uint32_t v[16];
  explicit Words(__m512i a) { __builtin_memcpy(v, &a, 64); }
  uint32_t operator[](int i) const { return v[i]; }
};

static inline float as_float(uint32_t word) {
  float f;
  __builtin_memcpy(&f, &word, 4);
  return f;
}

static inline __m512 setzero_ps() {
  return lanes([](int) { return 0.0f; });
}
static inline __m512 set1_ps(float x) {
  return lanes([=](int) { return x; });
}
static inline __m512 loadu_ps(const void* p) {
  __m512 a;
  __builtin_memcpy(&a, p, 64);
  return a;
}
static inline __m512 maskz_loadu_ps(__mmask16 k, const void* p) {
  // Lanes outside the mask are not read: the address sanitizer sees the same accesses as the processor makes.
  return lanes([=](int i) { return (k >> i) & 1 ? static_cast<const float*>(p)[i] : 0.0f; });
}
static inline void storeu_ps(void* p, __m512 a) { __builtin_memcpy(p, &a, 64); }
static inline void mask_storeu_ps(void* p, __mmask16 k, __m512 a) {
  Floats f(a);
  for (int i = 0; i < 16; i++) {
    if ((k >> i) & 1) static_cast<float*>(p)[i] = f[i];
  }
}
static inline __m512 add_ps(__m512 a, __m512 b) {
  return lanes([x = Floats(a), y = Floats(b)](int i) { return x[i] + y[i]; });
}
static inline __m512 sub_ps(__m512 a, __m512 b) {
  return lanes([x = Floats(a), y = Floats(b)](int i) { return x[i] - y[i]; });
}
static inline __m512 mul_ps(__m512 a, __m512 b) {
  return lanes([x = Floats(a), y = Floats(b)](int i) { return x[i] * y[i]; });
}
static inline __m512 div_ps(__m512 a, __m512 b) {
  return lanes([x = Floats(a), y = Floats(b)](int i) { return x[i] / y[i]; });
}
static inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return lanes([x = Floats(a), y = Floats(b), z = Floats(c)](int i) { return __builtin_fmaf(x[i], y[i], z[i]); });
}
// The second operand when either is NaN or both are zero.
static inline __m512 max_ps(__m512 a, __m512 b) {
  return lanes([x = Floats(a), y = Floats(b)](int i) { return x[i] > y[i] ? x[i] : y[i]; });
}
static inline __m512 min_ps(__m512 a, __m512 b) {
  return lanes([x = Floats(a), y = Floats(b)](int i) { return x[i] < y[i] ? x[i] : y[i]; });
}
static inline __m512 sqrt_ps(__m512 a) {
  return lanes([x = Floats(a)](int i) { return __builtin_sqrtf(x[i]); });
}
static inline __m512 roundscale_ps(__m512 a) {
  return lanes([x = Floats(a)](int i) { return __builtin_nearbyintf(x[i]); });
}
static inline __mmask16 cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  Floats x(a), y(b);
  uint32_t mask = 0;
  for (int i = 0; i < 16; i++) {
    const bool unordered = x[i] != x[i] || y[i] != y[i];
    const bool set = predicate == _CMP_GT_OQ ? !unordered && x[i] > y[i] : unordered;
    mask |= static_cast<uint32_t>(set) << i;
  }
  return static_cast<__mmask16>(mask);
}
static inline __m512 mask_blend_ps(__mmask16 k, __m512 a, __m512 b) {
  return lanes([=, x = Floats(a), y = Floats(b)](int i) { return (k >> i) & 1 ? y[i] : x[i]; });
}
static inline __m512i castps_si512(__m512 a) {
  __m512i r;
  __builtin_memcpy(&r, &a, 64);
  return r;
}
static inline __m512 castsi512_ps(__m512i a) {
  __m512 r;
  __builtin_memcpy(&r, &a, 64);
  return r;
}
static inline __m512i set1_epi32(int x) {
  return words([=](int) { return static_cast<uint32_t>(x); });
}
static inline __m512i add_epi32(__m512i a, __m512i b) {
  return words([x = Words(a), y = Words(b)](int i) { return x[i] + y[i]; });
}
static inline __m512i and_si512(__m512i a, __m512i b) {
  return words([x = Words(a), y = Words(b)](int i) { return x[i] & y[i]; });
}
static inline __m512i or_si512(__m512i a, __m512i b) {
  return words([x = Words(a), y = Words(b)](int i) { return x[i] | y[i]; });
}
static inline __m512i slli_epi32(__m512i a, unsigned n) {
  return words([=, x = Words(a)](int i) { return n > 31 ? 0u : x[i] << n; });
}
static inline __m512i srli_epi32(__m512i a, unsigned n) {
  return words([=, x = Words(a)](int i) { return n > 31 ? 0u : x[i] >> n; });
}
static inline __m512i mask_mov_epi32(__m512i src, __mmask16 k, __m512i a) {
  return words([=, x = Words(src), y = Words(a)](int i) { return (k >> i) & 1 ? y[i] : x[i]; });
}
static inline __m512i cvtps_epi32(__m512 a) {
  return words(
      [x = Floats(a)](int i) { return static_cast<uint32_t>(static_cast<int32_t>(__builtin_nearbyintf(x[i]))); });
}
static inline __m512i cvtepu16_epi32(__m256i a) {
  uint16_t h[16];
  __builtin_memcpy(h, &a, 32);
  return words([&](int i) { return static_cast<uint32_t>(h[i]); });
}
static inline __m256i cvtepi32_epi16(__m512i a) {
  Words x(a);
  uint16_t h[16];
  for (int i = 0; i < 16; i++) h[i] = static_cast<uint16_t>(x[i]);
  __m256i r;
  __builtin_memcpy(&r, h, 32);
  return r;
}

/** A bf16 product or sum of vdpbf16ps: denormal inputs and results count as zero, rounding is to nearest even. */
static inline float flushed(float x) { return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x; }

/** acc += a.odd * b.odd, then a.even * b.even, each fused with one rounding, as the guide's pseudocode has it. */
static inline __m512 dpbf16_ps(__m512 acc, __m512bh a, __m512bh b) {
  __m512i aw, bw;
  __builtin_memcpy(&aw, &a, 64);
  __builtin_memcpy(&bw, &b, 64);
  return lanes([s = Floats(acc), x = Words(aw), y = Words(bw)](int i) {
    float x0 = flushed(as_float(x[i] << 16)), x1 = flushed(as_float(x[i] & 0xffff0000u));
    float y0 = flushed(as_float(y[i] << 16)), y1 = flushed(as_float(y[i] & 0xffff0000u));
    float odd = flushed(__builtin_fmaf(x1, y1, flushed(s[i])));
    return flushed(__builtin_fmaf(x0, y0, odd));
  });
}

/** Of the classes denormal numbers alone. */
static inline __mmask16 fpclass_ps_mask(__m512 a, int classes) {
  Floats x(a);
  uint32_t mask = 0;
  if (classes == 0x20) {
    for (int i = 0; i < 16; i++) mask |= static_cast<uint32_t>(x[i] != 0 && flushed(x[i]) == 0) << i;
  }
  return static_cast<__mmask16>(mask);
}

/** To nearest even; a NaN becomes quiet, a denormal number zero. */
static inline __m256i cvtneps_pbh(__m512 a) {
  Words x(castps_si512(a));
  uint16_t h[16];
  for (int i = 0; i < 16; i++) {
    const uint32_t bits = x[i], rest = bits & 0x7fffffffu;
    const uint32_t rounded = rest > 0x7f800000u ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
    h[i] = static_cast<uint16_t>((rest < 0x800000u ? bits & 0x80000000u : rounded) >> 16);
  }
  __m256i r;
  __builtin_memcpy(&r, h, 32);
  return r;
}

template <typename Vector, typename Mask>
static inline Vector maskz_loadu_epi16(Mask k, const void* p) {
  uint16_t h[sizeof(Vector) / 2];
  for (size_t i = 0; i < sizeof(h) / 2; i++) h[i] = (k >> i) & 1 ? static_cast<const uint16_t*>(p)[i] : uint16_t{0};
  Vector r;
  __builtin_memcpy(&r, h, sizeof(r));
  return r;
}
static inline void mask_storeu_epi16(void* p, __mmask16 k, __m256i a) {
  uint16_t h[16];
  __builtin_memcpy(h, &a, 32);
  for (int i = 0; i < 16; i++) {
    if ((k >> i) & 1) static_cast<uint16_t*>(p)[i] = h[i];
  }
}
static inline __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
  const __m256i halves[2] = {cvtneps_pbh(low), cvtneps_pbh(high)};
  __m512bh r;
  __builtin_memcpy(&r, halves, 64);
  return r;
}
static inline __m512i load_si512(const void* p) {
  __m512i r;
  __builtin_memcpy(&r, p, 64);
  return r;
}
static inline __m512i permutexvar_epi16(__m512i index, __m512i a) {
  uint16_t from[32], at[32], to[32];
  __builtin_memcpy(from, &a, 64);
  __builtin_memcpy(at, &index, 64);
  for (int i = 0; i < 32; i++) to[i] = from[at[i] & 31];
  return load_si512(to);
}
static inline __m256i half_of(__m512i a, int half) {
  __m256i halves[2];
  __builtin_memcpy(halves, &a, 64);
  return halves[half];
}

}  // namespace emulated

#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_add_ps emulated::add_ps
#define _mm512_sub_ps emulated::sub_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_div_ps emulated::div_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_sqrt_ps emulated::sqrt_ps
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(a, mode) emulated::roundscale_ps(a)
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, predicate) emulated::cmp_ps_mask(a, b, predicate)
#define _mm512_mask_blend_ps emulated::mask_blend_ps
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_and_si512 emulated::and_si512
#define _mm512_or_si512 emulated::or_si512
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emulated::slli_epi32
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_mask_mov_epi32 emulated::mask_mov_epi32
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#undef _mm512_fpclass_ps_mask
#define _mm512_fpclass_ps_mask(a, classes) emulated::fpclass_ps_mask(a, classes)
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps_pbh
#define _mm512_load_si512 emulated::load_si512
#define _mm512_permutexvar_epi16 emulated::permutexvar_epi16
#define _mm512_castsi512_si256(a) emulated::half_of(a, 0)
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64(a, half) emulated::half_of(a, half)
#define _mm256_maskz_loadu_epi16 emulated::maskz_loadu_epi16<__m256i, __mmask16>
#define _mm256_mask_storeu_epi16 emulated::mask_storeu_epi16
#define _mm512_maskz_loadu_epi16 emulated::maskz_loadu_epi16<__m512i, __mmask32>
