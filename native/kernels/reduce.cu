// Reductions along one axis of x seen as [outer, R, inner], as reduce.cc. The order is fixed by R and inner: threads
// take every n-th element of a run of fixed length, a tree joins the threads, and the runs are joined in run order;
// sums are f64 throughout. Traffic per element: one read.
#include "cuda/reduce.h"

#include "core/scratch.h"
#include "cuda/numbers.h"
#include "kernels/broadcast.h"
#include "kernels/number_convert.h"

namespace caravan::cuda {
namespace {

constexpr int kThreads = 256;
/** Elements of a run along the last axis, rows of a run along another. */
constexpr int64_t kRunElements = 16384;
constexpr int64_t kRunRows = 256;

struct Sum {
  __device__ static double start() { return 0.0; }
  __device__ double operator()(double sum, double x) const { return sum + x; }
};
/** A NaN wins, as in NumPy; the maximum of nothing is -inf. */
struct Max {
  __device__ static double start() { return -HUGE_VAL; }
  __device__ double operator()(double most, double x) const { return most != most || most > x ? most : x; }
};

/** A warp per run: `runs` runs a row, of which run i starts at i * kRunElements. */
template <typename Reduction, typename T, typename To>
__global__ void reduce_runs(const T* x, int64_t R, int64_t runs, int64_t count, To* y) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t run = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const bool mine = run < count;
  const int64_t first = mine ? run % runs * kRunElements : 0;
  const int64_t end = !mine ? 0 : first + kRunElements < R ? first + kRunElements : R;
  const T* row = x + (mine ? run / runs : 0) * R;
  const Reduction reduction;
  double value = Reduction::start();
  for (int64_t i = first + lane; i < end; i += kWarp) value = reduction(value, to_f64(row[i]));
  value = warp_reduce(value, reduction);
  if (mine && lane == 0) round_to(value, y + run);
}

/** A thread per column of a run of rows; `across` blocks beside each other for all columns. */
template <typename Reduction, typename T, typename To>
__global__ void reduce_columns(const T* x, Extent e, int64_t runs, unsigned across, To* y) {
  const int64_t column = int64_t{blockIdx.x % across} * kThreads + threadIdx.x;
  if (column >= e.inner) return;
  const int64_t run = blockIdx.x / across % runs, outer = blockIdx.x / across / runs;
  const int64_t first = run * kRunRows;
  const int64_t end = first + kRunRows < e.R ? first + kRunRows : e.R;
  const Reduction reduction;
  double value = Reduction::start();
  for (int64_t r = first; r < end; r++) value = reduction(value, to_f64(x[(outer * e.R + r) * e.inner + column]));
  round_to(value, y + (outer * runs + run) * e.inner + column);
}

template <typename Reduction, typename T, typename To>
void reduce_rows_of(const Args& a, const T* x, const Extent& e, To* y) {
  const int64_t runs = e.R <= kRunElements ? 1 : ceil_div(e.R, kRunElements);
  auto pass = [&]<typename From, typename Into>(const From* from, int64_t R, int64_t parts, Into* to) {
    const int64_t count = e.outer * parts;
    const dim3 grid(static_cast<unsigned>(ceil_div(count, kThreads / kWarp)));
    launch(a, {grid, dim3(kThreads)}, reduce_runs<Reduction, From, Into>, from, R, parts, count, to);
  };
  if (runs == 1) return pass(x, e.R, 1, y);
  Scratch scratch(a.device, static_cast<size_t>(e.outer * runs) * sizeof(double));
  pass(x, e.R, runs, scratch.as<double>());
  reduce_rows_of<Reduction>(a, scratch.as<double>(), Extent{e.outer, runs, 1}, y);
}

template <typename Reduction, typename T, typename To>
void reduce_columns_of(const Args& a, const T* x, const Extent& e, To* y) {
  const int64_t runs = e.R <= kRunRows ? 1 : ceil_div(e.R, kRunRows);
  const unsigned across = static_cast<unsigned>(ceil_div(e.inner, kThreads));
  // In one dimension: the second one of a grid is short.
  const dim3 grid(static_cast<unsigned>(e.outer * runs * across));
  auto pass = [&]<typename Into>(Into* to) {
    launch(a, {grid, dim3(kThreads)}, reduce_columns<Reduction, T, Into>, x, e, runs, across, to);
  };
  if (runs == 1) return pass(y);
  Scratch scratch(a.device, static_cast<size_t>(e.outer * runs * e.inner) * sizeof(double));
  pass(scratch.as<double>());
  reduce_columns_of<Reduction>(a, scratch.as<double>(), Extent{e.outer, runs, e.inner}, y);
}

template <typename Reduction>
void reduce(const char* op, const Args& a) {
  const Extent extent = extent_of(a.in[0], a.attrs[0]);
  if (a.out[0].count() == 0) return;
  with_float_type(op, a.in[0].dtype, [&]<typename T>(T) {
    if (extent.inner == 1) {
      reduce_rows_of<Reduction>(a, a.in[0].as<T>(), extent, a.out[0].as<T>());
    } else {
      reduce_columns_of<Reduction>(a, a.in[0].as<T>(), extent, a.out[0].as<T>());
    }
  });
}

// ---- argmax: the largest value, the first place of it; NaN never wins
// ------------------------------------------------

struct Best {
  double value;
  long long index;
};
struct BetterOf {
  __device__ Best operator()(const Best& a, const Best& b) const {
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
  }
};

__device__ Best warp_best(Best best) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const Best other = {__shfl_xor_sync(kAllLanes, best.value, bits), __shfl_xor_sync(kAllLanes, best.index, bits)};
    best = BetterOf{}(best, other);
  }
  return best;
}

template <typename T>
__global__ void argmax_rows(const T* x, int64_t V, int32_t* index) {
  __shared__ Best partial[kWarp];
  const T* row = x + int64_t{blockIdx.x} * V;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Best best = {-HUGE_VAL, V};
  for (int64_t i = threadIdx.x; i < V; i += kThreads) best = BetterOf{}(best, Best{to_f64(row[i]), i});
  best = warp_best(best);
  if (lane == 0) partial[warp] = best;
  __syncthreads();
  if (warp == 0) {
    best = warp_best(lane < kThreads / kWarp ? partial[lane] : Best{-HUGE_VAL, V});
    if (lane == 0) index[blockIdx.x] = best.index < V ? static_cast<int32_t>(best.index) : 0;
  }
}

CARAVAN_KERNEL(sum, cuda, "x[...] -> y[...] | axis") { reduce<Sum>("sum", a); }
CARAVAN_KERNEL(max, cuda, "x[...] -> y[...] | axis") { reduce<Max>("max", a); }

CARAVAN_KERNEL(argmax, cuda, "x[*,V] -> index[*]:i32") {
  const View& x = a.in[0];
  const dim3 grid(static_cast<unsigned>(x.rows()));
  with_float_type("argmax", x.dtype, [&]<typename T>(T) {
    launch(a, {grid, dim3(kThreads)}, argmax_rows<T>, x.as<T>(), x.last(), a.out[0].as<int32_t>());
  });
}

}  // namespace
}  // namespace caravan::cuda
