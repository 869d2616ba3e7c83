// Searches over one row of logits by one block of threads: its maximum, the value at which a cumulated mass in the
// order of values passes a limit (a radix descent), the element at which a cumulated weight in the order of ids does.
// The number of threads, whole warps up to 1024, shows in no result.
#pragma once
#include "cuda/fault.h"
#include "kernels/logits_summary.h"

namespace caravan::cuda {

struct RowOfLogits {
  const float* z;     // 16-byte aligned, with room for whole packs
  int count;          // V
  double* part_sums;  // shared memory: one number for kPartColumns logits
};

/** body(v, z[v]) for the logits of this thread. */
template <typename Body>
__device__ __forceinline__ void for_row(const RowOfLogits& row, const Body& body) {
  for (int at = static_cast<int>(threadIdx.x) * 4; at < row.count; at += static_cast<int>(blockDim.x) * 4) {
    const Pack<float> pack = load_pack(row.z + at);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (at + j < row.count) body(at + j, pack.x[j]);
    }
  }
}

__device__ inline float largest(const RowOfLogits& row) {
  float peak = -INFINITY;
  for_row(row, [&](int, float z) { peak = fmaxf(peak, z); });
  return block_reduce(peak, LargestOf{}, -INFINITY);
}

struct LeastOf {
  __device__ int operator()(int a, int b) const { return a < b ? a : b; }
};

/** The lowest id whose logit is `value`. */
__device__ inline int index_of(const RowOfLogits& row, float value) {
  int index = row.count;
  for_row(row, [&](int v, float z) { index = z == value && v < index ? v : index; });
  index = block_reduce(index, LeastOf{}, row.count);
  return index < row.count ? index : 0;
}

/** Bits of a float in the order of its value. */
__device__ __forceinline__ uint32_t ordered_bits(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// ---- weights --------------------------------------------------------------------------------------------------------

/** Weights up to 1 as integers: exact from 2^-18 up, and the sum of kMostTokens of them fits in 64 bits. */
constexpr double kFixedUnit = 0x1p42;
constexpr int64_t kMostTokens = int64_t{1} << 20;

__device__ __forceinline__ uint64_t fixed_point(float weight) {
  return static_cast<uint64_t>(static_cast<double>(weight) * kFixedUnit);
}

/** The weight e^((z - peak) / temperature) of a logit, 0 for what the filters removed. */
struct Filter {
  float peak, temperature;
  double min_p;
  uint32_t least_logit, least_weight;  // ordered bits
  int last_tie;                        // of those whose weight is the least, ids up to this one stay

  __device__ bool keeps_all() const { return least_logit == 0 && least_weight == 0 && min_p == 0; }
  __device__ float weight(float z, int v) const {
    if (ordered_bits(z) < least_logit) return 0.0f;
    float x = z - peak;
    if (temperature != 1.0f) x = x / temperature;
    const float w = expf(x);
    const uint32_t bits = ordered_bits(w);
    if (bits < least_weight || (bits == least_weight && v > last_tie)) return 0.0f;
    return w < min_p ? 0.0f : w;
  }
};

// ---- in the order of values -----------------------------------------------------------------------------------------

constexpr int kDigitBits = 11;
constexpr int kBuckets = 1 << kDigitBits;

constexpr int kCandidates = 4096;

/** A histogram of 64-bit integers: two halves, for which shared memory has atomic additions. And the keys that the
 *  first two digits leave, in no order, while there are no more than kCandidates: they spare the last sweep. */
struct Buckets {
  unsigned low[kBuckets], high[kBuckets];
  uint32_t keys[kCandidates];
  int candidates;

  __device__ void add(int bucket, uint64_t mass) {
    const unsigned part = static_cast<unsigned>(mass);
    const unsigned before = atomicAdd(&low[bucket], part);
    const unsigned upper = static_cast<unsigned>(mass >> 32) + (before + part < part ? 1u : 0u);
    if (upper > 0) atomicAdd(&high[bucket], upper);
  }
  __device__ void keep(uint32_t key) {
    const int at = atomicAdd(&candidates, 1);
    if (at < kCandidates) keys[at] = key;
  }
  __device__ uint64_t operator[](int bucket) const { return static_cast<uint64_t>(high[bucket]) << 32 | low[bucket]; }
};

/** The one histogram of a block. */
__device__ inline Buckets& block_buckets() {
  __shared__ Buckets buckets;
  return buckets;
}

struct Cut {
  uint32_t key;          // the smallest that stays
  uint64_t below, mass;  // of all smaller keys, and of this one
  uint64_t limit;
};

/** Inclusive sums over the block's threads, in their order; `total` is that of the last. */
__device__ inline uint64_t block_scan(uint64_t x, uint64_t& total) {
  __shared__ uint64_t warp_sums[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, x, delta);
    if (lane >= delta) x += other;
  }
  if (lane == kWarp - 1) warp_sums[warp] = x;
  __syncthreads();
  total = 0;
  uint64_t before = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; w++) {
    if (w < warp) before += warp_sums[w];
    total += warp_sums[w];
  }
  __syncthreads();
  return before + x;
}

