// Losses of policy and value over rows of per-token numbers (PPO: Schulman et al. 2017; CISPO: MiniMax 2025; GSPO:
// Zheng et al. 2025; divergence estimators: Schulman 2020). r = exp(logp - old); the coefficient of every row follows
// from its own numbers (GSPO: from its answer's), so loss and gradient are one pass. Numbers of a row are f64 and each
// sum is one chain in row order, whatever the thread count (one thread: a step has a few thousand rows). Traffic: five
// rows of N in, one out.
#include <math.h>

#include "core/fail.h"
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/number_convert.h"
#include "kernels/policy_formula.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace policy_detail {

using namespace policy_formula;

template <typename T>
Row row_at(const Args& a, int64_t n) {
  const auto at = [&](int i) { return to_f64(a.in[i].as<T>()[n]); };
  return {at(0), at(2), at(3), at(4), at(5)};
}

struct Span {
  int64_t begin, tokens;
};

/** The rows that predict tokens of answer s. Throws ERR_SHAPE for a span outside [0, N]. */
Span actions_of(const View& spans, int64_t s, int64_t N) {
  const int32_t* row = spans.as<int32_t>() + 3 * s;
  if (row[0] < 0 || row[0] > row[1] || row[1] > N || row[2] < 0 || row[2] > row[1] - row[0]) {
    fail("ERR_SHAPE",
         "policy_loss: spans[%lld] = (%d, %d, %d) must be (begin, end, tokens) in [0, N=%lld], tokens <= end - begin",
         static_cast<long long>(s), row[0], row[1], row[2], static_cast<long long>(N));
  }
  return {row[0], row[2]};
}

template <typename T>
double mean_log_ratio(const Args& a, const Span& span) {
  double sum = 0;
  for (int64_t n = span.begin; n < span.begin + span.tokens; n++) {
    const Row row = row_at<T>(a, n);
    sum += row.logp - row.old;
  }
  return span.tokens > 0 ? sum / static_cast<double>(span.tokens) : 0;
}

struct Sums {
  double loss = 0;
  double metrics[kMetrics] = {};
};

template <typename T>
void answer(const Args& a, const Span& span, const Options& o, Sums& sums) {
  const bool is_sequence = o.surrogate == kSequence;
  const double mean = is_sequence ? mean_log_ratio<T>(a, span) : 0;
  // GSPO: every row of an answer has the ratio of the answer, so what they add up to is spread over them evenly.
  double spread = 0;
  for (int64_t n = span.begin; n < span.begin + span.tokens && is_sequence; n++) {
    const Row row = row_at<T>(a, n);
    spread += row.weight * clipped_surrogate(::exp(mean), row.advantage, o).slope / static_cast<double>(span.tokens);
  }
  T* dlogp = a.out[1].as<T>();
  for (int64_t n = span.begin; n < span.begin + span.tokens; n++) {
    const Row row = row_at<T>(a, n);
    const RowTerms terms = row_terms(row, is_sequence ? mean : row.logp - row.old, spread, o);
    dlogp[n] = rounded<T>(terms.slope);
    sums.loss += terms.loss;
    for (int i = 0; i < kMetrics; i++) sums.metrics[i] += terms.metrics[i];
  }
}

template <typename T>
void policy_loss(const Args& a) {
  const Options o = options_of(a.attrs);
  T* dlogp = a.out[1].as<T>();
  for (int64_t n = 0; n < a.out[1].count(); n++) dlogp[n] = T{};
  Sums sums;
  for (int64_t s = 0; s < a.in[1].shape[0]; s++) answer<T>(a, actions_of(a.in[1], s, a.in[0].count()), o, sums);
  a.out[0].as<T>()[0] = rounded<T>(sums.loss);
  for (int i = 0; i < kMetrics; i++) round_to(sums.metrics[i], a.out[2].as<T>() + i);
}

template <typename T>
void value_loss(const Args& a) {
  const double clip = a.attrs[0], coefficient = a.attrs[1];
  double loss = 0, clipped_weight = 0;
  for (int64_t n = 0; n < a.in[0].count(); n++) {
    const auto at = [&](int i) { return to_f64(a.in[i].as<T>()[n]); };
    const ValueTerms terms = value_terms({at(0), at(1), at(2), at(3)}, clip, coefficient);
    loss += terms.loss;
    clipped_weight += terms.clipped_weight;
    a.out[1].as<T>()[n] = rounded<T>(terms.slope);
  }
  a.out[0].as<T>()[0] = rounded<T>(coefficient * loss);
  round_to(loss, a.out[2].as<T>());
  round_to(clipped_weight, a.out[2].as<T>() + 1);
}

}  // namespace policy_detail

CARAVAN_KERNEL(
    policy_loss, cpu,
    "logp[N] spans[S,3]:i32 old[N] reference[N] advantage[N] weight[N] -> loss[1] dlogp[N] metrics[6] | surrogate low "
    "high cap kl_kind kl_coefficient") {
  with_float_type("policy_loss", a.in[0].dtype, [&]<typename T>(T) { policy_detail::policy_loss<T>(a); });
}

CARAVAN_KERNEL(value_loss, cpu,
               "values[N] old[N] returns[N] weight[N] -> loss[1] dvalues[N] metrics[2] | clip coefficient") {
  with_float_type("value_loss", a.in[0].dtype, [&]<typename T>(T) { policy_detail::value_loss<T>(a); });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
