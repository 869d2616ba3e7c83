// What the losses over spans of rows share on the device: the check of a span, sums over one block's rows, and the
// totals of what the blocks found. Numbers of a row are f64; a sum is thread-strided, then the tree of block_sum, so it
// depends on the length of its span alone.
#pragma once
#include "cuda/fault.h"
#include "cuda/reduce.h"
#include "kernels/number_convert.h"

namespace caravan::cuda {

constexpr int kSpanThreads = 256;

struct RowSpan {
  int64_t begin, end, tokens;
};

/** spans[s] = (begin, end, tokens); empty, with a note, when it does not lie in [0, N]. */
__device__ inline RowSpan span_at(const int32_t* spans, int64_t s, int64_t N, const FaultReport& faults) {
  const int32_t* row = spans + 3 * s;
  const RowSpan span = {row[0], row[1], row[2]};
  const bool sound = span.begin >= 0 && span.begin <= span.end && span.end <= N && span.tokens >= 0 &&
                     span.tokens <= span.end - span.begin;
  if (sound) return span;
  if (threadIdx.x == 0) faults.note(FaultKind::kSegment, s, span.end, N);
  return {0, 0, 0};
}

/** Sum of term(n) for begin <= n < end, by the whole block. */
template <typename Term>
__device__ double sum_over(int64_t begin, int64_t end, const Term& term) {
  double sum = 0;
  for (int64_t n = begin + threadIdx.x; n < end; n += kSpanThreads) sum += term(n);
  return block_sum(sum);
}

template <typename T>
__device__ void fill_span(T* x, const RowSpan& span, double value) {
  const T stored = rounded<T>(value);
  for (int64_t n = span.begin + threadIdx.x; n < span.end; n += kSpanThreads) x[n] = stored;
}

/** Columns of partial[rows, 1 + kMetrics]: the first, times `scale`, to loss[0], the others to `metrics`. One block. */
template <int kMetrics, typename T>
__global__ void __launch_bounds__(kSpanThreads)
    total_terms(const double* partial, int64_t rows, double scale, T* loss, T* metrics) {
  for (int c = 0; c <= kMetrics; c++) {
    const double total = sum_over(0, rows, [&](int64_t n) { return partial[n * (kMetrics + 1) + c]; });
    if (threadIdx.x == 0) *(c == 0 ? loss : metrics + c - 1) = rounded<T>(c == 0 ? scale * total : total);
  }
}

}  // namespace caravan::cuda
