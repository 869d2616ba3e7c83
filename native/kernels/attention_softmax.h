// The online softmax of attention.cu by blocks of 64 keys: the weights of one block, its product with the values, and
// how blocks are joined. A warp's rows come in fragments of 16; a thread holds rows lane / 4 and lane / 4 + 8 of each.
#pragma once
#include "kernels/attention_mma.h"

namespace caravan::cuda::attention_detail {

// ---- references -----------------------------------------------------------------------------------------------------

/** By how much what was summed so far and what a block brings are scaled when their references meet: powers of two. */
struct Join {
  float kept, added;
};
__device__ __forceinline__ Join join(float* reference, float block_reference) {
  const float before = *reference, after = fmaxf(before, block_reference);
  *reference = after;
  // No difference where both are -inf. All of it without a branch.
  const bool alike = block_reference == after || block_reference == kMinusInfinity;
  return {power_of_two(before == after ? 0.0f : before - after), power_of_two(alike ? 0.0f : block_reference - after)};
}

// ---- one block of keys ----------------------------------------------------------------------------------------------

template <int kFragments>
struct BlockWeights {
  uint32_t weights[kFragments][kBlockKeys / 16][4];  // relative to 2^reference, as left operands of 16 keys each
  float reference[kFragments][2];                    // -inf for a row that sees none of the keys
  float sum[kFragments][2];
};

/** The compiler must not load here what is needed further on: a warp's outputs leave no registers for it. */
__device__ __forceinline__ void end_phase() { __syncwarp(); }

template <int kFragments>
using Scores = float[kFragments][kBlockKeys / 8][4];

template <int C, int kFragments>
__device__ __forceinline__ void block_scores(Scores<kFragments>& s, const bf16* queries, const bf16* keys) {
#pragma unroll
  for (int k = 0; k < C; k += 16) {
    uint32_t left[kFragments][4];
#pragma unroll
    for (int i = 0; i < kFragments; i++) left_fragment<C>(left[i], queries, i * 16, k);
#pragma unroll
    for (int j = 0; j < kBlockKeys / 16; j++) {
      const RightPair right = right_fragments<C>(keys, j * 16, k);
#pragma unroll
      for (int i = 0; i < kFragments; i++) {
        mma_bf16(s[i][2 * j], left[i], right.first);
        mma_bf16(s[i][2 * j + 1], left[i], right.second);
      }
    }
  }
}

template <int kFragments>
__device__ __forceinline__ void negate_scores(Scores<kFragments>& s) {
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
__device__ __forceinline__ void mask_scores(Scores<kFragments>& s, const Range* keys_of_row, int key) {
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

/** How scores become weights: scale is that of base-2 exponents, positive. */
struct Exponent {
  float scale;
  bool negate;
};

/** A call as the kernels see it. */
struct Problem {
  Sequences sequences;
  Geometry geometry;
  const bf16 *q, *k, *v;
  bf16* o;
  float* lse;
  Exponent exponent;
};

/** op over kCount numbers as a tree: a chain would be one instruction after the other. */
template <int kCount, typename Op>
__device__ __forceinline__ float combine(const float (&x)[kCount], const Op& op) {
  if constexpr (kCount == 1) {
    return x[0];
  } else {
    float half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; i++) half[i] = op(x[i], x[i + kCount / 2]);
    return combine(half, op);
  }
}

/** op over the four lanes that share a row, of both rows of a thread. */
template <typename Op>
__device__ __forceinline__ void combine_lanes(float (&x)[2], const Op& op) {
#pragma unroll
  for (int bits = 1; bits <= 2; bits *= 2) {
    const float other[2] = {__shfl_xor_sync(kAllLanes, x[0], bits), __shfl_xor_sync(kAllLanes, x[1], bits)};
#pragma unroll
    for (int h = 0; h < 2; h++) x[h] = op(x[h], other[h]);
  }
}

/** Scores of a fragment's rows to weights relative to 2^reference, and their sums. Both rows side by side, as few warps
 *  have only each other to fill the time that an instruction takes. */
__device__ __forceinline__ void weigh_fragment(float (&s)[kBlockKeys / 8][4], float scale, float (&reference)[2],
                                               float (&sums)[2]) {
  constexpr int kEights = kBlockKeys / 8;
  const auto larger = [](float a, float b) { return fmaxf(a, b); };
  const auto sum = [](float a, float b) { return a + b; };
  float top[2], shift[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float pairs[kEights];
#pragma unroll
    for (int n = 0; n < kEights; n++) pairs[n] = fmaxf(s[n][2 * h], s[n][2 * h + 1]);
    top[h] = combine(pairs, larger);
  }
  combine_lanes(top, larger);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    reference[h] = ceilf(top[h] * (scale * 0.125f)) * 8.0f;
    shift[h] = reference[h] == kMinusInfinity ? 0.0f : -reference[h];
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float pairs[kEights];
#pragma unroll
    for (int n = 0; n < kEights; n++) {
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; e++) s[n][e] = exp2_fast(fmaf(s[n][e], scale, shift[h]));
      pairs[n] = s[n][2 * h] + s[n][2 * h + 1];
    }
    sums[h] = combine(pairs, sum);
  }
  combine_lanes(sums, sum);
}

