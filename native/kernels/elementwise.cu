// Element-wise primitives on the device, as elementwise.cc: f32 and bf16 in f32 arithmetic, f64 in its own. Operands
// broadcast as in NumPy. Traffic per element: each operand once, by 16 bytes a thread where nothing is broadcast.
#include "cuda/packs.h"
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

/** The elements that a thread of the contiguous kernels owns: as many as 16 bytes hold of the type of the result. */
template <typename T>
constexpr int kOwnElements = 16 / sizeof(T);

template <typename T, typename Op>
__global__ void __launch_bounds__(kSpanThreads) map(const T* x, T* y, int64_t count, Op op, bool aligned) {
  constexpr int kOwn = kOwnElements<T>;
  const int64_t at = own_span<kOwn>();
  const int left = span_left<kOwn>(at, count);
  const bool whole = aligned && left == kOwn;
  const auto xs = whole ? load_whole<kOwn>(x + at) : load_each<kOwn>(x + at, left);
  Span<T, kOwn> ys;
#pragma unroll
  for (int k = 0; k < kOwn; k++) ys.x[k] = stored<T>(op(widen(xs.x[k])));
  whole ? store_whole(y + at, ys) : store_each(y + at, ys, left);
}

/** Of two operands of the shape of the result. `c` may be `a`. */
template <typename C, typename T, typename Op>
__global__ void __launch_bounds__(kSpanThreads) zip(const C* a, const T* b, C* c, int64_t count, Op op, bool aligned) {
  constexpr int kOwn = kOwnElements<C>;
  const int64_t at = own_span<kOwn>();
  const int left = span_left<kOwn>(at, count);
  const bool whole = aligned && left == kOwn;
  const auto as = whole ? load_whole<kOwn>(a + at) : load_each<kOwn>(a + at, left);
  const auto bs = whole ? load_whole<kOwn>(b + at) : load_each<kOwn>(b + at, left);
  Span<C, kOwn> cs;
#pragma unroll
  for (int k = 0; k < kOwn; k++) cs.x[k] = stored<C>(op(widen(as.x[k]), widen(bs.x[k])));
  whole ? store_whole(c + at, cs) : store_each(c + at, cs, left);
}

template <typename T, typename Op>
__global__ void zip_broadcast(BroadcastPlan<2> plan, const T* a, const T* b, T* c, int64_t count, Op op) {
  const Stride own = own_elements();
  for (int64_t i = own.first; i < count; i += own.step) {
    int64_t at[2];
    locate(plan, i, at);
    c[i] = stored<T>(op(widen(a[at[0]]), widen(b[at[1]])));
  }
}

template <typename T>
Launch own_grid(int64_t count) {
  return {dim3(span_blocks<kOwnElements<T>>(count)), dim3(kSpanThreads)};
}

template <typename Op>
void unary(const char* name, const Args& a, const Op& op) {
  const int64_t count = a.in[0].count();
  with_float_type(name, a.in[0].dtype, [&]<typename T>(T) {
    const T* x = a.in[0].as<T>();
    T* y = a.out[0].as<T>();
    launch(a, own_grid<T>(count), map<T, Op>, x, y, count, op, is_aligned(x, y));
  });
}

template <typename Op>
void binary(const char* name, const Args& args, const Op& op) {
  const int64_t count = args.out[0].count();
  const bool same = args.in[0].count() == count && args.in[1].count() == count;
  with_float_type(name, args.in[0].dtype, [&]<typename T>(T) {
    const T *a = args.in[0].as<T>(), *b = args.in[1].as<T>();
    T* c = args.out[0].as<T>();
    if (same) return launch(args, own_grid<T>(count), zip<T, T, Op>, a, b, c, count, op, is_aligned(a, b, c));
    launch(args, element_grid(count), zip_broadcast<T, Op>, plan_broadcast<2>(args.out[0], args.in), a, b, c, count,
           op);
  });
}

template <typename T, typename S>
void add_into_typed(const Args& a) {
  const int64_t count = a.in[0].count();
  T* y = a.in[0].as<T>();
  const S* x = a.in[1].as<S>();
  launch(a, own_grid<T>(count), zip<T, S, Add>, static_cast<const T*>(y), x, y, count, Add{}, is_aligned(y, x));
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
