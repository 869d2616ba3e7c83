// attention_backward.cu by the instructions of compute capability 9.0: see there for the formulas and why there are two
// kernels, and attention_hopper.cu for how a block is made up. A warpgroup holds the gradients of its 64 keys (rows) in
// registers; p and ds go from the sums of one product to the left operand of the next. Rows come head by head, 64
// positions of one head at a time, which is a box of a tensor for any number of heads that share a key head.
//
// In a step the exponentials are taken while do v^T is under way, and the products with p and ds run into the next
// step. Sums are in a fixed order: heads, then positions.
#include "kernels/attention_backward_hopper.h"

#include "cuda/tensor_map.h"
#include "kernels/hopper_tiles.h"

namespace caravan::cuda::attention_detail {
namespace {

#ifndef CARAVAN_NO_HOPPER

constexpr int kOwn = kGroups * kGroupRows;  // keys or rows of a block
constexpr int kStages = 4;
using Stages = Ring<kStages>;

/** The piece of a sequence that a block works on. */
struct Piece {
  Segment segment;
  int kv_head;
  int first, count;  // of own keys or rows
};

// ---- p and ds -------------------------------------------------------------------------------------------------------

/** The element (n, e) of a thread's sums lies in row lane / 4 + e / 2 * 8 of its warp, column n * 8 + lane % 4 * 2 + e
 * % 2. */
template <typename Each>
__device__ __forceinline__ void for_each_sum(Square& x, const Each& each) {
#pragma unroll
  for (int n = 0; n < 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) x[n][e] = each(n, e, x[n][e]);
  }
}

/** Two rounded operands of what is summed. */
struct Weights {
  uint32_t p[4][4], ds[4][4];
};
__device__ __forceinline__ void round_square(uint32_t (&weights)[4][4], const Square& x) {
#pragma unroll
  for (int j = 0; j < 4; j++) as_left_fragment(weights[j], x[2 * j], x[2 * j + 1]);
}

/** From started to finished weights: `s` and `d` come as two groups of products, the newest. lse_of and delta_of (n, e)
 *  give what belongs to the row of an element, visible(n, e) whether it counts, looked at when `masked`. between() is
 *  called when all older products have ended. */
template <typename LseOf, typename DeltaOf, typename Visible, typename Between>
__device__ __forceinline__ void weigh(Square& s, Square& d, float exponent, const LseOf& lse_of,
                                      const DeltaOf& delta_of, bool masked, const Visible& visible,
                                      const Between& between) {
  products_wait<1>();
  settle(s);
  between();
  for_each_sum(s, [&](int n, int e, float x) { return exp2_fast(fmaf(x, exponent, -lse_of(n, e))); });
  if (masked) for_each_sum(s, [&](int n, int e, float x) { return visible(n, e) ? x : 0.0f; });
  products_wait<0>();
  settle(d);
  for_each_sum(d, [&](int n, int e, float x) { return s[n][e] * (x - delta_of(n, e)); });
  if (masked) for_each_sum(d, [&](int n, int e, float x) { return visible(n, e) ? x : 0.0f; });
}

// ---- dk and dv ------------------------------------------------------------------------------------------------------

template <int C>
struct KeysShared {
  static constexpr int kStageBytes = 2 * kTileBytes<C>;  // queries, then gradients of outputs
  static constexpr int kOwnBytes = kGroups * 2 * kTileBytes<C>;
  static constexpr size_t kBytes = kTileAlignment + kOwnBytes + kStages * kStageBytes + Stages::kBytes +
                                   sizeof(Barrier) + sizeof(float2) * kStages * kTileRows;
  unsigned char *own, *stages;
  Stages ring;
  Barrier* own_filled;
  float2* row_data;  // lse in base 2, delta
  __device__ explicit KeysShared(unsigned char* memory)
      : own(aligned_tiles(memory)),
        stages(own + kOwnBytes),
        ring(stages + kStages * kStageBytes),
        own_filled(ring.emptied + kStages),
        row_data(reinterpret_cast<float2*>(own_filled + 1)) {}
  __device__ unsigned char* keys(int group) const { return own + group * 2 * kTileBytes<C>; }
  __device__ unsigned char* values(int group) const { return keys(group) + kTileBytes<C>; }
  __device__ unsigned char* queries(int step) const { return stages + Stages::stage(step) * kStageBytes; }
  __device__ unsigned char* slopes(int step) const { return queries(step) + kTileBytes<C>; }
  __device__ float2* rows(int step) const { return row_data + Stages::stage(step) * kTileRows; }
};

struct Maps {
  CUtensorMap q, d_o, k, v;
};

/** Positions that see one of the keys [key, key + count). */
__device__ __forceinline__ Range positions_of(const Segment& segment, const Geometry& g, int key, int count) {
  if (count <= 0) return {0, 0};
  const Range rows = segment.rows_of(g, key, count);
  return {rows.first / g.group, rows.end / g.group};
}

/** Tiles of 64 positions, which follow each other from `positions.first` on. */
__device__ __forceinline__ int tiles_of(const Range& positions) {
  return positions.empty() ? 0 : (positions.end - positions.first + kTileRows - 1) / kTileRows;
}

/** By one warp. */
template <int C>
__device__ __forceinline__ void fetch_rows_of_heads(const BackwardProblem& p, const Maps* maps, const Piece& piece,
                                                    const Range& positions, const KeysShared<C>& shared) {
  const int lane = threadIdx.x % kWarp;
  const Segment& segment = piece.segment;
  const Geometry& g = p.geometry;
  if (lane == 0) {
    barrier_arrive_expecting(shared.own_filled, KeysShared<C>::kOwnBytes);
    for (int group = 0; group < kGroups; group++) {
      const int row = segment.k_begin + piece.first + group * kGroupRows;
      fetch_tile<C>(shared.keys(group), &maps->k, piece.kv_head * C, row, shared.own_filled);
      fetch_tile<C>(shared.values(group), &maps->v, piece.kv_head * C, row, shared.own_filled);
    }
  }
  const int tiles = tiles_of(positions);
  int step = 0;
  for (int h = 0; h < g.group; h++) {
    const int head = piece.kv_head * g.group + h;
    for (int tile = 0; tile < tiles; tile++, step++) {
      const int position = positions.first + tile * kTileRows;
      Barrier* filled = shared.ring.filled + Stages::stage(step);
      shared.ring.wait_emptied(step);
      for (int i = lane; i < kTileRows; i += kWarp) {
        const int64_t index = (int64_t{segment.q_begin} + position + i) * g.H + head;
        const bool exists = position + i < segment.queries;
        shared.rows(step)[i] = exists ? make_float2(p.lse[index] * kLog2E, p.delta[index]) : make_float2(0.0f, 0.0f);
      }
      if (lane != 0) {
        barrier_arrive(filled);
        continue;
      }
      barrier_arrive_expecting(filled, KeysShared<C>::kStageBytes);
      fetch_tile<C>(shared.queries(step), &maps->q, head * C, segment.q_begin + position, filled);
      fetch_tile<C>(shared.slopes(step), &maps->d_o, head * C, segment.q_begin + position, filled);
    }
  }
}

/** Whether the last products of a step run into the next one: the registers of wide heads do not suffice for it. */
template <int C>
constexpr bool kRunsOn = C == 64;

/** The gradients of 64 keys. */
template <int C>
struct KeyGradients {
  float dk[kPanels<C>][8][4] = {}, dv[kPanels<C>][8][4] = {};
};

/** Adds what the 64 positions of a step bring. `before` is the step whose products are still under way, or -1. */
template <int C>
__device__ __forceinline__ void add_positions(KeyGradients<C>& sums, Weights& weights, const BackwardProblem& p,
                                              const Piece& piece, const KeysShared<C>& shared, int step, int before,
                                              int position) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, group = threadIdx.x / kWarpGroup;
  const Segment& segment = piece.segment;
  // Position `position` + i sees the keys [i + seen.first, i + seen.end).
  const int end = position + 1 + segment.keys - segment.queries, window = p.geometry.window;
  const Range seen = {window > 0 ? end - window : -segment.queries, end};
  const int key = piece.first + warp * 16, left = segment.queries - position;
  const bool masked = key + 16 > seen.end || key < seen.first + kTileRows - 1 || left < kTileRows;
  shared.ring.wait_filled(step);
  if (left < kTileRows) {
    clear_rows<C>(shared.queries(step), left);
    clear_rows<C>(shared.slopes(step), left);
    finish_clearing();
  }
  Square s, d;
  settle(s);
  settle(d);
  products_begin();
  multiply_rows<C>(s, shared.keys(group), shared.queries(step));
  products_commit();
  multiply_rows<C>(d, shared.values(group), shared.slopes(step));
  products_commit();
  const float2* rows = shared.rows(step) + lane % 4 * 2;
  const auto visible = [&](int n, int e) {
    const int i = n * 8 + lane % 4 * 2 + e % 2, own = key + lane / 4 + e / 2 * 8 - i;
    return own >= seen.first && own < seen.end && i < left;
  };
  weigh(
      s, d, p.exponent, [&](int n, int e) { return rows[n * 8 + e % 2].x; },
      [&](int n, int e) { return rows[n * 8 + e % 2].y; }, masked, visible,
      [&] {
        if (before >= 0) shared.ring.release(before);
      });
  round_square(weights.p, s);
  round_square(weights.ds, d);
  settle(weights.p);
  settle(weights.ds);
  settle(sums.dk);
  settle(sums.dv);
  products_begin();
  multiply_across<C>(sums.dv, weights.p, shared.slopes(step), true);
  multiply_across<C>(sums.dk, weights.ds, shared.queries(step), true);
  products_commit();
  if constexpr (!kRunsOn<C>) {
    products_wait<0>();
    settle(sums.dk);
    settle(sums.dv);
    shared.ring.release(step);
  }
}

