// Backward of attention.cc. With s = scale q k^T, p = e^(s - lse) inside the mask and delta = sum_c do o (per query):
//   dv = p^T do     ds = p (do v^T - delta)     dq = scale ds k     dk = scale ds^T q
// p is recomputed from the saved lse, 96 query rows x 64 keys at a time in L2; no T x T matrix exists. Sums are f32;
// bf16 is widened on the way in, or multiplied by pairs (UnitsOf), with p and ds rounded; gradients are rounded at the
// end.
//
// Two schedules, one result. Every element of dq is a chain over increasing keys, every element of dk and dv a chain
// over increasing queries, so the order of the tiles does not change a bit:
//   kTogether: task = (segment, key/value head), queries outside, keys inside; 5 products. Queries pass by once, what
//              belongs to the keys of the head (packed keys and values, dk, dv) stays in f32.
//   kApart:    first dk and dv by (segment, head, block of keys), then dq by (segment, head, tile): 7 products, but as
//              many tasks as there are blocks.
// The first is taken when its tasks fill the threads well enough (see apart_is_faster) and its keys fit kTogetherBytes.
#include <math.h>

#include <initializer_list>

#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "kernels/attention_tile.h"
#include "kernels/dispatch.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace attention_backward_file {

using namespace attention_detail;

constexpr int64_t kTileRows = 96;  // query rows (positions x heads of a group) whose q and do stay in L1
constexpr int64_t kTogetherBytes = int64_t{128} << 20;

struct Shapes {
  int64_t N, H, K, C, group, window;
  int64_t width;  // C, in whole vectors
  int64_t depth;  // units of C, in whole vectors
  float scale;
  int64_t positions_per_tile(const Segment& segment) const { return tile_positions(segment.queries, group, kTileRows); }
};

struct Tensors {
  const View& d_o;
  const View& q;
  const View& k;
  const View& v;
  const View& o;
  const View& lse;
  const View& segments;
  const View& dq;
  const View& dk;
  const View& dv;
  float* delta;  // [N,H]
};

/** What belongs to a block of keys, in floats. */
struct BlockMemory {
  float* keys;      // [units of kBlockKeys][width]
  float* keys_t;    // [depth][kBlockKeys]: units
  float* values_t;  // [depth][kBlockKeys]: units
  float* dk;        // [kBlockKeys][width]
  float* dv;        // [kBlockKeys][width]
};

/** The workspace of one thread, in floats. Rows of p and ds, and of q and d_o as right operands, are units across the
 *  rows of the tile. */
struct Workspace {
  float* q;           // [rows][depth]: units
  float* d_o;         // [rows][depth]: units
  float* q_across;    // [units of rows][width]
  float* d_o_across;  // [units of rows][width]
  float* lse;         // [rows]
  float* delta;       // [rows]
  float* scores;      // [kStripRows][kBlockKeys], of one strip
  float* products;    // [kStripRows][kBlockKeys], do v^T of one strip, then ds as units along the keys
  float* p;           // [units of rows][kBlockKeys]
  float* ds;          // [units of rows][kBlockKeys]
  float* dq;          // [rows][width]
  float* blocks;      // [blocks] of BlockMemory

  template <typename U>
  static int64_t layout(int64_t rows, const Shapes& s, int64_t blocks, float* base, Workspace* out) {
    Layout layout;
    const auto add = [&](int64_t floats) {
      const int64_t at = layout.add(floats);
      return base == nullptr ? nullptr : base + at;
    };
    Workspace w;
    w.q = add(rows * s.depth), w.d_o = add(rows * s.depth);
    // Units of one element are the same along and across.
    w.q_across = U::kDepth == 1 ? w.q : add(units_of<U>(rows) * s.width);
    w.d_o_across = U::kDepth == 1 ? w.d_o : add(units_of<U>(rows) * s.width);
    w.lse = add(rows), w.delta = add(rows);
    w.scores = add(kStripRows * kBlockKeys), w.products = add(kStripRows * kBlockKeys);
    w.p = add(units_of<U>(rows) * kBlockKeys), w.ds = add(units_of<U>(rows) * kBlockKeys);
    w.dq = add(rows * s.width), w.blocks = add(blocks * block_floats(s.width));
    if (out != nullptr) *out = w;
    return layout.size();
  }
  static int64_t block_floats(int64_t width) { return 5 * kBlockKeys * width; }
  BlockMemory block(int64_t index, int64_t width) const {
    float* first = blocks + index * block_floats(width);
    const int64_t part = kBlockKeys * width;
    return {first, first + part, first + 2 * part, first + 3 * part, first + 4 * part};
  }
};

