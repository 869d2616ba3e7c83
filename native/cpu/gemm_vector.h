// What the matrix product needs beyond cpu/simd.h: 4-byte units (one f32, or two bf16 neighbours in K), their
// transpose, and the bf16 pair product. Written on compiler vectors, so the same index logic serves 8 and 16 lanes.
#pragma once

#ifdef CARAVAN_SIMD_HEADER  // tests run the 16-lane code on processors without AVX-512
#include CARAVAN_SIMD_HEADER
#else
#include "cpu/simd.h"
#endif

namespace caravan::CARAVAN_ISA::packed {
namespace {

constexpr int kLanes = F32::kLanes;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

#ifndef CARAVAN_SIMD_HEADER
#if CARAVAN_ISA_LEVEL >= 4
constexpr bool kHasPairs = true;
/** acc + the two products of each lane's bf16 pair, in the order that vdpbf16ps fixes. */
inline F32 dot_pairs(F32 a, F32 b, F32 acc) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)}; }

/** Stores a sum of dot_pairs, which is no denormal number, rounded. */
inline void store_sum(bf16* to, F32 sum) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(sum.v));
}
/** Units of the first n bf16 of a row, n < 2 kLanes; what is beyond is zero. */
inline F32 load_first_units(const bf16* row, int n) {
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32{1} << n) - 1, row))};
}
/** (1, 1) in every lane. */
inline F32 unit_of_ones() { return {_mm512_castsi512_ps(_mm512_set1_epi32(0x3f803f80))}; }
/** Vectors of two rows, or neighbours in one, rounded to bf16 for products of pairs: denormal numbers become zero, as
 *  for dot_pairs they are. */
struct RoundedRows {
  __m512i v;  // of the first row, then of the second
  RoundedRows(F32 first, F32 second) : v((__m512i)_mm512_cvtne2ps_pbh(second.v, first.v)) {}
  void store_to(bf16* first, bf16* second) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first), _mm512_castsi512_si256(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(second), _mm512_extracti64x4_epi64(v, 1));
  }
  /** Units along one row that the two are neighbours in. */
  F32 side_by_side() const { return {_mm512_castsi512_ps(v)}; }
  /** Units across the rows: lane i holds element i of both. */
  F32 across() const {
    alignas(64) static constexpr uint16_t kInTurn[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kInTurn), v))};
  }
};
#else
constexpr bool kHasPairs = false;
inline F32 dot_pairs(F32, F32, F32 acc) { return acc; }
inline void store_sum(bf16* to, F32 sum) { store(to, sum); }
#endif
#endif

inline F32 from_words(Words w) { return {(decltype(F32::v))w}; }
inline Words to_words(F32 a) { return (Words)a.v; }

/** The first and the second bf16 of every unit, widened. */
inline F32 widen_first(F32 units) { return from_words(to_words(units) << 16); }
inline F32 widen_second(F32 units) { return from_words(to_words(units) & 0xffff0000u); }

