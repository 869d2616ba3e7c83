// GFLOP/s of the matrix product at training and decoding shapes, beside oneDNN where the build found it and the limit
// of the processor at that moment (clocks change by a fifth). All take turns within every repetition and the best
// repetition counts. One-thread rows use the CPU time of the thread, so that a shared machine disturbs them less; rows
// with more threads use the wall clock.
//   gemm_bench [--isa avx2] [--threads 1] [--repeat 7] [--only 512x | --shape 2048x128x352]
#define CARAVAN_ISA portable

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "core/scratch.h"
#include "cpu/device.h"
#include "cpu/gemm.h"

#ifdef CARAVAN_BENCH_ONEDNN
#include <oneapi/dnnl/dnnl.hpp>
extern "C" void omp_set_num_threads(int);
#endif

using namespace caravan;

#define DECLARE_ISA(isa)                            \
  namespace caravan::isa {                          \
  void gemm(const GemmArgs&, Device&, ThreadPool&); \
  }
#if defined(__x86_64__)
DECLARE_ISA(avx2)
DECLARE_ISA(avx512)
DECLARE_ISA(avx512bf16)
#endif

namespace {

using GemmFunction = void (*)(const GemmArgs&, Device&, ThreadPool&);

struct IsaChoice {
  const char* name;
  bool supported;
  GemmFunction gemm;
};

const IsaChoice kIsas[] = {
    {"portable", true, portable::gemm},
#if defined(__x86_64__)
    {"avx2", bool(__builtin_cpu_supports("avx2")) && bool(__builtin_cpu_supports("fma")), avx2::gemm},
    {"avx512", bool(__builtin_cpu_supports("avx512dq")), avx512::gemm},
    {"avx512bf16", bool(__builtin_cpu_supports("avx512bf16")), avx512bf16::gemm},
#endif
};

struct Options {
  std::string isa, only, shape;
  int threads = 1, repeat = 7;
};

Options g_options;

double seconds() {
  timespec now;
  clock_gettime(g_options.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Shape {
  int64_t M, K, N;
};

enum class Layout { kNT, kNN, kTN };
const char* const kLayoutNames[] = {"NT", "NN", "TN"};

/** Operands in the device's memory (huge pages), as the engine holds them. */
struct Buffers {
  Scratch a, b, c;
  Buffers(Device& device, const Shape& s, DType dtype)
      : a(device, static_cast<size_t>(s.M * s.K) * size_of(dtype)),
        b(device, static_cast<size_t>(s.K * s.N) * size_of(dtype)),
        c(device, static_cast<size_t>(s.M * s.N) * sizeof(float)) {}
};

/** Small values in both types; the bit patterns matter only in being neither NaN nor denormal. */
void fill(const Scratch& memory, int64_t count, DType dtype) {
  uint64_t state = 88172645463325252ull;
  for (int64_t i = 0; i < count; i++) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    float value = static_cast<float>(static_cast<int64_t>(state >> 40) - (1 << 23)) / (1 << 23);
    if (dtype == DType::kF32) memory.as<float>()[i] = value;
    if (dtype == DType::kBF16) memory.as<bf16>()[i] = to_bf16(value);
  }
}

GemmArgs arguments(const Shape& s, Layout layout, DType dtype, Buffers& buffers) {
  GemmArgs g{};
  g.M = s.M;
  g.N = s.N;
  g.K = s.K;
  bool a_transposed = layout == Layout::kTN, b_transposed = layout == Layout::kNT;
  g.a = {buffers.a.as<char>(), dtype, a_transposed ? 1 : s.K, a_transposed ? s.M : 1};
  g.b = {buffers.b.as<char>(), dtype, b_transposed ? 1 : s.N, b_transposed ? s.K : 1};
  g.c = buffers.c.as<char>();
  // Weight gradients are f32 whatever the operands are.
  g.c_dtype = layout == Layout::kTN ? DType::kF32 : dtype;
  g.c_row_stride = s.N;
  return g;
}

#ifdef CARAVAN_BENCH_ONEDNN
/** A oneDNN matmul, made once per shape as a framework would cache it. */
class Rival {
 public:
  Rival(const GemmArgs& g) : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    omp_set_num_threads(g_options.threads);
    auto type = [](DType d) {
      return d == DType::kBF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
    };
    dnnl::memory::desc a({g.M, g.K}, type(g.a.dtype), {g.a.row_stride, g.a.column_stride});
    dnnl::memory::desc b({g.K, g.N}, type(g.b.dtype), {g.b.row_stride, g.b.column_stride});
    dnnl::memory::desc c({g.M, g.N}, type(g.c_dtype), {g.c_row_stride, 1});
    try {
      dnnl::matmul::desc description(a, b, c);
      primitive_.reset(new dnnl::matmul({description, engine_}));
    } catch (const dnnl::error&) {
      return;  // this processor has no such kernel
    }
    arguments_ = {{DNNL_ARG_SRC, dnnl::memory(a, engine_, const_cast<void*>(g.a.data))},
                  {DNNL_ARG_WEIGHTS, dnnl::memory(b, engine_, const_cast<void*>(g.b.data))},
                  {DNNL_ARG_DST, dnnl::memory(c, engine_, g.c)}};
  }
  bool available() const { return primitive_ != nullptr; }
  void run() {
    primitive_->execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unique_ptr<dnnl::matmul> primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};
#else
struct Rival {
  explicit Rival(const GemmArgs&) {}
  bool available() const { return false; }
  void run() {}
};
#endif

template <typename Body>
double time_of(int calls, const Body& body) {
  double begin = seconds();
  for (int i = 0; i < calls; i++) body();
  return (seconds() - begin) / calls;
}

/** GFLOP/s of independent multiply-adds on eight lanes for about 2 ms, the ceiling of a thread's f32 products on AVX2;
 * 0 without it. */
double fma_rate() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("fma")) return 0;
  const long rounds = 1000000;
  const double time = time_of(1, [&] {
    long n = rounds;
    asm volatile(
        "1:\n"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm0\n vfmadd231ps %%ymm14, %%ymm15, %%ymm1\n"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm2\n vfmadd231ps %%ymm14, %%ymm15, %%ymm3\n"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm4\n vfmadd231ps %%ymm14, %%ymm15, %%ymm5\n"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm6\n vfmadd231ps %%ymm14, %%ymm15, %%ymm7\n"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm8\n vfmadd231ps %%ymm14, %%ymm15, %%ymm9\n"
        "dec %0\n jnz 1b\n"
        : "+r"(n)
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "cc");
  });
  return 10 * 16 * static_cast<double>(rounds) / time / 1e9;
#else
  return 0;
#endif
}

