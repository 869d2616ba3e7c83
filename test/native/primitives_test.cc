// Element-wise ops, casts, reductions and random numbers against naive loops over multi-dimensional indices.
#include <algorithm>
#include <limits>

#include "test/native/kernel_call.h"
#include "test/native/shapes.h"

namespace {

using caravan::DType;
using check::broadcast_source;
using check::Call;
using check::check_close;
using check::check_threads;
using check::count_of;
using check::failure_of;
using check::kBroadcasts;
using check::ravel;
using check::run;
using check::Shape;
using check::Shapes;
using check::Tensor;
using check::unravel;
using Values = std::vector<double>;

const DType kFloats[] = {DType::kF32, DType::kBF16, DType::kF64};
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

double stored(DType dtype, double value) {
  Tensor one(dtype, {1});
  one.set(0, value);
  return one.at(0);
}

// ---- element-wise ---------------------------------------------------------------------------------------------------

struct Binary {
  const char* op;
  double (*function)(double, double);
};
const Binary kBinary[] = {
    {"add", [](double a, double b) { return a + b; }},
    {"sub", [](double a, double b) { return a - b; }},
    {"mul", [](double a, double b) { return a * b; }},
    {"div", [](double a, double b) { return a / b; }},
    {"maximum", [](double a, double b) { return std::isnan(a) || std::isnan(b) ? kNan : std::max(a, b); }},
    {"greater", [](double a, double b) { return a > b ? 1.0 : 0.0; }},
};

void binary_ops(caravan::CpuDevice& device, DType t) {
  for (const Binary& binary : kBinary) {
    for (const Shapes& shapes : kBroadcasts) {
      Tensor a = Tensor::random(t, shapes.a, 1), b = Tensor::random(t, shapes.b, 2);
      for (int64_t i = 0; i < b.count(); i++) b.set(i, b.at(i) + (b.at(i) < 0 ? -0.5 : 0.5));  // a divisor
      if (a.count() > 4 && b.count() > 8) {
        a.set(2, kNan);
        b.set(7, kNan);
        b.set(3, a.at(3));
        a.set(0, kInf);
      }
      Values expected;
      for (int64_t i = 0; i < count_of(shapes.c); i++) {
        const Shape index = unravel(i, shapes.c);
        expected.push_back(
            binary.function(a.at(broadcast_source(index, shapes.a)), b.at(broadcast_source(index, shapes.b))));
      }
      check_close(binary.op, run(device, {binary.op, {a, b}, {Tensor(t, shapes.c)}, {}}).out[0], expected, 1);
    }
  }
}

struct Unary {
  const char* op;
  double (*function)(double);
  double low, high;
};
const Unary kUnary[] = {
    {"neg", [](double x) { return -x; }, -3, 3},
    {"exp", [](double x) { return std::exp(x); }, -20, 3},
    {"log", [](double x) { return std::log(x); }, 1e-6, 30},
    {"sqrt", [](double x) { return std::sqrt(x); }, 0, 30},
    {"sigmoid", [](double x) { return 1.0 / (1.0 + std::exp(-x)); }, -30, 30},
    {"cos", [](double x) { return std::cos(x); }, -50, 50},
    {"sin", [](double x) { return std::sin(x); }, -50, 50},
    {"tanh", [](double x) { return std::tanh(x); }, -6, 6},
};

void unary_ops(caravan::CpuDevice& device, DType t) {
  for (const Unary& unary : kUnary) {
    for (int64_t n : {0, 1, 7, 8, 33, 40000}) {
      Tensor x = Tensor::random(t, {n}, 3);
      Values expected;
      for (int64_t i = 0; i < n; i++) {
        x.set(i, unary.low + (x.at(i) + 1) / 2 * (unary.high - unary.low));
        expected.push_back(unary.function(x.at(i)));
      }
      check_close(unary.op, run(device, {unary.op, {x}, {Tensor(t, {n})}, {}}).out[0], expected, 4);
    }
  }
  const Tensor x = Tensor::random(t, {3, 11}, 4);
  Values expected;
  for (double v : x.values()) expected.push_back(v * -2.5 + 0.75);
  check_close("affine", run(device, {"affine", {x}, {x}, {-2.5, 0.75}}).out[0], expected, 2);
}

void special_values(caravan::CpuDevice& device, DType t) {
  const Tensor x = Tensor::of(t, {6}, {0.0, -0.0, kNan, kInf, -kInf, 200});
  const auto all = [&](const char* op) { return run(device, {op, {x}, {x}, {}}).out[0].values(); };
  const Values neg = all("neg"), exp = all("exp"), log = all("log"), sigmoid = all("sigmoid"), tanh = all("tanh");
  CHECK(std::signbit(neg[0]) && !std::signbit(neg[1]) && std::isnan(neg[2]) && neg[3] == -kInf);
  CHECK(exp[0] == 1 && exp[1] == 1 && std::isnan(exp[2]) && exp[3] == kInf && exp[4] == 0);
  CHECK(t == DType::kF64 ? std::isfinite(exp[5]) : exp[5] == kInf);
  CHECK(log[0] == -kInf && std::isnan(log[2]) && log[3] == kInf && std::isnan(log[4]));
  CHECK(sigmoid[0] == 0.5 && std::isnan(sigmoid[2]) && sigmoid[3] == 1 && sigmoid[4] == 0 && sigmoid[5] == 1);
  CHECK(tanh[3] == 1 && tanh[4] == -1 && std::isnan(tanh[2]));
}

void add_into(caravan::CpuDevice& device) {
  const std::pair<DType, DType> pairs[] = {{DType::kF32, DType::kF32},
                                           {DType::kF32, DType::kBF16},
                                           {DType::kBF16, DType::kBF16},
                                           {DType::kF64, DType::kF64}};
  for (auto [to, from] : pairs) {
    for (int64_t n : {0, 5, 16, 50001}) {
      const Tensor y = Tensor::random(to, {n}, 5), x = Tensor::random(from, {n}, 6);
      Values expected;
      for (int64_t i = 0; i < n; i++) expected.push_back(y.at(i) + x.at(i));
      check_close("add_into", run(device, {"add_into", {y, x}, {}, {}}).in[0], expected, 1);
    }
  }
  const Tensor f32 = Tensor::random(DType::kF32, {4}, 7), i32(DType::kI32, {4}), short_one(DType::kF32, {3});
  CHECK(failure_of(device, {"add_into", {f32, i32}, {}, {}}) == "ERR_DTYPE");
  CHECK(failure_of(device, {"add_into", {f32, short_one}, {}, {}}) == "ERR_SHAPE");
  CHECK(failure_of(device, {"add", {i32, i32}, {i32}, {}}) == "ERR_DTYPE");
}

// ---- casts ----------------------------------------------------------------------------------------------------------

/** x rounded to `digits` binary digits (fewer below 2^lowest), ties to even, overflowing above `largest`. */
double round_binary(double x, int digits, int lowest, double largest) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);  // |x| in [2^(exponent - 1), 2^exponent)
  const int quantum = std::max(exponent - 1, lowest) - (digits - 1);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -quantum)), quantum);
  return std::fabs(rounded) > largest ? std::copysign(kInf, x) : rounded;
}

