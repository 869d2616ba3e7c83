// The fused losses on the device in chunks of rows: gather the rows with a target, logits, log-sum-exp, gradient of the
// logits in place, the two gradient products. The products need their sizes on the host. Where the call says how many
// rows have a target, as the methods do, who made the targets, nothing waits; the device counts all the same and
// reports another number as a fault. Where it does not, the number is read back: the queue waits for the device (an
// estimated 25 us in which nothing new is enqueued), and the call cannot be captured in a graph. Chunks over all N rows
// with zeros behind the last would do without a number, but multiply prompts as well: with half of the tokens
// supervised that is twice the time of the largest products of the step.
//
// A tile holds whole rows where `chunk_bytes` holds at least kLeastWholeRows of them (1 GiB: 2k rows at V = 128k), else
// 2k rows of a band of kBandColumns, which stays in L2. Which of the two depends on V and chunk_bytes alone, so that
// the bits of a row do not depend on the others. Fewer whole rows than that would read and write the f32 gradient of
// the head (8 V D bytes a chunk) for longer than they compute; the bands cost another product (8 N D V flops) where the
// log-sum-exp is not known beforehand.
//
// Logits are f32, and so are all sums. Under bf16 weights the gradient of a logit is rounded to bf16, the operand of
// the tensor cores, in the memory of its own row. Bytes a logit beyond L2 with whole rows: 4 written by the product, 4
// read for the sums, 4 read and 2 written for the gradient, 2 + 2 read by the products.
#pragma once
#include "core/fail.h"
#include "core/scratch.h"
#include "cuda/fault.h"
#include "cuda/zero.h"
#include "kernels/logits_summary.h"

