// sample against an f64 loop over its definition, for vocabularies around the vector and part sizes, in memory that
// ends where the tensors end; equal bits on any number of threads and in any batch.
#include <algorithm>
#include <numeric>

#include "test/native/kernel_call.h"

namespace {

using caravan::CpuDevice;
using caravan::DType;
using check::Call;
using check::Tensor;

struct Settings {
  double temperature, top_k, top_p, min_p, penalty;
};

const Settings kSettings[] = {{1, 0, 1, 0, 1},     {0, 0, 1, 0, 1.5},      {0.7, 3, 1, 0, 1},
                              {1.3, 0, 0.6, 0, 2}, {0.8, 9, 0.9, 0.05, 1}, {1, 0, 1, 0.3, 0.5}};

Call sample_call(DType dtype, int64_t N, int64_t V, int64_t D) {
  std::vector<double> settings, keys, previous, ends;
  for (int64_t n = 0; n < N; n++) {
    const Settings& s = kSettings[n % 6];
    settings.insert(settings.end(), {s.temperature, s.top_k, s.top_p, s.min_p, s.penalty});
    keys.insert(keys.end(), {7.0 * static_cast<double>(n), 1.0, static_cast<double>(n % 3), static_cast<double>(n)});
    for (int64_t i = 0; i < n % 4; i++) previous.push_back(static_cast<double>((n * 5 + i * 3) % V));
    ends.push_back(static_cast<double>(previous.size()));
  }
  const int64_t M = static_cast<int64_t>(previous.size());
  Tensor hidden = Tensor::random(dtype, {N, D}, 1);
  for (int64_t i = 0; i < hidden.count(); i++) hidden.set(i, 4 * hidden.at(i));
  return {"sample",
          {hidden, Tensor::random(dtype, {V, D}, 2), Tensor::of(DType::kF64, {N, 5}, settings),
           Tensor::of(DType::kI32, {N, 4}, keys), Tensor::of(DType::kI32, {M}, previous),
           Tensor::of(DType::kI32, {N}, ends)},
          {Tensor(DType::kI32, {N}), Tensor(DType::kF32, {N}), Tensor(DType::kF32, {N}), Tensor(DType::kF32, {N, V})},
          {1}};
}

std::vector<double> logits_of(const Call& call, int64_t row, int64_t V, int64_t D) {
  std::vector<double> logits(static_cast<size_t>(V));
  for (int64_t v = 0; v < V; v++) {
    for (int64_t d = 0; d < D; d++)
      logits[static_cast<size_t>(v)] += call.in[0].at(row * D + d) * call.in[1].at(v * D + d);
  }
  return logits;
}

std::vector<double> softmax(std::vector<double> z) {
  const double top = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double& x : z) sum += x = std::exp(x - top);
  for (double& x : z) x /= sum;
  return z;
}

/** Keeps the entries for which keep(rank in descending order, mass before it) holds. */
template <typename Keep>
std::vector<double> filtered(const std::vector<double>& p, const Keep& keep) {
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  std::vector<double> kept(p.size());
  double before = 0, total = 0;
  for (size_t rank = 0; rank < order.size(); rank++) {
    const double one = p[order[rank]];
    if (rank == 0 || keep(static_cast<double>(rank), before, one)) total += kept[order[rank]] = one;
    before += one;
  }
  for (double& x : kept) x /= total;
  return kept;
}

std::vector<double> distribution(std::vector<double> z, const Settings& s, const std::vector<int>& seen) {
  const std::vector<double> raw = z;
  for (int id : seen) {
    const size_t i = static_cast<size_t>(id);
    z[i] = raw[i] < 0 ? raw[i] * s.penalty : raw[i] / s.penalty;
  }
  if (s.temperature == 0) {
    std::vector<double> p(z.size());
    p[static_cast<size_t>(std::max_element(z.begin(), z.end()) - z.begin())] = 1;
    return p;
  }
  for (double& x : z) x /= s.temperature;
  std::vector<double> p = softmax(z);
  if (s.top_k > 0) p = filtered(p, [&](double rank, double, double) { return rank < s.top_k; });
  if (s.top_p < 1) p = filtered(p, [&](double, double before, double) { return before < s.top_p; });
  const double top = *std::max_element(p.begin(), p.end());
  if (s.min_p > 0) p = filtered(p, [&](double, double, double one) { return one >= s.min_p * top; });
  return p;
}

void check_case(CpuDevice& device, DType dtype, int64_t N, int64_t V) {
  const int64_t D = 11;
  const Call done = check::run(device, sample_call(dtype, N, V, D));
  for (int64_t n = 0; n < N; n++) {
    std::vector<int> seen;
    for (int64_t i = n == 0 ? 0 : static_cast<int64_t>(done.in[5].at(n - 1)); i < done.in[5].at(n); i++) {
      seen.push_back(static_cast<int>(done.in[4].at(i)));
    }
    const std::vector<double> logits = logits_of(done, n, V, D);
    const std::vector<double> p = distribution(logits, kSettings[n % 6], seen);
    for (int64_t v = 0; v < V; v++) {
      CHECK_CASE(std::fabs(done.out[3].at(n * V + v) - p[static_cast<size_t>(v)]) < 1e-5,
                 "row %d of V=%d, token %d: %g, %g", static_cast<int>(n), static_cast<int>(V), static_cast<int>(v),
                 done.out[3].at(n * V + v), p[static_cast<size_t>(v)]);
    }
    const size_t token = static_cast<size_t>(done.out[0].at(n));
    CHECK(token < static_cast<size_t>(V) && p[token] > 0);
    CHECK(std::fabs(done.out[1].at(n) - std::log(softmax(logits)[token])) < 1e-4);
    CHECK(std::fabs(done.out[2].at(n) - std::log(p[token])) < 1e-4);
  }
}

void check_alone(CpuDevice& device) {
  const Call all = check::run(device, sample_call(DType::kBF16, 40, 1500, 24));
  for (int64_t n : {0, 7, 39}) {
    Call one = all;
    for (size_t i : {0, 2, 3}) one.in[i] = all.in[i].rows(n, n + 1);
    const int64_t begin = n == 0 ? 0 : static_cast<int64_t>(all.in[5].at(n - 1));
    const int64_t end = static_cast<int64_t>(all.in[5].at(n));
    one.in[4] = all.in[4].rows(begin, end);
    one.in[5] = Tensor::of(DType::kI32, {1}, {static_cast<double>(end - begin)});
    for (Tensor& out : one.out) out = out.rows(0, 1);
    const Call alone = check::run(device, one);
    for (size_t i = 0; i < 4; i++) CHECK(alone.out[i].same_bits(all.out[i].rows(n, n + 1)));
  }
}

}  // namespace

int main() {
  check::on_each_isa([](CpuDevice& device) {
    for (int64_t V : {1, 2, 7, 8, 9, 15, 16, 17, 33, 1023, 1024, 1025, 2049}) {
      check_case(device, DType::kF32, 12, V);
      check_case(device, DType::kBF16, 6, V);
    }
    check_alone(device);
  });
  check::check_threads(sample_call(DType::kF32, 30, 3001, 16));
  return check::finish("sample_test");
}
