// attend_wide of attention.cu by the instructions of compute capability 9.0: products of whole warpgroups (wgmma) whose
// right operands lie in shared memory, fetched by the copy engine (TMA). A block is 128 rows: two warpgroups of 64 rows
// each work, one thread of a third asks for keys and values, kStages blocks of keys ahead. Queries, weights and outputs
// of a row stay in registers. While the weights of a block of keys are made, the tensor cores are busy with the scores
// of the next block, the values of the last one, and the other warpgroup. Traffic is that of attend_wide.
//
// Bits: block for block the sums of attention_softmax.h. Fragments of a warpgroup are those of its four warps, so all
// but the two products is the same code; the products are the same chains of sixteen keys or channels. That wgmma adds
// sixteen products as mma.sync does is documented nowhere: attention_form compares the two on the device, and where
// they differ, mma.sync stays.
#include "kernels/attention_hopper.h"

#include <cstdlib>
#include <string>

#include "cuda/attention_form.h"
#include "cuda/tensor_map.h"
#include "kernels/hopper_tiles.h"
#include "kernels/philox.h"

namespace caravan::cuda::attention_detail {
namespace {

#ifndef CARAVAN_NO_HOPPER

static_assert(kHopperRows == kGroups * kGroupRows && kBlockKeys == kTileRows);
constexpr int kStages = 4;
using Stages = Ring<kStages>;

template <int C>
struct Shared {
  static constexpr int kStageBytes = 2 * kTileBytes<C>;  // keys, then values
  static constexpr int kRowBytes = C * sizeof(bf16) + sizeof(Range) + sizeof(int);
  static constexpr size_t kBytes =
      kTileAlignment + kStages * kStageBytes + Stages::kBytes + size_t{kHopperRows} * kRowBytes;
  unsigned char* stages;
  bf16* queries;
  Stages ring;
  Range* keys_of_row;
  int* index_of_row;  // in [N, H]; -1 for none
  __device__ explicit Shared(unsigned char* memory)
      : stages(aligned_tiles(memory)),
        queries(reinterpret_cast<bf16*>(stages + kStages * kStageBytes)),
        ring(queries + kHopperRows * C),
        keys_of_row(reinterpret_cast<Range*>(ring.emptied + kStages)),
        index_of_row(reinterpret_cast<int*>(keys_of_row + kHopperRows)) {}
  __device__ unsigned char* keys(int step) const { return stages + Stages::stage(step) * kStageBytes; }
  __device__ unsigned char* values(int step) const { return keys(step) + kTileBytes<C>; }
};

struct Tile {
  Segment segment;
  int kv_head, row, rows;
  Range blocks;
};

// ---- the thread that fetches ----------------------------------------------------------------------------------------

template <int C>
__device__ __forceinline__ void fetch_blocks(const Problem& p, const CUtensorMap* keys, const CUtensorMap* values,
                                             const Tile& tile, const Shared<C>& shared) {
  const int column = tile.kv_head * C;
  for (int block = tile.blocks.first; block < tile.blocks.end; block++) {
    const int step = block - tile.blocks.first;
    const int page = p.sequences.page_of(tile.segment, block);
    const int row = static_cast<int>(p.sequences.key_row(tile.segment, block, page));
    Barrier* filled = shared.ring.filled + Stages::stage(step);
    shared.ring.wait_emptied(step);
    barrier_arrive_expecting(filled, Shared<C>::kStageBytes);
    fetch_tile<C>(shared.keys(step), keys, column, row, filled);
    fetch_tile<C>(shared.values(step), values, column, row, filled);
  }
}

// ---- the warpgroups that multiply -----------------------------------------------------------------------------------

/** Starts the scores of a warpgroup's 64 rows and a block of keys. */
template <int C>
__device__ __forceinline__ void start_scores(Scores<1>& s, uint32_t (&queries)[C / 16][4], const void* keys) {
  settle(s);
  products_begin();
  multiply_rows<C>(s[0], queries, keys);
  products_commit();
}

/** Starts the product of a block's weights and values, from zero. */
template <int C>
__device__ __forceinline__ void start_values(float (&t)[kPanels<C>][8][4], BlockWeights<1>& block, const void* values) {
  settle(block.weights);
  settle(t);
  products_begin();
  multiply_across<C>(t, block.weights[0], values, false);
  products_commit();
}

template <int C>
__device__ __forceinline__ void add_values(float (&o)[C / 8][4], const float (&t)[kPanels<C>][8][4],
                                           const float (&kept)[2]) {
#pragma unroll
  for (int n = 0; n < C / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) o[n][e] = fmaf(o[n][e], kept[e / 2], t[n / 8][n % 8][e]);
  }
}

/** Brings a block into the totals of this thread's two rows and its weights to the scale that their product is added
 *  with; `kept` is the factor of what was summed so far. References seldom change, and then all of it is adding. */
__device__ __forceinline__ void join_weights(float (&kept)[2], Totals (&totals)[2], BlockWeights<1>& block) {
  const auto changes = [&](int h) { return block.reference[0][h] != totals[h].reference; };
  if (!__any_sync(kAllLanes, changes(0) || changes(1))) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      kept[h] = 1.0f;
      totals[h].sum += block.sum[0][h];
    }
    return;
  }
  float added[1][2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const Join factors = join_row(totals[h], block.reference[0][h], block.sum[0][h]);
    kept[h] = factors.kept;
    added[0][h] = factors.added;
  }
  if (__any_sync(kAllLanes, added[0][0] != 1.0f || added[0][1] != 1.0f)) scale_weights(block, added);
}

