// Forms in which AdamW keeps its state in 16 bits. The split master: a bf16 weight is the upper half of an f32 one,
// rounded half up, and a second 16-bit number holds what that rounding took away, so that both together are the f32
// weight, exactly, in two bytes less than weight and f32 master. bf16 moments: rounded at random in proportion, since
// the usual rounding would swallow every change of the second moment (0.1 % a step) and freeze it.
#pragma once
#include "core/types.h"

namespace caravan::CARAVAN_ISA {

CARAVAN_ANYWHERE static inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

CARAVAN_ANYWHERE static inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

/** The f32 weight of its two halves; `low` is a signed 16-bit number in the bits of a bf16. */
CARAVAN_ANYWHERE static inline float join_halves(bf16 high, bf16 low) {
  const int32_t difference = static_cast<int16_t>(low.bits);
  return float_of((static_cast<uint32_t>(high.bits) << 16) + static_cast<uint32_t>(difference));
}

CARAVAN_ANYWHERE static inline void split_halves(float weight, bf16* high, bf16* low) {
  const uint32_t bits = bits_of(weight);
  // Half up, not to even: what is left then always fits 16 bits.
  high->bits = static_cast<uint16_t>((bits + 0x8000u) >> 16);
  low->bits = static_cast<uint16_t>(bits);
}

/** 32 bits that look random, from the number of the update, which moment it is, and the element (Wellons 2018,
 *  lowbias32). */
CARAVAN_ANYWHERE static inline uint32_t rounding_bits(uint32_t update, uint32_t moment, uint64_t element) {
  uint32_t x = static_cast<uint32_t>(element) ^ static_cast<uint32_t>(element >> 32) * 0x9e3779b9u;
  x += (update * 2 + moment) * 0x85ebca6bu;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

/** One of the two neighbours of a finite x, the nearer one more often: the mean of many roundings is x. */
CARAVAN_ANYWHERE static inline bf16 round_at_random(float x, uint32_t random) {
  return bf16{static_cast<uint16_t>((bits_of(x) + (random & 0xffffu)) >> 16)};
}

}  // namespace caravan::CARAVAN_ISA
