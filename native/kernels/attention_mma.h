// Pieces of attention on the tensor cores: tiles of bf16 rows in shared memory, the fragments that warps take from
// them, and base-2 exponentials. A tile holds rows of C elements without padding; the 16-byte chunks of a row are
// exchanged by the row's number (swizzled), so that eight rows which ldmatrix reads at once lie in different banks.
#pragma once
#include "cuda/numbers.h"
#include "cuda/reduce.h"
#include "cuda/tensor_core.h"
#include "kernels/attention_units.h"

namespace caravan::cuda::attention_detail {

constexpr float kMinusInfinity = -HUGE_VALF;
constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;

/** Whether the tensor cores serve a head of this width in these tensors: 16-byte copies must be possible. */
template <typename... P>
bool mma_fits(int64_t C, const P*... tensors) {
  return (C == 64 || C == 128) && packs_fit<bf16>(C, static_cast<const bf16*>(tensors)...);
}

// ---- single instructions --------------------------------------------------------------------------------------------

/** 2^x to about two units in the last place; results below 2^-126 are zero. */
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef CARAVAN_SIMT
  return x < -126.0f ? 0.0f : exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/** Both halves of a pair of bf16 times `factor`. */
__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, uint32_t factor) {
#ifdef CARAVAN_SIMT
  const auto product = [&](int bits) {
    return widen(bf16{static_cast<uint16_t>(pair >> bits)}) * widen(bf16{static_cast<uint16_t>(factor >> bits)});
  };
  return pack_bf16(product(0), product(16));
#else
  uint32_t scaled;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(scaled) : "r"(pair), "r"(factor), "r"(0x80008000u));
  return scaled;
#endif
}

/** 2^x for whole x <= 0, exactly; zero below 2^-126. */
__device__ __forceinline__ float power_of_two(float x) {
  return x < -126.0f ? 0.0f : __int_as_float((static_cast<int>(x) + 127) << 23);
}

// ---- tiles in shared memory -----------------------------------------------------------------------------------------

template <int C>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  return row * C + (chunk ^ (row & 7)) * 8;
}

/** Starts the copies of kRows rows of C elements, `stride` apart, into a tile; rows from `rows` on become zeros. Called
 *  by kThreads threads. */
template <int C, int kRows, int kThreads>
__device__ __forceinline__ void fetch_adjacent(bf16* tile, const bf16* from, int stride, int rows) {
  constexpr int kChunks = C / 8, kStep = kThreads / kChunks;
  const int first = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
  // A pointer that walks takes two registers; addresses that do not depend on it would be kept for every row.
  const bf16* at = from + (first * stride + chunk * 8);
#pragma unroll
  for (int i = 0; i < kRows / kStep; i++) {
    cp_async16(tile + chunk_at<C>(first + i * kStep, chunk), at, first + i * kStep < rows);
    at += kStep * stride;
  }
}

struct RowCopy {
  bf16* tile;
  const bf16* tensor;
};

/** The same for rows anywhere, of one or more tensors: offset_of(row) is where a row starts in each, negative for
 * zeros.
 */
template <int C, int kRows, int kThreads, int kTensors, typename OffsetOf>
__device__ __forceinline__ void fetch_rows(const RowCopy (&copies)[kTensors], const OffsetOf& offset_of) {
  constexpr int kChunks = C / 8, kStep = kThreads / kChunks;
  const int first = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll
  for (int i = 0; i < kRows / kStep; i++) {
    const int row = first + i * kStep;
    const int64_t offset = offset_of(row);
#pragma unroll
    for (const RowCopy& copy : copies) {
      cp_async16(copy.tile + chunk_at<C>(row, chunk), copy.tensor + (offset < 0 ? 0 : offset + chunk * 8), offset >= 0);
    }
  }
}

