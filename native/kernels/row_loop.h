// How a kernel walks a row of f32 or bf16: whole vectors, then one shortened vector, with the maths spelt once. The
// shortened vector holds zeros beyond its end, so an element has the same bits wherever it lies in a row or a task.
#pragma once
#include "cpu/simd.h"

namespace caravan::CARAVAN_ISA {

struct WholeVector {
  template <typename T>
  F32 load(const T* p) const {
    return CARAVAN_ISA::load(p);
  }
  template <typename T>
  void store(T* p, F32 a) const {
    CARAVAN_ISA::store(p, a);
  }
  /** load(p) with the lanes of `fill` beyond its end, for reductions in which a zero would count. */
  template <typename T>
  F32 load_filled(const T* p, F32) const {
    return CARAVAN_ISA::load(p);
  }
};

struct ShortVector {
  int n;
  template <typename T>
  F32 load(const T* p) const {
    return load_first(p, n);
  }
  template <typename T>
  void store(T* p, F32 a) const {
    store_first(p, a, n);
  }
  template <typename T>
  F32 load_filled(const T* p, F32 fill) const {
    float lanes[F32::kLanes];
    CARAVAN_ISA::store(lanes, fill);
    store_first(lanes, load_first(p, n), n);
    return CARAVAN_ISA::load(lanes);
  }
};

/** step(i, vector) for the vectors that start at i = 0, kLanes, ... of a row of `count` elements. */
template <typename Step>
static inline void for_vectors(int64_t count, const Step& step) {
  int64_t i = 0;
  for (; i + F32::kLanes <= count; i += F32::kLanes) step(i, WholeVector{});
  if (i < count) step(i, ShortVector{static_cast<int>(count - i)});
}

/** Four running values: sum = step(sum, i, vector) over a row, vector j feeding chain j mod 4 (a single chain would
 * wait for the latency of every addition). Left in four parts so that the caller picks how they are combined. */
struct FourChains {
  F32 part[4];
};

template <typename Step>
static inline FourChains fold_vectors(int64_t count, F32 start, const Step& step) {
  constexpr int64_t kLanes = F32::kLanes;
  F32 a = start, b = start, c = start, d = start;
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    a = step(a, i, WholeVector{});
    b = step(b, i + kLanes, WholeVector{});
    c = step(c, i + 2 * kLanes, WholeVector{});
    d = step(d, i + 3 * kLanes, WholeVector{});
  }
  if (i + kLanes <= count) {
    a = step(a, i, WholeVector{});
    i += kLanes;
  }
  if (i + kLanes <= count) {
    b = step(b, i, WholeVector{});
    i += kLanes;
  }
  if (i + kLanes <= count) {
    c = step(c, i, WholeVector{});
    i += kLanes;
  }
  if (i < count) d = step(d, i, ShortVector{static_cast<int>(count - i)});
  return {{a, b, c, d}};
}

/** Sum over a row of `count` elements, step(sum, i, vector) adding one vector to a running sum. The tree depends on
 *  `count` alone. */
template <typename Step>
static inline float sum_vectors(int64_t count, const Step& step) {
  FourChains sums = fold_vectors(count, zero(), step);
  return reduce_sum((sums.part[0] + sums.part[1]) + (sums.part[2] + sums.part[3]));
}

}  // namespace caravan::CARAVAN_ISA
