// AdamW on the device, as adamw.cc: lr, gradient scale, bias corrections and the flag "gradients are finite" are read
// from `control` in device memory. Four parameters a thread, each array read and written once: 28 bytes a parameter
// for f32 p, 30 with master and bf16 p, 28 with a split master, 8 less with bf16 moments.
#include "cuda/packs.h"
#include "kernels/adamw_state.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

constexpr int kWidth = 4;

/** The eight numbers on the device; see clip_control for scale, finite and norm. */
struct Control {
  float lr, gradient_scale, finite, bias1, bias2, norm, update, unused;
};

struct Attributes {
  double weight_decay;
  float eps, one_minus_beta1, beta2, one_minus_beta2;
};

/** Where the f32 weight is: p itself, a master of its own, or p and the lower half together. */
enum class Truth { kParameter, kMaster, kSplit };

template <typename T, typename Moment>
struct Update {
  T* p;
  float* master;
  bf16* low;
  const float* g;
  Moment *m, *v;
  const Control* control;
  int64_t count;
  Attributes k;
};

template <typename T>
__device__ __forceinline__ Span<T, kWidth> rounded_moment(const float (&x)[kWidth], uint32_t which, uint32_t number,
                                                          int64_t at) {
  Span<T, kWidth> span;
#pragma unroll
  for (int k = 0; k < kWidth; k++) {
    if constexpr (sizeof(T) == 2) {
      span.x[k] = round_at_random(x[k], rounding_bits(number, which, static_cast<uint64_t>(at + k)));
    } else {
      span.x[k] = x[k];
    }
  }
  return span;
}

template <typename T, typename Moment, Truth kTruth, bool kVector>
__global__ void __launch_bounds__(kSpanThreads, 4) update(Update<T, Moment> p) {
  const Control& c = *p.control;
  if (c.finite == 0.0f) return;
  const int64_t at = own_span<kWidth>();
  const int left = span_left<kWidth>(at, p.count);
  const Span<float, kWidth> g = load_span<kVector, kWidth>(p.g + at, left);
  const Span<Moment, kWidth> old_m = load_span<kVector, kWidth>(p.m + at, left);
  const Span<Moment, kWidth> old_v = load_span<kVector, kWidth>(p.v + at, left);
  Span<T, kWidth> upper;
  Span<float, kWidth> master;
  Span<bf16, kWidth> low;
  if constexpr (kTruth == Truth::kMaster) {
    master = load_span<kVector, kWidth>(p.master + at, left);
  } else {
    upper = load_span<kVector, kWidth>(p.p + at, left);
  }
  if constexpr (kTruth == Truth::kSplit) low = load_span<kVector, kWidth>(p.low + at, left);
  // Kept as a small number to be subtracted: 1 - lr * wd in f32 would round a decay of 1e-7 to nothing or to double.
  const float decay = static_cast<float>(-static_cast<double>(c.lr) * p.k.weight_decay);
  const float step = -c.lr / c.bias1;
  const float root_bias2 = sqrtf(c.bias2);
  float weight[kWidth], m[kWidth], v[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; k++) {
    const float gradient = __fmul_rn(g.x[k], c.gradient_scale);  // rounded before m is subtracted, as on the CPU
    m[k] = widen(old_m.x[k]);
    m[k] = fmaf(gradient - m[k], p.k.one_minus_beta1, m[k]);
    v[k] = fmaf(gradient * gradient, p.k.one_minus_beta2, widen(old_v.x[k]) * p.k.beta2);
    const float denominator = sqrtf(v[k]) / root_bias2 + p.k.eps;
    float old;
    if constexpr (kTruth == Truth::kMaster) {
      old = master.x[k];
    } else if constexpr (kTruth == Truth::kSplit) {
      old = join_halves(upper.x[k], low.x[k]);
    } else {
      old = widen(upper.x[k]);
    }
    // Decay and step are added up before they meet the much larger weight: one rounding of it instead of two.
    weight[k] = old + fmaf(old, decay, step * (m[k] / denominator));
  }
  const uint32_t number = static_cast<uint32_t>(c.update);
  store_span<kVector>(p.m + at, rounded_moment<Moment>(m, 0, number, at), left);
  store_span<kVector>(p.v + at, rounded_moment<Moment>(v, 1, number, at), left);
  if constexpr (kTruth == Truth::kSplit) {
#pragma unroll
    for (int k = 0; k < kWidth; k++) split_halves(weight[k], &upper.x[k], &low.x[k]);
    store_span<kVector>(p.p + at, upper, left);
    store_span<kVector>(p.low + at, low, left);
    return;
  }
  if constexpr (kTruth == Truth::kMaster) store_span<kVector>(p.master + at, narrow_span<float, kWidth>(weight), left);
  store_span<kVector>(p.p + at, narrow_span<T, kWidth>(weight), left);
}

template <Truth kTruth, typename T, typename Moment>
void run(const Args& a) {
  const float beta1 = static_cast<float>(1.0 - a.attrs[0]);
  const Attributes k = {a.attrs[3], static_cast<float>(a.attrs[2]), beta1, static_cast<float>(a.attrs[1]),
                        static_cast<float>(1.0 - a.attrs[1])};
  const Update<T, Moment> p = {a.in[0].as<T>(),       a.in[1].as<float>(),  a.in[1].as<bf16>(),
                               a.in[2].as<float>(),   a.in[3].as<Moment>(), a.in[4].as<Moment>(),
                               a.in[5].as<Control>(), a.in[0].count(),      k};
  launch(a, {span_blocks<kWidth>(p.count), kSpanThreads},
         is_aligned(p.p, p.master, p.g, p.m, p.v) ? update<T, Moment, kTruth, true> : update<T, Moment, kTruth, false>,
         p);
}

template <typename Moment>
void run_whole(const char* op, const Args& a) {
  with_f32_or_bf16(op, a.in[0].dtype, [&]<typename T>(T) {
    if (a.in[1].present()) return run<Truth::kMaster, T, Moment>(a);
    run<Truth::kParameter, T, Moment>(a);
  });
}

CARAVAN_KERNEL(adamw, cuda,
               "p[*]! master[*]:f32? g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  run_whole<float>("adamw", a);
}

CARAVAN_KERNEL(
    adamw_split, cuda,
    "p[*]:bf16! low[*]:bf16! g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  run<Truth::kSplit, bf16, float>(a);
}

CARAVAN_KERNEL(adamw_bf16_moments, cuda,
               "p[*]! master[*]:f32? g[*]:f32 m[*]:bf16! v[*]:bf16! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  run_whole<bf16>("adamw_bf16_moments", a);
}

CARAVAN_KERNEL(
    adamw_split_bf16_moments, cuda,
    "p[*]:bf16! low[*]:bf16! g[*]:f32 m[*]:bf16! v[*]:bf16! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  run<Truth::kSplit, bf16, bf16>(a);
}

}  // namespace
}  // namespace caravan::cuda
