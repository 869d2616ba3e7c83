// attend_wide of attention.cu by the instructions of compute capability 9.0: products of whole warpgroups (wgmma) whose
// right operands lie in shared memory, fetched by the copy engine (TMA). A block is 128 rows: two warpgroups of 64 rows
// each work, one thread of a third asks for keys and values, kStages blocks of keys ahead. Queries, weights and outputs
// of a row stay in registers. While the weights of a block of keys are made, the tensor cores are busy with the scores
// of the next block, the values of the last one, and the other warpgroup. Traffic is that of attend_wide.
//
// Bits: block for block the sums of attention_softmax.h. Fragments of a warpgroup are those of its four warps, so all
// but the two products is the same code; the products are the same chains of sixteen keys or channels. That wgmma adds
// sixteen products as mma.sync does is documented nowhere: hopper_chosen compares the two on the device, and where they
// differ, mma.sync stays.
#include "kernels/attention_hopper.h"

#include <cstdlib>
#include <string>

#include "cuda/hopper.h"
#include "cuda/tensor_map.h"
#include "kernels/philox.h"

namespace caravan::cuda::attention_detail {
namespace {

#ifndef CARAVAN_NO_HOPPER

constexpr int kGroups = 2, kGroupRows = 64, kWorkers = kGroups * kWarpGroup, kThreads = kWorkers + kWarpGroup;
static_assert(kHopperRows == kGroups * kGroupRows);
/** Barriers of part of the block; 0 is __syncthreads. */
constexpr int kQueriesBarrier = 1, kGroupBarrier = 2;

/** A tile of 64 rows and 64 columns, as fetched and as multiplied: see tile_descriptor. */
constexpr int kPanelColumns = 64, kPanelBytes = kBlockKeys * kPanelColumns * 2;
constexpr int kAlignment = 1024;

template <int C>
struct Shared {
  static constexpr int kStages = 4, kPanels = C / kPanelColumns;
  static constexpr int kTileBytes = kPanels * kPanelBytes, kStageBytes = 2 * kTileBytes;  // keys, then values
  static constexpr int kRowBytes = C * sizeof(bf16) + sizeof(Range) + sizeof(int) + sizeof(Totals);
  static constexpr size_t kBytes =
      kAlignment + kStages * (kStageBytes + 2 * sizeof(Barrier)) + size_t{kHopperRows} * kRowBytes;
  unsigned char* stages;
  bf16* queries;
  Barrier *filled, *emptied;
  Range* keys_of_row;
  int* index_of_row;  // in [N, H]; -1 for none
  Totals* totals;
  __device__ explicit Shared(unsigned char* memory)
      : stages(memory + (-shared_address(memory) & (kAlignment - 1))),
        queries(reinterpret_cast<bf16*>(stages + kStages * kStageBytes)),
        filled(reinterpret_cast<Barrier*>(queries + kHopperRows * C)),
        emptied(filled + kStages),
        keys_of_row(reinterpret_cast<Range*>(emptied + kStages)),
        index_of_row(reinterpret_cast<int*>(keys_of_row + kHopperRows)),
        totals(reinterpret_cast<Totals*>(index_of_row + kHopperRows)) {}
};

/** The stages in turns: block `step` of a tile's keys lies in stage step % kStages. */
template <int C>
struct Ring {
  const Shared<C>& shared;
  __device__ int stage(int step) const { return step % Shared<C>::kStages; }
  __device__ unsigned parity(int step) const { return static_cast<unsigned>(step / Shared<C>::kStages) & 1u; }
  __device__ unsigned char* keys(int step) const { return shared.stages + stage(step) * Shared<C>::kStageBytes; }
  __device__ unsigned char* values(int step) const { return keys(step) + Shared<C>::kTileBytes; }
  __device__ void wait(int step) const { barrier_wait(shared.filled + stage(step), parity(step)); }
  __device__ void release(int step) const {
    if (threadIdx.x % kWarp == 0) barrier_arrive(shared.emptied + stage(step));
  }
};

struct Tile {
  Segment segment;
  int kv_head, row, rows;
  Range blocks;
};

// ---- the thread that fetches ----------------------------------------------------------------------------------------

template <int C>
__device__ __forceinline__ void fetch_blocks(const Problem& p, const CUtensorMap* keys, const CUtensorMap* values,
                                             const Tile& tile, const Ring<C>& ring) {
  const int column = tile.kv_head * C;
  for (int block = tile.blocks.first; block < tile.blocks.end; block++) {
    const int step = block - tile.blocks.first;
    const int page = p.sequences.page_of(tile.segment, block);
    const int row = static_cast<int>(p.sequences.key_row(tile.segment, block, page));
    Barrier* filled = ring.shared.filled + ring.stage(step);
    barrier_wait(ring.shared.emptied + ring.stage(step), ring.parity(step) ^ 1u);
    barrier_arrive_expecting(filled, Shared<C>::kStageBytes);
#pragma unroll
    for (int panel = 0; panel < Shared<C>::kPanels; panel++) {
      fetch_box(ring.keys(step) + panel * kPanelBytes, keys, column + panel * kPanelColumns, row, filled);
      fetch_box(ring.values(step) + panel * kPanelBytes, values, column + panel * kPanelColumns, row, filled);
    }
  }
}

// ---- the warpgroups that multiply -----------------------------------------------------------------------------------

/** Starts the scores of a warpgroup's 64 rows and a block of keys. */
template <int C>
__device__ __forceinline__ void start_scores(Scores<1>& s, uint32_t (&queries)[C / 16][4], const void* keys) {
  const uint64_t tile = tile_descriptor(keys);
  settle(s);
  products_begin();
#pragma unroll
  for (int k = 0; k < C; k += 16) {
    const int offset = k / kPanelColumns * kPanelBytes + k % kPanelColumns * 2;
    warpgroup_product<false>(s[0], queries[k / 16], tile + offset / 16, k > 0);
  }
  products_commit();
}

/** Starts the product of a block's weights and values, from zero. */
template <int C>
__device__ __forceinline__ void start_values(float (&t)[C / kPanelColumns][8][4], BlockWeights<1>& block,
                                             const void* values) {
  const uint64_t tile = tile_descriptor(values);
  settle(block.weights);
  settle(t);
  products_begin();
#pragma unroll
  for (int panel = 0; panel < C / kPanelColumns; panel++) {
#pragma unroll
    for (int j = 0; j < kBlockKeys / 16; j++) {
      const int offset = panel * kPanelBytes + j * 16 * kPanelColumns * 2;
      warpgroup_product<true>(t[panel], block.weights[0][j], tile + offset / 16, j > 0);
    }
  }
  products_commit();
}

/** The block that reaches beyond the sequence: what follows there is another's, and a weight of zero does not keep a
 *  NaN out. Both warpgroups write the same zeros. */
template <int C>
__device__ __forceinline__ void clear_values(unsigned char* values, int keys) {
  constexpr int kChunks = kPanelColumns * 2 / 16;
  const int thread = static_cast<int>(threadIdx.x) % kWarpGroup;
  for (int i = keys * kChunks + thread; i < kBlockKeys * kChunks; i += kWarpGroup) {
#pragma unroll
    for (int panel = 0; panel < C / kPanelColumns; panel++) {
      store_pack(reinterpret_cast<bf16*>(values + panel * kPanelBytes) + i * 8, Pack<bf16>{});
    }
  }
  fence_async_proxy();
  sync_threads_of(kGroupBarrier + static_cast<int>(threadIdx.x) / kWarpGroup, kWarpGroup);
}

template <int C>
__device__ __forceinline__ void add_values(float (&o)[C / 8][4], const float (&t)[C / kPanelColumns][8][4],
                                           const float (&kept)[1][2]) {
#pragma unroll
  for (int n = 0; n < C / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) o[n][e] = fmaf(o[n][e], kept[0][e / 2], t[n / 8][n % 8][e]);
  }
}

/** Works off the blocks of keys `own`, whose first is step `step` of the ring, for the rows of one warpgroup. */
template <int C>
__device__ __forceinline__ void attend_blocks(float (&o)[C / 8][4], const Problem& p, const Tile& tile, Range own,
                                              const Ring<C>& ring) {
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const Range* seen = ring.shared.keys_of_row + warp_row;
  Totals* totals = ring.shared.totals + warp_row;
  const int last_row = max(0, min(16, tile.rows - warp_row) - 1);
  // Every row of the warp sees the keys [all.first, all.end).
  const Range all = {seen[last_row].first, seen[0].end};
  uint32_t queries[C / 16][4];
#pragma unroll
  for (int k = 0; k < C; k += 16) left_fragment<C>(queries[k / 16], ring.shared.queries + warp_row * C, 0, k);

  Scores<1> s;
  float t[C / kPanelColumns][8][4], kept[1][2];
  BlockWeights<1> weights;
  const int begin = tile.blocks.first;
  const auto weigh = [&](int block) {
    const int key = block * kBlockKeys;
    settle(s);
    if (p.exponent.negate) negate_scores(s);
    if (key < all.first || key + kBlockKeys > all.end) mask_scores(s, seen, key);
    weigh_fragment(s[0], p.exponent.scale, weights.reference[0], weights.sum[0]);
  };
  const auto finish_values = [&](int step) {
    products_wait<0>();
    settle(t);
    ring.release(step);
    add_values<C>(o, t, kept);
  };
  ring.wait(own.first - begin);
  start_scores<C>(s, queries, ring.keys(own.first - begin));
  products_wait<0>();
  weigh(own.first);
  round_weights(weights.weights[0], s[0]);
  for (int block = own.first; block + 1 < own.end; block++) {
    const int step = block - begin;
    join_block(kept, totals, weights);
    ring.wait(step + 1);
    start_scores<C>(s, queries, ring.keys(step + 1));
    start_values<C>(t, weights, ring.values(step));
    products_wait<1>();
    weigh(block + 1);
    finish_values(step);
    round_weights(weights.weights[0], s[0]);  // only now: the last weights were operands until here
  }
  const int step = own.end - 1 - begin, keys_left = tile.segment.keys - (own.end - 1) * kBlockKeys;
  if (keys_left < kBlockKeys) clear_values<C>(ring.values(step), keys_left);
  join_block(kept, totals, weights);
  start_values<C>(t, weights, ring.values(step));
  finish_values(step);
}

template <int C>
__device__ __forceinline__ void attend_rows(const Problem& p, const Tile& tile, const Ring<C>& ring) {
  const Shared<C>& shared = ring.shared;
  fetch_rows<C, kHopperRows, kWorkers>({{shared.queries, p.q}},
                                       [&](int r) { return int64_t{shared.index_of_row[r]} * C; });
  cp_async_commit();
  cp_async_wait<0>();
  sync_threads_of(kQueriesBarrier, kWorkers);

  const int group_row = static_cast<int>(threadIdx.x) / kWarpGroup * kGroupRows;
  Range own = tile.segment.key_blocks(p.geometry, tile.row + group_row, min(kGroupRows, tile.rows - group_row));
  own.first = max(own.first, tile.blocks.first);
  own.end = max(own.end, own.first);
  const auto pass = [&](int from, int to) {
    for (int block = from; block < to; block++) {
      ring.wait(block - tile.blocks.first);
      ring.release(block - tile.blocks.first);
    }
  };
  float o[C / 8][4] = {};
  pass(tile.blocks.first, min(own.first, tile.blocks.end));
  if (!own.empty()) attend_blocks<C>(o, p, tile, own, ring);
  pass(own.end, tile.blocks.end);

  const int lane = threadIdx.x % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float lse;
    const int row = warp_row + lane / 4 + h * 8, index = shared.index_of_row[row];
    factor[h] = finish_row(shared.totals[row], &lse);
    if (lane % 4 == 0 && index >= 0) p.lse[index] = lse;
  }
  store_rows<C>(shared.queries + warp_row * C, o, factor, [&](int row) {
    const int index = shared.index_of_row[warp_row + row];
    return index >= 0 ? p.o + int64_t{index} * C : nullptr;
  });
}

