// Every output element against its definition, bit for bit: one chain over increasing K, then the epilogue, each step
// rounded as documented. Equal bits alone, in any batch, for any thread count and for the serial entry follow. A second
// oracle in double guards the definition itself.
#define CARAVAN_ISA portable

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "cpu/gemm.h"
#include "test/native/check.h"
#include "test/native/test_device.h"

using caravan::bf16;
using caravan::Device;
using caravan::DType;
using caravan::GemmArgs;
using caravan::Matrix;
using caravan::ThreadPool;

#define DECLARE_ISA(isa)                                         \
  namespace caravan::isa {                                       \
  void gemm(const GemmArgs&, Device&, ThreadPool&);              \
  size_t gemm_serial_workspace(int64_t M, int64_t N, int64_t K); \
  void gemm_serial(const GemmArgs&, void*);                      \
  }
#if defined(__x86_64__)
DECLARE_ISA(avx2)
DECLARE_ISA(avx512)
DECLARE_ISA(avx512bf16)
DECLARE_ISA(emulated16)
DECLARE_ISA(emulated16pairs)
#endif

namespace {

enum class Chain { kTwoRoundings, kFused, kFusedPairs };

struct Isa {
  const char* name;
  bool supported;
  Chain bf16_chain, chain;
  void (*gemm)(const GemmArgs&, Device&, ThreadPool&);
  size_t (*workspace)(int64_t, int64_t, int64_t);
  void (*serial)(const GemmArgs&, void*);
};

#define ISA(isa, supported, bf16_chain, chain) \
  {#isa,                                       \
   supported,                                  \
   bf16_chain,                                 \
   chain,                                      \
   caravan::isa::gemm,                         \
   caravan::isa::gemm_serial_workspace,        \
   caravan::isa::gemm_serial}

const Isa kIsas[] = {
    ISA(portable, true, Chain::kTwoRoundings, Chain::kTwoRoundings),
#if defined(__x86_64__)
    // gemm_emulated16.cc: the 16-lane code on 8-lane processors.
    ISA(emulated16, bool(__builtin_cpu_supports("fma")), Chain::kFused, Chain::kFused),
    ISA(emulated16pairs, bool(__builtin_cpu_supports("fma")), Chain::kFusedPairs, Chain::kFused),
    ISA(avx2, bool(__builtin_cpu_supports("avx2")), Chain::kFused, Chain::kFused),
    ISA(avx512, bool(__builtin_cpu_supports("avx512dq")), Chain::kFused, Chain::kFused),
    // The processor may round pairs otherwise than the documentation's two steps, so only the double oracle judges.
    ISA(avx512bf16, bool(__builtin_cpu_supports("avx512bf16")), Chain::kFusedPairs, Chain::kFused),
#endif
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() >> 11) % n; }
  float uniform() { return static_cast<float>(static_cast<double>(next() >> 40) / (1 << 23) - 1.0); }

 private:
  uint64_t state_;
};

/** A strided matrix in memory of exactly the size that it needs, so that a sanitizer sees every step outside. */
struct Operand {
  DType dtype;
  int64_t rows, columns, row_stride, column_stride;
  std::unique_ptr<char[]> memory;
  size_t bytes;