/** Works off the blocks of keys `own` for the rows of one warpgroup. */
template <int C>
__device__ __forceinline__ void attend_blocks(float (&o)[C / 8][4], Totals (&totals)[2], const Problem& p,
                                              const Tile& tile, Range own, const Shared<C>& shared) {
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const Range* seen = shared.keys_of_row + warp_row;
  const int last_row = max(0, min(16, tile.rows - warp_row) - 1);
  // Every row of the warp sees the keys [all.first, all.end).
  const Range all = {seen[last_row].first, seen[0].end};
  uint32_t queries[C / 16][4];
#pragma unroll
  for (int k = 0; k < C; k += 16) left_fragment<C>(queries[k / 16], shared.queries + warp_row * C, 0, k);

  Scores<1> s;
  float t[kPanels<C>][8][4] = {}, kept[2] = {1.0f, 1.0f};
  BlockWeights<1> weights;
  const int begin = tile.blocks.first;
  const auto weigh = [&](int block) {
    const int key = block * kBlockKeys;
    settle(s);
    if (p.exponent.negate) negate_scores(s);
    if (key < all.first || key + kBlockKeys > all.end) mask_scores(s, seen, key);
    weigh_fragment(s[0], p.exponent.scale, weights.reference[0], weights.sum[0]);
  };
  const auto add_rounded_sums = [&] {
    float rounded[1][2];
    rounded_sums(weights, rounded);
#pragma unroll
    for (int h = 0; h < 2; h++) totals[h].rounded_sum = fmaf(totals[h].rounded_sum, kept[h], rounded[0][h]);
  };
  const auto finish_values = [&](int step) {
    products_wait<0>();
    settle(t);
    shared.ring.release(step);
  };
  shared.ring.wait_filled(own.first - begin);
  start_scores<C>(s, queries, shared.keys(own.first - begin));
  products_wait<0>();
  weigh(own.first);
  round_weights(weights.weights[0], s[0]);
  if (own.first + 1 < own.end) shared.ring.wait_filled(own.first + 1 - begin);
  for (int block = own.first; block + 1 < own.end; block++) {
    const int step = block - begin;
    start_scores<C>(s, queries, shared.keys(step + 1));
    add_values<C>(o, t, kept);  // of the block before, beside the scores
    join_weights(kept, totals, weights);
    start_values<C>(t, weights, shared.values(step));
    add_rounded_sums();
    products_wait<1>();
    weigh(block + 1);
    settle(s);
    // Also what keeps the wait for the values behind the exponentials: ptxas moves it up as far as the last branch.
    if (block + 2 < own.end) shared.ring.wait_filled(step + 2);
    finish_values(step);
    round_weights(weights.weights[0], s[0]);  // only now: the last weights were operands until here
  }
  add_values<C>(o, t, kept);
  const int step = own.end - 1 - begin, keys_left = tile.segment.keys - (own.end - 1) * kBlockKeys;
  if (keys_left < kBlockKeys) {
    clear_rows<C>(shared.values(step), keys_left);
    finish_clearing();
  }
  join_weights(kept, totals, weights);
  start_values<C>(t, weights, shared.values(step));
  add_rounded_sums();
  finish_values(step);
  add_values<C>(o, t, kept);
}

