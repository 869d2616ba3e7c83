// Walking an output in row-major order over operands that are stretched along some dimensions (NumPy's rules, shapes
// aligned at the end). Dimensions that lie in one piece for every operand are merged first, so that equal shapes become
// one row, and a bias becomes rows of one vector.
#pragma once
#include "core/types.h"

namespace caravan::CARAVAN_ISA {

template <int kOperands>
struct BroadcastPlan {
  int rank = 0;  // at least 1
  int64_t shape[kMaxRank] = {};
  int64_t stride[kOperands][kMaxRank] = {};  // in elements; 0 where the operand is stretched

  int64_t row() const { return shape[rank - 1]; }
};

/** The plan for output `out` and operands whose dimension i advances by stride[k][i] elements. */
template <int kOperands>
static inline BroadcastPlan<kOperands> plan_strided(const View& out, const int64_t (&stride)[kOperands][kMaxRank]) {
  BroadcastPlan<kOperands> plan;
  for (int i = 0; i < out.rank; i++) {
    if (out.shape[i] == 1) continue;
    const int last = plan.rank - 1;
    bool merge = plan.rank > 0;
    for (int k = 0; k < kOperands && merge; k++) merge = plan.stride[k][last] == stride[k][i] * out.shape[i];
    if (!merge) plan.shape[plan.rank++] = 1;
    plan.shape[plan.rank - 1] *= out.shape[i];
    for (int k = 0; k < kOperands; k++) plan.stride[k][plan.rank - 1] = stride[k][i];
  }
  if (plan.rank == 0) plan.shape[plan.rank++] = 1;
  return plan;
}

/** Strides of a contiguous tensor; 0 along dimensions of size 1, which may be stretched. Aligned at the end of `rank`.
 */
static inline void strides_of(const View& operand, int rank, int64_t (&stride)[kMaxRank]) {
  int64_t next = 1;
  for (int i = rank - 1; i >= 0; i--) {
    const int own = i - (rank - operand.rank);
    const int64_t size = own >= 0 ? operand.shape[own] : 1;
    stride[i] = size == 1 ? 0 : next;
    next *= size;
  }
}

/** The axis that an attribute names, counted from the end when negative. */
static inline int axis_of(const View& x, double attribute) {
  const int axis = static_cast<int>(attribute);
  return axis < 0 ? axis + x.rank : axis;
}

/** A tensor seen as [outer, R, inner] about one of its axes. */
struct Extent {
  int64_t outer = 1, R = 1, inner = 1;
};

static inline Extent extent_of(const View& x, double axis_attribute) {
  const int axis = axis_of(x, axis_attribute);
  Extent extent;
  for (int i = 0; i < x.rank; i++) (i < axis ? extent.outer : i == axis ? extent.R : extent.inner) *= x.shape[i];
  return extent;
}

/** Strides of a contiguous tensor, not set to 0 for sizes of 1. */
static inline void dense_strides(const View& x, int64_t (&stride)[kMaxRank]) {
  int64_t next = 1;
  for (int i = x.rank - 1; i >= 0; i--) {
    stride[i] = next;
    next *= x.shape[i];
  }
}

template <int kOperands>
static inline BroadcastPlan<kOperands> plan_broadcast(const View& out, const View* operands) {
  int64_t stride[kOperands][kMaxRank] = {};
  for (int k = 0; k < kOperands; k++) strides_of(operands[k], out.rank, stride[k]);
  return plan_strided(out, stride);
}

/** segment(position, n, offsets): n outputs from flat index `position`, all in one row of the plan, whose operands
 * start at offsets[k] and go on with the plan's last stride. Covers [begin, end). */
template <int kOperands, typename Segment>
static inline void walk_broadcast(const BroadcastPlan<kOperands>& plan, int64_t begin, int64_t end,
                                  const Segment& segment) {
  if (begin >= end) return;
  const int last = plan.rank - 1;
  int64_t index[kMaxRank];
  int64_t left = begin;
  for (int i = last; i >= 0; i--) {
    index[i] = left % plan.shape[i];
    left /= plan.shape[i];
  }
  int64_t offsets[kOperands];
  for (int k = 0; k < kOperands; k++) {
    offsets[k] = 0;
    for (int i = 0; i <= last; i++) offsets[k] += index[i] * plan.stride[k][i];
  }
  for (int64_t position = begin; position < end;) {
    int64_t n = plan.shape[last] - index[last];
    if (n > end - position) n = end - position;
    segment(position, n, offsets);
    position += n;
    for (int k = 0; k < kOperands; k++) offsets[k] -= index[last] * plan.stride[k][last];
    index[last] = 0;
    for (int i = last - 1; i >= 0; i--) {
      index[i]++;
      for (int k = 0; k < kOperands; k++) offsets[k] += plan.stride[k][i];
      if (index[i] < plan.shape[i]) break;
      for (int k = 0; k < kOperands; k++) offsets[k] -= plan.shape[i] * plan.stride[k][i];
      index[i] = 0;
    }
  }
}

}  // namespace caravan::CARAVAN_ISA