struct Head {
  Segment segment;
  int64_t kv_head;
};

struct Block {
  int64_t begin, keys;
  BlockMemory memory;
};

struct Tile {
  int64_t position, positions;
};

struct Wanted {
  bool queries, keys;  // dq; dk and dv
};

// ---- loads and stores -----------------------------------------------------------------------------------------------

template <typename T>
void compute_delta(const Tensors& t, const Shapes& s, ThreadPool& pool) {
  parallel_ranges(pool, s.N * s.H, larger(1, 8192 / larger(1, s.C)), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++) {
      const T* d_o = t.d_o.as<T>() + row * s.C;
      const T* o = t.o.as<T>() + row * s.C;
      F32 sum = zero();
      for_lanes(
          s.C, [&](int64_t i) { sum = fma(load(d_o + i), load(o + i), sum); },
          [&](int64_t i, int n) { sum = fma(load_first(d_o + i, n), load_first(o + i, n), sum); });
      t.delta[row] = reduce_sum(sum);
    }
  });
}

/** Packs keys and values of the block, and clears dk and dv when they are `wanted`. */
template <typename T>
void load_block(const Tensors& t, const Shapes& s, const Head& head, const Block& block, bool wanted) {
  const int64_t stride = s.K * s.C;
  const int64_t offset = (head.segment.k_begin + block.begin) * stride + head.kv_head * s.C;
  const BlockMemory& m = block.memory;
  transpose_block<UnitsOf<T>>(t.k.as<T>() + offset, stride, block.keys, s.C, m.keys_t);
  transpose_block<UnitsOf<T>>(t.v.as<T>() + offset, stride, block.keys, s.C, m.values_t);
  pack_across<UnitsOf<T>>(t.k.as<T>() + offset, stride, block.keys, s.C, m.keys, s.width);
  if (!wanted) return;
  __builtin_memset(m.dk, 0, static_cast<size_t>(block.keys * s.width) * sizeof(float));
  __builtin_memset(m.dv, 0, static_cast<size_t>(block.keys * s.width) * sizeof(float));
}

template <typename T>
void store_block(const Tensors& t, const Shapes& s, const Head& head, const Block& block) {
  const int64_t stride = s.K * s.C;
  const int64_t offset = (head.segment.k_begin + block.begin) * stride + head.kv_head * s.C;
  for (int64_t j = 0; j < block.keys; j++) {
    narrow_row(block.memory.dk + j * s.width, s.C, UnitsOf<T>::sum_scale(s.scale), t.dk.as<T>() + offset + j * stride);
    narrow_row(block.memory.dv + j * s.width, s.C, 1.0f, t.dv.as<T>() + offset + j * stride);
  }
}

/** body(row, index of (query, head) in [N,H]) for the rows of a tile. */
template <typename Body>
void for_rows(const Shapes& s, const Head& head, const Tile& tile, const Body& body) {
  int64_t row = 0;
  for (int64_t p = 0; p < tile.positions; p++) {
    const int64_t first = (head.segment.q_begin + tile.position + p) * s.H + head.kv_head * s.group;
    for (int64_t h = 0; h < s.group; h++, row++) body(row, first + h);
  }
}

template <typename T>
void load_tile(const Tensors& t, const Shapes& s, const Head& head, const Tile& tile, const Workspace& w) {
  using U = UnitsOf<T>;
  for_rows(s, head, tile, [&](int64_t row, int64_t index) {
    pack_row<U>(t.q.as<T>() + index * s.C, s.C, s.scale, w.q + row * s.depth);
    pack_row<U>(t.d_o.as<T>() + index * s.C, s.C, 1.0f, w.d_o + row * s.depth);
    w.lse[row] = t.lse.as<float>()[index];
    w.delta[row] = t.delta[index];
  });
  if constexpr (U::kDepth > 1) {
    const int64_t stride = s.depth * U::kDepth, rows = tile.positions * s.group;
    pack_across<U>(reinterpret_cast<const T*>(w.q), stride, rows, s.width, w.q_across, s.width);
    pack_across<U>(reinterpret_cast<const T*>(w.d_o), stride, rows, s.width, w.d_o_across, s.width);
  }
}

