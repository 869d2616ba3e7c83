// Working memory of kernels. It stands apart from core/device.h, which the kernel files would otherwise compile with
// all of its containers.
#pragma once
#include "core/types.h"

namespace caravan {

/** Working memory of a kernel for the length of one call, from the device's allocator (so the budget holds). */
class Scratch {
 public:
  Scratch(Device& device, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device& device_;
  void* data_;
};

}  // namespace caravan