/** Where a lane finds its row of the 16 x 16 tile at `row` (a multiple of 8), column k (of 16). `lane_row` is its row
 *  in that tile, `half` 0 for the columns k .. k + 8 and 1 for the others. What depends on the lane is one of four
 *  values, the same for all tiles. */
template <int C>
__device__ __forceinline__ const bf16* row_of_lane(const bf16* tile, int row, int k, int lane_row, int half) {
  return tile + (lane_row * C + ((k / 8 & 6) ^ half ^ (lane_row & 7)) * 8) + (row * C + (k / 8 & ~7) * 8);
}

/** Rows `row` .. row + 16 at columns k .. k + 16 of a tile, as the left operand of mma. */
template <int C>
__device__ __forceinline__ void left_fragment(uint32_t (&r)[4], const bf16* tile, int row, int k) {
  const int lane = threadIdx.x % kWarp;
  ldmatrix_x4(r, row_of_lane<C>(tile, row, k, lane % 16, lane / 16));
}

/** Two right operands of mma side by side. */
struct RightPair {
  uint32_t first[2], second[2];
};

/** Rows `row` .. row + 16 at columns k .. k + 16, transposed: eight rows to an operand. */
template <int C>
__device__ __forceinline__ RightPair right_fragments(const bf16* tile, int row, int k) {
  const int lane = threadIdx.x % kWarp;
  uint32_t r[4];
  ldmatrix_x4(r, row_of_lane<C>(tile, row, k, lane % 8 + lane / 16 * 8, lane / 8 % 2));
  return {{r[0], r[1]}, {r[2], r[3]}};
}

/** Rows `row` .. row + 16 at columns k .. k + 16: eight columns to an operand. */
template <int C>
__device__ __forceinline__ RightPair right_fragments_across(const bf16* tile, int row, int k) {
  const int lane = threadIdx.x % kWarp;
  uint32_t r[4];
  ldmatrix_x4_transposed(r, row_of_lane<C>(tile, row, k, lane % 16, lane / 16));
  return {{r[0], r[1]}, {r[2], r[3]}};
}

/** Sums of a 16 x 16 tile (two fragments side by side), rounded: the left operand of the next product. */
__device__ __forceinline__ void as_left_fragment(uint32_t (&r)[4], const float (&left)[4], const float (&right)[4]) {
  r[0] = pack_bf16(left[0], left[1]);
  r[1] = pack_bf16(left[2], left[3]);
  r[2] = pack_bf16(right[0], right[1]);
  r[3] = pack_bf16(right[2], right[3]);
}

/** A row's result as it is stored: never a negative zero, which would tell how the row was computed. */
__device__ __forceinline__ float finished(float sum, float factor) { return sum * factor + 0.0f; }

/** Stores 16 rows of sums, times factor[0] (rows 0-7) and factor[1] (rows 8-15), by way of the warp's own 16 rows of
 *  shared memory. row_at(row) is the address of a row, or null. */
template <int C, typename RowAt>
__device__ __forceinline__ void store_rows(bf16* tile, const float (&sum)[C / 8][4], const float (&factor)[2],
                                           const RowAt& row_at) {
  const int lane = threadIdx.x % kWarp;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < C / 8; n++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      uint32_t* to = reinterpret_cast<uint32_t*>(tile + chunk_at<C>(lane / 4 + h * 8, n)) + lane % 4;
      *to = pack_bf16(finished(sum[n][2 * h], factor[h]), finished(sum[n][2 * h + 1], factor[h]));
    }
  }
  __syncwarp();
  constexpr int kChunks = C / 8;
#pragma unroll
  for (int i = 0; i < 16 * kChunks / kWarp; i++) {
    const int row = (i * kWarp + lane) / kChunks, chunk = (i * kWarp + lane) % kChunks;
    bf16* to = row_at(row);
    if (to != nullptr) store_pack(to + chunk * 8, load_pack(tile + chunk_at<C>(row, chunk)));
  }
}

}  // namespace caravan::cuda::attention_detail
