#include "cuda/device.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "cuda/chain.h"
#include "cuda/cublas_lt.h"

extern "C" {
extern const caravan::KernelRow __start_crv_kernels_cuda[];
extern const caravan::KernelRow __stop_crv_kernels_cuda[];
}

namespace caravan::cuda {

namespace {

/** Memory of the driver begins at multiples of this, and what a library asks of a workspace is no more. */
constexpr size_t kBlockAlignment = 256;

/** A lack of memory is an answer; any other error is the device's, often that of an earlier kernel. */
void* map_segment(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaSuccess) return memory;
  if (error != cudaErrorMemoryAllocation) check(error, "memory");
  cudaGetLastError();
  return nullptr;
}

/** Whether the work before an event has ended, with an error or without. */
bool is_over(cudaEvent_t event) {
  if (cudaEventQuery(event) != cudaErrorNotReady) return true;
  cudaGetLastError();  // "not ready" is kept as an error, too, and the next launch would report it
  return false;
}

/** Waits for an event: awake at first, since a decoding step ends soon and a thread takes long to wake, then asleep. */
void wait_for(cudaEvent_t event, const char* what) {
  constexpr auto kAwake = std::chrono::milliseconds(10);
  const auto begun = std::chrono::steady_clock::now();
  while (!is_over(event) && std::chrono::steady_clock::now() - begun < kAwake) std::this_thread::yield();
  check(cudaEventSynchronize(event), what);
}

size_t usable_bytes(size_t wanted) {
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory of the device");
  if (wanted > total_bytes) {
    fail("ERR_CONFIG", "a memory budget of %zu bytes on a device with %zu bytes", wanted, total_bytes);
  }
  return wanted != 0 ? wanted : free_bytes / 10 * 9;
}

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(cudaStream_t stream, cudaGraph_t graph) : stream_(stream) {
    check(cudaGraphInstantiate(&executable_, graph, 0), "graph");
  }
  ~CudaGraph() override {
    cudaStreamSynchronize(stream_);
    cudaGraphExecDestroy(executable_);
  }
  void launch() override { check(cudaGraphLaunch(executable_, stream_), "graph"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

size_t padded(size_t bytes) { return (bytes + 15) / 16 * 16; }

class CudaRead final : public DeviceRead {
 public:
  CudaRead(CudaDevice& device, Readback::Slot& slot, std::vector<ReadPart> parts)
      : device_(device), slot_(slot), parts_(std::move(parts)) {
    char* at = slot_.memory;
    for (const ReadPart& part : parts_) {
      const cudaStream_t stream = device_.stream();
      check(cudaMemcpyAsync(at, part.from, part.bytes, cudaMemcpyDeviceToHost, stream), "download");
      at += padded(part.bytes);
    }
    check(cudaEventRecord(slot_.done, device_.stream()), "download");
  }
  ~CudaRead() override { slot_.taken = false; }
  bool ready() override { return is_over(slot_.done); }
  void finish() override {
    wait_for(slot_.done, "download");
    device_.throw_fault();
    const char* at = slot_.memory;
    for (const ReadPart& part : parts_) {
      std::memcpy(part.to, at, part.bytes);
      at += padded(part.bytes);
    }
  }

 private:
  CudaDevice& device_;
  Readback::Slot& slot_;
  std::vector<ReadPart> parts_;
};

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report it again as its own
  const char* code = error == cudaErrorMemoryAllocation ? "ERR_OOM" : "ERR_DEVICE";
  fail(code, "CUDA %s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

CudaDevice& device_of(const Args& a) { return static_cast<CudaDevice&>(a.device); }
cudaStream_t stream_of(const Args& a) { return device_of(a).stream(); }
void copy_out(const Args& a, void* host_memory, const void* device_memory, size_t bytes) {
  a.device.copy_out(host_memory, device_memory, bytes);
}
int multiprocessors(const Args& a) { return device_of(a).multiprocessors(); }
bool chains(const Args& a) { return device_of(a).chains(); }
FaultReport fault_report(const Args& a, const char* op) { return {device_of(a).fault(), op}; }
KernelSpan kernel_rows() { return {__start_crv_kernels_cuda, __stop_crv_kernels_cuda}; }

Staging::Staging(cudaStream_t stream) : stream_(stream) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, kSlotBytes * kSlots, 0), "pinned memory");
  memory_ = static_cast<char*>(memory);
  for (int i = 0; i < kSlots; i++) {
    cudaEvent_t event;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "event");
    done_.push_back(event);
  }
}

