// The choices for a matrix product: which operand is packed, how K and C are cut, who computes which block. None of
// them can change a bit of the result: cuts of K continue the same chain from f32 sums, blocks partition C.
#pragma once
#include "cpu/gemm_few_rows.h"
#include "cpu/gemm_row_lanes.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

// Units of K up to which a product makes one pass: no sums are spilled, and L2 serves panels of B of 32 KiB.
constexpr int64_t kWholeUnits = 512;
// Units of a row of A below which reading it in place, a short stream for the prefetchers, loses to packing.
constexpr int64_t kMinInPlaceUnits = 256;
// Units in one of several passes. With 8 lanes a panel of B (16 KiB) stays in L1 while the panels of A go by; with 16
// lanes a tile needs so few bytes per multiplication that L2 serves it.
constexpr int64_t kPassUnits = kLanes >= 16 ? 512 : 256;
// Passes of a product with so few rows that B is read once: short, so that each K row of B is a long sequential read.
constexpr int64_t kStreamUnits = 16;
// Panels of rows up to which B is read in place where it is contiguous along N: packing would cost more than it saves.
constexpr int64_t kDirectPanels = 4;
// Longer rows than kChunkBytes has room for are read in place as well where there are not many, unless they collide:
// bytes of a way of L1, and how far apart in it neighbours have to begin.
constexpr int64_t kFewEndlessRows = 256;
constexpr int64_t kWayBytes = 4096;
constexpr int64_t kMinApart = 512;
// Columns that go by together when B is read in place: 4 KiB of each K row, and their sums stay in L1.
constexpr int64_t kStreamColumns = 1024;
// Columns of a product of few rows that one task computes at least.
constexpr int64_t kFewRowsColumns = 64;
// Rows up to which B along K (weights) is streamed: it is used for too short a time to wait for memory in between. Rows
// are lanes then; but of so few rows that widening B for them would cost more than half of the product, one panel of B
// at a time is widened and packed into L1 while the next one is asked for.
constexpr int64_t kStreamedRows = 64;
constexpr int64_t kWidenedPanelRows = 12;
// More rows stream a B of so many bytes, too, which comes from memory, if A is small enough to stay near L2 meanwhile.
constexpr int64_t kStreamedBytes = 16 << 20;
constexpr int64_t kMostStreamedA = 2 << 20;
// Units of a streamed panel in one pass: 8 KiB with 16 columns.
constexpr int64_t kStreamedUnits = 128;
constexpr int64_t kPassStep = 32;
// Rows that are read in place meanwhile: they stay in L1.
constexpr int64_t kStreamedRowsInPlace = 16;
// Packed columns of B that one task keeps in L2 while its rows go by.
constexpr int64_t kBlockBytes = (kLanes >= 16 ? 512 : 384) << 10;
// Rows are taken in chunks, which bounds the memory of packed A and of spilled sums. B is packed again for every chunk:
// a per cent at kMaxChunkRows.
constexpr int64_t kChunkBytes = 16 << 20;
constexpr int64_t kMinChunkRows = 512;
constexpr int64_t kMaxChunkRows = 2048;
// Bytes of A up to which four tasks a thread share out the columns, for the sake of a processor that is disturbed.
constexpr int64_t kMostCachedA = 4 << 20;
// A task shorter than this costs more to hand out than it gains (about 20 microseconds).
constexpr int64_t kTaskFlops = 2 << 20;
// The same for products that wait for B, in flops, where a byte of B costs as much time as some of them. (The pool is
// awake then: such products come one after the other.)
constexpr int64_t kStreamedTaskCost = 1 << 19;
constexpr int64_t kStreamedByteCost = 6;

inline int64_t aligned(int64_t floats) { return (floats + 15) & ~int64_t{15}; }

/** The choices for one product, all of them functions of the sizes. */
struct Plan {
  const GemmArgs& g;
  bool pairs;
  int64_t units;       // of K
  int64_t pass_units;  // of K in one pass
  int64_t chunk_rows;
  ASource a_source;
  BSource b_source;  // kUnits: packed
  bool b_direct;     // whole panels of B are read in place
  bool few_rows;     // by gemm_few_rows.h: no panels of B at all
  bool row_lanes;    // by gemm_row_lanes.h: no panels of B either
  bool streamed;     // panel of B after panel of B, each with all its passes
  int64_t block_columns;
  int64_t row_splits;

