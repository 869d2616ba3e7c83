// Cosine and sine in f64 for angles below 2^30 or so. The tool kit's own take any angle, by a path that needs a stack
// in local memory; here the quarter turns are taken off in two pieces of pi / 2, which is good to the last places.
#pragma once
#include "cuda/launch.h"

namespace caravan::cuda {

struct CosSin {
  double cos, sin;
};

/** Polynomials of W. J. Cody and W. Waite's kind, coefficients of FreeBSD's k_cos.c and k_sin.c: within 1 unit in the
 *  last place for |x| <= pi / 4. */
__device__ __forceinline__ CosSin cos_sin_reduced(double x) {
  const double z = x * x;
  double c = -1.13596475577881948265e-11;
  c = fma(c, z, 2.08757232129817482790e-09);
  c = fma(c, z, -2.75573143513906633035e-07);
  c = fma(c, z, 2.48015872894767294178e-05);
  c = fma(c, z, -1.38888888888741095749e-03);
  c = fma(c, z, 4.16666666666666019037e-02);
  double s = 1.58969099521155010221e-10;
  s = fma(s, z, -2.50507602534068634195e-08);
  s = fma(s, z, 2.75573137070700676789e-06);
  s = fma(s, z, -1.98412698298579493134e-04);
  s = fma(s, z, 8.33333333332248946124e-03);
  s = fma(s, z, -1.66666666666666324348e-01);
  return {fma(z * z, c, fma(z, -0.5, 1.0)), fma(z * x, s, x)};
}

__device__ __forceinline__ CosSin cos_sin(double angle) {
  constexpr double kHalfPi = 1.57079632679489655800, kHalfPiRest = 6.12323399573676603587e-17;
  const double quarters = rint(angle * 0.636619772367581382433);
  const double x = fma(-quarters, kHalfPiRest, fma(-quarters, kHalfPi, angle));
  const CosSin at = cos_sin_reduced(x);
  switch (static_cast<int64_t>(quarters) & 3) {
    case 0:
      return at;
    case 1:
      return {-at.sin, at.cos};
    case 2:
      return {-at.cos, -at.sin};
    default:
      return {at.sin, -at.cos};
  }
}

}  // namespace caravan::cuda