Staging::~Staging() {
  for (cudaEvent_t event : done_) cudaEventDestroy(event);
  cudaFreeHost(memory_);
}

void Staging::copy_in(void* to, const void* from, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const size_t n = std::min(kSlotBytes, bytes - done);
    char* slot = memory_ + static_cast<size_t>(next_) * kSlotBytes;
    const cudaEvent_t event = done_[static_cast<size_t>(next_)];
    next_ = (next_ + 1) % kSlots;
    check(cudaEventSynchronize(event), "upload");
    std::memcpy(slot, static_cast<const char*>(from) + done, n);
    check(cudaMemcpyAsync(static_cast<char*>(to) + done, slot, n, cudaMemcpyHostToDevice, stream_), "upload");
    check(cudaEventRecord(event, stream_), "upload");
    done += n;
  }
}

void Staging::copy_out(void* to, const void* from, size_t bytes) {
  // Half of the slots are on their way while the other half is copied out of.
  // Uploads that still read the slots come before them on the stream.
  constexpr size_t kHalf = kSlotBytes * kSlots / 2;
  next_ = 0;
  cudaEvent_t events[2] = {done_[0], done_[1]};
  auto start = [&](size_t part) {
    const size_t begin = part * kHalf;
    if (begin >= bytes) return;
    const size_t n = std::min(kHalf, bytes - begin);
    check(cudaMemcpyAsync(memory_ + part % 2 * kHalf, static_cast<const char*>(from) + begin, n, cudaMemcpyDeviceToHost,
                          stream_),
          "download");
    check(cudaEventRecord(events[part % 2], stream_), "download");
  };
  start(0);
  for (size_t part = 0; part * kHalf < bytes; part++) {
    start(part + 1);
    wait_for(events[part % 2], "download");
    const size_t begin = part * kHalf;
    std::memcpy(static_cast<char*>(to) + begin, memory_ + part % 2 * kHalf, std::min(kHalf, bytes - begin));
  }
}

Readback::Readback() {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, kSlotBytes * kSlots, 0), "pinned memory");
  memory_ = static_cast<char*>(memory);
  for (int i = 0; i < kSlots; i++) {
    cudaEvent_t event;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "event");
    slots_.push_back({memory_ + static_cast<size_t>(i) * kSlotBytes, event, false});
  }
}

Readback::~Readback() {
  for (const Slot& slot : slots_) cudaEventDestroy(slot.done);
  cudaFreeHost(memory_);
}

Readback::Slot* Readback::take() {
  for (Slot& slot : slots_) {
    if (slot.taken) continue;
    slot.taken = true;
    return &slot;
  }
  return nullptr;
}

CudaDevice::CudaDevice(int ordinal, size_t budget_bytes) : ordinal_(ordinal) {
  attach();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  check(cudaEventCreateWithFlags(&idle_, cudaEventDisableTiming | cudaEventBlockingSync), "event");
  check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, ordinal), "multiprocessors");
  int capability = 0;
  check(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, ordinal), "capability");
  const char* chains = std::getenv("CARAVAN_CUDA_CHAINS");
  can_chain_ = capability == 9 && (chains == nullptr || std::string(chains) != "off");
  void* fault = nullptr;
  check(cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocMapped), "pinned memory");
  fault_ = new (fault) Fault{};
  staging_ = std::make_unique<Staging>(stream_);
  readback_ = std::make_unique<Readback>();
  const SegmentSource segments = {map_segment, [](void* memory, size_t) { cudaFree(memory); }, kBlockAlignment};
  allocator_ = std::make_unique<CachingAllocator>(segments, usable_bytes(budget_bytes));
  gemm_ = chosen_gemm();
  const KernelSpan rows = kernel_rows();
  for (const KernelRow* row = rows.begin; row != rows.end; row++) kernels_[row->op] = row;
}