/** Stores 64 rows of sums by way of the warps' parts of `staging`; row_at(row of the warp) is where one goes, or null.
 */
template <int C, typename RowAt>
__device__ __forceinline__ void store_gradients(bf16* staging, const float (&sums)[kPanels<C>][8][4], float factor,
                                                const RowAt& row_at) {
  float flat[C / 8][4];
#pragma unroll
  for (int n = 0; n < C / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) flat[n][e] = sums[n / 8][n % 8][e];
  }
  store_rows<C>(staging, flat, {factor, factor}, row_at);
}

template <int C>
__device__ __forceinline__ void gradients_of_keys(const BackwardProblem& p, const Piece& piece, const Range& positions,
                                                  const KeysShared<C>& shared) {
  const Geometry& g = p.geometry;
  const int warp = threadIdx.x / kWarp, group = threadIdx.x / kWarpGroup;
  const int own = piece.first + group * kGroupRows;
  const Range seeing = positions_of(piece.segment, g, own, min(kGroupRows, piece.count - group * kGroupRows));
  const int tiles = tiles_of(positions);
  const int from = seeing.empty() ? tiles : (seeing.first - positions.first) / kTileRows;
  const int to = seeing.empty() ? tiles : (seeing.end - positions.first + kTileRows - 1) / kTileRows;
  KeyGradients<C> sums;
  Weights weights;
  barrier_wait(shared.own_filled, 0);
  for (int h = 0; h < g.group; h++) {
    const int start = h * tiles;
    shared.ring.pass(start, start + from);
    for (int tile = from; tile < to; tile++) {
      const int before = kRunsOn<C> && tile > from ? start + tile - 1 : -1;
      add_positions<C>(sums, weights, p, piece, shared, start + tile, before, positions.first + tile * kTileRows);
    }
    if (kRunsOn<C>) {
      products_wait<0>();
      if (from < to) shared.ring.release(start + to - 1);
    }
    shared.ring.pass(start + to, start + tiles);
  }
  settle(sums.dk);
  settle(sums.dv);
  // The tile of own keys is what the results pass through, once no warp of the group needs it.
  sync_threads_of(kGroupBarrier + group, kWarpGroup);
  bf16* staging = reinterpret_cast<bf16*>(shared.keys(group)) + warp % 4 * 16 * C;
  const auto store = [&](bf16* tensor, const float (&x)[kPanels<C>][8][4], float factor) {
    store_gradients<C>(staging, x, factor, [&](int i) -> bf16* {
      if (warp * 16 + i >= piece.count) return nullptr;
      const int64_t key = int64_t{piece.segment.k_begin} + piece.first + warp * 16 + i;
      return tensor + (key * g.K + piece.kv_head) * C;
    });
  };
  store(p.dk, sums.dk, p.scale);
  store(p.dv, sums.dv, 1.0f);
}