  Operand(DType type, int64_t r, int64_t c, int64_t rs, int64_t cs)
      : dtype(type), rows(r), columns(c), row_stride(rs), column_stride(cs) {
    int64_t last = rows > 0 && columns > 0 ? (rows - 1) * rs + (columns - 1) * cs + 1 : 0;
    bytes = static_cast<size_t>(last) * caravan::size_of(type);
    memory.reset(new char[bytes + (bytes == 0)]);
    std::memset(memory.get(), 0, bytes);
  }
  Matrix matrix() const { return {memory.get(), dtype, row_stride, column_stride}; }
  void set(int64_t i, float value) {
    if (dtype == DType::kF64) reinterpret_cast<double*>(memory.get())[i] = value;
    if (dtype == DType::kF32) reinterpret_cast<float*>(memory.get())[i] = value;
    if (dtype == DType::kBF16) reinterpret_cast<bf16*>(memory.get())[i] = caravan::to_bf16(value);
  }
  void fill(Random& random, bool integers) {
    int64_t count = static_cast<int64_t>(bytes / caravan::size_of(dtype));
    for (int64_t i = 0; i < count; i++) {
      set(i, integers ? static_cast<float>(random.below(9) - 4) : random.uniform());
    }
  }
  double at(int64_t r, int64_t c) const {
    int64_t i = r * row_stride + c * column_stride;
    if (dtype == DType::kF64) return reinterpret_cast<const double*>(memory.get())[i];
    if (dtype == DType::kF32) return static_cast<double>(reinterpret_cast<const float*>(memory.get())[i]);
    return static_cast<double>(caravan::to_f32(reinterpret_cast<const bf16*>(memory.get())[i]));
  }
  float f32_at(int64_t r, int64_t c) const { return static_cast<float>(at(r, c)); }
};

enum class Layout { kNT, kNN, kTN, kTT, kStrided };

struct Case {
  int64_t M, N, K;
  Layout layout = Layout::kNN;
  DType a = DType::kF32, b = DType::kF32, c = DType::kF32;
  int64_t pad = 0;  // added to every leading dimension
  float alpha = 1.0f;
  bool accumulate = false, residual = false, bias = false;
  DType bias_dtype = DType::kF32;
  bool integers = false;
};

Operand operand(DType dtype, int64_t rows, int64_t columns, bool transposed, bool strided, int64_t pad) {
  if (strided) return Operand(dtype, rows, columns, 2 * columns + pad, 2);
  if (transposed) return Operand(dtype, rows, columns, 1, rows + pad);
  return Operand(dtype, rows, columns, columns + pad, 1);
}

/** All operands of a case. */
struct Problem {
  Case k;
  Operand a, b, c, residual, bias;

  Problem(const Case& one, Random& random)
      : k(one),
        a(operand(one.a, one.M, one.K, one.layout == Layout::kTN || one.layout == Layout::kTT,
                  one.layout == Layout::kStrided, one.pad)),
        b(operand(one.b, one.K, one.N, one.layout == Layout::kNT || one.layout == Layout::kTT,
                  one.layout == Layout::kStrided, one.pad)),
        c(operand(one.c, one.M, one.N, false, false, one.pad)),
        residual(operand(one.c, one.M, one.N, false, false, 2 * one.pad)),
        bias(operand(one.bias_dtype, 1, one.N, false, false, 0)) {
    for (Operand* o : {&a, &b, &c, &residual, &bias}) o->fill(random, one.integers);
  }
  GemmArgs args(char* out, int64_t first_row = 0, int64_t rows = -1) const {
    GemmArgs g{};
    int64_t element = static_cast<int64_t>(caravan::size_of(k.c));
    g.M = rows < 0 ? k.M : rows;
    g.N = k.N;
    g.K = k.K;
    g.a = a.matrix();
    g.a.data = a.memory.get() + first_row * a.row_stride * static_cast<int64_t>(caravan::size_of(k.a));
    g.b = b.matrix();
    g.c = out + first_row * c.row_stride * element;
    g.c_dtype = k.c;
    g.c_row_stride = c.row_stride;
    g.alpha = k.alpha;
    g.accumulate = k.accumulate;
    if (k.residual) g.residual = residual.memory.get() + first_row * residual.row_stride * element;
    g.residual_row_stride = residual.row_stride;
    if (k.bias) g.bias = bias.memory.get();
    g.bias_dtype = k.bias_dtype;
    return g;
  }
};

float chain_sum(const Problem& p, Chain chain, int64_t i, int64_t j) {
  float sum = 0;
  const int64_t K = p.k.K;
  for (int64_t k = 0; k < K; k++) {
    if (chain == Chain::kTwoRoundings) {
      volatile float product = p.a.f32_at(i, k) * p.b.f32_at(k, j);
      sum += product;
    } else if (chain == Chain::kFused) {
      sum = std::fma(p.a.f32_at(i, k), p.b.f32_at(k, j), sum);
    } else {
      int64_t other = k % 2 == 0 ? k + 1 : k - 1;  // the upper of each pair first
      if (other < K) sum = std::fma(p.a.f32_at(i, other), p.b.f32_at(other, j), sum);
      if (other >= K) sum = std::fma(p.a.f32_at(i, k), p.b.f32_at(k, j), sum);
    }
  }
  return sum;
}

