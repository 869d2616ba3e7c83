// Kernels that follow each other closely. A step of decoding is some hundred short kernels, each of which takes longer
// to start and to end than to compute. In a recorded graph such a kernel may be started while the one before it still
// runs: its blocks find their places, and then wait. On GPUs of compute capability 9.0; files that include this are
// compiled for it a second time (cmake/Cuda.cmake).
#pragma once
#include "cuda/launch.h"

namespace caravan::cuda {

/** Whether what runs now is recorded in a graph whose kernels may be started early. CARAVAN_CUDA_CHAINS=off: never. */
bool chains(const Args& a);

#if defined(__CUDACC__) || defined(CARAVAN_SIMT)

/** To be called by every thread of a kernel that launch_chained starts, before it touches any memory. Returns when all
 * earlier kernels have ended; only then may the next one be started, so that whoever is started early knows all kernels
 * but the one before it to have ended. */
__device__ __forceinline__ void await_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/** launch() of a kernel that calls await_earlier. */
template <typename... Parameters, typename... Given>
void launch_chained(const Args& a, const Launch& at, void (*kernel)(Parameters...), Given&&... given) {
#ifdef CARAVAN_CHAINED
  if (chains(a)) {
    if (at.grid.x == 0 || at.grid.y == 0 || at.grid.z == 0) return;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = at.grid;
    config.blockDim = at.block;
    config.dynamicSmemBytes = at.shared_bytes;
    config.stream = stream_of(a);
    config.attrs = &early;
    config.numAttrs = 1;
    allow_shared(kernel, at.shared_bytes);
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Given>(given))...), "launch");
    return;
  }
#endif
  launch(a, at, kernel, std::forward<Given>(given)...);
}

#endif  // kernel files

}  // namespace caravan::cuda
