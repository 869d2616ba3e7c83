// Products of one or two rows with a matrix that is read once, as decoding has them: c[M,N] = a[M,K] b[N,K]^T in bf16.
// The floor is the time that b takes from memory, so all that matters is that enough of it is always on its way: one,
// two or four warps walk along a row of b, each lane with kAhead packs of 16 bytes asked for before it needs the first.
// Not before the kernels in front have ended (cuda/chain.h): b need not be weights, but may be what one of them has
// made of weights, as those of an adapter are. a comes from the caches.
//
// The sum over K: per lane over its packs, then over lanes in a butterfly, then over the warps in order. It is the same
// for any M, but not that of the other kernels.
#include "cuda/chain.h"
#include "cuda/gemm_epilogue.h"
#include "cuda/packs.h"
#include "cuda/reduce.h"

namespace caravan::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kPack = 8;  // elements
constexpr int kAhead = 4;
using Pack = uint4;

struct FewRows {
  const bf16* a;
  const bf16* b;
  const bf16* bias;
  int64_t a_leading, b_leading;
  int64_t N;
  int packs;  // of a row
};

/** The two numbers of a word, the lower half first. */
__device__ __forceinline__ float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ float add_products(float sum, const Pack& x, const Pack& y) {
  const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    sum = fmaf(low(xs[i]), low(ys[i]), sum);
    sum = fmaf(high(xs[i]), high(ys[i]), sum);
  }
  return sum;
}

template <int kRows, int kSplit>
__global__ void __launch_bounds__(kThreads) multiply_few_rows(FewRows p, Epilogue e) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t column = int64_t{blockIdx.x} * (kWarps / kSplit) + warp / kSplit;
  constexpr int kStep = kSplit * kWarp;
  const int packs = column < p.N ? p.packs : 0, own = warp % kSplit * kWarp + lane;
  const Pack* row = reinterpret_cast<const Pack*>(p.b + column * p.b_leading);
  await_earlier();
  Pack ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; i++) {
    if (own + i * kStep < packs) ahead[i] = row[own + i * kStep];
  }
  float sums[kRows] = {};
  for (int first = own; first < packs; first += kAhead * kStep) {
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      const int at = first + i * kStep, later = at + kAhead * kStep;
      if (at >= packs) break;
      const Pack pack = ahead[i];
      if (later < packs) ahead[i] = row[later];
#pragma unroll
      for (int m = 0; m < kRows; m++) {
        sums[m] = add_products(sums[m], pack, reinterpret_cast<const Pack*>(p.a + m * p.a_leading)[at]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kRows; m++) sums[m] = warp_sum(sums[m]);
  if constexpr (kSplit > 1) {
    __shared__ float parts[kWarps][kRows];
    if (lane == 0) {
#pragma unroll
      for (int m = 0; m < kRows; m++) parts[warp][m] = sums[m];
    }
    __syncthreads();
    if (warp % kSplit != 0) return;
#pragma unroll
    for (int m = 0; m < kRows; m++) {
#pragma unroll
      for (int part = 1; part < kSplit; part++) sums[m] += parts[warp + part][m];
    }
  }
  if (column >= p.N) return;
#pragma unroll
  for (int m = 0; m < kRows; m++) {
    if (lane != m) continue;
    const float value = p.bias != nullptr ? sums[m] + widen(p.bias[column]) : sums[m];
    e.out == DType::kBF16 ? put<bf16>(e, m, column, 0, value) : put<float>(e, m, column, 0, value);
  }
}

template <int kRows, int kSplit>
void launch_few_rows(const Args& args, const FewRows& p, const Epilogue& e) {
  const unsigned blocks = static_cast<unsigned>(ceil_div(p.N, kWarps / kSplit));
  launch_chained(args, {dim3(blocks), dim3(kThreads)}, multiply_few_rows<kRows, kSplit>, p, e);
}

/** What was fastest on an H200 of one, two and four warps to a row; very long rows keep one warp busy by themselves. */
template <int kRows>
void launch_few_rows(const Args& args, const FewRows& p, const Epilogue& e) {
  if (p.packs <= 256) return launch_few_rows<kRows, 2>(args, p, e);
  if (p.packs <= 1024) return launch_few_rows<kRows, 4>(args, p, e);
  launch_few_rows<kRows, 1>(args, p, e);
}

}  // namespace

bool multiply_few(const Args& args, const Product& p) {
  const bool fits = p.in == DType::kBF16 && p.M <= kFewRows && p.batch == 1 && !p.a.transposed && p.b.transposed &&
                    p.K > 0 && p.K % kPack == 0 && p.a.leading % kPack == 0 && p.b.leading % kPack == 0 &&
                    p.N < 0x7fffffff &&
                    is_aligned(static_cast<const bf16*>(p.a.data), static_cast<const bf16*>(p.b.data));
  if (!fits) return false;
  const FewRows few = {static_cast<const bf16*>(p.a.data),
                       static_cast<const bf16*>(p.b.data),
                       static_cast<const bf16*>(p.bias),
                       p.a.leading,
                       p.b.leading,
                       p.N,
                       static_cast<int>(p.K / kPack)};
  const Epilogue e = epilogue_of(p);
  p.M == 1 ? launch_few_rows<1>(args, few, e) : launch_few_rows<2>(args, few, e);
  return true;
}

}  // namespace caravan::cuda
