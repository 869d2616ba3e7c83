// Products of some rows by weights that lie along K (decoding, short prompts), with the rows as lanes: a tile holds the
// sums of some columns for whole vectors of rows. A is packed once; every weight is broadcast from where it lies, so
// that nothing of B, which is used for a short time, is transposed or packed. Each element keeps its one chain over K,
// so the bits are those of every other way.
#pragma once
#include "cpu/gemm_tile.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

// Vectors of rows that a tile holds at most, and columns of one that holds a single vector: sums for all registers that
// the vectors of A and one broadcast leave. All numbers of vectors divide it.
constexpr int kMostRowVectors = 3;
constexpr int kRowLaneColumns = kLanes >= 16 ? 24 : kTileRows >= 6 ? 12 : 6;
// Columns whose sums are turned round and finished together.
constexpr int64_t kFinishedColumns = 48;
// Units of K without a jump between them. A unit of 16 lanes is twice as long.
constexpr int kUnrolledUnits = kLanes >= 16 ? 1 : 16;
// Rows of B whose distance is a multiple of this would all want the same few sets of L1.
constexpr int64_t kCollidingBytes = 2048;

/** The vectors of rows, cut into groups of nearly equal size that a tile can hold. */
struct RowGroups {
  int64_t rows, vectors, count;
  explicit RowGroups(int64_t M) : rows(M), vectors(ceil_div(M, kLanes)), count(ceil_div(vectors, kMostRowVectors)) {}
  int64_t start(int64_t group) const { return vectors * group / count; }
  int64_t size(int64_t group) const { return start(group + 1) - start(group); }
  int64_t lanes() const { return vectors * kLanes; }
  /** Where the packed units of a group begin: each group is [units][size * kLanes]. */
  int64_t packed_start(int64_t group, int64_t units) const { return start(group) * units * kLanes; }
};

/** Floats from one row of a copy of B to the next: whole cache lines, and one more against collisions. */
inline int64_t copied_row(int64_t units) { return (ceil_div(units, 16) + 1) * 16; }

/** Floats of what one worker needs: sums by columns and by rows, and a copy of the rows of B of one tile. */
inline int64_t row_lanes_floats(int64_t M, int64_t units) {
  return 2 * kFinishedColumns * RowGroups(M).lanes() + kRowLaneColumns * copied_row(units);
}

/** Sums of one tile: column c, vector v of rows go to out[c * out_stride + v * kLanes]. */
struct RowLanesTile {
  int64_t units;
  const float* a;  // [units][vectors * kLanes]
  const char* b;   // weights of column c at b + min(c, b_rows - 1) * b_stride
  int64_t b_stride, b_rows;
  const char* ahead;   // memory to be asked for meanwhile, as much as the tile reads
  int64_t ahead_step;  // 64, or 0 to ask for none
  float* out;
  int64_t out_stride;
};

/** The sums of a tile while it works. */
template <bool kPairs, int kVectors>
struct RowLanesSums {
  static constexpr int kCount = kRowLaneColumns / kVectors;  // of columns
  F32 acc[kCount][kVectors];

  __attribute__((always_inline)) void clear() {
#pragma GCC unroll 24
    for (int c = 0; c < kCount; c++) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) acc[c][v] = zero();
    }
  }
  /** One unit of K: its rows are at `a`, the weight of column c at b + c * stride. */
  __attribute__((always_inline)) void add(const float* a, const char* b, int64_t stride) {
    F32 rows[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) rows[v] = load(a + v * kLanes);
#pragma GCC unroll 24
    for (int c = 0; c < kCount; c++) {
      const F32 weight = broadcast_unit(b + c * stride);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) {
        acc[c][v] = kPairs ? dot_pairs(rows[v], weight, acc[c][v]) : fma(rows[v], weight, acc[c][v]);
      }
    }
  }
  __attribute__((always_inline)) void store_to(const RowLanesTile& t) const {
#pragma GCC unroll 24
    for (int c = 0; c < kCount; c++) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) store(t.out + c * t.out_stride + v * kLanes, acc[c][v]);
    }
  }
};

/** Memory that is asked for line by line. */
struct Ahead {
  const char* next;
  int64_t step;
  template <int kLines>
  __attribute__((always_inline)) void ask() {
#pragma GCC unroll 24
    for (int line = 0; line < kLines; line++, next += step) __builtin_prefetch(next);
  }
};

