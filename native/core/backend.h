// What a device module (caravan_cuda) offers to the engine: one exported function, found with dlopen, so that the addon
// runs on machines that lack the module, its driver or its libraries.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/kernel_registry.h"

namespace caravan {

/** One device that a module can open. */
struct DeviceFacts {
  std::string name;
  size_t total_bytes = 0;
  int capability = 0;  // 10 * major + minor
};

/** Something that a module looked for on this machine: a library, a driver. */
struct Finding {
  std::string name;
  std::string text;
};

struct Backend {
  static constexpr int kVersion = 3;
  int version;
  const char* kind;  // "cuda"
  KernelSpan kernels;
  /** Why nothing can be opened here; empty when something can. */
  std::string (*unavailable)();
  std::vector<DeviceFacts> (*devices)();
  /** For `doctor`: versions and libraries. */
  std::vector<Finding> (*findings)();
  /** Opens a device; `budget_bytes` 0 is nine tenths of its free memory. Throws Error. */
  std::unique_ptr<Device> (*open)(int ordinal, size_t budget_bytes);
};

/** Type of the exported symbol `caravan_backend`. */
using BackendFunction = const Backend* (*)();

}  // namespace caravan
