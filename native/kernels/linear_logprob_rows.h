// What the fused losses share: which rows have a target, the log-sum-exp of a row by parts, and its gradient.
// A row is summarised in parts of kPartColumns columns counted from column 0 and merged in that order, so that its bits
// depend neither on the tile that held it nor on the other rows, and training and scoring agree exactly.
#pragma once
#include <math.h>

#include "core/fail.h"
#include "core/scratch.h"
#include "cpu/gemm.h"
#include "cpu/simd.h"
#include "cpu/thread_pool.h"

namespace caravan::CARAVAN_ISA {
namespace linear_logprob_detail {

inline constexpr int64_t kPartColumns = 1024;  // 4 KiB of logits: both passes over a part run from L1

// Products and passes over a wide tile go band by band, so that a band (512 rows: 8 MiB) is still in L3 when the next
// pass reads it; a tile of several bands holds them one after the other, each [R, tile_stride(its columns)]. The sum
// over V in dhidden is cut here too, always at the same columns.
inline constexpr int64_t kBandColumns = 4 * kPartColumns;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/** Row stride of a logits tile: whole cache lines, and never a power of two, which would send a column of the tile to a
 *  handful of cache sets. */
static inline int64_t tile_stride(int64_t columns) { return ceil_div(columns, 16) * 16 + 16; }

static inline float exp_scalar(float x) {
  float lanes[F32::kLanes];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

/** body(first column, columns) for each band of V columns. */
template <typename Body>
static inline void for_bands(int64_t vocabulary, const Body& body) {
  for (int64_t begin = 0; begin < vocabulary; begin += kBandColumns)
    body(begin, smaller(kBandColumns, vocabulary - begin));
}

/** Floats of a tile of `rows` rows that holds all V columns. */
static inline int64_t tile_floats(int64_t rows, int64_t vocabulary) {
  const int64_t rest = vocabulary % kBandColumns;
  return rows * (vocabulary / kBandColumns * tile_stride(kBandColumns) + (rest > 0 ? tile_stride(rest) : 0));
}

/** Where the band that starts at `column` lies in it. */
static inline float* band_of(float* tile, int64_t rows, int64_t column) { return tile + tile_floats(rows, column); }

/** Rows of a pass over `columns` columns that make one task: 64 KiB of logits. */
static inline int64_t rows_per_pass(int64_t columns) { return larger(1, 16384 / larger(columns, 1)); }

/** Writes the rows that have a target, in order, and returns their number. Throws ERR_DATA for a target >= V, and for
 *  another number than the call says, if it says one (above 0). */
static inline int64_t supervised_rows(const char* op, const View& target, int64_t vocabulary, double expected,
                                      int64_t* rows) {
  const int32_t* ids = target.as<int32_t>();
  int64_t count = 0;
  for (int64_t n = 0; n < target.shape[0]; n++) {
    if (ids[n] < 0) continue;
    if (ids[n] >= vocabulary) {
      fail("ERR_DATA", "%s: target[%lld] must be below V=%lld (or negative for none); got %d", op,
           static_cast<long long>(n), static_cast<long long>(vocabulary), ids[n]);
    }
    rows[count++] = n;
  }
  if (expected > 0 && static_cast<double>(count) != expected) {
    fail("ERR_DATA", "%s: %lld rows have a target, not %.0f, as the call says", op, static_cast<long long>(count),
         expected);
  }
  return count;
}

static inline void fill_zero(ThreadPool& pool, void* data, size_t bytes) {
  char* begin = static_cast<char*>(data);
  parallel_ranges(pool, static_cast<int64_t>(bytes), 1 << 18, [&](int64_t from, int64_t to, int) {
    __builtin_memset(begin + from, 0, static_cast<size_t>(to - from));
  });
}

/** Rows `index[0..count)` of x[N,D]: in place when they lie side by side, else copied to `copy` [count,D]. */
template <typename T>
static inline const T* gather_rows(ThreadPool& pool, const T* x, const int64_t* index, int64_t count, int64_t D,
                                   T* copy) {
  if (index[count - 1] - index[0] == count - 1) return x + index[0] * D;
  parallel_ranges(pool, count, larger(1, 16384 / larger(D, 1)), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      __builtin_memcpy(copy + r * D, x + index[r] * D, static_cast<size_t>(D) * sizeof(T));
    }
  });
  return copy;
}

/** y[index[r]] = x[r] for x[count,D] in f32, rounded to T. */
template <typename T>
static inline void scatter_rows(ThreadPool& pool, const float* x, const int64_t* index, int64_t count, int64_t D,
                                T* y) {
  parallel_ranges(pool, count, larger(1, 8192 / larger(D, 1)), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const float* from = x + r * D;
      T* to = y + index[r] * D;
      for_lanes(
          D, [&](int64_t i) { store(to + i, load(from + i)); },
          [&](int64_t i, int n) { store_first(to + i, load_first(from + i, n), n); });
    }
  });
}

