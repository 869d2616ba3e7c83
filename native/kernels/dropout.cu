// Dropout on the device, as dropout.cc: the same element is dropped for the same (seed, stream). Four elements a
// thread, which is one Philox block. Traffic: 2 values an element.
#include "cuda/packs.h"
#include "kernels/dispatch.h"
#include "kernels/number_convert.h"
#include "kernels/philox.h"

namespace caravan::cuda {
namespace {

constexpr int kWidth = 4;

template <typename T, bool kVector>
__global__ void __launch_bounds__(kSpanThreads)
    drop(const T* x, T* y, int64_t count, double scale, uint64_t dropped_below, PhiloxKey key) {
  const int64_t at = own_span<kWidth>();
  const Span<T, kWidth> from = load_span<kVector, kWidth>(x + at, span_left<kWidth>(at, count));
  uint32_t block[4];
  philox(key, static_cast<uint64_t>(at) / 4, block);
  Span<T, kWidth> to;
#pragma unroll
  for (int k = 0; k < kWidth; k++) {
    const bool kept = block[k] >= dropped_below;
    if constexpr (sizeof(T) == 8) {
      to.x[k] = kept ? from.x[k] * scale : 0.0;
    } else {
      to.x[k] = narrow<T>(kept ? widen(from.x[k]) * static_cast<float>(scale) : 0.0f);
    }
  }
  store_span<kVector>(y + at, to, span_left<kWidth>(at, count));
}

CARAVAN_KERNEL(dropout, cuda, "x[...] -> y[...] | rate seed stream") {
  const View& x = a.in[0];
  const double rate = a.attrs[0];
  const double scale = 1.0 / (1.0 - rate);
  const uint64_t dropped_below = static_cast<uint64_t>(nearest_integer(rate * 0x1p32));
  const PhiloxKey key = {integer_bits(a.attrs[1]), integer_bits(a.attrs[2])};
  const int64_t count = x.count();
  with_float_type("dropout", x.dtype, [&]<typename T>(T) {
    const T* from = x.as<T>();
    T* to = a.out[0].as<T>();
    launch(a, {span_blocks<kWidth>(count), kSpanThreads}, is_aligned(from, to) ? drop<T, true> : drop<T, false>, from,
           to, count, scale, dropped_below, key);
  });
}

}  // namespace
}  // namespace caravan::cuda
