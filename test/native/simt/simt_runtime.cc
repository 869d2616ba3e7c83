#include <cuda.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

struct SimtGraph {
  std::vector<std::function<void()>> work;
};
/** What a copy to the host has read, on its way. */
struct LateCopy {
  void* to;
  std::vector<char> bytes;
};
struct SimtStream {
  SimtGraph* capture = nullptr;
  std::deque<LateCopy> late;
  size_t delivered = 0;  // of all late copies so far

  void deliver(size_t upto) {
    for (; delivered < upto; delivered++, late.pop_front()) {
      std::memcpy(late.front().to, late.front().bytes.data(), late.front().bytes.size());
    }
  }
  size_t begun() const { return delivered + late.size(); }
};
struct SimtEvent {
  std::chrono::steady_clock::time_point time;
  SimtStream* stream = nullptr;
  size_t copies = 0;  // of the stream, before this event
  int looks = 0;      // at it that find it not ready
};

namespace {

constexpr size_t kDeviceBytes = size_t{4} << 30;

std::mutex mutex;
std::unordered_map<void*, size_t> allocations;
size_t allocated = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string failure;

cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/** CARAVAN_SIMT_CAPABILITY: 90, or another compute capability to pretend to. */
int capability() {
  const char* wanted = std::getenv("CARAVAN_SIMT_CAPABILITY");
  return wanted == nullptr ? 90 : std::atoi(wanted);
}

/** Runs now, or later with the graph. */
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream->capture != nullptr) {
    stream->capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  try {
    work();
  } catch (const std::exception& error) {
    failure = error.what();
    return keep(cudaErrorLaunchFailure);
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorLaunchFailure:
      return failure.c_str();
    default:
      return "error";
  }
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess              ? "cudaSuccess"
         : error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure"
                                           : "cudaError";
}

cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return keep(cudaErrorInvalidValue);
  *properties = cudaDeviceProp{"SIMT emulation on the host", kDeviceBytes, capability() / 10, capability() % 10, 4};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 4
           : attribute == cudaDevAttrComputeCapabilityMajor ? capability() / 10
                                                            : 227 << 10;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : keep(cudaErrorInvalidValue); }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  *free_bytes = kDeviceBytes - allocated;
  *total_bytes = kDeviceBytes;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  if (allocated + bytes > kDeviceBytes) return keep(cudaErrorMemoryAllocation);
  *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*pointer == nullptr) return keep(cudaErrorMemoryAllocation);
  allocations[*pointer] = bytes;
  allocated += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  std::lock_guard<std::mutex> lock(mutex);
  auto found = allocations.find(pointer);
  if (found == allocations.end()) return pointer == nullptr ? cudaSuccess : keep(cudaErrorInvalidValue);
  allocated -= found->second;
  allocations.erase(found);
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *pointer == nullptr ? keep(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) { return std::free(pointer), cudaSuccess; }

/** Bytes that go to the host leave in stream order and arrive when an event behind them is over: until then there is
 *  rubbish. */
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToHost || stream->capture != nullptr) {
    return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  }
  const char* begin = static_cast<const char*>(from);
  stream->late.push_back({to, std::vector<char>(begin, begin + bytes)});
  std::memset(to, 0xa5, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = new SimtStream, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return stream->deliver(stream->begun()), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = new SimtEvent, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  constexpr int kLooks = 2;
  *event = {std::chrono::steady_clock::now(), stream, stream->begun(), kLooks};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  event->looks = 0;
  if (event->stream != nullptr) event->stream->deliver(event->copies);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->looks-- > 0 ? keep(cudaErrorNotReady) : cudaEventSynchronize(event);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  *ms = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->capture != nullptr) return keep(cudaErrorInvalidValue);
  stream->capture = new SimtGraph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new SimtGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->work) {
    const cudaError_t error = enqueue(stream, work);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }

cudaError_t simt_launch_body(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, const simt::Body* body) {
  const std::shared_ptr<const simt::Body> kept(body);
  return enqueue(stream,
                 [=] { simt::run({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes, *kept); });
}