  int64_t passes() const { return ceil_div(units, pass_units); }
  int64_t a_floats() const {
    if (row_lanes) return aligned(RowGroups(g.M).lanes() * units);
    if (a_source != ASource::kPanel) return 0;
    return aligned(chunk_rows * units + passes() * ceil_div(chunk_rows, kTileRows) * kPanelPadding);
  }
  /** Floats from one packed panel of B to the next. */
  static int64_t panel_floats(int64_t panel_units) { return panel_units * kColumns + kPanelPadding; }
  /** Panels of B, and of the sums that belong to them, that a task has at a time. */
  int64_t panels_at_once() const { return streamed ? 1 : ceil_div(block_columns, kColumns); }
  int64_t b_floats() const { return panels_at_once() * panel_floats(min_of(pass_units, units)); }
  int64_t sums_floats() const {
    if (units <= pass_units) return 0;
    return ceil_div(chunk_rows, kTileRows) * kTileRows * panels_at_once() * kColumns;
  }
  int64_t worker_floats() const {
    if (few_rows) return g.M * ceil_div(block_columns, kColumns) * kColumns;
    if (row_lanes) return row_lanes_floats(g.M, units);
    return b_floats() + sums_floats();
  }
};

/** Which operands are packed. */
inline void choose_sources(Plan& p) {
  const GemmArgs& g = p.g;
  p.pairs = kHasPairs && g.a.dtype == DType::kBF16 && g.b.dtype == DType::kBF16;
  p.units = p.pairs ? ceil_div(g.K, 2) : g.K;
  const bool odd_pair = p.pairs && g.K % 2 != 0;  // the closing zero exists in packed panels only
  const bool along_k = g.b.column_stride != 1 && g.b.row_stride == 1;
  const int few = along_k ? (g.b.dtype == DType::kF32 ? kFewRowsAlongK<float> : kFewRowsAlongK<bf16>) : kFewRows;
  p.few_rows = (along_k || g.b.column_stride == 1) && g.M <= few;
  const bool some_rows = !p.few_rows && along_k && g.M <= kStreamedRows;
  const bool huge_b = along_k && p.units > kWholeUnits && 4 * g.M * g.K <= kMostStreamedA &&
                      g.N * g.K * static_cast<int64_t>(size_of(g.b.dtype)) >= kStreamedBytes;
  const bool widened = g.b.dtype == DType::kBF16 && !p.pairs;
  p.row_lanes = some_rows && g.a.column_stride == 1 && !odd_pair && !(widened && g.M <= kWidenedPanelRows);
  p.streamed = (some_rows || huge_b) && !p.few_rows && !p.row_lanes;
  p.b_direct = !p.few_rows && g.M <= kDirectPanels * kTileRows && g.b.column_stride == 1 && !odd_pair;
  if (p.b_direct && g.b.dtype == DType::kBF16) p.b_source = p.pairs ? BSource::kBf16Pairs : BSource::kBf16;
  // Packing A pays once it is read for enough columns, and where its rows lie so far apart that they would compete for
  // the same cache sets.
  const bool unit_rows = g.a.column_stride == 1 && (p.pairs ? !odd_pair : g.a.dtype == DType::kF32);
  const bool read_seldom = g.M <= kTileRows || g.N <= 8 * kColumns || (p.streamed && g.M <= kStreamedRowsInPlace);
  const int64_t row_bytes = g.a.row_stride * static_cast<int64_t>(size_of(g.a.dtype));
  const bool close = p.units >= kMinInPlaceUnits && row_bytes <= 4 * kWholeUnits;
  // The rows of one tile begin in sets of L1 of their own.
  const int64_t apart = row_bytes % kWayBytes;
  const bool endless = g.M <= kFewEndlessRows && 4 * p.units * kMinChunkRows > kChunkBytes && apart >= kMinApart &&
                       apart <= kWayBytes - kMinApart;
  if (unit_rows && p.b_source == BSource::kUnits && (read_seldom || close || endless)) p.a_source = ASource::kRows;
}

