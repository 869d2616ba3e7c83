// Panels: the layouts that the register tile reads. A panel of B is kColumns wide, a panel of A as high as its tile;
// both hold one 4-byte unit of K after another. Sources that run along K are transposed in registers, the others are
// copied row by row. bf16 is widened here, or kept as pairs where the processor multiplies pairs (`kPairs`).
#pragma once
#include "cpu/gemm.h"
#include "cpu/gemm_vector.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

// 12 (AVX2) and 28 (AVX-512) accumulators: the registers that two vectors of B and one broadcast of A leave.
#if CARAVAN_GEMM_LANES == 16 || (!defined(CARAVAN_SIMD_HEADER) && CARAVAN_ISA_LEVEL >= 3)
constexpr int kTileRows = 14;
constexpr int kTileVectors = 2;
#elif CARAVAN_ISA_LEVEL == 2
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
#else
constexpr int kTileRows = 4;
constexpr int kTileVectors = 1;
#endif
constexpr int kColumns = kTileVectors * kLanes;
// Floats between two packed panels: one cache line, or the panels of a pass of 256 units would all lie in the same sets
// of L1 and row-by-row packing would evict what it has just written.
constexpr int64_t kPanelPadding = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

/** Rows [row, row + rows) of the `matrix_rows` of A and C, cut into panels of nearly equal height: a last
 *  panel of one row would starve the multipliers. */
struct RowPanels {
  int64_t row, rows, count, matrix_rows;
  int64_t base, higher;  // height of most panels; how many are one row higher
  RowPanels(int64_t first_row, int64_t row_count, int64_t all_rows)
      : row(first_row), rows(row_count), count(ceil_div(row_count, kTileRows)), matrix_rows(all_rows) {
    base = rows / count;
    higher = rows % count;
  }
  int64_t start(int64_t panel) const { return base * panel + min_of(panel, higher); }
  int height(int64_t panel) const { return static_cast<int>(start(panel + 1) - start(panel)); }
};

/** Units [begin, end) of a K range whose length in elements is K; a unit is one element, or two when kPairs. */
struct Units {
  int64_t begin, end, K;
  int64_t pass = 0;  // passes over K before this one
  int64_t count() const { return end - begin; }
};

template <typename T>
inline F32 load_words(const T* p, int64_t elements) {
  if (elements * static_cast<int64_t>(sizeof(T)) >= kLanes * 4) return load(reinterpret_cast<const float*>(p));
  alignas(64) float words[kLanes] = {};
  __builtin_memcpy(words, p, static_cast<size_t>(elements) * sizeof(T));
  return load(words);
}

/** kLanes rows that are contiguous in K, `stride` elements apart; rows past `count` are row count - 1 again. */
template <typename T>
struct RowsAlongK {
  const T* row[kLanes];
  RowsAlongK(const T* rows, int64_t stride, int count) {
    for (int r = 0; r < kLanes; r++) row[r] = rows + (r < count ? r : count - 1) * stride;
  }
};

/** Elements of K in one block of kLanes words. */
template <typename T>
inline constexpr int64_t kBlockElements = kLanes * 4 / static_cast<int64_t>(sizeof(T));

/** emit(unit, vector) for the units of a block of K of kLanes words, of which `left` elements exist (all where kWhole);
 *  v[w] holds word w of the rows. The first unit is number `unit`. */
template <bool kPairs, bool kWhole, typename T, typename Emit>
__attribute__((always_inline)) inline void emit_units(const Floats (&v)[kLanes], int64_t left, int64_t unit,
                                                      const Emit& emit) {
  constexpr int64_t kPerWord = 4 / sizeof(T);
#pragma GCC unroll 16
  for (int w = 0; w < kLanes; w++) {
    F32 word = {v[w]};
    if constexpr (kPairs || kPerWord == 1) {
      if (kWhole || w * kPerWord < left) emit(unit + w, word);
    } else {
      if (kWhole || 2 * w < left) emit(unit + 2 * w, widen_first(word));
      if (kWhole || 2 * w + 1 < left) emit(unit + 2 * w + 1, widen_second(word));
    }
  }
}

/** emit(unit, vector) for the units of the block of K that starts at element k and ends before `end`: lane r holds the
 *  unit of row r. The first is number `unit`. */
