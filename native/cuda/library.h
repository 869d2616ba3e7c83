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

/** cuBLASLt 13 or 12, searched once: CARAVAN_CUDA_LIBS, the system's search path, CUDA_HOME, then the packages of
 * Python: of VIRTUAL_ENV, of CONDA_PREFIX, the user's, the system's. */
const Library& cublas_lt_library();

/** NCCL 2, searched for in the same places. */
const Library& nccl_library();
/** What a library that was found says of itself: 2.27.3. */
std::string nccl_version(const Library& library);

}  // namespace caravan::cuda
