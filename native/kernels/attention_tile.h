// What attention.cc and attention_backward.cc share: segments, the key range of a query, and small products.
// These products are not gemm_serial because a block of keys is packed once for a hundred query rows and strips on the
// causal diagonal are cut to the keys that exist; a call of six rows by 64 keys must cost its arithmetic and no more.
// Every sum is one chain of fused multiply-adds in increasing order of the summed index, so a masked or padded entry
// (an exact zero) changes nothing and the bits of a row do not depend on the rows beside it.
//
// Operands are made of units of four bytes along the summed index: one f32, or, for bf16 on a processor that multiplies
// it, two neighbours in bf16 (UnitsOf). Then the weights of the softmax and the gradients of the scores are rounded to
// bf16 before they are multiplied; sums are f32 either way.
#pragma once
#include <type_traits>

#include "core/fail.h"
#include "core/scratch.h"
#include "cpu/gemm_vector.h"
#include "cpu/simd.h"
#include "cpu/thread_pool.h"

namespace caravan::CARAVAN_ISA {
namespace attention_detail {

inline constexpr int64_t kBlockKeys = 64;  // keys per step of the online softmax, counted from the segment's first key

// Rows of the register tile; with two vectors of columns this fills 16 (AVX2) or 32 (AVX-512) registers.
inline constexpr int kStripRows = F32::kLanes == 16 ? 12 : (CARAVAN_ISA_LEVEL == 2 ? 6 : 4);

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- segments and masks ---------------------------------------------------------------------------------------------

/** One sequence: queries [q_begin, q_begin + queries) attend keys [k_begin, k_begin + keys), aligned at the end. */
struct Segment {
  int64_t q_begin, queries, k_begin, keys;

