// Calling a kernel by name, as the command queue does, on tensors whose memory ends where their last element ends (so
// that AddressSanitizer sees a step too far) and whose outputs start as garbage (so that an element left out is seen).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/types.h"
#include "cpu/device.h"
#include "cpu/isa.h"
#include "test/native/check.h"

namespace check {

using caravan::DType;

class Tensor {
 public:
  Tensor(DType dtype, std::vector<int64_t> shape)
      : dtype_(dtype), shape_(std::move(shape)), bytes_(view_of(1).bytes()) {
    data_.reset(new char[bytes_]);
    std::memset(data_.get(), 0xa5, bytes_);
  }
  Tensor(const Tensor& other) : Tensor(other.dtype_, other.shape_) {
    present_ = other.present_;
    if (bytes_ > 0) std::memcpy(data_.get(), other.data_.get(), bytes_);
  }
  Tensor& operator=(const Tensor& other) {
    Tensor copy(other);
    std::swap(dtype_, copy.dtype_);
    std::swap(shape_, copy.shape_);
    std::swap(bytes_, copy.bytes_);
    std::swap(present_, copy.present_);
    std::swap(data_, copy.data_);
    return *this;
  }
  /** An optional argument that is not given. */
  static Tensor absent() {
    Tensor tensor(DType::kF32, {0});
    tensor.present_ = false;
    return tensor;
  }
  /** A tensor of numbers in [-1, 1) drawn from `seed`, rounded to the dtype. */
  static Tensor random(DType dtype, std::vector<int64_t> shape, uint64_t seed) {
    Tensor tensor(dtype, std::move(shape));
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < tensor.count(); i++) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      tensor.set(i, static_cast<double>(static_cast<int64_t>(state) >> 11) * 0x1p-52);
    }
    return tensor;
  }
  static Tensor of(DType dtype, std::vector<int64_t> shape, const std::vector<double>& values) {
    Tensor tensor(dtype, std::move(shape));
    for (int64_t i = 0; i < tensor.count(); i++) tensor.set(i, values[static_cast<size_t>(i)]);
    return tensor;
  }

  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t count() const { return view_of(1).count(); }
  size_t bytes() const { return bytes_; }
  const char* data() const { return data_.get(); }
  caravan::View view() const { return view_of(reinterpret_cast<uintptr_t>(data_.get())); }

  double at(int64_t i) const {
    switch (dtype_) {
      case DType::kF32:
        return view().as<float>()[i];
      case DType::kBF16:
        return caravan::to_f32(view().as<caravan::bf16>()[i]);
      case DType::kF64:
        return view().as<double>()[i];
      case DType::kI32:
        return view().as<int32_t>()[i];
      default:
        return view().as<uint16_t>()[i];
    }
  }
  void set(int64_t i, double value) {
    switch (dtype_) {
      case DType::kF32:
        view().as<float>()[i] = static_cast<float>(value);
        break;
      case DType::kBF16:
        view().as<caravan::bf16>()[i] = caravan::to_bf16(static_cast<float>(value));
        break;
      case DType::kF64:
        view().as<double>()[i] = value;
        break;
      case DType::kI32:
        view().as<int32_t>()[i] = static_cast<int32_t>(value);
        break;
      default:
        view().as<uint16_t>()[i] = static_cast<uint16_t>(value);
    }
  }
  std::vector<double> values() const {
    std::vector<double> all;
    for (int64_t i = 0; i < count(); i++) all.push_back(at(i));
    return all;
  }
  bool same_bits(const Tensor& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data_.get(), other.data_.get(), bytes_) == 0;
  }
  /** Rows [begin, end) of the first dimension. */
  Tensor rows(int64_t begin, int64_t end) const {
    std::vector<int64_t> shape = shape_;
    const size_t row_bytes = shape[0] == 0 ? 0 : bytes_ / static_cast<size_t>(shape[0]);
    shape[0] = end - begin;
    Tensor part(dtype_, shape);
    std::memcpy(part.data_.get(), data_.get() + static_cast<size_t>(begin) * row_bytes, part.bytes_);
    return part;
  }

 private:
  caravan::View view_of(uintptr_t address) const {
    caravan::View view;
    view.data = present_ ? reinterpret_cast<void*>(address) : nullptr;
    view.rank = static_cast<int>(shape_.size());
    for (size_t i = 0; i < shape_.size(); i++) view.shape[i] = shape_[i];
    view.dtype = dtype_;
    return view;
  }

  DType dtype_;
  std::vector<int64_t> shape_;
  bool present_ = true;
  size_t bytes_;
  std::unique_ptr<char[]> data_;
};

