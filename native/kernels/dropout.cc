// Dropout (Srivastava et al. 2014) in its inverted form: y = x / (1 - rate) where element i is kept, else 0. Element i
// is kept when its 32 random bits, word i % 4 of Philox block i / 4, are not below rate * 2^32. The mask is a function
// of (seed, stream, i), so the backward pass draws it again from the same numbers and nothing is saved. Traffic: 8
// bytes an element in f32; drawing the bits costs more, about 5 ns an element.
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/number_convert.h"
#include "kernels/philox.h"

namespace caravan::CARAVAN_ISA {
namespace {

CARAVAN_KERNEL(dropout, cpu, "x[...] -> y[...] | rate seed stream") {
  const View& x = a.in[0];
  const double rate = a.attrs[0];
  const double scale = 1.0 / (1.0 - rate);
  const uint64_t dropped_below = static_cast<uint64_t>(nearest_integer(rate * 0x1p32));
  const PhiloxKey key = {integer_bits(a.attrs[1]), integer_bits(a.attrs[2])};
  with_float_type("dropout", x.dtype, [&]<typename T>(T) {
    const T* from = x.as<T>();
    T* to = a.out[0].as<T>();
    // A multiple of four: a block is never cut in two.
    const int64_t grain = rows_per_task(64) / 4 * 4;
    parallel_ranges(pool_of(a), x.count(), grain, [&](int64_t begin, int64_t end, int) {
      uint32_t block[4];
      for (int64_t i = begin; i < end; i++) {
        if (i % 4 == 0) philox(key, static_cast<uint64_t>(i) / 4, block);
        to[i] = rounded<T>(block[i % 4] < dropped_below ? 0.0 : to_f64(from[i]) * scale);
      }
    });
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
