// linear_logprob, its backward and cross_entropy against f64 loops over the definition, gradients by the formulas
// written out here. A row has the same bits in any batch, an output the same bits on any number of threads.
#include <algorithm>
#include <cinttypes>

#include "test/native/kernel_call.h"

namespace {

using caravan::CpuDevice;
using caravan::DType;
using check::Call;
using check::kBudgetBytes;
using check::Tensor;
using Values = std::vector<double>;

struct Case {
  int64_t N, V, D;
  double chunk_bytes;
  DType dtype = DType::kF32;
  double spread = 1.0;  // logits are about this times sqrt(D) / 3
  int drop_every = 3;   // every third row has no target; 0: all have, 1: none has
};

struct Problem {
  Tensor hidden, head, target, dlogp, dentropy;
};

Problem make_problem(const Case& c) {
  Problem p{Tensor::random(c.dtype, {c.N, c.D}, 1), Tensor::random(c.dtype, {c.V, c.D}, 2), Tensor(DType::kI32, {c.N}),
            Tensor::random(DType::kF32, {c.N}, 3), Tensor::random(DType::kF32, {c.N}, 4)};
  for (int64_t i = 0; i < p.hidden.count(); i++) p.hidden.set(i, p.hidden.at(i) * c.spread);
  for (int64_t n = 0; n < c.N; n++) {
    const bool dropped = c.drop_every > 0 && n % c.drop_every == 0;
    p.target.set(n, dropped ? -100 : static_cast<double>((n * 7919 + 13) % c.V));
  }
  return p;
}

struct Reference {
  Values logp, lse, entropy;
  Values dhidden, dhead;        // of sum dlogp logp (+ dentropy entropy)
  Values ce_dhidden, ce_dhead;  // of sum -logp + z lse^2
  double loss = 0;
};

Reference reference(const Case& c, const Problem& p, bool with_entropy, double z_loss) {
  const size_t N = static_cast<size_t>(c.N), V = static_cast<size_t>(c.V), D = static_cast<size_t>(c.D);
  const Values x = p.hidden.values(), w = p.head.values();
  Reference r;
  r.logp.assign(N, 0);
  r.lse.assign(N, 0);
  r.entropy.assign(N, 0);
  r.dhidden.assign(N * D, 0);
  r.ce_dhidden.assign(N * D, 0);
  r.dhead.assign(V * D, 0);
  r.ce_dhead.assign(V * D, 0);
  Values logits(V);
  for (size_t n = 0; n < N; n++) {
    const double id = p.target.at(static_cast<int64_t>(n));
    if (id < 0) continue;
    for (size_t v = 0; v < V; v++) {
      logits[v] = 0;
      for (size_t i = 0; i < D; i++) logits[v] += x[n * D + i] * w[v * D + i];
    }
    const double top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (double l : logits) sum += std::exp(l - top);
    r.lse[n] = top + std::log(sum);
    r.logp[n] = logits[static_cast<size_t>(id)] - r.lse[n];
    for (double l : logits) {
      const double log_p = l - r.lse[n];
      if (log_p > -700) r.entropy[n] -= std::exp(log_p) * log_p;
    }
    r.loss += -r.logp[n] + z_loss * r.lse[n] * r.lse[n];
    const double dlogp = p.dlogp.at(static_cast<int64_t>(n));
    const double dentropy = with_entropy ? p.dentropy.at(static_cast<int64_t>(n)) : 0.0;
    for (size_t v = 0; v < V; v++) {
      const double log_p = logits[v] - r.lse[n], prob = std::exp(log_p), hit = v == static_cast<size_t>(id) ? 1 : 0;
      const double g = dlogp * (hit - prob) - dentropy * prob * (log_p + r.entropy[n]);
      const double ce = prob * (1 + 2 * z_loss * r.lse[n]) - hit;
      for (size_t i = 0; i < D; i++) {
        r.dhidden[n * D + i] += g * w[v * D + i];
        r.dhead[v * D + i] += g * x[n * D + i];
        r.ce_dhidden[n * D + i] += ce * w[v * D + i];
        r.ce_dhead[v * D + i] += ce * x[n * D + i];
      }
    }
  }
  return r;
}

void compare(const char* what, const Case& c, const Tensor& got, const Values& want, double relative) {
  double largest = 1e-2;
  for (double value : want) largest = std::max(largest, std::fabs(value));
  for (int64_t i = 0; i < got.count(); i++) {
    const double expected = want[static_cast<size_t>(i)];
    const bool ok = std::fabs(got.at(i) - expected) <= relative * largest;
    CHECK_CASE(ok, "%s[%" PRId64 "] of N=%" PRId64 " V=%" PRId64 " D=%" PRId64 " is %.9g, expected %.9g", what, i, c.N,
               c.V, c.D, got.at(i), expected);
    if (!ok) return;
  }
}

/** Rows that have a target, which calls may say (0: they do not). */
double targets_of(const Problem& p) {
  int64_t count = 0;
  for (int64_t n = 0; n < p.target.count(); n++) count += p.target.at(n) >= 0;
  return static_cast<double>(count);
}

Call forward_call(const Case& c, const Problem& p, bool entropy = true) {
  return {
      "linear_logprob",
      {p.hidden, p.head, p.target},
      {Tensor(DType::kF32, {c.N}), Tensor(DType::kF32, {c.N}), entropy ? Tensor(DType::kF32, {c.N}) : Tensor::absent()},
      {entropy ? 1.0 : 0.0, c.chunk_bytes, targets_of(p)}};
}

Call backward_call(const Case& c, const Problem& p, const Tensor& lse, bool entropy) {
  return {"linear_logprob_backward",
          {p.dlogp, entropy ? p.dentropy : Tensor::absent(), p.hidden, p.head, p.target, lse},
          {Tensor(c.dtype, {c.N, c.D}), Tensor(DType::kF32, {c.V, c.D})},
          {c.chunk_bytes, 0.0}};
}

Call cross_entropy_call(const Case& c, const Problem& p, double z_loss) {
  return {"cross_entropy",
          {p.hidden, p.head, p.target},
          {Tensor(DType::kF32, {1}), Tensor(DType::kF32, {c.N}), Tensor(c.dtype, {c.N, c.D}),
           Tensor(DType::kF32, {c.V, c.D})},
          {z_loss, c.chunk_bytes, targets_of(p)}};
}

/** The same call of `op_add`, which starts from `start` instead of from nothing; its dhead output becomes an input. */
Call adding(const Call& call, const Tensor& start) {
  Call add = call;
  add.op += "_add";
  add.in.insert(add.in.begin(), start);
  add.out.pop_back();
  return add;
}

Values sum_of(const Tensor& a, const Tensor& b) {
  Values sum = a.values();
  for (size_t i = 0; i < sum.size(); i++) sum[i] += b.at(static_cast<int64_t>(i));
  return sum;
}

void check_case(CpuDevice& device, const Case& c) {
  const Problem p = make_problem(c);
  const bool half = c.dtype == DType::kBF16;
  const double fine = 3e-6 * std::max(1.0, c.spread), rough = half ? 6e-3 : 2e-5 * std::max(1.0, c.spread);
  // With native bf16 products the gradient of the logits is rounded to bf16 before it is multiplied.
  const double head_bound = !half ? rough : device.isa() == "avx512bf16" ? 4e-3 : 1e-3;
  const double z_loss = 1e-2;
  const Reference plain = reference(c, p, false, z_loss);
  const Call forward = check::run(device, forward_call(c, p));
  compare("logp", c, forward.out[0], plain.logp, fine);
  compare("lse", c, forward.out[1], plain.lse, fine);
  compare("entropy", c, forward.out[2], plain.entropy, 2 * fine);
  const Call no_entropy = check::run(device, forward_call(c, p, false));
  CHECK(no_entropy.out[0].same_bits(forward.out[0]) && no_entropy.out[1].same_bits(forward.out[1]));

  const Tensor start = Tensor::random(DType::kF32, {c.V, c.D}, 9);
  for (bool entropy : {false, true}) {
    const Reference want = reference(c, p, entropy, z_loss);
    const Call call = backward_call(c, p, forward.out[1], entropy);
    const Call backward = check::run(device, call);
    compare("dhidden", c, backward.out[0], want.dhidden, rough);
    compare("dhead", c, backward.out[1], want.dhead, head_bound);
    const Call added = check::run(device, adding(call, start));
    CHECK(added.out[0].same_bits(backward.out[0]));
    compare("dhead added", c, added.in[0], sum_of(start, backward.out[1]), 1e-6);
  }

  const Call call = cross_entropy_call(c, p, z_loss);
  const Call ce = check::run(device, call);
  CHECK_CASE(std::fabs(ce.out[0].at(0) - plain.loss) <= 1e-5 * (std::fabs(plain.loss) + 0.1),
             "loss %.9g, expected %.9g", ce.out[0].at(0), plain.loss);
  // Scoring and training agree in bits.
  for (int64_t n = 0; n < c.N; n++) CHECK(ce.out[1].at(n) == -forward.out[0].at(n));
  compare("cross_entropy dhidden", c, ce.out[2], plain.ce_dhidden, rough);
  compare("cross_entropy dhead", c, ce.out[3], plain.ce_dhead, head_bound);
  const Call added = check::run(device, adding(call, start));
  CHECK(added.out[0].same_bits(ce.out[0]) && added.out[1].same_bits(ce.out[1]) && added.out[2].same_bits(ce.out[2]));
  compare("cross_entropy dhead added", c, added.in[0], sum_of(start, ce.out[3]), 1e-6);
}

std::vector<Case> cases() {
  const double kMiB = 1 << 20;
  return {
      {33, 65, 17, 64 * kMiB},
      {50, 1024, 32, 64 * kMiB},
      {7, 5000, 9, 64 * kMiB},  // several tiles along V
      {40, 2500, 16, 65536},    // chunks of a few rows
      {40, 3000, 16, 1},        // no budget at all: still one row
      {5, 1, 8, kMiB},          // V = 1: logp 0, no gradient
      {1, 31, 1, kMiB, DType::kF32, 1.0, 0},
      {600, 40, 8, 64 * kMiB, DType::kF32, 1.0, 2},
      {12, 20, 8, kMiB, DType::kF32, 1.0, 1},  // all rows dropped
      {0, 20, 8, kMiB},
      {21, 1500, 24, kMiB, DType::kF32, 30.0, 0},  // logits of about a hundred
      {33, 65, 17, 64 * kMiB, DType::kBF16},
      {40, 2100, 33, 65536, DType::kBF16},
  };
}

/** logp, lse, entropy and nll of a row alone are those of the row in any batch. */
void check_batches(CpuDevice& device, DType dtype) {
  const Case c{45, 4500, 33, 4 << 20, dtype};
  const Problem p = make_problem(c);
  const Call all = check::run(device, forward_call(c, p));
  const Call ce = check::run(device, cross_entropy_call(c, p, 0.1));
  for (int64_t n : {0, 1, 2, 17, 44}) {
    const Case one{1, c.V, c.D, 1 << 16, dtype};
    const Problem row{p.hidden.rows(n, n + 1), p.head, p.target.rows(n, n + 1), p.dlogp, p.dentropy};
    const Call alone = check::run(device, forward_call(one, row));
    for (size_t i = 0; i < 3; i++) CHECK(alone.out[i].same_bits(all.out[i].rows(n, n + 1)));
    const Call ce_alone = check::run(device, cross_entropy_call(one, row, 0.1));
    CHECK(ce_alone.out[1].same_bits(ce.out[1].rows(n, n + 1)));
    CHECK(ce_alone.out[2].same_bits(ce.out[2].rows(n, n + 1)));
  }
}

void check_threads_of_all() {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const Case c{100, 4200, 20, 1 << 19, dtype};
    const Problem p = make_problem(c);
    CpuDevice device(1, kBudgetBytes, "");
    const Tensor lse = check::run(device, forward_call(c, p)).out[1];
    check::check_threads(forward_call(c, p));
    check::check_threads(backward_call(c, p, lse, false));
    check::check_threads(backward_call(c, p, lse, true));
    check::check_threads(cross_entropy_call(c, p, 0.1));
    check::check_threads(adding(cross_entropy_call(c, p, 0.1), Tensor::random(DType::kF32, {c.V, c.D}, 9)));
  }
}