  /** Keys [first, end) of query i, counted from k_begin. Both ends grow with i. */
  int64_t first_key(int64_t i, int64_t window) const { return window > 0 ? larger(0, end_key(i) - window) : 0; }
  int64_t end_key(int64_t i) const { return larger(0, i + 1 + keys - queries); }
};

static inline Segment segment_at(const View& segments, int64_t s) {
  const int32_t* row = segments.as<int32_t>() + 4 * s;
  return {row[0], row[1] - row[0], row[2], row[3] - row[2]};
}

/** Throws ERR_SHAPE for a segment outside the tensors, or for queries (with `own_keys` also keys) that are not in
 *  ascending order: two segments may then not write the same row. */
static inline void check_segments(const char* op, const View& segments, int64_t N, int64_t M, bool own_keys) {
  int64_t q_end = 0, k_end = 0;
  for (int64_t s = 0; s < segments.shape[0]; s++) {
    const int32_t* row = segments.as<int32_t>() + 4 * s;
    const bool inside =
        row[0] >= 0 && row[0] <= row[1] && row[1] <= N && row[2] >= 0 && row[2] <= row[3] && row[3] <= M;
    const bool ascending = row[0] >= q_end && (!own_keys || row[2] >= k_end);
    if (!inside || !ascending) {
      fail("ERR_SHAPE",
           "%s: segments[%lld] = (%d, %d, %d, %d) must be ranges (q_begin, q_end, k_begin, k_end) in [0, N=%lld] "
           "and [0, M=%lld]%s",
           op, static_cast<long long>(s), row[0], row[1], row[2], row[3], static_cast<long long>(N),
           static_cast<long long>(M),
           own_keys ? ", ascending and without overlap" : ", the queries ascending and without overlap");
    }
    q_end = row[1];
    k_end = row[3];
  }
}

/** Query heads that share a key/value head. Throws ERR_SHAPE when H is not a multiple of K. */
static inline int64_t heads_per_group(const char* op, int64_t H, int64_t K) {
  if (K < 1 || H % K != 0) {
    fail("ERR_SHAPE", "%s: the query heads H=%lld must be a multiple of the key heads K=%lld", op,
         static_cast<long long>(H), static_cast<long long>(K));
  }
  return H / K;
}

/** body(begin, end) for the rows of [0, count) outside all segments; `column` 0 looks at queries, 2 at keys. */
template <typename Body>
static inline void for_gaps(const View& segments, int column, int64_t count, const Body& body) {
  int64_t end = 0;
  for (int64_t s = 0; s < segments.shape[0]; s++) {
    const int32_t* row = segments.as<int32_t>() + 4 * s;
    if (row[column] > end) body(end, row[column]);
    end = row[column + 1];
  }
  if (count > end) body(end, count);
}

/** Positions of a segment that make one tile: about `rows` rows, in tiles of nearly equal size and of whole strips. */
static inline int64_t tile_positions(int64_t queries, int64_t group, int64_t rows) {
  const int64_t most = larger(1, rows / group);
  const int64_t equal = queries == 0 ? 1 : ceil_div(queries, ceil_div(queries, most));
  int64_t step = 1;  // positions whose rows are whole strips
  while (step * group % kStripRows != 0) step++;
  return step > most ? equal : smaller(round_up(equal, step), most / step * step);
}

/** The segment of a task when task_ends[s] tasks belong to the segments up to and including s. */
static inline int64_t segment_of_task(const int64_t* task_ends, int64_t count, int64_t task) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (task_ends[middle] > task) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/** Valid columns [first, end) of a row of scores within a block, and those of a whole strip. */
struct Columns {
  int64_t first, end;
  bool empty() const { return first >= end; }
};

/** The keys of query `position` inside the block of `keys` keys that starts at key `block`. */
static inline Columns columns_of(const Segment& segment, int64_t window, int64_t position, int64_t block,
                                 int64_t keys) {
  return {larger(0, segment.first_key(position, window) - block), smaller(keys, segment.end_key(position) - block)};
}

/** Elements of row[begin..end) that are not in `valid` become `outside`; begin and end are multiples of kLanes. */
static inline void mask_columns(float* row, int64_t begin, int64_t end, Columns valid, F32 outside) {
  alignas(64) static constexpr float kLaneNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32 first = set1(static_cast<float>(valid.first)), past = set1(static_cast<float>(valid.end));
  for (int64_t j = begin; j < end; j += F32::kLanes) {
    const F32 column = load(kLaneNumbers) + set1(static_cast<float>(j));
    const F32 inside = select_greater(past, column, load(row + j), outside);
    store(row + j, select_greater(first, column, outside, inside));
  }
}

// ---- copies between tensors and tiles -------------------------------------------------------------------------------

/** Floats of a workspace of several parts, each starting on a cache line. */
class Layout {
 public:
  int64_t add(int64_t floats) {
    const int64_t begin = size_;
    size_ += round_up(floats, 16);
    return begin;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

/** to[0..width) = scale * from[0..C), zero beyond C; width is a multiple of kLanes. */
template <typename T>
static inline void widen_row(const T* from, int64_t C, float scale, float* to) {
  const F32 factor = set1(scale);
  for_lanes(
      C, [&](int64_t i) { store(to + i, load(from + i) * factor); },
      [&](int64_t i, int n) { store(to + i, load_first(from + i, n) * factor); });
}

template <typename T>
static inline void narrow_row(const float* from, int64_t C, float scale, T* to) {
  const F32 factor = set1(scale);
  for_lanes(
      C, [&](int64_t i) { store(to + i, load(from + i) * factor); },
      [&](int64_t i, int n) { store_first(to + i, load(from + i) * factor, n); });
}

/** Units of one f32. */
struct Singles {
  static constexpr int kDepth = 1;
  /** Where a factor of a product belongs: to the rows when they are packed, or to the sums. */
  static float row_scale(float scale) { return scale; }
  static float sum_scale(float) { return 1.0f; }
  static F32 multiply_add(F32 a, F32 b, F32 sum) { return fma(a, b, sum); }

  /** The units of kLanes elements, or of the first n. */
  template <typename T>
  static F32 units(const T* row) {
    return load(row);
  }
  template <typename T>
  static F32 first_units(const T* row, int64_t n) {
    return load_first(row, static_cast<int>(n));
  }
  /** The units across one row for each element of a unit, of kLanes columns or the first n. Without `both` there is
   *  no second row, which stands for zeros. */
  template <typename T>
  static F32 units_across(const T* row, int64_t, bool) {
    return load(row);
  }
  template <typename T>
  static F32 first_units_across(const T* row, int64_t, bool, int n) {
    return load_first(row, n);
  }
};

#if CARAVAN_ISA_LEVEL >= 4
/** Units of two bf16. */
struct Pairs {
  static constexpr int kDepth = 2;
  static float row_scale(float) { return 1.0f; }
  static float sum_scale(float scale) { return scale; }
  static F32 multiply_add(F32 a, F32 b, F32 sum) { return packed::dot_pairs(a, b, sum); }
  static F32 units(const bf16* row) { return load(reinterpret_cast<const float*>(row)); }
  static F32 first_units(const bf16* row, int64_t n) { return packed::load_first_units(row, static_cast<int>(n)); }
  static F32 units_across(const bf16* row, int64_t stride, bool both) {
    return both ? packed::zip(row, row + stride) : packed::zip_first(row, nullptr, F32::kLanes);
  }
  static F32 first_units_across(const bf16* row, int64_t stride, bool both, int n) {
    return packed::zip_first(row, both ? row + stride : nullptr, n);
  }
  /** 32 elements as units along a row; adds them, as they were rounded, to the pairs of lanes of `sum`. */
  static void store_along(float* to, F32 first, F32 second, F32* sum) {
    const F32 units = packed::RoundedRows(first, second).side_by_side();
    store(to, units);
    *sum = packed::dot_pairs(units, packed::unit_of_ones(), *sum);
  }
  /** Elements of two rows as units across them. */
  static void store_across(float* to, F32 first, F32 second) { store(to, packed::RoundedRows(first, second).across()); }
  /** The same, and as elements j.. of each row. */
  static void store_both_ways(float* across, float* first_row, float* second_row, int64_t j, F32 first, F32 second) {
    const packed::RoundedRows rounded(first, second);
    store(across, rounded.across());
    rounded.store_to(reinterpret_cast<bf16*>(first_row) + j, reinterpret_cast<bf16*>(second_row) + j);
  }
};
template <typename T>
using UnitsOf = std::conditional_t<std::is_same_v<T, bf16>, Pairs, Singles>;
#else
template <typename T>
using UnitsOf = Singles;
#endif

/** Units that `elements` neighbours along the summed index take. */
template <typename U>
static inline int64_t units_of(int64_t elements) {
  return ceil_div(elements, U::kDepth);
}

/** One row, times row_scale(scale), as units along it, zero up to a whole vector. */
template <typename U, typename T>
static inline void pack_row(const T* from, int64_t C, float scale, float* to) {
  if constexpr (U::kDepth == 1) {
    widen_row(from, C, U::row_scale(scale), to);
  } else {
    constexpr int64_t kStep = F32::kLanes * U::kDepth;
    for (int64_t c = 0; c < C; c += kStep) {
      store(to + c / U::kDepth, c + kStep <= C ? U::units(from + c) : U::first_units(from + c, C - c));
    }
  }
}

/** to[j / kDepth][c] = the units across `rows` rows of C elements; rows of `to` are `width` wide. */
template <typename U, typename T>
static inline void pack_across(const T* from, int64_t stride, int64_t rows, int64_t C, float* to, int64_t width) {
  for (int64_t j = 0; j < rows; j += U::kDepth, to += width) {
    const T* row = from + j * stride;
    const bool both = j + 1 < rows;
    for_lanes(
        C, [&](int64_t c) { store(to + c, U::units_across(row + c, stride, both)); },
        [&](int64_t c, int n) { store(to + c, U::first_units_across(row + c, stride, both, n)); });
  }
}

/** to[u][j] = unit u along row j of `from`, for j < keys, rows of `to` being kBlockKeys wide; up to the next vector of
 *  keys the last one again. `to` has room for round_up(units, kLanes) rows. */
template <typename U, typename T>
static inline void transpose_block(const T* from, int64_t row_stride, int64_t keys, int64_t C, float* to) {
  constexpr int64_t kLanes = F32::kLanes, kStep = kLanes * U::kDepth;
  for (int64_t j = 0; j < keys; j += kLanes) {
    const T* row[kLanes];
    for (int r = 0; r < kLanes; r++) row[r] = from + smaller(j + r, keys - 1) * row_stride;
    for (int64_t c = 0; c < C; c += kStep) {
      packed::Floats units[kLanes];
      const int64_t valid = smaller(kStep, C - c);
      if (U::kDepth * sizeof(T) == 4 && valid == kStep) {
        packed::load_transposed([&](int r) { return reinterpret_cast<const float*>(row[r] + c); }, units);
      } else {
        for (int r = 0; r < kLanes; r++) {
          units[r] = (packed::Floats)(valid == kStep ? U::units(row[r] + c) : U::first_units(row[r] + c, valid)).v;
        }
        packed::transpose(units);
      }
#pragma GCC unroll 16
      for (int u = 0; u < kLanes; u++) store(to + (c / U::kDepth + u) * kBlockKeys + j, F32{units[u]});
    }
  }
}

/** Rows of one head in a tensor: `count` runs of `bytes`, `stride` bytes apart. */
struct MemoryRows {
  const void* data = nullptr;
  int64_t stride = 0, bytes = 0, count = 0;
};

/** Asks for rows [begin, end) ahead of their use. Rows of one head lie apart, a pattern that the hardware does not
 *  follow; a decode step is nothing but this traffic. */
static inline void prefetch_rows(const MemoryRows& rows, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; j++) {
    const char* row = static_cast<const char*>(rows.data) + j * rows.stride;
    for (int64_t byte = 0; byte < rows.bytes; byte += 64) __builtin_prefetch(row + byte);
  }
}

/** Asks for rows in equal parts beside other work: a burst would wait for itself. */
class Ahead {
 public:
  Ahead(const MemoryRows& rows, int64_t parts) : rows_(rows), step_(rows.count / parts + 1) {}
  void next_part() {
    const int64_t begin = row_;
    row_ = smaller(rows_.count, row_ + step_);
    if (begin < row_) prefetch_rows(rows_, begin, row_);
  }

