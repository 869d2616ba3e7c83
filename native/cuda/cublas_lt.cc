#include "cuda/cublas_lt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/scratch.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/library.h"

namespace caravan::cuda {

namespace {

// Numbers of cublasLt.h, cublas_api.h and library_types.h.
constexpr int kDescTransA = 3, kDescTransB = 4, kDescEpilogue = 7, kDescBiasPointer = 8, kDescBiasType = 26;
constexpr int kLayoutBatchCount = 5, kLayoutBatchStride = 6;
constexpr int kPreferenceWorkspace = 1, kPreferenceReduction = 3, kPreferenceAlignmentA = 5;
constexpr int kCompute32F = 68, kCompute64F = 70;
constexpr int kRealF32 = 0, kRealF64 = 1, kRealBF16 = 14;
constexpr int32_t kTransposed = 1;
constexpr int kInvalidValue = 7, kNotSupported = 15;
// Of a sum over K that was split: in the type of the sums, never in that of a bf16 result.
constexpr uint32_t kEpilogueBias = 4, kReductionNone = 0, kReductionOfSums = 2;
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
/** Rows for which the algorithm of all products is chosen when it is fixed. */
constexpr int64_t kFixedRows = 2048;

struct Algorithm {
  uint64_t data[8];
};
struct Choice {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

int type_of(DType dtype) { return dtype == DType::kBF16 ? kRealBF16 : dtype == DType::kF64 ? kRealF64 : kRealF32; }

uint32_t alignment_of(const void* p) {
  uint32_t alignment = 256;
  while (alignment > 1 && reinterpret_cast<uintptr_t>(p) % alignment != 0) alignment /= 2;
  return alignment;
}

void check_status(int status, const char* what) {
  if (status != 0) fail("ERR_DEVICE", "cuBLASLt: %s failed with status %d", what, status);
}

}  // namespace

struct CublasLtFunctions {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*desc_create)(void** desc, int compute, int scale_type);
  int (*desc_destroy)(void* desc);
  int (*desc_set)(void* desc, int attribute, const void* value, size_t bytes);
  int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t columns, int64_t leading);
  int (*layout_destroy)(void* layout);
  int (*layout_set)(void* layout, int attribute, const void* value, size_t bytes);
  int (*preference_create)(void** preference);
  int (*preference_destroy)(void* preference);
  int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted,
                   Choice* choices, int* found);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                const Algorithm* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream);
};

namespace {

template <typename F>
bool resolve(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

const CublasLtFunctions* functions() {
  static const CublasLtFunctions* found = []() -> const CublasLtFunctions* {
    void* library = cublas_lt_library().handle;
    if (library == nullptr) return nullptr;
    static CublasLtFunctions f;
    const bool all = resolve(library, "cublasLtCreate", f.create) && resolve(library, "cublasLtDestroy", f.destroy) &&
                     resolve(library, "cublasLtMatmulDescCreate", f.desc_create) &&
                     resolve(library, "cublasLtMatmulDescDestroy", f.desc_destroy) &&
                     resolve(library, "cublasLtMatmulDescSetAttribute", f.desc_set) &&
                     resolve(library, "cublasLtMatrixLayoutCreate", f.layout_create) &&
                     resolve(library, "cublasLtMatrixLayoutDestroy", f.layout_destroy) &&
                     resolve(library, "cublasLtMatrixLayoutSetAttribute", f.layout_set) &&
                     resolve(library, "cublasLtMatmulPreferenceCreate", f.preference_create) &&
                     resolve(library, "cublasLtMatmulPreferenceDestroy", f.preference_destroy) &&
                     resolve(library, "cublasLtMatmulPreferenceSetAttribute", f.preference_set) &&
                     resolve(library, "cublasLtMatmulAlgoGetHeuristic", f.heuristic) &&
                     resolve(library, "cublasLtMatmul", f.matmul);
    return all ? &f : nullptr;
  }();
  return found;
}

}  // namespace

/** What one kind of product needs, made once. `desc` is null when the library has no algorithm for it. */
struct CublasLt::Plan {
  const CublasLtFunctions& f;
  void *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr;
  Choice choice{};
  bool usable = false;

