// The online softmax of attention.cu by blocks of 64 keys: the weights of one block, its product with the values, and
// how blocks are joined. A warp's rows come in fragments of 16; a thread holds rows lane / 4 and lane / 4 + 8 of each.
#pragma once
#include "kernels/attention_mma.h"

namespace caravan::cuda::attention_detail {

// ---- one block of keys ----------------------------------------------------------------------------------------------

template <int kFragments>
struct BlockWeights {
  uint32_t weights[kFragments][kBlockKeys / 16][4];  // relative to 2^reference, as left operands of 16 keys each
  float reference[kFragments][2];
  float sum[kFragments][2];  // over this thread's keys
};

template <int C, int kFragments>
__device__ __forceinline__ void block_scores(float (&s)[kFragments][kBlockKeys / 8][4], const bf16* queries,
                                             const bf16* keys, bool negate) {
#pragma unroll
  for (int k = 0; k < C; k += 16) {
    uint32_t left[kFragments][4];
#pragma unroll
    for (int i = 0; i < kFragments; i++) left_fragment<C>(left[i], queries, i * 16, k);
#pragma unroll
    for (int j = 0; j < kBlockKeys / 16; j++) {
      uint32_t right[4];
      right_fragments<C>(right, keys, j * 16, k);
#pragma unroll
      for (int i = 0; i < kFragments; i++) {
        mma_bf16(s[i][2 * j], left[i], {right[0], right[1]});
        mma_bf16(s[i][2 * j + 1], left[i], {right[2], right[3]});
      }
    }
  }
  if (!negate) return;
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
#pragma unroll
    for (int n = 0; n < kBlockKeys / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][n][e] = -s[i][n][e];
    }
  }
}

/** Takes away the keys that a row does not see. `key` is the first of the block. */
template <int kFragments>
__device__ __forceinline__ void mask_scores(float (&s)[kFragments][kBlockKeys / 8][4], const Range* keys_of_row,
                                            int key) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const Range seen = keys_of_row[i * 16 + h * 8 + lane / 4];
#pragma unroll
      for (int n = 0; n < kBlockKeys / 8; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int at = key + n * 8 + lane % 4 * 2 + e;
          if (at < seen.first || at >= seen.end) s[i][n][2 * h + e] = kMinusInfinity;
        }
      }
    }
  }
}

/** Scores to weights, relative to the block's own reference: -inf for a row that sees none of its keys. */
template <int kFragments>
__device__ __forceinline__ void weigh(float (&s)[kFragments][kBlockKeys / 8][4], float scale,
                                      BlockWeights<kFragments>& block) {
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float top = kMinusInfinity;
#pragma unroll
      for (int n = 0; n < kBlockKeys / 8; n++) top = fmaxf(top, fmaxf(s[i][n][2 * h], s[i][n][2 * h + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float reference = ceilf(top * (scale * 0.125f)) * 8.0f;
      const float shift = reference == kMinusInfinity ? 0.0f : -reference;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kBlockKeys / 8; n++) {
        s[i][n][2 * h] = exp2_fast(fmaf(s[i][n][2 * h], scale, shift));
        s[i][n][2 * h + 1] = exp2_fast(fmaf(s[i][n][2 * h + 1], scale, shift));
        sum += s[i][n][2 * h] + s[i][n][2 * h + 1];
      }
      block.reference[i][h] = reference;
      block.sum[i][h] = sum;
    }
#pragma unroll
    for (int j = 0; j < kBlockKeys / 16; j++) as_left_fragment(block.weights[i][j], s[i][2 * j], s[i][2 * j + 1]);
  }
}

/** take(n, t): t[i] holds fragment i's product with the four times eight columns from 8 n on, summed from zero. */
template <int C, int kFragments, typename Take>
__device__ __forceinline__ void block_product(const BlockWeights<kFragments>& block, const bf16* values,
                                              const Take& take) {
#pragma unroll
  for (int n = 0; n < C / 8; n += 4) {
    float t[kFragments][4][4] = {};
#pragma unroll
    for (int j = 0; j < kBlockKeys / 16; j++) {
      uint32_t right[2][4];
      right_fragments_across<C>(right[0], values, j * 16, n * 8);
      right_fragments_across<C>(right[1], values, j * 16, n * 8 + 16);
#pragma unroll
      for (int i = 0; i < kFragments; i++) {
#pragma unroll
        for (int m = 0; m < 4; m++) {
          mma_bf16(t[i][m], block.weights[i][j], {right[m / 2][m % 2 * 2], right[m / 2][m % 2 * 2 + 1]});
        }
      }
    }
    take(n, t);
  }
}