double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 31  ? (fraction ? kNan : kInf)
                 : exponent == 0 ? std::ldexp(fraction, -24)
                                 : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -value : value;
}

double expected_cast(DType to, double x) {
  switch (to) {
    case DType::kF32:
      return static_cast<float>(x);
    case DType::kBF16:
      return round_binary(x, 8, -126, 0x1.fep127);
    case DType::kF16:
      return round_binary(x, 11, -14, 65504.0);
    case DType::kI32:
      return std::isnan(x) ? 0 : std::nearbyint(std::min(std::max(x, -2147483648.0), 2147483647.0));
    default:
      return x;
  }
}

double value_at(const Tensor& tensor, int64_t i) {
  return tensor.dtype() == DType::kF16 ? half_value(static_cast<uint16_t>(tensor.at(i))) : tensor.at(i);
}

void casts(caravan::CpuDevice& device) {
  const DType types[] = {DType::kF32, DType::kBF16, DType::kF64, DType::kF16, DType::kI32};
  // Ties, ties broken far below, range ends, subnormals, and what only a second rounding would get wrong.
  Values values = {0,
                   -0.0,
                   1,
                   -1,
                   0.5,
                   1.5,
                   2.5,
                   -2.5,
                   3.49999999,
                   1 + 0x1p-8,
                   1 + 3 * 0x1p-8,
                   1 + 0x1p-8 + 0x1p-40,
                   1 + 0x1p-8 - 0x1p-40,
                   1 + 0x1p-11,
                   1 + 3 * 0x1p-11,
                   1 + 0x1p-11 + 0x1p-45,
                   65504,
                   65519.99,
                   65520,
                   0x1p-14,
                   0x1p-24,
                   0x1p-25,
                   1.5 * 0x1p-25,
                   3 * 0x1p-25,
                   0x1.ffcp-15,
                   0x1.ffep-15,
                   3e38,
                   3.4e38,
                   1e300,
                   -1e300,
                   0x1p-133,
                   0x1p-134,
                   1e-310,
                   kInf,
                   -kInf,
                   kNan,
                   2147483647,
                   -2147483648.0,
                   2147483646.5,
                   16777217,
                   123456789};
  for (int i = 0; i < 200; i++) values.push_back(std::sin(i * 1.7) * std::pow(10.0, i % 13 - 6));
  for (DType from : types) {
    Tensor x(from, {static_cast<int64_t>(values.size())});
    if (from == DType::kF16) {
      x = Tensor(from, {65536});
      for (int64_t i = 0; i < 65536; i++) x.set(i, static_cast<double>(i));
    } else if (from == DType::kI32) {
      for (int64_t i = 0; i < x.count(); i++) x.set(i, expected_cast(DType::kI32, values[static_cast<size_t>(i)]));
    } else {
      for (int64_t i = 0; i < x.count(); i++) x.set(i, values[static_cast<size_t>(i)]);
    }
    for (DType to : types) {
      const Tensor y = run(device, {"cast", {x}, {Tensor(to, x.shape())}, {static_cast<double>(to)}}).out[0];
      for (int64_t i = 0; i < x.count(); i++) {
        const double got = value_at(y, i), expected = expected_cast(to, value_at(x, i));
        const bool same = (std::isnan(got) && std::isnan(expected)) ||
                          (got == expected && (to == DType::kI32 || std::signbit(got) == std::signbit(expected)));
        CHECK_CASE(same, "cast %d to %d: %.17g became %.17g, expected %.17g", static_cast<int>(from),
                   static_cast<int>(to), value_at(x, i), got, expected);
      }
    }
  }
  CHECK(failure_of(device, {"cast", {Tensor(DType::kU8, {2})}, {Tensor(DType::kF32, {2})}, {0}}) == "ERR_DTYPE");
}