template <int C>
__global__ void __launch_bounds__(kThreads, 1)
    attend_warpgroups(const __grid_constant__ CUtensorMap keys, const __grid_constant__ CUtensorMap values, Problem p,
                      UnitList::Given list) {
  CARAVAN_SHARED(unsigned char, memory);
  Unit unit;
  if (!unit_of_block(list, p.geometry, &unit)) return;
  const Geometry& g = p.geometry;
  const Segment segment = p.sequences.at(unit.segment);
  const int row = unit.tile * kHopperRows, rows = min(kHopperRows, segment.rows(g) - row);
  const Tile tile = {segment, static_cast<int>(blockIdx.x) % g.K, row, rows, segment.key_blocks(g, row, rows)};
  const Shared<C> shared(memory);
  const Ring<C> ring{shared};
  for (int r = threadIdx.x; r < kHopperRows; r += kThreads) {
    const bool exists = r < rows;
    shared.keys_of_row[r] = exists ? segment.keys_of((row + r) / g.group, g.window) : Range{0, 0};
    shared.index_of_row[r] = exists ? static_cast<int>(row_index(g, segment, tile.kv_head, row + r)) : -1;
    shared.totals[r] = {kMinusInfinity, 0.0f, 0.0f};
  }
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shared<C>::kStages; stage++) {
      barrier_init(shared.filled + stage, 1);
      barrier_init(shared.emptied + stage, kWorkers / kWarp);
    }
    barriers_made();
  }
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    give_registers<40>();
    if (threadIdx.x == kWorkers) fetch_blocks<C>(p, &keys, &values, tile, ring);
  } else {
    take_registers<232>();
    attend_rows<C>(p, tile, ring);
  }
}