template <typename T>
void store_queries(const Tensors& t, const Shapes& s, const Head& head, const Tile& tile, const float* dq) {
  for_rows(s, head, tile, [&](int64_t row, int64_t index) {
    narrow_row(dq + row * s.width, s.C, s.scale, t.dq.as<T>() + index * s.C);
  });
}

/** Rows of q, do or dq that belong to a tile. */
template <typename T>
MemoryRows tile_rows(const View& x, const Shapes& s, const Head& head, const Tile& tile) {
  const int64_t size = sizeof(T), position = head.segment.q_begin + tile.position;
  return {x.as<T>() + (position * s.H + head.kv_head * s.group) * s.C, s.H * s.C * size, s.group * s.C * size,
          tile.positions};
}

/** Rows of k or v that belong to a block. */
template <typename T>
MemoryRows block_rows(const View& x, const Shapes& s, const Head& head, const Block& block) {
  const int64_t size = sizeof(T), position = head.segment.k_begin + block.begin;
  return {x.as<T>() + (position * s.K + head.kv_head) * s.C, s.K * s.C * size, s.C * size, block.keys};
}

/** What is asked for while a tile is worked on: its rows of dq, and the queries of the next tile. */
template <typename T>
class TileAhead {
 public:
  /** `parts`: how often next_part will be called; an empty tile stands for no next one. */
  TileAhead(const Tensors& t, const Shapes& s, const Head& head, const Tile& tile, const Tile& next, int64_t parts)
      : dq_(tile_rows<T>(t.dq, s, head, tile), parts),
        q_(tile_rows<T>(t.q, s, head, next), parts),
        d_o_(tile_rows<T>(t.d_o, s, head, next), parts) {}
  void next_part() {
    dq_.next_part();
    q_.next_part();
    d_o_.next_part();
  }

 private:
  Ahead dq_, q_, d_o_;
};

// ---- one tile of queries against one block of keys ------------------------------------------------------------------

/** Scores and do v^T of a row -> p and ds, a vector at a time. */
struct SoftmaxGradient {
  const float *scores, *products;
  F32 lse, delta;
  void at(int64_t j, F32* p, F32* ds) const {
    *p = exp_bounded(load(scores + j) - lse);
    *ds = *p * (load(products + j) - delta);
  }
};

/** A strip of rows [row, row + rows), which lie in w.scores and w.products from the row `first` on. */
struct Strip {
  int64_t first, row, rows;
  SoftmaxGradient gradient_of(const Workspace& w, int64_t r) const {
    const int64_t offset = (r - first) * kBlockKeys;
    return {w.scores + offset, w.products + offset, set1(w.lse[r]), set1(w.delta[r])};
  }
};

/** The columns [begin, end) of p and ds; the others become zero. */
template <typename U>
void strip_weights(const Workspace& w, const Strip& strip, int64_t begin, int64_t end) {
  for (int64_t unit = strip.row / U::kDepth; unit < units_of<U>(strip.row + strip.rows); unit++) {
    float* p = w.p + unit * kBlockKeys;
    float* ds = w.ds + unit * kBlockKeys;
    const auto clear = [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; j += F32::kLanes) store(p + j, zero()), store(ds + j, zero());
    };
    clear(0, begin);
    clear(end, kBlockKeys);
    if constexpr (U::kDepth == 1) {
      const SoftmaxGradient row = strip.gradient_of(w, unit);
      for (int64_t j = begin; j < end; j += F32::kLanes) {
        F32 weight, gradient;
        row.at(j, &weight, &gradient);
        store(p + j, weight);
        store(ds + j, gradient);
      }
    } else {
      // A row outside the strip has the numbers of its neighbour and no weight.
      const int64_t pair = unit * 2, last = strip.row + strip.rows - 1;
      SoftmaxGradient even = strip.gradient_of(w, larger(pair, strip.row));
      SoftmaxGradient odd = strip.gradient_of(w, smaller(pair + 1, last));
      if (pair < strip.row) even.lse = set1(__builtin_inff());
      if (pair + 1 > last) odd.lse = set1(__builtin_inff());
      float* along = w.products + (pair - strip.first) * kBlockKeys;
      for (int64_t j = begin; j < end; j += F32::kLanes) {
        F32 weights[2], gradients[2];
        even.at(j, &weights[0], &gradients[0]);
        odd.at(j, &weights[1], &gradients[1]);
        U::store_across(p + j, weights[0], weights[1]);
        U::store_both_ways(ds + j, along, along + kBlockKeys, j, gradients[0], gradients[1]);
      }
    }
  }
}

