// Random numbers from the counter-based generator Philox 4x32-10 (Salmon et al. 2011), number for number those of
// lib/base/random.ts. Normal: element i takes a pair of 32-bit integers from block i / 2 and turns them into a normal
// number by Box & Muller (1958) in f64; about 40 ns a number. Uniform: element i takes word i % 4 of block i / 4. A
// value depends on (seed, stream, i) alone, so threads share nothing.
#include <math.h>

#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/number_convert.h"
#include "kernels/philox.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace random_detail {

double normal(uint32_t first, uint32_t second) {
  const double radius = __builtin_sqrt(-2.0 * ::log(1.0 - first * 0x1p-32));
  return radius * ::cos(2.0 * 3.14159265358979323846 * (second * 0x1p-32));
}

}  // namespace random_detail

CARAVAN_KERNEL(random_normal, cpu, "-> y[...]:dtype | mean deviation seed stream dtype") {
  const View& y = a.out[0];
  const double mean = a.attrs[0];
  const double deviation = a.attrs[1];
  const PhiloxKey key = {integer_bits(a.attrs[2]), integer_bits(a.attrs[3])};
  with_float_type("random_normal", y.dtype, [&]<typename T>(T) {
    // A number costs as much as moving some 200 bytes. The grain is even: a block is never cut in two.
    const int64_t grain = rows_per_task(200) / 2 * 2;
    parallel_ranges(pool_of(a), y.count(), grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i += 2) {
        uint32_t block[4];
        philox(key, static_cast<uint64_t>(i) / 2, block);
        round_to(mean + deviation * random_detail::normal(block[0], block[1]), y.as<T>() + i);
        if (i + 1 < end) round_to(mean + deviation * random_detail::normal(block[2], block[3]), y.as<T>() + i + 1);
      }
    });
  });
}

CARAVAN_KERNEL(random_uniform, cpu, "-> y[...]:dtype | low high seed stream dtype") {
  const View& y = a.out[0];
  const double low = a.attrs[0];
  const double width = a.attrs[1] - low;
  const PhiloxKey key = {integer_bits(a.attrs[2]), integer_bits(a.attrs[3])};
  with_float_type("random_uniform", y.dtype, [&]<typename T>(T) {
    const int64_t grain = rows_per_task(64) / 4 * 4;
    parallel_ranges(pool_of(a), y.count(), grain, [&](int64_t begin, int64_t end, int) {
      uint32_t block[4];
      for (int64_t i = begin; i < end; i++) {
        if (i % 4 == 0) philox(key, static_cast<uint64_t>(i) / 4, block);
        round_to(low + width * (block[i % 4] * 0x1p-32), y.as<T>() + i);
      }
    });
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
