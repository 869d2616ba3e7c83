// Random numbers on the device, as random.cc: the integers are those of the CPU, so uniform numbers have the same bits;
// logarithm and cosine of normal ones may differ in the last place. Four numbers a thread.
#include "cuda/packs.h"
#include "cuda/trigonometry.h"
#include "kernels/number_convert.h"
#include "kernels/philox.h"

namespace caravan::cuda {
namespace {

constexpr int kWidth = 4;

/** Box & Muller (1958). */
__device__ __forceinline__ double normal(uint32_t first, uint32_t second) {
  const double radius = sqrt(-2.0 * log(1.0 - first * 0x1p-32));
  return radius * cos_sin(2.0 * 3.14159265358979323846 * (second * 0x1p-32)).cos;
}

template <typename T>
__global__ void __launch_bounds__(kSpanThreads)
    fill_normal(T* y, int64_t count, double mean, double deviation, PhiloxKey key) {
  const int64_t at = own_span<kWidth>();
  Span<T, kWidth> out;
#pragma unroll
  for (int k = 0; k < kWidth; k += 2) {
    uint32_t block[4];
    philox(key, static_cast<uint64_t>(at + k) / 2, block);
    // The product is rounded before it is added to, as on the CPU.
    out.x[k] = rounded<T>(mean + __dmul_rn(deviation, normal(block[0], block[1])));
    out.x[k + 1] = rounded<T>(mean + __dmul_rn(deviation, normal(block[2], block[3])));
  }
  store_span<true>(y + at, out, span_left<kWidth>(at, count));
}

template <typename T>
__global__ void __launch_bounds__(kSpanThreads)
    fill_uniform(T* y, int64_t count, double low, double width, PhiloxKey key) {
  const int64_t at = own_span<kWidth>();
  uint32_t block[4];
  philox(key, static_cast<uint64_t>(at) / 4, block);
  Span<T, kWidth> out;
#pragma unroll
  for (int k = 0; k < kWidth; k++) out.x[k] = rounded<T>(low + __dmul_rn(width, block[k] * 0x1p-32));
  store_span<true>(y + at, out, span_left<kWidth>(at, count));
}

CARAVAN_KERNEL(random_normal, cuda, "-> y[...]:dtype | mean deviation seed stream dtype") {
  const View& y = a.out[0];
  const PhiloxKey key = {integer_bits(a.attrs[2]), integer_bits(a.attrs[3])};
  with_float_type("random_normal", y.dtype, [&]<typename T>(T) {
    launch(a, {span_blocks<kWidth>(y.count()), kSpanThreads}, fill_normal<T>, y.as<T>(), y.count(), a.attrs[0],
           a.attrs[1], key);
  });
}

CARAVAN_KERNEL(random_uniform, cuda, "-> y[...]:dtype | low high seed stream dtype") {
  const View& y = a.out[0];
  const PhiloxKey key = {integer_bits(a.attrs[2]), integer_bits(a.attrs[3])};
  with_float_type("random_uniform", y.dtype, [&]<typename T>(T) {
    launch(a, {span_blocks<kWidth>(y.count()), kSpanThreads}, fill_uniform<T>, y.as<T>(), y.count(), a.attrs[0],
           a.attrs[1] - a.attrs[0], key);
  });
}

}  // namespace
}  // namespace caravan::cuda
