// Attention without tensor cores: f32, and heads of any width up to 256. Blocks of four warps take 16 rows (or keys),
// four to a warp, against tiles of 32 keys (or rows) in shared memory as f32; in a score a lane is one of the 32, in an
// output it is every 32nd column. All sums are in f32, each a chain in a fixed order: over columns for a score, over
// the tile's lanes by a butterfly for a sum of weights, over keys (rows) for an output. Tiles are counted from the
// first key of the segment and a masked key has weight zero, so a row's bits do not depend on the rows beside it.
// Traffic: q and o once, k and v once per 16 rows.
#include "kernels/attention_general.h"

#include "core/scratch.h"
#include "cuda/numbers.h"
#include "cuda/reduce.h"

namespace caravan::cuda::attention_detail {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kOwn = 4, kBlockOwn = kWarps * kOwn;  // rows or keys of a warp, of a block
constexpr int kLaneColumns = kWidestHead / kWarp;
constexpr float kMinusInfinity = -HUGE_VALF;

/** Row of a tile, padded so that the lanes of a column lie in different banks. */
__device__ __forceinline__ int padded(int C) { return C + 1; }

/** Fills `rows` rows of C floats, `stride` apart, by all warps in turns; row_at(row) is the address of one, or null. */
template <typename T, typename RowAt>
__device__ void load_rows(float* to, int stride, int rows, int C, const RowAt& row_at) {
  for (int row = threadIdx.x / kWarp; row < rows; row += kWarps) {
    const T* from = row_at(row);
    for (int c = threadIdx.x % kWarp; c < C; c += kWarp) to[row * stride + c] = from != nullptr ? widen(from[c]) : 0.0f;
  }
}

/** sums[r] = this warp's row r of `own` times the lane's row of the tile. */
__device__ __forceinline__ void dot_rows(float (&sums)[kOwn], const float* own, const float* tile, int C) {
  const float* row = tile + threadIdx.x % kWarp * padded(C);
#pragma unroll
  for (int r = 0; r < kOwn; r++) sums[r] = 0.0f;
  for (int c = 0; c < C; c++) {
    const float x = row[c];
#pragma unroll
    for (int r = 0; r < kOwn; r++) sums[r] = fmaf(own[r * C + c], x, sums[r]);
  }
}

/** out[r][i] += sum over the tile's rows j of weights[r] of lane j times its column lane + 32 i. */
__device__ __forceinline__ void add_rows(float (&out)[kOwn][kLaneColumns], const float (&weights)[kOwn],
                                         const float* tile, int C) {
  const int lane = threadIdx.x % kWarp;
  for (int j = 0; j < kWarp; j++) {
    float weight[kOwn];
#pragma unroll
    for (int r = 0; r < kOwn; r++) weight[r] = __shfl_sync(kAllLanes, weights[r], j);
#pragma unroll
    for (int i = 0; i < kLaneColumns; i++) {
      if (i * kWarp + lane >= C) continue;
      const float x = tile[j * padded(C) + i * kWarp + lane];
#pragma unroll
      for (int r = 0; r < kOwn; r++) out[r][i] = fmaf(weight[r], x, out[r][i]);
    }
  }
}

template <typename T>
__device__ __forceinline__ void store_row(T* to, const float (&row)[kLaneColumns], float factor, int C) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; i++) {
    const int column = i * kWarp + static_cast<int>(threadIdx.x) % kWarp;
    if (column < C) to[column] = narrow<T>(row[i] * factor + 0.0f);
  }
}

/** The first tile of a range of keys starts at a multiple of the tile, counted from the segment's first key. */
__device__ __forceinline__ int tile_start(int key) { return key / kWarp * kWarp; }

// ---- forward --------------------------------------------------------------------------------------------------------

template <typename T>
struct Forward {
  Sequences sequences;
  Geometry geometry;
  const T *q, *k, *v;
  T* o;
  float* lse;
  float scale;
  int C;
};