void fills(caravan::CpuDevice& device) {
  for (DType t : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32}) {
    for (int64_t n : {0, 1, 50000}) {
      const double code = static_cast<double>(t);
      check_close("fill", run(device, {"fill", {}, {Tensor(t, {n})}, {-3, code}}).out[0],
                  Values(static_cast<size_t>(n), -3), 0);
      Values steps;
      for (int64_t i = 0; i < n; i++) steps.push_back(stored(t, 7 + 2.0 * static_cast<double>(i)));
      check_close("iota", run(device, {"iota", {}, {Tensor(t, {n})}, {static_cast<double>(n), 7, 2, code}}).out[0],
                  steps, 0);
    }
  }
}

// ---- reductions -----------------------------------------------------------------------------------------------------

void reductions(caravan::CpuDevice& device, DType t) {
  const Shape shapes[] = {{1},    {37},       {0},      {5, 0},       {5, 19}, {4, 3, 7}, {2, 3, 4, 5, 2, 3},
                          {9000}, {3, 10001}, {700, 5}, {2, 600, 530}};
  for (const Shape& shape : shapes) {
    const Tensor x = Tensor::random(t, shape, 8);
    for (size_t axis = 0; axis < shape.size(); axis++) {
      Shape reduced = shape;
      reduced[axis] = 1;
      std::vector<long double> exact(static_cast<size_t>(count_of(reduced)));
      Values most(exact.size(), -kInf);
      for (int64_t i = 0; i < x.count(); i++) {
        Shape index = unravel(i, shape);
        index[axis] = 0;
        const size_t to = static_cast<size_t>(ravel(index, reduced));
        exact[to] += x.at(i);
        most[to] = std::max(most[to], x.at(i));
      }
      const Tensor y(t, reduced);
      const double terms = std::sqrt(static_cast<double>(shape[axis]));
      check_close("sum", run(device, {"sum", {x}, {y}, {static_cast<double>(axis)}}).out[0],
                  Values(exact.begin(), exact.end()), t == DType::kF64 ? 64 : 16, terms);
      check_close("max", run(device, {"max", {x}, {y}, {static_cast<double>(axis)}}).out[0], most, 0);
    }
  }
  Tensor x = Tensor::random(t, {3, 45}, 9);
  x.set(50, kNan);
  for (double axis : {0.0, 1.0}) {
    const Shape reduced = axis == 0 ? Shape{1, 45} : Shape{3, 1};
    const Values most = run(device, {"max", {x}, {Tensor(t, reduced)}, {axis}}).out[0].values();
    for (size_t i = 0; i < most.size(); i++) CHECK(std::isnan(most[i]) == (i == (axis == 0 ? 5u : 1u)));
  }
}

void argmax(caravan::CpuDevice& device, DType t) {
  for (int64_t V : {1, 9, 5000}) {
    Tensor x = Tensor::random(t, {6, V}, 10);
    for (int64_t v = 0; v < V; v++) {
      x.set(V + v, 0.25);                           // all equal: the first
      x.set(2 * V + v, kNan);                       // all NaN: the first
      x.set(3 * V + v, v == V - 1 ? -kInf : kNan);  // NaN loses even to -inf
      x.set(4 * V + v, v < V / 2 ? -kInf : -1e30);  // the first of the largest
    }
    if (V > 1) x.set(V - 1, kNan);
    Values expected = {0, 0, 0, static_cast<double>(V - 1), static_cast<double>(V / 2), 0};
    for (int64_t row : {0, 5}) {
      int64_t best = 0;
      for (int64_t v = 1; v < V; v++) {
        if (x.at(row * V + v) > x.at(row * V + best)) best = v;
      }
      expected[static_cast<size_t>(row)] = static_cast<double>(best);
    }
    check_close("argmax", run(device, {"argmax", {x}, {Tensor(DType::kI32, {6})}, {}}).out[0], expected, 0);
  }
}

