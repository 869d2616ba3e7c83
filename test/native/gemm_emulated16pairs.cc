// The 16-lane matrix product with bf16 pairs for processors without AVX-512: see emulated_simd.h. Built with -mavx2
// -mfma.
#define CARAVAN_ISA emulated16pairs
#define CARAVAN_EMULATE_PAIRS
#define CARAVAN_SIMD_HEADER "test/native/emulated_simd.h"
#include "cpu/gemm.cc"
