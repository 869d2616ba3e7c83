// attention and attention_paged, as attention.cc. bf16 heads of 64 and 128: tiles of mma.m16n8k16 fed by cp.async, the
// next block of 64 keys on its way while one is worked on; a warp keeps its rows' outputs in registers. Scores never
// leave the registers. Traffic: q and o once, k and v once per tile of 128 rows (a decode step: once). Everything else
// is attention_general.cu. Compute capability 9.0 has a form of its own for many queries: attention_hopper.cu.
//
// Bits: a row's result does not depend on the kernel, the tile or the batch it is computed in, which takes more than a
// fixed order of blocks, because a decode step is spread over many blocks and training is not. The weights of a block
// of keys are therefore taken relative to that block alone: to its largest score, rounded up to a multiple of 8 (in
// base 2), so that what joins blocks are exact powers of two. A block's product with its values is summed from zero,
// and those products are added in the order of the keys, by one warp in its registers or, when few warps would be busy,
// by a second kernel from memory: the same additions of the same numbers.
//
// The weights are operands in bf16. The output is divided by the sum of the rounded weights, lse is made of the exact
// ones.
#include "core/scratch.h"
#include "cuda/attention_form.h"
#include "cuda/chain.h"
#include "kernels/attention_general.h"
#include "kernels/attention_hopper.h"
#include "kernels/attention_softmax.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

using namespace attention_detail;

/** Where a split sequence leaves the products of its blocks of keys: a slot per block, each K x row_capacity rows. */
struct Splits {
  int count;  // blocks of the grid per sequence and tile of rows
  int row_capacity;
  int slots;
  float* products;  // [C] per row
  float4* totals;   // per row: reference, sum, sum of the rounded weights
};

// ---- a tile of rows -------------------------------------------------------------------------------------------------

/** Rows [row, row + rows) of a key/value head of a segment, against the blocks of keys given. */
struct RowTile {
  Segment segment;
  int kv_head, row, rows;
  Range blocks;
  int slot;  // of the segment's first block, when split
};

/** kWarps warps of kFragments * 16 rows each. */
template <int C, int kWarps, int kFragments>
struct Shared {
  static constexpr int kThreads = kWarps * kWarp, kRows = kWarps * kFragments * 16;
  static constexpr int kStage = 2 * kBlockKeys * C;  // elements: keys, then values
  static constexpr size_t kBytes =
      sizeof(bf16) * (kRows * C + 2 * kStage) + (sizeof(Range) + sizeof(int) + sizeof(Totals)) * kRows;
  bf16* queries;
  bf16* stages;
  Range* keys_of_row;
  int* index_of_row;  // in [N, H]; -1 for none
  Totals* totals;
  __device__ explicit Shared(bf16* memory)
      : queries(memory),
        stages(memory + kRows * C),
        keys_of_row(reinterpret_cast<Range*>(memory + kRows * C + 2 * kStage)),
        index_of_row(reinterpret_cast<int*>(keys_of_row + kRows)),
        totals(reinterpret_cast<Totals*>(index_of_row + kRows)) {}
};

/** Leaves the product and the totals of one block of keys in its slot. */
template <int C>
__device__ __forceinline__ void leave_block(const Problem& p, const Splits& splits, const RowTile& tile, int block,
                                            const BlockWeights<1>& weights, const bf16* values) {
  const int lane = threadIdx.x % kWarp;
  float sums[1][2];
  rounded_sums(weights, sums);
  float* rows[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = lane / 4 + h * 8;
    const int64_t at =
        ((int64_t{tile.slot} + block) * p.geometry.K + tile.kv_head) * splits.row_capacity + tile.row + row;
    rows[h] = row < tile.rows ? splits.products + at * C : nullptr;
    if (row >= tile.rows) continue;
    if (lane % 4 == 0) splits.totals[at] = make_float4(weights.reference[0][h], weights.sum[0][h], sums[0][h], 0.0f);
  }
  __syncwarp();  // the tensor cores take whole warps
  block_product<C>(weights, values, [&](int n, const float (&t)[1][kSlice][4]) {
#pragma unroll
    for (int m = 0; m < kSlice; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float2* to = reinterpret_cast<float2*>(rows[h] + (n + m) * 8) + lane % 4;
        if (rows[h] != nullptr) *to = make_float2(t[0][m][2 * h], t[0][m][2 * h + 1]);
      }
    }
  });
}