// ---- random numbers -------------------------------------------------------------------------------------------------

void random_numbers(caravan::CpuDevice& device) {
  // Block 0 of key 0, counter 0: the known answers of the Random123 distribution.
  const double unit = 0x1p-32, pi = std::acos(-1.0);
  const double u[] = {0x6627e8d5 * unit, 0xe169c58d * unit, 0xbc57ac4c * unit, 0x9b00dbd8 * unit};
  Values known;
  for (int i = 0; i < 4; i += 2)
    known.push_back(3 + 2 * std::sqrt(-2 * std::log(1 - u[i])) * std::cos(2 * pi * u[i + 1]));
  const double f64 = static_cast<double>(DType::kF64);
  check_close("random_normal", run(device, {"random_normal", {}, {Tensor(DType::kF64, {2})}, {3, 2, 0, 0, f64}}).out[0],
              known, 8);

  // new Random(12345678901, 2 ** 40 + 77): five calls of normal().
  const Values drawn = {1.474911553921389, 1.2861780174633752, 0.695342591060575, 1.7893771148037323,
                        -1.1092035806549383};
  const Values attrs = {0, 1, 12345678901, 0x1p40 + 77, f64};
  check_close("random_normal of 64-bit keys",
              run(device, {"random_normal", {}, {Tensor(DType::kF64, {5})}, attrs}).out[0], drawn, 8);

  const Values many =
      run(device, {"random_normal", {}, {Tensor(DType::kF32, {100001})}, {0, 1, 5, 6, 0}}).out[0].values();
  double mean = 0, square = 0;
  for (double v : many) {
    mean += v / static_cast<double>(many.size());
    square += v * v / static_cast<double>(many.size());
  }
  CHECK_CASE(std::fabs(mean) < 0.016 && std::fabs(square - 1) < 0.023, "mean %g, mean square %g", mean,
             square);  // 5 sigma
}

void threads(DType t) {
  const Tensor x = Tensor::random(t, {300, 401}, 17), row = Tensor::random(t, {401}, 18),
               long_row = Tensor::random(t, {1, 200001}, 19);
  const double code = static_cast<double>(t);
  check_threads({"mul", {x, row}, {x}, {}});
  check_threads({"exp", {x}, {x}, {}});
  check_threads({"sum", {x}, {Tensor(t, {1, 401})}, {0}});
  check_threads({"sum", {x}, {Tensor(t, {300, 1})}, {1}});
  check_threads({"sum", {long_row}, {Tensor(t, {1, 1})}, {1}});
  check_threads({"max", {x}, {Tensor(t, {1, 401})}, {0}});
  check_threads({"argmax", {x}, {Tensor(DType::kI32, {300})}, {}});
  check_threads({"cast", {x}, {Tensor(DType::kF16, {300, 401})}, {static_cast<double>(DType::kF16)}});
  check_threads({"random_normal", {}, {x}, {0, 1, 1, 2, code}});
  check_threads({"add_into", {x, x}, {}, {}});
}

/** A row has the bits alone that it has in a batch. */
void rows_alone(caravan::CpuDevice& device, DType t) {
  for (int64_t R : {45, 9001}) {
    const Tensor x = Tensor::random(t, {40, R}, 20);
    const Tensor whole = run(device, {"sum", {x}, {Tensor(t, {40, 1})}, {1}}).out[0];
    CHECK(run(device, {"sum", {x.rows(7, 8)}, {Tensor(t, {1, 1})}, {1}}).out[0].same_bits(whole.rows(7, 8)));
    for (const Unary& unary : kUnary) {
      const Tensor all = run(device, {unary.op, {x}, {x}, {}}).out[0];
      CHECK(run(device, {unary.op, {x.rows(7, 8)}, {x.rows(7, 8)}, {}}).out[0].same_bits(all.rows(7, 8)));
    }
  }
}

}  // namespace

int main() {
  check::on_each_isa([](caravan::CpuDevice& device) {
    for (DType t : kFloats) {
      binary_ops(device, t);
      unary_ops(device, t);
      special_values(device, t);
      reductions(device, t);
      argmax(device, t);
      rows_alone(device, t);
    }
    add_into(device);
    casts(device);
    fills(device);
    random_numbers(device);
  });
  for (DType t : kFloats) threads(t);
  return check::finish("primitives");
}
