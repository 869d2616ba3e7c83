// The CPU as a device: memory from mmap, kernels of the best instruction set that this processor has, own threads.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>

#include "core/device.h"
#include "cpu/thread_pool.h"

namespace caravan {

class CpuDevice final : public Device {
 public:
  /** `isa` is a name of isa_levels() or empty for the best supported. Throws ERR_DEVICE for one this CPU lacks. */
  CpuDevice(int threads, size_t budget_bytes, const std::string& isa);
  ~CpuDevice() override;

  const char* kind() const override { return "cpu"; }
  CachingAllocator& allocator() override { return allocator_; }
  void copy_in(void* device_memory, const void* host_memory, size_t bytes) override;
  void copy_out(void* host_memory, const void* device_memory, size_t bytes) override;
  const KernelRow* find_kernel(const std::string& op) const override;
  void synchronize() override {}
  void cancel() override { pool_.cancel(); }

  ThreadPool& pool() { return pool_; }
  const std::string& isa() const { return isa_; }

 private:
  CachingAllocator allocator_;
  ThreadPool pool_;
  std::string isa_;
  std::unordered_map<std::string, const KernelRow*> kernels_;
};

}  // namespace caravan
