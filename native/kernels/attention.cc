// o = softmax(scale q k^T + mask) v for sequences that lie end to end; lse = log sum e^score. Causal, aligned at the
// end of a segment, optional sliding window, grouped heads: query head h reads key/value head h / (H / K).
//
// A task is (segment, key/value head, tile of about 192 query rows); rows are positions x the heads of the group, so
// one packed block of 64 keys serves them all. Scores exist for one strip (6 or 12 rows x 64 keys) at a time, in L1;
// the softmax is online. Saved for backward: o and lse. Memory traffic: q and o once, k and v once per tile; a decode
// step (one query) reads k and v once, which is its cost. Scores, softmax and sums are f32; bf16 is widened on the way
// in, or multiplied by pairs (UnitsOf), and o is rounded.
//
// Bits: blocks are counted from the first key of the segment, a masked score becomes an exact zero and a block without
// keys for a row is not visited, so o and lse of a query are the same in training, chunked prefill and decode.
//
// attention_paged reads the keys of a sequence from pages of one block each, wherever they lie: the same code with
// another address for a block, hence the same bits.
#include <math.h>

#include <initializer_list>

#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "kernels/attention_tile.h"
#include "kernels/dispatch.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace attention_file {

using namespace attention_detail;

constexpr int64_t kTileRows = 192;  // query rows (positions x heads of a group) that share a packed block
constexpr float kMinusInfinity = -__builtin_inff();

struct Shapes {
  int64_t H, K, C, group, window;
  int64_t width;  // C, in whole vectors
  int64_t depth;  // units of C, in whole vectors
  float scale;
};

/** The workspace of one thread, in floats. */
struct Workspace {
  float* q;       // [rows][depth]: units
  float* o;       // [rows][width], relative to the running maximum
  float* max;     // [rows]
  float* sum;     // [rows]
  float* weight;  // [rows]: sum of the weights as they were rounded to be multiplied; `sum` where they are not
  float* keys;    // [depth][kBlockKeys]: units
  float* values;  // [units of kBlockKeys][width]
  float* scores;  // [kStripRows][kBlockKeys], then their weights as units

  template <typename U>
  static int64_t layout(int64_t rows, const Shapes& s, float* base, Workspace* out) {
    Layout layout;
    const int64_t q = layout.add(rows * s.depth), o = layout.add(rows * s.width);
    const int64_t max = layout.add(rows), sum = layout.add(rows), weight = U::kDepth == 1 ? sum : layout.add(rows);
    const int64_t keys = layout.add(s.depth * kBlockKeys), values = layout.add(kBlockKeys * s.width);
    const int64_t scores = layout.add(kStripRows * kBlockKeys);
    if (out != nullptr) {
      *out = {base + q, base + o, base + max, base + sum, base + weight, base + keys, base + values, base + scores};
    }
    return layout.size();
  }
};

/** Scores of the strip of `rows` rows that begins at row `first` -> e^(score - new maximum), as units along a row.
 *  keep[r]: the factor by which what row r summed before must shrink. By phases, so that the folds over lanes of all
 *  rows overlap. */
template <typename U>
void softmax_strip(const Workspace& w, int64_t first, int64_t rows, int64_t columns, float* keep) {
  static_assert(kStripRows <= F32::kLanes);
  float fall[F32::kLanes] = {};
  for (int64_t r = 0; r < rows; r++) {
    F32 top = set1(kMinusInfinity);
    for (int64_t j = 0; j < columns; j += F32::kLanes) top = max(load(w.scores + r * kBlockKeys + j), top);
    const float block_max = reduce_max(top), max_so_far = w.max[first + r];
    const float peak = block_max > max_so_far ? block_max : max_so_far;
    fall[r] = max_so_far - peak;
    w.max[first + r] = peak;
  }
  F32 totals[kStripRows], rounded_totals[kStripRows];
  for (int64_t r = 0; r < rows; r++) {
    float* row = w.scores + r * kBlockKeys;
    const F32 peak = set1(w.max[first + r]);
    F32 total = zero(), rounded_total = zero();
    const auto weight = [&](int64_t j) {
      const F32 e = exp_bounded(load(row + j) - peak);
      total = total + e;
      return e;
    };
    for (int64_t j = 0; j < columns; j += U::kDepth * F32::kLanes) {
      const F32 e = weight(j);
      if constexpr (U::kDepth == 1) {
        store(row + j, e);
      } else {
        const F32 next = j + F32::kLanes < columns ? weight(j + F32::kLanes) : zero();
        U::store_along(row + j / U::kDepth, e, next, &rounded_total);
      }
    }
    totals[r] = total;
    rounded_totals[r] = rounded_total;
  }
  store(keep, exp_bounded(load(fall)));
  for (int64_t r = 0; r < rows; r++) {
    w.sum[first + r] = w.sum[first + r] * keep[r] + reduce_sum(totals[r]);
    if constexpr (U::kDepth > 1) w.weight[first + r] = w.weight[first + r] * keep[r] + reduce_sum(rounded_totals[r]);
  }
}

