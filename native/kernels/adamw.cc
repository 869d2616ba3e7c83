// AdamW (Loshchilov & Hutter 2019) in the order of torch.optim.AdamW: p -= lr * weight_decay * p; m and v; then
// p -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps). Learning rate, gradient scale (clipping), bias corrections and
// the flag "gradients are finite" are read from `control` on the device, so the host never waits for a norm. With bf16
// weights the truth is the f32 `master`, of which p is the rounded copy: a bf16 p alone would swallow every update
// below 2^-9 of a weight. Traffic per parameter: 28 bytes for f32 p, 30 with master and bf16 p, 28 with a split master,
// 8 less with bf16 moments (adamw_state.h has both forms).
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/adamw_state.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace adamw_detail {

/** The eight numbers on the device; see clip_control for scale, finite and norm. */
struct Control {
  float lr, gradient_scale, finite, bias1, bias2, norm, update, unused;
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

/** Elements that are widened and narrowed at a time where the state is not f32: three buffers in L1. */
constexpr int64_t kBlock = 512;

/** One update of `count` weights whose state is f32. */
void update(const Constants& k, const float* g, float* m, float* v, float* weights, int64_t count) {
  for_vectors(count, [&](int64_t i, auto vector) {
    F32 gradient = vector.load(g + i) * k.gradient_scale;
    F32 weight = vector.load(weights + i);
    F32 first = vector.load(m + i);
    first = fma(gradient - first, k.one_minus_beta1, first);
    F32 second = fma(gradient * gradient, k.one_minus_beta2, vector.load(v + i) * k.beta2);
    F32 denominator = sqrt(second) / k.root_bias2 + k.eps;
    // Decay and step are added up before they meet the much larger weight: one rounding of it instead of two.
    weight = weight + fma(weight, k.decay, k.step * (first / denominator));
    vector.store(m + i, first);
    vector.store(v + i, second);
    vector.store(weights + i, weight);
  });
}

/** The weights from element `begin` on as f32: where they lie, or in `buffer`. */
float* open_weights(const View& p, const View& master, int64_t begin, int64_t count, float* buffer) {
  if (master.present() && master.dtype == DType::kF32) return master.as<float>() + begin;
  if (p.dtype == DType::kF32) return p.as<float>() + begin;
  const bf16* high = p.as<bf16>() + begin;
  const bf16* low = master.as<bf16>() + begin;
  for (int64_t i = 0; i < count; i++) buffer[i] = master.present() ? join_halves(high[i], low[i]) : to_f32(high[i]);
  return buffer;
}

void close_weights(const View& p, const View& master, int64_t begin, int64_t count, const float* weights) {
  if (p.dtype == DType::kF32) return;
  bf16* high = p.as<bf16>() + begin;
  if (!master.present() || master.dtype == DType::kF32) {
    for_vectors(count, [&](int64_t i, auto vector) { vector.store(high + i, vector.load(weights + i)); });
    return;
  }
  bf16* low = master.as<bf16>() + begin;
  for (int64_t i = 0; i < count; i++) split_halves(weights[i], high + i, low + i);
}

float* open_moment(const View& moment, int64_t begin, int64_t count, float* buffer) {
  if (moment.dtype == DType::kF32) return moment.as<float>() + begin;
  const bf16* from = moment.as<bf16>() + begin;
  for (int64_t i = 0; i < count; i++) buffer[i] = to_f32(from[i]);
  return buffer;
}

void close_moment(const View& moment, uint32_t which, uint32_t number, int64_t begin, int64_t count,
                  const float* from) {
  if (moment.dtype == DType::kF32) return;
  bf16* to = moment.as<bf16>() + begin;
  for (int64_t i = 0; i < count; i++) {
    to[i] = round_at_random(from[i], rounding_bits(number, which, static_cast<uint64_t>(begin + i)));
  }
}

/** All forms of the state: they are told by the types of the arguments. */
void run(const Args& a) {
  const View &p = a.in[0], &master = a.in[1], &m = a.in[3], &v = a.in[4];
  with_f32_or_bf16("adamw", p.dtype, [](auto) {});  // refuses other types: below, what is not f32 is bf16
  const Control& control = *a.in[5].as<const Control>();
  if (control.finite == 0.0f) return;
  const Constants k = constants_of(a);
  const uint32_t number = static_cast<uint32_t>(control.update);
  parallel_ranges(pool_of(a), p.count(), rows_per_task(28), [&](int64_t begin, int64_t end, int) {
    float buffers[3][kBlock];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = end - at < kBlock ? end - at : kBlock;
      float* weights = open_weights(p, master, at, count, buffers[0]);
      float* first = open_moment(m, at, count, buffers[1]);
      float* second = open_moment(v, at, count, buffers[2]);
      update(k, a.in[2].as<float>() + at, first, second, weights, count);
      close_weights(p, master, at, count, weights);
      close_moment(m, 0, number, at, count, first);
      close_moment(v, 1, number, at, count, second);
    }
  });
}

}  // namespace adamw_detail

CARAVAN_KERNEL(adamw, cpu,
               "p[*]! master[*]:f32? g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  adamw_detail::run(a);
}

CARAVAN_KERNEL(
    adamw_split, cpu,
    "p[*]:bf16! low[*]:bf16! g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  adamw_detail::run(a);
}

CARAVAN_KERNEL(adamw_bf16_moments, cpu,
               "p[*]! master[*]:f32? g[*]:f32 m[*]:bf16! v[*]:bf16! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  adamw_detail::run(a);
}

CARAVAN_KERNEL(
    adamw_split_bf16_moments, cpu,
    "p[*]:bf16! low[*]:bf16! g[*]:f32 m[*]:bf16! v[*]:bf16! control[8]:f32 -> | beta1 beta2 eps weight_decay") {
  adamw_detail::run(a);
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
