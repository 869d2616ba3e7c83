// What both devices compute for one pair of answers: the loss of its margin and the loss's slope, in f64.
#pragma once
#include <math.h>

#include "core/types.h"

namespace caravan::CARAVAN_ISA {
namespace preference_formula {

/** -log sigmoid(x), and sigmoid(x), without overflow. */
CARAVAN_ANYWHERE static inline double softplus_of_minus(double x) {
  return (x < 0 ? -x : 0.0) + ::log1p(::exp(x < 0 ? x : -x));
}
CARAVAN_ANYWHERE static inline double sigmoid(double x) {
  return x < 0 ? ::exp(x) / (1 + ::exp(x)) : 1 / (1 + ::exp(-x));
}

enum Kind { kSigmoid, kHinge, kIpo, kRobust };

struct Options {
  int kind;
  double beta, margin, smoothing;
  bool average, weighted;
};

static inline Options options_of(const double* attrs) {
  return {static_cast<int>(attrs[0]), attrs[1], attrs[2], attrs[3], attrs[4] != 0, attrs[5] != 0};
}

struct PairLoss {
  double loss, slope;
};

CARAVAN_ANYWHERE static inline PairLoss pair_loss(double z, const Options& o) {
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

/** One answer: its summed log-probability, per token, and the gain over the reference, each side divided by `norm`. */
struct Answer {
  double sum, mean, gain, norm, tokens;
};

CARAVAN_ANYWHERE static inline Answer answer_of(double sum, int64_t tokens, double reference, const Options& o) {
  const double counted = tokens > 0 ? static_cast<double>(tokens) : 1;
  const double norm = o.average ? counted : 1;
  return {sum, sum / counted, sum / norm - reference / norm, norm, static_cast<double>(tokens)};
}

constexpr int kMetrics = 8;

/** A pair's share of the loss and of the metrics, and the coefficient of each answer's tokens. */
struct PairTerms {
  double loss, chosen_slope, rejected_slope;
  double metrics[kMetrics];
};

CARAVAN_ANYWHERE static inline PairTerms pair_terms(const Answer& chosen, const Answer& rejected, const Options& o) {
  const double weight = o.weighted ? ::fmin(1.0, ::exp(chosen.mean + rejected.mean)) : 1.0;
  const PairLoss pair = pair_loss(chosen.gain - rejected.gain - o.margin, o);
  const double rewards[2] = {o.beta * chosen.gain, o.beta * rejected.gain};
  return {weight * pair.loss,
          weight * pair.slope / chosen.norm,
          -weight * pair.slope / rejected.norm,
          {rewards[0], rewards[1], rewards[0] > rewards[1] ? 1.0 : 0.0, rewards[0] - rewards[1], chosen.sum,
           rejected.sum, chosen.tokens, rejected.tokens}};
}

}  // namespace preference_formula
}  // namespace caravan::CARAVAN_ISA