/** The weights of a fragment's rows, rounded, as left operands. */
__device__ __forceinline__ void round_weights(uint32_t (&weights)[kBlockKeys / 16][4],
                                              const float (&s)[kBlockKeys / 8][4]) {
#pragma unroll
  for (int j = 0; j < kBlockKeys / 16; j++) as_left_fragment(weights[j], s[2 * j], s[2 * j + 1]);
}

/** Weights of a block of keys, the first of which is `key`, for a warp's rows. keys_of_row is looked at when `masked`:
 *  some row does not see some of the keys. */
template <int C, int kFragments>
__device__ __forceinline__ void weigh_block(BlockWeights<kFragments>& block, const bf16* queries, const bf16* keys,
                                            const Exponent& exponent, const Range* keys_of_row, int key, bool masked) {
  Scores<kFragments> s = {};
  block_scores<C>(s, queries, keys);
  if (exponent.negate) negate_scores(s);
  if (masked) mask_scores(s, keys_of_row, key);
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
    weigh_fragment(s[i], exponent.scale, block.reference[i], block.sum[i]);
    round_weights(block.weights[i], s[i]);
  }
  end_phase();
}

/** Columns of an output, in eights, that a product is taken of at a time. */
constexpr int kSlice = 4;

/** take(n, t): t[i] holds fragment i's product with the kSlice times eight columns from 8 n on, summed from zero. */
template <int C, int kFragments, typename Take>
__device__ __forceinline__ void block_product(const BlockWeights<kFragments>& block, const bf16* values,
                                              const Take& take) {
#pragma unroll
  for (int n = 0; n < C / 8; n += kSlice) {
    float t[kFragments][kSlice][4] = {};
#pragma unroll
    for (int j = 0; j < kBlockKeys / 16; j++) {
#pragma unroll
      for (int m = 0; m < kSlice; m += 2) {
        const RightPair right = right_fragments_across<C>(values, j * 16, (n + m) * 8);
#pragma unroll
        for (int i = 0; i < kFragments; i++) {
          mma_bf16(t[i][m], block.weights[i][j], right.first);
          mma_bf16(t[i][m + 1], block.weights[i][j], right.second);
        }
      }
    }
    take(n, t);
    end_phase();
  }
}

/** Sums of the weights as they were rounded: [0] for the row of lane / 4, [1] for that + 8. Not by a product with ones:
 * a warp's own product waits for those of warpgroups that are under way. */