struct Rates {
  double ours = 0, rival = 0, ceiling = 0;
};

Rates measure(const Shape& s, Layout layout, DType dtype, GemmFunction gemm, CpuDevice& device) {
  Buffers buffers(device, s, dtype);
  fill(buffers.a, s.M * s.K, dtype);
  fill(buffers.b, s.K * s.N, dtype);
  GemmArgs g = arguments(s, layout, dtype, buffers);
  Rival rival(g);
  double flops = 2.0 * double(s.M) * double(s.N) * double(s.K);
  int calls = static_cast<int>(4e8 / flops) + 1;
  auto ours = [&] { gemm(g, device, device.pool()); };
  ours();
  if (rival.available()) rival.run();
  double best_ours = 1e30, best_rival = 1e30, ceiling = 0;
  for (int i = 0; i < g_options.repeat; i++) {
    ceiling = std::max(ceiling, g_options.threads * fma_rate());
    best_ours = std::min(best_ours, time_of(calls, ours));
    if (rival.available()) best_rival = std::min(best_rival, time_of(calls, [&] { rival.run(); }));
  }
  return {flops / best_ours / 1e9, rival.available() ? flops / best_rival / 1e9 : 0, ceiling};
}

void parse(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i];
    if (key == "--isa") g_options.isa = argv[i + 1];
    if (key == "--only") g_options.only = argv[i + 1];
    if (key == "--shape") g_options.shape = argv[i + 1];
    if (key == "--threads") g_options.threads = std::atoi(argv[i + 1]);
    if (key == "--repeat") g_options.repeat = std::atoi(argv[i + 1]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  // The rival's idle threads would go on waiting on the processors that ours then share with them.
  if (std::getenv("OMP_WAIT_POLICY") == nullptr && setenv("OMP_WAIT_POLICY", "passive", 1) == 0) {
    execv("/proc/self/exe", argv);
  }
  parse(argc, argv);
  const IsaChoice* choice = nullptr;
  for (const IsaChoice& isa : kIsas) {
    if (isa.supported && (g_options.isa.empty() || g_options.isa == isa.name)) choice = &isa;
  }
  if (choice == nullptr) {
    std::fprintf(stderr, "gemm_bench: this processor or this build has no instruction set '%s'\n",
                 g_options.isa.c_str());
    return 1;
  }
  double load[1] = {0};
  getloadavg(load, 1);
  std::printf(
      "isa %s, %d thread(s), best of %d, load %.1f; GFLOP/s ours / oneDNN (- = not available), and ours in %% of\n"
      "what multiply-adds of 8 lanes alone reach in the same turns\n",
      choice->name, g_options.threads, g_options.repeat, load[0]);
  std::vector<Shape> shapes = {
      {512, 512, 512},  {1024, 1024, 1024}, {2048, 2048, 2048}, {256, 768, 768},   {512, 768, 3072},  {1024, 64, 64},
      {4096, 64, 64},   {4096, 256, 256},   {2048, 256, 1024},  {256, 4096, 4096}, {512, 256, 32000}, {128, 2048, 128},
      {352, 2048, 128}, {2048, 128, 352},   {128, 64, 128},     {64, 64, 64},      {32, 32, 32},      {16, 16, 16},
      {1, 2048, 2048},  {4, 2048, 2048},    {8, 2048, 2048},    {16, 2048, 2048}};
  if (!g_options.shape.empty()) {
    Shape one{};
    const int read = std::sscanf(g_options.shape.c_str(), "%ldx%ldx%ld", &one.M, &one.K, &one.N);
    if (read != 3 || one.M < 1 || one.K < 1 || one.N < 1) {
      std::fprintf(stderr, "gemm_bench: --shape takes MxKxN, as in 2048x128x352; got '%s'\n", g_options.shape.c_str());
      return 1;
    }
    shapes = {one};
  }
  CpuDevice device(g_options.threads, size_t{2} << 30, choice->name);
  for (const Shape& s : shapes) {
    char name[64];
    std::snprintf(name, sizeof(name), "%ldx%ldx%ld", long(s.M), long(s.K), long(s.N));
    if (!g_options.only.empty() && std::strncmp(name, g_options.only.c_str(), g_options.only.size()) != 0) continue;
    std::printf("%-16s", name);
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      std::printf(" %s", dtype == DType::kF32 ? "f32" : " bf16");
      for (Layout layout : {Layout::kNT, Layout::kNN, Layout::kTN}) {
        Rates r = measure(s, layout, dtype, choice->gemm, device);
        std::printf("  %s %5.1f /", kLayoutNames[int(layout)], r.ours);
        if (r.rival > 0) {
          std::printf(" %5.1f", r.rival);
        } else {
          std::printf("     -");
        }
        if (r.ceiling > 0) std::printf(" %3.0f%%", 100 * r.ours / r.ceiling);
      }
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  return 0;
}
