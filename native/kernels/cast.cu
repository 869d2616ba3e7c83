// Casts, fills and ranges on the device, as cast.cc: every conversion by way of f64, rounded once.
#include "cuda/numbers.h"
#include "kernels/broadcast_device.h"
#include "kernels/number_convert.h"

namespace caravan::cuda {
namespace {

template <typename S, typename T>
__global__ void convert(const S* x, T* y, int64_t count) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    round_to(to_f64(x[i]), y + i);
  }
}

template <typename T>
__global__ void fill_elements(T* y, int64_t count, T value) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    y[i] = value;
  }
}

template <typename T>
__global__ void fill_range(T* y, int64_t count, double start, double step) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    round_to(start + __dmul_rn(static_cast<double>(i), step), y + i);  // rounded twice, as on the CPU
  }
}

CARAVAN_KERNEL(cast, cuda, "x[...] -> y[...]:dtype | dtype") {
  const View &x = a.in[0], &y = a.out[0];
  const int64_t count = x.count();
  if (x.dtype == y.dtype) {  // the bits as they are, NaN payloads too
    check(cudaMemcpyAsync(y.data, x.data, x.bytes(), cudaMemcpyDeviceToDevice, stream_of(a)), "copy");
    return;
  }
  with_number_type("cast", x.dtype, [&]<typename S>(S) {
    with_number_type("cast", y.dtype, [&]<typename T>(T) {
      launch(a, element_grid(count), convert<S, T>, x.as<S>(), y.as<T>(), count);
    });
  });
}

CARAVAN_KERNEL(fill, cuda, "-> y[...]:dtype | value dtype") {
  const View& y = a.out[0];
  const int64_t count = y.count();
  with_number_type("fill", y.dtype, [&]<typename T>(T) {
    launch(a, element_grid(count), fill_elements<T>, y.as<T>(), count, rounded<T>(a.attrs[0]));
  });
}

CARAVAN_KERNEL(iota, cuda, "-> y[N]:dtype | N start step dtype") {
  const View& y = a.out[0];
  const int64_t count = y.count();
  with_number_type("iota", y.dtype, [&]<typename T>(T) {
    launch(a, element_grid(count), fill_range<T>, y.as<T>(), count, a.attrs[1], a.attrs[2]);
  });
}

}  // namespace
}  // namespace caravan::cuda
