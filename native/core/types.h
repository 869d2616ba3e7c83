// The words of the engine: element types, views of tensor memory, and the arguments of a kernel.
// Kernels include this file and are compiled once per instruction set, so it holds nothing but plain data and
// functions that may be inlined anywhere.
#pragma once
#include <stddef.h>
#include <stdint.h>

/** Marks what kernels for the CPU and for the GPU share. */
#ifdef __CUDACC__
#define CARAVAN_ANYWHERE __host__ __device__
#else
#define CARAVAN_ANYWHERE
#endif

namespace caravan {

enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF64 = 2, kI32 = 3, kU8 = 4, kF16 = 5 };
inline constexpr int kDTypeCount = 6;

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kU8:
      return 1;
  }
  return 0;
}

/** Brain float: the upper half of an f32. Arithmetic happens in f32; see to_f32 and to_bf16. */
struct bf16 {
  uint16_t bits;
};

CARAVAN_ANYWHERE static inline float to_f32(bf16 x) {
  uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &wide, 4);
  return f;
}

/** Rounds to nearest, ties to even; a NaN stays a NaN. */
CARAVAN_ANYWHERE static inline bf16 to_bf16(float f) {
  uint32_t wide;
  __builtin_memcpy(&wide, &f, 4);
  if ((wide & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((wide >> 16) | 0x40u)};
  return bf16{static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16)};
}

inline constexpr int kMaxRank = 6;

/** Contiguous row-major memory of a tensor while a kernel runs. `data` is null for an absent optional argument. */
struct View {
  void* data = nullptr;
  int64_t shape[kMaxRank] = {};
  int rank = 0;
  DType dtype = DType::kF32;

  bool present() const { return data != nullptr; }
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= shape[i];
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(count()) * size_of(dtype); }
  /** Size of the last dimension (1 for a scalar). */
  int64_t last() const { return rank == 0 ? 1 : shape[rank - 1]; }
  /** Number of rows when everything but the last dimension is flattened. */
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank; i++) n *= shape[i];
    return n;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

class Device;

/** What a kernel receives: views in the order of the op's signature, then the numeric attributes. */
struct Args {
  Device& device;
  const View* in;
  int in_count;
  const View* out;
  int out_count;
  const double* attrs;
  int attr_count;
};

using KernelFunction = void (*)(const Args&);

/** One row of the kernel table. `signature` repeats the literal of lib/ops; a difference is a start-up error. */
struct KernelRow {
  const char* op;
  const char* device;
  const char* signature;
  KernelFunction run;
};

}  // namespace caravan