/** p, ds and dq of the strip of rows [row, row + rows). Rows that see none of the keys are left alone: the products
 *  over queries leave them out. */
template <typename U>
void strip_gradient(const Shapes& s, const Head& head, const Tile& tile, const Block& block, const Workspace& w,
                    int64_t row, int64_t rows, bool want_dq) {
  const auto columns_of_row = [&](int64_t r) {
    return columns_of(head.segment, s.window, tile.position + r / s.group, block.begin, block.keys);
  };
  const int64_t strip = row;
  Columns top = columns_of_row(row), bottom = columns_of_row(row + rows - 1);
  if (Columns{top.first, bottom.end}.empty()) return;
  for (; top.empty(); rows--) top = columns_of_row(++row);
  for (; bottom.empty(); rows--) bottom = columns_of_row(row + rows - 2);
  const int64_t begin = top.first / F32::kLanes * F32::kLanes, end = round_up(bottom.end, F32::kLanes);
  // Every row sees what lies in [bottom.first, top.end).
  const int64_t seen = round_up(bottom.first, F32::kLanes), unseen = top.end / F32::kLanes * F32::kLanes;
  static_assert(kStripRows % U::kDepth == 0, "a unit across rows belongs to one strip");
  float* scores = w.scores + (row - strip) * kBlockKeys;
  float* products = w.products + (row - strip) * kBlockKeys;
  const BlockMemory& m = block.memory;
  const int64_t units = units_of<U>(s.C);
  product(
      block_product<U>(w.q + row * s.depth, s.depth, m.keys_t + begin, scores + begin, units, U::sum_scale(s.scale)),
      rows, end - begin);
  product(block_product<U>(w.d_o + row * s.depth, s.depth, m.values_t + begin, products + begin, units, 1.0f), rows,
          end - begin);
  for (int64_t r = 0; r < rows && (bottom.first > begin || top.end < end); r++) {
    const Columns valid = columns_of_row(row + r);
    mask_columns(scores + r * kBlockKeys, begin, seen, valid, set1(-__builtin_inff()));
    mask_columns(scores + r * kBlockKeys, larger(begin, unseen), end, valid, set1(-__builtin_inff()));
  }
  strip_weights<U>(w, {strip, row, rows}, begin, end);
  if (!want_dq) return;
  const int64_t first = top.first / U::kDepth;
  const float* ds = U::kDepth == 1 ? w.ds + row * kBlockKeys : products;
  product(Product<U>{ds + first,
                     kBlockKeys,
                     1,
                     {m.keys + first * s.width, s.width},
                     w.dq + row * s.width,
                     s.width,
                     units_of<U>(bottom.end) - first,
                     Start::kContinue},
          rows, s.width);
}

/** Adds the tile's part to dk and dv of the block, keys in strips, each over the queries that see one of its keys. */
template <typename U>
void add_key_gradient(const Shapes& s, const Head& head, const Tile& tile, const Block& block, const Workspace& w) {
  const Segment& segment = head.segment;
  const BlockMemory& m = block.memory;
  const int64_t shift = segment.keys - segment.queries;
  for (int64_t j = 0; j < block.keys; j += kStripRows) {
    const int64_t keys = smaller(kStripRows, block.keys - j);
    const int64_t first_key = block.begin + j, last_key = first_key + keys - 1;
    const int64_t from = larger(0, first_key - shift - tile.position);
    const int64_t to =
        s.window > 0 ? smaller(tile.positions, last_key - shift + s.window - tile.position) : tile.positions;
    if (from >= to) continue;
    const int64_t unit = from * s.group / U::kDepth, units = units_of<U>(to * s.group) - unit;
    const auto add = [&](const float* left, const float* right, float* sums) {
      product(Product<U>{left + unit * kBlockKeys + j,
                         1,
                         kBlockKeys,
                         {right + unit * s.width, s.width},
                         sums + j * s.width,
                         s.width,
                         units,
                         Start::kContinue},
              keys, s.width);
    };
    add(w.p, w.d_o_across, m.dv);
    add(w.ds, w.q_across, m.dk);
  }
}

