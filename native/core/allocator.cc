#include "core/allocator.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace caravan {

namespace {
size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
}  // namespace

CachingAllocator::CachingAllocator(SegmentSource source, size_t budget_bytes)
    : source_(std::move(source)), budget_bytes_(budget_bytes) {}

CachingAllocator::~CachingAllocator() {
  for (auto& [segment, bytes] : segments_) source_.unmap(segment, bytes);
}

void* CachingAllocator::allocate(size_t bytes) {
  if (allocations_to_failure_ > 0 && --allocations_to_failure_ == 0) return nullptr;
  size_t wanted = round_up(std::max<size_t>(bytes, 1), source_.alignment);
  auto fit = free_by_size_.lower_bound({wanted, nullptr});
  if (fit == free_by_size_.end()) {
    if (!add_segment(wanted)) return nullptr;
    fit = free_by_size_.lower_bound({wanted, nullptr});
  }
  auto block = blocks_.find(fit->second);
  free_by_size_.erase(fit);
  if (block->second.bytes > wanted) {
    char* rest = block->first + wanted;
    auto tail = blocks_.emplace(rest, Block{block->second.bytes - wanted, true, block->second.segment}).first;
    block->second.bytes = wanted;
    insert_free(tail);
  }
  block->second.free = false;
  size_t live = live_bytes_.fetch_add(wanted, std::memory_order_relaxed) + wanted;
  if (live > peak_bytes_.load(std::memory_order_relaxed)) peak_bytes_.store(live, std::memory_order_relaxed);
  return block->first;
}

void CachingAllocator::release(void* pointer) {
  auto block = blocks_.find(static_cast<char*>(pointer));
  live_bytes_.fetch_sub(block->second.bytes, std::memory_order_relaxed);
  block->second.free = true;
  block = merge_with_next(block);
  if (block != blocks_.begin()) {
    auto before = std::prev(block);
    if (before->second.free && before->second.segment == block->second.segment) {
      free_by_size_.erase({before->second.bytes, before->first});
      before->second.bytes += block->second.bytes;
      blocks_.erase(block);
      block = before;
    }
  }
  insert_free(block);
}

void CachingAllocator::insert_free(Blocks::iterator block) {
  free_by_size_.insert({block->second.bytes, block->first});
}

/** Absorbs the following block when it is free and of the same segment. Does not touch `block`'s own index entry. */
CachingAllocator::Blocks::iterator CachingAllocator::merge_with_next(Blocks::iterator block) {
  auto next = std::next(block);
  if (next == blocks_.end() || next->second.segment != block->second.segment) return block;
  if (!next->second.free) return block;
  free_by_size_.erase({next->second.bytes, next->first});
  block->second.bytes += next->second.bytes;
  blocks_.erase(next);
  return block;
}

/** A segment as large as is of use, else as large as the budget allows, else just large enough. */
bool CachingAllocator::add_segment(size_t bytes) {
  const size_t useful = round_up(std::max({bytes, kSegmentBytes, reserved_bytes() / source_.growth}), size_t{2} << 20);
  if (reserved_bytes() + useful <= budget_bytes_ && map_segment(useful)) return true;
  trim();
  const size_t least = round_up(bytes, size_t{4} << 10);
  if (reserved_bytes() + least > budget_bytes_) return false;
  const size_t left = (budget_bytes_ - reserved_bytes()) & ~((size_t{4} << 10) - 1);
  return map_segment(std::min(useful, left)) || map_segment(least);
}

bool CachingAllocator::map_segment(size_t bytes) {
  void* memory = source_.map(bytes);
  if (memory == nullptr) return false;
  char* segment = static_cast<char*>(memory);
  segments_.emplace(segment, bytes);
  reserved_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  insert_free(blocks_.emplace(segment, Block{bytes, true, segment}).first);
  return true;
}

void CachingAllocator::trim() {
  std::vector<char*> idle;
  for (auto& [segment, bytes] : segments_) {
    auto block = blocks_.find(segment);
    if (block->second.free && block->second.bytes == bytes) idle.push_back(segment);
  }
  for (char* segment : idle) {
    size_t bytes = segments_.at(segment);
    free_by_size_.erase({bytes, segment});
    blocks_.erase(segment);
    segments_.erase(segment);
    reserved_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
    source_.unmap(segment, bytes);
  }
}

}  // namespace caravan