/** The documented result, by the definition; `out` holds C before. */
std::vector<char> expected(const Problem& p, Chain chain) {
  std::vector<char> out(p.c.memory.get(), p.c.memory.get() + p.c.bytes);
  for (int64_t i = 0; i < p.k.M; i++) {
    for (int64_t j = 0; j < p.k.N; j++) {
      volatile float value = chain_sum(p, chain, i, j) * p.k.alpha;
      if (p.k.accumulate) value = value + p.c.f32_at(i, j);
      if (p.k.residual) value = value + p.residual.f32_at(i, j);
      if (p.k.bias) value = value + p.bias.f32_at(0, j);
      int64_t at = i * p.c.row_stride + j;
      if (p.k.c == DType::kBF16) {
        reinterpret_cast<bf16*>(out.data())[at] = caravan::to_bf16(value);
      } else {
        reinterpret_cast<float*>(out.data())[at] = value;
      }
    }
  }
  return out;
}

double double_result(const Problem& p, int64_t i, int64_t j, double* magnitude) {
  double sum = 0;
  *magnitude = 0;
  for (int64_t k = 0; k < p.k.K; k++) {
    sum += p.a.at(i, k) * p.b.at(k, j);
    *magnitude += std::fabs(p.a.at(i, k) * p.b.at(k, j));
  }
  sum *= static_cast<double>(p.k.alpha);
  if (p.k.accumulate) sum += p.c.at(i, j);
  if (p.k.residual) sum += p.residual.at(i, j);
  if (p.k.bias) sum += p.bias.at(0, j);
  *magnitude = *magnitude * std::fabs(static_cast<double>(p.k.alpha)) + std::fabs(sum) + 4;
  return sum;
}

double value_at(const Problem& p, const std::vector<char>& out, int64_t i, int64_t j) {
  int64_t at = i * p.c.row_stride + j;
  if (p.k.c == DType::kF64) return reinterpret_cast<const double*>(out.data())[at];
  if (p.k.c == DType::kF32) return static_cast<double>(reinterpret_cast<const float*>(out.data())[at]);
  return static_cast<double>(caravan::to_f32(reinterpret_cast<const bf16*>(out.data())[at]));
}

std::string describe(const Isa& isa, const Case& k) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "%s M=%ld N=%ld K=%ld layout=%d a=%d b=%d c=%d pad=%ld alpha=%g acc=%d res=%d bias=%d/%d", isa.name,
                long(k.M), long(k.N), long(k.K), int(k.layout), int(k.a), int(k.b), int(k.c), long(k.pad),
                double(k.alpha), k.accumulate, k.residual, k.bias, int(k.bias_dtype));
  return text;
}

std::vector<char> original(const Problem& p) { return {p.c.memory.get(), p.c.memory.get() + p.c.bytes}; }

std::vector<char> run(const Isa& isa, const Problem& p, TestDevice& device, ThreadPool& pool) {
  std::vector<char> out = original(p);
  isa.gemm(p.args(out.data()), device, pool);
  return out;
}

std::vector<char> run_serial(const Isa& isa, const Problem& p) {
  std::vector<char> out = original(p);
  // The promised size in whole cache lines, and one more that must stay as it is.
  constexpr char kUntouched = 0x5a;
  size_t bytes = (isa.workspace(p.k.M, p.k.N, p.k.K) + 63) / 64 * 64;
  std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(64, bytes + 64), std::free);
  std::memset(static_cast<char*>(workspace.get()) + bytes, kUntouched, 64);
  isa.serial(p.args(out.data()), workspace.get());
  const char* behind = static_cast<const char*>(workspace.get()) + bytes;
  CHECK_CASE(std::all_of(behind, behind + 64, [](char c) { return c == kUntouched; }), "%s: past its workspace",
             describe(isa, p.k).c_str());
  return out;
}