// ---- the log-sum-exp of a row ---------------------------------------------------------------------------------------

/** Summary of some columns of a row: their maximum m, sum of e^(l - m), and sum of e^(l - m) (l - m) for the entropy.
 */
struct RowSummary {
  float max;
  float sum;
  float weighted;

  float log_sum_exp() const { return max + logf(sum); }
  /** -sum p log p. */
  float entropy() const { return logf(sum) - weighted / sum; }
};

/** The last n < kLanes logits, the other lanes -inf: they weigh nothing. */
static inline F32 load_logits(const float* p, int n) {
  float lanes[F32::kLanes];
  for (int i = 0; i < F32::kLanes; i++) lanes[i] = i < n ? p[i] : -__builtin_inff();
  return load(lanes);
}

/** l - m without -inf, whose product with e^-inf would be NaN; below -200 e^x is zero in f32. */
static inline F32 bounded(F32 x) { return keep_nan(x, max(x, set1(-200.0f))); }

/** Summary of up to kPartColumns logits. With kKeepExp they are replaced by e^(l - m). */
template <bool kEntropy, bool kKeepExp>
static inline RowSummary summarise_part(float* logits, int64_t count) {
  F32 top = set1(-__builtin_inff());
  for_lanes(
      count, [&](int64_t i) { top = max(load(logits + i), top); },
      [&](int64_t i, int n) { top = max(load_logits(logits + i, n), top); });
  const float peak = reduce_max(top);
  const F32 shift = set1(peak);
  F32 sum = zero();
  F32 weighted = zero();
  const auto add = [&](F32 logit) {
    F32 x = logit - shift;
    F32 e = exp_bounded(x);
    sum = sum + e;
    if constexpr (kEntropy) weighted = fma(e, bounded(x), weighted);
    return e;
  };
  for_lanes(
      count,
      [&](int64_t i) {
        F32 e = add(load(logits + i));
        if constexpr (kKeepExp) store(logits + i, e);
      },
      [&](int64_t i, int n) {
        F32 e = add(load_logits(logits + i, n));
        if constexpr (kKeepExp) store_first(logits + i, e, n);
      });
  return {peak, reduce_sum(sum), kEntropy ? reduce_sum(weighted) : 0.0f};
}

/** The summary of two sets of columns, `a` before `b`. */
template <bool kEntropy>
static inline RowSummary merge(RowSummary a, RowSummary b) {
  const float peak = a.max > b.max ? a.max : b.max;
  const float da = a.max - peak;
  const float db = b.max - peak;
  const float ca = exp_scalar(da);
  const float cb = exp_scalar(db);
  RowSummary both = {peak, a.sum * ca + b.sum * cb, 0.0f};
  if constexpr (kEntropy) {
    const float wa = ca > 0 ? ca * (a.weighted + a.sum * da) : 0.0f;
    const float wb = cb > 0 ? cb * (b.weighted + b.sum * db) : 0.0f;
    both.weighted = wa + wb;
  }
  return both;
}

/** Continues the summary of a row with `columns` more; `first` when nothing came before. `part_max`, when kKeepExp,
 *  receives the maximum of each part. Columns must start at a multiple of kPartColumns of the row. */
template <bool kEntropy, bool kKeepExp>
static inline RowSummary summarise(RowSummary so_far, bool first, float* logits, int64_t columns, float* part_max) {
  for (int64_t begin = 0; begin < columns; begin += kPartColumns) {
    RowSummary part = summarise_part<kEntropy, kKeepExp>(logits + begin, smaller(kPartColumns, columns - begin));
    if constexpr (kKeepExp) part_max[begin / kPartColumns] = part.max;
    so_far = first ? part : merge<kEntropy>(so_far, part);
    first = false;
  }
  return so_far;
}

// ---- the gradient of a row ------------------------------------------------------------------------------------------

