// AdamW on the device, as adamw.cc: lr, gradient scale, bias corrections and the flag "gradients are finite" are read
// from `control` in device memory. Four parameters a thread, each array read and written once: 28 bytes a parameter
// for f32 p, 30 with master and bf16 p.
#include "cuda/packs.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

constexpr int kWidth = 4;

/** The eight numbers on the device; see clip_control for scale, finite and norm. */
struct Control {
  float lr, gradient_scale, finite, bias1, bias2, norm, unused[2];
};

struct Attributes {
  double weight_decay;
  float eps, one_minus_beta1, beta2, one_minus_beta2;
};

/** S: element of the truth (master when there is one, else p itself), T: element of the copy (null: there is none). */
template <typename S, typename T>
struct Update {
  S* truth;
  T* copy;
  const float* g;
  float* m;
  float* v;
  const Control* control;
  int64_t count;
  Attributes k;
};

template <typename S, typename T, bool kVector>
__global__ void __launch_bounds__(kSpanThreads, 5) update(Update<S, T> p) {
  const Control& c = *p.control;
  if (c.finite == 0.0f) return;
  const int64_t at = own_span<kWidth>();
  const int left = span_left<kWidth>(at, p.count);
  const Span<float, kWidth> g = load_span<kVector, kWidth>(p.g + at, left);
  const Span<S, kWidth> before = load_span<kVector, kWidth>(p.truth + at, left);
  Span<float, kWidth> m = load_span<kVector, kWidth>(p.m + at, left);
  Span<float, kWidth> v = load_span<kVector, kWidth>(p.v + at, left);
  // Kept as a small number to be subtracted: 1 - lr * wd in f32 would round a decay of 1e-7 to nothing or to double.
  const float decay = static_cast<float>(-static_cast<double>(c.lr) * p.k.weight_decay);
  const float step = -c.lr / c.bias1;
  const float root_bias2 = sqrtf(c.bias2);
  float weight[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; k++) {
    const float gradient = g.x[k] * c.gradient_scale;
    m.x[k] = fmaf(gradient - m.x[k], p.k.one_minus_beta1, m.x[k]);
    v.x[k] = fmaf(gradient * gradient, p.k.one_minus_beta2, v.x[k] * p.k.beta2);
    const float denominator = sqrtf(v.x[k]) / root_bias2 + p.k.eps;
    // Decay and step are added up before they meet the much larger weight: one rounding of it instead of two.
    const float old = widen(before.x[k]);
    weight[k] = old + fmaf(old, decay, step * (m.x[k] / denominator));
  }
  store_span<kVector>(p.m + at, m, left);
  store_span<kVector>(p.v + at, v, left);
  store_span<kVector>(p.truth + at, narrow_span<S, kWidth>(weight), left);
  if (p.copy != nullptr) store_span<kVector>(p.copy + at, narrow_span<T, kWidth>(weight), left);
}

template <typename S, typename T>
void run(const Args& a, S* truth, T* copy) {
  const Update<S, T> p = {truth,
                          copy,
                          a.in[2].as<float>(),
                          a.in[3].as<float>(),
                          a.in[4].as<float>(),
                          a.in[5].as<Control>(),
                          a.in[0].count(),
                          {a.attrs[3], static_cast<float>(a.attrs[2]), static_cast<float>(1.0 - a.attrs[0]),
                           static_cast<float>(a.attrs[1]), static_cast<float>(1.0 - a.attrs[1])}};
  launch(a, {span_blocks<kWidth>(p.count), kSpanThreads},
         is_aligned(p.truth, p.copy, p.g, p.m, p.v) ? update<S, T, true> : update<S, T, false>, p);
}

CARAVAN_KERNEL(adamw, cuda,
               "p[*]! master[*]:f32? g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  const View &p = a.in[0], &master = a.in[1];
  with_f32_or_bf16("adamw", p.dtype, [&]<typename T>(T) {
    if (master.present()) return run(a, master.as<float>(), p.as<T>());
    run(a, p.as<T>(), static_cast<T*>(nullptr));
  });
}

}  // namespace
}  // namespace caravan::cuda