size_t forward_bytes(int64_t C) { return static_cast<size_t>(kBlockOwn * C + 2 * kWarp * (C + 1)) * sizeof(float); }

/** Address of key `key` (counted from the segment's first) in k or v. */
template <typename T>
__device__ __forceinline__ const T* key_address(const Sequences& sequences, const Geometry& g, const Segment& segment,
                                                const T* tensor, int kv_head, int key, int C) {
  const int block = key / kBlockKeys;
  const int64_t row = sequences.key_row(segment, block, sequences.page_of(segment, block)) + key % kBlockKeys;
  return tensor + (row * g.K + kv_head) * C;
}

/** One unit: kBlockOwn rows of a key/value head. */
template <typename T>
__global__ void __launch_bounds__(kThreads) attend_rows(Forward<T> f, UnitList::Given list) {
  CARAVAN_SHARED(float, memory);
  const Geometry& g = f.geometry;
  const int C = f.C, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Unit unit;
  if (!unit_of_block(list, g, &unit)) return;
  const Segment segment = f.sequences.at(unit.segment);
  const int kv_head = static_cast<int>(blockIdx.x) % g.K;
  const int first = unit.tile * kBlockOwn, rows = min(kBlockOwn, segment.rows(g) - first);
  float *queries = memory, *keys = memory + kBlockOwn * C, *values = keys + kWarp * padded(C);
  load_rows<T>(queries, C, kBlockOwn, C,
               [&](int row) { return row < rows ? f.q + row_index(g, segment, kv_head, first + row) * C : nullptr; });
  Range seen[kOwn];
  float top[kOwn], sum[kOwn], o[kOwn][kLaneColumns] = {};
#pragma unroll
  for (int r = 0; r < kOwn; r++) {
    const int row = warp * kOwn + r;
    seen[r] = row < rows ? segment.keys_of((first + row) / g.group, g.window) : Range{0, 0};
    top[r] = kMinusInfinity;
    sum[r] = 0.0f;
  }
  const int begin = segment.keys_of(first / g.group, g.window).first;
  const int end = rows > 0 ? segment.keys_of((first + rows - 1) / g.group, g.window).end : 0;
  for (int key = tile_start(begin); key < end; key += kWarp) {
    __syncthreads();
    const auto load = [&](float* to, const T* tensor) {
      load_rows<T>(to, padded(C), kWarp, C, [&](int row) {
        return key + row < end ? key_address(f.sequences, g, segment, tensor, kv_head, key + row, C) : nullptr;
      });
    };
    load(keys, f.k);
    load(values, f.v);
    __syncthreads();
    if (warp * kOwn >= rows) continue;
    float weights[kOwn];
    dot_rows(weights, queries + warp * kOwn * C, keys, C);
#pragma unroll
    for (int r = 0; r < kOwn; r++) {
      const bool visible = key + lane >= seen[r].first && key + lane < seen[r].end;
      const float score = visible ? weights[r] * f.scale : kMinusInfinity;
      const float before = top[r];
      top[r] = fmaxf(before, warp_max(score));
      const float shift = top[r] == kMinusInfinity ? 0.0f : top[r];
      const float kept = before == top[r] ? 1.0f : expf(before - shift);
      weights[r] = visible ? expf(score - shift) : 0.0f;
      sum[r] = fmaf(sum[r], kept, warp_sum(weights[r]));
#pragma unroll
      for (int i = 0; i < kLaneColumns; i++) o[r][i] *= kept;
    }
    add_rows(o, weights, values, C);
  }
  for (int r = 0; r < kOwn; r++) {
    const int row = warp * kOwn + r;
    if (row >= rows) continue;
    const bool any = top[r] != kMinusInfinity || sum[r] != 0.0f;
    const int64_t index = row_index(g, segment, kv_head, first + row);
    store_row(f.o + index * C, o[r], any ? 1.0f / sum[r] : 0.0f, C);
    if (lane == 0) f.lse[index] = any ? top[r] + logf(sum[r]) : kMinusInfinity;
  }
}