/** Sequences whose keys lie side by side. */
struct Adjacent {
  const View& segments;
  Segment at(int64_t s) const { return segment_at(segments, s); }
  int64_t first_row(const Segment& segment, int64_t block) const { return segment.k_begin + block; }
};

/** Sequences whose keys lie in pages: segments hold q_begin, q_end, their first entry of `pages`, and their keys. */
struct Paged {
  const View& segments;
  const View& pages;
  Segment at(int64_t s) const {
    const int32_t* row = segments.as<int32_t>() + 4 * s;
    return {row[0], row[1] - row[0], row[2], row[3]};
  }
  int64_t first_row(const Segment& segment, int64_t block) const {
    return int64_t{pages.as<int32_t>()[segment.k_begin + block / kBlockKeys]} * kBlockKeys;
  }
};

struct Tile {
  Segment segment;
  int64_t kv_head, position, positions;
  int64_t rows(const Shapes& s) const { return positions * s.group; }
};

/** One strip of query rows [row, row + rows) against the block that starts at key `block`, its keys packed.
 *  values_from(unit): the right operand from that unit of the block's values on. */
template <typename U, typename ValuesFrom>
void attend_strip(const Shapes& s, const Tile& tile, const Workspace& w, const ValuesFrom& values_from, int64_t row,
                  int64_t rows, int64_t block, int64_t keys) {
  const auto columns_of_row = [&](int64_t r) {
    return columns_of(tile.segment, s.window, tile.position + r / s.group, block, keys);
  };
  Columns top = columns_of_row(row), bottom = columns_of_row(row + rows - 1);
  if (Columns{top.first, bottom.end}.empty()) return;
  // Rows that see none of the keys stand at either end of the strip.
  for (; top.empty(); rows--) top = columns_of_row(++row);
  for (; bottom.empty(); rows--) bottom = columns_of_row(row + rows - 2);
  // In pairs a start that is off by 16 columns swaps the halves of the lanes that are summed, which meet first.
  const int64_t begin = top.first / F32::kLanes * F32::kLanes;
  const int64_t columns = round_up(bottom.end, F32::kLanes) - begin;
  product(
      block_product<U>(w.q + row * s.depth, s.depth, w.keys + begin, w.scores, units_of<U>(s.C), U::sum_scale(s.scale)),
      rows, columns);
  // Every row sees what lies in [bottom.first, top.end).
  const int64_t seen = round_up(bottom.first, F32::kLanes) - begin;
  const int64_t unseen = top.end / F32::kLanes * F32::kLanes - begin;
  for (int64_t r = 0; r < rows && (bottom.first > begin || top.end < begin + columns); r++) {
    const Columns valid = {columns_of_row(row + r).first - begin, columns_of_row(row + r).end - begin};
    mask_columns(w.scores + r * kBlockKeys, 0, seen, valid, set1(kMinusInfinity));
    mask_columns(w.scores + r * kBlockKeys, unseen, columns, valid, set1(kMinusInfinity));
  }
  float keep[F32::kLanes];
  softmax_strip<U>(w, row, rows, columns, keep);
  const int64_t first = top.first / U::kDepth;
  const auto values = values_from(first);
  product(Product<U, std::decay_t<decltype(values)>>{w.scores + first - begin / U::kDepth, kBlockKeys, 1, values,
                                                     w.o + row * s.width, s.width, units_of<U>(bottom.end) - first,
                                                     Start::kRescale, keep},
          rows, s.width);
}

template <typename T>
void load_queries(const Shapes& s, const Tile& tile, const Workspace& w, const T* q) {
  for (int64_t p = 0, row = 0; p < tile.positions; p++) {
    const int64_t n = tile.segment.q_begin + tile.position + p;
    const T* from = q + (n * s.H + tile.kv_head * s.group) * s.C;
    for (int64_t h = 0; h < s.group; h++, row++) {
      pack_row<UnitsOf<T>>(from + h * s.C, s.C, s.scale, w.q + row * s.depth);
      w.max[row] = kMinusInfinity;
      w.sum[row] = w.weight[row] = 0.0f;
    }
  }
  __builtin_memset(w.o, 0, static_cast<size_t>(tile.rows(s) * s.width) * sizeof(float));
}

