// Zeros, in stream order.
#pragma once
#include "cuda/launch.h"

namespace caravan::cuda {

/** Clears a view, which may be absent or empty. */
inline void zero(const Args& a, const View& v) {
  if (v.present() && v.bytes() > 0) check(cudaMemsetAsync(v.data, 0, v.bytes(), stream_of(a)), "zeros");
}

}  // namespace caravan::cuda
