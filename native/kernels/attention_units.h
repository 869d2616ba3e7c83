// What the attention kernels of the GPU share: sequences as the device reads them, which keys a query sees, and the
// list of units (pieces of one sequence that one block works on), made on the device because segments live there.
//
// The rows of a key/value head are its queries times the query heads of the group, position by position: row r is
// position r / group, head r % group. Packed so, the heads of a group share every key they read, and a decode step
// fills a tile that one head would leave empty.
#pragma once
#include "core/scratch.h"
#include "cuda/fault.h"
#include "cuda/launch.h"

namespace caravan::cuda::attention_detail {

/** Keys per step of the online softmax, counted from the first key of the segment; also the keys of a page. */
constexpr int kBlockKeys = 64;

/** Half-open range of keys, rows or blocks. */
struct Range {
  int first, end;
  __device__ bool empty() const { return first >= end; }
};

struct Geometry {
  int H, K, group, window;
};

/** One sequence: queries [q_begin, q_begin + queries) attend its keys, aligned at the end. */
struct Segment {
  int q_begin, queries;
  int k_begin;  // first row of the keys, or first entry of the table of pages
  int keys;

  /** The keys of query `position`, counted from the first key of the segment. Both ends grow with the position. */
  __device__ Range keys_of(int position, int window) const {
    const int end = max(0, position + 1 + keys - queries);
    return {window > 0 ? max(0, end - window) : 0, end};
  }
  /** Blocks of keys that rows [row, row + rows) see. */
  __device__ Range key_blocks(const Geometry& g, int row, int rows) const {
    if (rows <= 0) return {0, 0};
    const int first = keys_of(row / g.group, g.window).first;
    return {first / kBlockKeys, (keys_of((row + rows - 1) / g.group, g.window).end + kBlockKeys - 1) / kBlockKeys};
  }
  /** Rows that see one of the keys [key, key + count). */
  __device__ Range rows_of(const Geometry& g, int key, int count) const {
    const int shift = keys - queries;
    const int first = max(0, key - shift);
    const int end = g.window > 0 ? min(queries, key + count - 1 - shift + g.window) : queries;
    return {first * g.group, end * g.group};
  }
  __device__ int rows(const Geometry& g) const { return queries * g.group; }
};

/** The segment table, checked entry by entry: a segment that does not lie in its rows is noted and read as empty. */
struct Sequences {
  const int32_t* segments;
  const int32_t* pages;  // null: the keys of a sequence lie side by side
  int count;
  int queries;       // rows of q
  int keys;          // rows of k, or entries of `pages`
  int64_t pages_of;  // pages of k
  bool own_keys;     // keys, too, must be ascending and without overlap
  FaultReport fault;

