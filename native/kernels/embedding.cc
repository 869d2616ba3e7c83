// Rows by index: embedding (gather), its gradient (scatter-add) and scatter_rows (scatter). The scatters cut the
// columns, not the rows, into tasks: each task walks all rows in order, so a repeated index is summed in row order (or
// the last row wins) without atomics or sorting, and the result does not depend on the cut. Traffic per element: gather
// 2 values, scatter-add dy once and 2 f32 values of dw. Only the rows that occur are touched by the `_add` form.
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace embedding_detail {

/** ERR_KERNEL unless every index is in [0, rows). */
void check_indices(const char* op, const View& index, int64_t rows, const char* rows_name) {
  const int32_t* ids = index.as<int32_t>();
  const int64_t N = index.count();
  for (int64_t n = 0; n < N; n++) {
    if (ids[n] < 0 || ids[n] >= rows) {
      fail("ERR_KERNEL", "%s: index %d at position %lld is outside [0,%s) = [0,%lld)", op, ids[n],
           static_cast<long long>(n), rows_name, static_cast<long long>(rows));
    }
  }
}

/** Columns of a task when `columns` columns of rows are shared out by columns: whole cache lines, enough tasks to
 *  balance the threads, never so few columns that the walk over the indices dominates. */
int64_t columns_per_task(ThreadPool& pool, int64_t columns, int64_t rows, int64_t element_bytes) {
  constexpr int64_t kLeast = 64;
  if (rows * columns * element_bytes <= kTaskBytes) return columns < 1 ? 1 : columns;
  int64_t share = (columns + 2 * pool.threads() - 1) / (2 * pool.threads());
  share = (share + kLeast - 1) / kLeast * kLeast;
  return share < kLeast ? kLeast : share;
}

void gather(const Args& a) {
  const View& w = a.in[1];
  check_indices("embedding", a.in[0], w.shape[0], "V");
  const int32_t* ids = a.in[0].as<int32_t>();
  const size_t row_bytes = static_cast<size_t>(w.shape[1]) * size_of(w.dtype);
  parallel_ranges(pool_of(a), a.in[0].count(), rows_per_task(2 * static_cast<int64_t>(row_bytes)),
                  [&](int64_t begin, int64_t end, int) {
                    for (int64_t n = begin; n < end; n++) {
                      __builtin_memcpy(a.out[0].as<char>() + static_cast<size_t>(n) * row_bytes,
                                       w.as<char>() + static_cast<size_t>(ids[n]) * row_bytes, row_bytes);
                    }
                  });
}

template <typename T>
void add_row(float* into, const T* row, int64_t count) {
  for_vectors(count,
              [&](int64_t i, auto vector) { vector.store(into + i, vector.load(into + i) + vector.load(row + i)); });
}
void add_row(double* into, const double* row, int64_t count) {
  for (int64_t i = 0; i < count; i++) into[i] += row[i];
}

/** dw[ids[n]] += dy[n] for n in order. T: element of dy, S: of dw. */
template <typename T, typename S>
void add_rows(const Args& a, const View& dw, const View& dy, const View& index) {
  const int32_t* ids = index.as<int32_t>();
  const int64_t N = index.count();
  const int64_t D = dw.shape[1];
  ThreadPool& pool = pool_of(a);
  parallel_ranges(pool, D, columns_per_task(pool, D, N, sizeof(T) + 2 * sizeof(S)),
                  [&](int64_t begin, int64_t end, int) {
                    for (int64_t n = 0; n < N; n++) {
                      // The rows of dw lie anywhere in memory: ask for one a few steps ahead.
                      if (n + 4 < N) __builtin_prefetch(dw.as<S>() + ids[n + 4] * D + begin, 1);
                      add_row(dw.as<S>() + ids[n] * D + begin, dy.as<T>() + n * D + begin, end - begin);
                    }
                  });
}

void scatter_add(const char* op, const Args& a, const View& dw, const View& dy, const View& index) {
  check_indices(op, index, dw.shape[0], "V");
  switch (dy.dtype) {
    case DType::kF32:
      return add_rows<float, float>(a, dw, dy, index);
    case DType::kBF16:
      return add_rows<bf16, float>(a, dw, dy, index);
    case DType::kF64:
      return add_rows<double, double>(a, dw, dy, index);
    default:
      fail("ERR_DTYPE", "%s: the CPU kernel takes f32, bf16 or f64; got %s", op, name_of(dy.dtype));
  }
}

void scatter(const Args& a) {
  const View& into = a.in[0];
  check_indices("scatter_rows", a.in[2], into.shape[0], "M");
  const int32_t* index = a.in[2].as<int32_t>();
  const int64_t N = a.in[2].count();
  const int64_t W = into.shape[1];
  const size_t element = size_of(into.dtype);
  ThreadPool& pool = pool_of(a);
  int64_t columns = columns_per_task(pool, W, N, static_cast<int64_t>(2 * element));
  parallel_ranges(pool, W, columns, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = 0; n < N; n++) {
      __builtin_memcpy(into.as<char>() + static_cast<size_t>(index[n] * W + begin) * element,
                       a.in[1].as<char>() + static_cast<size_t>(n * W + begin) * element,
                       static_cast<size_t>(end - begin) * element);
    }
  });
}

}  // namespace embedding_detail

CARAVAN_KERNEL(embedding, cpu, "ids[N]:i32 w[V,D] -> y[N,D]") { embedding_detail::gather(a); }

CARAVAN_KERNEL(embedding_backward, cpu, "dy[N,D] ids[N]:i32 -> dw[V,D]:f32 | V") {
  const View& dw = a.out[0];
  const int64_t bytes = static_cast<int64_t>(dw.bytes());
  parallel_ranges(pool_of(a), bytes, 4 * kTaskBytes, [&](int64_t begin, int64_t end, int) {
    __builtin_memset(dw.as<char>() + begin, 0, static_cast<size_t>(end - begin));
  });
  embedding_detail::scatter_add("embedding_backward", a, dw, a.in[0], a.in[1]);
}

CARAVAN_KERNEL(embedding_backward_add, cpu, "dw[V,D]:f32! dy[N,D] ids[N]:i32 ->") {
  embedding_detail::scatter_add("embedding_backward_add", a, a.in[0], a.in[1], a.in[2]);
}

CARAVAN_KERNEL(scatter_rows, cpu, "into[M,W]! rows[N,W] index[N]:i32 ->") { embedding_detail::scatter(a); }

}  // namespace
}  // namespace caravan::CARAVAN_ISA