template <int C, int kWarps, int kFragments>
__device__ __forceinline__ void store_tile(const Problem& p, const Shared<C, kWarps, kFragments>& shared,
                                           const float (&o)[kFragments][C / 8][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kFragments; i++) {
    const int first = (warp * kFragments + i) * 16;
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float lse;
      const int row = first + lane / 4 + h * 8, index = shared.index_of_row[row];
      factor[h] = finish_row(shared.totals[row], &lse);
      if (lane % 4 == 0 && index >= 0) p.lse[index] = lse;
    }
    store_rows<C>(shared.queries + first * C, o[i], factor, [&](int row) {
      const int index = shared.index_of_row[first + row];
      return index >= 0 ? p.o + int64_t{index} * C : nullptr;
    });
  }
}

template <int C, int kWarps, int kFragments, bool kSplit>
__device__ __forceinline__ void attend_tile(const Problem& p, const RowTile& tile, const Splits& splits,
                                            const Shared<C, kWarps, kFragments>& shared) {
  using Memory = Shared<C, kWarps, kFragments>;
  const Geometry& g = p.geometry;
  const Segment& segment = tile.segment;
  for (int r = threadIdx.x; r < Memory::kRows; r += Memory::kThreads) {
    const bool exists = r < tile.rows;
    shared.keys_of_row[r] = exists ? segment.keys_of((tile.row + r) / g.group, g.window) : Range{0, 0};
    shared.index_of_row[r] = exists ? static_cast<int>(row_index(g, segment, tile.kv_head, tile.row + r)) : -1;
    shared.totals[r] = {kMinusInfinity, 0.0f, 0.0f};
  }
  __syncthreads();
  fetch_rows<C, Memory::kRows, Memory::kThreads>({{shared.queries, p.q}},
                                                 [&](int r) { return int64_t{shared.index_of_row[r]} * C; });
  int page = tile.blocks.empty() ? 0 : p.sequences.page_of(segment, tile.blocks.first);
  const auto start = [&](int block) {
    if (block < tile.blocks.end) {
      const int64_t first = (p.sequences.key_row(segment, block, page) * g.K + tile.kv_head) * C;
      const int stride = g.K * C;
      const int keys = segment.keys - block * kBlockKeys;
      bf16* stage = shared.stages + block % 2 * Memory::kStage;
      fetch_adjacent<C, kBlockKeys, Memory::kThreads>(stage, p.k + first, stride, keys);
      fetch_adjacent<C, kBlockKeys, Memory::kThreads>(stage + kBlockKeys * C, p.v + first, stride, keys);
      if (block + 1 < tile.blocks.end) page = p.sequences.page_of(segment, block + 1);
    }
    cp_async_commit();
  };
  start(tile.blocks.first);

  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kFragments * 16;
  const int warp_rows = min(kFragments * 16, tile.rows - warp_row);
  float o[kFragments][C / 8][4] = {};
  for (int block = tile.blocks.first; block < tile.blocks.end; block++) {
    cp_async_wait<0>();
    __syncthreads();
    start(block + 1);
    const int key = block * kBlockKeys;
    if (warp_rows <= 0) continue;
    // All rows of the warp see the keys between the two ranges, none sees those outside them.
    const Range top = shared.keys_of_row[warp_row], bottom = shared.keys_of_row[warp_row + warp_rows - 1];
    if (key >= bottom.end || key + kBlockKeys <= top.first) continue;
    const bf16* keys = shared.stages + block % 2 * Memory::kStage;
    const bool masked = key < bottom.first || key + kBlockKeys > top.end;
    BlockWeights<kFragments> weights;
    weigh_block<C>(weights, shared.queries + warp_row * C, keys, p.exponent, shared.keys_of_row + warp_row, key,
                   masked);
    if constexpr (kSplit) {
      leave_block<C>(p, splits, tile, block, weights, keys + kBlockKeys * C);
    } else {
      add_block<C>(o, shared.totals + warp_row, weights, keys + kBlockKeys * C);
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  if constexpr (!kSplit) store_tile(p, shared, o);
}

// ---- kernels --------------------------------------------------------------------------------------------------------

constexpr int kWideWarps = 4, kWideFragments = 2, kWideRows = kWideWarps * kWideFragments * 16;
static_assert(kWideRows == kHopperRows);
/** Rows of a segment up to which single warps serve it, 16 rows each: decode steps. */
constexpr int kNarrowTile = 16, kNarrowRows = 32;

template <int C>
__global__ void __launch_bounds__(kWideWarps* kWarp, 2) attend_wide(Problem p, UnitList::Given list) {
  CARAVAN_SHARED(bf16, memory);
  Unit unit;
  if (!unit_of_block(list, p.geometry, &unit)) return;
  const Segment segment = p.sequences.at(unit.segment);
  const int row = unit.tile * kWideRows, rows = min(kWideRows, segment.rows(p.geometry) - row);
  const int kv_head = static_cast<int>(blockIdx.x) % p.geometry.K;
  const RowTile tile = {segment, kv_head, row, rows, segment.key_blocks(p.geometry, row, rows), 0};
  const Shared<C, kWideWarps, kWideFragments> shared(memory);
  attend_tile<C, kWideWarps, kWideFragments, false>(p, tile, Splits{}, shared);
}

/** First slot of a segment: every segment before it has one per block of its keys. Called by whole warps. */
__device__ int first_slot(const Sequences& sequences, int s) {
  int slots = 0;
  for (int i = threadIdx.x % kWarp; i < s; i += kWarp) {
    slots += (sequences.at(i).keys + kBlockKeys - 1) / kBlockKeys;
  }
  return warp_sum(slots);
}
/** Whether a segment is split: its rows and blocks must find room. */
__device__ __forceinline__ bool is_split(const Splits& splits, const Geometry& g, const Segment& segment, int slot) {
  return segment.rows(g) <= splits.row_capacity && slot + (segment.keys + kBlockKeys - 1) / kBlockKeys <= splits.slots;
}

/** Rows outside all segments are 0 with an lse of -inf. */
template <typename T>
__device__ void clear_gaps(const Sequences& sequences, const Geometry& g, int C, T* o, float* lse, int64_t row,
                           int kv_head) {
  const int head = kv_head * g.group;
  fill_gap_rows(sequences, 0, row, sequences.queries, o + int64_t{head} * C, int64_t{g.H} * C, g.group * C, T{});
  fill_gap_rows(sequences, 0, row, sequences.queries, lse + head, g.H, g.group, kMinusInfinity);
}

/** Blocks (segment or rows to clear, key/value head, tile of rows + row_tiles * split), one warp each. */
template <int C>
__global__ void __launch_bounds__(kWarp, 8) attend_narrow(Problem p, int most_rows, int row_tiles, Splits splits) {
  CARAVAN_SHARED(bf16, memory);
  await_earlier();
  const Geometry& g = p.geometry;
  const int s = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  if (s >= p.sequences.count) {
    const int64_t row = int64_t{s - p.sequences.count} * kGapRows;
    if (blockIdx.z == 0) clear_gaps(p.sequences, g, C, p.o, p.lse, row, kv_head);
    return;
  }
  const Segment segment = p.sequences.at(s);
  const int rows = segment.rows(g);
  if (rows > most_rows) return;
  const int part = static_cast<int>(blockIdx.z) / row_tiles;
  const int slot = splits.count > 1 ? first_slot(p.sequences, s) : 0;
  const bool split = splits.count > 1 && is_split(splits, g, segment, slot);
  const Shared<C, 1, 1> shared(memory);
  for (int row = static_cast<int>(blockIdx.z) % row_tiles * kNarrowTile; row < rows; row += row_tiles * kNarrowTile) {
    const int count = min(kNarrowTile, rows - row);
    RowTile tile = {segment, kv_head, row, count, segment.key_blocks(g, row, count), slot};
    if (split) {
      const int share = (tile.blocks.end - tile.blocks.first + splits.count - 1) / splits.count;
      tile.blocks.first += part * share;
      tile.blocks.end = min(tile.blocks.end, tile.blocks.first + share);
      if (!tile.blocks.empty()) attend_tile<C, 1, 1, true>(p, tile, splits, shared);
    } else if (part == 0) {
      attend_tile<C, 1, 1, false>(p, tile, splits, shared);
    }
    __syncthreads();
  }
}

constexpr int kGapThreads = 2 * kWarp;

/** A decode step clears gaps in attend_narrow, which spares a launch; where there are many rows, blocks without shared
 *  memory do it in a tenth of the time. */
__global__ void __launch_bounds__(kGapThreads) clear_all_gaps(Problem p, int C) {
  const int64_t row = int64_t{blockIdx.x} * kGapRows, width = int64_t{p.geometry.H} * C;
  fill_gap_rows(p.sequences, 0, row, p.sequences.queries, p.o, width, static_cast<int>(width), bf16{});
  fill_gap_rows(p.sequences, 0, row, p.sequences.queries, p.lse, p.geometry.H, p.geometry.H, kMinusInfinity);
}

/** Joins the blocks of split segments: blocks (segment, key/value head, row), a thread per column. */
template <int C>
__global__ void __launch_bounds__(C) join_blocks(Problem p, Splits splits) {
  await_earlier();
  constexpr int kAhead = 8;
  const Geometry& g = p.geometry;
  const int s = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y),
            row = static_cast<int>(blockIdx.z);
  const Segment segment = p.sequences.at(s);
  const int slot = first_slot(p.sequences, s);
  if (!is_split(splits, g, segment, slot) || row >= segment.rows(g)) return;
  const int tile = row / kNarrowTile * kNarrowTile;
  const Range blocks = segment.key_blocks(g, tile, min(kNarrowTile, segment.rows(g) - tile));
  const int column = static_cast<int>(threadIdx.x);
  float o = 0.0f;
  Totals totals = {kMinusInfinity, 0.0f, 0.0f};
  for (int block0 = blocks.first; block0 < blocks.end; block0 += kAhead) {
    float t[kAhead];
    float4 added[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      const int block = min(block0 + i, blocks.end - 1);
      const int64_t at = ((int64_t{slot} + block) * g.K + kv_head) * splits.row_capacity + row;
      t[i] = splits.products[at * C + column];
      added[i] = splits.totals[at];
    }
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      if (block0 + i >= blocks.end) break;
      const Join factors = join(&totals.reference, added[i].x);
      o = fmaf(o, factors.kept, t[i] * factors.added);
      totals.sum = fmaf(totals.sum, factors.kept, added[i].y * factors.added);
      totals.rounded_sum = fmaf(totals.rounded_sum, factors.kept, added[i].z * factors.added);
    }
  }
  float lse;
  const float factor = finish_row(totals, &lse);
  const int64_t index = row_index(g, segment, kv_head, row);
  p.o[index * C + column] = narrow<bf16>(finished(o, factor));
  if (column == 0) p.lse[index] = lse;
}

