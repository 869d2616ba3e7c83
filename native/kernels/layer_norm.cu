// layer_norm and its gradient on the device, as layer_norm.cc. A row lives in the registers of its threads
// (cuda/row.h), which makes the variance around the mean cost no second read. Traffic per element: forward 2 values,
// backward 3.
#include "cuda/row.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

template <typename T>
struct Forward {
  const T* x;
  T* y;
  float* mean;
  float* rstd;
  int64_t rows;
  int D;
  int rounds;
  float eps;
};

template <typename S>
__global__ void __launch_bounds__(S::kBlock, S::kResident) forward_rows(Forward<typename S::T> p) {
  const int64_t begin = int64_t{blockIdx.x} * p.rounds * S::kGroups;
  const float size = static_cast<float>(p.D < 1 ? 1 : p.D);
  for_rows<S>(begin, p.rows, p.rounds, [&](int64_t row, bool exists) {
    const int width = exists ? p.D : 0;
    RowOf<S> x;
    x.load(p.x + row * p.D, width);
    float sum = 0.0f;
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at);
#pragma unroll
      for (int k = 0; k < S::kElements; k++) sum += xs.x[k];
    });
    const float mean = group_sum<S>(sum) / size;
    x.forget();
    float squares = 0.0f;
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at);
#pragma unroll
      for (int k = 0; k < S::kElements; k++) {
        // The zeros with which the last pack is filled up are not part of the row.
        const float centred = S::kVector || at + k < width ? xs.x[k] - mean : 0.0f;
        squares = fmaf(centred, centred, squares);
      }
    });
    const float scale = 1.0f / sqrtf(group_sum<S>(squares) / size + p.eps);
    x.forget();
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at);
      RowValues<S> y;
#pragma unroll
      for (int k = 0; k < S::kElements; k++) y.x[k] = (xs.x[k] - mean) * scale;
      RowWords<S>::of(y).store(p.y + row * p.D, width, at);
    });
    if (exists && threadIdx.x % S::kThreads == 0) {
      p.mean[row] = mean;
      p.rstd[row] = scale;
    }
  });
}

template <typename T>
struct Backward {
  const T* dy;
  const T* x;
  const float* mean;
  const float* rstd;
  T* dx;
  int64_t rows;
  int D;
  int rounds;
};

/** With n = (x - mean) * rstd: dx = rstd * (dy - mean(dy) - n * mean(dy * n)). */
template <typename S>
__global__ void __launch_bounds__(S::kBlock, S::kResident) backward_rows(Backward<typename S::T> p) {
  const int64_t begin = int64_t{blockIdx.x} * p.rounds * S::kGroups;
  const float size = static_cast<float>(p.D < 1 ? 1 : p.D);
  for_rows<S>(begin, p.rows, p.rounds, [&](int64_t row, bool exists) {
    const int width = exists ? p.D : 0;
    RowOf<S> x, dy;
    x.load(p.x + row * p.D, width);
    dy.load(p.dy + row * p.D, width);
    const float mean = exists ? p.mean[row] : 0.0f;
    const float scale = exists ? p.rstd[row] : 0.0f;
    float sum = 0.0f, dot = 0.0f;
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at), dys = dy.get(slot, at);
#pragma unroll
      for (int k = 0; k < S::kElements; k++) {
        sum += dys.x[k];
        dot = fmaf(dys.x[k], (xs.x[k] - mean) * scale, dot);
      }
    });
    const float mean_dy = group_sum<S>(sum) / size;
    const float mean_dot = group_sum<S>(dot) / size;
    x.forget();
    dy.forget();
    for_packs<S>(width, [&](int slot, int at) {
      const RowValues<S> xs = x.get(slot, at), dys = dy.get(slot, at);
      RowValues<S> dx;
#pragma unroll
      for (int k = 0; k < S::kElements; k++) {
        dx.x[k] = scale * fmaf(-(xs.x[k] - mean) * scale, mean_dot, dys.x[k] - mean_dy);
      }
      RowWords<S>::of(dx).store(p.dx + row * p.D, width, at);
    });
  });
}

CARAVAN_KERNEL(layer_norm, cuda, "x[*,D] -> y[*,D] mean[*]:f32 rstd[*]:f32 | eps") {
  const View& x = a.in[0];
  with_f32_or_bf16("layer_norm", x.dtype, [&]<typename T>(T) {
    const Forward<T> p = {x.as<T>(), a.out[0].as<T>(),           a.out[1].as<float>(), a.out[2].as<float>(),
                          x.rows(),  static_cast<int>(x.last()), rows_each(x.rows()),  static_cast<float>(a.attrs[0])};
    with_row_shape<T>(p.D, packs_fit<T>(p.D, p.x, p.y), [&]<typename S>(S) {
      launch(a, {row_blocks<S>(p.rows, p.rounds), S::kBlock}, forward_rows<S>, p);
    });
  });
}

CARAVAN_KERNEL(layer_norm_backward, cuda, "dy[*,D] x[*,D] mean[*]:f32 rstd[*]:f32 -> dx[*,D]") {
  const View& x = a.in[1];
  with_f32_or_bf16("layer_norm_backward", x.dtype, [&]<typename T>(T) {
    const Backward<T> p = {a.in[0].as<T>(),  x.as<T>(), a.in[2].as<float>(),        a.in[3].as<float>(),
                           a.out[0].as<T>(), x.rows(),  static_cast<int>(x.last()), rows_each(x.rows())};
    with_row_shape<T>(p.D, packs_fit<T>(p.D, p.dy, p.x, p.dx), [&]<typename S>(S) {
      launch(a, {row_blocks<S>(p.rows, p.rounds), S::kBlock}, backward_rows<S>, p);
    });
  });
}

}  // namespace
}  // namespace caravan::cuda
