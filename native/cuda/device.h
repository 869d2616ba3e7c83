// A GPU as a device: one stream, memory from the driver behind the caching allocator, uploads through pinned memory.
// All work of the device runs on its one stream in the order of the command queue, so a block of memory may be given to
// a later command as soon as the earlier one has been enqueued.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "cuda/cublas_lt.h"
#include "cuda/fault.h"
#include "cuda/launch.h"
#include "cuda/ranges.h"

namespace caravan::cuda {

/** Pinned memory through which host bytes go to the device, in slots that are used in turns. */
class Staging {
 public:
  explicit Staging(cudaStream_t stream);
  ~Staging();
  /** Copies to the device in stream order; `from` may be reused when this returns. */
  void copy_in(void* to, const void* from, size_t bytes);
  /** Copies to the host, at least one byte; returns when the bytes are there, and all work before them is done. */
  void copy_out(void* to, const void* from, size_t bytes);

 private:
  static constexpr size_t kSlotBytes = size_t{1} << 20;
  static constexpr int kSlots = 8;
  cudaStream_t stream_;
  char* memory_ = nullptr;
  std::vector<cudaEvent_t> done_;
  int next_ = 0;
};

/** Pinned memory into which small results are copied while the stream goes on, a slot for each read under way. */
class Readback {
 public:
  static constexpr size_t kSlotBytes = size_t{64} << 10;

  struct Slot {
    char* memory;
    cudaEvent_t done;
    bool taken;
  };

  Readback();
  ~Readback();
  /** A slot that is free, taken now; null when all are in use. */
  Slot* take();

 private:
  static constexpr int kSlots = 8;
  char* memory_ = nullptr;
  std::vector<Slot> slots_;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, size_t budget_bytes);
  ~CudaDevice() override;

  const char* kind() const override { return "cuda"; }
  CachingAllocator& allocator() override { return *allocator_; }
  void copy_in(void* device_memory, const void* host_memory, size_t bytes) override;
  void copy_out(void* host_memory, const void* device_memory, size_t bytes) override;
  std::unique_ptr<DeviceRead> start_read(const std::vector<ReadPart>& parts) override;
  const KernelRow* find_kernel(const std::string& op) const override;
  void synchronize() override;
  void attach() override;
  void cancel() override {}
  bool captures() const override { return true; }
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& body) override;

  bool names_ranges() const override { return ranges_ != nullptr; }
  void begin_range(const char* name) override {
    if (ranges_ != nullptr) ranges_->begin(name);
  }
  void end_range() override {
    if (ranges_ != nullptr) ranges_->end();
  }

  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  Fault* fault() const { return fault_; }
  /** Throws what a kernel has noted, once all others have run, which may be noting something. */
  void throw_fault();
  const GemmChoice& gemm() const { return gemm_; }
  /** Whether what runs now is recorded in a graph whose kernels may be started early. */
  bool chains() const { return capturing_ && can_chain_; }

 private:
  void report_fault();
  void refuse_while_capturing() const;

  int ordinal_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t idle_ = nullptr;
  bool capturing_ = false;
  bool can_chain_ = false;
  int multiprocessors_ = 1;
  Fault* fault_ = nullptr;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<Readback> readback_;
  std::unique_ptr<CachingAllocator> allocator_;
  GemmChoice gemm_;
  std::unique_ptr<Ranges> ranges_ = Ranges::wanted();
  std::unordered_map<std::string, const KernelRow*> kernels_;
};

CudaDevice& device_of(const Args& a);

/** The rows of every kernel file of this module. */
KernelSpan kernel_rows();

}  // namespace caravan::cuda