namespace caravan::cuda {

// ---- rows with a target ---------------------------------------------------------------------------------------------

struct SupervisedRows {
  int32_t count, bad_row, bad_target;  // bad_row: the first whose target is beyond the vocabulary
};

constexpr int kFindThreads = 1024;
constexpr Rule kTargetRule = {"target", "below the number of tokens of the head, or negative for none"};

/** The rows with a target of the vocabulary. What is wrong goes to `found`, or where that is null to `faults`; then
 *  -1 stands for rows that are missing from `expected`, and those beyond it are left out. */
static __global__ void __launch_bounds__(kFindThreads)
    find_supervised(const int32_t* target, int N, int V, int32_t* rows, SupervisedRows* found, int expected,
                    FaultReport faults, Rule rule) {
  __shared__ int warp_counts[kFindThreads / kWarp];
  __shared__ int bad_row;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) bad_row = N;
  __syncthreads();
  int done = 0;
  for (int begin = 0; begin < N; begin += kFindThreads) {
    const int n = begin + static_cast<int>(threadIdx.x);
    const int wanted = n < N ? target[n] : -1;
    if (wanted >= V) atomicMin(&bad_row, n);
    const bool listed = wanted >= 0 && wanted < V;
    const unsigned votes = __ballot_sync(kAllLanes, listed);
    if (lane == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();
    int before = done;
    for (int w = 0; w < kFindThreads / kWarp; w++) {
      before += w < warp ? warp_counts[w] : 0;
      done += warp_counts[w];
    }
    if (listed) rows[before + __popc(votes & ((1u << lane) - 1))] = n;
    __syncthreads();
  }
  if (found != nullptr) {
    if (threadIdx.x == 0) *found = {done, bad_row, bad_row < N ? target[bad_row] : 0};
    return;
  }
  for (int i = done + static_cast<int>(threadIdx.x); i < expected; i += kFindThreads) rows[i] = -1;
  if (threadIdx.x != 0) return;
  const double given = bad_row < N ? target[bad_row] : 0;
  if (bad_row < N) faults.note_broken(rule, bad_row, &given, 1);
  if (done != expected) faults.note(FaultKind::kCount, 0, done, expected);
}

/** What a call says of the number of rows with a target: 0 when nothing. */
inline int64_t targets_of(const Args& a, int attribute) {
  return a.attrs[attribute] > 0 ? static_cast<int64_t>(a.attrs[attribute]) : 0;
}

/** Writes the rows that have a target, in order, and returns their number: `expected`, or where that is 0 what the
 *  device has found. Throws ERR_DATA for a target >= V, now or at the next wait. */
inline int64_t supervised_rows(const Args& a, const char* op, const View& target, int64_t V, int64_t expected,
                               int32_t* rows) {
  const int64_t N = target.shape[0];
  if (expected > N) {
    fail("ERR_DATA", "%s: of %lld rows %lld cannot have a target, as the call says", op, static_cast<long long>(N),
         static_cast<long long>(expected));
  }
  if (N == 0) return 0;
  const auto find = [&](SupervisedRows* found) {
    launch(a, {1, kFindThreads}, find_supervised, target.as<int32_t>(), static_cast<int>(N), static_cast<int>(V), rows,
           found, static_cast<int>(expected), fault_report(a, op), kTargetRule);
  };
  if (expected > 0) return find(nullptr), expected;
  Scratch memory(a.device, sizeof(SupervisedRows));
  find(memory.as<SupervisedRows>());
  SupervisedRows found;
  copy_out(a, &found, memory.as<void>(), sizeof(found));
  if (found.bad_row < N) {
    fail("ERR_DATA", "%s: target[%d] must be below V=%lld (or negative for none); got %d", op, found.bad_row,
         static_cast<long long>(V), found.bad_target);
  }
  return found.count;
}

// ---- rows to and from a chunk ---------------------------------------------------------------------------------------

constexpr int kRowThreads = 256;

/** Threads of a block that has `items` to share out: whole warps, no more than are of use. */
inline unsigned row_threads(int64_t items) {
  return static_cast<unsigned>(items >= kRowThreads ? kRowThreads : items < 1 ? kWarp : ceil_div(items, kWarp) * kWarp);
}

/** Row r of the chunk from row index[r], zeros from `live` on; its target, or -1. One block a row. */
template <typename T>
__global__ void __launch_bounds__(kRowThreads) gather_rows(const T* x, const int32_t* index, const int32_t* target,
                                                           int64_t live, int64_t D, bool packs, T* y, int32_t* wanted) {
  const int64_t r = blockIdx.x;
  const int64_t n = r < live ? index[r] : -1;
  if (threadIdx.x == 0) wanted[r] = n < 0 ? -1 : target[n];
  if (packs) {
    for (int64_t i = threadIdx.x * Pack<T>::kCount; i < D; i += blockDim.x * Pack<T>::kCount) {
      store_pack(y + r * D + i, n < 0 ? Pack<T>{} : load_pack(x + n * D + i));
    }
  } else {
    for (int64_t i = threadIdx.x; i < D; i += blockDim.x) y[r * D + i] = n < 0 ? T{} : x[n * D + i];
  }
}

/** y[index[r]] = x[r], rounded to T. */
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    scatter_rows(const float* x, const int32_t* index, int64_t D, bool packs, T* y) {
  const int64_t r = blockIdx.x, n = index[r];
  if (n < 0) return;
  if (packs) {
    for (int64_t i = threadIdx.x * Pack<T>::kCount; i < D; i += blockDim.x * Pack<T>::kCount) {
      Pack<T> pack;
#pragma unroll
      for (int k = 0; k < Pack<T>::kCount; k += 4) {
        const Pack<float> from = load_pack(x + r * D + i + k);
#pragma unroll
        for (int j = 0; j < 4; j++) pack.x[k + j] = narrow<T>(from.x[j]);
      }
      store_pack(y + n * D + i, pack);
    }
  } else {
    for (int64_t i = threadIdx.x; i < D; i += blockDim.x) y[n * D + i] = narrow<T>(x[r * D + i]);
  }
}

// ---- the gradient of the logits -------------------------------------------------------------------------------------

/** dlogit[v] = -p[v] (slope + entropy_slope (x - offset)) + [v = target] at_target, x = logit - shift, p = e^x inverse.
 */
struct RowGradient {
  float shift, inverse, slope, at_target;
  float entropy_slope, offset;
};

constexpr int kLogitsEach = 8;  // of one thread at once

/** A row's logits to their gradients, in its own memory: element j of T moves to the place of the array that starts at
 *  the row, always behind the reading position once the block has read as far. Rows from `live` on become zeros. */
template <typename T, bool kEntropy>
__global__ void __launch_bounds__(kRowThreads)
    differentiate(LogitsTile tile, int64_t live, const RowGradient* rows, const int32_t* target) {
  constexpr int kEach = kLogitsEach;
  const int64_t r = blockIdx.x;
  float* logits = tile.data + r * tile.stride;
  T* gradient = reinterpret_cast<T*>(logits);
  const RowGradient g = r < live ? rows[r] : RowGradient{};
  const int64_t wanted = r < live ? target[r] - tile.first_column : -1;
  for (int64_t begin = 0; begin < tile.columns; begin += blockDim.x * kEach) {
    const int64_t at = begin + threadIdx.x * kEach;
    const bool inside = at < tile.columns;
    float x[kEach] = {};
    if (inside && r < live) {
#pragma unroll
      for (int k = 0; k < kEach; k += 4) {
        const Pack<float> pack = load_pack(logits + at + k);
#pragma unroll
        for (int j = 0; j < 4; j++) x[k + j] = pack.x[j];
      }
    }
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
#pragma unroll
    for (int j = 0; j < kEach; j++) {
      const float distance = x[j] - g.shift;
      float slope = g.slope;
      if constexpr (kEntropy) slope += g.entropy_slope * (bounded(distance) - g.offset);
      const float value = -(expf(distance) * g.inverse * slope);
      x[j] = at + j == wanted ? value + g.at_target : value;
    }
    if (!inside) continue;
#pragma unroll
    for (int k = 0; k < kEach; k += Pack<T>::kCount) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < Pack<T>::kCount; j++) pack.x[j] = narrow<T>(x[k + j]);
      store_pack(gradient + at + k, pack);
    }
  }
}

