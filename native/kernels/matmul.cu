// matmul: batched products of stored matrices, as matmul.cc.
#include "cuda/gemm.h"
#include "cuda/launch.h"

namespace caravan::cuda {
namespace {

CARAVAN_KERNEL(matmul, cuda, "a[G,A1,A2] b[G,B1,B2] -> c[G,I,P] | transpose_a transpose_b I P") {
  const View &left = a.in[0], &right = a.in[1], &c = a.out[0];
  const bool transpose_a = a.attrs[0] != 0, transpose_b = a.attrs[1] != 0;
  Product p{};
  p.M = c.shape[1];
  p.N = c.shape[2];
  p.K = transpose_a ? left.shape[1] : left.shape[2];
  p.a = {left.data, transpose_a, left.shape[2], left.shape[1] * left.shape[2]};
  p.b = {right.data, transpose_b, right.shape[2], right.shape[1] * right.shape[2]};
  p.c = c.data;
  p.c_leading = p.N;
  p.c_batch_stride = p.M * p.N;
  p.in = left.dtype;
  p.out = c.dtype;
  p.batch = c.shape[0];
  multiply(a, p);
}

}  // namespace
}  // namespace caravan::cuda
