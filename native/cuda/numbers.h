// Element types on the device: conversion to f32 and back, and 16-byte packs.
#pragma once
#include "cuda/launch.h"

namespace caravan::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ double widen(double x) { return x; }

/** Rounds to nearest, ties to even, as the CPU does; a NaN stays a NaN. */
__device__ __forceinline__ bf16 narrow_bf16(float x) {
#if defined(__CUDA_ARCH__)
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  return to_bf16(x);
#endif
}

template <typename T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
  return narrow_bf16(x);
}
template <>
__device__ __forceinline__ double narrow<double>(float x) {
  return x;
}

/** Two bf16 in one register, the first in the low half: the operand form of mma. */
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return static_cast<uint32_t>(to_bf16(low).bits) | static_cast<uint32_t>(to_bf16(high).bits) << 16;
#endif
}

/** Sixteen bytes of T, moved by one load or store; `p` must be 16-byte aligned. */
template <typename T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T x[kCount];
};

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T>*>(p);
}
template <typename T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(p) = pack;
}

/** Whether rows of `last` elements of T can be moved by packs from these addresses. */
template <typename T, typename... P>
bool packs_fit(int64_t last, const P*... p) {
  return last % Pack<T>::kCount == 0 && ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

}  // namespace caravan::cuda