void check_extremes(CpuDevice& device) {
  // One feature, so that logit v is exactly x * w[v].
  const Case c{3, 3, 1, 1 << 20, DType::kF32, 1.0, 0};
  Problem p = make_problem(c);
  p.hidden = Tensor::of(DType::kF32, {3, 1}, {1e4, -1e4, 0});
  p.head = Tensor::of(DType::kF32, {3, 1}, {1, -1, 0.5});
  p.target = Tensor::of(DType::kI32, {3}, {0, 0, 2});
  const Call forward = check::run(device, forward_call(c, p));
  const double third = std::log(3.0);
  const Values logp = {0, -2e4, -third}, lse = {1e4, 1e4, third}, entropy = {0, 0, third};
  compare("extreme logp", c, forward.out[0], logp, 1e-7);
  compare("extreme lse", c, forward.out[1], lse, 1e-7);
  compare("extreme entropy", c, forward.out[2], entropy, 1e-6);
  for (bool with_entropy : {false, true}) {
    const Call backward = check::run(device, backward_call(c, p, forward.out[1], with_entropy));
    for (int64_t i = 0; i < 3; i++) CHECK(std::isfinite(backward.out[0].at(i)) && std::isfinite(backward.out[1].at(i)));
  }
  const Call ce = check::run(device, cross_entropy_call(c, p, 0.0));
  // dlogits: row 0 (0,0,0), row 1 (-1,1,0), row 2 (1/3,1/3,-2/3).
  compare("extreme dhidden", c, ce.out[2], {0, -2, -1.0 / 3}, 1e-6);
  compare("extreme dhead", c, ce.out[3], {1e4, -1e4, 0}, 1e-6);
  // NaN in a row stays in that row's outputs.
  p.hidden.set(0, NAN);
  const Call poisoned = check::run(device, forward_call(c, p));
  CHECK(std::isnan(poisoned.out[0].at(0)) && std::isnan(poisoned.out[1].at(0)) && std::isnan(poisoned.out[2].at(0)));
  CHECK(poisoned.out[0].at(1) == forward.out[0].at(1));
}

