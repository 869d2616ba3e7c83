// Reductions in a fixed order: a butterfly within the warp, then warp sums in warp order. The result depends on the
// number of threads of the block alone, which is part of a kernel, never on what runs beside it.
#pragma once
#include "cuda/launch.h"

namespace caravan::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct SumOf {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct MaxOf {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

/** Every lane gets the reduction over the warp. */
template <typename Combine, typename T>
__device__ __forceinline__ T warp_reduce(T x, Combine combine) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, bits));
  return x;
}
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce(x, SumOf{});
}
template <typename T>
__device__ __forceinline__ T warp_max(T x) {
  return warp_reduce(x, MaxOf{});
}

/** Every thread of a one-dimensional block of whole warps gets the reduction over the block. `empty` is the neutral
 *  element. May be called again at once: it ends with a barrier. */
template <typename Combine, typename T>
__device__ T block_reduce(T x, Combine combine, T empty) {
  __shared__ T partial[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  x = warp_reduce(x, combine);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  x = warp_reduce(lane < warps ? partial[lane] : empty, combine);
  __syncthreads();
  return x;
}
template <typename T>
__device__ __forceinline__ T block_sum(T x) {
  return block_reduce(x, SumOf{}, T{});
}

}  // namespace caravan::cuda
