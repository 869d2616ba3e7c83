// How a kernel file reaches the GPU: launches on the device's stream, the check of every call, dynamic shared memory.
// The same sources compile with nvcc and, with CARAVAN_SIMT, for the host under the harness of test/native/simt.
#pragma once
#include <cuda_runtime.h>

#include <utility>

#include "core/fail.h"
#include "core/kernel_registry.h"
#include "core/types.h"

namespace caravan::cuda {

/** Throws ERR_DEVICE (ERR_OOM for a lack of memory) when a call to the run-time API failed. */
void check(cudaError_t error, const char* what);

/** The stream of the device that a kernel row runs on. */
cudaStream_t stream_of(const Args& a);

/** Multiprocessors of the device: kernels that loop over their work start a small multiple of this many blocks. */
int multiprocessors(const Args& a);

/** Copies to the host; returns when the bytes are there. */
void copy_out(const Args& a, void* host_memory, const void* device_memory, size_t bytes);

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

// What follows is the language of kernel files.
#if defined(__CUDACC__) || defined(CARAVAN_SIMT)

#ifndef CARAVAN_SIMT
/** Beyond what every kernel may have, dynamic shared memory must be asked for. */
template <typename... Parameters>
void allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  constexpr size_t kWithoutAsking = 40 << 10;  // of the 48 KiB that a block may have; a kernel has some of its own
  if (bytes <= kWithoutAsking) return;
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "shared memory");
}
#endif

/** Runs a __global__ function on a stream. A grid of zero blocks is nothing to do, not an error. */
template <typename... Parameters, typename... Given>
void launch(cudaStream_t stream, const Launch& at, void (*kernel)(Parameters...), Given&&... given) {
  if (at.grid.x == 0 || at.grid.y == 0 || at.grid.z == 0) return;
#ifdef CARAVAN_SIMT
  check(simt_launch(at.grid, at.block, at.shared_bytes, stream,
                    [kernel, ... values = static_cast<Parameters>(std::forward<Given>(given))] { kernel(values...); }),
        "launch");
#else
  allow_shared(kernel, at.shared_bytes);
  // clang-format off
  kernel<<<at.grid, at.block, at.shared_bytes, stream>>>(static_cast<Parameters>(std::forward<Given>(given))...);
  // clang-format on
#endif
  check(cudaGetLastError(), "launch");
}

/** The same on the stream of `a`. */
template <typename... Parameters, typename... Given>
void launch(const Args& a, const Launch& at, void (*kernel)(Parameters...), Given&&... given) {
  launch(stream_of(a), at, kernel, std::forward<Given>(given)...);
}

#endif  // kernel files

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/** Blocks of `threads` for `count` independent items, each thread looping with stride grid * block: at most `most`. */
inline unsigned blocks_for(int64_t count, int threads, int64_t most) {
  const int64_t blocks = ceil_div(count, threads);
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

}  // namespace caravan::cuda

/** Names the dynamic shared memory of a kernel: CARAVAN_SHARED(float, tile); */
#ifdef CARAVAN_SIMT
#define CARAVAN_SHARED(type, name) type* name = static_cast<type*>(::simt::dynamic_shared())
#else
#define CARAVAN_SHARED(type, name)                                         \
  extern __shared__ __align__(128) unsigned char caravan_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(caravan_dynamic_shared)
#endif
