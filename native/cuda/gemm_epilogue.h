// Where the own matrix products leave their results.
#pragma once
#include "cuda/gemm.h"
#include "cuda/numbers.h"

namespace caravan::cuda {

struct Epilogue {
  void* c;
  int64_t leading, batch_stride;
  const void* add;
  DType out;
};
inline Epilogue epilogue_of(const Product& p) { return {p.c, p.c_leading, p.c_batch_stride, p.add, p.out}; }

template <typename Out, typename Sum>
__device__ __forceinline__ void put(const Epilogue& e, int64_t row, int64_t column, int64_t batch, Sum value) {
  const int64_t at = batch * e.batch_stride + row * e.leading + column;
  if (e.add != nullptr) value += widen(static_cast<const Out*>(e.add)[at]);
  if constexpr (sizeof(Out) == sizeof(double)) {
    static_cast<Out*>(e.c)[at] = value;
  } else {
    static_cast<Out*>(e.c)[at] = narrow<Out>(value);
  }
}

}  // namespace caravan::cuda