void check_errors(CpuDevice& device) {
  const Case c{5, 11, 4, 1 << 20, DType::kF32, 1.0, 0};
  Problem p = make_problem(c);
  p.target.set(3, 11);
  std::string message;
  CHECK(check::failure_of(device, forward_call(c, p), &message) == "ERR_DATA");
  CHECK_CASE(message.find("linear_logprob: target[3]") == 0 && message.find("V=11") != std::string::npos &&
                 message.find("got 11") != std::string::npos,
             "%s", message.c_str());
  CHECK(check::failure_of(device, cross_entropy_call(c, p, 0), &message) == "ERR_DATA");
  CHECK(check::failure_of(device, backward_call(c, p, p.dlogp, false), &message) == "ERR_DATA");
  CHECK(message.find("linear_logprob_backward: target[3]") == 0);
  Call miscounted = forward_call(c, make_problem(c));
  miscounted.attrs.back() += 1;
  CHECK(check::failure_of(device, miscounted) == "ERR_DATA");
  Case wide = c;
  wide.dtype = DType::kF64;
  CHECK(check::failure_of(device, forward_call(wide, make_problem(wide))) == "ERR_DTYPE");
}

}  // namespace

int main() {
  check::on_each_isa([](CpuDevice& device) {
    for (const Case& c : cases()) check_case(device, c);
    check_batches(device, DType::kF32);
    check_batches(device, DType::kBF16);
    check_extremes(device);
    check_errors(device);
  });
  check_threads_of_all();
  return check::finish("linear_logprob_test");
}
