// log, sin, cos and tanh of a vector, within 2.5 units in the last place; NaN, infinities, zeros and denormals as in
// the C library. The series are Taylor's on a reduced interval, so that every coefficient is a fraction.
#pragma once
#include <math.h>

#include "cpu/simd.h"

namespace caravan::CARAVAN_ISA {

typedef int32_t Ints __attribute__((vector_size(sizeof(F32))));
static_assert(sizeof(Ints) / sizeof(int32_t) == F32::kLanes);

static inline Ints bits_of(F32 a) { return (Ints)a.v; }
static inline F32 from_bits(Ints bits) { return {(decltype(F32::v))bits}; }
static inline F32 to_floats(Ints a) { return {(decltype(F32::v))__builtin_convertvector(a, decltype(F32::v))}; }
/** Lane by lane: mask (all ones or zero) ? yes : no. */
static inline F32 select(Ints mask, F32 yes, F32 no) {
  return from_bits((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}
static inline Ints is_greater(F32 a, F32 b) { return (Ints)(a.v > b.v); }

constexpr int32_t kSignBit = INT32_MIN;
static inline F32 magnitude(F32 x) { return from_bits(bits_of(x) & ~kSignBit); }
static inline F32 with_sign_of(F32 x, F32 sign) { return from_bits(bits_of(x) ^ (bits_of(sign) & kSignBit)); }

/** Lane by lane by a scalar function. */
template <typename Function>
static inline F32 each_lane(F32 x, const Function& function) {
  float lanes[F32::kLanes];
  store(lanes, x);
  for (int i = 0; i < F32::kLanes; i++) lanes[i] = function(lanes[i]);
  return load(lanes);
}

/** x = 2^n (1 + f), 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = f - (f^2/2 - s (f^2/2 + R)), s = f / (2 + f),
 *  R = 2/3 s^2 + 2/5 s^4 + ...: the series of 2 artanh(s) with its first term, which carries the digits, kept apart. */
static inline F32 log(F32 x) {
  const F32 smallest = set1(1.17549435e-38f), infinity = set1(__builtin_inff());
  const Ints denormal = is_greater(smallest, x);
  // What has no logarithm goes through as 1, whose bits overflow nothing.
  const F32 normal = select(is_greater(x, zero()), select(denormal, x * set1(8388608.0f), x), set1(1.0f));
  const Ints exponent = (bits_of(normal) - 0x3f3504f3) >> 23;  // 0x3f3504f3: sqrt(1/2)
  const F32 n = to_floats(exponent - (denormal & 23));
  const F32 f = from_bits(bits_of(normal) - (exponent << 23)) - set1(1.0f);
  const F32 s = f / (set1(2.0f) + f);
  const F32 z = s * s;
  const F32 series = z * fma(z, fma(z, fma(z, set1(2.0f / 9), set1(2.0f / 7)), set1(2.0f / 5)), set1(2.0f / 3));
  const F32 half = set1(0.5f) * f * f;
  // ln2 in two parts, the first short enough for n times it to be exact.
  const F32 correction = fma(s, half + series, n * set1(1.42860677e-6f));
  const F32 y = fma(n, set1(0.693145751953125f), f - (half - correction));
  const F32 special = select((Ints)(x.v == zero().v), -infinity, set1(__builtin_nanf("")));
  return select(is_greater(x, zero()), select_greater(infinity, x, y, keep_nan(x, infinity)), special);
}

/** sin(x + quarters pi/2). x = n pi/2 + r with |r| <= pi/4; pi/2 in four parts, three of them so short that n times
 *  each is exact. Beyond kMostReduced, where n grows too long, the C library takes over. */
template <typename Scalar>
static inline F32 sine_of_quarters(F32 x, int32_t quarters, const Scalar& scalar) {
  constexpr float kMostReduced = 4096.0f;
  const Ints near = (Ints)(magnitude(x).v <= set1(kMostReduced).v);  // false for NaN
  if (reduce_max(select(near, zero(), set1(1.0f))) > 0) return each_lane(x, scalar);
  const F32 shift = set1(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
  const F32 shifted = fma(x, set1(0.636619772f), shift);
  const F32 n = set1(0.0f) - (shifted - shift);
  F32 r = fma(n, set1(1.5703125f), x);
  r = fma(n, set1(4.837512969970703e-4f), r);
  r = fma(n, set1(7.549533620476723e-8f), r);
  r = fma(n, set1(2.5633440682570896e-12f), r);
  const F32 z = r * r;
  const F32 sine =
      fma(fma(z, fma(z, fma(z, set1(1.0f / 362880), set1(-1.0f / 5040)), set1(1.0f / 120)), set1(-1.0f / 6)), r * z, r);
  const F32 cosine =
      fma(z,
          fma(z, fma(z, fma(z, fma(z, set1(-1.0f / 3628800), set1(1.0f / 40320)), set1(-1.0f / 720)), set1(1.0f / 24)),
              set1(-0.5f)),
          set1(1.0f));
  const Ints quadrant = bits_of(shifted) + quarters;
  const F32 value = select(-(quadrant & 1), cosine, sine);
  return from_bits(bits_of(value) ^ ((quadrant & 2) << 30));
}

static inline F32 sin(F32 x) {
  const F32 sine = sine_of_quarters(magnitude(x), 0, [](float v) { return sinf(v); });
  return with_sign_of(sine, x);
}
static inline F32 cos(F32 x) {
  return sine_of_quarters(x, 1, [](float v) { return cosf(v); });
}

/** (e^2a - 1) / (e^2a + 1) with a = |x|, from e^2a - 1 = scale * rest + (scale - 1), which keeps the digits of a small
 *  a. Beyond 10 the result is 1. */
static inline F32 tanh(F32 x) {
  const F32 a = min(set1(10.0f), magnitude(x));
  const ExpParts parts = exp_parts(a + a);
  const F32 minus_one = fma(parts.scale, parts.rest, parts.scale - set1(1.0f));
  return with_sign_of(minus_one / (minus_one + set1(2.0f)), x);
}

}  // namespace caravan::CARAVAN_ISA
