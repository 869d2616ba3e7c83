// The products of attention_backward.cu on compute capability 9.0.
#pragma once
#include "kernels/attention_mma.h"

namespace caravan::cuda::attention_detail {

/** A backward pass as the kernels see it; exponent is scale as a factor of base-2 exponents, delta the sum of do o. */
struct BackwardProblem {
  Sequences sequences;
  Geometry geometry;
  const bf16 *d_o, *q, *k, *v;
  const float *lse, *delta;
  bf16 *dq, *dk, *dv;
  float scale, exponent;
};

/** dq, dk and dv of all segments. C is 64 or 128; there are keys. */
void backward_hopper(const Args& a, const BackwardProblem& p, int C);

}  // namespace caravan::cuda::attention_detail
