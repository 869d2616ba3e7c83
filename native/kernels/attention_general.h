// Attention for what the tensor cores do not serve: f32, and heads of other widths than 64 and 128.
#pragma once
#include "kernels/attention_units.h"

namespace caravan::cuda::attention_detail {

/** Widest head of these kernels; a tile of it fills the shared memory of a block. */
constexpr int kWidestHead = 256;

/** Throws ERR_SHAPE for heads wider than kWidestHead. */
void check_width(const char* op, int64_t C);

/** o and lse of a call of attention or attention_paged. */
template <typename T>
void attend_general(const Args& a, const Sequences& sequences, const Geometry& geometry);

/** dq, dk and dv of a call of attention_backward, rows outside all segments excepted; delta[N,H] is sum of do o. */
template <typename T>
void attend_backward_general(const Args& a, const Sequences& sequences, const Geometry& geometry, const float* delta);

}  // namespace caravan::cuda::attention_detail
