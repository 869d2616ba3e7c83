// The units of an attention call (attention_units.h). One block makes the list: counts of all segments, their prefix
// sums, then every unit into its place by a counting sort on its work. Units that are equally long land in any order,
// which decides when they run and nothing else.
#include "kernels/attention_units.h"

#include "core/scratch.h"
#include "cuda/reduce.h"

namespace caravan::cuda::attention_detail {
namespace {

constexpr int kThreads = 1024;

/** Sum of `x` over the threads up to and including this one. `sums` has room for a number per warp. */
__device__ int inclusive_scan(int x, int* sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, x, static_cast<unsigned>(step));
    if (lane >= step) x += before;
  }
  __syncthreads();
  if (lane == kWarp - 1) sums[warp] = x;
  __syncthreads();
  for (int w = 0; w < warp; w++) x += sums[w];
  return x;
}

__device__ int tiles_of(const Segment& segment, const Geometry& g, const Cut& cut) {
  if (segment.rows(g) < cut.least_rows) return 0;
  return ((cut.by_keys ? segment.keys : segment.rows(g)) + cut.size - 1) / cut.size;
}

/** Steps of the loop that a unit is worked off in. */
__device__ int work_of(const Segment& segment, const Geometry& g, const Cut& cut, int tile) {
  const int begin = tile * cut.size;
  const Range range = cut.by_keys ? segment.rows_of(g, begin, min(cut.size, segment.keys - begin))
                                  : segment.key_blocks(g, begin, min(cut.size, segment.rows(g) - begin));
  return range.empty() ? 0 : cut.by_keys ? (range.end - range.first) / kBlockKeys : range.end - range.first;
}

__device__ Unit unit_at(const int* ends, int count, int index) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ends[middle] > index) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return {low, index - (low == 0 ? 0 : ends[low - 1])};
}

/** `shift` brings the most work that a unit can have below the number of buckets. */
__global__ void __launch_bounds__(kThreads)
    make_units(Sequences sequences, Geometry g, Cut cut, int most, int shift, int* ends, Unit* units, int* count) {
  __shared__ int sums[kWarp];
  __shared__ int buckets[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  int total = 0;
  for (int s0 = 0; s0 < sequences.count; s0 += kThreads) {
    const int s = s0 + thread;
    const int end = total + inclusive_scan(s < sequences.count ? tiles_of(sequences.at(s), g, cut) : 0, sums);
    if (s < sequences.count) ends[s] = end;
    if (thread == kThreads - 1) buckets[0] = end;
    __syncthreads();
    total = buckets[0];
    __syncthreads();
  }
  total = min(total, most);
  buckets[thread] = 0;
  __syncthreads();
  const auto bucket_of = [&](const Unit& unit) {
    const int work = work_of(sequences.at(unit.segment), g, cut, unit.tile) >> shift;
    return kThreads - 1 - min(work, kThreads - 1);
  };
  for (int i = thread; i < total; i += kThreads) {
    atomicAdd(&buckets[bucket_of(unit_at(ends, sequences.count, i))], 1);
  }
  __syncthreads();
  const int own = buckets[thread];
  const int begin = inclusive_scan(own, sums) - own;
  buckets[thread] = begin;
  __syncthreads();
  for (int i = thread; i < total; i += kThreads) {
    const Unit unit = unit_at(ends, sequences.count, i);
    units[atomicAdd(&buckets[bucket_of(unit)], 1)] = unit;
  }
  if (thread == 0) *count = total;
}

int most_units(const Sequences& s, const Geometry& g, const Cut& cut) {
  const int64_t size = cut.by_keys ? s.keys : int64_t{s.queries} * g.group;
  return static_cast<int>(size / cut.size + s.count);
}

}  // namespace

Sequences sequences_of(const Args& a, const char* op, const Tables& t, bool own_keys) {
  const int64_t keys = t.pages == nullptr ? t.k.shape[0] : t.pages->shape[0];
  return {t.segments.as<int32_t>(),
          t.pages == nullptr ? nullptr : t.pages->as<int32_t>(),
          static_cast<int>(t.segments.shape[0]),
          static_cast<int>(t.q.shape[0]),
          static_cast<int>(keys),
          t.k.shape[0],
          own_keys,
          fault_report(a, op)};
}

Geometry geometry_of(const char* op, const Tables& t, double window) {
  constexpr double kNoWindow = 1 << 30;  // more keys than a table can speak of
  const int64_t H = t.q.shape[1], K = t.k.shape[t.k.rank - 2];
  if (K < 1 || H % K != 0) {
    fail("ERR_SHAPE", "%s: the query heads H=%lld must be a multiple of the key heads K=%lld", op,
         static_cast<long long>(H), static_cast<long long>(K));
  }
  return {static_cast<int>(H), static_cast<int>(K), static_cast<int>(H / K),
          window < kNoWindow ? static_cast<int>(window) : 0};
}

UnitList::UnitList(const Args& a, const Sequences& sequences, const Geometry& geometry, const Cut& cut)
    : most_(most_units(sequences, geometry, cut)),
      list_(a.device, static_cast<size_t>(most_) * sizeof(Unit)),
      ends_(a.device, static_cast<size_t>(sequences.count) * sizeof(int)),
      count_(a.device, sizeof(int)) {
  const int64_t most_work = (cut.by_keys ? int64_t{sequences.queries} * geometry.group : sequences.keys) / kBlockKeys;
  int shift = 0;
  while (most_work >> shift >= kThreads) shift++;
  launch(a, {dim3(1), dim3(kThreads)}, make_units, sequences, geometry, cut, most_, shift, ends_.as<int>(),
         list_.as<Unit>(), count_.as<int>());
}

}  // namespace caravan::cuda::attention_detail
