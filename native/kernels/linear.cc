// linear: y[N,F] = x[N,D] w[F,D]^T + bias + residual, and its gradients
//   dx = dy w (+ dx0),   dw = dy^T x (or added to dw),   db = sum over rows of dy.
// Nothing is saved but the inputs. 2NDF flops each; sums are f32 from the first product to the last and are rounded
// once when they are stored. Weight and bias gradients stay f32 because micro-batches are added up in them.
#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "cpu/gemm.h"
#include "cpu/simd.h"
#include "cpu/thread_pool.h"

namespace caravan::CARAVAN_ISA {
namespace {

/** The rows of a view as a matrix [rows, last]; transposed: [last, rows]. */
Matrix matrix_of(const View& v, bool transposed = false) {
  int64_t columns = v.last();
  if (transposed) return {v.data, v.dtype, 1, columns};
  return {v.data, v.dtype, columns, 1};
}

/** C is `c`, M x N as it lies, summed over K. */
GemmArgs product(Matrix a, Matrix b, int64_t K, const View& c) {
  GemmArgs g{};
  g.M = c.rows();
  g.N = c.last();
  g.K = K;
  g.a = a;
  g.b = b;
  g.c = c.data;
  g.c_dtype = c.dtype;
  g.c_row_stride = g.N;
  return g;
}

void add_residual(GemmArgs& g, const View& residual) {
  if (!residual.present()) return;
  g.residual = residual.data;
  g.residual_row_stride = g.N;
}

CARAVAN_KERNEL(linear, cpu, "x[*,D] w[F,D] bias[F]? residual[*,F]? -> y[*,F]") {
  const View &x = a.in[0], &w = a.in[1], &bias = a.in[2];
  GemmArgs g = product(matrix_of(x), matrix_of(w, true), x.last(), a.out[0]);
  if (bias.present()) {
    g.bias = bias.data;
    g.bias_dtype = bias.dtype;
  }
  add_residual(g, a.in[3]);
  gemm(g, a.device, pool_of(a));
}

CARAVAN_KERNEL(linear_backward_input, cpu, "dy[*,F] w[F,D] dx0[*,D]? -> dx[*,D]") {
  const View &dy = a.in[0], &w = a.in[1];
  GemmArgs g = product(matrix_of(dy), matrix_of(w), dy.last(), a.out[0]);
  add_residual(g, a.in[2]);
  gemm(g, a.device, pool_of(a));
}

CARAVAN_KERNEL(linear_backward_weight, cpu, "dy[*,F] x[*,D] -> dw[F,D]:f32") {
  const View &dy = a.in[0], &x = a.in[1];
  gemm(product(matrix_of(dy, true), matrix_of(x), x.rows(), a.out[0]), a.device, pool_of(a));
}

CARAVAN_KERNEL(linear_backward_weight_add, cpu, "dw[F,D]:f32! dy[*,F] x[*,D] ->") {
  const View &dy = a.in[1], &x = a.in[2];
  GemmArgs g = product(matrix_of(dy, true), matrix_of(x), x.rows(), a.in[0]);
  g.accumulate = true;
  gemm(g, a.device, pool_of(a));
}

// ---- bias gradient: rows are summed in chunks of kBiasRows, chunks in increasing order, whatever the threads
// ----------

constexpr int64_t kBiasRows = 64;
constexpr int64_t kBiasColumns = 256;

template <typename T>
void sum_columns(const T* dy, int64_t rows, int64_t stride, int64_t columns, float* sums) {
  auto add_chunk = [&](int64_t first, auto load_dy, auto load_sum, auto store_sum) {
    for (int64_t chunk = 0; chunk < rows; chunk += kBiasRows) {
      int64_t end = chunk + kBiasRows < rows ? chunk + kBiasRows : rows;
      F32 sum = zero();
      for (int64_t row = chunk; row < end; row++) sum = sum + load_dy(dy + row * stride + first);
      store_sum(sums + first, chunk == 0 ? sum : load_sum(sums + first) + sum);
    }
  };
  for_lanes(
      columns,
      [&](int64_t first) {
        add_chunk(
            first, [](const T* p) { return load(p); }, [](const float* p) { return load(p); },
            [](float* p, F32 v) { store(p, v); });
      },
      [&](int64_t first, int n) {
        add_chunk(
            first, [n](const T* p) { return load_first(p, n); }, [n](const float* p) { return load_first(p, n); },
            [n](float* p, F32 v) { store_first(p, v, n); });
      });
}

void sum_columns_f64(const double* dy, int64_t rows, int64_t stride, int64_t columns, double* sums) {
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t j = 0; j < columns; j++) sums[j] += dy[row * stride + j];
  }
}

CARAVAN_KERNEL(linear_backward_bias, cpu, "dy[*,F] -> db[F]:f32") {
  const View &dy = a.in[0], &db = a.out[0];
  int64_t rows = dy.rows(), F = dy.last();
  if (F == 0) return;
  __builtin_memset(db.data, 0, db.bytes());
  parallel_ranges(pool_of(a), F, kBiasColumns, [&](int64_t begin, int64_t end, int) {
    if (dy.dtype == DType::kF64) {
      sum_columns_f64(dy.as<double>() + begin, rows, F, end - begin, db.as<double>() + begin);
    } else if (dy.dtype == DType::kBF16) {
      sum_columns(dy.as<bf16>() + begin, rows, F, end - begin, db.as<float>() + begin);
    } else {
      sum_columns(dy.as<float>() + begin, rows, F, end - begin, db.as<float>() + begin);
    }
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