template <int C>
void launch_warpgroups(const Args& a, const Problem& p, int64_t key_rows, const UnitList& units) {
  const int64_t columns = int64_t{p.geometry.K} * C;
  const CUtensorMap keys = swizzled_boxes(p.k, key_rows, columns, kBlockKeys);
  const CUtensorMap values = swizzled_boxes(p.v, key_rows, columns, kBlockKeys);
  launch(a, {dim3(units.blocks(p.geometry)), dim3(kThreads), Shared<C>::kBytes}, attend_warpgroups<C>, keys, values, p,
         units.given());
}

// ---- whether the products are those of mma.sync ---------------------------------------------------------------------

constexpr int kProbeRounds = 4;

/** A pair of bf16 of either sign and of sizes over 24 powers of two, so that what a sum loses shows. */
__device__ uint32_t probe_pair(unsigned number) {
  uint32_t random[4];
  philox({90, 0}, number, random);
  const auto half = [](uint32_t bits) { return (bits & 0x807fu) | (115u + (bits >> 16) % 24u) << 7; };
  return half(random[0]) | half(random[1]) << 16;
}

/** Counts the elements in which the two kinds of products differ, down and across a tile. */
__global__ void __launch_bounds__(kWarpGroup) compare_products(int* different) {
  CARAVAN_SHARED(unsigned char, memory);
  bf16* tile = reinterpret_cast<bf16*>(memory + (-shared_address(memory) & (kAlignment - 1)));
  const int thread = static_cast<int>(threadIdx.x);
  for (int round = 0; round < kProbeRounds; round++) {
    const unsigned base = (blockIdx.x * kProbeRounds + round) * (16 + 16) * kWarpGroup + threadIdx.x;
    __syncthreads();
    for (int i = 0; i < 16; i++) {
      reinterpret_cast<uint32_t*>(tile)[i * kWarpGroup + thread] = probe_pair(base + i * kWarpGroup);
    }
    uint32_t a[4][4];
#pragma unroll
    for (int i = 0; i < 16; i++) a[i / 4][i % 4] = probe_pair(base + (16 + i) * kWarpGroup);
    fence_async_proxy();
    __syncthreads();
    float down[8][4], across[8][4];
    settle(a);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; k++) warpgroup_product<false>(down, a[k], tile_descriptor(tile) + k * 2, k > 0);
#pragma unroll
    for (int k = 0; k < 4; k++) warpgroup_product<true>(across, a[k], tile_descriptor(tile) + k * 128, k > 0);
    products_commit();
    products_wait<0>();
    settle(down);
    settle(across);
    int count = 0;
#pragma unroll
    for (int n = 0; n < 4; n++) {
      float sums[4][4] = {};
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const RightPair rows = right_fragments<kPanelColumns>(tile, n * 16, k * 16);
        const RightPair columns = right_fragments_across<kPanelColumns>(tile, k * 16, n * 16);
        mma_bf16(sums[0], a[k], rows.first);
        mma_bf16(sums[1], a[k], rows.second);
        mma_bf16(sums[2], a[k], columns.first);
        mma_bf16(sums[3], a[k], columns.second);
      }
#pragma unroll
      for (int e = 0; e < 4; e++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          count += __float_as_uint(sums[half][e]) != __float_as_uint(down[2 * n + half][e]);
          count += __float_as_uint(sums[2 + half][e]) != __float_as_uint(across[2 * n + half][e]);
        }
      }
    }
    if (count > 0) atomicAdd(different, count);
  }
}