/** Weights that are units where they lie, at least as many rows of them as the tile has columns. */
template <bool kPairs, int kVectors>
void row_lanes_tile_in_place(const RowLanesTile& t) {
  using Sums = RowLanesSums<kPairs, kVectors>;
  constexpr int64_t kAtOnce = 16;  // a cache line of each row
  Sums sums;
  sums.clear();
  Ahead ahead = {t.ahead, t.ahead_step};
  const float* a = t.a;
  const char* b = t.b;
  const int64_t stride = t.b_stride;
  int64_t units = t.units;
  for (; units >= kAtOnce; units -= kAtOnce, a += kAtOnce * kVectors * kLanes, b += kAtOnce * 4) {
    ahead.ask<Sums::kCount>();
#pragma GCC unroll kUnrolledUnits
    for (int64_t unit = 0; unit < kAtOnce; unit++) sums.add(a + unit * kVectors * kLanes, b + unit * 4, stride);
  }
  for (; units > 0; units--, a += kVectors * kLanes, b += 4) sums.add(a, b, stride);
  sums.store_to(t);
}

/** bf16 weights, widened into L1 some units of all columns at a time. By whole vectors: first the even units, then the
 *  odd ones, which no shuffle need put in order, as a broadcast can start anywhere. */
template <int kVectors>
void row_lanes_tile_widened(const RowLanesTile& t) {
  using Sums = RowLanesSums<false, kVectors>;
  constexpr int64_t kAtOnce = 2 * kLanes, kBytes = 2 * kAtOnce;
  // Two turns, and a row is widened after each unit: to load what has just been stored is slow, and so are many stores
  // in a row.
  static_assert(Sums::kCount <= kAtOnce);
  alignas(64) float turns[2][Sums::kCount * kAtOnce];
  const char* row[Sums::kCount];
  for (int c = 0; c < Sums::kCount; c++) row[c] = t.b + min_of(c, t.b_rows - 1) * t.b_stride;
  const auto widen_row = [&](int64_t c, int64_t at, float* turn) __attribute__((always_inline)) {
    const F32 words = load(reinterpret_cast<const float*>(row[c] + at));
    store(turn + c * kAtOnce, widen_first(words));
    store(turn + c * kAtOnce + kLanes, widen_second(words));
  };
  Sums sums;
  sums.clear();
  Ahead ahead = {t.ahead, t.ahead_step};
  const float* a = t.a;
  const int64_t whole = t.units / kAtOnce;
  for (int64_t c = 0; whole > 0 && c < Sums::kCount; c++) widen_row(c, 0, turns[0]);
  for (int64_t i = 0; i < whole; i++, a += kAtOnce * kVectors * kLanes) {
    ahead.ask<Sums::kCount * kBytes / 64>();
    const char* turn = reinterpret_cast<const char*>(turns[i % 2]);
    float* other = turns[(i + 1) % 2];
    const int64_t next = min_of(i + 1, whole - 1) * kBytes;
#pragma GCC unroll kUnrolledUnits
    for (int64_t unit = 0; unit < kAtOnce; unit++) {
      sums.add(a + unit * kVectors * kLanes, turn + (unit / 2 + unit % 2 * kLanes) * 4, kAtOnce * 4);
      if (unit < Sums::kCount) widen_row(unit, next, other);
    }
  }
  const int64_t left = t.units - whole * kAtOnce;
  for (int c = 0; c < Sums::kCount; c++) {
    const bf16* rest = reinterpret_cast<const bf16*>(row[c] + whole * kBytes);
    for (int64_t unit = 0; unit < left; unit++) turns[0][c * kAtOnce + unit] = to_f32(rest[unit]);
  }
  for (int64_t unit = 0; unit < left; unit++, a += kVectors * kLanes) {
    sums.add(a, reinterpret_cast<const char*>(turns[0] + unit), kAtOnce * 4);
  }
  sums.store_to(t);
}

template <bool kPairs, typename T, int kVectors>
inline void row_lanes_tile(const RowLanesTile& t) {
  if constexpr (kPairs || sizeof(T) == 4) {
    row_lanes_tile_in_place<kPairs, kVectors>(t);
  } else {
    row_lanes_tile_widened<kVectors>(t);
  }
}

