// AdamW and gradient clipping against ten steps of PyTorch, and against f64 loops for what those do not show: bf16
// weights with a master copy, a tiny decay, steps that are not finite.
#include <limits>

#include "test/native/golden_adamw.h"
#include "test/native/kernel_call.h"

namespace {

using caravan::DType;
using check::Call;
using check::check_close;
using check::check_threads;
using check::failure_of;
using check::run;
using check::Tensor;
using check::Tensors;
using Values = std::vector<double>;

const Values kHyper = {0.9, 0.95, 1e-8, 0.1};

Tensor control_of(double lr, double gradient_scale, double finite, int step, const Values& hyper = kHyper) {
  return Tensor::of(DType::kF32, {8},
                    {lr, gradient_scale, finite, 1 - std::pow(hyper[0], step), 1 - std::pow(hyper[1], step), 0, 0, 0});
}

void golden(caravan::CpuDevice& device) {
  Tensors p, m, v;
  const float* initial = golden_adamw::kInitial;
  for (int size : golden_adamw::kSizes) {
    p.push_back(Tensor::of(DType::kF32, {size}, Values(initial, initial + size)));
    m.push_back(Tensor::of(DType::kF32, {size}, Values(static_cast<size_t>(size))));
    v.push_back(m.back());
    initial += size;
  }
  for (int step = 0; step < golden_adamw::kSteps; step++) {
    Tensors gradients;
    Tensor sum = Tensor::of(DType::kF64, {1}, {0});
    const float* g = golden_adamw::kGradients[step];
    for (int size : golden_adamw::kSizes) {
      gradients.push_back(Tensor::of(DType::kF32, {size}, Values(g, g + size)));
      sum = run(device, {"squared_sum_add", {gradients.back(), sum}, {}, {}}).in[1];
      g += size;
    }
    const Tensor control = run(device, {"clip_control", {sum, control_of(0.01, 0, 0, step + 1)}, {}, {1.0, 1.0}}).in[1];
    CHECK(control.at(2) == 1);
    check_close("norm", Tensor::of(DType::kF32, {1}, {control.at(5)}), {golden_adamw::kNorms[step]}, 1);
    for (size_t i = 0; i < p.size(); i++) {
      const Call done = run(device, {"adamw", {p[i], Tensor::absent(), gradients[i], m[i], v[i], control}, {}, kHyper});
      p[i] = done.in[0];
      m[i] = done.in[3];
      v[i] = done.in[4];
    }
  }
  Values weights, squares;
  for (size_t i = 0; i < p.size(); i++) {
    for (double value : p[i].values()) weights.push_back(value);
    for (double value : v[i].values()) squares.push_back(value);
  }
  const Tensor got = Tensor::of(DType::kF32, {golden_adamw::kCount}, weights);
  for (int i = 0; i < golden_adamw::kCount; i++) {
    // PyTorch's own f32 run is within 4.7e-7 of its f64 run.
    const double error = std::fabs(got.at(i) - golden_adamw::kFinal[i]);
    CHECK_CASE(error <= 2 * 4.7447811879486324e-07, "weight %d: %.9g, expected %.9g", i, got.at(i),
               golden_adamw::kFinal[i]);
  }
  check_close("final second moments", Tensor::of(DType::kF32, {golden_adamw::kCount}, squares),
              Values(golden_adamw::kFinalSquares, golden_adamw::kFinalSquares + golden_adamw::kCount), 16);
}

/** bf16 weights: the master follows the f64 loop over many small steps, and the copy is the master rounded. */
void master_copy(caravan::CpuDevice& device, int64_t n) {
  const Values hyper = {0.9, 0.999, 1e-8, 0.01};
  Tensor p = Tensor::random(DType::kBF16, {n}, 1), master(DType::kF32, {n});
  Tensor m = Tensor::of(DType::kF32, {n}, Values(static_cast<size_t>(n))), v = m;
  Values weight = p.values(), first(weight.size()), second(weight.size());
  for (int64_t i = 0; i < n; i++) master.set(i, p.at(i));
  for (int step = 1; step <= 20; step++) {
    const Tensor g = Tensor::random(DType::kF32, {n}, static_cast<uint64_t>(step));
    const Tensor control = control_of(1e-5, 0.5, 1, step, hyper);
    const Call done = run(device, {"adamw", {p, master, g, m, v, control}, {}, hyper});
    p = done.in[0];
    master = done.in[1];
    m = done.in[3];
    v = done.in[4];
    for (size_t i = 0; i < weight.size(); i++) {
      const double gradient = g.at(static_cast<int64_t>(i)) * 0.5;
      weight[i] *= 1 - 1e-5 * hyper[3];
      first[i] = hyper[0] * first[i] + (1 - hyper[0]) * gradient;
      second[i] = hyper[1] * second[i] + (1 - hyper[1]) * gradient * gradient;
      const double denominator = std::sqrt(second[i]) / std::sqrt(1 - std::pow(hyper[1], step)) + hyper[2];
      weight[i] -= 1e-5 / (1 - std::pow(hyper[0], step)) * first[i] / denominator;
    }
  }
  check_close("master", master, weight, 12);
  check_close("m", m, first, 12);
  for (int64_t i = 0; i < n; i++) {
    CHECK(caravan::to_bf16(static_cast<float>(master.at(i))).bits == p.view().as<caravan::bf16>()[i].bits);
  }
}

/** A decay far below the resolution of 1 - lr * weight_decay in f32 still happens at its exact rate. */
void tiny_decay(caravan::CpuDevice& device) {
  const int64_t n = 1000;
  const double decay = 1e-6 * 0.1;
  const Values hyper = {0.9, 0.999, 1e-8, 0.1};
  Tensor p(DType::kF32, {n});
  Values expected;
  double before = 0, after = 0;
  for (int64_t i = 0; i < n; i++) p.set(i, 1 + static_cast<double>(i) / static_cast<double>(n));
  const Tensor zeros = Tensor::of(DType::kF32, {n}, Values(static_cast<size_t>(n)));
  for (double value : p.values()) before += value;
  for (int step = 1; step <= 200; step++) {
    p = run(device,
            {"adamw", {p, Tensor::absent(), zeros, zeros, zeros, control_of(1e-6, 1, 1, step, hyper)}, {}, hyper})
            .in[0];
  }
  for (double value : p.values()) after += value;
  // A sum over many weights: single ones move by whole units in the last place. 1 - 1e-7 in f32 is 1 - 1.19e-7.
  const double rate = (1 - after / before) / 200;
  CHECK_CASE(std::fabs(rate / decay - 1) < 0.1, "decay per step %g, expected %g", rate, decay);
}

void not_finite(caravan::CpuDevice& device) {
  const int64_t n = 37;
  const Tensor p = Tensor::random(DType::kF32, {n}, 2), g = Tensor::random(DType::kF32, {n}, 3),
               m = Tensor::random(DType::kF32, {n}, 4);
  const Call skipped = run(device, {"adamw", {p, Tensor::absent(), g, m, m, control_of(0.1, 1, 0, 1)}, {}, kHyper});
  CHECK(skipped.in[0].same_bits(p) && skipped.in[3].same_bits(m) && skipped.in[4].same_bits(m));
  for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Tensor spoilt = g;
    spoilt.set(11, bad);
    const Tensor sum = run(device, {"squared_sum_add", {spoilt, Tensor::of(DType::kF64, {1}, {1})}, {}, {}}).in[1];
    const Tensor control = run(device, {"clip_control", {sum, control_of(0.1, 7, 1, 1)}, {}, {1.0, 1.0}}).in[1];
    CHECK(control.at(2) == 0 && !std::isfinite(control.at(5)));
  }
  CHECK(failure_of(
            device,
            {"adamw", {Tensor(DType::kI32, {n}), Tensor::absent(), g, m, m, control_of(0.1, 1, 1, 1)}, {}, kHyper}) ==
        "ERR_DTYPE");
}

