// Ops that move elements and compute nothing, as movement.cc: one thread an element, whichever side is contiguous.
#include "cuda/fault.h"
#include "kernels/broadcast_device.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

/** y[i] = x at the plan's strides, in the order of y. */
template <typename E>
__global__ void gather(BroadcastPlan<1> plan, const E* x, E* y, int64_t count) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    int64_t at[1];
    locate(plan, i, at);
    y[i] = x[at[0]];
  }
}

/** y at the plan's strides = x[i], in the order of x. */
template <typename E>
__global__ void scatter(BroadcastPlan<1> plan, const E* x, E* y, int64_t count) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    int64_t at[1];
    locate(plan, i, at);
    y[at[0]] = x[i];
  }
}

template <typename E>
__global__ void take_elements(const E* x, const int32_t* index, E* y, int64_t rows, int64_t V, FaultReport report) {
  const Stride own = own_elements();
  for (int64_t row = own.first; row < rows; row += own.step) {
    y[row] = index[row] < 0 ? E{0} : x[row * V + report.checked_index(row, index[row], V)];
  }
}

template <typename E>
__global__ void put_elements(const E* y, const int32_t* index, E* x, int64_t count, int64_t V, FaultReport report) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    const int64_t row = i / V, v = i % V;
    if (v == 0 && index[row] >= V) report.checked_index(row, index[row], V);
    x[i] = v == index[row] ? y[row] : E{0};
  }
}

void read_strided(const Args& a, const BroadcastPlan<1>& plan, const View& x, int64_t offset, const View& y) {
  const int64_t count = y.count();
  with_element(x.dtype, [&]<typename E>(E) {
    launch(a, element_grid(count), gather<E>, plan, x.as<E>() + offset, y.as<E>(), count);
  });
}

/** Writes `part` into `whole` from place `start` of `axis`. */
void place(const Args& a, const View& part, const View& whole, int axis, int64_t start) {
  int64_t stride[1][kMaxRank] = {};
  dense_strides(whole, stride[0]);
  const int64_t offset = start * stride[0][axis];
  const BroadcastPlan<1> plan = plan_strided(part, stride);
  const int64_t count = part.count();
  with_element(part.dtype, [&]<typename E>(E) {
    launch(a, element_grid(count), scatter<E>, plan, part.as<E>(), whole.as<E>() + offset, count);
  });
}

CARAVAN_KERNEL(broadcast_to, cuda, "x[...] -> y[...]") {
  read_strided(a, plan_broadcast<1>(a.out[0], a.in), a.in[0], 0, a.out[0]);
}

CARAVAN_KERNEL(transpose, cuda, "x[...] -> y[...] | p0 p1 p2 p3 p4 p5") {
  const View &x = a.in[0], &y = a.out[0];
  int64_t from[kMaxRank];
  int64_t stride[1][kMaxRank] = {};
  dense_strides(x, from);
  for (int i = 0; i < y.rank; i++) stride[0][i] = from[static_cast<int>(a.attrs[i])];
  read_strided(a, plan_strided(y, stride), x, 0, y);
}

CARAVAN_KERNEL(slice, cuda, "x[...] -> y[...] | axis start length") {
  const View& x = a.in[0];
  const int axis = axis_of(x, a.attrs[0]);
  int64_t stride[1][kMaxRank] = {};
  dense_strides(x, stride[0]);
  const int64_t offset = static_cast<int64_t>(a.attrs[1]) * stride[0][axis];
  read_strided(a, plan_strided(a.out[0], stride), x, offset, a.out[0]);
}

CARAVAN_KERNEL(concat, cuda, "a[...] b[...] -> c[...] | axis") {
  const int axis = axis_of(a.out[0], a.attrs[0]);
  place(a, a.in[0], a.out[0], axis, 0);
  place(a, a.in[1], a.out[0], axis, a.in[0].shape[axis]);
}

CARAVAN_KERNEL(take, cuda, "x[*,V] index[*]:i32 -> y[*]") {
  const View& x = a.in[0];
  const int64_t rows = x.rows();
  with_element(x.dtype, [&]<typename E>(E) {
    launch(a, element_grid(rows), take_elements<E>, x.as<E>(), a.in[1].as<int32_t>(), a.out[0].as<E>(), rows, x.last(),
           fault_report(a, "take"));
  });
}

CARAVAN_KERNEL(put, cuda, "y[*] index[*]:i32 -> x[*,V] | V") {
  const View& x = a.out[0];
  const int64_t count = x.count();
  with_element(x.dtype, [&]<typename E>(E) {
    launch(a, element_grid(count), put_elements<E>, a.in[0].as<E>(), a.in[1].as<int32_t>(), x.as<E>(), count, x.last(),
           fault_report(a, "put"));
  });
}

}  // namespace
}  // namespace caravan::cuda
