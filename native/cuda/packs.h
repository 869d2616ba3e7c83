// Loads and stores of a few neighbouring elements that may end early or lie at any address. Which thread owns which
// elements is the same with and without 16-byte accesses, so the result of a kernel does not depend on alignment.
#pragma once
#include "cuda/numbers.h"

namespace caravan::cuda {

/** kCount neighbouring elements of T, moved at once where that is at most 16 bytes, else by 16 bytes each. */
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Span {
  T x[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ Span<T, kCount> load_whole(const T* p) {
  return *reinterpret_cast<const Span<T, kCount>*>(p);
}
template <int kCount, typename T>
__device__ __forceinline__ void store_whole(T* p, const Span<T, kCount>& span) {
  *reinterpret_cast<Span<T, kCount>*>(p) = span;
}

/** One by one the first `left` elements, at most all; zeros for the others. */
template <int kCount, typename T>
__device__ __forceinline__ Span<T, kCount> load_each(const T* p, int left) {
  Span<T, kCount> span;
#pragma unroll
  for (int k = 0; k < kCount; k++) span.x[k] = k < left ? p[k] : T{};
  return span;
}
template <int kCount, typename T>
__device__ __forceinline__ void store_each(T* p, const Span<T, kCount>& span, int left) {
#pragma unroll
  for (int k = 0; k < kCount; k++) {
    if (k < left) p[k] = span.x[k];
  }
}

/** The first `left` elements, at once where there are kCount. kVector: `p` is aligned for that. */
template <bool kVector, int kCount, typename T>
__device__ __forceinline__ Span<T, kCount> load_span(const T* p, int left) {
  return kVector && left >= kCount ? load_whole<kCount>(p) : load_each<kCount>(p, left);
}
template <bool kVector, int kCount, typename T>
__device__ __forceinline__ void store_span(T* p, const Span<T, kCount>& span, int left) {
  if (kVector && left >= kCount) {
    store_whole(p, span);
  } else {
    store_each(p, span, left);
  }
}

/** Each number rounded to T, two bf16 by one instruction. */
template <typename T, int kCount>
__device__ __forceinline__ Span<T, kCount> narrow_span(const float (&x)[kCount]) {
  Span<T, kCount> span;
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
    uint32_t words[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; i++) words[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
    __builtin_memcpy(&span, words, sizeof(span));
  } else {
#pragma unroll
    for (int k = 0; k < kCount; k++) span.x[k] = narrow<T>(x[k]);
  }
  return span;
}

/** Whether whole spans can be moved from these addresses. */
template <typename... P>
bool is_aligned(const P*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

constexpr int kSpanThreads = 256;

/** First of the kCount elements that this thread owns in a kernel over contiguous memory; a launch of span_blocks
 *  blocks of kSpanThreads threads covers all. */
template <int kCount>
__device__ __forceinline__ int64_t own_span() {
  return (int64_t{blockIdx.x} * kSpanThreads + threadIdx.x) * kCount;
}
/** How many of them lie below `count`, in [0, kCount]. */
template <int kCount>
__device__ __forceinline__ int span_left(int64_t at, int64_t count) {
  const int64_t left = count - at;
  return left >= kCount ? kCount : left > 0 ? static_cast<int>(left) : 0;
}
template <int kCount>
unsigned span_blocks(int64_t count) {
  return static_cast<unsigned>(ceil_div(count, int64_t{kSpanThreads} * kCount));
}

}  // namespace caravan::cuda
