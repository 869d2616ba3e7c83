#include "core/scratch.h"

#include "core/device.h"
#include "core/error.h"

namespace caravan {

Scratch::Scratch(Device& device, size_t bytes) : device_(device), data_(device.allocator().allocate(bytes)) {
  if (data_ == nullptr) {
    CachingAllocator& memory = device.allocator();
    fail("ERR_OOM", "no memory for %zu bytes of kernel workspace: %zu bytes are in use, the limit is %zu", bytes,
         memory.live_bytes(), memory.budget_bytes());
  }
}

Scratch::~Scratch() {
  if (device_.held_scratch() != nullptr) {
    device_.held_scratch()->push_back(data_);
  } else {
    device_.allocator().release(data_);
  }
}

}  // namespace caravan