/** The first bucket with which the mass so far exceeds the limit, the last that has any when none does. `cut.below`
 *  becomes the mass before it. */
template <typename Limit>
__device__ int bucket_above(const Buckets& buckets, bool is_first, const Limit& limit, Cut& cut) {
  __shared__ int above, last;
  __shared__ uint64_t below, mass;
  const int each = kBuckets / static_cast<int>(blockDim.x), begin = static_cast<int>(threadIdx.x) * each;
  uint64_t own = 0, total = 0;
  for (int b = begin; b < begin + each; b++) own += buckets[b];
  if (threadIdx.x == 0) {
    above = kBuckets;
    last = 0;
  }
  const uint64_t before = cut.below + block_scan(own, total) - own;
  if (is_first) cut.limit = limit(total);
  int first_found = kBuckets, last_found = -1;
  uint64_t so_far = before;
  for (int b = begin; b < begin + each; b++) {
    if (buckets[b] == 0) continue;
    so_far += buckets[b];
    last_found = b;
    if (so_far > cut.limit && first_found == kBuckets) first_found = b;
  }
  if (first_found < kBuckets) atomicMin(&above, first_found);
  if (last_found >= 0) atomicMax(&last, last_found);
  __syncthreads();
  const int chosen = above < kBuckets ? above : last;
  if (chosen >= begin && chosen < begin + each) {
    so_far = before;
    for (int b = begin; b < chosen; b++) so_far += buckets[b];
    below = so_far;
    mass = buckets[chosen];
  }
  __syncthreads();
  cut.below = below;
  cut.mass = mass;
  return chosen;
}

/** Going up the keys of the row: the first with which the mass so far exceeds limit(total mass); the largest when none
 *  does. What has no mass, mass(key) = 0, does not exist. Three digits, two or three sweeps over the row. */
template <typename Key, typename Mass, typename Limit>
__device__ Cut first_above(const RowOfLogits& row, const Key& key, const Mass& mass, const Limit& limit) {
  Buckets& buckets = block_buckets();
  Cut cut = {0, 0, 0, 0};
  for (int level = 0, shift = 32 - kDigitBits, digit = kDigitBits; digit > 0; level++) {
    for (int b = threadIdx.x; b < kBuckets; b += blockDim.x) buckets.low[b] = buckets.high[b] = 0;
    if (level == 1 && threadIdx.x == 0) buckets.candidates = 0;
    __syncthreads();
    const uint32_t decided = level == 0 ? 0 : ~uint32_t{0} << (shift + digit);
    const auto visit = [&](uint32_t bits) {
      if ((bits & decided) != cut.key) return;
      const uint64_t own = mass(bits);
      if (own == 0) return;
      buckets.add(static_cast<int>(bits >> shift & ((1u << digit) - 1)), own);
      if (level == 1) buckets.keep(bits);
    };
    if (level == 2 && buckets.candidates <= kCandidates) {
      for (int i = threadIdx.x; i < buckets.candidates; i += blockDim.x) visit(buckets.keys[i]);
    } else {
      for_row(row, [&](int, float z) { visit(key(z)); });
    }
    __syncthreads();
    cut.key |= static_cast<uint32_t>(bucket_above(buckets, level == 0, limit, cut)) << shift;
    digit = shift < kDigitBits ? shift : kDigitBits;
    shift -= digit;
  }
  return cut;
}

