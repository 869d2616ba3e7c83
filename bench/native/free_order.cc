// What the fixed order of additions costs: the engine's products and sums beside variants that may add in any order. A
// free order could split K over threads, read a row of weights along its own direction with several chains, and keep
// one partial sum a thread. Both sides take turns; the median of the ratios counts, since it is hardly moved by other
// load on the machine. Above 1 the fixed order is slower.
//   free_order [--threads 2] [--rounds 25]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/device.h"
#include "core/scratch.h"
#include "cpu/device.h"
#include "cpu/gemm.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {

int g_threads = 2, g_rounds = 25;

double seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <typename Body>
double time_of(int calls, const Body& body) {
  double begin = seconds();
  for (int i = 0; i < calls; i++) body();
  return (seconds() - begin) / calls;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/** Lets both run in turns and prints the medians of their times and of the ratio. */
template <typename Fixed, typename Free>
void contest(const char* what, const Fixed& fixed, const Free& free_order) {
  fixed();
  free_order();
  double once = time_of(2, fixed);
  int calls = std::max(1, static_cast<int>(2e-3 / std::max(once, 1e-8)));
  std::vector<double> ours, theirs, ratios;
  for (int round = 0; round < g_rounds; round++) {
    ours.push_back(time_of(calls, fixed));
    theirs.push_back(time_of(calls, free_order));
    ratios.push_back(ours.back() / theirs.back());
  }
  std::sort(ratios.begin(), ratios.end());
  std::printf("%-58s %9.1f us %9.1f us   %.2f  (%.2f to %.2f)\n", what, median(ours) * 1e6, median(theirs) * 1e6,
              ratios[ratios.size() / 2], ratios[ratios.size() / 4], ratios[ratios.size() * 3 / 4]);
  std::fflush(stdout);
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  uint64_t state = 88172645463325252ull;
  for (float& value : out) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    value = static_cast<float>(static_cast<int64_t>(state >> 40) - (1 << 23)) / (1 << 23);
  }
  return out;
}

struct Shape {
  int64_t M, K, N;
  bool a_transposed, b_transposed;
};

GemmArgs product(const Shape& s, const float* a, const float* b, float* c) {
  GemmArgs g{};
  g.M = s.M;
  g.N = s.N;
  g.K = s.K;
  g.a = {a, DType::kF32, s.a_transposed ? 1 : s.K, s.a_transposed ? s.M : 1};
  g.b = {b, DType::kF32, s.b_transposed ? 1 : s.N, s.b_transposed ? s.K : 1};
  g.c = c;
  g.c_dtype = DType::kF32;
  g.c_row_stride = s.N;
  return g;
}

/** K in as many parts as there are threads, each with a sum of its own, added up at the end. */
void split_k(CpuDevice& device, const Shape& s) {
  std::vector<float> a = numbers(s.M * s.K), b = numbers(s.K * s.N);
  std::vector<float> c(static_cast<size_t>(s.M * s.N) * static_cast<size_t>(g_threads));
  const size_t workspace = gemm_serial_workspace(s.M, s.N, s.K);
  Scratch scratch(device, (workspace + 64) * static_cast<size_t>(g_threads));
  const int64_t part = (s.K + g_threads - 1) / g_threads;
  GemmArgs whole = product(s, a.data(), b.data(), c.data());
  auto by_parts = [&] {
    parallel_for(device.pool(), g_threads, [&](int64_t task, int worker) {
      GemmArgs g = whole;
      const int64_t begin = std::min(task * part, s.K);
      g.K = std::min(part, s.K - begin);
      g.a.data = a.data() + begin * g.a.column_stride;
      g.b.data = b.data() + begin * g.b.row_stride;
      g.c = c.data() + task * s.M * s.N;
      gemm_serial(g, scratch.as<char>() + static_cast<size_t>(worker) * ((workspace + 63) & ~size_t{63}));
    });
    for (int task = 1; task < g_threads; task++) {
      const float* from = c.data() + task * s.M * s.N;
      for_vectors(s.M * s.N,
                  [&](int64_t i, auto v) { v.store(&c[size_t(i)], v.load(&c[size_t(i)]) + v.load(from + i)); });
    }
  };
  char name[96];
  std::snprintf(name, sizeof(name), "product %ldx%ldx%ld %s%s: K split over %d threads", long(s.M), long(s.K),
                long(s.N), s.a_transposed ? "T" : "N", s.b_transposed ? "T" : "N", g_threads);
  contest(name, [&] { gemm(whole, device, device.pool()); }, by_parts);
}

