// Matrix product for every op: C[M,N] = ((alpha * A[M,K] B[K,N] + C) + residual) + bias, operands by strides, what is
// absent left out. One accumulation order per output element: a single chain of fused multiply-adds over increasing K
// (pairs of K for native bf16), whatever M, the tile, the batch or the number of threads. Compiled once per ISA.
#pragma once
#include <stdint.h>

#include "core/types.h"
#include "cpu/thread_pool.h"

namespace caravan {

class Device;

/** An operand, read only; it must not overlap C. Element (row, column) lies at
 *  data + row * row_stride + column * column_stride (in elements). */
struct Matrix {
  const void* data;
  DType dtype;  // kF32 or kBF16 (kF64 when all three are)
  int64_t row_stride;
  int64_t column_stride;
};

struct GemmArgs {
  int64_t M, N, K;
  Matrix a;       // [M,K]
  Matrix b;       // [K,N]
  void* c;        // [M,N], column stride 1
  DType c_dtype;  // kF32 or kBF16; the sum is f32 until it is stored
  int64_t c_row_stride;
  float alpha = 1.0f;
  bool accumulate = false;         // C += instead of C =
  const void* residual = nullptr;  // [M,N] of c_dtype, added; may be null, may be C itself
  int64_t residual_row_stride = 0;
  const void* bias = nullptr;  // [N] of bias_dtype, added to every row; may be null
  DType bias_dtype = DType::kF32;
};

namespace CARAVAN_ISA {

/** The whole product over the pool's threads. Workspace comes from the device's allocator. Throws ERR_DTYPE for element
 *  types that do not go together and ERR_OOM when there is no workspace. K = 0 is a product of zeros. */
void gemm(const GemmArgs& args, Device& device, ThreadPool& pool);

/** Bytes of workspace that suffice for gemm_serial at these sizes or smaller ones, whatever the element types and
 * strides, for one calling thread. */
size_t gemm_serial_workspace(int64_t M, int64_t N, int64_t K);

/** The product on the calling thread with the caller's workspace (64-byte aligned): the tile of attention and of the
 *  fused losses. Same bits as `gemm`. Neither allocates nor throws: the element types must be right. */
void gemm_serial(const GemmArgs& args, void* workspace);

}  // namespace CARAVAN_ISA
}  // namespace caravan
