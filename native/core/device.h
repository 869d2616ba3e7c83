// What a device must offer. Kernels are not virtual methods but rows of the kernel table, so that a new op never edits
// this interface.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
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

/** A copy from the device to the host. */
struct ReadPart {
  void* to;
  const void* from;
  size_t bytes;
};

/** Copies to the host that are under way while the device and its thread go on. */
class DeviceRead {
 public:
  virtual ~DeviceRead() = default;
  /** Whether finish() would not wait. */
  virtual bool ready() = 0;
  /** Waits, and puts what was read where it was wanted; throws what went wrong in the work before it. Called once. */
  virtual void finish() = 0;
};

/** Workspaces of recorded work: they must stay where they are while it may be started again. Records run one after
 *  another, as the kernels in them do, so all share these blocks, and what a kernel gives back the next one takes. */
class HeldScratch {
 public:
  explicit HeldScratch(CachingAllocator& allocator) : allocator_(allocator) {}
  /** At least `bytes`, or null when there is no memory. */
  void* take(size_t bytes);
  void give(void* data);
  /** Returns all blocks to the allocator; none may be taken, and no record that used one be started again. */
  void release();

 private:
  struct Block {
    void* data;
    size_t bytes;
    bool taken;
  };
  CachingAllocator& allocator_;
  std::vector<Block> blocks_;
};

class Device {
 public:
  virtual ~Device() = default;

  /** "cpu" or "cuda": selects kernel rows. */
  virtual const char* kind() const = 0;
  virtual CachingAllocator& allocator() = 0;
  virtual void copy_in(void* device_memory, const void* host_memory, size_t bytes) = 0;
  virtual void copy_out(void* host_memory, const void* device_memory, size_t bytes) = 0;
  /** Begins to read, behind all work given so far; without parts it is only waited for. Null where this device would
   * have to wait at once: then copy_out and synchronize do it. */
  virtual std::unique_ptr<DeviceRead> start_read(const std::vector<ReadPart>&) { return nullptr; }
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

  /** Whether somebody watches who wants to know which work is which; only then are ranges begun. */
  virtual bool names_ranges() const { return false; }
  /** Names the work that the calling thread starts until end_range(). Ranges nest. */
  virtual void begin_range(const char*) {}
  virtual void end_range() {}

  /** How often the thread of the device has stood still until all work given before was done. */
  int64_t waits() const { return waits_.load(std::memory_order_relaxed); }

  /** While set, workspaces of kernels come from here. */
  void hold_scratch(HeldScratch* held) { held_scratch_ = held; }
  HeldScratch* held_scratch() const { return held_scratch_; }

 protected:
  void note_wait() { waits_.fetch_add(1, std::memory_order_relaxed); }

 private:
  HeldScratch* held_scratch_ = nullptr;
  std::atomic<int64_t> waits_{0};
};

/** Names work from here to the end of the block; nothing on null. */
class NamedRange {
 public:
  NamedRange(Device* device, const char* name) : device_(device) {
    if (device_ != nullptr) device_->begin_range(name);
  }
  ~NamedRange() {
    if (device_ != nullptr) device_->end_range();
  }
  NamedRange(const NamedRange&) = delete;
  NamedRange& operator=(const NamedRange&) = delete;

 private:
  Device* device_;
};

}  // namespace caravan