void norms(caravan::CpuDevice& device) {
  for (DType t : {DType::kF32, DType::kBF16, DType::kF64}) {
    for (int64_t n : {0, 1, 9, 255, 257, 40000}) {
      const Tensor g = Tensor::random(t, {n}, 5);
      long double expected = 0.125;
      for (double value : g.values()) expected += static_cast<long double>(value) * value;
      const Tensor sum = run(device, {"squared_sum_add", {g, Tensor::of(DType::kF64, {1}, {0.125})}, {}, {}}).in[1];
      check_close("squared sum", sum, {static_cast<double>(expected)}, 16);
    }
  }
  // Squares that no f32 could hold.
  const Tensor large = Tensor::of(DType::kF32, {2}, {3e30, 4e30}), sum = Tensor::of(DType::kF64, {1}, {0});
  check_close("norm of large gradients",
              run(device, {"clip_control",
                           {run(device, {"squared_sum_add", {large, sum}, {}, {}}).in[1], control_of(1, 0, 0, 1)},
                           {},
                           {1, 0}})
                  .in[1],
              {1, 1, 1, 1 - 0.9, 1 - 0.95, static_cast<float>(5e30), 0, 0}, 1);
  // scale * min(1, max_norm / (norm + 1e-6)); max_norm <= 0 does not clip.
  const Tensor nine = Tensor::of(DType::kF64, {1}, {9});
  const auto clipped = [&](double scale, double max_norm) {
    return run(device, {"clip_control", {nine, control_of(1, 0, 0, 1)}, {}, {scale, max_norm}}).in[1].at(1);
  };
  CHECK(std::fabs(clipped(0.5, 1.0) - 0.5 / (1.5 + 1e-6)) < 1e-7);
  CHECK(clipped(0.5, 2.0) == 0.5 && clipped(0.5, 0) == 0.5 && clipped(0.25, -1) == 0.25);
}

}  // namespace

int main() {
  check::on_each_isa([](caravan::CpuDevice& device) {
    golden(device);
    for (int64_t n : {0, 1, 8, 31, 20001}) master_copy(device, n);
    tiny_decay(device);
    not_finite(device);
    norms(device);
  });
  const int64_t n = 100003;
  const Tensor g = Tensor::random(DType::kF32, {n}, 6), p = Tensor::random(DType::kBF16, {n}, 7),
               m = Tensor::random(DType::kF32, {n}, 8);
  Tensor v = m;
  for (int64_t i = 0; i < n; i++) v.set(i, std::fabs(v.at(i)));
  check_threads({"adamw", {p, g, g, m, v, control_of(0.01, 1, 1, 3)}, {}, kHyper});
  check_threads({"squared_sum_add", {g, Tensor::of(DType::kF64, {1}, {0})}, {}, {}});
  return check::finish("optimizer");
}