template <int C>
__device__ __forceinline__ void attend_rows(const Problem& p, const Tile& tile, const Shared<C>& shared) {
  fetch_rows<C, kHopperRows, kWorkers>({{shared.queries, p.q}},
                                       [&](int r) { return int64_t{shared.index_of_row[r]} * C; });
  cp_async_commit();
  cp_async_wait<0>();
  sync_threads_of(kWorkersBarrier, kWorkers);

  const int group_row = static_cast<int>(threadIdx.x) / kWarpGroup * kGroupRows;
  Range own = tile.segment.key_blocks(p.geometry, tile.row + group_row, min(kGroupRows, tile.rows - group_row));
  own.first = max(own.first, tile.blocks.first);
  own.end = max(own.end, own.first);
  float o[C / 8][4] = {};
  Totals totals[2] = {{kMinusInfinity, 0.0f, 0.0f}, {kMinusInfinity, 0.0f, 0.0f}};
  shared.ring.pass(0, min(own.first, tile.blocks.end) - tile.blocks.first);
  if (!own.empty()) attend_blocks<C>(o, totals, p, tile, own, shared);
  shared.ring.pass(own.end - tile.blocks.first, tile.blocks.end - tile.blocks.first);

  const int lane = threadIdx.x % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float lse;
    const int row = warp_row + lane / 4 + h * 8, index = shared.index_of_row[row];
    factor[h] = finish_row(totals[h], &lse);
    if (lane % 4 == 0 && index >= 0) p.lse[index] = lse;
  }
  store_rows<C>(shared.queries + warp_row * C, o, factor, [&](int row) {
    const int index = shared.index_of_row[warp_row + row];
    return index >= 0 ? p.o + int64_t{index} * C : nullptr;
  });
}

template <int C>
__global__ void __launch_bounds__(kHopperThreads, 1)
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
  for (int r = threadIdx.x; r < kHopperRows; r += kHopperThreads) {
    const bool exists = r < rows;
    shared.keys_of_row[r] = exists ? segment.keys_of((row + r) / g.group, g.window) : Range{0, 0};
    shared.index_of_row[r] = exists ? static_cast<int>(row_index(g, segment, tile.kv_head, row + r)) : -1;
  }
  if (threadIdx.x == 0) shared.ring.make(1);
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    give_registers<kFetchingRegisters>();
    if (threadIdx.x == kWorkers) fetch_blocks<C>(p, &keys, &values, tile, shared);
  } else {
    take_registers<kMultiplyingRegisters>();
    attend_rows<C>(p, tile, shared);
  }
}

template <int C>
void launch_warpgroups(const Args& a, const Problem& p, int64_t key_rows, const UnitList& units) {
  const int64_t columns = int64_t{p.geometry.K} * C;
  const CUtensorMap keys = swizzled_boxes(p.k, key_rows, columns, kBlockKeys);
  const CUtensorMap values = swizzled_boxes(p.v, key_rows, columns, kBlockKeys);
  launch(a, {dim3(units.blocks(p.geometry)), dim3(kHopperThreads), Shared<C>::kBytes}, attend_warpgroups<C>, keys,
         values, p, units.given());
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
  bf16* tile = reinterpret_cast<bf16*>(aligned_tiles(memory));
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
  launch(stream, {dim3(static_cast<unsigned>(blocks)), dim3(kWarpGroup), size_t{kTileAlignment} + kPanelBytes},
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

AttentionForm choose() {
  const char* wanted = std::getenv("CARAVAN_CUDA_ATTENTION");
  const std::string way = wanted == nullptr || *wanted == '\0' ? "auto" : wanted;
  if (way != "auto" && way != "mma" && way != "wgmma") {
    fail("ERR_CONFIG", "CARAVAN_CUDA_ATTENTION must be auto, mma or wgmma; got '%s'", way.c_str());
  }
  if (way == "mma") return {false, false, "mma.sync, as CARAVAN_CUDA_ATTENTION asks for"};
  if (attribute(cudaDevAttrComputeCapabilityMajor) != 9) return {false, false, "mma.sync"};
  if (way == "wgmma") return {true, true, "wgmma, as CARAVAN_CUDA_ATTENTION asks for"};
  return products_agree(attribute(cudaDevAttrMultiProcessorCount))
             ? AttentionForm{true, true, "wgmma, whose products have the bits of mma.sync here"}
             : AttentionForm{false, true, "wgmma backward alone, since its products have other bits than mma.sync"};
}

#endif  // CARAVAN_NO_HOPPER

}  // namespace

#ifdef CARAVAN_NO_HOPPER

void attend_hopper(const Args&, const Problem&, int, int64_t, const UnitList&) {}

#else

void attend_hopper(const Args& a, const Problem& p, int C, int64_t key_rows, const UnitList& units) {
  return C == 64 ? launch_warpgroups<64>(a, p, key_rows, units) : launch_warpgroups<128>(a, p, key_rows, units);
}

#endif

}  // namespace caravan::cuda::attention_detail

namespace caravan::cuda {

const AttentionForm& attention_form() {
#ifdef CARAVAN_NO_HOPPER
  static const AttentionForm form = {false, false, "mma.sync; the module is built without wgmma"};
#else
  static const AttentionForm form = attention_detail::choose();
#endif
  return form;
}

}  // namespace caravan::cuda
