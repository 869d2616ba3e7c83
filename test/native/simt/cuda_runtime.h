// Stands in for the CUDA toolkit's header of the same name when kernels are compiled for the host: the device
// vocabulary (threadIdx, barriers, shuffles, shared memory, atomics) over the fibers of simt.h, and the part of the
// run-time API that native/cuda uses over ordinary memory. Only what the project's kernels need is here; a missing word
// is a compile error, never a silent difference.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simt.h"

// ---- what the compiler of device code knows -------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Set by the scheduler whenever it resumes a fiber.
#define threadIdx (::simt::current().thread)
#define blockIdx (::simt::current().block)
#define blockDim (::simt::current().block_size)
#define gridDim (::simt::current().grid_size)

// ---- barriers and collectives ---------------------------------------------------------------------------------------

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::warp_barrier(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const int own = simt::lane();
  return simt::exchange(mask, value, own / width * width + lane % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int own = simt::lane(), other = own ^ bits;
  return simt::exchange(mask, value, other / width == own / width ? other : own);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int own = simt::lane(), other = own + static_cast<int>(delta);
  return simt::exchange(mask, value, other / width == own / width ? other : own);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int own = simt::lane(), other = own - static_cast<int>(delta);
  return simt::exchange(mask, value, other >= own / width * width ? other : own);
}
inline unsigned __ballot_sync(unsigned mask, int flag) { return simt::ballot(mask, flag != 0); }
inline int __any_sync(unsigned mask, int flag) { return simt::ballot(mask, flag != 0) != 0; }

// ---- arithmetic -----------------------------------------------------------------------------------------------------

template <typename To, typename From>
inline To simt_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}
inline unsigned __float_as_uint(float x) { return simt_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return simt_bits<float>(x); }
inline float __int_as_float(int x) { return simt_bits<float>(x); }
inline double __longlong_as_double(long long x) { return simt_bits<double>(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }

template <typename T>
T __ldg(const T* p) {
  return *p;
}

// ---- atomics: fibers share one thread, so plain operations are atomic
// ------------------------------------------------

template <typename T>
T atomicAdd(T* p, T x) {
  T old = *p;
  *p = old + x;
  return old;
}
template <typename T>
T atomicMax(T* p, T x) {
  T old = *p;
  if (x > old) *p = x;
  return old;
}
template <typename T>
T atomicMin(T* p, T x) {
  T old = *p;
  if (x < old) *p = x;
  return old;
}
template <typename T>
T atomicCAS(T* p, T expected, T x) {
  T old = *p;
  if (old == expected) *p = x;
  return old;
}

// ---- the run-time API -----------------------------------------------------------------------------------------------

#include "simt_runtime.h"
