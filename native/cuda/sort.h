// A stable sort of small integers (rows of a table) together with their positions: a radix sort of eight bits a pass,
// two launches a pass. What gradients need that add rows by index: the rows of one index side by side, in their order.
#pragma once
#include "core/scratch.h"
#include "cuda/fault.h"
#include "cuda/reduce.h"

namespace caravan::cuda {

/** Keys in increasing order; positions[i] is where keys[i] stood. Keys that were outside [0, limit) are `limit`. */
struct SortedKeys {
  const uint32_t* keys;
  const int32_t* positions;
  int64_t count;
};

namespace sort_detail {

constexpr int kBits = 8, kDigits = 1 << kBits;
constexpr int kThreads = kDigits;  // one a digit
constexpr int kWarps = kThreads / kWarp;
constexpr int kRounds = 8;  // keys a thread
constexpr int kTile = kThreads * kRounds;

struct Pass {
  const uint32_t* keys;
  const int32_t* positions;  // null in the first pass: key i stands at i
  uint32_t* keys_out;
  int32_t* positions_out;
  uint32_t* counts;  // [tiles, kDigits]
  int64_t count;
  uint32_t limit;
  int shift;

  __device__ __forceinline__ uint32_t key(int64_t i) const { return keys[i] < limit ? keys[i] : limit; }
  __device__ __forceinline__ uint32_t digit(uint32_t k) const { return k >> shift & (kDigits - 1); }
};

/** How often each digit occurs in each tile. */
static __global__ void __launch_bounds__(kThreads) count_digits(Pass p, FaultReport fault) {
  __shared__ uint32_t counts[kDigits];
  counts[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = int64_t{blockIdx.x} * kTile;
  for (int round = 0; round < kRounds; round++) {
    const int64_t i = begin + round * kThreads + threadIdx.x;
    if (i >= p.count) continue;
    if (p.positions == nullptr && p.keys[i] >= p.limit) {
      fault.note(FaultKind::kIndex, i, static_cast<int32_t>(p.keys[i]), p.limit);
    }
    atomicAdd(&counts[p.digit(p.key(i))], 1u);
  }
  __syncthreads();
  p.counts[int64_t{blockIdx.x} * kDigits + threadIdx.x] = counts[threadIdx.x];
}

/** Sum of x over the threads before this one. */
static __device__ uint32_t exclusive_sum(uint32_t x) {
  __shared__ uint32_t totals[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  uint32_t sum = x;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const uint32_t before = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(distance));
    if (lane >= distance) sum += before;
  }
  if (lane == kWarp - 1) totals[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; w++) sum += totals[w];
  __syncthreads();
  return sum - x;
}

/** Moves the keys of a tile to their places: after those of smaller digits, then of earlier tiles, warps and lanes. */
static __global__ void __launch_bounds__(kThreads) move_keys(Pass p, int tiles) {
  __shared__ uint32_t places[kWarps][kDigits];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int w = 0; w < kWarps; w++) places[w][threadIdx.x] = 0;
  __syncthreads();

  // A warp owns neighbouring keys. rank: keys of the same digit before this one in the warp.
  const int64_t begin = int64_t{blockIdx.x} * kTile + warp * (kWarp * kRounds) + lane;
  uint32_t keys[kRounds], ranks[kRounds];
#pragma unroll
  for (int round = 0; round < kRounds; round++) {
    const int64_t i = begin + round * kWarp;
    const bool exists = i < p.count;
    keys[round] = exists ? p.key(i) : 0;
    const uint32_t digit = p.digit(keys[round]);
    unsigned peers = __ballot_sync(kAllLanes, exists);
#pragma unroll
    for (int bit = 0; bit < kBits; bit++) {
      const bool set = digit >> bit & 1u;
      const unsigned with = __ballot_sync(kAllLanes, set);
      peers &= set ? with : ~with;
    }
    ranks[round] = places[warp][digit] + static_cast<uint32_t>(__popc(peers & ((1u << lane) - 1)));
    __syncwarp();
    if (exists && __ffs(static_cast<int>(peers)) - 1 == lane) {
      places[warp][digit] += static_cast<uint32_t>(__popc(peers));
    }
    __syncwarp();
  }
  __syncthreads();

  uint32_t earlier = 0, all = 0;
  for (int tile = 0; tile < tiles; tile++) {
    const uint32_t n = p.counts[int64_t{tile} * kDigits + threadIdx.x];
    if (tile < static_cast<int>(blockIdx.x)) earlier += n;
    all += n;
  }
  uint32_t place = exclusive_sum(all) + earlier;
  for (int w = 0; w < kWarps; w++) {
    const uint32_t n = places[w][threadIdx.x];
    places[w][threadIdx.x] = place;
    place += n;
  }
  __syncthreads();
#pragma unroll
  for (int round = 0; round < kRounds; round++) {
    const int64_t i = begin + round * kWarp;
    if (i >= p.count) continue;
    const uint32_t to = places[warp][p.digit(keys[round])] + ranks[round];
    p.keys_out[to] = keys[round];
    p.positions_out[to] = p.positions == nullptr ? static_cast<int32_t>(i) : p.positions[i];
  }
}

}  // namespace sort_detail

/** Bytes of scratch memory for sort_keys. */
inline size_t sort_bytes(int64_t count) {
  const int64_t tiles = ceil_div(count, sort_detail::kTile);
  return static_cast<size_t>(4 * count + tiles * sort_detail::kDigits) * sizeof(int32_t);
}

/** Sorts `count` keys in [0, limit); `fault` gets the first that is outside. The result lies in `scratch`. */
inline SortedKeys sort_keys(const Args& a, const int32_t* keys, int64_t count, int64_t limit, FaultReport fault,
                            const Scratch& scratch) {
  using namespace sort_detail;
  uint32_t* memory = scratch.as<uint32_t>();
  uint32_t* key_buffers[2] = {memory, memory + count};
  int32_t* position_buffers[2] = {reinterpret_cast<int32_t*>(memory + 2 * count),
                                  reinterpret_cast<int32_t*>(memory + 3 * count)};
  const int tiles = static_cast<int>(ceil_div(count, kTile));
  Pass p = {reinterpret_cast<const uint32_t*>(keys),
            nullptr,
            nullptr,
            nullptr,
            memory + 4 * count,
            count,
            static_cast<uint32_t>(limit),
            0};
  int turn = 0;
  do {
    p.keys_out = key_buffers[turn];
    p.positions_out = position_buffers[turn];
    launch(a, {static_cast<unsigned>(tiles), kThreads}, count_digits, p, fault);
    launch(a, {static_cast<unsigned>(tiles), kThreads}, move_keys, p, tiles);
    p.keys = p.keys_out;
    p.positions = p.positions_out;
    p.shift += kBits;
    turn = 1 - turn;
  } while (p.shift < 32 && p.limit >> p.shift != 0);
  return {p.keys, p.positions, count};
}

}  // namespace caravan::cuda
