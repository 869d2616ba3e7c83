// y = x * rstd * w (+ residual), rstd = 1 / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019). Saved for backward: rstd.
// A row is read twice, the second time from L1; traffic per element: forward 2 values, with residual 3, backward 3 (4
// with dx0), add_rms_norm 4. Squares, sums and products are f32 also for bf16, as the mean of squares of a bf16 row
// would lose half its digits.
#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace rms_norm_detail {

/** Rows whose dw is summed in one run. Fixed, because it decides the order of the sum; 64 rows keep the extra traffic
 * of the partial sums near 1 / 64 of the data. */
constexpr int64_t kChunkRows = 64;

template <typename T>
float rstd_of(const T* x, int64_t D, float eps) {
  float squares = sum_vectors(D, [&](F32 sum, int64_t i, auto vector) {
    F32 v = vector.load(x + i);
    return fma(v, v, sum);
  });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(D < 1 ? 1 : D) + eps);
}

template <typename T>
void forward(const Args& a) {
  const View& x = a.in[0];
  const T* w = a.in[1].as<T>();
  const T* residual = a.in[2].as<T>();
  float* rstd = a.out[1].as<float>();
  const float eps = static_cast<float>(a.attrs[0]);
  const int64_t D = x.last();
  const int64_t row_bytes = D * static_cast<int64_t>(sizeof(T)) * (residual != nullptr ? 3 : 2);
  parallel_ranges(pool_of(a), x.rows(), rows_per_task(row_bytes), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++) {
      const T* xr = x.as<T>() + row * D;
      T* yr = a.out[0].as<T>() + row * D;
      rstd[row] = rstd_of(xr, D, eps);
      const F32 scale = set1(rstd[row]);
      if (residual != nullptr) {
        const T* rr = residual + row * D;
        for_vectors(D, [&](int64_t i, auto vector) {
          vector.store(yr + i, fma(vector.load(xr + i) * scale, vector.load(w + i), vector.load(rr + i)));
        });
      } else {
        for_vectors(
            D, [&](int64_t i, auto vector) { vector.store(yr + i, vector.load(xr + i) * scale * vector.load(w + i)); });
      }
    }
  });
}

template <typename T>
void forward_of_sum(const Args& a) {
  const View& x = a.in[0];
  const T* w = a.in[2].as<T>();
  float* rstd = a.out[2].as<float>();
  const float eps = static_cast<float>(a.attrs[0]);
  const int64_t D = x.last();
  const int64_t row_bytes = D * static_cast<int64_t>(sizeof(T)) * 4;
  parallel_ranges(pool_of(a), x.rows(), rows_per_task(row_bytes), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++) {
      const T* xr = x.as<T>() + row * D;
      const T* rr = a.in[1].as<T>() + row * D;
      T* yr = a.out[0].as<T>() + row * D;
      T* sr = a.out[1].as<T>() + row * D;
      for_vectors(D, [&](int64_t i, auto vector) { vector.store(sr + i, vector.load(xr + i) + vector.load(rr + i)); });
      // The norm is taken of the sum as stored, so that backward, which reads it, sees the very same function.
      rstd[row] = rstd_of(sr, D, eps);
      const F32 scale = set1(rstd[row]);
      for_vectors(
          D, [&](int64_t i, auto vector) { vector.store(yr + i, vector.load(sr + i) * scale * vector.load(w + i)); });
    }
  });
}

/** Adds up rows of `partial` [chunks, D] into dw [D], in chunk order. */
void combine(ThreadPool& pool, const float* partial, int64_t chunks, int64_t D, float* dw) {
  constexpr int64_t kLine = 16;  // floats of a cache line: two tasks never write to the same one
  int64_t columns = rows_per_task(chunks * 4 * kLine) * kLine;
  parallel_ranges(pool, D, columns, [&](int64_t begin, int64_t end, int) {
    for_vectors(end - begin, [&](int64_t i, auto vector) { vector.store(dw + begin + i, zero()); });
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const float* from = partial + chunk * D + begin;
      for_vectors(end - begin, [&](int64_t i, auto vector) {
        vector.store(dw + begin + i, vector.load(dw + begin + i) + vector.load(from + i));
      });
    }
  });
}

/** With u = dy * w: dx = rstd * (u - x * rstd^2 * mean(u * x)) (+ dx0) and dw = sum over rows of dy * x * rstd. */
template <typename T>
void backward(const Args& a) {
  const View& x = a.in[1];
  const T* w = a.in[2].as<T>();
  const float* rstd = a.in[3].as<float>();
  const T* dx0 = a.in[4].as<T>();
  float* dw = a.out[1].as<float>();
  const int64_t D = x.last();
  const int64_t chunks = (x.rows() + kChunkRows - 1) / kChunkRows;
  Scratch scratch(a.device, static_cast<size_t>(chunks > 1 ? chunks * D * 4 : 0));
  float* partial = chunks > 1 ? scratch.as<float>() : dw;
  if (chunks == 0) combine(pool_of(a), partial, 0, D, dw);

  parallel_ranges(pool_of(a), x.rows(), kChunkRows, [&](int64_t begin, int64_t end, int) {
    float* sum = partial + begin / kChunkRows * D;
    for_vectors(D, [&](int64_t i, auto vector) { vector.store(sum + i, zero()); });
    for (int64_t row = begin; row < end; row++) {
      const T* xr = x.as<T>() + row * D;
      const T* dyr = a.in[0].as<T>() + row * D;
      T* dxr = a.out[0].as<T>() + row * D;
      float dot = sum_vectors(D, [&](F32 running, int64_t i, auto vector) {
        return fma(vector.load(dyr + i) * vector.load(w + i), vector.load(xr + i), running);
      });
      const F32 scale = set1(rstd[row]);
      const F32 mean = set1(dot / static_cast<float>(D) * rstd[row] * rstd[row]);
      const T* dx0r = dx0 != nullptr ? dx0 + row * D : nullptr;
      for_vectors(D, [&](int64_t i, auto vector) {
        F32 xv = vector.load(xr + i);
        F32 dyv = vector.load(dyr + i);
        F32 dx = scale * (dyv * vector.load(w + i) - xv * mean);
        if (dx0r != nullptr) dx = dx + vector.load(dx0r + i);
        vector.store(sum + i, fma(dyv, xv * scale, vector.load(sum + i)));
        vector.store(dxr + i, dx);
      });
    }
  });
  if (chunks > 1) combine(pool_of(a), partial, chunks, D, dw);
}

}  // namespace rms_norm_detail

CARAVAN_KERNEL(rms_norm, cpu, "x[*,D] w[D] residual[*,D]? -> y[*,D] rstd[*]:f32 | eps") {
  with_f32_or_bf16("rms_norm", a.in[0].dtype, [&]<typename T>(T) { rms_norm_detail::forward<T>(a); });
}

CARAVAN_KERNEL(rms_norm_backward, cpu, "dy[*,D] x[*,D] w[D] rstd[*]:f32 dx0[*,D]? -> dx[*,D] dw[D]:f32") {
  with_f32_or_bf16("rms_norm_backward", a.in[0].dtype, [&]<typename T>(T) { rms_norm_detail::backward<T>(a); });
}

CARAVAN_KERNEL(add_rms_norm, cpu, "x[*,D] residual[*,D] w[D] -> y[*,D] sum[*,D] rstd[*]:f32 | eps") {
  with_f32_or_bf16("add_rms_norm", a.in[0].dtype, [&]<typename T>(T) { rms_norm_detail::forward_of_sum<T>(a); });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