  explicit Plan(const CublasLtFunctions& functions) : f(functions) {}
  ~Plan() {
    if (c != nullptr) f.layout_destroy(c);
    if (b != nullptr) f.layout_destroy(b);
    if (a != nullptr) f.layout_destroy(a);
    if (desc != nullptr) f.desc_destroy(desc);
  }
};

std::unique_ptr<CublasLt> CublasLt::open(bool fixed) {
  const CublasLtFunctions* f = functions();
  void* handle = nullptr;
  if (f == nullptr || f->create(&handle) != 0) return nullptr;
  return std::unique_ptr<CublasLt>(new CublasLt(*f, handle, fixed));
}

CublasLt::CublasLt(const CublasLtFunctions& f, void* handle, bool fixed)
    : functions_(f), handle_(handle), fixed_(fixed) {}

CublasLt::~CublasLt() {
  plans_.clear();
  functions_.destroy(handle_);
}

// The library counts columns first: our row-major c[M,N] is its c^T[N,M], so operands and sizes change places.
std::unique_ptr<CublasLt::Plan> CublasLt::make_plan(const Product& p) {
  const CublasLtFunctions& f = functions_;
  auto plan = std::make_unique<Plan>(f);
  const bool f64 = p.in == DType::kF64;
  check_status(f.desc_create(&plan->desc, f64 ? kCompute64F : kCompute32F, f64 ? kRealF64 : kRealF32), "descriptor");
  auto set = [&](int attribute, const auto& value) {
    check_status(f.desc_set(plan->desc, attribute, &value, sizeof(value)), "descriptor");
  };
  if (p.b.transposed) set(kDescTransA, kTransposed);
  if (p.a.transposed) set(kDescTransB, kTransposed);
  if (p.bias != nullptr) {
    set(kDescEpilogue, kEpilogueBias);
    set(kDescBiasPointer, p.bias);
    set(kDescBiasType, static_cast<int32_t>(type_of(p.in)));
  }
  auto layout = [&](void** made, DType dtype, int64_t rows, int64_t columns, int64_t leading, int64_t batch_stride) {
    check_status(
        f.layout_create(made, type_of(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), leading),
        "layout");
    const int32_t batch = static_cast<int32_t>(p.batch);
    check_status(f.layout_set(*made, kLayoutBatchCount, &batch, sizeof(batch)), "layout");
    check_status(f.layout_set(*made, kLayoutBatchStride, &batch_stride, sizeof(batch_stride)), "layout");
  };
  layout(&plan->a, p.in, p.b.transposed ? p.K : p.N, p.b.transposed ? p.N : p.K, p.b.leading, p.b.batch_stride);
  layout(&plan->b, p.in, p.a.transposed ? p.M : p.K, p.a.transposed ? p.K : p.M, p.a.leading, p.a.batch_stride);
  layout(&plan->c, p.out, p.N, p.M, p.c_leading, p.c_batch_stride);

  void* preference = nullptr;
  check_status(f.preference_create(&preference), "preference");
  f.preference_set(preference, kPreferenceWorkspace, &kWorkspaceBytes, sizeof(kWorkspaceBytes));
  const uint32_t reduction = fixed_ ? kReductionNone : kReductionOfSums;
  f.preference_set(preference, kPreferenceReduction, &reduction, sizeof(reduction));
  const void* pointers[4] = {p.b.data, p.a.data, p.add != nullptr ? p.add : p.c, p.c};
  for (int i = 0; i < 4; i++) {
    const uint32_t alignment = alignment_of(pointers[i]);
    f.preference_set(preference, kPreferenceAlignmentA + i, &alignment, sizeof(alignment));
  }
  int found = 0;
  const int status =
      f.heuristic(handle_, plan->desc, plan->a, plan->b, plan->c, plan->c, preference, 1, &plan->choice, &found);
  f.preference_destroy(preference);
  plan->usable = status == 0 && found > 0 && plan->choice.state == 0;
  return plan;
}

CublasLt::Plan& CublasLt::plan_of(const Product& p) {
  const uint32_t aligned[4] = {alignment_of(p.a.data), alignment_of(p.b.data), alignment_of(p.c), alignment_of(p.add)};
  const int64_t fields[] = {
      p.M,
      p.N,
      p.K,
      p.a.leading,
      p.b.leading,
      p.c_leading,
      p.a.batch_stride,
      p.b.batch_stride,
      p.c_batch_stride,
      p.batch,
      (p.a.transposed ? 1 : 0) | (p.b.transposed ? 2 : 0) | (p.add != nullptr ? 4 : 0) | (p.bias != nullptr ? 8 : 0),
      static_cast<int64_t>(p.in) * 16 + static_cast<int64_t>(p.out),
      int64_t{aligned[0]} | int64_t{aligned[1]} << 16 | int64_t{aligned[2]} << 32 | int64_t{aligned[3]} << 48};
  std::string key(reinterpret_cast<const char*>(fields), sizeof(fields));
  std::unique_ptr<Plan>& plan = plans_[key];
  if (plan != nullptr) return *plan;
  plan = make_plan(p);
  if (fixed_ && !p.a.transposed && p.M != kFixedRows) {
    // Layouts of this M, the algorithm of another one: the order of its sums is part of it.
    Product model = p;
    model.M = kFixedRows;
    const Plan& of_model = plan_of(model);
    plan->choice = of_model.choice;
    plan->usable = of_model.usable;
  }
  return *plans_[key];
}

bool CublasLt::run(const Args& args, const Product& p) {
  Plan& plan = plan_of(p);
  if (!plan.usable) return false;
  if (p.bias != nullptr) {
    check_status(functions_.desc_set(plan.desc, kDescBiasPointer, &p.bias, sizeof(p.bias)), "bias");
  }
  const double one64 = 1, beta64 = p.add != nullptr ? 1 : 0;
  const float one32 = 1, beta32 = p.add != nullptr ? 1 : 0;
  const bool f64 = p.in == DType::kF64;
  const void* one = f64 ? static_cast<const void*>(&one64) : &one32;
  const void* beta = f64 ? static_cast<const void*>(&beta64) : &beta32;
  Scratch workspace(args.device, plan.choice.workspace_bytes);
  const int status = functions_.matmul(handle_, plan.desc, one, p.b.data, plan.a, p.a.data, plan.b, beta,
                                       p.add != nullptr ? p.add : p.c, plan.c, p.c, plan.c, &plan.choice.algorithm,
                                       workspace.as<void>(), plan.choice.workspace_bytes, stream_of(args));
  const bool refused = status == kInvalidValue || status == kNotSupported;  // and nothing was started
  if (refused && fixed_) {
    fail("ERR_DEVICE",
         "cuBLASLt's algorithm for %lld rows does not take %lld: use CARAVAN_CUDA_GEMM=own for fixed bits",
         static_cast<long long>(kFixedRows), static_cast<long long>(p.M));
  }
  if (refused) return plan.usable = false;
  check_status(status, "product");
  return true;
}

// ---- the choice between the library and the own kernels
// --------------------------------------------------------------

GemmChoice chosen_gemm() {
  const char* wanted = std::getenv("CARAVAN_CUDA_GEMM");
#ifdef CARAVAN_SIMT
  // No library: own products, and for tests the kernel for a few rows.
  return {nullptr, wanted != nullptr && std::string(wanted) == "auto"};
#else
  const std::string way = wanted == nullptr ? "auto" : wanted;
  if (way == "own") return {};
  if (way != "auto" && way != "fixed") {
    fail("ERR_CONFIG", "CARAVAN_CUDA_GEMM must be auto, fixed or own; got '%s'", way.c_str());
  }
  GemmChoice choice = {CublasLt::open(way == "fixed"), way == "auto"};
  if (choice.library == nullptr) choice.few_rows = false;
  return choice;
#endif
}

void multiply(const Args& a, const Product& p) {
  if (p.M == 0 || p.N == 0 || p.batch == 0) return;
  const GemmChoice& choice = device_of(a).gemm();
  if (choice.few_rows && p.M <= kFewRows && multiply_few(a, p)) return;
  // The library refuses empty sums.
  if (choice.library != nullptr && p.K > 0 && choice.library->run(a, p)) return;
  own_gemm(a, p);
}

}  // namespace caravan::cuda
