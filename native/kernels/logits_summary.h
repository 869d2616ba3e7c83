// A tile of logits on the device and the log-sum-exp of its rows. A row is summarised in parts of kPartColumns columns
// counted from column 0, one warp a part, and the parts are merged in a fixed tree at the end; so the bits of a row
// depend neither on the tile that held it nor on its neighbours, and training, scoring and sampling agree exactly.
// Rows of a tile are `logits_stride` floats apart, whole 128-byte lines: packs need no scalar path.
#pragma once
#include "cuda/gemm.h"
#include "cuda/numbers.h"
#include "cuda/reduce.h"

namespace caravan::cuda {

constexpr int64_t kPartColumns = 1024;

inline int64_t logits_stride(int64_t columns) { return ceil_div(columns, kWarp) * kWarp; }
inline int64_t logits_parts(int64_t columns) { return ceil_div(columns, kPartColumns); }

/** Some columns of some rows of logits [rows, columns]. first_column is a multiple of kPartColumns. */
struct LogitsTile {
  float* data;
  int64_t stride, rows, first_column, columns;
};

/** Of some columns of a row: their maximum m, the sum of e^(l - m), and that of e^(l - m) (l - m) for the entropy. */
struct RowSummary {
  float max, sum, weighted;

  __device__ float log_sum_exp() const { return max + logf(sum); }
  /** -sum p log p. */
  __device__ float entropy() const { return logf(sum) - weighted / sum; }
};

/** A NaN loses: it shows in the sum that follows. */
struct LargestOf {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/** l - m without -inf, whose product with e^-inf would be NaN; below -200 e^x is zero in f32. */
__device__ __forceinline__ float bounded(float x) { return fmaxf(x, -200.0f); }

/** tile = hidden[rows,D] head[columns,D]^T in f32, `head` being the tile's part of the matrix. */
template <typename T>
void logits_product(const Args& a, const T* hidden, const T* head, int64_t D, const LogitsTile& tile) {
  Product p{};
  p.M = tile.rows;
  p.N = tile.columns;
  p.K = D;
  p.a = {hidden, false, D};
  p.b = {head, true, D};
  p.c = tile.data;
  p.c_leading = tile.stride;
  p.in = sizeof(T) == sizeof(bf16) ? DType::kBF16 : DType::kF32;
  p.out = DType::kF32;
  multiply(a, p);
}

constexpr int kSummaryThreads = 256;
constexpr int kSummaryWarps = kSummaryThreads / kWarp;

/** What the rows of a tile want to know besides their sums: their target's logit, where it lies in the tile. */
struct TargetLogits {
  const int32_t* target;  // of each row, or null
  float* logit;
};

/** summaries[row, parts of the row] for the parts in the tile, one warp each; a part is read once, into registers. */
template <bool kEntropy>
__global__ void __launch_bounds__(kSummaryThreads)
    summarise_parts(LogitsTile tile, unsigned row_parts, TargetLogits targets, RowSummary* summaries) {
  constexpr int kPacks = kPartColumns / (4 * kWarp);
  const unsigned tile_parts = static_cast<unsigned>((tile.columns + kPartColumns - 1) / kPartColumns);
  const unsigned item = blockIdx.x * kSummaryWarps + threadIdx.x / kWarp;
  const unsigned row = item / tile_parts, part = item % tile_parts;
  if (row >= tile.rows) return;  // a whole warp; nothing here waits for the block
  const int lane = threadIdx.x % kWarp;
  const int64_t begin = part * kPartColumns;
  const int columns = static_cast<int>(min(kPartColumns, tile.columns - begin));
  const float* logits = tile.data + row * tile.stride + begin;
  float x[kPacks][4];
  float peak = -INFINITY;
#pragma unroll
  for (int k = 0; k < kPacks; k++) {
    const int at = (k * kWarp + lane) * 4;
    const Pack<float> pack = at < columns ? load_pack(logits + at) : Pack<float>{};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x[k][j] = at + j < columns ? pack.x[j] : -INFINITY;
      peak = fmaxf(peak, x[k][j]);
    }
  }
  peak = warp_reduce(peak, LargestOf{});
  const float shift = peak == -INFINITY ? 0.0f : peak;
  float sum = 0, weighted = 0;
#pragma unroll
  for (int k = 0; k < kPacks; k++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float e = expf(x[k][j] - shift);
      sum += e;
      if constexpr (kEntropy) weighted += e * bounded(x[k][j] - shift);
    }
  }
  sum = warp_sum(sum);
  if constexpr (kEntropy) weighted = warp_sum(weighted);
  if (lane != 0) return;
  summaries[int64_t{row} * row_parts + tile.first_column / kPartColumns + part] = {peak, sum, weighted};
  if (targets.target == nullptr) return;
  const int64_t wanted = targets.target[row] - tile.first_column - begin;
  if (wanted >= 0 && wanted < columns) targets.logit[row] = logits[wanted];
}

template <bool kEntropy>
void summarise(const Args& a, const LogitsTile& tile, int64_t row_parts, const TargetLogits& targets,
               RowSummary* summaries) {
  const int64_t warps = tile.rows * logits_parts(tile.columns);
  launch(a, {static_cast<unsigned>(ceil_div(warps, kSummaryWarps)), kSummaryThreads}, summarise_parts<kEntropy>, tile,
         static_cast<unsigned>(row_parts), targets, summaries);
}

/** The summary of a row from those of its parts, by a whole warp. Without a finite softmax its sum is not positive. */
template <bool kEntropy>
__device__ RowSummary merged(const RowSummary* parts, int count) {
  const int lane = threadIdx.x % kWarp;
  float peak = -INFINITY;
  for (int i = lane; i < count; i += kWarp) peak = fmaxf(peak, parts[i].max);
  peak = warp_reduce(peak, LargestOf{});
  float sum = 0, weighted = 0;
  for (int i = lane; i < count; i += kWarp) {
    const RowSummary part = parts[i];
    const float distance = part.max - peak;
    const float scale = expf(distance);
    sum = fmaf(part.sum, scale, sum);  // said, so that no compiler decides it differently for two kernels
    if constexpr (kEntropy) weighted += scale > 0 ? scale * (part.weighted + part.sum * distance) : 0.0f;
  }
  return {peak, warp_sum(sum), kEntropy ? warp_sum(weighted) : 0.0f};
}

}  // namespace caravan::cuda
