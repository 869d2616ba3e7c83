// Products of very few rows (decoding): B is read once, where it lies, at the speed of memory. Columns are lanes and
// every element keeps its one chain over K, so the bits are those of the big product. B along K (NT) is transposed in
// registers on its way into the sums; B along N (NN) goes by in strips of K rows with the sums in L1.
#pragma once
#include "cpu/gemm_tile.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

constexpr int kFewRows = 4;
// Rows where B lies along K; more of them pay for a panel in L1 where B is widened, and for lanes of their own where
// not: of sixteen, for which pairs of bf16 are multiplied, these rows would fill no more than half.
constexpr int kFewHalvesAlongK = kHasPairs ? 8 : 2;
template <typename T>
constexpr int kFewRowsAlongK = sizeof(T) == 4 ? 4 : kFewHalvesAlongK;
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

/** kVectors vectors of columns from column j on, side by side: the chains of one would wait for each other. Each takes
 *  a cache line of its rows at a time, since rows of weights often lie so that their lines want the same places in L1.
 *  The memory of the columns that follow is asked for meanwhile: rows are too short for the hardware to run ahead. */
template <bool kPairs, typename T, int kRows, int kVectors>
inline void sum_transposed_columns(const FewRows& f, int64_t j) {
  const T* b = static_cast<const T*>(f.b.data) + (f.column + j) * f.b.column_stride;
  const auto rows_of = [&](int v) __attribute__((always_inline)) {
    const int64_t left = f.columns - j - v * kLanes;
    return RowsAlongK<T>(b + v * kLanes * f.b.column_stride, f.b.column_stride,
                         left < kLanes ? static_cast<int>(left) : kLanes);
  };
  const RowsAlongK<T> lanes[2] = {rows_of(0), rows_of(kVectors - 1)};
  const char* ahead = reinterpret_cast<const char*>(b + kVectors * kLanes * f.b.column_stride);
  F32 acc[kRows][kVectors];
  for (int r = 0; r < kRows; r++) {
    for (int v = 0; v < kVectors; v++) acc[r][v] = zero();
  }
  const auto add_block = [&](int v, int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int line = 0; line < kLanes * kLanes * 4 / 64; line++, ahead += 64) __builtin_prefetch(ahead);
    transposed_block<kPairs>(lanes[v], k, f.K, kPairs ? k / 2 : k,
                             [&](int64_t unit, F32 column) __attribute__((always_inline)) {
#pragma GCC unroll 8
                               for (int r = 0; r < kRows; r++) {
                                 acc[r][v] = multiply_add<kPairs>(f.a.at(r, unit), column, acc[r][v]);
                               }
                             });
  };
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t line = 0; line < f.K; line += kLine) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) {
      for (int64_t k = line; k < line + kLine && k < f.K; k += kBlockElements<T>) add_block(v, k);
    }
  }
  for (int r = 0; r < kRows; r++) {
    for (int v = 0; v < kVectors; v++) store(f.sums + r * f.stride + j + v * kLanes, acc[r][v]);
  }
}

template <bool kPairs, typename T, int kRows>
void sum_transposed(const FewRows& f) {
  constexpr int kVectors = kRows <= 4 ? 2 : 1;
  int64_t j = 0;
  for (; j + (kVectors - 1) * kLanes < f.columns; j += kVectors * kLanes) {
    sum_transposed_columns<kPairs, T, kRows, kVectors>(f, j);
  }
  if (j < f.columns) sum_transposed_columns<kPairs, T, kRows, 1>(f, j);
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
  if (rows == 1) return sum_transposed<kPairs, T, 1>(f);
  if (rows == 2) return sum_transposed<kPairs, T, 2>(f);
  if constexpr (kFewRowsAlongK<T> > 2) {
    if (rows == 3) return sum_transposed<kPairs, T, 3>(f);
    if (rows == 4) return sum_transposed<kPairs, T, 4>(f);
  }
  if constexpr (kFewRowsAlongK<T> > 4) {
    if (rows == 5) return sum_transposed<kPairs, T, 5>(f);
    if (rows == 6) return sum_transposed<kPairs, T, 6>(f);
    if (rows == 7) return sum_transposed<kPairs, T, 7>(f);
    sum_transposed<kPairs, T, 8>(f);
  }
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