/** A few rows at a time, through the paths for few rows. */
std::vector<char> run_rows(const Isa& isa, const Problem& p, TestDevice& device, ThreadPool& pool, int64_t rows) {
  std::vector<char> out = original(p);
  for (int64_t i = 0; i < p.k.M; i += rows) {
    isa.gemm(p.args(out.data(), i, std::min(rows, p.k.M - i)), device, pool);
  }
  return out;
}

void check_double(const Isa& isa, const Problem& p, const std::vector<char>& out) {
  double unit = p.k.c == DType::kBF16 ? 1.0 / 256 : 0;
  for (int64_t i = 0; i < p.k.M; i++) {
    for (int64_t j = 0; j < p.k.N; j++) {
      double magnitude, want = double_result(p, i, j, &magnitude), got = value_at(p, out, i, j);
      // Forward error of a chain of K + 4 roundings; integers this small have none.
      double bound = p.k.integers ? 0 : (static_cast<double>(p.k.K) + 4) * 6e-8 * magnitude;
      CHECK_CASE(std::fabs(got - want) <= bound + unit * std::fabs(want), "%s at %ld,%ld: got %.9g, want %.9g",
                 describe(isa, p.k).c_str(), long(i), long(j), got, want);
    }
  }
}

struct Pools {
  ThreadPool one{1}, two{2}, three{3}, four{4};
};

bool defined_by_chain(const Isa& isa) { return std::string(isa.name) != "avx512bf16"; }

void check_case(const Isa& isa, const Case& k, TestDevice& device, Pools& pools, Random& random) {
  Problem p(k, random);
  std::vector<char> first = run(isa, p, device, pools.one);
  check_double(isa, p, first);
  bool pairs = k.a == DType::kBF16 && k.b == DType::kBF16;
  if (defined_by_chain(isa) || !pairs) {
    CHECK_CASE(first == expected(p, pairs ? isa.bf16_chain : isa.chain), "%s: not the documented chain",
               describe(isa, k).c_str());
  }
  CHECK_CASE(first == run_serial(isa, p), "%s: serial differs", describe(isa, k).c_str());
  ThreadPool* more[] = {&pools.two, &pools.three, &pools.four};
  CHECK_CASE(first == run(isa, p, device, *more[random.below(3)]), "%s: threads differ", describe(isa, k).c_str());
  CHECK_CASE(first == run_rows(isa, p, device, pools.two, 1 + random.below(random.below(2) == 0 ? 4 : 20)),
             "%s: rows alone differ", describe(isa, k).c_str());
}

DType any_type(Random& random) { return random.below(2) == 0 ? DType::kF32 : DType::kBF16; }

Case random_case(Random& random, int64_t most_k) {
  Case k;
  k.M = 1 + random.below(40);
  k.N = 1 + random.below(80);
  k.K = random.below(8) == 0 ? random.below(most_k) : random.below(41);
  k.layout = static_cast<Layout>(random.below(16) == 0 ? 3 + random.below(2) : random.below(3));
  k.a = any_type(random);
  k.b = random.below(3) == 0 ? any_type(random) : k.a;
  k.c = any_type(random);
  k.pad = random.below(2) * random.below(20);
  k.alpha = random.below(3) == 0 ? 0.3125f : 1.0f;
  k.accumulate = random.below(3) == 0;
  k.residual = random.below(3) == 0;
  k.bias = random.below(3) == 0;
  k.bias_dtype = any_type(random);
  k.integers = k.c == DType::kF32 && random.below(3) == 0;
  return k;
}

void test_random_cases(const Isa& isa, TestDevice& device, Pools& pools, int cases) {
  Random random(7);
  for (int i = 0; i < cases; i++) check_case(isa, random_case(random, 900), device, pools, random);
}

/** Sizes on every path of the plan: few rows, many panels, several passes of K, chunks of rows, more tasks than
 * threads. */
