// Drivers of the matrix product: which operand is packed, how K and C are cut, who computes which tile. None of these
// choices can change a bit of the result: cuts of K continue the same chain from f32 sums, tiles partition C.
#include "cpu/gemm.h"

#include "core/fail.h"
#include "core/scratch.h"
#include "cpu/gemm_f64.h"
#include "cpu/gemm_few_rows.h"

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
// Columns that go by together when B is read in place: 4 KiB of each K row, and their sums stay in L1.
constexpr int64_t kStreamColumns = 1024;
// Columns of a product of few rows that one task computes at least.
constexpr int64_t kFewRowsColumns = 64;
// Rows up to which B along K (weights) is streamed: one panel at a time is packed into L1 while the next one is asked
// for, because it is used for too short a time to wait for memory in between.
constexpr int64_t kStreamedRows = 64;
// Units of such a panel in one pass: 8 KiB with 16 columns.
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
  bool streamed;     // panel of B after panel of B, each with all its passes
  int64_t block_columns;
  int64_t row_splits;

  int64_t passes() const { return ceil_div(units, pass_units); }
  int64_t a_floats() const {
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
    return b_floats() + sums_floats();
  }
};

/** Which operands are packed. */
void choose_sources(Plan& p) {
  const GemmArgs& g = p.g;
  p.pairs = kHasPairs && g.a.dtype == DType::kBF16 && g.b.dtype == DType::kBF16;
  p.units = p.pairs ? ceil_div(g.K, 2) : g.K;
  const bool odd_pair = p.pairs && g.K % 2 != 0;  // the closing zero exists in packed panels only
  p.few_rows = g.b.column_stride == 1 ? g.M <= kFewRows : g.b.row_stride == 1 && g.M <= kFewRowsAlongK;
  p.streamed = !p.few_rows && g.M <= kStreamedRows && g.b.column_stride != 1 && g.b.row_stride == 1;
  p.b_direct = !p.few_rows && g.M <= kDirectPanels * kTileRows && g.b.column_stride == 1 && !odd_pair;
  if (p.b_direct && g.b.dtype == DType::kBF16) p.b_source = p.pairs ? BSource::kBf16Pairs : BSource::kBf16;
  // Packing A pays once it is read for enough columns, and where its rows lie so far apart that they would compete for
  // the same cache sets.
  const bool unit_rows = g.a.column_stride == 1 && (p.pairs ? !odd_pair : g.a.dtype == DType::kF32);
  const bool read_seldom = g.M <= kTileRows || g.N <= 8 * kColumns || (p.streamed && g.M <= kStreamedRowsInPlace);
  const bool close =
      p.units >= kMinInPlaceUnits && g.a.row_stride * static_cast<int64_t>(size_of(g.a.dtype)) <= 4 * kWholeUnits;
  if (unit_rows && p.b_source == BSource::kUnits && (read_seldom || close)) p.a_source = ASource::kRows;
}

