// attend_wide of attention.cu on compute capability 9.0. Whether it may take its place: cuda/attention_form.h.
#pragma once
#include "kernels/attention_softmax.h"

namespace caravan::cuda::attention_detail {

/** Rows of a unit: those of attend_wide, so that both work off the same list. */
constexpr int kHopperRows = 128;

/** Attention for the units of a list. C is 64 or 128, `key_rows` the rows of k and v: keys, or 64 a page. */
void attend_hopper(const Args& a, const Problem& p, int C, int64_t key_rows, const UnitList& units);

}  // namespace caravan::cuda::attention_detail