template <typename T>
void store_outputs(const Shapes& s, const Tile& tile, const Workspace& w, T* o, float* lse) {
  for (int64_t p = 0, row = 0; p < tile.positions; p++) {
    const int64_t n = tile.segment.q_begin + tile.position + p;
    const int64_t first_head = n * s.H + tile.kv_head * s.group;
    for (int64_t h = 0; h < s.group; h++, row++) {
      const bool any = w.max[row] != kMinusInfinity || w.sum[row] != 0.0f;
      narrow_row(w.o + row * s.width, s.C, any ? 1.0f / w.weight[row] : 0.0f, o + (first_head + h) * s.C);
      lse[first_head + h] = any ? w.max[row] + logf(w.sum[row]) : kMinusInfinity;
    }
  }
}

/** The tensors of a call: where the rows of one key/value head lie. */
template <typename T, typename Keys>
struct Source {
  const Args& a;
  const Keys& keys;
  const Shapes& s;

  /** Elements from the start of k or v to the first of a block. */
  int64_t block_offset(const Tile& tile, int64_t block) const {
    return (keys.first_row(tile.segment, block) * s.K + tile.kv_head) * s.C;
  }
  int64_t first_block(const Tile& tile) const {
    return tile.segment.first_key(tile.position, s.window) / kBlockKeys * kBlockKeys;
  }
  int64_t end_key(const Tile& tile) const { return tile.segment.end_key(tile.position + tile.positions - 1); }

  /** Rows of k (in[1]) or v (in[2]). */
  MemoryRows block_rows(const View& x, const Tile& tile, int64_t block) const {
    const int64_t size = sizeof(T), keys_here = smaller(kBlockKeys, end_key(tile) - block);
    if (keys_here <= 0) return {};
    return {x.as<T>() + block_offset(tile, block), s.K * s.C * size, s.C * size, keys_here};
  }
  /** Rows of q (in[0]) or o (out[0]), the heads of the group side by side. */
  MemoryRows tile_rows(const View& x, const Tile& tile) const {
    const int64_t size = sizeof(T), position = tile.segment.q_begin + tile.position;
    return {x.as<T>() + (position * s.H + tile.kv_head * s.group) * s.C, s.H * s.C * size, s.group * s.C * size,
            tile.positions};
  }
  /** The keys or values of the block after `block`, which may be the first of the next tile (null: there is none). */
  MemoryRows rows_after(const View& x, const Tile& tile, int64_t block, const Tile* next) const {
    if (block + kBlockKeys < end_key(tile)) return block_rows(x, tile, block + kBlockKeys);
    return next == nullptr ? MemoryRows{} : block_rows(x, *next, first_block(*next));
  }
};

/** Values as right operand: from the workspace, or from where they lie. */
auto packed_values(const Shapes& s, const Workspace& w) {
  return [values = w.values, width = s.width](int64_t unit) { return Rows<float>{values + unit * width, width}; };
}
template <typename U, typename T>
auto in_place(const T* values, int64_t stride, int64_t keys, int64_t unit) {
  if constexpr (U::kDepth == 1) {
    return Rows<T>{values + unit * stride, stride};
  } else {
    return RowPairs{values + 2 * unit * stride, stride, keys - 2 * unit};
  }
}

/** A tile of one strip, as in decoding: it waits for memory and for nothing else. `next`: the tile that comes after it,
 *  or null. */
template <typename T, typename Keys>
void attend_small_tile(const Source<T, Keys>& source, const Tile& tile, const Tile* next, const Workspace& w) {
  using U = UnitsOf<T>;
  const Shapes& s = source.s;
  const Args& a = source.a;
  load_queries(s, tile, w, a.in[0].as<T>());
  const int64_t end = source.end_key(tile), rows = tile.rows(s), stride = s.K * s.C;
  for (int64_t block = source.first_block(tile); block < end; block += kBlockKeys) {
    const int64_t keys = smaller(kBlockKeys, end - block);
    const int64_t parts = ceil_div(keys, F32::kLanes);
    Ahead next_keys(source.rows_after(a.in[1], tile, block, next), parts);
    Ahead next_values(source.rows_after(a.in[2], tile, block, next), parts);
    const int64_t offset = source.block_offset(tile, block);
    for (int64_t j = 0; j < keys; j += F32::kLanes) {
      next_keys.next_part();
      next_values.next_part();
      const T* from = a.in[1].as<T>() + offset + j * stride;
      transpose_block<U>(from, stride, smaller(F32::kLanes, keys - j), s.C, w.keys + j);
    }
    const T* values = a.in[2].as<T>() + offset;
    // Values that one strip reads once are not worth a copy.
    if (s.C == s.width) {
      const auto from_unit = [&](int64_t unit) { return in_place<U>(values, stride, keys, unit); };
      attend_strip<U>(s, tile, w, from_unit, 0, rows, block, keys);
    } else {
      pack_across<U>(values, stride, keys, s.C, w.values, s.width);
      attend_strip<U>(s, tile, w, packed_values(s, w), 0, rows, block, keys);
    }
  }
  store_outputs(s, tile, w, a.out[0].as<T>(), a.out[1].as<float>());
}