/** Whether no query of the tile sees a key of the block. */
bool apart_from(const Shapes& s, const Segment& segment, const Tile& tile, const Block& block) {
  const Columns all = {columns_of(segment, s.window, tile.position, block.begin, block.keys).first,
                       columns_of(segment, s.window, tile.position + tile.positions - 1, block.begin, block.keys).end};
  return all.empty();
}

/** Adds the part of the tile and the block to dq (wanted.queries), and to dk and dv (wanted.keys). */
template <typename U, typename MemoryAhead>
void visit(const Shapes& s, const Head& head, const Tile& tile, const Block& block, const Workspace& w, Wanted wanted,
           MemoryAhead& ahead) {
  const int64_t rows = tile.positions * s.group;
  for (int64_t row = 0; row < rows; row += kStripRows) {
    ahead.next_part();
    strip_gradient<U>(s, head, tile, block, w, row, smaller(kStripRows, rows - row), wanted.queries);
  }
  if (wanted.keys) add_key_gradient<U>(s, head, tile, block, w);
}

/** The tile that starts at `position`, which may be the end of the segment: an empty tile. */
Tile tile_at(const Shapes& s, const Segment& segment, int64_t position) {
  return {position, smaller(s.positions_per_tile(segment), segment.queries - position)};
}

int64_t strips_of(const Shapes& s, const Tile& tile) { return ceil_div(tile.positions * s.group, kStripRows); }

/** The block that starts at `key`, in place `index` of the workspace. */
Block block_at(const Shapes& s, const Segment& segment, const Workspace& w, int64_t key, int64_t index) {
  return {key, smaller(kBlockKeys, segment.keys - key), w.block(index, s.width)};
}

// ---- tasks ----------------------------------------------------------------------------------------------------------

/** dk and dv of one block over all queries. */
template <typename T>
void key_block(const Tensors& t, const Shapes& s, const Head& head, int64_t key, const Workspace& w) {
  const Block block = block_at(s, head.segment, w, key, 0);
  load_block<T>(t, s, head, block, true);
  const int64_t step = s.positions_per_tile(head.segment);
  for (int64_t position = 0; position < head.segment.queries; position += step) {
    const Tile tile = tile_at(s, head.segment, position);
    if (apart_from(s, head.segment, tile, block)) continue;
    load_tile<T>(t, s, head, tile, w);
    const Tile next = tile_at(s, head.segment, position + tile.positions);
    TileAhead<T> ahead(t, s, head, {position, 0}, next, strips_of(s, tile));
    visit<UnitsOf<T>>(s, head, tile, block, w, {false, true}, ahead);
  }
  store_block<T>(t, s, head, block);
}

/** dq of one tile; with wanted.keys also adds to dk and dv of its blocks, all of which are in the workspace. */
template <typename T>
void query_tile(const Tensors& t, const Shapes& s, const Head& head, const Tile& tile, const Workspace& w,
                Wanted wanted) {
  const Segment& segment = head.segment;
  load_tile<T>(t, s, head, tile, w);
  __builtin_memset(w.dq, 0, static_cast<size_t>(tile.positions * s.group * s.width) * sizeof(float));
  const int64_t blocks = ceil_div(segment.end_key(tile.position + tile.positions - 1), kBlockKeys);
  TileAhead<T> ahead(t, s, head, tile, tile_at(s, segment, tile.position + tile.positions),
                     larger(1, blocks * strips_of(s, tile)));
  for (int64_t key = 0; key < segment.keys; key += kBlockKeys) {
    const Block block = block_at(s, segment, w, key, wanted.keys ? key / kBlockKeys : 0);
    if (apart_from(s, segment, tile, block)) continue;
    if (!wanted.keys) load_block<T>(t, s, head, block, false);
    visit<UnitsOf<T>>(s, head, tile, block, w, wanted, ahead);
  }
  store_queries<T>(t, s, head, tile, w.dq);
}

