// Which instruction sets this build has and this processor supports. Compiled for the baseline processor.
#include "cpu/isa.h"

#ifdef __APPLE__
#define CARAVAN_SECTION_BOUNDS(isa)                                                    \
  extern const caravan::KernelRow isa##_begin __asm("section$start$__DATA$crv_" #isa); \
  extern const caravan::KernelRow isa##_end __asm("section$end$__DATA$crv_" #isa);
#define CARAVAN_SPAN(isa) {&isa##_begin, &isa##_end}
#else
// The linker defines these two around every section whose name is an identifier; null when nothing was built for it.
#define CARAVAN_SECTION_BOUNDS(isa)                                                                            \
  extern "C" const caravan::KernelRow __start_crv_kernels_##isa[] __attribute__((visibility("hidden"), weak)); \
  extern "C" const caravan::KernelRow __stop_crv_kernels_##isa[] __attribute__((visibility("hidden"), weak));
#define CARAVAN_SPAN(isa) {__start_crv_kernels_##isa, __stop_crv_kernels_##isa}
#endif

CARAVAN_SECTION_BOUNDS(portable)
#if defined(__x86_64__)
CARAVAN_SECTION_BOUNDS(avx2)
CARAVAN_SECTION_BOUNDS(avx512)
CARAVAN_SECTION_BOUNDS(avx512bf16)
#endif

namespace caravan {

#if defined(__x86_64__)
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#ifdef CARAVAN_EMULATE_AVX512
bool has_avx512() { return has_avx2(); }
bool has_avx512bf16() { return has_avx2(); }
#else
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

}  // namespace
#endif

const std::vector<IsaLevel>& isa_levels() {
  static const std::vector<IsaLevel> levels = {
      {"portable", CARAVAN_SPAN(portable), [] { return true; }},
#if defined(__x86_64__)
      {"avx2", CARAVAN_SPAN(avx2), has_avx2},
      {"avx512", CARAVAN_SPAN(avx512), has_avx512},
      {"avx512bf16", CARAVAN_SPAN(avx512bf16), has_avx512bf16},
#endif
  };
  return levels;
}

}  // namespace caravan
