// matmul: c[g] = op(a[g]) op(b[g]) for each g of a batch, op = transpose where the attribute is 1, so c is [G,I,P] and
// the shared dimension is what remains of a. 2GIJP flops. Small batches go product by product over all threads, many
// small products go one to a thread; both give the same bits.
#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "cpu/gemm.h"
#include "cpu/thread_pool.h"

namespace caravan::CARAVAN_ISA {
namespace {

// Below this a product is better done whole by one thread (about 100 microseconds).
constexpr int64_t kSharedFlops = 8 << 20;

/** Product number `index` of the batch. */
GemmArgs product_of(const Args& a, int64_t index) {
  const View &left = a.in[0], &right = a.in[1], &c = a.out[0];
  const bool transpose_a = a.attrs[0] != 0, transpose_b = a.attrs[1] != 0;
  auto operand = [index](const View& v, bool transposed) -> Matrix {
    int64_t rows = v.shape[1], columns = v.shape[2];
    const char* data = v.as<char>() + index * rows * columns * static_cast<int64_t>(size_of(v.dtype));
    return transposed ? Matrix{data, v.dtype, 1, columns} : Matrix{data, v.dtype, columns, 1};
  };
  GemmArgs g{};
  g.M = c.shape[1];
  g.N = c.shape[2];
  g.K = transpose_a ? left.shape[1] : left.shape[2];
  g.a = operand(left, transpose_a);
  g.b = operand(right, transpose_b);
  g.c = c.as<char>() + index * g.M * g.N * static_cast<int64_t>(size_of(c.dtype));
  g.c_dtype = c.dtype;
  g.c_row_stride = g.N;
  return g;
}

CARAVAN_KERNEL(matmul, cpu, "a[G,A1,A2] b[G,B1,B2] -> c[G,I,P] | transpose_a transpose_b I P") {
  int64_t G = a.in[0].shape[0];
  if (a.out[0].count() == 0) return;
  ThreadPool& pool = pool_of(a);
  GemmArgs first = product_of(a, 0);
  if (G < pool.threads() || 2 * first.M * first.N * first.K >= kSharedFlops) {
    for (int64_t index = 0; index < G; index++) gemm(product_of(a, index), a.device, pool);
    return;
  }
  size_t bytes = (gemm_serial_workspace(first.M, first.N, first.K) + 63) / 64 * 64;
  Scratch scratch(a.device, bytes * static_cast<size_t>(pool.threads()));
  int64_t grain = kSharedFlops / (2 * first.M * first.N * first.K + 1) / 4 + 1;
  parallel_ranges(pool, G, grain, [&](int64_t begin, int64_t end, int worker) {
    char* workspace = scratch.as<char>() + static_cast<size_t>(worker) * bytes;
    for (int64_t index = begin; index < end; index++) gemm_serial(product_of(a, index), workspace);
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