// ---- the call -------------------------------------------------------------------------------------------------------

constexpr int64_t kSplitBytes = int64_t{64} << 20;
/** Warps, each a block with a stage of keys under way, that keep the memory of a multiprocessor busy. */
constexpr int kWarpsPerMultiprocessor = 4;

/** Rows that a sequence of few rows has at most, as far as the host can tell: as many queries as sequences are taken
 *  for a decode step of one each. Others are served as well, in turns. */
int likely_rows(const Sequences& sequences, const Geometry& g) {
  const int64_t rows = int64_t{sequences.queries <= sequences.count ? 1 : sequences.queries} * g.group;
  return static_cast<int>(rows < kNarrowRows ? rows : kNarrowRows);
}

/** How sequences of few rows are spread over the device: over their blocks of keys, too, when there are few of them. */
Splits plan_splits(const Args& a, const Problem& p, int row_tiles, int C) {
  const Geometry& g = p.geometry;
  const Sequences& sequences = p.sequences;
  Splits splits{1, likely_rows(sequences, g), 0, nullptr, nullptr};
  const int64_t blocks = int64_t{sequences.count} * g.K * row_tiles;
  const int64_t most_blocks = sequences.pages != nullptr ? sequences.keys : ceil_div(sequences.keys, kBlockKeys);
  if (blocks == 0 || splits.row_capacity == 0) return splits;
  const int64_t wanted = int64_t{kWarpsPerMultiprocessor} * multiprocessors(a) / blocks;
  const int64_t parts = wanted < most_blocks ? wanted : most_blocks;
  splits.count = static_cast<int>(parts < 1 ? 1 : parts);
  const int64_t slot_bytes = int64_t{g.K} * splits.row_capacity * (C * 4 + int64_t{sizeof(float4)});
  const int64_t room = kSplitBytes / slot_bytes, slots = sequences.count * most_blocks;
  splits.slots = static_cast<int>(slots < room ? slots : room);
  return splits;
}

