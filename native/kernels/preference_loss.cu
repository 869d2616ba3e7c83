// Preference losses over spans of per-token log-probabilities, as preference_loss.cc. One block a pair (segment_sum: a
// span) adds up its answers and writes their coefficients; a second launch of one block adds up the pairs. Traffic:
// logp once, dlogp twice (cleared first: rows outside of all spans are zero).
#include "kernels/preference_formula.h"

#include "core/scratch.h"
#include "cuda/zero.h"
#include "kernels/dispatch.h"
#include "kernels/row_spans.h"

namespace caravan::cuda {
namespace {

using namespace preference_formula;

constexpr int kTerms = 1 + preference_formula::kMetrics;

template <typename T>
__global__ void __launch_bounds__(kSpanThreads)
    pair_losses(const T* logp, const int32_t* spans, const double* reference, int64_t N, Options options, T* dlogp,
                double* partial, FaultReport faults) {
  const int64_t pair = blockIdx.x;
  const auto value = [&](int64_t n) { return to_f64(logp[n]); };
  const RowSpan chosen = span_at(spans, 2 * pair, N, faults);
  const RowSpan rejected = span_at(spans, 2 * pair + 1, N, faults);
  const double chosen_sum = sum_over(chosen.begin, chosen.end, value);
  const double rejected_sum = sum_over(rejected.begin, rejected.end, value);
  const PairTerms terms =
      pair_terms(answer_of(chosen_sum, chosen.tokens, reference[2 * pair], options),
                 answer_of(rejected_sum, rejected.tokens, reference[2 * pair + 1], options), options);
  fill_span(dlogp, chosen, terms.chosen_slope);
  fill_span(dlogp, rejected, terms.rejected_slope);
  if (threadIdx.x != 0) return;
  double* own = partial + pair * kTerms;
  own[0] = terms.loss;
#pragma unroll
  for (int i = 0; i < preference_formula::kMetrics; i++) own[1 + i] = terms.metrics[i];
}

template <typename T>
__global__ void __launch_bounds__(kSpanThreads)
    sum_spans(const T* x, const int32_t* spans, int64_t N, T* y, FaultReport faults) {
  const RowSpan span = span_at(spans, blockIdx.x, N, faults);
  const double sum = sum_over(span.begin, span.end, [&](int64_t n) { return to_f64(x[n]); });
  if (threadIdx.x == 0) y[blockIdx.x] = rounded<T>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kSpanThreads)
    fill_spans(const T* dy, const int32_t* spans, int64_t N, T* dx, FaultReport faults) {
  fill_span(dx, span_at(spans, blockIdx.x, N, faults), to_f64(dy[blockIdx.x]));
}

CARAVAN_KERNEL(
    preference_loss, cuda,
    "logp[N] spans[P,2,3]:i32 reference[P,2]:f64 -> loss[1] dlogp[N] metrics[8] | kind beta margin smoothing average "
    "weighted") {
  const int64_t pairs = a.in[1].shape[0];
  Scratch partial(a.device, static_cast<size_t>(pairs * kTerms) * sizeof(double));
  zero(a, a.out[1]);
  with_float_type("preference_loss", a.in[0].dtype, [&]<typename T>(T) {
    launch(a, {static_cast<unsigned>(pairs), kSpanThreads}, pair_losses<T>, a.in[0].as<T>(), a.in[1].as<int32_t>(),
           a.in[2].as<double>(), a.in[0].count(), options_of(a.attrs), a.out[1].as<T>(), partial.as<double>(),
           fault_report(a, "preference_loss"));
    launch(a, {1, kSpanThreads}, total_terms<preference_formula::kMetrics, T>, partial.as<double>(), pairs, 1.0,
           a.out[0].as<T>(), a.out[2].as<T>());
  });
}

CARAVAN_KERNEL(segment_sum, cuda, "x[N] spans[S,3]:i32 -> y[S]") {
  const unsigned spans = static_cast<unsigned>(a.in[1].shape[0]);
  with_float_type("segment_sum", a.in[0].dtype, [&]<typename T>(T) {
    launch(a, {spans, kSpanThreads}, sum_spans<T>, a.in[0].as<T>(), a.in[1].as<int32_t>(), a.in[0].count(),
           a.out[0].as<T>(), fault_report(a, "segment_sum"));
  });
}

CARAVAN_KERNEL(segment_sum_backward, cuda, "dy[S] spans[S,3]:i32 -> dx[N] | N") {
  const unsigned spans = static_cast<unsigned>(a.in[1].shape[0]);
  zero(a, a.out[0]);
  with_float_type("segment_sum_backward", a.in[0].dtype, [&]<typename T>(T) {
    launch(a, {spans, kSpanThreads}, fill_spans<T>, a.in[0].as<T>(), a.in[1].as<int32_t>(), a.out[0].count(),
           a.out[0].as<T>(), fault_report(a, "segment_sum_backward"));
  });
}

}  // namespace
}  // namespace caravan::cuda
