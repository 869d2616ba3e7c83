// The register tile: up to kTileRows x kColumns sums, one chain of fused multiply-adds per element in increasing K.
// Tiles of fewer rows are instances of the same template, so an edge row has the bits that it would have in a full
// tile.
#pragma once
#include "cpu/gemm_pack.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

/** How the tile finds the units of A and B. B as bf16 in place goes with a packed A. */
enum class ASource { kPanel, kRows };              // packed; or in place, contiguous in K
enum class BSource { kUnits, kBf16, kBf16Pairs };  // 4-byte units; or bf16 rows in place: widened, or two rows zipped

struct TileArgs {
  int64_t units;
  const char* a;
  int64_t a_row_bytes;  // kRows only
  const void* b;
  int64_t b_unit_stride;  // elements between two units (between two K rows when in place)
  const float* sums;      // continue from these (row stride kColumns); null: from zero
  float* out;
  int64_t out_stride;
  // kAhead only: memory to be asked for while the tile works, so many bytes for each unit.
  const char* ahead;
  int64_t ahead_step;
};

template <BSource kB>
inline F32 load_b(const void* b, int64_t unit, int64_t stride, int vector) {
  if constexpr (kB == BSource::kUnits) {
    return load(static_cast<const float*>(b) + unit * stride + vector * kLanes);
  } else if constexpr (kB == BSource::kBf16) {
    return load(static_cast<const bf16*>(b) + unit * stride + vector * kLanes);
  } else {
    const bf16* first = static_cast<const bf16*>(b) + 2 * unit * stride + vector * kLanes;
    return zip(first, first + stride);
  }
}

template <bool kPairs, ASource kA, BSource kB, bool kAhead, int kRows, int kVectors>
void tile(const TileArgs& t) {
  F32 acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) {
      acc[r][v] = t.sums == nullptr ? zero() : load(t.sums + r * kColumns + v * kLanes);
    }
  }
  const int64_t a_row = kA == ASource::kPanel ? 4 : t.a_row_bytes;
  const int64_t a_unit = kA == ASource::kPanel ? 4 * kRows : 4;
  const int64_t b_stride = t.b_unit_stride;
  const char* a = t.a;
  const void* b = t.b;
  const int64_t units = t.units;
  const char* ahead = t.ahead;
  const int64_t ahead_step = t.ahead_step;
#pragma GCC unroll 4
  for (int64_t unit = 0; unit < units; unit++) {
    if constexpr (kAhead) {
      __builtin_prefetch(ahead);
      ahead += ahead_step;
    }
    F32 column[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) column[v] = load_b<kB>(b, unit, b_stride, v);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      F32 row = broadcast_unit(a + r * a_row);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) {
        acc[r][v] = kPairs ? dot_pairs(row, column[v], acc[r][v]) : fma(row, column[v], acc[r][v]);
      }
    }
    a += a_unit;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) store(t.out + r * t.out_stride + v * kLanes, acc[r][v]);
  }
}

using TileFunction = void (*)(const TileArgs&);

template <bool kPairs, ASource kA, BSource kB, bool kAhead, int kVectors, int kRows = kTileRows>
inline TileFunction tile_of_rows(int rows) {
  if constexpr (kRows == 0) {
    return nullptr;
  } else {
    if (rows == kRows) return tile<kPairs, kA, kB, kAhead, kRows, kVectors>;
    return tile_of_rows<kPairs, kA, kB, kAhead, kVectors, kRows - 1>(rows);
  }
}

template <bool kPairs, ASource kA, BSource kB>
inline TileFunction tile_of_size(int rows, int vectors) {
  if (kTileVectors > 1 && vectors == 1) return tile_of_rows<kPairs, kA, kB, false, 1>(rows);
  return tile_of_rows<kPairs, kA, kB, false, kTileVectors>(rows);
}

/** The tile for a panel of `rows` rows and `vectors` vectors of columns. */
template <bool kPairs>
inline TileFunction find_tile(ASource a, BSource b, int rows, int vectors) {
  constexpr BSource kInPlace = kPairs ? BSource::kBf16Pairs : BSource::kBf16;
  if (b != BSource::kUnits) return tile_of_size<kPairs, ASource::kPanel, kInPlace>(rows, vectors);
  if (a == ASource::kRows) return tile_of_size<kPairs, ASource::kRows, BSource::kUnits>(rows, vectors);
  return tile_of_size<kPairs, ASource::kPanel, BSource::kUnits>(rows, vectors);
}

/** The tile for a whole packed panel of columns that asks for memory as it goes. */
template <bool kPairs>
inline TileFunction find_tile_ahead(ASource a, int rows) {
  if (a == ASource::kRows) return tile_of_rows<kPairs, ASource::kRows, BSource::kUnits, true, kTileVectors>(rows);
  return tile_of_rows<kPairs, ASource::kPanel, BSource::kUnits, true, kTileVectors>(rows);
}

// ---- from finished sums to C ----------------------------------------------------------------------------------------

/** A part of C. */
struct Rectangle {
  int64_t row, rows;
  int64_t column, columns;
};

/** Sums of a rectangle, rows `stride` apart; whole vectors may be read past its last column. */
struct Sums {
  const float* data;
  int64_t stride;
};

template <typename T>
inline F32 load_up_to(const T* p, int n) {
  return n >= kLanes ? load(p) : load_first(p, n);
}

template <typename C, typename Bias>
inline void finish_rows(const GemmArgs& g, const Sums& sums, const Rectangle& at) {
  const F32 alpha = set1(g.alpha);
  for (int64_t r = 0; r < at.rows; r++) {
    C* c = static_cast<C*>(g.c) + (at.row + r) * g.c_row_stride + at.column;
    const C* residual = nullptr;
    const Bias* bias = nullptr;
    if (g.residual != nullptr)
      residual = static_cast<const C*>(g.residual) + (at.row + r) * g.residual_row_stride + at.column;
    if (g.bias != nullptr) bias = static_cast<const Bias*>(g.bias) + at.column;
    for (int64_t j = 0; j < at.columns; j += kLanes) {
      const int n = static_cast<int>(at.columns - j < kLanes ? at.columns - j : kLanes);
      F32 value = load(sums.data + r * sums.stride + j) * alpha;
      if (g.accumulate) value = value + load_up_to(c + j, n);
      if (residual != nullptr) value = value + load_up_to(residual + j, n);
      if (bias != nullptr) value = value + load_up_to(bias + j, n);
      if (n >= kLanes) {
        store(c + j, value);
      } else {
        store_first(c + j, value, n);
      }
    }
  }
}

/** C = ((alpha * sums + C) + residual) + bias on a rectangle, with what is absent left out, rounded once. */
inline void finish(const GemmArgs& g, const Sums& sums, const Rectangle& at) {
  bool bf16_bias = g.bias_dtype == DType::kBF16;
  if (g.c_dtype == DType::kF32) {
    if (bf16_bias) return finish_rows<float, bf16>(g, sums, at);
    return finish_rows<float, float>(g, sums, at);
  }
  if (bf16_bias) return finish_rows<bf16, bf16>(g, sums, at);
  return finish_rows<bf16, float>(g, sums, at);
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
