// Ops that move elements and compute nothing: they work on elements of 1, 2, 4 or 8 bytes, whatever the dtype. A copy
// is a walk over one contiguous side while the other advances by strides; a transpose whose rows are not contiguous
// goes by tiles, so that both sides use whole cache lines. Traffic per element: one read and one write.
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/broadcast.h"
#include "kernels/dispatch.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace movement_detail {

/** Side of a transpose tile: one cache line of elements, so that every line is read once and written once, whole.
 *  Larger tiles of power-of-two strides would drive each other out of the few ways of L1. */
template <typename E>
constexpr int64_t kTile = 64 / sizeof(E);

/** to[i] = from[i * step]. */
template <typename E>
void read_row(E* to, const E* from, int64_t step, int64_t n) {
  if (step == 1) {
    __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(E));
  } else if (step == 0) {
    for (int64_t i = 0; i < n; i++) to[i] = *from;
  } else {
    for (int64_t i = 0; i < n; i++) to[i] = from[i * step];
  }
}

/** y[i] = x at the plan's strides, in the order of y. */
template <typename E>
void read_strided(ThreadPool& pool, const BroadcastPlan<1>& plan, const E* x, const View& y) {
  const int64_t step = plan.stride[0][plan.rank - 1];
  parallel_ranges(pool, y.count(), rows_per_task(2 * sizeof(E)), [&](int64_t begin, int64_t end, int) {
    walk_broadcast(plan, begin, end, [&](int64_t position, int64_t n, const int64_t* offsets) {
      read_row(y.as<E>() + position, x + offsets[0], step, n);
    });
  });
}

/** y at the plan's strides = x[i], in the order of x. */
template <typename E>
void write_strided(ThreadPool& pool, const BroadcastPlan<1>& plan, const View& x, E* y) {
  const int64_t step = plan.stride[0][plan.rank - 1];
  parallel_ranges(pool, x.count(), rows_per_task(2 * sizeof(E)), [&](int64_t begin, int64_t end, int) {
    walk_broadcast(plan, begin, end, [&](int64_t position, int64_t n, const int64_t* offsets) {
      const E* from = x.as<E>() + position;
      E* to = y + offsets[0];
      if (step == 1) {
        __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(E));
      } else {
        for (int64_t i = 0; i < n; i++) to[i * step] = from[i];
      }
    });
  });
}

/** One tile, turned in a buffer in L1: to[i * to_step + j] = from[i + j * from_step]. */
template <typename E>
void transpose_tile(const E* from, int64_t from_step, E* to, int64_t to_step, int64_t rows, int64_t columns) {
  E tile[kTile<E>][kTile<E>];
  if (rows == kTile<E> && columns == kTile<E>) {
    for (int64_t j = 0; j < kTile<E>; j++) {
      for (int64_t i = 0; i < kTile<E>; i++) tile[i][j] = from[i + j * from_step];
    }
    for (int64_t i = 0; i < kTile<E>; i++) __builtin_memcpy(to + i * to_step, tile[i], sizeof(tile[i]));
    return;
  }
  for (int64_t j = 0; j < columns; j++) {
    for (int64_t i = 0; i < rows; i++) to[i * to_step + j] = from[i + j * from_step];
  }
}

/** Transposes tiles of the plan's dimension `fast` (along which x is contiguous) and its last one (along which y is).
 */
template <typename E>
void transpose_tiles(ThreadPool& pool, const BroadcastPlan<1>& plan, int fast, const E* x, E* y) {
  const int last = plan.rank - 1;
  int64_t y_stride[kMaxRank];
  int64_t next = 1;
  int64_t outer = 1;
  for (int i = last; i >= 0; i--) {
    y_stride[i] = next;
    next *= plan.shape[i];
    if (i != last && i != fast) outer *= plan.shape[i];
  }
  constexpr int64_t kSide = kTile<E>;
  const int64_t bands = (plan.shape[fast] + kSide - 1) / kSide;
  const int64_t x_step = plan.stride[0][last];
  parallel_ranges(pool, outer * bands, rows_per_task(kSide * plan.row() * 2 * static_cast<int64_t>(sizeof(E))),
                  [&](int64_t begin, int64_t end, int) {
                    for (int64_t band = begin; band < end; band++) {
                      const int64_t first = band % bands * kSide;
                      const int64_t count = plan.shape[fast] - first < kSide ? plan.shape[fast] - first : kSide;
                      const E* from = x + first;
                      E* to = y + first * y_stride[fast];
                      int64_t left = band / bands;
                      for (int i = last - 1; i >= 0; i--) {
                        if (i == fast) continue;
                        from += left % plan.shape[i] * plan.stride[0][i];
                        to += left % plan.shape[i] * y_stride[i];
                        left /= plan.shape[i];
                      }
                      for (int64_t column = 0; column < plan.row(); column += kSide) {
                        const int64_t columns = plan.row() - column < kSide ? plan.row() - column : kSide;
                        transpose_tile(from + column * x_step, x_step, to + column, y_stride[fast], count, columns);
                      }
                    }
                  });
}