template <int C>
__global__ void __launch_bounds__(kHopperThreads, 1)
    key_gradients(const __grid_constant__ Maps maps, BackwardProblem p, UnitList::Given list) {
  CARAVAN_SHARED(unsigned char, memory);
  const Geometry& g = p.geometry;
  Unit unit;
  if (!unit_of_block(list, g, &unit)) return;
  const Segment segment = p.sequences.at(unit.segment);
  const int first = unit.tile * kOwn, count = min(kOwn, segment.keys - first);
  const Piece piece = {segment, static_cast<int>(blockIdx.x) % g.K, first, count};
  const Range positions = positions_of(segment, g, first, count);
  const KeysShared<C> shared(memory);
  if (threadIdx.x == 0) {
    barrier_init(shared.own_filled, 1);
    shared.ring.make(kWarp);
  }
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    give_registers<kFetchingRegisters>();
    if (threadIdx.x < kWorkers + kWarp) fetch_rows_of_heads<C>(p, &maps, piece, positions, shared);
  } else {
    take_registers<kMultiplyingRegisters>();
    gradients_of_keys<C>(p, piece, positions, shared);
  }
}

// ---- dq -------------------------------------------------------------------------------------------------------------

template <int C>
struct RowsShared {
  static constexpr int kStageBytes = 2 * kTileBytes<C>;  // keys, then values
  static constexpr size_t kBytes = kTileAlignment + kStages * kStageBytes + sizeof(bf16) * 2 * kOwn * C +
                                   Stages::kBytes + (sizeof(Range) + sizeof(int)) * kOwn;
  unsigned char* stages;
  bf16 *queries, *slopes;
  Stages ring;
  Range* keys_of_row;
  int* index_of_row;  // in [N, H]; -1 for none
  __device__ explicit RowsShared(unsigned char* memory)
      : stages(aligned_tiles(memory)),
        queries(reinterpret_cast<bf16*>(stages + kStages * kStageBytes)),
        slopes(queries + kOwn * C),
        ring(slopes + kOwn * C),
        keys_of_row(reinterpret_cast<Range*>(ring.emptied + kStages)),
        index_of_row(reinterpret_cast<int*>(keys_of_row + kOwn)) {}
  __device__ unsigned char* keys(int step) const { return stages + Stages::stage(step) * kStageBytes; }
  __device__ unsigned char* values(int step) const { return keys(step) + kTileBytes<C>; }
};

