// Rows by index on the device, as embedding.cc: embedding (gather), its gradient (scatter-add), scatter_rows (scatter).
// The scatter-add sorts the indices by a stable sort and lets one warp add the rows of one index in their order, a slab
// of columns each, so there are no atomics on floats and the result repeats bit for bit; the rows of an index that
// occurs often are shared out to the warps of a block in fixed pieces. Traffic per element: gather 2 values,
// scatter-add dy once and 1 f32 value of dw (2 for the `_add` form), for the rows that occur. An index outside its
// table is reported at the next wait; its row is read as zeros, or not written.
#include "core/scratch.h"
#include "cuda/chain.h"
#include "cuda/packs.h"
#include "cuda/sort.h"
#include "cuda/zero.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// ---- copies of rows -------------------------------------------------------------------------------------------------

constexpr int kUnits = 4;  // a thread moves

/** Rows of `width` units of U. A warp copies kUnits * 32 neighbouring units of one row. */
template <typename U>
struct Rows {
  const U* from;
  U* to;
  const int32_t* index;
  int64_t rows, width, limit;
  int pieces;  // of a row

  /** body(row, first unit) for the piece of this warp. */
  template <typename Body>
  __device__ __forceinline__ void own_piece(const Body& body) const {
    const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
    const int64_t row = warp / pieces;
    if (row < rows) body(row, (warp - row * pieces) * (kWarp * kUnits));
  }
  __device__ __forceinline__ bool has(int64_t row) const { return row >= 0 && row < limit; }
  /** Copies a piece of row `source`, or zeros where that is null. */
  __device__ __forceinline__ void copy(const U* source, U* target, int64_t first) const {
    U units[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; u++) {
      const int64_t i = first + u * kWarp + threadIdx.x % kWarp;
      units[u] = source != nullptr && i < width ? source[i] : U{};
    }
#pragma unroll
    for (int u = 0; u < kUnits; u++) {
      const int64_t i = first + u * kWarp + threadIdx.x % kWarp;
      if (i < width) target[i] = units[u];
    }
  }
};

template <typename U>
__global__ void __launch_bounds__(kThreads) gather(Rows<U> p, FaultReport fault) {
  await_earlier();
  p.own_piece([&](int64_t row, int64_t first) {
    const int64_t at = p.index[row];
    const bool valid = p.has(at);
    if (!valid && threadIdx.x % kWarp == 0) fault.note(FaultKind::kIndex, row, at, p.limit);
    p.copy(valid ? p.from + at * p.width : nullptr, p.to + row * p.width, first);
  });
}

/** winner[index[row]] = the largest such row: the last one wins, as on the CPU. */
__global__ void __launch_bounds__(kThreads)
    find_winners(const int32_t* index, int64_t rows, int64_t limit, int32_t* winner, FaultReport fault) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= rows) return;
  if (index[row] >= 0 && index[row] < limit) {
    atomicMax(&winner[index[row]], static_cast<int32_t>(row));
  } else {
    fault.note(FaultKind::kIndex, row, index[row], limit);
  }
}

template <typename U>
__global__ void __launch_bounds__(kThreads) scatter(Rows<U> p, const int32_t* winner) {
  p.own_piece([&](int64_t row, int64_t first) {
    const int64_t at = p.index[row];
    if (!p.has(at) || winner[at] != row) return;
    p.copy(p.from + row * p.width, p.to + at * p.width, first);
  });
}

/** Up to this many rows look for a later one with their index themselves: one launch in place of three, which a
 * decoding step makes twice a layer. */
constexpr int64_t kFewRows = 1024;

template <typename U>
__global__ void __launch_bounds__(kThreads) scatter_few(Rows<U> p, FaultReport fault) {
  await_earlier();
  p.own_piece([&](int64_t row, int64_t first) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int32_t at = p.index[row];
    if (!p.has(at)) {
      if (lane == 0) fault.note(FaultKind::kIndex, row, at, p.limit);
      return;
    }
    bool is_last = true;
    for (int64_t i = row + 1 + lane; i < p.rows; i += kWarp) is_last = is_last && p.index[i] != at;
    if (__any_sync(kAllLanes, !is_last)) return;
    p.copy(p.from + row * p.width, p.to + at * p.width, first);
  });
}