// ---- in the order of ids --------------------------------------------------------------------------------------------

struct Picked {
  int index;
  double total;
};

/** part_sums[p] = sum of weight(z, v) over part p, each by one warp. */
template <typename Weight>
__device__ void sum_parts(const RowOfLogits& row, const Weight& weight) {
  const int lane = threadIdx.x % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  for (int part = static_cast<int>(threadIdx.x) / kWarp; part * kPartColumns < row.count; part += warps) {
    const int begin = part * static_cast<int>(kPartColumns);
    double sum = 0;
#pragma unroll 4
    for (int at = begin + lane * 4; at < begin + kPartColumns; at += kWarp * 4) {
      if (at >= row.count) break;
      const Pack<float> pack = load_pack(row.z + at);
#pragma unroll
      for (int j = 0; j < 4; j++) sum += at + j < row.count ? weight(pack.x[j], at + j) : 0.0f;
    }
    sum = warp_sum(sum);
    if (lane == 0) row.part_sums[part] = sum;
  }
  __syncthreads();
}

/** Of the elements begin <= v < end, by one warp: the first with which `so_far` and the weights exceed `wanted`, or the
 *  last that has a weight. */
template <typename Weight>
__device__ int walk(const RowOfLogits& row, int begin, int end, double so_far, double wanted, const Weight& weight) {
  const int lane = threadIdx.x % kWarp;
  int last = begin;
  for (int at = begin; at < end; at += kWarp) {
    const int v = at + lane;
    const double own = v < end ? static_cast<double>(weight(row.z[v], v)) : 0.0;
    double sum = own;
#pragma unroll
    for (int delta = 1; delta < kWarp; delta *= 2) {
      const double other = __shfl_up_sync(kAllLanes, sum, delta);
      if (lane >= delta) sum += other;
    }
    const unsigned beyond = __ballot_sync(kAllLanes, own > 0 && so_far + sum > wanted);
    if (beyond != 0) return at + __ffs(static_cast<int>(beyond)) - 1;
    const unsigned weighty = __ballot_sync(kAllLanes, own > 0);
    if (weighty != 0) last = at + kWarp - 1 - __clz(static_cast<int>(weighty));
    so_far += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  return last;
}

/** The first id with which the weights so far exceed wanted(total), and the total; row.part_sums hold those of the
 *  parts. Rounding may leave the wanted number beyond the last one: then the last id that has a weight is it. */
template <typename Weight, typename Wanted>
__device__ Picked pick(const RowOfLogits& row, const Weight& weight, const Wanted& wanted) {
  __shared__ int chosen_part, chosen;
  __shared__ double before, sum_of_all;
  if (threadIdx.x == 0) {
    const int parts = (row.count + static_cast<int>(kPartColumns) - 1) / static_cast<int>(kPartColumns);
    double total = 0;
    for (int part = 0; part < parts; part++) total += row.part_sums[part];
    const double limit = wanted(total);
    double so_far = 0;
    chosen_part = 0;
    before = 0;
    for (int part = 0; part < parts; part++) {
      if (!(row.part_sums[part] > 0)) continue;
      chosen_part = part;
      before = so_far;
      so_far += row.part_sums[part];
      if (so_far > limit) break;
    }
    sum_of_all = total;
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int begin = chosen_part * static_cast<int>(kPartColumns);
    const int end = begin + kPartColumns < row.count ? begin + static_cast<int>(kPartColumns) : row.count;
    const int index = walk(row, begin, end, before, wanted(sum_of_all), weight);
    if (threadIdx.x == 0) chosen = index;
  }
  __syncthreads();
  const Picked picked = {chosen, sum_of_all};
  __syncthreads();
  return picked;
}

}  // namespace caravan::cuda