template <typename T>
void whole_head(const Tensors& t, const Shapes& s, const Head& head, const Workspace& w) {
  const Segment& segment = head.segment;
  for (int64_t key = 0; key < segment.keys; key += kBlockKeys) {
    const Block block = block_at(s, segment, w, key, key / kBlockKeys);
    const Block next = block_at(s, segment, w, key + block.keys, 0);
    for (const View* x : {&t.k, &t.v}) prefetch_rows(block_rows<T>(*x, s, head, next), 0, next.keys);
    load_block<T>(t, s, head, block, true);
  }
  const int64_t step = s.positions_per_tile(segment);
  for (int64_t position = 0; position < segment.queries; position += step) {
    query_tile<T>(t, s, head, tile_at(s, segment, position), w, {true, true});
  }
  for (int64_t key = 0; key < segment.keys; key += kBlockKeys) {
    store_block<T>(t, s, head, block_at(s, segment, w, key, key / kBlockKeys));
  }
}

// ---- schedules ------------------------------------------------------------------------------------------------------

/** Number of (query, key) pairs, about: what the time of a segment is proportional to. */
double pairs_of(const Segment& segment, int64_t window) {
  const double queries = static_cast<double>(segment.queries), keys = static_cast<double>(segment.keys);
  const double causal = queries * (keys - queries / 2);
  const double windowed = window > 0 ? queries * static_cast<double>(window) : causal;
  return (windowed < causal ? windowed : causal) + 1.0;
}

/** Plays the dynamic schedule of the kTogether tasks: 5 units a pair, against 7 spread evenly. `loads` is room for one
 *  number a thread. */
bool apart_is_faster(const Tensors& t, const Shapes& s, int threads, double* loads) {
  double total = 0, longest = 0;
  for (int i = 0; i < threads; i++) loads[i] = 0;
  for (int64_t i = 0; i < t.segments.shape[0]; i++) {
    const double cost = pairs_of(segment_at(t.segments, i), s.window);
    for (int64_t head = 0; head < s.K; head++) {
      double* least = loads;
      for (int j = 1; j < threads; j++) least = loads[j] < *least ? loads + j : least;
      *least += cost;
      longest = *least > longest ? *least : longest;
      total += cost;
    }
  }
  return 5 * longest > 7 * total / threads;
}

template <typename T>
void run_together(const Args& a, const Tensors& t, const Shapes& s, int64_t rows, int64_t blocks) {
  ThreadPool& pool = pool_of(a);
  const int64_t floats = Workspace::layout<UnitsOf<T>>(rows, s, blocks, nullptr, nullptr);
  Scratch memory(a.device, static_cast<size_t>(floats * pool.threads()) * sizeof(float));
  parallel_for(pool, t.segments.shape[0] * s.K, [&](int64_t task, int worker) {
    Workspace w;
    Workspace::layout<UnitsOf<T>>(rows, s, blocks, memory.as<float>() + floats * worker, &w);
    whole_head<T>(t, s, {segment_at(t.segments, task / s.K), task % s.K}, w);
  });
}