CudaDevice::~CudaDevice() {
  cudaSetDevice(ordinal_);
  cudaStreamSynchronize(stream_);
  gemm_.library.reset();
  staging_.reset();
  readback_.reset();
  allocator_.reset();
  cudaFreeHost(fault_);
  cudaEventDestroy(idle_);
  cudaStreamDestroy(stream_);
}

void CudaDevice::attach() { check(cudaSetDevice(ordinal_), "device"); }

void CudaDevice::copy_in(void* device_memory, const void* host_memory, size_t bytes) {
  refuse_while_capturing();
  staging_->copy_in(device_memory, host_memory, bytes);
}

void CudaDevice::copy_out(void* host_memory, const void* device_memory, size_t bytes) {
  refuse_while_capturing();
  if (bytes == 0) return synchronize();
  note_wait();
  staging_->copy_out(host_memory, device_memory, bytes);
  report_fault();
}

std::unique_ptr<DeviceRead> CudaDevice::start_read(const std::vector<ReadPart>& parts) {
  refuse_while_capturing();
  size_t bytes = 0;
  for (const ReadPart& part : parts) bytes += padded(part.bytes);
  if (bytes > Readback::kSlotBytes) return nullptr;
  Readback::Slot* slot = readback_->take();
  if (slot == nullptr) return nullptr;
  try {
    return std::make_unique<CudaRead>(*this, *slot, parts);
  } catch (...) {
    slot->taken = false;
    throw;
  }
}

const KernelRow* CudaDevice::find_kernel(const std::string& op) const {
  auto found = kernels_.find(op);
  return found == kernels_.end() ? nullptr : found->second;
}

/** Not for the driver to find out: an event that was recorded on the way would be of no use ever after. */
void CudaDevice::refuse_while_capturing() const {
  if (capturing_) fail("ERR_DEVICE", "work that waits for the host cannot be recorded in a graph");
}

void CudaDevice::synchronize() {
  refuse_while_capturing();
  note_wait();
  check(cudaEventRecord(idle_, stream_), "wait");
  wait_for(idle_, "wait");
  report_fault();
}

std::unique_ptr<DeviceGraph> CudaDevice::capture(const std::function<void()>& body) {
  // Relaxed: the allocator may ask the driver for another segment on the way.
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "capture");
  cudaGraph_t graph = nullptr;
  capturing_ = true;
  try {
    body();
    capturing_ = false;
  } catch (...) {
    capturing_ = false;
    cudaStreamEndCapture(stream_, &graph);
    cudaGetLastError();
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_, &graph), "capture");
  std::unique_ptr<DeviceGraph> made;
  try {
    made = std::make_unique<CudaGraph>(stream_, graph);
  } catch (...) {
    cudaGraphDestroy(graph);
    throw;
  }
  cudaGraphDestroy(graph);
  return made;
}

void CudaDevice::throw_fault() {
  if (*const_cast<const volatile unsigned*>(&fault_->kind) != 0) synchronize();
}

void CudaDevice::report_fault() {
  const Fault found = *fault_;
  if (found.kind == 0) return;
  *fault_ = Fault{};
  if (static_cast<FaultKind>(found.kind) == FaultKind::kSegment) {
    fail("ERR_SHAPE", "%s: segment %lld does not lie in its rows: it ends at %lld, there are %lld", found.op,
         found.position, found.value, found.limit);
  }
  if (static_cast<FaultKind>(found.kind) == FaultKind::kRule) {
    std::string given;
    for (int i = 0; i < found.given_count; i++) {
      char number[32];
      std::snprintf(number, sizeof(number), "%s%g", i == 0 ? "" : ", ", found.given[i]);
      given += number;
    }
    fail("ERR_DATA", "%s: %s[%lld] = (%s) must be %s", found.op, found.rule.subject, found.position, given.c_str(),
         found.rule.text);
  }
  if (static_cast<FaultKind>(found.kind) == FaultKind::kCount) {
    fail("ERR_DATA", "%s: %lld rows have a target, not %lld, as the call says", found.op, found.value, found.limit);
  }
  fail("ERR_RANGE", "%s: entry %lld is %lld; allowed are 0 to %lld", found.op, found.position, found.value,
       found.limit - 1);
}

}  // namespace caravan::cuda
