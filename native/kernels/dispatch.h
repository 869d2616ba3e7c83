// What every element-wise or row kernel asks first: which element type, and how many rows make one task. The element
// type becomes a template argument here, so that kernels hold one loop and no switch.
#pragma once
#include "core/fail.h"
#include "core/types.h"

namespace caravan::CARAVAN_ISA {

#ifdef CARAVAN_CUDA
static constexpr const char* kDeviceText = "CUDA";
#else
static constexpr const char* kDeviceText = "CPU";
#endif

/** Bytes of memory traffic of one task: small enough that a medium tensor occupies every thread, large enough that
 *  handing a task out (tens of nanoseconds) does not show, and that a small tensor is one task on the calling thread.
 */
static constexpr int64_t kTaskBytes = 64 << 10;

/** Rows (or elements) of `bytes` each that make one task. */
static inline int64_t rows_per_task(int64_t bytes) {
  return bytes >= kTaskBytes ? 1 : kTaskBytes / (bytes < 1 ? 1 : bytes);
}

static inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF64:
      return "f64";
    case DType::kI32:
      return "i32";
    case DType::kU8:
      return "u8";
    case DType::kF16:
      return "f16";
  }
  return "an unknown dtype";
}

/** Calls body(T{}) where T is float or bf16; ERR_DTYPE for any other. */
template <typename Body>
static inline void with_f32_or_bf16(const char* op, DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kBF16:
      return body(bf16{});
    default:
      fail("ERR_DTYPE", "%s: the %s kernel takes f32 or bf16; got %s", op, kDeviceText, name_of(dtype));
  }
}

/** Calls body(T{}) where T is float, bf16 or double; ERR_DTYPE for any other. */
template <typename Body>
static inline void with_float_type(const char* op, DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kBF16:
      return body(bf16{});
    case DType::kF64:
      return body(double{});
    default:
      fail("ERR_DTYPE", "%s: the %s kernel takes f32, bf16 or f64; got %s", op, kDeviceText, name_of(dtype));
  }
}

/** Calls body(E{}) with an unsigned integer of the element's size. */
template <typename Body>
static inline void with_element(DType dtype, const Body& body) {
  switch (size_of(dtype)) {
    case 1:
      return body(uint8_t{});
    case 2:
      return body(uint16_t{});
    case 4:
      return body(uint32_t{});
    default:
      return body(uint64_t{});
  }
}

}  // namespace caravan::CARAVAN_ISA