/** The left operand of a warpgroup's products: rows of a tile. Those of 64 columns lie as the products read them; the
 *  others are taken into registers. (In registers, ptxas 13.0 gives those of 64 columns to ds, too, and the second
 * block of keys would be multiplied by what the first has left there.) */
template <int C>
struct OwnRows {
  uint32_t operand[C / 16][4];
  __device__ __forceinline__ OwnRows(const bf16* rows, int, int warp_row) {
#pragma unroll
    for (int k = 0; k < C; k += 16) left_fragment<C>(operand[k / 16], rows + warp_row * C, 0, k);
  }
};
template <>
struct OwnRows<kPanelColumns> {
  const void* operand;
  __device__ __forceinline__ OwnRows(const bf16* rows, int group_row, int)
      : operand(rows + group_row * kPanelColumns) {}
};

template <int C>
__device__ __forceinline__ void fetch_key_blocks(const Maps* maps, const Piece& piece, const Range& blocks,
                                                 const RowsShared<C>& shared) {
  for (int block = blocks.first; block < blocks.end; block++) {
    const int step = block - blocks.first, row = piece.segment.k_begin + block * kBlockKeys;
    Barrier* filled = shared.ring.filled + Stages::stage(step);
    shared.ring.wait_emptied(step);
    barrier_arrive_expecting(filled, RowsShared<C>::kStageBytes);
    fetch_tile<C>(shared.keys(step), &maps->k, piece.kv_head * C, row, filled);
    fetch_tile<C>(shared.values(step), &maps->v, piece.kv_head * C, row, filled);
  }
}