/** Passes over K, chunks of rows. */
inline void choose_cuts(Plan& p) {
  const bool whole = p.few_rows || p.row_lanes || (p.units <= kWholeUnits && !p.b_direct && !p.streamed);
  const int64_t wanted = p.b_direct ? kStreamUnits : p.streamed ? kStreamedUnits : kPassUnits;
  const int64_t passes = whole ? 1 : ceil_div(p.units, wanted);
  p.pass_units = max_of(ceil_div(p.units, max_of(passes, 1)), 1);
  // Whole blocks of the transpose.
  if (p.streamed && passes > 1) p.pass_units = ceil_div(p.pass_units, kPassStep) * kPassStep;
  int64_t most_rows = passes > 1 ? kMaxChunkRows : p.g.M;
  if (p.a_source == ASource::kPanel) {
    most_rows = min_of(max_of(kChunkBytes / 4 / max_of(p.units, 1), kMinChunkRows), kMaxChunkRows);
  }
  p.chunk_rows = ceil_div(p.g.M, ceil_div(p.g.M, most_rows));
}

/** Blocks of C: as many columns as L2 holds, fewer where the threads would not all have work; then rows are split too.
 */
inline void choose_blocks(Plan& p, int threads) {
  const GemmArgs& g = p.g;
  const int64_t column_panels = ceil_div(g.N, kColumns);
  const int64_t flops = 2 * p.chunk_rows * g.N * max_of(g.K, 1);
  // An A that no cache holds is read again for every block of columns.
  const int64_t tasks_a_thread = 4 * p.chunk_rows * g.K > kMostCachedA ? 2 : 4;
  const int64_t wanted = threads == 1 ? 1 : min_of(tasks_a_thread * threads, max_of(flops / kTaskFlops, 1));
  if (p.few_rows || p.row_lanes || p.streamed) {
    const int64_t cost = flops + kStreamedByteCost * g.N * g.K * static_cast<int64_t>(size_of(g.b.dtype));
    const int64_t tasks = threads == 1 ? 1 : max_of(min_of(4 * threads, cost / kStreamedTaskCost), 1);
    if (p.few_rows) {
      const int64_t columns = max_of(min_of(kStreamColumns, ceil_div(g.N, tasks)), kFewRowsColumns);
      p.block_columns = min_of(ceil_div(columns, kColumns), column_panels) * kColumns;
    } else if (p.row_lanes) {
      p.block_columns = ceil_div(ceil_div(g.N, kRowLaneColumns), tasks) * kRowLaneColumns;
    } else {
      p.block_columns = min_of(ceil_div(column_panels, tasks) * kColumns, g.N);
    }
    return;
  }
  const int64_t panel_bytes = p.pass_units * kColumns * 4;
  const int64_t most = p.b_direct ? kStreamColumns / kColumns : max_of(kBlockBytes / panel_bytes, 1);
  int64_t block_panels = min_of(most, max_of(ceil_div(column_panels, wanted), min_of(4, column_panels)));
  const int64_t tasks = ceil_div(column_panels, block_panels);
  const int64_t row_panels = ceil_div(p.chunk_rows, kTileRows);
  if (tasks < wanted) p.row_splits = max_of(min_of(ceil_div(wanted, tasks), row_panels / 8), 1);
  if (tasks * p.row_splits < wanted) block_panels = max_of(block_panels * tasks * p.row_splits / wanted, 1);
  p.block_columns = min_of(block_panels * kColumns, g.N);
}

inline Plan make_plan(const GemmArgs& g, int threads) {
  Plan p{g, false, 0, 0, 0, ASource::kPanel, BSource::kUnits, false, false, false, false, 0, 1};
  choose_sources(p);
  choose_cuts(p);
  choose_blocks(p, threads);
  return p;
}

/** The units of pass `pass`. */
inline Units pass_of(const Plan& p, int64_t pass) {
  int64_t begin = pass * p.pass_units;
  return {begin, min_of(begin + p.pass_units, p.units), p.g.K, pass};
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
