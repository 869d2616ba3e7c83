// y = silu(gate) * up, silu(g) = g * sigmoid(g) (Shazeer 2020). Nothing is saved: backward recomputes the sigmoid from
// gate, which costs less than reading it. f32 arithmetic also for bf16. Traffic per element: forward 3 values,
// backward 5.
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace swiglu_detail {

template <typename T>
void forward(const Args& a) {
  parallel_ranges(pool_of(a), a.in[0].count(), rows_per_task(3 * sizeof(T)), [&](int64_t begin, int64_t end, int) {
    const T* gate = a.in[0].as<T>() + begin;
    const T* up = a.in[1].as<T>() + begin;
    T* y = a.out[0].as<T>() + begin;
    for_vectors(end - begin, [&](int64_t i, auto vector) {
      F32 g = vector.load(gate + i);
      vector.store(y + i, g / (set1(1.0f) + CARAVAN_ISA::exp(-g)) * vector.load(up + i));
    });
  });
}

/** dup = dy * silu(g); dgate = dy * up * s * (1 + g * (1 - s)) with s = sigmoid(g). */
template <typename T>
void backward(const Args& a) {
  parallel_ranges(pool_of(a), a.in[0].count(), rows_per_task(5 * sizeof(T)), [&](int64_t begin, int64_t end, int) {
    const T* dy = a.in[0].as<T>() + begin;
    const T* gate = a.in[1].as<T>() + begin;
    const T* up = a.in[2].as<T>() + begin;
    T* dgate = a.out[0].as<T>() + begin;
    T* dup = a.out[1].as<T>() + begin;
    for_vectors(end - begin, [&](int64_t i, auto vector) {
      F32 g = vector.load(gate + i);
      F32 s = sigmoid(g);
      F32 dyv = vector.load(dy + i);
      F32 slope = s * fma(g, set1(1.0f) - s, set1(1.0f));
      vector.store(dgate + i, dyv * vector.load(up + i) * slope);
      vector.store(dup + i, dyv * (g * s));
    });
  });
}

}  // namespace swiglu_detail

CARAVAN_KERNEL(swiglu, cpu, "gate[*,F] up[*,F] -> y[*,F]") {
  with_f32_or_bf16("swiglu", a.in[0].dtype, [&]<typename T>(T) { swiglu_detail::forward<T>(a); });
}

CARAVAN_KERNEL(swiglu_backward, cpu, "dy[*,F] gate[*,F] up[*,F] -> dgate[*,F] dup[*,F]") {
  with_f32_or_bf16("swiglu_backward", a.in[0].dtype, [&]<typename T>(T) { swiglu_detail::backward<T>(a); });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
