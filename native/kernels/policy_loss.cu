// Losses of policy and value over rows of per-token numbers, as policy_loss.cc. policy_loss: one block an answer, whose
// rows need only each other; value_loss: one block for kValueRows rows. A second launch of one block adds up what the
// blocks found. Traffic: five rows of N in (twice for GSPO, from cache), one out (policy_loss clears it first).
#include "kernels/policy_formula.h"

#include "core/scratch.h"
#include "cuda/zero.h"
#include "kernels/dispatch.h"
#include "kernels/row_spans.h"

namespace caravan::cuda {
namespace {

using namespace policy_formula;

constexpr int kTerms = 1 + policy_formula::kMetrics;

template <typename T>
struct PolicyRows {
  const T *logp, *old, *reference, *advantage, *weight;

  __device__ Row at(int64_t n) const {
    return {to_f64(logp[n]), to_f64(old[n]), to_f64(reference[n]), to_f64(advantage[n]), to_f64(weight[n])};
  }
};

/** One answer: its first `tokens` rows predict its tokens. */
template <typename T>
__global__ void __launch_bounds__(kSpanThreads, 2)
    answer_losses(PolicyRows<T> rows, const int32_t* spans, int64_t N, Options options, T* dlogp, double* partial,
                  FaultReport faults) {
  const RowSpan span = span_at(spans, blockIdx.x, N, faults);
  const int64_t begin = span.begin, end = span.begin + span.tokens;
  const double tokens = static_cast<double>(span.tokens);
  double mean = 0, spread = 0;
  if (options.surrogate == kSequence) {  // the same for all threads
    const double sum = sum_over(begin, end, [&](int64_t n) { return to_f64(rows.logp[n]) - to_f64(rows.old[n]); });
    mean = span.tokens > 0 ? sum / tokens : 0;
    // Every row of an answer has the ratio of the answer, so what they add up to is spread over them evenly.
    const double ratio = ::exp(mean);
    spread = sum_over(begin, end, [&](int64_t n) {
      return to_f64(rows.weight[n]) * clipped_surrogate(ratio, to_f64(rows.advantage[n]), options).slope / tokens;
    });
  }
  double sums[kTerms] = {};
  for (int64_t n = begin + threadIdx.x; n < end; n += kSpanThreads) {
    const Row row = rows.at(n);
    const double log_ratio = options.surrogate == kSequence ? mean : row.logp - row.old;
    const RowTerms terms = row_terms(row, log_ratio, spread, options);
    dlogp[n] = rounded<T>(terms.slope);
    sums[0] += terms.loss;
#pragma unroll
    for (int i = 0; i < policy_formula::kMetrics; i++) sums[1 + i] += terms.metrics[i];
  }
#pragma unroll
  for (int i = 0; i < kTerms; i++) {
    const double total = block_sum(sums[i]);
    if (threadIdx.x == 0) partial[int64_t{blockIdx.x} * kTerms + i] = total;
  }
}

CARAVAN_KERNEL(
    policy_loss, cuda,
    "logp[N] spans[S,3]:i32 old[N] reference[N] advantage[N] weight[N] -> loss[1] dlogp[N] metrics[6] | surrogate low "
    "high cap kl_kind kl_coefficient") {
  const int64_t answers = a.in[1].shape[0];
  const View& dlogp = a.out[1];
  Scratch partial(a.device, static_cast<size_t>(answers * kTerms) * sizeof(double));
  zero(a, dlogp);
  with_float_type("policy_loss", a.in[0].dtype, [&]<typename T>(T) {
    const PolicyRows<T> rows = {a.in[0].as<T>(), a.in[2].as<T>(), a.in[3].as<T>(), a.in[4].as<T>(), a.in[5].as<T>()};
    launch(a, {static_cast<unsigned>(answers), kSpanThreads}, answer_losses<T>, rows, a.in[1].as<int32_t>(),
           a.in[0].count(), options_of(a.attrs), dlogp.as<T>(), partial.as<double>(), fault_report(a, "policy_loss"));
    launch(a, {1, kSpanThreads}, total_terms<policy_formula::kMetrics, T>, partial.as<double>(), answers, 1.0,
           a.out[0].as<T>(), a.out[2].as<T>());
  });
}

constexpr int64_t kValueRows = 2048;
constexpr int kValueTerms = 3;  // the loss, which is a metric too, and the weight that was clipped

template <typename T>
struct ValueRows {
  const T *value, *old, *target, *weight;
};

template <typename T>
__global__ void __launch_bounds__(kSpanThreads)
    value_losses(ValueRows<T> rows, int64_t N, double clip, double coefficient, T* dvalues, double* partial) {
  const int64_t begin = int64_t{blockIdx.x} * kValueRows;
  const int64_t end = begin + kValueRows < N ? begin + kValueRows : N;
  double loss = 0, clipped_weight = 0;
  for (int64_t n = begin + threadIdx.x; n < end; n += kSpanThreads) {
    const ValueRow row = {to_f64(rows.value[n]), to_f64(rows.old[n]), to_f64(rows.target[n]), to_f64(rows.weight[n])};
    const ValueTerms terms = value_terms(row, clip, coefficient);
    dvalues[n] = rounded<T>(terms.slope);
    loss += terms.loss;
    clipped_weight += terms.clipped_weight;
  }
  loss = block_sum(loss);
  clipped_weight = block_sum(clipped_weight);
  if (threadIdx.x != 0) return;
  double* own = partial + int64_t{blockIdx.x} * kValueTerms;
  own[0] = own[1] = loss;
  own[2] = clipped_weight;
}

CARAVAN_KERNEL(value_loss, cuda,
               "values[N] old[N] returns[N] weight[N] -> loss[1] dvalues[N] metrics[2] | clip coefficient") {
  const int64_t N = a.in[0].count(), blocks = ceil_div(N, kValueRows);
  Scratch partial(a.device, static_cast<size_t>(blocks * kValueTerms) * sizeof(double));
  with_float_type("value_loss", a.in[0].dtype, [&]<typename T>(T) {
    const ValueRows<T> rows = {a.in[0].as<T>(), a.in[1].as<T>(), a.in[2].as<T>(), a.in[3].as<T>()};
    launch(a, {static_cast<unsigned>(blocks), kSpanThreads}, value_losses<T>, rows, N, a.attrs[0], a.attrs[1],
           a.out[1].as<T>(), partial.as<double>());
    launch(a, {1, kSpanThreads}, total_terms<kValueTerms - 1, T>, partial.as<double>(), blocks, a.attrs[1],
           a.out[0].as<T>(), a.out[2].as<T>());
  });
}

}  // namespace
}  // namespace caravan::cuda
