// Products of one to four rows (decoding): B is read once, where it lies, at the speed of memory. Columns are lanes and
// every element keeps its one chain over K, so the bits are those of the big product. B along K (NT) is transposed in
// registers on its way into the sums; B along N (NN) goes by in strips of K rows with the sums in L1.
#pragma once
#include "cpu/gemm_tile.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

constexpr int kFewRows = 4;
// K rows of a strip: sequential streams that the hardware prefetchers follow, beside those of the next strip.
constexpr int64_t kStripUnits = 4;

/** Unit u of row r of A lies at data + r * row_bytes + u * unit_bytes. */
struct AUnits {
  const char* data;
  int64_t row_bytes, unit_bytes;
  F32 at(int row, int64_t unit) const { return broadcast_unit(data + row * row_bytes + unit * unit_bytes); }
};

/** Sums of columns [column, column + columns): element (r, j) of the result goes to sums[r * stride + j]. The stride
 *  leaves room for whole vectors. */
struct FewRows {
  AUnits a;
  Matrix b;
  int64_t column, columns;
  int64_t units, K;
  float* sums;
  int64_t stride;
};

template <bool kPairs>
inline F32 multiply_add(F32 a, F32 b, F32 acc) {
  return kPairs ? dot_pairs(a, b, acc) : fma(a, b, acc);
}

template <bool kPairs, typename T, int kRows>
void sum_transposed(const FewRows& f) {
  const T* b = static_cast<const T*>(f.b.data) + f.column * f.b.column_stride;
  for (int64_t j = 0; j < f.columns; j += kLanes) {
    int count = static_cast<int>(f.columns - j < kLanes ? f.columns - j : kLanes);
    F32 acc[kRows];
    for (int r = 0; r < kRows; r++) acc[r] = zero();
    for_transposed_units<kPairs>(b + j * f.b.column_stride, f.b.column_stride, count, Units{0, f.units, f.K},
                                 [&](int64_t unit, F32 lanes) __attribute__((always_inline)) {
#pragma GCC unroll 4
                                   for (int r = 0; r < kRows; r++) {
                                     acc[r] = multiply_add<kPairs>(f.a.at(r, unit), lanes, acc[r]);
                                   }
                                 });
    for (int r = 0; r < kRows; r++) store(f.sums + r * f.stride + j, acc[r]);
  }
}

template <bool kPairs, typename T, int kRows, int kVectors>
inline void sum_strip(const FewRows& f, int64_t begin, int64_t end, int64_t j) {
  const T* b = static_cast<const T*>(f.b.data) + f.column + j;
  const int64_t unit_stride = (kPairs ? 2 : 1) * f.b.row_stride;
  F32 acc[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) acc[r][v] = begin == 0 ? zero() : load(f.sums + r * f.stride + j + v * kLanes);
  }
  for (int64_t unit = begin; unit < end; unit++) {
    for (int64_t j_ahead = 0; j_ahead < kVectors * kLanes; j_ahead += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(b + (unit + kStripUnits) * unit_stride + j_ahead);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      int64_t left = f.columns - j - v * kLanes;
      F32 lanes = load_unit_row<kPairs>(b + v * kLanes, unit, f.b.row_stride, f.K,
                                        kVectors > 1 || left >= kLanes ? kLanes : static_cast<int>(left));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) acc[r][v] = multiply_add<kPairs>(f.a.at(r, unit), lanes, acc[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) store(f.sums + r * f.stride + j + v * kLanes, acc[r][v]);
  }
}

template <bool kPairs, typename T, int kRows>
void sum_strips(const FewRows& f) {
  constexpr int kWide = 8 / kRows;
  for (int64_t begin = 0; begin == 0 || begin < f.units; begin += kStripUnits) {
    int64_t end = begin + kStripUnits < f.units ? begin + kStripUnits : f.units;
    int64_t j = 0;
    for (; j + kWide * kLanes <= f.columns; j += kWide * kLanes) sum_strip<kPairs, T, kRows, kWide>(f, begin, end, j);
    for (; j < f.columns; j += kLanes) sum_strip<kPairs, T, kRows, 1>(f, begin, end, j);
  }
}

template <bool kPairs, typename T>
inline void sum_few_rows(const FewRows& f, int64_t rows) {
  if (f.b.column_stride == 1) {
    switch (rows) {
      case 1:
        return sum_strips<kPairs, T, 1>(f);
      case 2:
        return sum_strips<kPairs, T, 2>(f);
      case 3:
        return sum_strips<kPairs, T, 3>(f);
      default:
        return sum_strips<kPairs, T, 4>(f);
    }
  }
  switch (rows) {
    case 1:
      return sum_transposed<kPairs, T, 1>(f);
    case 2:
      return sum_transposed<kPairs, T, 2>(f);
    case 3:
      return sum_transposed<kPairs, T, 3>(f);
    default:
      return sum_transposed<kPairs, T, 4>(f);
  }
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