/** Writes `part` into `whole` from place `start` of `axis`. */
void place(const Args& a, const View& part, const View& whole, int axis, int64_t start) {
  int64_t stride[1][kMaxRank] = {};
  dense_strides(whole, stride[0]);
  const int64_t offset = start * stride[0][axis];
  const BroadcastPlan<1> plan = plan_strided(part, stride);
  with_element(part.dtype, [&]<typename E>(E) { write_strided<E>(pool_of(a), plan, part, whole.as<E>() + offset); });
}

/** ERR_KERNEL unless every index is below V. */
void check_below(const char* op, const View& index, int64_t V) {
  for (int64_t row = 0; row < index.count(); row++) {
    if (index.as<int32_t>()[row] >= V) {
      fail("ERR_KERNEL", "%s: index %d of row %lld is not below V = %lld", op, index.as<int32_t>()[row],
           static_cast<long long>(row), static_cast<long long>(V));
    }
  }
}

}  // namespace movement_detail

CARAVAN_KERNEL(broadcast_to, cpu, "x[...] -> y[...]") {
  const BroadcastPlan<1> plan = plan_broadcast<1>(a.out[0], a.in);
  with_element(a.in[0].dtype,
               [&]<typename E>(E) { movement_detail::read_strided<E>(pool_of(a), plan, a.in[0].as<E>(), a.out[0]); });
}

CARAVAN_KERNEL(transpose, cpu, "x[...] -> y[...] | p0 p1 p2 p3 p4 p5") {
  const View& x = a.in[0];
  const View& y = a.out[0];
  if (y.count() == 0) return;
  int64_t from[kMaxRank];
  int64_t stride[1][kMaxRank] = {};
  dense_strides(x, from);
  for (int i = 0; i < y.rank; i++) stride[0][i] = from[static_cast<int>(a.attrs[i])];
  const BroadcastPlan<1> plan = plan_strided(y, stride);
  int fast = plan.rank - 1;
  for (int i = 0; i < plan.rank; i++) {
    if (plan.stride[0][i] == 1) fast = i;
  }
  with_element(x.dtype, [&]<typename E>(E) {
    if (fast == plan.rank - 1) {
      movement_detail::read_strided<E>(pool_of(a), plan, x.as<E>(), y);
    } else {
      movement_detail::transpose_tiles<E>(pool_of(a), plan, fast, x.as<E>(), y.as<E>());
    }
  });
}

CARAVAN_KERNEL(slice, cpu, "x[...] -> y[...] | axis start length") {
  const View& x = a.in[0];
  const int axis = axis_of(x, a.attrs[0]);
  int64_t stride[1][kMaxRank] = {};
  dense_strides(x, stride[0]);
  const int64_t offset = static_cast<int64_t>(a.attrs[1]) * stride[0][axis];
  const BroadcastPlan<1> plan = plan_strided(a.out[0], stride);
  with_element(x.dtype, [&]<typename E>(E) {
    movement_detail::read_strided<E>(pool_of(a), plan, x.as<E>() + offset, a.out[0]);
  });
}

CARAVAN_KERNEL(concat, cpu, "a[...] b[...] -> c[...] | axis") {
  const int axis = axis_of(a.out[0], a.attrs[0]);
  movement_detail::place(a, a.in[0], a.out[0], axis, 0);
  movement_detail::place(a, a.in[1], a.out[0], axis, a.in[0].shape[axis]);
}

CARAVAN_KERNEL(take, cpu, "x[*,V] index[*]:i32 -> y[*]") {
  const View& x = a.in[0];
  const int32_t* index = a.in[1].as<int32_t>();
  const int64_t V = x.last();
  movement_detail::check_below("take", a.in[1], V);
  with_element(x.dtype, [&]<typename E>(E) {
    // Each element read is a cache line of its own.
    parallel_ranges(pool_of(a), x.rows(), rows_per_task(64), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        a.out[0].as<E>()[row] = index[row] < 0 ? E{0} : x.as<E>()[row * V + index[row]];
      }
    });
  });
}

CARAVAN_KERNEL(put, cpu, "y[*] index[*]:i32 -> x[*,V] | V") {
  const View& x = a.out[0];
  const int32_t* index = a.in[1].as<int32_t>();
  const int64_t V = x.last();
  movement_detail::check_below("put", a.in[1], V);
  with_element(x.dtype, [&]<typename E>(E) {
    parallel_ranges(pool_of(a), x.rows(), rows_per_task(V * sizeof(E)), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        E* to = x.as<E>() + row * V;
        __builtin_memset(to, 0, static_cast<size_t>(V) * sizeof(E));
        if (index[row] >= 0) to[index[row]] = a.in[0].as<E>()[row];
      }
    });
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
