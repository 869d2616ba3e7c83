// Element-wise primitives on the device, as elementwise.cc: f32 and bf16 in f32 arithmetic, f64 in its own. Operands
// broadcast as in NumPy. One thread an element; traffic per element: each operand once.
#include "cuda/numbers.h"
#include "kernels/broadcast_device.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

struct Add {
  template <typename F>
  __device__ F operator()(F a, F b) const {
    return a + b;
  }
};
struct Sub {
  template <typename F>
  __device__ F operator()(F a, F b) const {
    return a - b;
  }
};
struct Mul {
  template <typename F>
  __device__ F operator()(F a, F b) const {
    return a * b;
  }
};
struct Div {
  template <typename F>
  __device__ F operator()(F a, F b) const {
    return a / b;
  }
};
/** A NaN on either side is the result, as in NumPy. */
struct Maximum {
  template <typename F>
  __device__ F operator()(F a, F b) const {
    return a != a || a > b ? a : b;
  }
};
struct Greater {
  template <typename F>
  __device__ F operator()(F a, F b) const {
    return a > b ? F(1) : F(0);
  }
};

/** By multiplication: 0 - x would give +0 for +0. */
struct Neg {
  template <typename F>
  __device__ F operator()(F x) const {
    return x * F(-1);
  }
};
struct Exp {
  __device__ float operator()(float x) const { return expf(x); }
  __device__ double operator()(double x) const { return exp(x); }
};
struct Log {
  __device__ float operator()(float x) const { return logf(x); }
  __device__ double operator()(double x) const { return log(x); }
};
struct Sqrt {
  __device__ float operator()(float x) const { return sqrtf(x); }
  __device__ double operator()(double x) const { return sqrt(x); }
};
struct Sigmoid {
  __device__ float operator()(float x) const { return 1.0f / (1.0f + expf(-x)); }
  __device__ double operator()(double x) const { return 1.0 / (1.0 + exp(-x)); }
};
struct Cos {
  __device__ float operator()(float x) const { return cosf(x); }
  __device__ double operator()(double x) const { return cos(x); }
};
struct Sin {
  __device__ float operator()(float x) const { return sinf(x); }
  __device__ double operator()(double x) const { return sin(x); }
};
struct Tanh {
  __device__ float operator()(float x) const { return tanhf(x); }
  __device__ double operator()(double x) const { return tanh(x); }
};
struct Affine {
  double scale, shift;
  template <typename F>
  __device__ F operator()(F x) const {
    return x * static_cast<F>(scale) + static_cast<F>(shift);
  }
};

template <typename To, typename F>
__device__ __forceinline__ To stored(F x) {
  if constexpr (sizeof(To) == sizeof(double)) {
    return x;
  } else {
    return narrow<To>(x);
  }
}

template <typename T, typename Op>
__global__ void map(const T* x, T* y, int64_t count, Op op) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) y[i] = stored<T>(op(widen(x[i])));
}

template <typename T, typename Op>
__global__ void zip(BroadcastPlan<2> plan, const T* a, const T* b, T* c, int64_t count, Op op) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    int64_t at[2];
    locate(plan, i, at);
    c[i] = stored<T>(op(widen(a[at[0]]), widen(b[at[1]])));
  }
}

template <typename Op>
void unary(const char* name, const Args& a, const Op& op) {
  const View& x = a.in[0];
  const int64_t count = x.count();
  with_float_type(name, x.dtype, [&]<typename T>(T) {
    launch(a, element_grid(count), map<T, Op>, x.as<T>(), a.out[0].as<T>(), count, op);
  });
}

template <typename Op>
void binary(const char* name, const Args& a, const Op& op) {
  const BroadcastPlan<2> plan = plan_broadcast<2>(a.out[0], a.in);
  const int64_t count = a.out[0].count();
  with_float_type(name, a.in[0].dtype, [&]<typename T>(T) {
    launch(a, element_grid(count), zip<T, Op>, plan, a.in[0].as<T>(), a.in[1].as<T>(), a.out[0].as<T>(), count, op);
  });
}

template <typename T, typename S>
__global__ void add_elements(T* y, const S* x, int64_t count) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) y[i] = stored<T>(widen(y[i]) + widen(x[i]));
}

template <typename T, typename S>
void add_into_typed(const Args& a) {
  const int64_t count = a.in[0].count();
  launch(a, element_grid(count), add_elements<T, S>, a.in[0].as<T>(), a.in[1].as<S>(), count);
}

CARAVAN_KERNEL(add, cuda, "a[...] b[...] -> c[...]") { binary("add", a, Add{}); }
CARAVAN_KERNEL(sub, cuda, "a[...] b[...] -> c[...]") { binary("sub", a, Sub{}); }
CARAVAN_KERNEL(mul, cuda, "a[...] b[...] -> c[...]") { binary("mul", a, Mul{}); }
CARAVAN_KERNEL(div, cuda, "a[...] b[...] -> c[...]") { binary("div", a, Div{}); }
CARAVAN_KERNEL(maximum, cuda, "a[...] b[...] -> c[...]") { binary("maximum", a, Maximum{}); }
CARAVAN_KERNEL(greater, cuda, "a[...] b[...] -> c[...]") { binary("greater", a, Greater{}); }
CARAVAN_KERNEL(neg, cuda, "x[...] -> y[...]") { unary("neg", a, Neg{}); }
CARAVAN_KERNEL(exp, cuda, "x[...] -> y[...]") { unary("exp", a, Exp{}); }
CARAVAN_KERNEL(log, cuda, "x[...] -> y[...]") { unary("log", a, Log{}); }
CARAVAN_KERNEL(sqrt, cuda, "x[...] -> y[...]") { unary("sqrt", a, Sqrt{}); }
CARAVAN_KERNEL(sigmoid, cuda, "x[...] -> y[...]") { unary("sigmoid", a, Sigmoid{}); }
CARAVAN_KERNEL(cos, cuda, "x[...] -> y[...]") { unary("cos", a, Cos{}); }
CARAVAN_KERNEL(sin, cuda, "x[...] -> y[...]") { unary("sin", a, Sin{}); }
CARAVAN_KERNEL(tanh, cuda, "x[...] -> y[...]") { unary("tanh", a, Tanh{}); }
CARAVAN_KERNEL(affine, cuda, "x[...] -> y[...] | scale shift") { unary("affine", a, Affine{a.attrs[0], a.attrs[1]}); }

CARAVAN_KERNEL(add_into, cuda, "y[...]! x[...] ->") {
  const DType y = a.in[0].dtype;
  const DType x = a.in[1].dtype;
  if (a.in[0].count() != a.in[1].count()) {
    fail("ERR_SHAPE", "add_into: x must have as many elements as y = %lld; got %lld",
         static_cast<long long>(a.in[0].count()), static_cast<long long>(a.in[1].count()));
  }
  if (y == DType::kF32 && x == DType::kF32) return add_into_typed<float, float>(a);
  if (y == DType::kF32 && x == DType::kBF16) return add_into_typed<float, bf16>(a);
  if (y == DType::kBF16 && x == DType::kBF16) return add_into_typed<bf16, bf16>(a);
  if (y == DType::kF64 && x == DType::kF64) return add_into_typed<double, double>(a);
  fail("ERR_DTYPE", "add_into: the CUDA kernel adds f32, bf16 or f64 to the same dtype, and bf16 to f32; got %s to %s",
       name_of(x), name_of(y));
}

}  // namespace
}  // namespace caravan::cuda