template <int C>
__device__ __forceinline__ void gradients_of_rows(const BackwardProblem& p, const Piece& piece, const Range& blocks,
                                                  const RowsShared<C>& shared) {
  const int lane = threadIdx.x % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int group_row = static_cast<int>(threadIdx.x) / kWarpGroup * kGroupRows;
  fetch_rows<C, kOwn, kWorkers>({{shared.queries, p.q}, {shared.slopes, p.d_o}},
                                [&](int r) { return int64_t{shared.index_of_row[r]} * C; });
  cp_async_commit();
  cp_async_wait<0>();
  fence_async_proxy();
  sync_threads_of(kWorkersBarrier, kWorkers);
  const OwnRows<C> queries(shared.queries, group_row, warp_row), slopes(shared.slopes, group_row, warp_row);
  float lse[2], delta[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int index = shared.index_of_row[warp_row + lane / 4 + h * 8];
    lse[h] = index >= 0 ? p.lse[index] * kLog2E : 0.0f;
    delta[h] = index >= 0 ? p.delta[index] : 0.0f;
  }
  const Range* seen = shared.keys_of_row + warp_row;
  const int last_row = max(0, min(16, piece.count - warp_row) - 1);
  const Range all = {seen[last_row].first, seen[0].end};  // every row of the warp sees these

  Range own = piece.segment.key_blocks(p.geometry, piece.first + group_row, min(kGroupRows, piece.count - group_row));
  own.first = max(own.first, blocks.first);
  own.end = max(own.end, own.first);
  shared.ring.pass(0, min(own.first, blocks.end) - blocks.first);
  float dq[kPanels<C>][8][4] = {};
  Weights weights;
  for (int block = own.first; block < own.end; block++) {
    const int step = block - blocks.first, key = block * kBlockKeys;
    shared.ring.wait_filled(step);
    if (piece.segment.keys - key < kBlockKeys) {
      clear_rows<C>(shared.keys(step), piece.segment.keys - key);
      finish_clearing();
    }
    Square s, d;
    settle(s);
    settle(d);
    products_begin();
    multiply_rows<C>(s, queries.operand, shared.keys(step));
    products_commit();
    multiply_rows<C>(d, slopes.operand, shared.values(step));
    products_commit();
    const auto visible = [&](int n, int e) {
      const Range range = seen[lane / 4 + e / 2 * 8];
      const int at = key + n * 8 + lane % 4 * 2 + e % 2;
      return at >= range.first && at < range.end;
    };
    weigh(
        s, d, p.exponent, [&](int, int e) { return lse[e / 2]; }, [&](int, int e) { return delta[e / 2]; },
        key < all.first || key + kBlockKeys > all.end, visible,
        [&] {
          if (block > own.first) shared.ring.release(step - 1);
        });
    round_square(weights.ds, d);
    settle(weights.ds);
    settle(dq);
    products_begin();
    multiply_across<C>(dq, weights.ds, shared.keys(step), true);
    products_commit();
  }
  products_wait<0>();
  settle(dq);
  if (!own.empty()) shared.ring.release(own.end - 1 - blocks.first);
  shared.ring.pass(own.end - blocks.first, blocks.end - blocks.first);
  // The results pass through the tile of queries, once no warp of the group needs it.
  sync_threads_of(kGroupBarrier + static_cast<int>(threadIdx.x) / kWarpGroup, kWarpGroup);
  store_gradients<C>(shared.queries + warp_row * C, dq, p.scale, [&](int row) {
    const int index = shared.index_of_row[warp_row + row];
    return index >= 0 ? p.dq + int64_t{index} * C : nullptr;
  });
}