/** Rows outside all segments are 0 with an lse of -inf. */
template <typename T>
__global__ void __launch_bounds__(kThreads) clear_gaps(Forward<T> f) {
  const int64_t row = int64_t{blockIdx.x} * kGapRows, rows = f.sequences.queries;
  const int64_t width = int64_t{f.geometry.H} * f.C;
  fill_gap_rows(f.sequences, 0, row, rows, f.o, width, static_cast<int>(width), T{});
  fill_gap_rows(f.sequences, 0, row, rows, f.lse, f.geometry.H, f.geometry.H, kMinusInfinity);
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <typename T>
struct Backward {
  Sequences sequences;
  Geometry geometry;
  const T *d_o, *q, *k, *v;
  const float *lse, *delta;
  T *dq, *dk, *dv;
  float scale;
  int C;
};

size_t backward_bytes(int64_t C) {
  return static_cast<size_t>(2 * kBlockOwn * C + 2 * kWarp * (C + 1)) * sizeof(float);
}

/** One unit: with kKeys the dk and dv of kBlockOwn keys over all rows that see one of them, else the dq of kBlockOwn
 *  rows over all keys that they see. Own vectors stay, those of the other side come in tiles of 32; p and ds are
 *  computed alike, and masks are asked of whichever side is the row. */
template <typename T, bool kKeys>
__global__ void __launch_bounds__(kThreads) gradient_rows(Backward<T> b, UnitList::Given list) {
  CARAVAN_SHARED(float, memory);
  const Geometry& g = b.geometry;
  const int C = b.C, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Unit unit;
  if (!unit_of_block(list, g, &unit)) return;
  const Segment segment = b.sequences.at(unit.segment);
  const int kv_head = static_cast<int>(blockIdx.x) % g.K;
  const int total = kKeys ? segment.keys : segment.rows(g);
  const int first = unit.tile * kBlockOwn, count = min(kBlockOwn, total - first);
  const auto row_at = [&](const T* tensor, int row) { return tensor + row_index(g, segment, kv_head, row) * C; };
  const auto key_at = [&](const T* tensor, int key) {
    return tensor + ((int64_t{segment.k_begin} + key) * g.K + kv_head) * C;
  };
  float *left = memory, *right = left + kBlockOwn * C;                                    // q and do, or k and v
  float *tile_left = right + kBlockOwn * C, *tile_right = tile_left + kWarp * padded(C);  // k and v, or q and do
  const auto load_own = [&](float* to, const T* rows, const T* keys) {
    load_rows<T>(to, C, kBlockOwn, C, [&](int i) {
      return i >= count ? nullptr : kKeys ? key_at(keys, first + i) : row_at(rows, first + i);
    });
  };
  load_own(left, b.q, b.k);
  load_own(right, b.d_o, b.v);

  Range others = kKeys ? segment.rows_of(g, first, count) : segment.keys_of(first / g.group, g.window);
  if (!kKeys) others = {tile_start(others.first), segment.keys_of((first + count - 1) / g.group, g.window).end};
  const auto sees = [&](int row, int key) {
    const Range range = segment.keys_of(row / g.group, g.window);
    return key >= range.first && key < range.end;
  };
  float d_left[kOwn][kLaneColumns] = {}, d_right[kOwn][kLaneColumns] = {};
  for (int other = others.first; other < others.end; other += kWarp) {
    __syncthreads();
    const auto load_tile = [&](float* to, const T* rows, const T* keys) {
      load_rows<T>(to, padded(C), kWarp, C, [&](int i) {
        return other + i >= others.end ? nullptr : kKeys ? row_at(rows, other + i) : key_at(keys, other + i);
      });
    };
    load_tile(tile_left, b.q, b.k);
    load_tile(tile_right, b.d_o, b.v);
    __syncthreads();
    if (warp * kOwn >= count) continue;
    float p[kOwn], ds[kOwn];
    dot_rows(p, left + warp * kOwn * C, tile_left, C);
    dot_rows(ds, right + warp * kOwn * C, tile_right, C);
#pragma unroll
    for (int r = 0; r < kOwn; r++) {
      const int own = first + warp * kOwn + r, row = kKeys ? other + lane : own, key = kKeys ? own : other + lane;
      const bool exists = warp * kOwn + r < count && other + lane < others.end;
      const bool visible = exists && sees(row, key);
      const int64_t index = visible ? row_index(g, segment, kv_head, row) : 0;
      p[r] = visible ? expf(p[r] * b.scale - b.lse[index]) : 0.0f;
      ds[r] = visible ? p[r] * (ds[r] - b.delta[index]) : 0.0f;
    }
    add_rows(d_left, ds, tile_left, C);
    if constexpr (kKeys) add_rows(d_right, p, tile_right, C);
  }
  for (int r = 0; r < kOwn; r++) {
    const int own = warp * kOwn + r;
    if (own >= count) continue;
    if constexpr (kKeys) {
      const int64_t at = ((int64_t{segment.k_begin} + first + own) * g.K + kv_head) * C;
      store_row(b.dk + at, d_left[r], b.scale, C);
      store_row(b.dv + at, d_right[r], 1.0f, C);
    } else {
      store_row(b.dq + row_index(g, segment, kv_head, first + own) * C, d_left[r], b.scale, C);
    }
  }
}

}  // namespace