/** On a stream of its own: the device's may be recording a graph. */
bool products_agree(int blocks) {
  cudaStream_t stream;
  void* different = nullptr;
  int count = -1;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  check(cudaMalloc(&different, sizeof(int)), "memory");
  check(cudaMemsetAsync(different, 0, sizeof(int), stream), "memory");
  launch(stream, {dim3(static_cast<unsigned>(blocks)), dim3(kWarpGroup), size_t{kAlignment} + kPanelBytes},
         compare_products, static_cast<int*>(different));
  check(cudaMemcpyAsync(&count, different, sizeof(int), cudaMemcpyDeviceToHost, stream), "comparison of products");
  check(cudaStreamSynchronize(stream), "comparison of products");
  cudaFree(different);
  cudaStreamDestroy(stream);
  return count == 0;
}

/** Of the current device. */
int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&value, name, device), "attribute");
  return value;
}

bool choose() {
  const char* wanted = std::getenv("CARAVAN_CUDA_ATTENTION");
  const std::string way = wanted == nullptr || *wanted == '\0' ? "auto" : wanted;
  if (way != "auto" && way != "mma" && way != "wgmma") {
    fail("ERR_CONFIG", "CARAVAN_CUDA_ATTENTION must be auto, mma or wgmma; got '%s'", way.c_str());
  }
  if (way == "mma" || attribute(cudaDevAttrComputeCapabilityMajor) != 9) return false;
  return way == "wgmma" || products_agree(attribute(cudaDevAttrMultiProcessorCount));
}

#endif  // CARAVAN_NO_HOPPER

}  // namespace

#ifdef CARAVAN_NO_HOPPER

bool hopper_chosen() { return false; }
void attend_hopper(const Args&, const Problem&, int, int64_t, const UnitList&) {}

#else

bool hopper_chosen() {
  static const bool chosen = choose();
  return chosen;
}

void attend_hopper(const Args& a, const Problem& p, int C, int64_t key_rows, const UnitList& units) {
  return C == 64 ? launch_warpgroups<64>(a, p, key_rows, units) : launch_warpgroups<128>(a, p, key_rows, units);
}

#endif

}  // namespace caravan::cuda::attention_detail
