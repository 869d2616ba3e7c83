// cpu/simd.h of one instruction set (-DCARAVAN_ISA and its flags) against scalar arithmetic and libm. Built once for
// each; an instruction set that the processor lacks is skipped with a message.
#ifndef CARAVAN_ISA
#define CARAVAN_ISA portable
#endif

#include "cpu/simd_math.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "test/native/check.h"

using caravan::bf16;
using caravan::CARAVAN_ISA::F32;
namespace simd = caravan::CARAVAN_ISA;

namespace {

constexpr int kLanes = F32::kLanes;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

bool same_bits(float a, float b) {
  uint32_t x, y;
  std::memcpy(&x, &a, 4);
  std::memcpy(&y, &b, 4);
  return x == y || (std::isnan(a) && std::isnan(b));
}

/** Values of every magnitude and kind. */
float sample(int i) {
  const float special[] = {0.0f, -0.0f, 1.0f, -1.5f, kInf, -kInf, kNan, 3.4e38f, 1e-38f, 1e-42f, 88.0f, -87.2f};
  if (i % 3 == 0) return special[(i / 3) % 12];
  return std::sin(static_cast<float>(i)) * std::pow(10.0f, static_cast<float>(i % 13 - 6));
}

void fill(float (&a)[kLanes], int seed) {
  for (int i = 0; i < kLanes; i++) a[i] = sample(seed * 7 + i * 5);
}

template <typename Vector, typename Scalar>
void check_binary(const char* name, const Vector& vector, const Scalar& scalar) {
  for (int seed = 0; seed < 200; seed++) {
    float a[kLanes], b[kLanes], out[kLanes];
    fill(a, seed);
    fill(b, seed + 1001);
    simd::store(out, vector(simd::load(a), simd::load(b)));
    for (int i = 0; i < kLanes; i++) {
      CHECK_CASE(same_bits(out[i], scalar(a[i], b[i])), "%s(%g, %g) = %g", name, double(a[i]), double(b[i]),
                 double(out[i]));
    }
  }
}

void test_arithmetic() {
  check_binary("+", [](F32 a, F32 b) { return a + b; }, [](float a, float b) { return a + b; });
  check_binary("-", [](F32 a, F32 b) { return a - b; }, [](float a, float b) { return a - b; });
  check_binary("*", [](F32 a, F32 b) { return a * b; }, [](float a, float b) { return a * b; });
  check_binary("/", [](F32 a, F32 b) { return a / b; }, [](float a, float b) { return a / b; });
  // As the instructions have it: the second operand where either is NaN.
  check_binary("max", [](F32 a, F32 b) { return simd::max(a, b); }, [](float a, float b) { return a > b ? a : b; });
  check_binary("min", [](F32 a, F32 b) { return simd::min(a, b); }, [](float a, float b) { return a < b ? a : b; });
  check_binary(
      "select_greater", [](F32 a, F32 b) { return simd::select_greater(a, b, simd::set1(1), simd::set1(2)); },
      [](float a, float b) { return a > b ? 1.0f : 2.0f; });
  check_binary(
      "keep_nan", [](F32 a, F32 b) { return simd::keep_nan(a, b); },
      [](float a, float b) { return std::isnan(a) ? a : b; });
  check_binary(
      "sqrt", [](F32 a, F32) { return simd::sqrt(simd::max(a, simd::zero())); },
      [](float a, float) { return std::sqrt(a > 0 ? a : 0.0f); });
}

void test_fma() {
  const bool fused = CARAVAN_ISA_LEVEL >= 2;
  check_binary(
      "fma", [](F32 a, F32 b) { return simd::fma(a, b, simd::set1(0.7f)); },
      [fused](float a, float b) {
        if (fused) return std::fma(a, b, 0.7f);
        volatile float product = a * b;
        return product + 0.7f;
      });
}

void test_exponent() {
  for (uint32_t low = 1; low < 255; low++) {
    uint32_t bits = 0x4b400000u + low;  // the form that exp uses: 1.5 * 2^23 + low
    float x, out[kLanes];
    std::memcpy(&x, &bits, 4);
    simd::store(out, simd::exponent_from_low_bits(simd::set1(x)));
    CHECK(out[kLanes - 1] == std::ldexp(1.0f, static_cast<int>(low) - 127));
  }
}

void test_exp() {
  double worst = 0;
  for (int i = -87300; i <= 88300; i++) {
    float x = static_cast<float>(i) / 1000, out[kLanes];
    simd::store(out, simd::exp(simd::set1(x)));
    double want = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::fabs(static_cast<double>(out[0]) - want) / want);
  }
  CHECK_CASE(worst < 2e-7, "relative error %g", worst);
  const float cases[][2] = {{0, 1}, {-200, 0}, {-kInf, 0}, {100, kInf}, {kInf, kInf}, {kNan, kNan}};
  for (auto& one : cases) {
    float out[kLanes];
    simd::store(out, simd::exp(simd::set1(one[0])));
    CHECK_CASE(same_bits(out[0], one[1]), "exp(%g) = %g", double(one[0]), double(out[0]));
  }
}

