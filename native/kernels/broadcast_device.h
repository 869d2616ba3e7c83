// Element-wise launches: one thread an element, each going on by the size of the grid, and where an output element
// finds the operands of a broadcast.
#pragma once
#include "cuda/launch.h"
#include "kernels/broadcast.h"

namespace caravan::cuda {

/** Blocks of 256 threads for `count` elements. */
inline Launch element_grid(int64_t count) {
  constexpr int kThreads = 256;
  constexpr int64_t kMostBlocks = 1 << 20;
  return {dim3(blocks_for(count, kThreads, kMostBlocks)), dim3(kThreads)};
}

/** First element of this thread, and how far the next one is. */
struct Stride {
  int64_t first, step;
};
__device__ __forceinline__ Stride own_elements() {
  return {int64_t{blockIdx.x} * blockDim.x + threadIdx.x, int64_t{gridDim.x} * blockDim.x};
}

/** Where output element `i` finds its operands. */
template <int kOperands>
__device__ __forceinline__ void locate(const BroadcastPlan<kOperands>& plan, int64_t i, int64_t (&at)[kOperands]) {
  for (int k = 0; k < kOperands; k++) at[k] = 0;
  // Unrolled, so that the plan is read where the launch put it and not copied to the stack of every thread.
#pragma unroll
  for (int d = kMaxRank - 1; d >= 0; d--) {
    if (d >= plan.rank) continue;
    const int64_t index = d == 0 ? i : i % plan.shape[d];
    i = d == 0 ? 0 : i / plan.shape[d];
    for (int k = 0; k < kOperands; k++) at[k] += index * plan.stride[k][d];
  }
}

}  // namespace caravan::cuda