// The gradient tile is f32 wherever bf16 panels are widened to f32 before they are multiplied: rounding it would buy
// nothing. With native bf16 dot products it is rounded to bf16 (relative error 2^-9 an element, unbiased), which makes
// two of the three products twice as fast; each row is rounded in the memory of its own f32 logits.
template <typename T>
inline constexpr bool kRoundGradient = sizeof(T) == 2 && CARAVAN_ISA_LEVEL == 4;

/** A band as the operand of the two gradient products. */
template <typename T>
static inline Matrix gradient_matrix(const float* band, int64_t stride) {
  if constexpr (kRoundGradient<T>) return {band, DType::kBF16, 2 * stride, 1};
  return {band, DType::kF32, stride, 1};
}

static inline Matrix transposed(Matrix m) { return {m.data, m.dtype, m.column_stride, m.row_stride}; }

template <typename T>
inline constexpr DType kDTypeOf = sizeof(T) == 2 ? DType::kBF16 : DType::kF32;

/** Columns [begin, end) of a row of logits -> value(logits), in place. With kRoundGradient element j moves to the place
 * of the bf16 array that starts at the row: always behind the reading position, over logits that are used up. */
template <typename T, typename Value>
static inline void replace_row(float* row, int64_t begin, int64_t end, const Value& value) {
  if constexpr (kRoundGradient<T>) {
    bf16* out = reinterpret_cast<bf16*>(row);
    for_lanes(
        end - begin, [&](int64_t i) { store(out + begin + i, value(load(row + begin + i))); },
        [&](int64_t i, int n) { store_first(out + begin + i, value(load_first(row + begin + i, n)), n); });
  } else {
    for_lanes(
        end - begin, [&](int64_t i) { store(row + begin + i, value(load(row + begin + i))); },
        [&](int64_t i, int n) { store_first(row + begin + i, value(load_first(row + begin + i, n)), n); });
  }
}

/** Overwrites one entry after replace_row, so that the target's is rounded once. */
template <typename T>
static inline void put_gradient(float* row, int64_t column, float value) {
  if constexpr (kRoundGradient<T>) {
    bf16 rounded = to_bf16(value);
    __builtin_memcpy(reinterpret_cast<char*>(row) + 2 * column, &rounded, 2);
  } else {
    row[column] = value;
  }
}

/** logits[R,C] = hidden[R,D] head[C,D]^T into f32 rows `stride` apart. */
template <typename T>
static inline void logits_product(const T* hidden, const T* head, int64_t rows, int64_t columns, int64_t D, float* tile,
                                  int64_t stride, const Args& a) {
  GemmArgs product = {};
  product.M = rows;
  product.N = columns;
  product.K = D;
  product.a = {hidden, kDTypeOf<T>, D, 1};
  product.b = {head, kDTypeOf<T>, 1, D};
  product.c = tile;
  product.c_dtype = DType::kF32;
  product.c_row_stride = stride;
  gemm(product, a.device, pool_of(a));
}

/** What the gradient products of a chunk of rows read and write. */
template <typename T>
struct GradientChunk {
  int64_t rows;
  int64_t D;
  const T* hidden;   // [R,D]
  const T* head;     // [V,D]
  float* dhidden;    // [R,D]
  float* dhead;      // [V,D], or null where the head is frozen
  bool add_to_head;  // to what dhead holds already
};

/** dhidden (+)= gradient head and, where it is wanted, dhead (+)= gradient^T hidden for the vocabulary [column, column
 * + columns), whose gradients are `band`. dhidden starts at column 0. */
template <typename T>
static inline void gradient_products(const GradientChunk<T>& chunk, const float* band, int64_t column, int64_t columns,
                                     const Args& a) {
  const Matrix gradient = gradient_matrix<T>(band, tile_stride(columns));
  GemmArgs product = {};
  product.M = chunk.rows;
  product.N = chunk.D;
  product.K = columns;
  product.a = gradient;
  product.b = {chunk.head + column * chunk.D, kDTypeOf<T>, chunk.D, 1};
  product.c = chunk.dhidden;
  product.c_dtype = DType::kF32;
  product.c_row_stride = chunk.D;
  product.accumulate = column > 0;
  gemm(product, a.device, pool_of(a));

  if (chunk.dhead == nullptr) return;
  product.M = columns;
  product.K = chunk.rows;
  product.a = transposed(gradient);
  product.b = {chunk.hidden, kDTypeOf<T>, chunk.D, 1};
  product.c = chunk.dhead + column * chunk.D;
  product.accumulate = chunk.add_to_head;
  gemm(product, a.device, pool_of(a));
}

}  // namespace linear_logprob_detail
}  // namespace caravan::CARAVAN_ISA
