// AdamW (Loshchilov & Hutter 2019) in the order of torch.optim.AdamW: p -= lr * weight_decay * p; m and v; then
// p -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps). Learning rate, gradient scale (clipping), bias corrections and
// the flag "gradients are finite" are read from `control` on the device, so the host never waits for a norm. With bf16
// weights the truth is the f32 `master`, of which p is the rounded copy: a bf16 p alone would swallow every update
// below 2^-9 of a weight. Traffic per parameter: 28 bytes for f32 p, 30 with master and bf16 p.
#include "core/kernel_registry.h"
#include "cpu/device.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace adamw_detail {

/** The eight numbers on the device; see clip_control for scale, finite and norm. */
struct Control {
  float lr, gradient_scale, finite, bias1, bias2, norm, unused[2];
};

struct Constants {
  F32 gradient_scale, decay, step, root_bias2, eps, one_minus_beta1, beta2, one_minus_beta2;
};

Constants constants_of(const Args& a) {
  const Control& c = *a.in[5].as<const Control>();
  const double lr = c.lr;
  return {
      .gradient_scale = set1(c.gradient_scale),
      // Kept as a small number to be subtracted: 1 - lr * wd in f32 would round a decay of 1e-7 to nothing or to
      // double.
      .decay = set1(static_cast<float>(-lr * a.attrs[3])),
      .step = set1(static_cast<float>(-lr / c.bias1)),
      .root_bias2 = set1(static_cast<float>(__builtin_sqrt(static_cast<double>(c.bias2)))),
      .eps = set1(static_cast<float>(a.attrs[2])),
      .one_minus_beta1 = set1(static_cast<float>(1.0 - a.attrs[0])),
      .beta2 = set1(static_cast<float>(a.attrs[1])),
      .one_minus_beta2 = set1(static_cast<float>(1.0 - a.attrs[1])),
  };
}

/** S: element of the truth (master when there is one, else p itself), T: element of the copy (null: there is none). */
template <typename S, typename T>
void update(const Args& a, S* truth, T* copy, int64_t count) {
  const Constants k = constants_of(a);
  parallel_ranges(pool_of(a), count, rows_per_task(28), [&](int64_t begin, int64_t end, int) {
    const float* g = a.in[2].as<float>() + begin;
    float* m = a.in[3].as<float>() + begin;
    float* v = a.in[4].as<float>() + begin;
    S* p = truth + begin;
    for_vectors(end - begin, [&](int64_t i, auto vector) {
      F32 gradient = vector.load(g + i) * k.gradient_scale;
      F32 weight = vector.load(p + i);
      F32 first = vector.load(m + i);
      first = fma(gradient - first, k.one_minus_beta1, first);
      F32 second = fma(gradient * gradient, k.one_minus_beta2, vector.load(v + i) * k.beta2);
      F32 denominator = sqrt(second) / k.root_bias2 + k.eps;
      // Decay and step are added up before they meet the much larger weight: one rounding of it instead of two.
      weight = weight + fma(weight, k.decay, k.step * (first / denominator));
      vector.store(m + i, first);
      vector.store(v + i, second);
      vector.store(p + i, weight);
      if (copy != nullptr) vector.store(copy + begin + i, weight);
    });
  });
}

}  // namespace adamw_detail

CARAVAN_KERNEL(adamw, cpu,
               "p[*]! master[*]:f32? g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  const View& p = a.in[0];
  const View& master = a.in[1];
  if (a.in[5].as<const adamw_detail::Control>()->finite == 0.0f) return;
  with_f32_or_bf16("adamw", p.dtype, [&]<typename T>(T) {
    if (master.present()) {
      adamw_detail::update(a, master.as<float>(), p.as<T>(), p.count());
    } else {
      adamw_detail::update(a, p.as<T>(), static_cast<T*>(nullptr), p.count());
    }
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
