// Caching allocator for one device: best fit over large segments, split and coalesced, with a budget. Segments grow
// with what is reserved, since blocks that lie in different ones never become one again: in segments of 32 MiB, each
// of which held one tensor of 17, a model of 500 million parameters took a fifth more memory than it used.
// Used by the queue thread alone; the counters may be read from any thread.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <unordered_map>

namespace caravan {

/** Where segments come from: mmap on the CPU, the driver on a GPU. `map` returns null when there is no memory. */
struct SegmentSource {
  std::function<void*(size_t)> map;
  std::function<void(void*, size_t)> unmap;
  size_t alignment = 64;  // of every block; a power of two, no larger than that of a segment
  /** A segment has at least the reserved bytes divided by this: 1 where memory that is not written costs nothing. */
  size_t growth = 8;
};

class CachingAllocator {
 public:
  static constexpr size_t kSegmentBytes = size_t{32} << 20;

  CachingAllocator(SegmentSource source, size_t budget_bytes);
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  /** Memory with the alignment of the source, or null when the budget (or the machine) cannot serve it. */
  void* allocate(size_t bytes);
  void release(void* pointer);
  /** Gives every wholly free segment back. */
  void trim();
  /** For tests: the n-th allocation from now on fails as if there were no memory, once; 0 calls it off. */
  void fail_allocation(uint64_t n) { allocations_to_failure_ = n; }

  size_t live_bytes() const { return live_bytes_.load(std::memory_order_relaxed); }
  size_t peak_bytes() const { return peak_bytes_.load(std::memory_order_relaxed); }
  size_t reserved_bytes() const { return reserved_bytes_.load(std::memory_order_relaxed); }
  size_t budget_bytes() const { return budget_bytes_; }
  void reset_peak() { peak_bytes_.store(live_bytes(), std::memory_order_relaxed); }

 private:
  struct Block {
    size_t bytes;
    bool free;
    char* segment;
  };
  using Blocks = std::map<char*, Block>;

  bool add_segment(size_t bytes);
  bool map_segment(size_t bytes);
  void insert_free(Blocks::iterator block);
  Blocks::iterator merge_with_next(Blocks::iterator block);

  SegmentSource source_;
  size_t budget_bytes_;
  uint64_t allocations_to_failure_ = 0;
  Blocks blocks_;                                    // every block by address; neighbours share a segment
  std::set<std::pair<size_t, char*>> free_by_size_;  // best fit, lowest address first: deterministic
  std::unordered_map<char*, size_t> segments_;
  std::atomic<size_t> live_bytes_{0};
  std::atomic<size_t> peak_bytes_{0};
  std::atomic<size_t> reserved_bytes_{0};
};

}  // namespace caravan