/** A tile of several strips: the rows that it and the next one will need are asked for beside them. */
template <typename T, typename Keys>
void attend_tile(const Source<T, Keys>& source, const Tile& tile, const Tile* next, const Workspace& w) {
  using U = UnitsOf<T>;
  const Shapes& s = source.s;
  const Args& a = source.a;
  load_queries(s, tile, w, a.in[0].as<T>());
  const int64_t first = source.first_block(tile), end = source.end_key(tile);
  const int64_t rows = tile.rows(s), strips = ceil_div(rows, kStripRows), stride = s.K * s.C;
  const int64_t all_strips = larger(1, strips * ceil_div(end - first, kBlockKeys));
  Ahead next_queries(next == nullptr ? MemoryRows{} : source.tile_rows(a.in[0], *next), all_strips);
  Ahead outputs(source.tile_rows(a.out[0], tile), all_strips);
  for (int64_t block = first; block < end; block += kBlockKeys) {
    const int64_t keys = smaller(kBlockKeys, end - block), offset = source.block_offset(tile, block);
    Ahead next_keys(source.rows_after(a.in[1], tile, block, next), strips);
    Ahead next_values(source.rows_after(a.in[2], tile, block, next), strips);
    transpose_block<U>(a.in[1].as<T>() + offset, stride, keys, s.C, w.keys);
    pack_across<U>(a.in[2].as<T>() + offset, stride, keys, s.C, w.values, s.width);
    for (int64_t row = 0; row < rows; row += kStripRows) {
      next_keys.next_part();
      next_values.next_part();
      next_queries.next_part();
      outputs.next_part();
      attend_strip<U>(s, tile, w, packed_values(s, w), row, smaller(kStripRows, rows - row), block, keys);
    }
  }
  store_outputs(s, tile, w, a.out[0].as<T>(), a.out[1].as<float>());
}

void clear_gaps(const Args& a, const Shapes& s) {
  const size_t row_bytes = static_cast<size_t>(s.H * s.C) * size_of(a.out[0].dtype);
  for_gaps(a.in[3], 0, a.in[0].shape[0], [&](int64_t begin, int64_t end) {
    __builtin_memset(a.out[0].as<char>() + static_cast<size_t>(begin) * row_bytes, 0,
                     static_cast<size_t>(end - begin) * row_bytes);
    for (int64_t i = begin * s.H; i < end * s.H; i++) a.out[1].as<float>()[i] = kMinusInfinity;
  });
}

