// The counter-based generator Philox 4x32-10 (Salmon et al. 2011), number for number that of lib/base/random.ts: what
// is drawn depends on (seed, stream, index) alone, so threads share nothing and nothing is kept between calls.
#pragma once
#include <stdint.h>

#include "core/types.h"

namespace caravan::CARAVAN_ISA {

struct PhiloxKey {
  uint64_t seed, stream;
};

/** The four integers of block `index`. */
CARAVAN_ANYWHERE static inline void philox(const PhiloxKey& key, uint64_t index, uint32_t (&block)[4]) {
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

/** A double that holds an integer (below 2^53 in magnitude) as its two's complement bits. */
CARAVAN_ANYWHERE static inline uint64_t integer_bits(double x) {
  return static_cast<uint64_t>(static_cast<int64_t>(x));
}

}  // namespace caravan::CARAVAN_ISA
