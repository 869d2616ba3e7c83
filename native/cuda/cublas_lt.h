// Matrix products by cuBLASLt, opened at run time. What is declared of it here follows its public header; the library
// keeps these names and numbers over its major versions.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>

#include "cuda/gemm.h"

namespace caravan::cuda {

struct CublasLtFunctions;

class CublasLt {
 public:
  /** Null when the library is not installed. With `fixed`, one algorithm without split sums serves every M of a product
   *  that is otherwise the same: slower for few rows, and bits that do not depend on the batch. */
  static std::unique_ptr<CublasLt> open(bool fixed);
  ~CublasLt();
  /** False when the library has no algorithm for this product. */
  bool run(const Args& a, const Product& product);

 private:
  struct Plan;
  CublasLt(const CublasLtFunctions& functions, void* handle, bool fixed);
  Plan& plan_of(const Product& product);
  std::unique_ptr<Plan> make_plan(const Product& product);

  const CublasLtFunctions& functions_;
  void* handle_;
  bool fixed_;
  std::unordered_map<std::string, std::unique_ptr<Plan>> plans_;
};

/** By what products are made; see cuda/gemm.h. */
struct GemmChoice {
  std::unique_ptr<CublasLt> library;  // null: the own kernels
  bool few_rows = false;              // products of a few rows by their own kernel
};
/** As CARAVAN_CUDA_GEMM wants it. Throws ERR_CONFIG. */
GemmChoice chosen_gemm();

}  // namespace caravan::cuda