template <int C>
void attend_narrow_tiles(const Args& a, const Problem& p, bool all) {
  const Geometry& g = p.geometry;
  const int64_t tiles = ceil_div(likely_rows(p.sequences, g), kNarrowTile);
  const int row_tiles = static_cast<int>(tiles > 0 ? tiles : 1);
  const int most_rows = all ? 0x7fffffff : kNarrowRows;
  Splits splits = all ? plan_splits(a, p, row_tiles, C) : Splits{1, 0, 0, nullptr, nullptr};
  const unsigned gaps = gap_blocks(p.sequences.queries);
  const dim3 grid(static_cast<unsigned>(p.sequences.count) + (all ? gaps : 0), static_cast<unsigned>(g.K),
                  static_cast<unsigned>(row_tiles * splits.count));
  if (!all) launch(a, {dim3(gaps), dim3(kGapThreads)}, clear_all_gaps, p, C);
  const Launch at = {grid, dim3(kWarp), Shared<C, 1, 1>::kBytes};
  if (splits.count <= 1) return launch_chained(a, at, attend_narrow<C>, p, most_rows, row_tiles, splits);
  const size_t slot_rows = static_cast<size_t>(splits.slots) * static_cast<size_t>(g.K * splits.row_capacity);
  Scratch products(a.device, slot_rows * C * sizeof(float));
  Scratch totals(a.device, slot_rows * sizeof(float4));
  splits.products = products.as<float>();
  splits.totals = totals.as<float4>();
  launch_chained(a, at, attend_narrow<C>, p, most_rows, row_tiles, splits);
  const dim3 rows_grid(static_cast<unsigned>(p.sequences.count), static_cast<unsigned>(g.K),
                       static_cast<unsigned>(splits.row_capacity));
  launch_chained(a, {rows_grid, dim3(C)}, join_blocks<C>, p, splits);
}