template <int C>
__global__ void __launch_bounds__(kHopperThreads, 1)
    row_gradients(const __grid_constant__ Maps maps, BackwardProblem p, UnitList::Given list) {
  CARAVAN_SHARED(unsigned char, memory);
  const Geometry& g = p.geometry;
  Unit unit;
  if (!unit_of_block(list, g, &unit)) return;
  const Segment segment = p.sequences.at(unit.segment);
  const int first = unit.tile * kOwn, count = min(kOwn, segment.rows(g) - first);
  const Piece piece = {segment, static_cast<int>(blockIdx.x) % g.K, first, count};
  const Range blocks = segment.key_blocks(g, first, count);
  const RowsShared<C> shared(memory);
  for (int r = threadIdx.x; r < kOwn; r += kHopperThreads) {
    const bool exists = r < count;
    shared.keys_of_row[r] = exists ? segment.keys_of((first + r) / g.group, g.window) : Range{0, 0};
    shared.index_of_row[r] = exists ? static_cast<int>(row_index(g, segment, piece.kv_head, first + r)) : -1;
  }
  if (threadIdx.x == 0) shared.ring.make(1);
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    give_registers<kFetchingRegisters>();
    if (threadIdx.x == kWorkers) fetch_key_blocks<C>(&maps, piece, blocks, shared);
  } else {
    take_registers<kMultiplyingRegisters>();
    gradients_of_rows<C>(p, piece, blocks, shared);
  }
}

// ---- the call -------------------------------------------------------------------------------------------------------

template <int C>
void launch_gradients(const Args& a, const BackwardProblem& p) {
  const Geometry& g = p.geometry;
  const int64_t rows = p.sequences.queries, keys = p.sequences.keys;
  const Maps maps = {
      swizzled_boxes(p.q, rows, int64_t{g.H} * C, kTileRows), swizzled_boxes(p.d_o, rows, int64_t{g.H} * C, kTileRows),
      swizzled_boxes(p.k, keys, int64_t{g.K} * C, kTileRows), swizzled_boxes(p.v, keys, int64_t{g.K} * C, kTileRows)};
  {
    const UnitList units(a, p.sequences, g, {true, kOwn, 0});
    launch(a, {dim3(units.blocks(g)), dim3(kHopperThreads), KeysShared<C>::kBytes}, key_gradients<C>, maps, p,
           units.given());
  }
  const UnitList units(a, p.sequences, g, {false, kOwn, 1});
  launch(a, {dim3(units.blocks(g)), dim3(kHopperThreads), RowsShared<C>::kBytes}, row_gradients<C>, maps, p,
         units.given());
}

#endif  // CARAVAN_NO_HOPPER

}  // namespace

#ifdef CARAVAN_NO_HOPPER
void backward_hopper(const Args&, const BackwardProblem&, int) {}
#else
void backward_hopper(const Args& a, const BackwardProblem& p, int C) {
  return C == 64 ? launch_gradients<64>(a, p) : launch_gradients<128>(a, p);
}
#endif

}  // namespace caravan::cuda::attention_detail
