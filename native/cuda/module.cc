// The module's one exported symbol.
#include <cstdlib>
#include <cstring>

#include "core/backend.h"
#include "cuda/attention_form.h"
#include "cuda/device.h"
#include "cuda/library.h"
#include "cuda/ranges.h"

namespace caravan::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/** Oldest compute capability with bf16 tensor cores and asynchronous copies. */
constexpr int kLeastCapability = 80;

std::vector<DeviceFacts> devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return cudaGetLastError(), std::vector<DeviceFacts>{};
  std::vector<DeviceFacts> found;
  for (int i = 0; i < count; i++) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, i), "properties");
    found.push_back({properties.name, properties.totalGlobalMem, properties.major * 10 + properties.minor});
  }
  return found;
}

std::string unavailable() {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "no NVIDIA driver answers (install the driver; nvidia-smi shows it)";
  // Minor versions of one major version work together.
  if (driver / 1000 < runtime / 1000) {
    return "the NVIDIA driver supports CUDA " + version_text(driver) + ", this build needs " +
           version_text(runtime / 1000 * 1000) + " or newer: update the driver";
  }
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return std::string("the driver reports: ") + cudaGetErrorString(error);
  }
  if (count == 0) return "the driver sees no GPU (CUDA_VISIBLE_DEVICES hides them when it is empty)";
  std::string all;
  for (const DeviceFacts& device : devices()) {
    if (device.capability >= kLeastCapability) return "";
    all += (all.empty() ? "" : ", ") + device.name + " (" + std::to_string(device.capability / 10) + "." +
           std::to_string(device.capability % 10) + ")";
  }
  return "compute capability 8.0 or newer is needed; found " + all;
}

/** Found out by a kernel, where there is a GPU to run it. */
std::string attention_finding() {
  if (!unavailable().empty()) return "";
  try {
    return attention_form().reason;
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::vector<Finding> findings() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  std::vector<Finding> found = {{"CUDA", "built with " + version_text(runtime)}};
  found.push_back({"driver", driver == 0 ? "none" : "CUDA " + version_text(driver)});
  found.push_back({"NVTX", ranges_finding()});
  const char* products = std::getenv("CARAVAN_CUDA_GEMM");
  if (products != nullptr && std::strcmp(products, "own") == 0) {
    found.push_back({"cuBLASLt", "not asked for: CARAVAN_CUDA_GEMM=own"});
  } else {
    const Library& blas = cublas_lt_library();
    found.push_back({"cuBLASLt", blas.handle != nullptr ? blas.path : blas.reason + "; own matrix products are used"});
  }
  const std::string attention = attention_finding();
  if (!attention.empty()) found.push_back({"attention", attention});
  const Library& nccl = nccl_library();
  found.push_back({"NCCL", nccl.handle != nullptr ? nccl_version(nccl) + ", " + nccl.path : nccl.reason});
  return found;
}

std::unique_ptr<Device> open(int ordinal, size_t budget_bytes) {
  const std::string reason = unavailable();
  if (!reason.empty()) fail("ERR_DEVICE", "CUDA is not available: %s", reason.c_str());
  const std::vector<DeviceFacts> all = devices();
  if (ordinal < 0 || static_cast<size_t>(ordinal) >= all.size()) {
    fail("ERR_DEVICE", "there is no CUDA device %d: the driver sees %zu, from 0 on", ordinal, all.size());
  }
  if (all[static_cast<size_t>(ordinal)].capability < kLeastCapability) {
    fail("ERR_DEVICE", "CUDA device %d (%s) has a compute capability below 8.0", ordinal,
         all[static_cast<size_t>(ordinal)].name.c_str());
  }
  return std::make_unique<CudaDevice>(ordinal, budget_bytes);
}

}  // namespace
}  // namespace caravan::cuda

extern "C" __attribute__((visibility("default"))) const caravan::Backend* caravan_backend() {
  using namespace caravan;
  static const Backend backend = {Backend::kVersion, "cuda",         cuda::kernel_rows(), cuda::unavailable,
                                  cuda::devices,     cuda::findings, cuda::open};
  return &backend;
}