/** body(U{}) with the widest unit that divides the row and its addresses. */
template <typename Body>
void with_unit(int64_t row_bytes, const void* p, const void* q, size_t element, const Body& body) {
  const uintptr_t bits =
      static_cast<uintptr_t>(row_bytes) | reinterpret_cast<uintptr_t>(p) | reinterpret_cast<uintptr_t>(q);
  if (bits % 16 == 0) return body(uint4{});
  if (element == 8) return body(uint64_t{});
  if (element == 4) return body(uint32_t{});
  if (element == 2) return body(uint16_t{});
  body(uint8_t{});
}

template <typename U>
Rows<U> rows_of(const void* from, void* to, const View& index, int64_t row_bytes, int64_t limit) {
  const int64_t width = row_bytes / static_cast<int64_t>(sizeof(U));
  const int64_t pieces = ceil_div(width, kWarp * kUnits);
  return {static_cast<const U*>(from),
          static_cast<U*>(to),
          index.as<int32_t>(),
          index.count(),
          width,
          limit,
          static_cast<int>(pieces < 1 ? 1 : pieces)};  // an empty row still has its index checked
}
template <typename U>
unsigned blocks_of(const Rows<U>& p) {
  return static_cast<unsigned>(ceil_div(p.rows * p.pieces, kWarps));
}

// ---- sums of rows ---------------------------------------------------------------------------------------------------

/** An index that occurs more often is the work of a block. */
constexpr int kFew = kWarp;
constexpr int kManyWarps = 16;

template <typename T, typename S>
struct Sums {
  const T* dy;
  S* dw;
  SortedKeys sorted;
  uint32_t V;
  int64_t D;
  int slabs;  // of kWarp * kWidth columns
};

template <typename T>
constexpr int kWidth = 16 / sizeof(T);

/** Adds the rows at places [begin, end) of the order to sum, in order. The whole warp must call it. kBatch: rows
 *  that are on their way from memory at a time. */
template <bool kVector, int kBatch, typename T, typename S>
__device__ __forceinline__ void add_rows(const Sums<T, S>& p, int64_t begin, int64_t end, int64_t column,
                                         S (&sum)[kWidth<T>]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int left = span_left<kWidth<T>>(column, p.D);
  for (int64_t first = begin; first < end; first += kWarp) {
    const int n = end - first < kWarp ? static_cast<int>(end - first) : kWarp;
    const int32_t own = lane < n ? p.sorted.positions[first + lane] : 0;
    for (int r = 0; r < n; r += kBatch) {
      Span<T, kWidth<T>> rows[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        const int64_t row = __shfl_sync(kAllLanes, own, r + i);
        if (r + i < n) rows[i] = load_span<kVector, kWidth<T>>(p.dy + row * p.D + column, left);
      }
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        if (r + i >= n) break;
#pragma unroll
        for (int k = 0; k < kWidth<T>; k++) sum[k] += widen(rows[i].x[k]);
      }
    }
  }
}

/** What a sum starts from: the row of dw, or nothing. */
template <bool kVector, bool kAdd, typename T, typename S>
__device__ __forceinline__ void start_sum(const Sums<T, S>& p, uint32_t id, int64_t column, S (&sum)[kWidth<T>]) {
  Span<S, kWidth<T>> span{};
  if (kAdd) span = load_span<kVector, kWidth<T>>(p.dw + id * p.D + column, span_left<kWidth<T>>(column, p.D));
#pragma unroll
  for (int k = 0; k < kWidth<T>; k++) sum[k] = span.x[k];
}

template <bool kVector, typename T, typename S>
__device__ __forceinline__ void store_sum(const Sums<T, S>& p, uint32_t id, int64_t column, const S (&sum)[kWidth<T>]) {
  Span<S, kWidth<T>> span;
#pragma unroll
  for (int k = 0; k < kWidth<T>; k++) span.x[k] = sum[k];
  store_span<kVector>(p.dw + id * p.D + column, span, span_left<kWidth<T>>(column, p.D));
}

