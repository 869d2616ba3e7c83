// Scalar conversion between the element types by way of f64, which holds every value of the others: each conversion
// rounds once, to nearest with ties to even. Used where exactness counts more than speed (casts of a checkpoint,
// fills).
#pragma once
#include "core/fail.h"
#include "core/types.h"
#include "kernels/dispatch.h"

namespace caravan::CARAVAN_ISA {

/** IEEE 754 binary16, which appears in checkpoints only. */
struct f16 {
  uint16_t bits;
};

CARAVAN_ANYWHERE static inline double to_f64(double x) { return x; }
CARAVAN_ANYWHERE static inline double to_f64(float x) { return x; }
CARAVAN_ANYWHERE static inline double to_f64(bf16 x) { return to_f32(x); }
CARAVAN_ANYWHERE static inline double to_f64(int32_t x) { return x; }
/** Exact, and free of branches: with exponent and fraction moved into the places of an f32, a factor of 2^112 corrects
 *  the bias of normal and subnormal numbers alike. Infinity and NaN keep their fraction under the largest exponent. */
CARAVAN_ANYWHERE static inline float to_f32(f16 x) {
  const uint32_t moved = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  float magnitude;
  __builtin_memcpy(&magnitude, &moved, 4);
  magnitude *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &magnitude, 4);
  bits = (moved >= 0x0f800000u ? moved | 0x7f800000u : bits) | static_cast<uint32_t>(x.bits & 0x8000) << 16;
  __builtin_memcpy(&magnitude, &bits, 4);
  return magnitude;
}
CARAVAN_ANYWHERE static inline double to_f64(f16 x) { return to_f32(x); }

/** Nearest integer, ties to even, for |x| < 2^51: adding 1.5 * 2^52 pushes the fraction out. */
CARAVAN_ANYWHERE static inline double nearest_integer(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

CARAVAN_ANYWHERE static inline void round_to(double x, double* y) { *y = x; }
CARAVAN_ANYWHERE static inline void round_to(double x, float* y) { *y = static_cast<float>(x); }

/** Through f32 rounded to odd (Boldo & Melquiond 2008): its last bit remembers that something was cut off, so that the
 *  second rounding cannot see a tie that is none. */
CARAVAN_ANYWHERE static inline void round_to(double x, bf16* y) {
  float near = static_cast<float>(x);
  if (static_cast<double>(near) != x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &near, 4);
    if (__builtin_fabs(static_cast<double>(near)) > __builtin_fabs(x)) bits--;
    bits |= 1;
    __builtin_memcpy(&near, &bits, 4);
  }
  *y = to_bf16(near);
}

CARAVAN_ANYWHERE static inline void round_to(double x, f16* y) {
  const uint16_t sign = __builtin_signbit(x) ? 0x8000 : 0;
  const double magnitude = __builtin_fabs(x);
  uint64_t bits;
  __builtin_memcpy(&bits, &magnitude, 8);
  uint16_t half;
  if (magnitude != magnitude) {
    half = 0x7e00;
  } else if (magnitude >= 65520.0) {  // halfway between the largest finite value and 2^16
    half = 0x7c00;
  } else if (magnitude < 0x1p-14) {
    half = static_cast<uint16_t>(nearest_integer(magnitude * 0x1p24));
  } else {
    bits += (uint64_t{1} << 41) - 1 + ((bits >> 42) & 1);
    half = static_cast<uint16_t>((bits >> 42) - (uint64_t{1023 - 15} << 10));
  }
  y->bits = sign | half;
}

/** Values outside the range become the nearest end of it, NaN becomes 0. */
CARAVAN_ANYWHERE static inline void round_to(double x, int32_t* y) {
  double limited = x < -2147483648.0 ? -2147483648.0 : x > 2147483647.0 ? 2147483647.0 : x;
  *y = x != x ? 0 : static_cast<int32_t>(nearest_integer(limited));
}

template <typename T>
CARAVAN_ANYWHERE static inline T rounded(double x) {
  T y;
  round_to(x, &y);
  return y;
}

/** Calls body(T{}) for f32, bf16, f64, f16 and i32; ERR_DTYPE for any other. */
template <typename Body>
static inline void with_number_type(const char* op, DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kBF16:
      return body(bf16{});
    case DType::kF64:
      return body(double{});
    case DType::kF16:
      return body(f16{});
    case DType::kI32:
      return body(int32_t{});
    default:
      fail("ERR_DTYPE", "%s: the %s kernel takes f32, bf16, f64, f16 or i32; got %s", op, kDeviceText, name_of(dtype));
  }
}

}  // namespace caravan::CARAVAN_ISA