/** Sums of the weights as they were rounded: [0] for the row of lane / 4, [1] for that + 8. */
template <int kFragments>
__device__ __forceinline__ void rounded_sums(const BlockWeights<kFragments>& block, float (&sums)[kFragments][2]) {
  constexpr uint32_t kOnes = 0x3f803f80u;
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
    float t[4] = {};
#pragma unroll
    for (int j = 0; j < kBlockKeys / 16; j++) mma_bf16(t, block.weights[i][j], {kOnes, kOnes});
    sums[i][0] = t[0];
    sums[i][1] = t[2];
  }
}

// ---- joining blocks -------------------------------------------------------------------------------------------------

/** By how much what was summed so far and what a block brings are scaled when their references meet: powers of two. */
struct Join {
  float kept, added;
};
__device__ __forceinline__ Join join(float* reference, float block_reference) {
  const float before = *reference, after = fmaxf(before, block_reference);
  *reference = after;
  return {before == after ? 1.0f : power_of_two(before - after),
          block_reference == after || block_reference == kMinusInfinity ? 1.0f : power_of_two(block_reference - after)};
}

/** Sum over the four lanes that share a row. */
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

/** 1 / weights and lse of a row; a row without keys is 0 and -inf. */
__device__ __forceinline__ float finish_row(float reference, float rounded_sum, float sum, float* lse) {
  const bool any = reference != kMinusInfinity || sum != 0.0f;
  *lse = any ? fmaf(reference, kLn2, logf(sum)) : kMinusInfinity;
  return any ? __fdividef(1.0f, rounded_sum) : 0.0f;
}

/** What a warp carries from block to block. */
template <int C, int kFragments>
struct Running {
  float o[kFragments][C / 8][4] = {};
  float reference[kFragments][2], sum[kFragments][2], rounded_sum[kFragments][2];

  __device__ Running() {
#pragma unroll
    for (int i = 0; i < kFragments; i++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        reference[i][h] = kMinusInfinity;
        sum[i][h] = rounded_sum[i][h] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void add(BlockWeights<kFragments>& block, const bf16* values) {
    float kept[kFragments][2], added[kFragments][2];
    bool scaled = false;
#pragma unroll
    for (int i = 0; i < kFragments; i++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Join factors = join(&reference[i][h], block.reference[i][h]);
        kept[i][h] = factors.kept;
        added[i][h] = factors.added;
        scaled = scaled || factors.added != 1.0f;
        sum[i][h] = fmaf(sum[i][h], factors.kept, block.sum[i][h] * factors.added);
      }
    }
    // Scaling the weights by a power of two is scaling their product, and cheaper.
    if (__any_sync(kAllLanes, scaled)) {
#pragma unroll
      for (int i = 0; i < kFragments; i++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const uint32_t factor = pack_bf16(added[i][h], added[i][h]);
#pragma unroll
          for (int j = 0; j < kBlockKeys / 16; j++) {
            block.weights[i][j][h] = scale_pair(block.weights[i][j][h], factor);
            block.weights[i][j][h + 2] = scale_pair(block.weights[i][j][h + 2], factor);
          }
        }
      }
    }
    float sums[kFragments][2];
    rounded_sums(block, sums);
#pragma unroll
    for (int i = 0; i < kFragments; i++) {
#pragma unroll
      for (int h = 0; h < 2; h++) rounded_sum[i][h] = fmaf(rounded_sum[i][h], kept[i][h], sums[i][h]);
    }
    block_product<C>(block, values, [&](int n, const float (&t)[kFragments][4][4]) {
#pragma unroll
      for (int i = 0; i < kFragments; i++) {
#pragma unroll
        for (int m = 0; m < 4; m++) {
#pragma unroll
          for (int e = 0; e < 4; e++) o[i][n + m][e] = fmaf(o[i][n + m][e], kept[i][e / 2], t[i][m][e]);
        }
      }
    });
  }
};

}  // namespace caravan::cuda::attention_detail
