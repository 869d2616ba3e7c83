// Global gradient norm and what follows from it, all on the device: squared_sum_add is called once per gradient, then
// clip_control writes scale, flag and norm where adamw reads them. Squares and sums are f64: an f32 square overflows
// above 1.8e19, and would report a gradient as infinite that can still be clipped. Traffic: one read of the gradients.
#include "core/kernel_registry.h"
#include "cpu/device.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace gradient_norm_detail {

/** Elements summed in one run; fixed, because it decides the order of the sum. */
constexpr int64_t kChunk = 16384;

double squared_sum(const double* x, int64_t count) {
  double chains[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int j = 0; j < 8; j++) chains[j] += x[i + j] * x[i + j];
  }
  for (int j = 0; i + j < count; j++) chains[j] += x[i + j] * x[i + j];
  return ((chains[0] + chains[4]) + (chains[2] + chains[6])) + ((chains[1] + chains[5]) + (chains[3] + chains[7]));
}

template <typename T>
double squared_sum(const T* x, int64_t count) {
  // Widened a block at a time, so that the compiler sees plain f64 loops.
  constexpr int64_t kBlock = 256;
  double wide[kBlock];
  float narrow[kBlock];
  double sum = 0.0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    int64_t n = count - begin < kBlock ? count - begin : kBlock;
    for_vectors(n, [&](int64_t i, auto vector) { vector.store(narrow + i, vector.load(x + begin + i)); });
    for (int64_t i = 0; i < n; i++) wide[i] = static_cast<double>(narrow[i]);
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
  Scratch scratch(a.device, static_cast<size_t>(chunks) * sizeof(double));
  double* partial = scratch.as<double>();
  parallel_ranges(pool_of(a), count, kChunk, [&](int64_t begin, int64_t end, int) {
    partial[begin / kChunk] = squared_sum(g.as<T>() + begin, end - begin);
  });
  double total = 0.0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) total += partial[chunk];
  *sum += total;
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