/** The bits of kLanes bf16, or of the first n and zeros, as words. */
#if !defined(CARAVAN_SIMD_HEADER) && CARAVAN_ISA_LEVEL >= 3
// What the compiler makes of __builtin_convertvector takes a vector of this size apart.
inline Words bits_of(const bf16* p) {
  return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Words bits_of_first(const bf16* p, int n) {
  return (Words)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
#else
inline Words bits_of(const bf16* p) {
  Halves halves;
  __builtin_memcpy(&halves, p, sizeof(halves));
  return __builtin_convertvector(halves, Words);
}
inline Words bits_of_first(const bf16* p, int n) { return to_words(load_first(p, n)) >> 16; }
#endif

/** Units from two rows of bf16: lane i holds (first[i], second[i]). */
inline F32 zip(const bf16* first, const bf16* second) { return from_words(bits_of(first) | bits_of(second) << 16); }

/** The same for the first n lanes; the others, and the second row where it is null, are zero. */
inline F32 zip_first(const bf16* first, const bf16* second, int n) {
  const Words low = bits_of_first(first, n);
  return from_words(second == nullptr ? low : low | bits_of_first(second, n) << 16);
}

/** One unit in every lane; `p` need not be aligned. */
inline F32 broadcast_unit(const char* p) {
  float unit;
  __builtin_memcpy(&unit, p, 4);
  return set1(unit);
}

#if __has_builtin(__builtin_shufflevector)
template <int... I>
inline Floats shuffle(Floats x, Floats y) {
  return __builtin_shufflevector(x, y, I...);
}
#else
template <int... I>
inline Floats shuffle(Floats x, Floats y) {
  typedef int32_t Index __attribute__((vector_size(kLanes * 4)));
  return __builtin_shuffle(x, y, Index{I...});
}
#endif

#if CARAVAN_GEMM_LANES == 16 || (!defined(CARAVAN_SIMD_HEADER) && CARAVAN_ISA_LEVEL >= 3)

// Four-by-four blocks inside 128-bit lanes (unpack), then a transpose of the 128-bit lanes themselves.
__attribute__((always_inline)) inline void transpose(Floats (&v)[16]) {
  Floats t[16], u[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = shuffle<0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29>(v[i], v[i + 1]);
    t[i + 1] = shuffle<2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31>(v[i], v[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      u[i + 2 * h] = shuffle<0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29>(t[i + h], t[i + 2 + h]);
      u[i + 2 * h + 1] = shuffle<2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31>(t[i + h], t[i + 2 + h]);
    }
  }
  // u[4 q + c], 128-bit lane l: rows 4q..4q+3 of column 4 l + c.
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    Floats low_even = shuffle<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(u[c], u[4 + c]);
    Floats low_odd = shuffle<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(u[c], u[4 + c]);
    Floats high_even = shuffle<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(u[8 + c], u[12 + c]);
    Floats high_odd = shuffle<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(u[8 + c], u[12 + c]);
    v[c] = shuffle<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(low_even, high_even);
    v[4 + c] = shuffle<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(low_odd, high_odd);
    v[8 + c] = shuffle<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(low_even, high_even);
    v[12 + c] = shuffle<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(low_odd, high_odd);
  }
}

#elif CARAVAN_ISA_LEVEL == 2

/** Floats of two addresses, four each: a load that does the work of a shuffle across the halves. */
inline Floats load_halves(const float* low, const float* high) {
  return (Floats)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

/** v[c][r] = row[r][c] for 8 x 8 words: what `transpose` makes of them, with a third fewer shuffles. */
template <typename RowAddress>
inline void load_transposed(const RowAddress& row, Floats (&v)[8]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    Floats in[4], t[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) in[r] = load_halves(row(r) + 4 * half, row(r + 4) + 4 * half);
#pragma GCC unroll 2
    for (int r = 0; r < 4; r += 2) {
      t[r] = shuffle<0, 8, 1, 9, 4, 12, 5, 13>(in[r], in[r + 1]);
      t[r + 1] = shuffle<2, 10, 3, 11, 6, 14, 7, 15>(in[r], in[r + 1]);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      v[4 * half + 2 * h] = shuffle<0, 1, 8, 9, 4, 5, 12, 13>(t[h], t[2 + h]);
      v[4 * half + 2 * h + 1] = shuffle<2, 3, 10, 11, 6, 7, 14, 15>(t[h], t[2 + h]);
    }
  }
}

inline void transpose(Floats (&v)[8]) {
  Floats t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = shuffle<0, 8, 1, 9, 4, 12, 5, 13>(v[i], v[i + 1]);
    t[i + 1] = shuffle<2, 10, 3, 11, 6, 14, 7, 15>(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      u[i + 2 * h] = shuffle<0, 1, 8, 9, 4, 5, 12, 13>(t[i + h], t[i + 2 + h]);
      u[i + 2 * h + 1] = shuffle<2, 3, 10, 11, 6, 7, 14, 15>(t[i + h], t[i + 2 + h]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    v[c] = shuffle<0, 1, 2, 3, 8, 9, 10, 11>(u[c], u[4 + c]);
    v[4 + c] = shuffle<4, 5, 6, 7, 12, 13, 14, 15>(u[c], u[4 + c]);
  }
}

#else  // without 256-bit registers the compiler would take wide shuffles apart lane by lane: go through memory

inline void transpose(Floats (&v)[kLanes]) {
  float in[kLanes][kLanes], out[kLanes][kLanes];
  __builtin_memcpy(in, v, sizeof(in));
  for (int i = 0; i < kLanes; i++) {
    for (int j = 0; j < kLanes; j++) out[j][i] = in[i][j];
  }
  __builtin_memcpy(v, out, sizeof(out));
}

#endif

#if !(CARAVAN_ISA_LEVEL == 2 && CARAVAN_GEMM_LANES != 16)
/** v[c][r] = row[r][c] for kLanes x kLanes words. */
template <typename RowAddress>
inline void load_transposed(const RowAddress& row, Floats (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; r++) v[r] = (Floats)load(row(r)).v;
  transpose(v);
}
#endif

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
