// linear: y = x w^T + bias + residual and its gradients, as linear.cc; the products are those of cuda/gemm.h.
#include "core/scratch.h"
#include "cuda/gemm.h"
#include "cuda/numbers.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

/** The rows of a view as a stored matrix [rows, last]. */
Product::Operand operand(const View& v, bool transposed) { return {v.data, transposed, v.last()}; }

void multiply(const Args& a, const View& left, bool left_transposed, const View& right, bool right_transposed,
              const View& c, const View& add, const View& bias) {
  Product p{};
  p.M = c.rows();
  p.N = c.last();
  p.K = left_transposed ? left.rows() : left.last();
  p.a = operand(left, left_transposed);
  p.b = operand(right, right_transposed);
  p.c = c.data;
  p.c_leading = p.N;
  p.in = left.dtype;
  p.out = c.dtype;
  p.add = add.data;
  p.bias = bias.data;
  multiply(a, p);
}

CARAVAN_KERNEL(linear, cuda, "x[*,D] w[F,D] bias[F]? residual[*,F]? -> y[*,F]") {
  multiply(a, a.in[0], false, a.in[1], true, a.out[0], a.in[3], a.in[2]);
}

CARAVAN_KERNEL(linear_backward_input, cuda, "dy[*,F] w[F,D] dx0[*,D]? -> dx[*,D]") {
  multiply(a, a.in[0], false, a.in[1], false, a.out[0], a.in[2], {});
}

CARAVAN_KERNEL(linear_backward_weight, cuda, "dy[*,F] x[*,D] -> dw[F,D]:f32") {
  multiply(a, a.in[0], true, a.in[1], false, a.out[0], {}, {});
}

CARAVAN_KERNEL(linear_backward_weight_add, cuda, "dw[F,D]:f32! dy[*,F] x[*,D] ->") {
  multiply(a, a.in[1], true, a.in[2], false, a.in[0], a.in[0], {});
}

// ---- bias gradient: chunks of kBiasRows rows are summed apart in f64, then in increasing order
// -----------------------

constexpr int64_t kBiasRows = 256;
constexpr int kBiasThreads = 128;

template <typename T, typename Sum>
__global__ void column_sums(const T* x, int64_t rows, int64_t columns, Sum* sums) {
  const int64_t column = int64_t{blockIdx.x} * kBiasThreads + threadIdx.x;
  if (column >= columns) return;
  const int64_t begin = int64_t{blockIdx.y} * kBiasRows;
  const int64_t end = begin + kBiasRows < rows ? begin + kBiasRows : rows;
  double sum = 0;
  for (int64_t row = begin; row < end; row++) sum += static_cast<double>(widen(x[row * columns + column]));
  sums[blockIdx.y * columns + column] = static_cast<Sum>(sum);
}

/** Sums chunks of rows, then chunks of those sums, until one row is left. */
template <typename T, typename Sum>
void sum_columns(const Args& a, const T* x, int64_t rows, int64_t columns, Sum* sums) {
  const int64_t chunks = rows <= kBiasRows ? 1 : ceil_div(rows, kBiasRows);
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kBiasThreads)), static_cast<unsigned>(chunks));
  if (chunks == 1) return launch(a, {grid, dim3(kBiasThreads)}, column_sums<T, Sum>, x, rows, columns, sums);
  Scratch scratch(a.device, static_cast<size_t>(chunks * columns) * sizeof(double));
  launch(a, {grid, dim3(kBiasThreads)}, column_sums<T, double>, x, rows, columns, scratch.as<double>());
  sum_columns(a, scratch.as<double>(), chunks, columns, sums);
}

CARAVAN_KERNEL(linear_backward_bias, cuda, "dy[*,F] -> db[F]:f32") {
  const View &dy = a.in[0], &db = a.out[0];
  const int64_t rows = dy.rows(), F = dy.last();
  if (dy.dtype == DType::kF64) return sum_columns(a, dy.as<double>(), rows, F, db.as<double>());
  if (dy.dtype == DType::kBF16) return sum_columns(a, dy.as<bf16>(), rows, F, db.as<float>());
  sum_columns(a, dy.as<float>(), rows, F, db.as<float>());
}

}  // namespace
}  // namespace caravan::cuda