/** One row times a matrix whose rows lie along K: a dot product for each, in four chains along K. */
void few_rows(CpuDevice& device, int64_t K, int64_t N) {
  std::vector<float> a = numbers(K), b = numbers(K * N), c(static_cast<size_t>(N));
  GemmArgs whole = product({1, K, N, false, true}, a.data(), b.data(), c.data());
  auto dots = [&] {
    parallel_ranges(device.pool(), N, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t j = begin; j < end; j++) {
        const float* row = b.data() + j * K;
        c[static_cast<size_t>(j)] =
            sum_vectors(K, [&](F32 sum, int64_t i, auto v) { return fma(v.load(row + i), v.load(a.data() + i), sum); });
      }
    });
  };
  char name[96];
  std::snprintf(name, sizeof(name), "product 1x%ldx%ld NT: dot products along K", long(K), long(N));
  contest(name, [&] { gemm(whole, device, device.pool()); }, dots);
}

/** Sum of squares of rows: four chains and a tree, beside eight chains. */
void row_sums(int64_t rows, int64_t D) {
  std::vector<float> x = numbers(rows * D), y(static_cast<size_t>(rows));
  auto square = [](const float* row) {
    return [row](F32 sum, int64_t i, auto v) {
      F32 value = v.load(row + i);
      return fma(value, value, sum);
    };
  };
  auto fixed = [&] {
    for (int64_t r = 0; r < rows; r++) y[static_cast<size_t>(r)] = sum_vectors(D, square(x.data() + r * D));
  };
  auto eight = [&] {
    for (int64_t r = 0; r < rows; r++) {
      F32 sums[8];
      for (F32& sum : sums) sum = zero();
      auto step = square(x.data() + r * D);
      for (int64_t i = 0; i + 8 * F32::kLanes <= D; i += 8 * F32::kLanes) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sums[j] = step(sums[j], i + j * F32::kLanes, WholeVector{});
      }
      for (int j = 0; j < 4; j++) sums[j] = sums[j] + sums[j + 4];
      y[static_cast<size_t>(r)] = reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
  };
  char name[96];
  std::snprintf(name, sizeof(name), "sum of squares, %ld rows of %ld, one thread: 8 chains", long(rows), long(D));
  contest(name, fixed, eight);
}

/** Sums over rows: blocks of 64 rows, added in their order, beside one sum a thread. */
void column_sums(CpuDevice& device, int64_t rows, int64_t D) {
  constexpr int64_t kBlock = 64;
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  std::vector<float> x = numbers(rows * D), y(static_cast<size_t>(D));
  std::vector<float> partial(static_cast<size_t>(std::max<int64_t>(blocks, g_threads) * D));
  auto sum_rows = [&](int64_t first, int64_t last, float* out) {
    std::memset(out, 0, static_cast<size_t>(D) * 4);
    for (int64_t r = first; r < last; r++) {
      const float* row = x.data() + r * D;
      for_vectors(D, [&](int64_t i, auto v) { v.store(out + i, v.load(out + i) + v.load(row + i)); });
    }
  };
  auto combine = [&](int64_t count) {
    std::memset(y.data(), 0, static_cast<size_t>(D) * 4);
    for (int64_t b = 0; b < count; b++) {
      const float* from = partial.data() + b * D;
      for_vectors(D, [&](int64_t i, auto v) { v.store(&y[size_t(i)], v.load(&y[size_t(i)]) + v.load(from + i)); });
    }
  };
  auto with_pieces = [&](int64_t grain) {
    parallel_ranges(device.pool(), rows, grain,
                    [&](int64_t begin, int64_t end, int) { sum_rows(begin, end, partial.data() + begin / grain * D); });
    combine((rows + grain - 1) / grain);
  };
  char name[96];
  std::snprintf(name, sizeof(name), "sum over %ld rows of %ld: one sum a thread", long(rows), long(D));
  contest(name, [&] { with_pieces(kBlock); }, [&] { with_pieces((rows + g_threads - 1) / g_threads); });
}

}  // namespace

int run(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--threads") == 0) g_threads = std::max(1, std::atoi(argv[i + 1]));
    if (std::strcmp(argv[i], "--rounds") == 0) g_rounds = std::max(1, std::atoi(argv[i + 1]));
  }
  double load[1] = {0};
  getloadavg(load, 1);
  std::printf("%d threads, %d rounds, load %.1f; fixed order, free order, fixed / free (quartiles)\n", g_threads,
              g_rounds, load[0]);
  CpuDevice device(g_threads, size_t{2} << 30, "");
  // Weight gradients: few results, a long K. Then products with many results, where nothing is to be gained.
  const Shape shapes[] = {{32, 4096, 32, true, false},   {64, 4096, 64, true, false},   {128, 2048, 128, true, false},
                          {352, 2048, 128, true, false}, {128, 4096, 352, true, false}, {512, 512, 512, false, true},
                          {16, 2048, 2048, false, true}, {8, 2048, 512, false, true}};
  for (const Shape& shape : shapes) split_k(device, shape);
  few_rows(device, 288, 32000);
  few_rows(device, 2048, 2048);
  row_sums(64, 2048);
  row_sums(4096, 288);
  column_sums(device, 4096, 288);
  column_sums(device, 4096, 2048);
  return 0;
}

}  // namespace caravan::CARAVAN_ISA

int main(int argc, char** argv) { return caravan::CARAVAN_ISA::run(argc, argv); }
