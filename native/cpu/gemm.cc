// Drivers of the matrix product: they follow the plan, on a pool of threads or on the caller's.
#include "cpu/gemm.h"

#include "core/fail.h"
#include "core/scratch.h"
#include "cpu/gemm_f64.h"
#include "cpu/gemm_plan.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

/** Calls body with a value of the operand's element type. */
template <typename Body>
inline void with_type(DType dtype, const Body& body) {
  if (dtype == DType::kBF16) {
    body(bf16{});
  } else {
    body(0.0f);
  }
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

/** Groups [begin, end) of the rows of A, which are lanes. */
void pack_row_groups(const Plan& p, int64_t begin, int64_t end, float* packed_a) {
  const RowGroups rows(p.g.M);
  for (int64_t group = begin; group < end; group++) {
    if constexpr (kHasPairs) {
      if (p.pairs) {
        pack_row_group<true, bf16>(p.g.a, rows, group, p.g.K, packed_a);
        continue;
      }
    }
    with_type(p.g.a.dtype,
              [&](auto element) { pack_row_group<false, decltype(element)>(p.g.a, rows, group, p.g.K, packed_a); });
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

/** A rectangle of B that will be packed next, asked for some lines at a time while the multipliers work. */
struct ComingB {
  const char* row = nullptr;
  int64_t stride = 0, rows = 0, bytes = 0;  // of a row
  int64_t at = 0, lines_a_tile = 0;
  void ask() {
    for (int64_t line = 0; line < lines_a_tile && rows > 0; line++) {
      __builtin_prefetch(row + at, 0, 2);
      at += 64;
      if (at < bytes) continue;
      at = 0;
      row += stride;
      rows--;
    }
  }
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
  ComingB* coming = nullptr;  // the same for what another panel of this block will need
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
  // Straight into C where nothing is left to do to the sums, but for rounding those of pairs.
  const bool rounds = g.c_dtype == DType::kBF16;
  const bool plain = (!rounds || p.pairs) && g.alpha == 1.0f && !g.accumulate && g.residual == nullptr &&
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
    char* in_place = static_cast<char*>(g.c) + (row * g.c_row_stride + c.column) * c_bytes;
    t.out = last && plain ? static_cast<void*>(in_place) : spilled;
    t.rounds = last && plain && rounds;
    t.out_stride = last && plain ? g.c_row_stride : kColumns;
    if (c.ahead != nullptr) {
      const int64_t count = block.last_panel - block.first_panel;
      t.ahead_step = c.ahead_bytes / (count * max_of(t.units, 1));
      t.ahead = c.ahead + c.ahead_bytes / count * (panel - block.first_panel);
    }
    // The next rows begin streams of their own, which the hardware would notice late.
    if (p.a_source == ASource::kRows) prefetch_rows(t.a + height * t.a_row_bytes, t.a_row_bytes, kTileRows, 128);
    if (last) prefetch_rows(in_place, g.c_row_stride * c_bytes, height, c.n * c_bytes);
    if (c.coming != nullptr) c.coming->ask();
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

/** What the pass `pass` of a block reads of B; nothing where there is no such pass. */
ComingB coming_b(const Plan& p, const Block& block, int64_t pass) {
  const GemmArgs& g = p.g;
  ComingB coming;
  if (pass * p.pass_units >= p.units) return coming;
  const int64_t element = static_cast<int64_t>(size_of(g.b.dtype));
  const Units units = pass_of(p, pass);
  const int64_t k = units.begin * (p.pairs ? 2 : 1), count = units.count() * (p.pairs ? 2 : 1);
  coming.row = static_cast<const char*>(g.b.data) + (k * g.b.row_stride + block.column * g.b.column_stride) * element;
  const bool along_n = g.b.column_stride == 1;
  coming.stride = (along_n ? g.b.row_stride : g.b.column_stride) * element;
  coming.rows = along_n ? count : block.columns;
  coming.bytes = (along_n ? block.columns : count) * element;
  const int64_t tiles = ceil_div(block.columns, kColumns) * (block.last_panel - block.first_panel);
  coming.lines_a_tile = ceil_div(coming.rows * ceil_div(coming.bytes, 64), tiles);
  return coming;
}

/** Computes a block of C. `buffers` are the caller's own: panels of B, then spilled sums. */
void run_block(const Plan& p, const RowPanels& rows, const Block& block, float* packed_a, float* buffers) {
  // K = 0 still makes one pass, over nothing: the epilogue is due.
  for (int64_t pass = 0; pass == 0 || pass * p.pass_units < p.units; pass++) {
    Units units = pass_of(p, pass);
    if (!p.b_direct && p.g.b.column_stride == 1) pack_b_rows(p, units, block.column, block.columns, buffers);
    ComingB coming = coming_b(p, block, pass + 1);
    for (int64_t column = block.column; column < block.column + block.columns; column += kColumns) {
      ColumnPanel c = column_panel(p, block, column, units, buffers);
      c.coming = &coming;
      run_column_panel(p, rows, block, c, packed_a);
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

void run_row_lanes(const Plan& p, int64_t column, int64_t columns, const float* packed_a, float* buffers) {
  if constexpr (kHasPairs) {
    if (p.pairs) return run_row_lanes<true, bf16>(p.g, column, columns, packed_a, buffers);
  }
  with_type(p.g.b.dtype,
            [&](auto element) { run_row_lanes<false, decltype(element)>(p.g, column, columns, packed_a, buffers); });
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
  } else if (p.row_lanes) {
    run_row_lanes(p, block.column, block.columns, packed_a, buffers);
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
    if (p.row_lanes) {
      parallel_ranges(pool, RowGroups(g.M).count, max_of(1, (16 << 10) / max_of(p.units * kLanes, 1)),
                      [&](int64_t begin, int64_t end, int) { pack_row_groups(p, begin, end, packed_a); });
    } else if (p.a_source == ASource::kPanel) {
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
  static_assert(kStreamedUnits <= kPassUnits);
  const int64_t padding =
      max_of(ceil_div(K, kStreamedUnits) * row_panels, ceil_div(K, kStreamUnits) * min_of(row_panels, kDirectPanels)) *
      kPanelPadding;
  const int64_t a = min_of(min_of(M, kMaxChunkRows) * K, max_of(kChunkBytes / 4, kMinChunkRows * K)) + padding;
  const int64_t b = min_of(panels * Plan::panel_floats(min_of(K, kWholeUnits)),
                           kBlockBytes / 4 + Plan::panel_floats(kWholeUnits) + kPanelPadding * panels);
  // Sums are spilled for a block: of kStreamColumns, or of as many as kBlockBytes hold in a pass of half its full
  // length.
  static_assert(kBlockBytes / 4 <= kStreamColumns * kPassUnits / 2);
  const int64_t rows = min_of(ceil_div(M, kTileRows) * kTileRows, kMaxChunkRows + kTileRows);
  const int64_t lane_rows = min_of(M, kStreamedRows);
  return max_of(aligned(a) + b + rows * min_of(panels * kColumns, kStreamColumns),
                aligned(RowGroups(lane_rows).lanes() * K) + row_lanes_floats(lane_rows, K));
}

void run_serial(const GemmArgs& g, float* packed_a) {
  Plan p = make_plan(g, 1);
  float* buffers = packed_a + p.a_floats();
  for (int64_t row = 0; row < g.M; row += p.chunk_rows) {
    RowPanels rows(row, min_of(p.chunk_rows, g.M - row), g.M);
    if (p.row_lanes) {
      pack_row_groups(p, 0, RowGroups(g.M).count, packed_a);
    } else if (p.a_source == ASource::kPanel) {
      pack_a_panels(p, rows, {packed_a, 0, rows.count});
    }
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
