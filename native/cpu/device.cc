#include "cpu/device.h"

#include <sys/mman.h>

#include <cstring>

#include "core/error.h"
#include "cpu/isa.h"

namespace caravan {

namespace {

void* map_segment(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

const IsaLevel& choose_isa(const std::string& wanted) {
  const IsaLevel* best = nullptr;
  std::string usable;
  for (const IsaLevel& level : isa_levels()) {
    if (level.kernels.begin == level.kernels.end || !level.supported()) continue;
    usable += (usable.empty() ? "" : ", ") + std::string(level.name);
    if (wanted.empty() || wanted == level.name) best = &level;
  }
  if (best == nullptr) {
    fail("ERR_DEVICE", "instruction set '%s' is not available on this processor; available: %s", wanted.c_str(),
         usable.c_str());
  }
  return *best;
}

}  // namespace

CpuDevice::CpuDevice(int threads, size_t budget_bytes, const std::string& isa)
    : allocator_({map_segment, [](void* memory, size_t bytes) { munmap(memory, bytes); }, 64, 1}, budget_bytes),
      pool_(threads) {
  const IsaLevel& level = choose_isa(isa);
  isa_ = level.name;
  for (const KernelRow* row = level.kernels.begin; row != level.kernels.end; row++) kernels_[row->op] = row;
}

CpuDevice::~CpuDevice() = default;

void CpuDevice::copy_in(void* device_memory, const void* host_memory, size_t bytes) {
  std::memcpy(device_memory, host_memory, bytes);
}

void CpuDevice::copy_out(void* host_memory, const void* device_memory, size_t bytes) {
  std::memcpy(host_memory, device_memory, bytes);
}

const KernelRow* CpuDevice::find_kernel(const std::string& op) const {
  auto found = kernels_.find(op);
  return found == kernels_.end() ? nullptr : found->second;
}

ThreadPool& pool_of(const Args& a) { return static_cast<CpuDevice&>(a.device).pool(); }

}  // namespace caravan
