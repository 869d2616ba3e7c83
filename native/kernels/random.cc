// Normal random numbers from the counter-based generator Philox 4x32-10 (Salmon et al. 2011), number for number those
// of lib/base/random.ts: element i takes a pair of 32-bit integers from block i / 2 and turns them into a normal number
// by Box & Muller (1958) in f64. A value depends on (seed, stream, i) alone, so threads share nothing. About 40 ns a
// number.
#include <math.h>

#include "core/kernel_registry.h"
#include "cpu/device.h"
#include "kernels/number_convert.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace random_detail {

struct Key {
  uint64_t seed, stream;
};

/** The four integers of block `index`. */
void philox(const Key& key, uint64_t index, uint32_t (&block)[4]) {
  uint32_t c0 = static_cast<uint32_t>(index);
  uint32_t c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(key.stream);
  uint32_t c3 = static_cast<uint32_t>(key.stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(key.seed);
  uint32_t k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t first = uint64_t{0xd2511f53} * c0;
    const uint64_t second = uint64_t{0xcd9e8d57} * c2;
    c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(second);
    c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(first);
    k0 += 0x9e3779b9;
    k1 += 0xbb67ae85;
  }
  block[0] = c0;
  block[1] = c1;
  block[2] = c2;
  block[3] = c3;
}

double normal(uint32_t first, uint32_t second) {
  const double radius = __builtin_sqrt(-2.0 * ::log(1.0 - first * 0x1p-32));
  return radius * ::cos(2.0 * 3.14159265358979323846 * (second * 0x1p-32));
}

/** A double that holds an integer (below 2^53 in magnitude) as its two's complement bits. */
uint64_t integer_bits(double x) { return static_cast<uint64_t>(static_cast<int64_t>(x)); }

}  // namespace random_detail

CARAVAN_KERNEL(random_normal, cpu, "-> y[...]:dtype | mean deviation seed stream dtype") {
  const View& y = a.out[0];
  const double mean = a.attrs[0];
  const double deviation = a.attrs[1];
  const random_detail::Key key = {random_detail::integer_bits(a.attrs[2]), random_detail::integer_bits(a.attrs[3])};
  with_float_type("random_normal", y.dtype, [&]<typename T>(T) {
    // A number costs as much as moving some 200 bytes. The grain is even: a block is never cut in two.
    const int64_t grain = rows_per_task(200) / 2 * 2;
    parallel_ranges(pool_of(a), y.count(), grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i += 2) {
        uint32_t block[4];
        random_detail::philox(key, static_cast<uint64_t>(i) / 2, block);
        round_to(mean + deviation * random_detail::normal(block[0], block[1]), y.as<T>() + i);
        if (i + 1 < end) round_to(mean + deviation * random_detail::normal(block[2], block[3]), y.as<T>() + i + 1);
      }
    });
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