// ---- chunks ---------------------------------------------------------------------------------------------------------

constexpr int64_t kBandColumns = 4 * kPartColumns;
constexpr int64_t kBandBytes = int64_t{32} << 20;
constexpr int64_t kLeastWholeRows = 512;
/** More rows than this gain nothing, unless they are few bytes. */
constexpr int64_t kMostWholeRows = 4096;
constexpr int64_t kSmallTileBytes = int64_t{64} << 20;
/** Chunks are filled up to a multiple, so that few different products exist; the tiles of a product are no smaller. */
constexpr int64_t kRowQuantum = 128;

struct TileShape {
  int64_t rows, columns;
};

/** Equal chunks of `count` rows. */
inline TileShape tile_shape(int64_t count, int64_t V, int64_t chunk_bytes) {
  const auto smaller = [](int64_t x, int64_t y) { return x < y ? x : y; };
  const auto larger = [](int64_t x, int64_t y) { return x < y ? y : x; };
  const auto round_up = [](int64_t x) { return ceil_div(x, kRowQuantum) * kRowQuantum; };
  const int64_t row_bytes = 4 * logits_stride(V);
  const bool whole = V <= kBandColumns || chunk_bytes / row_bytes >= kLeastWholeRows;
  const int64_t columns = whole ? V : kBandColumns;
  const int64_t most = larger(kMostWholeRows, kSmallTileBytes / row_bytes);
  const int64_t fitting = whole ? smaller(chunk_bytes / row_bytes, most)
                                : smaller(chunk_bytes, kBandBytes) / (4 * logits_stride(kBandColumns));
  const int64_t limit = fitting < kRowQuantum ? larger(1, fitting) : fitting / kRowQuantum * kRowQuantum;
  return {smaller(limit, round_up(ceil_div(count, ceil_div(count, limit)))), columns};
}

/** The rows with a target of hidden[N,D] under head[V,D], chunk by chunk. T is their element type. */
template <typename T>
class HeadChunks {
 public:
  /** `index`: the rows with a target, `count` of them. */
  HeadChunks(const Args& a, const View& hidden, const View& head, const View& target, const int32_t* index,
             int64_t count, int64_t chunk_bytes)
      : a_(a),
        hidden_(hidden.as<T>()),
        head_(head.as<T>()),
        target_(target.as<int32_t>()),
        D_(hidden.shape[1]),
        V_(head.shape[0]),
        index_(index),
        count_(count),
        shape_(tile_shape(count, V_, chunk_bytes)),
        stride_(logits_stride(shape_.columns)),
        parts_(logits_parts(V_)),
        tile_memory_(a.device, static_cast<size_t>(shape_.rows * stride_) * sizeof(float)),
        copy_memory_(a.device, static_cast<size_t>(shape_.rows * D_) * sizeof(T)),
        dhidden_memory_(a.device, static_cast<size_t>(shape_.rows * D_) * sizeof(float)),
        wanted_memory_(a.device, static_cast<size_t>(shape_.rows) * sizeof(int32_t)),
        logit_memory_(a.device, static_cast<size_t>(shape_.rows) * sizeof(float)),
        summary_memory_(a.device, static_cast<size_t>(shape_.rows * parts_) * sizeof(RowSummary)),
        gradient_memory_(a.device, static_cast<size_t>(shape_.rows) * sizeof(RowGradient)) {}

  /** body(first): with each chunk loaded, `first` counting rows with a target. */
  template <typename Body>
  void for_each(const Body& body) {
    for (int64_t first = 0; first < count_; first += shape_.rows) {
      chunk_index_ = index_ + first;
      live_ = count_ - first < shape_.rows ? count_ - first : shape_.rows;
      holds_logits_ = false;
      launch(a_, {blocks(shape_.rows), row_threads(ceil_div(D_, Pack<T>::kCount))}, gather_rows<T>, hidden_,
             chunk_index_, target_, live_, D_, packs_fit<T>(D_, hidden_, copy_memory_.template as<T>()),
             copy_memory_.template as<T>(), wanted_memory_.template as<int32_t>());
      body(first);
    }
  }

