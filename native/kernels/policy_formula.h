// What both devices compute for one row of the losses of policy and value, in f64.
#pragma once
#include <math.h>

#include "core/types.h"

namespace caravan::CARAVAN_ISA {
namespace policy_formula {

enum Surrogate { kClip, kCispo, kSequence };
enum Divergence { kNone, kK1, kK2, kK3 };

struct Options {
  int surrogate;
  double low, high, cap;
  int divergence;
  double coefficient;
};

static inline Options options_of(const double* attrs) {
  return {static_cast<int>(attrs[0]), attrs[1], attrs[2], attrs[3], static_cast<int>(attrs[4]), attrs[5]};
}

struct Term {
  double value, slope;
};

CARAVAN_ANYWHERE static inline Term divergence(double difference, int kind) {
  constexpr double kMostLogRatio = 40;
  const double d = ::fmax(-kMostLogRatio, ::fmin(kMostLogRatio, difference));
  const bool free = d == difference;
  switch (kind) {
    case kK1:
      return {d, free ? 1.0 : 0.0};
    case kK2:
      return {0.5 * d * d, free ? d : 0.0};
    case kK3:
      return {::expm1(-d) + d, free ? -::expm1(-d) : 0.0};
    default:
      return {0, 0};
  }
}

/** Slope with respect to log r. */
CARAVAN_ANYWHERE static inline Term clipped_surrogate(double ratio, double advantage, const Options& o) {
  const bool is_capped = o.cap > 0 && ratio >= o.cap;
  const double plain = advantage * (is_capped ? o.cap : ratio);
  const double clipped = advantage * ::fmax(1 - o.low, ::fmin(1 + o.high, ratio));
  if (plain > clipped) return {-clipped, 0};
  return {-plain, is_capped ? 0 : -advantage * ratio};
}

struct Row {
  double logp, old, reference, advantage, weight;
};

constexpr int kMetrics = 6;

/** A row's share of the loss and of the metrics, and its coefficient. */
struct RowTerms {
  double loss, slope;
  double metrics[kMetrics];
};

/** GSPO: log_ratio is the mean of the answer's rows and `spread` the slope that each of them gets. */
CARAVAN_ANYWHERE static inline RowTerms row_terms(const Row& row, double log_ratio, double spread, const Options& o) {
  const double ratio = ::exp(log_ratio);
  const Term kl = divergence(row.logp - row.reference, o.divergence);
  Term surrogate = clipped_surrogate(ratio, row.advantage, o);
  if (o.surrogate == kCispo) {
    const double factor = row.advantage * ::fmin(ratio, 1 + o.high);
    surrogate = {-factor * row.logp, -factor};
  }
  const double slope = o.surrogate == kSequence ? spread : row.weight * surrogate.slope;
  return {row.weight * (surrogate.value + o.coefficient * kl.value),
          slope + row.weight * o.coefficient * kl.slope,
          {row.weight * surrogate.value, row.weight * kl.value, row.weight * (0.5 * log_ratio * log_ratio),
           ratio < 1 - o.low && row.advantage < 0 ? row.weight : 0.0,
           ratio > 1 + o.high && row.advantage > 0 ? row.weight : 0.0, row.weight * ratio}};
}

struct ValueRow {
  double value, old, target, weight;
};

struct ValueTerms {
  double loss, clipped_weight, slope;
};

/** Without the coefficient in `loss`. */
CARAVAN_ANYWHERE static inline ValueTerms value_terms(const ValueRow& row, double clip, double coefficient) {
  const double near = clip > 0 ? row.old + ::fmax(-clip, ::fmin(clip, row.value - row.old)) : row.value;
  const double error = (row.value - row.target) * (row.value - row.target);
  const double near_error = (near - row.target) * (near - row.target);
  const bool is_clipped = near_error > error;
  return {row.weight * 0.5 * (is_clipped ? near_error : error), is_clipped ? row.weight : 0,
          is_clipped ? 0 : coefficient * row.weight * (row.value - row.target)};
}

}  // namespace policy_formula
}  // namespace caravan::CARAVAN_ISA
