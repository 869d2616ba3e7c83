// rms_norm and its gradient on the device, as rms_norm.cc. A row lives in the registers of its threads (cuda/row.h), so
// traffic per element is the floor: forward 2 values, with residual 3, backward 3 (4 with dx0), add_rms_norm 4. dw is
// summed over chunks of rows in registers, then over chunks in a fixed tree; the chunk depends on the number of rows
// alone. Extra traffic of the partial sums: 4 / chunk bytes an element each way, mostly in L2.
#include "core/scratch.h"
#include "cuda/chain.h"
#include "cuda/row.h"
#include "cuda/tensor_core.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

/** Sum of squares -> 1 / rms. */
__device__ __forceinline__ float rstd_of(float squares, int D, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(D < 1 ? 1 : D) + eps);
}

template <typename T>
struct Forward {
  const T* x;
  const T* w;
  const T* residual;  // of rms_norm: added to the result, may be null; of add_rms_norm: added to x
  T* y;
  T* sum;  // of add_rms_norm
  float* rstd;
  int64_t rows;
  int D;
  int rounds;
  float eps;
};

template <typename S>
__global__ void __launch_bounds__(S::kBlock, S::kResident) forward_rows(Forward<typename S::T> p) {
  await_earlier();
  const int64_t begin = int64_t{blockIdx.x} * p.rounds * S::kGroups;
  RowOf<S> w;
  w.load(p.w, p.D);
  for_rows<S>(begin, p.rows, p.rounds, [&](int64_t row, bool exists) {
    const int width = exists ? p.D : 0;
    RowOf<S> x, residual;
    x.load(p.x + row * p.D, width);
    if (p.residual != nullptr) residual.load(p.residual + row * p.D, width);
    float squares = 0.0f;
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at);
#pragma unroll
      for (int k = 0; k < S::kElements; k++) squares = fmaf(xs.x[k], xs.x[k], squares);
    });
    const float scale = rstd_of(group_sum<S>(squares), p.D, p.eps);
    if (exists && threadIdx.x % S::kThreads == 0) p.rstd[row] = scale;
    x.forget();
    w.forget();
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at), ws = w.get(slot, at);
      RowValues<S> y;
      if (p.residual != nullptr) {
        const RowValues<S> rs = residual.get(slot, at);
#pragma unroll
        for (int k = 0; k < S::kElements; k++) y.x[k] = fmaf(xs.x[k] * scale, ws.x[k], rs.x[k]);
      } else {
#pragma unroll
        for (int k = 0; k < S::kElements; k++) y.x[k] = xs.x[k] * scale * ws.x[k];
      }
      RowWords<S>::of(y).store(p.y + row * p.D, width, at);
    });
  });
}

/** The norm is taken of the sum as stored, so that backward, which reads it, sees the very same function. */
template <typename S>
__global__ void __launch_bounds__(S::kBlock, S::kResident) forward_of_sum(Forward<typename S::T> p) {
  await_earlier();
  const int64_t begin = int64_t{blockIdx.x} * p.rounds * S::kGroups;
  RowOf<S> w;
  w.load(p.w, p.D);
  for_rows<S>(begin, p.rows, p.rounds, [&](int64_t row, bool exists) {
    const int width = exists ? p.D : 0;
    RowOf<S> x, residual, sum;
    x.load(p.x + row * p.D, width);
    residual.load(p.residual + row * p.D, width);
    float squares = 0.0f;
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at), rs = residual.get(slot, at);
      RowValues<S> added;
#pragma unroll
      for (int k = 0; k < S::kElements; k++) added.x[k] = xs.x[k] + rs.x[k];
      const RowValues<S> stored = sum.put(p.sum + row * p.D, width, slot, at, added);
#pragma unroll
      for (int k = 0; k < S::kElements; k++) squares = fmaf(stored.x[k], stored.x[k], squares);
    });
    const float scale = rstd_of(group_sum<S>(squares), p.D, p.eps);
    if (exists && threadIdx.x % S::kThreads == 0) p.rstd[row] = scale;
    sum.forget();
    w.forget();
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> sums = sum.get(slot, at), ws = w.get(slot, at);
      RowValues<S> y;
#pragma unroll
      for (int k = 0; k < S::kElements; k++) y.x[k] = sums.x[k] * scale * ws.x[k];
      RowWords<S>::of(y).store(p.y + row * p.D, width, at);
    });
  });
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <typename T>
struct Backward {
  const T* dy;
  const T* x;
  const T* w;
  const float* rstd;
  const T* dx0;
  T* dx;
  float* partial;  // [blocks, D]
  int64_t rows;
  int D;
  int chunk;  // rows of a block
};

