// Preference losses over spans of per-token log-probabilities (Rafailov et al. 2023, eq. 7; length-normalised: Lambert
// et al. 2024; SimPO: Meng et al. 2024; IPO: Azar et al. 2023; robust: Chowdhury et al. 2024; WPO: Zhou et al. 2024).
// The coefficient of every token follows from the margin of its pair alone, so loss and gradient are one pass. A pair
// is a handful of scalars: they are f64, and each sum is one chain in row order, whatever the thread count (one thread;
// a step has a few thousand rows). Traffic: logp once, dlogp once.
#include <math.h>

#include "core/fail.h"
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/number_convert.h"
#include "kernels/preference_formula.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace preference_detail {

struct Span {
  int64_t begin, end, tokens;
};

/** Throws ERR_SHAPE for a span outside [0, N]. */
Span span_at(const char* op, const View& spans, int64_t s, int64_t N) {
  const int32_t* row = spans.as<int32_t>() + 3 * s;
  if (row[0] < 0 || row[0] > row[1] || row[1] > N || row[2] < 0 || row[2] > row[1] - row[0]) {
    fail("ERR_SHAPE",
         "%s: spans[%lld] = (%d, %d, %d) must be (begin, end, tokens) in [0, N=%lld], tokens <= end - begin", op,
         static_cast<long long>(s), row[0], row[1], row[2], static_cast<long long>(N));
  }
  return {row[0], row[1], row[2]};
}

template <typename T>
double sum_of(const T* x, const Span& span) {
  double total = 0;
  for (int64_t n = span.begin; n < span.end; n++) total += to_f64(x[n]);
  return total;
}

template <typename T>
void fill_span(T* x, const Span& span, double value) {
  const T stored = rounded<T>(value);
  for (int64_t n = span.begin; n < span.end; n++) x[n] = stored;
}

using namespace preference_formula;

struct SpanAnswer {
  Span span;
  Answer answer;
};

template <typename T>
SpanAnswer answer_at(const Args& a, int64_t s, const Options& o) {
  const Span span = span_at("preference_loss", a.in[1], s, a.in[0].count());
  return {span, answer_of(sum_of(a.in[0].as<T>(), span), span.tokens, a.in[2].as<double>()[s], o)};
}

template <typename T>
void run(const Args& a) {
  const Options o = options_of(a.attrs);
  T* dlogp = a.out[1].as<T>();
  for (int64_t n = 0; n < a.out[1].count(); n++) dlogp[n] = T{};
  double loss = 0;
  double metrics[kMetrics] = {};
  for (int64_t p = 0; p < a.in[1].shape[0]; p++) {
    const SpanAnswer chosen = answer_at<T>(a, 2 * p, o), rejected = answer_at<T>(a, 2 * p + 1, o);
    const PairTerms terms = pair_terms(chosen.answer, rejected.answer, o);
    loss += terms.loss;
    fill_span(dlogp, chosen.span, terms.chosen_slope);
    fill_span(dlogp, rejected.span, terms.rejected_slope);
    for (int i = 0; i < kMetrics; i++) metrics[i] += terms.metrics[i];
  }
  a.out[0].as<T>()[0] = rounded<T>(loss);
  T* totals = a.out[2].as<T>();
  for (int i = 0; i < kMetrics; i++) round_to(metrics[i], totals + i);
}

}  // namespace preference_detail

CARAVAN_KERNEL(
    preference_loss, cpu,
    "logp[N] spans[P,2,3]:i32 reference[P,2]:f64 -> loss[1] dlogp[N] metrics[8] | kind beta margin smoothing average "
    "weighted") {
  with_float_type("preference_loss", a.in[0].dtype, [&]<typename T>(T) { preference_detail::run<T>(a); });
}

CARAVAN_KERNEL(segment_sum, cpu, "x[N] spans[S,3]:i32 -> y[S]") {
  using namespace preference_detail;
  with_float_type("segment_sum", a.in[0].dtype, [&]<typename T>(T) {
    for (int64_t s = 0; s < a.in[1].shape[0]; s++) {
      const Span span = span_at("segment_sum", a.in[1], s, a.in[0].count());
      a.out[0].as<T>()[s] = rounded<T>(sum_of(a.in[0].as<T>(), span));
    }
  });
}

CARAVAN_KERNEL(segment_sum_backward, cpu, "dy[S] spans[S,3]:i32 -> dx[N] | N") {
  using namespace preference_detail;
  with_float_type("segment_sum_backward", a.in[0].dtype, [&]<typename T>(T) {
    T* dx = a.out[0].as<T>();
    for (int64_t n = 0; n < a.out[0].count(); n++) dx[n] = T{};
    for (int64_t s = 0; s < a.in[1].shape[0]; s++) {
      const Span span = span_at("segment_sum_backward", a.in[1], s, a.out[0].count());
      fill_span(dx, span, to_f64(a.in[0].as<T>()[s]));
    }
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
