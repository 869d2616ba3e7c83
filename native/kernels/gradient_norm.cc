// Global gradient norm and what follows from it, all on the device: squared_sum_add is called once per gradient, then
// clip_control writes scale, flag and norm where adamw reads them. Squares and sums are f64: an f32 square overflows
// above 1.8e19, and would report a gradient as infinite that can still be clipped. Traffic: one read of the gradients.
#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace gradient_norm_detail {

/** Elements summed in one run; fixed, because it decides the order of the sum. */
constexpr int64_t kChunk = 16384;

/** f32 or f64, in 16 chains that the compiler keeps in vectors; combined by halves. */
template <typename T>
double squared_sum(const T* x, int64_t count) {
  constexpr int kChains = 16;
  double chains[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int j = 0; j < kChains; j++) chains[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  }
  for (int j = 0; i + j < count; j++) chains[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  for (int half = kChains / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; j++) chains[j] += chains[j + half];
  }
  return chains[0];
}

double squared_sum(const bf16* x, int64_t count) {
  // Widened a block at a time: the bf16 vectors of row_loop.h, then the loop above.
  constexpr int64_t kBlock = 1024;
  float wide[kBlock];
  double sum = 0.0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = count - begin < kBlock ? count - begin : kBlock;
    for_vectors(n, [&](int64_t i, auto vector) { vector.store(wide + i, vector.load(x + begin + i)); });
    sum += squared_sum(wide, n);
  }
  return sum;
}

template <typename T>
void add(const Args& a) {
  const View& g = a.in[0];
  double* sum = a.in[1].as<double>();
  const int64_t count = g.count();
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  // A call that fails leaves a sum that is not a number, so that clip_control lets no update pass: a norm without one
  // of its terms would.
  const double before = *sum;
  *sum = __builtin_nan("");
  Scratch scratch(a.device, static_cast<size_t>(chunks) * sizeof(double));
  double* partial = scratch.as<double>();
  parallel_ranges(pool_of(a), count, kChunk, [&](int64_t begin, int64_t end, int) {
    partial[begin / kChunk] = squared_sum(g.as<T>() + begin, end - begin);
  });
  double total = 0.0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) total += partial[chunk];
  *sum = before + total;
}

}  // namespace gradient_norm_detail

CARAVAN_KERNEL(squared_sum_add, cpu, "g[*] sum[1]:f64! ->") {
  with_float_type("squared_sum_add", a.in[0].dtype, [&]<typename T>(T) { gradient_norm_detail::add<T>(a); });
}

// control = {lr, gradient_scale, finite, bias1, bias2, norm, 0, 0}. The 1e-6 is torch.nn.utils.clip_grad_norm_'s.
CARAVAN_KERNEL(clip_control, cpu, "sum[1]:f64 control[8]:f32! -> | scale max_norm") {
  const double scale = a.attrs[0];
  const double max_norm = a.attrs[1];
  const double norm = __builtin_sqrt(*a.in[0].as<double>()) * scale;
  float* control = a.in[1].as<float>();
  double shrink = max_norm > 0.0 ? max_norm / (norm + 1e-6) : 1.0;
  if (!(shrink < 1.0)) shrink = 1.0;
  control[1] = static_cast<float>(scale * shrink);
  control[2] = __builtin_isfinite(norm) ? 1.0f : 0.0f;
  control[5] = static_cast<float>(norm);
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