template <bool kPairs, typename T, typename Emit>
__attribute__((always_inline)) inline void transposed_block(const RowsAlongK<T>& rows, int64_t k, int64_t end,
                                                            int64_t unit, const Emit& emit) {
  Floats v[kLanes];
  const int64_t left = end - k;
  if (left >= kBlockElements<T>) {
    load_transposed([&](int r) { return reinterpret_cast<const float*>(rows.row[r] + k); }, v);
    emit_units<kPairs, true, T>(v, left, unit, emit);
  } else {
    for (int r = 0; r < kLanes; r++) v[r] = (Floats)load_words(rows.row[r] + k, left).v;
    transpose(v);
    emit_units<kPairs, false, T>(v, left, unit, emit);
  }
}

/** emit(offset from units.begin, vector) for each unit in order: lane r holds the unit of row min(r, count - 1), rows
 *  lying `stride` elements apart and contiguous in K. */
template <bool kPairs, typename T, typename Emit>
inline void for_transposed_units(const T* rows, int64_t stride, int count, Units units, const Emit& emit) {
  constexpr int64_t kPerUnit = kPairs ? 2 : 1;
  const RowsAlongK<T> lanes(rows, stride, count);
  const int64_t end = units.end * kPerUnit < units.K ? units.end * kPerUnit : units.K;
  const int64_t begin = units.begin * kPerUnit;
  for (int64_t k = begin; k < end; k += kBlockElements<T>) {
    transposed_block<kPairs>(lanes, k, end, (k - begin) / kPerUnit, emit);
  }
}

/** The unit vector of up to kLanes neighbours of one K row (or two, when kPairs); n < kLanes reads no further. */
template <bool kPairs, typename T>
inline F32 load_unit_row(const T* p, int64_t unit, int64_t k_stride, int64_t K, int n) {
  if constexpr (kPairs) {
    const T* first = p + 2 * unit * k_stride;
    const T* second = 2 * unit + 1 < K ? first + k_stride : nullptr;
    return n >= kLanes && second != nullptr ? zip(first, second) : zip_first(first, second, n < kLanes ? n : kLanes);
  } else {
    return n >= kLanes ? load(p + unit * k_stride) : load_first(p + unit * k_stride, n);
  }
}

template <typename T>
inline float element_as_f32(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return to_f32(*p);
  } else {
    return *p;
  }
}

/** One unit by its elements, for operands that are contiguous in neither direction. */
template <bool kPairs, typename T>
inline float gather_unit(const T* p, int64_t unit, int64_t k_stride, int64_t K) {
  if constexpr (kPairs) {
    bf16 pair[2] = {p[2 * unit * k_stride], {0}};
    if (2 * unit + 1 < K) pair[1] = p[(2 * unit + 1) * k_stride];
    float word;
    __builtin_memcpy(&word, pair, 4);
    return word;
  } else {
    return element_as_f32(p + unit * k_stride);
  }
}

/** B[units, column .. column + n) -> panel[unit][kColumns], from a B that is not contiguous along N. Lanes past n hold
 *  copies of column n - 1 or what was there, and are never stored. */
template <bool kPairs, typename T>
inline void pack_b_panel(const Matrix& b, Units units, int64_t column, int n, float* panel) {
  const T* source = static_cast<const T*>(b.data) + column * b.column_stride;
  if (b.row_stride == 1) {
    for (int first = 0; first < n; first += kLanes) {
      float* out = panel + first;
      for_transposed_units<kPairs>(source + first * b.column_stride, b.column_stride, n - first, units,
                                   [&](int64_t unit, F32 lanes) { store(out + unit * kColumns, lanes); });
    }
    return;
  }
  for (int64_t unit = units.begin; unit < units.end; unit++, panel += kColumns) {
    for (int j = 0; j < n; j++) {
      panel[j] = gather_unit<kPairs>(source + j * b.column_stride, unit, b.row_stride, units.K);
    }
  }
}

/** Packed panels of B, `stride` floats apart. */
struct BPanels {
  float* data;
  int64_t stride;
};

/** B[units, column .. column + columns) -> panels, from a B that is contiguous along N. All panels of a block at once:
 *  K row after K row, so that each is one sequential read. */
