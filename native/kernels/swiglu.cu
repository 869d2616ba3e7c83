// swiglu and its gradient on the device, as swiglu.cc: 16 bytes of each operand a thread. Traffic per element: forward
// 3 values, backward 5. The quotient is the approximate one (2 units in the last place): with the exact one the
// arithmetic of bf16 would take longer than the memory.
#include "cuda/chain.h"
#include "cuda/packs.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

template <typename T, bool kVector>
__global__ void __launch_bounds__(kSpanThreads) forward(const T* gate, const T* up, T* y, int64_t count) {
  await_earlier();
  constexpr int kWidth = 16 / sizeof(T);
  const int64_t at = own_span<kWidth>();
  const int left = span_left<kWidth>(at, count);
  const Span<T, kWidth> g = load_span<kVector, kWidth>(gate + at, left);
  const Span<T, kWidth> u = load_span<kVector, kWidth>(up + at, left);
  float out[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; k++) {
    const float x = widen(g.x[k]);
    out[k] = __fdividef(x, 1.0f + expf(-x)) * widen(u.x[k]);
  }
  store_span<kVector>(y + at, narrow_span<T, kWidth>(out), left);
}

/** dup = dy * silu(g); dgate = dy * up * s * (1 + g * (1 - s)) with s = sigmoid(g). */
template <typename T, bool kVector>
__global__ void __launch_bounds__(kSpanThreads)
    backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t count) {
  constexpr int kWidth = 16 / sizeof(T);
  const int64_t at = own_span<kWidth>();
  const int left = span_left<kWidth>(at, count);
  const Span<T, kWidth> d = load_span<kVector, kWidth>(dy + at, left);
  const Span<T, kWidth> g = load_span<kVector, kWidth>(gate + at, left);
  const Span<T, kWidth> u = load_span<kVector, kWidth>(up + at, left);
  float of_gate[kWidth], of_up[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; k++) {
    const float x = widen(g.x[k]), dyk = widen(d.x[k]);
    const float s = __fdividef(1.0f, 1.0f + expf(-x));
    of_gate[k] = dyk * widen(u.x[k]) * (s * fmaf(x, 1.0f - s, 1.0f));
    of_up[k] = dyk * (x * s);
  }
  store_span<kVector>(dgate + at, narrow_span<T, kWidth>(of_gate), left);
  store_span<kVector>(dup + at, narrow_span<T, kWidth>(of_up), left);
}

CARAVAN_KERNEL(swiglu, cuda, "gate[*,F] up[*,F] -> y[*,F]") {
  const int64_t count = a.in[0].count();
  with_f32_or_bf16("swiglu", a.in[0].dtype, [&]<typename T>(T) {
    const T *gate = a.in[0].as<T>(), *up = a.in[1].as<T>();
    T* y = a.out[0].as<T>();
    launch_chained(a, {span_blocks<16 / sizeof(T)>(count), kSpanThreads},
                   is_aligned(gate, up, y) ? forward<T, true> : forward<T, false>, gate, up, y, count);
  });
}

CARAVAN_KERNEL(swiglu_backward, cuda, "dy[*,F] gate[*,F] up[*,F] -> dgate[*,F] dup[*,F]") {
  const int64_t count = a.in[0].count();
  with_f32_or_bf16("swiglu_backward", a.in[0].dtype, [&]<typename T>(T) {
    const T *dy = a.in[0].as<T>(), *gate = a.in[1].as<T>(), *up = a.in[2].as<T>();
    T *dgate = a.out[0].as<T>(), *dup = a.out[1].as<T>();
    launch(a, {span_blocks<16 / sizeof(T)>(count), kSpanThreads},
           is_aligned(dy, gate, up, dgate, dup) ? backward<T, true> : backward<T, false>, dy, gate, up, dgate, dup,
           count);
  });
}

}  // namespace
}  // namespace caravan::cuda
