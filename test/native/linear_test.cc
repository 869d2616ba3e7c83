// The linear and matmul kernels, by their rows in the kernel table: against double from the definition, and the same
// bits on one thread and on three, for every instruction set of this processor and in f32, bf16 and f64.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/device.h"
#include "cpu/isa.h"
#include "test/native/check.h"

using caravan::Args;
using caravan::bf16;
using caravan::CpuDevice;
using caravan::DType;
using caravan::View;

namespace {

struct Tensor {
  std::vector<int64_t> shape;
  DType dtype;
  std::vector<char> memory;

  Tensor(std::vector<int64_t> dims, DType type) : shape(dims), dtype(type) { memory.resize(view().bytes()); }
  View view() {
    View v;
    v.data = memory.data();
    v.dtype = dtype;
    v.rank = static_cast<int>(shape.size());
    for (size_t i = 0; i < shape.size(); i++) v.shape[i] = shape[i];
    return v;
  }
  double at(int64_t i) const {
    if (dtype == DType::kF64) return reinterpret_cast<const double*>(memory.data())[i];
    if (dtype == DType::kF32) return static_cast<double>(reinterpret_cast<const float*>(memory.data())[i]);
    return static_cast<double>(caravan::to_f32(reinterpret_cast<const bf16*>(memory.data())[i]));
  }
  void set(int64_t i, double value) {
    if (dtype == DType::kF64) reinterpret_cast<double*>(memory.data())[i] = value;
    if (dtype == DType::kF32) reinterpret_cast<float*>(memory.data())[i] = static_cast<float>(value);
    if (dtype == DType::kBF16) reinterpret_cast<bf16*>(memory.data())[i] = caravan::to_bf16(static_cast<float>(value));
  }
  /** Small multiples of 1/4, exact in every type, as are their sums of products. */
  Tensor& fill(int seed) {
    int64_t count = view().count();
    for (int64_t i = 0; i < count; i++) set(i, static_cast<double>((i * 37 + seed * 11) % 17 - 8) / 4);
    return *this;
  }
};

void run(CpuDevice& device, const char* op, std::vector<View> in, std::vector<View> out,
         std::vector<double> attrs = {}) {
  const caravan::KernelRow* row = device.find_kernel(op);
  CHECK_CASE(row != nullptr, "no kernel %s", op);
  if (row == nullptr) return;
  row->run(Args{device, in.data(), static_cast<int>(in.size()), out.data(), static_cast<int>(out.size()), attrs.data(),
                static_cast<int>(attrs.size())});
}

/** All values exact but for the rounding to the output type. */
template <typename Expected>
void check_all(const char* what, const std::string& isa, const Tensor& got, const Expected& expected) {
  Tensor rounded(got.shape, got.dtype);
  int64_t count = rounded.view().count();
  for (int64_t i = 0; i < count; i++) {
    rounded.set(i, expected(i));
    CHECK_CASE(got.at(i) == rounded.at(i), "%s %s dtype %d element %ld: got %g, want %g", isa.c_str(), what,
               int(got.dtype), long(i), got.at(i), rounded.at(i));
  }
}

void test_linear(CpuDevice& device, DType dtype, int64_t N, int64_t D, int64_t F) {
  const std::string& isa = device.isa();
  DType sums = dtype == DType::kF64 ? DType::kF64 : DType::kF32;
  Tensor x({N, D}, dtype), w({F, D}, dtype), bias({F}, dtype), residual({N, F}, dtype), y({N, F}, dtype);
  x.fill(1), w.fill(2), bias.fill(3), residual.fill(4);
  auto product = [&](int64_t i) {
    double sum = 0;
    for (int64_t k = 0; k < D; k++) sum += x.at(i / F * D + k) * w.at(i % F * D + k);
    return sum;
  };
  run(device, "linear", {x.view(), w.view(), bias.view(), residual.view()}, {y.view()});
  check_all("linear", isa, y, [&](int64_t i) { return product(i) + bias.at(i % F) + residual.at(i); });
  run(device, "linear", {x.view(), w.view(), View{}, View{}}, {y.view()});
  check_all("linear bare", isa, y, product);

  Tensor dy({N, F}, dtype), dx0({N, D}, dtype), dx({N, D}, dtype), dw({F, D}, sums), db({F}, sums);
  dy.fill(5), dx0.fill(6);
  run(device, "linear_backward_input", {dy.view(), w.view(), dx0.view()}, {dx.view()});
  check_all("dx", isa, dx, [&](int64_t i) {
    double sum = 0;
    for (int64_t f = 0; f < F; f++) sum += dy.at(i / D * F + f) * w.at(f * D + i % D);
    return sum + dx0.at(i);
  });
  auto weight = [&](int64_t i) {
    double sum = 0;
    for (int64_t n = 0; n < N; n++) sum += dy.at(n * F + i / D) * x.at(n * D + i % D);
    return sum;
  };
  run(device, "linear_backward_weight", {dy.view(), x.view()}, {dw.view()});
  check_all("dw", isa, dw, weight);
  run(device, "linear_backward_weight_add", {dw.view(), dy.view(), x.view()}, {});
  check_all("dw added", isa, dw, [&](int64_t i) { return 2 * weight(i); });
  run(device, "linear_backward_bias", {dy.view()}, {db.view()});
  check_all("db", isa, db, [&](int64_t f) {
    double sum = 0;
    for (int64_t n = 0; n < N; n++) sum += dy.at(n * F + f);
    return sum;
  });
}

void test_matmul(CpuDevice& device, DType dtype, int64_t G, int64_t I, int64_t J, int64_t P) {
  for (int variant = 0; variant < 4; variant++) {
    const bool ta = (variant & 1) != 0, tb = (variant & 2) != 0;
    Tensor a(ta ? std::vector<int64_t>{G, J, I} : std::vector<int64_t>{G, I, J}, dtype);
    Tensor b(tb ? std::vector<int64_t>{G, P, J} : std::vector<int64_t>{G, J, P}, dtype);
    Tensor c({G, I, P}, dtype);
    a.fill(1), b.fill(2);
    run(device, "matmul", {a.view(), b.view()}, {c.view()},
        {ta ? 1.0 : 0.0, tb ? 1.0 : 0.0, static_cast<double>(I), static_cast<double>(P)});
    check_all("matmul", device.isa(), c, [&](int64_t index) {
      int64_t g = index / (I * P), i = index / P % I, p = index % P;
      double sum = 0;
      for (int64_t j = 0; j < J; j++) {
        sum += a.at(g * I * J + (ta ? j * I + i : i * J + j)) * b.at(g * J * P + (tb ? p * J + j : j * P + p));
      }
      return sum;
    });
  }
}

/** Irrational values, so that another order of additions would show. */
void test_threads_do_not_matter(const std::string& isa, DType dtype) {
  CpuDevice one(1, size_t{1} << 30, isa), three(3, size_t{1} << 30, isa);
  const int64_t N = 300, D = 200, F = 520;
  Tensor dy({N, F}, dtype), x({N, D}, dtype);
  for (int64_t i = 0; i < N * F; i++) dy.set(i, std::sin(static_cast<double>(i)));
  for (int64_t i = 0; i < N * D; i++) x.set(i, std::cos(static_cast<double>(i) * 1.7));
  Tensor dw[2] = {Tensor({F, D}, DType::kF32), Tensor({F, D}, DType::kF32)};
  Tensor db[2] = {Tensor({F}, DType::kF32), Tensor({F}, DType::kF32)};
  for (int i = 0; i < 2; i++) {
    CpuDevice& device = i == 0 ? one : three;
    run(device, "linear_backward_weight", {dy.view(), x.view()}, {dw[i].view()});
    run(device, "linear_backward_bias", {dy.view()}, {db[i].view()});
    CHECK(device.allocator().live_bytes() == 0);
  }
  CHECK(dw[0].memory == dw[1].memory);
  CHECK(db[0].memory == db[1].memory);
}

}  // namespace

int main() {
  for (const caravan::IsaLevel& level : caravan::isa_levels()) {
    if (!level.supported()) {
      std::printf("linear_test: %s skipped: this processor lacks it\n", level.name);
      continue;
    }
    CpuDevice device(2, size_t{1} << 30, level.name);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
      test_linear(device, dtype, 1, 40, 33);
      test_linear(device, dtype, 70, 65, 19);
      test_linear(device, dtype, 0, 8, 8);
      test_matmul(device, dtype, 1, 9, 20, 17);
      test_matmul(device, dtype, 13, 7, 5, 35);
      test_matmul(device, dtype, 0, 3, 4, 5);
      test_matmul(device, dtype, 3, 4, 0, 5);
    }
    for (DType dtype : {DType::kF32, DType::kBF16}) test_threads_do_not_matter(level.name, dtype);
  }
  return check::finish("linear_test");
}