template <bool kPairs, typename T>
inline void pack_b_rows(const Matrix& b, Units units, int64_t column, int64_t columns, BPanels panels) {
  const T* source = static_cast<const T*>(b.data) + column;
  const int64_t unit_stride = (kPairs ? 2 : 1) * b.row_stride;
  for (int64_t unit = units.begin; unit < units.end; unit++, panels.data += kColumns) {
    float* panel = panels.data;
    for (int64_t j = 0; j < columns; j += kColumns, panel += panels.stride) {
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; v++) {
        __builtin_prefetch(source + j + v * kLanes + (unit + 8) * unit_stride);
        int64_t left = columns - j - v * kLanes;
        if (left <= 0) break;
        int n = static_cast<int>(left < kLanes ? left : kLanes);
        store(panel + v * kLanes, load_unit_row<kPairs>(source + j + v * kLanes, unit, b.row_stride, units.K, n));
      }
    }
  }
}

/** Packed panels [begin, end) of A inside the memory of all panels. */
struct APanels {
  float* all;
  int64_t begin, end;
};

/** Where a panel's units of a pass lie: pass after pass, panel after panel. */
inline float* packed_a_panel(float* all, const RowPanels& rows, int64_t panel, Units units) {
  return all + units.begin * rows.rows + rows.start(panel) * units.count() +
         (units.pass * rows.count + panel) * kPanelPadding;
}

// Panels of A that are packed side by side from rows of M: some cache lines of each, and as many streams of writes.
constexpr int64_t kPanelsAtOnce = 8;

/** A's rows of the panels from an A that is contiguous along M: neighbours of equal height go by together, K row after
 * K row. Vectors are stored one over the tail of the other and end in the padding. */
template <bool kPairs, typename T>
inline void pack_a_rows(const Matrix& a, Units units, const RowPanels& rows, APanels out) {
  const T* source = static_cast<const T*>(a.data) + rows.row;
  const int64_t unit_stride = (kPairs ? 2 : 1) * a.column_stride;
  for (int64_t panel = out.begin, next; panel < out.end; panel = next) {
    const int height = rows.height(panel);
    next = min_of(min_of(panel + kPanelsAtOnce, out.end), panel < rows.higher ? rows.higher : rows.count);
    const T* run = source + rows.start(panel);
    const int64_t count = next - panel;
    const int64_t readable = rows.matrix_rows - rows.row - rows.start(panel);
    const int64_t whole = readable < kLanes ? 0 : min_of(count, (readable - kLanes) / height + 1);
    const int64_t panel_stride = height * units.count() + kPanelPadding;
    float* packed = packed_a_panel(out.all, rows, panel, units);
    for (int64_t unit = units.begin; unit < units.end; unit++, packed += height) {
      for (int64_t r = 0; r < count * height; r += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(run + (unit + 8) * unit_stride + r);
      }
      for (int64_t i = 0; i < whole; i++) {
        store(packed + i * panel_stride,
              load_unit_row<kPairs>(run + i * height, unit, a.column_stride, units.K, kLanes));
      }
      for (int64_t i = whole; i < count; i++) {
        store(packed + i * panel_stride,
              load_unit_row<kPairs>(run + i * height, unit, a.column_stride, units.K, height));
      }
    }
  }
}

/** A's rows of the panels, units -> panel[unit][height], height <= kTileRows <= kLanes. */
template <bool kPairs, typename T>
inline void pack_a(const Matrix& a, Units units, const RowPanels& rows, APanels out) {
  if (a.row_stride == 1 && a.column_stride != 1) return pack_a_rows<kPairs, T>(a, units, rows, out);
  const T* source = static_cast<const T*>(a.data) + rows.row * a.row_stride;
  for (int64_t panel = out.begin; panel < out.end; panel++) {
    int height = rows.height(panel);
    const T* panel_source = source + rows.start(panel) * a.row_stride;
    float* packed = packed_a_panel(out.all, rows, panel, units);
    if (a.column_stride == 1) {
      for_transposed_units<kPairs>(panel_source, a.row_stride, height, units,
                                   [&](int64_t unit, F32 lanes) { store(packed + unit * height, lanes); });
      continue;
    }
    for (int64_t unit = units.begin; unit < units.end; unit++, packed += height) {
      for (int r = 0; r < height; r++) {
        packed[r] = gather_unit<kPairs>(panel_source + r * a.row_stride, unit, a.column_stride, units.K);
      }
    }
  }
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
