#include "core/scratch.h"

#include <algorithm>

#include "core/device.h"
#include "core/error.h"

namespace caravan {

void* HeldScratch::take(size_t bytes) {
  // A small workspace must not occupy a block that a large one beside it will ask for.
  constexpr size_t kSmall = size_t{64} << 10;
  const size_t most = 4 * std::max(bytes, kSmall);
  Block* best = nullptr;
  for (Block& block : blocks_) {
    const bool fits = !block.taken && block.bytes >= bytes && block.bytes <= most;
    if (fits && (best == nullptr || block.bytes < best->bytes)) best = &block;
  }
  if (best == nullptr) {
    void* data = allocator_.allocate(bytes);
    if (data == nullptr) return nullptr;
    best = &blocks_.emplace_back(Block{data, bytes, false});
  }
  best->taken = true;
  return best->data;
}

void HeldScratch::give(void* data) {
  for (Block& block : blocks_) {
    if (block.data == data) block.taken = false;
  }
}

void HeldScratch::release() {
  for (const Block& block : blocks_) allocator_.release(block.data);
  blocks_.clear();
}

Scratch::Scratch(Device& device, size_t bytes)
    : device_(device),
      data_(device.held_scratch() != nullptr ? device.held_scratch()->take(bytes)
                                             : device.allocator().allocate(bytes)) {
  if (data_ == nullptr) {
    CachingAllocator& memory = device.allocator();
    fail("ERR_OOM", "no memory for %zu bytes of kernel workspace: %zu bytes are in use, the limit is %zu", bytes,
         memory.live_bytes(), memory.budget_bytes());
  }
}

Scratch::~Scratch() {
  if (device_.held_scratch() != nullptr) {
    device_.held_scratch()->give(data_);
  } else {
    device_.allocator().release(data_);
  }
}

}  // namespace caravan
