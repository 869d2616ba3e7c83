// What a device must offer. Kernels are not virtual methods but rows of the kernel table, so that a new op never edits
// this interface.
#pragma once
#include <cstddef>
#include <string>

#include "core/allocator.h"
#include "core/types.h"

namespace caravan {

class Device {
 public:
  virtual ~Device() = default;

  /** "cpu" or "cuda": selects kernel rows. */
  virtual const char* kind() const = 0;
  virtual CachingAllocator& allocator() = 0;
  virtual void copy_in(void* device_memory, const void* host_memory, size_t bytes) = 0;
  virtual void copy_out(void* host_memory, const void* device_memory, size_t bytes) = 0;
  /** The kernel of `op`, or null. */
  virtual const KernelRow* find_kernel(const std::string& op) const = 0;
  /** Returns when all work given so far has finished; throws what went wrong in it. */
  virtual void synchronize() = 0;
  /** Called once by the thread that will call everything else. */
  virtual void attach() {}
  /** Asks a running kernel to return early; its results are then meaningless. */
  virtual void cancel() = 0;
};

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