void test_bf16() {
  // Every bf16 widens exactly; narrowing agrees with the scalar rule on ties, carries, infinities and NaN.
  for (int first = 0; first < 65536; first += kLanes) {
    bf16 in[kLanes], back[kLanes];
    float wide[kLanes];
    for (int i = 0; i < kLanes; i++) in[i].bits = static_cast<uint16_t>(first + i);
    simd::store(wide, simd::load(in));
    simd::store(back, simd::load(in));
    for (int i = 0; i < kLanes; i++) {
      CHECK(same_bits(wide[i], caravan::to_f32(in[i])));
      CHECK(back[i].bits == caravan::to_bf16(wide[i]).bits);
    }
  }
  for (uint32_t high = 0; high < 65536; high += 37) {
    const uint32_t lows[] = {0x7fff, 0x8000, 0x8001, 0xffff, 1};
    for (uint32_t low : lows) {
      uint32_t bits = high << 16 | low;
      float x;
      std::memcpy(&x, &bits, 4);
      bf16 out[kLanes];
      simd::store(out, simd::set1(x));
      CHECK_CASE(out[kLanes - 1].bits == caravan::to_bf16(x).bits, "bf16(%08x) = %04x", bits, out[kLanes - 1].bits);
    }
  }
}

/** Partial loads read n elements and clear the rest; partial stores leave the rest alone. */
template <typename T>
void check_partial(T (*make)(float), float (*value)(T)) {
  for (int n = 1; n <= kLanes; n++) {
    T* exact = new T[static_cast<size_t>(n)];  // a sanitizer sees a read past it
    for (int i = 0; i < n; i++) exact[i] = make(static_cast<float>(i + 1));
    float lanes[kLanes];
    simd::store(lanes, simd::load_first(exact, n));
    for (int i = 0; i < kLanes; i++) CHECK(lanes[i] == (i < n ? static_cast<float>(i + 1) : 0.0f));
    T target[kLanes];
    for (T& t : target) t = make(-9);
    simd::store_first(target, simd::load(lanes) + simd::set1(1), n);
    for (int i = 0; i < kLanes; i++) CHECK(value(target[i]) == (i < n ? static_cast<float>(i + 2) : -9.0f));
    delete[] exact;
  }
}

void test_partial() {
  check_partial<float>([](float x) { return x; }, [](float x) { return x; });
  check_partial<bf16>([](float x) { return caravan::to_bf16(x); }, [](bf16 x) { return caravan::to_f32(x); });
}

