// Element-wise primitives: definitions of the composed ops, oracles in f64, and the glue of the losses. f32 and bf16 go
// through f32 vectors, f64 through plain loops. Operands broadcast as in NumPy. Traffic per element: each operand once.
#include <math.h>

#include "core/kernel_registry.h"
#include "cpu/simd_math.h"
#include "cpu/thread_pool.h"
#include "kernels/broadcast.h"
#include "kernels/dispatch.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace elementwise_detail {

// ---- what is computed -----------------------------------------------------------------------------------------------

struct Add {
  F32 operator()(F32 a, F32 b) const { return a + b; }
  double operator()(double a, double b) const { return a + b; }
};
struct Sub {
  F32 operator()(F32 a, F32 b) const { return a - b; }
  double operator()(double a, double b) const { return a - b; }
};
struct Mul {
  F32 operator()(F32 a, F32 b) const { return a * b; }
  double operator()(double a, double b) const { return a * b; }
};
struct Div {
  F32 operator()(F32 a, F32 b) const { return a / b; }
  double operator()(double a, double b) const { return a / b; }
};
/** A NaN on either side is the result, as in NumPy. */
struct Maximum {
  F32 operator()(F32 a, F32 b) const { return keep_nan(a, max(a, b)); }
  double operator()(double a, double b) const { return a != a || a > b ? a : b; }
};
struct Greater {
  F32 operator()(F32 a, F32 b) const { return select_greater(a, b, set1(1.0f), zero()); }
  double operator()(double a, double b) const { return a > b ? 1.0 : 0.0; }
};

/** By multiplication: 0 - x would give +0 for +0. */
struct Neg {
  F32 operator()(F32 x) const { return x * set1(-1.0f); }
  double operator()(double x) const { return -x; }
};
struct Exp {
  F32 operator()(F32 x) const { return CARAVAN_ISA::exp(x); }
  double operator()(double x) const { return ::exp(x); }
};
struct Log {
  F32 operator()(F32 x) const { return CARAVAN_ISA::log(x); }
  double operator()(double x) const { return ::log(x); }
};
struct Sqrt {
  F32 operator()(F32 x) const { return CARAVAN_ISA::sqrt(x); }
  double operator()(double x) const { return __builtin_sqrt(x); }
};
struct Sigmoid {
  F32 operator()(F32 x) const { return CARAVAN_ISA::sigmoid(x); }
  double operator()(double x) const { return 1.0 / (1.0 + ::exp(-x)); }
};
struct Cos {
  F32 operator()(F32 x) const { return CARAVAN_ISA::cos(x); }
  double operator()(double x) const { return ::cos(x); }
};
struct Sin {
  F32 operator()(F32 x) const { return CARAVAN_ISA::sin(x); }
  double operator()(double x) const { return ::sin(x); }
};
struct Tanh {
  F32 operator()(F32 x) const { return CARAVAN_ISA::tanh(x); }
  double operator()(double x) const { return ::tanh(x); }
};
struct Affine {
  double scale, shift;
  F32 operator()(F32 x) const { return x * set1(static_cast<float>(scale)) + set1(static_cast<float>(shift)); }
  double operator()(double x) const { return x * scale + shift; }
};

// ---- loops ----------------------------------------------------------------------------------------------------------

/** y[0..n) = op(x[0..n)). */
template <typename T, typename Op>
void map_row(const T* x, T* y, int64_t n, const Op& op) {
  for_vectors(n, [&](int64_t i, auto vector) { vector.store(y + i, op(vector.load(x + i))); });
}
template <typename Op>
void map_row(const double* x, double* y, int64_t n, const Op& op) {
  for (int64_t i = 0; i < n; i++) y[i] = op(x[i]);
}

F32 widen(float x) { return set1(x); }
F32 widen(bf16 x) { return set1(to_f32(x)); }

/** c[0..n) = op(a, b), where a flag says that the operand is one value for the whole row. */
template <bool kOneA, bool kOneB, typename T, typename Op>
void zip_row(const T* a, const T* b, T* c, int64_t n, const Op& op) {
  const F32 first = widen(a[0]);
  const F32 second = widen(b[0]);
  for_vectors(n, [&](int64_t i, auto vector) {
    F32 left = first;
    F32 right = second;
    if constexpr (!kOneA) left = vector.load(a + i);
    if constexpr (!kOneB) right = vector.load(b + i);
    vector.store(c + i, op(left, right));
  });
}
template <bool kOneA, bool kOneB, typename Op>
void zip_row(const double* a, const double* b, double* c, int64_t n, const Op& op) {
  for (int64_t i = 0; i < n; i++) c[i] = op(a[kOneA ? 0 : i], b[kOneB ? 0 : i]);
}

template <typename Op>
void unary(const char* name, const Args& a, const Op& op) {
  const View& x = a.in[0];
  with_float_type(name, x.dtype, [&]<typename T>(T) {
    parallel_ranges(pool_of(a), x.count(), rows_per_task(2 * sizeof(T)), [&](int64_t begin, int64_t end, int) {
      map_row(x.as<T>() + begin, a.out[0].as<T>() + begin, end - begin, op);
    });
  });
}

