// What the kernels of compute capability 9.0 share: a block of two warpgroups that multiply and one warp that fetches,
// tiles of 64 rows in shared memory, and the products of 64 rows with them. Rows of more than 64 columns are panels of
// 64, one behind the other.
#pragma once
#include "cuda/hopper.h"
#include "kernels/attention_units.h"

namespace caravan::cuda::attention_detail {

constexpr int kGroups = 2, kGroupRows = 64, kWorkers = kGroups * kWarpGroup, kHopperThreads = kWorkers + kWarpGroup;
/** Registers of a thread that fetches and of one that multiplies: the compiler spills where they do not suffice. */
constexpr int kFetchingRegisters = 24, kMultiplyingRegisters = 240;
/** Barriers of part of the block; 0 is __syncthreads. */
constexpr int kWorkersBarrier = 1, kGroupBarrier = 2;

constexpr int kTileRows = 64, kPanelColumns = 64, kPanelBytes = kTileRows * kPanelColumns * 2;
constexpr int kTileAlignment = 1024;
template <int C>
constexpr int kPanels = C / kPanelColumns;
template <int C>
constexpr int kTileBytes = kPanels<C> * kPanelBytes;

__device__ __forceinline__ unsigned char* aligned_tiles(unsigned char* memory) {
  return memory + (-shared_address(memory) & (kTileAlignment - 1));
}

/** The stages of a block in turns: what is fetched for step `step` lies in stage step % kStages. */
template <int kStages>
struct Ring {
  Barrier *filled, *emptied;
  static constexpr size_t kBytes = 2 * kStages * sizeof(Barrier);
  __device__ explicit Ring(void* memory) : filled(static_cast<Barrier*>(memory)), emptied(filled + kStages) {}
  __device__ static int stage(int step) { return step % kStages; }
  __device__ static unsigned parity(int step) { return static_cast<unsigned>(step / kStages) & 1u; }
  /** By one thread: a stage is filled when as many have arrived, and emptied when all warps that multiply have. */
  __device__ void make(int arrivals) const {
    for (int i = 0; i < kStages; i++) {
      barrier_init(filled + i, arrivals);
      barrier_init(emptied + i, kWorkers / kWarp);
    }
    barriers_made();
  }
  __device__ void wait_filled(int step) const { barrier_wait(filled + stage(step), parity(step)); }
  __device__ void wait_emptied(int step) const { barrier_wait(emptied + stage(step), parity(step) ^ 1u); }
  /** By whole warps that multiply. */
  __device__ void release(int step) const {
    if (threadIdx.x % kWarp == 0) barrier_arrive(emptied + stage(step));
  }
  /** For steps that a warp has no use for. */
  __device__ void pass(int from, int to) const {
    for (int step = from; step < to; step++) {
      wait_filled(step);
      release(step);
    }
  }
};

/** Starts fetching kTileRows rows from `row` on, C columns from `column` on. */
template <int C>
__device__ __forceinline__ void fetch_tile(unsigned char* tile, const CUtensorMap* map, int column, int row,
                                           Barrier* filled) {
#pragma unroll
  for (int panel = 0; panel < kPanels<C>; panel++) {
    fetch_box(tile + panel * kPanelBytes, map, column + panel * kPanelColumns, row, filled);
  }
}

/** Zeros for the rows from `rows` on, by both warpgroups: what follows a sequence is another's, and a weight of zero
 *  does not keep a NaN out. After finish_clearing they are seen by the products of the warpgroup. */
template <int C>
__device__ __forceinline__ void clear_rows(unsigned char* tile, int rows) {
  constexpr int kChunks = kPanelColumns * 2 / 16;
  const int thread = static_cast<int>(threadIdx.x) % kWarpGroup;
  for (int i = rows * kChunks + thread; i < kTileRows * kChunks; i += kWarpGroup) {
#pragma unroll
    for (int panel = 0; panel < kPanels<C>; panel++) {
      store_pack(reinterpret_cast<bf16*>(tile + panel * kPanelBytes) + i * 8, Pack<bf16>{});
    }
  }
}
__device__ __forceinline__ void finish_clearing() {
  fence_async_proxy();
  sync_threads_of(kGroupBarrier + static_cast<int>(threadIdx.x) / kWarpGroup, kWarpGroup);
}

/** A warpgroup's 64 x 64 of sums. */
using Square = float[8][4];

/** Of a tile, the 16 columns from k on, as operands of a product with rows of the tile. */
__device__ __forceinline__ int columns_at(int k) {
  return (k / kPanelColumns * kPanelBytes + k % kPanelColumns * 2) / 16;
}

/** Adds to the group of products under way: d = own times the rows of a tile, transposed. */
template <int C>
__device__ __forceinline__ void multiply_rows(Square& d, const uint32_t (&own)[C / 16][4], const void* tile) {
  const uint32_t right = tile_descriptor(tile);
#pragma unroll
  for (int k = 0; k < C; k += 16) warpgroup_product<false>(d, own[k / 16], right + columns_at(k), k > 0);
}
/** The same for own rows that are a tile themselves. */
template <int C>
__device__ __forceinline__ void multiply_rows(Square& d, const void* own, const void* tile) {
  const uint32_t left = tile_descriptor(own), right = tile_descriptor(tile);
#pragma unroll
  for (int k = 0; k < C; k += 16) {
    warpgroup_product_of_tiles(d, left + columns_at(k), right + columns_at(k), k > 0);
  }
}
/** d (+)= weights[64, 64] times a tile. */
template <int C>
__device__ __forceinline__ void multiply_across(float (&d)[kPanels<C>][8][4], const uint32_t (&weights)[4][4],
                                                const void* tile, bool accumulate) {
  const uint32_t right = tile_descriptor(tile);
#pragma unroll
  for (int panel = 0; panel < kPanels<C>; panel++) {
#pragma unroll
    for (int j = 0; j < kTileRows / 16; j++) {
      const int offset = (panel * kPanelBytes + j * 16 * kPanelColumns * 2) / 16;
      warpgroup_product<true>(d[panel], weights[j], right + offset, accumulate || j > 0);
    }
  }
}

}  // namespace caravan::cuda::attention_detail
