// Rotary position embedding (Su et al. 2021), half-split pairs as in Hugging Face: with c, s = cos, sin(position *
// frequency_i), (x_i, x_{i + C/2}) -> (x_i c - x_{i + C/2} s, x_{i + C/2} c + x_i s). Backward is the inverse rotation:
// direction = -1 negates s. Angles are computed in f64, as an f32 angle of 1e5 radians is off by 4e-3; the table is
// shared by all heads and layers of a batch. Traffic per element of rope: 2 values (the table stays in L1).
#include <math.h>

#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace rope_detail {

void fill_table(const Args& a) {
  const int32_t* positions = a.in[0].as<int32_t>();
  const double* frequencies = a.in[1].as<double>();
  const int64_t J = a.in[1].shape[0];
  const View& table = a.out[0];
  if (table.last() != 2 * J) {
    fail("ERR_SHAPE", "rope_table: C must be 2 J = %lld for frequencies[J]; got %lld", static_cast<long long>(2 * J),
         static_cast<long long>(table.last()));
  }
  // A sine costs as much as moving some 100 bytes.
  parallel_ranges(pool_of(a), table.rows(), rows_per_task(J * 200), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++) {
      float* cosines = table.as<float>() + row * 2 * J;
      float* sines = cosines + J;
      for (int64_t j = 0; j < J; j++) {
        double angle = positions[row] * frequencies[j];
        cosines[j] = static_cast<float>(::cos(angle));
        sines[j] = static_cast<float>(::sin(angle));
      }
    }
  });
}

template <typename T>
void rotate(const Args& a) {
  const View& x = a.in[0];
  const int64_t H = x.shape[1];
  const int64_t C = x.shape[2];
  const int64_t half = C / 2;
  const F32 direction = set1(a.attrs[0] < 0 ? -1.0f : 1.0f);
  if (C % 2 != 0) fail("ERR_SHAPE", "rope: the head width C must be even; got %lld", static_cast<long long>(C));
  parallel_ranges(pool_of(a), x.shape[0], rows_per_task(H * C * 2 * sizeof(T)), [&](int64_t begin, int64_t end, int) {
    for (int64_t head = begin * H; head < end * H; head++) {
      const float* cosines = a.in[1].as<float>() + head / H * C;
      const float* sines = cosines + half;
      const T* low = x.as<T>() + head * C;
      const T* high = low + half;
      T* y = a.out[0].as<T>() + head * C;
      for_vectors(half, [&](int64_t i, auto vector) {
        F32 c = vector.load(cosines + i);
        F32 s = vector.load(sines + i) * direction;
        F32 l = vector.load(low + i);
        F32 h = vector.load(high + i);
        vector.store(y + i, l * c - h * s);
        vector.store(y + half + i, fma(h, c, l * s));
      });
    }
  });
}

}  // namespace rope_detail

CARAVAN_KERNEL(rope_table, cpu, "positions[N]:i32 frequencies[J]:f64 -> table[N,C]:f32 | C") {
  rope_detail::fill_table(a);
}

CARAVAN_KERNEL(rope, cpu, "x[N,H,C] table[N,C]:f32 -> y[N,H,C] | direction") {
  with_f32_or_bf16("rope", a.in[0].dtype, [&]<typename T>(T) { rope_detail::rotate<T>(a); });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