  __device__ Segment at(int s) const {
    const int32_t* row = segments + int64_t{4} * s;
    const int q_before = s > 0 ? row[-3] : 0, k_before = s > 0 && own_keys ? row[-1] : 0;
    if (row[0] < q_before || row[0] < 0 || row[0] > row[1] || row[1] > queries) {
      fault.note(FaultKind::kSegment, s, row[1], queries);
      return {0, 0, 0, 0};
    }
    const int64_t keys_end = pages == nullptr ? row[3] : row[2] + (int64_t{row[3]} + kBlockKeys - 1) / kBlockKeys;
    const bool ordered = pages == nullptr ? row[2] >= k_before && row[2] <= row[3] : row[3] >= 0;
    if (row[2] < 0 || !ordered || keys_end > keys) {
      fault.note(FaultKind::kSegment, s, keys_end, keys);
      return {0, 0, 0, 0};
    }
    return {row[0], row[1] - row[0], row[2], pages == nullptr ? row[3] - row[2] : row[3]};
  }
  /** The page of a block as the table has it; asked for well before key_row needs it. */
  __device__ int page_of(const Segment& segment, int block) const {
    return pages == nullptr ? 0 : pages[segment.k_begin + block];
  }
  /** Row of k that holds the first key of a block. */
  __device__ int64_t key_row(const Segment& segment, int block, int page) const {
    if (pages == nullptr) return int64_t{segment.k_begin} + int64_t{block} * kBlockKeys;
    return fault.checked_index(segment.k_begin + block, page, pages_of) * kBlockKeys;
  }
  /** Whether row `n` belongs to a segment; `column` 0 looks at queries, 2 at keys. */
  __device__ bool covers(int n, int column) const {
    int low = 0, high = count;  // segments before `low` begin at n or before, those from `high` on after it
    while (low < high) {
      const int middle = (low + high) / 2;
      if (segments[int64_t{4} * middle + column] <= n) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low > 0 && n < segments[int64_t{4} * (low - 1) + column + 1];
  }
};

/** The tensors of a call that say which query sees which key; `pages` may be null. */
struct Tables {
  const View &q, &k, &segments;
  const View* pages;
};
Sequences sequences_of(const Args& a, const char* op, const Tables& tables, bool own_keys);
/** Throws ERR_SHAPE unless H is a multiple of K. */
Geometry geometry_of(const char* op, const Tables& tables, double window);

/** Index in [N, H] of a row. */
__device__ __forceinline__ int64_t row_index(const Geometry& g, const Segment& segment, int kv_head, int row) {
  return (int64_t{segment.q_begin} + row / g.group) * g.H + int64_t{kv_head} * g.group + row % g.group;
}

// ---- units ----------------------------------------------------------------------------------------------------------

struct Unit {
  int segment, tile;
};

/** How sequences are cut: into tiles of `size` rows, or with `by_keys` of `size` keys. */
struct Cut {
  bool by_keys;
  int size;
  int least_rows;  // segments with fewer rows have no units
};

/** The units of all segments in device memory, those with most work first. Their number is known to the device alone:
 *  blocks are started for `most` of them, and those from *count on have nothing to do. */
class UnitList {
 public:
  UnitList(const Args& a, const Sequences& sequences, const Geometry& geometry, const Cut& cut);
  struct Given {
    const Unit* units;
    const int* count;
  };
  Given given() const { return {list_.as<Unit>(), count_.as<int>()}; }
  /** One block for every unit and key/value head. */
  unsigned blocks(const Geometry& geometry) const { return static_cast<unsigned>(most_ * geometry.K); }

 private:
  int most_;
  Scratch list_, ends_, count_;
};

/** The unit of this block, whose key/value head is blockIdx.x % K; false when there is none. The same for all threads
 *  of the block. */
__device__ __forceinline__ bool unit_of_block(const UnitList::Given& list, const Geometry& g, Unit* unit) {
  const int index = static_cast<int>(blockIdx.x) / g.K;
  if (index >= *list.count) return false;
  *unit = list.units[index];
  return true;
}

// ---- rows outside all segments --------------------------------------------------------------------------------------

/** Rows that one block looks after. */
constexpr int kGapRows = 64;

/** Writes `value` to the `width` elements at to + n * stride for the rows [begin, begin + kGapRows) of the `rows` that
 *  no segment covers. A warp looks 32 rows up at a time, a lane each: nearly all rows are covered, and a search is a
 *  chain of loads. */
template <typename T>
__device__ void fill_gap_rows(const Sequences& sequences, int column, int64_t begin, int64_t rows, T* to,
                              int64_t stride, int width, T value) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int64_t first = begin + threadIdx.x / 32 * 32; first < begin + kGapRows && first < rows; first += warps * 32) {
    const bool is_gap = first + lane < rows && !sequences.covers(static_cast<int>(first) + lane, column);
    for (unsigned gaps = __ballot_sync(0xffffffffu, is_gap); gaps != 0; gaps &= gaps - 1) {
      T* row = to + (first + __ffs(static_cast<int>(gaps)) - 1) * stride;
      for (int i = lane; i < width; i += 32) row[i] = value;
    }
  }
}

inline unsigned gap_blocks(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, kGapRows)); }

}  // namespace caravan::cuda::attention_detail
