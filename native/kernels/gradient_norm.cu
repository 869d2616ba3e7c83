// Global gradient norm and what follows from it on the device, as gradient_norm.cc: no scalar ever comes to the host.
// Squares and sums are f64. Chunks of a fixed size are summed apart, one block each, and the chunks by one block, so
// the order depends on the number of elements alone. Traffic: one read of the gradients.
#include "core/scratch.h"
#include "cuda/packs.h"
#include "cuda/reduce.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

constexpr int64_t kChunk = 16384;
constexpr int kSumThreads = 512;

template <typename T, bool kVector>
__global__ void __launch_bounds__(kSpanThreads) squared_sums(const T* x, int64_t count, double* partial) {
  constexpr int kWidth = 16 / sizeof(T);
  const int64_t begin = int64_t{blockIdx.x} * kChunk;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t at = int64_t{threadIdx.x} * kWidth; at < kChunk; at += int64_t{kSpanThreads} * kWidth) {
    const Span<T, kWidth> span = load_span<kVector, kWidth>(x + begin + at, span_left<kWidth>(begin + at, count));
#pragma unroll
    for (int k = 0; k < kWidth; k++) {
      const double value = widen(span.x[k]);
      sum = fma(value, value, sum);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/** sum += partial[0] + ... + partial[count - 1]. */
__global__ void __launch_bounds__(kSumThreads) add_partials(const double* partial, int64_t count, double* sum) {
  double own = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) own += partial[i];
  const double total = block_sum(own);
  if (threadIdx.x == 0) *sum += total;
}

__global__ void spoil(double* sum) { *sum = __longlong_as_double(0x7ff8000000000000LL); }

template <typename T>
void add(const Args& a) {
  const View& g = a.in[0];
  double* sum = a.in[1].as<double>();
  const int64_t count = g.count();
  const int64_t chunks = ceil_div(count, kChunk);
  if (chunks == 0) return;
  try {
    Scratch scratch(a.device, static_cast<size_t>(chunks) * sizeof(double));
    double* partial = scratch.as<double>();
    launch(a, {static_cast<unsigned>(chunks), kSpanThreads},
           is_aligned(g.as<T>()) ? squared_sums<T, true> : squared_sums<T, false>, g.as<T>(), count, partial);
    launch(a, {1, kSumThreads}, add_partials, partial, chunks, sum);
  } catch (...) {
    // The sum becomes not a number, so that clip_control lets no update pass: a norm without one of its terms would.
    launch(a, {1, 1}, spoil, sum);
    throw;
  }
}

// control = {lr, gradient_scale, finite, bias1, bias2, norm, 0, 0}. The 1e-6 is torch.nn.utils.clip_grad_norm_'s.
__global__ void write_control(const double* sum, float* control, double scale, double max_norm) {
  const double norm = __dmul_rn(sqrt(*sum), scale);
  double shrink = max_norm > 0.0 ? max_norm / (norm + 1e-6) : 1.0;
  if (!(shrink < 1.0)) shrink = 1.0;
  control[1] = static_cast<float>(scale * shrink);
  control[2] = norm - norm == 0.0 ? 1.0f : 0.0f;  // neither infinite nor a NaN
  control[5] = static_cast<float>(norm);
}

CARAVAN_KERNEL(squared_sum_add, cuda, "g[*] sum[1]:f64! ->") {
  with_float_type("squared_sum_add", a.in[0].dtype, [&]<typename T>(T) { add<T>(a); });
}

CARAVAN_KERNEL(clip_control, cuda, "sum[1]:f64 control[8]:f32! -> | scale max_norm") {
  launch(a, {1, 1}, write_control, a.in[0].as<double>(), a.in[1].as<float>(), a.attrs[0], a.attrs[1]);
}

}  // namespace
}  // namespace caravan::cuda