  /** What the kernels of one row need to know of the chunk. */
  struct Rows {
    int64_t live;          // rows with a target in it
    const int32_t* index;  // of each in [0, N); -1 where a row is missing, which was reported
    const RowSummary* summaries;
    int parts;
    const float* target_logit;
    RowGradient* gradients;
  };
  Rows rows() const {
    return {live_,
            chunk_index_,
            summary_memory_.template as<RowSummary>(),
            static_cast<int>(parts_),
            logit_memory_.template as<float>(),
            gradient_memory_.template as<RowGradient>()};
  }

  /** Summaries and target logits of the chunk. */
  template <bool kEntropy>
  void summarise_rows() {
    const TargetLogits targets = {wanted_memory_.template as<int32_t>(), logit_memory_.template as<float>()};
    for_tiles([&](const LogitsTile& tile) {
      make_logits(tile);
      summarise<kEntropy>(a_, tile, parts_, targets, summary_memory_.template as<RowSummary>());
    });
    holds_logits_ = shape_.columns == V_;
  }

  /** dhidden of the chunk's rows and, where it is not null, dhead (+)= its part, from the gradients of rows(). */
  template <bool kEntropy>
  void differentiate_rows(const View& dhidden, float* dhead, bool add_to_head) {
    for_tiles([&](const LogitsTile& tile) {
      if (!holds_logits_) make_logits(tile);
      launch(a_, {blocks(tile.rows), row_threads(ceil_div(tile.columns, kLogitsEach))}, differentiate<T, kEntropy>,
             tile, live_, gradient_memory_.template as<RowGradient>(), wanted_memory_.template as<int32_t>());
      gradient_products(tile, dhead, add_to_head);
    });
    holds_logits_ = false;
    const float* sums = dhidden_memory_.template as<float>();
    T* to = dhidden.template as<T>();
    launch(a_, {blocks(live_), row_threads(ceil_div(D_, Pack<T>::kCount))}, scatter_rows<T>, sums, chunk_index_, D_,
           packs_fit<T>(D_, sums, to), to);
  }

 private:
  static unsigned blocks(int64_t rows) { return static_cast<unsigned>(rows); }

  template <typename Body>
  void for_tiles(const Body& body) const {
    for (int64_t column = 0; column < V_; column += shape_.columns) {
      const int64_t columns = V_ - column < shape_.columns ? V_ - column : shape_.columns;
      body(LogitsTile{tile_memory_.template as<float>(), stride_, shape_.rows, column, columns});
    }
  }

  void make_logits(const LogitsTile& tile) const {
    logits_product(a_, copy_memory_.template as<T>(), head_ + tile.first_column * D_, D_, tile);
  }

  void gradient_products(const LogitsTile& tile, float* dhead, bool add_to_head) const {
    const int64_t leading = tile.stride * static_cast<int64_t>(sizeof(float) / sizeof(T));
    Product p{};
    p.M = tile.rows;
    p.N = D_;
    p.K = tile.columns;
    p.a = {tile.data, false, leading};
    p.b = {head_ + tile.first_column * D_, false, D_};
    p.c = dhidden_memory_.template as<float>();
    p.c_leading = D_;
    p.in = sizeof(T) == sizeof(bf16) ? DType::kBF16 : DType::kF32;
    p.out = DType::kF32;
    p.add = tile.first_column > 0 ? p.c : nullptr;
    multiply(a_, p);

    if (dhead == nullptr) return;
    p.M = tile.columns;
    p.K = tile.rows;
    p.a.transposed = true;
    p.b.data = copy_memory_.template as<T>();
    p.c = dhead + tile.first_column * D_;
    p.add = add_to_head ? p.c : nullptr;
    multiply(a_, p);
  }

  const Args& a_;
  const T* hidden_;
  const T* head_;
  const int32_t* target_;
  int64_t D_, V_;
  const int32_t* index_;
  int64_t count_;
  TileShape shape_;
  int64_t stride_, parts_;
  Scratch tile_memory_, copy_memory_, dhidden_memory_, wanted_memory_, logit_memory_, summary_memory_, gradient_memory_;
  const int32_t* chunk_index_ = nullptr;
  int64_t live_ = 0;
  bool holds_logits_ = false;
};

/** Kernels of one row run a warp each. */
constexpr int kRowWarps = kRowThreads / kWarp;
inline Launch warp_each(int64_t rows) { return {static_cast<unsigned>(ceil_div(rows, kRowWarps)), kRowThreads}; }
__device__ __forceinline__ int64_t own_row() { return int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarp; }

}  // namespace caravan::cuda
