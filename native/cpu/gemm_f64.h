// The product in f64: the oracle's element type, so it is plain. The order of additions is that of the fast types (one
// chain over K per element), and blocks of columns keep it usable at test sizes.
#pragma once
#include "cpu/gemm.h"

namespace caravan::CARAVAN_ISA::packed {
namespace {

inline double at_f64(const Matrix& m, int64_t row, int64_t column) {
  return static_cast<const double*>(m.data)[row * m.row_stride + column * m.column_stride];
}

inline void finish_f64(const GemmArgs& g, int64_t row, int64_t column, double sum) {
  double* c = static_cast<double*>(g.c) + row * g.c_row_stride + column;
  double value = sum * static_cast<double>(g.alpha);
  if (g.accumulate) value += *c;
  if (g.residual != nullptr) value += static_cast<const double*>(g.residual)[row * g.residual_row_stride + column];
  if (g.bias != nullptr) value += static_cast<const double*>(g.bias)[column];
  *c = value;
}

/** Row `row` of C. */
inline void gemm_f64_row(const GemmArgs& g, int64_t row) {
  constexpr int64_t kBlock = 32;
  for (int64_t first = 0; first < g.N; first += kBlock) {
    int64_t n = g.N - first < kBlock ? g.N - first : kBlock;
    double sums[kBlock] = {};
    for (int64_t k = 0; k < g.K; k++) {
      double a = at_f64(g.a, row, k);
      for (int64_t j = 0; j < n; j++) sums[j] += a * at_f64(g.b, k, first + j);
    }
    for (int64_t j = 0; j < n; j++) finish_f64(g, row, first + j, sums[j]);
  }
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA::packed