/** Passes over K, chunks of rows. */
void choose_cuts(Plan& p) {
  const bool whole = p.few_rows || (p.units <= kWholeUnits && !p.b_direct && !p.streamed);
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
void choose_blocks(Plan& p, int threads) {
  const GemmArgs& g = p.g;
  const int64_t column_panels = ceil_div(g.N, kColumns);
  const int64_t flops = 2 * p.chunk_rows * g.N * max_of(g.K, 1);
  const int64_t wanted = threads == 1 ? 1 : min_of(4 * threads, max_of(flops / kTaskFlops, 1));
  if (p.few_rows || p.streamed) {
    const int64_t cost = flops + kStreamedByteCost * g.N * g.K * static_cast<int64_t>(size_of(g.b.dtype));
    const int64_t tasks = threads == 1 ? 1 : max_of(min_of(4 * threads, cost / kStreamedTaskCost), 1);
    if (p.few_rows) {
      const int64_t columns = max_of(min_of(kStreamColumns, ceil_div(g.N, tasks)), kFewRowsColumns);
      p.block_columns = min_of(ceil_div(columns, kColumns), column_panels) * kColumns;
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

Plan make_plan(const GemmArgs& g, int threads) {
  Plan p{g, false, 0, 0, 0, ASource::kPanel, BSource::kUnits, false, false, false, 0, 1};
  choose_sources(p);
  choose_cuts(p);
  choose_blocks(p, threads);
  return p;
}

/** Calls body with a value of the operand's element type. */
template <typename Body>
inline void with_type(DType dtype, const Body& body) {
  if (dtype == DType::kBF16) {
    body(bf16{});
  } else {
    body(0.0f);
  }
}

/** The units of pass `pass`. */
inline Units pass_of(const Plan& p, int64_t pass) {
  int64_t begin = pass * p.pass_units;
  return {begin, min_of(begin + p.pass_units, p.units), p.g.K, pass};
}

void pack_a_panels(const Plan& p, const RowPanels& rows, APanels out) {
  for (int64_t pass = 0; pass * p.pass_units < p.units; pass++) {
    Units units = pass_of(p, pass);
    if constexpr (kHasPairs) {
      if (p.pairs) {
        pack_a<true, bf16>(p.g.a, units, rows, out);
        continue;
      }
    }
    with_type(p.g.a.dtype, [&](auto element) { pack_a<false, decltype(element)>(p.g.a, units, rows, out); });
  }
}

void pack_b_panel(const Plan& p, Units units, int64_t column, int n, float* panel) {
  if constexpr (kHasPairs) {
    if (p.pairs) return pack_b_panel<true, bf16>(p.g.b, units, column, n, panel);
  }
  with_type(p.g.b.dtype, [&](auto element) { pack_b_panel<false, decltype(element)>(p.g.b, units, column, n, panel); });
}

void pack_b_rows(const Plan& p, Units units, int64_t column, int64_t columns, float* panels) {
  if constexpr (kHasPairs) {
    if (p.pairs)
      return pack_b_rows<true, bf16>(p.g.b, units, column, columns, {panels, Plan::panel_floats(units.count())});
  }
  with_type(p.g.b.dtype, [&](auto element) {
    pack_b_rows<false, decltype(element)>(p.g.b, units, column, columns, {panels, Plan::panel_floats(units.count())});
  });
}

/** A rectangle of C: panels of rows by columns. */
struct Block {
  int64_t first_panel, last_panel;
  int64_t column, columns;
};

/** One pass over one panel of columns for all row panels of a block. */
struct ColumnPanel {
  const void* b;
  BSource source;
  int64_t unit_stride;
  int64_t column;
  int n;
  Units units;
  float* sums;                  // spilled sums of this column panel, tile after tile
  const char* ahead = nullptr;  // memory to ask for during this pass, or null
  int64_t ahead_bytes = 0;
};

inline TileFunction choose_tile(const Plan& p, const ColumnPanel& c, int height) {
  const int vectors = c.n > kLanes ? kTileVectors : 1;
  if (c.ahead != nullptr && vectors == kTileVectors) {
    if constexpr (kHasPairs) {
      if (p.pairs) return find_tile_ahead<true>(p.a_source, height);
    }
    return find_tile_ahead<false>(p.a_source, height);
  }
  if constexpr (kHasPairs) {
    if (p.pairs) return find_tile<true>(p.a_source, c.source, height, vectors);
  }
  return find_tile<false>(p.a_source, c.source, height, vectors);
}

constexpr int64_t kTileFloats = kTileRows * kColumns;

/** Asks for `rows` rows of `bytes` bytes while the tile works. */
inline void prefetch_rows(const void* data, int64_t row_bytes, int rows, int64_t bytes) {
  for (int r = 0; r < rows; r++) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(data) + r * row_bytes + at);
  }
}

void run_column_panel(const Plan& p, const RowPanels& rows, const Block& block, const ColumnPanel& c, float* packed_a) {
  const GemmArgs& g = p.g;
  const int64_t c_bytes = static_cast<int64_t>(size_of(g.c_dtype));
  const bool first = c.units.begin == 0;
  const bool last = c.units.end >= p.units;
  const int vectors = c.n > kLanes ? kTileVectors : 1;
  // Straight into C where nothing is left to do to the sums.
  const bool plain = g.c_dtype == DType::kF32 && g.alpha == 1.0f && !g.accumulate && g.residual == nullptr &&
                     g.bias == nullptr && c.n == vectors * kLanes;
  alignas(64) float tile_sums[kTileFloats];
  TileFunction run = nullptr;
  int height = 0;
  for (int64_t panel = block.first_panel; panel < block.last_panel; panel++) {
    int64_t row = rows.row + rows.start(panel);
    if (rows.height(panel) != height) {
      height = rows.height(panel);
      run = choose_tile(p, c, height);
    }
    float* spilled = c.sums == nullptr ? tile_sums : c.sums + (panel - block.first_panel) * kTileFloats;
    TileArgs t{};
    t.units = c.units.count();
    if (p.a_source == ASource::kPanel) {
      t.a = reinterpret_cast<const char*>(packed_a_panel(packed_a, rows, panel, c.units));
    } else {
      int64_t unit_bytes = static_cast<int64_t>(size_of(g.a.dtype));
      t.a = static_cast<const char*>(g.a.data) + row * g.a.row_stride * unit_bytes + c.units.begin * 4;
      t.a_row_bytes = g.a.row_stride * unit_bytes;
    }
    t.b = c.b;
    t.b_unit_stride = c.unit_stride;
    t.sums = first ? nullptr : spilled;
    t.out = last && plain ? static_cast<float*>(g.c) + row * g.c_row_stride + c.column : spilled;
    t.out_stride = last && plain ? g.c_row_stride : kColumns;
    if (c.ahead != nullptr) {
      const int64_t count = block.last_panel - block.first_panel;
      t.ahead_step = c.ahead_bytes / (count * max_of(t.units, 1));
      t.ahead = c.ahead + c.ahead_bytes / count * (panel - block.first_panel);
    }
    // The next rows begin streams of their own, which the hardware would notice late.
    if (p.a_source == ASource::kRows) prefetch_rows(t.a + height * t.a_row_bytes, t.a_row_bytes, kTileRows, 128);
    if (last) {
      const char* out = static_cast<const char*>(g.c) + (row * g.c_row_stride + c.column) * c_bytes;
      prefetch_rows(out, g.c_row_stride * c_bytes, height, c.n * c_bytes);
    }
    run(t);
    if (last && !plain) finish(g, {spilled, kColumns}, {row, height, c.column, c.n});
  }
}

/** The panel of B at `column`, in place or packed into the panels at `buffers`, and the sums that belong to it. */
ColumnPanel column_panel(const Plan& p, const Block& block, int64_t column, Units units, float* buffers) {
  const GemmArgs& g = p.g;
  const int64_t index = (column - block.column) / kColumns;
  ColumnPanel c{};
  c.column = column;
  c.n = static_cast<int>(min_of(kColumns, block.column + block.columns - column));
  c.units = units;
  if (p.units > p.pass_units) {
    c.sums = buffers + p.b_floats() + index * (block.last_panel - block.first_panel) * kTileFloats;
  }
  if (p.b_direct && c.n % kLanes == 0) {
    int64_t k = units.begin * (p.pairs ? 2 : 1);
    c.b = static_cast<const char*>(g.b.data) + (k * g.b.row_stride + column) * static_cast<int64_t>(size_of(g.b.dtype));
    c.source = p.b_source;
    c.unit_stride = g.b.row_stride;
    return c;
  }
  float* panel = buffers + index * Plan::panel_floats(units.count());
  if (p.b_direct) pack_b_rows(p, units, column, c.n, panel);
  if (g.b.column_stride != 1) pack_b_panel(p, units, column, c.n, panel);
  c.b = panel;
  c.source = BSource::kUnits;
  c.unit_stride = kColumns;
  return c;
}

/** Computes a block of C whose panels of B are streamed. Their memory is one piece after the other where the rows of
 *  weights lie close, as they do; only what is asked for too early or too late depends on that. */
void run_streamed(const Plan& p, const RowPanels& rows, const Block& block, float* packed_a, float* buffers) {
  const GemmArgs& g = p.g;
  const int64_t element = static_cast<int64_t>(size_of(g.b.dtype));
  const int64_t panel_bytes = kColumns * g.b.column_stride * element;
  const char* b = static_cast<const char*>(g.b.data);
  prefetch_rows(b + block.column * g.b.column_stride * element, 0, 1,
                min_of(kColumns, block.columns) * g.b.column_stride * element);
  for (int64_t column = block.column; column < block.column + block.columns; column += kColumns) {
    const int64_t columns = min_of(kColumns, block.column + block.columns - column);
    const char* next = column + 2 * kColumns <= g.N ? b + (column + kColumns) * g.b.column_stride * element : nullptr;
    for (int64_t pass = 0; pass == 0 || pass * p.pass_units < p.units; pass++) {
      Units units = pass_of(p, pass);
      ColumnPanel c = column_panel(p, {block.first_panel, block.last_panel, column, columns}, column, units, buffers);
      if (next != nullptr && p.units > 0) {
        c.ahead = next + panel_bytes * units.begin / p.units;
        c.ahead_bytes = panel_bytes * units.count() / p.units;
      }
      run_column_panel(p, rows, block, c, packed_a);
    }
  }
}

/** Computes a block of C. `buffers` are the caller's own: panels of B, then spilled sums. */
void run_block(const Plan& p, const RowPanels& rows, const Block& block, float* packed_a, float* buffers) {
  // K = 0 still makes one pass, over nothing: the epilogue is due.
  for (int64_t pass = 0; pass == 0 || pass * p.pass_units < p.units; pass++) {
    Units units = pass_of(p, pass);
    if (!p.b_direct && p.g.b.column_stride == 1) pack_b_rows(p, units, block.column, block.columns, buffers);
    for (int64_t column = block.column; column < block.column + block.columns; column += kColumns) {
      run_column_panel(p, rows, block, column_panel(p, block, column, units, buffers), packed_a);
    }
  }
}

/** Computes columns [column, column + columns) of a product of few rows. */
void run_few_rows(const Plan& p, int64_t column, int64_t columns, float* packed_a, float* sums) {
  const GemmArgs& g = p.g;
  FewRows f{};
  if (p.a_source == ASource::kPanel) {
    f.a = {reinterpret_cast<const char*>(packed_a), 4, 4 * g.M};
  } else {
    f.a = {static_cast<const char*>(g.a.data), g.a.row_stride * static_cast<int64_t>(size_of(g.a.dtype)), 4};
  }
  f.b = g.b;
  f.column = column;
  f.columns = columns;
  f.units = p.units;
  f.K = g.K;
  f.sums = sums;
  f.stride = ceil_div(p.block_columns, kColumns) * kColumns;
  if (kHasPairs && p.pairs) {
    if constexpr (kHasPairs) sum_few_rows<true, bf16>(f, g.M);
  } else {
    with_type(g.b.dtype, [&](auto element) { sum_few_rows<false, decltype(element)>(f, g.M); });
  }
  finish(g, {sums, f.stride}, {0, g.M, column, columns});
}

void check_types(const GemmArgs& g) {
  auto fast = [](DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; };
  bool f64 = g.a.dtype == DType::kF64;
  bool ok = f64 ? g.b.dtype == DType::kF64 && g.c_dtype == DType::kF64
                : fast(g.a.dtype) && fast(g.b.dtype) && fast(g.c_dtype);
  if (g.bias != nullptr) ok = ok && (f64 ? g.bias_dtype == DType::kF64 : fast(g.bias_dtype));
  if (!ok) {
    fail("ERR_DTYPE", "gemm: a, b, c and bias must be f32 or bf16, or all f64; got dtype codes %d, %d, %d, %d",
         static_cast<int>(g.a.dtype), static_cast<int>(g.b.dtype), static_cast<int>(g.c_dtype),
         static_cast<int>(g.bias_dtype));
  }
}

/** Computes a block by the way that the plan has chosen, with one worker's buffers. */
void run_task(const Plan& p, const RowPanels& rows, const Block& block, float* packed_a, float* buffers) {
  if (p.few_rows) {
    run_few_rows(p, block.column, block.columns, packed_a, buffers);
  } else if (p.streamed) {
    run_streamed(p, rows, block, packed_a, buffers);
  } else {
    run_block(p, rows, block, packed_a, buffers);
  }
}

void run_on_pool(const GemmArgs& g, Device& device, ThreadPool& pool) {
  Plan p = make_plan(g, pool.threads());
  int64_t column_blocks = ceil_div(g.N, p.block_columns);
  int64_t workers = min_of(pool.threads(), column_blocks * p.row_splits);
  Scratch scratch(device, static_cast<size_t>(p.a_floats() + workers * p.worker_floats()) * 4);
  float* packed_a = scratch.as<float>();
  float* worker_buffers = packed_a + p.a_floats();
  for (int64_t row = 0; row < g.M; row += p.chunk_rows) {
    RowPanels rows(row, min_of(p.chunk_rows, g.M - row), g.M);
    if (p.a_source == ASource::kPanel) {
      int64_t grain = max_of(1, (64 << 10) / max_of(p.units * kTileRows, 1));
      // Rows that are contiguous along M are copied across many panels at once.
      if (g.a.row_stride == 1) grain = max_of(grain, min_of(16, ceil_div(rows.count, pool.threads())));
      parallel_ranges(pool, rows.count, grain,
                      [&](int64_t begin, int64_t end, int) { pack_a_panels(p, rows, {packed_a, begin, end}); });
    }
    int64_t splits = min_of(p.row_splits, rows.count);
    parallel_for(pool, column_blocks * splits, [&](int64_t task, int worker) {
      int64_t split = task % splits;
      int64_t column = task / splits * p.block_columns;
      Block block{rows.count * split / splits, rows.count * (split + 1) / splits, column,
                  min_of(p.block_columns, g.N - column)};
      run_task(p, rows, block, packed_a, worker_buffers + worker * p.worker_floats());
    });
  }
}

/** A bound on a_floats() + worker_floats() over all plans for one thread, growing with each size. */
int64_t serial_floats(int64_t M, int64_t N, int64_t K) {
  const int64_t panels = ceil_div(N, kColumns);
  const int64_t row_panels = ceil_div(min_of(M, kMaxChunkRows), kTileRows);
  const int64_t streamed_panels = min_of(row_panels, ceil_div(kStreamedRows, kTileRows));
  const int64_t padding = max_of(max_of(ceil_div(K, kPassUnits) * row_panels,
                                        ceil_div(K, kStreamUnits) * min_of(row_panels, kDirectPanels)),
                                 ceil_div(K, kStreamedUnits) * streamed_panels) *
                          kPanelPadding;
  const int64_t a = min_of(min_of(M, kMaxChunkRows) * K, max_of(kChunkBytes / 4, kMinChunkRows * K)) + padding;
  const int64_t b = min_of(panels * Plan::panel_floats(min_of(K, kWholeUnits)),
                           kBlockBytes / 4 + Plan::panel_floats(kWholeUnits) + kPanelPadding * panels);
  // Sums are spilled for a block: of kStreamColumns, or of as many as kBlockBytes hold in a pass of half its full
  // length.
  static_assert(kBlockBytes / 4 <= kStreamColumns * kPassUnits / 2);
  const int64_t rows = min_of(ceil_div(M, kTileRows) * kTileRows, kMaxChunkRows + kTileRows);
  return aligned(a) + b + rows * min_of(panels * kColumns, kStreamColumns);
}

void run_serial(const GemmArgs& g, float* packed_a) {
  Plan p = make_plan(g, 1);
  float* buffers = packed_a + p.a_floats();
  for (int64_t row = 0; row < g.M; row += p.chunk_rows) {
    RowPanels rows(row, min_of(p.chunk_rows, g.M - row), g.M);
    if (p.a_source == ASource::kPanel) pack_a_panels(p, rows, {packed_a, 0, rows.count});
    for (int64_t column = 0; column < g.N; column += p.block_columns) {
      run_task(p, rows, {0, rows.count, column, min_of(p.block_columns, g.N - column)}, packed_a, buffers);
    }
  }
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed

namespace caravan::CARAVAN_ISA {

void gemm(const GemmArgs& g, Device& device, ThreadPool& pool) {
  packed::check_types(g);
  if (g.M == 0 || g.N == 0) return;
  if (g.c_dtype == DType::kF64) {
    parallel_for(pool, g.M, [&](int64_t row, int) { packed::gemm_f64_row(g, row); });
  } else {
    packed::run_on_pool(g, device, pool);
  }
}

size_t gemm_serial_workspace(int64_t M, int64_t N, int64_t K) {
  return M == 0 || N == 0 ? 0 : static_cast<size_t>(packed::serial_floats(M, N, K)) * sizeof(float);
}

void gemm_serial(const GemmArgs& g, void* workspace) {
  if (g.M == 0 || g.N == 0) return;
  if (g.c_dtype == DType::kF64) {
    for (int64_t row = 0; row < g.M; row++) packed::gemm_f64_row(g, row);
  } else {
    packed::run_serial(g, static_cast<float*>(workspace));
  }
}

}  // namespace caravan::CARAVAN_ISA