void test_chosen_cases(const Isa& isa, TestDevice& device, Pools& pools) {
  Random random(11);
  const int64_t sizes[][3] = {{1, 2100, 300}, {3, 5, 1},      {30, 300, 400}, {2060, 9, 514}, {4, 1030, 77},
                              {8, 300, 600},  {130, 70, 513}, {64, 64, 64},   {1200, 33, 40}, {97, 200, 31},
                              {60, 500, 1},   {29, 65, 1500}, {200, 300, 5},  {1, 40, 2050},  {2, 16, 4100},
                              {2, 41, 301},   {17, 100, 352}, {65, 90, 288},  {9, 31, 1024},  {24, 60, 330},
                              {21, 110, 47},  {13, 150, 8500}};
  for (auto& size : sizes) {
    for (Layout layout : {Layout::kNT, Layout::kNN, Layout::kTN}) {
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        Case k{size[0], size[1], size[2], layout, dtype, dtype, random.below(2) == 0 ? DType::kF32 : dtype};
        k.accumulate = random.below(4) == 0;
        check_case(isa, k, device, pools, random);
      }
    }
  }
}

/** Weights larger than a cache go by panel after panel for more rows. Only where the processor has the instructions:
 *  emulated ones would take ten seconds more. */
void test_large_weights(const Isa& isa, TestDevice& device, Pools& pools) {
  if (std::strncmp(isa.name, "emulated", 8) == 0) return;
  Random random(13);
  check_case(isa, {65, 8100, 520, Layout::kNT, DType::kF32, DType::kF32, DType::kF32}, device, pools, random);
}

void test_f64(const Isa& isa, TestDevice& device, Pools& pools) {
  Random random(5);
  for (int i = 0; i < 60; i++) {
    Case k = random_case(random, 60);
    k.a = k.b = k.c = k.bias_dtype = DType::kF64;
    k.integers = true;
    k.alpha = 0.5f;
    Problem p(k, random);
    std::vector<char> out = run(isa, p, device, pools.two);
    check_double(isa, p, out);
    CHECK(out == run_serial(isa, p));
  }
}

/** NaN and infinity of one row and column stay there: lanes and rows of padding never leak. */
void test_special_values(const Isa& isa, TestDevice& device, Pools& pools) {
  Random random(3);
  Case k{9, 37, 21, Layout::kNT};
  Problem p(k, random);
  p.a.set(4 * p.a.row_stride + 2, NAN);
  p.b.set(36 * p.b.column_stride + 5, INFINITY);
  std::vector<char> out = run(isa, p, device, pools.two);
  for (int64_t i = 0; i < k.M; i++) {
    for (int64_t j = 0; j < k.N; j++) {
      double value = value_at(p, out, i, j);
      CHECK(std::isnan(value) == (i == 4));
      if (i != 4) CHECK(std::isinf(value) == (j == 36));
    }
  }
}

void test_wrong_types(const Isa& isa, TestDevice& device, Pools& pools) {
  Random random(2);
  Problem p(Case{2, 2, 2}, random);
  GemmArgs g = p.args(p.c.memory.get());
  g.b.dtype = DType::kF64;
  std::string code;
  try {
    isa.gemm(g, device, pools.one);
  } catch (const caravan::Error& error) {
    code = error.code();
  }
  CHECK(code == "ERR_DTYPE");
}

}  // namespace

int main(int argc, char** argv) {
  int cases = argc > 1 ? std::atoi(argv[1]) : 400;
  TestDevice device;
  Pools pools;
  for (const Isa& isa : kIsas) {
    if (!isa.supported) {
      std::printf("gemm_test: %s skipped: this processor lacks it\n", isa.name);
      continue;
    }
    int before = check::failures;
    test_random_cases(isa, device, pools, cases);
    test_chosen_cases(isa, device, pools);
    test_large_weights(isa, device, pools);
    test_f64(isa, device, pools);
    test_special_values(isa, device, pools);
    test_wrong_types(isa, device, pools);
    std::printf("gemm_test: %s %s\n", isa.name, check::failures == before ? "ok" : "FAILED");
  }
  CHECK(device.allocator().live_bytes() == 0);
  return check::finish("gemm_test");
}