/** Part of dw that a thread owns: in registers, or for rows too wide for that in its place of `partial`. */
template <typename S>
struct WeightSum {
  float held[S::kSlots][S::kElements];

  __device__ __forceinline__ void add(float* partial, int width, bool first, int slot, int at,
                                      const float (&terms)[S::kElements]) {
    if constexpr (S::kHeld) {
#pragma unroll
      for (int k = 0; k < S::kElements; k++) held[slot][k] += terms[k];
    } else {
#pragma unroll
      for (int k = 0; k < S::kElements; k++) {
        if (at + k < width) partial[at + k] = (first ? 0.0f : partial[at + k]) + terms[k];
      }
    }
  }

  /** Sums over the groups of the block, in a fixed order, and stores one row of `partial`. */
  __device__ __forceinline__ void store(float* partial, int width) {
    if constexpr (!S::kHeld) return;
    if constexpr (S::kGroups > 1) {
      CARAVAN_SHARED(float, sums);  // [warps][width]
      const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
      for (int slot = 0; slot < S::kSlots; slot++) {
#pragma unroll
        for (int k = 0; k < S::kElements; k++) {
#pragma unroll
          for (int bits = S::kThreads; bits < kWarp; bits *= 2) {
            held[slot][k] += __shfl_xor_sync(kAllLanes, held[slot][k], bits);
          }
        }
      }
      if (threadIdx.x % kWarp < S::kThreads) write(sums + warp * width, width);
      __syncthreads();
      for (int column = static_cast<int>(threadIdx.x); column < width; column += S::kBlock) {
        float sum = 0.0f;
        for (int from = 0; from < S::kBlock / kWarp; from++) sum += sums[from * width + column];
        partial[column] = sum;
      }
    } else {
      write(partial, width);
    }
  }

 private:
  __device__ __forceinline__ void write(float* to, int width) const {
    for_packs<S>(width, [&](int slot, int at) {
#pragma unroll
      for (int k = 0; k < S::kElements; k++) {
        if (S::kVector || at + k < width) to[at + k] = held[slot][k];
      }
    });
  }
};

/** Where a block works on one row at a time, the rows of x and dy, and of dx0, are asked for ahead, by way of shared
 *  memory: that takes no registers, of which there are few beside a part of dw, so that more blocks find room. A thread
 *  reads what it has itself asked for; nobody waits for another. */
template <typename S>
constexpr bool kStaged = S::kHeld && S::kVector && S::kGroups == 1;
template <typename S>
constexpr int kStagedRowBytes = S::kSlots * S::kBlock * 16;
/** Two rows ahead and the one at hand, of two tensors; or, of three, one and the one at hand. */
template <typename S>
constexpr size_t kStagedBytes = kStaged<S> ? size_t{6} * kStagedRowBytes<S> : 0;
template <typename S>
constexpr int kBackwardResident = kStaged<S> && S::kSlots <= 2 ? 4 : S::kResident;

/** A thread's packs of a row that lie in shared memory. */
template <typename S>
struct StagedRow {
  const unsigned char* packs;
  __device__ __forceinline__ RowValues<S> get(int slot, int) const {
    return reinterpret_cast<const RowWords<S>*>(packs + slot * (S::kBlock * 16))->values();
  }
  __device__ __forceinline__ void forget() {}
};

/** The rows of a block, in turns. */
template <typename S>
class StagedRows {
 public:
  using Row = StagedRow<S>;
  __device__ __forceinline__ StagedRows(const Backward<typename S::T>& p, unsigned char* memory, int64_t begin,
                                        int64_t end)
      : p_(p), own_(memory + threadIdx.x * 16), begin_(begin), end_(end), ahead_(p.dx0 != nullptr ? 1 : 2) {
    ask(0);
    if (ahead_ == 2) ask(1);
  }
  /** Gives the rows of a round and asks for those of a later one. */
  __device__ __forceinline__ void take(int round, int64_t, int, Row& x, Row& dy, Row& dx0) const {
    ask(round + ahead_);
    ahead_ == 2 ? cp_async_wait<2>() : cp_async_wait<1>();
    x.packs = at(round, 0);
    dy.packs = at(round, 1);
    dx0.packs = at(round, 2);
  }
  __device__ __forceinline__ void finish() const { cp_async_wait<0>(); }