template <typename Op>
void binary(const char* name, const Args& args, const Op& op) {
  const BroadcastPlan<2> plan = plan_broadcast<2>(args.out[0], args.in);
  const bool one_a = plan.stride[0][plan.rank - 1] == 0;
  const bool one_b = plan.stride[1][plan.rank - 1] == 0;
  with_float_type(name, args.in[0].dtype, [&]<typename T>(T) {
    const int64_t count = args.out[0].count();
    parallel_ranges(pool_of(args), count, rows_per_task(3 * sizeof(T)), [&](int64_t begin, int64_t end, int) {
      walk_broadcast(plan, begin, end, [&](int64_t position, int64_t n, const int64_t* offsets) {
        const T* a = args.in[0].as<T>() + offsets[0];
        const T* b = args.in[1].as<T>() + offsets[1];
        T* c = args.out[0].as<T>() + position;
        if (one_a && one_b) return zip_row<true, true>(a, b, c, n, op);
        if (one_a) return zip_row<true, false>(a, b, c, n, op);
        if (one_b) return zip_row<false, true>(a, b, c, n, op);
        zip_row<false, false>(a, b, c, n, op);
      });
    });
  });
}

template <typename T, typename S>
void add_row(T* y, const S* x, int64_t n) {
  for_vectors(n, [&](int64_t i, auto vector) { vector.store(y + i, vector.load(y + i) + vector.load(x + i)); });
}
void add_row(double* y, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

template <typename T, typename S>
void add_into_typed(const Args& a) {
  const View& y = a.in[0];
  parallel_ranges(
      pool_of(a), y.count(), rows_per_task(2 * sizeof(T) + sizeof(S)),
      [&](int64_t begin, int64_t end, int) { add_row(y.as<T>() + begin, a.in[1].as<S>() + begin, end - begin); });
}

void add_into_kernel_of(const Args& a) {
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
  fail("ERR_DTYPE", "add_into: the CPU kernel adds f32, bf16 or f64 to the same dtype, and bf16 to f32; got %s to %s",
       name_of(x), name_of(y));
}

}  // namespace elementwise_detail

CARAVAN_KERNEL(add, cpu, "a[...] b[...] -> c[...]") { elementwise_detail::binary("add", a, elementwise_detail::Add{}); }
CARAVAN_KERNEL(sub, cpu, "a[...] b[...] -> c[...]") { elementwise_detail::binary("sub", a, elementwise_detail::Sub{}); }
CARAVAN_KERNEL(mul, cpu, "a[...] b[...] -> c[...]") { elementwise_detail::binary("mul", a, elementwise_detail::Mul{}); }
CARAVAN_KERNEL(div, cpu, "a[...] b[...] -> c[...]") { elementwise_detail::binary("div", a, elementwise_detail::Div{}); }
CARAVAN_KERNEL(maximum, cpu, "a[...] b[...] -> c[...]") {
  elementwise_detail::binary("maximum", a, elementwise_detail::Maximum{});
}
CARAVAN_KERNEL(greater, cpu, "a[...] b[...] -> c[...]") {
  elementwise_detail::binary("greater", a, elementwise_detail::Greater{});
}

CARAVAN_KERNEL(neg, cpu, "x[...] -> y[...]") { elementwise_detail::unary("neg", a, elementwise_detail::Neg{}); }
CARAVAN_KERNEL(exp, cpu, "x[...] -> y[...]") { elementwise_detail::unary("exp", a, elementwise_detail::Exp{}); }
CARAVAN_KERNEL(log, cpu, "x[...] -> y[...]") { elementwise_detail::unary("log", a, elementwise_detail::Log{}); }
CARAVAN_KERNEL(sqrt, cpu, "x[...] -> y[...]") { elementwise_detail::unary("sqrt", a, elementwise_detail::Sqrt{}); }
CARAVAN_KERNEL(sigmoid, cpu, "x[...] -> y[...]") {
  elementwise_detail::unary("sigmoid", a, elementwise_detail::Sigmoid{});
}
CARAVAN_KERNEL(cos, cpu, "x[...] -> y[...]") { elementwise_detail::unary("cos", a, elementwise_detail::Cos{}); }
CARAVAN_KERNEL(sin, cpu, "x[...] -> y[...]") { elementwise_detail::unary("sin", a, elementwise_detail::Sin{}); }
CARAVAN_KERNEL(tanh, cpu, "x[...] -> y[...]") { elementwise_detail::unary("tanh", a, elementwise_detail::Tanh{}); }

CARAVAN_KERNEL(affine, cpu, "x[...] -> y[...] | scale shift") {
  elementwise_detail::unary("affine", a, elementwise_detail::Affine{a.attrs[0], a.attrs[1]});
}

CARAVAN_KERNEL(add_into, cpu, "y[...]! x[...] ->") { elementwise_detail::add_into_kernel_of(a); }

}  // namespace
}  // namespace caravan::CARAVAN_ISA