/** Rows of A -> the packed units of group `group`; lanes without a row hold the last one again. */
template <bool kPairs, typename T>
inline void pack_row_group(const Matrix& a, const RowGroups& rows, int64_t group, int64_t K, float* packed) {
  const int64_t units = kPairs ? ceil_div(K, 2) : K, width = rows.size(group) * kLanes;
  float* out = packed + rows.packed_start(group, units);
  for (int64_t v = 0; v < rows.size(group); v++, out += kLanes) {
    const int64_t row = (rows.start(group) + v) * kLanes;
    for_transposed_units<kPairs>(static_cast<const T*>(a.data) + row * a.row_stride, a.row_stride,
                                 static_cast<int>(min_of(kLanes, rows.rows - row)), {0, units, K},
                                 [&](int64_t unit, F32 lanes) { store(out + unit * width, lanes); });
  }
}

/** The sums of kRowLaneColumns columns for all rows: column c goes to t.out + c * rows.lanes(). `t` says where B is and
 *  what to ask for: the last group of rows does, or it would have left L1 again. */
template <bool kPairs, typename T>
void sum_row_lanes(const RowGroups& rows, const RowLanesTile& t, const float* packed_a) {
  for (int64_t group = 0; group < rows.count; group++) {
    const int64_t vectors = rows.size(group), columns = kRowLaneColumns / vectors;
    for (int64_t c = 0; c < min_of(kRowLaneColumns, t.b_rows); c += columns) {
      RowLanesTile tile = t;
      tile.a = packed_a + rows.packed_start(group, t.units);
      tile.b += c * t.b_stride;
      tile.b_rows -= c;
      tile.ahead += c * t.units * (kPairs ? 4 : static_cast<int64_t>(sizeof(T)));
      tile.ahead_step = group + 1 == rows.count ? 64 : 0;
      tile.out += c * rows.lanes() + rows.start(group) * kLanes;
      tile.out_stride = rows.lanes();
      if (vectors == 1) row_lanes_tile<kPairs, T, 1>(tile);
      if (vectors == 2) row_lanes_tile<kPairs, T, 2>(tile);
      if (vectors == 3) row_lanes_tile<kPairs, T, 3>(tile);
    }
  }
}

/** Columns of lanes -> rows of columns, `columns` rounded up to whole vectors. */
inline void turn_sums(const RowGroups& rows, int64_t columns, const float* sums, float* turned) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    for (int64_t row = 0; row < rows.lanes(); row += kLanes) {
      Floats v[kLanes];
      load_transposed([&](int c) { return sums + (column + c) * rows.lanes() + row; }, v);
      for (int r = 0; r < kLanes; r++) store(turned + (row + r) * kFinishedColumns + column, {v[r]});
    }
  }
}

/** Columns [column, column + columns) of C. `buffers`: row_lanes_floats. */
template <bool kPairs, typename T>
void run_row_lanes(const GemmArgs& g, int64_t column, int64_t columns, const float* packed_a, float* buffers) {
  constexpr bool kInPlace = kPairs || sizeof(T) == 4;
  const RowGroups rows(g.M);
  float* turned = buffers + kFinishedColumns * rows.lanes();
  float* copy = turned + kFinishedColumns * rows.lanes();
  const int64_t units = kPairs ? g.K / 2 : g.K;
  const int64_t stride = g.b.column_stride * static_cast<int64_t>(sizeof(T));
  for (int64_t first = column; first < column + columns; first += kFinishedColumns) {
    const int64_t count = min_of(kFinishedColumns, column + columns - first);
    for (int64_t c = 0; c < count; c += kRowLaneColumns) {
      const char* b = static_cast<const char*>(g.b.data) + (first + c) * stride;
      RowLanesTile t{};
      t.units = units;
      t.b = b;
      t.b_stride = stride;
      t.b_rows = count - c;
      t.ahead = b + kRowLaneColumns * stride;
      t.out = buffers + c * rows.lanes();
      if (kInPlace && (stride % kCollidingBytes == 0 || t.b_rows < kRowLaneColumns)) {
        for (int64_t j = 0; j < kRowLaneColumns; j++) {
          const char* row = b + min_of(j, t.b_rows - 1) * stride;
          __builtin_memcpy(copy + j * copied_row(units), row, static_cast<size_t>(units) * 4);
        }
        t.b = reinterpret_cast<const char*>(copy);
        t.b_stride = copied_row(units) * 4;
        t.b_rows = kRowLaneColumns;
      }
      sum_row_lanes<kPairs, T>(rows, t, packed_a);
    }
    turn_sums(rows, count, buffers, turned);
    finish(g, {turned, kFinishedColumns}, {0, g.M, first, count});
  }
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
