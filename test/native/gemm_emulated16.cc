// The 16-lane matrix product for processors without AVX-512: see emulated_simd.h. Built with -mavx2 -mfma.
#define CARAVAN_ISA emulated16
#define CARAVAN_SIMD_HEADER "test/native/emulated_simd.h"
#include "cpu/gemm.cc"