 private:
  __device__ __forceinline__ void ask(int round) const {
    const int64_t row = begin_ + round;
    for_packs<S>(row < end_ ? p_.D : 0, [&](int slot, int column) {
      const int64_t from = row * p_.D + column;
      const auto copy = [&](int tensor, const typename S::T* data) {
        cp_async16(at(round, tensor) + slot * (S::kBlock * 16), data + from);
      };
      copy(0, p_.x);
      copy(1, p_.dy);
      if (p_.dx0 != nullptr) copy(2, p_.dx0);
    });
    cp_async_commit();
  }
  __device__ __forceinline__ unsigned char* at(int round, int tensor) const {
    const int stage = ahead_ == 2 ? round % 3 * 2 : round % 2 * 3;
    return own_ + (stage + tensor) * kStagedRowBytes<S>;
  }

  const Backward<typename S::T>& p_;
  unsigned char* own_;
  int64_t begin_, end_;
  int ahead_;
};

/** Rows that are loaded when they are needed. */
template <typename S>
class LoadedRows {
 public:
  using Row = RowOf<S>;
  __device__ __forceinline__ LoadedRows(const Backward<typename S::T>& p, unsigned char*, int64_t, int64_t) : p_(p) {}
  __device__ __forceinline__ void take(int, int64_t row, int width, Row& x, Row& dy, Row&) const {
    x.load(p_.x + row * p_.D, width);
    dy.load(p_.dy + row * p_.D, width);
  }
  __device__ __forceinline__ void finish() const {}

 private:
  const Backward<typename S::T>& p_;
};

/** With u = dy * w: dx = rstd * (u - x * rstd^2 * mean(u * x)) (+ dx0) and dw = sum over rows of dy * x * rstd. */
template <typename S>
__global__ void __launch_bounds__(S::kBlock, kBackwardResident<S>) backward_rows(Backward<typename S::T> p) {
  CARAVAN_SHARED(unsigned char, memory);
  using Rows = std::conditional_t<kStaged<S>, StagedRows<S>, LoadedRows<S>>;
  const int64_t begin = int64_t{blockIdx.x} * p.chunk + static_cast<int>(threadIdx.x) / S::kThreads;
  const int64_t end = min((int64_t{blockIdx.x} + 1) * p.chunk, p.rows);
  float* partial = p.partial + int64_t{blockIdx.x} * p.D;
  const Rows rows(p, memory, begin, end);
  WeightSum<S> dw{};
  RowOf<S> w;
  w.load(p.w, p.D);
  for (int round = 0; round < p.chunk / S::kGroups; round++) {
    const int64_t at_row = begin + int64_t{round} * S::kGroups, row = at_row < end ? at_row : 0;
    const int width = at_row < end ? p.D : 0;
    typename Rows::Row x, dy, dx0;
    rows.take(round, row, width, x, dy, dx0);
    const float scale = width > 0 ? p.rstd[row] : 0.0f;
    float dot = 0.0f;
    w.forget();
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at), dys = dy.get(slot, at), ws = w.get(slot, at);
#pragma unroll
      for (int k = 0; k < S::kElements; k++) dot = fmaf(dys.x[k] * ws.x[k], xs.x[k], dot);
    });
    const float mean = group_sum<S>(dot) / static_cast<float>(p.D) * scale * scale;
    x.forget();
    dy.forget();
    w.forget();
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at), dys = dy.get(slot, at), ws = w.get(slot, at);
      RowValues<S> terms, dx;
#pragma unroll
      for (int k = 0; k < S::kElements; k++) {
        terms.x[k] = dys.x[k] * (xs.x[k] * scale);
        dx.x[k] = scale * fmaf(-xs.x[k], mean, dys.x[k] * ws.x[k]);
      }
      dw.add(partial, width, round == 0, slot, at, terms.x);
      if (p.dx0 != nullptr) {
        // Held for nobody else, so one that does not come ahead is loaded only here.
        const RowValues<S> added =
            kStaged<S> ? dx0.get(slot, at) : RowWords<S>::load(p.dx0 + row * p.D, width, at).values();
#pragma unroll
        for (int k = 0; k < S::kElements; k++) dx.x[k] = __fadd_rn(dx.x[k], added.x[k]);
      }
      RowWords<S>::of(dx).store(p.dx + row * p.D, width, at);
    });
  }
  rows.finish();
  dw.store(partial, p.D);
}

constexpr int kSumColumns = 32, kSumSlices = 16;

/** sums[D] = sum over rows of partial[rows, D]: slice s takes rows s, s + kSumSlices, ..., then slices in order. */
__global__ void __launch_bounds__(kSumColumns* kSumSlices)
    sum_partials(const float* partial, int64_t rows, int64_t D, float* sums) {
  __shared__ float slices[kSumSlices][kSumColumns];
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  float sum = 0.0f;
  if (column < D) {
#pragma unroll 8
    for (int64_t row = threadIdx.y; row < rows; row += kSumSlices) sum += partial[row * D + column];
  }
  slices[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= D) return;
  sum = slices[0][threadIdx.x];
#pragma unroll
  for (int slice = 1; slice < kSumSlices; slice++) sum += slices[slice][threadIdx.x];
  sums[column] = sum;
}