/** One of the two passes of kApart: dk and dv by blocks of keys, or dq by tiles of queries. */
template <typename T>
void run_pass(const Args& a, const Tensors& t, const Shapes& s, int64_t rows, bool keys) {
  ThreadPool& pool = pool_of(a);
  const int64_t count = t.segments.shape[0];
  const auto step_of = [&](const Segment& segment) { return keys ? kBlockKeys : s.positions_per_tile(segment); };
  Scratch ends_memory(a.device, static_cast<size_t>(count) * sizeof(int64_t));
  int64_t* task_ends = ends_memory.as<int64_t>();
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; i++) {
    const Segment segment = segment_at(t.segments, i);
    task_ends[i] = tasks += ceil_div(keys ? segment.keys : segment.queries, step_of(segment)) * s.K;
  }
  const int64_t floats = Workspace::layout<UnitsOf<T>>(rows, s, 1, nullptr, nullptr);
  Scratch memory(a.device, static_cast<size_t>(floats * pool.threads()) * sizeof(float));
  parallel_for(pool, tasks, [&](int64_t task, int worker) {
    Workspace w;
    Workspace::layout<UnitsOf<T>>(rows, s, 1, memory.as<float>() + floats * worker, &w);
    const int64_t index = segment_of_task(task_ends, count, task);
    const Segment segment = segment_at(t.segments, index);
    const int64_t begin = index == 0 ? 0 : task_ends[index - 1];
    // Longest tasks first: the first keys are seen by most queries, the last queries see most keys.
    const int64_t local = keys ? task - begin : task_ends[index] - 1 - task;
    const Head head = {segment, local % s.K};
    const int64_t at = local / s.K * step_of(segment);
    if (keys) {
      key_block<T>(t, s, head, at, w);
    } else {
      query_tile<T>(t, s, head, tile_at(s, segment, at), w, {true, false});
    }
  });
}

void clear_gaps(const Tensors& t, const Shapes& s) {
  const auto clear = [&](const View& x, int column, int64_t heads) {
    const size_t row_bytes = static_cast<size_t>(heads * s.C) * size_of(x.dtype);
    for_gaps(t.segments, column, x.shape[0], [&](int64_t begin, int64_t end) {
      __builtin_memset(x.as<char>() + static_cast<size_t>(begin) * row_bytes, 0,
                       static_cast<size_t>(end - begin) * row_bytes);
    });
  };
  clear(t.dq, 0, s.H);
  clear(t.dk, 2, s.K);
  clear(t.dv, 2, s.K);
}

template <typename T>
void attention_backward(const Args& a) {
  const View& q = a.in[1];
  const int64_t N = q.shape[0], H = q.shape[1], K = a.in[2].shape[1], C = q.shape[2];
  const Shapes s = {N,
                    H,
                    K,
                    C,
                    heads_per_group("attention_backward", H, K),
                    static_cast<int64_t>(a.attrs[1]),
                    round_up(C, F32::kLanes),
                    round_up(units_of<UnitsOf<T>>(C), F32::kLanes),
                    static_cast<float>(a.attrs[0])};
  check_segments("attention_backward", a.in[6], N, a.in[2].shape[0], true);
  Scratch delta_memory(a.device, static_cast<size_t>(N * H) * sizeof(float));
  const Tensors t = {a.in[0],
                     a.in[1],
                     a.in[2],
                     a.in[3],
                     a.in[4],
                     a.in[5],
                     a.in[6],
                     a.out[0],
                     a.out[1],
                     a.out[2],
                     delta_memory.as<float>()};
  clear_gaps(t, s);
  if (H == 0) return;
  ThreadPool& pool = pool_of(a);
  compute_delta<T>(t, s, pool);
  int64_t rows = 0, blocks = 0;
  for (int64_t i = 0; i < t.segments.shape[0]; i++) {
    const Segment segment = segment_at(t.segments, i);
    rows = larger(rows, s.positions_per_tile(segment) * s.group);
    blocks = larger(blocks, ceil_div(segment.keys, kBlockKeys));
  }
  Scratch loads_memory(a.device, static_cast<size_t>(pool.threads()) * sizeof(double));
  const bool fits = blocks * Workspace::block_floats(s.width) * 4 * pool.threads() <= kTogetherBytes;
  if (fits && !apart_is_faster(t, s, pool.threads(), loads_memory.as<double>())) {
    run_together<T>(a, t, s, rows, blocks);
  } else {
    run_pass<T>(a, t, s, rows, true);
    run_pass<T>(a, t, s, rows, false);
  }
}

CARAVAN_KERNEL(attention_backward, cpu,
               "do[N,H,C] q[N,H,C] k[M,K,C] v[M,K,C] o[N,H,C] lse[N,H]:f32 segments[S,4]:i32 -> "
               "dq[N,H,C] dk[M,K,C] dv[M,K,C] | scale window") {
  with_f32_or_bf16("attention_backward", a.in[1].dtype, [&](auto type) { attention_backward<decltype(type)>(a); });
}

}  // namespace attention_backward_file
}  // namespace
}  // namespace caravan::CARAVAN_ISA
