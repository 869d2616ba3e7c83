// The kernel table. A kernel row is constant data in a linker section of its instruction set: no code runs at load
// time, because a static initialiser compiled for AVX-512 would be an illegal instruction on a smaller machine.
#pragma once
#include "core/types.h"

#define CARAVAN_TEXT_(x) #x
#define CARAVAN_TEXT(x) CARAVAN_TEXT_(x)
#define CARAVAN_JOIN_(a, b) a##b
#define CARAVAN_JOIN(a, b) CARAVAN_JOIN_(a, b)

#ifdef __APPLE__
#define CARAVAN_KERNEL_SECTION(isa) "__DATA,crv_" CARAVAN_TEXT(isa)
#else
#define CARAVAN_KERNEL_SECTION(isa) "crv_kernels_" CARAVAN_TEXT(isa)
#endif

/** Defines the kernel of `op` and its row in the table. Use at namespace scope inside an anonymous namespace:
 *    CARAVAN_KERNEL(rms_norm, cpu, "x[N,D] w[D] -> y[N,D] rstd[N]:f32 | eps") { ... uses `a` ... } */
#define CARAVAN_KERNEL(op, device, signature)                                                                          \
  void CARAVAN_JOIN(op, _kernel)(const ::caravan::Args& a);                                                            \
  __attribute__((                                                                                                      \
      used, section(CARAVAN_KERNEL_SECTION(CARAVAN_ISA)))) constinit const ::caravan::KernelRow CARAVAN_JOIN(op,       \
                                                                                                             _row) = { \
      #op, #device, signature, CARAVAN_JOIN(op, _kernel)};                                                             \
  void CARAVAN_JOIN(op, _kernel)([[maybe_unused]] const ::caravan::Args& a)

namespace caravan {

struct KernelSpan {
  const KernelRow* begin;
  const KernelRow* end;
};

}  // namespace caravan