void test_reductions() {
  float a[kLanes];
  for (int i = 0; i < kLanes; i++) a[i] = 1.0f / static_cast<float>(i + 3) * (i % 2 == 0 ? 1.0f : -1e4f);
  // The documented tree: lane i with lane i + half.
  float tree[kLanes];
  std::memcpy(tree, a, sizeof(a));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) tree[i] = tree[i] + tree[i + half];
  }
  CHECK(same_bits(simd::reduce_sum(simd::load(a)), tree[0]));
  CHECK(simd::reduce_max(simd::load(a)) == a[0]);
  const int64_t counts[] = {0, 1, 7, 8, 15, 16, 17, 40};
  for (int64_t count : counts) {
    int64_t covered = 0, rests = 0;
    simd::for_lanes(
        count, [&](int64_t i) { covered += i == covered ? kLanes : 1000; },
        [&](int64_t i, int n) {
          covered += i == covered && n < kLanes ? n : 1000;
          rests++;
        });
    CHECK(covered == count && rests <= 1);
  }
}

/** Distance in units in the last place of the exact value. */
double ulps(float got, double exact) {
  const float rounded = static_cast<float>(exact);
  if (same_bits(got, rounded)) return 0;
  const float next = std::nextafter(std::fabs(rounded), kInf);
  const double unit = std::isfinite(next) ? static_cast<double>(next) - std::fabs(static_cast<double>(rounded)) : 1e300;
  return std::isfinite(got) && std::isfinite(rounded) ? std::fabs(static_cast<double>(got) - exact) / unit : 1e9;
}

template <typename Vector, typename Exact>
void check_function(const char* name, const Vector& vector, const Exact& exact) {
  // Every 1009th float, all signs and exponents among them; lanes hold neighbours, so that one odd lane among others
  // is seen too.
  for (uint64_t first = 0; first < (uint64_t{1} << 32); first += 1009 * kLanes) {
    float x[kLanes], y[kLanes];
    for (int i = 0; i < kLanes; i++) {
      const uint32_t bits = static_cast<uint32_t>(first + static_cast<uint64_t>(i) * 1009);
      std::memcpy(&x[i], &bits, 4);
    }
    simd::store(y, vector(simd::load(x)));
    for (int i = 0; i < kLanes; i++) {
      const double off = ulps(y[i], exact(static_cast<double>(x[i])));
      CHECK_CASE(off <= 2.5, "%s(%.9g) = %.9g, %.2f units off", name, double(x[i]), double(y[i]), off);
    }
  }
  // Near the edges of the reductions, and mixed with far and special values.
  for (int seed = 0; seed < 20000; seed++) {
    float x[kLanes], y[kLanes];
    fill(x, seed);
    for (int i = 0; i < kLanes; i += 2)
      x[i] = static_cast<float>(seed - 10000) * 0.7853981634f + static_cast<float>(i) * 1e-4f;
    simd::store(y, vector(simd::load(x)));
    for (int i = 0; i < kLanes; i++) {
      const double off = ulps(y[i], exact(static_cast<double>(x[i])));
      CHECK_CASE(off <= 2.5, "%s(%.9g) = %.9g, %.2f units off", name, double(x[i]), double(y[i]), off);
    }
  }
}

void test_functions() {
  check_function("log", [](F32 x) { return simd::log(x); }, [](double x) { return std::log(x); });
  check_function("sin", [](F32 x) { return simd::sin(x); }, [](double x) { return std::sin(x); });
  check_function("cos", [](F32 x) { return simd::cos(x); }, [](double x) { return std::cos(x); });
  check_function("tanh", [](F32 x) { return simd::tanh(x); }, [](double x) { return std::tanh(x); });
}

bool supported() {
#if CARAVAN_ISA_LEVEL == 4
  return __builtin_cpu_supports("avx512bf16");
#elif CARAVAN_ISA_LEVEL == 3
  return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif CARAVAN_ISA_LEVEL == 2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

}  // namespace

#define SIMD_TEST_TEXT_(x) #x
#define SIMD_TEST_TEXT(x) SIMD_TEST_TEXT_(x)

int main() {
  if (!supported()) {
    std::printf("simd_test: " SIMD_TEST_TEXT(CARAVAN_ISA) " skipped: this processor lacks it\n");
    return 0;
  }
  test_arithmetic();
  test_fma();
  test_exponent();
  test_exp();
  test_bf16();
  test_partial();
  test_reductions();
  test_functions();
  return check::finish("simd_test " SIMD_TEST_TEXT(CARAVAN_ISA));
}