/** Rows whose dw is summed in one run: as many blocks as a large GPU holds all at once, 512 or of many rows at a time
 * 256, but no more than 64 rows, as a run is f32; whole rounds of the groups of a block. */
template <typename S>
int chunk_of(int64_t rows) {
  const int64_t even = ceil_div(rows, S::kGroups == 1 ? 512 : 256), chunk = even < 4 ? 4 : even < 64 ? even : 64;
  return static_cast<int>(ceil_div(chunk, S::kGroups) * S::kGroups);
}

template <typename T>
void run_backward(const Args& a) {
  const View& x = a.in[1];
  const int64_t D = x.last();
  float* dw = a.out[1].as<float>();
  Backward<T> p = {a.in[0].as<T>(),  x.as<T>(), a.in[2].as<T>(), a.in[3].as<float>(), a.in[4].as<T>(),
                   a.out[0].as<T>(), nullptr,   x.rows(),        static_cast<int>(D), 0};
  with_row_shape<T>(D, packs_fit<T>(p.D, p.dy, p.x, p.w, p.dx0, p.dx), [&]<typename S>(S) {
    p.chunk = chunk_of<S>(p.rows);
    const int64_t chunks = ceil_div(p.rows, p.chunk);
    Scratch scratch(a.device, static_cast<size_t>(chunks > 1 ? chunks * D : 0) * sizeof(float));
    p.partial = chunks > 1 ? scratch.as<float>() : dw;
    const size_t shared_bytes =
        S::kGroups > 1 ? static_cast<size_t>(S::kBlock / kWarp * D) * sizeof(float) : kStagedBytes<S>;
    launch(a, {static_cast<unsigned>(chunks), S::kBlock, shared_bytes}, backward_rows<S>, p);
    if (chunks == 1) return;
    launch(a, {static_cast<unsigned>(ceil_div(D, kSumColumns)), dim3(kSumColumns, kSumSlices)}, sum_partials, p.partial,
           chunks, D, dw);
  });
}

template <typename T>
Forward<T> forward_of(const View& x, const View& w, const View& residual, double eps) {
  Forward<T> p{};
  p.x = x.as<T>();
  p.w = w.as<T>();
  p.residual = residual.as<T>();
  p.rows = x.rows();
  p.D = static_cast<int>(x.last());
  p.rounds = rows_each(p.rows);
  p.eps = static_cast<float>(eps);
  return p;
}

CARAVAN_KERNEL(rms_norm, cuda, "x[*,D] w[D] residual[*,D]? -> y[*,D] rstd[*]:f32 | eps") {
  with_f32_or_bf16("rms_norm", a.in[0].dtype, [&]<typename T>(T) {
    Forward<T> p = forward_of<T>(a.in[0], a.in[1], a.in[2], a.attrs[0]);
    p.y = a.out[0].as<T>();
    p.rstd = a.out[1].as<float>();
    with_row_shape<T>(p.D, packs_fit<T>(p.D, p.x, p.w, p.residual, p.y), [&]<typename S>(S) {
      launch_chained(a, {row_blocks<S>(p.rows, p.rounds), S::kBlock}, forward_rows<S>, p);
    });
  });
}

CARAVAN_KERNEL(rms_norm_backward, cuda, "dy[*,D] x[*,D] w[D] rstd[*]:f32 dx0[*,D]? -> dx[*,D] dw[D]:f32") {
  with_f32_or_bf16("rms_norm_backward", a.in[0].dtype, [&]<typename T>(T) { run_backward<T>(a); });
}

CARAVAN_KERNEL(add_rms_norm, cuda, "x[*,D] residual[*,D] w[D] -> y[*,D] sum[*,D] rstd[*]:f32 | eps") {
  with_f32_or_bf16("add_rms_norm", a.in[0].dtype, [&]<typename T>(T) {
    Forward<T> p = forward_of<T>(a.in[0], a.in[2], a.in[1], a.attrs[0]);
    p.y = a.out[0].as<T>();
    p.sum = a.out[1].as<T>();
    p.rstd = a.out[2].as<float>();
    with_row_shape<T>(p.D, packs_fit<T>(p.D, p.x, p.w, p.residual, p.y, p.sum), [&]<typename S>(S) {
      launch_chained(a, {row_blocks<S>(p.rows, p.rounds), S::kBlock}, forward_of_sum<S>, p);
    });
  });
}

}  // namespace
}  // namespace caravan::cuda