template <typename T, typename Keys>
void attend(const char* op, const Args& a, const Keys& all_keys) {
  const View& q = a.in[0];
  const int64_t count = a.in[3].shape[0];
  const int64_t H = q.shape[1], K = a.in[1].shape[a.in[1].rank - 2], C = q.shape[2];
  const Shapes s = {H,
                    K,
                    C,
                    heads_per_group(op, H, K),
                    static_cast<int64_t>(a.attrs[1]),
                    round_up(C, F32::kLanes),
                    round_up(units_of<UnitsOf<T>>(C), F32::kLanes),
                    static_cast<float>(a.attrs[0])};
  clear_gaps(a, s);
  if (count == 0 || H == 0) return;

  Scratch ends_memory(a.device, static_cast<size_t>(count) * sizeof(int64_t));
  int64_t* task_ends = ends_memory.as<int64_t>();
  int64_t tasks = 0, most_rows = 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t queries = all_keys.at(i).queries;
    const int64_t positions = tile_positions(queries, s.group, kTileRows);
    task_ends[i] = tasks += ceil_div(queries, positions) * s.K;
    most_rows = larger(most_rows, positions * s.group);
  }
  const int64_t floats = Workspace::layout<UnitsOf<T>>(most_rows, s, nullptr, nullptr);
  ThreadPool& pool = pool_of(a);
  Scratch work_memory(a.device, static_cast<size_t>(floats * pool.threads()) * sizeof(float));
  const auto tile_of = [&](int64_t task) {
    const int64_t index = segment_of_task(task_ends, count, task);
    const Segment segment = all_keys.at(index);
    const int64_t positions = tile_positions(segment.queries, s.group, kTileRows);
    // The tiles of a head follow each other, as they read the same keys; the last sees most: longest first.
    const int64_t tiles = ceil_div(segment.queries, positions), from_end = task_ends[index] - 1 - task;
    const int64_t position = from_end % tiles * positions;
    return Tile{segment, from_end / tiles, position, smaller(positions, segment.queries - position)};
  };
  // Small tiles go by in runs: the memory of the next one is asked for, and in a run it is known which that is. After a
  // run, other threads will have taken about one each.
  const bool small = most_rows <= kStripRows;
  const int64_t run = small ? larger(1, tasks / (4 * pool.threads())) : 1;
  const Source<T, Keys> source = {a, all_keys, s};
  parallel_ranges(pool, tasks, run, [&](int64_t begin, int64_t end, int worker) {
    Workspace w;
    Workspace::layout<UnitsOf<T>>(most_rows, s, work_memory.as<float>() + floats * worker, &w);
    Tile tile = tile_of(begin);
    for (const View* x : {a.in + 1, a.in + 2}) {
      const MemoryRows rows = source.block_rows(*x, tile, source.first_block(tile));
      prefetch_rows(rows, 0, rows.count);
    }
    for (int64_t task = begin; task < end; task++) {
      const int64_t after = task + 1 < end ? task + 1 : begin + run * pool.threads();
      const Tile following = after < tasks ? tile_of(after) : tile;
      const Tile* next = after < tasks ? &following : nullptr;
      if (small) {
        attend_small_tile(source, tile, next, w);
      } else {
        attend_tile(source, tile, next, w);
      }
      tile = following;
    }
  });
}

/** Throws ERR_SHAPE unless the queries are ascending ranges in [0, N) and the pages of every segment exist. */
void check_pages(const View& segments, const View& pages, int64_t N, int64_t page_count) {
  int64_t q_end = 0;
  for (int64_t s = 0; s < segments.shape[0]; s++) {
    const int32_t* row = segments.as<int32_t>() + 4 * s;
    const bool ascending = row[0] >= q_end && row[0] <= row[1] && row[1] <= N;
    const bool inside = row[2] >= 0 && row[3] >= 0 && row[2] + ceil_div(row[3], kBlockKeys) <= pages.shape[0];
    if (!ascending || !inside) {
      fail("ERR_SHAPE",
           "attention_paged: segments[%lld] = (%d, %d, %d, %d) must be queries (q_begin, q_end) in [0, N=%lld], "
           "ascending and without overlap, the first of its entries in pages[M=%lld], and its keys, %lld a page",
           static_cast<long long>(s), row[0], row[1], row[2], row[3], static_cast<long long>(N),
           static_cast<long long>(pages.shape[0]), static_cast<long long>(kBlockKeys));
    }
    q_end = row[1];
    for (int64_t i = row[2]; i < row[2] + ceil_div(row[3], kBlockKeys); i++) {
      const int32_t page = pages.as<int32_t>()[i];
      if (page >= 0 && page < page_count) continue;
      fail("ERR_SHAPE", "attention_paged: pages[%lld] must be below P=%lld; got %d", static_cast<long long>(i),
           static_cast<long long>(page_count), page);
    }
  }
}

CARAVAN_KERNEL(attention, cpu, "q[N,H,C] k[M,K,C] v[M,K,C] segments[S,4]:i32 -> o[N,H,C] lse[N,H]:f32 | scale window") {
  check_segments("attention", a.in[3], a.in[0].shape[0], a.in[1].shape[0], false);
  with_f32_or_bf16("attention", a.in[0].dtype,
                   [&](auto type) { attend<decltype(type)>("attention", a, Adjacent{a.in[3]}); });
}

CARAVAN_KERNEL(attention_paged, cpu,
               "q[N,H,C] k[P,64,K,C] v[P,64,K,C] segments[S,4]:i32 pages[M]:i32 -> o[N,H,C] lse[N,H]:f32 | scale "
               "window") {
  static_assert(kBlockKeys == 64, "the signature says how long a page is");
  check_pages(a.in[3], a.in[4], a.in[0].shape[0], a.in[1].shape[0]);
  with_f32_or_bf16("attention_paged", a.in[0].dtype,
                   [&](auto type) { attend<decltype(type)>("attention_paged", a, Paged{a.in[3], a.in[4]}); });
}

}  // namespace attention_file
}  // namespace
}  // namespace caravan::CARAVAN_ISA