 private:
  MemoryRows rows_;
  int64_t step_, row_ = 0;
};

// ---- products -------------------------------------------------------------------------------------------------------

enum class Start { kZero, kContinue, kRescale };

/** The right operand of a product, row by row: units as they lie in memory, or elements that become units. */
template <typename T>
struct Rows {
  const T* at;
  int64_t stride;
  F32 units(int64_t column) const { return load(at + column); }
  void next() { at += stride; }
};
/** Two rows of bf16 at a time; the last of an odd number stands for its missing neighbour, whose factor is zero. */
struct RowPairs {
  const bf16* at;
  int64_t stride, count;
  F32 units(int64_t column) const { return packed::zip(at + column, (count > 1 ? at + stride : at) + column); }
  void next() { at += 2 * stride, count -= 2; }
};

/** out[r][j] = start + scale * sum over units k of a[r][k] b[k][j]; the start is 0, out[r][j], or keep[r] * out[r][j],
 *  and a scale other than 1 needs the start 0. */
template <typename U, typename B = Rows<float>>
struct Product {
  const float* a;
  int64_t a_row_stride, a_k_stride;
  B b;
  float* out;
  int64_t out_stride;
  int64_t K;  // units
  Start start = Start::kZero;
  const float* keep = nullptr;
  float scale = 1.0f;
};

/** out[r][j] = scale * sum over `units` units of rows[r], `depth` apart, times a block of keys or values that was
 *  turned round. */
template <typename U>
static inline Product<U> block_product(const float* rows, int64_t depth, const float* block, float* out, int64_t units,
                                       float scale) {
  return {rows, depth, 1, {block, kBlockKeys}, out, kBlockKeys, units, Start::kZero, nullptr, scale};
}

template <int kRows, int kVectors, typename U, typename B>
static void product_tile(const Product<U, B>& p, int64_t column) {
  constexpr int64_t kLanes = F32::kLanes;
  float* out = p.out + column;
  const int64_t out_row = p.out_stride;
  F32 sum[kRows][kVectors];
  const auto for_sums = [&](const auto& body) {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) body(r, sum[r][v], out + r * out_row + v * kLanes);
    }
  };
  if (p.start == Start::kZero) {
    for_sums([](int, F32& s, const float*) { s = zero(); });
  } else if (p.start == Start::kContinue) {
    for_sums([](int, F32& s, const float* from) { s = load(from); });
  } else {
    const float* keep = p.keep;
    for_sums([keep](int r, F32& s, const float* from) { s = load(from) * set1(keep[r]); });
  }
  const float* a = p.a;
  B b = p.b;
  b.at += column;
  const int64_t a_row = p.a_row_stride, a_k = p.a_k_stride, K = p.K;
  for (int64_t k = 0; k < K; k++, a += a_k, b.next()) {
    F32 lanes[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) lanes[v] = b.units(v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; r++) {
      const F32 factor = set1(a[r * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) sum[r][v] = U::multiply_add(factor, lanes[v], sum[r][v]);
    }
  }
  if (U::kDepth > 1 && p.scale != 1.0f) {
    const F32 scale = set1(p.scale);
    for_sums([scale](int, F32& s, float*) { s = s * scale; });
  }
  for_sums([](int, F32& s, float* to) { store(to, s); });
}

/** The columns [0, columns) of a product of kRows rows; `columns` is a multiple of kLanes. One or two rows take many
 *  vectors at a time: few chains alone would wait for the latency of the multiply-add. */
template <int kRows, typename U, typename B>
static void product_rows(const Product<U, B>& p, int64_t columns) {
  constexpr int64_t kLanes = F32::kLanes;
  constexpr int kVectors = kRows == 1 ? 8 : kRows == 2 ? 4 : CARAVAN_ISA_LEVEL == 1 ? 1 : 2;
  int64_t column = 0;
  for (; column + kVectors * kLanes <= columns; column += kVectors * kLanes) product_tile<kRows, kVectors>(p, column);
  if constexpr (kRows == 1) {
    if (column + 4 * kLanes <= columns) {
      product_tile<kRows, 4>(p, column);
      column += 4 * kLanes;
    }
  }
  if constexpr (kRows <= 2) {
    const int64_t left = (columns - column) / kLanes;
    if (left == 3) return product_tile<kRows, 3>(p, column);
    if (left == 2) return product_tile<kRows, 2>(p, column);
  }
  for (; column < columns; column += kLanes) product_tile<kRows, 1>(p, column);
}

template <int kRows = kStripRows, typename U, typename B>
static inline void product(const Product<U, B>& p, int64_t rows, int64_t columns) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return product_rows<kRows>(p, columns);
    return product<kRows - 1>(p, rows, columns);
  }
}

}  // namespace attention_detail
}  // namespace caravan::CARAVAN_ISA
