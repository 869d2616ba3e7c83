// What a device must offer. Kernels are not virtual methods but rows of the kernel table, so that a new op never edits
// this interface.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/types.h"

namespace caravan {

/** Work that a device has recorded, to be started again as a whole. */
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  virtual void launch() = 0;
};

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
  /** Whether capture() works here and is worth it. */
  virtual bool captures() const { return false; }
  /** Records the work that `body` starts, without running it. */
  virtual std::unique_ptr<DeviceGraph> capture(const std::function<void()>&) { return nullptr; }

  /** While set, workspaces of kernels are not released but added to this list. */
  void hold_scratch(std::vector<void*>* list) { held_scratch_ = list; }
  std::vector<void*>* held_scratch() const { return held_scratch_; }

 private:
  std::vector<void*>* held_scratch_ = nullptr;
};

}  // namespace caravan
