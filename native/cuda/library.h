// Libraries of NVIDIA that are used when they are installed and never needed to build or to load.
#pragma once
#include <string>

namespace caravan::cuda {

/** A library found at run time, or why none was. */
struct Library {
  void* handle = nullptr;
  std::string path;
  std::string reason;
};

/** cuBLASLt 12 or 13, searched once: CARAVAN_CUDA_LIBS, the system's search path, CUDA_HOME, the site-packages of
 *  VIRTUAL_ENV and of `python3`. */
const Library& cublas_lt_library();

}  // namespace caravan::cuda
