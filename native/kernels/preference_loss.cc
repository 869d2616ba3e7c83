// Preference losses over spans of per-token log-probabilities (Rafailov et al. 2023, eq. 7; length-normalised: Lambert
// et al. 2024; SimPO: Meng et al. 2024; IPO: Azar et al. 2023; robust: Chowdhury et al. 2024; WPO: Zhou et al. 2024).
// The coefficient of every token follows from the margin of its pair alone, so loss and gradient are one pass. A pair
// is a handful of scalars: they are f64, and each sum is one chain in row order, whatever the thread count (one thread;
// a step has a few thousand rows). Traffic: logp once, dlogp once.
#include <math.h>

#include "core/error.h"
#include "core/kernel_registry.h"
#include "cpu/device.h"
#include "kernels/dispatch.h"
#include "kernels/number_convert.h"

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

/** -log sigmoid(x), and sigmoid(x), without overflow. */
double softplus_of_minus(double x) { return (x < 0 ? -x : 0.0) + log1p(::exp(x < 0 ? x : -x)); }
double sigmoid(double x) { return x < 0 ? ::exp(x) / (1 + ::exp(x)) : 1 / (1 + ::exp(-x)); }

enum Kind { kSigmoid, kHinge, kIpo, kRobust };

struct Options {
  int kind;
  double beta, margin, smoothing;
  bool average, weighted;
};

struct PairLoss {
  double loss, slope;
};

PairLoss pair_loss(double z, const Options& o) {
  const double scaled = o.beta * z;
  switch (o.kind) {
    case kHinge:
      return scaled < 1 ? PairLoss{1 - scaled, -o.beta} : PairLoss{0, 0};
    case kIpo: {
      const double distance = z - 1 / (2 * o.beta);
      return {distance * distance, 2 * distance};
    }
    default: {
      // robust: the unbiased estimate under label noise; the smoothed term is subtracted and the rest scaled up.
      const double sign = o.kind == kRobust ? -1 : 1;
      const double scale = o.kind == kRobust ? 1 / (1 - 2 * o.smoothing) : 1;
      const double loss =
          (1 - o.smoothing) * softplus_of_minus(scaled) + sign * o.smoothing * softplus_of_minus(-scaled);
      const double slope = -(1 - o.smoothing) * sigmoid(-scaled) + sign * o.smoothing * sigmoid(scaled);
      return {scale * loss, scale * o.beta * slope};
    }
  }
}

struct Answer {
  Span span;
  double sum, mean, gain, norm;
};

template <typename T>
Answer answer_at(const Args& a, int64_t s, const Options& o) {
  const Span span = span_at("preference_loss", a.in[1], s, a.in[0].count());
  const double tokens = span.tokens > 0 ? static_cast<double>(span.tokens) : 1;
  const double sum = sum_of(a.in[0].as<T>(), span), reference = a.in[2].as<double>()[s];
  const double norm = o.average ? tokens : 1;
  return {span, sum, sum / tokens, sum / norm - reference / norm, norm};
}

template <typename T>
void run(const Args& a) {
  const Options o{static_cast<int>(a.attrs[0]), a.attrs[1], a.attrs[2], a.attrs[3], a.attrs[4] != 0, a.attrs[5] != 0};
  T* dlogp = a.out[1].as<T>();
  for (int64_t n = 0; n < a.out[1].count(); n++) dlogp[n] = T{};
  double loss = 0;
  double metrics[8] = {};
  for (int64_t p = 0; p < a.in[1].shape[0]; p++) {
    const Answer chosen = answer_at<T>(a, 2 * p, o), rejected = answer_at<T>(a, 2 * p + 1, o);
    const double weight = o.weighted ? fmin(1.0, ::exp(chosen.mean + rejected.mean)) : 1.0;
    const PairLoss pair = pair_loss(chosen.gain - rejected.gain - o.margin, o);
    loss += weight * pair.loss;
    fill_span(dlogp, chosen.span, weight * pair.slope / chosen.norm);
    fill_span(dlogp, rejected.span, -weight * pair.slope / rejected.norm);
    const double rewards[2] = {o.beta * chosen.gain, o.beta * rejected.gain};
    const double terms[8] = {
        rewards[0], rewards[1],   rewards[0] > rewards[1] ? 1.0 : 0.0,     rewards[0] - rewards[1],
        chosen.sum, rejected.sum, static_cast<double>(chosen.span.tokens), static_cast<double>(rejected.span.tokens)};
    for (int i = 0; i < 8; i++) metrics[i] += terms[i];
  }
  a.out[0].as<T>()[0] = rounded<T>(loss);
  T* totals = a.out[2].as<T>();
  for (int i = 0; i < 8; i++) round_to(metrics[i], totals + i);
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
