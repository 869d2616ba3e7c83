// y = (x - mean(x)) * rstd, rstd = 1 / sqrt(mean((x - mean)^2) + eps) (Ba et al. 2016), without scale and shift. Saved
// for backward: mean, rstd. The variance is taken around the mean in a second pass over the row (in L1): the difference
// of two sums would lose every digit on a row with a large mean. Traffic per element: forward 2 values, backward 3.
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace layer_norm_detail {

template <typename T>
void forward(const Args& a) {
  const View& x = a.in[0];
  float* means = a.out[1].as<float>();
  float* rstds = a.out[2].as<float>();
  const float eps = static_cast<float>(a.attrs[0]);
  const int64_t D = x.last();
  const float width = static_cast<float>(D < 1 ? 1 : D);
  parallel_ranges(pool_of(a), x.rows(), rows_per_task(D * 2 * sizeof(T)), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++) {
      const T* xr = x.as<T>() + row * D;
      T* yr = a.out[0].as<T>() + row * D;
      means[row] = sum_vectors(D, [&](F32 sum, int64_t i, auto vector) { return sum + vector.load(xr + i); }) / width;
      const F32 mean = set1(means[row]);
      float squares = sum_vectors(D, [&](F32 sum, int64_t i, auto vector) {
        F32 centred = vector.load_filled(xr + i, mean) - mean;
        return fma(centred, centred, sum);
      });
      rstds[row] = 1.0f / __builtin_sqrtf(squares / width + eps);
      const F32 scale = set1(rstds[row]);
      for_vectors(D, [&](int64_t i, auto vector) { vector.store(yr + i, (vector.load(xr + i) - mean) * scale); });
    }
  });
}

/** With n = (x - mean) * rstd: dx = rstd * (dy - mean(dy) - n * mean(dy * n)). */
template <typename T>
void backward(const Args& a) {
  const View& x = a.in[1];
  const float* means = a.in[2].as<float>();
  const float* rstds = a.in[3].as<float>();
  const int64_t D = x.last();
  const float width = static_cast<float>(D);
  parallel_ranges(pool_of(a), x.rows(), rows_per_task(D * 3 * sizeof(T)), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++) {
      const T* xr = x.as<T>() + row * D;
      const T* dyr = a.in[0].as<T>() + row * D;
      T* dxr = a.out[0].as<T>() + row * D;
      const F32 mean = set1(means[row]);
      const F32 scale = set1(rstds[row]);
      float sum_dy = sum_vectors(D, [&](F32 sum, int64_t i, auto vector) { return sum + vector.load(dyr + i); });
      float dot = sum_vectors(D, [&](F32 sum, int64_t i, auto vector) {
        return fma(vector.load(dyr + i), (vector.load(xr + i) - mean) * scale, sum);
      });
      const F32 mean_dy = set1(sum_dy / width);
      const F32 mean_dot = set1(dot / width);
      for_vectors(D, [&](int64_t i, auto vector) {
        F32 normal = (vector.load(xr + i) - mean) * scale;
        vector.store(dxr + i, scale * ((vector.load(dyr + i) - mean_dy) - normal * mean_dot));
      });
    }
  });
}

}  // namespace layer_norm_detail

CARAVAN_KERNEL(layer_norm, cpu, "x[*,D] -> y[*,D] mean[*]:f32 rstd[*]:f32 | eps") {
  with_f32_or_bf16("layer_norm", a.in[0].dtype, [&]<typename T>(T) { layer_norm_detail::forward<T>(a); });
}

CARAVAN_KERNEL(layer_norm_backward, cpu, "dy[*,D] x[*,D] mean[*]:f32 rstd[*]:f32 -> dx[*,D]") {
  with_f32_or_bf16("layer_norm_backward", a.in[0].dtype, [&]<typename T>(T) { layer_norm_detail::backward<T>(a); });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