template <int C>
void attend_mma(const Args& a, const Sequences& sequences, const Geometry& g) {
  const float scale = static_cast<float>(a.attrs[0]) * kLog2E;
  const float magnitude = scale < 0 ? -scale : scale;
  // A factor of zero would make the mask, -inf, a NaN; one this small weighs all keys alike.
  const Problem p = {sequences,
                     g,
                     a.in[0].as<bf16>(),
                     a.in[1].as<bf16>(),
                     a.in[2].as<bf16>(),
                     a.out[0].as<bf16>(),
                     a.out[1].as<float>(),
                     {magnitude > 1e-30f ? magnitude : 1e-30f, scale < 0}};
  // With hardly more queries than sequences this is a decode step, whichever sequence has them.
  const bool narrow_only =
      sequences.queries <= 2 * sequences.count || int64_t{sequences.queries} * g.group <= kNarrowRows;
  if (!narrow_only) {
    const UnitList units(a, sequences, g, {false, kWideRows, kNarrowRows + 1});
    const int64_t key_rows = a.in[1].count() / (int64_t{g.K} * C);
    if (key_rows > 0 && attention_form().wgmma_forward) {
      attend_hopper(a, p, C, key_rows, units);
    } else {
      launch(a, {dim3(units.blocks(g)), dim3(kWideWarps * kWarp), Shared<C, kWideWarps, kWideFragments>::kBytes},
             attend_wide<C>, p, units.given());
    }
  }
  attend_narrow_tiles<C>(a, p, narrow_only);
}

void attend(const Args& a, const char* op, const View* pages) {
  const Tables tables = {a.in[0], a.in[1], a.in[3], pages};
  const Sequences sequences = sequences_of(a, op, tables, false);
  const Geometry geometry = geometry_of(op, tables, a.attrs[1]);
  const int64_t C = a.in[0].shape[2];
  if (geometry.H == 0) return;
  if (a.in[0].dtype == DType::kBF16 && mma_fits(C, a.in[0].data, a.in[1].data, a.in[2].data, a.out[0].data)) {
    return C == 64 ? attend_mma<64>(a, sequences, geometry) : attend_mma<128>(a, sequences, geometry);
  }
  check_width(op, C);
  with_f32_or_bf16(op, a.in[0].dtype, [&](auto type) { attend_general<decltype(type)>(a, sequences, geometry); });
}

CARAVAN_KERNEL(attention, cuda,
               "q[N,H,C] k[M,K,C] v[M,K,C] segments[S,4]:i32 -> o[N,H,C] lse[N,H]:f32 | scale window") {
  attend(a, "attention", nullptr);
}

CARAVAN_KERNEL(attention_paged, cuda,
               "q[N,H,C] k[P,64,K,C] v[P,64,K,C] segments[S,4]:i32 pages[M]:i32 -> o[N,H,C] lse[N,H]:f32 | scale "
               "window") {
  static_assert(kBlockKeys == 64, "the signature says how long a page is");
  attend(a, "attention_paged", &a.in[4]);
}

}  // namespace
}  // namespace caravan::cuda