void check_width(const char* op, int64_t C) {
  if (C > kWidestHead) {
    fail("ERR_SHAPE", "%s: the CUDA kernel takes heads of up to C=%d elements; got C=%lld", op, kWidestHead,
         static_cast<long long>(C));
  }
}

template <typename T>
void attend_general(const Args& a, const Sequences& sequences, const Geometry& g) {
  const int64_t C = a.in[0].shape[2];
  const Forward<T> forward = {sequences,
                              g,
                              a.in[0].as<T>(),
                              a.in[1].as<T>(),
                              a.in[2].as<T>(),
                              a.out[0].as<T>(),
                              a.out[1].as<float>(),
                              static_cast<float>(a.attrs[0]),
                              static_cast<int>(C)};
  const UnitList units(a, sequences, g, {false, kBlockOwn, 1});
  launch(a, {dim3(units.blocks(g)), dim3(kThreads), forward_bytes(C)}, attend_rows<T>, forward, units.given());
  launch(a, {dim3(gap_blocks(sequences.queries)), dim3(kThreads)}, clear_gaps<T>, forward);
}

template <typename T>
void attend_backward_general(const Args& a, const Sequences& sequences, const Geometry& g, const float* delta) {
  const int64_t C = a.in[1].shape[2];
  const Backward<T> backward = {
      sequences,           g,     a.in[0].as<T>(),  a.in[1].as<T>(),  a.in[2].as<T>(),  a.in[3].as<T>(),
      a.in[5].as<float>(), delta, a.out[0].as<T>(), a.out[1].as<T>(), a.out[2].as<T>(), static_cast<float>(a.attrs[0]),
      static_cast<int>(C)};
  const size_t bytes = backward_bytes(C);
  {
    const UnitList units(a, sequences, g, {true, kBlockOwn, 0});
    launch(a, {dim3(units.blocks(g)), dim3(kThreads), bytes}, gradient_rows<T, true>, backward, units.given());
  }
  const UnitList units(a, sequences, g, {false, kBlockOwn, 1});
  launch(a, {dim3(units.blocks(g)), dim3(kThreads), bytes}, gradient_rows<T, false>, backward, units.given());
}

template void attend_general<float>(const Args&, const Sequences&, const Geometry&);
template void attend_general<bf16>(const Args&, const Sequences&, const Geometry&);
template void attend_backward_general<float>(const Args&, const Sequences&, const Geometry&, const float*);
template void attend_backward_general<bf16>(const Args&, const Sequences&, const Geometry&, const float*);

}  // namespace caravan::cuda::attention_detail
