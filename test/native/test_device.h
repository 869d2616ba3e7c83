// A device for native tests: host memory and nothing else.
#pragma once
#include <cstdlib>
#include <cstring>

#include "core/device.h"

class TestDevice final : public caravan::Device {
 public:
  TestDevice()
      : allocator_({[](size_t bytes) { return std::aligned_alloc(64, bytes); }, [](void* p, size_t) { std::free(p); }},
                   size_t{2} << 30) {}
  const char* kind() const override { return "cpu"; }
  caravan::CachingAllocator& allocator() override { return allocator_; }
  void copy_in(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void copy_out(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  const caravan::KernelRow* find_kernel(const std::string&) const override { return nullptr; }
  void synchronize() override {}
  void cancel() override {}

 private:
  caravan::CachingAllocator allocator_;
};