template <int kFragments>
__device__ __forceinline__ void rounded_sums(const BlockWeights<kFragments>& block, float (&sums)[kFragments][2]) {
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float pairs[kBlockKeys / 8];
#pragma unroll
      for (int j = 0; j < kBlockKeys / 8; j++) {
        const uint32_t pair = block.weights[i][j / 2][j % 2 * 2 + h];
        pairs[j] = __uint_as_float(pair << 16) + __uint_as_float(pair & 0xffff0000u);
      }
      sums[i][h] = combine(pairs, [](float a, float b) { return a + b; });
    }
    combine_lanes(sums[i], [](float a, float b) { return a + b; });
  }
}

// ---- joining blocks -------------------------------------------------------------------------------------------------

/** What is carried from block to block beside a row's output. */
struct Totals {
  float reference, sum, rounded_sum;
};

/** Factor of the output and lse of a row; a row without keys is 0 and -inf. */
__device__ __forceinline__ float finish_row(const Totals& totals, float* lse) {
  const bool any = totals.reference != kMinusInfinity || totals.sum != 0.0f;
  *lse = any ? fmaf(totals.reference, kLn2, logf(totals.sum)) : kMinusInfinity;
  return any ? __fdividef(1.0f, totals.rounded_sum) : 0.0f;
}

/** The weights of a block times powers of two, by row: its product times them, and cheaper. */
template <int kFragments>
__device__ __forceinline__ void scale_weights(BlockWeights<kFragments>& block, const float (&factor)[kFragments][2]) {
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t pair = pack_bf16(factor[i][h], factor[i][h]);
#pragma unroll
      for (int j = 0; j < kBlockKeys / 16; j++) {
        block.weights[i][j][h] = scale_pair(block.weights[i][j][h], pair);
        block.weights[i][j][h + 2] = scale_pair(block.weights[i][j][h + 2], pair);
      }
    }
  }
}

/** Adds what a block brings to a row's totals but for the sum of its rounded weights. */
__device__ __forceinline__ Join join_row(Totals& row, float reference, float sum) {
  const Join factors = join(&row.reference, reference);
  row.sum = fmaf(row.sum, factors.kept, sum * factors.added);
  return factors;
}

/** Adds a block to the totals of a warp's rows, which are in shared memory: the outputs leave no registers for them.
 *  Scales the weights as their product is to be added; `kept` is the factor of what was summed so far. */
template <int kFragments>
__device__ __forceinline__ void join_block(float (&kept)[kFragments][2], Totals* totals,
                                           BlockWeights<kFragments>& block) {
  const int lane = threadIdx.x % kWarp;
  float added[kFragments][2], rounded[kFragments][2];
  Totals after[kFragments][2];
  bool scaled = false;
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      after[i][h] = totals[i * 16 + h * 8 + lane / 4];
      const Join factors = join_row(after[i][h], block.reference[i][h], block.sum[i][h]);
      kept[i][h] = factors.kept;
      added[i][h] = factors.added;
      scaled = scaled || factors.added != 1.0f;
    }
  }
  if (__any_sync(kAllLanes, scaled)) scale_weights(block, added);
  rounded_sums(block, rounded);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      after[i][h].rounded_sum = fmaf(after[i][h].rounded_sum, kept[i][h], rounded[i][h]);
      if (lane % 4 == 0) totals[i * 16 + h * 8 + lane / 4] = after[i][h];
    }
  }
}

/** Adds a block to the outputs of a warp's rows and to their totals. */
template <int C, int kFragments>
__device__ __forceinline__ void add_block(float (&o)[kFragments][C / 8][4], Totals* totals,
                                          BlockWeights<kFragments>& block, const bf16* values) {
  float kept[kFragments][2];
  join_block(kept, totals, block);
  block_product<C>(block, values, [&](int n, const float (&t)[kFragments][kSlice][4]) {
#pragma unroll
    for (int i = 0; i < kFragments; i++) {
#pragma unroll
      for (int m = 0; m < kSlice; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) o[i][n + m][e] = fmaf(o[i][n + m][e], kept[i][e / 2], t[i][m][e]);
      }
    }
  });
}

}  // namespace caravan::cuda::attention_detail
