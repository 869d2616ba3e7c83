// The instruction sets that kernels for the CPU are built for.
#pragma once
#include <vector>

#include "core/kernel_registry.h"

namespace caravan {

/** Instruction sets with kernels in this build, weakest first: portable, avx2, avx512, avx512bf16. */
struct IsaLevel {
  const char* name;
  KernelSpan kernels;   // empty: not built
  bool (*supported)();  // asks the processor
};

const std::vector<IsaLevel>& isa_levels();

}  // namespace caravan
