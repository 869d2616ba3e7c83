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
  void* out;
  int64_t out_stride;
  bool rounds;  // kPairs only: `out` is bf16
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
  const bool rounds = t.rounds;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) {
      const int64_t at = r * t.out_stride + v * kLanes;
      if (kPairs && rounds) {
        store_sum(static_cast<bf16*>(t.out) + at, acc[r][v]);
      } else {
        store(static_cast<float*>(t.out) + at, acc[r][v]);
      }
    }
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

/** What is added to the sums: each is a constant of the loop, which runs once for every tile of C. */
template <bool kAccumulate, bool kResidual, typename Bias>
struct Addends {
  static constexpr bool accumulate = kAccumulate, residual = kResidual;
  using BiasType = Bias;  // void: none
};

/** One vector of C, `n` of its lanes (all of them when kWhole). */
template <typename C, typename Add, bool kWhole>
inline void finish_vector(F32 value, C* c, const C* residual, const void* bias, int64_t column, int n) {
  const auto load_lanes = [n](const auto* p) { return kWhole ? load(p) : load_first(p, n); };
  if constexpr (Add::accumulate) value = value + load_lanes(c);
  if constexpr (Add::residual) value = value + load_lanes(residual);
  if constexpr (!__is_same(typename Add::BiasType, void)) {
    value = value + load_lanes(static_cast<const typename Add::BiasType*>(bias) + column);
  }
  if constexpr (kWhole) {
    store(c, value);
  } else {
    store_first(c, value, n);
  }
}

template <typename C, typename Add>
inline void finish_rows(const GemmArgs& g, const Sums& sums, const Rectangle& at, Add) {
  const F32 alpha = set1(g.alpha);
  const int64_t whole = at.columns / kLanes * kLanes;
  const int rest = static_cast<int>(at.columns - whole);
  C* c = static_cast<C*>(g.c) + at.row * g.c_row_stride + at.column;
  const C* residual = static_cast<const C*>(g.residual);
  if constexpr (Add::residual) residual += at.row * g.residual_row_stride + at.column;
  const float* from = sums.data;
  for (int64_t r = 0; r < at.rows; r++) {
    // No offset from a null pointer where there is no residual.
    const auto residual_at = [&](int64_t j) { return Add::residual ? residual + j : nullptr; };
    for (int64_t j = 0; j < whole; j += kLanes) {
      finish_vector<C, Add, true>(load(from + j) * alpha, c + j, residual_at(j), g.bias, at.column + j, kLanes);
    }
    if (rest > 0) {
      finish_vector<C, Add, false>(load(from + whole) * alpha, c + whole, residual_at(whole), g.bias, at.column + whole,
                                   rest);
    }
    from += sums.stride;
    c += g.c_row_stride;
    if constexpr (Add::residual) residual += g.residual_row_stride;
  }
}

template <typename C, bool kAccumulate, bool kResidual>
inline void finish_with_bias(const GemmArgs& g, const Sums& sums, const Rectangle& at) {
  if (g.bias == nullptr) {
    finish_rows<C>(g, sums, at, Addends<kAccumulate, kResidual, void>{});
  } else if (g.bias_dtype == DType::kBF16) {
    finish_rows<C>(g, sums, at, Addends<kAccumulate, kResidual, bf16>{});
  } else {
    finish_rows<C>(g, sums, at, Addends<kAccumulate, kResidual, float>{});
  }
}

template <typename C>
inline void finish_as(const GemmArgs& g, const Sums& sums, const Rectangle& at) {
  if (g.accumulate) {
    if (g.residual != nullptr) return finish_with_bias<C, true, true>(g, sums, at);
    return finish_with_bias<C, true, false>(g, sums, at);
  }
  if (g.residual != nullptr) return finish_with_bias<C, false, true>(g, sums, at);
  return finish_with_bias<C, false, false>(g, sums, at);
}

/** C = ((alpha * sums + C) + residual) + bias on a rectangle, with what is absent left out, rounded once. */
inline void finish(const GemmArgs& g, const Sums& sums, const Rectangle& at) {
  if (g.c_dtype == DType::kF32) return finish_as<float>(g, sums, at);
  finish_as<bf16>(g, sums, at);
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