using Tensors = std::vector<Tensor>;

struct Call {
  std::string op;
  Tensors in;
  Tensors out = {};
  std::vector<double> attrs = {};
};

/** Runs the call on copies of its tensors and returns them as the kernel left them. */
inline Call run(caravan::CpuDevice& device, const Call& call) {
  Call done = call;
  const caravan::KernelRow* kernel = device.find_kernel(call.op);
  CHECK_CASE(kernel != nullptr, "no kernel %s for %s", call.op.c_str(), device.isa().c_str());
  if (kernel == nullptr) return done;
  std::vector<caravan::View> in, out;
  for (const Tensor& tensor : done.in) in.push_back(tensor.view());
  for (const Tensor& tensor : done.out) out.push_back(tensor.view());
  const caravan::Args args{device,
                           in.data(),
                           static_cast<int>(in.size()),
                           out.data(),
                           static_cast<int>(out.size()),
                           done.attrs.data(),
                           static_cast<int>(done.attrs.size())};
  kernel->run(args);
  return done;
}

/** The code of the error that the call fails with, or "" when it does not fail. */
inline std::string failure_of(caravan::CpuDevice& device, const Call& call, std::string* message = nullptr) {
  try {
    run(device, call);
  } catch (const caravan::Error& error) {
    if (message != nullptr) *message = error.what();
    return error.code();
  }
  return "";
}

/** Names of the instruction sets in this build that this processor can run. */
inline std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const caravan::IsaLevel& level : caravan::isa_levels()) {
    if (level.supported()) names.push_back(level.name);
  }
  return names;
}

inline constexpr size_t kBudgetBytes = size_t{1} << 30;

/** `body(device)` once for each usable instruction set, on three threads (more than most test machines have cores: the
 *  order in which tasks end is then anything). */
inline void on_each_isa(const std::function<void(caravan::CpuDevice&)>& body) {
  for (const std::string& isa : usable_isas()) {
    caravan::CpuDevice device(3, kBudgetBytes, isa);
    body(device);
    CHECK_CASE(device.allocator().live_bytes() == 0, "workspace left over on %s", isa.c_str());
  }
}

/** Every output and updated input has the same bits on 1, 2, 3 and 4 threads, on every instruction set. */
inline void check_threads(const Call& call) {
  for (const std::string& isa : usable_isas()) {
    caravan::CpuDevice alone(1, kBudgetBytes, isa);
    const Call expected = run(alone, call);
    for (int threads = 2; threads <= 4; threads++) {
      caravan::CpuDevice device(threads, kBudgetBytes, isa);
      const Call got = run(device, call);
      for (size_t i = 0; i < got.in.size(); i++) {
        CHECK_CASE(got.in[i].same_bits(expected.in[i]), "%s on %s: input %zu differs on %d threads", call.op.c_str(),
                   isa.c_str(), i, threads);
      }
      for (size_t i = 0; i < got.out.size(); i++) {
        CHECK_CASE(got.out[i].same_bits(expected.out[i]), "%s on %s: output %zu differs on %d threads", call.op.c_str(),
                   isa.c_str(), i, threads);
      }
    }
  }
}

/** |got - expected| <= rounding of the dtype + `ulps` f32 (f64 for f64) roundings of the largest expected value, or of
 *  `magnitude` where terms larger than any result cancel. */
inline void check_close(const char* what, const Tensor& got, const std::vector<double>& expected, double ulps = 16,
                        double magnitude = 0.0) {
  CHECK_CASE(static_cast<size_t>(got.count()) == expected.size(), "%s: %lld values, expected %zu", what,
             static_cast<long long>(got.count()), expected.size());
  const double working = got.dtype() == DType::kF64 ? 0x1p-53 : 0x1p-24;
  const double stored = got.dtype() == DType::kBF16 ? 0x1p-8 : 0.0;
  double largest = magnitude;
  for (double value : expected) {
    if (std::isfinite(value) && std::fabs(value) > largest) largest = std::fabs(value);
  }
  for (size_t i = 0; i < expected.size() && static_cast<int64_t>(i) < got.count(); i++) {
    const double value = got.at(static_cast<int64_t>(i));
    const double allowed = stored * std::fabs(expected[i]) + ulps * working * largest;
    const bool same = value == expected[i] || (std::isnan(value) && std::isnan(expected[i]));
    CHECK_CASE(same || std::fabs(value - expected[i]) <= allowed, "%s: element %zu is %.9g, expected %.9g (+- %.3g)",
               what, i, value, expected[i], allowed);
  }
}

}  // namespace check