/** One warp for each place of the order and slab of columns; it has work where an index begins that occurs at most
 *  kFew times. */
template <typename T, typename S, bool kVector, bool kAdd>
__global__ void __launch_bounds__(kThreads, 3) add_few(Sums<T, S> p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t place = warp / p.slabs;
  const uint32_t* ids = p.sorted.keys;
  if (place >= p.sorted.count) return;
  const uint32_t id = ids[place];
  if (id >= p.V || (place > 0 && ids[place - 1] == id)) return;
  const int64_t next = place + 1 + lane;
  const unsigned same = __ballot_sync(kAllLanes, next < p.sorted.count && ids[next] == id);
  if (same == kAllLanes) return;
  const int64_t column = ((warp - place * p.slabs) * kWarp + lane) * kWidth<T>;
  S sum[kWidth<T>];
  start_sum<kVector, kAdd>(p, id, column, sum);
  add_rows<kVector, kVector ? 4 : 1>(p, place, place + 1 + __popc(same), column, sum);
  store_sum<kVector>(p, id, column, sum);
}

/** First place in [begin, count) whose key is not `id`. */
__device__ __forceinline__ int64_t end_of(const SortedKeys& sorted, int64_t begin, uint32_t id) {
  int64_t end = sorted.count;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (sorted.keys[middle] == id) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/** One block for each kFew-th place of the order and slab of columns; it has work where that place is the first such
 *  one of an index that occurs more than kFew times. Warp w adds the w-th piece of the rows; the pieces are added in
 *  order. */
template <typename T, typename S, bool kVector, bool kAdd>
__global__ void __launch_bounds__(kManyWarps* kWarp, 1) add_many(Sums<T, S> p) {
  __shared__ S partial[kManyWarps][kWarp][kWidth<T>];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t group = blockIdx.x / static_cast<unsigned>(p.slabs);
  const int64_t place = group * kFew;
  const uint32_t* ids = p.sorted.keys;
  const uint32_t id = ids[place];
  if (id >= p.V || (place > 0 && ids[place - kFew] == id)) return;
  const unsigned before = __ballot_sync(kAllLanes, place > lane && ids[place - 1 - lane] == id);
  const int64_t begin = place - __popc(before), end = end_of(p.sorted, place + 1, id);
  if (end - begin <= kFew) return;

  const int64_t column = ((blockIdx.x - group * p.slabs) * kWarp + lane) * kWidth<T>;
  const int64_t share = ceil_div(end - begin, kManyWarps);
  const int64_t first = begin + warp * share;
  S sum[kWidth<T>] = {};
  if (first < end) add_rows<kVector, kVector ? 8 : 1>(p, first, first + share < end ? first + share : end, column, sum);
#pragma unroll
  for (int k = 0; k < kWidth<T>; k++) partial[warp][lane][k] = sum[k];
  __syncthreads();
  if (warp != 0) return;
  start_sum<kVector, kAdd>(p, id, column, sum);
  for (int w = 0; w < kManyWarps; w++) {
#pragma unroll
    for (int k = 0; k < kWidth<T>; k++) sum[k] += partial[w][lane][k];
  }
  store_sum<kVector>(p, id, column, sum);
}

template <bool kAdd, typename T, typename S>
void add_sorted(const Args& a, const Sums<T, S>& p) {
  const bool vector = p.D % kWidth<T> == 0 && is_aligned(p.dy, p.dw);
  const int64_t warps = p.sorted.count * p.slabs;
  const int64_t groups = ceil_div(p.sorted.count, kFew) * p.slabs;
  launch(a, {static_cast<unsigned>(ceil_div(warps, kWarps)), kThreads},
         vector ? add_few<T, S, true, kAdd> : add_few<T, S, false, kAdd>, p);
  launch(a, {static_cast<unsigned>(groups), kManyWarps * kWarp},
         vector ? add_many<T, S, true, kAdd> : add_many<T, S, false, kAdd>, p);
}

/** dw[ids[n]] += dy[n], or = where the rows of dw are zeros. */
template <typename T, typename S>
void scatter_add(const Args& a, const View& dw, const View& dy, const SortedKeys& sorted, bool add) {
  const int64_t D = dw.shape[1];
  const Sums<T, S> p = {dy.as<T>(), dw.as<S>(),
                        sorted,     static_cast<uint32_t>(dw.shape[0]),
                        D,          static_cast<int>(ceil_div(D, kWarp * kWidth<T>))};
  add ? add_sorted<true>(a, p) : add_sorted<false>(a, p);
}

void scatter_add(const char* op, const Args& a, const View& dw, const View& dy, const View& index, bool add) {
  const int64_t N = index.count();
  if (N == 0) return;
  Scratch scratch(a.device, sort_bytes(N));
  const SortedKeys sorted = sort_keys(a, index.as<int32_t>(), N, dw.shape[0], fault_report(a, op), scratch);
  if (dw.shape[1] == 0) return;
  switch (dy.dtype) {
    case DType::kF32:
      return scatter_add<float, float>(a, dw, dy, sorted, add);
    case DType::kBF16:
      return scatter_add<bf16, float>(a, dw, dy, sorted, add);
    case DType::kF64:
      return scatter_add<double, double>(a, dw, dy, sorted, add);
    default:
      fail("ERR_DTYPE", "%s: the CUDA kernel takes f32, bf16 or f64; got %s", op, name_of(dy.dtype));
  }
}

CARAVAN_KERNEL(embedding, cuda, "ids[N]:i32 w[V,D] -> y[N,D]") {
  const View &w = a.in[1], &y = a.out[0];
  const int64_t row_bytes = w.shape[1] * static_cast<int64_t>(size_of(w.dtype));
  with_unit(row_bytes, w.data, y.data, size_of(w.dtype), [&]<typename U>(U) {
    const Rows<U> p = rows_of<U>(w.data, y.data, a.in[0], row_bytes, w.shape[0]);
    launch_chained(a, {blocks_of(p), kThreads}, gather<U>, p, fault_report(a, "embedding"));
  });
}

CARAVAN_KERNEL(embedding_backward, cuda, "dy[N,D] ids[N]:i32 -> dw[V,D]:f32 | V") {
  const View& dw = a.out[0];
  zero(a, dw);
  scatter_add("embedding_backward", a, dw, a.in[0], a.in[1], false);
}

CARAVAN_KERNEL(embedding_backward_add, cuda, "dw[V,D]:f32! dy[N,D] ids[N]:i32 ->") {
  scatter_add("embedding_backward_add", a, a.in[0], a.in[1], a.in[2], true);
}

CARAVAN_KERNEL(scatter_rows, cuda, "into[M,W]! rows[N,W] index[N]:i32 ->") {
  const View &into = a.in[0], &rows = a.in[1], &index = a.in[2];
  const int64_t M = into.shape[0];
  const int64_t row_bytes = into.shape[1] * static_cast<int64_t>(size_of(into.dtype));
  if (index.count() == 0) return;
  if (index.count() <= kFewRows) {
    return with_unit(row_bytes, rows.data, into.data, size_of(into.dtype), [&]<typename U>(U) {
      const Rows<U> p = rows_of<U>(rows.data, into.data, index, row_bytes, M);
      launch_chained(a, {blocks_of(p), kThreads}, scatter_few<U>, p, fault_report(a, "scatter_rows"));
    });
  }
  Scratch scratch(a.device, static_cast<size_t>(M) * sizeof(int32_t));
  int32_t* winner = scratch.as<int32_t>();
  if (M != 0) check(cudaMemsetAsync(winner, 0xff, static_cast<size_t>(M) * sizeof(int32_t), stream_of(a)), "fill");
  launch(a, {static_cast<unsigned>(ceil_div(index.count(), kThreads)), kThreads}, find_winners, index.as<int32_t>(),
         index.count(), M, winner, fault_report(a, "scatter_rows"));
  with_unit(row_bytes, rows.data, into.data, size_of(into.dtype), [&]<typename U>(U) {
    const Rows<U> p = rows_of<U>(rows.data, into.data, index, row_bytes, M);
    launch(a, {blocks_of(p), kThreads}, scatter<U>, p, winner);
  });
}

}  // namespace
}  // namespace caravan::cuda
