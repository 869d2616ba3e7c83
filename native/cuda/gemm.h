// Matrix products on the device. CARAVAN_CUDA_GEMM says by what: own: the own kernels, in which every element of a
// result is summed over K in one order that does not depend on M, so that a row's bits are those of any batch; fixed:
// cuBLASLt by one algorithm, for which that holds too; auto: whatever is fastest, cuBLASLt by its choice and for a few
// rows a kernel that reads as fast as memory gives. Without cuBLASLt it is own.
#pragma once
#include "core/types.h"

namespace caravan::cuda {

/** c[M,N] = a[M,K] b[K,N] (+ add[M,N]) (+ bias[N]), row-major. A transposed operand is stored with its dimensions
 *  swapped. Batches lie `batch_stride` elements apart. */
struct Product {
  struct Operand {
    const void* data;
    bool transposed;
    int64_t leading;  // elements from one stored row to the next
    int64_t batch_stride = 0;
  };
  int64_t M, N, K;
  Operand a, b;
  void* c;
  int64_t c_leading;
  DType in, out;
  const void* add = nullptr;   // of type `out`, laid out as c; c itself to accumulate
  const void* bias = nullptr;  // of type `in`
  int64_t batch = 1;
  int64_t c_batch_stride = 0;
};

/** Computes a product by what the device has: cuBLASLt, or the own kernels. */
void multiply(const Args& a, const Product& product);

/** The own kernels alone. */
void own_gemm(const Args& a, const Product& product);

constexpr int64_t kFewRows = 2;
/** By the kernel for at most kFewRows rows, which sums in an order of its own; false where it does not serve. */
bool multiply_few(const Args& a, const Product& product);

}  // namespace caravan::cuda
